/* max.
 *
 *   y = x[i], i = the first position of the largest element
 *   so  dx = dy at i, 0 elsewhere: max_backward(i, dy), which is linear in dy, and whose own vjp
 *   takes the elements at i again: max_pick(i, x). The position is piecewise constant. */
#include "ops/max/max.h"
#include "ops/max/max_attr.h"
#include "ops/sum/sum.h"
#include <math.h>
#include <string.h>

extern const tp_op op_max, op_max_backward, op_max_pick;
TP_CPU_DECLARE(max_cpu);
TP_CPU_DECLARE(max_backward_cpu);
TP_CPU_DECLARE(max_pick_cpu);
TP_CUDA_DECLARE(max_cuda);
TP_CUDA_DECLARE(max_backward_cuda);
TP_CUDA_DECLARE(max_pick_cuda);

static tp_status max_both(tp_ctx *c, tp_tensor *x, unsigned dims, bool keepdim, tp_tensor *y[2]) {
    tp_reduce_attr a = tp_reduce_dims(x, dims, keepdim ? dims : 0);
    return tp_op_run(c, &op_max, &a, 1, &x, y);
}

tp_tensor *tp_max(tp_ctx *c, tp_tensor *x, unsigned dims, bool keepdim) {
    tp_tensor *y[2];
    return max_both(c, x, dims, keepdim, y) ? NULL : y[0];
}

tp_tensor *tp_argmax(tp_ctx *c, tp_tensor *x, unsigned dims, bool keepdim) {
    tp_tensor *y[2];
    return max_both(c, x, dims, keepdim, y) ? NULL : y[1];
}

static tp_status max_infer(tp_call *k) {
    const tp_reduce_attr *a = k->attr;
    const tp_tensor *x = k->in[0];
    tp_status st = tp_infer_reduce(k);
    if (st) return st;
    int64_t n = tp_reduced_count(x, (unsigned)a->dims);
    if (n == 0)
        return tp_refuse(k, TP_ESHAPE, "the dimensions of %s to reduce hold no elements",
                         tp_shape_str(k->ctx, x));
    if (n > INT32_MAX)
        return tp_refuse(k, TP_ESHAPE, "positions among %lld elements do not fit in i32",
                         (long long)n);
    return tp_out(k, TP_I32, k->out[0]->ndim, k->out[0]->shape);
}

static tp_status max_oracle(const tp_call *k) {
    const tp_reduce_attr *a = k->attr;
    const tp_tensor *x = k->in[0];
    double *y = tp_f64(k->out[0]);
    int32_t *at = tp_i32(k->out[1]);
    for (int64_t i = 0, n = tp_numel(k->out[1]); i < n; i++) at[i] = -1;
    for (int64_t i = 0, n = tp_numel(x); i < n; i++) {
        tp_reduced r = tp_reduced_at(x, a->dims, i);
        double v = tp_f64(x)[i];
        if (at[r.kept] >= 0 && !(v > y[r.kept]) && !(isnan(v) && !isnan(y[r.kept]))) continue;
        y[r.kept] = v;
        at[r.kept] = (int32_t)r.gone;
    }
    return TP_OK;
}

static void max_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    const tp_tensor *x = k->in[0];
    max_attr a = {.reduce = *(const tp_reduce_attr *)k->attr, .ndim = x->ndim};
    memcpy(a.shape, x->shape, sizeof a.shape);
    if (dout[0]) din[0] = tp_op1(k->ctx, &op_max_backward, &a, k->out[1], dout[0]);
}

/* ---- max_backward: zeros of x's shape with dy at the positions ------------------------------ */
static tp_status check_positions(const tp_call *k, const tp_tensor *x) {
    const max_attr *a = k->attr;
    tp_call whole = {
        .ctx = k->ctx, .op = k->op, .nin = 1, .in = {(tp_tensor *)x}, .attr = &a->reduce};
    tp_status st = tp_need_int(k, 0, "the positions");
    if (st || (st = tp_infer_reduce(&whole))) return st;
    if (tp_same_shape(k->in[0], whole.out[0])) return TP_OK;
    return tp_refuse(k, TP_ESHAPE, "the positions must have the reduced shape %s, got %s",
                     tp_shape_str(k->ctx, whole.out[0]), tp_shape_str(k->ctx, k->in[0]));
}

static tp_status max_backward_infer(tp_call *k) {
    const max_attr *a = k->attr;
    tp_tensor x = {.dtype = k->in[1]->dtype, .ndim = a->ndim};
    memcpy(x.shape, a->shape, sizeof x.shape);
    tp_status st = tp_need_float(k, 1, "dy");
    if (st || (st = check_positions(k, &x))) return st;
    if (!tp_same_shape(k->in[0], k->in[1]))
        return tp_refuse(k, TP_ESHAPE, "the positions and dy must have one shape, got %s and %s",
                         tp_shape_str(k->ctx, k->in[0]), tp_shape_str(k->ctx, k->in[1]));
    return tp_out(k, x.dtype, x.ndim, x.shape);
}

static tp_status max_backward_oracle(const tp_call *k) {
    const max_attr *a = k->attr;
    const tp_tensor *dx = k->out[0];
    tp_status st = max_positions_ok(k, tp_reduced_count(dx, (unsigned)a->reduce.dims));
    for (int64_t i = 0, n = tp_numel(dx); i < n && !st; i++) {
        tp_reduced r = tp_reduced_at(dx, a->reduce.dims, i);
        tp_f64(dx)[i] = tp_i32(k->in[0])[r.kept] == r.gone ? tp_f64(k->in[1])[r.kept] : 0;
    }
    return st;
}

static void max_backward_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    if (tp_wants(k, 1)) din[1] = tp_op1(k->ctx, &op_max_pick, k->attr, k->in[0], dout[0]);
}

/* ---- max_pick: the elements of x at the positions ------------------------------------------- */
static tp_status max_pick_infer(tp_call *k) {
    tp_status st = tp_need_float(k, 1, "x");
    if (st || (st = check_positions(k, k->in[1]))) return st;
    return tp_out(k, k->in[1]->dtype, k->in[0]->ndim, k->in[0]->shape);
}

static tp_status max_pick_oracle(const tp_call *k) {
    const max_attr *a = k->attr;
    const tp_tensor *x = k->in[1];
    tp_status st = max_positions_ok(k, tp_reduced_count(x, (unsigned)a->reduce.dims));
    for (int64_t i = 0, n = tp_numel(x); i < n && !st; i++) {
        tp_reduced r = tp_reduced_at(x, a->reduce.dims, i);
        if (tp_i32(k->in[0])[r.kept] == r.gone) tp_f64(k->out[0])[r.kept] = tp_f64(x)[i];
    }
    return st;
}

static void max_pick_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    max_attr a = *(const max_attr *)k->attr;
    a.ndim = k->in[1]->ndim;
    memcpy(a.shape, k->in[1]->shape, sizeof a.shape);
    if (tp_wants(k, 1)) din[1] = tp_op1(k->ctx, &op_max_backward, &a, k->in[0], dout[0]);
}

static double max_flops(const tp_call *k) { return (double)tp_numel(k->in[0]); }
static double no_flops(const tp_call *k) { return (void)k, 0; }

/* clang-format off */
#define DIMS(d, k) &(const tp_reduce_attr){.dims = d, .keep = k}
static const tp_sample max_samples[] = {
    {"rows", {{TP_GEN_DISTINCT, 2, {9, 33}, -1, 1}}, DIMS(2, 0)},
    {"columns, kept", {{TP_GEN_DISTINCT, 2, {33, 9}, -1, 1}}, DIMS(1, 1)},
    {"outer two of three", {{TP_GEN_DISTINCT, 3, {3, 5, 7}, -1, 1}}, DIMS(3, 0)},
    {"first and last", {{TP_GEN_DISTINCT, 3, {3, 5, 7}, -1, 1}}, DIMS(5, 4)},
    {"all", {{TP_GEN_DISTINCT, 3, {3, 5, 7}, -1, 1}}, DIMS(7, 0)},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}}, DIMS(0, 0)},
    {"ties", {{TP_GEN_UNIFORM, 2, {5, 9}, 2, 2}}, DIMS(2, 0), .no_grad = true},
    {"empty result", {{TP_GEN_NORMAL, 2, {0, 4}}}, DIMS(2, 0)},
    {"of nothing", {{TP_GEN_NORMAL, 2, {4, 0}}}, DIMS(2, 0), .refuse = "hold no elements"},
    {"no such dimension", {{TP_GEN_NORMAL, 1, {4}}}, DIMS(2, 0), .refuse = "no dimension 1"},
    {"integers", {{TP_GEN_INT, 1, {4}, 0, 3}}, DIMS(1, 0), .refuse = "x must be a float"},
    {0},
};
#define INTO(d, k, n, ...) &(const max_attr){.reduce = {.dims = d, .keep = k}, .ndim = n, .shape = {__VA_ARGS__}}
static const tp_sample max_backward_samples[] = {
    {"rows", {{TP_GEN_INT, 1, {5}, 0, 17}, {TP_GEN_NORMAL, 1, {5}}}, INTO(2, 0, 2, 5, 17)},
    {"columns, kept", {{TP_GEN_INT, 2, {1, 9}, 0, 4}, {TP_GEN_NORMAL, 2, {1, 9}}}, INTO(1, 1, 2, 4, 9)},
    {"first and last", {{TP_GEN_INT, 1, {5}, 0, 21}, {TP_GEN_NORMAL, 1, {5}}}, INTO(5, 0, 3, 3, 5, 7)},
    {"empty", {{TP_GEN_INT, 1, {0}, 0, 1}, {TP_GEN_NORMAL, 1, {0}}}, INTO(2, 0, 2, 0, 4)},
    {"position", {{TP_GEN_INT, 1, {3}, 4, 5}, {TP_GEN_NORMAL, 1, {3}}}, INTO(2, 0, 2, 3, 4), .refuse = "position 4 of element 0"},
    {"shape", {{TP_GEN_INT, 1, {3}, 0, 1}, {TP_GEN_NORMAL, 1, {3}}}, INTO(2, 0, 2, 4, 4), .refuse = "reduced shape"},
    {"dy", {{TP_GEN_INT, 1, {3}, 0, 1}, {TP_GEN_NORMAL, 1, {4}}}, INTO(2, 0, 2, 3, 4), .refuse = "must have one shape"},
    {0},
};
static const tp_sample max_pick_samples[] = {
    {"rows", {{TP_GEN_INT, 1, {5}, 0, 17}, {TP_GEN_NORMAL, 2, {5, 17}}}, INTO(2, 0, 0, 0)},
    {"first and last, kept", {{TP_GEN_INT, 3, {1, 5, 1}, 0, 21}, {TP_GEN_NORMAL, 3, {3, 5, 7}}}, INTO(5, 5, 0, 0)},
    {"empty", {{TP_GEN_INT, 1, {0}, 0, 1}, {TP_GEN_NORMAL, 2, {0, 4}}}, INTO(2, 0, 0, 0)},
    {"position", {{TP_GEN_INT, 1, {3}, -1, 0}, {TP_GEN_NORMAL, 2, {3, 4}}}, INTO(2, 0, 0, 0), .refuse = "position -1 of element 0"},
    {"shape", {{TP_GEN_INT, 1, {4}, 0, 1}, {TP_GEN_NORMAL, 2, {3, 4}}}, INTO(2, 0, 0, 0), .refuse = "reduced shape"},
    {0},
};
static const tp_attr max_attrs[] = {{"dims", TP_ATTR_INT, offsetof(max_attr, reduce.dims)},
                                    {"keep", TP_ATTR_INT, offsetof(max_attr, reduce.keep)},
                                    {0}};
/* clang-format on */

const tp_op op_max = {
    .name = "max",
    .synopsis = "y = largest of x over dims, and its position",
    .doc = "The largest element over the dimensions of a bitmask and, as i32, its first row-major "
           "position among them. The gradient goes to that element.",
    .infer = max_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(max_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&max_cuda)},
    .oracle = max_oracle,
    .vjp = max_vjp,
    .saves_out = 2,
    .flops = max_flops,
    .attrs = tp_reduce_attrs,
    .attr_bytes = sizeof(tp_reduce_attr),
    .samples = max_samples,
};
const tp_op op_max_backward = {
    .name = "max_backward",
    .synopsis = "dx = dy at the positions, 0 elsewhere",
    .doc = "The vjp of max: zeros of x's shape with dy at the positions that max found.",
    .infer = max_backward_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(max_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&max_backward_cuda)},
    .oracle = max_backward_oracle,
    .vjp = max_backward_vjp,
    .saves_in = 1,
    .flops = no_flops,
    .attrs = max_attrs,
    .attr_bytes = sizeof(max_attr),
    .samples = max_backward_samples,
};
const tp_op op_max_pick = {
    .name = "max_pick",
    .synopsis = "y = x at the positions",
    .doc = "The elements of x at positions that max found; the vjp of max_backward.",
    .infer = max_pick_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(max_pick_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&max_pick_cuda)},
    .oracle = max_pick_oracle,
    .vjp = max_pick_vjp,
    .saves_in = 1,
    .flops = no_flops,
    .attrs = max_attrs,
    .attr_bytes = sizeof(max_attr),
    .samples = max_pick_samples,
};
