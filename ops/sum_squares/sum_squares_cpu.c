/* sum_squares on the CPU: sixteen double lanes per chunk, then their tree. */
#include "ops/sum_squares/sum_squares.h"

enum { CHUNK = TP_SQUARES_CHUNK, LANES = 16, CHUNKS_A_TASK = 16 };

typedef struct job {
    const float *x;
    double *sum;
    int64_t n;
} job;

static double chunk_sum(const float *restrict x, int64_t n) {
    double lane[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += (double)x[i + l] * (double)x[i + l];
    for (int l = 0; i < n; i++, l++) lane[l] += (double)x[i] * (double)x[i];
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    return lane[0];
}

static void range(void *arg, int64_t begin, int64_t end) {
    const job *j = arg;
    for (int64_t i = begin; i < end; i++) {
        int64_t left = j->n - i * CHUNK;
        j->sum[i] = chunk_sum(j->x + i * CHUNK, left < CHUNK ? left : CHUNK);
    }
}

static tp_status run(const tp_call *k) {
    job j = {tp_f32(k->in[0]), tp_f64(k->out[0]), tp_numel(k->in[0])};
    tp_parallel_for(k->ctx, tp_numel(k->out[0]), CHUNKS_A_TASK, range, &j);
    return TP_OK;
}

static const char *decline(const tp_call *k) {
    if (k->in[0]->dtype != TP_F32) return "x is not f32";
    return tp_numel(k->in[0]) && !tp_contiguous(k->in[0]) ? "x is strided" : NULL;
}
TP_CPU_KERNEL(sum_squares_cpu, .decline = decline, .run = run);
