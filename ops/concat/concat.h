/* concat: tensors one behind the other along a dimension. */
#ifndef TP_CONCAT_H
#define TP_CONCAT_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* Joins x[0..n-1], 1 <= n <= TP_MAXIN, along `dim` (negative: from the end). All have one dtype
 * and, save for `dim`, one shape; they may be strided. The result is dense. */
tp_tensor *tp_concat(tp_ctx *c, int dim, int n, tp_tensor *const x[]);
/* The same where x[i] may be NULL: sizes[i] zeros stand there. At least one must be present. */
tp_tensor *tp_concat_sized(tp_ctx *c, int dim, int n, tp_tensor *const x[], const int64_t *sizes);
#ifdef __cplusplus
}
#endif
#endif
