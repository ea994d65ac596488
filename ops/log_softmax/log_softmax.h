/* log_softmax: logarithms of softmax, without its underflow. */
#ifndef TP_LOG_SOFTMAX_H
#define TP_LOG_SOFTMAX_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y_i = x_i - log(sum_j e^{x_j}) over the last dimension: (…,C) -> (…,C). A -inf stays -inf; a row
 * of nothing but -inf, or one with a NaN or +inf, gives NaN. */
tp_tensor *tp_log_softmax(tp_ctx *c, tp_tensor *x);
/* dx = dy - e^y sum(dy) from log_softmax's result y; has a vjp of its own. */
tp_tensor *tp_log_softmax_backward(tp_ctx *c, tp_tensor *y, tp_tensor *dy);
#ifdef __cplusplus
}
#endif
#endif
