/* reshape. y[i] = x[i] for the i-th value in row-major order, so dx is dy under x's shape.
 *
 * When is a reshape a view? Cut both shapes into the shortest groups of neighbouring dimensions
 * with equal products. Inside a group the values of x must be evenly spaced, that is, each
 * stride must be the next one times the next size; then the new dimensions of the group get the
 * same spacing. A split q of a (B,T,3C) buffer thus becomes (B,T,H,D) without a copy. */
#include "ops/reshape/reshape.h"
#include "ops/copy/copy.h"
#include <string.h>

extern const tp_op op_reshape;

typedef struct reshape_attr {
    int ndim;
    int64_t shape[TP_MAXDIM];
} reshape_attr;

/* Writes the strides under which x's bytes read as `shape`; false if there are none. */
static bool view_strides(const tp_tensor *x, int ndim, const int64_t *shape, int64_t *stride) {
    int64_t size[TP_MAXDIM], step[TP_MAXDIM];
    int n = 0;
    for (int i = 0; i < x->ndim; i++) /* a dimension of size 1 has no spacing of its own */
        if (x->shape[i] != 1) {
            size[n] = x->shape[i];
            step[n++] = x->stride[i];
        }
    for (int i = 0, j = 0; j < ndim;) {
        if (shape[j] == 1) {
            stride[j++] = 1;
            continue;
        }
        int first_old = i, first_new = j;
        int64_t old_count = size[i++], new_count = shape[j++];
        while (old_count != new_count) {
            if (old_count < new_count)
                old_count *= size[i++];
            else
                new_count *= shape[j++];
        }
        for (int g = first_old; g + 1 < i; g++)
            if (step[g] != step[g + 1] * size[g + 1]) return false;
        int64_t s = step[i - 1];
        for (int g = j - 1; g >= first_new; g--) {
            stride[g] = s;
            s *= shape[g];
        }
    }
    return true;
}

/* Replaces a -1 by what is left and checks that the number of values stays. */
static tp_status resolve(tp_call *k, const reshape_attr *a, int64_t *shape) {
    const tp_tensor *x = k->in[0];
    int64_t numel = tp_numel(x), product = 1;
    int open = -1;
    for (int i = 0; i < a->ndim; i++) {
        shape[i] = a->shape[i];
        if (shape[i] == -1 && open < 0) {
            open = i;
            continue;
        }
        if (shape[i] < 0)
            return tp_refuse(k, TP_ESHAPE, "dimension %d of the new shape is %lld%s", i,
                             (long long)shape[i], shape[i] == -1 ? "; only one may be -1" : "");
        if (__builtin_mul_overflow(product, shape[i], &product))
            return tp_refuse(k, TP_ESHAPE, "the new shape has more than 2^63 values");
    }
    if (open >= 0) {
        if (product == 0 || numel % product)
            return tp_refuse(k, TP_ESHAPE, "cannot infer dimension %d: %s over %lld values", open,
                             tp_shape_str(k->ctx, x), (long long)product);
        shape[open] = numel / product;
    } else if (product != numel) {
        return tp_refuse(k, TP_ESHAPE, "the new shape has %lld values, x is %s (%lld values)",
                         (long long)product, tp_shape_str(k->ctx, x), (long long)numel);
    }
    return TP_OK;
}

static tp_status reshape_infer(tp_call *k) {
    const reshape_attr *a = k->attr;
    int64_t shape[TP_MAXDIM], stride[TP_MAXDIM];
    if (a->ndim < 0 || a->ndim > TP_MAXDIM)
        return tp_refuse(k, TP_ESHAPE, "the new shape must have 0 to %d dimensions, got %d",
                         TP_MAXDIM, a->ndim);
    tp_status st = resolve(k, a, shape);
    if (st) return st;
    bool empty = tp_numel(k->in[0]) == 0;
    bool views = !empty && view_strides(k->in[0], a->ndim, shape, stride);
    if (!empty && !views) {
        /* a call of its own, recorded before this one, which then is a view of the copy */
        if (!(k->in[0] = tp_copy(k->ctx, k->in[0]))) return tp_error_status(k->ctx);
        views = view_strides(k->in[0], a->ndim, shape, stride);
    }
    if ((st = tp_out_view(k, k->in[0]))) return st;
    tp_tensor *y = k->out[0];
    y->ndim = a->ndim;
    memcpy(y->shape, shape, sizeof shape);
    int64_t dense = 1;
    for (int i = a->ndim - 1; i >= 0; i--) {
        y->stride[i] = views ? stride[i] : dense;
        dense *= shape[i] > 0 ? shape[i] : 1;
    }
    return TP_OK;
}

tp_tensor *tp_reshape(tp_ctx *c, tp_tensor *x, int ndim, const int64_t *shape) {
    reshape_attr a = {.ndim = ndim};
    for (int i = 0; i < ndim && i < TP_MAXDIM; i++) a.shape[i] = shape[i];
    return tp_op1(c, &op_reshape, &a, x);
}

tp_tensor *tp_squeeze(tp_ctx *c, tp_tensor *x, int dim) {
    if (!x) return NULL;
    int d = dim < 0 ? dim + x->ndim : dim, n = 0;
    if (d < 0 || d >= x->ndim || x->shape[d] != 1) {
        tp_fail(c, TP_ESHAPE, "squeeze: dimension %d must exist and have size 1, got %s", dim,
                tp_shape_str(c, x));
        return NULL;
    }
    int64_t shape[TP_MAXDIM];
    for (int i = 0; i < x->ndim; i++)
        if (i != d) shape[n++] = x->shape[i];
    return tp_reshape(c, x, n, shape);
}

tp_tensor *tp_unsqueeze(tp_ctx *c, tp_tensor *x, int dim) {
    if (!x) return NULL;
    int d = dim < 0 ? dim + x->ndim + 1 : dim;
    if (d < 0 || d > x->ndim || x->ndim == TP_MAXDIM) {
        tp_fail(c, TP_ESHAPE, "unsqueeze: cannot insert dimension %d into %s", dim,
                tp_shape_str(c, x));
        return NULL;
    }
    int64_t shape[TP_MAXDIM];
    for (int i = 0; i <= x->ndim; i++)
        shape[i] = i < d ? x->shape[i] : i == d ? 1 : x->shape[i - 1];
    return tp_reshape(c, x, x->ndim + 1, shape);
}

static void reshape_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[0] = tp_reshape(k->ctx, dout[0], k->in[0]->ndim, k->in[0]->shape);
}

#define SHAPE_ATTR(...)                                                                            \
    &(const reshape_attr) {                                                                        \
        NDIMS(__VA_ARGS__), { __VA_ARGS__ }                                                        \
    }
#define NDIMS(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t))
static const tp_sample reshape_samples[] = {
    {"split and join", {{TP_GEN_NORMAL, 3, {3, 4, 10}}}, SHAPE_ATTR(12, 5, 2)},
    {"infer a dimension", {{TP_GEN_NORMAL, 2, {6, 7}}}, SHAPE_ATTR(2, -1, 7)},
    {"to a vector", {{TP_GEN_NORMAL, 2, {5, 3}}}, SHAPE_ATTR(-1)},
    {"ones", {{TP_GEN_NORMAL, 3, {1, 4, 1}}}, SHAPE_ATTR(1, 2, 1, 2, 1)},
    {"to a scalar", {{TP_GEN_NORMAL, 2, {1, 1}}}, &(const reshape_attr){0}},
    {"empty", {{TP_GEN_NORMAL, 2, {0, 4}}}, SHAPE_ATTR(2, 0)},
    {"integers", {{TP_GEN_INT, 2, {2, 3}, 0, 9}}, SHAPE_ATTR(3, 2), .no_grad = true},
    {"count", {{TP_GEN_NORMAL, 2, {2, 3}}}, SHAPE_ATTR(4, 2), .refuse = "new shape has 8 values"},
    {"no fit", {{TP_GEN_NORMAL, 2, {2, 3}}}, SHAPE_ATTR(4, -1), .refuse = "cannot infer"},
    {"two -1", {{TP_GEN_NORMAL, 2, {2, 3}}}, SHAPE_ATTR(-1, -1), .refuse = "only one may be -1"},
    {"negative", {{TP_GEN_NORMAL, 2, {2, 3}}}, SHAPE_ATTR(-2, -3), .refuse = "new shape is -2"},
    {"huge",
     {{TP_GEN_NORMAL, 2, {2, 3}}},
     SHAPE_ATTR(INT64_MAX, INT64_MAX),
     .refuse = "more than 2^63"},
    {0},
};

const tp_op op_reshape = {
    .name = "reshape",
    .synopsis = "y = x, other shape",
    .doc = "The same values in row-major order under another shape; one entry may be -1. A view "
           "wherever strides allow it, else a view of a dense copy.",
    .infer = reshape_infer,
    .vjp = reshape_vjp,
    .view = true,
    .attr_bytes = sizeof(reshape_attr),
    .samples = reshape_samples,
};
