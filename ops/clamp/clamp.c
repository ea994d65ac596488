/* clamp.
 *
 *   y = min(max(x, lo), hi)   so   dx = dy where lo <= x <= hi, else 0. */
#include "ops/clamp/clamp.h"
#include "ops/clamp/clamp_math.h"
#include "ops/elementwise.h"

extern const tp_op op_clamp, op_clamp_backward;
TP_CPU_DECLARE(clamp_cpu);
TP_CPU_DECLARE(clamp_backward_cpu);
TP_CUDA_DECLARE(clamp_cuda);
TP_CUDA_DECLARE(clamp_backward_cuda);

tp_tensor *tp_clamp(tp_ctx *c, tp_tensor *x, double lo, double hi) {
    return tp_op1(c, &op_clamp, (&(clamp_attr){lo, hi}), x);
}

static tp_status check_bounds(const tp_call *k) {
    const clamp_attr *a = k->attr;
    if (a->lo <= a->hi) return TP_OK;
    return tp_refuse(k, TP_EARG, "lo must not be above hi, got %g and %g", a->lo, a->hi);
}

static tp_status clamp_infer(tp_call *k) {
    tp_status st = check_bounds(k);
    return st ? st : tp_infer_unary(k);
}

static tp_status clamp_backward_infer(tp_call *k) {
    tp_status st = check_bounds(k);
    return st ? st : tp_infer_binary(k);
}

static tp_status clamp_oracle(const tp_call *k) {
    const clamp_attr *a = k->attr;
    for (int64_t i = 0, n = tp_numel(k->out[0]); i < n; i++) {
        double x = tp_f64(k->in[0])[i];
        tp_f64(k->out[0])[i] = x < a->lo ? a->lo : x > a->hi ? a->hi : x;
    }
    return TP_OK;
}

static tp_status clamp_backward_oracle(const tp_call *k) {
    const clamp_attr *a = k->attr;
    for (int64_t i = 0, n = tp_numel(k->out[0]); i < n; i++) {
        double x = tp_f64(k->in[0])[i];
        tp_f64(k->out[0])[i] = x < a->lo || x > a->hi ? 0 : tp_f64(k->in[1])[i];
    }
    return TP_OK;
}

static void clamp_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[0] = tp_op1(k->ctx, &op_clamp_backward, k->attr, k->in[0], dout[0]);
}

/* Piecewise constant in x: no gradient goes there. */
static void clamp_backward_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    if (tp_wants(k, 1)) din[1] = tp_op1(k->ctx, &op_clamp_backward, k->attr, k->in[0], dout[0]);
}

/* clang-format off */
#define BOUNDS(lo, hi) &(const clamp_attr){lo, hi}
static const tp_sample clamp_samples[] = {
    {"both sides", {{TP_GEN_DISTINCT, 2, {9, 13}, -1, 1}}, BOUNDS(-0.39316, 0.30769)},
    {"from below", {{TP_GEN_DISTINCT, 1, {65}, -1, 1}}, BOUNDS(0, (double)__builtin_inff())},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}}, BOUNDS(-9, 9)},
    {"empty", {{TP_GEN_NORMAL, 2, {0, 4}}}, BOUNDS(-1, 1)},
    {"the bounds", {{TP_GEN_DISTINCT, 1, {40}, -2, 2}}, BOUNDS(-1, 1), .no_grad = true},
    {"empty interval", {{TP_GEN_NORMAL, 1, {4}}}, BOUNDS(1, -1), .refuse = "lo must not be above hi, got 1 and -1"},
    {"not a number", {{TP_GEN_NORMAL, 1, {4}}}, BOUNDS((double)__builtin_nanf(""), 1), .refuse = "lo must not be above hi"},
    {"integers", {{TP_GEN_INT, 1, {4}, 0, 3}}, BOUNDS(-1, 1), .refuse = "x must be a float tensor, got i32"},
    {0},
};
static const tp_sample clamp_backward_samples[] = {
    {"matrix", {{TP_GEN_DISTINCT, 2, {5, 33}, -1, 1}, {TP_GEN_NORMAL, 2, {5, 33}}}, BOUNDS(-0.4004, 0.3003)},
    {"empty", {{TP_GEN_NORMAL, 1, {0}}, {TP_GEN_NORMAL, 1, {0}}}, BOUNDS(0, 1)},
    {"shapes", {{TP_GEN_NORMAL, 1, {4}}, {TP_GEN_NORMAL, 1, {5}}}, BOUNDS(0, 1), .refuse = "same shape"},
    {0},
};
static const tp_attr clamp_attrs[] = {{"lo", TP_ATTR_FLOAT, offsetof(clamp_attr, lo)},
                                      {"hi", TP_ATTR_FLOAT, offsetof(clamp_attr, hi)},
                                      {0}};
/* clang-format on */

const tp_op op_clamp = {
    .name = "clamp",
    .synopsis = "y = min(max(x,lo),hi)",
    .doc = "Limits values to the interval [lo, hi].",
    .infer = clamp_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(clamp_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&clamp_cuda)},
    .oracle = clamp_oracle,
    .vjp = clamp_vjp,
    .saves_in = 1,
    .flops = tp_flops_1,
    .attrs = clamp_attrs,
    .attr_bytes = sizeof(clamp_attr),
    .samples = clamp_samples,
};
const tp_op op_clamp_backward = {
    .name = "clamp_backward",
    .synopsis = "dx = lo <= x <= hi ? dy : 0",
    .doc = "The derivative of clamp times dy.",
    .infer = clamp_backward_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(clamp_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&clamp_backward_cuda)},
    .oracle = clamp_backward_oracle,
    .vjp = clamp_backward_vjp,
    .saves_in = 1,
    .flops = tp_flops_1,
    .attrs = clamp_attrs,
    .attr_bytes = sizeof(clamp_attr),
    .samples = clamp_backward_samples,
};
