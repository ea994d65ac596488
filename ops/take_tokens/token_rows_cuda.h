/* The ops of routed blocks on CUDA: a warp per listed token, 16 bytes a lane where rows allow it.
 */
#ifndef TP_TOKEN_ROWS_CUDA_H
#define TP_TOKEN_ROWS_CUDA_H
#include "ops/cuda.h"

enum { TOKEN_THREADS = 256 };

static __device__ __forceinline__ int64_t tp_token_here() {
    return (int64_t)blockIdx.x * (TOKEN_THREADS / 32) + threadIdx.x / 32;
}
/* The p-th of the list; what is no token of the tensor, or in no order, is reported and skipped. */
static __device__ __forceinline__ int32_t tp_token_row(const int32_t *rows, int64_t p,
                                                       int64_t limit, tp_fault fault) {
    int32_t row = tp_ldg(rows + p), before = p ? tp_ldg(rows + p - 1) : -1;
    if (row == -1) return -1;
    if (row >= 0 && row < limit && row > before) return row;
    if (threadIdx.x % 32 == 0) tp_report(fault, p);
    return -1;
}
/* f(i, n): values i..i+n-1 of a row are this lane's, n = V or 1. */
template <int V, typename F>
static __device__ __forceinline__ void tp_token_each(int64_t channels, F f) {
    for (int64_t i = (int64_t)(threadIdx.x % 32) * V; i < channels; i += 32 * V) f(i);
}
/* Rows of dense tensors of T can be moved as vectors. */
template <typename T>
static inline bool tp_token_vectors(int64_t channels, const void *a, const void *b) {
    return channels % tp_width<T>::N == 0 && tp_aligned(a, 16) && tp_aligned(b, 16);
}
#endif
