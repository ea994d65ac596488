/* silu: x times the logistic function of x (Hendrycks and Gimpel, arXiv 1606.08415; also "swish").
 */
#ifndef TP_SILU_H
#define TP_SILU_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = x/(1+e^-x), elementwise: (…) -> (…), float tensors. */
tp_tensor *tp_silu(tp_ctx *c, tp_tensor *x);
/* dx = dy * silu'(x); has a vjp of its own, so second order works. */
tp_tensor *tp_silu_backward(tp_ctx *c, tp_tensor *x, tp_tensor *dy);
/* dy * silu''(x), written in other ops; for vjps of second order. */
tp_tensor *tp_silu_second(tp_ctx *c, tp_tensor *x, tp_tensor *dy);
#ifdef __cplusplus
}
#endif
#endif
