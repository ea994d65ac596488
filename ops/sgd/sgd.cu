/* sgd_ on CUDA. */
#include "ops/sgd/momentum_cuda.h"
#include "ops/sgd/sgd.h"

static tp_status run(const tp_call *k) {
    const tp_sgd_opts *o = (const tp_sgd_opts *)k->attr;
    momentum_args a = {};
    a.p = tp_f32(k->in[0]);
    a.b = k->in[1] ? tp_f32(k->in[1]) : NULL;
    a.g = k->in[2] ? tp_f32(k->in[2]) : NULL;
    a.scale = o->grad_scale == 0 ? 1.0f : (float)o->grad_scale;
    a.mu = (float)o->momentum;
    a.rate = (float)o->learning_rate;
    a.decay = (float)(o->learning_rate * o->weight_decay);
    a.nesterov = o->nesterov;
    a.n = tp_numel(k->in[0]);
    return momentum_launch(k, &a);
}
TP_CUDA_KERNEL(sgd_cuda, .decline = momentum_decline, .run = run);
