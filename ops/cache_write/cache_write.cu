/* cache_write_ on CUDA: a warp copies the rows of one token into its slot. A token with a slot
 * beyond the pool is reported and left out; the next sync fails. */
#include "ops/cuda.h"

enum { THREADS = 256, TOKENS = THREADS / 32 };

typedef struct cache_write_args {
    const void *rows;
    void *pool;
    const int32_t *slots;
    int64_t n, T, page, limit;   /* tokens, and of a sequence; slots of a page, and in all */
    int64_t heads, width;        /* pieces of a row, and elements of each */
    int64_t row_b, row_t, row_h; /* strides in elements */
    int64_t pool_p, pool_s, pool_h, slot_b, slot_t;
    int64_t row_d, pool_d;
    tp_fault fault;
} cache_write_args;

template <typename T, int V>
__global__ void __launch_bounds__(THREADS) cache_write_rows(const cache_write_args a) {
    const int64_t i = (int64_t)blockIdx.x * TOKENS + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (i >= a.n) return;
    const int64_t b = i / a.T, t = i % a.T;
    const int64_t slot = tp_ldg(a.slots + b * a.slot_b + t * a.slot_t);
    if (slot < -1 || slot >= a.limit) {
        if (lane == 0) tp_report(a.fault, i);
        return;
    }
    if (slot < 0) return;
    const T *from = (const T *)a.rows + b * a.row_b + t * a.row_t;
    T *to = (T *)a.pool + slot / a.page * a.pool_p + slot % a.page * a.pool_s;
    const int64_t per = a.width / V;
    for (int64_t e = lane; e < a.heads * per; e += 32) {
        const int64_t h = e / per, d = (e - h * per) * V;
        tp_store<T, V>(to + h * a.pool_h + d * a.pool_d,
                       tp_load<T, V>(from + h * a.row_h + d * a.row_d));
    }
}

static cache_write_args args_of(const tp_call *k) {
    const tp_tensor *pool = k->in[0], *x = k->in[1], *slots = k->in[2];
    cache_write_args a = {};
    a.rows = x->data, a.pool = pool->data, a.slots = tp_i32(slots);
    a.T = x->shape[1], a.n = x->shape[0] * a.T;
    a.page = pool->shape[1], a.limit = pool->shape[0] * a.page;
    a.heads = x->shape[2], a.width = x->shape[3];
    a.row_b = x->stride[0], a.row_t = x->stride[1], a.row_h = x->stride[2], a.row_d = x->stride[3];
    a.pool_p = pool->stride[0], a.pool_s = pool->stride[1];
    a.pool_h = pool->stride[2], a.pool_d = pool->stride[3];
    a.slot_b = slots->stride[0], a.slot_t = slots->stride[1];
    a.fault = tp_fault_of(k);
    return a;
}

/* Whether rows can be moved 16 bytes at a time. */
static bool whole_vectors(const cache_write_args &a, int64_t V) {
    const int64_t steps[] = {a.width, a.row_b, a.row_t, a.row_h, a.pool_p, a.pool_s, a.pool_h};
    for (int64_t s : steps)
        if (s % V) return false;
    return a.row_d == 1 && a.pool_d == 1 && tp_aligned(a.rows, 16) && tp_aligned(a.pool, 16);
}

template <typename T> static tp_status run_typed(const tp_call *k) {
    enum { V = tp_width<T>::N };
    cache_write_args a = args_of(k);
    if (whole_vectors(a, V))
        return TP_LAUNCH(k, (cache_write_rows<T, V>), tp_blocks(a.n, TOKENS), THREADS, 0, a);
    return TP_LAUNCH(k, (cache_write_rows<T, 1>), tp_blocks(a.n, TOKENS), THREADS, 0, a);
}

static tp_status run(const tp_call *k) { TP_BY_FLOAT(k->in[0]->dtype, T, return run_typed<T>(k)); }

TP_CUDA_KERNEL(cache_write_cuda, .decline = tp_decline_cuda_floats, .run = run);
