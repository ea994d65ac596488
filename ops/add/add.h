/* add: elementwise sum with broadcasting. */
#ifndef TP_ADD_H
#define TP_ADD_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = a+b. Shapes are aligned at the last dimension; a missing or size-1 dimension is repeated. */
tp_tensor *tp_add(tp_ctx *c, tp_tensor *a, tp_tensor *b);
/* a += b in place, same shape and dtype; a dense to be fast. Not differentiable: engine and
 * optimisers only. */
tp_status tp_add_(tp_ctx *c, tp_tensor *a, tp_tensor *b);
#ifdef __cplusplus
}
#endif
#endif
