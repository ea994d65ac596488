/* cast: change the element type. */
#ifndef TP_CAST_H
#define TP_CAST_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* The values of x as dtype t; x itself if it has that dtype already. Floats become integers by
 * dropping the fraction, limited to the type's range; NaN becomes 0. The gradient is cast back. */
tp_tensor *tp_cast(tp_ctx *c, tp_tensor *x, tp_dtype t);
#ifdef __cplusplus
}
#endif
#endif
