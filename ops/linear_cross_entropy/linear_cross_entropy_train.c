/* linear_cross_entropy_train: L = sum_i coef_i loss_i together with dL/dx and dL/dw. The tokens'
 * weights are known before the pass, so the coefficients of linear_cross_entropy.c are
 *   a = coef (1 + 2 z lse),   b = 0,   d = -coef
 * as soon as a row's lse is, and its logits need not be computed again. Backward is a scaling:
 *   L' = f(L)   so   dx = (dL/dx) f',  dw = (dL/dw) f'. */
#include "ops/linear_cross_entropy/lce.h"
#include "ops/cast/cast.h"
#include "ops/mul/mul.h"
#include <string.h>

extern const tp_op op_linear_cross_entropy_train;
TP_CPU_DECLARE(lce_train_cpu);
TP_CUDA_DECLARE(lce_train_cuda);

static tp_status train_infer(tp_call *k) {
    tp_status st = lce_infer_common(k);
    if (!st) st = tp_need_float(k, LCE_TRAIN_COEF, "coef");
    if (st) return st;
    const tp_tensor *x = k->in[LCE_X], *y = k->in[LCE_TARGETS], *coef = k->in[LCE_TRAIN_COEF];
    if (coef && !tp_same_shape(coef, y))
        return tp_refuse(k, TP_ESHAPE, "coef must have the shape of targets, got %s and %s",
                         tp_shape_str(k->ctx, coef), tp_shape_str(k->ctx, y));
    tp_dtype stats = tp_sum_dtype(x->dtype);
    int64_t none = 0;
    if ((st = tp_out(k, stats, 0, NULL))) return st;
    for (int i = 0; i < 2 && !st; i++) st = tp_out(k, stats, y->ndim, y->shape);
    if (!st) st = tp_out_like(k, x);
    if (!st && ((const lce_attr *)k->attr)->no_dw) return tp_out(k, stats, 1, &none);
    return st ? st : tp_out(k, stats, k->in[LCE_W]->ndim, k->in[LCE_W]->shape);
}

/* lesson: gradient too */
static tp_status train_oracle(const tp_call *k) {
    lce_dims d = lce_dims_of(k);
    const tp_tensor *coef = k->in[LCE_TRAIN_COEF];
    tp_status st = lce_check_targets(k);
    if (st) return st;
    double *s = tp_malloc(k->ctx, (size_t)d.v * sizeof *s), sum = 0;
    if (!s) return TP_ENOMEM;
    bool no_dw = ((const lce_attr *)k->attr)->no_dw;
    double *dx = tp_f64(k->out[LCE_SUM_DX]), *dw = no_dw ? NULL : tp_f64(k->out[LCE_SUM_DW]);
    if (dx) memset(dx, 0, (size_t)tp_numel(k->out[LCE_SUM_DX]) * sizeof(double));
    if (dw) memset(dw, 0, (size_t)tp_numel(k->out[LCE_SUM_DW]) * sizeof(double));
    for (int64_t i = 0; i < d.n; i++) {
        int64_t target = tp_i32(k->in[LCE_TARGETS])[i];
        lce_exact e = {0};
        double weight = target == d.ignore ? 0 : coef ? tp_f64(coef)[i] : 1, logprob = 0;
        if (target != d.ignore) {
            lce_exact_logits(k, &d, i, s);
            e = lce_exact_stats(&d, s, target);
            logprob = e.target - e.lse;
            lce_coef q = lce_coef_of(e.lse, e.entropy, d.z_loss, weight, 0, 0, 0);
            lce_exact_backward(k, &d, i, s, e.lse, q, dx, dw);
        }
        sum += weight * (d.z_loss * e.lse * e.lse - logprob);
        tp_f64(k->out[LCE_SUM_LOGPROB])[i] = logprob;
        tp_f64(k->out[LCE_SUM_ENTROPY])[i] = e.entropy;
    }
    tp_f64(k->out[LCE_SUM])[0] = sum;
    tp_free(s);
    return TP_OK;
}
/* end */

tp_lce_sum tp_linear_cross_entropy_train(tp_ctx *c, tp_tensor *x, tp_tensor *w, tp_tensor *targets,
                                         tp_tensor *coef, const tp_lce_opts *opts) {
    lce_attr at = {0};
    if (opts) at.o = *opts;
    at.no_dw = w && !w->requires_grad;
    tp_tensor *out[TP_MAXOUT] = {0}, *in[] = {x, w, targets, coef};
    if (tp_op_run(c, &op_linear_cross_entropy_train, &at, 4, in, out)) return (tp_lce_sum){0};
    return (tp_lce_sum){out[LCE_SUM], out[LCE_SUM_LOGPROB], out[LCE_SUM_ENTROPY]};
}

/* Walked for the last time, the saved gradients are scaled where they lie: at the root of a
 * backward pass by 1, which costs nothing. bf16 gradients are scaled by a factor rounded to bf16;
 * what should not be rounded belongs into coef. */
static tp_tensor *scaled(const tp_call *k, tp_tensor *g, tp_tensor *by) {
    by = tp_cast(k->ctx, by, g->dtype);
    if (!k->last) return tp_mul(k->ctx, g, by);
    return tp_mul_(k->ctx, g, by) ? NULL : g;
}

static void train_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    for (int i = LCE_SUM_LOGPROB; i <= LCE_SUM_DW; i++)
        if (dout[i]) {
            tp_refuse(k, TP_EARG,
                      "only the summed loss has a gradient; linear_cross_entropy has "
                      "them for the tokens' loss, logprob and entropy");
            return;
        }
    if (tp_wants(k, LCE_TRAIN_COEF)) {
        tp_refuse(k, TP_EARG, "coef is a constant; linear_cross_entropy gives every token's loss");
        return;
    }
    if (!dout[LCE_SUM]) return;
    if (tp_wants(k, LCE_X)) din[LCE_X] = scaled(k, k->out[LCE_SUM_DX], dout[LCE_SUM]);
    if (tp_wants(k, LCE_W)) din[LCE_W] = scaled(k, k->out[LCE_SUM_DW], dout[LCE_SUM]);
}

static double train_flops(const tp_call *k) {
    lce_dims d = lce_dims_of(k);
    double products = ((const lce_attr *)k->attr)->no_dw ? 4.0 : 6.0;
    return (double)d.n * (double)d.v * (products * (double)d.c + 35.0);
}

static const int32_t some_ignored[6] = {0, -100, 4, -100, 2, 1}, outside[2] = {1, 5};
/* clang-format off */
#define DIMS(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / 8), {__VA_ARGS__}
#define X(...) {TP_GEN_NORMAL, DIMS(__VA_ARGS__)}
#define Y(v, ...) {TP_GEN_INT, DIMS(__VA_ARGS__), 0, v}
#define NO_DIMS_Y(v) {TP_GEN_INT, .hi = v}
#define GIVEN(y, ...) {TP_GEN_DATA, DIMS(__VA_ARGS__), .data = y}
#define OPTS(...) &(const lce_attr){.o = {__VA_ARGS__}}
/* no_grad: dx and dw are outputs without gradients of their own, which differences would see.
 * tests/lce_test.c compares this op's gradients with linear_cross_entropy's instead. */
static const tp_sample train_samples[] = {
    {"batch", {X(2, 3, 4), X(7, 4), Y(7, 2, 3), X(2, 3)}, .no_grad = true},
    {"no weights", {X(2, 3, 4), X(7, 4), Y(7, 2, 3)}, .no_grad = true},
    {"one token", {X(3), X(2, 3), NO_DIMS_Y(2)}, .no_grad = true},
    {"some ignored", {X(2, 3, 4), X(5, 4), GIVEN(some_ignored, 2, 3), X(2, 3)}, .no_grad = true},
    {"all options", {X(3, 2, 4), X(4, 6), Y(6, 3, 2), X(3, 2)},
     OPTS(.softcap = 2, .z_loss = 0.2, .temperature = 1.3, .chunk = 1, .trans_w = true),
     .no_grad = true},
    {"five samples in chunks of two", {X(5, 3, 2), X(33, 2), Y(33, 5, 3)}, OPTS(.chunk = 7),
     .no_grad = true},
    {"long samples in parts", {X(3, 7, 3), X(5, 3), Y(5, 3, 7)}, OPTS(.chunk = 3), .no_grad = true},
    {"blocks", {X(17, 65), X(1100, 65), Y(1100, 17)}, .no_grad = true},
    {"dx only", {X(17, 65), X(1100, 65), Y(1100, 17), X(17)}, &(const lce_attr){.no_dw = true},
     .no_grad = true},
    {"no tokens", {X(2, 0, 4), X(5, 4), Y(5, 2, 0)}, .no_grad = true},
    {"no channels", {X(2, 0), X(5, 0), Y(5, 2)}, .no_grad = true},
    {"target outside", {X(2, 3), X(5, 3), GIVEN(outside, 2)},
     .refuse = "target 5 at position 1 is neither in 0..4"},
    {"wrong coef", {X(2, 3), X(5, 3), Y(5, 2), X(3)}, .refuse = "coef must have the shape"},
    {0},
};
/* clang-format on */

const tp_op op_linear_cross_entropy_train = {
    .name = "linear_cross_entropy_train",
    .synopsis = "L = sum coef*loss, with dL/dx and dL/dw from the same logits",
    .doc =
        "linear_cross_entropy for training: the weights of the tokens are known beforehand, so one "
        "pass over whole rows of logits gives loss and gradients with three matrix products "
        "instead of four. The gradients have the bits of linear_cross_entropy's. Costs the memory "
        "of dx and dw until backward reaches the op; dw comes out empty where w has no gradient.",
    .infer = train_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(lce_train_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&lce_train_cuda)},
    .oracle = train_oracle,
    .vjp = train_vjp,
    .saves_out = 1u << LCE_SUM_DX | 1u << LCE_SUM_DW,
    .optional = 1u << LCE_TRAIN_COEF,
    .flops = train_flops,
    .attrs = lce_attrs,
    .attr_bytes = sizeof(lce_attr),
    .samples = train_samples,
};
