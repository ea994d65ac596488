/* max on CUDA. Which of two elements is better does not depend on the order in which they are met,
 * so neither does the result. */
#include "ops/cuda.h"
#include "ops/max/max_attr.h"

enum { THREADS = 256, WARP = 32 };

typedef struct best {
    float v;
    int at; /* < 0: none yet */
} best;

/* NaN before numbers, large before small, first before later. */
static __device__ __forceinline__ best better(best a, best b) {
    bool a_nan = a.v != a.v, b_nan = b.v != b.v;
    bool equal = a.v == b.v || (a_nan && b_nan);
    bool b_wins = equal ? b.at < a.at : b_nan || (!a_nan && b.v > a.v);
    return a.at < 0 || (b.at >= 0 && b_wins) ? b : a;
}

static __device__ __forceinline__ best warp_best(best b) {
    for (int m = WARP / 2; m; m >>= 1) {
        best other;
        other.v = __shfl_xor_sync(0xffffffffu, b.v, m);
        other.at = __shfl_xor_sync(0xffffffffu, b.at, m);
        b = better(b, other);
    }
    return b;
}

/* A result belongs to the 1, 32 or 256 threads of one threadIdx.y. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    max_scan(const T *x, T *y, int32_t *at, tp_dims kept, tp_dims gone) {
    int64_t u = (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
    best b = {0, -1};
    if (u < kept.n) {
        x += tp_dims_offset(&kept, u);
        for (int64_t g = threadIdx.x; g < gone.n; g += blockDim.x)
            b = better(b, best{tp_to_f32(tp_ldg(x + tp_dims_offset(&gone, g))), (int)g});
    }
    if (blockDim.x >= WARP) b = warp_best(b);
    if (blockDim.x > WARP) {
        TP_SHARED(float, v, THREADS / WARP);
        TP_SHARED(int, p, THREADS / WARP);
        if (threadIdx.x % WARP == 0) v[threadIdx.x / WARP] = b.v, p[threadIdx.x / WARP] = b.at;
        __syncthreads();
        b.at = -1;
        if (threadIdx.x < THREADS / WARP) b.v = v[threadIdx.x], b.at = p[threadIdx.x];
        if (threadIdx.x < WARP) b = warp_best(b);
    }
    if (u < kept.n && threadIdx.x == 0) {
        tp_stg(y + u, tp_from_f32<T>(b.v));
        tp_stg(at + u, b.at);
    }
}

template <typename T> static tp_status max_typed(const tp_call *k) {
    tp_dims kept, gone;
    tp_dims_split(k->in[0], ((const tp_reduce_attr *)k->attr)->dims, &kept, &gone);
    /* neighbouring threads take neighbouring elements, of one result or of several */
    bool within = gone.stride[gone.ndim - 1] <= kept.stride[kept.ndim - 1] || kept.n == 1;
    unsigned threads = gone.n > 4 * THREADS ? THREADS : within && gone.n > 1 ? WARP : 1;
    return TP_LAUNCH(k, (max_scan<T>), tp_blocks(kept.n, THREADS / threads),
                     dim3(threads, THREADS / threads), 0, (const T *)k->in[0]->data,
                     (T *)k->out[0]->data, tp_i32(k->out[1]), kept, gone);
}
static tp_status max_run(const tp_call *k) {
    if (!tp_numel(k->out[0])) return TP_OK;
    TP_BY_FLOAT(k->in[0]->dtype, T, return max_typed<T>(k));
}

/* ---- to and from the positions -------------------------------------------------------------- */
/* Result u's position is in[0][at_dims(u)]; BACK: dx at it becomes small[u], else y[u] = x at it.
 */
typedef struct pick_args {
    const int32_t *at;
    const void *from;
    void *to;
    tp_dims at_dims, small_dims, kept, gone; /* small: dy or y; kept and gone: of dx or x */
} pick_args;

template <typename T, bool BACK>
__global__ void __launch_bounds__(THREADS) max_move(pick_args a, tp_fault fault) {
    int64_t u = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (u >= a.kept.n) return;
    int32_t g = tp_ldg(a.at + tp_dims_offset(&a.at_dims, u));
    bool bad = g < 0 || g >= a.gone.n;
    if (bad) tp_report(fault, u);
    int64_t large = tp_dims_offset(&a.kept, u) + tp_dims_offset(&a.gone, bad ? 0 : g);
    int64_t small = tp_dims_offset(&a.small_dims, u);
    if (!BACK)
        tp_stg((T *)a.to + small, bad ? tp_from_f32<T>(0) : tp_ldg((const T *)a.from + large));
    else if (!bad)
        tp_stg((T *)a.to + large, tp_ldg((const T *)a.from + small));
}

static tp_dims dims_of(const tp_tensor *t) {
    tp_dims d = {};
    tp_dims_push(&d, 1, 0);
    for (int i = 0; i < t->ndim; i++) tp_dims_push(&d, t->shape[i], t->stride[i]);
    return d;
}

static pick_args pick_of(const tp_call *k, const tp_tensor *large, const tp_tensor *small) {
    pick_args a = {};
    a.at = tp_i32(k->in[0]);
    a.from = k->in[1]->data, a.to = k->out[0]->data;
    a.at_dims = dims_of(k->in[0]), a.small_dims = dims_of(small);
    tp_dims_split(large, ((const max_attr *)k->attr)->reduce.dims, &a.kept, &a.gone);
    return a;
}

static tp_status backward_run(const tp_call *k) {
    if (!tp_numel(k->out[0])) return TP_OK;
    pick_args a = pick_of(k, k->out[0], k->in[1]);
    tp_status st = tp_zero(k->ctx, k->out[0]);
    if (st) return st;
    TP_BY_FLOAT(k->in[1]->dtype, T,
                return TP_LAUNCH(k, (max_move<T, true>), tp_blocks(a.kept.n, THREADS), THREADS, 0,
                                 a, tp_fault_of(k)));
}
static tp_status pick_run(const tp_call *k) {
    if (!tp_numel(k->in[1])) return TP_OK;
    pick_args a = pick_of(k, k->in[1], k->out[0]);
    TP_BY_FLOAT(k->in[1]->dtype, T,
                return TP_LAUNCH(k, (max_move<T, false>), tp_blocks(a.kept.n, THREADS), THREADS, 0,
                                 a, tp_fault_of(k)));
}

TP_CUDA_KERNEL(max_cuda, .decline = tp_decline_cuda_floats, .run = max_run);
TP_CUDA_KERNEL(max_backward_cuda, .decline = tp_decline_cuda_floats, .run = backward_run);
TP_CUDA_KERNEL(max_pick_cuda, .decline = tp_decline_cuda_floats, .run = pick_run);
