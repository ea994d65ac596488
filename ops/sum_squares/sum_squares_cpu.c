/* sum_squares on the CPU: sixteen double lanes per chunk, their tree, then the tree over chunks. */
#include "ops/sum_squares/sum_squares.h"

enum { CHUNK = 1 << 16, LANES = 16 };

typedef struct job {
    const float *x;
    double *part;
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
    j->part[begin / CHUNK] = chunk_sum(j->x + begin, end - begin);
}

static size_t workspace(const tp_call *k) {
    return (size_t)((tp_numel(k->in[0]) + CHUNK - 1) / CHUNK + 1) * sizeof(double);
}

static tp_status run(const tp_call *k) {
    job j = {tp_f32(k->in[0]), k->workspace};
    int64_t n = tp_numel(k->in[0]), parts = (n + CHUNK - 1) / CHUNK;
    j.part[0] = 0;
    tp_parallel_for(k->ctx, n, CHUNK, range, &j);
    for (; parts > 1; parts = (parts + 1) / 2)
        for (int64_t i = 0; i < (parts + 1) / 2; i++)
            j.part[i] = 2 * i + 1 < parts ? j.part[2 * i] + j.part[2 * i + 1] : j.part[2 * i];
    tp_f64(k->out[0])[0] = j.part[0];
    return TP_OK;
}

static const char *decline(const tp_call *k) {
    if (k->in[0]->dtype != TP_F32) return "x is not f32";
    return tp_numel(k->in[0]) && !tp_contiguous(k->in[0]) ? "x is strided" : NULL;
}
TP_CPU_KERNEL(sum_squares_cpu, .decline = decline, .run = run, .workspace = workspace);
