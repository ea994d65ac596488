/* Products of bf16 matrices on Hopper, as a frame: END says what becomes of the sums, so that a
 * product that something follows need not write them down first.
 *
 * A block computes tiles, one after the other: a producer thread brings 64 steps of k of both
 * operands at a time by TMA into a ring of buffers, across the borders of tiles; each of two
 * warpgroups multiplies half of the rows by wgmma. One is kept a step or two behind the other, so
 * that each ends its tiles while the other has the tensor cores to itself. (Warps by roles, and an
 * end that overlaps: Thakkar et al., CUTLASS 3; persistent tiles that share the L2: Shankhdhar,
 * "Outperforming cuBLAS on H100", 2024.)
 *
 * An element is one chain over k of products of 16 steps. No size enters it, nor a tile's: beyond
 * an edge TMA brings zeros. So a row has the same bits whatever rows it is computed with. */
#ifndef TP_GEMM_SM90_H
#define TP_GEMM_SM90_H
#include "ops/cuda_hopper_tile.h"
#include "ops/matmul/gemm_tile_cuda.h"

enum { GEMM90_BK = 64, GEMM90_THREADS = 384 };

/* A tile: each warpgroup has M64 products of 64 rows, of BN columns. What a multiprocessor takes
 * from the L2 for each of its products shrinks as a tile grows on both sides; sums of 256 x 192 are
 * what registers hold. */
template <int M64, int BN> struct gemm90_memory {
    static constexpr int BM = 2 * M64 * 64;
    static constexpr int A_BYTES = BM * GEMM90_BK * 2, B_BYTES = BN * GEMM90_BK * 2;
    static constexpr int STAGE = A_BYTES + B_BYTES, FIT = (SM90_SHARED_BYTES - 128) / STAGE;
    static constexpr int STAGES = FIT < 8 ? FIT : 8, BARS = STAGES * STAGE;
    static constexpr int BYTES = BARS + 2 * STAGES * 8;
};

template <class END> struct gemm90_args {
    tp_tma_map a, b;
    int k_steps;          /* of GEMM90_BK */
    int tiles_m, tiles_n; /* of one matrix */
    int tiles;            /* of all */
    int section;          /* rows of tiles that are walked together: their A stays in the L2 */
    END end;
};

typedef struct gemm90_tile {
    int batch, m, n;
} gemm90_tile;
template <class END>
static __device__ __forceinline__ gemm90_tile gemm90_tile_of(const gemm90_args<END> &f, int t) {
    const int each = f.tiles_m * f.tiles_n, batch = t / each;
    const tp_tile_at at = tp_tile_walk(t - batch * each, f.tiles_m, f.tiles_n, f.section);
    return gemm90_tile{batch, (int)at.row, (int)at.col};
}

/* ---- what an END is given ---------------------------------------------------------------------
 * end(d, batch, row, col): d is this thread's part of a tile whose first column is col, as wgmma
 * leaves it: d[4*j + 2*r + e] is element (row + 8*r, col + 8*j + 2*(lane%4) + e). All 128 threads
 * of a warpgroup call it, with rows and columns beyond the matrix as well. */

/* Four neighbours of row r out of pairs j and j + 1 of two neighbouring lanes, which each get one
 * of them: so a warp's store fills whole sectors of 32 bytes. */
typedef struct gemm90_four {
    float v[4];
} gemm90_four;
template <int N>
static __device__ __forceinline__ gemm90_four gemm90_four_of(const float (&d)[N], int j, int r) {
    const bool odd = threadIdx.x & 1;
    const float *x = d + 4 * j + 2 * r, *y = x + 4;
    const float s0 = __shfl_xor_sync(0xffffffffu, odd ? x[0] : y[0], 1);
    const float s1 = __shfl_xor_sync(0xffffffffu, odd ? x[1] : y[1], 1);
    gemm90_four f;
    f.v[0] = odd ? s0 : x[0];
    f.v[1] = odd ? s1 : x[1];
    f.v[2] = odd ? y[0] : s0;
    f.v[3] = odd ? y[1] : s1;
    return f;
}
/* The same of pairs that are bf16 already. */
static __device__ __forceinline__ uint2 gemm90_four_bf16(uint32_t here, uint32_t next) {
    const bool odd = threadIdx.x & 1;
    const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? here : next, 1);
    return odd ? make_uint2(got, next) : make_uint2(here, got);
}
/* The column of such a four's first, counted from the tile's. */
static __device__ __forceinline__ int gemm90_four_column(int j) {
    return 8 * (j + (threadIdx.x & 1)) + threadIdx.x % 4 / 2 * 4;
}

/* ---- the kernel ------------------------------------------------------------------------------ */
#if TP_HOPPER
/* A tile of SIDE rows of A, or columns of B: along k one box of SIDE rows, else boxes of 64. */
template <bool ALONG_K, int SIDE>
static __device__ __forceinline__ void gemm90_bring(unsigned char *to, const tp_tma_map *map,
                                                    uint64_t *bar, int outer, int k, int batch) {
    if constexpr (ALONG_K)
        tp_tma_load_4d(to, map, bar, k, outer, batch, 0);
    else
        for (int i = 0; i < SIDE / 64; i++)
            tp_tma_load_4d(to + i * 64 * GEMM90_BK * 2, map, bar, outer + 64 * i, k, batch, 0);
}

template <class END, int M64, int BN, bool A_K, bool B_K>
static __device__ __forceinline__ void gemm90_produce(const gemm90_args<END> &f,
                                                      unsigned char *shared, uint64_t *full) {
    typedef gemm90_memory<M64, BN> M;
    uint64_t *empty = full + M::STAGES;
    int used = 0;
    for (int t = blockIdx.x; t < f.tiles; t += gridDim.x) {
        const gemm90_tile at = gemm90_tile_of(f, t);
        for (int s = 0; s < f.k_steps; s++, used++) {
            const int stage = used % M::STAGES;
            unsigned char *to = shared + stage * M::STAGE;
            tp_mbar_wait(&empty[stage], sm90_phase<M::STAGES>(used) ^ 1);
            tp_mbar_arrive_expect(&full[stage], M::STAGE);
            gemm90_bring<A_K, M::BM>(to, &f.a, &full[stage], at.m * M::BM, s * GEMM90_BK, at.batch);
            gemm90_bring<B_K, BN>(to + M::A_BYTES, &f.b, &full[stage], at.n * BN, s * GEMM90_BK,
                                  at.batch);
        }
    }
}

/* d[i] (64, BN) += 64 steps of k, for rows 64 * (M64*group + i) of the tile; `add` 0: d = ….
 * Starts it. */
template <int M64, int BN, bool A_K, bool B_K>
static __device__ __forceinline__ void gemm90_multiply(float (&d)[M64][BN / 2],
                                                       const unsigned char *a,
                                                       const unsigned char *b, int group, int add) {
    constexpr int BM = gemm90_memory<M64, BN>::BM, BOX = 64 * GEMM90_BK * 2;
    const int first = M64 * group;
    const uint64_t da = A_K ? sm90_rows_desc<GEMM90_BK, BM>(a, 64 * first)
                            : sm90_columns_desc<64, GEMM90_BK>(a + first * BOX);
    const uint64_t db =
        B_K ? sm90_rows_desc<GEMM90_BK, BN>(b, 0) : sm90_columns_desc<BN, GEMM90_BK>(b);
    tp_wgmma_fence();
#pragma unroll
    for (int k = 0; k < GEMM90_BK / 16; k++)
#pragma unroll
        for (int i = 0; i < M64; i++) /* 64 rows, or 64 columns, of A fill a box's bytes */
            tp_wgmma_ss<BN, !A_K, !B_K>(
                d[i],
                da + i * (BOX >> 4) +
                    (A_K ? sm90_rows_step<GEMM90_BK, BM>(k) : sm90_columns_step<64>(k)),
                db + (B_K ? sm90_rows_step<GEMM90_BK, BN>(k) : sm90_columns_step<BN>(k)),
                add || k > 0);
    tp_wgmma_commit();
}

template <class END, int M64, int BN, bool A_K, bool B_K>
static __device__ __forceinline__ void
gemm90_consume(const gemm90_args<END> &f, unsigned char *shared, uint64_t *full, int group) {
    typedef gemm90_memory<M64, BN> M;
    uint64_t *empty = full + M::STAGES;
    const int lane = threadIdx.x % 32;
    /* The second starts a tile when the first has begun its second step, and the first cannot come
     * there again before: the ring is no longer than a tile. */
    const bool apart = f.k_steps >= M::STAGES;
    int used = 0;
    for (int t = blockIdx.x; t < f.tiles; t += gridDim.x) {
        const gemm90_tile at = gemm90_tile_of(f, t);
        if (apart && group == 1) tp_bar_sync(1, 256);
        float d[M64][BN / 2];
#pragma unroll
        for (int i = 0; i < M64; i++) tp_wgmma_pin(d[i]);
        for (int s = 0; s < f.k_steps; s++, used++) {
            const int stage = used % M::STAGES;
            const unsigned char *a = shared + stage * M::STAGE;
            tp_mbar_wait(&full[stage], sm90_phase<M::STAGES>(used));
            gemm90_multiply<M64, BN, A_K, B_K>(d, a, a + M::A_BYTES, group, s > 0);
            if (s == 0) continue;
            if (s == 1 && apart && group == 0) tp_bar_arrive(1, 256);
            tp_wgmma_wait<1>(); /* the products before these have read their buffers */
            if (lane == 0) tp_mbar_arrive(&empty[(used - 1) % M::STAGES]);
        }
        tp_wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < M64; i++) tp_wgmma_pin(d[i]);
        if (lane == 0) tp_mbar_arrive(&empty[(used - 1) % M::STAGES]);
        const int thread = tp_fresh(threadIdx.x % 128);
        const int row = at.m * M::BM + 64 * M64 * group + thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
        for (int i = 0; i < M64; i++) f.end(d[i], at.batch, row + 64 * i, at.n * BN);
    }
}
#endif

/* Grid: as many blocks as run at once, or as there are tiles. */
template <class END, int M64, int BN, bool A_K, bool B_K>
static __global__ void __launch_bounds__(GEMM90_THREADS, 1)
    gemm_sm90(const __grid_constant__ gemm90_args<END> f) {
#if TP_HOPPER
    typedef gemm90_memory<M64, BN> M;
    TP_SHARED_DYNAMIC(shared);
    uint64_t *full = (uint64_t *)(shared + M::BARS);
    if (threadIdx.x == 0) {
        for (int i = 0; i < M::STAGES; i++) {
            tp_mbar_init(full + i, 1);             /* a stage is there */
            tp_mbar_init(full + M::STAGES + i, 8); /* every warp is done with it */
        }
        tp_mbar_init_fence();
        tp_tma_prefetch_map(&f.a);
        tp_tma_prefetch_map(&f.b);
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        tp_registers_fewer<24>();
        if (threadIdx.x == 0) gemm90_produce<END, M64, BN, A_K, B_K>(f, shared, full);
    } else {
        tp_registers_more<240>();
        /* the same in a warp, which the compiler cannot know: descriptors in uniform registers */
        const int group = __shfl_sync(0xffffffffu, (int)threadIdx.x / 128, 0);
        gemm90_consume<END, M64, BN, A_K, B_K>(f, shared, full, group - 1);
    }
#endif
}

/* ---- host ------------------------------------------------------------------------------------ */
/* Whether TMA can bring it: dense one way, everything else at multiples of 16 bytes. Rows are not
 * counted, as they must not decide who runs a product. */
static inline bool gemm90_side_fits(const tp_tile_side *s, int64_t batch) {
    const int64_t far = s->inner == 1 ? s->outer : s->inner;
    return (s->inner == 1 || s->outer == 1) && far > 0 && far % 8 == 0 &&
           (batch == 1 || (s->batch > 0 && s->batch % 8 == 0)) && tp_aligned(s->p, 16);
}

/* box: how many of `count` one instruction brings, where they lie along k. */
static inline tp_status gemm90_map(const tp_call *k, tp_tma_map *out, const tp_tile_side *s,
                                   int64_t steps, int64_t batch, int box) {
    const bool along_k = s->inner == 1;
    const int64_t far = along_k ? s->outer : s->inner;
    tp_tma_shape t = {};
    t.data = s->p;
    t.size[0] = along_k ? steps : s->count;
    t.size[1] = along_k ? s->count : steps;
    t.size[2] = batch;
    t.size[3] = 1;
    t.stride[0] = 1;
    t.stride[1] = far;
    t.stride[2] = batch > 1 ? s->batch : far * t.size[1]; /* no index uses the second */
    t.stride[3] = t.stride[2] * batch;
    t.box[0] = 64;
    t.box[1] = along_k ? box : GEMM90_BK;
    t.box[2] = t.box[3] = 1;
    t.swizzle = TP_SWIZZLE_128B;
    const char *no = tp_tma_map_bf16(out, &t);
    return no ? tp_fail(k->ctx, TP_EINTERNAL, "%s: %s", k->op->name, no) : TP_OK;
}

/* How long the tiles of a product take, in clocks for each step of k: of the tensor cores, which do
 * 2048 multiplications in one, or of the L2, which gives all multiprocessors 5120 bytes. */
template <int M64, int BN>
static inline int64_t gemm90_clocks(const tp_call *k, int64_t m, int64_t n, int64_t batch) {
    typedef gemm90_memory<M64, BN> M;
    const int64_t at_once = tp_cuda_of(k->ctx)->multiprocessors;
    const int64_t tiles = (int64_t)tp_blocks(m, M::BM) * tp_blocks(n, BN) * batch;
    const int64_t cores = M::BM * BN * GEMM90_BK / 2048, l2 = M::STAGE * at_once / 5120;
    return (tiles + at_once - 1) / at_once * (cores > l2 ? cores : l2);
}

/* c (m,n) = a b, batch times, ended by END. The operands fit (above), and so do the tiles an int.
 */
template <class END, int M64, int BN, bool A_K, bool B_K>
static inline tp_status gemm90_run(const tp_call *k, const tp_tile_side *a, const tp_tile_side *b,
                                   int64_t steps, int64_t batch, const END &end) {
    typedef gemm90_memory<M64, BN> M;
    const int64_t l2 = 16 << 20; /* a third of Hopper's */
    gemm90_args<END> f;
    tp_status st = gemm90_map(k, &f.a, a, steps, batch, M::BM);
    if (!st) st = gemm90_map(k, &f.b, b, steps, batch, BN);
    if (st) return st;
    f.k_steps = (int)tp_blocks(steps, GEMM90_BK);
    f.tiles_m = (int)tp_blocks(a->count, M::BM);
    f.tiles_n = (int)tp_blocks(b->count, BN);
    f.tiles = f.tiles_m * f.tiles_n * (int)batch;
    const int64_t section = l2 / (M::BM * 2 * steps);
    f.section = section < 8 ? 8 : section > f.tiles_m ? f.tiles_m : (int)section;
    f.end = end;
    const int at_once = tp_cuda_of(k->ctx)->multiprocessors;
    return TP_LAUNCH(k, (gemm_sm90<END, M64, BN, A_K, B_K>), f.tiles < at_once ? f.tiles : at_once,
                     GEMM90_THREADS, M::BYTES, f);
}
#endif
