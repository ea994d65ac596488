/* Sums in the CPU's order on CUDA: a chain over what lies within a sample, then a binary tree over
 * samples, so that an aligned power-of-two part of them is a subtree (ops/layernorm/leaves.h). For
 * sum, and for the gradients of parameters that every sample shares. */
#ifndef TP_REDUCE_CUDA_H
#define TP_REDUCE_CUDA_H
#include "ops/cuda.h"
#include "ops/reduce.h"

enum { TP_SUM_THREADS = 128, TP_SUM_AHEAD = 8 };

/* ---- chains --------------------------------------------------------------------------------- */
typedef struct tp_chain_args {
    const void *x;
    void *y;
    tp_dims kept, chain;            /* of x; kept.n sums of chain.n values for each sample */
    int64_t samples, sample_stride; /* of x */
} tp_chain_args;

/* y[s*kept.n + u] = ((0 + x[u,0]) + x[u,1]) + …  of sample s; a thread per sum. */
template <typename I, typename O>
__global__ void __launch_bounds__(TP_SUM_THREADS) tp_sum_chain(tp_chain_args a) {
    int64_t i = (int64_t)blockIdx.x * TP_SUM_THREADS + threadIdx.x;
    if (i >= a.kept.n * a.samples) return;
    int64_t s = i / a.kept.n, u = i - s * a.kept.n;
    const I *x = (const I *)a.x + s * a.sample_stride + tp_dims_offset(&a.kept, u);
    int last = a.chain.ndim - 1;
    int64_t inner = a.chain.shape[last], step = a.chain.stride[last];
    float sum = 0;
    for (int64_t m = 0; m < a.chain.n; m += inner) {
        const I *p = x + tp_dims_offset(&a.chain, m);
        int64_t j = 0;
        for (; j + TP_SUM_AHEAD <= inner; j += TP_SUM_AHEAD, p += TP_SUM_AHEAD * step) {
            I next[TP_SUM_AHEAD]; /* loads that wait together */
#pragma unroll
            for (int e = 0; e < TP_SUM_AHEAD; e++) next[e] = tp_ldg(p + e * step);
#pragma unroll
            for (int e = 0; e < TP_SUM_AHEAD; e++) sum += tp_to_f32(next[e]);
        }
        for (; j < inner; j++, p += step) sum += tp_to_f32(tp_ldg(p));
    }
    tp_stg((O *)a.y + i, tp_from_f32<O>(sum));
}

template <typename I, typename O>
static inline tp_status tp_sum_chains(const tp_call *k, const tp_chain_args &a) {
    return TP_LAUNCH(k, (tp_sum_chain<I, O>), tp_blocks(a.kept.n * a.samples, TP_SUM_THREADS),
                     TP_SUM_THREADS, 0, a);
}

/* ---- the tree over samples ------------------------------------------------------------------ */
/* A binary counter: level l holds the sum of an aligned 2^l samples where bit l of pushed is set.
 */
enum { TP_COUNTER_LEVELS = 40 };
typedef struct tp_counter {
    float level[TP_COUNTER_LEVELS];
    int64_t pushed;
} tp_counter;

/* x: the sum of the next 2^from samples; pushed is a multiple of that. */
static __device__ __forceinline__ void tp_counter_push(tp_counter *c, float x, int from) {
    bool carry = true;
#pragma unroll /* a level chosen by a variable would live in memory, not in a register */
    for (int l = 0; l < TP_COUNTER_LEVELS; l++) {
        if (l < from || !carry) continue;
        carry = (c->pushed >> l) & 1;
        if (carry)
            x = c->level[l] + x;
        else
            c->level[l] = x;
    }
    c->pushed += (int64_t)1 << from;
}

/* What is left is merged from the right; 0 if nothing was pushed. */
static __device__ __forceinline__ float tp_counter_end(const tp_counter *c) {
    float x = 0;
    bool some = false;
#pragma unroll
    for (int l = 0; l < TP_COUNTER_LEVELS; l++) {
        if (!((c->pushed >> l) & 1)) continue;
        x = some ? c->level[l] + x : c->level[l];
        some = true;
    }
    return x;
}

/* y[u] = the tree's sum over s of x[s*stride + u], u < units; a thread per sum. */
template <typename O>
__global__ void __launch_bounds__(TP_SUM_THREADS)
    tp_sum_tree(const float *x, O *y, int64_t units, int64_t samples, int64_t stride) {
    int64_t u = (int64_t)blockIdx.x * TP_SUM_THREADS + threadIdx.x, s = 0;
    if (u >= units) return;
    tp_counter c;
    c.pushed = 0;
    for (const float *p = x + u; s + 8 <= samples; s += 8, p += 8 * stride) {
        float v[8];
#pragma unroll
        for (int e = 0; e < 8; e++) v[e] = tp_ldg(p + e * stride);
        tp_counter_push(&c, ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])), 3);
    }
    for (; s < samples; s++) tp_counter_push(&c, tp_ldg(x + s * stride + u), 0);
    tp_stg(y + u, tp_from_f32<O>(tp_counter_end(&c)));
}

template <typename O>
static inline tp_status tp_sum_trees(const tp_call *k, const float *x, O *y, int64_t units,
                                     int64_t samples, int64_t stride) {
    return TP_LAUNCH(k, (tp_sum_tree<O>), tp_blocks(units, TP_SUM_THREADS), TP_SUM_THREADS, 0, x, y,
                     units, samples, stride);
}
#endif
