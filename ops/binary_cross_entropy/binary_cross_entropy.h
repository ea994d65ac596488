/* binary_cross_entropy: the loss of yes-or-no decisions, from logits. */
#ifndef TP_BINARY_CROSS_ENTROPY_H
#define TP_BINARY_CROSS_ENTROPY_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* loss = -log p where label is not 0, else -log(1-p), p = 1/(1+e^-x), in nats, for each element.
 * labels i32 and x float, of one shape (…) -> (…) of x's dtype. Finite for any finite x. */
tp_tensor *tp_binary_cross_entropy(tp_ctx *c, tp_tensor *labels, tp_tensor *x);
#ifdef __cplusplus
}
#endif
#endif
