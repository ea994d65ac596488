/* sgd_: one step of gradient descent with momentum and decoupled weight decay, in place. */
#ifndef TP_SGD_H
#define TP_SGD_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
typedef struct tp_sgd_opts {
    double learning_rate, momentum, weight_decay;
    double grad_scale; /* the gradient is multiplied by it; 0 means 1 */
    bool nesterov;
} tp_sgd_opts;
/* g = grad_scale*grad, b = momentum*b + g, u = nesterov ? g + momentum*b : b, p -= lr*(u + wd*p).
 * b NULL: u = g. p, b, grad: one shape and float dtype; grad NULL is zero. */
tp_status tp_sgd_(tp_ctx *c, tp_tensor *p, tp_tensor *b, tp_tensor *grad, const tp_sgd_opts *opts);
#ifdef __cplusplus
}
#endif
#endif
