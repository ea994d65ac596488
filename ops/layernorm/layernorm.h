/* layernorm: layer normalisation of Ba, Kiros and Hinton, arXiv 1607.06450. */
#ifndef TP_LAYERNORM_H
#define TP_LAYERNORM_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = (x - mean) * rstd * w + b over the last dimension, rstd = 1/sqrt(var + eps), var the mean
 * squared deviation. x (…,C), w and b (C) or NULL, all of one float dtype -> (…,C). C >= 1. */
tp_tensor *tp_layernorm(tp_ctx *c, tp_tensor *x, tp_tensor *w, tp_tensor *b, double eps);
/* *sum = x + residual; answers layernorm(*sum), in one pass over memory and with the bits of the
 * two ops one after the other. x, residual, *sum and the result (…,C); *sum is NULL after a
 * failure. */
tp_tensor *tp_add_layernorm(tp_ctx *c, tp_tensor *x, tp_tensor *residual, tp_tensor *w,
                            tp_tensor *b, double eps, tp_tensor **sum);
#ifdef __cplusplus
}
#endif
#endif
