/* What attention's CUDA kernels are told: one plain struct from host to device, and the band of
 * keys that positions leave visible. */
#ifndef TP_ATTENTION_CUDA_H
#define TP_ATTENTION_CUDA_H
#include "ops/attention/attention_problem.h"
#include "ops/cuda.h"

constexpr float LOG2E = 1.44269504f, LN2 = 0.693147181f;

/* Query t sees key j by position where lo <= j - t <= hi (and 0 <= j < S). */
typedef struct attention_band {
    int lo, hi;
} attention_band;

/* Rows (b, t, h) of a tensor; the innermost stride is 1 unless a kernel says otherwise. */
typedef struct attention_rows {
    const void *x; /* NULL: absent, zeros */
    int64_t b, t, h, d;
} attention_rows;

/* One number per row, (B,H,T), f32 or bf16. */
typedef struct attention_statistic {
    const void *x; /* NULL: absent, zeros */
    bool bf16;
    int64_t b, h, t;
} attention_statistic;

/* Rows that are written; their innermost stride is 1. */
typedef struct attention_out {
    void *x;
    int64_t b, t, h;
} attention_out;

typedef struct attention_params {
    attention_rows q, k, v;
    void *o;    /* (B,T,H,Dv), dense */
    float *lse; /* (B,H,T), dense */
    int B, T, S, H, Hkv, G, D, Dv;
    bool causal;
    int64_t q_offset, window;
    float scale, softcap;
    const int32_t *segments, *starts;
    int64_t segments_b, segments_t, starts_b;
    /* paged_attention only: k and v are pools of pages, and their b is the way from page to page */
    const int32_t *pages;
    int64_t pages_b, pages_i;
    int page, sinks; /* rows of a page; first keys that no window hides */
} attention_params;

typedef struct attention_backward_params {
    attention_params f; /* its o and lse are not used */
    attention_rows o, d_o;
    attention_statistic lse, dlse;
    attention_out dq, dk, dv; /* shaped like q, k and v */
} attention_backward_params;

static __device__ __forceinline__ float attention_statistic_at(const attention_statistic &s, int b,
                                                               int h, int t) {
    if (!s.x) return 0;
    const int64_t i = b * s.b + h * s.h + t * s.t;
    return s.bf16 ? tp_to_f32(((const tp_bf16 *)s.x)[i]) : ((const float *)s.x)[i];
}

template <typename T>
static __device__ __forceinline__ T *attention_out_row(const attention_out &x, int b, int t,
                                                       int h) {
    return (T *)x.x + b * x.b + t * x.t + h * x.h;
}

/* Where row j of sequence b is, in elements. */
template <bool PAGED>
static __device__ __forceinline__ int64_t attention_row(const attention_params &p,
                                                        const attention_rows &x, int b, int j) {
    if (!PAGED) return b * x.b + j * x.t;
    return p.pages[b * p.pages_b + j / p.page * p.pages_i] * x.b + j % p.page * x.t;
}

static inline TP_HD int attention_clamp(int64_t x, int64_t lo, int64_t hi) {
    return (int)(x < lo ? lo : x > hi ? hi : x);
}

/* Beyond [-T-1, S+T] a bound says all or nothing, wherever it lies. */
static inline TP_HD attention_band attention_band_of(const attention_params *p, int b) {
    int64_t first = p->starts ? p->starts[b * p->starts_b] : p->q_offset;
    attention_band band;
    int64_t least = -(int64_t)p->T - 1, most = (int64_t)p->S + p->T;
    band.lo = attention_clamp(first - p->window + 1, least, most);
    band.hi = attention_clamp(p->causal ? first : most, least, most);
    return band;
}

/* The keys [lo, hi) that some of the queries [t0, t1) see by position. */
static inline TP_HD void attention_keys(attention_band band, int t0, int t1, int S, int *lo,
                                        int *hi) {
    *lo = t0 + band.lo > 0 ? t0 + band.lo : 0;
    *hi = t1 + band.hi < S ? t1 + band.hi : S;
    if (*hi < *lo) *hi = *lo;
}

/* ---- on the host ---------------------------------------------------------------------------- */
static inline attention_rows attention_rows_of(const tp_tensor *x) {
    attention_rows r = {NULL, 0, 0, 0, 0};
    if (!x) return r;
    r.x = x->data, r.b = x->stride[0], r.t = x->stride[1], r.h = x->stride[2], r.d = x->stride[3];
    return r;
}

static inline attention_params attention_params_of(const tp_call *k, const tp_tensor *segments,
                                                   const tp_tensor *starts) {
    attention_problem x = attention_problem_of(k, segments, starts);
    attention_params p = {};
    p.q = attention_rows_of(k->in[0]);
    p.k = attention_rows_of(k->in[1]);
    p.v = attention_rows_of(k->in[2]);
    p.B = (int)x.B, p.T = (int)x.T, p.S = (int)x.S, p.H = (int)x.H, p.Hkv = (int)x.Hkv;
    p.G = (int)x.G, p.D = (int)x.D, p.Dv = (int)x.Dv;
    p.causal = x.causal, p.q_offset = x.q_offset, p.window = x.window;
    p.scale = (float)x.scale, p.softcap = (float)x.softcap;
    if (segments) {
        p.segments = tp_i32(segments);
        p.segments_b = segments->stride[0], p.segments_t = segments->stride[1];
    }
    if (starts) p.starts = tp_i32(starts), p.starts_b = starts->stride[0];
    return p;
}

static inline attention_statistic attention_statistic_of(const tp_tensor *x) {
    attention_statistic s = {NULL, false, 0, 0, 0};
    if (!x) return s;
    s.x = x->data, s.bf16 = x->dtype == TP_BF16;
    s.b = x->stride[0], s.h = x->stride[1], s.t = x->stride[2];
    return s;
}

static inline attention_out attention_out_of(const tp_tensor *x) {
    attention_out r = {x->data, x->stride[0], x->stride[1], x->stride[2]};
    return r;
}

static inline attention_backward_params attention_backward_params_of(const tp_call *k) {
    attention_backward_params p = {};
    p.f = attention_params_of(k, k->in[BACKWARD_SEGMENTS], NULL);
    p.o = attention_rows_of(k->in[BACKWARD_O]);
    p.d_o = attention_rows_of(k->in[BACKWARD_DO]);
    p.lse = attention_statistic_of(k->in[BACKWARD_LSE]);
    p.dlse = attention_statistic_of(k->in[BACKWARD_DLSE]);
    p.dq = attention_out_of(k->out[0]);
    p.dk = attention_out_of(k->out[1]), p.dv = attention_out_of(k->out[2]);
    return p;
}

/* Sizes that every kernel here takes: 32-bit positions and grids. */
static inline const char *attention_decline_sizes(const tp_call *k) {
    for (int i = 0; i < 3; i++)
        for (int d = 0; d < 4; d++)
            if (k->in[i]->shape[d] > 1 << 29) return "a dimension above 2^29";
    int64_t rows = k->in[0]->shape[0] * k->in[0]->shape[1] * k->in[0]->shape[2];
    int64_t keys = k->in[1]->shape[0] * k->in[1]->shape[1] * k->in[1]->shape[2];
    return rows > INT32_MAX || keys > INT32_MAX ? "more than 2^31 rows" : NULL;
}
#endif
