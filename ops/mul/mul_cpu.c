/* mul on the CPU. */
#include "ops/elementwise.h"

TP_BINARY_CPU(mul_cpu, x *y)

typedef struct by_one {
    float *a;
    float b;
} by_one;

static void by_one_range(void *arg, int64_t begin, int64_t end) {
    const by_one *j = arg;
    float *restrict a = j->a, b = j->b;
    for (int64_t i = begin; i < end; i++) a[i] *= b;
}

static tp_status mul_inplace_run(const tp_call *k) {
    by_one j = {tp_f32(k->in[0]), tp_f32(k->in[1])[0]};
    if (j.b != 1) tp_parallel_for(k->ctx, tp_numel(k->in[0]), 1 << 15, by_one_range, &j);
    return TP_OK;
}
TP_CPU_KERNEL(mul_inplace_cpu, .decline = tp_decline_unless_f32_dense, .run = mul_inplace_run);
