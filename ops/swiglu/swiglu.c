/* swiglu, with f = silu (see silu.c):
 *
 *   y = f(g) u   so   dg = dy u f'(g),  du = dy f(g).
 *
 * swiglu_backward maps (g, u, dy) to (dg, du). With cotangents a of dg and b of du, its own vjp is
 *   to g:  a dy u f''(g) + b dy f'(g)
 *   to u:  a dy f'(g)
 *   to dy: a u f'(g) + b f(g). */
#include "ops/swiglu/swiglu.h"
#include "ops/add/add.h"
#include "ops/elementwise.h"
#include "ops/mul/mul.h"
#include "ops/silu/silu.h"
#include <math.h>

extern const tp_op op_swiglu, op_swiglu_backward;
TP_CPU_DECLARE(swiglu_cpu);
TP_CPU_DECLARE(swiglu_backward_cpu);
TP_CUDA_DECLARE(swiglu_cuda);
TP_CUDA_DECLARE(swiglu_backward_cuda);

tp_tensor *tp_swiglu(tp_ctx *c, tp_tensor *gate, tp_tensor *up) {
    return tp_op1(c, &op_swiglu, NULL, gate, up);
}

tp_status tp_swiglu_backward(tp_ctx *c, tp_tensor *gate, tp_tensor *up, tp_tensor *dy,
                             tp_tensor *d[2]) {
    d[0] = d[1] = NULL;
    return tp_op_run(c, &op_swiglu_backward, NULL, 3, (tp_tensor *[]){gate, up, dy}, d);
}

static double swiglu_f64(double g, double u) { return u * g / (1 + exp(-g)); }
static tp_status swiglu_oracle(const tp_call *k) { return tp_oracle_binary(k, swiglu_f64); }

static tp_status swiglu_backward_oracle(const tp_call *k) {
    const double *gate = tp_f64(k->in[0]), *up = tp_f64(k->in[1]), *dy = tp_f64(k->in[2]);
    for (int64_t i = 0, n = tp_numel(k->out[0]); i < n; i++) {
        double s = 1 / (1 + exp(-gate[i]));
        tp_f64(k->out[0])[i] = dy[i] * up[i] * s * (1 + gate[i] * (1 - s));
        tp_f64(k->out[1])[i] = dy[i] * gate[i] * s;
    }
    return TP_OK;
}

static tp_status swiglu_backward_infer(tp_call *k) {
    tp_status st;
    if ((st = tp_need_float(k, 0, "gate")) || (st = tp_need_same(k, 0, 1, "gate and up")) ||
        (st = tp_need_same(k, 0, 2, "gate and dy")) || (st = tp_out_like(k, k->in[0])))
        return st;
    return tp_out_like(k, k->in[0]);
}

static void swiglu_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_tensor *d[2];
    if (tp_swiglu_backward(k->ctx, k->in[0], k->in[1], dout[0], d)) return;
    for (int i = 0; i < 2; i++)
        if (tp_wants(k, i)) din[i] = d[i];
}

static tp_tensor *sum_of(tp_ctx *c, tp_tensor *a, tp_tensor *b) {
    return a && b ? tp_add(c, a, b) : a ? a : b;
}

static void swiglu_backward_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_ctx *c = k->ctx;
    tp_tensor *g = k->in[0], *u = k->in[1], *dy = k->in[2], *a = dout[0], *b = dout[1];
    tp_tensor *a_dy = a ? tp_mul(c, a, dy) : NULL;
    if (tp_wants(k, 0))
        din[0] = sum_of(c, a ? tp_silu_second(c, g, tp_mul(c, a_dy, u)) : NULL,
                        b ? tp_silu_backward(c, g, tp_mul(c, b, dy)) : NULL);
    if (tp_wants(k, 1) && a) din[1] = tp_silu_backward(c, g, a_dy);
    if (tp_wants(k, 2))
        din[2] = sum_of(c, a ? tp_silu_backward(c, g, tp_mul(c, a, u)) : NULL,
                        b ? tp_mul(c, b, tp_silu(c, g)) : NULL);
}

static double swiglu_backward_flops(const tp_call *k) { return 26.0 * (double)tp_numel(k->out[0]); }

/* clang-format off */
static const tp_sample swiglu_samples[] = {
    {"matrix", {{TP_GEN_NORMAL, 2, {17, 33}}, {TP_GEN_NORMAL, 2, {17, 33}}}},
    {"wide range", {{TP_GEN_UNIFORM, 3, {2, 5, 13}, -12, 12}, {TP_GEN_NORMAL, 3, {2, 5, 13}}}},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}, {TP_GEN_NORMAL, 0, {0}}}},
    {"empty", {{TP_GEN_NORMAL, 2, {0, 4}}, {TP_GEN_NORMAL, 2, {0, 4}}}},
    {"shapes", {{TP_GEN_NORMAL, 1, {4}}, {TP_GEN_NORMAL, 1, {5}}}, .refuse = "same shape"},
    {0},
};
static const tp_sample swiglu_backward_samples[] = {
    {"matrix", {{TP_GEN_NORMAL, 2, {5, 33}}, {TP_GEN_NORMAL, 2, {5, 33}}, {TP_GEN_NORMAL, 2, {5, 33}}}},
    {"empty", {{TP_GEN_NORMAL, 1, {0}}, {TP_GEN_NORMAL, 1, {0}}, {TP_GEN_NORMAL, 1, {0}}}},
    {"shapes", {{TP_GEN_NORMAL, 1, {4}}, {TP_GEN_NORMAL, 1, {4}}, {TP_GEN_NORMAL, 1, {5}}}, .refuse = "gate and dy must have the same shape"},
    {0},
};
/* clang-format on */

const tp_op op_swiglu = {
    .name = "swiglu",
    .synopsis = "y = silu(gate)*up",
    .doc = "The gated linear unit with silu: half of a Llama feed-forward layer.",
    .infer = tp_infer_binary,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(swiglu_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&swiglu_cuda)},
    .oracle = swiglu_oracle,
    .vjp = swiglu_vjp,
    .saves_in = 3,
    .flops = tp_flops_20,
    .samples = swiglu_samples,
};
const tp_op op_swiglu_backward = {
    .name = "swiglu_backward",
    .synopsis = "dgate = dy*up*silu'(gate), dup = dy*silu(gate)",
    .doc = "Both gradients of swiglu in one pass over memory.",
    .infer = swiglu_backward_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(swiglu_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&swiglu_backward_cuda)},
    .oracle = swiglu_backward_oracle,
    .vjp = swiglu_backward_vjp,
    .saves_in = 7,
    .flops = swiglu_backward_flops,
    .samples = swiglu_backward_samples,
};
