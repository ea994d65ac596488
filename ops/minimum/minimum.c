/* minimum and maximum.
 *
 *   y = min(a, b)   so   db = dy where b < a, da = dy elsewhere (also where they are equal),
 *   y = max(a, b)   so   db = dy where a < b, da = dy elsewhere,
 * each summed over the dimensions along which it was repeated. */
#include "ops/minimum/minimum.h"
#include "ops/elementwise.h"
#include "ops/fill/fill.h"
#include "ops/sum/sum.h"
#include "ops/where/where.h"
#include <math.h>

extern const tp_op op_minimum, op_maximum, op_less;
TP_CPU_DECLARE(minimum_cpu);
TP_CPU_DECLARE(maximum_cpu);
TP_CPU_DECLARE(less_cpu);
TP_CUDA_DECLARE(minimum_cuda);
TP_CUDA_DECLARE(maximum_cuda);
TP_CUDA_DECLARE(less_cuda);

tp_tensor *tp_minimum(tp_ctx *c, tp_tensor *a, tp_tensor *b) {
    return tp_op1(c, &op_minimum, NULL, a, b);
}
tp_tensor *tp_maximum(tp_ctx *c, tp_tensor *a, tp_tensor *b) {
    return tp_op1(c, &op_maximum, NULL, a, b);
}
tp_tensor *tp_less(tp_ctx *c, tp_tensor *a, tp_tensor *b) {
    return tp_op1(c, &op_less, NULL, a, b);
}

static double min_f64(double a, double b) { return a < b || isnan(a) ? a : b; }
static double max_f64(double a, double b) { return a > b || isnan(a) ? a : b; }
static tp_status minimum_oracle(const tp_call *k) { return tp_oracle_binary(k, min_f64); }
static tp_status maximum_oracle(const tp_call *k) { return tp_oracle_binary(k, max_f64); }

static tp_status less_oracle(const tp_call *k) {
    const tp_tensor *a = k->in[0], *b = k->in[1], *o = k->out[0];
    for (int64_t i = 0, n = tp_numel(o); i < n; i++)
        ((uint8_t *)o->data)[i] =
            tp_f64(a)[tp_broadcast_at(a, o, i)] < tp_f64(b)[tp_broadcast_at(b, o, i)];
    return TP_OK;
}

static tp_status less_infer(tp_call *k) {
    tp_status st = tp_infer_broadcast(k);
    if (!st) k->out[0]->dtype = TP_U8; /* no bytes yet: the runner allocates after infer */
    return st;
}

/* dy to b where b_wins, to a elsewhere. */
static void choose(const tp_call *k, tp_tensor *b_wins, tp_tensor *dy, tp_tensor *din[]) {
    tp_ctx *c = k->ctx;
    tp_tensor *zero = tp_zeros(c, dy->dtype, 0, NULL);
    if (tp_wants(k, 0)) din[0] = tp_sum_like(c, tp_where(c, b_wins, zero, dy), k->in[0]);
    if (tp_wants(k, 1)) din[1] = tp_sum_like(c, tp_where(c, b_wins, dy, zero), k->in[1]);
}

static void minimum_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    choose(k, tp_less(k->ctx, k->in[1], k->in[0]), dout[0], din);
}

static void maximum_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    choose(k, tp_less(k->ctx, k->in[0], k->in[1]), dout[0], din);
}

/* clang-format off */
static const tp_sample minimum_samples[] = {
    {"same shape", {{TP_GEN_NORMAL, 2, {17, 33}}, {TP_GEN_NORMAL, 2, {17, 33}}}},
    {"column", {{TP_GEN_DISTINCT, 3, {2, 5, 13}, -1, 1}, {TP_GEN_DISTINCT, 3, {2, 5, 1}, -0.9923, 1.0077}}},
    {"row", {{TP_GEN_NORMAL, 1, {7}}, {TP_GEN_NORMAL, 2, {5, 7}}}},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}, {TP_GEN_NORMAL, 2, {4, 5}}}},
    {"ties", {{TP_GEN_DISTINCT, 1, {60}, -1, 1}, {TP_GEN_DISTINCT, 1, {60}, -1, 1}}, .no_grad = true},
    {"empty", {{TP_GEN_NORMAL, 1, {0}}, {TP_GEN_NORMAL, 1, {1}}}},
    {"unrelated", {{TP_GEN_NORMAL, 1, {3}}, {TP_GEN_NORMAL, 1, {4}}}, .refuse = "does not broadcast"},
    {0},
};
/* clang-format on */

const tp_op op_minimum = {
    .name = "minimum",
    .synopsis = "y = min(a,b)",
    .doc = "The smaller of two tensors, elementwise with broadcasting.",
    .infer = tp_infer_broadcast,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(minimum_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&minimum_cuda)},
    .oracle = minimum_oracle,
    .vjp = minimum_vjp,
    .saves_in = 3,
    .flops = tp_flops_1,
    .samples = minimum_samples,
};
const tp_op op_maximum = {
    .name = "maximum",
    .synopsis = "y = max(a,b)",
    .doc = "The larger of two tensors, elementwise with broadcasting.",
    .infer = tp_infer_broadcast,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(maximum_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&maximum_cuda)},
    .oracle = maximum_oracle,
    .vjp = maximum_vjp,
    .saves_in = 3,
    .flops = tp_flops_1,
    .samples = minimum_samples,
};
const tp_op op_less = {
    .name = "less",
    .synopsis = "y = a < b",
    .doc = "Which elements of a are smaller than those of b, as u8; broadcasts.",
    .infer = less_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(less_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&less_cuda)},
    .oracle = less_oracle,
    .no_vjp = "a comparison is piecewise constant",
    .flops = tp_flops_1,
    .samples = minimum_samples,
};
