/* div.
 *
 *   y = a / b   so   da = dy / b,  db = -dy a / b^2 = -(dy / b) y,
 * each summed over the dimensions along which it was repeated. */
#include "ops/div/div.h"
#include "ops/elementwise.h"
#include "ops/mul/mul.h"
#include "ops/scale/scale.h"
#include "ops/sum/sum.h"

extern const tp_op op_div;
TP_CPU_DECLARE(div_cpu);
TP_CUDA_DECLARE(div_cuda);

tp_tensor *tp_div(tp_ctx *c, tp_tensor *a, tp_tensor *b) { return tp_op1(c, &op_div, NULL, a, b); }

static double div_f64(double a, double b) { return a / b; }
static tp_status div_oracle(const tp_call *k) { return tp_oracle_binary(k, div_f64); }

static void div_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_ctx *c = k->ctx;
    tp_tensor *over_b = tp_div(c, dout[0], k->in[1]);
    if (tp_wants(k, 0)) din[0] = tp_sum_like(c, over_b, k->in[0]);
    if (tp_wants(k, 1))
        din[1] = tp_scale(c, tp_sum_like(c, tp_mul(c, over_b, k->out[0]), k->in[1]), -1, 0);
}

/* clang-format off */
static const tp_sample div_samples[] = {
    {"same shape", {{TP_GEN_NORMAL, 2, {17, 33}}, {TP_GEN_UNIFORM, 2, {17, 33}, 0.5, 3}}},
    {"column", {{TP_GEN_NORMAL, 3, {2, 5, 130}}, {TP_GEN_UNIFORM, 3, {2, 5, 1}, -3, -0.5}}},
    {"row", {{TP_GEN_NORMAL, 1, {7}}, {TP_GEN_UNIFORM, 2, {5, 7}, 0.5, 3}}},
    {"by a scalar", {{TP_GEN_NORMAL, 2, {4, 5}}, {TP_GEN_UNIFORM, 0, {0}, 0.5, 3}}},
    {"empty", {{TP_GEN_NORMAL, 1, {0}}, {TP_GEN_UNIFORM, 1, {1}, 1, 2}}},
    {"unrelated", {{TP_GEN_NORMAL, 1, {3}}, {TP_GEN_NORMAL, 1, {4}}}, .refuse = "does not broadcast"},
    {0},
};
/* clang-format on */

const tp_op op_div = {
    .name = "div",
    .synopsis = "y = a/b",
    .doc = "Elementwise quotient of two tensors that broadcast against each other.",
    .infer = tp_infer_broadcast,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(div_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&div_cuda)},
    .oracle = div_oracle,
    .vjp = div_vjp,
    .saves_in = 2,
    .saves_out = 1,
    .flops = tp_flops_1,
    .samples = div_samples,
};
