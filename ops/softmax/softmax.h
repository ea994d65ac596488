/* softmax: exponentials that sum to 1. */
#ifndef TP_SOFTMAX_H
#define TP_SOFTMAX_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y_i = e^{x_i} / sum_j e^{x_j} over the last dimension: (…,C) -> (…,C). A -inf gives exactly 0; a
 * row of nothing but -inf, or one with a NaN or +inf, gives NaN. */
tp_tensor *tp_softmax(tp_ctx *c, tp_tensor *x);
/* dx = y (dy - sum(dy y)) from softmax's result y; has a vjp of its own, so second order works. */
tp_tensor *tp_softmax_backward(tp_ctx *c, tp_tensor *y, tp_tensor *dy);
#ifdef __cplusplus
}
#endif
#endif
