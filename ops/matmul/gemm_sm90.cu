/* Our own product of bf16 matrices on Hopper: gemm_sm90.h's frame, ended as gemm_tile_cuda.h ends
 * an element. */
#include "ops/matmul/gemm_sm90.h"

/* Writes tiles down. */
typedef struct product_end {
    tp_tile_args g;
    /* Row r from c on, of which `left` values are left; ONTO: onto what stands at `from` (there, or
     * the bias). Four loads before the first store, as each may wait for memory. */
    template <typename TC, bool ONTO, int N>
    static __device__ __forceinline__ void write_row(const float (&d)[N], int r, TC *c,
                                                     const TC *from, int left) {
#pragma unroll
        for (int j = 0; j < N / 4; j += 8) {
            tp_vec<TC, 4> before[4] = {};
#pragma unroll
            for (int h = 0; ONTO && h < 4; h++)
                if (8 * j + 16 * h < left) before[h] = tp_load<TC, 4>(from + 8 * j + 16 * h);
#pragma unroll
            for (int h = 0; h < 4; h++) {
                const bool inside = 8 * j + 16 * h < left;
                if constexpr (sizeof(TC) == 2 && !ONTO) { /* rounded first, half as much to move */
                    const float *x = d + 4 * (j + 2 * h) + 2 * r, *y = x + 4;
                    const uint2 four =
                        gemm90_four_bf16(tp_pack_bf16(x[0], x[1]), tp_pack_bf16(y[0], y[1]));
                    if (inside) tp_stg((uint2 *)(c + 8 * j + 16 * h), four);
                } else {
                    gemm90_four x = gemm90_four_of(d, j + 2 * h, r);
                    if (ONTO) tp_tile_onto<TC, 4>(before[h], x.v);
                    if (inside) tp_tile_write<TC, 4>(c + 8 * j + 16 * h, NULL, x.v);
                }
            }
        }
    }
    template <typename TC, bool ONTO, int N>
    __device__ __forceinline__ void write(const float (&d)[N], int batch, int row, int col) const {
        col += gemm90_four_column(0);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int64_t i = row + 8 * r;
            TC *c = (TC *)g.c + batch * g.c_batch + i * g.ldc + col;
            const TC *from = !ONTO || g.accumulate ? c : (const TC *)g.bias + col;
            write_row<TC, ONTO>(d, r, c, from, i < g.a.count ? (int)g.b.count - col : 0);
        }
    }
    template <int N>
    __device__ __forceinline__ void operator()(const float (&d)[N], int batch, int row,
                                               int col) const {
        const bool onto = g.accumulate || g.bias;
        if (g.c_f32)
            onto ? write<float, true>(d, batch, row, col) : write<float, false>(d, batch, row, col);
        else if (onto)
            write<tp_bf16, true>(d, batch, row, col);
        else
            write<tp_bf16, false>(d, batch, row, col);
    }
} product_end;

template <int M64, int BN>
static tp_status run(const tp_call *k, const tp_cuda_gemm *g, const product_end &end) {
    const tp_tile_side *a = &end.g.a, *b = &end.g.b;
#define RUN(A_K, B_K) gemm90_run<product_end, M64, BN, A_K, B_K>(k, a, b, g->k, g->batch, end)
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

/* With the tiles that take least time; bits do not depend on them. */
tp_status tp_gemm_sm90(const tp_call *k, tp_blas *blas, const tp_cuda_gemm *g,
                       const tp_tile_args *args) {
    const product_end end = {*args};
    if ((int64_t)tp_blocks(g->m, 128) * tp_blocks(g->n, 64) * g->batch > INT32_MAX - 65536)
        return tp_fail(k->ctx, TP_EARG, "%s: a product of more than 2^31 tiles", k->op->name);
    const int64_t wide = gemm90_clocks<2, 192>(k, g->m, g->n, g->batch);
    const int64_t flat = gemm90_clocks<1, 192>(k, g->m, g->n, g->batch);
    const int64_t small = gemm90_clocks<1, 64>(k, g->m, g->n, g->batch);
    blas->stats.wgmma_runs++;
    if (wide <= flat && wide <= small) return blas->stats.wgmma_wide++, run<2, 192>(k, g, end);
    if (flat <= small) return blas->stats.wgmma_flat++, run<1, 192>(k, g, end);
    return run<1, 64>(k, g, end);
}
