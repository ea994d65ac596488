/* reduce: what reductions over given dimensions share. */
#ifndef TP_REDUCE_H
#define TP_REDUCE_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_reduce_attr {
    int32_t dims; /* bitmask: bit i set = dimension i is reduced */
    int32_t keep; /* bitmask, a part of dims: these stay with size 1 */
} tp_reduce_attr;
extern const tp_attr tp_reduce_attrs[];

/* The dtype of what is summed over a batch: statistics, and the gradients of parameters. In bf16
 * each part would be rounded, and the parts are cut as micro-batches and ranks happen to be. */
static inline tp_dtype tp_sum_dtype(tp_dtype x) { return x == TP_F64 ? TP_F64 : TP_F32; }
/* dims with TP_ALL_DIMS resolved to those that x has (x may be NULL). */
tp_reduce_attr tp_reduce_dims(const tp_tensor *x, unsigned dims, unsigned keep);
/* Checks a tp_reduce_attr against in[0], a float tensor; out[0] of the reduced shape. */
tp_status tp_infer_reduce(tp_call *k);
/* How many elements of x make one of the result. */
int64_t tp_reduced_count(const tp_tensor *x, unsigned dims);

typedef struct tp_reduced {
    int64_t kept, gone;
} tp_reduced; /* row-major positions in either part */
/* Where element i (row-major) of x goes. */
tp_reduced tp_reduced_at(const tp_tensor *x, int32_t dims, int64_t i);

/* ---- for kernels: strided walks ------------------------------------------------------------- */
/* Dimensions in row-major order, neighbours merged where they lie evenly. */
typedef struct tp_dims {
    int ndim;
    int64_t n, shape[TP_MAXDIM], stride[TP_MAXDIM];
} tp_dims;
void tp_dims_push(tp_dims *d, int64_t size, int64_t stride);
/* t's dimensions, those that stay and those that are reduced. */
void tp_dims_split(const tp_tensor *t, int32_t dims, tp_dims *kept, tp_dims *gone);
static inline TP_HD int64_t tp_dims_offset(const tp_dims *d, int64_t i) {
    int64_t at = 0;
    for (int j = d->ndim - 1; j > 0; i /= d->shape[j--]) at += i % d->shape[j] * d->stride[j];
    return d->ndim ? at + i * d->stride[0] : 0;
}
#ifdef __cplusplus
}
#endif
#endif
