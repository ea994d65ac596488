/* mul on the CPU. */
#include "ops/elementwise.h"

TP_BINARY_CPU(mul_cpu, x *y)

typedef struct scaling {
    float *a, s;
} scaling;

static void scale_range(void *arg, int64_t begin, int64_t end) {
    const scaling *w = arg;
    float *a = w->a, s = w->s;
    for (int64_t i = begin; i < end; i++) a[i] *= s;
}

static tp_status mul_inplace_all(const tp_call *k) {
    int64_t n = tp_numel(k->in[0]);
    if (n == 0) return TP_OK;
    scaling w = {tp_f32(k->in[0]), tp_f32(k->in[1])[0]};
    if (w.s != 1.0f) tp_parallel_for(k->ctx, n, TP_ELEMENT_GRAIN, scale_range, &w);
    return TP_OK;
}

static const char *decline_strided(const tp_call *k) {
    return tp_contiguous(k->in[0]) ? tp_decline_unless_f32(k) : "a is strided";
}
TP_CPU_KERNEL(mul_inplace_cpu, .decline = decline_strided, .run = mul_inplace_all);
