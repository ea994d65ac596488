/* The mathematics of reinforcement learning: advantages and weights against formulas written out
 * here, losses against differences at and around their clip edges, and every estimator's expected
 * gradient, by enumeration of all completions of a tiny policy, against the exact gradient of the
 * expected reward. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "autograd/autograd.h"
#include "core/ctx.h"
#include "ops/policy_loss/policy_loss.h"
#include "rl/advantage.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static tp_ctx *c;
static int setup(void **state) {
    (void)state;
    return tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1});
}
static int teardown(void **state) {
    (void)state;
    tp_ctx_free(c);
    return 0;
}
static void near(double a, double b, double tolerance) {
    if (!(fabs(a - b) <= tolerance)) fail_msg("%.12g is not %.12g", a, b);
}

/* ---- advantages ----------------------------------------------------------------------------- */
enum { GROUPS = 3, G = 4 };
static const double rewards[GROUPS * G] = {1, 0, 0.5, 2, 0.1, 0.1, 0.1, 0.1, -1, 3, 0, 0};

static void test_advantages(void **state) {
    (void)state;
    float a[GROUPS * G];
    double all = 0, all2 = 0;
    for (int i = 0; i < GROUPS * G; i++) all += rewards[i] / (GROUPS * G);
    for (int i = 0; i < GROUPS * G; i++) all2 += (rewards[i] - all) * (rewards[i] - all);
    double batch_std = sqrt(all2 / (GROUPS * G - 1));
    for (int scale = 0; scale < 3; scale++)
        for (int rloo = 0; rloo < 2; rloo++) {
            tp_advantage_opts o = {(tp_scale_rewards)scale, rloo};
            tp_advantages(rewards, GROUPS, G, &o, a);
            for (int g = 0; g < GROUPS; g++)
                for (int i = 0; i < G; i++) {
                    const double *r = rewards + g * G;
                    double mean = (r[0] + r[1] + r[2] + r[3]) / 4, sq = 0;
                    double others = (r[0] + r[1] + r[2] + r[3] - r[i]) / 3;
                    for (int j = 0; j < G; j++) sq += (r[j] - mean) * (r[j] - mean);
                    double std = scale == TP_SCALE_GROUP   ? sqrt(sq / 3) + 1e-4
                                 : scale == TP_SCALE_BATCH ? batch_std + 1e-4
                                                           : 1;
                    near((double)a[g * G + i], (r[i] - (rloo ? others : mean)) / std, 1e-6);
                    if (g == 1) assert_true(a[g * G + i] == 0); /* exactly, where all are equal */
                    /* ddof 0 would be seen */
                    if (g == 0 && scale == TP_SCALE_GROUP && !rloo)
                        assert_true(fabs((double)a[i] - (r[i] - mean) / (sqrt(sq / 4) + 1e-4)) >
                                    0.01 * fabs((double)a[i]));
                }
        }
    /* a completion without a reward stands aside; one reward alone teaches nothing */
    double some[8] = {1, NAN, 0, NAN, NAN, 5, NAN, NAN};
    tp_advantages(some, 2, 4, &(tp_advantage_opts){TP_SCALE_NONE, false}, a);
    near((double)a[0], 0.5, 1e-7), near((double)a[2], -0.5, 1e-7);
    for (int i = 0; i < 8; i++)
        if (i != 0 && i != 2) assert_true(a[i] == 0);
    double w[3] = {2, 1, 5}, k[3] = {1, NAN, 0.5}, none[3] = {NAN, NAN, NAN};
    near(tp_weighted_reward(k, w, 3), 4.5, 0);
    assert_true(isnan(tp_weighted_reward(none, w, 3)));
    assert_false(tp_group_varies(none, 3));
    assert_true(tp_group_varies(some, 4));
}

static void test_weights(void **state) {
    (void)state;
    enum { ROWS = 4, R = 6 };
    const int64_t n[ROWS] = {2, 6, 1, 3};
    const uint8_t ended[ROWS] = {1, 0, 1, 1};
    float entropy[ROWS * R], w[ROWS * R];
    for (int i = 0; i < ROWS * R; i++) entropy[i] = (float)((i * 7) % 24) / 24;
    tp_completions all = {ROWS, R, n, ended, entropy};
    for (int type = 0; type < 4; type++)
        for (int mask = 0; mask < 2; mask++)
            for (int part = 0; part < 2; part++) { /* the second of two minibatches, or all rows */
                int first = part ? 2 : 0, rows = part ? 2 : 4, minibatches = part ? 2 : 1;
                tp_weight_opts o = {(tp_loss_type)type, 10, mask, 1};
                assert_int_equal(tp_token_weights(c, &all, first, rows, minibatches, &o, w), 0);
                double tokens = 0, here = 0;
                for (int i = 0; i < ROWS; i++) {
                    double m = mask && !ended[i] ? 0 : (double)n[i];
                    tokens += m;
                    if (i >= first && i < first + rows) here += m;
                }
                for (int i = 0; i < rows; i++)
                    for (int t = 0; t < R; t++) {
                        int row = first + i;
                        bool in = t < n[row] && !(mask && !ended[row]);
                        double want = type == TP_LOSS_GRPO   ? 1.0 / rows / (double)n[row]
                                      : type == TP_LOSS_BNPO ? 1 / here
                                      : type == TP_LOSS_DAPO ? minibatches / tokens
                                                             : 1.0 / (rows * 10);
                        near((double)w[i * R + t], in ? want : 0, 1e-7);
                    }
            }
    /* a quantile keeps the tokens of highest entropy, and the normaliser of all */
    tp_weight_opts o = {TP_LOSS_DAPO, 10, false, 0.25};
    assert_int_equal(tp_token_weights(c, &all, 0, ROWS, 1, &o, w), 0);
    int kept = 0;
    for (int i = 0; i < ROWS; i++)
        for (int t = 0; t < R; t++) {
            int above = 0;
            for (int j = 0; j < ROWS; j++)
                for (int s = 0; s < n[j]; s++) above += entropy[j * R + s] > entropy[i * R + t];
            if (w[i * R + t] == 0) continue;
            assert_true(above < 4);
            near((double)w[i * R + t], 1.0 / 12, 1e-7);
            kept++;
        }
    assert_int_equal(kept, 3); /* of 12, as torch.quantile cuts */
    float x[5] = {3, 1, 2, 5, 4};
    near((double)tp_quantile(x, 5, 0.3), 2.2, 1e-6);
    near(tp_overlong_punishment(8, 10, 4), -0.5, 0);
    near(tp_overlong_punishment(6, 10, 4), 0, 0);
    near(tp_overlong_punishment(12, 10, 4), -1, 0);
    near(tp_overlong_punishment(10, 10, 0), 0, 0);
}

static void test_pass_at_k(void **state) {
    (void)state;
    for (int n = 1; n <= 8; n++)
        for (int right = 0; right <= n; right++)
            for (int k = 1; k <= n; k++) { /* by counting the subsets of size k */
                int subsets = 0, hit = 0;
                for (int s = 0; s < 1 << n; s++) {
                    if (__builtin_popcount((unsigned)s) != k) continue;
                    subsets++;
                    hit += (s & ((1 << right) - 1)) != 0;
                }
                near(tp_pass_at_k(n, right, k), (double)hit / subsets, 1e-12);
            }
}

/* ---- losses --------------------------------------------------------------------------------- */
typedef struct lossy { /* one row of T tokens, in double */
    tp_policy_opts o;
    int T;
    double l[4], old[4], ref[4], h[4], w[4], a;
    bool has_old, has_ref, has_h;
} lossy;

static tp_tensor *row(const double *x, int n, int ndim) {
    tp_tensor *t = tp_tensor_new(c, TP_F64, ndim, ndim == 2 ? (int64_t[]){1, n} : (int64_t[]){n});
    assert_non_null(t);
    memcpy(t->data, x, (size_t)n * sizeof *x);
    return t;
}

static double run_loss(const lossy *x, double *dl, double *dh) {
    assert_int_equal(tp_tape_on(c), 0);
    tp_policy_in in = {.logprob = tp_require_grad(row(x->l, x->T, 2)),
                       .advantage = row(&x->a, 1, 1),
                       .weight = row(x->w, x->T, 2)};
    if (x->has_old) in.old = row(x->old, x->T, 2);
    if (x->has_ref) in.ref = row(x->ref, x->T, 2);
    if (x->has_h) in.entropy = tp_require_grad(row(x->h, x->T, 2));
    tp_policy_out out = tp_policy_loss(c, &in, &x->o);
    if (!out.loss) fail_msg("%s", tp_error(c));
    double loss = tp_f64(out.loss)[0];
    if (dl) {
        assert_int_equal(tp_backward(c, out.loss), 0);
        for (int t = 0; t < x->T; t++) dl[t] = tp_f64(in.logprob->grad)[t];
        for (int t = 0; t < x->T && dh && in.entropy; t++) dh[t] = tp_f64(in.entropy->grad)[t];
    }
    tp_tape_off(c);
    tp_step_end(c);
    return loss;
}

/* What the loss is, from the papers' formulas, token by token. */
static double formula(const lossy *x) {
    double total = 0, mean = 0, n = 0;
    for (int t = 0; t < x->T; t++)
        if (x->w[t] != 0) mean += x->has_old ? x->l[t] - x->old[t] : 0, n++;
    for (int t = 0; t < x->T; t++) {
        double own = exp(x->has_old ? x->l[t] - x->old[t] : 0);
        double r = x->o.sequence ? exp(mean / n) : own, A = x->a, L;
        if (x->o.objective == TP_POLICY_CISPO) {
            L = -(r < x->o.epsilon_high ? r : x->o.epsilon_high) * A * x->l[t];
        } else {
            double one = (x->o.delta > 0 && r > x->o.delta ? x->o.delta : r) * A;
            double two = r < 1 - x->o.epsilon        ? (1 - x->o.epsilon) * A
                         : r > 1 + x->o.epsilon_high ? (1 + x->o.epsilon_high) * A
                                                     : r * A;
            L = one < two ? -one : -two;
            if (x->o.clip_ratio_c > 0 && A < 0 && L > -x->o.clip_ratio_c * A)
                L = -x->o.clip_ratio_c * A;
        }
        if (x->has_ref) {
            double d = x->ref[t] - x->l[t];
            double kl = x->o.kl == TP_POLICY_K1   ? -d
                        : x->o.kl == TP_POLICY_K2 ? d * d / 2
                                                  : exp(d) - d - 1;
            L += x->o.beta * kl * (x->o.bias_correction ? own : 1);
        }
        if (x->has_h) L -= x->o.entropy_coef * x->h[t];
        total += x->w[t] * L;
    }
    return total;
}

static const tp_policy_opts variants[] = {
    {.epsilon = 0.2, .epsilon_high = 0.28},
    {.epsilon = 0.2, .epsilon_high = 0.28, .delta = 1.5},
    {.epsilon = 0.2, .epsilon_high = 0.28, .clip_ratio_c = 3},
    {.epsilon = 3e-4, .epsilon_high = 4e-4, .sequence = true},
    {.epsilon = 0.2, .epsilon_high = 0.28, .sequence = true, .clip_ratio_c = 2},
    {.objective = TP_POLICY_CISPO, .epsilon_high = 1.6},
    {.objective = TP_POLICY_CISPO, .epsilon_high = 1.6, .sequence = true},
    {.epsilon = 0.2, .epsilon_high = 0.2, .beta = 0.3, .kl = TP_POLICY_K1},
    {.epsilon = 0.2, .epsilon_high = 0.2, .beta = 0.3, .kl = TP_POLICY_K2},
    {.epsilon = 0.2, .epsilon_high = 0.2, .beta = 0.3, .kl = TP_POLICY_K3},
    {.epsilon = 0.2, .epsilon_high = 0.2, .beta = 0.3, .kl = TP_POLICY_K3, .bias_correction = true},
    {.epsilon = 0.2, .epsilon_high = 0.2, .entropy_coef = 0.1},
};
enum { VARIANTS = sizeof variants / sizeof *variants };

/* The edges of a variant: ratios at which its formula changes. */
static int edges(const tp_policy_opts *o, double out[8]) {
    int n = 0;
    if (o->objective == TP_POLICY_CLIP) out[n++] = 1 - o->epsilon, out[n++] = 1 + o->epsilon_high;
    if (o->objective == TP_POLICY_CISPO) out[n++] = o->epsilon_high;
    if (o->delta > 0) out[n++] = o->delta;
    if (o->clip_ratio_c > 0) out[n++] = o->clip_ratio_c;
    out[n++] = 1;
    return n;
}

static lossy around(const tp_policy_opts *o, double r, double a) {
    lossy x = {.o = *o,
               .T = 3,
               .a = a,
               .has_old = true,
               .has_ref = o->beta > 0,
               .has_h = o->entropy_coef > 0};
    for (int t = 0; t < x.T; t++) {
        x.old[t] = -1.3 - 0.2 * t;
        x.l[t] = x.old[t] + log(r) + (o->sequence ? 0.1 * (t - 1) : t == 1 ? 0 : 0.37 * (t - 1));
        x.ref[t] = -1 - 0.3 * t;
        x.h[t] = 0.5 + t;
        x.w[t] = 0.2 + 0.1 * t;
    }
    return x;
}

static void test_losses(void **state) {
    (void)state;
    int compared = 0;
    for (int v = 0; v < VARIANTS; v++) {
        double edge[8];
        int n = edges(&variants[v], edge);
        for (int e = 0; e < n; e++)
            for (int side = -2; side <= 2; side++)
                for (int sign = -1; sign <= 1; sign++) {
                    double gap = side * 1e-4 * (fabs(edge[e] - 1) < 0.01 ? 0.1 : 1);
                    lossy x = around(&variants[v], edge[e] + gap, sign * 0.8);
                    double dl[4], dh[4], want = formula(&x);
                    near(run_loss(&x, dl, dh), want, 1e-12 * (1 + fabs(want)));
                    bool held = x.o.objective == TP_POLICY_CISPO; /* a ratio that is not moved */
                    for (int t = 0; t < x.T; t++) {
                        lossy up = x, down = x;
                        double h = 1e-7;
                        if (side == 0 && t == 1 && !x.o.sequence) continue; /* at the edge: below */
                        if (side == 0 && x.o.sequence) continue;
                        up.l[t] += h, down.l[t] -= h;
                        if (held) up.old[t] += h, down.old[t] -= h;
                        near(dl[t], (formula(&up) - formula(&down)) / (2 * h), 2e-6);
                        if (x.has_h) near(dh[t], -x.o.entropy_coef * x.w[t], 1e-15);
                        compared++;
                    }
                    if (side || held) continue;
                    /* at the edge itself the gradient is that of one side or the other */
                    lossy up = x, down = x;
                    int t = 1;
                    up.l[t] += 1e-7, down.l[t] -= 1e-7;
                    double right = (formula(&up) - want) / 1e-7,
                           left = (want - formula(&down)) / 1e-7;
                    if (fabs(dl[t] - right) > 1e-4 && fabs(dl[t] - left) > 1e-4)
                        fail_msg("at an edge: %g is neither %g nor %g", dl[t], left, right);
                }
    }
    /* low and high are not the same side */
    lossy x = around(&variants[0], 1.24, 0.8);
    double dl[4];
    run_loss(&x, dl, NULL);
    assert_true(dl[1] != 0); /* 1.24 < 1.28 */
    x = around(&variants[0], 0.76, -0.8);
    run_loss(&x, dl, NULL);
    assert_true(dl[1] == 0); /* 0.76 < 0.8: clipped */
    /* a masked token's gradient is exactly 0, as is everything with no advantage and no KL */
    x.w[0] = 0, x.l[0] = 50;
    run_loss(&x, dl, NULL);
    assert_true(dl[0] == 0);
    x = around(&variants[0], 1, 0);
    run_loss(&x, dl, NULL);
    for (int t = 0; t < 3; t++) assert_true(dl[t] == 0);
    /* without old log-probs r is 1 and the gradient that of A l */
    x = around(&variants[0], 1.1, 0.7);
    x.has_old = false;
    near(run_loss(&x, dl, NULL), -0.7 * (0.2 + 0.3 + 0.4), 1e-12);
    for (int t = 0; t < 3; t++) near(dl[t], -0.7 * x.w[t], 1e-12);
    /* far away nothing overflows */
    x = around(&variants[10], 1, 0.5);
    x.l[0] = -400, x.ref[0] = 400, x.l[1] = 400;
    assert_true(isfinite(run_loss(&x, dl, NULL)) && isfinite(dl[0]) && isfinite(dl[1]));
    print_message("%d derivatives around clip edges agree with differences\n", compared);
}

/* ---- the exact gradient --------------------------------------------------------------------- */
/* A policy of three tokens, of which 0 ends, and at most three of them: 15 completions. */
enum { TOKENS = 3, LENGTH = 3, PREFIXES = 7, PARAMETERS = PREFIXES * TOKENS, COMPLETIONS = 15 };
typedef struct completion {
    int n, token[LENGTH], prefix[LENGTH];
    double reward;
} completion;
static completion every[COMPLETIONS];
static double theta[PREFIXES][TOKENS], theta_ref[PREFIXES][TOKENS];
static bool allowed[PREFIXES][TOKENS]; /* the sets of truncated sampling */

static void enumerate(void) {
    int m = 0;
    for (int a = 0; a < TOKENS; a++)
        for (int b = 0; b < (a ? TOKENS : 1); b++)
            for (int d = 0; d < (a && b ? TOKENS : 1); d++) {
                completion *x = &every[m++];
                *x = (completion){.n = !a ? 1 : !b ? 2 : 3, .token = {a, b, d}};
                x->prefix[1] = a; /* 1, 2 */
                x->prefix[2] = 2 + 2 * (a - 1) + b;
                x->reward = (m * 5) % 7 / 3.0 - (x->n == 3);
            }
    assert_int_equal(m, COMPLETIONS);
    for (int p = 0; p < PREFIXES; p++)
        for (int v = 0; v < TOKENS; v++) {
            theta[p][v] = sin(3.0 * p + 2.0 * v);
            theta_ref[p][v] = cos(2.0 * p - v);
        }
}

/* truncated: over the allowed tokens only */
static double logprob(double (*th)[TOKENS], bool truncated, int p, int v) {
    double sum = 0;
    for (int u = 0; u < TOKENS; u++)
        if (!truncated || allowed[p][u]) sum += exp(th[p][u]);
    return th[p][v] - log(sum);
}
static double probability(const completion *x, bool truncated) {
    double l = 0;
    for (int t = 0; t < x->n; t++) {
        if (truncated && !allowed[x->prefix[t]][x->token[t]]) return 0;
        l += logprob(theta, truncated, x->prefix[t], x->token[t]);
    }
    return exp(l);
}
/* Adds scale * d logprob(token t of x) / d theta. */
static void add_score(double *g, const completion *x, int t, bool truncated, double scale) {
    int p = x->prefix[t];
    for (int u = 0; u < TOKENS; u++) {
        if (truncated && !allowed[p][u]) continue;
        double pu = exp(logprob(theta, truncated, p, u));
        g[p * TOKENS + u] += scale * ((u == x->token[t]) - pu);
    }
}

typedef struct estimator {
    const char *name;
    tp_scale_rewards scale;
    bool rloo;
    tp_loss_type type;
    bool truncated, renormalised;
} estimator;

/* Minus the expected gradient of the loss over groups of `size`, by enumeration of all groups. */
/* lesson: expected */
static void expected(const estimator *e, int size, double *g) {
    int groups = 1, index[3];
    memset(g, 0, PARAMETERS * sizeof *g);
    for (int i = 0; i < size; i++) groups *= COMPLETIONS;
    for (int k = 0; k < groups; k++) {
        double P = 1, r[3];
        float a[3], w[3 * LENGTH];
        int64_t n[3];
        uint8_t ended[3] = {1, 1, 1};
        for (int i = 0, left = k; i < size; i++, left /= COMPLETIONS) {
            const completion *x = &every[index[i] = left % COMPLETIONS];
            P *= probability(x, e->truncated);
            r[i] = x->reward;
            n[i] = x->n;
        }
        if (P == 0) continue;
        tp_advantages(r, 1, size, &(tp_advantage_opts){e->scale, e->rloo}, a);
        tp_completions all = {size, LENGTH, n, ended, NULL};
        tp_weight_opts o = {e->type, LENGTH, false, 1};
        assert_int_equal(tp_token_weights(c, &all, 0, size, 1, &o, w), 0);
        for (int i = 0; i < size; i++) {
            const completion *x = &every[index[i]];
            lossy q = {.o = {.epsilon = 0.2, .epsilon_high = 0.2}, .T = x->n, .a = (double)a[i]};
            double dl[4];
            if (a[i] == 0) continue;
            bool over = e->truncated && e->renormalised;
            for (int t = 0; t < x->n; t++) {
                q.l[t] = logprob(theta, over, x->prefix[t], x->token[t]);
                q.w[t] = (double)w[i * LENGTH + t];
            }
            run_loss(&q, dl, NULL);
            for (int t = 0; t < x->n; t++) add_score(g, x, t, over, -P * dl[t]);
        }
    }
}
/* end */

static void exact(bool truncated, double *g) {
    memset(g, 0, PARAMETERS * sizeof *g);
    for (int k = 0; k < COMPLETIONS; k++) {
        double P = probability(&every[k], truncated);
        for (int t = 0; t < every[k].n && P > 0; t++)
            add_score(g, &every[k], t, truncated, P * every[k].reward);
    }
}

static double dot(const double *a, const double *b) {
    double s = 0;
    for (int i = 0; i < PARAMETERS; i++) s += a[i] * b[i];
    return s;
}
/* How far g points from the truth: the length of what is not along it, relative; *along: the factor
 * in its direction. */
static double bias(const double *g, const double *truth, double *along) {
    *along = dot(g, truth) / dot(truth, truth);
    double rest = 0;
    for (int i = 0; i < PARAMETERS; i++) {
        double d = g[i] - *along * truth[i];
        rest += d * d;
    }
    return sqrt(rest / dot(g, g));
}

static void test_estimators(void **state) {
    (void)state;
    static const estimator all[] = {
        {"dr_grpo (no std, constant length)", TP_SCALE_NONE, false, TP_LOSS_DR_GRPO, 0, 0},
        {"rloo, constant length", TP_SCALE_NONE, true, TP_LOSS_DR_GRPO, 0, 0},
        {"group std, constant length", TP_SCALE_GROUP, false, TP_LOSS_DR_GRPO, 0, 0},
        {"no std, mean of each completion", TP_SCALE_NONE, false, TP_LOSS_GRPO, 0, 0},
        {"no std, mean over tokens (dapo)", TP_SCALE_NONE, false, TP_LOSS_DAPO, 0, 0},
        {"group std, dapo (the default)", TP_SCALE_GROUP, false, TP_LOSS_DAPO, 0, 0},
        {"rloo, truncated, renormalised", TP_SCALE_NONE, true, TP_LOSS_DR_GRPO, true, true},
        {"rloo, truncated, full softmax", TP_SCALE_NONE, true, TP_LOSS_DR_GRPO, true, false},
    };
    enumerate();
    for (int p = 0; p < PREFIXES; p++) { /* top-k = 2 */
        int least = 0;
        for (int v = 1; v < TOKENS; v++)
            if (theta[p][v] < theta[p][least]) least = v;
        for (int v = 0; v < TOKENS; v++) allowed[p][v] = v != least;
    }
    double total = 0;
    for (int k = 0; k < COMPLETIONS; k++) total += probability(&every[k], false);
    near(total, 1, 1e-12);
    print_message("%-36s %10s %10s   against d E[reward], groups of 3\n", "estimator", "factor",
                  "off");
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        double truth[PARAMETERS], g[PARAMETERS], along, off = 0;
        exact(all[i].truncated, truth);
        for (int size = 2; size <= 3; size++) {
            expected(&all[i], size, g);
            off = bias(g, truth, &along);
            bool unbiased = all[i].type == TP_LOSS_DR_GRPO && all[i].scale == TP_SCALE_NONE &&
                            (!all[i].truncated || all[i].renormalised);
            double factor = (all[i].rloo ? 1 : (size - 1.0) / size) / LENGTH;
            if (unbiased) {
                if (off > 1e-6) fail_msg("%s: off by %g", all[i].name, off);
                near(along, factor, 1e-6);
            } else if (off < 1e-3) {
                fail_msg("%s: the check does not see its bias", all[i].name);
            }
        }
        print_message("%-36s %10.4f %9.2f%%\n", all[i].name, along, 100 * off);
    }
}

/* Expected gradients of the three KL estimators on policy, against that of KL(pi || ref). */
static void test_divergences(void **state) {
    (void)state;
    double truth[PARAMETERS] = {0};
    enumerate();
    for (int k = 0; k < COMPLETIONS;
         k++) { /* d sum P (log P - log Q) = sum P dlogP (logP - logQ) */
        const completion *x = &every[k];
        double P = probability(x, false), gap = 0;
        for (int t = 0; t < x->n; t++)
            gap += logprob(theta, false, x->prefix[t], x->token[t]) -
                   logprob(theta_ref, false, x->prefix[t], x->token[t]);
        for (int t = 0; t < x->n; t++) add_score(truth, x, t, false, P * gap);
    }
    /* per token, as in the loss, the later tokens' share is left out: the truth for that is the sum
     * over prefixes of P(prefix) dKL(token | prefix), prefixes held fixed */
    double local[PARAMETERS] = {0};
    for (int k = 0; k < COMPLETIONS; k++) {
        const completion *x = &every[k];
        double P = probability(x, false);
        for (int t = 0; t < x->n; t++)
            add_score(local, x, t, false,
                      P * (logprob(theta, false, x->prefix[t], x->token[t]) -
                           logprob(theta_ref, false, x->prefix[t], x->token[t])));
    }
    for (int kl = TP_POLICY_K1; kl <= TP_POLICY_K3; kl++)
        for (int corrected = 0; corrected < 2; corrected++) {
            double g[PARAMETERS] = {0}, along, off;
            for (int k = 0; k < COMPLETIONS; k++) {
                const completion *x = &every[k];
                double P = probability(x, false), dl[4];
                lossy q = {.o = {.epsilon = 0.2,
                                 .epsilon_high = 0.2,
                                 .beta = 1,
                                 .kl = kl,
                                 .bias_correction = corrected},
                           .T = x->n,
                           .has_ref = true,
                           .has_old = true};
                for (int t = 0; t < x->n; t++) {
                    q.old[t] = q.l[t] = logprob(theta, false, x->prefix[t], x->token[t]);
                    q.ref[t] = logprob(theta_ref, false, x->prefix[t], x->token[t]);
                    q.w[t] = 1;
                }
                run_loss(&q, dl, NULL);
                for (int t = 0; t < x->n; t++) add_score(g, x, t, false, P * dl[t]);
            }
            double size = sqrt(dot(g, g) / dot(local, local));
            off = bias(g, local, &along);
            print_message("k%d%-12s gradient %6.3f of the token-wise KL's, %6.2f%% off it\n",
                          kl + 1, corrected ? ", corrected" : "", along,
                          size > 1e-9 ? 100 * off : 0.0);
            if (kl == TP_POLICY_K1 && !corrected) assert_true(size < 1e-9); /* no signal at all */
            bool right = (kl == TP_POLICY_K2 && !corrected) || (kl != TP_POLICY_K2 && corrected);
            if (right) near(along, 1, 1e-9), assert_true(off < 1e-9);
            if (kl == TP_POLICY_K3 && !corrected) assert_true(off > 1e-2);
        }
    double along, off = bias(local, truth, &along);
    print_message("the token-wise KL's gradient: %.3f of the whole KL's, %.2f%% off it\n", along,
                  100 * off);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_advantages), cmocka_unit_test(test_weights),
        cmocka_unit_test(test_pass_at_k),  cmocka_unit_test(test_losses),
        cmocka_unit_test(test_estimators), cmocka_unit_test(test_divergences),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
