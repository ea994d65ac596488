/* linear_cross_entropy: the language-model head and its loss in one op, without the logits.
 *
 * The head's logits have N*V values (N tokens, V vocabulary), far more than all else in a small
 * model; they exist here only as a block that fits the caches. The idea: Cut Cross-Entropy
 * (Wijmans et al., arXiv 2411.09009) and the Liger kernels (Hsu et al., arXiv 2410.10989). */
#ifndef TP_LINEAR_CROSS_ENTROPY_H
#define TP_LINEAR_CROSS_ENTROPY_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_lce_opts {
    double softcap;       /* > 0: logits become cap*tanh(logits/cap) (Gemma 2); 0: none */
    double z_loss;        /* adds z_loss * lse^2 to each token's loss (PaLM); 0: none */
    double temperature;   /* logits are divided by it, after the cap; 0 means 1 */
    int64_t ignore_index; /* a target of this value counts for nothing; negative; 0 means -100 */
    int64_t chunk;        /* rows whose logits exist at a time, at most 65536; 0: chosen by size.
                             No value of it changes a bit of the result. */
    bool trans_w;         /* w is (C,V) instead of (V,C) */
} tp_lce_opts;

typedef struct tp_lce {
    tp_tensor *loss;    /* -logprob + z_loss*lse^2 */
    tp_tensor *logprob; /* log p(target): without the z term */
    tp_tensor *entropy; /* -sum p log p, in nats */
    tp_tensor *lse;     /* log sum exp of the logits */
} tp_lce;

/* x (…,C) float, w (V,C) or (C,V), targets (…) i32 with values 0..V-1 or ignore_index; opts may be
 * NULL. Every output is (…), f32 (f64 for x in f64), and 0 where the target is ignored. All four
 * have gradients, to x and to w. A target outside the vocabulary fails the call with TP_EARG. On
 * failure all are NULL. The mean is the caller's: divide by the number of tokens of the whole
 * batch, not of its part. */
tp_lce tp_linear_cross_entropy(tp_ctx *c, tp_tensor *x, tp_tensor *w, tp_tensor *targets,
                               const tp_lce_opts *opts);

typedef struct tp_lce_sum {
    tp_tensor *loss;    /* () = sum of coef*loss over the tokens: per sample, then a binary tree */
    tp_tensor *logprob; /* (…), a report: no gradient flows through it */
    tp_tensor *entropy; /* (…), the same */
} tp_lce_sum;

/* The same loss, summed with the weights coef (…) (NULL: ones; a constant), for training: since the
 * weights are known, the gradients are computed in the same pass over the logits, which saves one
 * of four matrix products. x must be an input whose gradient is wanted; otherwise call
 * tp_linear_cross_entropy. Where w has none (requires_grad), its product is left out, too. The
 * gradients have the same bits as that op's. (On CUDA where `chunk` gives room for dw in f32; else
 * its memory counts for more: lce_plan_cuda.h.) */
tp_lce_sum tp_linear_cross_entropy_train(tp_ctx *c, tp_tensor *x, tp_tensor *w, tp_tensor *targets,
                                         tp_tensor *coef, const tp_lce_opts *opts);
#ifdef __cplusplus
}
#endif
#endif
