/* momentum_ on CUDA. */
#include "ops/muon/muon.h"
#include "ops/sgd/momentum_cuda.h"

static tp_status run(const tp_call *k) {
    const tp_momentum_opts *o = (const tp_momentum_opts *)k->attr;
    momentum_args a = {};
    a.b = tp_f32(k->in[0]);
    a.u = tp_f32(k->out[0]);
    a.g = k->in[1] ? tp_f32(k->in[1]) : NULL;
    a.scale = o->grad_scale == 0 ? 1.0f : (float)o->grad_scale;
    a.mu = (float)o->momentum;
    a.nesterov = o->nesterov;
    a.n = tp_numel(k->in[0]);
    return momentum_launch(k, &a);
}
TP_CUDA_KERNEL(momentum_cuda, .decline = momentum_decline, .run = run);
