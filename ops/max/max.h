/* max: the largest value over dimensions, and where it first stands. */
#ifndef TP_MAX_H
#define TP_MAX_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* The largest of x over the dimensions in the bitmask dims (as in tp_sum), which must hold at least
 * one element; the gradient goes to the first largest. If there is a NaN, the result is NaN. */
tp_tensor *tp_max(tp_ctx *c, tp_tensor *x, unsigned dims, bool keepdim);
/* i32: the row-major position, among the reduced dimensions, of the first largest element (of the
 * first NaN, if there is one). */
tp_tensor *tp_argmax(tp_ctx *c, tp_tensor *x, unsigned dims, bool keepdim);
#ifdef __cplusplus
}
#endif
#endif
