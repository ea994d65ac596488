/* Our own product of bf16 matrices on tensor cores: mma.sync m16n8k16 with f32 sums, fragments by
 * ldmatrix, and four stages of 32 steps of k in shared memory that cp.async fills ahead.
 *
 * A block computes 128 x 128 (8 warps of 64 x 32) or 64 x 64 (4 warps of 32 x 32) elements.
 * Operands lie in shared memory in the order they have in memory, [outer][k] or [k][outer];
 * ldmatrix turns the second kind. 16-byte chunks of a row are permuted by XOR with the row, so that
 * the eight rows that a fragment takes lie in different banks. */
#include "ops/cuda_mma.h"
#include "ops/matmul/gemm_tile_cuda.h"

enum { STEP = 32, STAGES = 4 };

/* Where chunk (8 elements) c of row r stands in a stage, in bytes. [outer][k]: a row is 32
 * elements, two rows fill the 32 banks. [k][outer]: a row is the width of the tile. */
template <bool ALONG_K, int WIDTH> static __device__ __forceinline__ int chunk_at(int r, int c) {
    return ALONG_K ? r * (2 * STEP) + (c ^ (r >> 1 & 3)) * 16
                   : r * (2 * WIDTH) + (c ^ (r & 7)) * 16;
}

/* What a thread brings of one operand, of WIDTH rows (or columns) of C: a chunk, and others a fixed
 * number of rows further, whose places differ by a constant. */
typedef struct bringer {
    const tp_bf16 *p;      /* of the next step's first chunk */
    int64_t k_left;        /* that lie behind it */
    int outer_left, chunk; /* chunk: its place in a stage */
} bringer;

template <bool ALONG_K, bool FAST, int WIDTH>
static __device__ __forceinline__ bringer begin(const tp_tile_side &s, int64_t outer0, int64_t k) {
    const tp_bf16 *p = (const tp_bf16 *)s.p + (int64_t)blockIdx.y * s.batch + outer0 * s.outer;
    enum { IN_ROW = ALONG_K ? STEP / 8 : WIDTH / 8 };
    int r = threadIdx.x / IN_ROW, c = threadIdx.x % IN_ROW;
    int64_t left = s.count - outer0;
    if (left > WIDTH) left = WIDTH;
    if (!FAST) return bringer{p, k, (int)left, 0};
    int o = ALONG_K ? r : 8 * c, step = ALONG_K ? 8 * c : r;
    return bringer{p + o * s.outer + step * s.inner, k - step, (int)left - o,
                   chunk_at<ALONG_K, WIDTH>(r, c)};
}

template <bool ALONG_K, bool FAST, int WIDTH, int THREADS>
static __device__ __forceinline__ void bring(bringer *b, const tp_tile_side &s,
                                             unsigned char *stage) {
    enum { CHUNKS = WIDTH * STEP / 8 / THREADS };
#pragma unroll
    for (int q = 0; q < CHUNKS; q++) {
        if (FAST) {
            enum { ROWS = THREADS / (ALONG_K ? STEP / 8 : WIDTH / 8) }; /* until the next chunk */
            const tp_bf16 *p = b->p + q * ROWS * (ALONG_K ? s.outer : s.inner);
            bool in = ALONG_K ? q * ROWS < b->outer_left && b->k_left > 0
                              : b->outer_left > 0 && q * ROWS < b->k_left;
            tp_cp_async_16(tp_smem_addr(stage) + b->chunk +
                               q * ROWS * (ALONG_K ? 2 * STEP : 2 * WIDTH),
                           in ? p : (const tp_bf16 *)s.p, in);
        } else { /* any strides: eight elements one by one, always as [outer][k] */
            int v = threadIdx.x + THREADS * q;
            int r = s.k_first ? v / (STEP / 8) : v % WIDTH;
            int c = s.k_first ? v % (STEP / 8) : v / WIDTH;
            tp_vec<tp_bf16, 8> x;
#pragma unroll
            for (int e = 0; e < 8; e++)
                x.v[e] = r < b->outer_left && 8 * c + e < b->k_left
                             ? tp_ldg(b->p + r * s.outer + (8 * c + e) * s.inner)
                             : tp_from_f32<tp_bf16>(0.0f);
            tp_sts((tp_vec<tp_bf16, 8> *)(stage + chunk_at<true, WIDTH>(r, c)), x);
        }
    }
    b->p += STEP * s.inner;
    b->k_left -= STEP;
}

/* Fragments are 16 x 16 elements, four 8x8 matrices: of A, r[0..3] = a0..a3 of 16 rows; of B, r[0],
 * r[1] are b0, b1 of eight columns and r[2], r[3] of the next eight. first_line: where this lane's
 * line of the fragment at (outer, step 0) stands; line_at: that of the i-th further along outer, at
 * step 0 or 16. Neither carries into the permuted bits, so both are an XOR and a constant. */
template <bool ALONG_K, bool IS_A, int WIDTH>
static __device__ __forceinline__ int first_line(int outer) {
    int matrix = threadIdx.x % 32 / 8, line = threadIdx.x % 8;
    int second_outer = IS_A ? matrix & 1 : matrix >> 1, second_k = IS_A ? matrix >> 1 : matrix & 1;
    outer += 8 * second_outer;
    return ALONG_K ? chunk_at<true, WIDTH>(outer + line, second_k)
                   : chunk_at<false, WIDTH>(8 * second_k + line, outer / 8);
}
template <bool ALONG_K, int WIDTH>
static __device__ __forceinline__ void fragment(unsigned r[4], tp_smem side, int first, int i,
                                                int step) {
    if (ALONG_K)
        tp_ldmatrix_x4(r, side + (first ^ (step / 8 * 16)) + i * 16 * (2 * STEP));
    else
        tp_ldmatrix_x4_trans(r, side + (first ^ (i * 32)) + step * (2 * WIDTH));
}

template <int TILE, int WM, int WN, bool A_K, bool B_K, bool FAST>
__global__ void __launch_bounds__(TILE *TILE / (WM * WN) * 32, TILE == 128 ? 2 : 4)
    gemm_bf16(tp_tile_args g) {
    enum { THREADS = TILE * TILE / (WM * WN) * 32, SIDE = TILE * STEP * 2, STAGE = 2 * SIDE };
    TP_SHARED_DYNAMIC(smem);
    tp_tile_at at = tp_tile_of(g, TILE, TILE);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int row = warp % (TILE / WM) * WM, col = warp / (TILE / WM) * WN;
    bool idle = at.row + row >= g.a.count || at.col + col >= g.b.count;
    float acc[WM / 16][WN / 8][4];
#pragma unroll
    for (int i = 0; i < WM / 16; i++)
#pragma unroll
        for (int j = 0; j < WN / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) acc[i][j][e] = 0.0f;

    int64_t steps = (g.k + STEP - 1) / STEP;
    bringer a_from = begin<A_K, FAST, TILE>(g.a, at.row, g.k);
    bringer b_from = begin<B_K, FAST, TILE>(g.b, at.col, g.k);
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) {
            bring<A_K, FAST, TILE, THREADS>(&a_from, g.a, smem + s * STAGE);
            bring<B_K, FAST, TILE, THREADS>(&b_from, g.b, smem + s * STAGE + SIDE);
        }
        tp_cp_async_commit();
    }
    int now = 0, next = STAGES - 1;
    int a_line = first_line<A_K, true, TILE>(row), b_line = first_line<B_K, false, TILE>(col);
    for (int64_t s = 0; s < steps; s++) {
        tp_cp_async_wait<STAGES - 2>();
        __syncthreads(); /* this stage is there, and the one that is filled next has been read */
        if (s + STAGES - 1 < steps) {
            bring<A_K, FAST, TILE, THREADS>(&a_from, g.a, smem + next * STAGE);
            bring<B_K, FAST, TILE, THREADS>(&b_from, g.b, smem + next * STAGE + SIDE);
        }
        tp_cp_async_commit();
        tp_smem as = tp_smem_addr(smem) + now * STAGE, bs = as + SIDE;
        now = now == STAGES - 1 ? 0 : now + 1;
        next = next == STAGES - 1 ? 0 : next + 1;
        if (idle) continue;
#pragma unroll
        for (int step = 0; step < STEP; step += 16) {
            unsigned a[WM / 16][4], b[WN / 16][4];
#pragma unroll
            for (int i = 0; i < WM / 16; i++) fragment<A_K, TILE>(a[i], as, a_line, i, step);
#pragma unroll
            for (int j = 0; j < WN / 16; j++) fragment<B_K, TILE>(b[j], bs, b_line, j, step);
#pragma unroll
            for (int i = 0; i < WM / 16; i++)
#pragma unroll
                for (int j = 0; j < WN / 8; j++)
                    tp_mma_bf16_16x8x16(acc[i][j], a[i], &b[j / 2][2 * (j % 2)], acc[i][j]);
        }
    }
    if (idle) return;
#pragma unroll
    for (int i = 0; i < WM / 16; i++)
#pragma unroll
        for (int j = 0; j < WN / 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                tp_tile_pair(g, blockIdx.y, at.row + row + 16 * i + 8 * half + lane / 4,
                             at.col + col + 8 * j + 2 * (lane % 4), &acc[i][j][2 * half]);
}

template <int TILE, int WM, int WN, bool A_K, bool B_K, bool FAST>
static tp_status launch(const tp_call *k, const tp_cuda_gemm *g, tp_tile_args *args) {
    enum { THREADS = TILE * TILE / (WM * WN) * 32, SHARED = STAGES * 2 * TILE * STEP * 2 };
    args->tiles_m = tp_blocks(g->m, TILE);
    args->tiles_n = tp_blocks(g->n, TILE);
    dim3 grid(args->tiles_m * args->tiles_n, (unsigned)g->batch);
    return TP_LAUNCH(k, (gemm_bf16<TILE, WM, WN, A_K, B_K, FAST>), grid, THREADS, SHARED, *args);
}

tp_status tp_gemm_tile_bf16(const tp_call *k, const tp_cuda_gemm *g, tp_tile_args *args) {
#define LARGE(A_K, B_K) return launch<128, 64, 32, A_K, B_K, true>(k, g, args)
#define SMALL(A_K, B_K) return launch<64, 32, 32, A_K, B_K, true>(k, g, args)
    if (tp_tile_large(g))
        TP_BY_FAST_LAYOUT(args, g->k, g->batch, 8, LARGE);
    else
        TP_BY_FAST_LAYOUT(args, g->k, g->batch, 8, SMALL);
#undef LARGE
#undef SMALL
    return launch<64, 32, 32, true, true, false>(k, g, args);
}
