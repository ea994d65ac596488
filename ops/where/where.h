/* where: choose between two tensors. */
#ifndef TP_WHERE_H
#define TP_WHERE_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = cond ? a : b. cond is u8 (0 is false), a and b are floats of one dtype; the three broadcast
 * against each other. What is not chosen gets no gradient, not even where it is NaN. */
tp_tensor *tp_where(tp_ctx *c, tp_tensor *cond, tp_tensor *a, tp_tensor *b);
#ifdef __cplusplus
}
#endif
#endif
