/* transpose: dimensions in another order, as a view. */
#ifndef TP_TRANSPOSE_H
#define TP_TRANSPOSE_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y.shape[i] = x.shape[perm[i]]; perm is a permutation of 0..ndim-1. Any dtype; shares bytes. */
tp_tensor *tp_permute(tp_ctx *c, tp_tensor *x, const int *perm);
/* Swaps dimensions i and j: (…,M,N) -> (…,N,M) for i = -2, j = -1. */
tp_tensor *tp_transpose(tp_ctx *c, tp_tensor *x, int i, int j);
#ifdef __cplusplus
}
#endif
#endif
