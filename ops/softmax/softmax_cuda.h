/* The row kernels of softmax and log_softmax on CUDA, forward, backward and second order; LOG tells
 * which of the two. Included by their .cu files. Sums run in the order of rows_cuda.h. */
#ifndef TP_SOFTMAX_CUDA_H
#define TP_SOFTMAX_CUDA_H
#include "ops/layernorm/rows_cuda.h"
#include "ops/softmax/softmax_math.h"

typedef struct softmax_args {
    tp_rows r;
    tp_row_in in[3];
    void *out[2];
} softmax_args;

template <typename T, bool LOG, int K, bool VECTOR>
__global__ void __launch_bounds__(TP_ROW_THREADS) softmax_forward(softmax_args a) {
    enum { V = tp_width<T>::N };
    int64_t row = tp_row_here(), channels = a.r.channels;
    if (row >= a.r.rows) return;
    const T *from = tp_row_at<T>(a.in[0], row);
    T *to = (T *)a.out[0] + row * channels;
    float x[K ? K : 1][V], max = -HUGE_VALF, sum = 0;
    tp_row_each<T, K, VECTOR>(channels, [&](int j, int64_t i, int n) {
        tp_row_load<T, VECTOR>(x[j], from, a.in[0].step, i, n);
        TP_ROW_FOR(e, n) max = fmaxf(max, x[j][e]); /* passes over NaN: its exponential is NaN */
    });
    max = tp_block_max(max);
    tp_row_each<T, K, VECTOR>(channels, [&](int j, int64_t i, int n) {
        if (!K) tp_row_load<T, VECTOR>(x[j], from, a.in[0].step, i, n);
        TP_ROW_FOR(e, n) {
            float p = softmax_exp(x[j][e], max);
            if (!LOG) x[j][e] = p;
            sum += p;
        }
    });
    sum = tp_block_sum(sum);
    float by = 1.0f / sum, log_sum = LOG ? tp_logf(sum) : 0.0f;
    tp_row_each<T, K, VECTOR>(channels, [&](int j, int64_t i, int n) {
        float y[V];
        if (!K) tp_row_load<T, VECTOR>(x[j], from, a.in[0].step, i, n);
        TP_ROW_FOR(e, n) {
            if (LOG)
                y[e] = log_softmax_y(x[j][e], max, log_sum);
            else
                y[e] = (K ? x[j][e] : softmax_exp(x[j][e], max)) * by;
        }
        tp_row_store<T, VECTOR>(to, y, i, n);
    });
}

template <typename T, bool LOG, int K, bool VECTOR>
__global__ void __launch_bounds__(TP_ROW_THREADS) softmax_backward(softmax_args a) {
    enum { V = tp_width<T>::N };
    int64_t row = tp_row_here(), channels = a.r.channels;
    if (row >= a.r.rows) return;
    const T *py = tp_row_at<T>(a.in[0], row), *pdy = tp_row_at<T>(a.in[1], row);
    T *to = (T *)a.out[0] + row * channels;
    float y[K ? K : 1][V], dy[K ? K : 1][V], s = 0;
    auto load = [&](int j, int64_t i, int n) {
        tp_row_load<T, VECTOR>(y[j], py, a.in[0].step, i, n);
        tp_row_load<T, VECTOR>(dy[j], pdy, a.in[1].step, i, n);
    };
    tp_row_each<T, K, VECTOR>(channels, [&](int j, int64_t i, int n) {
        load(j, i, n);
        TP_ROW_FOR(e, n) s = LOG ? s + dy[j][e] : fmaf(y[j][e], dy[j][e], s);
    });
    s = tp_block_sum(s);
    tp_row_each<T, K, VECTOR>(channels, [&](int j, int64_t i, int n) {
        float dx[V];
        if (!K) load(j, i, n);
        TP_ROW_FOR(e, n)
        dx[e] = LOG ? log_softmax_dx(y[j][e], dy[j][e], s) : softmax_dx(y[j][e], dy[j][e], s);
        tp_row_store<T, VECTOR>(to, dx, i, n);
    });
}

/* softmax: one output. log_softmax: the gradients of y and of dy. */
template <typename T, bool LOG, int K, bool VECTOR>
__global__ void __launch_bounds__(TP_ROW_THREADS, 2) softmax_backward2(softmax_args a) {
    enum { V = tp_width<T>::N };
    int64_t row = tp_row_here(), channels = a.r.channels;
    if (row >= a.r.rows) return;
    const T *py = tp_row_at<T>(a.in[0], row), *pdy = tp_row_at<T>(a.in[1], row);
    const T *pg = tp_row_at<T>(a.in[2], row);
    T *to = (T *)a.out[0] + row * channels, *to2 = LOG ? (T *)a.out[1] + row * channels : NULL;
    float y[K ? K : 1][V], dy[K ? K : 1][V], g[K ? K : 1][V], s = 0, gy = 0;
    auto load = [&](int j, int64_t i, int n) {
        tp_row_load<T, VECTOR>(y[j], py, a.in[0].step, i, n);
        tp_row_load<T, VECTOR>(dy[j], pdy, a.in[1].step, i, n);
        tp_row_load<T, VECTOR>(g[j], pg, a.in[2].step, i, n);
    };
    tp_row_each<T, K, VECTOR>(channels, [&](int j, int64_t i, int n) {
        load(j, i, n);
        TP_ROW_FOR(e, n) {
            s = LOG ? s + dy[j][e] : fmaf(y[j][e], dy[j][e], s);
            gy = fmaf(g[j][e], LOG ? tp_expf(y[j][e]) : y[j][e], gy);
        }
    });
    s = tp_block_sum(s);
    gy = tp_block_sum(gy);
    tp_row_each<T, K, VECTOR>(channels, [&](int j, int64_t i, int n) {
        float d[V], d2[V];
        if (!K) load(j, i, n);
        TP_ROW_FOR(e, n) {
            d[e] =
                LOG ? log_softmax_dy2(y[j][e], g[j][e], s) : softmax_dy2(dy[j][e], g[j][e], s, gy);
            d2[e] = g[j][e] - gy;
        }
        tp_row_store<T, VECTOR>(to, d, i, n);
        if (LOG) tp_row_store<T, VECTOR>(to2, d2, i, n);
    });
}

static inline softmax_args softmax_args_of(const tp_call *k) {
    softmax_args a = {};
    a.r = tp_rows_of(k->in[0]);
    for (int i = 0; i < k->nin; i++) a.in[i] = tp_row_of(k->in[i]), tp_rows_with(&a.r, k->in[i]);
    for (int i = 0; i < k->nout; i++) a.out[i] = k->out[i]->data, tp_rows_with(&a.r, k->out[i]);
    return a;
}

/* Defines the kernels NAME_cuda, NAME_backward_cuda and NAME_backward2_cuda. */
#define SOFTMAX_CUDA_ONE(id, kernel, LOG)                                                          \
    template <typename T> static tp_status id##_typed(const tp_call *k, const softmax_args &a) {   \
        TP_ROWS_LAUNCH(k, a.r, tp_rows_blocks(a.r), 0, kernel, (T, LOG), a);                       \
    }                                                                                              \
    static tp_status id##_run(const tp_call *k) {                                                  \
        softmax_args a = softmax_args_of(k);                                                       \
        TP_BY_FLOAT(k->in[0]->dtype, T, return id##_typed<T>(k, a));                               \
    }                                                                                              \
    TP_CUDA_KERNEL(id, .decline = tp_decline_cuda_floats, .run = id##_run);
#define SOFTMAX_CUDA(name, LOG)                                                                    \
    SOFTMAX_CUDA_ONE(name##_cuda, softmax_forward, LOG)                                            \
    SOFTMAX_CUDA_ONE(name##_backward_cuda, softmax_backward, LOG)                                  \
    SOFTMAX_CUDA_ONE(name##_backward2_cuda, softmax_backward2, LOG)
#endif
