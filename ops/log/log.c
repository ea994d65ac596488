/* log.
 *
 *   y = ln x   so   dx = dy / x. */
#include "ops/log/log.h"
#include "ops/div/div.h"
#include "ops/elementwise.h"
#include <math.h>

extern const tp_op op_log;
TP_CPU_DECLARE(log_cpu);
TP_CUDA_DECLARE(log_cuda);

tp_tensor *tp_log(tp_ctx *c, tp_tensor *x) { return tp_op1(c, &op_log, NULL, x); }

static tp_status log_oracle(const tp_call *k) { return tp_oracle_unary(k, log); }

static void log_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[0] = tp_div(k->ctx, dout[0], k->in[0]);
}

static const tp_sample log_samples[] = {
    {"matrix", {{TP_GEN_UNIFORM, 2, {17, 33}, 0.1, 3}}},
    {"wide range", {{TP_GEN_UNIFORM, 1, {130}, 0.5, 1e6}}},
    {"scalar", {{TP_GEN_UNIFORM, 0, {0}, 1, 2}}},
    {"empty", {{TP_GEN_NORMAL, 2, {0, 4}}}},
    {"integers", {{TP_GEN_INT, 1, {4}, 0, 3}}, .refuse = "x must be a float tensor, got i32"},
    {0},
};

const tp_op op_log = {
    .name = "log",
    .synopsis = "y = ln x",
    .doc = "The natural logarithm, elementwise.",
    .infer = tp_infer_unary,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(log_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&log_cuda)},
    .oracle = log_oracle,
    .vjp = log_vjp,
    .saves_in = 1,
    .flops = tp_flops_20,
    .samples = log_samples,
};
