/* One row of logits on the CPU, in float: the order of its sums, which every CPU kernel keeps. A
 * row is walked in blocks of LCE_BLOCK entries counted from 0; inside a block sixteen lanes are
 * summed and then their tree; between blocks runs the online softmax of Milakov and Gimelshein
 * (arXiv 1805.02867). So a row's bits depend on the row alone. For *_cpu.c files only.
 */
#ifndef TP_LCE_ROW_H
#define TP_LCE_ROW_H
#include "ops/linear_cross_entropy/lce.h"
#include "ops/linear_cross_entropy/lce_math.h"
#include "ops/simd.h"

enum { LCE_BLOCK = 512 };

/* s = cap*tanh(raw/cap)/temperature */
static inline void lce_scale_row(float *s, int64_t n, lce_scale q) {
    if (q.cap > 0) {
        for (int64_t i = 0; i < n; i++) s[i] = lce_capped(s[i], q);
    } else if (q.temperature_inv != 1.0f) {
        for (int64_t i = 0; i < n; i++) s[i] *= q.temperature_inv;
    }
}

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
/* lesson: online */
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
/* end */

/* Takes entries v0..v0+n-1 (v0 a multiple of LCE_BLOCK), whose scaled logits start at s. */
static inline void lce_row_take(lce_row *r, const float *s, int64_t v0, int64_t n, int64_t target) {
    for (int64_t i = 0; i < n; i += LCE_BLOCK)
        lce_row_block(r, s + i, (int)(n - i < LCE_BLOCK ? n - i : LCE_BLOCK), v0 + i == 0);
    if (target >= v0 && target < v0 + n) r->target = s[target - v0];
}

/* Overwrites scaled logits with d/d raw: (p (a + b s) + d [target]) ds/draw. target: index in s, or
 * outside 0..n-1. */
static inline void lce_grad_row(float *restrict s, int64_t n, lce_scale q, float lse, float a,
                                float b, float d, int64_t target) {
    bool here = target >= 0 && target < n;
    float st = here ? s[target] : 0.0f;
    for (int64_t i = 0; i < n; i++) s[i] = lce_grad_other(s[i], q, lse, a, b);
    if (here) s[target] = lce_grad_target(st, q, lse, a, b, d);
}
#endif
