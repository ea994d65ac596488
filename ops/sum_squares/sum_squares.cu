/* sum_squares on CUDA: a lane a thread, in the CPU's order and so with its bits. */
#include "ops/cuda.h"
#include "ops/reduce.h"
#include "ops/sum_squares/sum_squares.h"

enum { CHUNK = TP_SQUARES_CHUNK, LANES = 16, THREADS = 128, AHEAD = 32 };

/* Lane l of sixteen adds the squares of elements l, l+16, … of a chunk; then the lanes by halves.
 * The square of an f32 is exact in double, so fma rounds as the addition alone does. */
template <typename T, bool DENSE>
__global__ void __launch_bounds__(THREADS)
    sum_squares(const T *x, double *y, int64_t n, int64_t chunks, tp_dims dims) {
    int64_t chunk = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / LANES;
    int64_t i = chunk * CHUNK + threadIdx.x % LANES, end = chunk < chunks ? (chunk + 1) * CHUNK : 0;
    if (end > n) end = n;
    double sum = 0;
    for (; i + (AHEAD - 1) * LANES < end; i += AHEAD * LANES) {
        T next[AHEAD]; /* loads that wait together */
#pragma unroll
        for (int e = 0; e < AHEAD; e++) {
            int64_t at = i + e * LANES;
            next[e] = tp_ldg(x + (DENSE ? at : tp_dims_offset(&dims, at)));
        }
#pragma unroll
        for (int e = 0; e < AHEAD; e++) {
            double v = (double)tp_to_f32(next[e]);
            sum = fma(v, v, sum);
        }
    }
    for (; i < end; i += LANES) {
        double v = (double)tp_to_f32(tp_ldg(x + (DENSE ? i : tp_dims_offset(&dims, i))));
        sum = fma(v, v, sum);
    }
    for (int half = LANES / 2; half; half /= 2)
        sum += __shfl_down_sync(0xffffffffu, sum, half, LANES);
    if (chunk < chunks && threadIdx.x % LANES == 0) tp_stg(y + chunk, sum);
}

template <typename T> static tp_status run_typed(const tp_call *k) {
    const tp_tensor *x = k->in[0];
    int64_t n = tp_numel(x), chunks = tp_numel(k->out[0]);
    unsigned blocks = tp_blocks(chunks, THREADS / LANES);
    tp_dims dims = {};
    tp_dims_push(&dims, 1, 0);
    for (int d = 0; d < x->ndim; d++) tp_dims_push(&dims, x->shape[d], x->stride[d]);
    if (tp_contiguous(x))
        return TP_LAUNCH(k, (sum_squares<T, true>), blocks, THREADS, 0, (const T *)x->data,
                         tp_f64(k->out[0]), n, chunks, dims);
    return TP_LAUNCH(k, (sum_squares<T, false>), blocks, THREADS, 0, (const T *)x->data,
                     tp_f64(k->out[0]), n, chunks, dims);
}

static const char *decline(const tp_call *k) { return tp_not_f32_bf16(k->in[0]); }
static tp_status run(const tp_call *k) { TP_BY_FLOAT(k->in[0]->dtype, T, return run_typed<T>(k)); }
TP_CUDA_KERNEL(sum_squares_cuda, .decline = decline, .run = run);
