/* embedding on CUDA: rows copied by number, a warp each; and the kernels' rows of its gradients. */
#include "ops/embedding/rows_cuda.h"

enum { COPY_THREADS = 256, COPY_ROWS = COPY_THREADS / 32 };

template <typename T, int V>
__global__ void copy_rows(const int32_t *ids, int64_t n, int64_t limit, tp_rows table, T *y,
                          int64_t channels, tp_fault fault) {
    int lane = threadIdx.x % 32;
    int64_t p = (int64_t)blockIdx.x * COPY_ROWS + threadIdx.x / 32;
    if (p >= n) return;
    int64_t id = tp_ldg(ids + p);
    bool good = id >= 0 && id < limit;
    if (!good && lane == 0) tp_report(fault, p);
    const T *x = (const T *)table.p + (good ? id : 0) * table.row;
    for (int64_t c = (int64_t)lane * V; c < channels; c += 32 * V) {
        tp_vec<T, V> v;
        if (good)
            v = tp_load<T, V>(x + c * table.col);
        else
            for (int e = 0; e < V; e++) v.v[e] = tp_from_f32<T>(0);
        tp_store<T, V>(y + p * channels + c, v);
    }
}

template <typename T>
static tp_status copy_typed(const tp_call *k, const tp_tensor *ids, const tp_tensor *table) {
    enum { V = tp_width<T>::N };
    tp_rows from;
    T *y = (T *)k->out[0]->data;
    int64_t n = tp_numel(ids), limit = table->shape[0], channels = table->shape[1];
    unsigned blocks = channels ? tp_blocks(n, COPY_ROWS) : 0;
    tp_fault fault = tp_fault_of(k);
    const int32_t *which = tp_i32(ids);
    tp_rows_of(&from, table);
    if (tp_rows_vector(&from, channels, V, sizeof(T)) && tp_aligned(y, 16))
        return TP_LAUNCH(k, (copy_rows<T, V>), blocks, COPY_THREADS, 0, which, n, limit, from, y,
                         channels, fault);
    return TP_LAUNCH(k, (copy_rows<T, 1>), blocks, COPY_THREADS, 0, which, n, limit, from, y,
                     channels, fault);
}

tp_status tp_index_rows_cuda(const tp_call *k, int i, const tp_tensor *table) {
    TP_BY_FLOAT(table->dtype, T, return copy_typed<T>(k, k->in[i], table));
}

const char *tp_decline_index_rows_cuda(const tp_call *k, int i, const tp_tensor *table) {
    if (!tp_contiguous(k->in[i])) return "the ids are strided";
    return tp_not_f32_bf16(table);
}

static const char *decline(const tp_call *k) { return tp_decline_index_rows_cuda(k, 0, k->in[1]); }
static tp_status run(const tp_call *k) { return tp_index_rows_cuda(k, 0, k->in[1]); }
TP_CUDA_KERNEL(embedding_cuda, .decline = decline, .run = run);

/* ---- gradients ------------------------------------------------------------------------------ */
static int64_t each_of(const tp_tensor *ids) {
    return ids->ndim >= 2 && ids->shape[0] ? tp_numel(ids) / ids->shape[0] : tp_numel(ids);
}

static const char *decline_gradient(const tp_call *k, const tp_tensor *ids, const tp_tensor *dy,
                                    const tp_tensor *table) {
    if (!tp_contiguous(ids)) return "the ids are strided";
    const char *no = tp_decline_cuda_floats(k);
    if (!no) no = tp_decline_uneven(dy);
    return no ? no : tp_decline_scatter(tp_numel(ids), table->shape[0]);
}

static tp_status gradient(const tp_call *k, const tp_tensor *ids, const tp_tensor *dy,
                          const tp_tensor *table, bool add) {
    tp_scatter_cuda s = {};
    s.ids = tp_i32(ids);
    s.n = tp_numel(ids);
    s.each = each_of(ids);
    s.rows = table->shape[0];
    s.channels = table->shape[1];
    s.dtype = table->dtype;
    s.add = add;
    tp_rows_of(&s.dy, dy);
    tp_rows_of(&s.out, table);
    return tp_scatter_cuda_run(k, &s);
}

static const char *backward_decline(const tp_call *k) {
    return decline_gradient(k, k->in[0], k->in[1], k->out[0]);
}
static size_t backward_workspace(const tp_call *k) {
    return tp_scatter_cuda_bytes(tp_numel(k->in[0]));
}
static tp_status backward_run(const tp_call *k) {
    return gradient(k, k->in[0], k->in[1], k->out[0], false);
}
TP_CUDA_KERNEL(embedding_backward_cuda, .decline = backward_decline, .run = backward_run,
               .workspace = backward_workspace);

static const char *add_decline(const tp_call *k) {
    return decline_gradient(k, k->in[1], k->in[2], k->in[0]);
}
static size_t add_workspace(const tp_call *k) { return tp_scatter_cuda_bytes(tp_numel(k->in[1])); }
static tp_status add_run(const tp_call *k) {
    return gradient(k, k->in[1], k->in[2], k->in[0], true);
}
TP_CUDA_KERNEL(embedding_add_cuda, .decline = add_decline, .run = add_run,
               .workspace = add_workspace);
