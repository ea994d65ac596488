/* scatter_add_rows on the CPU: see scatter_rows.h. */
#include "ops/embedding/index.h"
#include "ops/embedding/scatter_rows.h"

static size_t workspace(const tp_call *k) {
    return scatter_bytes(tp_dim(k->out[0], 0), tp_numel(k->in[1]));
}

static tp_status run(const tp_call *k) {
    const tp_tensor *idx = k->in[1], *y = k->out[0];
    tp_status st = tp_check_index(k, 1, "the index", y->shape[0]);
    if (st) return st;
    scatter_rows s = {.ids = tp_i32(idx),
                      .n = tp_numel(idx),
                      .each = tp_numel(idx),
                      .rows = y->shape[0],
                      .channels = y->shape[1],
                      .dy = tp_f32(k->in[2]),
                      .base = k->in[0] ? tp_f32(k->in[0]) : NULL,
                      .out = tp_f32(y)};
    scatter_run(k->ctx, &s, k->workspace);
    return TP_OK;
}

TP_CPU_KERNEL(scatter_add_rows_cpu, .decline = tp_decline_unless_f32_dense, .run = run,
              .workspace = workspace);
