/* minimum, maximum: the smaller or larger of two tensors; less: which one that is. */
#ifndef TP_MINIMUM_H
#define TP_MINIMUM_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* Elementwise with broadcasting, floats of one dtype. A NaN on either side gives NaN; where a = b
 * the gradient goes to a. */
tp_tensor *tp_minimum(tp_ctx *c, tp_tensor *a, tp_tensor *b);
tp_tensor *tp_maximum(tp_ctx *c, tp_tensor *a, tp_tensor *b);
/* u8: 1 where a < b, else 0. */
tp_tensor *tp_less(tp_ctx *c, tp_tensor *a, tp_tensor *b);
#ifdef __cplusplus
}
#endif
#endif
