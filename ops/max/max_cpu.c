/* max on the CPU: plain scans. */
#include "ops/max/max_attr.h"
#include <string.h>

typedef struct max_job {
    const float *x;
    float *y;
    int32_t *at;
    tp_dims kept, gone;
} max_job;

static void max_range(void *arg, int64_t begin, int64_t end) {
    const max_job *j = arg;
    int last = j->gone.ndim - 1;
    int64_t inner = j->gone.shape[last], step = j->gone.stride[last];
    for (int64_t u = begin; u < end; u++) {
        const float *x = j->x + tp_dims_offset(&j->kept, u);
        float best = x[0];
        int64_t at = 0;
        for (int64_t g = 0; g < j->gone.n; g += inner) {
            const float *row = x + tp_dims_offset(&j->gone, g);
            for (int64_t i = 0; i < inner; i++) {
                float v = row[i * step];
                bool better = v > best || (v != v && best == best); /* the first NaN wins */
                best = better ? v : best;
                at = better ? g + i : at;
            }
        }
        j->y[u] = best;
        j->at[u] = (int32_t)at;
    }
}

static tp_status max_run(const tp_call *k) {
    const tp_reduce_attr *a = k->attr;
    max_job j = {.x = tp_f32(k->in[0]), .y = tp_f32(k->out[0]), .at = tp_i32(k->out[1])};
    int64_t n = tp_numel(k->out[0]);
    if (n == 0) return TP_OK;
    tp_dims_split(k->in[0], a->dims, &j.kept, &j.gone);
    tp_parallel_for(k->ctx, n, j.gone.n < 1 << 14 ? (1 << 14) / j.gone.n : 1, max_range, &j);
    return TP_OK;
}
TP_CPU_KERNEL(max_cpu, .decline = tp_decline_unless_f32, .run = max_run);

static tp_status max_backward_run(const tp_call *k) {
    const max_attr *a = k->attr;
    const tp_tensor *at = k->in[0], *dy = k->in[1];
    tp_dims kept, gone;
    if (tp_numel(k->out[0]) == 0) return TP_OK;
    tp_dims_split(k->out[0], a->reduce.dims, &kept, &gone);
    tp_status st = max_positions_ok(k, gone.n);
    if (st) return st;
    float *dx = tp_f32(k->out[0]);
    memset(dx, 0, (size_t)tp_numel(k->out[0]) * sizeof *dx);
    for (int64_t u = 0; u < kept.n; u++)
        dx[tp_dims_offset(&kept, u) + tp_dims_offset(&gone, tp_i32(at)[tp_offset(at, u)])] =
            tp_f32(dy)[tp_offset(dy, u)];
    return TP_OK;
}
TP_CPU_KERNEL(max_backward_cpu, .decline = tp_decline_unless_f32, .run = max_backward_run);

static tp_status max_pick_run(const tp_call *k) {
    const max_attr *a = k->attr;
    const tp_tensor *at = k->in[0], *x = k->in[1];
    tp_dims kept, gone;
    if (tp_numel(x) == 0) return TP_OK;
    tp_dims_split(x, a->reduce.dims, &kept, &gone);
    tp_status st = max_positions_ok(k, gone.n);
    for (int64_t u = 0; u < kept.n && !st; u++)
        tp_f32(k->out[0])[u] = tp_f32(
            x)[tp_dims_offset(&kept, u) + tp_dims_offset(&gone, tp_i32(at)[tp_offset(at, u)])];
    return st;
}
TP_CPU_KERNEL(max_pick_cpu, .decline = tp_decline_unless_f32, .run = max_pick_run);
