/* layernorm on CUDA: binds the row kernels of norm_cuda.h to the tensors of the ops. */
#include "ops/layernorm/norm_cuda.h"

static tp_status layernorm_run(const tp_call *k) { return norm_forward_run<true>(k, false); }
static tp_status add_layernorm_run(const tp_call *k) { return norm_forward_run<true>(k, true); }

static tp_status layernorm_backward_run(const tp_call *k) {
    norm_backward_args a = {};
    a.dy = tp_row_of(k->in[0]), a.x = tp_row_of(k->in[1]), a.w = tp_row_of(k->in[2]);
    a.mean = norm_stat_of(k->in[3]), a.rstd = norm_stat_of(k->in[4]);
    a.dsum = tp_row_of(k->in[5]);
    a.dmean = norm_stat_of(k->in[6]), a.drstd = norm_stat_of(k->in[7]);
    return norm_backward_run<true>(k, &a);
}
static size_t layernorm_backward_workspace(const tp_call *k) {
    return norm_backward_workspace(k, 2);
}

TP_CUDA_KERNEL(layernorm_cuda, .decline = tp_decline_cuda_floats, .run = layernorm_run);
TP_CUDA_KERNEL(add_layernorm_cuda, .decline = tp_decline_cuda_floats, .run = add_layernorm_run);
TP_CUDA_KERNEL(layernorm_backward_cuda, .decline = tp_decline_cuda_floats,
               .run = layernorm_backward_run, .workspace = layernorm_backward_workspace);
