/* What a call of fill asks for; shared by its kernels. */
#ifndef TP_FILL_ATTR_H
#define TP_FILL_ATTR_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
typedef struct fill_attr {
    double v;
    int32_t dtype, ndim;
    int64_t shape[TP_MAXDIM];
} fill_attr;

/* The value, rounded to the dtype, in the first bytes of `one`, which is aligned to 8. */
void fill_value(const tp_call *k, void *one);
#ifdef __cplusplus
}
#endif
#endif
