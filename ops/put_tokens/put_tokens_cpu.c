/* put_tokens on the CPU. */
#include "ops/layernorm/lanes.h"
#include "ops/put_tokens/put_tokens_math.h"
#include "ops/take_tokens/token_rows.h"
#include <string.h>

static int64_t grain(const tp_call *k) { return 16384 / (k->in[0]->shape[2] + 1) + 1; }
static tp_status check(const tp_call *k) {
    return tp_check_token_rows(k, 1, k->in[0]->shape[0] * k->in[0]->shape[1]);
}

static void copy(void *arg, int64_t begin, int64_t end) {
    const tp_call *k = arg;
    int64_t channels = k->in[0]->shape[2];
    memcpy(tp_f32(k->out[0]) + begin * channels, tp_f32(k->in[0]) + begin * channels,
           (size_t)((end - begin) * channels) * sizeof(float));
}

static void put(void *arg, int64_t begin, int64_t end) {
    const tp_call *k = arg;
    int64_t channels = k->in[0]->shape[2];
    for (int64_t p = begin; p < end; p++) {
        int32_t row = tp_i32(k->in[1])[p];
        float w = tp_f32(k->in[3])[p], *restrict y = tp_f32(k->out[0]) + row * channels;
        const float *restrict s = tp_f32(k->in[2]) + p * channels;
        for (int64_t i = 0; i < channels && row >= 0; i++) y[i] = put_f(y[i], w, s[i]);
    }
}

static tp_status put_run(const tp_call *k) {
    const tp_tensor *x = k->in[0];
    tp_status st = check(k);
    if (st || !tp_numel(x)) return st;
    tp_parallel_for(k->ctx, x->shape[0] * x->shape[1], grain(k), copy, (void *)k);
    tp_parallel_for(k->ctx, tp_numel(k->in[1]), grain(k), put, (void *)k);
    return TP_OK;
}

static void backward(void *arg, int64_t begin, int64_t end) {
    const tp_call *k = arg;
    int64_t channels = k->in[0]->shape[2];
    for (int64_t p = begin; p < end; p++) {
        int32_t row = tp_i32(k->in[1])[p];
        float *dsrc = tp_f32(k->out[0]) + p * channels, *dw = tp_f32(k->out[1]) + p;
        const float *dy = tp_f32(k->in[0]) + row * channels, *s = tp_f32(k->in[2]) + p * channels;
        if (row < 0) {
            memset(dsrc, 0, (size_t)channels * sizeof *dsrc);
            *dw = 0;
            continue;
        }
        v16 w = v16_set1(tp_f32(k->in[3])[p]);
        v16 acc[LANES_CHAINS] = {v16_zero(), v16_zero(), v16_zero(), v16_zero()};
#define BOTH(i, n, j)                                                                              \
    do {                                                                                           \
        v16 d = lanes_load(dy + (i), n);                                                           \
        lanes_store(dsrc + (i), v16_mul(w, d), n);                                                 \
        acc[j] = v16_add(acc[j], v16_mul(d, lanes_load(s + (i), n)));                              \
    } while (0)
        LANES_EACH(channels, BOTH);
#undef BOTH
        *dw = lanes_fold(acc);
    }
}

static tp_status backward_run(const tp_call *k) {
    tp_status st = check(k);
    if (!st) tp_parallel_for(k->ctx, tp_numel(k->in[1]), grain(k), backward, (void *)k);
    return st;
}
TP_CPU_KERNEL(put_tokens_cpu, .decline = tp_decline_unless_f32_dense, .run = put_run);
TP_CPU_KERNEL(put_tokens_backward_cpu, .decline = tp_decline_unless_f32_dense, .run = backward_run);
