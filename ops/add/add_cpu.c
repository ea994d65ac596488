/* add on the CPU. */
#include "ops/elementwise.h"

TP_BINARY_CPU(add_cpu, x + y)

/* b may be a itself, so neither pointer is restrict; each element depends on itself only. */
static void add_inplace_run(const tp_run *r) {
    float *a = r->out[0];
    const float *b = r->in[1];
#pragma GCC ivdep
    for (int64_t i = 0; i < r->n; i++) a[i] += b[i];
}

static tp_status add_inplace_all(const tp_call *k) {
    tp_elementwise(k, 1, &k->in[0], add_inplace_run);
    return TP_OK;
}

static const char *decline_strided(const tp_call *k) {
    return tp_contiguous(k->in[0]) ? tp_decline_unless_f32(k) : "a is strided";
}
TP_CPU_KERNEL(add_inplace_cpu, .decline = decline_strided, .run = add_inplace_all);
