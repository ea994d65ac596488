/* Tiles of bf16 in shared memory, and the products of tiles that a warp computes, for the sm_80
 * kernels of attention, forward and backward.
 *
 * A tile has rows of D bf16, cut into chunks of 16 bytes. Chunk c of row r lies at place c ^ f(r)
 * of the row: so the eight rows at one column that ldmatrix reads at a time, and the eight rows
 * that fragments are stored to, fall into different banks. With rows of a multiple of 128 bytes
 * f(r) = r mod 8. Rows of 192 bytes (D = 96) start at alternating halves of the banks, and
 * f(r) = r/2 mod 4 suffices, which stays within groups of four chunks, of which there are three. */
#ifndef TP_ATTENTION_TILE_SM80_H
#define TP_ATTENTION_TILE_SM80_H
#include "ops/attention/attention_cuda.h"
#include "ops/cuda_mma.h"

/* tests/cuda/attention_tiles_test.cc compiles the kernels again with one of these errors. */
#if !defined(ATTENTION_MUTANT_BARRIER)
#define ATTENTION_MUTANT_BARRIER 0 /* 1: a barrier is missing */
#endif
#if !defined(ATTENTION_MUTANT_FRAGMENT)
#define ATTENTION_MUTANT_FRAGMENT 0 /* 1: an index of a fragment is wrong */
#endif

/* The byte of chunk `chunk` of row `row`. */
template <int D> static __device__ __forceinline__ int tile_at(int row, int chunk) {
    const int f = D % 64 ? (row >> 1) & 3 : row & 7;
    return row * (D * 2) + ((chunk ^ f) << 4);
}

/* How the THREADS threads of a block share out a ROWS x D tile that they copy from global memory.
 */
template <int D, int THREADS> struct tile_share {
    enum {
        CHUNKS = D / 8,
        PER_ROW = CHUNKS % 8 ? 4 : CHUNKS, /* threads side by side */
        STEP = THREADS / PER_ROW           /* rows at a time */
    };
};

/* This thread's first place in a tile whose row 0 is at x, in elements. */
template <int D, int THREADS>
static __device__ __forceinline__ const uint16_t *tile_from(const void *x, int64_t stride) {
    typedef tile_share<D, THREADS> share;
    const int row = (int)threadIdx.x / share::PER_ROW, chunk = (int)threadIdx.x % share::PER_ROW;
    return (const uint16_t *)x + row * stride + chunk * 8;
}

/* Begins to copy rows [0, rows) of `width` values each; the rest of the ROWS x D tile becomes
 * zeros. x: tile_from. All THREADS threads of the block take part; thread is threadIdx.x. */
template <int ROWS, int D, int THREADS>
static __device__ __forceinline__ void tile_load(tp_smem tile, const uint16_t *x, int64_t stride,
                                                 int rows, int width, int thread) {
    typedef tile_share<D, THREADS> share;
    static_assert(ROWS % share::STEP == 0 && share::CHUNKS % share::PER_ROW == 0,
                  "whole rounds of rows and chunks");
    const int row = thread / share::PER_ROW, first = thread % share::PER_ROW;
#pragma unroll
    for (int r = 0; r < ROWS; r += share::STEP, x += share::STEP * stride)
#pragma unroll
        for (int c = 0; c < share::CHUNKS; c += share::PER_ROW)
            tp_cp_async_16(tile + tile_at<D>(row + r, first + c), x + c * 8,
                           row + r < rows && (first + c) * 8 < width);
}

/* The same for ROWS rows from j0 on of key head `head` of sequence b, which lie in pages. Only rows
 * [begin, end) are there: what the table says of others is not followed. */
template <int ROWS, int D, int THREADS>
static __device__ __forceinline__ void tile_load_pages(tp_smem tile, const attention_params &p,
                                                       const attention_rows &x, int b, int head,
                                                       int j0, int begin, int end, int thread) {
    typedef tile_share<D, THREADS> share;
    static_assert(ROWS % share::STEP == 0 && share::CHUNKS % share::PER_ROW == 0,
                  "whole rounds of rows and chunks");
    const int row = thread / share::PER_ROW, first = thread % share::PER_ROW;
    const uint16_t *from = (const uint16_t *)x.x + head * x.h + first * 8;
#pragma unroll
    for (int r = 0; r < ROWS; r += share::STEP) {
        const int j = j0 + row + r;
        const bool there = j >= begin && j < end;
        const uint16_t *at = from + (there ? attention_row<true>(p, x, b, j) : 0);
#pragma unroll
        for (int c = 0; c < share::CHUNKS; c += share::PER_ROW)
            tp_cp_async_16(tile + tile_at<D>(row + r, first + c), at + c * 8,
                           there && (first + c) * 8 < p.D);
    }
}

/* Which row and chunk of a 16x16 block a lane names to ldmatrix_x4. Rows first: matrices 0, 1 are
 * above one another; chunks first: side by side. */
static __device__ __forceinline__ int lane_row_down(int lane) { return lane & 15; }
static __device__ __forceinline__ int lane_chunk_down(int lane) { return lane >> 4; }
static __device__ __forceinline__ int lane_row_across(int lane) {
    return (lane & 7) | (lane >> 1 & 8);
}
static __device__ __forceinline__ int lane_chunk_across(int lane) { return lane >> 3 & 1; }

/* The fragment of A, 16x16 at row m, column k. Stored as A[m][k]; TRANS: as A[k][m]. */
template <int D, bool TRANS>
static __device__ __forceinline__ void tile_a(unsigned a[4], tp_smem tile, int m, int k, int lane) {
    if (TRANS)
        tp_ldmatrix_x4_trans(
            a, tile + tile_at<D>(k + lane_row_across(lane), m / 8 + lane_chunk_across(lane)));
    else
        tp_ldmatrix_x4(a,
                       tile + tile_at<D>(m + lane_row_down(lane), k / 8 + lane_chunk_down(lane)));
}

/* The fragments b[0..1], b[2..3] of B at row k, columns n and n + 8. Stored as B[n][k]; TRANS: as
 * B[k][n]. */
template <int D, bool TRANS>
static __device__ __forceinline__ void tile_b(unsigned b[4], tp_smem tile, int k, int n, int lane) {
    if (TRANS)
        tp_ldmatrix_x4_trans(
            b, tile + tile_at<D>(k + lane_row_down(lane), n / 8 + lane_chunk_down(lane)));
    else
        tp_ldmatrix_x4(
            b, tile + tile_at<D>(n + lane_row_across(lane), k / 8 + lane_chunk_across(lane)));
}

/* acc(16 MT x 8 NT) += A B over K, the warp's part of it at row m of A and column n of B. */
template <int MT, int NT, int K, int DA, bool TRANS_A, int DB, bool TRANS_B>
static __device__ __forceinline__ void tile_product(float (&acc)[MT][NT][4], tp_smem a, int m,
                                                    tp_smem b, int n, int lane) {
#pragma unroll
    for (int k = 0; k < K; k += 16) {
        unsigned fa[MT][4];
#pragma unroll
        for (int i = 0; i < MT; i++) tile_a<DA, TRANS_A>(fa[i], a, m + 16 * i, k, lane);
#pragma unroll
        for (int j = 0; j < NT; j += 2) {
            unsigned fb[4];
            tile_b<DB, TRANS_B>(fb, b, k, n + 8 * j, lane);
#pragma unroll
            for (int i = 0; i < MT; i++) {
                tp_mma_bf16_16x8x16(acc[i][j], fa[i], fb, acc[i][j]);
                tp_mma_bf16_16x8x16(acc[i][j + 1], fa[i], fb + 2, acc[i][j + 1]);
            }
        }
    }
}

template <int MT, int NT> static __device__ __forceinline__ void tile_zero(float (&x)[MT][NT][4]) {
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) x[i][j][e] = 0;
}

/* Scores, or weights, of keys that their queries do not see become `hidden`. t, j: the query and
 * the key of the thread's first element. segments: of this sequence, or NULL. */
template <int MT, int NT>
static __device__ __forceinline__ void tile_hide(float (&s)[MT][NT][4], const attention_params &p,
                                                 attention_band band, const int32_t *segments,
                                                 int t, int j, float hidden) {
#pragma unroll
    for (int r = 0; r < 2 * MT; r++) {
        const int lo = t + 8 * r + band.lo - j, hi = min(t + 8 * r + band.hi + 1, p.S) - j;
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 2; e++)
                if (8 * n + e < lo || 8 * n + e >= hi) s[r / 2][n][r % 2 * 2 + e] = hidden;
    }
    if (!segments) return;
    static_assert(2 * NT <= 32, "a bit per key");
    int segment[2 * MT];
    unsigned differ[2 * MT] = {}; /* bit 2n + e; gathered one key after the other, as scores leave
                                     few registers for loads in flight */
#pragma unroll
    for (int r = 0; r < 2 * MT; r++)
        segment[r] = t + 8 * r < p.T ? segments[(t + 8 * r) * p.segments_t] : 0;
#pragma unroll 1
    for (int n = 0; n < 2 * NT; n++) {
        const int key = j + 4 * (n & ~1) + (n & 1);
        const int other = key < p.S ? segments[key * p.segments_t] : 0;
#pragma unroll
        for (int r = 0; r < 2 * MT; r++) differ[r] |= (unsigned)(segment[r] != other) << n;
    }
#pragma unroll
    for (int r = 0; r < 2 * MT; r++)
#pragma unroll
        for (int n = 0; n < 2 * NT; n++)
            if (differ[r] >> n & 1) s[r / 2][n / 2][r % 2 * 2 + n % 2] = hidden;
}

/* Rounds acc to bf16 and stores it at row m, column n of a tile. */
template <int MT, int NT, int D>
static __device__ __forceinline__ void tile_store(const float (&acc)[MT][NT][4], tp_smem tile,
                                                  int m, int n, int lane) {
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                tp_sts_u32(tile + tile_at<D>(m + 16 * i + 8 * half + lane / 4, n / 8 + j) +
                               lane % 4 * 4,
                           tp_pack_bf16(acc[i][j][2 * half], acc[i][j][2 * half + 1]));
}

/* Copies rows [0, rows) of a tile from row `first` on to global memory, by `threads` threads. */
template <int ROWS, int D>
static __device__ __forceinline__ void tile_write(void *to, int64_t stride, tp_smem tile, int first,
                                                  int rows, int width, int thread, int threads) {
    for (int i = thread; i < ROWS * (D / 8); i += threads) {
        int row = i / (D / 8), chunk = i % (D / 8);
        uint4 x = tp_lds_u128(tile + tile_at<D>(first + row, chunk));
        if (row < rows && chunk * 8 < width)
            *(uint4 *)((uint16_t *)to + row * stride + chunk * 8) = x;
    }
}

/* ---- which calls the sm_80 kernels take ----------------------------------------------------- */
static inline const char *attention_sm80_decline_rows(const tp_tensor *x) {
    if (!x) return NULL;
    if (x->dtype != TP_BF16) return "only bf16";
    if (x->shape[3] > 1 && x->stride[3] != 1) return "the innermost stride is not 1";
    if (!tp_aligned(x->data, 16)) return "rows are not aligned to 16 bytes";
    for (int i = 0; i < 3; i++)
        if (x->shape[i] > 1 && x->stride[i] % 8) return "rows are not aligned to 16 bytes";
    return NULL;
}

/* shared: bytes of shared memory that the kernel wants at this head size. scale: the attribute. */
static inline const char *attention_sm80_decline(const tp_call *k, size_t shared, double scale) {
    const tp_cuda *device = tp_cuda_of(k->ctx); /* NULL: memory is planned without one */
    const char *no;
    for (int i = 0; i < 3; i++)
        if ((no = attention_sm80_decline_rows(k->in[i]))) return no;
    int64_t D = k->in[0]->shape[3], Dv = k->in[2]->shape[3];
    if (device && device->sm < 80) return "needs compute capability 8.0";
    if (D != Dv) return "keys and values differ in width";
    if (D > 256) return "head size above 256";
    if (D % 8 || D == 0) return "head size is no multiple of 8";
    if (scale < 0) return "a negative scale";
    if (device && shared > device->shared_optin)
        return "the device's blocks have too little shared memory";
    return attention_decline_sizes(k);
}
#endif
