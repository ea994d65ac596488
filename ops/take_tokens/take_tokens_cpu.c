/* take_tokens_backward_ on the CPU: rows of their own, so any thread may add any of them. */
#include "ops/take_tokens/token_rows.h"

static void rows(void *arg, int64_t begin, int64_t end) {
    const tp_call *k = arg;
    int64_t channels = k->in[0]->shape[2];
    for (int64_t p = begin; p < end; p++) {
        int32_t row = tp_i32(k->in[1])[p];
        float *restrict to = tp_f32(k->in[0]) + row * channels;
        const float *restrict from = tp_f32(k->in[2]) + p * channels;
        for (int64_t i = 0; i < channels && row >= 0; i++) to[i] += from[i];
    }
}

static tp_status run(const tp_call *k) {
    const tp_tensor *sum = k->in[0];
    tp_status st = tp_check_token_rows(k, 1, sum->shape[0] * sum->shape[1]);
    if (!st)
        tp_parallel_for(k->ctx, tp_numel(k->in[1]), 16384 / (sum->shape[2] + 1) + 1, rows,
                        (void *)k);
    return st;
}
TP_CPU_KERNEL(take_tokens_add_cpu, .decline = tp_decline_unless_f32_dense, .run = run);
