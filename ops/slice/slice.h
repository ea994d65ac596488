/* slice: a range of one dimension, as a view. */
#ifndef TP_SLICE_H
#define TP_SLICE_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = x[…, start:start+length, …] along `dim` (negative: from the end). Any dtype; shares x's
 * bytes. Refused unless 0 <= start, 0 <= length and start+length <= x.shape[dim]. */
tp_tensor *tp_slice(tp_ctx *c, tp_tensor *x, int dim, int64_t start, int64_t length);
#ifdef __cplusplus
}
#endif
#endif
