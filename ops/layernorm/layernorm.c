/* layernorm and add_layernorm, and their one backward op.
 *
 *   mu = mean(x),  v = mean((x-mu)^2),  r = 1/sqrt(v+eps),  n = (x-mu) r,  y = n w + b
 *
 * Backward, with dn = dy w and means over the C channels of a row:
 *   dw = sum over rows of dy n,   db = sum over rows of dy
 *   d mu/dx_i = 1/C,   d r/dx_i = -r^3 (x_i-mu)/C = -r^2 n_i/C,   d n_j/dx_i = r ([i=j] - 1/C - n_i
 * n_j/C) dx = r (dn - mean(dn) - n mean(dn n)) + dmu/C - dr r^2 n/C mu and r are outputs, so
 * gradients may reach them too; the last two terms carry those. For add_layernorm x is sum = x +
 * residual, an output as well: dsum is added, and the result is the gradient of both x and
 * residual. dw and db are summed in the order of leaves.h. */
#include "ops/layernorm/layernorm.h"
#include "ops/layernorm/norm_op.h"
#include <math.h>
#include <string.h>

extern const tp_op op_layernorm, op_add_layernorm, op_layernorm_backward;
TP_CPU_DECLARE(layernorm_cpu);
TP_CPU_DECLARE(add_layernorm_cpu);
TP_CPU_DECLARE(layernorm_backward_cpu);
TP_CUDA_DECLARE(layernorm_cuda);
TP_CUDA_DECLARE(add_layernorm_cuda);
TP_CUDA_DECLARE(layernorm_backward_cuda);

static tp_status layernorm_infer(tp_call *k) {
    tp_status st;
    if ((st = tp_norm_need_x(k, 0, "x")) || (st = tp_norm_need_row(k, 0, 1, "w")) ||
        (st = tp_norm_need_row(k, 0, 2, "b")) || (st = tp_norm_need_eps(k)) ||
        (st = tp_out_like(k, k->in[0])) || (st = tp_norm_out_stat(k, k->in[0])))
        return st;
    return tp_norm_out_stat(k, k->in[0]);
}

static tp_status add_layernorm_infer(tp_call *k) {
    tp_status st;
    if ((st = tp_norm_need_x(k, 0, "x")) || (st = tp_need_same(k, 0, 1, "x and residual")) ||
        (st = tp_norm_need_row(k, 0, 2, "w")) || (st = tp_norm_need_row(k, 0, 3, "b")) ||
        (st = tp_norm_need_eps(k)) || (st = tp_out_like(k, k->in[0])) ||
        (st = tp_out_like(k, k->in[0])) || (st = tp_norm_out_stat(k, k->in[0])))
        return st;
    return tp_norm_out_stat(k, k->in[0]);
}

static tp_status backward_infer(tp_call *k) {
    static const struct {
        int i;
        const char *name;
    } like_x[] = {{0, "dy and x"}, {5, "dsum and x"}};
    tp_status st = tp_norm_need_x(k, 1, "x");
    for (int j = 0; j < 2 && !st; j++) st = tp_need_same(k, like_x[j].i, 1, like_x[j].name);
    if (st || (st = tp_norm_need_row(k, 1, 2, "w")) || (st = tp_norm_need_stat(k, 1, 3, "mean")) ||
        (st = tp_norm_need_stat(k, 1, 4, "rstd")) || (st = tp_norm_need_stat(k, 1, 6, "dmean")) ||
        (st = tp_norm_need_stat(k, 1, 7, "drstd")))
        return st;
    if (!k->in[0] && !k->in[5] && !k->in[6] && !k->in[7])
        return tp_refuse(k, TP_EARG, "one of dy, dsum, dmean and drstd must be present");
    return tp_norm_out_gradients(k, k->in[1], k->in[2]);
}

/* ---- in double ------------------------------------------------------------------------------ */
static void normalise(const tp_call *k, const double *x, tp_tensor *const wb[2],
                      tp_tensor *out[3]) {
    int64_t channels = tp_dim(out[0], -1), rows = tp_numel(out[1]);
    double eps = ((const tp_norm_attr *)k->attr)->eps;
    for (int64_t r = 0; r < rows; r++, x += channels) {
        double mean = 0, var = 0, *y = tp_f64(out[0]) + r * channels;
        for (int64_t i = 0; i < channels; i++) mean += x[i] / (double)channels;
        for (int64_t i = 0; i < channels; i++)
            var += (x[i] - mean) * (x[i] - mean) / (double)channels;
        double rstd = 1 / sqrt(var + eps);
        for (int64_t i = 0; i < channels; i++)
            y[i] = (x[i] - mean) * rstd * (wb[0] ? tp_f64(wb[0])[i] : 1) +
                   (wb[1] ? tp_f64(wb[1])[i] : 0);
        tp_f64(out[1])[r] = mean;
        tp_f64(out[2])[r] = rstd;
    }
}

static tp_status layernorm_oracle(const tp_call *k) {
    tp_tensor *out[3] = {k->out[0], k->out[1], k->out[2]};
    normalise(k, tp_f64(k->in[0]), k->in + 1, out);
    return TP_OK;
}

static tp_status add_layernorm_oracle(const tp_call *k) {
    tp_tensor *out[3] = {k->out[1], k->out[2], k->out[3]};
    for (int64_t i = 0, n = tp_numel(k->in[0]); i < n; i++)
        tp_f64(k->out[0])[i] = tp_f64(k->in[0])[i] + tp_f64(k->in[1])[i];
    normalise(k, tp_f64(k->out[0]), k->in + 2, out);
    return TP_OK;
}

static double at(const tp_tensor *t, int64_t i) { return t ? tp_f64(t)[i] : 0; }

static tp_status backward_oracle(const tp_call *k) {
    const tp_norm_backward_attr *a = k->attr;
    const tp_tensor *dy = k->in[0], *w = k->in[2];
    int64_t channels = tp_dim(k->in[1], -1), rows = tp_numel(k->in[1]) / channels;
    double *dw = a->dw ? tp_f64(k->out[1]) : NULL, c = (double)channels;
    double *db = a->db ? tp_f64(k->out[a->dw ? 2 : 1]) : NULL;
    if (dw) memset(dw, 0, (size_t)channels * sizeof *dw);
    if (db) memset(db, 0, (size_t)channels * sizeof *db);
    for (int64_t r = 0; r < rows; r++) {
        const double *x = tp_f64(k->in[1]) + r * channels;
        double mean = at(k->in[3], r), rstd = at(k->in[4], r), m1 = 0, m2 = 0;
        for (int64_t i = 0; i < channels; i++) {
            double g = at(dy, r * channels + i), n = (x[i] - mean) * rstd;
            m1 += g * (w ? at(w, i) : 1) / c;
            m2 += g * (w ? at(w, i) : 1) * n / c;
            if (dw) dw[i] += g * n;
            if (db) db[i] += g;
        }
        for (int64_t i = 0; i < channels; i++) {
            double dn = at(dy, r * channels + i) * (w ? at(w, i) : 1), n = (x[i] - mean) * rstd;
            tp_f64(k->out[0])[r * channels + i] = rstd * (dn - m1 - n * m2) + at(k->in[6], r) / c -
                                                  at(k->in[7], r) * rstd * rstd * n / c +
                                                  at(k->in[5], r * channels + i);
        }
    }
    return TP_OK;
}

/* ---- builders and gradients ----------------------------------------------------------------- */
tp_tensor *tp_layernorm(tp_ctx *c, tp_tensor *x, tp_tensor *w, tp_tensor *b, double eps) {
    return tp_op1(c, &op_layernorm, &((tp_norm_attr){eps}), x, w, b);
}

tp_tensor *tp_add_layernorm(tp_ctx *c, tp_tensor *x, tp_tensor *residual, tp_tensor *w,
                            tp_tensor *b, double eps, tp_tensor **sum) {
    tp_tensor *out[TP_MAXOUT] = {0}, *in[] = {x, residual, w, b};
    tp_op_run(c, &op_add_layernorm, &((tp_norm_attr){eps}), 4, in, out);
    *sum = out[0];
    return out[1];
}

/* in: dy, x, w, mean, rstd, dsum, dmean, drstd. w and b are inputs i and i+1 of k. */
static tp_tensor *backward(const tp_call *k, tp_tensor *const in[], int i, tp_tensor *din[]) {
    tp_norm_backward_attr a = {tp_wants(k, i), tp_wants(k, i + 1)};
    tp_tensor *out[TP_MAXOUT] = {0};
    tp_op_run(k->ctx, &op_layernorm_backward, &a, 8, in, out);
    if (a.dw) din[i] = out[1];
    if (a.db) din[i + 1] = out[a.dw ? 2 : 1];
    return out[0];
}

static void layernorm_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_tensor *in[] = {dout[0], k->in[0], k->in[1], k->out[1], k->out[2], NULL, dout[1], dout[2]};
    tp_tensor *dx = backward(k, in, 1, din);
    if (tp_wants(k, 0)) din[0] = dx;
}

static void add_layernorm_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_tensor *in[] = {dout[1],   k->out[0], k->in[2], k->out[2],
                       k->out[3], dout[0],   dout[2],  dout[3]};
    tp_tensor *dx = backward(k, in, 2, din);
    for (int i = 0; i < 2; i++)
        if (tp_wants(k, i)) din[i] = dx;
}

/* per value: 1 for the mean, 3 for the variance, 4 for the result */
static double layernorm_flops(const tp_call *k) { return 8.0 * (double)tp_numel(k->in[0]); }
static double add_layernorm_flops(const tp_call *k) { return 9.0 * (double)tp_numel(k->in[0]); }
/* per value: n 2, dn 1, its two sums 3, dw 2, db 1, dx 5 */
static double backward_flops(const tp_call *k) { return 14.0 * (double)tp_numel(k->in[1]); }

/* ---- samples -------------------------------------------------------------------------------- */
#define EPS(e)                                                                                     \
    &(const tp_norm_attr) { e }
#define N(...)                                                                                     \
    { TP_GEN_NORMAL, __VA_ARGS__ }
static const tp_sample layernorm_samples[] = {
    {"rows", {N(2, {5, 33}), N(1, {33}), N(1, {33})}, EPS(1e-5)},
    {"samples", {N(3, {3, 4, 17}), N(1, {17}), N(1, {17})}, EPS(1e-5)},
    {"no bias", {N(2, {3, 20}), N(1, {20}), {TP_GEN_ABSENT}}, EPS(1e-5)},
    {"no weight", {N(2, {3, 20}), {TP_GEN_ABSENT}, N(1, {20})}, EPS(1e-3)},
    {"bare", {N(2, {4, 65}), {TP_GEN_ABSENT}, {TP_GEN_ABSENT}}, EPS(1e-5)},
    {"vector", {N(1, {130}), N(1, {130}), N(1, {130})}, EPS(1e-5)},
    {"far from 0", {N(2, {3, 64}, 10, 2), N(1, {64}), N(1, {64})}, EPS(1e-5), .tol = 5e-5},
    {"four dimensions", {N(4, {2, 2, 2, 16}), N(1, {16}), N(1, {16})}, EPS(1e-5)},
    {"one channel", {N(2, {3, 1}), N(1, {1}), N(1, {1})}, EPS(0.5)},
    {"empty", {N(2, {0, 8}), N(1, {8}), N(1, {8})}, EPS(1e-5)},
    {"no channels", {N(2, {3, 0}), N(1, {0}), N(1, {0})}, EPS(1e-5), .refuse = "not be empty"},
    {"w", {N(2, {3, 8}), N(1, {7}), N(1, {8})}, EPS(1e-5), .refuse = "w must have shape [8]"},
    {"b", {N(2, {3, 8}), N(1, {8}), N(2, {1, 8})}, EPS(1e-5), .refuse = "b must have shape [8]"},
    {"scalar", {N(0, {0}), N(1, {8}), N(1, {8})}, EPS(1e-5), .refuse = "1 to 6 dimensions"},
    {"eps", {N(2, {3, 8}), N(1, {8}), N(1, {8})}, EPS(0), .refuse = "eps must be above 0"},
    {"integers",
     {{TP_GEN_INT, 2, {3, 8}, 0, 9}, N(1, {8}), N(1, {8})},
     EPS(1e-5),
     .refuse = "x must be a float tensor"},
    {0},
};
static const tp_sample add_layernorm_samples[] = {
    {"rows", {N(2, {5, 33}), N(2, {5, 33}), N(1, {33}), N(1, {33})}, EPS(1e-5)},
    {"samples", {N(3, {3, 2, 80}), N(3, {3, 2, 80}), N(1, {80}), N(1, {80})}, EPS(1e-5)},
    {"bare", {N(1, {20}), N(1, {20}), {TP_GEN_ABSENT}, {TP_GEN_ABSENT}}, EPS(1e-5)},
    {"empty", {N(2, {0, 8}), N(2, {0, 8}), N(1, {8}), N(1, {8})}, EPS(1e-5)},
    {"shapes",
     {N(2, {3, 8}), N(2, {3, 7}), N(1, {8}), N(1, {8})},
     EPS(1e-5),
     .refuse = "x and residual must have the same shape"},
    {0},
};
#define BOTH                                                                                       \
    &(const tp_norm_backward_attr) { true, true }
#define U(...)                                                                                     \
    { TP_GEN_UNIFORM, __VA_ARGS__, .lo = 0.5, .hi = 2 }
#define NONE                                                                                       \
    { TP_GEN_ABSENT }
static const tp_sample backward_samples[] = {
    {"all", /* dy, x, w, mean, rstd, dsum, dmean, drstd */
     {N(3, {3, 4, 33}), N(3, {3, 4, 33}), N(1, {33}), N(2, {3, 4}), U(2, {3, 4}), N(3, {3, 4, 33}),
      N(2, {3, 4}), N(2, {3, 4})},
     BOTH},
    {"usual",
     {N(3, {5, 3, 130}), N(3, {5, 3, 130}), N(1, {130}), N(2, {5, 3}), U(2, {5, 3}), NONE, NONE,
      NONE},
     BOTH},
    {"one sample", {N(2, {130, 17}), N(2, {130, 17}), N(1, {17}), N(1, {130}), U(1, {130})}, BOTH},
    {"no bias",
     {N(2, {4, 20}), N(2, {4, 20}), N(1, {20}), N(1, {4}), U(1, {4})},
     &(const tp_norm_backward_attr){true, false}},
    {"no weight",
     {N(2, {4, 20}), N(2, {4, 20}), NONE, N(1, {4}), U(1, {4})},
     &(const tp_norm_backward_attr){false, true}},
    {"dx only",
     {N(2, {4, 20}), N(2, {4, 20}), N(1, {20}), N(1, {4}), U(1, {4}), N(2, {4, 20})},
     &(const tp_norm_backward_attr){false, false}},
    {"dsum only",
     {NONE, N(3, {2, 2, 20}), N(1, {20}), N(2, {2, 2}), U(2, {2, 2}), N(3, {2, 2, 20})},
     BOTH},
    {"empty", {N(3, {0, 4, 8}), N(3, {0, 4, 8}), N(1, {8}), N(2, {0, 4}), U(2, {0, 4})}, BOTH},
    {"empty rows", {N(3, {3, 0, 8}), N(3, {3, 0, 8}), N(1, {8}), N(2, {3, 0}), U(2, {3, 0})}, BOTH},
    {"nothing",
     {NONE, N(2, {4, 20}), N(1, {20}), N(1, {4}), U(1, {4})},
     BOTH,
     .refuse = "one of dy, dsum, dmean and drstd"},
    {"mean",
     {N(2, {4, 20}), N(2, {4, 20}), N(1, {20}), N(1, {5}), U(1, {4})},
     BOTH,
     .refuse = "mean must have the shape"},
    {"dw without w",
     {N(2, {4, 20}), N(2, {4, 20}), NONE, N(1, {4}), U(1, {4})},
     BOTH,
     .refuse = "dw is asked for"},
    {0},
};

const tp_op op_layernorm = {
    .name = "layernorm",
    .synopsis = "y = (x-mean)*rstd*w+b",
    .doc = "Layer normalisation over the last dimension. Gives y, and per row the mean and the "
           "reciprocal standard deviation that the backward op reads again.",
    .infer = layernorm_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(layernorm_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&layernorm_cuda)},
    .oracle = layernorm_oracle,
    .vjp = layernorm_vjp,
    .saves_in = 1 << 0 | 1 << 1,
    .saves_out = 1 << 1 | 1 << 2,
    .optional = 1 << 1 | 1 << 2,
    .flops = layernorm_flops,
    .attrs = tp_norm_attrs,
    .attr_bytes = sizeof(tp_norm_attr),
    .samples = layernorm_samples,
};
const tp_op op_add_layernorm = {
    .name = "add_layernorm",
    .synopsis = "s = x+r, y = layernorm(s)",
    .doc = "The residual addition and the layernorm behind it in one pass over memory. Gives the "
           "sum, y, mean and rstd.",
    .infer = add_layernorm_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(add_layernorm_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&add_layernorm_cuda)},
    .oracle = add_layernorm_oracle,
    .vjp = add_layernorm_vjp,
    .saves_in = 1 << 2,
    .saves_out = 1 << 0 | 1 << 2 | 1 << 3,
    .optional = 1 << 2 | 1 << 3,
    .flops = add_layernorm_flops,
    .attrs = tp_norm_attrs,
    .attr_bytes = sizeof(tp_norm_attr),
    .samples = add_layernorm_samples,
};
const tp_op op_layernorm_backward = {
    .name = "layernorm_backward",
    .synopsis = "dx = rstd*(dn-mean(dn)-n*mean(dn*n))",
    .doc = "Gradients of layernorm: dx, and dw and db where asked for, in one pass over memory. "
           "dsum, the gradient of add_layernorm's sum, is added to dx.",
    .infer = backward_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(layernorm_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&layernorm_backward_cuda)},
    .oracle = backward_oracle,
    .no_vjp = "second-order gradients of the fused norm are not offered; write the norm with mean, "
              "sub, mul and div to get them",
    .optional = 1 << 0 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 7,
    .flops = backward_flops,
    .attrs = tp_norm_backward_attrs,
    .attr_bytes = sizeof(tp_norm_backward_attr),
    .samples = backward_samples,
};
