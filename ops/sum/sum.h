/* sum: sums and means over dimensions, in an order that depends on the shape only. */
#ifndef TP_SUM_H
#define TP_SUM_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
enum { TP_ALL_DIMS = 0x7fffffff };
/* Sums over the dimensions in the bitmask dims (bit i: dimension i; TP_ALL_DIMS: all that there
 * are); keepdim leaves them with size 1. An empty sum is 0. Order of the additions, whatever the
 * strides and the number of threads:
 *   - along the last dimension, if it is summed: sixteen lanes (element i into lane i mod 16), then
 *     the lanes by halves;
 *   - then one chain over the other summed dimensions, row-major;
 *   - over dimension 0, the samples (of 3 or more dimensions, or when the last is summed too): a
 *     binary tree over their index, so that aligned power-of-two sub-batches are its subtrees. */
tp_tensor *tp_sum(tp_ctx *c, tp_tensor *x, unsigned dims, bool keepdim);
/* The same, leaving size 1 for the dimensions in the bitmask keep only (a part of dims). */
tp_tensor *tp_sum_at(tp_ctx *c, tp_tensor *x, unsigned dims, unsigned keep);
/* tp_sum times 1/(number of elements summed), which must not be 0. */
tp_tensor *tp_mean(tp_ctx *c, tp_tensor *x, unsigned dims, bool keepdim);
/* The sum of x over the dimensions along which a tensor of `shape` was repeated to get x's shape:
 * the adjoint of broadcasting. x itself if there are none. */
tp_tensor *tp_sum_to(tp_ctx *c, tp_tensor *x, int ndim, const int64_t *shape);
tp_tensor *tp_sum_like(tp_ctx *c, tp_tensor *x, const tp_tensor *like);
#ifdef __cplusplus
}
#endif
#endif
