/* take_tokens on CUDA. */
#include "ops/take_tokens/token_rows_cuda.h"

typedef struct take_args {
    const int32_t *rows;
    int64_t n, limit, channels; /* list entries; tokens of the large tensor */
    void *small, *large;
    tp_fault fault;
} take_args;
enum { TAKE, PUT, ADD };

template <typename T, int V, int HOW>
__global__ void __launch_bounds__(TOKEN_THREADS) move_tokens(take_args a) {
    int64_t p = tp_token_here();
    if (p >= a.n) return;
    int32_t row = tp_token_row(a.rows, p, a.limit, a.fault);
    T *small = (T *)a.small + p * a.channels, *large = (T *)a.large + row * a.channels;
    tp_token_each<V>(a.channels, [&](int64_t i) {
        tp_vec<T, V> v;
        if (HOW == TAKE) {
#pragma unroll
            for (int e = 0; e < V; e++) v.v[e] = tp_from_f32<T>(0.0f);
            if (row >= 0) v = tp_load<T, V>(large + i);
            tp_store<T, V>(small + i, v);
        } else if (row >= 0) {
            v = tp_load<T, V>(small + i);
            if (HOW == ADD) {
                tp_vec<T, V> old = tp_load<T, V>(large + i);
#pragma unroll
                for (int e = 0; e < V; e++)
                    v.v[e] = tp_from_f32<T>(tp_to_f32(old.v[e]) + tp_to_f32(v.v[e]));
            }
            tp_store<T, V>(large + i, v);
        }
    });
}

template <typename T, int HOW> static tp_status move_typed(const tp_call *k, take_args a) {
    enum { V = tp_width<T>::N };
    unsigned blocks = tp_blocks(a.n, TOKEN_THREADS / 32);
    if (tp_token_vectors<T>(a.channels, a.small, a.large))
        return TP_LAUNCH(k, (move_tokens<T, V, HOW>), blocks, TOKEN_THREADS, 0, a);
    return TP_LAUNCH(k, (move_tokens<T, 1, HOW>), blocks, TOKEN_THREADS, 0, a);
}

template <int HOW>
static tp_status move_run(const tp_call *k, const tp_tensor *rows, const tp_tensor *small,
                          const tp_tensor *large) {
    take_args a = {};
    a.rows = tp_i32(rows);
    a.n = tp_numel(rows);
    a.limit = large->shape[0] * large->shape[1];
    a.channels = large->shape[2];
    a.small = small->data;
    a.large = large->data;
    a.fault = tp_fault_of(k);
    TP_BY_FLOAT(large->dtype, T, return (move_typed<T, HOW>(k, a)));
}

static tp_status take_run(const tp_call *k) {
    return move_run<TAKE>(k, k->in[1], k->out[0], k->in[0]);
}
static tp_status backward_run(const tp_call *k) {
    tp_status st = tp_zero(k->ctx, k->out[0]);
    return st ? st : move_run<PUT>(k, k->in[0], k->in[1], k->out[0]);
}
static tp_status add_run(const tp_call *k) {
    return move_run<ADD>(k, k->in[1], k->in[2], k->in[0]);
}
TP_CUDA_KERNEL(take_tokens_cuda, .decline = tp_decline_cuda_dense, .run = take_run);
TP_CUDA_KERNEL(take_tokens_backward_cuda, .decline = tp_decline_cuda_dense, .run = backward_run);
TP_CUDA_KERNEL(take_tokens_add_cuda, .decline = tp_decline_cuda_dense, .run = add_run);
