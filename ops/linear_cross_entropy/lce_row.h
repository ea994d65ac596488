/* One row of logits, in float: the formulas of this op, stated once, in the order that every kernel
 * keeps. A row is walked in blocks of LCE_BLOCK entries counted from 0; inside a block sixteen
 * lanes are summed and then their tree; between blocks runs the online softmax of Milakov and
 * Gimelshein (arXiv 1805.02867). So a row's bits depend on the row alone. For *_cpu.c files only.
 */
#ifndef TP_LCE_ROW_H
#define TP_LCE_ROW_H
#include "ops/linear_cross_entropy/lce.h"
#include "ops/math.h"
#include "ops/simd.h"

enum { LCE_BLOCK = 512 };

typedef struct lce_scale {
    float cap, cap_inv, temperature_inv, tanh_of_s; /* tanh_of_s: s times this is tanh(raw/cap) */
} lce_scale;
static inline lce_scale lce_scale_of(double softcap, double temperature) {
    bool capped = softcap > 0;
    return (lce_scale){capped ? (float)softcap : 0.0f, capped ? (float)(1 / softcap) : 0.0f,
                       (float)(1 / temperature), capped ? (float)(temperature / softcap) : 0.0f};
}

/* s = cap*tanh(raw/cap)/temperature */
static inline void lce_scale_row(float *s, int64_t n, lce_scale q) {
    if (q.cap > 0) {
        for (int64_t i = 0; i < n; i++)
            s[i] = q.cap * tp_tanhf(s[i] * q.cap_inv) * q.temperature_inv;
    } else if (q.temperature_inv != 1.0f) {
        for (int64_t i = 0; i < n; i++) s[i] *= q.temperature_inv;
    }
}

/* What is known of a row so far: m its largest logit, sum = Σ e^(s-m), es = Σ e^(s-m) (s-m). */
typedef struct lce_row {
    float m, sum, es, target;
} lce_row;

static inline float lce_block_max(const float *s, int n) {
    float m = s[0];
    int i = 0;
    if (n >= 16) {
        v16 lanes = v16_load(s);
        for (i = 16; i + 16 <= n; i += 16) lanes = v16_max(lanes, v16_load(s + i));
        m = v16_hmax(lanes);
    }
    for (; i < n; i++) m = s[i] > m ? s[i] : m;
    return m;
}

static inline float lce_block_sum(const float *e, int n) {
    v16 lanes = v16_zero();
    int i = 0;
    for (; i + 16 <= n; i += 16) lanes = v16_add(lanes, v16_load(e + i));
    if (i < n) lanes = v16_add(lanes, v16_load_n(e + i, n - i));
    return v16_sum(lanes);
}

/* Takes entries s[0..n-1], 1 <= n <= LCE_BLOCK, into the row. */
static inline void lce_row_block(lce_row *r, const float *s, int n, bool first) {
    float e[LCE_BLOCK], q[LCE_BLOCK], m = lce_block_max(s, n);
    if (!first && r->m > m) m = r->m;
    if (n < 1) return;
    for (int i = 0; i < n; i++) {
        float d = s[i] - m, w = tp_expf(d);
        e[i] = w;
        q[i] = w * d;
    }
    float sum = lce_block_sum(e, n), es = lce_block_sum(q, n);
    if (!first) {
        float d = r->m - m, w = tp_expf(d); /* exactly 0 and 1 where the maximum stays */
        es += w * fmaf(d, r->sum, r->es);
        sum += w * r->sum;
    }
    r->m = m;
    r->sum = sum;
    r->es = es;
}

/* Takes entries v0..v0+n-1 (v0 a multiple of LCE_BLOCK), whose scaled logits start at s. */
static inline void lce_row_take(lce_row *r, const float *s, int64_t v0, int64_t n, int64_t target) {
    for (int64_t i = 0; i < n; i += LCE_BLOCK)
        lce_row_block(r, s + i, (int)(n - i < LCE_BLOCK ? n - i : LCE_BLOCK), v0 + i == 0);
    if (target >= v0 && target < v0 + n) r->target = s[target - v0];
}

/* ln x for normal x > 0: x = 2^e f with f in [sqrt(1/2), sqrt 2), ln f = 2 atanh(q), q =
 * (f-1)/(f+1), by atanh's series, whose first term left out is below 2^-25 of the result. NaN stays
 * NaN. */
static inline float lce_logf(float x) {
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
static inline lce_stats lce_row_end(const lce_row *r) {
    float log_sum = lce_logf(r->sum);
    return (lce_stats){(r->target - r->m) - log_sum, log_sum - r->es / r->sum, r->m + log_sum};
}

/* Slope of the scaling at a scaled logit: d s / d raw = (1 - tanh^2)/temperature. */
static inline float lce_slope(float s, lce_scale q) {
    float t = s * q.tanh_of_s; /* 0 without a cap */
    return fmaf(-t, t, 1.0f) * q.temperature_inv;
}

/* Overwrites scaled logits with d/d raw: (p (a + b s) + d [target]) ds/draw. target: index in s, or
 * outside 0..n-1. */
static inline void lce_grad_row(float *restrict s, int64_t n, lce_scale q, float lse, float a,
                                float b, float d, int64_t target) {
    bool here = target >= 0 && target < n;
    float st = here ? s[target] : 0.0f;
    for (int64_t i = 0; i < n; i++)
        s[i] = tp_expf(s[i] - lse) * fmaf(b, s[i], a) * lce_slope(s[i], q);
    if (here) s[target] = (tp_expf(st - lse) * fmaf(b, st, a) + d) * lce_slope(st, q);
}
#endif
