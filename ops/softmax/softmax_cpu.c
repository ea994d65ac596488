/* softmax on the CPU, a row at a time: what is read again lies in the cache. */
#include "ops/softmax/softmax_rows.h"

static void forward_rows(void *arg, int64_t begin, int64_t end) {
    const tp_call *k = arg;
    int64_t n = tp_dim(k->in[0], -1);
    for (int64_t row = begin; row < end; row++) {
        const float *x = tp_f32(k->in[0]) + row * n;
        float *y = tp_f32(k->out[0]) + row * n;
        float by = 1.0f / softmax_exps(x, y, n, softmax_max(x, n));
        for (int64_t i = 0; i < n; i++) y[i] *= by;
    }
}

static void backward_rows(void *arg, int64_t begin, int64_t end) {
    const tp_call *k = arg;
    int64_t n = tp_dim(k->in[0], -1);
    for (int64_t row = begin; row < end; row++) {
        const float *restrict y = tp_f32(k->in[0]) + row * n;
        const float *restrict dy = tp_f32(k->in[1]) + row * n;
        float *restrict dx = tp_f32(k->out[0]) + row * n, s = softmax_dot(y, dy, n);
        for (int64_t i = 0; i < n; i++) dx[i] = softmax_dx(y[i], dy[i], s);
    }
}

static tp_status forward(const tp_call *k) { return softmax_each(k, k->in[0], forward_rows); }
static tp_status backward(const tp_call *k) { return softmax_each(k, k->in[0], backward_rows); }

TP_CPU_KERNEL(softmax_cpu, .decline = tp_decline_unless_f32_dense, .run = forward);
TP_CPU_KERNEL(softmax_backward_cpu, .decline = tp_decline_unless_f32_dense, .run = backward);
