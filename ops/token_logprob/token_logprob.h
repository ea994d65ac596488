/* token_logprob: log-probabilities of chosen tokens from logits, over the whole vocabulary or over
 * the set that a sampler chose from (top-k, top-p, min-p).
 *
 * For decoding, where the logits exist anyway, and for training on truncated samples; a training
 * forward over the whole vocabulary uses linear_cross_entropy, which has the same bits. */
#ifndef TP_TOKEN_LOGPROB_H
#define TP_TOKEN_LOGPROB_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_token_logprob_opts {
    double softcap;     /* > 0: logits become cap*tanh(logits/cap); 0: none */
    double temperature; /* logits are divided by it, after the cap; 0 means 1 */
    tp_tensor *set; /* i32 (…,ceil(V/32)): bit v%32 of word v/32 tells whether v is in the set;
                       NULL: every token is */
} tp_token_logprob_opts;
typedef struct tp_token_logprob_out {
    tp_tensor *logprob; /* (…) s_y - log sum over the set of e^s, s = capped logits/temperature */
    tp_tensor *entropy; /* (…) of the distribution over the set, in nats */
} tp_token_logprob_out;

/* logits (…,V) float, targets (…) i32 in 0..V-1 and in the set, or -100: both outputs 0. Outputs
 * are f32 (f64 for logits in f64), differentiable in the logits. opts may be NULL. NULLs after a
 * failure. */
tp_token_logprob_out tp_token_logprob(tp_ctx *c, tp_tensor *logits, tp_tensor *targets,
                                      const tp_token_logprob_opts *opts);
#ifdef __cplusplus
}
#endif
#endif
