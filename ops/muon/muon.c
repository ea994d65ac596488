/* momentum_ and newton_schulz, for Muon.
 *
 * With x = U S V^T, an odd polynomial in x acts on the singular values alone:
 *   (a I + b x x^T + c (x x^T)^2) x = U (a S + b S^3 + c S^5) V^T.
 * Divided by the Frobenius norm all s are in [0,1]; five steps of the quintic drive them near 1, so
 * x becomes about U V^T, the nearest orthogonal matrix, with matrix products alone. */
#include "ops/muon/newton_schulz.h"
#include <math.h>
#include <string.h>

extern const tp_op op_momentum_, op_newton_schulz;
TP_CPU_DECLARE(momentum_cpu);
TP_CPU_DECLARE(newton_schulz_cpu);
TP_CUDA_DECLARE(momentum_cuda);
TP_CUDA_DECLARE(newton_schulz_cuda);

/* ---- momentum_ ------------------------------------------------------------------------------ */
static tp_status momentum_infer(tp_call *k) {
    const tp_momentum_opts *o = k->attr;
    tp_status st = tp_need_float(k, 0, "b");
    if (!st) st = tp_need_same(k, 0, 1, "b and grad");
    if (st) return st;
    if (!(o->momentum >= 0 && o->momentum < 1) || !isfinite(o->grad_scale))
        return tp_refuse(k, TP_EARG,
                         "momentum must be in [0,1) and grad_scale finite, got %g and %g",
                         o->momentum, o->grad_scale);
    return tp_out_like(k, k->in[0]);
}

static tp_status momentum_oracle(const tp_call *k) {
    const tp_momentum_opts *o = k->attr;
    double *b = tp_f64(k->in[0]), scale = o->grad_scale == 0 ? 1 : o->grad_scale;
    for (int64_t i = 0, n = tp_numel(k->in[0]); i < n; i++) {
        double g = k->in[1] ? scale * tp_f64(k->in[1])[i] : 0;
        b[i] = o->momentum * b[i] + g;
        tp_f64(k->out[0])[i] = o->nesterov ? g + o->momentum * b[i] : b[i];
    }
    return TP_OK;
}

tp_tensor *tp_momentum_(tp_ctx *c, tp_tensor *b, tp_tensor *grad, const tp_momentum_opts *opts) {
    return tp_op1(c, &op_momentum_, opts, b, grad);
}

/* ---- newton_schulz -------------------------------------------------------------------------- */
static tp_status newton_schulz_infer(tp_call *k) {
    const tp_newton_schulz_opts *o = k->attr;
    tp_status st = tp_need_float(k, 0, "x");
    if (!st) st = tp_need_ndim(k, 0, "x", 2, 2);
    if (st) return st;
    if (o->steps < 0 || o->steps > 100)
        return tp_refuse(k, TP_EARG, "steps must be 0 to 100, got %lld", (long long)o->steps);
    if (o->dim != 0 && o->dim != 1)
        return tp_refuse(k, TP_EARG, "dim must be 0 or 1, got %lld", (long long)o->dim);
    if (o->blocks < 0 || (o->blocks > 0 && k->in[0]->shape[o->dim] % o->blocks))
        return tp_refuse(k, TP_ESHAPE, "%lld blocks do not divide dimension %lld of %s",
                         (long long)o->blocks, (long long)o->dim, tp_shape_str(k->ctx, k->in[0]));
    return tp_out_like(k, k->in[0]);
}

/* y = a I + b g + c g^2, all (n,n) */
static void exact_poly(const double *g, double *y, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t l = 0; l < n; l++) sum += g[i * n + l] * g[l * n + j];
            y[i * n + j] = (i == j ? NS_A : 0) + NS_B * g[i * n + j] + NS_C * sum;
        }
}

/* One block, x (rows,cols) with row step ld, in place. room: 2 rows*rows + rows values. */
static void exact_block(double *x, const ns_shape *s, double *room) {
    int64_t R = s->rows, C = s->cols;
    double *gram = room, *poly = gram + R * R, *column = poly + R * R, norm = 0;
    for (int64_t i = 0; i < R; i++)
        for (int64_t j = 0; j < C; j++) norm += x[i * s->ld + j] * x[i * s->ld + j];
    norm = sqrt(norm) + NS_EPSILON;
    for (int64_t i = 0; i < R; i++)
        for (int64_t j = 0; j < C; j++) x[i * s->ld + j] /= norm;
    for (int step = 0; step < s->steps; step++) {
        for (int64_t i = 0; i < R * R; i++) {
            gram[i] = 0;
            for (int64_t j = 0; j < C; j++) gram[i] += x[i / R * s->ld + j] * x[i % R * s->ld + j];
        }
        exact_poly(gram, poly, R);
        for (int64_t j = 0; j < C; j++) {
            for (int64_t i = 0; i < R; i++) column[i] = x[i * s->ld + j];
            for (int64_t i = 0; i < R; i++) {
                double sum = 0;
                for (int64_t l = 0; l < R; l++) sum += poly[i * R + l] * column[l];
                x[i * s->ld + j] = sum;
            }
        }
    }
}

static tp_status newton_schulz_oracle(const tp_call *k) {
    ns_shape s = ns_shape_of(k);
    size_t n = (size_t)s.rows;
    if (tp_numel(k->in[0]) == 0) return TP_OK;
    double *room = tp_malloc(k->ctx, (2 * n * n + n) * sizeof *room);
    if (!room) return TP_ENOMEM;
    memcpy(k->out[0]->data, k->in[0]->data, (size_t)tp_numel(k->in[0]) * sizeof(double));
    for (int64_t i = 0; i < s.blocks; i++) exact_block(tp_f64(k->out[0]) + i * s.step, &s, room);
    tp_free(room);
    return TP_OK;
}

tp_tensor *tp_newton_schulz(tp_ctx *c, tp_tensor *x, const tp_newton_schulz_opts *opts) {
    return tp_op1(c, &op_newton_schulz, opts, x);
}

/* ---- rows ----------------------------------------------------------------------------------- */
static double momentum_flops(const tp_call *k) { return 5.0 * (double)tp_numel(k->in[0]); }
static double newton_schulz_flops(const tp_call *k) {
    ns_shape s = ns_shape_of(k);
    double n = (double)s.small, m = (double)s.large;
    return (double)(s.blocks * s.steps) * (4 * n * n * m + 2 * n * n * n);
}

#define MOMENTUM(f, type)                                                                          \
    { #f, TP_ATTR_##type, offsetof(tp_momentum_opts, f) }
#define SCHULZ(f)                                                                                  \
    { #f, TP_ATTR_I64, offsetof(tp_newton_schulz_opts, f) }
static const tp_attr momentum_attrs[] = {
    MOMENTUM(momentum, FLOAT), MOMENTUM(grad_scale, FLOAT), MOMENTUM(nesterov, BOOL), {0}};
static const tp_attr newton_schulz_attrs[] = {SCHULZ(steps), SCHULZ(blocks), SCHULZ(dim), {0}};
/* clang-format off */
#define DIMS(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / 8), {__VA_ARGS__}
#define N(...) {TP_GEN_NORMAL, DIMS(__VA_ARGS__)}
static const tp_sample momentum_samples[] = {
    {"nesterov", {N(17, 33), N(17, 33)},
     &(const tp_momentum_opts){.momentum = 0.95, .nesterov = true}},
    {"heavy ball", {N(130), N(130)}, &(const tp_momentum_opts){.momentum = 0.9, .grad_scale = 0.3}},
    {"no gradient", {N(5)}, &(const tp_momentum_opts){.momentum = 0.9, .nesterov = true}},
    {"several chunks", {N(70000), N(70000)}, &(const tp_momentum_opts){.momentum = 0.9}},
    {"empty", {N(0, 2), N(0, 2)}, &(const tp_momentum_opts){.momentum = 0.9}},
    {"shapes", {N(4), N(5)}, &(const tp_momentum_opts){.momentum = 0.9},
     .refuse = "b and grad must have the same"},
    {"bad momentum", {N(4), N(4)}, &(const tp_momentum_opts){.momentum = -1},
     .refuse = "momentum must be in [0,1)"},
    {0},
};
static const tp_sample newton_schulz_samples[] = {
    {"wide", {N(9, 33)}},
    {"tall", {N(65, 17)}},
    {"square", {N(20, 20)}},
    {"one row", {N(1, 7)}},
    {"one column", {N(7, 1)}},
    {"one value", {N(1, 1)}},
    {"even steps", {N(6, 10)}, &(const tp_newton_schulz_opts){.steps = 4}},
    {"three blocks of columns", {N(8, 33)}, &(const tp_newton_schulz_opts){.blocks = 3, .dim = 1}},
    {"three blocks of rows", {N(33, 8)}, &(const tp_newton_schulz_opts){.blocks = 3}},
    {"tall blocks, even steps", {N(40, 6)},
     &(const tp_newton_schulz_opts){.blocks = 2, .dim = 1, .steps = 2}},
    {"zero", {{TP_GEN_UNIFORM, 2, {4, 6}, 0, 0}}},
    {"empty", {N(0, 6)}},
    {"vector", {N(6)}, .refuse = "x must have 2 dimensions"},
    {"blocks", {N(6, 7)}, &(const tp_newton_schulz_opts){.blocks = 3, .dim = 1},
     .refuse = "3 blocks do not divide dimension 1"},
    {"dim", {N(6, 7)}, &(const tp_newton_schulz_opts){.dim = 2}, .refuse = "dim must be 0 or 1"},
    {"steps", {N(6, 7)}, &(const tp_newton_schulz_opts){.steps = -1},
     .refuse = "steps must be 0 to 100"},
    {0},
};
/* clang-format on */

const tp_op op_momentum_ = {
    .name = "momentum_",
    .synopsis = "b = mu*b+g; u = g+mu*b",
    .doc = "Takes a gradient into the momentum buffer in place and returns the direction, "
           "Nesterov's or "
           "the buffer itself.",
    .infer = momentum_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(momentum_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&momentum_cuda)},
    .oracle = momentum_oracle,
    .no_vjp = "an update, not a function",
    .optional = 2,
    .inplace = 1,
    .flops = momentum_flops,
    .attrs = momentum_attrs,
    .attr_bytes = sizeof(tp_momentum_opts),
    .samples = momentum_samples,
};
const tp_op op_newton_schulz = {
    .name = "newton_schulz",
    .synopsis = "y ~ U V^T of x = U S V^T",
    .doc =
        "Five steps of a quintic Newton-Schulz iteration drive all singular values of x near 1. A "
        "fused matrix (q, k, v in one) is treated block by block.",
    .infer = newton_schulz_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(newton_schulz_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&newton_schulz_cuda)},
    .oracle = newton_schulz_oracle,
    .no_vjp = "an optimiser's step; compose it from matmul where a gradient is wanted",
    .flops = newton_schulz_flops,
    .attrs = newton_schulz_attrs,
    .attr_bytes = sizeof(tp_newton_schulz_opts),
    .samples = newton_schulz_samples,
    .tol =
        1e-4, /* the slope at 0 is 3.4445^5 = 485: rounding in small singular values grows by it */
};
