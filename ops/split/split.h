/* split: one dimension cut into consecutive pieces, as views. */
#ifndef TP_SPLIT_H
#define TP_SPLIT_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* Cuts x along `dim` (negative: from the end) into n pieces, 1 <= n <= TP_MAXOUT, of sizes[i]; the
 * sizes must add up to x.shape[dim]. out[0..n-1] are views of x, or NULLs after a failure. The
 * gradient of all pieces together is one concat, or a join where they lie in one buffer. E.g.
 * (B,T,3C) -> q, k, v (B,T,C). */
tp_status tp_split(tp_ctx *c, tp_tensor *x, int dim, int n, const int64_t *sizes, tp_tensor *out[]);
#ifdef __cplusplus
}
#endif
#endif
