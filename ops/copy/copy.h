/* copy: the same values in fresh, dense memory. */
#ifndef TP_COPY_H
#define TP_COPY_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* (…) -> (…), any dtype and any strides; the result is row-major. */
tp_tensor *tp_copy(tp_ctx *c, tp_tensor *x);
/* x itself if it is dense, else a copy. */
tp_tensor *tp_contiguous_of(tp_ctx *c, tp_tensor *x);
#ifdef __cplusplus
}
#endif
#endif
