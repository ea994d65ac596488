/* matmul: matrix products, and the gradient of a weight that many samples share.
 *
 * Every element of a product is one chain of fused multiply-adds in the order of k, so that a row's
 * result has the same bits alone and among others (ops/matmul/gemm.h says it exactly). */
#ifndef TP_MATMUL_H
#define TP_MATMUL_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_matmul_opts {
    bool trans_a;    /* a is (…,K,M) */
    bool trans_b;    /* b is (N,K) or (…,N,K), as the weight of a Linear */
    tp_tensor *bias; /* (N), added to every row; only with a shared b and without trans_a */
    bool f32;        /* y of bf16 inputs is f32: the sums as they are, for logits; without bias */
} tp_matmul_opts;

/* y = a b (+ bias): a (…,M,K), b (K,N) for all leading dimensions, y (…,M,N); or, batched, b
 * (…,K,N) with a's leading dimensions. trans_a with leading dimensions needs a batched b. o = NULL:
 * neither transposed, no bias. All of one float type. K = 0 gives zeros (plus bias). */
tp_tensor *tp_matmul(tp_ctx *c, tp_tensor *a, tp_tensor *b, const tp_matmul_opts *o);

/* sum += a b in place, with a shared b and no bias; sum (…,M,N) lies apart from a and b. The bits
 * of adding tp_matmul's result. No gradient. */
tp_status tp_matmul_(tp_ctx *c, tp_tensor *sum, tp_tensor *a, tp_tensor *b,
                     const tp_matmul_opts *o);

/* y = gelu(a b + bias), as tp_gelu(tp_matmul(…)) and with its bits, but y is written while the
 * product is at hand. Only with a shared b (K,N) and without trans_a. */
tp_tensor *tp_matmul_gelu(tp_ctx *c, tp_tensor *a, tp_tensor *b, const tp_matmul_opts *o);

/* dh = (a b) gelu'(h), as tp_gelu_backward(h, tp_matmul(a, b)): what reaches h through gelu(h) and
 * a product behind it. a (…,M,K), b (K,N), or (N,K) with trans_b, h (…,M,N). */
tp_tensor *tp_matmul_dgelu(tp_ctx *c, tp_tensor *a, tp_tensor *b, tp_tensor *h, bool trans_b);

/* y = gelu(x w1 + b1) w2 + b2, GPT-2's MLP as one op, so that its gradient is a product that ends
 * in gelu's derivative: x (…,M,C), w1 (C,F), b1 (F) or NULL, w2 (F,N), b2 (N) or NULL. */
tp_tensor *tp_gelu_mlp(tp_ctx *c, tp_tensor *x, tp_tensor *w1, tp_tensor *b1, tp_tensor *w2,
                       tp_tensor *b2);

typedef struct tp_wgrad_opts {
    bool transposed; /* dw is (N,K) instead of (K,N) */
    bool weight;     /* dw is wanted */
    bool bias;       /* db is wanted */
} tp_wgrad_opts;

/* dw = sum of x^T dy over all rows, db = sum of dy: x (S,T…,K), dy (S,T…,N) -> out[0] = dw (K,N),
 * out[1] = db (N); NULL where not wanted. Each of the S samples (a 2-D x is one) is a chain over
 * its rows in order, whatever dimensions they lie in; the samples are added in a binary tree over
 * their index: neighbours of equal size merge, left + right, what remains at the end merges from
 * the right. So aligned power-of-two parts of a batch give subtrees of the whole, and can be added
 * later without changing a bit. */
tp_status tp_matmul_wgrad(tp_ctx *c, tp_tensor *x, tp_tensor *dy, const tp_wgrad_opts *o,
                          tp_tensor *out[2]);
#ifdef __cplusplus
}
#endif
#endif
