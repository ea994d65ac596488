/* policy_loss on CUDA, a warp for each row. Lanes make what 32 tokens at a time add to the row; the
 * sums take that in the order of the tokens, in double, as on the CPU, so the bits are the CPU's.
 * Rows are added by the tree over samples (ops/linear_cross_entropy/lce_tree.h). */
#include "ops/cuda.h"
#include "ops/linear_cross_entropy/lce_tree_cuda.h"
#include "ops/policy_loss/policy_loss_math.h"

enum { THREADS = 128, ROWS = THREADS / 32 };

typedef struct policy_input { /* element (b,t); NULL: the call has none */
    const void *x;
    int64_t b, t;
} policy_input;

typedef struct policy_args {
    policy_input in[POLICY_DLOSS];
    const void *dloss;
    tp_policy_opts o;
    int64_t B, T;
    void *stats; /* (B,TP_POLICY_STATS) */
    float *loss; /* (B) */
    void *dl, *dh;
} policy_args;

template <typename T>
static __device__ __forceinline__ float policy_value(const policy_input &in, int64_t b, int64_t t) {
    return tp_to_f32(tp_ldg((const T *)in.x + b * in.b + t * in.t));
}

/* Token t; those beyond the row have neither weight nor mask. */
template <typename T>
static __device__ policy_token policy_token_at(const policy_args &a, int64_t b, int64_t t) {
    policy_token x = {};
    if (t >= a.T) return x;
    x.l = policy_value<T>(a.in[POLICY_LOGPROB], b, t);
    x.weight = policy_value<T>(a.in[POLICY_WEIGHT], b, t);
    x.d = a.in[POLICY_OLD].x ? x.l - policy_value<T>(a.in[POLICY_OLD], b, t) : 0.0f;
    x.mask = a.in[POLICY_MASK].x ? policy_value<T>(a.in[POLICY_MASK], b, t) != 0 : x.weight != 0;
    x.has_ref = a.in[POLICY_REF].x != NULL;
    x.has_h = a.in[POLICY_ENTROPY].x != NULL;
    if (x.has_ref) x.ref = policy_value<T>(a.in[POLICY_REF], b, t);
    if (x.has_h) x.h = policy_value<T>(a.in[POLICY_ENTROPY], b, t);
    return x;
}

/* sum plus every lane's x, lane 0 first. */
static __device__ __forceinline__ double policy_add(double sum, float x) {
#pragma unroll 1
    for (int i = 0; i < 32; i++) sum += (double)__shfl_sync(0xffffffffu, x, i);
    return sum;
}

template <typename T> static __device__ policy_row policy_row_at(const policy_args &a, int64_t b) {
    const int lane = threadIdx.x % 32;
    double tokens = 0, sum = 0;
    for (int64_t t = 0; t < a.T; t += 32) {
        policy_token x = policy_token_at<T>(a, b, t + lane);
        tokens += __popc(__ballot_sync(0xffffffffu, x.mask));
        sum = policy_add(sum, x.mask ? x.d : 0.0f);
    }
    return policy_row_of(policy_value<T>(a.in[POLICY_ADVANTAGE], b, 0), tokens, sum);
}

template <typename T> __global__ void __launch_bounds__(THREADS) policy_rows(const policy_args a) {
    const int64_t b = (int64_t)blockIdx.x * ROWS + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (b >= a.B) return;
    const policy_row w = policy_row_at<T>(a, b);
    double sum[TP_POLICY_STATS];
    for (int i = 0; i < TP_POLICY_STATS; i++) sum[i] = 0;
    for (int64_t t = 0; t < a.T; t += 32) {
        float add[TP_POLICY_STATS];
        policy_token x = policy_token_at<T>(a, b, t + lane);
        policy_token_stats(&a.o, &w, &x, add);
#pragma unroll
        for (int i = 0; i < TP_POLICY_DIFFERENCE; i++) sum[i] = policy_add(sum[i], add[i]);
        sum[TP_POLICY_DIFFERENCE] =
            fmax(sum[TP_POLICY_DIFFERENCE], (double)tp_warp_max(add[TP_POLICY_DIFFERENCE]));
    }
    if (lane) return;
    T *stats = (T *)a.stats + b * TP_POLICY_STATS;
#pragma unroll
    for (int i = 0; i < TP_POLICY_STATS; i++) tp_stg(stats + i, tp_from_f32<T>((float)sum[i]));
    tp_stg(a.loss + b, (float)sum[TP_POLICY_LOSS]);
}

template <typename T>
__global__ void __launch_bounds__(THREADS) policy_gradients(const policy_args a) {
    const int64_t b = (int64_t)blockIdx.x * ROWS + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (b >= a.B) return;
    const policy_row w = policy_row_at<T>(a, b);
    const float dloss = tp_to_f32(tp_ldg((const T *)a.dloss));
    const bool together = policy_together(&a.o);
    double all = 0;
    for (int64_t t = 0; t < a.T && together; t += 32) {
        policy_token x = policy_token_at<T>(a, b, t + lane);
        all = policy_add(all, policy_token_grad(&a.o, &w, &x, dloss).row);
    }
    const float each = together ? policy_shared_grad(&w, all, dloss) : 0.0f;
    for (int64_t t = lane; t < a.T; t += 32) {
        policy_token x = policy_token_at<T>(a, b, t);
        policy_grad g = policy_token_grad(&a.o, &w, &x, dloss);
        tp_stg((T *)a.dl + b * a.T + t, tp_from_f32<T>(together && x.mask ? g.dl + each : g.dl));
        tp_stg((T *)a.dh + b * a.T + t, tp_from_f32<T>(g.dh));
    }
}

static policy_args args_of(const tp_call *k) {
    policy_args a = {};
    for (int i = 0; i < POLICY_DLOSS; i++) {
        const tp_tensor *x = i < k->nin ? k->in[i] : NULL;
        if (!x) continue;
        a.in[i].x = x->data;
        a.in[i].b = x->stride[0];
        a.in[i].t = x->ndim > 1 ? x->stride[1] : 0;
    }
    a.o = *(const tp_policy_opts *)k->attr;
    a.B = k->in[POLICY_LOGPROB]->shape[0];
    a.T = k->in[POLICY_LOGPROB]->shape[1];
    return a;
}

static tp_status forward_run(const tp_call *k) {
    policy_args a = args_of(k);
    a.stats = k->out[1]->data;
    a.loss = (float *)k->workspace;
    TP_BY_FLOAT(k->in[0]->dtype, T, {
        tp_status st = TP_LAUNCH(k, (policy_rows<T>), tp_blocks(a.B, ROWS), THREADS, 0, a);
        return st ? st : tp_lce_tree_sum(k, a.loss, a.B, (T *)k->out[0]->data);
    });
}
static size_t forward_workspace(const tp_call *k) {
    return (size_t)k->in[POLICY_LOGPROB]->shape[0] * sizeof(float);
}
TP_CUDA_KERNEL(policy_loss_cuda, .decline = tp_decline_cuda_floats, .run = forward_run,
               .workspace = forward_workspace);

static tp_status backward_run(const tp_call *k) {
    policy_args a = args_of(k);
    a.dloss = k->in[POLICY_DLOSS]->data;
    a.dl = k->out[0]->data;
    a.dh = k->out[1]->data;
    TP_BY_FLOAT(k->in[0]->dtype, T,
                return TP_LAUNCH(k, (policy_gradients<T>), tp_blocks(a.B, ROWS), THREADS, 0, a));
}
TP_CUDA_KERNEL(policy_loss_backward_cuda, .decline = tp_decline_cuda_floats, .run = backward_run);
