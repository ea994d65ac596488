/* row_dot: the product of every row with one vector. */
#ifndef TP_ROW_DOT_H
#define TP_ROW_DOT_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* s = x w: x (…,C), w (C), of one float dtype -> (…), f32 (f64 for f64) also where x is bf16, so
 * that scores of neighbours stay apart. A row's bits depend on the row and w only. */
tp_tensor *tp_row_dot(tp_ctx *c, tp_tensor *x, tp_tensor *w);
#ifdef __cplusplus
}
#endif
#endif
