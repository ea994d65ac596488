/* row_dot on CUDA: a warp per row. */
#include "ops/embedding/rows_cuda.h"

enum { DOT_THREADS = 256 };

template <typename T>
__global__ void __launch_bounds__(DOT_THREADS)
    row_dot(tp_rows x, tp_rows w, float *s, int64_t rows, int64_t channels) {
    int64_t row = (int64_t)blockIdx.x * (DOT_THREADS / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= rows) return;
    const T *p = (const T *)x.p + row * x.row, *q = (const T *)w.p;
    float sum = 0;
    for (int64_t i = lane; i < channels; i += 32)
        sum += tp_to_f32(tp_ldg(p + i * x.col)) * tp_to_f32(tp_ldg(q + i * w.col));
    sum = tp_warp_sum(sum);
    if (lane == 0) tp_stg(s + row, sum);
}

static const char *decline(const tp_call *k) {
    const char *no = tp_decline_cuda_floats(k);
    return no ? no : tp_decline_uneven(k->in[0]);
}

static tp_status run(const tp_call *k) {
    tp_rows x, w;
    tp_rows_of(&x, k->in[0]);
    tp_rows_of(&w, k->in[1]);
    int64_t rows = tp_numel(k->out[0]), channels = k->in[1]->shape[0];
    TP_BY_FLOAT(k->in[0]->dtype, T,
                return TP_LAUNCH(k, row_dot<T>, tp_blocks(rows, DOT_THREADS / 32), DOT_THREADS, 0,
                                 x, w, tp_f32(k->out[0]), rows, channels));
}
TP_CUDA_KERNEL(row_dot_cuda, .decline = decline, .run = run);
