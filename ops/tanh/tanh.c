/* tanh.
 *
 *   y = tanh x   so   y' = 1 - y^2,  dx = dy (1 - y^2).
 * tanh_backward, a function of (y, dy), has the derivatives -2 y dy and 1 - y^2. */
#include "ops/tanh/tanh.h"
#include "ops/elementwise.h"
#include "ops/mul/mul.h"
#include "ops/scale/scale.h"
#include <math.h>

extern const tp_op op_tanh, op_tanh_backward;
TP_CPU_DECLARE(tanh_cpu);
TP_CPU_DECLARE(tanh_backward_cpu);
TP_CUDA_DECLARE(tanh_cuda);
TP_CUDA_DECLARE(tanh_backward_cuda);

tp_tensor *tp_tanh(tp_ctx *c, tp_tensor *x) { return tp_op1(c, &op_tanh, NULL, x); }
tp_tensor *tp_tanh_backward(tp_ctx *c, tp_tensor *y, tp_tensor *dy) {
    return tp_op1(c, &op_tanh_backward, NULL, y, dy);
}

static double tanh_dx64(double y, double dy) { return dy * (1 - y * y); }
static tp_status tanh_oracle(const tp_call *k) { return tp_oracle_unary(k, tanh); }
static tp_status tanh_backward_oracle(const tp_call *k) { return tp_oracle_binary(k, tanh_dx64); }

static void tanh_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[0] = tp_tanh_backward(k->ctx, k->out[0], dout[0]);
}

static void tanh_backward_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_ctx *c = k->ctx;
    tp_tensor *y = k->in[0], *dy = k->in[1];
    if (tp_wants(k, 0)) din[0] = tp_scale(c, tp_mul(c, tp_mul(c, dout[0], dy), y), -2, 0);
    if (tp_wants(k, 1)) din[1] = tp_tanh_backward(c, y, dout[0]);
}

/* clang-format off */
static const tp_sample tanh_samples[] = {
    {"matrix", {{TP_GEN_NORMAL, 2, {17, 33}}}},
    {"wide range", {{TP_GEN_UNIFORM, 1, {130}, -6, 6}}},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}}},
    {"empty", {{TP_GEN_NORMAL, 2, {0, 4}}}},
    {"integers", {{TP_GEN_INT, 1, {4}, 0, 3}}, .refuse = "x must be a float tensor, got i32"},
    {0},
};
static const tp_sample tanh_backward_samples[] = {
    {"matrix", {{TP_GEN_UNIFORM, 2, {5, 33}, 0.05, 0.95}, {TP_GEN_NORMAL, 2, {5, 33}}}},
    {"empty", {{TP_GEN_NORMAL, 1, {0}}, {TP_GEN_NORMAL, 1, {0}}}},
    {"shapes", {{TP_GEN_NORMAL, 1, {4}}, {TP_GEN_NORMAL, 1, {5}}}, .refuse = "same shape"},
    {0},
};
/* clang-format on */

const tp_op op_tanh = {
    .name = "tanh",
    .synopsis = "y = tanh(x)",
    .doc = "The hyperbolic tangent, elementwise.",
    .infer = tp_infer_unary,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(tanh_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&tanh_cuda)},
    .oracle = tanh_oracle,
    .vjp = tanh_vjp,
    .saves_out = 1,
    .flops = tp_flops_20,
    .samples = tanh_samples,
};
const tp_op op_tanh_backward = {
    .name = "tanh_backward",
    .synopsis = "dx = dy*(1-y*y)",
    .doc = "The derivative of tanh, said with its result y, times dy.",
    .infer = tp_infer_binary,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(tanh_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&tanh_backward_cuda)},
    .oracle = tanh_backward_oracle,
    .vjp = tanh_backward_vjp,
    .saves_in = 3,
    .flops = tp_flops_4,
    .samples = tanh_backward_samples,
};
