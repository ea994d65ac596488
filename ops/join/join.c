/* join. y holds the inputs one behind the other, where they already are; so each din is a piece of
 * dout, and they are again views: split. It is what is left of concat where whoever made the inputs
 * knew that they would be put together. */
#include "ops/join/join.h"
#include "ops/split/split.h"
#include <string.h>

extern const tp_op op_join;

typedef struct join_attr {
    int dim;
} join_attr;

/* Strides along which there is more than one value; others say nothing. */
static bool same_strides(const tp_tensor *a, const tp_tensor *b, int but) {
    for (int d = 0; d < a->ndim; d++)
        if (d != but &&
            (a->shape[d] != b->shape[d] || (a->shape[d] > 1 && a->stride[d] != b->stride[d])))
            return false;
    return true;
}

bool tp_lie_joined(int dim, int n, tp_tensor *const x[], tp_tensor *whole) {
    const tp_tensor *first = x[0];
    if (n < 2 || !first || !first->storage) return false;
    if (dim < 0) dim += first->ndim;
    if (dim < 0 || dim >= first->ndim) return false;
    int64_t step = 0; /* along dim; of pieces of one value, how far the next one is */
    for (int i = 0; i < n; i++) {
        const tp_tensor *t = x[i];
        if (!t || t->storage != first->storage || t->dtype != first->dtype ||
            t->ndim != first->ndim || !tp_numel(t) || !same_strides(t, first, dim))
            return false;
        if (!step && t->shape[dim] > 1) step = t->stride[dim];
    }
    if (!step) step = x[1]->offset - first->offset;
    int64_t size = 0;
    for (int i = 0; i < n; size += x[i++]->shape[dim])
        if (step <= 0 || x[i]->offset != first->offset + size * step ||
            (x[i]->shape[dim] > 1 && x[i]->stride[dim] != step))
            return false;
    *whole = *first;
    whole->shape[dim] = size;
    whole->stride[dim] = step;
    return true;
}

static tp_status join_infer(tp_call *k) {
    const join_attr *a = k->attr;
    tp_tensor whole = *k->in[0]; /* one alone is itself */
    int dim = a->dim < 0 ? a->dim + whole.ndim : a->dim;
    if (dim < 0 || dim >= whole.ndim)
        return tp_refuse(k, TP_ESHAPE, "there is no dimension %d in %s", a->dim,
                         tp_shape_str(k->ctx, k->in[0]));
    if (k->nin > 1 && !tp_lie_joined(dim, k->nin, k->in, &whole))
        return tp_refuse(k, TP_ESHAPE,
                         "the %d inputs do not lie one behind the other in one buffer", k->nin);
    tp_status st = tp_out_view(k, k->in[0]);
    if (st) return st;
    memcpy(k->out[0]->shape, whole.shape, sizeof whole.shape);
    memcpy(k->out[0]->stride, whole.stride, sizeof whole.stride);
    return TP_OK;
}

tp_tensor *tp_join(tp_ctx *c, int dim, int n, tp_tensor *const x[]) {
    return tp_op1_(c, &op_join, &(join_attr){dim}, n, x);
}

static void join_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    const join_attr *a = k->attr;
    int64_t sizes[TP_MAXIN];
    for (int i = 0; i < k->nin; i++) sizes[i] = tp_dim(k->in[i], a->dim);
    tp_split(k->ctx, dout[0], a->dim, k->nin, sizes, din);
    for (int i = 0; i < k->nin; i++)
        if (!tp_wants(k, i)) din[i] = NULL;
}

#define JOIN(dim)                                                                                  \
    &(const join_attr) { dim }
static const tp_sample join_samples[] = {
    {"one", {{TP_GEN_NORMAL, 2, {5, 3}}}, JOIN(-1)}, /* two of one buffer: layouts_test */
    {"empty", {{TP_GEN_NORMAL, 2, {0, 3}}}, JOIN(0)},
    {"two buffers",
     {{TP_GEN_NORMAL, 1, {4}}, {TP_GEN_NORMAL, 1, {4}}},
     JOIN(0),
     .refuse = "2 inputs do not lie"},
    {"no dimension", {{TP_GEN_NORMAL, 1, {4}}}, JOIN(1), .refuse = "no dimension 1"},
    {0},
};
static const tp_attr join_attrs[] = {{"dim", TP_ATTR_INT, offsetof(join_attr, dim)}, {0}};

const tp_op op_join = {
    .name = "join",
    .synopsis = "y = [x0, x1, ...] in place",
    .doc = "Tensors that lie one behind the other along a dimension of one buffer, as one view of "
           "it: concat without a copy. The gradients of a packed query, key and value are put "
           "together by it.",
    .infer = join_infer,
    .vjp = join_vjp,
    .view = true,
    .attrs = join_attrs,
    .attr_bytes = sizeof(join_attr),
    .samples = join_samples,
};
