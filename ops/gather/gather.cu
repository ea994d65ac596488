/* gather and gather_backward on CUDA. The gradient's columns belong to threads: each walks all
 * indices of the row, in order, and adds those that are its own, so a repeated index has one result
 * and nothing is atomic. */
#include "ops/embedding/rows_cuda.h"

enum { GATHER_THREADS = 256, GATHER_TILE = 4096 }; /* columns of a block, in shared memory */

template <typename T>
__global__ void gather_values(tp_rows x, const int32_t *idx, T *y, int64_t n, int64_t per_row,
                              int64_t channels, tp_fault fault) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int64_t row = i / per_row, at = tp_ldg(idx + i);
    bool good = at >= 0 && at < channels;
    if (!good) tp_report(fault, i);
    tp_stg(y + i, good ? tp_ldg((const T *)x.p + row * x.row + at * x.col) : tp_from_f32<T>(0));
}

static const char *gather_decline(const tp_call *k) {
    if (!tp_contiguous(k->in[1])) return "idx is strided";
    const char *no = tp_decline_cuda_floats(k);
    return no ? no : tp_decline_uneven(k->in[0]);
}

template <typename T> static tp_status gather_typed(const tp_call *k) {
    tp_rows x;
    const int32_t *idx = tp_i32(k->in[1]);
    T *y = (T *)k->out[0]->data;
    int64_t n = tp_numel(k->out[0]), per_row = tp_dim(k->in[1], -1),
            channels = tp_dim(k->in[0], -1);
    tp_fault fault = tp_fault_of(k);
    tp_rows_of(&x, k->in[0]);
    return TP_LAUNCH(k, (gather_values<T>), tp_blocks(n, GATHER_THREADS), GATHER_THREADS, 0, x, idx,
                     y, n, per_row, channels, fault);
}

static tp_status gather_run(const tp_call *k) {
    TP_BY_FLOAT(k->in[0]->dtype, T, return gather_typed<T>(k));
}
TP_CUDA_KERNEL(gather_cuda, .decline = gather_decline, .run = gather_run);

/* ---- gather_backward ------------------------------------------------------------------------ */
/* Block (row, tile of columns). V: columns of one store. */
template <typename T, int V>
__global__ void gather_scatter(const int32_t *idx, tp_rows dy, T *dx, int64_t per_row,
                               int64_t channels, tp_fault fault) {
    TP_SHARED(float, sum, GATHER_TILE);
    TP_SHARED(int, where, GATHER_THREADS); /* in this tile, or -1 */
    TP_SHARED(float, what, GATHER_THREADS);
    int64_t row = blockIdx.x, first = (int64_t)blockIdx.y * GATHER_TILE;
    int width = (int)min(channels - first, (int64_t)GATHER_TILE);
    int me = threadIdx.x;
    for (int c = me; c < width; c += GATHER_THREADS) sum[c] = 0;
    for (int64_t begin = 0; begin < per_row; begin += GATHER_THREADS) {
        int count = (int)min(per_row - begin, (int64_t)GATHER_THREADS);
        if (me < count) {
            int64_t i = begin + me, at = tp_ldg(idx + row * per_row + i);
            bool good = at >= 0 && at < channels;
            if (!good && first == 0) tp_report(fault, row * per_row + i);
            where[me] = good && at >= first && at - first < width ? (int)(at - first) : -1;
            what[me] = tp_to_f32(tp_ldg((const T *)dy.p + row * dy.row + i * dy.col));
        }
        __syncthreads();
        for (int j = 0; j < count; j++) {
            int at = where[j];
            if (at >= 0 && at % GATHER_THREADS == me) sum[at] += (float)what[j];
        }
        __syncthreads();
    }
    if (!per_row) __syncthreads();
    T *to = dx + row * channels + first;
    for (int c = me * V; c < width; c += GATHER_THREADS * V) {
        tp_vec<T, V> v;
        for (int e = 0; e < V; e++) v.v[e] = tp_from_f32<T>(sum[c + e]);
        tp_store<T, V>(to + c, v);
    }
}

static const char *backward_decline(const tp_call *k) {
    if (!tp_contiguous(k->in[0])) return "idx is strided";
    const char *no = tp_decline_cuda_floats(k);
    return no ? no : tp_decline_uneven(k->in[1]);
}

template <typename T> static tp_status backward_typed(const tp_call *k) {
    enum { V = tp_width<T>::N };
    tp_rows dy;
    const int32_t *idx = tp_i32(k->in[0]);
    T *dx = (T *)k->out[0]->data;
    int64_t per_row = tp_dim(k->in[0], -1), channels = tp_dim(k->out[0], -1);
    tp_fault fault = tp_fault_of(k);
    dim3 grid(channels ? (unsigned)(tp_numel(k->out[0]) / channels) : 0,
              tp_blocks(channels, GATHER_TILE));
    tp_rows_of(&dy, k->in[1]);
    if (channels % V == 0 && tp_aligned(dx, 16))
        return TP_LAUNCH(k, (gather_scatter<T, V>), grid, GATHER_THREADS, 0, idx, dy, dx, per_row,
                         channels, fault);
    return TP_LAUNCH(k, (gather_scatter<T, 1>), grid, GATHER_THREADS, 0, idx, dy, dx, per_row,
                     channels, fault);
}

static tp_status backward_run(const tp_call *k) {
    TP_BY_FLOAT(k->out[0]->dtype, T, return backward_typed<T>(k));
}
TP_CUDA_KERNEL(gather_backward_cuda, .decline = backward_decline, .run = backward_run);
