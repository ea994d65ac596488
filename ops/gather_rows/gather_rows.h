/* gather_rows, scatter_add_rows: rows of a matrix taken out and added back by number. */
#ifndef TP_GATHER_ROWS_H
#define TP_GATHER_ROWS_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y[m,:] = x[idx[m],:]. x float (N,C), idx i32 (M) -> (M,C). An index outside 0..N-1 is refused
 * with its position and value. */
tp_tensor *tp_gather_rows(tp_ctx *c, tp_tensor *x, tp_tensor *idx);
/* y = x with src[m,:] added to row idx[m], for m = 0, 1, … in this order (so repeated indices have
 * one result, whatever the threads). x (N,C), idx i32 (M), src (M,C) -> (N,C). */
tp_tensor *tp_scatter_add_rows(tp_ctx *c, tp_tensor *x, tp_tensor *idx, tp_tensor *src);
#ifdef __cplusplus
}
#endif
#endif
