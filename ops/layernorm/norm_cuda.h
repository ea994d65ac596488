/* The row kernels of layernorm and rmsnorm on CUDA, forward and backward: rmsnorm is the same
 * without the mean. Included by their .cu files. A row is in registers (rows_cuda.h): the mean and
 * then the deviations from it are two passes there, and one over memory.
 *
 * The gradients of w and b: a block walks NORM_SEGMENT rows of one sample and sums them in
 * registers; then segments are summed in a chain and samples in the tree of leaves.h. */
#ifndef TP_NORM_CUDA_H
#define TP_NORM_CUDA_H
#include "ops/layernorm/leaves.h"
#include "ops/layernorm/norm_math.h"
#include "ops/layernorm/norm_op.h"
#include "ops/layernorm/rows_cuda.h"
#include "ops/reduce_cuda.h"

enum { NORM_SEGMENT = 32 };

/* ---- forward -------------------------------------------------------------------------------- */
typedef struct norm_forward_args {
    tp_rows r;
    float eps, inverse_channels;
    tp_row_in x, residual, w, b; /* all but x may be absent */
    void *sum, *y;               /* sum NULL without residual */
    float *mean, *rstd;
} norm_forward_args;

template <typename T, bool CENTRE, int K, bool VECTOR>
__global__ void __launch_bounds__(TP_ROW_THREADS) norm_forward(norm_forward_args a) {
    enum { V = tp_width<T>::N };
    int64_t row = tp_row_here(), channels = a.r.channels;
    if (row >= a.r.rows) return;
    const T *px = tp_row_at<T>(a.x, row), *pr = tp_row_at<T>(a.residual, row);
    float x[K ? K : 1][V], mean = 0, sum = 0, squares = 0;
    auto load = [&](int j, int64_t i, int n) {
        float res[V];
        tp_row_load<T, VECTOR>(x[j], px, a.x.step, i, n);
        if (a.residual.p) tp_row_load<T, VECTOR>(res, pr, a.residual.step, i, n);
#pragma unroll
        for (int e = 0; e < V; e++) /* the sum as it will be read again: rounded */
            if (a.residual.p) x[j][e] = tp_to_f32(tp_from_f32<T>(x[j][e] + res[e]));
    };
    tp_row_each<T, K, VECTOR>(channels, [&](int j, int64_t i, int n) {
        load(j, i, n);
        if (a.sum) tp_row_store<T, VECTOR>((T *)a.sum + row * channels, x[j], i, n);
        if (CENTRE) TP_ROW_FOR(e, n) sum += x[j][e];
    });
    if (CENTRE) mean = tp_block_sum(sum) * a.inverse_channels;
    tp_row_each<T, K, VECTOR>(channels, [&](int j, int64_t i, int n) {
        if (!K) load(j, i, n);
        TP_ROW_FOR(e, n) {
            float d = CENTRE ? x[j][e] - mean : x[j][e];
            squares = fmaf(d, d, squares);
        }
    });
    float rstd = norm_rstd(tp_block_sum(squares), a.inverse_channels, a.eps);
    if (threadIdx.x == 0) {
        if (CENTRE) tp_stg(a.mean + row, mean);
        tp_stg(a.rstd + row, rstd);
    }
    tp_row_each<T, K, VECTOR>(channels, [&](int j, int64_t i, int n) {
        float y[V], w[V], b[V];
        if (!K) load(j, i, n);
        if (a.w.p) tp_row_load<T, VECTOR>(w, (const T *)a.w.p, a.w.step, i, n);
        if (a.b.p) tp_row_load<T, VECTOR>(b, (const T *)a.b.p, a.b.step, i, n);
        TP_ROW_FOR(e, n) {
            float d = (CENTRE ? x[j][e] - mean : x[j][e]) * rstd, bias = a.b.p ? b[e] : 0.0f;
            y[e] = a.w.p ? fmaf(d, w[e], bias) : d + bias;
        }
        tp_row_store<T, VECTOR>((T *)a.y + row * channels, y, i, n);
    });
}

template <typename T, bool CENTRE>
static inline tp_status norm_forward_typed(const tp_call *k, const norm_forward_args &a) {
    TP_ROWS_LAUNCH(k, a.r, tp_rows_blocks(a.r), 0, norm_forward, (T, CENTRE), a);
}

/* Inputs of k: x, residual where add, w, b of layernorm; outputs: sum where add, y, mean of
 * layernorm, rstd. */
template <bool CENTRE> static inline tp_status norm_forward_run(const tp_call *k, bool add) {
    int o = 0, i = add ? 2 : 1;
    norm_forward_args a = {};
    a.r = tp_rows_of(k->in[0]);
    a.inverse_channels = 1.0f / (float)a.r.channels;
    a.eps = (float)((const tp_norm_attr *)k->attr)->eps;
    a.x = tp_row_of(k->in[0]);
    a.residual = tp_row_of(add ? k->in[1] : NULL);
    a.w = tp_row_of(k->in[i]);
    a.b = tp_row_of(CENTRE ? k->in[i + 1] : NULL);
    for (int j = 0; j < k->nin; j++) tp_rows_with(&a.r, k->in[j]);
    for (int j = 0; j <= (int)add; j++) tp_rows_with(&a.r, k->out[j]);
    if (add) a.sum = k->out[o++]->data;
    a.y = k->out[o++]->data;
    if (CENTRE) a.mean = tp_f32(k->out[o++]);
    a.rstd = tp_f32(k->out[o]);
    TP_BY_FLOAT(k->in[0]->dtype, T, return (norm_forward_typed<T, CENTRE>(k, a)));
}

/* ---- backward ------------------------------------------------------------------------------- */
/* A number per row, in f32 or bf16; p NULL: 0. */
typedef struct norm_stat {
    const void *p;
    bool bf16;
    tp_dims rows;
} norm_stat;

static inline norm_stat norm_stat_of(const tp_tensor *t) {
    norm_stat s = {};
    tp_dims_push(&s.rows, 1, 0);
    if (!t) return s;
    s.p = t->data;
    s.bf16 = t->dtype == TP_BF16;
    for (int d = 0; d < t->ndim; d++) tp_dims_push(&s.rows, t->shape[d], t->stride[d]);
    return s;
}
static __device__ __forceinline__ float norm_stat_at(const norm_stat &s, int64_t row) {
    if (!s.p) return 0;
    int64_t at = tp_dims_offset(&s.rows, row);
    return s.bf16 ? tp_to_f32(tp_ldg((const tp_bf16 *)s.p + at)) : tp_ldg((const float *)s.p + at);
}

typedef struct norm_backward_args {
    tp_rows r;
    float inverse_channels;
    int64_t rows_each, segments; /* of a sample */
    tp_row_in dy, x, w, dsum;    /* all but x may be absent */
    norm_stat mean, rstd, dmean, drstd;
    void *dx;
    bool dw, db;
    float *partial; /* (samples, segments, 1 or 2, C): sums of dy*n, then of dy; NULL: not wanted */
} norm_backward_args;

/* p[i..i+n-1] += x, in shared memory or not. */
template <bool VECTOR, int V>
static __device__ __forceinline__ void norm_add_to(float *p, bool shared, const float *x, int64_t i,
                                                   int n) {
#pragma unroll
    for (int e = 0; e < V; e++) {
        if (!VECTOR && e >= n) continue;
        if (shared)
            tp_sts(p + i + e, tp_lds(p + i + e) + x[e]);
        else
            tp_stg(p + i + e, tp_ldg(p + i + e) + x[e]);
    }
}

/* A thread's vectors of a row that begins at p, if any; K = 0: none. As words: halves of them would
 * be put together one by one where a load may not happen. */
typedef tp_vec<uint32_t, 4> norm_words;
template <typename T, int K>
static __device__ __forceinline__ void norm_fetch(norm_words (&x)[K ? K : 1], const T *p,
                                                  int64_t channels) {
    enum { V = tp_width<T>::N };
#pragma unroll
    for (int j = 0; j < K; j++) {
        unsigned i = (j * blockDim.x + threadIdx.x) * V; /* K vectors a thread: it fits */
        x[j] = {};
        if (p && i < (unsigned)channels) x[j] = tp_load<uint32_t, 4>((const uint32_t *)(p + i));
    }
}
/* x[0..n-1] = channels i..i+n-1, of the vector that was fetched or, with K = 0, from memory. */
template <typename T, int K, bool VECTOR>
static __device__ __forceinline__ void norm_take(float *x, const norm_words &fetched, const T *p,
                                                 int64_t step, int64_t i, int n) {
    if (K) {
        tp_vec<T, tp_width<T>::N> v;
        memcpy(&v, &fetched, 16);
#pragma unroll
        for (int e = 0; e < tp_width<T>::N; e++) x[e] = tp_to_f32(v.v[e]);
    } else {
        tp_row_load<T, VECTOR>(x, p, step, i, n);
    }
}

/* A block per segment. Shared memory, where rows lie side by side: (side, parts, C). */
template <typename T, bool CENTRE, int K, bool VECTOR>
__global__ void __launch_bounds__(TP_ROW_THREADS, 1) norm_backward(norm_backward_args a) {
    enum { V = tp_width<T>::N, PARTS = CENTRE ? 2 : 1 };
    TP_SHARED_DYNAMIC(bytes);
    int64_t channels = a.r.channels, sample = blockIdx.x / a.segments;
    int64_t first = (blockIdx.x - sample * a.segments) * NORM_SEGMENT, last = first + NORM_SEGMENT;
    if (last > a.rows_each) last = a.rows_each;
    bool side = blockDim.y > 1;
    float *partial = a.partial ? a.partial + (int64_t)blockIdx.x * PARTS * channels : NULL,
          *sums = partial;
    if (side) sums = (float *)bytes + threadIdx.y * PARTS * channels;
    float dw[K ? K : 1][V], db[K ? K : 1][V];
    if (K) {
#pragma unroll
        for (int j = 0; j < K; j++)
#pragma unroll
            for (int e = 0; e < V; e++) dw[j][e] = db[j][e] = 0;
    } else if (partial) {
        tp_row_each<T, K, VECTOR>(channels, [&](int, int64_t i, int n) {
            for (int p = 0; p < PARTS; p++) TP_ROW_FOR(e, n) {
                    if (side)
                        tp_sts(sums + p * channels + i + e, 0.0f);
                    else
                        tp_stg(sums + p * channels + i + e, 0.0f);
                }
        });
    }
    for (int64_t t = first + threadIdx.y; t < last; t += blockDim.y) {
        int64_t row = sample * a.rows_each + t;
        const T *px = tp_row_at<T>(a.x, row), *pdy = tp_row_at<T>(a.dy, row);
        const T *pds = tp_row_at<T>(a.dsum, row);
        /* All that the row needs is under way at once, and stays as it came: half the registers. */
        norm_words all_x[K ? K : 1], all_dy[K ? K : 1], all_ds[K ? K : 1];
        norm_fetch<T, K>(all_x, px, channels);
        norm_fetch<T, K>(all_dy, a.dy.p ? pdy : NULL, channels);
        float mean = CENTRE ? norm_stat_at(a.mean, row) : 0, rstd = norm_stat_at(a.rstd, row);
        float sum_dn = 0, sum_dn_n = 0;
        auto load = [&](int j, int64_t i, int n, float *nx, float *g, float *w) {
            norm_take<T, K, VECTOR>(nx, all_x[j], px, a.x.step, i, n);
            if (K) { /* what is absent is 0 or 1 while it is packed: fewer selects */
                norm_words one;
                for (int e = 0; e < 4; e++) one.v[e] = sizeof(T) == 2 ? 0x3f803f80 : 0x3f800000;
                if (a.w.p) one = tp_load<uint32_t, 4>((const uint32_t *)((const T *)a.w.p + i));
                norm_take<T, K, VECTOR>(w, one, NULL, 0, i, n);
                norm_take<T, K, VECTOR>(g, all_dy[j], NULL, 0, i, n);
            } else {
                if (a.w.p) tp_row_load<T, VECTOR>(w, (const T *)a.w.p, a.w.step, i, n);
                if (a.dy.p) tp_row_load<T, VECTOR>(g, pdy, a.dy.step, i, n);
            }
            TP_ROW_FOR(e, n) {
                nx[e] = (CENTRE ? nx[e] - mean : nx[e]) * rstd;
                if (!K && !a.w.p) w[e] = 1;
                if (!K && !a.dy.p) g[e] = 0;
            }
        };
        tp_row_each<T, K, VECTOR>(channels, [&](int j, int64_t i, int n) {
            float nx[V], g[V], w[V];
            load(j, i, n, nx, g, w);
            TP_ROW_FOR(e, n) {
                float dn = g[e] * w[e];
                if (CENTRE) sum_dn += dn;
                sum_dn_n = fmaf(dn, nx[e], sum_dn_n);
                if (K) {
                    dw[j][e] = fmaf(g[e], nx[e], dw[j][e]);
                    if (CENTRE) db[j][e] += g[e];
                } else {
                    dw[j][e] = g[e] * nx[e];
                }
            }
            if (!K && partial) {
                norm_add_to<VECTOR, V>(sums, side, dw[j], i, n);
                if (CENTRE) norm_add_to<VECTOR, V>(sums + channels, side, g, i, n);
            }
        });
        norm_fetch<T, K>(all_ds, a.dsum.p ? pds : NULL, channels); /* comes during the sums */
#pragma unroll
        for (int j = 0; j < K; j++) {
            tp_forget(&all_x[j]);
            tp_forget(&all_dy[j]);
        }
        float s1 = CENTRE ? tp_block_sum(sum_dn) : 0, s2 = tp_block_sum(sum_dn_n), c0 = 0, c1;
        float dm = norm_stat_at(a.dmean, row), dr = norm_stat_at(a.drstd, row);
        c1 = a.drstd.p ? norm_c1(s2, rstd, &dr, a.inverse_channels)
                       : norm_c1(s2, rstd, NULL, a.inverse_channels);
        if (CENTRE)
            c0 = a.dmean.p ? norm_c0(s1, rstd, &dm, a.inverse_channels)
                           : norm_c0(s1, rstd, NULL, a.inverse_channels);
        tp_row_each<T, K, VECTOR>(channels, [&](int j, int64_t i, int n) {
            float nx[V], g[V], w[V], ds[V], dx[V];
            load(j, i, n, nx, g, w);
            if (a.dsum.p) norm_take<T, K, VECTOR>(ds, all_ds[j], pds, a.dsum.step, i, n);
            TP_ROW_FOR(e, n) {
                float dn = g[e] * w[e];
                dx[e] = fmaf(-nx[e], c1, fmaf(dn, rstd, -c0));
                if (a.dsum.p) dx[e] = tp_to_f32(tp_from_f32<T>(dx[e])) + ds[e]; /* as add would */
            }
            tp_row_store<T, VECTOR>((T *)a.dx + row * channels, dx, i, n);
        });
    }
    if (!partial) return;
    if (K)
        tp_row_each<T, K, VECTOR>(channels, [&](int j, int64_t i, int) {
#pragma unroll
            for (int e = 0; e < V; e++) {
                if (side) {
                    tp_sts(sums + i + e, dw[j][e]);
                    if (CENTRE) tp_sts(sums + channels + i + e, db[j][e]);
                } else {
                    tp_stg(sums + i + e, dw[j][e]);
                    if (CENTRE) tp_stg(sums + channels + i + e, db[j][e]);
                }
            }
        });
    if (!side) return;
    __syncthreads();
    for (int64_t i = threadIdx.y * blockDim.x + threadIdx.x; i < PARTS * channels;
         i += blockDim.x * blockDim.y) {
        float sum = 0;
        for (unsigned y = 0; y < blockDim.y; y++)
            sum += tp_lds((const float *)bytes + y * PARTS * channels + i);
        tp_stg(partial + i, sum);
    }
}

template <typename T, bool CENTRE>
static inline tp_status norm_backward_typed(const tp_call *k, const norm_backward_args &a,
                                            int64_t blocks) {
    size_t shared = 16; /* never none: the kernel names it */
    if (a.r.side > 1 && a.partial)
        shared = (size_t)(a.r.side * a.r.channels) * (CENTRE ? 2 : 1) * sizeof(float);
    TP_ROWS_LAUNCH(k, a.r, (unsigned)blocks, shared, norm_backward, (T, CENTRE), a);
}

/* How many segments a sample has. */
static inline int64_t norm_segments(const tp_tensor *x, int64_t *leaves, int64_t *rows_each) {
    *leaves = tp_leaves(x, rows_each);
    return (*rows_each + NORM_SEGMENT - 1) / NORM_SEGMENT;
}
/* parts: 2 for layernorm (dw, db), 1 for rmsnorm. Room for partial, then for the samples' sums. */
static inline size_t norm_backward_workspace(const tp_call *k, int parts) {
    const tp_norm_backward_attr *attr = (const tp_norm_backward_attr *)k->attr;
    int64_t leaves, each, segments = norm_segments(k->in[1], &leaves, &each);
    int64_t width = parts * tp_dim(k->in[1], -1), sums = segments > 1 ? leaves : 0;
    return attr->dw || attr->db ? (size_t)((leaves * segments + sums) * width) * sizeof(float) : 0;
}

/* dw and db from the partial sums. */
template <bool CENTRE>
static inline tp_status norm_finish(const tp_call *k, const norm_backward_args &a, int64_t leaves) {
    int64_t channels = a.r.channels, width = (CENTRE ? 2 : 1) * channels;
    const float *sums = a.partial;
    tp_status st = TP_OK;
    if (a.segments > 1) {
        tp_chain_args c = {};
        float *to = a.partial + leaves * a.segments * width;
        c.x = a.partial, c.y = to;
        tp_dims_push(&c.kept, width, 1);
        tp_dims_push(&c.chain, a.segments, width);
        c.samples = leaves, c.sample_stride = a.segments * width;
        if ((st = tp_sum_chains<float, float>(k, c))) return st;
        sums = to;
    }
    if (!a.segments) leaves = 0; /* no rows at all */
    if (a.dw) st = tp_sum_trees<float>(k, sums, tp_f32(k->out[1]), channels, leaves, width);
    if (a.db && !st)
        st = tp_sum_trees<float>(k, sums + channels, tp_f32(k->out[a.dw ? 2 : 1]), channels, leaves,
                                 width);
    return st;
}

/* a has the operands. */
template <bool CENTRE>
static inline tp_status norm_backward_run(const tp_call *k, norm_backward_args *a) {
    const tp_norm_backward_attr *attr = (const tp_norm_backward_attr *)k->attr;
    int64_t leaves;
    a->r = tp_rows_of(k->in[1]);
    a->inverse_channels = 1.0f / (float)a->r.channels;
    a->segments = norm_segments(k->in[1], &leaves, &a->rows_each);
    a->dx = k->out[0]->data;
    a->dw = attr->dw, a->db = attr->db;
    a->partial = a->dw || a->db ? (float *)k->workspace : NULL;
    for (int i = 0; i < k->nin; i++) /* not the statistics */
        if (i == 2 || (k->in[i] && k->in[i]->ndim == k->in[1]->ndim)) tp_rows_with(&a->r, k->in[i]);
    tp_rows_with(&a->r, k->out[0]);
    tp_status st = TP_OK;
    TP_BY_FLOAT(k->in[1]->dtype, T, {
        st = norm_backward_typed<T, CENTRE>(k, *a, leaves * a->segments);
        if (!st && (a->dw || a->db)) st = norm_finish<CENTRE>(k, *a, leaves);
    });
    return st;
}
#endif
