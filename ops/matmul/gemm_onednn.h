/* gemm_onednn: the products of gemm.h by oneDNN, for `numerics: fast`. Private to ops.
 *
 * oneDNN adds in an order of its own, which depends on the shape, the CPU and the number of
 * threads; so none of what gemm.h promises about bits holds here. Its scratch memory comes from the
 * system, not from the pool. */
#ifndef TP_GEMM_ONEDNN_H
#define TP_GEMM_ONEDNN_H
#include "ops/matmul/gemm.h"
#ifdef __cplusplus
extern "C" {
#endif

/* NULL where oneDNN may compute g in this ctx, else a printable reason. */
const char *tp_gemm_onednn_declines(const tp_ctx *c, const tp_gemm *g);
/* Computes g, its whole k as one sum (leaf is passed over), on the ctx's threads. False, and C
 * undefined unless it held addends, where it declines or oneDNN fails: then tp_gemm_run can. */
bool tp_gemm_onednn(tp_ctx *c, const tp_gemm *g);

#ifdef __cplusplus
}
#endif
#endif
