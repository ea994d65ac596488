/* rmsnorm on the CPU: binds the row kernels of norm_rows.h to the inputs and outputs of the ops. */
#define NORM_CENTRE 0
#include "ops/layernorm/norm_rows.h"

static tp_status rmsnorm_run(const tp_call *k) {
    norm_forward a = {.w = norm_data(k->in[1]), .y = tp_f32(k->out[0]), .rstd = tp_f32(k->out[1])};
    return norm_forward_run(k, &a);
}

static tp_status add_rmsnorm_run(const tp_call *k) {
    norm_forward a = {.residual = tp_f32(k->in[1]),
                      .w = norm_data(k->in[2]),
                      .sum = tp_f32(k->out[0]),
                      .y = tp_f32(k->out[1]),
                      .rstd = tp_f32(k->out[2])};
    return norm_forward_run(k, &a);
}

static tp_status rmsnorm_backward_run(const tp_call *k) {
    norm_backward a = {
        .rstd = tp_f32(k->in[3]), .dsum = norm_data(k->in[4]), .drstd = norm_data(k->in[5])};
    return norm_backward_run(k, &a);
}

TP_CPU_KERNEL(rmsnorm_cpu, .decline = tp_decline_unless_f32_dense, .run = rmsnorm_run);
TP_CPU_KERNEL(add_rmsnorm_cpu, .decline = tp_decline_unless_f32_dense, .run = add_rmsnorm_run);
TP_CPU_KERNEL(rmsnorm_backward_cpu, .decline = tp_decline_unless_f32_dense,
              .run = rmsnorm_backward_run, .workspace = norm_backward_workspace);
