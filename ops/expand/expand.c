/* expand.
 *
 *   y[i, j] = x[j]   so   dx[j] = sum over i of dy[i, j]: sum over the repeated dimensions. */
#include "ops/expand/expand.h"
#include "ops/sum/sum.h"
#include <string.h>

extern const tp_op op_expand;

typedef struct expand_attr {
    int32_t ndim, inserted; /* bitmask of the result's dimensions that x does not have */
    int64_t shape[TP_MAXDIM];
} expand_attr;

static tp_tensor *expand_to(tp_ctx *c, tp_tensor *x, int ndim, const int64_t *shape,
                            unsigned inserted) {
    expand_attr a = {.ndim = ndim, .inserted = (int32_t)inserted};
    if (ndim >= 0 && ndim <= TP_MAXDIM && shape)
        memcpy(a.shape, shape, (size_t)ndim * sizeof *shape);
    return tp_op1(c, &op_expand, &a, x);
}

tp_tensor *tp_expand(tp_ctx *c, tp_tensor *x, int ndim, const int64_t *shape) {
    unsigned more = x && ndim > x->ndim ? (1u << (ndim - x->ndim)) - 1 : 0;
    return expand_to(c, x, ndim, shape, more);
}

tp_tensor *tp_expand_at(tp_ctx *c, tp_tensor *x, const tp_tensor *like, unsigned inserted) {
    return expand_to(c, x, like->ndim, like->shape, inserted);
}

static tp_status expand_infer(tp_call *k) {
    const expand_attr *a = k->attr;
    tp_tensor *x = k->in[0];
    if (a->ndim < 0 || a->ndim > TP_MAXDIM)
        return tp_refuse(k, TP_ESHAPE, "the result has 0 to %d dimensions, got %d", TP_MAXDIM,
                         a->ndim);
    int64_t stride[TP_MAXDIM] = {0};
    int64_t left = INT64_MAX / 8; /* sizes may not overflow, although a view takes no memory */
    int used = 0;
    tp_tensor want = {.dtype = x->dtype, .ndim = a->ndim};
    memcpy(want.shape, a->shape, sizeof want.shape);
    bool fits = a->inserted >> a->ndim == 0;
    for (int d = 0; fits && d < a->ndim; d++) {
        fits = a->shape[d] >= 0 && left / (a->shape[d] + !a->shape[d]) > 0;
        left /= fits && a->shape[d] ? a->shape[d] : 1;
        if ((a->inserted >> d) & 1) continue;
        fits = fits && used < x->ndim && (x->shape[used] == a->shape[d] || x->shape[used] == 1);
        if (fits) stride[d] = x->shape[used] == a->shape[d] ? x->stride[used] : 0;
        used++;
    }
    if (!fits || used != x->ndim)
        return tp_refuse(k, TP_ESHAPE, "%s cannot be repeated to %s", tp_shape_str(k->ctx, x),
                         tp_shape_str(k->ctx, &want));
    tp_status st = tp_out_view(k, x);
    if (st) return st;
    k->out[0]->ndim = a->ndim;
    memcpy(k->out[0]->shape, want.shape, sizeof want.shape);
    memcpy(k->out[0]->stride, stride, sizeof stride);
    return TP_OK;
}

static void expand_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    const expand_attr *a = k->attr;
    const tp_tensor *x = k->in[0];
    unsigned keep = 0;
    for (int d = 0, e = 0; d < a->ndim; d++) {
        if ((a->inserted >> d) & 1) continue;
        if (x->shape[e++] != a->shape[d]) keep |= 1u << d;
    }
    unsigned dims = (unsigned)a->inserted | keep;
    din[0] = dims ? tp_sum_at(k->ctx, dout[0], dims, keep) : dout[0];
}

#define TO(n, ins, ...)                                                                            \
    &(const expand_attr) {                                                                         \
        .ndim = n, .inserted = ins, .shape = { __VA_ARGS__ }                                       \
    }
/* clang-format off */
static const tp_sample expand_samples[] = {
    {"rows", {{TP_GEN_NORMAL, 1, {5}}}, TO(2, 1, 3, 5)},
    {"columns", {{TP_GEN_NORMAL, 2, {5, 1}}}, TO(2, 0, 5, 7)},
    {"in the middle", {{TP_GEN_NORMAL, 2, {3, 4}}}, TO(4, 6, 3, 2, 5, 4)},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}}, TO(3, 7, 2, 3, 4)},
    {"nothing to do", {{TP_GEN_NORMAL, 2, {2, 3}}}, TO(2, 0, 2, 3)},
    {"empty", {{TP_GEN_NORMAL, 2, {1, 4}}}, TO(2, 0, 0, 4)},
    {"unrelated", {{TP_GEN_NORMAL, 1, {3}}}, TO(2, 1, 3, 4), .refuse = "cannot be repeated to"},
    {"fewer", {{TP_GEN_NORMAL, 2, {3, 4}}}, TO(1, 0, 4), .refuse = "cannot be repeated to"},
    {"too large", {{TP_GEN_NORMAL, 1, {1}}}, TO(3, 3, INT64_MAX / 2, 1 << 20, 1), .refuse = "cannot be repeated to"},
    {0},
};
static const tp_attr expand_attrs[] = {
    {"inserted", TP_ATTR_INT, offsetof(expand_attr, inserted)}, {0}};
/* clang-format on */

const tp_op op_expand = {
    .name = "expand",
    .synopsis = "y = x repeated",
    .doc = "A view of x that repeats it along new or size-1 dimensions, with stride 0.",
    .infer = expand_infer,
    .vjp = expand_vjp,
    .view = true,
    .attrs = expand_attrs,
    .attr_bytes = sizeof(expand_attr),
    .samples = expand_samples,
};
