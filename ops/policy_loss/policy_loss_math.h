/* The formulas of policy_loss in float, once, for every kernel. */
#ifndef TP_POLICY_LOSS_MATH_H
#define TP_POLICY_LOSS_MATH_H
#include "ops/math.h"
#include "ops/policy_loss/policy_loss.h"

enum {
    POLICY_LOGPROB,
    POLICY_OLD,
    POLICY_REF,
    POLICY_ADVANTAGE,
    POLICY_WEIGHT,
    POLICY_MASK,
    POLICY_ENTROPY,
    POLICY_DLOSS
};

typedef struct policy_term {
    float value, slope; /* slope: d value / d l */
} policy_term;

static inline TP_HD float policy_cut(float x) {
    return x > 20.0f ? 20.0f : x < -20.0f ? -20.0f : x;
}

/* L and dL/d(log r), given r, whether log r was cut, A and l. For cispo the slope is dL/dl. */
/* lesson: surrogate */
static inline TP_HD policy_term policy_surrogate(const tp_policy_opts *o, float r, bool cut,
                                                 float a, float l) {
    policy_term t;
    float lo = 1.0f - (float)o->epsilon, hi = 1.0f + (float)o->epsilon_high;
    if (o->objective == TP_POLICY_CISPO) {
        float cap = (float)o->epsilon_high, w = r < cap ? r : cap;
        t.value = -w * a * l;
        t.slope = -w * a;
        return t;
    }
    bool capped = o->delta > 0 && r > (float)o->delta;
    float plain = (capped ? (float)o->delta : r) * a;
    float clipped = (r < lo ? lo : r > hi ? hi : r) * a;
    bool inside = plain <= clipped;
    t.value = -(inside ? plain : clipped);
    t.slope = inside && !capped && !cut ? -r * a : 0.0f;
    if (o->clip_ratio_c > 0 && a < 0 && t.value > -(float)o->clip_ratio_c * a) {
        t.value = -(float)o->clip_ratio_c * a;
        t.slope = 0.0f;
    }
    return t;
}
/* end */

/* KL and its derivative; r: of the token, for the correction; free: log r was not cut. */
static inline TP_HD policy_term policy_divergence(const tp_policy_opts *o, float l, float ref,
                                                  float r, bool cut) {
    float raw = ref - l, x = policy_cut(raw);
    bool inside = x == raw;
    policy_term t;
    if (o->kl == TP_POLICY_K1) {
        t.value = -x;
        t.slope = 1.0f;
    } else if (o->kl == TP_POLICY_K2) {
        t.value = 0.5f * x * x;
        t.slope = -x;
    } else {
        float e = tp_expf(x);
        t.value = e - x - 1.0f;
        t.slope = 1.0f - e;
    }
    if (!inside) t.slope = 0.0f;
    if (o->bias_correction) {
        t.slope = r * t.slope + (cut ? 0.0f : r * t.value);
        t.value *= r;
    }
    return t;
}

static inline TP_HD bool policy_clipped_low(const tp_policy_opts *o, float r, float a) {
    return o->objective == TP_POLICY_CLIP && a < 0 && r < 1.0f - (float)o->epsilon;
}
static inline TP_HD bool policy_clipped_high(const tp_policy_opts *o, float r, float a) {
    float most = (float)o->epsilon_high + (o->objective == TP_POLICY_CISPO ? 0.0f : 1.0f);
    return a > 0 && r > most;
}

/* ---- a token in its row --------------------------------------------------------------------- */
typedef struct policy_token {
    float l, d;   /* log-prob, and its distance from the one of the policy that wrote: 0 if none */
    float ref, h; /* where the call has a reference and entropies */
    float weight;
    bool mask, has_ref, has_h;
} policy_token;

typedef struct policy_row {
    float a;
    float shared; /* sequence level: r of all tokens, and whether its log was cut */
    bool shared_cut;
    double tokens; /* of the mask */
} policy_row;

/* sum: of d over the row's tokens of the mask, in their order. */
static inline TP_HD policy_row policy_row_of(float a, double tokens, double sum) {
    float mean = tokens > 0 ? (float)(sum / tokens) : 0.0f, x = policy_cut(mean);
    policy_row w = {a, tp_expf(x), x != mean, tokens};
    return w;
}

static inline TP_HD policy_term policy_token_surrogate(const tp_policy_opts *o, const policy_row *w,
                                                       const policy_token *x, float *r) {
    float cut = policy_cut(x->d);
    *r = o->sequence ? w->shared : tp_expf(cut);
    return policy_surrogate(o, *r, o->sequence ? w->shared_cut : cut != x->d, w->a, x->l);
}
static inline TP_HD policy_term policy_token_divergence(const tp_policy_opts *o,
                                                        const policy_token *x) {
    float cut = policy_cut(x->d);
    return policy_divergence(o, x->l, x->ref, tp_expf(cut), cut != x->d);
}

/* What a token adds to its row's statistics (TP_POLICY_DIFFERENCE: what competes for the largest).
 */
static inline TP_HD void policy_token_stats(const tp_policy_opts *o, const policy_row *w,
                                            const policy_token *x, float to[TP_POLICY_STATS]) {
    float r, loss;
    for (int i = 0; i < TP_POLICY_STATS; i++) to[i] = 0.0f;
    if (!x->mask && x->weight == 0) return;
    policy_term s = policy_token_surrogate(o, w, x, &r);
    loss = s.value;
    if (x->has_ref) {
        policy_term kl = policy_token_divergence(o, x);
        loss += (float)o->beta * kl.value;
        if (x->mask) to[TP_POLICY_KL] = kl.value;
    }
    if (x->has_h) {
        loss -= (float)o->entropy_coef * x->h;
        if (x->mask) to[TP_POLICY_ENTROPY] = x->h;
    }
    if (x->weight != 0) {
        to[TP_POLICY_LOSS] = x->weight * loss;
        to[TP_POLICY_SURROGATE] = x->weight * s.value;
    }
    if (!x->mask) return;
    to[TP_POLICY_TOKENS] = 1.0f;
    to[TP_POLICY_CLIP_LOW] = policy_clipped_low(o, r, w->a);
    to[TP_POLICY_CLIP_HIGH] = policy_clipped_high(o, r, w->a);
    to[TP_POLICY_RATIO] = r;
    to[TP_POLICY_DIFFERENCE] = x->d == x->d ? fabsf(x->d) : INFINITY; /* fmax drops NaN */
}

/* Whether the row's tokens share the gradient of their surrogates. */
static inline TP_HD bool policy_together(const tp_policy_opts *o) {
    return o->sequence && o->objective == TP_POLICY_CLIP;
}
typedef struct policy_grad {
    float dl, dh; /* d loss / d l and / d h, times dloss */
    float row;    /* together: what the token adds to d loss / d log r of the row */
} policy_grad;
static inline TP_HD policy_grad policy_token_grad(const tp_policy_opts *o, const policy_row *w,
                                                  const policy_token *x, float dloss) {
    policy_grad to = {0.0f, 0.0f, 0.0f};
    if (x->weight == 0) return to;
    float r, g = 0.0f;
    policy_term s = policy_token_surrogate(o, w, x, &r);
    if (policy_together(o))
        to.row = x->weight * s.slope;
    else
        g = s.slope;
    if (x->has_ref) g += (float)o->beta * policy_token_divergence(o, x).slope;
    to.dl = dloss * (x->weight * g);
    if (x->has_h) to.dh = dloss * (-(float)o->entropy_coef * x->weight);
    return to;
}
/* Together: the share of each token of the mask, from the sum of `row` over the row's tokens. */
static inline TP_HD float policy_shared_grad(const policy_row *w, double sum, float dloss) {
    return w->tokens > 0 ? dloss * (float)(sum / w->tokens) : 0.0f;
}
#endif
