/* Owns the shape rules of reductions over given dimensions. */
#include "ops/reduce.h"

const tp_attr tp_reduce_attrs[] = {{"dims", TP_ATTR_INT, offsetof(tp_reduce_attr, dims)},
                                   {"keep", TP_ATTR_INT, offsetof(tp_reduce_attr, keep)},
                                   {0}};

tp_reduce_attr tp_reduce_dims(const tp_tensor *x, unsigned dims, unsigned keep) {
    unsigned there = x ? (1u << x->ndim) - 1 : 0;
    if (dims == 0x7fffffff) {
        dims &= there;
        keep &= there;
    }
    return (tp_reduce_attr){(int32_t)dims, (int32_t)keep};
}

tp_status tp_infer_reduce(tp_call *k) {
    const tp_reduce_attr *a = k->attr;
    const tp_tensor *x = k->in[0];
    tp_status st = tp_need_float(k, 0, "x");
    if (st) return st;
    for (int d = x->ndim; d < 32; d++)
        if (((uint32_t)a->dims >> d) & 1)
            return tp_refuse(k, TP_ESHAPE, "%s has no dimension %d to reduce",
                             tp_shape_str(k->ctx, x), d);
    if (a->keep & ~a->dims)
        return tp_refuse(k, TP_EARG, "keep (bits 0x%x) must be a part of dims (bits 0x%x)",
                         (unsigned)a->keep, (unsigned)a->dims);
    int ndim = 0;
    int64_t shape[TP_MAXDIM];
    for (int d = 0; d < x->ndim; d++) {
        bool reduced = (a->dims >> d) & 1;
        if (!reduced || ((a->keep >> d) & 1)) shape[ndim++] = reduced ? 1 : x->shape[d];
    }
    return tp_out(k, x->dtype, ndim, shape);
}

int64_t tp_reduced_count(const tp_tensor *x, unsigned dims) {
    int64_t n = 1;
    for (int d = 0; d < x->ndim; d++)
        if ((dims >> d) & 1) n *= x->shape[d];
    return n;
}

tp_reduced tp_reduced_at(const tp_tensor *x, int32_t dims, int64_t i) {
    tp_reduced at = {0, 0};
    int64_t kept = 1, gone = 1;
    for (int d = x->ndim - 1; d >= 0; i /= x->shape[d--]) {
        bool reduced = (dims >> d) & 1;
        int64_t *sum = reduced ? &at.gone : &at.kept, *step = reduced ? &gone : &kept;
        *sum += i % x->shape[d] * *step;
        *step *= x->shape[d];
    }
    return at;
}

void tp_dims_push(tp_dims *d, int64_t size, int64_t stride) {
    int last = d->ndim - 1;
    d->n = d->ndim ? d->n * size : size;
    if (size == 1) {
        if (d->ndim == 0) d->shape[d->ndim] = size, d->stride[d->ndim++] = 0;
        return;
    }
    if (d->ndim && d->shape[last] == 1)
        d->shape[last] = size, d->stride[last] = stride;
    else if (d->ndim && d->stride[last] == stride * size) {
        d->shape[last] *= size;
        d->stride[last] = stride;
    } else {
        d->shape[d->ndim] = size;
        d->stride[d->ndim++] = stride;
    }
}

void tp_dims_split(const tp_tensor *t, int32_t dims, tp_dims *kept, tp_dims *gone) {
    *kept = *gone = (tp_dims){0};
    tp_dims_push(kept, 1, 0);
    tp_dims_push(gone, 1, 0);
    for (int d = 0; d < t->ndim; d++)
        tp_dims_push((dims >> d) & 1 ? gone : kept, t->shape[d], t->stride[d]);
}
