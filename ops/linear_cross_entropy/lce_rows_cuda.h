/* The kernels over rows of logits: one block per row, 16 bytes per access.
 *
 * A row's sums run over its entries in an order that V and the block's size decide: each thread
 * takes eight neighbours at a time by the online softmax of Milakov and Gimelshein (arXiv
 * 1805.02867), then warps and blocks merge by the same rule, which is symmetric. */
#ifndef TP_LCE_ROWS_CUDA_H
#define TP_LCE_ROWS_CUDA_H
#include "ops/cuda.h"
#include "ops/linear_cross_entropy/lce_math.h"

typedef enum lce_job {
    LCE_JOB_STATS, /* loss and statistics */
    LCE_JOB_TRAIN, /* and then the gradient of the logits, in place, and its coefficients */
    LCE_JOB_GRAD,  /* the gradient from coefficients that are known */
} lce_job;

typedef struct lce_rows_args { /* pointers are those of the first row */
    float *logits;             /* raw; the gradient, of type T, begins where its row does */
    int64_t ld, v, v0;         /* floats from row to row; entries; number of the first entry */
    const int32_t *target;     /* -1: the token counts for nothing */
    float4 *coef;              /* lse, a, b, d; TRAIN: x is the token's weight before */
    lce_scale scale;
    double z_loss;
    float *loss, *logprob, *entropy, *lse; /* loss: TRAIN: times the weight; lse may be NULL */
} lce_rows_args;

static __device__ __forceinline__ float lce_scaled(float raw, lce_scale q) {
    return q.cap > 0.0f ? lce_capped(raw, q) : raw * q.temperature_inv;
}

typedef struct lce_eight {
    float v[8];
} lce_eight;
/* Entries i..i+7 of a row (rows are padded to that), scaled. */
static __device__ __forceinline__ lce_eight lce_load(const float *s, int64_t i, lce_scale q) {
    lce_eight x;
#pragma unroll
    for (int h = 0; h < 8; h += 4) {
        tp_vec<float, 4> half = tp_load<float, 4>(s + i + h);
#pragma unroll
        for (int e = 0; e < 4; e++) x.v[h + e] = lce_scaled(half.v[e], q);
    }
    return x;
}

/* Below every logit that is worth the name, yet finite: nothing minus nothing is 0, not NaN. */
#define LCE_LOWEST (-1e30f)

/* e^x through the hardware's 2^x. A row has two of these for each of its entries: by tp_expf they,
 * not memory, would set the pace. x log2(e) is off by half an ulp, which is much only where e^x is
 * next to nothing. */
static __device__ __forceinline__ float lce_exp(float x) { return tp_ex2(x * 1.44269504f); }

/* Entries of both; neither argument comes first, so that all lanes get the same bits. */
static __device__ __forceinline__ void lce_merge(lce_row *r, float m, float sum, float es) {
    float top = fmaxf(r->m, m), d0 = r->m - top, d1 = m - top;
    float w0 = lce_exp(d0), w1 = lce_exp(d1);
    r->es = w0 * fmaf(d0, r->sum, r->es) + w1 * fmaf(d1, sum, es);
    r->sum = w0 * r->sum + w1 * sum;
    r->m = top;
}
static __device__ __forceinline__ void lce_warp_merge(lce_row *r) {
    for (int bit = 16; bit; bit >>= 1)
        lce_merge(r, __shfl_xor_sync(0xffffffffu, r->m, bit),
                  __shfl_xor_sync(0xffffffffu, r->sum, bit),
                  __shfl_xor_sync(0xffffffffu, r->es, bit));
}

/* ALL: count is 8. */
template <bool ALL>
static __device__ __forceinline__ void lce_take_some(lce_row *r, const lce_eight &x, int count) {
    float top = LCE_LOWEST;
#pragma unroll
    for (int e = 0; e < 8; e++)
        if (ALL || e < count) top = fmaxf(top, x.v[e]);
    if (top > r->m) { /* soon rare */
        float d = r->m - top, w = lce_exp(d);
        r->es = w * fmaf(d, r->sum, r->es);
        r->sum *= w;
        r->m = top;
    }
#pragma unroll
    for (int e = 0; e < 8; e++) {
        float d = x.v[e] - r->m, w = lce_exp(d);
        r->sum += ALL || e < count ? w : 0.0f;
        r->es += ALL || e < count ? w * d : 0.0f;
    }
}
static __device__ __forceinline__ void lce_take(lce_row *r, const lce_eight &x, int count) {
    if (count == 8)
        lce_take_some<true>(r, x, 8);
    else
        lce_take_some<false>(r, x, count);
}

/* Where a row's scaled entries come from: of(i) answers entries i..i+7, of.at(i) one. */
typedef struct lce_padded_row {
    const float *s;
    lce_scale q;
    __device__ __forceinline__ lce_eight operator()(int64_t i) const { return lce_load(s, i, q); }
    __device__ __forceinline__ float at(int64_t i) const { return lce_scaled(tp_ldg(s + i), q); }
} lce_padded_row;

/* The whole row; every thread gets it, after every thread has read what it needs of the row. The
 * bits follow from the entries, v and the size of the block. */
template <typename ROW>
static __device__ lce_row lce_take_row(const ROW &of, int64_t v, int target) {
    TP_SHARED(float, part, 3 * 32);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    lce_row r;
    r.m = LCE_LOWEST;
    r.sum = r.es = 0.0f;
    for (int64_t i = 8 * (int64_t)threadIdx.x; i < v; i += 8 * (int64_t)blockDim.x)
        lce_take(&r, of(i), v - i < 8 ? (int)(v - i) : 8);
    r.target = of.at(target);
    lce_warp_merge(&r);
    if (lane == 0) {
        part[3 * warp] = r.m;
        part[3 * warp + 1] = r.sum;
        part[3 * warp + 2] = r.es;
    }
    __syncthreads();
    r.m = LCE_LOWEST;
    r.sum = r.es = 0.0f;
    if (lane < warps) {
        r.m = part[3 * lane];
        r.sum = part[3 * lane + 1];
        r.es = part[3 * lane + 2];
    }
    lce_warp_merge(&r);
    return r;
}

/* d/d s of a scaled logit that is not the target's, by lce_exp. */
static __device__ __forceinline__ float lce_grad_plain(float s, float4 k) {
    return lce_grad_scaled(lce_exp(s - k.x), s, k.y, k.z);
}

/* d/d raw of eight, with k.w at entry `here` (none if outside 0..7). */
static __device__ __forceinline__ void lce_grad_eight(lce_eight *x, lce_scale q, float4 k,
                                                      int64_t here) {
    lce_eight g;
    bool target = here >= 0 && here < 8;
#pragma unroll
    for (int e = 0; e < 8; e++) g.v[e] = lce_grad_plain(x->v[e], k);
    if (target) /* seldom */
#pragma unroll
        for (int e = 0; e < 8; e++) g.v[e] += e == here ? k.w : 0.0f;
#pragma unroll
    for (int e = 0; e < 8; e++) /* without a cap the slope is just that */
        x->v[e] = g.v[e] * (q.cap > 0.0f ? lce_slope(x->v[e], q) : q.temperature_inv);
}

/* T over f32, in place. bf16 entries are narrower: what a turn of the block writes was read in this
 * turn or an earlier one, hence the barrier between reading and writing. */
template <typename T>
static __device__ void lce_grad_in_place(float *s, int64_t v, lce_scale q, float4 k,
                                         int64_t target) {
    enum { V = tp_width<T>::N };
    T *g = (T *)s;
    for (int64_t i0 = 0; i0 < v; i0 += 8 * (int64_t)blockDim.x) {
        int64_t i = i0 + 8 * (int64_t)threadIdx.x;
        lce_eight x;
        if (i < v) x = lce_load(s, i, q);
        if (sizeof(T) != sizeof(float)) __syncthreads();
        if (i >= v) continue;
        lce_grad_eight(&x, q, k, target - i);
#pragma unroll
        for (int h = 0; h < 8; h += V) {
            tp_vec<T, V> y;
#pragma unroll
            for (int e = 0; e < V; e++) y.v[e] = tp_from_f32<T>(x.v[h + e]);
            tp_store<T, V>(g + i + h, y);
        }
    }
}

template <typename T> static __device__ void lce_zero_row(T *g, int64_t v) {
    enum { V = tp_width<T>::N };
    tp_vec<T, V> zero;
#pragma unroll
    for (int e = 0; e < V; e++) zero.v[e] = tp_from_f32<T>(0.0f);
    for (int64_t i = V * (int64_t)threadIdx.x; i < v; i += V * (int64_t)blockDim.x)
        tp_store<T, V>(g + i, zero);
}

/* One thread, who `reports`, writes the token down; answers the coefficients of its gradient to
 * all. TRAIN: weight is the token's, which everybody has read from coef before. */
template <lce_job JOB>
static __device__ __forceinline__ float4 lce_finish(const lce_rows_args &a, int64_t row, lce_row r,
                                                    bool counts, float weight, bool reports) {
    lce_stats s;
    s.logprob = s.entropy = s.lse = 0.0f;
    if (counts) s = lce_row_end(&r);
    float loss = counts ? lce_loss(s, a.z_loss) : 0.0f;
    float4 k = make_float4(0, 0, 0, 0);
    if (JOB == LCE_JOB_TRAIN) {
        if (counts) {
            lce_coef q = lce_coef_of(s.lse, s.entropy, a.z_loss, weight, 0, 0, 0);
            k = make_float4(s.lse, (float)q.a, (float)q.b, (float)q.d);
            loss *= weight;
        }
        if (reports) tp_stg(&a.coef[row], k);
    }
    if (reports) {
        tp_stg(a.loss + row, loss);
        tp_stg(a.logprob + row, s.logprob);
        tp_stg(a.entropy + row, s.entropy);
        if (a.lse) tp_stg(a.lse + row, s.lse);
    }
    return k;
}

template <typename T, lce_job JOB>
__global__ void __launch_bounds__(512) lce_rows(lce_rows_args a) {
    int64_t row = blockIdx.x;
    float *s = a.logits + row * a.ld;
    int target = tp_ldg(a.target + row);
    float4 k;
    if (JOB == LCE_JOB_GRAD) {
        k = tp_ldg(a.coef + row);
    } else {
        lce_row r;
        r.m = r.sum = r.es = r.target = 0.0f;
        const lce_padded_row of = {s, a.scale};
        if (target >= 0) r = lce_take_row(of, a.v, target);
        const float weight = JOB == LCE_JOB_TRAIN ? tp_ldg(&a.coef[row].x) : 0.0f;
        if (JOB == LCE_JOB_TRAIN) __syncthreads(); /* everybody has read it */
        k = lce_finish<JOB>(a, row, r, target >= 0, weight, threadIdx.x == 0);
    }
    if (JOB == LCE_JOB_STATS) return;
    if (target < 0) {
        lce_zero_row<T>((T *)s, a.v);
        return;
    }
    lce_grad_in_place<T>(s, a.v, a.scale, k, (int64_t)target - a.v0);
}

/* A function of the number of entries only: it decides the order of a row's sums. */
static inline unsigned lce_threads(int64_t v) { return v <= 1024 ? 128 : v <= 8192 ? 256 : 512; }

template <lce_job JOB>
static inline tp_status lce_rows_run(const tp_call *k, int64_t rows, const lce_rows_args &a) {
    TP_BY_FLOAT(k->in[0]->dtype, T,
                return TP_LAUNCH(k, (lce_rows<T, JOB>), (unsigned)rows, lce_threads(a.v), 0, a));
}
#endif
