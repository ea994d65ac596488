/* policy_loss. Of a token, with r = e^d, d = l - l_old (so dr/dl = r), x = l_ref - l (dx/dl = -1):
 *   clip   dL/dl = -r A where the unclipped term is the smaller one, else 0
 *   cispo  dL/dl = -min(r, cap) A, as r is held fixed
 *   sequence level (clip): log r is a mean over n tokens, so each gets 1/n of the row's sum of
 *          w dL/dlog r
 *   k1 1,  k2 -x,  k3 1 - e^x;  with the correction r KL:  r KL + r dKL/dl */
#include "ops/policy_loss/policy_loss.h"
#include "ops/policy_loss/policy_loss_math.h"
#include <math.h>

extern const tp_op op_policy_loss, op_policy_loss_backward;
TP_CPU_DECLARE(policy_loss_cpu);
TP_CPU_DECLARE(policy_loss_backward_cpu);
TP_CUDA_DECLARE(policy_loss_cuda);
TP_CUDA_DECLARE(policy_loss_backward_cuda);

/* ---- shapes --------------------------------------------------------------------------------- */
static tp_status check(tp_call *k) {
    static const char *const name[] = {"logprob", "old",  "ref",    "advantage",
                                       "weight",  "mask", "entropy"};
    const tp_tensor *l = k->in[POLICY_LOGPROB], *a = k->in[POLICY_ADVANTAGE];
    const tp_policy_opts *o = k->attr;
    tp_status st;
    if ((st = tp_need_float(k, 0, "logprob")) || (st = tp_need_ndim(k, 0, "logprob", 2, 2)))
        return st;
    for (int i = 1; i <= POLICY_ENTROPY; i++) {
        const tp_tensor *x = k->in[i];
        if (!x) continue;
        if (x->dtype != l->dtype)
            return tp_refuse(k, TP_EDTYPE, "%s must be %s as logprob, got %s", name[i],
                             tp_dtype_name(l->dtype), tp_dtype_name(x->dtype));
        if (i != POLICY_ADVANTAGE && !tp_same_shape(x, l))
            return tp_refuse(k, TP_ESHAPE, "%s must have the shape (B,T) of logprob %s, got %s",
                             name[i], tp_shape_str(k->ctx, l), tp_shape_str(k->ctx, x));
    }
    if (a->ndim != 1 || a->shape[0] != l->shape[0])
        return tp_refuse(k, TP_ESHAPE, "advantage must be (B) of logprob %s, got %s",
                         tp_shape_str(k->ctx, l), tp_shape_str(k->ctx, a));
    const double *v[] = {&o->epsilon,      &o->epsilon_high, &o->delta,
                         &o->clip_ratio_c, &o->beta,         &o->entropy_coef};
    for (size_t i = 0; i < sizeof v / sizeof *v; i++)
        if (!(*v[i] >= 0 && *v[i] < 1e30))
            return tp_refuse(k, TP_EARG,
                             "epsilon, epsilon_high, delta, clip_ratio_c, beta and entropy_coef "
                             "must be finite and not negative, got %g",
                             *v[i]);
    return TP_OK;
}

static tp_status policy_infer(tp_call *k) {
    tp_status st = check(k);
    const tp_tensor *l = k->in[POLICY_LOGPROB];
    if (!st) st = tp_out(k, l->dtype, 0, NULL);
    return st ? st : tp_out(k, l->dtype, 2, (int64_t[]){l->shape[0], TP_POLICY_STATS});
}

static tp_status backward_infer(tp_call *k) {
    tp_status st = check(k);
    if (!st) st = tp_out_like(k, k->in[POLICY_LOGPROB]);
    return st ? st : tp_out_like(k, k->in[POLICY_LOGPROB]);
}

/* ---- oracle: the formulas said plainly, in double ------------------------------------------- */
typedef struct exact {
    double w, l, d, ref, a, h;
    bool mask, has_ref, has_h;
} exact;

static exact exact_token(const tp_call *k, int64_t b, int64_t t, int64_t T) {
    int64_t i = b * T + t;
    exact x = {.w = tp_f64(k->in[POLICY_WEIGHT])[i],
               .l = tp_f64(k->in[POLICY_LOGPROB])[i],
               .a = tp_f64(k->in[POLICY_ADVANTAGE])[b],
               .has_ref = k->in[POLICY_REF] != NULL,
               .has_h = k->in[POLICY_ENTROPY] != NULL};
    x.d = k->in[POLICY_OLD] ? x.l - tp_f64(k->in[POLICY_OLD])[i] : 0;
    x.mask = k->in[POLICY_MASK] ? tp_f64(k->in[POLICY_MASK])[i] != 0 : x.w != 0;
    if (x.has_ref) x.ref = tp_f64(k->in[POLICY_REF])[i];
    if (x.has_h) x.h = tp_f64(k->in[POLICY_ENTROPY])[i];
    return x;
}

static double cut20(double x) { return fmin(fmax(x, -20), 20); }

/* log r of the row at sequence level, before it is cut; *n: tokens of the mask */
static double exact_row(const tp_call *k, int64_t b, int64_t T, double *n) {
    double sum = 0;
    *n = 0;
    for (int64_t t = 0; t < T; t++) {
        exact x = exact_token(k, b, t, T);
        if (x.mask) sum += x.d, ++*n;
    }
    return *n > 0 ? sum / *n : 0;
}

static double exact_surrogate(const tp_policy_opts *o, double r, double a, double l) {
    if (o->objective == TP_POLICY_CISPO) return -fmin(r, o->epsilon_high) * a * l;
    double clipped = fmin(fmax(r, 1 - o->epsilon), 1 + o->epsilon_high);
    double plain = o->delta > 0 ? fmin(r, o->delta) : r;
    double loss = -fmin(plain * a, clipped * a);
    return o->clip_ratio_c > 0 && a < 0 ? fmin(loss, -o->clip_ratio_c * a) : loss;
}

static double exact_kl(const tp_policy_opts *o, double x) {
    return o->kl == TP_POLICY_K1 ? -x : o->kl == TP_POLICY_K2 ? x * x / 2 : exp(x) - x - 1;
}

static tp_status policy_oracle(const tp_call *k) {
    const tp_policy_opts *o = k->attr;
    int64_t B = k->in[0]->shape[0], T = k->in[0]->shape[1];
    double total = 0;
    for (int64_t b = 0; b < B; b++) {
        double n, *s = tp_f64(k->out[1]) + b * TP_POLICY_STATS, shared = exact_row(k, b, T, &n);
        for (int i = 0; i < TP_POLICY_STATS; i++) s[i] = 0;
        for (int64_t t = 0; t < T; t++) {
            exact x = exact_token(k, b, t, T);
            double own = exp(cut20(x.d)), r = o->sequence ? exp(cut20(shared)) : own;
            double kl = x.has_ref ? exact_kl(o, cut20(x.ref - x.l)) : 0;
            if (o->bias_correction) kl *= own;
            double surrogate = exact_surrogate(o, r, x.a, x.l);
            s[TP_POLICY_SURROGATE] += x.w * surrogate;
            s[TP_POLICY_LOSS] += x.w * (surrogate + o->beta * kl - o->entropy_coef * x.h);
            if (!x.mask) continue;
            double most = o->epsilon_high + (o->objective == TP_POLICY_CISPO ? 0 : 1);
            s[TP_POLICY_TOKENS] += 1;
            s[TP_POLICY_KL] += kl;
            s[TP_POLICY_ENTROPY] += x.h;
            s[TP_POLICY_CLIP_LOW] +=
                o->objective == TP_POLICY_CLIP && x.a < 0 && r < 1 - o->epsilon;
            s[TP_POLICY_CLIP_HIGH] += x.a > 0 && r > most;
            s[TP_POLICY_RATIO] += r;
            s[TP_POLICY_DIFFERENCE] =
                fmax(s[TP_POLICY_DIFFERENCE], x.d == x.d ? fabs(x.d) : INFINITY);
        }
        total += s[TP_POLICY_LOSS];
    }
    tp_f64(k->out[0])[0] = total;
    return TP_OK;
}

/* d L / d log r (cispo: / d l) */
static double exact_slope(const tp_policy_opts *o, double log_r, double a) {
    double r = exp(cut20(log_r));
    if (o->objective == TP_POLICY_CISPO) return -fmin(r, o->epsilon_high) * a;
    double clipped = fmin(fmax(r, 1 - o->epsilon), 1 + o->epsilon_high);
    bool held = fabs(log_r) > 20 || (o->delta > 0 && r > o->delta);
    bool dual = o->clip_ratio_c > 0 && a < 0 && exact_surrogate(o, r, a, 0) == -o->clip_ratio_c * a;
    double plain = o->delta > 0 ? fmin(r, o->delta) : r;
    return held || dual || plain * a > clipped * a ? 0 : -r * a;
}

static tp_status backward_oracle(const tp_call *k) {
    const tp_policy_opts *o = k->attr;
    int64_t B = k->in[0]->shape[0], T = k->in[0]->shape[1];
    double dloss = tp_f64(k->in[POLICY_DLOSS])[0];
    bool together = o->sequence && o->objective == TP_POLICY_CLIP;
    for (int64_t b = 0; b < B; b++) {
        double n, shared = exact_row(k, b, T, &n), weights = 0;
        for (int64_t t = 0; t < T; t++) weights += exact_token(k, b, t, T).w;
        for (int64_t t = 0; t < T; t++) {
            exact x = exact_token(k, b, t, T);
            double own = exp(cut20(x.d)), far = x.ref - x.l, cut = cut20(far), g = 0;
            if (x.has_ref) {
                double kl = exact_kl(o, cut), dkl = o->kl == TP_POLICY_K1   ? 1
                                                    : o->kl == TP_POLICY_K2 ? -cut
                                                                            : 1 - exp(cut);
                if (cut != far) dkl = 0;
                if (o->bias_correction) dkl = own * dkl + (fabs(x.d) > 20 ? 0 : own * kl);
                g += o->beta * dkl;
            }
            if (!together) g += exact_slope(o, o->sequence ? shared : x.d, x.a);
            g *= x.w;
            if (together && x.mask) g += weights * exact_slope(o, shared, x.a) / n;
            tp_f64(k->out[0])[b * T + t] = dloss * g;
            tp_f64(k->out[1])[b * T + t] = x.has_h ? -dloss * o->entropy_coef * x.w : 0;
        }
    }
    return TP_OK;
}

/* ---- builder and gradient ------------------------------------------------------------------- */
tp_policy_out tp_policy_loss(tp_ctx *c, const tp_policy_in *in, const tp_policy_opts *o) {
    tp_tensor *out[TP_MAXOUT] = {0};
    tp_tensor *all[] = {in->logprob, in->old,  in->ref,    in->advantage,
                        in->weight,  in->mask, in->entropy};
    if (tp_op_run(c, &op_policy_loss, o, 7, all, out)) return (tp_policy_out){0};
    return (tp_policy_out){out[0], out[1]};
}

static void policy_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_tensor *in[8], *out[TP_MAXOUT] = {0};
    for (int i = 0; i < 7; i++) in[i] = k->in[i];
    in[POLICY_DLOSS] = dout[0];
    if (!dout[0] || tp_op_run(k->ctx, &op_policy_loss_backward, k->attr, 8, in, out)) return;
    if (tp_wants(k, POLICY_LOGPROB)) din[POLICY_LOGPROB] = out[0];
    if (tp_wants(k, POLICY_ENTROPY)) din[POLICY_ENTROPY] = out[1];
}

static double policy_flops(const tp_call *k) { return 30.0 * (double)tp_numel(k->in[0]); }

/* ---- samples -------------------------------------------------------------------------------- */
/* clang-format off */
#define N(...) {TP_GEN_NORMAL, 2, {__VA_ARGS__}, 0, 0.3}
#define A(b) {TP_GEN_NORMAL, 1, {b}}
#define W(...) {TP_GEN_UNIFORM, 2, {__VA_ARGS__}, 0.1, 1}
#define M(...) {TP_GEN_UNIFORM, 2, {__VA_ARGS__}, 1, 1}
#define NONE {TP_GEN_ABSENT}
#define OPTS(...) &(const tp_policy_opts){.epsilon = 0.2, .epsilon_high = 0.28, __VA_ARGS__}
/* Advantages, weights and the other policies' log-probs are constants, which the row test of
 * gradients does not know: tests/rl_test.c checks the two that there are. */
static const tp_sample policy_samples[] = {
    {"on policy", {N(3, 5), NONE, NONE, A(3), W(3, 5)}, OPTS(.kl = 0), .no_grad = true},
    {"clip", {N(5, 9), N(5, 9), NONE, A(5), W(5, 9)}, OPTS(.kl = 0), .no_grad = true},
    {"two-sided and dual clip", {N(5, 9), N(5, 9), NONE, A(5), W(5, 9)},
     OPTS(.delta = 1.35, .clip_ratio_c = 1.4), .no_grad = true},
    {"sequence", {N(5, 9), N(5, 9), NONE, A(5), W(5, 9), M(5, 9)}, OPTS(.sequence = true), .no_grad = true},
    {"cispo", {N(5, 9), N(5, 9), NONE, A(5), W(5, 9)},
     &(const tp_policy_opts){.objective = TP_POLICY_CISPO, .epsilon_high = 1.1}, .no_grad = true},
    {"k1", {N(3, 7), N(3, 7), N(3, 7), A(3), W(3, 7)}, OPTS(.beta = 0.5, .kl = TP_POLICY_K1), .no_grad = true},
    {"k2", {N(3, 7), N(3, 7), N(3, 7), A(3), W(3, 7)}, OPTS(.beta = 0.5, .kl = TP_POLICY_K2), .no_grad = true},
    {"k3", {N(3, 7), N(3, 7), N(3, 7), A(3), W(3, 7)}, OPTS(.beta = 0.5, .kl = TP_POLICY_K3), .no_grad = true},
    {"k3, corrected", {N(3, 7), N(3, 7), N(3, 7), A(3), W(3, 7)},
     OPTS(.beta = 0.5, .kl = TP_POLICY_K3, .bias_correction = true), .no_grad = true},
    {"entropy", {N(3, 7), N(3, 7), NONE, A(3), W(3, 7), NONE, W(3, 7)}, OPTS(.entropy_coef = 0.3), .no_grad = true},
    {"everything", {N(6, 11), N(6, 11), N(6, 11), A(6), W(6, 11), M(6, 11), W(6, 11)},
     OPTS(.beta = 0.1, .entropy_coef = 0.2, .kl = TP_POLICY_K3, .sequence = true), .no_grad = true},
    {"no rows", {N(0, 4), NONE, NONE, A(0), W(0, 4)}, OPTS(.kl = 0), .no_grad = true},
    {"weights of another shape", {N(3, 5), NONE, NONE, A(3), W(3, 4)}, OPTS(.kl = 0),
     .refuse = "weight must have the shape"},
    {"advantage per token", {N(3, 5), NONE, NONE, W(3, 5), W(3, 5)}, OPTS(.kl = 0),
     .refuse = "advantage must be (B)"},
    {"negative beta", {N(3, 5), NONE, NONE, A(3), W(3, 5)}, OPTS(.beta = -1),
     .refuse = "must be finite and not negative"},
    {0},
};
static const tp_sample backward_samples[] = {
    {"everything", {N(6, 11), N(6, 11), N(6, 11), A(6), W(6, 11), M(6, 11), W(6, 11), {TP_GEN_NORMAL, 0}},
     OPTS(.beta = 0.1, .entropy_coef = 0.2, .kl = TP_POLICY_K3, .sequence = true)},
    {"clip", {N(6, 11), N(6, 11), NONE, A(6), W(6, 11), NONE, NONE, {TP_GEN_NORMAL, 0}},
     OPTS(.delta = 1.35, .clip_ratio_c = 1.4)},
    {"cispo", {N(6, 11), N(6, 11), NONE, A(6), W(6, 11), NONE, NONE, {TP_GEN_NORMAL, 0}},
     &(const tp_policy_opts){.objective = TP_POLICY_CISPO, .epsilon_high = 1.1}},
    {"weights of another shape", {N(3, 5), NONE, NONE, A(3), W(3, 4), NONE, NONE, {TP_GEN_NORMAL, 0}},
     OPTS(.kl = 0), .refuse = "weight must have the shape"},
    {0},
};
#define FIELD(f, type) {#f, TP_ATTR_##type, offsetof(tp_policy_opts, f)}
static const tp_attr policy_attrs[] = {
    FIELD(objective, INT), FIELD(kl, INT), FIELD(sequence, BOOL), FIELD(bias_correction, BOOL),
    FIELD(epsilon, FLOAT), FIELD(epsilon_high, FLOAT), FIELD(delta, FLOAT),
    FIELD(clip_ratio_c, FLOAT), FIELD(beta, FLOAT), FIELD(entropy_coef, FLOAT), {0},
};
/* clang-format on */
#define OPTIONAL (1 << POLICY_OLD | 1 << POLICY_REF | 1 << POLICY_MASK | 1 << POLICY_ENTROPY)

const tp_op op_policy_loss = {
    .name = "policy_loss",
    .synopsis = "sum of w (L(l, l_old, A) + beta KL(l, l_ref) - c H)",
    .doc = "The surrogate losses of GRPO, GSPO and CISPO from token log-probs, with clipping below "
           "and above, two-sided and dual clipping, three estimators of the divergence from a "
           "reference model, and an entropy bonus. Weights carry mask and normaliser, so the sum "
           "over parts of a batch is the loss of the batch. Second output: sums per row to report.",
    .infer = policy_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(policy_loss_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&policy_loss_cuda)},
    .oracle = policy_oracle,
    .vjp = policy_vjp,
    .saves_in = 0x7f,
    .optional = OPTIONAL,
    .aux_out = 2,
    .flops = policy_flops,
    .attrs = policy_attrs,
    .attr_bytes = sizeof(tp_policy_opts),
    .samples = policy_samples,
};
const tp_op op_policy_loss_backward = {
    .name = "policy_loss_backward",
    .synopsis = "d loss / d logprob, d loss / d entropy",
    .doc = "The gradients of policy_loss.",
    .infer = backward_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(policy_loss_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&policy_loss_backward_cuda)},
    .oracle = backward_oracle,
    .no_vjp = "a clipped loss has no second derivative worth the name",
    .optional = OPTIONAL,
    .flops = policy_flops,
    .attrs = policy_attrs,
    .attr_bytes = sizeof(tp_policy_opts),
    .samples = backward_samples,
};
