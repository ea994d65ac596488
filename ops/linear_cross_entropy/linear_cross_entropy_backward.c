/* linear_cross_entropy_backward: from a, b, d per token (linear_cross_entropy.c derives them)
 *   draw_v = (p_v (a + b s_v) + d [v = target]) ds/draw,   dx = draw w,   dw = draw^T x.
 * dw is summed per sample in the order of t and over samples in a fixed binary tree (lce_tree.h).
 */
#include "ops/linear_cross_entropy/lce.h"
#include <string.h>

extern const tp_op op_linear_cross_entropy_backward;
TP_CPU_DECLARE(lce_backward_cpu);
TP_CUDA_DECLARE(lce_backward_cuda);

static tp_status backward_infer(tp_call *k) {
    static const char *const names[] = {"lse", "a", "b", "d"};
    const lce_attr *at = k->attr;
    const tp_tensor *y = k->in[LCE_TARGETS];
    tp_status st = lce_infer_common(k);
    for (int i = LCE_BACK_LSE; i <= LCE_BACK_D && !st; i++) {
        if ((st = tp_need_float(k, i, names[i - LCE_BACK_LSE]))) return st;
        if (!tp_same_shape(k->in[i], y))
            return tp_refuse(k, TP_ESHAPE, "%s must have the shape of targets, got %s and %s",
                             names[i - LCE_BACK_LSE], tp_shape_str(k->ctx, k->in[i]),
                             tp_shape_str(k->ctx, y));
    }
    if (st) return st;
    const tp_tensor *w = k->in[LCE_W];
    tp_dtype dw = tp_sum_dtype(w->dtype);
    int64_t none = 0;
    st = at->no_dx ? tp_out(k, k->in[LCE_X]->dtype, 1, &none) : tp_out_like(k, k->in[LCE_X]);
    if (st) return st;
    return at->no_dw ? tp_out(k, dw, 1, &none) : tp_out(k, dw, w->ndim, w->shape);
}

static tp_status backward_oracle(const tp_call *k) {
    lce_dims d = lce_dims_of(k);
    tp_status st = lce_check_targets(k);
    if (st) return st;
    const lce_attr *at = k->attr;
    double *s = tp_malloc(k->ctx, (size_t)d.v * sizeof *s), *out[2];
    if (!s) return TP_ENOMEM;
    for (int j = 0; j < 2; j++) {
        out[j] = (j ? at->no_dw : at->no_dx) ? NULL : tp_f64(k->out[j]);
        if (out[j]) memset(out[j], 0, (size_t)tp_numel(k->out[j]) * sizeof(double));
    }
    for (int64_t i = 0; i < d.n; i++) {
        if (tp_i32(k->in[LCE_TARGETS])[i] == d.ignore) continue;
        lce_coef q = {tp_f64(k->in[LCE_BACK_A])[i], tp_f64(k->in[LCE_BACK_B])[i],
                      tp_f64(k->in[LCE_BACK_D])[i]};
        lce_exact_logits(k, &d, i, s);
        lce_exact_backward(k, &d, i, s, tp_f64(k->in[LCE_BACK_LSE])[i], q, out[0], out[1]);
    }
    tp_free(s);
    return TP_OK;
}

static double backward_flops(const tp_call *k) {
    const lce_attr *at = k->attr;
    lce_dims d = lce_dims_of(k);
    double products = (at->no_dx ? 0.0 : 2.0) + (at->no_dw ? 0.0 : 2.0);
    return (double)d.n * (double)d.v * (products * (double)d.c + 20.0);
}

static const int32_t some_ignored[6] = {0, -100, 4, -100, 2, 1}, outside[2] = {1, 5};
/* clang-format off */
#define DIMS(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / 8), {__VA_ARGS__}
#define X(...) {TP_GEN_NORMAL, DIMS(__VA_ARGS__)}
#define LSE(...) {TP_GEN_NORMAL, DIMS(__VA_ARGS__), 3, 0.5}
#define Y(v, ...) {TP_GEN_INT, DIMS(__VA_ARGS__), 0, v}
#define NO_DIMS_Y(v) {TP_GEN_INT, .hi = v}
#define NO_DIMS(mean) {TP_GEN_NORMAL, .lo = mean, .hi = 1}
#define GIVEN(y, ...) {TP_GEN_DATA, DIMS(__VA_ARGS__), .data = y}
#define FOUR(...) LSE(__VA_ARGS__), X(__VA_ARGS__), X(__VA_ARGS__), X(__VA_ARGS__)
#define OPTS(...) &(const lce_attr){.o = {__VA_ARGS__}}

static const tp_sample backward_samples[] = {
    {"batch", {X(2, 3, 4), X(7, 4), Y(7, 2, 3), FOUR(2, 3)}},
    {"one token", {X(3), X(2, 3), NO_DIMS_Y(2), NO_DIMS(3), NO_DIMS(0), NO_DIMS(0), NO_DIMS(0)}},
    {"some ignored", {X(2, 3, 4), X(5, 4), GIVEN(some_ignored, 2, 3), FOUR(2, 3)}},
    {"w as (C,V)", {X(3, 2, 5), X(5, 9), Y(9, 3, 2), FOUR(3, 2)}, OPTS(.trans_w = true)},
    {"softcap and temperature", {X(3, 4), X(6, 4), Y(6, 3), FOUR(3)},
     OPTS(.softcap = 1.5, .temperature = 0.8)},
    {"five samples in chunks of two", {X(5, 3, 2), X(33, 2), Y(33, 5, 3), FOUR(5, 3)},
     OPTS(.chunk = 7)},
    {"long samples in parts", {X(3, 7, 3), X(5, 3), Y(5, 3, 7), FOUR(3, 7)}, OPTS(.chunk = 3)},
    {"the same, (C,V)", {X(3, 7, 3), X(3, 5), Y(5, 3, 7), FOUR(3, 7)},
     OPTS(.chunk = 3, .trans_w = true)},
    {"two tiles", {X(17, 65), X(2100, 65), Y(2100, 17), FOUR(17)}},
    {"dw only", {X(3, 4), X(6, 4), Y(6, 3), FOUR(3)}, &(const lce_attr){.no_dx = true}},
    {"dx only", {X(3, 4), X(6, 4), Y(6, 3), FOUR(3)}, &(const lce_attr){.no_dw = true}},
    {"no tokens", {X(2, 0, 4), X(5, 4), Y(5, 2, 0), FOUR(2, 0)}},
    {"no channels", {X(2, 0), X(5, 0), Y(5, 2), FOUR(2)}},
    {"target outside", {X(2, 3), X(5, 3), GIVEN(outside, 2), FOUR(2)},
     .refuse = "target 5 at position 1 is neither in 0..4"},
    {"wrong a", {X(2, 3), X(5, 3), Y(5, 2), X(2), X(3), X(2), X(2)},
     .refuse = "a must have the shape of targets"},
    {0},
};
/* clang-format on */

const tp_op op_linear_cross_entropy_backward = {
    .name = "linear_cross_entropy_backward",
    .synopsis = "dx, dw from draw_v = (p_v (a + b s_v) + d [v = target]) ds/draw",
    .doc = "Recomputes the logits block by block from x and w and gives the gradients of both. A "
           "gradient that nobody reads is not computed and comes out empty.",
    .infer = backward_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(lce_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&lce_backward_cuda)},
    .oracle = backward_oracle,
    .no_vjp = "second-order gradients through the head are not offered; build the loss from matmul "
              "and log_softmax where they are wanted",
    .flops = backward_flops,
    .attrs = lce_attrs,
    .attr_bytes = sizeof(lce_attr),
    .samples = backward_samples,
};
