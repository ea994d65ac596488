/* rmsnorm on CUDA: binds the row kernels of norm_cuda.h to the tensors of the ops. */
#include "ops/layernorm/norm_cuda.h"

static tp_status rmsnorm_run(const tp_call *k) { return norm_forward_run<false>(k, false); }
static tp_status add_rmsnorm_run(const tp_call *k) { return norm_forward_run<false>(k, true); }

static tp_status rmsnorm_backward_run(const tp_call *k) {
    norm_backward_args a = {};
    a.dy = tp_row_of(k->in[0]), a.x = tp_row_of(k->in[1]), a.w = tp_row_of(k->in[2]);
    a.rstd = norm_stat_of(k->in[3]), a.mean = norm_stat_of(NULL);
    a.dsum = tp_row_of(k->in[4]);
    a.drstd = norm_stat_of(k->in[5]), a.dmean = norm_stat_of(NULL);
    return norm_backward_run<false>(k, &a);
}
static size_t rmsnorm_backward_workspace(const tp_call *k) { return norm_backward_workspace(k, 1); }
static const char *rmsnorm_backward_decline(const tp_call *k) {
    if (((const tp_norm_backward_attr *)k->attr)->db) return "rmsnorm has no bias";
    return tp_decline_cuda_floats(k);
}

TP_CUDA_KERNEL(rmsnorm_cuda, .decline = tp_decline_cuda_floats, .run = rmsnorm_run);
TP_CUDA_KERNEL(add_rmsnorm_cuda, .decline = tp_decline_cuda_floats, .run = add_rmsnorm_run);
TP_CUDA_KERNEL(rmsnorm_backward_cuda, .decline = rmsnorm_backward_decline,
               .run = rmsnorm_backward_run, .workspace = rmsnorm_backward_workspace);
