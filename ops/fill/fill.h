/* fill: a constant tensor. */
#ifndef TP_FILL_H
#define TP_FILL_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* A tensor of the given shape with every value v, rounded to dtype t: tp_full(c, TP_F32,
 * 0.5, TP_SHAPE(2, 3)). Step lifetime; no gradient. */
tp_tensor *tp_full(tp_ctx *c, tp_dtype t, double v, int ndim, const int64_t *shape);
tp_tensor *tp_zeros(tp_ctx *c, tp_dtype t, int ndim, const int64_t *shape);
/* Shape and dtype of x. */
tp_tensor *tp_full_like(tp_ctx *c, const tp_tensor *x, double v);
tp_tensor *tp_zeros_like(tp_ctx *c, const tp_tensor *x);
tp_tensor *tp_ones_like(tp_ctx *c, const tp_tensor *x);
#ifdef __cplusplus
}
#endif
#endif
