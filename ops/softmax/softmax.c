/* softmax.
 *
 *   y_i = e^{x_i} / sum_j e^{x_j},   dy_i/dx_j = y_i ([i=j] - y_j),   so   dx = y (dy - s), s =
 * sum(dy y)
 *
 * The matrix is symmetric, so the gradient of dy, given g for dx, is softmax_backward(y, g) again.
 * The gradient of y is g (dy - s) - dy sum(g y), softmax_backward2. */
#include "core/ctx.h"
#include "ops/softmax/softmax.h"
#include "ops/softmax/softmax_op.h"
#include "ops/softmax/softmax_weights.h"
#include <math.h>

extern const tp_op op_softmax, op_softmax_backward, op_softmax_backward2;
TP_CPU_DECLARE(softmax_cpu);
TP_CPU_DECLARE(softmax_backward_cpu);
TP_CUDA_DECLARE(softmax_cuda);
TP_CUDA_DECLARE(softmax_backward_cuda);
TP_CUDA_DECLARE(softmax_backward2_cuda);

void tp_softmax_weights(const tp_ctx *c, float *w, const float *x, int64_t n, float top,
                        float temperature) {
#if defined(__x86_64__)
    if (c->isa == 4) {
        tp_softmax_weights_v4(w, x, n, top, temperature);
        return;
    }
    if (c->isa == 3) {
        tp_softmax_weights_v3(w, x, n, top, temperature);
        return;
    }
#endif
    tp_softmax_weights_v1(w, x, n, top, temperature);
}

static tp_status softmax_oracle(const tp_call *k) {
    int64_t n = tp_dim(k->in[0], -1), all = tp_numel(k->in[0]);
    for (int64_t at = 0; at < all; at += n) {
        const double *x = tp_f64(k->in[0]) + at;
        double *y = tp_f64(k->out[0]) + at, max = -INFINITY, sum = 0;
        for (int64_t i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
        for (int64_t i = 0; i < n; i++) sum += y[i] = exp(x[i] - max);
        for (int64_t i = 0; i < n; i++) y[i] /= sum;
    }
    return TP_OK;
}

static double dot(const double *a, const double *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static tp_status backward_oracle(const tp_call *k) {
    int64_t n = tp_dim(k->in[0], -1), all = tp_numel(k->in[0]);
    for (int64_t at = 0; at < all; at += n) {
        const double *y = tp_f64(k->in[0]) + at, *dy = tp_f64(k->in[1]) + at;
        double s = dot(y, dy, n);
        for (int64_t i = 0; i < n; i++) tp_f64(k->out[0])[at + i] = y[i] * (dy[i] - s);
    }
    return TP_OK;
}

static tp_status backward2_oracle(const tp_call *k) {
    int64_t n = tp_dim(k->in[0], -1), all = tp_numel(k->in[0]);
    for (int64_t at = 0; at < all; at += n) {
        const double *y = tp_f64(k->in[0]) + at, *dy = tp_f64(k->in[1]) + at;
        const double *g = tp_f64(k->in[2]) + at;
        double s = dot(y, dy, n), gy = dot(g, y, n);
        for (int64_t i = 0; i < n; i++) tp_f64(k->out[0])[at + i] = g[i] * (dy[i] - s) - dy[i] * gy;
    }
    return TP_OK;
}

tp_tensor *tp_softmax(tp_ctx *c, tp_tensor *x) { return tp_op1(c, &op_softmax, NULL, x); }
tp_tensor *tp_softmax_backward(tp_ctx *c, tp_tensor *y, tp_tensor *dy) {
    return tp_op1(c, &op_softmax_backward, NULL, y, dy);
}

static void softmax_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[0] = tp_softmax_backward(k->ctx, k->out[0], dout[0]);
}

static void backward_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_tensor *y = k->in[0], *dy = k->in[1];
    if (tp_wants(k, 0)) din[0] = tp_op1(k->ctx, &op_softmax_backward2, NULL, y, dy, dout[0]);
    if (tp_wants(k, 1)) din[1] = tp_softmax_backward(k->ctx, y, dout[0]);
}

/* an exponential counts as 10 */
static double softmax_flops(const tp_call *k) { return 13.0 * (double)tp_numel(k->in[0]); }
static double backward_flops(const tp_call *k) { return 4.0 * (double)tp_numel(k->in[0]); }

#define N(...)                                                                                     \
    { TP_GEN_NORMAL, __VA_ARGS__ }
static const tp_sample softmax_samples[] = {
    {"rows", {N(2, {5, 33})}},
    {"attention", {N(4, {2, 2, 3, 17})}},
    {"vector", {N(1, {130})}},
    {"large values", {{TP_GEN_UNIFORM, 2, {3, 64}, -90, 90}}},
    {"one channel", {N(2, {4, 1})}},
    {"264 channels", {N(2, {5, 264})}, .no_grad = true},
    {"600 channels", {N(2, {5, 600})}, .no_grad = true},
    {"1000 channels", {N(2, {2, 1000})}, .no_grad = true},
    {"8200 channels", {N(2, {2, 8200})}, .no_grad = true},
    {"empty", {N(2, {0, 4})}},
    {"no channels", {N(2, {4, 0})}},
    {"scalar", {N(0, {0})}, .refuse = "must have 1 to 6 dimensions"},
    {"integers", {{TP_GEN_INT, 1, {4}, 0, 3}}, .refuse = "must be a float tensor"},
    {0},
};
static const tp_sample backward_samples[] = {
    {"rows", {{TP_GEN_UNIFORM, 2, {5, 33}, 0, 1}, N(2, {5, 33})}},
    {"vector", {{TP_GEN_UNIFORM, 1, {130}, 0, 1}, N(1, {130})}},
    {"264 channels", {{TP_GEN_UNIFORM, 2, {5, 264}, 0, 1}, N(2, {5, 264})}, .no_grad = true},
    {"600 channels", {{TP_GEN_UNIFORM, 2, {5, 600}, 0, 1}, N(2, {5, 600})}, .no_grad = true},
    {"1000 channels", {{TP_GEN_UNIFORM, 2, {2, 1000}, 0, 1}, N(2, {2, 1000})}, .no_grad = true},
    {"8200 channels", {{TP_GEN_UNIFORM, 2, {1, 8200}, 0, 1}, N(2, {1, 8200})}, .no_grad = true},
    {"empty", {N(2, {0, 4}), N(2, {0, 4})}},
    {"shapes", {N(2, {3, 4}), N(2, {3, 5})}, .refuse = "all inputs must have the same shape"},
    {0},
};
static const tp_sample backward2_samples[] = {
    {"rows", {{TP_GEN_UNIFORM, 2, {5, 33}, 0, 1}, N(2, {5, 33}), N(2, {5, 33})}},
    {"264 channels",
     {{TP_GEN_UNIFORM, 2, {5, 264}, 0, 1}, N(2, {5, 264}), N(2, {5, 264})},
     .no_grad = true},
    {"600 channels",
     {{TP_GEN_UNIFORM, 2, {5, 600}, 0, 1}, N(2, {5, 600}), N(2, {5, 600})},
     .no_grad = true},
    {"1000 channels",
     {{TP_GEN_UNIFORM, 2, {2, 1000}, 0, 1}, N(2, {2, 1000}), N(2, {2, 1000})},
     .no_grad = true},
    {"8200 channels",
     {{TP_GEN_UNIFORM, 2, {1, 8200}, 0, 1}, N(2, {1, 8200}), N(2, {1, 8200})},
     .no_grad = true},
    {"empty", {N(2, {0, 4}), N(2, {0, 4}), N(2, {0, 4})}},
    {"shapes", {N(2, {3, 4}), N(2, {3, 4}), N(2, {3, 5})}, .refuse = "the same shape"},
    {0},
};

const tp_op op_softmax = {
    .name = "softmax",
    .synopsis = "y = e^x/sum(e^x)",
    .doc = "Exponentials over the last dimension that sum to 1. The maximum is subtracted first.",
    .infer = tp_infer_softmax,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(softmax_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&softmax_cuda)},
    .oracle = softmax_oracle,
    .vjp = softmax_vjp,
    .saves_out = 1 << 0,
    .flops = softmax_flops,
    .samples = softmax_samples,
};
const tp_op op_softmax_backward = {
    .name = "softmax_backward",
    .synopsis = "dx = y*(dy-sum(dy*y))",
    .doc = "The gradient of softmax from its result y.",
    .infer = tp_infer_softmax,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(softmax_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&softmax_backward_cuda)},
    .oracle = backward_oracle,
    .vjp = backward_vjp,
    .saves_in = 1 << 0 | 1 << 1,
    .flops = backward_flops,
    .samples = backward_samples,
};
const tp_op op_softmax_backward2 = {
    .name = "softmax_backward2",
    .synopsis = "g*(dy-sum(dy*y))-dy*sum(g*y)",
    .doc = "The gradient of softmax_backward for y; only second-order gradients run it.",
    .infer = tp_infer_softmax,
    .kernel = {[TP_CUDA] = TP_CUDA_LIST(&softmax_backward2_cuda)},
    .oracle = backward2_oracle,
    .no_vjp = "third-order gradients of softmax are not offered; difference second-order ones",
    .flops = backward_flops,
    .samples = backward2_samples,
};
