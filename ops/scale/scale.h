/* scale: multiply by a constant and add a constant. */
#ifndef TP_SCALE_H
#define TP_SCALE_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = s*x + t, elementwise: (…) -> (…), float tensors. s and t are constants, not tensors. */
tp_tensor *tp_scale(tp_ctx *c, tp_tensor *x, double s, double t);
#ifdef __cplusplus
}
#endif
#endif
