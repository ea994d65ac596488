/* adamw_ on the CPU: one pass over p, m, v and the gradient; memory sets the pace. */
#include "ops/adamw/adamw_math.h"

typedef struct job {
    float *p, *m, *v;
    const float *g;
    adamw_step s;
} job;

static void range(void *arg, int64_t begin, int64_t end) {
    const job *j = arg;
    float *restrict p = j->p, *restrict m = j->m, *restrict v = j->v;
    const float *restrict g = j->g;
    adamw_step s = j->s;
    if (g)
        for (int64_t i = begin; i < end; i++) adamw_f(&p[i], &m[i], &v[i], g[i], s);
    else
        for (int64_t i = begin; i < end; i++) adamw_f(&p[i], &m[i], &v[i], 0.0f, s);
}

static tp_status run(const tp_call *k) {
    job j = {tp_f32(k->in[0]), tp_f32(k->in[1]), tp_f32(k->in[2]),
             k->in[3] ? tp_f32(k->in[3]) : NULL, adamw_step_of(k->attr)};
    tp_parallel_for(k->ctx, tp_numel(k->in[0]), 1 << 15, range, &j);
    return TP_OK;
}
TP_CPU_KERNEL(adamw_cpu, .decline = tp_decline_unless_f32_dense, .run = run);
