/* relu: the rectified linear unit. */
#ifndef TP_RELU_H
#define TP_RELU_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = max(x, 0), elementwise: (…) -> (…), float tensors. NaN stays NaN. */
tp_tensor *tp_relu(tp_ctx *c, tp_tensor *x);
/* dx = dy where the result y > 0, else 0. */
tp_tensor *tp_relu_backward(tp_ctx *c, tp_tensor *y, tp_tensor *dy);
#ifdef __cplusplus
}
#endif
#endif
