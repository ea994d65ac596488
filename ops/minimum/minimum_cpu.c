/* minimum on the CPU. */
#include "ops/elementwise.h"
#include "ops/minimum/minimum_math.h"

TP_BINARY_CPU(minimum_cpu, minimum_f(x, y))
TP_BINARY_CPU(maximum_cpu, maximum_f(x, y))

static void less_run(const tp_run *r) {
    const float *restrict a = r->in[0], *restrict b = r->in[1];
    uint8_t *restrict y = r->out[0];
    for (int64_t i = 0, n = r->n; i < n; i++) y[i] = a[i] < b[i];
}
static tp_status less_all(const tp_call *k) {
    tp_elementwise(k, 1, k->out, less_run);
    return TP_OK;
}
TP_CPU_KERNEL(less_cpu, .decline = tp_decline_unless_f32, .run = less_all);
