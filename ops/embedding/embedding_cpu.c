/* embedding_backward on the CPU: see scatter_rows.h. */
#include "ops/embedding/index.h"
#include "ops/embedding/scatter_rows.h"

static size_t backward_workspace(const tp_call *k) {
    return scatter_bytes(tp_dim(k->out[0], 0), tp_numel(k->in[0]));
}

static tp_status backward_run(const tp_call *k) {
    const tp_tensor *ids = k->in[0], *table = k->out[0];
    tp_status st = tp_check_index(k, 0, "the id", table->shape[0]);
    if (st) return st;
    scatter_rows s = {.ids = tp_i32(ids),
                      .n = tp_numel(ids),
                      .rows = table->shape[0],
                      .channels = table->shape[1],
                      .dy = tp_f32(k->in[1]),
                      .out = tp_f32(table)};
    s.each = ids->ndim >= 2 && ids->shape[0] ? s.n / ids->shape[0] : s.n;
    scatter_run(k->ctx, &s, k->workspace);
    return TP_OK;
}

static size_t add_workspace(const tp_call *k) {
    return scatter_bytes(tp_dim(k->in[0], 0), tp_numel(k->in[1]));
}

static tp_status add_run(const tp_call *k) {
    const tp_tensor *sum = k->in[0], *ids = k->in[1];
    tp_status st = tp_check_index(k, 1, "the id", sum->shape[0]);
    if (st) return st;
    scatter_rows s = {.ids = tp_i32(ids),
                      .n = tp_numel(ids),
                      .rows = sum->shape[0],
                      .channels = sum->shape[1],
                      .dy = tp_f32(k->in[2]),
                      .add = true,
                      .out = tp_f32(sum)};
    s.each = ids->ndim >= 2 && ids->shape[0] ? s.n / ids->shape[0] : s.n;
    scatter_run(k->ctx, &s, k->workspace);
    return TP_OK;
}

TP_CPU_KERNEL(embedding_add_cpu, .decline = tp_decline_unless_f32_dense, .run = add_run,
              .workspace = add_workspace);
TP_CPU_KERNEL(embedding_backward_cpu, .decline = tp_decline_unless_f32_dense, .run = backward_run,
              .workspace = backward_workspace);
