/* Where training rows come from: a corpus of text, or conversations. */
#ifndef TP_SOURCE_H
#define TP_SOURCE_H
#include "cli/cli.h"
#include "data/sft.h"

tp_chat_template tp_chat_template_of(const tp_config *f);

typedef struct tp_source {
    tp_corpus *corpus; /* one of the two */
    tp_sft_data *sft;
} tp_source;
/* Opens what the path names. Conversations need the tokenizer; for a corpus it is checked to be the
 * one that the corpus was made with, unless it is NULL. */
tp_status tp_source_open(tp_source *s, tp_ctx *c, const tp_config *f, const char *path,
                         const tp_tokenizer *t);
void tp_source_close(tp_source *s);
bool tp_source_is_open(const tp_source *s);
const char *tp_source_sha256(const tp_source *s);

typedef struct tp_rows { /* an order of a source's rows */
    tp_loader *loader;
    tp_sft *sft;
} tp_rows;
/* share: this rank's part; NULL: validation, everything once in order, `batch` rows at a time. */
tp_status tp_rows_open(tp_rows *r, tp_ctx *c, const tp_source *s, const tp_config *f,
                       const tp_share *share, int64_t batch);
void tp_rows_close(tp_rows *r);
tp_status tp_rows_next(void *rows, tp_ctx *c, tp_batch *out); /* a tp_next_fn */
tp_status tp_rows_seek(tp_rows *r, tp_ctx *c, int64_t sample);
tp_status tp_rows_count_targets(tp_rows *r, tp_ctx *c, int64_t first, int64_t n, int64_t *targets);
int64_t tp_rows_count(const tp_rows *r); /* of an epoch */

/* The tokenizer of a run that begins: that of model.init_from (whose model.* keys are taken over),
 * of the corpus, or data.tokenizer. Settles model.vocab. from: the run's own checkpoint where it
 * goes on, or NULL: then what it began with may have changed since, or be gone. */
tp_status tp_begin_tokenizer(tp_tokenizer **out, tp_ctx *c, tp_config *f,
                             tp_checkpoint_reader *from);
/* Whether weights are named where a run that begins cannot do without: for LoRA. */
tp_status tp_begin_check(tp_ctx *c, const tp_config *f);
/* The weights of model.init_from; where it has no adapters, those of p stay as they are. */
tp_status tp_begin_weights(tp_ctx *c, const tp_config *f, tp_params *p);
#endif
