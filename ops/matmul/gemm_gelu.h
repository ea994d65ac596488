/* gemm_gelu: the end of a product that a gelu follows (gemm.h's `gelu`). Private to ops/matmul; the
 * formula is that of ops/gelu, so its bits are too. */
#ifndef TP_GEMM_GELU_H
#define TP_GEMM_GELU_H
#include "ops/gelu/gelu_math.h"
#include "ops/matmul/gemm.h"

/* gelu of the finished elements [row, row+rows) x [col, col+cols) of C. */
static inline void gemm_gelu(const tp_gemm *g, int64_t row, int64_t rows, int64_t col,
                             int64_t cols) {
    for (int64_t i = row; i < row + rows; i++) {
        const float *restrict c = g->c + i * g->ldc + col;
        float *restrict y = g->gelu + i * g->ldc + col;
        for (int64_t j = 0; j < cols; j++) y[j] = gelu_f(c[j]);
    }
}

/* Asks for the lines that gemm_gelu will write: rows of a tile, from element `at` on. */
static inline void gemm_gelu_soon(const tp_gemm *g, int64_t at, int64_t rows) {
    for (int64_t i = 0; i < rows; i++) {
        __builtin_prefetch(g->gelu + at + i * g->ldc, 1, 3);
        __builtin_prefetch(g->gelu + at + i * g->ldc + 16, 1, 3);
    }
}
#endif
