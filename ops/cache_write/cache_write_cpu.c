/* cache_write_ on the CPU. In the pool a head's values may lie apart: keys are kept transposed, as
 * attention reads them. */
#include "ops/cache_write/cache_write_check.h"
#include <string.h>

static void write_head(float *to, int64_t step, const float *from, int64_t n) {
    if (step == 1)
        memcpy(to, from, (size_t)n * sizeof *to);
    else
        for (int64_t d = 0; d < n; d++) to[d * step] = from[d];
}

static tp_status run(const tp_call *k) {
    const tp_tensor *pool = k->in[0], *x = k->in[1];
    int64_t page = pool->shape[1], T = x->shape[1], H = x->shape[2], D = x->shape[3];
    tp_status st = cache_write_check(k);
    for (int64_t i = 0, n = x->shape[0] * T; i < n && !st; i++) {
        int64_t slot = cache_write_slot(k, i);
        const float *from = tp_f32(x) + i / T * x->stride[0] + i % T * x->stride[1];
        if (slot < 0) continue;
        float *to = tp_f32(pool) + slot / page * pool->stride[0] + slot % page * pool->stride[1];
        for (int64_t h = 0; h < H; h++)
            write_head(to + h * pool->stride[2], pool->stride[3], from + h * x->stride[2], D);
    }
    return st;
}

static const char *decline(const tp_call *k) {
    if (k->in[1]->stride[3] != 1 && k->in[1]->shape[3] > 1) return "the values of a row lie apart";
    return tp_decline_unless_f32(k);
}

TP_CPU_KERNEL(cache_write_cpu, .decline = decline, .run = run);
