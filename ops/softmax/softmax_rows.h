/* What the kernels of softmax and log_softmax share: rows, their maxima and sums of exponentials.
 * Included by their *_cpu.c. */
#ifndef TP_SOFTMAX_ROWS_H
#define TP_SOFTMAX_ROWS_H
#include "ops/layernorm/lanes.h"
#include "ops/op.h"
#include "ops/softmax/softmax_math.h"

/* The largest of n >= 1 values. A NaN may be passed over: its exponential is NaN all the same. */
static inline float softmax_max(const float *x, int64_t n) {
    v16 top[LANES_CHAINS];
    int64_t i = 0;
    for (int j = 0; j < LANES_CHAINS; j++) top[j] = v16_set1(-INFINITY);
    for (; i + LANES_STEP <= n; i += LANES_STEP)
        for (int j = 0; j < LANES_CHAINS; j++) top[j] = v16_max(v16_load(x + i + 16 * j), top[j]);
    float max = v16_hmax(v16_max(v16_max(top[0], top[1]), v16_max(top[2], top[3])));
    for (; i < n; i++) max = x[i] > max ? x[i] : max;
    return max;
}

static inline float softmax_sum(const float *x, int64_t n) {
    v16 sums[LANES_CHAINS];
    for (int j = 0; j < LANES_CHAINS; j++) sums[j] = v16_zero();
#define SUM(i, m, j) sums[j] = v16_add(sums[j], lanes_load(x + (i), m))
    LANES_EACH(n, SUM);
#undef SUM
    return lanes_fold(sums);
}

static inline float softmax_dot(const float *x, const float *y, int64_t n) {
    v16 sums[LANES_CHAINS];
    for (int j = 0; j < LANES_CHAINS; j++) sums[j] = v16_zero();
#define SUM(i, m, j) sums[j] = v16_fma(lanes_load(x + (i), m), lanes_load(y + (i), m), sums[j])
    LANES_EACH(n, SUM);
#undef SUM
    return lanes_fold(sums);
}

/* e[i] = e^(x[i] - max); answers their sum. */
static inline float softmax_exps(const float *restrict x, float *restrict e, int64_t n, float max) {
    for (int64_t i = 0; i < n; i++) e[i] = softmax_exp(x[i], max);
    return softmax_sum(e, n);
}

/* Runs fn over all rows of a (…,C) tensor, in parallel. */
static inline tp_status softmax_each(const tp_call *k, const tp_tensor *x, tp_range_fn fn) {
    int64_t channels = tp_dim(x, -1);
    if (channels)
        tp_parallel_for(k->ctx, tp_numel(x) / channels, 8192 / channels + 1, fn, (void *)k);
    return TP_OK;
}
#endif
