/* div: elementwise quotient with broadcasting. */
#ifndef TP_DIV_H
#define TP_DIV_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = a/b. Shapes are aligned at the last dimension; a missing or size-1 dimension is repeated.
 * Division by zero gives infinity or NaN as IEEE 754 says. */
tp_tensor *tp_div(tp_ctx *c, tp_tensor *a, tp_tensor *b);
#ifdef __cplusplus
}
#endif
#endif
