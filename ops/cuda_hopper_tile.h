/* Tiles of bf16 in shared memory as Hopper's kernels hold them: how TMA lays one down, and how
 * wgmma reads it along its rows or across them. */
#ifndef TP_CUDA_HOPPER_TILE_H
#define TP_CUDA_HOPPER_TILE_H
#include "ops/cuda.h"
#include "ops/cuda_hopper.h"

enum { SM90_SHARED_BYTES = 227 << 10 }; /* what a block can have at most */

/* A tile of R rows of D values lies as D/COLS boxes of (R, COLS), each swizzled by rows. 64 columns
 * (128 bytes) where they divide D, else 32. */
template <int D> struct sm90_layout {
    static constexpr int COLS = D % 64 == 0 ? 64 : 32, ROW = COLS * 2, BOXES = D / COLS;
    static constexpr enum tp_swizzle SWIZZLE = COLS == 64 ? TP_SWIZZLE_128B : TP_SWIZZLE_64B;
};

#if TP_HOPPER
/* Descriptor of a tile of R rows. Read along its rows (k contiguous), from row `row` on: */
template <int D, int R>
static __device__ __forceinline__ uint64_t sm90_rows_desc(const unsigned char *tile, int row) {
    typedef sm90_layout<D> L;
    return tp_wgmma_desc(tile + row * L::ROW, 16, 8 * L::ROW, L::SWIZZLE);
}
/* … and the steps of 16 columns within it. */
template <int D, int R> static __device__ __forceinline__ uint64_t sm90_rows_step(int k) {
    typedef sm90_layout<D> L;
    int column = 16 * k;
    return (uint64_t)((column / L::COLS * R * L::ROW + column % L::COLS * 2) >> 4);
}
/* Read across its rows (m or n contiguous, k = the row): steps of 16 rows are 16*ROW bytes. */
template <int D, int R>
static __device__ __forceinline__ uint64_t sm90_columns_desc(const unsigned char *tile) {
    typedef sm90_layout<D> L;
    return tp_wgmma_desc(tile, R * L::ROW, 8 * L::ROW, L::SWIZZLE);
}
template <int D> static __device__ __forceinline__ uint64_t sm90_columns_step(int k) {
    return (uint64_t)((16 * k * sm90_layout<D>::ROW) >> 4);
}

/* An accumulator (64, 2N) as the A operand of wgmma: bf16, 16 columns per step. */
template <int N>
static __device__ __forceinline__ void sm90_pack(uint32_t (&p)[N / 8][4], const float (&s)[N]) {
#pragma unroll
    for (int i = 0; i < N / 8; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) p[i][e] = tp_pack_bf16(s[8 * i + 2 * e], s[8 * i + 2 * e + 1]);
}

/* Where a thread writes rows `row` and row + 8 of an accumulator, as bf16, to a tile of R rows that
 * starts at a multiple of 1024 bytes: two columns 8*i + 2*(lane%4) at a time. Swizzling exchanges
 * 16-byte pieces by the row's number modulo 8, so the place of piece i is one exclusive or away
 * from that of piece 0, and 8 rows on it is the same. */
template <int D> static __device__ __forceinline__ unsigned sm90_row_place(int row) {
    typedef sm90_layout<D> L;
    return tp_swizzled(row * L::ROW + threadIdx.x % 4 * 4, L::SWIZZLE);
}
template <int D, int R>
static __device__ __forceinline__ unsigned sm90_pair_place(unsigned at, int i, int r) {
    typedef sm90_layout<D> L;
    constexpr int PIECES = L::COLS / 8;
    return i / PIECES * R * L::ROW + (at ^ i % PIECES * 16) + 8 * r * L::ROW;
}

/* A ring of STAGES buffers: use number i lies in buffer i % STAGES, and its barriers' phase is: */
template <int STAGES> static __device__ __forceinline__ int sm90_phase(int i) {
    return i / STAGES & 1;
}
#endif
#endif
