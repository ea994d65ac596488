/* gemm_few_cpu: products of a few rows, as in decoding one token: every element of B is read once,
 * so B is not packed, and the time is that of reading it. The chains are those of gemm_cpu.c.
 *
 * What is asked for ahead goes to the second cache (the 2 of __builtin_prefetch): asked into the
 * first one, as many lines are in flight as that has buffers for, and half the memory's speed is
 * lost.
 *
 * In bf16 the elements of B are rounded as they are read and met by FMAs, a pair of steps in the
 * order of v16_dot2: reading takes longer than that. */
#include "ops/matmul/gemm_bf16.h"
#include "ops/matmul/gemm_gelu.h"
#include "ops/matmul/gemm_plan.h"
#include <string.h>

typedef struct few {
    const tp_gemm *g;
    const float *a; /* (k, m), contiguous */
    int64_t width;  /* columns per unit of work */
} few;

#if TP_ISA >= 4
enum { TOGETHER = 8 }; /* rows of B that are read side by side */
#else
enum { TOGETHER = 4 };
#endif
enum { STRIP = 4096 };      /* sums of a strip of columns, in the first cache */
enum { ROWS_AHEAD = 12 };   /* rows of B asked for before they are wanted */
enum { FEWEST_WIDE = 128 }; /* columns that are worth a thread's strip of their own */

/* y = acc (+ bias) (added to C), for one row's vector at column j. */
INLINE void finish(const tp_gemm *g, v16 acc, int64_t i, int64_t j, int n) {
    if (g->bias) acc = v16_add(acc, v16_load_n(g->bias + j, n));
    float *c = g->c + i * g->ldc + j;
    if (g->accumulate) acc = v16_add(v16_load_n(c, n), acc);
    v16_store_n(c, acc, n);
}

/* acc += the products of n steps: a[q*m] and b[q]. Pairs of them in bf16; a single one has zeros
 * before it. */
INLINE v16 add_steps(v16 acc, const float *a, const v16 *b, const int m, const int n,
                     const bool bf16) {
    if (bf16 && n == 1) acc = v16_add(acc, v16_zero());
#pragma GCC unroll 16
    for (int q = 0; q < n; q++) {
        const int at = bf16 && n > 1 ? q ^ 1 : q;
        acc = v16_fma(v16_set1(a[at * m]), b[at], acc);
    }
    return acc;
}

/* n rows of B, from b on, meet the sums y (m,ldy): whole vectors of columns, `lanes` in each. */
INLINE void add_rows(const few *f, const float *b, const float *a, float *y, int64_t ldy,
                     const int m, const int n, int64_t vectors, const int lanes, const bool first,
                     const bool bf16) {
    int64_t rs = f->g->b_rs;
    for (int64_t v = 0; v < vectors; v++) {
        v16 bk[TOGETHER];
#pragma GCC unroll 8
        for (int q = 0; q < n; q++) {
            const float *p = b + q * rs + v * TP_LANES;
            __builtin_prefetch(p + ROWS_AHEAD * rs, 0, 2);
            bk[q] = lanes == TP_LANES ? v16_load(p) : v16_load_n(p, lanes);
            if (bf16) bk[q] = v16_round_bf16(bk[q]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            float *yi = y + i * ldy + v * TP_LANES;
            v16 acc = first ? v16_zero() : v16_load(yi);
            v16_store(yi, add_steps(acc, a + i, bk, m, n, bf16));
        }
    }
}

INLINE int64_t strip_width(const int m) { return STRIP / m / TP_LANES * TP_LANES; }

/* B's rows are contiguous (b_cs = 1): they are read as they lie, a few long streams side by side,
 * and the sums of columns [j, j+width) stay at hand. */
INLINE void along_rows(const few *f, const int m, const bool bf16, int64_t j, int64_t width) {
    const tp_gemm *g = f->g;
    _Alignas(64) float y[STRIP];
    const float *a = f->a, *b = g->b + j;
    int64_t ldy = strip_width(m), whole = width / TP_LANES, k = 0, end = whole * TP_LANES;
    int rest = (int)(width - end);
    if (g->k < TOGETHER) memset(y, 0, sizeof y);
    for (; k + TOGETHER <= g->k; k += TOGETHER, b += TOGETHER * g->b_rs, a += TOGETHER * m) {
        if (k == 0)
            add_rows(f, b, a, y, ldy, m, TOGETHER, whole, TP_LANES, true, bf16);
        else
            add_rows(f, b, a, y, ldy, m, TOGETHER, whole, TP_LANES, false, bf16);
        if (rest) add_rows(f, b + end, a, y + end, ldy, m, TOGETHER, 1, rest, k == 0, bf16);
    }
    for (; bf16 && k + 2 <= g->k; k += 2, b += 2 * g->b_rs, a += 2 * m) {
        add_rows(f, b, a, y, ldy, m, 2, whole, TP_LANES, false, bf16);
        if (rest) add_rows(f, b + end, a, y + end, ldy, m, 2, 1, rest, false, bf16);
    }
    for (; k < g->k; k++, b += g->b_rs, a += m) {
        add_rows(f, b, a, y, ldy, m, 1, whole, TP_LANES, false, bf16);
        if (rest) add_rows(f, b + end, a, y + end, ldy, m, 1, 1, rest, false, bf16);
    }
    for (int i = 0; i < m; i++)
        for (int64_t v = 0; v * TP_LANES < width; v++)
            finish(g, v16_load(y + i * ldy + v * TP_LANES), i, j + v * TP_LANES,
                   v16_lanes(width, v));
}

/* B's columns are contiguous (b_rs = 1): sixteen columns, transposed sixteen steps at a time. */
INLINE void across_rows(const few *f, const int m, const bool bf16, int64_t j, int n) {
    const tp_gemm *g = f->g;
    const float *a = f->a, *b = g->b + j * g->b_cs;
    v16 acc[GEMM_FEW], r[TP_LANES];
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) acc[i] = v16_zero();
    int64_t k = 0;
    for (; k + TP_LANES <= g->k; k += TP_LANES) {
        if (n == TP_LANES) {
#pragma GCC unroll 16
            for (int l = 0; l < TP_LANES; l++) {
                r[l] = v16_load(b + l * g->b_cs + k);
                __builtin_prefetch(b + (l + TP_LANES) * g->b_cs + k, 0, 2); /* the next sixteen */
            }
        } else {
            for (int l = 0; l < TP_LANES; l++)
                r[l] = l < n ? v16_load(b + l * g->b_cs + k) : v16_zero();
        }
        if (bf16)
            for (int l = 0; l < TP_LANES; l++) r[l] = v16_round_bf16(r[l]);
        v16_transpose(r);
#pragma GCC unroll 8
        for (int l = 0; l < TP_LANES; l += 2)
#pragma GCC unroll 8
            for (int i = 0; i < m; i++)
                acc[i] = add_steps(acc[i], a + (k + l) * m + i, r + l, m, 2, bf16);
    }
    int rest = (int)(g->k - k);
    if (rest > 0) {
        for (int l = 0; l < TP_LANES; l++)
            r[l] = l < n ? v16_load_n(b + l * g->b_cs + k, rest) : v16_zero();
        if (bf16)
            for (int l = 0; l < TP_LANES; l++) r[l] = v16_round_bf16(r[l]);
        v16_transpose(r);
        for (int l = 0; l < rest; l += 2)
#pragma GCC unroll 8
            for (int i = 0; i < m; i++) {
                const float *al = a + (k + l) * m + i;
                acc[i] = l + 1 < rest ? add_steps(acc[i], al, r + l, m, 2, bf16)
                                      : add_steps(acc[i], al, r + l, m, 1, bf16);
            }
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) finish(g, acc[i], i, j, n);
}

INLINE void columns(const few *f, const int m, const bool bf16, int64_t begin, int64_t end) {
    int64_t step = f->g->b_cs == 1 ? strip_width(m) : TP_LANES;
    for (int64_t j = begin; j < end; j += step) {
        if (f->g->b_cs == 1)
            along_rows(f, m, bf16, j, gemm_min(step, end - j));
        else
            across_rows(f, m, bf16, j, v16_lanes(end - j, 0));
    }
}

#if TP_ISA > 1
INLINE void columns_of(const few *f, const bool bf16, int64_t j0, int64_t j1) {
    switch (f->g->m) {
#define OF_ROWS(m)                                                                                 \
    case m:                                                                                        \
        columns(f, m, bf16, j0, j1);                                                               \
        break;
        OF_ROWS(1)
        OF_ROWS(2)
        OF_ROWS(3)
        OF_ROWS(4)
        OF_ROWS(5)
        OF_ROWS(6)
        OF_ROWS(7)
        OF_ROWS(8)
    }
}
#else /* eight copies of emulated vectors take the compiler minutes */
static void columns_of(const few *f, bool bf16, int64_t j0, int64_t j1) {
    columns(f, (int)f->g->m, bf16, j0, j1);
}
#endif

/* Units [begin, end) of f->width columns each. */
static void run_units(void *arg, int64_t begin, int64_t end) {
    const few *f = arg;
    int64_t j0 = begin * f->width, j1 = gemm_min(end * f->width, f->g->n);
    if (f->g->bf16) {
        unsigned was = gemm_no_denormals();
        columns_of(f, true, j0, j1);
        gemm_denormals(was);
    } else {
        columns_of(f, false, j0, j1);
    }
    if (f->g->gelu) gemm_gelu(f->g, 0, f->g->m, j0, j1 - j0);
}

void TP_CAT(tp_gemm_few, TP_ISA)(tp_ctx *c, const tp_gemm *g) {
    float *a = g->work;
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t k = 0; k < g->k; k++) {
            float x = g->a[i * g->a_rs + k * g->a_cs];
            a[k * g->m + i] = g->bf16 ? bf16_round(x) : x;
        }
    bool alone = !c || (double)g->m * (double)g->n * (double)g->k < 3e5;
    int64_t share = alone ? g->n : gemm_ceil_div(g->n, tp_threads(c)); /* long streams, few */
    int64_t width = gemm_max(FEWEST_WIDE, gemm_ceil_div(share, TP_LANES) * TP_LANES);
    few f = {.g = g, .a = a, .width = gemm_min(width, g->b_cs == 1 ? strip_width((int)g->m) : 256)};
    int64_t units = gemm_ceil_div(g->n, f.width);
    if (alone)
        run_units(&f, 0, units);
    else
        tp_parallel_for(c, units, 1, run_units, &f);
}
