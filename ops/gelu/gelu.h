/* gelu: the Gaussian error linear unit of Hendrycks and Gimpel, arXiv 1606.08415. */
#ifndef TP_GELU_H
#define TP_GELU_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), elementwise: (…) -> (…). GPT-2's form,
 * called "gelu_new" by Hugging Face and approximate='tanh' by PyTorch. Float tensors. */
tp_tensor *tp_gelu(tp_ctx *c, tp_tensor *x);
/* dx = dy * gelu'(x), elementwise; has a vjp of its own, so second order works. */
tp_tensor *tp_gelu_backward(tp_ctx *c, tp_tensor *x, tp_tensor *dy);
#ifdef __cplusplus
}
#endif
#endif
