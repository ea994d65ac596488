/* Owns the adding of rows into a table by number on CUDA: the sums of scatter_rows.h, in its order.
 *
 * The ids are sorted (sort.cu), so the positions that add to one row of the table are a run of
 * neighbours, in order. A warp takes a run and a slice of the columns. Its chain of one sample lies
 * in registers. When the next sample c comes after b, what lies to the left of their common node is
 * complete; that node's height is the highest bit in which b and c differ. So every sum that waits
 * below that height is taken in, lowest first, and the result waits there for its right neighbour:
 * a binary counter whose digits wait in shared memory, seen by one thread alone.
 *
 * A run of more than LONG positions (the comma of a corpus) is a block's: its warps take aligned
 * power-of-two parts of the samples, which are subtrees, and the first warp adds those in the tree.
 * Parts without a sample count as 0, and adding that changes nothing. */
#include "ops/embedding/rows_cuda.h"

enum {
    ADD_WARPS = 8,
    ADD_THREADS = 32 * ADD_WARPS,
    ADD_EACH = 8,  /* sorted positions of a warp; it takes the runs that begin there */
    ADD_AHEAD = 8, /* rows that are loaded before they are added */
    LONG = 64
};
#define NONE 0xffffffffu

typedef struct add_args {
    const uint32_t *key, *order;
    uint32_t rows, each; /* each: positions of one sample */
    int64_t n, channels;
    int heights; /* of the tree over samples */
    int onto;    /* 0: out = sum; 1: out += sum; 2: the chain starts from out */
    tp_rows dy, out;
} add_args;

typedef struct add_range { /* of the sorted positions, one table row's, and this lane's columns */
    int64_t begin, end, column;
    bool here; /* the lane has columns */
} add_range;

/* The sum of a range on top of `sum`. pending: (heights, 32*V), this warp's. */
template <typename T, int V>
static __device__ __forceinline__ void add_chain(const add_args &a, add_range r, float *pending,
                                                 float (&sum)[V]) {
    int lane = threadIdx.x % 32;
    uint32_t sample = NONE, next = 0; /* next: the first position of the sample behind it */
    uint32_t open = 0;                /* bit h: a sum waits at height h */
    pending += lane * V;
    for (int64_t i = r.begin; i < r.end; i += 32) {
        uint32_t order = i + lane < r.end ? tp_ldg(a.order + i + lane) : 0;
        int m = (int)(r.end - i < 32 ? r.end - i : 32);
        for (int j = 0; j < m; j += ADD_AHEAD) {
            tp_vec<T, V> x[ADD_AHEAD];
            uint32_t p[ADD_AHEAD];
#pragma unroll
            for (int u = 0; u < ADD_AHEAD; u++) {
                p[u] = __shfl_sync(0xffffffffu, order, j + u);
                const T *from = (const T *)a.dy.p + p[u] * a.dy.row + r.column * a.dy.col;
                if (j + u < m && r.here) x[u] = tp_load<T, V>(from);
            }
#pragma unroll
            for (int u = 0; u < ADD_AHEAD; u++) {
                if (j + u >= m) break;
                if (p[u] >= next) {
                    uint32_t now = p[u] / a.each;
                    if (sample != NONE) {
                        int height = 31 - __clz((int)(sample ^ now));
#pragma unroll 1
                        for (; open & ((1u << height) - 1); open &= open - 1) {
                            float *at = pending + (__ffs((int)open) - 1) * 32 * V;
                            tp_vec<float, V> left = tp_lds((tp_vec<float, V> *)at);
                            for (int e = 0; e < V; e++) sum[e] += left.v[e];
                        }
                        tp_vec<float, V> wait;
                        for (int e = 0; e < V; e++) wait.v[e] = sum[e], sum[e] = 0;
                        tp_sts((tp_vec<float, V> *)(pending + height * 32 * V), wait);
                        open |= 1u << height;
                    }
                    sample = now;
                    next = (now + 1) * a.each;
                }
                if (r.here)
                    for (int e = 0; e < V; e++) sum[e] += tp_to_f32(x[u].v[e]);
            }
        }
    }
    for (; open; open &= open - 1) {
        tp_vec<float, V> left =
            tp_lds((tp_vec<float, V> *)(pending + (__ffs((int)open) - 1) * 32 * V));
        for (int e = 0; e < V; e++) sum[e] += left.v[e];
    }
}

template <typename T, int V>
static __device__ __forceinline__ T *add_at(const add_args &a, uint32_t row, const add_range &r) {
    return (T *)a.out.p + (int64_t)row * a.out.row + r.column * a.out.col;
}

template <typename T, int V>
static __device__ __forceinline__ void add_start(const add_args &a, uint32_t row,
                                                 const add_range &r, float (&sum)[V]) {
    tp_vec<T, V> v;
    if (a.onto == 2 && r.here) v = tp_load<T, V>(add_at<T, V>(a, row, r));
    for (int e = 0; e < V; e++) sum[e] = a.onto == 2 && r.here ? tp_to_f32(v.v[e]) : 0.0f;
}

template <typename T, int V>
static __device__ __forceinline__ void add_end(const add_args &a, uint32_t row, const add_range &r,
                                               const float (&sum)[V]) {
    if (!r.here) return;
    T *at = add_at<T, V>(a, row, r);
    tp_vec<T, V> v;
    if (a.onto == 1) v = tp_load<T, V>(at);
    for (int e = 0; e < V; e++)
        v.v[e] = tp_from_f32<T>(a.onto == 1 ? tp_to_f32(v.v[e]) + sum[e] : sum[e]);
    tp_store<T, V>(at, v);
}

/* Runs of up to LONG positions. */
template <typename T, int V>
__global__ void __launch_bounds__(ADD_THREADS, 2) add_short(add_args a) {
    TP_SHARED_DYNAMIC(shared);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float *pending = (float *)shared + warp * a.heights * 32 * V;
    int64_t first = ((int64_t)blockIdx.x * ADD_WARPS + warp) * ADD_EACH;
    add_range r;
    r.column = ((int64_t)blockIdx.y * 32 + lane) * V;
    r.here = r.column < a.channels;
    for (r.begin = first; r.begin < first + ADD_EACH && r.begin < a.n; r.begin = r.end) {
        uint32_t row = tp_ldg(a.key + r.begin);
        if (row == a.rows) return; /* an id outside the table: so are all that follow */
        bool head = r.begin == 0 || tp_ldg(a.key + r.begin - 1) != row;
        int length = 0; /* of the run, up to LONG + 1 */
        for (int more = 32; more == 32 && length <= LONG; length += more) {
            int64_t i = r.begin + length + lane;
            bool other = i >= a.n || tp_ldg(a.key + i) != row;
            int stop = __ffs((int)__ballot_sync(0xffffffffu, other));
            more = stop ? stop - 1 : 32;
        }
        r.end = r.begin + length;
        if (length > LONG) {
            if (!head) return;
            r.end = first + ADD_EACH; /* it is a block's; no other run begins here */
            continue;
        }
        if (!head) continue;
        float sum[V];
        add_start<T, V>(a, row, r, sum);
        add_chain<T, V>(a, r, pending, sum);
        add_end<T, V>(a, row, r, sum);
    }
}

/* The first i in [lo,hi) with list[i] >= value. */
static __device__ __forceinline__ int64_t first_from(const uint32_t *list, int64_t lo, int64_t hi,
                                                     int64_t value) {
    while (lo < hi) {
        int64_t mid = lo + (hi - lo) / 2;
        if (tp_ldg(list + mid) < value)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* Runs of more than LONG positions: each holds a multiple of LONG, and the block of the first such
 * takes it. */
template <typename T, int V>
__global__ void __launch_bounds__(ADD_THREADS, 2) add_long(add_args a) {
    TP_SHARED_DYNAMIC(shared);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float *pending = (float *)shared + warp * a.heights * 32 * V;
    float *part = (float *)shared + ADD_WARPS * a.heights * 32 * V; /* (warps, 32*V) */
    int64_t at = (int64_t)blockIdx.x * LONG;
    uint32_t row = tp_ldg(a.key + at);
    if (row == a.rows || (at && tp_ldg(a.key + at - LONG) == row)) return;
    int64_t begin = first_from(a.key, at > LONG ? at - LONG : 0, at, row);
    if (begin + LONG >= a.n || tp_ldg(a.key + begin + LONG) != row) return;
    int64_t end = first_from(a.key, at, a.n, (int64_t)row + 1);
    int64_t samples = (int64_t)1 << (a.heights > 3 ? a.heights - 3 : 0); /* of a warp */
    add_range r;
    r.column = ((int64_t)blockIdx.y * 32 + lane) * V;
    r.here = r.column < a.channels;
    r.begin = first_from(a.order, begin, end, warp * samples * a.each);
    r.end = first_from(a.order, r.begin, end, (warp + 1) * samples * a.each);
    float sum[V];
    if (warp == 0)
        add_start<T, V>(a, row, r, sum);
    else
        for (int e = 0; e < V; e++) sum[e] = 0;
    add_chain<T, V>(a, r, pending, sum);
    for (int width = 1; width < ADD_WARPS; width *= 2) {
        tp_vec<float, V> v;
        float *mine = part + (warp * 32 + lane) * V;
        for (int e = 0; e < V; e++) v.v[e] = sum[e];
        if (warp % (2 * width) == width) tp_sts((tp_vec<float, V> *)mine, v);
        __syncthreads();
        if (warp % (2 * width) == 0) {
            v = tp_lds((tp_vec<float, V> *)(mine + width * 32 * V));
            for (int e = 0; e < V; e++) sum[e] += v.v[e];
        }
    }
    if (warp == 0) add_end<T, V>(a, row, r, sum);
}

/* ---- out before anything is added ----------------------------------------------------------- */
template <typename T> __global__ void copy_base(tp_rows x, T *y, int64_t n, int64_t channels) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int64_t row = i / channels, c = i - row * channels;
    tp_stg(y + i, tp_ldg((const T *)x.p + row * x.row + c * x.col));
}

template <typename T> static tp_status start_out(const tp_call *k, const tp_scatter_cuda *s) {
    int64_t n = s->rows * s->channels;
    size_t bytes = (size_t)n * sizeof(T);
    T *y = (T *)s->out.p;
    if (s->add || !n) return TP_OK;
    if (!s->base)
        return tp_cuda_check(k->ctx, cudaMemsetAsync(y, 0, bytes, tp_cuda_stream(k->ctx)),
                             k->op->name);
    if (tp_contiguous(s->base)) return tp_copy_bytes(k->ctx, y, s->base->data, bytes);
    tp_rows x;
    int64_t channels = s->channels;
    tp_rows_of(&x, s->base);
    return TP_LAUNCH(k, (copy_base<T>), tp_blocks(n, 256), 256, 0, x, y, n, channels);
}

/* ---- the host's side ------------------------------------------------------------------------ */
template <typename T, int V> static tp_status add_all(const tp_call *k, const add_args *args) {
    add_args a = *args;
    unsigned slices = tp_blocks(a.channels, 32 * V), blocks = tp_blocks(a.n, ADD_WARPS * ADD_EACH);
    size_t bytes = (size_t)ADD_WARPS * 32 * V * sizeof(float); /* a height's */
    tp_status st =
        TP_LAUNCH(k, (add_short<T, V>), dim3(blocks, slices), ADD_THREADS, bytes * a.heights, a);
    if (st || a.n <= LONG) return st;
    return TP_LAUNCH(k, (add_long<T, V>), dim3(tp_blocks(a.n, LONG), slices), ADD_THREADS,
                     bytes * (a.heights + 1), a);
}

template <typename T> static tp_status run(const tp_call *k, const tp_scatter_cuda *s) {
    enum { V = 4 };
    tp_sorted sorted;
    tp_status st = start_out<T>(k, s);
    if (!st && s->n)
        st = tp_sort_ids_cuda(k, s->ids, s->n, (uint32_t)s->rows, k->workspace, &sorted);
    if (st || !s->n || !s->channels) return st;
    add_args a = {};
    a.key = sorted.key;
    a.order = sorted.order;
    a.rows = (uint32_t)s->rows;
    a.each = (uint32_t)s->each;
    a.n = s->n;
    a.channels = s->channels;
    a.heights = 1;
    for (int64_t samples = s->n / s->each; (int64_t)1 << a.heights < samples;) a.heights++;
    a.onto = s->base ? 2 : s->add;
    a.dy = s->dy;
    a.out = s->out;
    if (tp_rows_vector(&s->dy, s->channels, V, sizeof(T)) &&
        tp_rows_vector(&s->out, s->channels, V, sizeof(T)))
        return add_all<T, V>(k, &a);
    return add_all<T, 1>(k, &a);
}

size_t tp_scatter_cuda_bytes(int64_t n) { return n ? tp_sort_ids_bytes(n) : 0; }

tp_status tp_scatter_cuda_run(const tp_call *k, const tp_scatter_cuda *s) {
    TP_BY_FLOAT(s->dtype, T, return run<T>(k, s));
}
