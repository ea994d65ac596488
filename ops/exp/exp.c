/* exp.
 *
 *   y = e^x   so   dx = dy y. */
#include "ops/exp/exp.h"
#include "ops/elementwise.h"
#include "ops/mul/mul.h"
#include <math.h>

extern const tp_op op_exp;
TP_CPU_DECLARE(exp_cpu);
TP_CUDA_DECLARE(exp_cuda);

tp_tensor *tp_exp(tp_ctx *c, tp_tensor *x) { return tp_op1(c, &op_exp, NULL, x); }

static tp_status exp_oracle(const tp_call *k) { return tp_oracle_unary(k, exp); }

static void exp_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[0] = tp_mul(k->ctx, dout[0], k->out[0]);
}

static const tp_sample exp_samples[] = {
    {"matrix", {{TP_GEN_NORMAL, 2, {17, 33}}}},
    {"wide range", {{TP_GEN_UNIFORM, 1, {130}, -20, 3}}},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}}},
    {"empty", {{TP_GEN_NORMAL, 2, {0, 4}}}},
    {"integers", {{TP_GEN_INT, 1, {4}, 0, 3}}, .refuse = "x must be a float tensor, got i32"},
    {0},
};

const tp_op op_exp = {
    .name = "exp",
    .synopsis = "y = e^x",
    .doc = "The exponential function, elementwise.",
    .infer = tp_infer_unary,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(exp_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&exp_cuda)},
    .oracle = exp_oracle,
    .vjp = exp_vjp,
    .saves_out = 1,
    .flops = tp_flops_20,
    .samples = exp_samples,
};
