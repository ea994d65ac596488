/* sigmoid: the logistic function. */
#ifndef TP_SIGMOID_H
#define TP_SIGMOID_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = 1/(1+e^-x), elementwise: (…) -> (…), float tensors. */
tp_tensor *tp_sigmoid(tp_ctx *c, tp_tensor *x);
/* dx = dy*y*(1-y), from the result y; has a vjp of its own, so second order works. */
tp_tensor *tp_sigmoid_backward(tp_ctx *c, tp_tensor *y, tp_tensor *dy);
#ifdef __cplusplus
}
#endif
#endif
