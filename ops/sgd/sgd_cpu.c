/* sgd_ on the CPU: one pass. */
#include "ops/sgd/sgd.h"
#include "ops/sgd/sgd_math.h"

typedef struct job {
    float *p, *b;
    const float *g;
    float scale, mu, rate, decay;
    bool nesterov;
} job;

static void range(void *arg, int64_t begin, int64_t end) {
    const job *j = arg;
    float *restrict p = j->p, *restrict b = j->b;
    const float *restrict g = j->g;
    float scale = j->scale, mu = j->mu, rate = j->rate, decay = j->decay;
    bool nesterov = j->nesterov;
    if (!b)
        for (int64_t i = begin; i < end; i++)
            p[i] = sgd_f(p[i], g ? scale * g[i] : 0.0f, rate, decay);
    else if (!g)
        for (int64_t i = begin; i < end; i++)
            p[i] = sgd_f(p[i], momentum_f(&b[i], 0.0f, mu, nesterov), rate, decay);
    else
        for (int64_t i = begin; i < end; i++)
            p[i] = sgd_f(p[i], momentum_f(&b[i], scale * g[i], mu, nesterov), rate, decay);
}

static tp_status run(const tp_call *k) {
    const tp_sgd_opts *o = k->attr;
    job j = {.p = tp_f32(k->in[0]),
             .b = k->in[1] ? tp_f32(k->in[1]) : NULL,
             .g = k->in[2] ? tp_f32(k->in[2]) : NULL,
             .scale = o->grad_scale == 0 ? 1.0f : (float)o->grad_scale,
             .mu = (float)o->momentum,
             .rate = (float)o->learning_rate,
             .decay = (float)(o->learning_rate * o->weight_decay),
             .nesterov = o->nesterov};
    tp_parallel_for(k->ctx, tp_numel(k->in[0]), 1 << 15, range, &j);
    return TP_OK;
}
TP_CPU_KERNEL(sgd_cpu, .decline = tp_decline_unless_f32_dense, .run = run);
