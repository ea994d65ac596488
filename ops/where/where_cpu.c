/* where on the CPU. */
#include "ops/elementwise.h"

static void where_cpu_run(const tp_run *r) {
    const uint8_t *restrict cond = r->in[0];
    const float *restrict a = r->in[1], *restrict b = r->in[2];
    float *restrict y = r->out[0];
    for (int64_t i = 0, n = r->n; i < n; i++) {
        float yes = a[i], no = b[i];
        y[i] = cond[i] ? yes : no;
    }
}
TP_ELEMENTWISE_KERNEL_(where_cpu);
