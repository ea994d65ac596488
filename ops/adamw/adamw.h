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
    /* bf16 moments are rounded by random numbers at (ctx seed, TP_RNG_ROUND, stream, update,
     * element), so the parts of a cut parameter get the bits of the whole. */
    int64_t stream;  /* the parameter's number, below 2^24 */
    int64_t offset;  /* of the first element here, in the whole parameter */
    bool bf16_state; /* m and v are bf16; tp_adamw_ sets it */
} tp_adamw_opts;
/* g = grad_scale*grad, m = b1 m + (1-b1) g, v = b2 v + (1-b2) g^2,
 * p -= lr*(mhat/(sqrt(vhat) + eps) + wd*p), mhat = m/(1-b1^update), vhat = v/(1-b2^update).
 * p, m, v, grad: one shape and float dtype; grad NULL is zero. One pass: 28 bytes per parameter.
 * m and v may both be bf16 instead (20 bytes): the step uses their new values before rounding, and
 * they are then rounded up or down at random, right in the mean (Gupta et al., arXiv 1502.02551).
 * Rounding to nearest would not do: with beta2 = 0.999, v moves by less than half a bf16 step. */
tp_status tp_adamw_(tp_ctx *c, tp_tensor *p, tp_tensor *m, tp_tensor *v, tp_tensor *grad,
                    const tp_adamw_opts *opts);
#ifdef __cplusplus
}
#endif
#endif
