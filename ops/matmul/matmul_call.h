/* The attributes of this folder's ops, as their calls carry them. Private to ops/matmul. */
#ifndef TP_MATMUL_CALL_H
#define TP_MATMUL_CALL_H
#include "ops/op.h"

typedef struct tp_matmul_attr {
    bool trans_a, trans_b, f32;
} tp_matmul_attr;
typedef struct tp_wgrad_attr {
    bool transposed, weight, bias;
} tp_wgrad_attr;

/* The number of matrices in t: the product of all but its last two dimensions. */
static inline int64_t tp_batch(const tp_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim - 2; i++) n *= t->shape[i];
    return n;
}

/* Rows of a sample, the leaves of matmul_wgrad's tree: dimension 0 of three or more counts samples,
 * as for the norms and sum. */
static inline int64_t tp_sample_rows(const tp_tensor *t) {
    int64_t n = 1;
    for (int i = t->ndim > 2 ? 1 : 0; i < t->ndim - 1; i++) n *= t->shape[i];
    return n;
}

/* Whether the rows of t, all dimensions but the last, lie evenly apart, and how far. */
static inline bool even_rows(const tp_tensor *t, int64_t *stride) {
    int64_t rows = 1;
    *stride = 0;
    if (tp_numel(t) == 0) return true;
    for (int i = t->ndim - 2; i >= 0; i--) {
        if (t->shape[i] == 1) continue;
        if (rows == 1)
            *stride = t->stride[i];
        else if (t->stride[i] != *stride * rows)
            return false;
        rows *= t->shape[i];
    }
    return true;
}

/* matmul's parts that matmul_gelu is made of too (matmul.c): a, b and bias are inputs 0, 1 and 2.
 * infer creates, and the oracle fills, output 0. */
tp_status tp_matmul_infer(tp_call *k);
tp_status tp_matmul_oracle(const tp_call *k);
double tp_matmul_flops(const tp_call *k);
/* The inputs' gradients from dy, that of the product. */
void tp_matmul_gradients(const tp_call *k, tp_tensor *dy, tp_tensor *din[]);

extern const tp_kernel matmul_onednn, matmul_wgrad_onednn; /* matmul_onednn.c */

/* The outputs that a matmul_wgrad call has; NULL where it was not wanted. */
static inline tp_tensor *wgrad_dw(const tp_call *k) {
    return ((const tp_wgrad_attr *)k->attr)->weight ? k->out[0] : NULL;
}
static inline tp_tensor *wgrad_db(const tp_call *k) {
    return ((const tp_wgrad_attr *)k->attr)->bias ? k->out[k->nout - 1] : NULL;
}
#endif
