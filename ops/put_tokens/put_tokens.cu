/* put_tokens on CUDA: a copy of x, then a warp per token that was taken. */
#include "core/ctx.h"
#include "ops/put_tokens/put_tokens_math.h"
#include "ops/take_tokens/token_rows_cuda.h"

typedef struct put_args {
    const int32_t *rows;
    int64_t n, limit, channels;
    void *x; /* y, or dy */
    const void *src, *weight;
    void *dsrc, *dweight;
    tp_fault fault;
} put_args;

template <typename T, typename W, int V>
__global__ void __launch_bounds__(TOKEN_THREADS) put_tokens(put_args a) {
    int64_t p = tp_token_here();
    if (p >= a.n) return;
    int32_t row = tp_token_row(a.rows, p, a.limit, a.fault);
    if (row < 0) return;
    T *y = (T *)a.x + row * a.channels;
    const T *src = (const T *)a.src + p * a.channels;
    float w = tp_to_f32(tp_ldg((const W *)a.weight + p));
    tp_token_each<V>(a.channels, [&](int64_t i) {
        tp_vec<T, V> old = tp_load<T, V>(y + i), s = tp_load<T, V>(src + i);
#pragma unroll
        for (int e = 0; e < V; e++)
            old.v[e] = tp_from_f32<T>(put_f(tp_to_f32(old.v[e]), w, tp_to_f32(s.v[e])));
        tp_store<T, V>(y + i, old);
    });
}

template <typename T, typename W, int V>
__global__ void __launch_bounds__(TOKEN_THREADS) put_tokens_backward(put_args a) {
    int64_t p = tp_token_here();
    if (p >= a.n) return;
    int32_t row = tp_token_row(a.rows, p, a.limit, a.fault);
    const T *dy = (const T *)a.x + row * a.channels, *src = (const T *)a.src + p * a.channels;
    T *dsrc = (T *)a.dsrc + p * a.channels;
    float w = tp_to_f32(tp_ldg((const W *)a.weight + p)), dw = 0;
    tp_token_each<V>(a.channels, [&](int64_t i) {
        tp_vec<T, V> d, s = tp_load<T, V>(src + i);
        if (row >= 0) {
            d = tp_load<T, V>(dy + i);
        } else {
#pragma unroll
            for (int e = 0; e < V; e++) d.v[e] = tp_from_f32<T>(0.0f);
        }
#pragma unroll
        for (int e = 0; e < V; e++) {
            dw += tp_to_f32(d.v[e]) * tp_to_f32(s.v[e]);
            d.v[e] = tp_from_f32<T>(w * tp_to_f32(d.v[e]));
        }
        tp_store<T, V>(dsrc + i, d);
    });
    dw = tp_warp_sum(dw);
    if (threadIdx.x % 32 == 0) tp_stg((W *)a.dweight + p, tp_from_f32<W>(dw));
}

template <typename T, typename W, bool BACKWARD>
static tp_status launch(const tp_call *k, const put_args &a) {
    enum { V = tp_width<T>::N };
    unsigned blocks = tp_blocks(a.n, TOKEN_THREADS / 32);
    bool vectors = tp_token_vectors<T>(a.channels, a.x, a.src) && tp_aligned(a.dsrc, 16);
    if (BACKWARD)
        return vectors ? TP_LAUNCH(k, (put_tokens_backward<T, W, V>), blocks, TOKEN_THREADS, 0, a)
                       : TP_LAUNCH(k, (put_tokens_backward<T, W, 1>), blocks, TOKEN_THREADS, 0, a);
    return vectors ? TP_LAUNCH(k, (put_tokens<T, W, V>), blocks, TOKEN_THREADS, 0, a)
                   : TP_LAUNCH(k, (put_tokens<T, W, 1>), blocks, TOKEN_THREADS, 0, a);
}

template <bool BACKWARD> static tp_status run(const tp_call *k) {
    const tp_tensor *x = k->in[0];
    put_args a = {};
    a.rows = tp_i32(k->in[1]);
    a.n = tp_numel(k->in[1]);
    a.limit = x->shape[0] * x->shape[1];
    a.channels = x->shape[2];
    a.x = BACKWARD ? x->data : k->out[0]->data;
    a.src = k->in[2]->data;
    a.weight = k->in[3]->data;
    if (BACKWARD) a.dsrc = k->out[0]->data, a.dweight = k->out[1]->data;
    a.fault = tp_fault_of(k);
    size_t bytes = (size_t)tp_numel(x) * tp_dtype_size(x->dtype);
    tp_status st = BACKWARD ? TP_OK : tp_copy_bytes(k->ctx, k->out[0]->data, x->data, bytes);
    if (st) return st;
    if (x->dtype == TP_F32) return (launch<float, float, BACKWARD>(k, a));
    if (k->in[3]->dtype == TP_F32) return (launch<tp_bf16, float, BACKWARD>(k, a));
    return (launch<tp_bf16, tp_bf16, BACKWARD>(k, a));
}
TP_CUDA_KERNEL(put_tokens_cuda, .decline = tp_decline_cuda_dense, .run = run<false>);
TP_CUDA_KERNEL(put_tokens_backward_cuda, .decline = tp_decline_cuda_dense, .run = run<true>);
