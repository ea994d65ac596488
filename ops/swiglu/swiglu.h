/* swiglu: the gated unit of Shazeer, "GLU variants improve transformer", arXiv 2002.05202. */
#ifndef TP_SWIGLU_H
#define TP_SWIGLU_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = silu(gate)*up, elementwise: (…), (…) -> (…), float tensors of one shape. */
tp_tensor *tp_swiglu(tp_ctx *c, tp_tensor *gate, tp_tensor *up);
/* Both gradients in one pass: d[0] = dgate, d[1] = dup; NULLs on failure. Has a vjp of its own. */
tp_status tp_swiglu_backward(tp_ctx *c, tp_tensor *gate, tp_tensor *up, tp_tensor *dy,
                             tp_tensor *d[2]);
#ifdef __cplusplus
}
#endif
#endif
