/* slice. y is a range of x along one dimension; what lies outside it has no influence, so dx is dy
 * with zeros before and behind: concat(0, dy, 0), where concat writes the absent parts as zeros. */
#include "ops/slice/slice.h"
#include "core/ctx.h"
#include "ops/concat/concat.h"

extern const tp_op op_slice;

typedef struct slice_attr {
    int dim;
    int64_t start, length;
} slice_attr;

static tp_status slice_infer(tp_call *k) {
    const slice_attr *a = k->attr;
    const tp_tensor *x = k->in[0];
    int dim = a->dim < 0 ? a->dim + x->ndim : a->dim;
    if (dim < 0 || dim >= x->ndim)
        return tp_refuse(k, TP_ESHAPE, "there is no dimension %d in %s", a->dim,
                         tp_shape_str(k->ctx, x));
    if (a->start < 0 || a->length < 0 || a->start > x->shape[dim] ||
        a->length > x->shape[dim] - a->start)
        return tp_refuse(k, TP_ESHAPE, "%lld values from %lld on do not lie in dimension %d of %s",
                         (long long)a->length, (long long)a->start, a->dim,
                         tp_shape_str(k->ctx, x));
    tp_status st = tp_out_view(k, k->in[0]);
    if (st) return st;
    tp_tensor *y = k->out[0];
    y->shape[dim] = a->length;
    tp_view_shift(y, a->start * x->stride[dim]);
    return TP_OK;
}

tp_tensor *tp_slice(tp_ctx *c, tp_tensor *x, int dim, int64_t start, int64_t length) {
    return tp_op1(c, &op_slice, &((slice_attr){dim, start, length}), x);
}

static void slice_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    const slice_attr *a = k->attr;
    int64_t sizes[3] = {a->start, a->length, tp_dim(k->in[0], a->dim) - a->start - a->length};
    tp_tensor *parts[3] = {NULL, dout[0], NULL};
    din[0] = tp_concat_sized(k->ctx, a->dim, 3, parts, sizes);
}

#define SLICE(...)                                                                                 \
    &(const slice_attr) { __VA_ARGS__ }
static const tp_sample slice_samples[] = {
    {"rows", {{TP_GEN_NORMAL, 2, {6, 5}}}, SLICE(0, 2, 3)},
    {"columns", {{TP_GEN_NORMAL, 2, {6, 5}}}, SLICE(-1, 1, 3)},
    {"middle", {{TP_GEN_NORMAL, 4, {2, 3, 7, 2}}}, SLICE(2, 0, 4)},
    {"all", {{TP_GEN_NORMAL, 1, {4}}}, SLICE(0, 0, 4)},
    {"nothing", {{TP_GEN_NORMAL, 2, {4, 3}}}, SLICE(0, 4, 0)},
    {"empty", {{TP_GEN_NORMAL, 2, {0, 3}}}, SLICE(1, 1, 2)},
    {"past the end", {{TP_GEN_NORMAL, 2, {6, 5}}}, SLICE(1, 3, 3), .refuse = "3 values from 3 on"},
    {"negative", {{TP_GEN_NORMAL, 1, {6}}}, SLICE(0, -1, 3), .refuse = "from -1 on"},
    {"overflow", {{TP_GEN_NORMAL, 1, {6}}}, SLICE(0, 1, INT64_MAX), .refuse = "do not lie in"},
    {"no dimension", {{TP_GEN_NORMAL, 1, {6}}}, SLICE(1, 0, 1), .refuse = "no dimension 1"},
    {0},
};
static const tp_attr slice_attrs[] = {
    {"dim", TP_ATTR_INT, offsetof(slice_attr, dim)},
    {"start", TP_ATTR_I64, offsetof(slice_attr, start)},
    {"length", TP_ATTR_I64, offsetof(slice_attr, length)},
    {0},
};

const tp_op op_slice = {
    .name = "slice",
    .synopsis = "y = x[start:start+length]",
    .doc = "A range of one dimension, as a view. Its gradient is concat with zeros on both sides.",
    .infer = slice_infer,
    .vjp = slice_vjp,
    .view = true,
    .attrs = slice_attrs,
    .attr_bytes = sizeof(slice_attr),
    .samples = slice_samples,
};
