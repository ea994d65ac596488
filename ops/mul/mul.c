/* mul.
 *
 *   y = a b   so   da = dy b, db = dy a, each summed over the dimensions along which it was
 * repeated. */
#include "ops/mul/mul.h"
#include "ops/elementwise.h"
#include "ops/sum/sum.h"

extern const tp_op op_mul;
TP_CPU_DECLARE(mul_cpu);

tp_tensor *tp_mul(tp_ctx *c, tp_tensor *a, tp_tensor *b) { return tp_op1(c, &op_mul, NULL, a, b); }

static double mul_f64(double a, double b) { return a * b; }
static tp_status mul_oracle(const tp_call *k) { return tp_oracle_binary(k, mul_f64); }

static void mul_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    for (int i = 0; i < 2; i++)
        if (tp_wants(k, i))
            din[i] = tp_sum_like(k->ctx, tp_mul(k->ctx, dout[0], k->in[1 - i]), k->in[i]);
}

/* clang-format off */
static const tp_sample mul_samples[] = {
    {"same shape", {{TP_GEN_NORMAL, 2, {17, 33}}, {TP_GEN_NORMAL, 2, {17, 33}}}},
    {"rows weighted", {{TP_GEN_NORMAL, 3, {2, 5, 7}}, {TP_GEN_NORMAL, 3, {2, 5, 1}}}},
    {"columns weighted", {{TP_GEN_NORMAL, 1, {130}}, {TP_GEN_NORMAL, 2, {5, 130}}}},
    {"outer", {{TP_GEN_NORMAL, 2, {9, 1}}, {TP_GEN_NORMAL, 1, {11}}}},
    {"scalar", {{TP_GEN_NORMAL, 2, {4, 5}}, {TP_GEN_NORMAL, 0, {0}}}},
    {"empty", {{TP_GEN_NORMAL, 2, {4, 0}}, {TP_GEN_NORMAL, 2, {4, 1}}}},
    {"unrelated", {{TP_GEN_NORMAL, 1, {3}}, {TP_GEN_NORMAL, 1, {4}}}, .refuse = "does not broadcast"},
    {0},
};
/* clang-format on */

const tp_op op_mul = {
    .name = "mul",
    .synopsis = "y = a*b",
    .doc = "Elementwise product of two tensors that broadcast against each other.",
    .infer = tp_infer_broadcast,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(mul_cpu), NULL}},
    .oracle = mul_oracle,
    .vjp = mul_vjp,
    .saves_in = 3,
    .flops = tp_flops_1,
    .samples = mul_samples,
};
