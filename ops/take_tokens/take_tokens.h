/* take_tokens: the tokens that a routed block works on, by row number, and their gradient. */
#ifndef TP_TAKE_TOKENS_H
#define TP_TAKE_TOKENS_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y[p,j,:] = token rows[p,j] of x, counted b*T+t; zeros where rows is -1. x (B,T,C), rows i32
 * (P,K) whose entries other than -1 ascend -> (P,K,C). */
tp_tensor *tp_take_tokens(tp_ctx *c, tp_tensor *x, tp_tensor *rows);
/* dx (B,T,C) = dy (P,K,C) at its rows, else zeros. */
tp_tensor *tp_take_tokens_backward(tp_ctx *c, tp_tensor *rows, tp_tensor *dy, int64_t batch,
                                   int64_t tokens);
/* The same added to sum (B,T,C) in place. */
tp_status tp_take_tokens_backward_(tp_ctx *c, tp_tensor *sum, tp_tensor *rows, tp_tensor *dy);
#ifdef __cplusplus
}
#endif
#endif
