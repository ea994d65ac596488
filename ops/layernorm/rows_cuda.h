/* How the rows of a (…,C) tensor are shared out among CUDA threads, for the norms and softmax.
 *
 * A row belongs to the P = blockDim.x threads of one threadIdx.y: a warp, several rows side by side
 * in a block, or for long rows the whole block. Thread t has the vectors t, t+P, t+2P, … of the
 * row, a vector being V neighbouring channels, 16 bytes. So a sum's order depends on C and the
 * dtype only, and the bits are the same where strides or odd sizes forbid to load whole vectors.
 *
 * K is how many vectors of a row a thread keeps in registers, enough for all its own. With K = 0
 * the row is read again at each pass, out of the L1 cache: for very long rows, and for whatever
 * cannot be loaded in vectors. */
#ifndef TP_ROWS_CUDA_H
#define TP_ROWS_CUDA_H
#include "ops/cuda.h"
#include "ops/reduce.h"

enum { TP_ROW_K = 4, TP_ROW_SIDE = 4, TP_ROW_THREADS = 256 };

typedef struct tp_rows {
    int64_t rows, channels;
    int threads, side, k; /* threads of a row, rows side by side in a block, vectors kept */
    bool vector;          /* every operand can be loaded in vectors */
} tp_rows;

/* A (…,C) operand, or (C) for all rows; p is NULL where it is absent. */
typedef struct tp_row_in {
    const void *p;
    int64_t step; /* from channel to channel */
    tp_dims lead; /* rows */
} tp_row_in;

static inline tp_row_in tp_row_of(const tp_tensor *t) {
    tp_row_in o = {};
    tp_dims_push(&o.lead, 1, 0);
    if (!t) return o;
    o.p = t->data;
    o.step = t->stride[t->ndim - 1];
    if (t->ndim == 1) { /* every row is row 0 */
        o.lead.stride[0] = 0;
        return o;
    }
    for (int d = 0; d < t->ndim - 1; d++) tp_dims_push(&o.lead, t->shape[d], t->stride[d]);
    return o;
}

static inline tp_rows tp_rows_of(const tp_tensor *x) {
    tp_rows r = {};
    int v = 16 / (int)tp_dtype_size(x->dtype);
    r.channels = x->shape[x->ndim - 1];
    r.rows = r.channels ? tp_numel(x) / r.channels : 0;
    int64_t vectors = r.channels ? (r.channels + v - 1) / v : 1, most = TP_ROW_K * TP_ROW_THREADS;
    r.threads = TP_ROW_THREADS;
    if (vectors <= most) r.threads = (int)((vectors + TP_ROW_K * 32 - 1) / (TP_ROW_K * 32)) * 32;
    r.side = r.threads > 32 ? 1 : TP_ROW_SIDE;
    r.k = vectors <= most ? (int)((vectors + r.threads - 1) / r.threads) : 0;
    r.vector = r.channels % v == 0;
    return r;
}

/* Notes that an operand (absent ones do not matter) and an output are among the rows'. */
static inline void tp_rows_with(tp_rows *r, const tp_tensor *t) {
    if (!t || !r->vector) return;
    int v = 16 / (int)tp_dtype_size(t->dtype);
    r->vector = t->stride[t->ndim - 1] == 1 && tp_aligned(t->data, 16);
    for (int d = 0; d < t->ndim - 1; d++)
        if (t->shape[d] > 1 && t->stride[d] % v) r->vector = false;
}

/* Launches kernel<…, K, VECTOR>(args) for these rows: TP_ROWS_LAUNCH(k, r, blocks, shared, norm,
 * (T, true), a). */
#define TP_ROWS_UNPACK_(...) __VA_ARGS__
#define TP_ROWS_ONE_(k, r, blocks, shared, kernel, types, K, VECTOR, ...)                          \
    return TP_LAUNCH(k, (kernel<TP_ROWS_UNPACK_ types, K, VECTOR>), blocks,                        \
                     dim3((unsigned)(r).threads, (unsigned)(r).side), shared, __VA_ARGS__)
#define TP_ROWS_LAUNCH(k, r, blocks, shared, kernel, types, ...)                                   \
    do {                                                                                           \
        if (!(r).vector) TP_ROWS_ONE_(k, r, blocks, shared, kernel, types, 0, false, __VA_ARGS__); \
        switch ((r).k) {                                                                           \
        case 0:                                                                                    \
            TP_ROWS_ONE_(k, r, blocks, shared, kernel, types, 0, true, __VA_ARGS__);               \
        case 1:                                                                                    \
            TP_ROWS_ONE_(k, r, blocks, shared, kernel, types, 1, true, __VA_ARGS__);               \
        case 2:                                                                                    \
            TP_ROWS_ONE_(k, r, blocks, shared, kernel, types, 2, true, __VA_ARGS__);               \
        case 3:                                                                                    \
            TP_ROWS_ONE_(k, r, blocks, shared, kernel, types, 3, true, __VA_ARGS__);               \
        default:                                                                                   \
            TP_ROWS_ONE_(k, r, blocks, shared, kernel, types, 4, true, __VA_ARGS__);               \
        }                                                                                          \
    } while (0)

static inline unsigned tp_rows_blocks(const tp_rows &r) { return tp_blocks(r.rows, r.side); }

/* ---- in kernels ----------------------------------------------------------------------------- */
/* The row of this thread; all threads of a row agree. */
static __device__ __forceinline__ int64_t tp_row_here(void) {
    return (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
}

/* f(j, i, n) for each vector of this thread: channels i..i+n-1, kept in slot j. */
template <typename T, int K, bool VECTOR, typename F>
static __device__ __forceinline__ void tp_row_each(int64_t channels, F f) {
    enum { V = tp_width<T>::N };
    if constexpr (K > 0) {
#pragma unroll
        for (int j = 0; j < K; j++) {
            int64_t i = ((int64_t)j * blockDim.x + threadIdx.x) * V;
            if (i < channels) f(j, i, V);
        }
    } else {
        for (int64_t i = (int64_t)threadIdx.x * V; i < channels; i += (int64_t)blockDim.x * V)
            f(0, i, VECTOR || channels - i >= V ? (int)V : (int)(channels - i));
    }
}

/* Runs body for e = 0 .. n-1, unrolled. */
#define TP_ROW_FOR(e, n)                                                                           \
    _Pragma("unroll") for (int e = 0; e < tp_width<T>::N; e++) if (VECTOR || e < (n))

/* x[0..n-1] = channels i..i+n-1 of a row that begins at p. */
template <typename T, bool VECTOR>
static __device__ __forceinline__ void tp_row_load(float *x, const T *p, int64_t step, int64_t i,
                                                   int n) {
    enum { V = tp_width<T>::N };
    if (VECTOR) {
        tp_vec<T, V> v = tp_load<T, V>(p + i);
#pragma unroll
        for (int e = 0; e < V; e++) x[e] = tp_to_f32(v.v[e]);
    } else {
#pragma unroll
        for (int e = 0; e < V; e++) x[e] = e < n ? tp_to_f32(tp_ldg(p + (i + e) * step)) : 0.0f;
    }
}
template <typename T>
static __device__ __forceinline__ const T *tp_row_at(const tp_row_in &o, int64_t row) {
    return (const T *)o.p + tp_dims_offset(&o.lead, row);
}

/* The same into a dense row. */
template <typename T, bool VECTOR>
static __device__ __forceinline__ void tp_row_store(T *p, const float *x, int64_t i, int n) {
    enum { V = tp_width<T>::N };
    if (VECTOR) {
        tp_vec<T, V> v;
#pragma unroll
        for (int e = 0; e < V; e++) v.v[e] = tp_from_f32<T>(x[e]);
        tp_store<T, V>(p + i, v);
    } else {
#pragma unroll
        for (int e = 0; e < V; e++)
            if (e < n) tp_stg(p + i + e, tp_from_f32<T>(x[e]));
    }
}
#endif
