/* attention: softmax(q k^T) v over time, without ever holding the (T,S) matrix of scores.
 * Vaswani et al., arXiv 1706.03762; the tiled form is that of Dao et al., arXiv 2205.14135. */
#ifndef TP_ATTENTION_H
#define TP_ATTENTION_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Zero everywhere means: every query sees every key. Query t stands at position t + q_offset, key j
 * at position j. */
typedef struct tp_attention_opts {
    bool causal;         /* a query sees keys at its own position and before */
    bool q_offset_given; /* false: q_offset is S - T, so the last query stands at the last key */
    int64_t q_offset;    /* position of query 0; for decoding into a longer key buffer */
    int64_t window;      /* > 0: a query sees only keys less than this many positions behind it */
    double scale;        /* scores are scale * q.k; 0: 1/sqrt(D) */
    double softcap;      /* > 0: scores become softcap*tanh(score/softcap) (Gemma 2) */
    tp_tensor *segments; /* i32 (B,T) or NULL: attend only inside equal values; needs S == T */
    tp_tensor *starts;   /* i32 (B) or NULL: position of query 0 for each sequence, instead of
                            q_offset; decoding only, has no gradient */
} tp_attention_opts;

/* q (B,T,H,D), k (B,S,Hkv,D), v (B,S,Hkv,Dv) -> o (B,T,H,Dv). Query head h reads key head
 * h / (H/Hkv), so H must be a multiple of Hkv. Any strides: slices of one (B,T,3C) buffer are read
 * in place. A query that sees no key gets o = 0. opts may be NULL. lse, if not NULL, receives
 * (B,H,T), the log of the sum of exp(score) over the keys a query sees
 * (-inf if none), f32 (f64 when q is). Both outputs are differentiable. */
tp_tensor *tp_attention(tp_ctx *c, tp_tensor *q, tp_tensor *k, tp_tensor *v,
                        const tp_attention_opts *opts, tp_tensor **lse);

/* What the vjp of attention runs: gradients of q, k and v from those of o and lse. */
typedef struct tp_attention_backward_args {
    tp_tensor *q, *k, *v, *o, *lse; /* attention's inputs and outputs */
    tp_tensor *d_o, *dlse;          /* shaped like o and lse; NULL: zero */
} tp_attention_backward_args;
/* dqkv[0..2] receive the gradients, dense, shaped like q, k and v; NULLs after a failure. */
tp_status tp_attention_backward(tp_ctx *c, const tp_attention_backward_args *a,
                                const tp_attention_opts *opts, tp_tensor *dqkv[3]);
#ifdef __cplusplus
}
#endif
#endif
