/* row_dot on the CPU: sixty-four lanes along a row, folded in one order. */
#include "ops/layernorm/lanes.h"
#include "ops/op.h"

static void rows(void *arg, int64_t begin, int64_t end) {
    const tp_call *k = arg;
    int64_t channels = k->in[1]->shape[0];
    const float *w = tp_f32(k->in[1]);
    for (int64_t r = begin; r < end; r++) {
        const float *x = tp_f32(k->in[0]) + r * channels;
        v16 acc[LANES_CHAINS] = {v16_zero(), v16_zero(), v16_zero(), v16_zero()};
#define DOT(i, n, j)                                                                               \
    acc[j] = v16_add(acc[j], v16_mul(lanes_load(x + (i), n), lanes_load(w + (i), n)))
        LANES_EACH(channels, DOT);
#undef DOT
        tp_f32(k->out[0])[r] = lanes_fold(acc);
    }
}

static tp_status run(const tp_call *k) {
    int64_t channels = k->in[1]->shape[0];
    tp_parallel_for(k->ctx, tp_numel(k->out[0]), 32768 / (channels + 1) + 1, rows, (void *)k);
    return TP_OK;
}
TP_CPU_KERNEL(row_dot_cpu, .decline = tp_decline_unless_f32_dense, .run = run);
