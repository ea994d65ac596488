/* swiglu on the CPU. */
#include "ops/elementwise.h"
#include "ops/silu/silu_math.h"

TP_BINARY_CPU(swiglu_cpu, silu_f(x) * y)

static void swiglu_backward_run(const tp_run *r) {
    const float *restrict gate = r->in[0], *restrict up = r->in[1], *restrict dy = r->in[2];
    float *restrict dgate = r->out[0], *restrict dup = r->out[1];
    for (int64_t i = 0, n = r->n; i < n; i++) {
        float x = gate[i], u = up[i], d = dy[i];
        dgate[i] = d * u * silu_dx(x);
        dup[i] = d * silu_f(x);
    }
}

static tp_status swiglu_backward_all(const tp_call *k) {
    tp_elementwise(k, 2, k->out, swiglu_backward_run);
    return TP_OK;
}
TP_CPU_KERNEL(swiglu_backward_cpu, .decline = tp_decline_unless_f32, .run = swiglu_backward_all);
