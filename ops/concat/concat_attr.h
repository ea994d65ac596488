/* What a call of concat asks for; shared by its kernels. */
#ifndef TP_CONCAT_ATTR_H
#define TP_CONCAT_ATTR_H
#include "ops/op.h"

typedef struct concat_attr {
    int dim;
    int64_t size[TP_MAXIN];
} concat_attr;

static inline int concat_dim(const tp_call *k, const tp_tensor *t) {
    int dim = ((const concat_attr *)k->attr)->dim;
    return dim < 0 ? dim + t->ndim : dim;
}

/* Part i of y, which begins `start` places along the dimension. */
static inline tp_tensor concat_part(const tp_call *k, int i, int64_t start) {
    tp_tensor part = *k->out[0];
    int dim = concat_dim(k, &part);
    part.shape[dim] = ((const concat_attr *)k->attr)->size[i];
    part.data = (char *)part.data + start * part.stride[dim] * (int64_t)tp_dtype_size(part.dtype);
    return part;
}
#endif
