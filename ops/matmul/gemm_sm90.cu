/* Our own product of bf16 matrices on Hopper: gemm_sm90.h's frame, ended as gemm_tile_cuda.h ends
 * an element. */
#include "ops/matmul/gemm_sm90.h"

/* Writes tiles down. */
typedef struct product_end {
    tp_tile_args g;
    template <typename TC, int N>
    __device__ __forceinline__ void write(const float (&d)[N], int batch, int row, int col) const {
        col += gemm90_four_column(0);
        const TC *bias = g.bias ? (const TC *)g.bias + col : NULL;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int64_t i = row + 8 * r;
            const int left = i < g.a.count ? (int)g.b.count - col : 0;
            TC *c = (TC *)g.c + batch * g.c_batch + i * g.ldc + col;
#pragma unroll
            for (int j = 0; j < N / 4; j += 8) {
                tp_vec<TC, 4> before[4] = {}; /* one wait for memory for all of them */
#pragma unroll
                for (int h = 0; h < 4; h++)
                    if (g.accumulate && 8 * j + 16 * h < left)
                        before[h] = tp_load<TC, 4>(c + 8 * j + 16 * h);
#pragma unroll
                for (int h = 0; h < 4; h++) {
                    const int at = 8 * j + 16 * h;
                    gemm90_four x = gemm90_four_of(d, j + 2 * h, r);
                    if (at >= left) continue;
                    if (g.accumulate) tp_tile_onto<TC, 4>(before[h], x.v);
                    tp_tile_write<TC, 4>(c + at, bias ? bias + at : NULL, x.v);
                }
            }
        }
    }
    template <int N>
    __device__ __forceinline__ void operator()(const float (&d)[N], int batch, int row,
                                               int col) const {
        if (g.c_f32)
            write<float>(d, batch, row, col);
        else
            write<tp_bf16>(d, batch, row, col);
    }
} product_end;

template <int BN>
static tp_status run(const tp_call *k, const tp_cuda_gemm *g, const product_end &end) {
    const tp_tile_side *a = &end.g.a, *b = &end.g.b;
#define RUN(A_K, B_K) gemm90_run<product_end, BN, A_K, B_K>(k, a, b, g->k, g->batch, end)
    if (a->inner == 1) return b->inner == 1 ? RUN(true, true) : RUN(true, false);
    return b->inner == 1 ? RUN(false, true) : RUN(false, false);
#undef RUN
}

/* By what does not depend on m, nor on how a product is cut into parts: another kernel might have
 * other bits. Less than a tile's worth of columns or steps is mma.sync's. */
bool tp_gemm_sm90_takes(const tp_call *k, const tp_cuda_gemm *g, const tp_tile_args *args) {
    const int64_t most = 1 << 30, whole = g->like_n ? g->like_n : g->n;
    return tp_cuda_of(k->ctx)->sm == 90 && g->a.dtype == TP_BF16 && whole >= 64 && whole % 4 == 0 &&
           g->k >= 32 && gemm90_side_fits(&args->a, g->batch) &&
           gemm90_side_fits(&args->b, g->batch) && g->n % 4 == 0 && tp_tile_aligned(g, 4) &&
           g->k < most && g->m < most && g->n < most;
}

/* Wide tiles where there are about as many of them as multiprocessors; bits do not depend on it. */
tp_status tp_gemm_sm90(const tp_call *k, const tp_cuda_gemm *g, const tp_tile_args *args) {
    const int64_t rows = (int64_t)tp_blocks(g->m, 128) * g->batch;
    product_end end = {*args};
    if (rows * tp_blocks(g->n, 64) > INT32_MAX)
        return tp_fail(k->ctx, TP_EARG, "%s: a product of more than 2^31 tiles", k->op->name);
    return rows * tp_blocks(g->n, 192) >= 192 ? run<192>(k, g, end) : run<64>(k, g, end);
}
