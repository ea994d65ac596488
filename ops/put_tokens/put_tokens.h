/* put_tokens: what a routed block computed, weighed and added to the tokens that it took. */
#ifndef TP_PUT_TOKENS_H
#define TP_PUT_TOKENS_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = x, but token rows[p,j] gets weight[p,j] * src[p,j,:] added. x (B,T,C), rows i32 (P,K) as for
 * take_tokens (-1: none), src (P,K,C) of x's dtype, weight (P,K) of x's dtype or f32 -> (B,T,C).
 * Tokens that are not listed keep their bits. */
tp_tensor *tp_put_tokens(tp_ctx *c, tp_tensor *x, tp_tensor *rows, tp_tensor *src,
                         tp_tensor *weight);
#ifdef __cplusplus
}
#endif
#endif
