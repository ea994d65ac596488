/* split. The pieces lie one behind the other in x, so dx is concat of their gradients; a piece that
 * nobody read is an absent input of concat, which writes it as zeros. One node of the tape instead
 * of one per piece: a sum of three padded gradients would touch three times the memory. Gradients
 * that lie as the pieces do (attention_backward's) are dx as they are: join. */
#include "ops/split/split.h"
#include "core/ctx.h"
#include "ops/concat/concat.h"
#include "ops/join/join.h"
#include <string.h>

extern const tp_op op_split;

typedef struct split_attr {
    int dim, n;
    int64_t size[TP_MAXOUT];
} split_attr;

static tp_status check_sizes(const tp_call *k, int dim) {
    const split_attr *a = k->attr;
    int64_t left = k->in[0]->shape[dim];
    for (int i = 0; i < a->n; i++) {
        if (a->size[i] < 0)
            return tp_refuse(k, TP_ESHAPE, "piece %d has size %lld", i, (long long)a->size[i]);
        if (a->size[i] > left)
            return tp_refuse(
                k, TP_ESHAPE, "piece %d of size %lld is larger than the %lld values left of %s", i,
                (long long)a->size[i], (long long)left, tp_shape_str(k->ctx, k->in[0]));
        left -= a->size[i];
    }
    if (left)
        return tp_refuse(k, TP_ESHAPE, "the sizes leave %lld values over of dimension %d of %s",
                         (long long)left, a->dim, tp_shape_str(k->ctx, k->in[0]));
    return TP_OK;
}

static tp_status split_infer(tp_call *k) {
    const split_attr *a = k->attr;
    const tp_tensor *x = k->in[0];
    int dim = a->dim < 0 ? a->dim + x->ndim : a->dim;
    if (dim < 0 || dim >= x->ndim)
        return tp_refuse(k, TP_ESHAPE, "there is no dimension %d in %s", a->dim,
                         tp_shape_str(k->ctx, x));
    if (a->n < 1 || a->n > TP_MAXOUT)
        return tp_refuse(k, TP_EARG, "1 to %d pieces are possible, got %d", TP_MAXOUT, a->n);
    tp_status st = check_sizes(k, dim);
    int64_t start = 0;
    for (int i = 0; i < a->n && !st; i++) {
        if ((st = tp_out_view(k, k->in[0]))) break;
        tp_tensor *y = k->out[i];
        y->shape[dim] = a->size[i];
        tp_view_shift(y, start * x->stride[dim]);
        start += a->size[i];
    }
    return st;
}

tp_status tp_split(tp_ctx *c, tp_tensor *x, int dim, int n, const int64_t *sizes,
                   tp_tensor *out[]) {
    split_attr a = {.dim = dim, .n = n};
    tp_tensor *pieces[TP_MAXOUT] = {0};
    int held = n < 0 ? 0 : n > TP_MAXOUT ? TP_MAXOUT : n;
    memcpy(a.size, sizes, (size_t)held * sizeof *sizes);
    tp_status st = tp_op_run(c, &op_split, &a, 1, &x, pieces);
    memcpy(out, pieces, (size_t)held * sizeof *out);
    return st;
}

static void split_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    const split_attr *a = k->attr;
    tp_tensor whole;
    din[0] = tp_lie_joined(a->dim, a->n, dout, &whole)
                 ? tp_join(k->ctx, a->dim, a->n, dout)
                 : tp_concat_sized(k->ctx, a->dim, a->n, dout, a->size);
}

#define SPLIT(dim, n, ...)                                                                         \
    &(const split_attr) {                                                                          \
        dim, n, { __VA_ARGS__ }                                                                    \
    }
static const tp_sample split_samples[] = {
    {"qkv", {{TP_GEN_NORMAL, 3, {2, 3, 12}}}, SPLIT(-1, 3, 4, 4, 4)},
    {"uneven", {{TP_GEN_NORMAL, 3, {2, 7, 3}}}, SPLIT(1, 3, 1, 4, 2)},
    {"rows", {{TP_GEN_NORMAL, 2, {5, 2}}}, SPLIT(0, 2, 3, 2)},
    {"one piece", {{TP_GEN_NORMAL, 1, {5}}}, SPLIT(0, 1, 5)},
    {"empty piece", {{TP_GEN_NORMAL, 2, {4, 3}}}, SPLIT(0, 3, 0, 3, 1)},
    {"eight", {{TP_GEN_NORMAL, 2, {2, 9}}}, SPLIT(1, 8, 1, 1, 1, 1, 1, 1, 1, 2)},
    {"empty", {{TP_GEN_NORMAL, 2, {0, 4}}}, SPLIT(1, 2, 1, 3)},
    {"too much", {{TP_GEN_NORMAL, 1, {5}}}, SPLIT(0, 2, 3, 3), .refuse = "piece 1 of size 3"},
    {"too little", {{TP_GEN_NORMAL, 1, {5}}}, SPLIT(0, 2, 3, 1), .refuse = "leave 1 values over"},
    {"negative", {{TP_GEN_NORMAL, 1, {5}}}, SPLIT(0, 2, 6, -1), .refuse = "piece 0 of size 6"},
    {"no pieces", {{TP_GEN_NORMAL, 1, {5}}}, SPLIT(0, 0, 0), .refuse = "1 to 8 pieces"},
    {"no dimension", {{TP_GEN_NORMAL, 1, {5}}}, SPLIT(-2, 1, 5), .refuse = "no dimension -2"},
    {0},
};
static const tp_attr split_attrs[] = {{"dim", TP_ATTR_INT, offsetof(split_attr, dim)}, {0}};

const tp_op op_split = {
    .name = "split",
    .synopsis = "y0, y1, ... = x in pieces",
    .doc = "One dimension cut into at most 8 consecutive pieces, as views of x.",
    .infer = split_infer,
    .vjp = split_vjp,
    .view = true,
    .attrs = split_attrs,
    .attr_bytes = sizeof(split_attr),
    .samples = split_samples,
};
