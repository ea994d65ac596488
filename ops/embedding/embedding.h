/* embedding: rows of a table by number. */
#ifndef TP_EMBEDDING_H
#define TP_EMBEDDING_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y[…,:] = table[ids[…],:]. ids i32 (…), at most 5 dimensions; table float (V,C) -> (…,C). An id
 * outside 0..V-1 is refused with its position and value. */
tp_tensor *tp_embedding(tp_ctx *c, tp_tensor *ids, tp_tensor *table);
/* The gradient of the table, dense (V,C): each row the sum of those dy rows whose id is that row's
 * number, per sample (dimension 0 of ids) in order of position, then over samples in the fixed tree
 * of ops/layernorm/leaves.h. dy (…,C). */
tp_tensor *tp_embedding_backward(tp_ctx *c, tp_tensor *ids, tp_tensor *dy, int64_t vocab);
/* sum += that gradient, in place: rows whose id does not occur are not touched. The bits are those
 * of adding the dense gradient. sum (V,C), dense. No gradient. */
tp_status tp_embedding_backward_(tp_ctx *c, tp_tensor *sum, tp_tensor *ids, tp_tensor *dy);
#ifdef __cplusplus
}
#endif
#endif
