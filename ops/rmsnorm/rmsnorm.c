/* rmsnorm and add_rmsnorm, and their one backward op.
 *
 *   r = 1/sqrt(mean(x^2)+eps),  n = x r,  y = n w
 *
 * Backward, with dn = dy w and means over the C channels of a row:
 *   dw = sum over rows of dy n,   d r/dx_i = -r^3 x_i/C = -r^2 n_i/C
 *   dx = r (dn - n mean(dn n)) - dr r^2 n/C
 * r is an output, so a gradient may reach it too: the last term. For add_rmsnorm x is
 * sum = x + residual, an output as well: dsum is added, and the result is the gradient of both x
 * and residual. dw is summed in the order of ops/layernorm/leaves.h. */
#include "ops/rmsnorm/rmsnorm.h"
#include "ops/layernorm/norm_op.h"
#include <math.h>
#include <string.h>

extern const tp_op op_rmsnorm, op_add_rmsnorm, op_rmsnorm_backward;
TP_CPU_DECLARE(rmsnorm_cpu);
TP_CPU_DECLARE(add_rmsnorm_cpu);
TP_CPU_DECLARE(rmsnorm_backward_cpu);
TP_CUDA_DECLARE(rmsnorm_cuda);
TP_CUDA_DECLARE(add_rmsnorm_cuda);
TP_CUDA_DECLARE(rmsnorm_backward_cuda);

static tp_status rmsnorm_infer(tp_call *k) {
    tp_status st;
    if ((st = tp_norm_need_x(k, 0, "x")) || (st = tp_norm_need_row(k, 0, 1, "w")) ||
        (st = tp_norm_need_eps(k)) || (st = tp_out_like(k, k->in[0])))
        return st;
    return tp_norm_out_stat(k, k->in[0]);
}

static tp_status add_rmsnorm_infer(tp_call *k) {
    tp_status st;
    if ((st = tp_norm_need_x(k, 0, "x")) || (st = tp_need_same(k, 0, 1, "x and residual")) ||
        (st = tp_norm_need_row(k, 0, 2, "w")) || (st = tp_norm_need_eps(k)) ||
        (st = tp_out_like(k, k->in[0])) || (st = tp_out_like(k, k->in[0])))
        return st;
    return tp_norm_out_stat(k, k->in[0]);
}

static tp_status backward_infer(tp_call *k) {
    tp_status st;
    if ((st = tp_norm_need_x(k, 1, "x")) || (st = tp_need_same(k, 0, 1, "dy and x")) ||
        (st = tp_need_same(k, 4, 1, "dsum and x")) || (st = tp_norm_need_row(k, 1, 2, "w")) ||
        (st = tp_norm_need_stat(k, 1, 3, "rstd")) || (st = tp_norm_need_stat(k, 1, 5, "drstd")))
        return st;
    if (!k->in[0] && !k->in[4] && !k->in[5])
        return tp_refuse(k, TP_EARG, "one of dy, dsum and drstd must be present");
    return tp_norm_out_gradients(k, k->in[1], k->in[2]);
}

/* ---- in double ------------------------------------------------------------------------------ */
static void normalise(const tp_call *k, const double *x, const tp_tensor *w, tp_tensor *out,
                      tp_tensor *out_rstd) {
    int64_t channels = tp_dim(out, -1), rows = tp_numel(out_rstd);
    double eps = ((const tp_norm_attr *)k->attr)->eps;
    for (int64_t r = 0; r < rows; r++, x += channels) {
        double square = 0;
        for (int64_t i = 0; i < channels; i++) square += x[i] * x[i] / (double)channels;
        double rstd = 1 / sqrt(square + eps);
        for (int64_t i = 0; i < channels; i++)
            tp_f64(out)[r * channels + i] = x[i] * rstd * (w ? tp_f64(w)[i] : 1);
        tp_f64(out_rstd)[r] = rstd;
    }
}

static tp_status rmsnorm_oracle(const tp_call *k) {
    normalise(k, tp_f64(k->in[0]), k->in[1], k->out[0], k->out[1]);
    return TP_OK;
}

static tp_status add_rmsnorm_oracle(const tp_call *k) {
    for (int64_t i = 0, n = tp_numel(k->in[0]); i < n; i++)
        tp_f64(k->out[0])[i] = tp_f64(k->in[0])[i] + tp_f64(k->in[1])[i];
    normalise(k, tp_f64(k->out[0]), k->in[2], k->out[1], k->out[2]);
    return TP_OK;
}

static double at(const tp_tensor *t, int64_t i) { return t ? tp_f64(t)[i] : 0; }

static tp_status backward_oracle(const tp_call *k) {
    const tp_norm_backward_attr *a = k->attr;
    const tp_tensor *dy = k->in[0], *w = k->in[2];
    int64_t channels = tp_dim(k->in[1], -1), rows = tp_numel(k->in[1]) / channels;
    double *dw = a->dw ? tp_f64(k->out[1]) : NULL, c = (double)channels;
    if (dw) memset(dw, 0, (size_t)channels * sizeof *dw);
    for (int64_t r = 0; r < rows; r++) {
        const double *x = tp_f64(k->in[1]) + r * channels;
        double rstd = at(k->in[3], r), m = 0;
        for (int64_t i = 0; i < channels; i++) {
            double g = at(dy, r * channels + i), n = x[i] * rstd;
            m += g * (w ? at(w, i) : 1) * n / c;
            if (dw) dw[i] += g * n;
        }
        for (int64_t i = 0; i < channels; i++) {
            double dn = at(dy, r * channels + i) * (w ? at(w, i) : 1), n = x[i] * rstd;
            tp_f64(k->out[0])[r * channels + i] = rstd * (dn - n * m) -
                                                  at(k->in[5], r) * rstd * rstd * n / c +
                                                  at(k->in[4], r * channels + i);
        }
    }
    return TP_OK;
}

/* ---- builders and gradients ----------------------------------------------------------------- */
tp_tensor *tp_rmsnorm(tp_ctx *c, tp_tensor *x, tp_tensor *w, double eps) {
    return tp_op1(c, &op_rmsnorm, &((tp_norm_attr){eps}), x, w);
}

tp_tensor *tp_add_rmsnorm(tp_ctx *c, tp_tensor *x, tp_tensor *residual, tp_tensor *w, double eps,
                          tp_tensor **sum) {
    tp_tensor *out[TP_MAXOUT] = {0}, *in[] = {x, residual, w};
    tp_op_run(c, &op_add_rmsnorm, &((tp_norm_attr){eps}), 3, in, out);
    *sum = out[0];
    return out[1];
}

/* in: dy, x, w, rstd, dsum, drstd. w is input i of k. */
static tp_tensor *backward(const tp_call *k, tp_tensor *const in[], int i, tp_tensor *din[]) {
    tp_norm_backward_attr a = {.dw = tp_wants(k, i)};
    tp_tensor *out[TP_MAXOUT] = {0};
    tp_op_run(k->ctx, &op_rmsnorm_backward, &a, 6, in, out);
    if (a.dw) din[i] = out[1];
    return out[0];
}

static void rmsnorm_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_tensor *in[] = {dout[0], k->in[0], k->in[1], k->out[1], NULL, dout[1]};
    tp_tensor *dx = backward(k, in, 1, din);
    if (tp_wants(k, 0)) din[0] = dx;
}

static void add_rmsnorm_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_tensor *in[] = {dout[1], k->out[0], k->in[2], k->out[2], dout[0], dout[2]};
    tp_tensor *dx = backward(k, in, 2, din);
    for (int i = 0; i < 2; i++)
        if (tp_wants(k, i)) din[i] = dx;
}

/* per value: 2 for the mean square, 2 for the result */
static double rmsnorm_flops(const tp_call *k) { return 4.0 * (double)tp_numel(k->in[0]); }
static double add_rmsnorm_flops(const tp_call *k) { return 5.0 * (double)tp_numel(k->in[0]); }
/* per value: n 1, dn 1, its sum 2, dw 2, dx 4 */
static double backward_flops(const tp_call *k) { return 10.0 * (double)tp_numel(k->in[1]); }

/* ---- samples -------------------------------------------------------------------------------- */
#define EPS(e)                                                                                     \
    &(const tp_norm_attr) { e }
#define N(...)                                                                                     \
    { TP_GEN_NORMAL, __VA_ARGS__ }
#define U(...)                                                                                     \
    { TP_GEN_UNIFORM, __VA_ARGS__, .lo = 0.5, .hi = 2 }
#define NONE                                                                                       \
    { TP_GEN_ABSENT }
static const tp_sample rmsnorm_samples[] = {
    {"rows", {N(2, {5, 33}), N(1, {33})}, EPS(1e-5)},
    {"samples", {N(3, {3, 4, 17}), N(1, {17})}, EPS(1e-6)},
    {"bare", {N(2, {4, 65}), NONE}, EPS(1e-5)},
    {"vector", {N(1, {130}), N(1, {130})}, EPS(1e-5)},
    {"four dimensions", {N(4, {2, 2, 2, 16}), N(1, {16})}, EPS(1e-5)},
    {"one channel", {N(2, {3, 1}), N(1, {1})}, EPS(0.5)},
    {"empty", {N(2, {0, 8}), N(1, {8})}, EPS(1e-5)},
    {"no channels", {N(2, {3, 0}), N(1, {0})}, EPS(1e-5), .refuse = "must not be empty"},
    {"w", {N(2, {3, 8}), N(1, {7})}, EPS(1e-5), .refuse = "w must have shape [8]"},
    {"eps", {N(2, {3, 8}), N(1, {8})}, EPS(-1), .refuse = "eps must be above 0"},
    {0},
};
static const tp_sample add_rmsnorm_samples[] = {
    {"rows", {N(2, {5, 33}), N(2, {5, 33}), N(1, {33})}, EPS(1e-5)},
    {"samples", {N(3, {3, 2, 80}), N(3, {3, 2, 80}), N(1, {80})}, EPS(1e-5)},
    {"bare", {N(1, {20}), N(1, {20}), NONE}, EPS(1e-5)},
    {"empty", {N(2, {0, 8}), N(2, {0, 8}), N(1, {8})}, EPS(1e-5)},
    {"shapes",
     {N(2, {3, 8}), N(2, {3, 7}), N(1, {8})},
     EPS(1e-5),
     .refuse = "x and residual must have the same shape"},
    {0},
};
#define DW(yes)                                                                                    \
    &(const tp_norm_backward_attr) { .dw = yes }
static const tp_sample backward_samples[] = {
    {"all", /* dy, x, w, rstd, dsum, drstd */
     {N(3, {3, 4, 33}), N(3, {3, 4, 33}), N(1, {33}), U(2, {3, 4}), N(3, {3, 4, 33}), N(2, {3, 4})},
     DW(true)},
    {"usual", {N(3, {5, 3, 130}), N(3, {5, 3, 130}), N(1, {130}), U(2, {5, 3})}, DW(true)},
    {"one sample", {N(2, {130, 17}), N(2, {130, 17}), N(1, {17}), U(1, {130})}, DW(true)},
    {"no weight", {N(2, {4, 20}), N(2, {4, 20}), NONE, U(1, {4})}, DW(false)},
    {"dsum only", {NONE, N(3, {2, 2, 20}), N(1, {20}), U(2, {2, 2}), N(3, {2, 2, 20})}, DW(true)},
    {"empty", {N(3, {0, 4, 8}), N(3, {0, 4, 8}), N(1, {8}), U(2, {0, 4})}, DW(true)},
    {"nothing",
     {NONE, N(2, {4, 20}), N(1, {20}), U(1, {4})},
     DW(true),
     .refuse = "one of dy, dsum and drstd"},
    {"rstd",
     {N(2, {4, 20}), N(2, {4, 20}), N(1, {20}), U(1, {5})},
     DW(true),
     .refuse = "rstd must have the shape"},
    {0},
};

const tp_op op_rmsnorm = {
    .name = "rmsnorm",
    .synopsis = "y = x*rstd*w",
    .doc = "Root mean square normalisation over the last dimension. Gives y and, per row, the "
           "reciprocal root mean square that the backward op reads again.",
    .infer = rmsnorm_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(rmsnorm_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&rmsnorm_cuda)},
    .oracle = rmsnorm_oracle,
    .vjp = rmsnorm_vjp,
    .saves_in = 1 << 0 | 1 << 1,
    .saves_out = 1 << 1,
    .optional = 1 << 1,
    .flops = rmsnorm_flops,
    .attrs = tp_norm_attrs,
    .attr_bytes = sizeof(tp_norm_attr),
    .samples = rmsnorm_samples,
};
const tp_op op_add_rmsnorm = {
    .name = "add_rmsnorm",
    .synopsis = "s = x+r, y = rmsnorm(s)",
    .doc = "The residual addition and the rmsnorm behind it in one pass over memory. Gives the "
           "sum, y and rstd.",
    .infer = add_rmsnorm_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(add_rmsnorm_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&add_rmsnorm_cuda)},
    .oracle = add_rmsnorm_oracle,
    .vjp = add_rmsnorm_vjp,
    .saves_in = 1 << 2,
    .saves_out = 1 << 0 | 1 << 2,
    .optional = 1 << 2,
    .flops = add_rmsnorm_flops,
    .attrs = tp_norm_attrs,
    .attr_bytes = sizeof(tp_norm_attr),
    .samples = add_rmsnorm_samples,
};
const tp_op op_rmsnorm_backward = {
    .name = "rmsnorm_backward",
    .synopsis = "dx = rstd*(dn-n*mean(dn*n))",
    .doc = "Gradients of rmsnorm: dx, and dw where asked for, in one pass over memory. dsum, the "
           "gradient of add_rmsnorm's sum, is added to dx.",
    .infer = backward_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(rmsnorm_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&rmsnorm_backward_cuda)},
    .oracle = backward_oracle,
    .no_vjp = "second-order gradients of the fused norm are not offered; write the norm with mean, "
              "mul and div to get them",
    .optional = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 5,
    .flops = backward_flops,
    .attrs = tp_norm_backward_attrs,
    .attr_bytes = sizeof(tp_norm_backward_attr),
    .samples = backward_samples,
};
