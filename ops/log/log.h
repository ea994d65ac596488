/* log: the natural logarithm. */
#ifndef TP_LOG_H
#define TP_LOG_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = ln x, elementwise: (…) -> (…), float tensors. ln 0 is -infinity, of negatives NaN. */
tp_tensor *tp_log(tp_ctx *c, tp_tensor *x);
#ifdef __cplusplus
}
#endif
#endif
