/* expand: repeat along new or size-1 dimensions without copying. */
#ifndef TP_EXPAND_H
#define TP_EXPAND_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* x seen with the given shape; aligned at the last dimension, missing and size-1 dimensions are
 * repeated. A view: repeated dimensions have stride 0. */
tp_tensor *tp_expand(tp_ctx *c, tp_tensor *x, int ndim, const int64_t *shape);
/* The same with x's dimensions matched in order to those dimensions of like that are not in the
 * bitmask `inserted`; what tp_sum with the same bitmask takes away, this puts back. */
tp_tensor *tp_expand_at(tp_ctx *c, tp_tensor *x, const tp_tensor *like, unsigned inserted);
#ifdef __cplusplus
}
#endif
#endif
