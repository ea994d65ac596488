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
    int64_t n, vectors; /* elements; how many of them go as whole vectors, from the first on */
    bool in_place;      /* out[0] is in[0], strides and all */
} tp_map_args;

/* A truth value: 0 or 1 where one is written, anything where one is read. */
static __device__ __forceinline__ float tp_to_f32(uint8_t x) { return x ? 1.0f : 0.0f; }
static __device__ __forceinline__ float tp_to_f32(int32_t x) { return x ? 1.0f : 0.0f; }
template <> __device__ __forceinline__ uint8_t tp_from_f32<uint8_t>(float x) { return x != 0.0f; }

/* from[j]: where operand j has what meets the output's element `at`. */
template <int N>
static __device__ __forceinline__ void tp_walk_at(const tp_walk &w, int64_t at, int64_t from[N]) {
#pragma unroll
    for (int j = 0; j < N; j++) from[j] = 0;
    for (int d = w.ndim - 1; d >= 0; d--) {
        int64_t next = d ? at / w.shape[d] : 0, x = at - next * w.shape[d];
#pragma unroll
        for (int j = 0; j < N; j++) from[j] += x * w.stride[j][d];
        at = next;
    }
}

/* V neighbouring values of one operand, or one value V times (step 0). */
template <typename T, int V>
static __device__ __forceinline__ tp_vec<T, V> tp_map_load(const void *in, int64_t from,
                                                           int64_t step) {
    const T *p = (const T *)in + from;
    if (V > 1 && step == 1) return tp_load<T, V>(p);
    tp_vec<T, V> v;
    v.v[0] = tp_ldg(p);
#pragma unroll
    for (int e = 1; e < V; e++) v.v[e] = v.v[0];
    return v;
}

/* DENSE: operands lie as the output does, with nothing to work out: else that takes as many
 * instructions as a formula. */
template <typename F, typename C, typename T, typename R, int V, int NIN, int NOUT, bool DENSE>
static __device__ __forceinline__ void tp_map_some(const F &f, const tp_map_args &a, int64_t at) {
    int last = a.walk.ndim - 1;
    int64_t from[NIN];
    float x[V][NIN], y[V][NOUT];
#pragma unroll
    for (int j = 0; j < NIN; j++) from[j] = at;
    if (!DENSE) tp_walk_at<NIN>(a.walk, at, from);
    /* every operand is under way before the first is looked at */
    tp_vec<C, V> first = tp_map_load<C, V>(a.in[0], from[0], DENSE ? 1 : a.walk.stride[0][last]);
    tp_vec<T, V> other[NIN];
#pragma unroll
    for (int j = 1; j < NIN; j++)
        other[j] = tp_map_load<T, V>(a.in[j], from[j], DENSE ? 1 : a.walk.stride[j][last]);
#pragma unroll
    for (int e = 0; e < V; e++) {
        x[e][0] = tp_to_f32(first.v[e]);
#pragma unroll
        for (int j = 1; j < NIN; j++) x[e][j] = tp_to_f32(other[j].v[e]);
    }
#pragma unroll
    for (int e = 0; e < V; e++) f(x[e], y[e], at + e);
    int64_t to = !DENSE && a.in_place ? from[0] : at;
#pragma unroll
    for (int j = 0; j < NOUT; j++) {
        tp_vec<R, V> v;
#pragma unroll
        for (int e = 0; e < V; e++) v.v[e] = tp_from_f32<R>(y[e][j]);
        tp_store<R, V>((R *)a.out[j] + to, v);
    }
}

/* f(x, y, at): x[NIN] in, y[NOUT] out, of the output's element `at`. The first input has elements
 * of type C, the others of T, the outputs of R. */
template <typename F, typename C, typename T, typename R, int V, int NIN, int NOUT, bool DENSE>
__global__ void __launch_bounds__(TP_MAP_THREADS) tp_map(F f, tp_map_args a) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.vectors) {
        tp_map_some<F, C, T, R, V, NIN, NOUT, DENSE>(f, a, i * V);
    } else {
        i += a.vectors * (V - 1);
        if (i < a.n) tp_map_some<F, C, T, R, 1, NIN, NOUT, DENSE>(f, a, i);
    }
}

/* Vectors of V are possible: every operand is dense or repeated along the last dimension, and each
 * vector of it begins at a multiple of its size. (One row may end in part of a vector.) */
static inline bool tp_map_takes(const tp_map_args *a, int nin, const size_t in_bytes[], int nout,
                                size_t out_bytes, int V) {
    int last = a->walk.ndim - 1;
    if (last && a->walk.shape[last] % V) return false;
    for (int j = 0; j < nout; j++)
        if (!tp_aligned(a->out[j], V * out_bytes)) return false;
    for (int j = 0; j < nin; j++) {
        int64_t step = a->walk.stride[j][last];
        if (step == 0 && !(j == 0 && a->in_place)) continue;
        if (step != 1 || !tp_aligned(a->in[j], V * in_bytes[j])) return false;
        for (int d = 0; d < last; d++)
            if (a->walk.stride[j][d] % V) return false;
    }
    return true;
}

/* Applies f to k's inputs. out are dense and of one shape; or out[0] is in[0] itself. */
template <typename C, typename T, typename R, int NIN, int NOUT, typename F>
static inline tp_status tp_map_typed(const tp_call *k, tp_tensor *const out[], F f) {
    enum { OF_T = tp_width<T>::N, OF_C = tp_width<C>::N };
    enum { V = (int)OF_T < (int)OF_C ? (int)OF_T : (int)OF_C };
    size_t bytes[NIN];
    tp_map_args a = {};
    if (!(a.n = tp_numel(out[0]))) return TP_OK;
    a.walk = tp_walk_of(k, out[0]);
    a.in_place = out[0] == k->in[0];
    for (int j = 0; j < NIN; j++) {
        a.in[j] = k->in[j]->data;
        bytes[j] = j ? sizeof(T) : sizeof(C);
    }
    for (int j = 0; j < NOUT; j++) a.out[j] = out[j]->data;
    if (tp_map_takes(&a, NIN, bytes, NOUT, sizeof(R), V)) a.vectors = a.n / V;
    int64_t threads = a.n - a.vectors * (V - 1);
    unsigned blocks = tp_blocks(threads, TP_MAP_THREADS);
    bool dense = a.vectors && a.walk.ndim == 1;
    for (int j = 0; j < NIN && dense; j++) dense = a.walk.stride[j][0] == 1;
    if (dense)
        return TP_LAUNCH(k, (tp_map<F, C, T, R, V, NIN, NOUT, true>), blocks, TP_MAP_THREADS, 0, f,
                         a);
    return TP_LAUNCH(k, (tp_map<F, C, T, R, V, NIN, NOUT, false>), blocks, TP_MAP_THREADS, 0, f, a);
}

template <int NIN, int NOUT, typename F>
static inline tp_status tp_map_run(const tp_call *k, tp_tensor *const out[], F f) {
    TP_BY_FLOAT(out[0]->dtype, T, return (tp_map_typed<T, T, T, NIN, NOUT, F>(k, out, f)));
}

/* The kernel `id` of an op with attributes of type attr_t: setup may read them through `a`. */
#define TP_MAP_CUDA_(id, nin, attr_t, setup, names, expr)                                          \
    struct id##_fn {                                                                               \
        attr_t attr;                                                                               \
        __device__ void operator()(const float *v_, float *o_, int64_t) const {                    \
            [[maybe_unused]] const attr_t *a = &attr;                                              \
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
