/* adamw_: one step of Adam (Kingma and Ba, arXiv 1412.6980) with decoupled weight decay (Loshchilov
 * and Hutter, arXiv 1711.05101), in place. */
#ifndef TP_ADAMW_H
#define TP_ADAMW_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
typedef struct tp_adamw_opts {
    double learning_rate, beta1, beta2, epsilon, weight_decay;
    double grad_scale; /* the gradient is multiplied by it (clipping, averaging); 0 means 1 */
    int64_t update;    /* how many updates this one makes it: 1, 2, …; for the bias correction */
} tp_adamw_opts;
/* g = grad_scale*grad, m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2,
 * p -= lr*(mhat/(sqrt(vhat) + eps) + wd*p), mhat = m/(1-b1^update), vhat = v/(1-b2^update).
 * p, m, v, grad: one shape and float dtype; grad NULL is zero. One pass: 28 bytes per parameter. */
tp_status tp_adamw_(tp_ctx *c, tp_tensor *p, tp_tensor *m, tp_tensor *v, tp_tensor *grad,
                    const tp_adamw_opts *opts);
#ifdef __cplusplus
}
#endif
#endif
