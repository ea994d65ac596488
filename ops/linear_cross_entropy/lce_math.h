/* The formulas of this op's rows that hold for one logit or one token, once, for the CPU's and
 * CUDA's kernels; linear_cross_entropy.c derives them. */
#ifndef TP_LCE_MATH_H
#define TP_LCE_MATH_H
#include "ops/math.h"

typedef struct lce_scale {
    float cap, cap_inv, temperature_inv, tanh_of_s; /* tanh_of_s: s times this is tanh(raw/cap) */
} lce_scale;
static inline lce_scale lce_scale_of(double softcap, double temperature) {
    bool capped = softcap > 0;
    lce_scale q;
    q.cap = capped ? (float)softcap : 0.0f;
    q.cap_inv = capped ? (float)(1 / softcap) : 0.0f;
    q.temperature_inv = (float)(1 / temperature);
    q.tanh_of_s = capped ? (float)(temperature / softcap) : 0.0f;
    return q;
}
/* s = cap*tanh(raw/cap)/temperature */
static inline TP_HD float lce_capped(float raw, lce_scale q) {
    return q.cap * tp_tanhf(raw * q.cap_inv) * q.temperature_inv;
}
/* Slope of the scaling at a scaled logit: d s / d raw = (1 - tanh^2)/temperature. */
static inline TP_HD float lce_slope(float s, lce_scale q) {
    float t = s * q.tanh_of_s; /* 0 without a cap */
    return fmaf(-t, t, 1.0f) * q.temperature_inv;
}
/* d/d s of a scaled logit, with p = e^(s-lse): p (a + b s), and d more at the target. */
static inline TP_HD float lce_grad_scaled(float p, float s, float a, float b) {
    return p * fmaf(b, s, a);
}
/* d/d raw of any but the target, and of the target. */
static inline TP_HD float lce_grad_other(float s, lce_scale q, float lse, float a, float b) {
    return lce_grad_scaled(tp_expf(s - lse), s, a, b) * lce_slope(s, q);
}
static inline TP_HD float lce_grad_target(float s, lce_scale q, float lse, float a, float b,
                                          float d) {
    return (lce_grad_scaled(tp_expf(s - lse), s, a, b) + d) * lce_slope(s, q);
}

/* What is known of a row so far: m its largest logit, sum = Σ e^(s-m), es = Σ e^(s-m) (s-m). */
typedef struct lce_row {
    float m, sum, es, target;
} lce_row;

/* ln x for normal x > 0: x = 2^e f with f in [sqrt(1/2), sqrt 2), ln f = 2 atanh(q), q =
 * (f-1)/(f+1), by atanh's series, whose first term left out is below 2^-25 of the result. NaN stays
 * NaN. */
static inline TP_HD float lce_logf(float x) {
    if (!(x < 3.0e38f)) return x;
    uint32_t u = tp_f32_to_bits(x) - 0x3F3504F3u; /* - sqrt(1/2): the exponent is then e */
    int32_t e = (int32_t)u >> 23;
    float f = tp_bits_to_f32((u & 0x7FFFFFu) + 0x3F3504F3u), q = (f - 1.0f) / (f + 1.0f), z = q * q;
    float p = 0.111111111f;
    p = fmaf(p, z, 0.142857143f);
    p = fmaf(p, z, 0.2f);
    p = fmaf(p, z, 0.333333333f);
    float r = fmaf(q * z, 2.0f * p, 2.0f * q);
    return fmaf((float)e, 0.693359375f, fmaf((float)e, -2.12194440e-4f, r));
}

typedef struct lce_stats {
    float logprob, entropy, lse;
} lce_stats;
/* The entropy from sums relative to m: lse - Σ p s would cancel for large logits. */
static inline TP_HD lce_stats lce_row_end(const lce_row *r) {
    float log_sum = lce_logf(r->sum);
    lce_stats s;
    s.logprob = (r->target - r->m) - log_sum;
    s.entropy = log_sum - r->es / r->sum;
    s.lse = r->m + log_sum;
    return s;
}
static inline TP_HD float lce_loss(lce_stats s, double z_loss) {
    return fmaf((float)z_loss * s.lse, s.lse, -s.logprob);
}

/* ds[v] = p_v (a + b s_v) + d [v = target]: the coefficients of one token from the cotangents of
 * its loss, logprob, entropy and lse. */
typedef struct lce_coef {
    double a, b, d;
} lce_coef;
static inline TP_HD lce_coef lce_coef_of(double lse, double entropy, double z, double dloss,
                                         double dlogprob, double dentropy, double dlse) {
    lce_coef q;
    q.a = dloss * (1 + 2 * z * lse) - dlogprob + dentropy * (lse - entropy) + dlse;
    q.b = -dentropy;
    q.d = dlogprob - dloss;
    return q;
}
#endif
