/* adamw_ on CUDA: one pass over p, m, v and the gradient, four neighbouring elements a thread;
 * memory sets the pace. */
#include "core/rng.h"
#include "ops/adamw/adamw_math.h"
#include "ops/convert.h"
#include "ops/philox_cuda.h"

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
    adamw_step step;
} adamw_f32;

template <bool WHOLE> static __device__ __forceinline__ void move4(const adamw_f32 &a, int64_t i) {
    tp_vec<float, 4> p = load4<float, WHOLE>(a.p, i, a.n), m = load4<float, WHOLE>(a.m, i, a.n);
    tp_vec<float, 4> v = load4<float, WHOLE>(a.v, i, a.n), g = {};
    if (a.g) g = load4<float, WHOLE>(a.g, i, a.n);
    for (int e = 0; e < 4; e++) p.v[e] = adamw_update(p.v[e], &m.v[e], &v.v[e], g.v[e], &a.step);
    store4<float, WHOLE>(a.p, i, a.n, p);
    store4<float, WHOLE>(a.m, i, a.n, m);
    store4<float, WHOLE>(a.v, i, a.n, v);
}

__global__ void __launch_bounds__(ADAMW_THREADS) adamw_f32_moments(adamw_f32 a, bool aligned) {
    int64_t i = ((int64_t)blockIdx.x * ADAMW_THREADS + threadIdx.x) * ADAMW_EACH;
    if (aligned && i + ADAMW_EACH <= a.n)
        move4<true>(a, i);
    else
        move4<false>(a, i);
}

static const char *decline(const tp_call *k) {
    for (int i = 0; i < 4; i++)
        if (k->in[i] && k->in[i]->dtype != TP_F32) return "p, m or v is not f32";
    return tp_decline_cuda_dense(k);
}

static tp_status run(const tp_call *k) {
    adamw_f32 a = {};
    a.p = tp_f32(k->in[0]);
    a.m = tp_f32(k->in[1]);
    a.v = tp_f32(k->in[2]);
    a.g = k->in[3] ? tp_f32(k->in[3]) : NULL;
    a.n = tp_numel(k->in[0]);
    a.step = adamw_step_of((const tp_adamw_opts *)k->attr);
    bool aligned =
        tp_aligned(a.p, 16) && tp_aligned(a.m, 16) && tp_aligned(a.v, 16) && tp_aligned(a.g, 16);
    return TP_LAUNCH(k, adamw_f32_moments, tp_blocks(a.n, ADAMW_THREADS * ADAMW_EACH),
                     ADAMW_THREADS, 0, a, aligned);
}
TP_CUDA_KERNEL(adamw_cuda, .decline = decline, .run = run);

/* ---- bf16 moments --------------------------------------------------------------------------- */
typedef tp_vec<uint32_t, 4> words4; /* random, of four elements */
typedef struct adamw_bf16 {
    float *p;
    uint16_t *m, *v;
    const float *g;
    int64_t n, offset, first; /* first: the block that element 0 lies in */
    adamw_step step;
    uint64_t seed, counter;
    uint32_t key1;
} adamw_bf16;

template <bool WHOLE>
static __device__ __forceinline__ void move4(const adamw_bf16 &a, int64_t i, const words4 &word) {
    tp_vec<float, 4> p = load4<float, WHOLE>(a.p, i, a.n), g = {};
    tp_vec<uint16_t, 4> m = load4<uint16_t, WHOLE>(a.m, i, a.n);
    tp_vec<uint16_t, 4> v = load4<uint16_t, WHOLE>(a.v, i, a.n);
    if (a.g) g = load4<float, WHOLE>(a.g, i, a.n);
    for (int e = 0; e < 4; e++) {
        float m1 = tp_bf16_to_f32(m.v[e]), v1 = tp_bf16_to_f32(v.v[e]);
        p.v[e] = adamw_update(p.v[e], &m1, &v1, g.v[e], &a.step);
        m.v[e] = tp_f32_to_bf16_stochastic(m1, word.v[e] & 0xffff);
        v.v[e] = tp_f32_to_bf16_stochastic(v1, word.v[e] >> 16);
    }
    store4<float, WHOLE>(a.p, i, a.n, p);
    store4<uint16_t, WHOLE>(a.m, i, a.n, m);
    store4<uint16_t, WHOLE>(a.v, i, a.n, v);
}

/* A warp per block of 128 elements (adamw_math.h): lane l works out counter l, whose words are
 * those of elements l, 32+l, 64+l and 96+l, and moves elements 4l to 4l+3. */
__global__ void __launch_bounds__(ADAMW_THREADS) adamw_bf16_moments(adamw_bf16 a, bool aligned) {
    TP_SHARED(words4, words, ADAMW_THREADS);
    int lane = threadIdx.x % 32;
    uint32_t *mine = (uint32_t *)&words[threadIdx.x - lane], w[4];
    int64_t block = a.first + ((int64_t)blockIdx.x * ADAMW_THREADS + threadIdx.x) / 32;
    tp_philox_cuda(w, a.seed, a.key1, a.counter, (uint64_t)(block * 32 + lane));
    for (int e = 0; e < 4; e++) tp_sts(mine + 32 * e + lane, w[e]);
    __syncwarp();
    words4 word = words[threadIdx.x];
    int64_t i = block * ADAMW_BLOCK + 4 * lane - a.offset;
    if (aligned && i >= 0 && i + ADAMW_EACH <= a.n)
        move4<true>(a, i, word);
    else if (i < a.n)
        move4<false>(a, i, word);
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
    adamw_bf16 a = {};
    a.p = tp_f32(k->in[0]);
    a.m = (uint16_t *)k->in[1]->data;
    a.v = (uint16_t *)k->in[2]->data;
    a.g = k->in[3] ? tp_f32(k->in[3]) : NULL;
    a.n = tp_numel(k->in[0]);
    a.offset = o->offset;
    a.first = o->offset / ADAMW_BLOCK;
    a.step = adamw_step_of(o);
    a.seed = k->ctx->seed;
    a.counter = adamw_counter(o);
    a.key1 = tp_philox_key(a.seed, TP_RNG_ROUND);
    bool aligned = a.offset % ADAMW_EACH == 0 && tp_aligned(a.p, 16) && tp_aligned(a.g, 16) &&
                   tp_aligned(a.m, 8) && tp_aligned(a.v, 8);
    int64_t blocks = a.n ? (a.offset + a.n - 1) / ADAMW_BLOCK - a.first + 1 : 0;
    return TP_LAUNCH(k, adamw_bf16_moments, tp_blocks(blocks, ADAMW_THREADS / 32), ADAMW_THREADS, 0,
                     a, aligned);
}
TP_CUDA_KERNEL(adamw_bf16_cuda, .decline = decline16, .run = run16);
