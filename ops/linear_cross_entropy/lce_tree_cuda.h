/* The tree over samples (lce_tree.h) of one number each, on CUDA. */
#ifndef TP_LCE_TREE_CUDA_H
#define TP_LCE_TREE_CUDA_H
#include "ops/cuda.h"

/* Level by level, in one block. Overwrites sums. */
template <typename T> __global__ void lce_sum_tree(float *sums, int64_t n, T *to) {
    for (int64_t w = 1; w < n; w *= 2) {
        for (int64_t i = 2 * w * threadIdx.x; i + w < n; i += 2 * w * blockDim.x)
            tp_stg(sums + i, tp_ldg(sums + i) + tp_ldg(sums + i + w));
        __syncthreads();
    }
    if (threadIdx.x == 0) tp_stg(to, tp_from_f32<T>(n ? tp_ldg(sums) : 0.0f));
}

/* to = the sum of sums[0..n-1]; 0 of none. */
template <typename T>
static inline tp_status tp_lce_tree_sum(const tp_call *k, float *sums, int64_t n, T *to) {
    return TP_LAUNCH(k, (lce_sum_tree<T>), 1, 256, 0, sums, n, to);
}
#endif
