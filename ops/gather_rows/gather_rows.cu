/* gather_rows and scatter_add_rows on CUDA: see ops/embedding/rows_cuda.h. */
#include "ops/embedding/rows_cuda.h"

static const char *gather_decline(const tp_call *k) {
    return tp_decline_index_rows_cuda(k, 1, k->in[0]);
}
static tp_status gather_run(const tp_call *k) { return tp_index_rows_cuda(k, 1, k->in[0]); }
TP_CUDA_KERNEL(gather_rows_cuda, .decline = gather_decline, .run = gather_run);

static const char *scatter_decline(const tp_call *k) {
    if (!tp_contiguous(k->in[1])) return "idx is strided";
    const char *no = tp_decline_cuda_floats(k);
    return no ? no : tp_decline_scatter(tp_numel(k->in[1]), tp_dim(k->out[0], 0));
}

static tp_status scatter_run(const tp_call *k) {
    const tp_tensor *idx = k->in[1], *y = k->out[0];
    tp_scatter_cuda s = {};
    s.ids = tp_i32(idx);
    s.n = s.each = tp_numel(idx); /* one chain in the order of idx */
    s.rows = y->shape[0];
    s.channels = y->shape[1];
    s.dtype = y->dtype;
    s.base = k->in[0];
    tp_rows_of(&s.dy, k->in[2]);
    tp_rows_of(&s.out, y);
    return tp_scatter_cuda_run(k, &s);
}

static size_t scatter_workspace(const tp_call *k) {
    return tp_scatter_cuda_bytes(tp_numel(k->in[1]));
}
TP_CUDA_KERNEL(scatter_add_rows_cuda, .decline = scatter_decline, .run = scatter_run,
               .workspace = scatter_workspace);
