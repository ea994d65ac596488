/* tanh: the hyperbolic tangent. */
#ifndef TP_TANH_H
#define TP_TANH_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = tanh(x), elementwise: (…) -> (…), float tensors. */
tp_tensor *tp_tanh(tp_ctx *c, tp_tensor *x);
/* dx = dy*(1-y*y), from the result y; has a vjp of its own, so second order works. */
tp_tensor *tp_tanh_backward(tp_ctx *c, tp_tensor *y, tp_tensor *dy);
#ifdef __cplusplus
}
#endif
#endif
