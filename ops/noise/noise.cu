/* noise on CUDA: a thread per token. */
#include "ops/cuda.h"
#include "ops/noise/noise_math.h"

enum { NOISE_THREADS = 256 };
__global__ void noise_tokens(noise_key n, const int32_t *positions, float *y, int64_t count,
                             int64_t T) {
    int64_t i = (int64_t)blockIdx.x * NOISE_THREADS + threadIdx.x;
    if (i >= count) return;
    int32_t place = positions ? tp_ldg(positions + i) : (int32_t)(i % T);
    tp_stg(y + i, noise_f(&n, i / T, place));
}

static tp_status run(const tp_call *k) {
    int64_t count = tp_numel(k->out[0]);
    return TP_LAUNCH(k, noise_tokens, tp_blocks(count, NOISE_THREADS), NOISE_THREADS, 0,
                     noise_key_of((const noise_attr *)k->attr), k->in[1] ? tp_i32(k->in[1]) : NULL,
                     tp_f32(k->out[0]), count, k->out[0]->shape[1]);
}
TP_CUDA_KERNEL(noise_cuda, .decline = tp_decline_cuda_dense, .run = run);
