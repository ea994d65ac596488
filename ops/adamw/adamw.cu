/* adamw_ on CUDA: one pass over p, m, v and the gradient, four neighbouring elements a thread;
 * memory sets the pace. The updates of all parameters go together, some 60 in a launch: alone, many
 * of them would take less time than it takes to launch them. */
#include "core/rng.h"
#include "ops/adamw/adamw_math.h"
#include "ops/convert.h"
#include "ops/cuda.h"
#include "ops/philox_math.h"

extern "C" const tp_op op_adamw_;
enum { ADAMW_THREADS = 256, ADAMW_EACH = 4 };

/* Up to four elements from p[i]; those outside 0..n-1 are 0. WHOLE: all are inside, and aligned. */
template <typename T, bool WHOLE>
static __device__ __forceinline__ tp_vec<T, 4> load4(const T *p, int64_t i, int64_t n) {
    if (WHOLE) return tp_load<T, 4>(p + i);
    tp_vec<T, 4> x = {};
    for (int e = 0; e < 4; e++)
        if (i + e >= 0 && i + e < n) x.v[e] = tp_ldg(p + i + e);
    return x;
}
template <typename T, bool WHOLE>
static __device__ __forceinline__ void store4(T *p, int64_t i, int64_t n, const tp_vec<T, 4> &x) {
    if (WHOLE)
        tp_store<T, 4>(p + i, x);
    else
        for (int e = 0; e < 4; e++)
            if (i + e >= 0 && i + e < n) tp_stg(p + i + e, x.v[e]);
}

/* ---- f32 moments ---------------------------------------------------------------------------- */
typedef struct adamw_f32 {
    float *p, *m, *v;
    const float *g; /* NULL: zeros */
    int64_t n;
    float decay; /* of the step's constants the one that parameters differ in */
    bool aligned;
} adamw_f32;
enum { ADAMW_TENSORS = 40 }; /* of a launch: every card takes 4 KB of arguments */
typedef struct adamw_many {  /* tensor i has blocks [first[i], first[i+1]) */
    adamw_step step;
    int count;
    unsigned first[ADAMW_TENSORS + 1];
    adamw_f32 tensor[ADAMW_TENSORS];
} adamw_many;
static_assert(sizeof(adamw_many) <= 4096, "arguments of a kernel");

/* The tensor of a block: the last whose first is not above it. */
static __device__ __forceinline__ int tensor_of(const unsigned *first, int count, unsigned block) {
    int lo = 0;
    for (int n = count; n > 1;) { /* it is among lo..lo+n-1 */
        int half = n / 2;
        if (first[lo + half] <= block)
            lo += half, n -= half;
        else
            n = half;
    }
    return lo;
}

template <bool WHOLE>
static __device__ __forceinline__ void move4(const adamw_f32 &a, const adamw_step &step,
                                             int64_t i) {
    tp_vec<float, 4> p = load4<float, WHOLE>(a.p, i, a.n), m = load4<float, WHOLE>(a.m, i, a.n);
    tp_vec<float, 4> v = load4<float, WHOLE>(a.v, i, a.n), g = {};
    if (a.g) g = load4<float, WHOLE>(a.g, i, a.n);
    for (int e = 0; e < 4; e++) p.v[e] = adamw_update(p.v[e], &m.v[e], &v.v[e], g.v[e], &step);
    store4<float, WHOLE>(a.p, i, a.n, p);
    store4<float, WHOLE>(a.m, i, a.n, m);
    store4<float, WHOLE>(a.v, i, a.n, v);
}

__global__ void __launch_bounds__(ADAMW_THREADS)
    adamw_f32_moments(const __grid_constant__ adamw_many all) {
    int t = tensor_of(all.first, all.count, blockIdx.x);
    const adamw_f32 a = all.tensor[t];
    adamw_step step = all.step;
    step.decay = a.decay;
    int64_t block = blockIdx.x - all.first[t];
    int64_t i = (block * ADAMW_THREADS + threadIdx.x) * ADAMW_EACH;
    if (a.aligned && i + ADAMW_EACH <= a.n)
        move4<true>(a, step, i);
    else
        move4<false>(a, step, i);
}

static const char *decline(const tp_call *k) {
    for (int i = 0; i < 4; i++)
        if (k->in[i] && k->in[i]->dtype != TP_F32) return "p, m or v is not f32";
    return tp_decline_cuda_dense(k);
}

/* An update as it waits for the others. Those of one optimizer's step have the same constants. */
typedef struct adamw_item {
    adamw_f32 tensor;
    adamw_step step;
} adamw_item;

static bool same_step(const adamw_step &a, const adamw_step &b) {
    return a.scale == b.scale && a.b1 == b.b1 && a.b2 == b.b2 && a.rate == b.rate &&
           a.v_scale == b.v_scale && a.epsilon == b.epsilon;
}

static tp_status launch_many(tp_ctx *c, const void *items, int n) {
    const adamw_item *item = (const adamw_item *)items;
    tp_call k = {};
    k.ctx = c;
    k.op = &op_adamw_;
    for (int i = 0; i < n;) {
        adamw_many a = {};
        a.step = item[i].step;
        for (; i < n && a.count < ADAMW_TENSORS && same_step(a.step, item[i].step); i++) {
            a.tensor[a.count++] = item[i].tensor;
            a.first[a.count] =
                a.first[a.count - 1] + tp_blocks(item[i].tensor.n, ADAMW_THREADS * ADAMW_EACH);
        }
        tp_status st = TP_LAUNCH(&k, adamw_f32_moments, a.first[a.count], ADAMW_THREADS, 0, a);
        if (st) return st;
    }
    return TP_OK;
}

static tp_status run(const tp_call *k) {
    adamw_item a = {};
    a.tensor.p = tp_f32(k->in[0]);
    a.tensor.m = tp_f32(k->in[1]);
    a.tensor.v = tp_f32(k->in[2]);
    a.tensor.g = k->in[3] ? tp_f32(k->in[3]) : NULL;
    a.tensor.n = tp_numel(k->in[0]);
    a.step = adamw_step_of((const tp_adamw_opts *)k->attr);
    a.tensor.decay = a.step.decay;
    a.tensor.aligned = tp_aligned(a.tensor.p, 16) && tp_aligned(a.tensor.m, 16) &&
                       tp_aligned(a.tensor.v, 16) && tp_aligned(a.tensor.g, 16);
    return a.tensor.n ? tp_cuda_gather(k->ctx, launch_many, &a, sizeof a) : TP_OK;
}
TP_CUDA_KERNEL(adamw_cuda, .decline = decline, .run = run);

/* ---- bf16 moments --------------------------------------------------------------------------- */
typedef tp_vec<uint32_t, 4> words4; /* random, of four elements */
typedef struct adamw_bf16 {
    float *p;
    uint16_t *m, *v;
    const float *g;
    int64_t n, offset;
    uint64_t counter;
    float decay;
    bool aligned;
} adamw_bf16;
typedef struct adamw_many16 {
    adamw_step step;
    uint32_t key0, key1;
    int count;
    unsigned first[ADAMW_TENSORS + 1];
    adamw_bf16 tensor[ADAMW_TENSORS];
} adamw_many16;
static_assert(sizeof(adamw_many16) <= 4096, "arguments of a kernel");

template <bool WHOLE>
static __device__ __forceinline__ void move4(const adamw_bf16 &a, const adamw_step &step, int64_t i,
                                             const words4 &word) {
    tp_vec<float, 4> p = load4<float, WHOLE>(a.p, i, a.n), g = {};
    tp_vec<uint16_t, 4> m = load4<uint16_t, WHOLE>(a.m, i, a.n);
    tp_vec<uint16_t, 4> v = load4<uint16_t, WHOLE>(a.v, i, a.n);
    if (a.g) g = load4<float, WHOLE>(a.g, i, a.n);
    for (int e = 0; e < 4; e++) {
        float m1 = tp_bf16_to_f32(m.v[e]), v1 = tp_bf16_to_f32(v.v[e]);
        p.v[e] = adamw_update(p.v[e], &m1, &v1, g.v[e], &step);
        m.v[e] = tp_f32_to_bf16_stochastic(m1, word.v[e] & 0xffff);
        v.v[e] = tp_f32_to_bf16_stochastic(v1, word.v[e] >> 16);
    }
    store4<float, WHOLE>(a.p, i, a.n, p);
    store4<uint16_t, WHOLE>(a.m, i, a.n, m);
    store4<uint16_t, WHOLE>(a.v, i, a.n, v);
}

/* A warp per block of 128 elements (adamw_math.h): lane l works out counter l, whose words are
 * those of elements l, 32+l, 64+l and 96+l, and moves elements 4l to 4l+3. */
__global__ void __launch_bounds__(ADAMW_THREADS)
    adamw_bf16_moments(const __grid_constant__ adamw_many16 all) {
    TP_SHARED(words4, words, ADAMW_THREADS);
    int t = tensor_of(all.first, all.count, blockIdx.x), lane = threadIdx.x % 32;
    const adamw_bf16 a = all.tensor[t];
    adamw_step step = all.step;
    step.decay = a.decay;
    uint32_t *mine = (uint32_t *)&words[threadIdx.x - lane];
    int64_t thread = (int64_t)(blockIdx.x - all.first[t]) * ADAMW_THREADS + threadIdx.x;
    int64_t block = a.offset / ADAMW_BLOCK + thread / 32;
    uint64_t counter = (uint64_t)(block * 32 + lane);
    uint32_t w[4] = {(uint32_t)counter, (uint32_t)(counter >> 32), (uint32_t)a.counter,
                     (uint32_t)(a.counter >> 32)};
    tp_philox_rounds(all.key0, all.key1, w);
    for (int e = 0; e < 4; e++) tp_sts(mine + 32 * e + lane, w[e]);
    __syncwarp();
    words4 word = words[threadIdx.x];
    int64_t i = block * ADAMW_BLOCK + 4 * lane - a.offset;
    if (a.aligned && i >= 0 && i + ADAMW_EACH <= a.n)
        move4<true>(a, step, i, word);
    else if (i < a.n)
        move4<false>(a, step, i, word);
}

typedef struct adamw_item16 {
    adamw_bf16 tensor;
    adamw_step step;
} adamw_item16;

static tp_status launch_many16(tp_ctx *c, const void *items, int n) {
    const adamw_item16 *item = (const adamw_item16 *)items;
    tp_call k = {};
    k.ctx = c;
    k.op = &op_adamw_;
    for (int i = 0; i < n;) {
        adamw_many16 a = {};
        a.step = item[i].step;
        a.key0 = (uint32_t)c->seed;
        a.key1 = tp_philox_key(c->seed, TP_RNG_ROUND);
        for (; i < n && a.count < ADAMW_TENSORS && same_step(a.step, item[i].step); i++) {
            const adamw_bf16 *t = &item[i].tensor;
            int64_t blocks = (t->offset + t->n - 1) / ADAMW_BLOCK - t->offset / ADAMW_BLOCK + 1;
            a.tensor[a.count++] = *t;
            a.first[a.count] = a.first[a.count - 1] + tp_blocks(blocks, ADAMW_THREADS / 32);
        }
        tp_status st = TP_LAUNCH(&k, adamw_bf16_moments, a.first[a.count], ADAMW_THREADS, 0, a);
        if (st) return st;
    }
    return TP_OK;
}

static const char *decline16(const tp_call *k) {
    if (!((const tp_adamw_opts *)k->attr)->bf16_state) return "m and v are not bf16";
    for (int i = 0; i < 4; i++) {
        if (k->in[i] && !tp_contiguous(k->in[i])) return "an input is strided";
        if (i % 3 == 0 && k->in[i] && k->in[i]->dtype != TP_F32) return "p is not f32";
    }
    return NULL;
}

static tp_status run16(const tp_call *k) {
    const tp_adamw_opts *o = (const tp_adamw_opts *)k->attr;
    adamw_item16 a = {};
    a.tensor.p = tp_f32(k->in[0]);
    a.tensor.m = (uint16_t *)k->in[1]->data;
    a.tensor.v = (uint16_t *)k->in[2]->data;
    a.tensor.g = k->in[3] ? tp_f32(k->in[3]) : NULL;
    a.tensor.n = tp_numel(k->in[0]);
    a.tensor.offset = o->offset;
    a.tensor.counter = adamw_counter(o);
    a.step = adamw_step_of(o);
    a.tensor.decay = a.step.decay;
    a.tensor.aligned = o->offset % ADAMW_EACH == 0 && tp_aligned(a.tensor.p, 16) &&
                       tp_aligned(a.tensor.g, 16) && tp_aligned(a.tensor.m, 8) &&
                       tp_aligned(a.tensor.v, 8);
    return a.tensor.n ? tp_cuda_gather(k->ctx, launch_many16, &a, sizeof a) : TP_OK;
}
TP_CUDA_KERNEL(adamw_bf16_cuda, .decline = decline16, .run = run16);
