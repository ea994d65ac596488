/* What the plain CUDA kernels of attention, forward and backward, share. */
#ifndef TP_ATTENTION_NAIVE_CUDA_H
#define TP_ATTENTION_NAIVE_CUDA_H
#include "ops/attention/attention_cuda.h"

/* An element of a tensor (b, t, h, d) of any strides; 0 if there is no tensor. */
template <typename T>
static __device__ __forceinline__ float naive_at(const attention_rows &x, int b, int t, int h,
                                                 int d) {
    if (!x.x) return 0;
    return tp_to_f32(((const T *)x.x)[b * x.b + t * x.t + h * x.h + d * x.d]);
}

static __device__ __forceinline__ bool naive_same_segment(const attention_params &p, int b, int t,
                                                          int j) {
    if (!p.segments) return true;
    const int32_t *s = p.segments + b * p.segments_b;
    return s[t * p.segments_t] == s[j * p.segments_t];
}
#endif
