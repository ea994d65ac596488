/* Copying between strided places on CUDA, for copy and concat. What is dense on both sides moves in
 * units of up to 16 bytes; a transposed matrix goes through a tile in shared memory, so that both
 * sides are read and written along their rows. */
#ifndef TP_STRIDED_CUDA_H
#define TP_STRIDED_CUDA_H
#include "ops/elementwise_cuda.h"

enum { TP_COPY_DST, TP_COPY_SRC, TP_COPY_THREADS = 256 };

/* One unit per thread; zeros where src is NULL. */
template <typename U> __global__ void tp_copy_units(tp_walk w, U *dst, const U *src, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, at[2];
    if (i >= n) return;
    tp_walk_at<2>(w, i, at);
    tp_stg(dst + at[TP_COPY_DST], src ? tp_ldg(src + at[TP_COPY_SRC]) : U{});
}

/* dst is dense along the last dimension, src along `row`. A tile's row is an odd number of words
 * long (for 8 bytes: an odd number of elements), so that a warp that reads a column meets every
 * bank of shared memory once. */
template <typename U> struct tp_tile {
    static constexpr int SIDE = sizeof(U) <= 2 ? 64 : 32;
    static constexpr int PITCH = SIDE + (sizeof(U) < 4 ? 4 / (int)sizeof(U) : 1);
};
template <typename U>
__global__ void tp_copy_tiles(tp_walk w, U *dst, const U *src, int row, int64_t down,
                              int64_t across) {
    constexpr int SIDE = tp_tile<U>::SIDE, PITCH = tp_tile<U>::PITCH, STEP = TP_COPY_THREADS / SIDE;
    TP_SHARED(U, tile, SIDE * PITCH);
    int last = w.ndim - 1, x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    int64_t rest = blockIdx.x / across, c0 = (blockIdx.x - rest * across) * SIDE;
    int64_t outer = rest / down, r0 = (rest - outer * down) * SIDE;
    int64_t rows = w.shape[row], cols = w.shape[last];
    for (int d = last - 1; d >= 0; d--) {
        if (d == row) continue;
        int64_t next = outer / w.shape[d], i = outer - next * w.shape[d];
        dst += i * w.stride[TP_COPY_DST][d];
        src += i * w.stride[TP_COPY_SRC][d];
        outer = next;
    }
    U v[SIDE / STEP]; /* all loads are under way before the first one is waited for */
#pragma unroll
    for (int e = 0; e < SIDE / STEP; e++) {
        int j = e * STEP + y;
        v[e] = U{};
        if (r0 + x < rows && c0 + j < cols)
            v[e] = tp_ldg(src + (r0 + x) + (c0 + j) * w.stride[TP_COPY_SRC][last]);
    }
#pragma unroll
    for (int e = 0; e < SIDE / STEP; e++) tile[(e * STEP + y) * PITCH + x] = v[e];
    __syncthreads();
#pragma unroll
    for (int e = 0; e < SIDE / STEP; e++) {
        int j = e * STEP + y;
        if (r0 + j < rows && c0 + x < cols)
            tp_stg(dst + (r0 + j) * w.stride[TP_COPY_DST][row] + (c0 + x), (U)tile[x * PITCH + j]);
    }
}

/* The dimension along which src is dense, if tiles are worth it; else -1. */
static inline int tp_copy_row(const tp_walk *w) {
    int last = w->ndim - 1, row = -1;
    if (w->stride[TP_COPY_DST][last] != 1 || w->stride[TP_COPY_SRC][last] < 2) return -1;
    for (int d = 0; d < last; d++)
        if (w->stride[TP_COPY_SRC][d] == 1) row = d;
    return row >= 0 && w->shape[row] >= 8 && w->shape[last] >= 8 ? row : -1;
}

template <typename U>
static inline tp_status tp_copy_launch(const tp_call *k, const tp_walk &w, void *dst,
                                       const void *src) {
    int row = src ? tp_copy_row(&w) : -1; /* never where U is wider than an element */
    int64_t n = 1;
    for (int d = 0; d < w.ndim; d++) n *= w.shape[d];
    if (row < 0)
        return TP_LAUNCH(k, tp_copy_units<U>, tp_blocks(n, TP_COPY_THREADS), TP_COPY_THREADS, 0, w,
                         (U *)dst, (const U *)src, n);
    constexpr int SIDE = tp_tile<U>::SIDE;
    int64_t rows = w.shape[row], cols = w.shape[w.ndim - 1];
    int64_t down = tp_blocks(rows, SIDE), across = tp_blocks(cols, SIDE);
    return TP_LAUNCH(k, tp_copy_tiles<U>, (unsigned)(n / rows / cols * down * across),
                     TP_COPY_THREADS, 0, w, (U *)dst, (const U *)src, row, down, across);
}

/* Whether w can move in units of `unit` bytes rather than elements of `bytes`. */
static inline bool tp_copy_widens(const tp_walk *w, const void *dst, const void *src, size_t bytes,
                                  size_t unit) {
    int last = w->ndim - 1;
    bool ok = w->stride[TP_COPY_DST][last] == 1 && tp_aligned(dst, unit) &&
              w->shape[last] * bytes % unit == 0;
    if (src) ok = ok && w->stride[TP_COPY_SRC][last] == 1 && tp_aligned(src, unit);
    for (int d = 0; d < last; d++)
        ok = ok && w->stride[TP_COPY_DST][d] * bytes % unit == 0 &&
             w->stride[TP_COPY_SRC][d] * bytes % unit == 0;
    return ok;
}

/* dst = src, or zeros where src is NULL. Same shape and dtype, strides free, no overlap. */
static inline tp_status tp_strided_copy_cuda(const tp_call *k, tp_tensor *dst, tp_tensor *src) {
    size_t bytes = tp_dtype_size(dst->dtype), unit = 16;
    if (!tp_numel(dst)) return TP_OK;
    tp_call both = {};
    both.nin = 2;
    both.in[TP_COPY_DST] = dst;
    both.in[TP_COPY_SRC] = src;
    tp_walk w = tp_walk_of(&both, dst);
    const void *from = src ? src->data : NULL;
    if (w.ndim == 1 && w.shape[0] == 1) { /* one element lies at a distance of 1 from itself */
        w.stride[TP_COPY_DST][0] = 1;
        w.stride[TP_COPY_SRC][0] = 1;
    }
    while (unit > bytes && !tp_copy_widens(&w, dst->data, from, bytes, unit)) unit /= 2;
    int last = w.ndim - 1;
    w.shape[last] = w.shape[last] * (int64_t)bytes / (int64_t)unit;
    for (int d = 0; d < last; d++)
        for (int j = 0; j < 2; j++)
            w.stride[j][d] = w.stride[j][d] * (int64_t)bytes / (int64_t)unit;
    switch (unit) {
    case 1:
        return tp_copy_launch<uint8_t>(k, w, dst->data, from);
    case 2:
        return tp_copy_launch<uint16_t>(k, w, dst->data, from);
    case 4:
        return tp_copy_launch<uint32_t>(k, w, dst->data, from);
    case 8:
        return tp_copy_launch<uint64_t>(k, w, dst->data, from);
    default:
        return tp_copy_launch<tp_vec<uint32_t, 4>>(k, w, dst->data, from);
    }
}
#endif
