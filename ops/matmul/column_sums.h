/* column_sums: the bias gradient db = sum of dy's rows, for matmul_cpu.c only.
 *
 * The bits are those of gemm.h with a row of ones for A (fmaf(1, y, acc) is acc + y): a chain over
 * the rows of a sample, the samples' sums in the binary tree. As a product it would be packed,
 * and each number of dy used once; here dy is read once, where it lies. */
#ifndef TP_COLUMN_SUMS_H
#define TP_COLUMN_SUMS_H
#include "ops/simd.h"

#if TP_ISA >= 4
enum { SUM_VECTORS = 8 }; /* columns taken together: whole cache lines, one chain a register */
#else
enum { SUM_VECTORS = 4 };
#endif
enum { SUM_WIDTH = SUM_VECTORS * TP_LANES };

typedef struct column_sums {
    const float *x; /* (rows, n): rows `stride` floats apart, columns `step` */
    int64_t rows, n, stride, step, leaf;
    float *out;  /* (n) */
    float *left; /* (column_sums_levels, n padded to SUM_WIDTH): subtrees that wait */
} column_sums;

static int64_t column_sums_padded(int64_t n) { return (n + SUM_WIDTH - 1) / SUM_WIDTH * SUM_WIDTH; }

static size_t column_sums_bytes(const column_sums *w) {
    int64_t levels = 0;
    for (int64_t left = w->leaf > 0 ? (w->rows - 1) / w->leaf : 0; left > 0; left >>= 1) levels++;
    return (size_t)(levels * column_sums_padded(w->n)) * sizeof(float);
}

static inline v16 sum_load(const float *x, int64_t step, int lanes) {
    float f[TP_LANES];
    if (step == 1) return v16_load_n(x, lanes);
    for (int i = 0; i < TP_LANES; i++) f[i] = i < lanes ? x[i * step] : 0.0f;
    return v16_load(f);
}

/* Columns [j, j + SUM_WIDTH), of which n exist; dense: all of them, side by side. */
static inline __attribute__((always_inline)) void sum_block(const column_sums *w, int64_t j,
                                                            const bool dense, int64_t n) {
    const float *x = w->x + j * w->step;
    float *left = w->left + j;
    int64_t step = column_sums_padded(w->n), row = 0;
    for (uint64_t leaf = 0; row < w->rows; leaf++) {
        int64_t end = row + w->leaf;
        v16 acc[SUM_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < SUM_VECTORS; v++) acc[v] = v16_zero();
        for (; row < end; row++, x += w->stride)
#pragma GCC unroll 8
            for (int v = 0; v < SUM_VECTORS; v++) {
                int lanes = dense ? TP_LANES : v16_lanes(n, v);
                if (lanes == 0) continue;
                const float *q = x + v * TP_LANES * w->step;
                acc[v] = v16_add(acc[v], dense ? v16_load(q) : sum_load(q, w->step, lanes));
            }
        bool last = row == w->rows;
        uint64_t merge = last ? leaf : leaf & ~(leaf + 1);
        for (float *l = left; merge; merge >>= 1, l += step) {
            if (!(merge & 1)) continue;
#pragma GCC unroll 8
            for (int v = 0; v < SUM_VECTORS; v++)
                acc[v] = v16_add(v16_load(l + v * TP_LANES), acc[v]);
        }
        float *to = last ? w->out + j : left + __builtin_ctzll(leaf + 1) * step;
#pragma GCC unroll 8
        for (int v = 0; v < SUM_VECTORS; v++) {
            if (dense || !last)
                v16_store(to + v * TP_LANES, acc[v]);
            else if (v16_lanes(n, v) > 0)
                v16_store_n(to + v * TP_LANES, acc[v], v16_lanes(n, v));
        }
    }
}

static void sum_blocks(void *arg, int64_t begin, int64_t end) {
    const column_sums *w = arg;
    for (int64_t i = begin; i < end; i++) {
        int64_t j = i * SUM_WIDTH, n = w->n - j;
        if (n >= SUM_WIDTH && w->step == 1)
            sum_block(w, j, true, SUM_WIDTH);
        else
            sum_block(w, j, false, n);
    }
}

/* rows must be whole leaves. */
static void column_sums_run(tp_ctx *c, column_sums *w) {
    int64_t blocks = column_sums_padded(w->n) / SUM_WIDTH;
    if (w->rows == 0)
        for (int64_t j = 0; j < w->n; j++) w->out[j] = 0.0f;
    else /* below some 10 us of work a second thread costs more than it brings */
        tp_parallel_for(c, blocks, w->rows * w->n < (1 << 17) ? blocks : 1, sum_blocks, w);
}
#endif
