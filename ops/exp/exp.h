/* exp: e to the x. */
#ifndef TP_EXP_H
#define TP_EXP_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = e^x, elementwise: (…) -> (…), float tensors. Overflows to infinity above 88.7 in f32. */
tp_tensor *tp_exp(tp_ctx *c, tp_tensor *x);
#ifdef __cplusplus
}
#endif
#endif
