/* sigmoid.
 *
 *   y = 1/(1 + e^-x)   so   y' = y (1 - y),  dx = dy y (1 - y).
 * sigmoid_backward, a function of (y, dy), has the derivatives (1 - 2 y) dy and y (1 - y). */
#include "ops/sigmoid/sigmoid.h"
#include "ops/elementwise.h"
#include "ops/mul/mul.h"
#include "ops/scale/scale.h"
#include <math.h>

extern const tp_op op_sigmoid, op_sigmoid_backward;
TP_CPU_DECLARE(sigmoid_cpu);
TP_CPU_DECLARE(sigmoid_backward_cpu);
TP_CUDA_DECLARE(sigmoid_cuda);
TP_CUDA_DECLARE(sigmoid_backward_cuda);

tp_tensor *tp_sigmoid(tp_ctx *c, tp_tensor *x) { return tp_op1(c, &op_sigmoid, NULL, x); }
tp_tensor *tp_sigmoid_backward(tp_ctx *c, tp_tensor *y, tp_tensor *dy) {
    return tp_op1(c, &op_sigmoid_backward, NULL, y, dy);
}

static double sigmoid_f64(double x) { return 1 / (1 + exp(-x)); }
static double sigmoid_dx64(double y, double dy) { return dy * y * (1 - y); }
static tp_status sigmoid_oracle(const tp_call *k) { return tp_oracle_unary(k, sigmoid_f64); }
static tp_status sigmoid_backward_oracle(const tp_call *k) {
    return tp_oracle_binary(k, sigmoid_dx64);
}

static void sigmoid_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[0] = tp_sigmoid_backward(k->ctx, k->out[0], dout[0]);
}

static void sigmoid_backward_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_ctx *c = k->ctx;
    tp_tensor *y = k->in[0], *dy = k->in[1];
    if (tp_wants(k, 0)) din[0] = tp_mul(c, tp_mul(c, dout[0], dy), tp_scale(c, y, -2, 1));
    if (tp_wants(k, 1)) din[1] = tp_sigmoid_backward(c, y, dout[0]);
}

/* clang-format off */
static const tp_sample sigmoid_samples[] = {
    {"matrix", {{TP_GEN_NORMAL, 2, {17, 33}}}},
    {"wide range", {{TP_GEN_UNIFORM, 1, {130}, -12, 12}}},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}}},
    {"empty", {{TP_GEN_NORMAL, 2, {0, 4}}}},
    {"integers", {{TP_GEN_INT, 1, {4}, 0, 3}}, .refuse = "x must be a float tensor, got i32"},
    {0},
};
static const tp_sample sigmoid_backward_samples[] = {
    {"matrix", {{TP_GEN_UNIFORM, 2, {5, 33}, 0.05, 0.95}, {TP_GEN_NORMAL, 2, {5, 33}}}},
    {"empty", {{TP_GEN_NORMAL, 1, {0}}, {TP_GEN_NORMAL, 1, {0}}}},
    {"shapes", {{TP_GEN_NORMAL, 1, {4}}, {TP_GEN_NORMAL, 1, {5}}}, .refuse = "same shape"},
    {0},
};
/* clang-format on */

const tp_op op_sigmoid = {
    .name = "sigmoid",
    .synopsis = "y = 1/(1+e^-x)",
    .doc = "The logistic function, elementwise.",
    .infer = tp_infer_unary,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(sigmoid_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&sigmoid_cuda)},
    .oracle = sigmoid_oracle,
    .vjp = sigmoid_vjp,
    .saves_out = 1,
    .flops = tp_flops_20,
    .samples = sigmoid_samples,
};
const tp_op op_sigmoid_backward = {
    .name = "sigmoid_backward",
    .synopsis = "dx = dy*y*(1-y)",
    .doc = "The derivative of sigmoid, said with its result y, times dy.",
    .infer = tp_infer_binary,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(sigmoid_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&sigmoid_backward_cuda)},
    .oracle = sigmoid_backward_oracle,
    .vjp = sigmoid_backward_vjp,
    .saves_in = 3,
    .flops = tp_flops_4,
    .samples = sigmoid_backward_samples,
};
