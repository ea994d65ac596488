/* sum_squares: the squared length of a tensor in double, for gradient clipping. */
#ifndef TP_SUM_SQUARES_H
#define TP_SUM_SQUARES_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* f64 scalar = sum x^2, x (…) float, in a fixed order: chunks of 65536 values, a tree over chunks.
 * Of f32 values it is finite exactly if they all are: no sum of their squares overflows a double.
 */
tp_tensor *tp_sum_squares(tp_ctx *c, tp_tensor *x);
#ifdef __cplusplus
}
#endif
#endif
