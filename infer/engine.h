/* engine: many prompts, many samples of each, decoded together (continuous batching: Yu et al.,
 * "Orca", OSDI 2022; pages: Kwon et al., arXiv 2309.06180).
 *
 * A prompt goes through the model once; its samples share its pages and begin from its last logits.
 * As soon as a lane is free the next sample has it. What a sample becomes depends on the weights,
 * its prompt and its draws only: not on lanes, chunks, pages, threads or what else is decoded. The
 * log-probs are, to the last bit, those of tp_model_logprob over the whole sequence (with
 * TP_MOD_CAUSAL where blocks are routed; on Hopper, in bf16, where ctx->as_decoded asks for it). */
#ifndef TP_ENGINE_H
#define TP_ENGINE_H
#include "infer/infer.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_engine_opts {
    int64_t lanes; /* samples decoded at a time; 0: 32 */
    int64_t page;  /* keys of a page, a multiple of 16; 0: 16 */
    int64_t pages; /* of the dense layers' pool; 0: every lane has its longest sequence, and 4
                      prompts. A routed layer's is smaller, by mod.capacity */
    int64_t prefill_chunk; /* prompt tokens fed at a time, of each; 0: 256 */
    int64_t max_length;    /* prompt and completion, for the size of the pool; 0: the context, or
                              with a window what rope can tell apart */
    int64_t window, sinks; /* window > 0: attention to the last `window` tokens and the first
                              `sinks` only, and a text may be longer than the context (rope) */
    bool slide;            /* a full context leaves its older half behind instead of ending */
} tp_engine_opts;
typedef struct tp_engine tp_engine;
tp_status tp_engine_new(tp_engine **out, tp_ctx *c, tp_model *m, const tp_engine_opts *opts);
void tp_engine_free(tp_engine *e);

typedef struct tp_request {
    const int32_t *prompt; /* (n) ids, at least one */
    int64_t n, samples, max_new_tokens;
    tp_sampling sampling;
    uint32_t step, number, first_sample; /* the draws' key: tp_draw */
    int32_t stop;                        /* ends a sample, and is its last token; < 0: none */
    bool want_sets;                      /* record the sets that truncated sampling chose from */
} tp_request;

typedef enum tp_end { TP_END_STOP, TP_END_LENGTH, TP_END_CALLER } tp_end;
typedef struct tp_completion {  /* valid during the call of done */
    int64_t request, sample, n; /* n tokens, the stop token among them */
    const int32_t *ids;
    const float *logprob; /* (n) at the sampling temperature (1 where that is 0), over the whole
                             vocabulary, or over the set where sampling truncates and sets are
                             wanted */
    const float *entropy; /* (n) of the same distribution */
    const int32_t *set;   /* (n,ceil(V/32)) or NULL */
    tp_end end;
} tp_completion;

typedef struct tp_engine_calls {
    tp_status (*done)(void *arg, const tp_completion *x); /* a failure ends the run */
    bool (*token)(void *arg, int64_t request, int64_t sample, int32_t id); /* false: enough */
    bool (*interrupted)(void *arg); /* true: the run fails with TP_EINTERRUPT */
    void *arg;
} tp_engine_calls; /* each may be NULL */

typedef struct tp_engine_stats {
    int64_t prefilled, decoded, passes; /* tokens fed of prompts, tokens chosen, forward passes */
    int64_t pages, pages_peak, evicted; /* of the dense layers' pool; used at most; sequences that
                                           had to wait */
    int64_t fed_singly;                 /* tokens fed in passes of one token of each sequence */
    double flops_singly; /* of those passes, heads included; on a GPU without attention's own */
} tp_engine_stats;

typedef struct tp_layer_stats { /* of one layer's part in the cache; dense layers have theirs alike
                                 */
    bool routed;
    int64_t fed, kept;         /* tokens that came by, samples' and those read again included; keys
                                  kept of them */
    int64_t pages, pages_peak; /* of its pool; used at most */
} tp_layer_stats;

/* Decodes every sample of every request. Weights may change between runs: nothing is kept. Ends the
 * ctx's step; not while a tape records. */
tp_status tp_engine_run(tp_engine *e, const tp_request *requests, int64_t n,
                        const tp_engine_calls *calls);
tp_engine_stats tp_engine_get_stats(const tp_engine *e);                     /* since it was made */
tp_layer_stats tp_engine_get_layer_stats(const tp_engine *e, int64_t layer); /* likewise */
/* Bytes that one token takes in the cache, 2 * kv_heads * head_dim * bytes of a value for each
 * layer that keeps its key; for routed layers in the mean over a whole context in which they take
 * what the capacity says, rounded up. */
int64_t tp_kv_bytes_per_token(const tp_model *m);
double tp_engine_kv_bytes_per_token(const tp_engine *e); /* in the mean, of what was fed; 0: none */
#ifdef __cplusplus
}
#endif
#endif
