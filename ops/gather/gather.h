/* gather: values of each row by their place in it. */
#ifndef TP_GATHER_H
#define TP_GATHER_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y[…,k] = x[…,idx[…,k]]. x float (…,C), idx i32 (…,K) with the same leading dimensions -> (…,K).
 * An index outside 0..C-1 is refused with its position and value. */
tp_tensor *tp_gather_last(tp_ctx *c, tp_tensor *x, tp_tensor *idx);
/* dx[…,c] = sum of dy[…,k] over all k with idx[…,k] = c, in the order of k. idx (…,K), dy (…,K) ->
 * (…,channels). Its vjp is gather. */
tp_tensor *tp_gather_backward(tp_ctx *c, tp_tensor *idx, tp_tensor *dy, int64_t channels);
#ifdef __cplusplus
}
#endif
#endif
