/* rmsnorm: root mean square normalisation of Zhang and Sennrich, arXiv 1910.07467. */
#ifndef TP_RMSNORM_H
#define TP_RMSNORM_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = x * rstd * w over the last dimension, rstd = 1/sqrt(mean(x^2) + eps). x (…,C), w (C) or NULL,
 * of one float dtype -> (…,C). C >= 1. */
tp_tensor *tp_rmsnorm(tp_ctx *c, tp_tensor *x, tp_tensor *w, double eps);
/* *sum = x + residual; answers rmsnorm(*sum), in one pass over memory and with the bits of the two
 * ops one after the other. x, residual, *sum and the result (…,C); *sum is NULL after a failure. */
tp_tensor *tp_add_rmsnorm(tp_ctx *c, tp_tensor *x, tp_tensor *residual, tp_tensor *w, double eps,
                          tp_tensor **sum);
#ifdef __cplusplus
}
#endif
#endif
