/* gelu.
 *
 *   y = 0.5 x (1 + t),   t = tanh(u),   u = k (x + a x^3),   k = sqrt(2/pi),  a = 0.044715
 *   u' = k (1 + 3 a x^2),  t' = (1 - t^2) u'      so    y' = 0.5 (1 + t) + 0.5 x (1 - t^2) u'
 *
 * gelu_backward computes dx = dy * y'. Its own derivative, for second-order gradients, is
 *   d(dx)/d(dy) = y',   d(dx)/dx = dy * y''   with
 *   y'' = t' + 0.5 x t'' and t'' = (1 - t^2)(u'' - 2 t u'^2), u'' = 6 k a x
 * which gelu_backward2 computes; a third order is not offered. */
#include "ops/gelu/gelu.h"
#include "ops/elementwise.h"
#include "ops/gelu/gelu_math.h"
#include "ops/mul/mul.h"
#include <math.h>

extern const tp_op op_gelu, op_gelu_backward, op_gelu_backward2;
TP_CPU_DECLARE(gelu_cpu);
TP_CPU_DECLARE(gelu_backward_cpu);
TP_CUDA_DECLARE(gelu_cuda);
TP_CUDA_DECLARE(gelu_backward_cuda);
TP_CUDA_DECLARE(gelu_backward2_cuda);

typedef struct gelu_terms {
    double y, dy, d2y;
} gelu_terms;

static gelu_terms gelu_at(double x) {
    double k = sqrt(2 / M_PI), a = 0.044715;
    double u1 = k * (1 + 3 * a * x * x), u2 = 6 * k * a * x, t = tanh(k * (x + a * x * x * x));
    double t1 = (1 - t * t) * u1, t2 = (1 - t * t) * (u2 - 2 * t * u1 * u1);
    return (gelu_terms){0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * t1, t1 + 0.5 * x * t2};
}

double gelu_f64(double x) { return gelu_at(x).y; }
double gelu_dx_f64(double x) { return gelu_at(x).dy; }

static tp_status gelu_oracle(const tp_call *k) {
    for (int64_t i = 0, n = tp_numel(k->out[0]); i < n; i++)
        tp_f64(k->out[0])[i] = gelu_f64(tp_f64(k->in[0])[i]);
    return TP_OK;
}

static tp_status gelu_backward_oracle(const tp_call *k) {
    for (int64_t i = 0, n = tp_numel(k->out[0]); i < n; i++)
        tp_f64(k->out[0])[i] = gelu_at(tp_f64(k->in[0])[i]).dy * tp_f64(k->in[1])[i];
    return TP_OK;
}

static tp_status gelu_backward2_oracle(const tp_call *k) {
    for (int64_t i = 0, n = tp_numel(k->out[0]); i < n; i++)
        tp_f64(k->out[0])[i] = gelu_at(tp_f64(k->in[0])[i]).d2y * tp_f64(k->in[1])[i];
    return TP_OK;
}

tp_tensor *tp_gelu(tp_ctx *c, tp_tensor *x) { return tp_op1(c, &op_gelu, NULL, x); }
tp_tensor *tp_gelu_backward(tp_ctx *c, tp_tensor *x, tp_tensor *dy) {
    return tp_op1(c, &op_gelu_backward, NULL, x, dy);
}

static void gelu_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[0] = tp_gelu_backward(k->ctx, k->in[0], dout[0]);
}

static void gelu_backward_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_ctx *c = k->ctx;
    tp_tensor *x = k->in[0], *dy = k->in[1];
    if (tp_wants(k, 0)) din[0] = tp_mul(c, dout[0], tp_op1(c, &op_gelu_backward2, NULL, x, dy));
    if (tp_wants(k, 1)) din[1] = tp_gelu_backward(c, x, dout[0]);
}

static double gelu_flops(const tp_call *k) { return 20.0 * (double)tp_numel(k->out[0]); }

static const tp_sample gelu_samples[] = {
    {"vector", {{TP_GEN_NORMAL, 1, {37}}}},
    {"wide range", {{TP_GEN_UNIFORM, 2, {5, 33}, -12, 12}}},
    {"size 1", {{TP_GEN_NORMAL, 3, {1, 1, 1}}}},
    {"empty", {{TP_GEN_NORMAL, 2, {0, 4}}}},
    {"integers", {{TP_GEN_INT, 1, {4}, 0, 3}}, .refuse = "x must be a float tensor, got i32"},
    {0},
};
static const tp_sample gelu_backward_samples[] = {
    {"matrix", {{TP_GEN_UNIFORM, 2, {5, 33}, -6, 6}, {TP_GEN_NORMAL, 2, {5, 33}}}},
    {"empty", {{TP_GEN_NORMAL, 1, {0}}, {TP_GEN_NORMAL, 1, {0}}}},
    {"shapes", {{TP_GEN_NORMAL, 1, {4}}, {TP_GEN_NORMAL, 1, {5}}}, .refuse = "same shape"},
    {0},
};

const tp_op op_gelu = {
    .name = "gelu",
    .synopsis = "y = x*Phi(x)",
    .doc =
        "Gaussian error linear unit, tanh form: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).",
    .infer = tp_infer_unary,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(gelu_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&gelu_cuda)},
    .oracle = gelu_oracle,
    .vjp = gelu_vjp,
    .saves_in = 1,
    .flops = gelu_flops,
    .samples = gelu_samples,
};
const tp_op op_gelu_backward = {
    .name = "gelu_backward",
    .synopsis = "dx = dy*(Phi(x)+x*phi(x))",
    .doc = "The derivative of gelu times dy.",
    .infer = tp_infer_binary,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(gelu_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&gelu_backward_cuda)},
    .oracle = gelu_backward_oracle,
    .vjp = gelu_backward_vjp,
    .saves_in = 3,
    .flops = gelu_flops,
    .samples = gelu_backward_samples,
};
const tp_op op_gelu_backward2 = {
    .name = "gelu_backward2",
    .synopsis = "dy*gelu''(x)",
    .doc = "The second derivative of gelu times dy; only second-order gradients run it.",
    .infer = tp_infer_binary,
    .kernel = {[TP_CUDA] = TP_CUDA_LIST(&gelu_backward2_cuda)},
    .oracle = gelu_backward2_oracle,
    .no_vjp = "third-order gradients of gelu are not offered; difference second-order ones",
    .flops = gelu_flops,
    .samples = gelu_backward_samples,
};
