/* mul: elementwise product with broadcasting. */
#ifndef TP_MUL_H
#define TP_MUL_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = a*b. Shapes are aligned at the last dimension; a missing or size-1 dimension is repeated. */
tp_tensor *tp_mul(tp_ctx *c, tp_tensor *a, tp_tensor *b);
/* a *= b in place, b one element of a's dtype. No gradient. Where b is 1 nothing is written. */
tp_status tp_mul_(tp_ctx *c, tp_tensor *a, tp_tensor *b);
#ifdef __cplusplus
}
#endif
#endif
