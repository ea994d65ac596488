/* route: which tokens a routed block takes (expert choice), and what there is to say about it. */
#ifndef TP_ROUTE_H
#define TP_ROUTE_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
typedef struct tp_route_opts {
    int64_t k;     /* tokens taken of each row, 0..T */
    bool document; /* each run of equal segments has its share of k; else they compete for it */
    tp_tensor *positions, *segments; /* i32 (B,T), or NULL: 0..T-1; one document */
} tp_route_opts;
typedef struct tp_routed {
    tp_tensor *rows;      /* i32 (B,k): b*T+t of the tokens taken, ascending */
    tp_tensor *positions; /* i32 (B,k): theirs */
    tp_tensor *segments;  /* i32 (B,k), NULL without segments */
    tp_tensor *member;    /* i32 (B,T): 1 where a token is taken, else 0 */
} tp_routed;
/* The k highest scores of each row, in the order of tokens; of equal scores the earlier token; NaN
 * counts as highest. scores float (B,T). With `document`, a run of segments that begins at token a
 * and ends before b takes ceil(k b/T) - ceil(k a/T): its share of k in proportion to its length, so
 * that a row always takes k. All members are NULL after a failure. */
tp_routed tp_route(tp_ctx *c, tp_tensor *scores, const tp_route_opts *o);

enum { TP_ROUTE_TAKEN, TP_ROUTE_AGREE, TP_ROUTE_ENTROPY, TP_ROUTE_LOSS, TP_ROUTE_STATS };
/* Sums over a row's tokens, (B,4) f32 (f64 for f64): decisions above 0; decisions that agree with
 * member; entropy in nats of the choice that 1/(1+e^-score) is; loss. scores, decision, loss (B,T)
 * of one float dtype, member i32 (B,T); loss may be NULL. */
tp_tensor *tp_route_report(tp_ctx *c, tp_tensor *scores, tp_tensor *member, tp_tensor *decision,
                           tp_tensor *loss);
#ifdef __cplusplus
}
#endif
#endif
