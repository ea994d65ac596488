/* infer: choosing the next token, and generating text with a model. */
#ifndef TP_INFER_H
#define TP_INFER_H
#include "nn/nn.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Field names and defaults are those of Hugging Face's GenerationConfig, order of the filters too.
 */
typedef struct tp_sampling {
    double temperature; /* 0: always the most likely token; else at least 1e-30 */
    int64_t top_k;      /* keep the k most likely; 0: all */
    double top_p;       /* keep the smallest set with at least this probability; 1: all */
    double min_p;       /* keep tokens at least this fraction as likely as the best; 0: all */
    double repetition_penalty; /* logits of seen tokens: /r if > 0, else *r (Keskar et al. 2019); 1:
                                  off */
    uint64_t seed;
} tp_sampling;
/* Says what is wrong with a value ("temperature must be 0 or more"), or NULL. */
const char *tp_sampling_problem(const tp_sampling *s);
/* Whether a filter may leave tokens out. */
bool tp_sampling_truncates(const tp_sampling *s);

/* What a random number belongs to: Philox's key and counter are made of it, so a draw depends on
 * nothing else that is sampled. */
typedef struct tp_draw {
    uint32_t step, prompt; /* of training, and in it; 0 elsewhere */
    uint32_t sample, position;
} tp_draw;

typedef struct tp_sampler tp_sampler; /* scratch for one vocabulary */
tp_status tp_sampler_new(tp_sampler **out, tp_ctx *c, int64_t vocab);
void tp_sampler_free(tp_sampler *s);
/* The token that follows history (n ids), given its logits (V), soft cap applied. A function of its
 * arguments alone. Ties go to the lower id. set, if not NULL, gets the ceil(V/32) words of the set
 * that was chosen from (ops/token_logprob). NaN logits: TP_ENUMERIC. */
tp_status tp_sample_token(tp_ctx *c, tp_sampler *s, const tp_sampling *how, const float *logits,
                          const int32_t *history, int64_t n, tp_draw draw, int32_t *token,
                          int32_t *set);

typedef struct tp_generate_opts {
    tp_sampling sampling;
    int64_t max_new_tokens;
    int32_t stop;    /* end here (usually end-of-text); < 0: never */
    uint32_t sample; /* number of this sample: another one, other draws */
    bool (*token)(void *arg,
                  int32_t id); /* called for each new token; false ends it; may be NULL */
    void *arg;
} tp_generate_opts;
/* Appends up to max_new_tokens to ids (which has room), *n grows. When the context is full the
 * oldest half is left behind, so a text may be longer than it. Ends the ctx's step. */
tp_status tp_generate(tp_ctx *c, tp_model *m, const tp_generate_opts *o, int32_t *ids, int64_t *n);
#ifdef __cplusplus
}
#endif
#endif
