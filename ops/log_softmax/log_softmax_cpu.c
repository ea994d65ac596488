/* log_softmax on the CPU, a row at a time: what is read again lies in the cache. */
#include "ops/softmax/softmax_rows.h"

static void forward_rows(void *arg, int64_t begin, int64_t end) {
    const tp_call *k = arg;
    int64_t n = tp_dim(k->in[0], -1);
    for (int64_t row = begin; row < end; row++) {
        const float *restrict x = tp_f32(k->in[0]) + row * n;
        float *restrict y = tp_f32(k->out[0]) + row * n, max = softmax_max(x, n);
        float log_sum =
            tp_logf(softmax_exps(x, y, n, max)); /* y holds the exponentials for a while */
        for (int64_t i = 0; i < n; i++) y[i] = log_softmax_y(x[i], max, log_sum);
    }
}

static void backward_rows(void *arg, int64_t begin, int64_t end) {
    const tp_call *k = arg;
    int64_t n = tp_dim(k->in[0], -1);
    for (int64_t row = begin; row < end; row++) {
        const float *restrict y = tp_f32(k->in[0]) + row * n;
        const float *restrict dy = tp_f32(k->in[1]) + row * n;
        float *restrict dx = tp_f32(k->out[0]) + row * n, s = softmax_sum(dy, n);
        for (int64_t i = 0; i < n; i++) dx[i] = log_softmax_dx(y[i], dy[i], s);
    }
}

static tp_status forward(const tp_call *k) { return softmax_each(k, k->in[0], forward_rows); }
static tp_status backward(const tp_call *k) { return softmax_each(k, k->in[0], backward_rows); }

TP_CPU_KERNEL(log_softmax_cpu, .decline = tp_decline_unless_f32_dense, .run = forward);
TP_CPU_KERNEL(log_softmax_backward_cpu, .decline = tp_decline_unless_f32_dense, .run = backward);
