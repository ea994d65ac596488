/* topk: the largest values of each row. */
#ifndef TP_TOPK_H
#define TP_TOPK_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* The n largest values of the last dimension, largest first; of equal values the one with the lower
 * index comes first; NaN counts as larger than everything. x float (…,C), 0 <= n <= C -> values
 * (…,n), and *indices i32 (…,n) (NULL after a failure). Gradients flow through the values only. */
tp_tensor *tp_topk(tp_ctx *c, tp_tensor *x, int64_t n, tp_tensor **indices);
#ifdef __cplusplus
}
#endif
#endif
