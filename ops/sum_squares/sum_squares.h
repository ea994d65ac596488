/* sum_squares: the squared length of a tensor in double, for gradient clipping. */
#ifndef TP_SUM_SQUARES_H
#define TP_SUM_SQUARES_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
enum { TP_SQUARES_CHUNK = 4096 };
/* f64 (ceil(n/4096)): sum x^2 of each chunk of 4096 values of x (…) float, in row-major order. A
 * chunk's bits depend on its values only, so a tensor that is cut at multiples of 4096 gives the
 * same numbers. Of f32 values each is finite exactly if they all are: no sum of their squares
 * overflows a double. */
tp_tensor *tp_sum_squares(tp_ctx *c, tp_tensor *x);
#ifdef __cplusplus
}
#endif
#endif
