/* What our own tiled products share: arguments, the order of tiles, the end of an element. Private
 * to ops/matmul; for .cu files.
 *
 * C is cut into tiles, a block computes one, walking k from 0 in steps. An element is one chain
 * over k: of fused multiply-adds in f32 (the CPU's bits), of m16n8k16 products of bf16. No choice
 * below (tile, vectors, masks) enters the chain: beyond k both operands are read as zeros. */
#ifndef TP_GEMM_TILE_CUDA_H
#define TP_GEMM_TILE_CUDA_H
#include "ops/cuda.h"
#include "ops/gelu/gelu_math.h"
#include "ops/matmul/gemm_cuda.h"

/* An operand seen from C: `outer` walks C's rows (of A) or columns (of B), `inner` walks k. */
typedef struct tp_tile_side {
    const void *p;
    int64_t count, outer, inner, batch; /* count: extent of outer; strides in elements */
    bool k_first;                       /* inner is the denser stride: neighbours walk k */
} tp_tile_side;

typedef struct tp_tile_args {
    int64_t k;
    tp_tile_side a, b;
    void *c, *gelu; /* gelu: NULL, or where gelu(c) goes, laid out as c */
    int64_t ldc, c_batch;
    const void *bias;
    bool accumulate, c_f32;
    bool c_pairs; /* pairs of c's columns may move together: aligned, and n is even */
    unsigned tiles_m, tiles_n;
} tp_tile_args;

/* What a context keeps for its products (tp_cuda->blas). */
typedef struct tp_blas {
    tp_cuda_gemm_stats stats;
    struct tp_cublaslt *lt; /* gemm_cublaslt.cu's */
} tp_blas;

/* One launch's arguments; the kernels' hosts below fill in the tiles. */
tp_status tp_gemm_tile_f32(const tp_call *k, const tp_cuda_gemm *g, tp_tile_args *args);
tp_status tp_gemm_tile_bf16(const tp_call *k, const tp_cuda_gemm *g, tp_tile_args *args);
bool tp_gemm_sm90_takes(const tp_call *k, const tp_cuda_gemm *g, const tp_tile_args *args);
tp_status tp_gemm_sm90(const tp_call *k, tp_blas *blas, const tp_cuda_gemm *g,
                       const tp_tile_args *args);
/* Our own: any product, by one of the above. */
tp_status tp_gemm_tile(const tp_call *k, tp_blas *blas, const tp_cuda_gemm *g);
/* cuBLASLt: *taken says whether it does this product at all. */
tp_status tp_gemm_cublaslt(const tp_call *k, tp_blas *blas, const tp_cuda_gemm *g, bool *taken);
void tp_cublaslt_free(struct tp_cublaslt *lt);

/* A product whose gelu is a pass of its own: h goes to aux, then the gelu of it to c. */
static inline tp_cuda_gemm tp_gemm_before_gelu(const tp_cuda_gemm *g) {
    tp_cuda_gemm h = *g;
    h.epilogue = TP_EPILOGUE_NONE;
    h.c.p = g->aux;
    h.aux = NULL;
    return h;
}
tp_status tp_gemm_then_gelu(const tp_call *k, const tp_cuda_gemm *g);

/* Small tiles (64 x 64) where large ones (128 x 128) would leave most of a GPU without work. */
static inline bool tp_tile_large(const tp_cuda_gemm *g) {
    return (int64_t)tp_blocks(g->m, 128) * tp_blocks(g->n, 128) * g->batch >= 96;
}

/* Vectors of 16 bytes lie whole within the operand, along k or along outer. */
static inline bool tp_side_fast(const tp_tile_side *s, int64_t k, int64_t batch, int v,
                                bool along_k) {
    int64_t dense = along_k ? s->inner : s->outer, far = along_k ? s->outer : s->inner;
    int64_t dense_n = along_k ? k : s->count, far_n = along_k ? s->count : k;
    return dense == 1 && dense_n % v == 0 && (far_n == 1 || far % v == 0) &&
           (batch == 1 || s->batch % v == 0) && tp_aligned(s->p, 16);
}

/* So many of c's columns (and of the bias, and of aux) may move together. */
static inline bool tp_tile_aligned(const tp_cuda_gemm *g, int columns) {
    const size_t bytes = columns * tp_dtype_size(g->c.dtype);
    return g->c.row % columns == 0 && (g->batch == 1 || g->c.batch % columns == 0) &&
           tp_aligned(g->c.p, bytes) && tp_aligned(g->bias, bytes) && tp_aligned(g->aux, bytes);
}

/* RUN(A_K, B_K) for the layouts that move in whole vectors: which operands lie dense along k. Else
 * goes on. */
#define TP_BY_FAST_LAYOUT(args, k, batch, v, RUN)                                                  \
    do {                                                                                           \
        bool ak = tp_side_fast(&(args)->a, k, batch, v, true),                                     \
             am = tp_side_fast(&(args)->a, k, batch, v, false),                                    \
             bk = tp_side_fast(&(args)->b, k, batch, v, true),                                     \
             bn = tp_side_fast(&(args)->b, k, batch, v, false);                                    \
        if (ak && bk) RUN(true, true);                                                             \
        if (ak && bn) RUN(true, false);                                                            \
        if (am && bk) RUN(false, true);                                                            \
        if (am && bn) RUN(false, false);                                                           \
    } while (0)

/* Number t of tiles_m x tiles_n, in an order in which `together` rows of tiles are walked column by
 * column: blocks that run at the same time share rows of A and columns of B in the L2. */
typedef struct tp_tile_at {
    int64_t row, col;
} tp_tile_at;
static __device__ __forceinline__ tp_tile_at tp_tile_walk(unsigned t, unsigned tiles_m,
                                                          unsigned tiles_n, unsigned together) {
    const unsigned band = together * tiles_n, first = t / band * together, in = t % band;
    const unsigned high = tiles_m - first < together ? tiles_m - first : together;
    return tp_tile_at{first + in % high, in / high};
}
/* This block's first element. */
static __device__ __forceinline__ tp_tile_at tp_tile_of(const tp_tile_args &g, int rows, int cols) {
    const tp_tile_at t = tp_tile_walk(blockIdx.x, g.tiles_m, g.tiles_n, 8);
    return tp_tile_at{t.row * rows, t.col * cols};
}

/* Writes W neighbouring elements, all of them within C, at a multiple of W. bias: NULL, or theirs.
 * Answers what was written. */
template <typename TC, int W>
static __device__ __forceinline__ tp_vec<TC, W> tp_tile_write(TC *c, const TC *bias,
                                                              const float *v) {
    tp_vec<TC, W> y, z = {};
    if (bias) z = tp_load<TC, W>(bias);
#pragma unroll
    for (int e = 0; e < W; e++) y.v[e] = tp_from_f32<TC>(bias ? v[e] + tp_to_f32(z.v[e]) : v[e]);
    tp_store<TC, W>(c, y);
    return y;
}
/* v = what stands there + v: accumulating, which goes without a bias. */
template <typename TC, int W>
static __device__ __forceinline__ void tp_tile_onto(const tp_vec<TC, W> &before, float *v) {
#pragma unroll
    for (int e = 0; e < W; e++) v[e] = tp_to_f32(before.v[e]) + v[e];
}
/* The end of W elements from (i,j). gelu is of the rounded value, as the op after a product would
 * do it. */
template <typename TC, int W>
static __device__ __forceinline__ void tp_tile_finish(const tp_tile_args &g, int64_t batch,
                                                      int64_t i, int64_t j, const float *acc) {
    const int64_t at = batch * g.c_batch + i * g.ldc + j;
    TC *c = (TC *)g.c + at;
    float v[W];
#pragma unroll
    for (int e = 0; e < W; e++) v[e] = acc[e];
    if (g.accumulate) tp_tile_onto<TC, W>(tp_load<TC, W>(c), v);
    tp_vec<TC, W> y = tp_tile_write<TC, W>(c, g.bias ? (const TC *)g.bias + j : NULL, v);
    if (!g.gelu) return;
#pragma unroll
    for (int e = 0; e < W; e++) y.v[e] = tp_from_f32<TC>(gelu_f(tp_to_f32(y.v[e])));
    tp_store<TC, W>((TC *)g.gelu + at, y);
}
static __device__ __forceinline__ void tp_tile_pair(const tp_tile_args &g, int64_t batch, int64_t i,
                                                    int64_t j, const float *acc) {
    if (i >= g.a.count || j >= g.b.count) return;
    if (g.c_pairs) {
        if (g.c_f32)
            tp_tile_finish<float, 2>(g, batch, i, j, acc);
        else
            tp_tile_finish<tp_bf16, 2>(g, batch, i, j, acc);
        return;
    }
    for (int e = 0; e < 2 && j + e < g.b.count; e++)
        if (g.c_f32)
            tp_tile_finish<float, 1>(g, batch, i, j + e, acc + e);
        else
            tp_tile_finish<tp_bf16, 1>(g, batch, i, j + e, acc + e);
}
#endif
