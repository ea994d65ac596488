/* layernorm on the CPU: binds the row kernels of norm_rows.h to the tensors of the ops. */
#define NORM_CENTRE 1
#include "ops/layernorm/norm_rows.h"

static tp_status layernorm_run(const tp_call *k) {
    norm_forward a = {.w = norm_data(k->in[1]),
                      .b = norm_data(k->in[2]),
                      .y = tp_f32(k->out[0]),
                      .mean = tp_f32(k->out[1]),
                      .rstd = tp_f32(k->out[2])};
    return norm_forward_run(k, &a);
}

static tp_status add_layernorm_run(const tp_call *k) {
    norm_forward a = {.residual = tp_f32(k->in[1]),
                      .w = norm_data(k->in[2]),
                      .b = norm_data(k->in[3]),
                      .sum = tp_f32(k->out[0]),
                      .y = tp_f32(k->out[1]),
                      .mean = tp_f32(k->out[2]),
                      .rstd = tp_f32(k->out[3])};
    return norm_forward_run(k, &a);
}

static tp_status layernorm_backward_run(const tp_call *k) {
    norm_backward a = {.mean = tp_f32(k->in[3]),
                       .rstd = tp_f32(k->in[4]),
                       .dsum = norm_data(k->in[5]),
                       .dmean = norm_data(k->in[6]),
                       .drstd = norm_data(k->in[7])};
    return norm_backward_run(k, &a);
}

TP_CPU_KERNEL(layernorm_cpu, .decline = tp_decline_unless_f32_dense, .run = layernorm_run);
TP_CPU_KERNEL(add_layernorm_cpu, .decline = tp_decline_unless_f32_dense, .run = add_layernorm_run);
TP_CPU_KERNEL(layernorm_backward_cpu, .decline = tp_decline_unless_f32_dense,
              .run = layernorm_backward_run, .workspace = norm_backward_workspace);
