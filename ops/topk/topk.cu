/* topk on CUDA, a block per row. The keys of a row (topk_math.h) are distinct, so there is exactly
 * one key that n of them reach: a radix select finds it, eight bits a pass from the highest, by
 * counting those that agree with what is known of it so far. The keys that reach it are taken out
 * in any order and sorted by a bitonic network (Batcher 1968), in shared memory where they fit. */
#include "ops/embedding/rows_cuda.h"
#include "ops/topk/topk_cuda.h"

enum { TOPK_SHARED = 4096 }; /* keys that are sorted in shared memory */

typedef struct topk_args {
    tp_rows x;
    int32_t *index;
    uint64_t *room;              /* (rows, padded), or NULL: shared memory */
    int64_t n, channels, padded; /* padded: the power of two from n */
} topk_args;

template <bool SHARED>
static __device__ __forceinline__ uint64_t key_at(const uint64_t *keys, int64_t i) {
    return SHARED ? tp_lds(keys + i) : keys[i];
}
template <bool SHARED>
static __device__ __forceinline__ void key_put(uint64_t *keys, int64_t i, uint64_t key) {
    if (SHARED)
        tp_sts(keys + i, key);
    else
        keys[i] = key;
}

/* Largest first; n is a power of two. */
template <bool SHARED> static __device__ __forceinline__ void sort_keys(uint64_t *keys, int64_t n) {
    for (int64_t run = 2; run <= n; run *= 2)
        for (int64_t far = run / 2; far; far /= 2) {
            for (int64_t t = threadIdx.x; t < n / 2; t += blockDim.x) {
                int64_t i = 2 * t - (t & (far - 1));
                uint64_t a = key_at<SHARED>(keys, i), b = key_at<SHARED>(keys, i + far);
                if ((a < b) == ((i & run) == 0)) {
                    key_put<SHARED>(keys, i, b);
                    key_put<SHARED>(keys, i + far, a);
                }
            }
            __syncthreads();
        }
}

template <typename T, bool SHARED>
__global__ void __launch_bounds__(1024) topk_rows(topk_args a, T *y) {
    TP_SHARED_DYNAMIC(shared);
    TP_SHARED(uint32_t, taken, 1);
    const T *x = (const T *)a.x.p + blockIdx.x * a.x.row;
    uint64_t *keys = SHARED ? (uint64_t *)shared : a.room + blockIdx.x * a.padded;
    uint64_t least = a.n < a.channels ? topk_nth_key<T>(x, a.x.col, a.channels, a.n) : 0;
    if (threadIdx.x == 0) taken[0] = 0;
    for (int64_t i = a.n + threadIdx.x; i < a.padded; i += blockDim.x) key_put<SHARED>(keys, i, 0);
    __syncthreads();
    for (int64_t i = threadIdx.x; i < a.channels; i += blockDim.x) {
        uint64_t key = topk_key(tp_to_f32(tp_ldg(x + i * a.x.col)), i);
        if (key >= least) key_put<SHARED>(keys, atomicAdd(&taken[0], 1u), key);
    }
    __syncthreads();
    sort_keys<SHARED>(keys, a.padded);
    for (int64_t j = threadIdx.x; j < a.n; j += blockDim.x) {
        int32_t i = topk_index(key_at<SHARED>(keys, j));
        tp_stg(y + blockIdx.x * a.n + j, tp_ldg(x + i * a.x.col));
        tp_stg(a.index + blockIdx.x * a.n + j, i);
    }
}

/* ---- the host's side ------------------------------------------------------------------------ */
static int64_t padded_of(const tp_call *k) {
    int64_t n = tp_dim(k->out[0], -1), padded = 1;
    while (padded < n) padded *= 2;
    return padded;
}

static const char *topk_decline(const tp_call *k) {
    const char *no = tp_decline_cuda_floats(k);
    return no ? no : tp_decline_uneven(k->in[0]);
}

static size_t topk_workspace(const tp_call *k) {
    int64_t n = tp_dim(k->out[0], -1), padded = padded_of(k);
    return padded <= TOPK_SHARED ? 0
                                 : (size_t)(tp_numel(k->out[0]) / n * padded) * sizeof(uint64_t);
}

template <typename T> static tp_status topk_typed(const tp_call *k) {
    topk_args a = {};
    T *y = (T *)k->out[0]->data;
    a.n = tp_dim(k->out[0], -1);
    a.channels = tp_dim(k->in[0], -1);
    a.padded = padded_of(k);
    a.index = tp_i32(k->out[1]);
    a.room = (uint64_t *)k->workspace;
    tp_rows_of(&a.x, k->in[0]);
    unsigned rows = a.n ? (unsigned)(tp_numel(k->out[0]) / a.n) : 0;
    unsigned threads = a.channels <= 2048 ? 256 : 1024;
    if (a.padded <= TOPK_SHARED)
        return TP_LAUNCH(k, (topk_rows<T, true>), rows, threads,
                         (size_t)a.padded * sizeof(uint64_t), a, y);
    return TP_LAUNCH(k, (topk_rows<T, false>), rows, threads, 16, a, y);
}

static tp_status topk_run(const tp_call *k) {
    TP_BY_FLOAT(k->in[0]->dtype, T, return topk_typed<T>(k));
}
TP_CUDA_KERNEL(topk_cuda, .decline = topk_decline, .run = topk_run, .workspace = topk_workspace);
