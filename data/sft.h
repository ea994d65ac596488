/* sft: rows for supervised fine-tuning from JSON lines of conversations. A line is
 *     {"prompt": "…", "response": "…"}         ("completion" may stand for "response")
 *     {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]}
 * The loss counts the assistant's tokens and the end of its turns only. Everything is held in
 * memory: 5 bytes a token.
 *
 * Sample i of a run is a pure function of (file, T, seed, packing, i), as in data/loader.h, and
 * batches have its form. An example longer than T+1 tokens is cut there; one without a trained
 * token left is left out; both are counted. */
#ifndef TP_SFT_H
#define TP_SFT_H
#include "data/chat.h"
#include "data/loader.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_sft_opts {
    int64_t batch, T;
    uint64_t seed;
    bool pack;       /* several examples in a row, kept apart by segments; else one in each */
    bool sequential; /* validation: every example once, in order; then rows is 0 */
    int64_t period, first, share; /* ranks: as in tp_loader_opts */
} tp_sft_opts;
typedef struct tp_sft_info {
    int64_t examples, tokens, trained; /* that are kept; tokens of them; those that count */
    int64_t cut, left_out;
    char sha256[65]; /* of the file */
} tp_sft_info;

typedef struct tp_sft_data tp_sft_data; /* the examples */
/* Every way to make rows of one file may share its data. TP_EFORMAT names the line that is wrong.
 */
tp_status tp_sft_read(tp_sft_data **out, tp_ctx *c, const char *path, const tp_tokenizer *t,
                      tp_chat_template kind, int64_t T);
void tp_sft_data_free(tp_sft_data *d);
const tp_sft_info *tp_sft_get_info(const tp_sft_data *d);

typedef struct tp_sft tp_sft; /* an order of rows; d must outlive it */
tp_status tp_sft_new(tp_sft **out, tp_ctx *c, const tp_sft_data *d, const tp_sft_opts *opts);
void tp_sft_free(tp_sft *s);
tp_status tp_sft_next(tp_sft *s, tp_ctx *c, tp_batch *out);
tp_status tp_sft_seek(tp_sft *s, tp_ctx *c, int64_t sample);
tp_status tp_sft_count_targets(tp_sft *s, tp_ctx *c, int64_t first, int64_t n, int64_t *targets);
int64_t tp_sft_rows(const tp_sft *s); /* samples of the first epoch */
/* Whether a path is read this way: it ends in .jsonl. */
bool tp_sft_is(const char *path);
#ifdef __cplusplus
}
#endif
#endif
