/* mul: elementwise product with broadcasting; mul_: by one number, in place. */
#ifndef TP_MUL_H
#define TP_MUL_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = a*b. Shapes are aligned at the last dimension; a missing or size-1 dimension is repeated. */
tp_tensor *tp_mul(tp_ctx *c, tp_tensor *a, tp_tensor *b);
/* a *= s in place; s () is one number of a's dtype. Where s is 1, a's bytes are not touched: the
 * usual case of a loss that backward starts from, whose gradients may be large. */
tp_status tp_mul_(tp_ctx *c, tp_tensor *a, tp_tensor *s);
#ifdef __cplusplus
}
#endif
#endif
