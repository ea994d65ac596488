/* join: tensors that already lie one behind the other in one buffer, as one view of it. */
#ifndef TP_JOIN_H
#define TP_JOIN_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* Whether x[0..n-1], n >= 2, share a buffer in which each begins where the one before it ends along
 * `dim` (negative: from the end), with the same strides. Then *whole is the header of all of them:
 * nobody owns it. False where one is NULL or empty. The same under META. */
bool tp_lie_joined(int dim, int n, tp_tensor *const x[], tp_tensor *whole);
/* concat of such tensors without a copy: a view. Refused where they do not lie so. */
tp_tensor *tp_join(tp_ctx *c, int dim, int n, tp_tensor *const x[]);
#ifdef __cplusplus
}
#endif
#endif
