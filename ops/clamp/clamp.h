/* clamp: limit values to an interval. */
#ifndef TP_CLAMP_H
#define TP_CLAMP_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = min(max(x, lo), hi), elementwise: (…) -> (…), float tensors; lo <= hi, infinities allowed.
 * The gradient is 1 inside and at the bounds, 0 outside. NaN stays NaN. */
tp_tensor *tp_clamp(tp_ctx *c, tp_tensor *x, double lo, double hi);
#ifdef __cplusplus
}
#endif
#endif
