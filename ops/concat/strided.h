/* Copying between strided places of any element type; concat's kernel. */
#ifndef TP_STRIDED_H
#define TP_STRIDED_H
#include "ops/op.h"
/* dst = src, or zeros where src is NULL. Same shape and dtype, strides free, no overlap. */
void tp_strided_copy(tp_ctx *c, const tp_tensor *dst, const tp_tensor *src);
#endif
