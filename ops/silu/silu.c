/* silu, with s = 1/(1+e^-x) and s' = s (1 - s):
 *
 *   y = x s   so   y' = s + x s' = s (1 + x (1 - s)),
 *                  y'' = 2 s' + x s' (1 - 2 s) = s' (2 + x (1 - 2 s)). */
#include "ops/silu/silu.h"
#include "ops/elementwise.h"
#include "ops/mul/mul.h"
#include "ops/scale/scale.h"
#include "ops/sigmoid/sigmoid.h"
#include <math.h>

extern const tp_op op_silu, op_silu_backward;
TP_CPU_DECLARE(silu_cpu);
TP_CPU_DECLARE(silu_backward_cpu);
TP_CUDA_DECLARE(silu_cuda);
TP_CUDA_DECLARE(silu_backward_cuda);

tp_tensor *tp_silu(tp_ctx *c, tp_tensor *x) { return tp_op1(c, &op_silu, NULL, x); }
tp_tensor *tp_silu_backward(tp_ctx *c, tp_tensor *x, tp_tensor *dy) {
    return tp_op1(c, &op_silu_backward, NULL, x, dy);
}

tp_tensor *tp_silu_second(tp_ctx *c, tp_tensor *x, tp_tensor *dy) {
    /* 1 - s is the logistic function of -x: said so, it survives the rounding of s to bf16 */
    tp_tensor *s = tp_sigmoid(c, x), *rest = tp_sigmoid(c, tp_scale(c, x, -1, 0));
    tp_tensor *factor = tp_scale(c, tp_mul(c, x, tp_scale(c, s, -2, 1)), 1, 2);
    return tp_mul(c, tp_mul(c, tp_mul(c, dy, s), rest), factor);
}

static double silu_f64(double x) { return x / (1 + exp(-x)); }
static double silu_dx64(double x, double dy) {
    double s = 1 / (1 + exp(-x));
    return dy * s * (1 + x * (1 - s));
}
static tp_status silu_oracle(const tp_call *k) { return tp_oracle_unary(k, silu_f64); }
static tp_status silu_backward_oracle(const tp_call *k) { return tp_oracle_binary(k, silu_dx64); }

static void silu_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[0] = tp_silu_backward(k->ctx, k->in[0], dout[0]);
}

static void silu_backward_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_ctx *c = k->ctx;
    tp_tensor *x = k->in[0], *dy = k->in[1];
    if (tp_wants(k, 0)) din[0] = tp_silu_second(c, x, tp_mul(c, dout[0], dy));
    if (tp_wants(k, 1)) din[1] = tp_silu_backward(c, x, dout[0]);
}

/* clang-format off */
static const tp_sample silu_samples[] = {
    {"matrix", {{TP_GEN_NORMAL, 2, {17, 33}}}},
    {"wide range", {{TP_GEN_UNIFORM, 1, {130}, -12, 12}}},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}}},
    {"empty", {{TP_GEN_NORMAL, 2, {0, 4}}}},
    {"integers", {{TP_GEN_INT, 1, {4}, 0, 3}}, .refuse = "x must be a float tensor, got i32"},
    {0},
};
static const tp_sample silu_backward_samples[] = {
    {"matrix", {{TP_GEN_UNIFORM, 2, {5, 33}, -6, 6}, {TP_GEN_NORMAL, 2, {5, 33}}}},
    {"empty", {{TP_GEN_NORMAL, 1, {0}}, {TP_GEN_NORMAL, 1, {0}}}},
    {"shapes", {{TP_GEN_NORMAL, 1, {4}}, {TP_GEN_NORMAL, 1, {5}}}, .refuse = "same shape"},
    {0},
};
/* clang-format on */

const tp_op op_silu = {
    .name = "silu",
    .synopsis = "y = x/(1+e^-x)",
    .doc = "Sigmoid linear unit: x times the logistic function of x.",
    .infer = tp_infer_unary,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(silu_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&silu_cuda)},
    .oracle = silu_oracle,
    .vjp = silu_vjp,
    .saves_in = 1,
    .flops = tp_flops_20,
    .samples = silu_samples,
};
const tp_op op_silu_backward = {
    .name = "silu_backward",
    .synopsis = "dx = dy*s*(1+x*(1-s))",
    .doc = "The derivative of silu times dy; s is the logistic function of x.",
    .infer = tp_infer_binary,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(silu_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&silu_backward_cuda)},
    .oracle = silu_backward_oracle,
    .vjp = silu_backward_vjp,
    .saves_in = 3,
    .flops = tp_flops_20,
    .samples = silu_backward_samples,
};
