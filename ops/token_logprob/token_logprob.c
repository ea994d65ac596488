/* token_logprob. With s_v = cap*tanh(logit_v/cap)/temperature for v in the set,
 *   lse = log sum_v e^{s_v},   logprob = s_y - lse,   H = -sum_v p_v log p_v,   p_v = e^{s_v - lse}
 * The derivatives are those of linear_cross_entropy's rows, whose op makes the coefficients a, b, d
 * of  ds_v = p_v (a + b s_v) + d [v = y];  tokens outside the set get 0. */
#include "ops/token_logprob/token_logprob.h"
#include "ops/linear_cross_entropy/lce.h"
#include "ops/token_logprob/token_logprob_row.h"
#include <math.h>

extern const tp_op op_token_logprob, op_token_logprob_backward, op_linear_cross_entropy_rows;
TP_CPU_DECLARE(token_logprob_cpu);
TP_CPU_DECLARE(token_logprob_backward_cpu);
TP_CUDA_DECLARE(token_logprob_cuda);
TP_CUDA_DECLARE(token_logprob_backward_cuda);

/* ---- shapes --------------------------------------------------------------------------------- */
static tp_status check_common(tp_call *k) {
    const tp_tensor *x = k->in[TOKEN_LOGITS], *y = k->in[TOKEN_TARGETS], *set = k->in[TOKEN_SET];
    const token_attr *a = k->attr;
    tp_status st;
    if ((st = tp_need_float(k, TOKEN_LOGITS, "logits")) ||
        (st = tp_need_ndim(k, TOKEN_LOGITS, "logits", 1, TP_MAXDIM)) ||
        (st = tp_need_int(k, TOKEN_TARGETS, "targets")) ||
        (set && (st = tp_need_int(k, TOKEN_SET, "set"))))
        return st;
    int64_t v = tp_dim(x, -1);
    bool fits = y->ndim == x->ndim - 1, sets = !set || set->ndim == x->ndim;
    for (int i = 0; i < y->ndim && fits; i++) fits = y->shape[i] == x->shape[i];
    for (int i = 0; set && sets && i < x->ndim - 1; i++) sets = set->shape[i] == x->shape[i];
    if (!fits)
        return tp_refuse(k, TP_ESHAPE,
                         "targets must have the shape of logits without V, got %s for %s",
                         tp_shape_str(k->ctx, y), tp_shape_str(k->ctx, x));
    if (!sets || (set && tp_dim(set, -1) != (v + 31) / 32))
        return tp_refuse(k, TP_ESHAPE, "set must be (…,ceil(V/32)) of logits %s, got %s",
                         tp_shape_str(k->ctx, x), tp_shape_str(k->ctx, set));
    if (v < 1) return tp_refuse(k, TP_ESHAPE, "the vocabulary must not be empty");
    if (!(a->temperature >= 0 && a->temperature <= 1e30))
        return tp_refuse(k, TP_EARG, "temperature must be 0 to 1e30, got %g", a->temperature);
    return tp_need_softcap(k, a->softcap);
}

tp_status token_check_targets(const tp_call *k) {
    int64_t v = tp_dim(k->in[TOKEN_LOGITS], -1);
    for (int64_t i = 0, n = tp_numel(k->in[TOKEN_TARGETS]); i < n; i++) {
        int64_t y = token_target(k, i);
        if (y == TOKEN_IGNORE) continue;
        if (y < 0 || y >= v)
            return tp_refuse(k, TP_EARG, "target %lld at position %lld is not in 0..%lld",
                             (long long)y, (long long)i, (long long)v - 1);
        if (!token_in_set(k, i, y))
            return tp_refuse(k, TP_EARG, "target %lld at position %lld is not in its set",
                             (long long)y, (long long)i);
    }
    return TP_OK;
}

static tp_status token_infer(tp_call *k) {
    tp_status st = check_common(k);
    const tp_tensor *x = k->in[TOKEN_LOGITS];
    for (int i = 0; i < 3 && !st; i++)
        st = tp_out(k, tp_sum_dtype(x->dtype), x->ndim - 1, x->shape);
    return st;
}

static tp_status backward_infer(tp_call *k) {
    tp_status st = check_common(k);
    return st ? st : tp_out_like(k, k->in[TOKEN_LOGITS]);
}

/* ---- oracles -------------------------------------------------------------------------------- */
static double exact_scaled(const token_attr *a, double x, double *slope) {
    double t = a->temperature > 0 ? a->temperature : 1, cap = a->softcap;
    double th = cap > 0 ? tanh(x / cap) : 0;
    *slope = (1 - th * th) / t;
    return (cap > 0 ? cap * th : x) / t;
}

static tp_status token_oracle(const tp_call *k) {
    int64_t v = tp_dim(k->in[0], -1), n = tp_numel(k->in[TOKEN_TARGETS]);
    tp_status st = token_check_targets(k);
    for (int64_t i = 0; i < n && !st; i++) {
        const double *x = tp_f64(k->in[0]) + i * v;
        double top = -INFINITY, sum = 0, es = 0, slope, at = 0;
        int64_t y = token_target(k, i);
        for (int pass = 0; pass < 2; pass++)
            for (int64_t j = 0; j < v; j++) {
                double s = exact_scaled(k->attr, x[j], &slope);
                if (j == y) at = s;
                if (!token_in_set(k, i, j)) continue;
                if (pass == 0) top = fmax(top, s);
                if (pass == 1) sum += exp(s - top), es += exp(s - top) * (s - top);
            }
        bool counts = y != TOKEN_IGNORE;
        tp_f64(k->out[0])[i] = counts ? at - top - log(sum) : 0;
        tp_f64(k->out[1])[i] = counts ? log(sum) - es / sum : 0;
        tp_f64(k->out[2])[i] = counts ? top + log(sum) : 0;
    }
    return st;
}

static tp_status backward_oracle(const tp_call *k) {
    int64_t v = tp_dim(k->in[0], -1), n = tp_numel(k->in[TOKEN_TARGETS]);
    tp_status st = token_check_targets(k);
    for (int64_t i = 0; i < n && !st; i++) {
        const double *x = tp_f64(k->in[0]) + i * v;
        double a = tp_f64(k->in[TOKEN_A])[i], b = tp_f64(k->in[TOKEN_B])[i], slope;
        int64_t y = token_target(k, i);
        for (int64_t j = 0; j < v; j++) {
            double s = exact_scaled(k->attr, x[j], &slope), g = 0;
            if (y != TOKEN_IGNORE && token_in_set(k, i, j))
                g = exp(s - tp_f64(k->in[TOKEN_LSE])[i]) * (a + b * s);
            if (j == y) g += tp_f64(k->in[TOKEN_D])[i];
            tp_f64(k->out[0])[i * v + j] = g * slope;
        }
    }
    return st;
}

/* ---- builder and gradient ------------------------------------------------------------------- */
tp_token_logprob_out tp_token_logprob(tp_ctx *c, tp_tensor *logits, tp_tensor *targets,
                                      const tp_token_logprob_opts *opts) {
    tp_token_logprob_opts o = opts ? *opts : (tp_token_logprob_opts){0};
    token_attr a = {o.softcap, o.temperature};
    tp_tensor *out[TP_MAXOUT] = {0}, *in[] = {logits, targets, o.set};
    if (tp_op_run(c, &op_token_logprob, &a, 3, in, out)) return (tp_token_logprob_out){0};
    return (tp_token_logprob_out){out[0], out[1]};
}

static void token_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_tensor *lse = k->out[2], *q[TP_MAXOUT] = {0};
    lce_attr none = {.o = {.temperature = 1}};
    tp_tensor *rows[] = {lse, k->out[1], NULL, dout[0], dout[1], dout[2]};
    if (tp_op_run(k->ctx, &op_linear_cross_entropy_rows, &none, 6, rows, q)) return;
    tp_tensor *in[] = {k->in[0], k->in[1], k->in[2], lse, q[0], q[1], q[2]}, *out[TP_MAXOUT];
    if (!tp_op_run(k->ctx, &op_token_logprob_backward, k->attr, 7, in, out)) din[0] = out[0];
}

/* ---- samples -------------------------------------------------------------------------------- */
static const int32_t some_ignored[6] = {0, -100, 4, -100, 2, 1}, outside[2] = {1, 5};
/* 5 tokens: sets {0,2}, all, {4}, none (ignored), {1,2,3}, {0,1}; 40 tokens over two words */
static const int32_t sets[6] = {5, 31, 16, 0, 14, 3}, wide[4] = {1, 0x80, 3, 1};
static const int32_t wide_targets[2] = {39, 1}, one[1] = {3}, only_two[1] = {4};
/* clang-format off */
#define DIMS(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / 8), {__VA_ARGS__}
#define X(...) {TP_GEN_NORMAL, DIMS(__VA_ARGS__)}
#define Y(v, ...) {TP_GEN_INT, DIMS(__VA_ARGS__), 0, v}
#define GIVEN(y, ...) {TP_GEN_DATA, DIMS(__VA_ARGS__), .data = y}
#define ATTR(...) &(const token_attr){__VA_ARGS__}
static const tp_sample token_samples[] = {
    {"all tokens", {X(2, 3, 7), Y(7, 2, 3)}},
    {"one token", {X(4), {TP_GEN_INT, .hi = 4}}},
    {"two softmax blocks", {X(3, 520), Y(520, 3)}},
    {"some ignored", {X(2, 3, 5), GIVEN(some_ignored, 2, 3)}},
    {"sets", {X(2, 3, 5), GIVEN(some_ignored, 2, 3), GIVEN(sets, 2, 3, 1)}},
    {"a set over two words", {X(2, 40), GIVEN(wide_targets, 2), GIVEN(wide, 2, 2)}},
    {"temperature and softcap", {X(2, 3, 5), GIVEN(some_ignored, 2, 3), GIVEN(sets, 2, 3, 1)},
     ATTR(.softcap = 1.5, .temperature = 0.7)},
    {"temperature", {X(3, 6), Y(6, 3)}, ATTR(.temperature = 1.3)},
    {"none", {X(0, 6), Y(6, 0)}},
    {"target outside", {X(2, 5), GIVEN(outside, 2)}, .refuse = "target 5 at position 1 is not in 0..4"},
    {"target not in the set", {X(1, 5), GIVEN(one, 1), GIVEN(only_two, 1, 1)},
     .refuse = "target 3 at position 0 is not in its set"},
    {"wrong targets", {X(2, 5), Y(5, 3)}, .refuse = "targets must have the shape"},
    {"wrong set", {X(2, 5), Y(5, 2), Y(5, 2, 2)}, .refuse = "set must be"},
    {"no vocabulary", {X(2, 0), Y(1, 2)}, .refuse = "must not be empty"},
    {"bad temperature", {X(2, 5), Y(5, 2)}, ATTR(.temperature = -1), .refuse = "temperature must be 0 to"},
    {0},
};
static const tp_sample backward_samples[] = {
    {"sets", {X(2, 3, 5), GIVEN(some_ignored, 2, 3), GIVEN(sets, 2, 3, 1), X(2, 3), X(2, 3), X(2, 3), X(2, 3)},
     ATTR(.softcap = 2, .temperature = 0.8)},
    {"all tokens", {X(3, 530), Y(530, 3), {TP_GEN_ABSENT}, X(3), X(3), X(3), X(3)}},
    {"wrong targets", {X(2, 5), Y(5, 3), {TP_GEN_ABSENT}, X(2), X(2), X(2), X(2)}, .refuse = "targets must"},
    {0},
};
static const tp_attr token_attrs[] = {
    {"softcap", TP_ATTR_FLOAT, offsetof(token_attr, softcap)},
    {"temperature", TP_ATTR_FLOAT, offsetof(token_attr, temperature)},
    {0},
};
/* clang-format on */

static double token_flops(const tp_call *k) { return 20.0 * (double)tp_numel(k->in[0]); }

const tp_op op_token_logprob = {
    .name = "token_logprob",
    .synopsis = "log softmax(logits) at targets, over a set of tokens",
    .doc = "Log-probability and entropy of given tokens from their logits, after soft cap and "
           "temperature, over the whole vocabulary or over a set per row: what a sampler with "
           "top-k, top-p or min-p draws from. Rows have the bits of linear_cross_entropy. Third "
           "output: the log of the sum of exp.",
    .infer = token_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(token_logprob_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&token_logprob_cuda)},
    .oracle = token_oracle,
    .vjp = token_vjp,
    .saves_in = 7,
    .saves_out = 6,
    .optional = 1 << TOKEN_SET,
    .flops = token_flops,
    .attrs = token_attrs,
    .attr_bytes = sizeof(token_attr),
    .samples = token_samples,
};
const tp_op op_token_logprob_backward = {
    .name = "token_logprob_backward",
    .synopsis = "dlogit_v = (p_v (a + b s_v) + d [v = target]) ds/dlogit",
    .doc = "The gradient of token_logprob's logits from one row of coefficients per token; 0 "
           "outside the set.",
    .infer = backward_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(token_logprob_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&token_logprob_backward_cuda)},
    .oracle = backward_oracle,
    .no_vjp = "second-order gradients are not offered; build the loss from log_softmax where they "
              "are wanted",
    .optional = 1 << TOKEN_SET,
    .flops = token_flops,
    .attrs = token_attrs,
    .attr_bytes = sizeof(token_attr),
    .samples = backward_samples,
};
