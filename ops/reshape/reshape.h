/* reshape: the same values, in the same row-major order, under another shape. */
#ifndef TP_RESHAPE_H
#define TP_RESHAPE_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* x (…) -> (shape[0],…,shape[ndim-1]), any dtype. One entry may be -1: it takes what is left. The
 * result is a view whenever strides can say it (splitting or joining dense dimensions always can);
 * otherwise x is first copied densely with `copy`. */
tp_tensor *tp_reshape(tp_ctx *c, tp_tensor *x, int ndim, const int64_t *shape);
/* Removes dimension `dim`, which must have size 1. Negative dims count from the end. */
tp_tensor *tp_squeeze(tp_ctx *c, tp_tensor *x, int dim);
/* Inserts a dimension of size 1 so that it becomes dimension `dim` of the result. */
tp_tensor *tp_unsqueeze(tp_ctx *c, tp_tensor *x, int dim);
#ifdef __cplusplus
}
#endif
#endif
