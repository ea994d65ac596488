/* gemm_few_cpu: products of a few rows, as in decoding one token: every element of B is read once,
 * so B is not packed, and the time is that of reading it. The chains are those of gemm_cpu.c. */
#include "ops/matmul/gemm_gelu.h"
#include "ops/matmul/gemm_plan.h"
#include "ops/simd.h"

typedef struct few {
    const tp_gemm *g;
    const float *a; /* (k, m), contiguous */
    int64_t width;  /* columns per unit of work */
} few;

#if TP_ISA >= 4
enum { REGISTERS = 24, WIDEST = 12 };
#else
enum { REGISTERS = 6, WIDEST = 4 };
#endif
enum { ROWS_AHEAD = 12 }; /* rows of B asked for before they are wanted */

/* Vectors side by side in a tile of m rows: enough chains to hide the latency of one. */
INLINE int vectors(const int m) {
    int n = REGISTERS / m;
    return n > WIDEST ? WIDEST : n < 1 ? 1 : n;
}

/* y = acc (+ bias) (added to C), for one row's vector at column j. */
INLINE void finish(const tp_gemm *g, v16 acc, int64_t i, int64_t j, int n) {
    if (g->bias) acc = v16_add(acc, v16_load_n(g->bias + j, n));
    float *c = g->c + i * g->ldc + j;
    if (g->accumulate) acc = v16_add(v16_load_n(c, n), acc);
    v16_store_n(c, acc, n);
}

/* B's rows are contiguous (b_cs = 1): nv vectors of columns from j on; n lanes in the last. */
INLINE void along_rows(const few *f, const int m, const int nv, int64_t j, int n) {
    const tp_gemm *g = f->g;
    const float *a = f->a, *b = g->b + j;
    v16 acc[GEMM_FEW][WIDEST];
#pragma GCC unroll 8
    for (int i = 0; i < m; i++)
#pragma GCC unroll 12
        for (int v = 0; v < nv; v++) acc[i][v] = v16_zero();
    for (int64_t k = 0; k < g->k; k++, a += m, b += g->b_rs) {
        v16 bk[WIDEST];
#pragma GCC unroll 12
        for (int v = 0; v < nv; v++) {
            __builtin_prefetch(b + ROWS_AHEAD * g->b_rs + v * TP_LANES);
            bk[v] = n == TP_LANES ? v16_load(b + v * TP_LANES) : v16_load_n(b + v * TP_LANES, n);
        }
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            v16 ai = v16_set1(a[i]);
#pragma GCC unroll 12
            for (int v = 0; v < nv; v++) acc[i][v] = v16_fma(ai, bk[v], acc[i][v]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; i++)
#pragma GCC unroll 12
        for (int v = 0; v < nv; v++) finish(g, acc[i][v], i, j + v * TP_LANES, n);
}

/* B's columns are contiguous (b_rs = 1): sixteen columns, transposed sixteen steps at a time. */
INLINE void across_rows(const few *f, const int m, int64_t j, int n) {
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
                __builtin_prefetch(b + l * g->b_cs + k + 8 * TP_LANES);
            }
        } else {
            for (int l = 0; l < TP_LANES; l++)
                r[l] = l < n ? v16_load(b + l * g->b_cs + k) : v16_zero();
        }
        v16_transpose(r);
#pragma GCC unroll 16
        for (int l = 0; l < TP_LANES; l++)
#pragma GCC unroll 8
            for (int i = 0; i < m; i++)
                acc[i] = v16_fma(v16_set1(a[(k + l) * m + i]), r[l], acc[i]);
    }
    int rest = (int)(g->k - k);
    if (rest > 0) {
        for (int l = 0; l < TP_LANES; l++)
            r[l] = l < n ? v16_load_n(b + l * g->b_cs + k, rest) : v16_zero();
        v16_transpose(r);
        for (int l = 0; l < rest; l++)
#pragma GCC unroll 8
            for (int i = 0; i < m; i++)
                acc[i] = v16_fma(v16_set1(a[(k + l) * m + i]), r[l], acc[i]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) finish(g, acc[i], i, j, n);
}

INLINE void columns(const few *f, const int m, int64_t begin, int64_t end) {
    const int nv = vectors(m);
    int64_t j = begin;
    if (f->g->b_cs == 1)
        for (; j + nv * TP_LANES <= end; j += nv * TP_LANES) along_rows(f, m, nv, j, TP_LANES);
    for (; j < end; j += TP_LANES) {
        int n = v16_lanes(end - j, 0);
        if (f->g->b_cs == 1)
            along_rows(f, m, 1, j, n);
        else
            across_rows(f, m, j, n);
    }
}

/* Units [begin, end) of f->width columns each. */
static void run_units(void *arg, int64_t begin, int64_t end) {
    const few *f = arg;
    int64_t j0 = begin * f->width, j1 = gemm_min(end * f->width, f->g->n);
    switch (f->g->m) {
    case 1:
        columns(f, 1, j0, j1);
        break;
    case 2:
        columns(f, 2, j0, j1);
        break;
    case 3:
        columns(f, 3, j0, j1);
        break;
    case 4:
        columns(f, 4, j0, j1);
        break;
    case 5:
        columns(f, 5, j0, j1);
        break;
    case 6:
        columns(f, 6, j0, j1);
        break;
    case 7:
        columns(f, 7, j0, j1);
        break;
    default:
        columns(f, 8, j0, j1);
        break;
    }
    if (f->g->gelu) gemm_gelu(f->g, 0, f->g->m, j0, j1 - j0);
}

void TP_CAT(tp_gemm_few, TP_ISA)(tp_ctx *c, const tp_gemm *g) {
    float *a = g->work;
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t k = 0; k < g->k; k++) a[k * g->m + i] = g->a[i * g->a_rs + k * g->a_cs];
    few f = {.g = g, .a = a, .width = (int64_t)vectors((int)g->m) * TP_LANES};
    int64_t units = gemm_ceil_div(g->n, f.width);
    bool alone = !c || (double)g->m * (double)g->n * (double)g->k < 3e5;
    if (alone)
        run_units(&f, 0, units);
    else
        tp_parallel_for(c, units, gemm_max(1, units / (8 * tp_threads(c))), run_units, &f);
}
