/* sub: elementwise difference with broadcasting. */
#ifndef TP_SUB_H
#define TP_SUB_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* y = a-b. Shapes are aligned at the last dimension; a missing or size-1 dimension is repeated. */
tp_tensor *tp_sub(tp_ctx *c, tp_tensor *a, tp_tensor *b);
#ifdef __cplusplus
}
#endif
#endif
