/* muon: the two pieces of the Muon optimiser (Keller Jordan et al. 2024, "Muon: an optimizer for
 * hidden layers in neural networks") that are not elsewhere. The step itself is sgd_ along the
 * result. */
#ifndef TP_MUON_H
#define TP_MUON_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
typedef struct tp_momentum_opts {
    double momentum, grad_scale; /* grad_scale 0 means 1 */
    bool nesterov;
} tp_momentum_opts;
/* g = grad_scale*grad, b = momentum*b + g (in place); returns u = nesterov ? g + momentum*b : b.
 * b, grad: one shape and float dtype; grad NULL is zero. */
tp_tensor *tp_momentum_(tp_ctx *c, tp_tensor *b, tp_tensor *grad, const tp_momentum_opts *opts);

typedef struct tp_newton_schulz_opts {
    int64_t steps;  /* 0 means 5 */
    int64_t blocks; /* x is this many matrices side by side, each treated alone; 0 means 1 */
    int64_t dim;    /* the dimension that they divide: 0 (rows) or 1 (columns) */
} tp_newton_schulz_opts;
/* (R,C) -> (R,C): about U V^T for x = U S V^T. Every singular value ends in about [0.68, 1.14]
 * (unless it is below a thousandth of the Frobenius norm): near enough to 1 for an update, at five
 * steps. */
tp_tensor *tp_newton_schulz(tp_ctx *c, tp_tensor *x, const tp_newton_schulz_opts *opts);
#ifdef __cplusplus
}
#endif
#endif
