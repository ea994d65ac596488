/* binary_cross_entropy on the CPU. */
#include "ops/binary_cross_entropy/binary_cross_entropy_math.h"
#include "ops/elementwise.h"

static void bce_cpu_run(const tp_run *r) {
    const int32_t *restrict label = r->in[0];
    const float *restrict x = r->in[1];
    float *restrict y = r->out[0];
    for (int64_t i = 0, n = r->n; i < n; i++) y[i] = bce_f(label[i] != 0, x[i]);
}
TP_ELEMENTWISE_KERNEL_(bce_cpu);

static void bce_backward_cpu_run(const tp_run *r) {
    const int32_t *restrict label = r->in[0];
    const float *restrict x = r->in[1], *restrict dy = r->in[2];
    float *restrict dx = r->out[0];
    for (int64_t i = 0, n = r->n; i < n; i++) dx[i] = bce_dx(label[i] != 0, x[i], dy[i]);
}
TP_ELEMENTWISE_KERNEL_(bce_backward_cpu);
