/* token_logprob on CUDA: a block for each row, which goes through linear_cross_entropy's sums
 * (lce_rows_cuda.h) in blocks of the same size, so that the same logits get the same bits. A token
 * outside the set has the score -1e30, which adds exact zeros to every sum. */
#include "ops/cuda.h"
#include "ops/linear_cross_entropy/lce_rows_cuda.h"
#include "ops/token_logprob/token_logprob_row.h"

enum { GRAD_THREADS = 256 };

typedef struct token_args {
    const void *logits; /* (n,v) dense */
    const int32_t *target, *set;
    int64_t v, words;
    lce_scale scale;
    tp_fault fault;
    float *logprob, *entropy, *lse;
    const void *coef[4]; /* (n) lse, a, b, d */
    bool coef_bf16[4];
    void *grad;
} token_args;

/* A row of a token_logprob call; like lce_padded_row, but of either type, with a set and no room
 * behind its end. */
template <typename T> struct token_row {
    const T *x;
    const int32_t *set; /* NULL: every token is in it */
    int64_t v;
    lce_scale q;
    __device__ __forceinline__ bool inside(int64_t i) const {
        return !set || (uint32_t)tp_ldg(set + i / 32) >> (i % 32) & 1;
    }
    __device__ __forceinline__ float at(int64_t i) const {
        return inside(i) ? lce_scaled(tp_to_f32(tp_ldg(x + i)), q) : LCE_LOWEST;
    }
    __device__ __forceinline__ lce_eight operator()(int64_t i) const {
        lce_eight y;
#pragma unroll
        for (int e = 0; e < 8; e++) y.v[e] = i + e < v ? at(i + e) : LCE_LOWEST;
        return y;
    }
};

template <typename T>
static __device__ __forceinline__ token_row<T> token_row_of(const token_args &a, int64_t row) {
    return {(const T *)a.logits + row * a.v, a.set ? a.set + row * a.words : NULL, a.v, a.scale};
}

/* The row's target, or -1: it is ignored, or wrong, which is reported. */
template <typename T>
static __device__ __forceinline__ int token_target_of(const token_args &a, const token_row<T> &of,
                                                      int64_t row, bool report) {
    const int y = tp_ldg(a.target + row);
    if (y == TOKEN_IGNORE) return -1;
    if (y >= 0 && y < a.v && of.inside(y)) return y;
    if (report) tp_report(a.fault, row);
    return -1;
}

template <typename T> __global__ void __launch_bounds__(512) token_rows(const token_args a) {
    const int64_t row = blockIdx.x;
    const token_row<T> of = token_row_of<T>(a, row);
    const int target = token_target_of(a, of, row, threadIdx.x == 0);
    lce_stats s = {0.0f, 0.0f, 0.0f};
    if (target >= 0) {
        const lce_row r = lce_take_row(of, a.v, target);
        s = lce_row_end(&r);
    }
    if (threadIdx.x) return;
    tp_stg(a.logprob + row, s.logprob);
    tp_stg(a.entropy + row, s.entropy);
    tp_stg(a.lse + row, s.lse);
}

static __device__ __forceinline__ float token_coef(const token_args &a, int i, int64_t row) {
    return a.coef_bf16[i] ? tp_to_f32(tp_ldg((const tp_bf16 *)a.coef[i] + row))
                          : tp_ldg((const float *)a.coef[i] + row);
}

template <typename T>
__global__ void __launch_bounds__(GRAD_THREADS) token_gradients(const token_args a) {
    const int64_t row = blockIdx.x;
    const token_row<T> of = token_row_of<T>(a, row);
    const int target = token_target_of(a, of, row, threadIdx.x == 0);
    const float lse = token_coef(a, 0, row), ka = token_coef(a, 1, row);
    const float kb = token_coef(a, 2, row), kd = token_coef(a, 3, row);
    for (int64_t i = threadIdx.x; i < a.v; i += GRAD_THREADS) {
        float g = 0.0f;
        if (target >= 0 && of.inside(i))
            g = lce_grad_target(of.at(i), a.scale, lse, ka, kb, i == target ? kd : 0.0f);
        tp_stg((T *)a.grad + row * a.v + i, tp_from_f32<T>(g));
    }
}

static token_args args_of(const tp_call *k) {
    const token_attr *at = (const token_attr *)k->attr;
    const tp_tensor *set = k->in[TOKEN_SET];
    token_args a = {};
    a.logits = k->in[TOKEN_LOGITS]->data;
    a.target = tp_i32(k->in[TOKEN_TARGETS]);
    a.v = tp_dim(k->in[TOKEN_LOGITS], -1);
    if (set) a.set = tp_i32(set), a.words = tp_dim(set, -1);
    a.scale = lce_scale_of(at->softcap, at->temperature > 0 ? at->temperature : 1);
    a.fault = tp_fault_of(k);
    return a;
}

static const char *decline(const tp_call *k) {
    const char *no = tp_numel(k->in[TOKEN_LOGITS]) ? tp_decline_cuda_dense(k) : NULL;
    if (no) return no;
    return tp_dim(k->in[TOKEN_LOGITS], -1) > INT32_MAX || tp_numel(k->in[TOKEN_TARGETS]) > INT32_MAX
               ? "more than 2^31 rows or tokens"
               : tp_decline_cuda_floats(k);
}

static tp_status forward_run(const tp_call *k) {
    token_args a = args_of(k);
    a.logprob = tp_f32(k->out[0]);
    a.entropy = tp_f32(k->out[1]);
    a.lse = tp_f32(k->out[2]);
    const unsigned rows = (unsigned)tp_numel(k->in[TOKEN_TARGETS]);
    TP_BY_FLOAT(k->in[TOKEN_LOGITS]->dtype, T,
                return TP_LAUNCH(k, (token_rows<T>), rows, lce_threads(a.v), 0, a));
}
TP_CUDA_KERNEL(token_logprob_cuda, .decline = decline, .run = forward_run);

static tp_status backward_run(const tp_call *k) {
    token_args a = args_of(k);
    for (int i = 0; i < 4; i++) {
        a.coef[i] = k->in[TOKEN_LSE + i]->data;
        a.coef_bf16[i] = k->in[TOKEN_LSE + i]->dtype == TP_BF16;
    }
    a.grad = k->out[0]->data;
    const unsigned rows = (unsigned)tp_numel(k->in[TOKEN_TARGETS]);
    TP_BY_FLOAT(k->in[TOKEN_LOGITS]->dtype, T,
                return TP_LAUNCH(k, (token_gradients<T>), rows, GRAD_THREADS, 0, a));
}
TP_CUDA_KERNEL(token_logprob_backward_cuda, .decline = decline, .run = backward_run);
