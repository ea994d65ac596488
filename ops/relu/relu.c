/* relu.
 *
 *   y = max(x, 0)   so   dx = dy where x > 0, else 0.
 *
 * x > 0 exactly where y > 0, so the result is saved, which the next op saves as its input anyway.
 * At x = 0, where there is no derivative, 0 is taken. */
#include "ops/relu/relu.h"
#include "ops/elementwise.h"

extern const tp_op op_relu, op_relu_backward;
TP_CPU_DECLARE(relu_cpu);
TP_CPU_DECLARE(relu_backward_cpu);
TP_CUDA_DECLARE(relu_cuda);
TP_CUDA_DECLARE(relu_backward_cuda);

tp_tensor *tp_relu(tp_ctx *c, tp_tensor *x) { return tp_op1(c, &op_relu, NULL, x); }
tp_tensor *tp_relu_backward(tp_ctx *c, tp_tensor *y, tp_tensor *dy) {
    return tp_op1(c, &op_relu_backward, NULL, y, dy);
}

static double relu_f64(double x) { return x < 0 ? 0 : x; }
static double relu_dx64(double y, double dy) { return y > 0 ? dy : 0; }
static tp_status relu_oracle(const tp_call *k) { return tp_oracle_unary(k, relu_f64); }
static tp_status relu_backward_oracle(const tp_call *k) { return tp_oracle_binary(k, relu_dx64); }

static void relu_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[0] = tp_relu_backward(k->ctx, k->out[0], dout[0]);
}

/* Piecewise constant in y: no gradient goes there. */
static void relu_backward_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    if (tp_wants(k, 1)) din[1] = tp_relu_backward(k->ctx, k->in[0], dout[0]);
}

/* clang-format off */
static const tp_sample relu_samples[] = {
    {"matrix", {{TP_GEN_DISTINCT, 2, {17, 33}, -1, 1}}},
    {"scalar", {{TP_GEN_DISTINCT, 0, {0}, 0.5, 1}}},
    {"the kink", {{TP_GEN_DISTINCT, 1, {40}, -2, 2}}, .no_grad = true},
    {"empty", {{TP_GEN_NORMAL, 2, {0, 4}}}},
    {"integers", {{TP_GEN_INT, 1, {4}, 0, 3}}, .refuse = "x must be a float tensor, got i32"},
    {0},
};
static const tp_sample relu_backward_samples[] = {
    {"matrix", {{TP_GEN_DISTINCT, 2, {5, 33}, -1, 1}, {TP_GEN_NORMAL, 2, {5, 33}}}},
    {"empty", {{TP_GEN_NORMAL, 1, {0}}, {TP_GEN_NORMAL, 1, {0}}}},
    {"shapes", {{TP_GEN_NORMAL, 1, {4}}, {TP_GEN_NORMAL, 1, {5}}}, .refuse = "same shape"},
    {0},
};
/* clang-format on */

const tp_op op_relu = {
    .name = "relu",
    .synopsis = "y = max(x,0)",
    .doc = "The rectified linear unit, elementwise.",
    .infer = tp_infer_unary,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(relu_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&relu_cuda)},
    .oracle = relu_oracle,
    .vjp = relu_vjp,
    .saves_out = 1,
    .flops = tp_flops_1,
    .samples = relu_samples,
};
const tp_op op_relu_backward = {
    .name = "relu_backward",
    .synopsis = "dx = y > 0 ? dy : 0",
    .doc = "The derivative of relu, said with its result y, times dy.",
    .infer = tp_infer_binary,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(relu_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&relu_backward_cuda)},
    .oracle = relu_backward_oracle,
    .vjp = relu_backward_vjp,
    .saves_in = 1,
    .flops = tp_flops_1,
    .samples = relu_backward_samples,
};
