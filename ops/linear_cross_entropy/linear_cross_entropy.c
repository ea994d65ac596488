/* linear_cross_entropy.
 *
 * Of token i with hidden vector x and target y:
 *   raw_v = w_v . x,   s_v = cap*tanh(raw_v/cap)/temperature   (s_v = raw_v/temperature without
 * cap) lse = log sum_v e^{s_v},   p_v = e^{s_v - lse} logprob = s_y - lse,   loss = -logprob + z
 * lse^2,   entropy H = -sum_v p_v log p_v
 *
 * With [.] = 1 where true, log p_v = s_v - lse and d lse/d s_v = p_v,
 *   d logprob/d s_v = [v=y] - p_v
 *   d loss/d s_v    = p_v (1 + 2 z lse) - [v=y]
 *   d H/d s_v       = -p_v (log p_v + H)
 * so for cotangents dl, dp, dh, de of loss, logprob, entropy and lse
 *   ds_v = p_v (a + b s_v) + d [v=y],
 *   a = dl (1 + 2 z lse) - dp + dh (lse - H) + de,   b = -dh,   d = dp - dl
 * and d raw_v = ds_v (1 - tanh^2)/temperature, dx = sum_v draw_v w_v, dw_v = sum_i draw_iv x_i.
 *
 * linear_cross_entropy_rows computes a, b, d, one number each per token. The backward op recomputes
 * the logits block by block; it needs of the forward pass only lse. */
#include "ops/linear_cross_entropy/lce.h"
#include "core/ctx.h"
#include "ops/convert.h"
#include <math.h>

extern const tp_op op_linear_cross_entropy, op_linear_cross_entropy_rows,
    op_linear_cross_entropy_backward;
TP_CPU_DECLARE(lce_cpu);
TP_CUDA_DECLARE(lce_cuda);
TP_CUDA_DECLARE(lce_rows_cuda);

#define ATTR(field, type)                                                                          \
    { #field, TP_ATTR_##type, offsetof(lce_attr, o.field) }
const tp_attr lce_attrs[] = {
    ATTR(softcap, FLOAT),
    ATTR(z_loss, FLOAT),
    ATTR(temperature, FLOAT),
    ATTR(ignore_index, I64),
    ATTR(chunk, I64),
    ATTR(trans_w, BOOL),
    {0},
};

/* ---- shapes --------------------------------------------------------------------------------- */
lce_dims lce_dims_of(const tp_call *k) {
    const tp_tensor *x = k->in[LCE_X], *w = k->in[LCE_W];
    const tp_lce_opts *o = &((const lce_attr *)k->attr)->o;
    bool trans = o->trans_w;
    lce_dims d = {.samples = x->ndim > 2 ? x->shape[0] : 1, .t = 1, .c = tp_dim(x, -1)};
    for (int i = x->ndim > 2 ? 1 : 0; i < x->ndim - 1; i++) d.t *= x->shape[i];
    d.n = d.samples * d.t;
    if (k->ctx->fast) d.t = d.n, d.samples = 1; /* one chain over all tokens */
    d.v = w->shape[trans ? 1 : 0];
    d.w_vs = trans ? 1 : d.c;
    d.w_cs = trans ? d.v : 1;
    d.trans_w = trans;
    d.ignore = o->ignore_index ? o->ignore_index : -100;
    d.softcap = o->softcap;
    d.z_loss = o->z_loss;
    d.temperature = o->temperature > 0 ? o->temperature : 1;
    return d;
}

static tp_status need_nonnegative(tp_call *k, double x, const char *name) {
    if (x >= 0 && x <= 1e30) return TP_OK;
    return tp_refuse(k, TP_EARG, "%s must be 0 to 1e30, got %g", name, x);
}

static tp_status check_attrs(tp_call *k) {
    const tp_lce_opts *o = &((const lce_attr *)k->attr)->o;
    tp_status st;
    if ((st = tp_need_softcap(k, o->softcap)) || (st = need_nonnegative(k, o->z_loss, "z_loss")) ||
        (st = need_nonnegative(k, o->temperature, "temperature")))
        return st;
    if (o->ignore_index > 0 || o->ignore_index < INT32_MIN)
        return tp_refuse(k, TP_EARG, "ignore_index must be negative and fit i32, got %lld",
                         (long long)o->ignore_index);
    if (o->chunk < 0 || o->chunk > LCE_MAX_CHUNK)
        return tp_refuse(k, TP_EARG, "chunk must be 0 to %d rows, got %lld", LCE_MAX_CHUNK,
                         (long long)o->chunk);
    return TP_OK;
}

static tp_status check_shapes(tp_call *k) {
    const tp_tensor *x = k->in[LCE_X], *w = k->in[LCE_W], *y = k->in[LCE_TARGETS];
    bool trans = ((const lce_attr *)k->attr)->o.trans_w, fits = y->ndim == x->ndim - 1;
    if (w->shape[trans ? 0 : 1] != tp_dim(x, -1))
        return tp_refuse(k, TP_ESHAPE, "w must be %s with C = %lld as in x, got %s",
                         trans ? "(C,V)" : "(V,C)", (long long)tp_dim(x, -1),
                         tp_shape_str(k->ctx, w));
    int64_t v = w->shape[trans ? 1 : 0];
    if (v < 1 || v > INT32_MAX)
        return tp_refuse(k, TP_ESHAPE, "the vocabulary must have 1 to %d entries, got %lld",
                         INT32_MAX, (long long)v);
    for (int i = 0; fits && i < y->ndim; i++) fits = y->shape[i] == x->shape[i];
    if (!fits)
        return tp_refuse(k, TP_ESHAPE, "targets must have x's shape without C, got %s for x %s",
                         tp_shape_str(k->ctx, y), tp_shape_str(k->ctx, x));
    return TP_OK;
}

tp_status lce_infer_common(tp_call *k) {
    tp_status st;
    if ((st = tp_need_float(k, LCE_X, "x")) || (st = tp_need_float(k, LCE_W, "w")) ||
        (st = tp_need_int(k, LCE_TARGETS, "targets")) ||
        (st = tp_need_ndim(k, LCE_X, "x", 1, TP_MAXDIM)) ||
        (st = tp_need_ndim(k, LCE_W, "w", 2, 2)))
        return st;
    if (k->in[LCE_X]->dtype != k->in[LCE_W]->dtype)
        return tp_refuse(k, TP_EDTYPE, "x and w must have one dtype, got %s and %s",
                         tp_dtype_name(k->in[LCE_X]->dtype), tp_dtype_name(k->in[LCE_W]->dtype));
    if ((st = check_shapes(k))) return st;
    return check_attrs(k);
}

tp_status lce_check_targets(const tp_call *k) {
    const tp_tensor *y = k->in[LCE_TARGETS];
    lce_dims d = lce_dims_of(k);
    for (int64_t i = 0; i < d.n; i++) {
        int64_t t = tp_i32(y)[tp_offset(y, i)];
        if ((t < 0 || t >= d.v) && t != d.ignore)
            return tp_refuse(k, TP_EARG,
                             "target %lld at position %lld is neither in 0..%lld nor the "
                             "ignore_index %lld",
                             (long long)t, (long long)i, (long long)(d.v - 1), (long long)d.ignore);
    }
    return TP_OK;
}

static tp_status forward_infer(tp_call *k) {
    tp_status st = lce_infer_common(k);
    const tp_tensor *x = k->in[LCE_X];
    for (int i = 0; i < 4 && !st; i++)
        st = tp_out(k, tp_sum_dtype(x->dtype), x->ndim - 1, x->shape);
    return st;
}

/* ---- oracles -------------------------------------------------------------------------------- */
void lce_exact_logits(const tp_call *k, const lce_dims *d, int64_t i, double *s) {
    const double *x = tp_f64(k->in[LCE_X]) + i * d->c, *w = tp_f64(k->in[LCE_W]);
    for (int64_t v = 0; v < d->v; v++) {
        double raw = 0;
        for (int64_t j = 0; j < d->c; j++) raw += x[j] * w[v * d->w_vs + j * d->w_cs];
        s[v] = (d->softcap > 0 ? d->softcap * tanh(raw / d->softcap) : raw) / d->temperature;
    }
}

lce_exact lce_exact_stats(const lce_dims *d, const double *s, int64_t target) {
    double m = s[0], sum = 0, entropy = 0;
    for (int64_t v = 1; v < d->v; v++) m = s[v] > m ? s[v] : m;
    for (int64_t v = 0; v < d->v; v++) sum += exp(s[v] - m);
    double lse = m + log(sum);
    for (int64_t v = 0; v < d->v; v++) entropy -= exp(s[v] - lse) * (s[v] - lse);
    return (lce_exact){lse, entropy, target >= 0 && target < d->v ? s[target] : 0};
}

void lce_exact_backward(const tp_call *k, const lce_dims *d, int64_t i, double *s, double lse,
                        lce_coef q, double *dx, double *dw) {
    const double *x = tp_f64(k->in[LCE_X]) + i * d->c, *w = tp_f64(k->in[LCE_W]);
    int64_t target = tp_i32(k->in[LCE_TARGETS])[i];
    for (int64_t v = 0; v < d->v; v++) {
        double tanh_raw = d->softcap > 0 ? s[v] * d->temperature / d->softcap : 0;
        double ds = exp(s[v] - lse) * (q.a + q.b * s[v]) + (v == target ? q.d : 0);
        double draw = ds * (1 - tanh_raw * tanh_raw) / d->temperature;
        for (int64_t j = 0; j < d->c; j++) {
            if (dx) dx[i * d->c + j] += draw * w[v * d->w_vs + j * d->w_cs];
            if (dw) dw[v * d->w_vs + j * d->w_cs] += draw * x[j];
        }
    }
}

static tp_status forward_oracle(const tp_call *k) {
    lce_dims d = lce_dims_of(k);
    tp_status st = lce_check_targets(k);
    if (st) return st;
    double *s = tp_malloc(k->ctx, (size_t)d.v * sizeof *s);
    if (!s) return TP_ENOMEM;
    for (int64_t i = 0; i < d.n; i++) {
        int64_t target = tp_i32(k->in[LCE_TARGETS])[i];
        lce_exact_logits(k, &d, i, s);
        lce_exact e = lce_exact_stats(&d, s, target);
        bool counts = target != d.ignore;
        double logprob = e.target - e.lse;
        tp_f64(k->out[LCE_LOSS])[i] = counts ? -logprob + d.z_loss * e.lse * e.lse : 0;
        tp_f64(k->out[LCE_LOGPROB])[i] = counts ? logprob : 0;
        tp_f64(k->out[LCE_ENTROPY])[i] = counts ? e.entropy : 0;
        tp_f64(k->out[LCE_LSE])[i] = counts ? e.lse : 0;
    }
    tp_free(s);
    return TP_OK;
}

/* ---- linear_cross_entropy_rows -------------------------------------------------------------- */
enum { ROWS_LSE, ROWS_ENTROPY, ROWS_DOUT };

static tp_status rows_infer(tp_call *k) {
    tp_status st = tp_need_float(k, ROWS_LSE, "lse");
    if (!st) st = tp_need_same(k, ROWS_LSE, ROWS_ENTROPY, "lse and entropy");
    for (int i = 0; i < 4 && !st; i++)
        st = tp_need_same(k, ROWS_DOUT + i, ROWS_LSE, "every cotangent and lse");
    for (int i = 0; i < 3 && !st; i++) st = tp_out_like(k, k->in[ROWS_LSE]);
    return st;
}

static tp_status rows_oracle(const tp_call *k) {
    double z = ((const lce_attr *)k->attr)->o.z_loss;
    for (int64_t i = 0, n = tp_numel(k->out[0]); i < n; i++) {
        double dout[4] = {0};
        for (int j = 0; j < 4; j++)
            if (k->in[ROWS_DOUT + j]) dout[j] = tp_f64(k->in[ROWS_DOUT + j])[i];
        lce_coef q = lce_coef_of(tp_f64(k->in[ROWS_LSE])[i], tp_f64(k->in[ROWS_ENTROPY])[i], z,
                                 dout[0], dout[1], dout[2], dout[3]);
        tp_f64(k->out[0])[i] = q.a;
        tp_f64(k->out[1])[i] = q.b;
        tp_f64(k->out[2])[i] = q.d;
    }
    return TP_OK;
}

/* ---- builders ------------------------------------------------------------------------------- */
tp_lce tp_linear_cross_entropy(tp_ctx *c, tp_tensor *x, tp_tensor *w, tp_tensor *targets,
                               const tp_lce_opts *opts) {
    lce_attr at = {0};
    if (opts) at.o = *opts;
    tp_tensor *out[TP_MAXOUT] = {0};
    if (tp_op_run(c, &op_linear_cross_entropy, &at, 3, (tp_tensor *[]){x, w, targets}, out))
        return (tp_lce){0};
    return (tp_lce){out[LCE_LOSS], out[LCE_LOGPROB], out[LCE_ENTROPY], out[LCE_LSE]};
}

static void forward_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    lce_attr at = *(const lce_attr *)k->attr;
    tp_tensor *lse = k->out[LCE_LSE], *q[TP_MAXOUT] = {0}, *d[TP_MAXOUT] = {0};
    tp_tensor *rows[] = {lse, k->out[LCE_ENTROPY], dout[0], dout[1], dout[2], dout[3]};
    at.no_dx = !tp_wants(k, LCE_X);
    at.no_dw = !tp_wants(k, LCE_W);
    if (at.no_dx && at.no_dw) return;
    if (tp_op_run(k->ctx, &op_linear_cross_entropy_rows, &at, 6, rows, q)) return;
    tp_tensor *in[] = {k->in[LCE_X], k->in[LCE_W], k->in[LCE_TARGETS], lse, q[0], q[1], q[2]};
    if (tp_op_run(k->ctx, &op_linear_cross_entropy_backward, &at, 7, in, d)) return;
    if (!at.no_dx) din[LCE_X] = d[0];
    if (!at.no_dw) din[LCE_W] = d[1];
}

/* Only what promises of speed count: two operations per multiply-add of x w^T; the softmax is
 * some twenty per logit. */
static double forward_flops(const tp_call *k) {
    lce_dims d = lce_dims_of(k);
    return (double)d.n * (double)d.v * (2.0 * (double)d.c + 20.0);
}
static double rows_flops(const tp_call *k) { return 8.0 * (double)tp_numel(k->out[0]); }

/* ---- samples -------------------------------------------------------------------------------- */
static const int32_t some_ignored[6] = {0, -100, 4, -100, 2, 1}, seven_ignored[4] = {3, -7, 0, -7},
                     all_ignored[3] = {-100, -100, -100}, outside[2] = {1, 5},
                     negative[2] = {-1, 0};
/* clang-format off */
#define DIMS(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / 8), {__VA_ARGS__}
#define X(...) {TP_GEN_NORMAL, DIMS(__VA_ARGS__)}
#define Y(v, ...) {TP_GEN_INT, DIMS(__VA_ARGS__), 0, v}
#define NO_DIMS_Y(v) {TP_GEN_INT, .hi = v}
#define GIVEN(y, ...) {TP_GEN_DATA, DIMS(__VA_ARGS__), .data = y}
#define OPTS(...) &(const lce_attr){.o = {__VA_ARGS__}}

static const tp_sample forward_samples[] = {
    {"batch", {X(2, 3, 4), X(7, 4), Y(7, 2, 3)}},
    {"one token", {X(3), X(2, 3), NO_DIMS_Y(2)}},
    {"a vocabulary of one", {X(2, 3), X(1, 3), Y(1, 2)}},
    {"some ignored", {X(2, 3, 4), X(5, 4), GIVEN(some_ignored, 2, 3)}},
    {"another ignore_index", {X(4, 4), X(5, 4), GIVEN(seven_ignored, 4)}, OPTS(.ignore_index = -7)},
    {"all ignored", {X(3, 4), X(5, 4), GIVEN(all_ignored, 3)}},
    {"w as (C,V)", {X(3, 2, 5), X(5, 9), Y(9, 3, 2)}, OPTS(.trans_w = true)},
    {"z-loss", {X(3, 4), X(6, 4), Y(6, 3)}, OPTS(.z_loss = 0.3)},
    {"softcap", {X(3, 4), X(6, 4), Y(6, 3)}, OPTS(.softcap = 1.5)},
    {"temperature", {X(3, 4), X(6, 4), Y(6, 3)}, OPTS(.temperature = 0.7)},
    {"all options", {X(3, 2, 4), X(6, 4), Y(6, 3, 2)},
     OPTS(.softcap = 2, .z_loss = 0.2, .temperature = 1.3, .chunk = 1)},
    {"five samples in chunks of two", {X(5, 3, 2), X(17, 2), Y(17, 5, 3)}, OPTS(.chunk = 7)},
    {"long samples in parts", {X(2, 7, 3), X(5, 3), Y(5, 2, 7)}, OPTS(.chunk = 3)},
    {"two softmax blocks", {X(3, 2), X(520, 2), Y(520, 3)}},
    {"no tokens", {X(0, 4), X(5, 4), Y(5, 0)}},
    {"no channels", {X(2, 0), X(5, 0), Y(5, 2)}},
    {"float targets", {X(2, 3), X(5, 3), X(2)}, .refuse = "targets must be i32, got"},
    {"wrong C", {X(2, 3), X(5, 4), Y(5, 2)}, .refuse = "w must be (V,C) with C = 3"},
    {"wrong targets", {X(2, 3), X(5, 3), Y(5, 3)}, .refuse = "targets must have x's shape"},
    {"no vocabulary", {X(2, 3), X(0, 3), Y(1, 2)}, .refuse = "vocabulary must have 1 to"},
    {"target outside", {X(2, 3), X(5, 3), GIVEN(outside, 2)},
     .refuse = "target 5 at position 1 is neither in 0..4"},
    {"target -1", {X(2, 3), X(5, 3), GIVEN(negative, 2)}, .refuse = "target -1 at position 0"},
    {"bad softcap", {X(2, 3), X(5, 3), Y(5, 2)}, OPTS(.softcap = -1), .refuse = "softcap must be"},
    {"tiny softcap", {X(2, 3), X(5, 3), Y(5, 2)}, OPTS(.softcap = 1e-44), .refuse = "softcap must be"},
    {"bad temperature", {X(2, 3), X(5, 3), Y(5, 2)}, OPTS(.temperature = INFINITY),
     .refuse = "temperature must be 0 to"},
    {"bad ignore_index", {X(2, 3), X(5, 3), Y(5, 2)}, OPTS(.ignore_index = 3),
     .refuse = "ignore_index must be negative"},
    {"bad chunk", {X(2, 3), X(5, 3), Y(5, 2)}, OPTS(.chunk = -1), .refuse = "chunk must be 0 to"},
    {0},
};
static const tp_sample rows_samples[] = {
    {"all", {X(2, 3), X(2, 3), X(2, 3), X(2, 3), X(2, 3), X(2, 3)}, OPTS(.z_loss = 0.1)},
    {"loss only", {X(4), X(4), X(4)}},
    {"entropy only", {X(4), X(4), {TP_GEN_ABSENT}, {TP_GEN_ABSENT}, X(4)}},
    {"shapes", {X(4), X(4), X(5)}, .refuse = "same shape"},
    {0},
};
/* clang-format on */

const tp_op op_linear_cross_entropy = {
    .name = "linear_cross_entropy",
    .synopsis = "loss, logprob, entropy, lse of softmax(x w^T) at targets",
    .doc =
        "The language-model head and its cross-entropy in one op. Logits exist only as a block of "
        "rows by vocabulary entries; a row's softmax runs online over blocks of 512 entries, so a "
        "token's values depend on its row alone. Optional soft cap, z-loss and temperature; an "
        "ignored token has all outputs and gradients 0. The backward op recomputes the logits; "
        "its second product with them earns no FLOPs in the count.",
    .infer = forward_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(lce_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&lce_cuda)},
    .oracle = forward_oracle,
    .vjp = forward_vjp,
    .saves_in = 7,
    .saves_out = 1u << LCE_ENTROPY | 1u << LCE_LSE,
    .flops = forward_flops,
    .attrs = lce_attrs,
    .attr_bytes = sizeof(lce_attr),
    .samples = forward_samples,
};
const tp_op op_linear_cross_entropy_rows = {
    .name = "linear_cross_entropy_rows",
    .synopsis = "a, b, d with dlogit_v = p_v (a + b s_v) + d [v = target]",
    .doc = "The three coefficients per token from which linear_cross_entropy_backward makes the "
           "logits' gradient: out of the cotangents of loss, logprob, entropy and lse.",
    .infer = rows_infer,
    .kernel = {[TP_CUDA] = TP_CUDA_LIST(&lce_rows_cuda)},
    .oracle = rows_oracle,
    .no_vjp = "second-order gradients through the head are not offered; build the loss from matmul "
              "and log_softmax where they are wanted",
    .optional = 0x3cu,
    .flops = rows_flops,
    .attrs = lce_attrs,
    .attr_bytes = sizeof(lce_attr),
    .samples = rows_samples,
};
