/* elementwise ops on CUDA: one kernel for every formula, any strides and broadcasts. A thread takes
 * 16 bytes where every operand lies dense along the last dimension, else one element. */
#ifndef TP_ELEMENTWISE_CUDA_H
#define TP_ELEMENTWISE_CUDA_H
#include "ops/broadcast.h"
#include "ops/cuda.h"

enum { TP_MAP_IN = 4, TP_MAP_OUT = 2, TP_MAP_THREADS = 256 };
typedef struct tp_map_args {
    tp_walk walk;
    const void *in[TP_MAP_IN];
    void *out[TP_MAP_OUT];
    int64_t vectors;
} tp_map_args;

/* f(x, y, at): x[NIN] in, y[NOUT] out, of the output's element `at`. */
template <typename F, typename T, int V, int NIN, int NOUT>
__global__ void tp_map(F f, tp_map_args a) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= a.vectors) return;
    int last = a.walk.ndim - 1;
    int64_t at = i * V, rest = at, col = at;
    int64_t from[NIN];
    for (int j = 0; j < NIN; j++) from[j] = 0;
    if (last > 0) {
        rest = at / a.walk.shape[last];
        col = at - rest * a.walk.shape[last];
        for (int d = last - 1; d >= 0; d--) {
            int64_t next = rest / a.walk.shape[d], x = rest - next * a.walk.shape[d];
            for (int j = 0; j < NIN; j++) from[j] += x * a.walk.stride[j][d];
            rest = next;
        }
    }
    float x[V][NIN], y[V][NOUT];
#pragma unroll
    for (int j = 0; j < NIN; j++) {
        int64_t step = a.walk.stride[j][last];
        const T *p = (const T *)a.in[j] + from[j] + col * step;
        if (V > 1 && step == 1) {
            tp_vec<T, V> v = tp_load<T, V>(p);
#pragma unroll
            for (int e = 0; e < V; e++) x[e][j] = tp_to_f32(v.v[e]);
        } else {
            float one = tp_to_f32(tp_ldg(p)); /* V > 1: the operand is repeated */
#pragma unroll
            for (int e = 0; e < V; e++) x[e][j] = one;
        }
    }
#pragma unroll
    for (int e = 0; e < V; e++) f(x[e], y[e], at + e);
#pragma unroll
    for (int j = 0; j < NOUT; j++) {
        tp_vec<T, V> v;
#pragma unroll
        for (int e = 0; e < V; e++) v.v[e] = tp_from_f32<T>(y[e][j]);
        tp_store<T, V>((T *)a.out[j] + at, v);
    }
}

/* Vectors of V are possible: every operand is dense or repeated along the last dimension, and each
 * vector of it begins at a multiple of 16 bytes. */
static inline bool tp_map_takes(const tp_map_args *a, int nin, int nout, int V) {
    int last = a->walk.ndim - 1;
    if (a->walk.shape[last] % V) return false;
    for (int j = 0; j < nout; j++)
        if (!tp_aligned(a->out[j], 16)) return false;
    for (int j = 0; j < nin; j++) {
        if (a->walk.stride[j][last] == 0) continue;
        if (a->walk.stride[j][last] != 1 || !tp_aligned(a->in[j], 16)) return false;
        for (int d = 0; d < last; d++)
            if (a->walk.stride[j][d] % V) return false;
    }
    return true;
}

/* Applies f to k's inputs (all of dtype T); out are dense and of one shape. */
template <typename T, int NIN, int NOUT, typename F>
static inline tp_status tp_map_typed(const tp_call *k, tp_tensor *const out[], F f) {
    enum { V = tp_width<T>::N };
    int64_t n = tp_numel(out[0]);
    tp_map_args a = {};
    if (!n) return TP_OK;
    a.walk = tp_walk_of(k, out[0]);
    for (int j = 0; j < NIN; j++) a.in[j] = k->in[j]->data;
    for (int j = 0; j < NOUT; j++) a.out[j] = out[j]->data;
    if (tp_map_takes(&a, NIN, NOUT, V)) {
        a.vectors = n / V;
        return TP_LAUNCH(k, (tp_map<F, T, V, NIN, NOUT>), tp_blocks(a.vectors, TP_MAP_THREADS),
                         TP_MAP_THREADS, 0, f, a);
    }
    a.vectors = n;
    return TP_LAUNCH(k, (tp_map<F, T, 1, NIN, NOUT>), tp_blocks(n, TP_MAP_THREADS), TP_MAP_THREADS,
                     0, f, a);
}

template <int NIN, int NOUT, typename F>
static inline tp_status tp_map_run(const tp_call *k, tp_tensor *const out[], F f) {
    TP_BY_FLOAT(out[0]->dtype, T, return (tp_map_typed<T, NIN, NOUT, F>(k, out, f)));
}

/* The kernel `id` of an op with attributes of type attr_t: setup may read them through `a`. */
#define TP_MAP_CUDA_(id, nin, attr_t, setup, names, expr)                                          \
    struct id##_fn {                                                                               \
        attr_t attr;                                                                               \
        __device__ void operator()(const float *v_, float *o_, int64_t) const {                    \
            const attr_t *a = &attr;                                                               \
            (void)a;                                                                               \
            setup;                                                                                 \
            names;                                                                                 \
            o_[0] = (expr);                                                                        \
        }                                                                                          \
    };                                                                                             \
    static tp_status id##_run(const tp_call *k) {                                                  \
        id##_fn f = {};                                                                            \
        if (k->attr) f.attr = *(const attr_t *)k->attr;                                            \
        return tp_map_run<nin, 1>(k, k->out, f);                                                   \
    }                                                                                              \
    TP_CUDA_KERNEL(id, .decline = tp_decline_cuda_floats, .run = id##_run);

/* out[i] = expr of x (and y). */
#define TP_UNARY_ATTR_CUDA(id, attr_t, setup, expr)                                                \
    TP_MAP_CUDA_(id, 1, attr_t, setup, float x = v_[0], expr)
#define TP_BINARY_ATTR_CUDA(id, attr_t, setup, expr)                                               \
    TP_MAP_CUDA_(id, 2, attr_t, setup, float x = v_[0]; float y = v_[1], expr)
#define TP_UNARY_CUDA(id, expr) TP_UNARY_ATTR_CUDA(id, int, (void)0, expr)
#define TP_BINARY_CUDA(id, expr) TP_BINARY_ATTR_CUDA(id, int, (void)0, expr)
#endif
