/* rmsnorm: root mean square normalisation of Zhang and Sennrich, arXiv 1910.07467. */
#ifndef TP_RMSNORM_H
#define TP_RMSNORM_H
#include "ops/layernorm/norm.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = x * rstd * w over the last dimension, rstd = 1/sqrt(mean(x^2) + eps). x (…,C), w (C) or NULL,
 * of one float dtype -> (…,C). C >= 1. */
tp_tensor *tp_rmsnorm(tp_ctx *c, tp_tensor *x, tp_tensor *w, double eps);
/* sum = x + residual and y = rmsnorm(sum) in one pass over memory; x, residual, sum, y (…,C). o->b
 * must be NULL. */
tp_sum_norm tp_add_rmsnorm(tp_ctx *c, tp_tensor *x, tp_tensor *residual, const tp_norm_opts *o);
#ifdef __cplusplus
}
#endif
#endif
