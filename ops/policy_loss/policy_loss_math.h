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
#endif
