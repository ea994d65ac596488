/* log_softmax.
 *
 *   y_i = x_i - log(sum_j e^{x_j}),   dy_i/dx_j = [i=j] - e^{y_j},   so   dx = dy - e^y s, s =
 * sum(dy)
 *
 * Given g for dx, the gradient of dy_i is g_i - sum(g e^y), and that of y_i is -g_i e^{y_i} s; the
 * op log_softmax_backward2 gives both. */
#include "ops/log_softmax/log_softmax.h"
#include "ops/softmax/softmax_op.h"
#include <math.h>

extern const tp_op op_log_softmax, op_log_softmax_backward, op_log_softmax_backward2;
TP_CPU_DECLARE(log_softmax_cpu);
TP_CPU_DECLARE(log_softmax_backward_cpu);
TP_CUDA_DECLARE(log_softmax_cuda);
TP_CUDA_DECLARE(log_softmax_backward_cuda);
TP_CUDA_DECLARE(log_softmax_backward2_cuda);

static tp_status log_softmax_oracle(const tp_call *k) {
    int64_t n = tp_dim(k->in[0], -1), all = tp_numel(k->in[0]);
    for (int64_t at = 0; at < all; at += n) {
        const double *x = tp_f64(k->in[0]) + at;
        double max = -INFINITY, sum = 0;
        for (int64_t i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
        for (int64_t i = 0; i < n; i++) sum += exp(x[i] - max);
        for (int64_t i = 0; i < n; i++) tp_f64(k->out[0])[at + i] = x[i] - max - log(sum);
    }
    return TP_OK;
}

static tp_status backward_oracle(const tp_call *k) {
    int64_t n = tp_dim(k->in[0], -1), all = tp_numel(k->in[0]);
    for (int64_t at = 0; at < all; at += n) {
        const double *y = tp_f64(k->in[0]) + at, *dy = tp_f64(k->in[1]) + at;
        double s = 0;
        for (int64_t i = 0; i < n; i++) s += dy[i];
        for (int64_t i = 0; i < n; i++) tp_f64(k->out[0])[at + i] = dy[i] - exp(y[i]) * s;
    }
    return TP_OK;
}

static tp_status backward2_infer(tp_call *k) {
    tp_status st = tp_infer_softmax(k);
    return st ? st : tp_out_like(k, k->in[0]);
}

static tp_status backward2_oracle(const tp_call *k) {
    int64_t n = tp_dim(k->in[0], -1), all = tp_numel(k->in[0]);
    for (int64_t at = 0; at < all; at += n) {
        const double *y = tp_f64(k->in[0]) + at, *dy = tp_f64(k->in[1]) + at;
        const double *g = tp_f64(k->in[2]) + at;
        double s = 0, ge = 0;
        for (int64_t i = 0; i < n; i++) {
            s += dy[i];
            ge += g[i] * exp(y[i]);
        }
        for (int64_t i = 0; i < n; i++) {
            tp_f64(k->out[0])[at + i] = -g[i] * exp(y[i]) * s;
            tp_f64(k->out[1])[at + i] = g[i] - ge;
        }
    }
    return TP_OK;
}

tp_tensor *tp_log_softmax(tp_ctx *c, tp_tensor *x) { return tp_op1(c, &op_log_softmax, NULL, x); }
tp_tensor *tp_log_softmax_backward(tp_ctx *c, tp_tensor *y, tp_tensor *dy) {
    return tp_op1(c, &op_log_softmax_backward, NULL, y, dy);
}

static void log_softmax_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[0] = tp_log_softmax_backward(k->ctx, k->out[0], dout[0]);
}

static void backward_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_tensor *in[] = {k->in[0], k->in[1], dout[0]}, *out[TP_MAXOUT] = {0};
    tp_op_run(k->ctx, &op_log_softmax_backward2, NULL, 3, in, out);
    for (int i = 0; i < 2; i++)
        if (tp_wants(k, i)) din[i] = out[i];
}

/* an exponential counts as 10 */
static double log_softmax_flops(const tp_call *k) { return 14.0 * (double)tp_numel(k->in[0]); }

#define N(...)                                                                                     \
    { TP_GEN_NORMAL, __VA_ARGS__ }
static const tp_sample log_softmax_samples[] = {
    {"rows", {N(2, {5, 33})}},
    {"batch", {N(3, {2, 3, 17})}},
    {"vector", {N(1, {130})}},
    {"large values", {{TP_GEN_UNIFORM, 2, {3, 64}, -90, 90}}},
    {"one channel", {N(2, {4, 1})}},
    {"empty", {N(2, {0, 4})}},
    {"no channels", {N(2, {4, 0})}},
    {"scalar", {N(0, {0})}, .refuse = "must have 1 to 6 dimensions"},
    {"integers", {{TP_GEN_INT, 1, {4}, 0, 3}}, .refuse = "must be a float tensor"},
    {0},
};
static const tp_sample backward_samples[] = {
    {"rows", {{TP_GEN_UNIFORM, 2, {5, 33}, -5, 0}, N(2, {5, 33})}},
    {"vector", {{TP_GEN_UNIFORM, 1, {130}, -5, 0}, N(1, {130})}},
    {"empty", {N(2, {0, 4}), N(2, {0, 4})}},
    {"shapes", {N(2, {3, 4}), N(2, {3, 5})}, .refuse = "all inputs must have the same shape"},
    {0},
};
static const tp_sample backward2_samples[] = {
    {"rows", {{TP_GEN_UNIFORM, 2, {5, 33}, -5, 0}, N(2, {5, 33}), N(2, {5, 33})}},
    {"empty", {N(2, {0, 4}), N(2, {0, 4}), N(2, {0, 4})}},
    {"shapes", {N(2, {3, 4}), N(2, {3, 4}), N(2, {3, 5})}, .refuse = "the same shape"},
    {0},
};

const tp_op op_log_softmax = {
    .name = "log_softmax",
    .synopsis = "y = x-log(sum(e^x))",
    .doc = "Logarithms of the softmax over the last dimension, without its underflow.",
    .infer = tp_infer_softmax,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(log_softmax_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&log_softmax_cuda)},
    .oracle = log_softmax_oracle,
    .vjp = log_softmax_vjp,
    .saves_out = 1 << 0,
    .flops = log_softmax_flops,
    .samples = log_softmax_samples,
};
const tp_op op_log_softmax_backward = {
    .name = "log_softmax_backward",
    .synopsis = "dx = dy-e^y*sum(dy)",
    .doc = "The gradient of log_softmax from its result y.",
    .infer = tp_infer_softmax,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(log_softmax_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&log_softmax_backward_cuda)},
    .oracle = backward_oracle,
    .vjp = backward_vjp,
    .saves_in = 1 << 0 | 1 << 1,
    .flops = log_softmax_flops,
    .samples = backward_samples,
};
const tp_op op_log_softmax_backward2 = {
    .name = "log_softmax_backward2",
    .synopsis = "-g*e^y*sum(dy), g-sum(g*e^y)",
    .doc =
        "The gradients of log_softmax_backward for y and dy; only second-order gradients run it.",
    .infer = backward2_infer,
    .kernel = {[TP_CUDA] = TP_CUDA_LIST(&log_softmax_backward2_cuda)},
    .oracle = backward2_oracle,
    .no_vjp = "third-order gradients of log_softmax are not offered; difference second-order ones",
    .flops = log_softmax_flops,
    .samples = backward2_samples,
};
