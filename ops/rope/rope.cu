/* rope on CUDA: a block makes the sines and cosines of one or a few positions in shared memory, and
 * all heads use them. */
#include "ops/cuda.h"
#include "ops/rope/rope.h"
#include "ops/rope/rope_math.h"
#include "ops/rope/rope_problem.h"

enum { ROPE_THREADS = 256, ROPE_PLANES = 256, ROPE_ROWS = 8 };

typedef struct rope_args {
    const void *x;
    void *y;
    const int32_t *positions; /* or NULL */
    int64_t stride[3], position_stride[2], rows, T, offset;
    int H, D, h, per_block; /* per_block: rows, that is, (b,t) */
    bool inverse;
    tp_fault fault;
    double frequency[ROPE_PLANES]; /* here, so that nothing has to be copied to the device first */
} rope_args;

/* W neighbouring floats of a table in shared memory. */
template <int W> static __device__ __forceinline__ void rope_read(const float *p, float out[W]) {
    enum { N = W < 4 ? W : 4 };
#pragma unroll
    for (int e = 0; e < W; e += N) {
        tp_vec<float, N> v = tp_lds((const tp_vec<float, N> *)(p + e));
#pragma unroll
        for (int f = 0; f < N; f++) out[e + f] = v.v[f];
    }
}

static __device__ void rope_table(const rope_args &a, int64_t row0, float *c, float *s) {
    for (int i = threadIdx.x; i < a.per_block * a.h; i += blockDim.x) {
        int64_t row = row0 + i / a.h, b = row / a.T, t = row - b * a.T;
        if (row >= a.rows) return;
        int64_t at = t + a.offset;
        if (a.positions)
            at = tp_ldg(a.positions + b * a.position_stride[0] + t * a.position_stride[1]);
        if (at < 0 || at >= TP_ROPE_POSITIONS) {
            tp_report(a.fault, row);
            at = 0;
        }
        float cosine, sine;
        rope_turn((double)at * a.frequency[i % a.h], &cosine, &sine);
        tp_sts(c + i, cosine);
        tp_sts(s + i, a.inverse ? -sine : sine);
    }
}

/* An item is V planes of a head, or V of the values behind them, which stay as they are. */
template <typename T, int V>
__global__ void __launch_bounds__(ROPE_THREADS) rope_turns(const __grid_constant__ rope_args a) {
    TP_SHARED_DYNAMIC(memory);
    float *c = (float *)memory, *s = c + a.per_block * a.h;
    int64_t row0 = (int64_t)blockIdx.x * a.per_block;
    rope_table(a, row0, c, s);
    __syncthreads();
    int groups = (a.D - a.h) / V, items = a.per_block * a.H * groups;
    for (int i = threadIdx.x; i < items; i += blockDim.x) {
        int g = i % groups * V, pair = i / groups, head = pair % a.H, r = pair / a.H;
        int64_t row = row0 + r, b = row / a.T, t = row - b * a.T;
        if (row >= a.rows) return;
        const T *x = (const T *)a.x + b * a.stride[0] + t * a.stride[1] + head * a.stride[2];
        T *y = (T *)a.y + (row * a.H + head) * a.D;
        if (g >= a.h) {
            tp_store<T, V>(y + a.h + g, tp_load<T, V>(x + a.h + g));
            continue;
        }
        float cosine[V], sine[V];
        tp_vec<T, V> x0 = tp_load<T, V>(x + g), x1 = tp_load<T, V>(x + a.h + g), y0, y1;
        rope_read<V>(c + r * a.h + g, cosine);
        rope_read<V>(s + r * a.h + g, sine);
#pragma unroll
        for (int e = 0; e < V; e++) {
            float p = tp_to_f32(x0.v[e]), q = tp_to_f32(x1.v[e]);
            y0.v[e] = tp_from_f32<T>(rope_first(p, q, cosine[e], sine[e]));
            y1.v[e] = tp_from_f32<T>(rope_second(p, q, cosine[e], sine[e]));
        }
        tp_store<T, V>(y + g, y0);
        tp_store<T, V>(y + a.h + g, y1);
    }
}

/* Every head begins at a multiple of 16 bytes, and its parts are whole vectors of V. */
static bool rope_takes(const tp_call *k, int h, int V) {
    const tp_tensor *x = k->in[ROPE_X];
    bool ok = h % V == 0 && (x->shape[3] - 2 * h) % V == 0 && tp_aligned(x->data, 16) &&
              tp_aligned(k->out[0]->data, 16);
    for (int d = 0; d < 3; d++) ok = ok && (x->shape[d] == 1 || x->stride[d] % V == 0);
    return ok;
}

template <typename T> static tp_status rope_typed(const tp_call *k) {
    enum { V = tp_width<T>::N };
    const tp_tensor *x = k->in[ROPE_X], *p = k->in[ROPE_POSITIONS];
    const rope_attr *attr = (const rope_attr *)k->attr;
    rope_args a = {};
    a.x = x->data;
    a.y = k->out[0]->data;
    a.positions = p ? tp_i32(p) : NULL;
    for (int d = 0; d < 3; d++) a.stride[d] = x->stride[d];
    for (int d = 0; d < 2 && p; d++) a.position_stride[d] = p->stride[d];
    a.rows = x->shape[0] * x->shape[1];
    a.T = x->shape[1];
    a.H = (int)x->shape[2];
    a.D = (int)x->shape[3];
    a.h = (int)rope_half(k);
    a.offset = attr->offset;
    a.inverse = attr->inverse;
    a.fault = tp_fault_of(k);
    rope_frequencies(rope_theta(k), &attr->scaling, a.h, a.frequency);
    bool vectors = rope_takes(k, a.h, V);
    int items = a.H * (a.D - a.h) / (vectors ? V : 1); /* few heads: several rows fill a block */
    a.per_block = items >= 2 * ROPE_THREADS ? 1 : 2 * ROPE_THREADS / items;
    if (a.per_block > ROPE_ROWS) a.per_block = ROPE_ROWS;
    unsigned blocks = tp_blocks(a.rows, a.per_block);
    size_t bytes = (size_t)(2 * a.per_block * a.h) * sizeof(float);
    if (vectors) return TP_LAUNCH(k, (rope_turns<T, V>), blocks, ROPE_THREADS, bytes, a);
    return TP_LAUNCH(k, (rope_turns<T, 1>), blocks, ROPE_THREADS, bytes, a);
}

static tp_status rope_run(const tp_call *k) {
    if (!tp_numel(k->in[ROPE_X])) return TP_OK;
    TP_BY_FLOAT(k->out[0]->dtype, T, return rope_typed<T>(k));
}

static const char *rope_decline(const tp_call *k) {
    const tp_tensor *x = k->in[ROPE_X];
    if (x->shape[3] > 1 && x->stride[3] != 1) return "x's last dimension is strided";
    if (rope_half(k) > ROPE_PLANES) return "more than 512 values of a head turn";
    if (x->shape[2] > 1 << 14 || x->shape[3] > 1 << 14) return "more than 16384 heads or values";
    return tp_decline_cuda_floats(k);
}
TP_CUDA_KERNEL(rope_cuda, .decline = rope_decline, .run = rope_run);
