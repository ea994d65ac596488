/* dropout: Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting",
 * JMLR 2014. */
#ifndef TP_DROPOUT_H
#define TP_DROPOUT_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = x/(1-p_drop) with probability 1-p_drop, else 0, elementwise: (…) -> (…), float tensors,
 * 0 <= p_drop < 1. p_drop = 0 returns x itself.
 *
 * The mask is a function of the context's seed and step, the number of this call among the dropout
 * calls of the forward pass (c->stream, which tp_rng_at sets back to 0), the global sample number
 * (c->sample + index along dimension 0) and the position within the sample. So it is the same for
 * any split of a batch and any number of threads; it is never stored, backward computes it again.
 */
tp_tensor *tp_dropout(tp_ctx *c, tp_tensor *x, double p_drop);
#ifdef __cplusplus
}
#endif
#endif
