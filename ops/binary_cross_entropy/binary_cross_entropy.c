/* binary_cross_entropy. With softplus(x) = log(1 + e^x), whose derivative is p = 1/(1+e^-x):
 *
 *   label 1: -log p     = softplus(-x)   so   dx = dy (p - 1)
 *   label 0: -log (1-p) = softplus(x)    so   dx = dy p
 * binary_cross_entropy_backward, a function of (x, dy), has the derivatives dy p (1-p) and
 * p - label. */
#include "ops/binary_cross_entropy/binary_cross_entropy.h"
#include "ops/elementwise.h"
#include "ops/mul/mul.h"
#include "ops/sigmoid/sigmoid.h"
#include <math.h>

extern const tp_op op_binary_cross_entropy, op_binary_cross_entropy_backward;
TP_CPU_DECLARE(bce_cpu);
TP_CPU_DECLARE(bce_backward_cpu);
TP_CUDA_DECLARE(bce_cuda);
TP_CUDA_DECLARE(bce_backward_cuda);

tp_tensor *tp_binary_cross_entropy(tp_ctx *c, tp_tensor *labels, tp_tensor *x) {
    return tp_op1(c, &op_binary_cross_entropy, NULL, labels, x);
}

static tp_status bce_infer(tp_call *k) {
    tp_status st;
    if ((st = tp_need_int(k, 0, "labels")) || (st = tp_need_float(k, 1, "x"))) return st;
    if (!tp_same_shape(k->in[0], k->in[1]))
        return tp_refuse(k, TP_ESHAPE, "labels must have the shape of x %s, got %s",
                         tp_shape_str(k->ctx, k->in[1]), tp_shape_str(k->ctx, k->in[0]));
    if (k->nin > 2 && (st = tp_need_same(k, 1, 2, "x and dy"))) return st;
    return tp_out_like(k, k->in[1]);
}

static tp_status bce_oracle(const tp_call *k) {
    for (int64_t i = 0, n = tp_numel(k->out[0]); i < n; i++) {
        double x = tp_f64(k->in[1])[i], s = tp_i32(k->in[0])[i] ? -x : x;
        tp_f64(k->out[0])[i] = fmax(s, 0) + log1p(exp(-fabs(s)));
    }
    return TP_OK;
}

static tp_status bce_backward_oracle(const tp_call *k) {
    for (int64_t i = 0, n = tp_numel(k->out[0]); i < n; i++) {
        double p = 1 / (1 + exp(-tp_f64(k->in[1])[i]));
        tp_f64(k->out[0])[i] = tp_f64(k->in[2])[i] * (p - (tp_i32(k->in[0])[i] != 0));
    }
    return TP_OK;
}

static void bce_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[1] = tp_op1(k->ctx, &op_binary_cross_entropy_backward, NULL, k->in[0], k->in[1], dout[0]);
}

static void bce_backward_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_ctx *c = k->ctx;
    tp_tensor *x = k->in[1], *dy = k->in[2];
    if (tp_wants(k, 1)) din[1] = tp_sigmoid_backward(c, tp_sigmoid(c, x), tp_mul(c, dout[0], dy));
    if (tp_wants(k, 2))
        din[2] = tp_op1(c, &op_binary_cross_entropy_backward, NULL, k->in[0], x, dout[0]);
}

#define LABELS(n, ...)                                                                             \
    { TP_GEN_INT, n, {__VA_ARGS__}, 0, 2 }
#define X(n, ...)                                                                                  \
    {                                                                                              \
        TP_GEN_NORMAL, n, { __VA_ARGS__ }                                                          \
    }
static const tp_sample bce_samples[] = {
    {"matrix", {LABELS(2, 17, 33), X(2, 17, 33)}},
    {"wide range", {LABELS(1, 130), {TP_GEN_UNIFORM, 1, {130}, -30, 30}}},
    {"scalar", {LABELS(0, 0), X(0, 0)}},
    {"empty", {LABELS(2, 0, 4), X(2, 0, 4)}},
    {"shapes", {LABELS(1, 4), X(1, 5)}, .refuse = "labels must have the shape"},
    {"float labels", {X(1, 4), X(1, 4)}, .refuse = "labels must be i32"},
    {0},
};
static const tp_sample bce_backward_samples[] = {
    {"matrix", {LABELS(2, 5, 33), X(2, 5, 33), X(2, 5, 33)}},
    {"empty", {LABELS(1, 0), X(1, 0), X(1, 0)}},
    {"shapes", {LABELS(1, 4), X(1, 4), X(1, 5)}, .refuse = "x and dy"},
    {0},
};

const tp_op op_binary_cross_entropy = {
    .name = "binary_cross_entropy",
    .synopsis = "y = label ? -log p : -log(1-p)",
    .doc = "The loss of yes-or-no decisions from their logits x, p = 1/(1+e^-x), elementwise.",
    .infer = bce_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(bce_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&bce_cuda)},
    .oracle = bce_oracle,
    .vjp = bce_vjp,
    .saves_in = 3,
    .flops = tp_flops_20,
    .samples = bce_samples,
};
const tp_op op_binary_cross_entropy_backward = {
    .name = "binary_cross_entropy_backward",
    .synopsis = "dx = dy*(p-label)",
    .doc = "The derivative of binary_cross_entropy times dy.",
    .infer = bce_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(bce_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&bce_backward_cuda)},
    .oracle = bce_backward_oracle,
    .vjp = bce_backward_vjp,
    .saves_in = 7,
    .flops = tp_flops_20,
    .samples = bce_backward_samples,
};
