/* The row kernels of layernorm and rmsnorm, forward and backward: rmsnorm is the same without the
 * mean. Included by their *_cpu.c only, which define NORM_CENTRE as 1 (layernorm) or 0 (rmsnorm).
 *
 * A row is read from memory once: the passes over it after the first hit the L1 cache. Sums
 * run in the lanes of lanes.h. */
#ifndef TP_NORM_ROWS_H
#define TP_NORM_ROWS_H
#include "ops/layernorm/lanes.h"
#include "ops/layernorm/leaves.h"
#include "ops/layernorm/norm_math.h"
#include "ops/layernorm/norm_op.h"

enum { NORM_GRAIN = 1 << 14 }; /* values per chunk of rows */

/* ---- forward -------------------------------------------------------------------------------- */
typedef struct norm_forward {
    int64_t channels;
    float eps, inverse_channels;
    const float *x, *residual, *w, *b; /* residual, w, b may be NULL */
    float *sum, *y, *mean, *rstd;      /* sum NULL without residual, mean NULL without centre */
} norm_forward;

static inline void norm_forward_row(const norm_forward *a, int64_t row) {
    int64_t channels = a->channels, at = row * channels;
    const float *x = a->x + at;
    v16 sums[LANES_CHAINS], squares[LANES_CHAINS];
    for (int j = 0; j < LANES_CHAINS; j++) sums[j] = squares[j] = v16_zero();
    if (a->residual) { /* the only pass that reads x and residual; the rest reads sum */
        const float *residual = a->residual + at;
        float *sum = a->sum + at;
#define ADD(i, n, j)                                                                               \
    lanes_store(sum + (i), v16_add(lanes_load(x + (i), n), lanes_load(residual + (i), n)), n)
        LANES_EACH(channels, ADD);
#undef ADD
        x = sum;
    }
    float mean = 0;
    if (NORM_CENTRE) {
#define SUM(i, n, j) sums[j] = v16_add(sums[j], lanes_load(x + (i), n))
        LANES_EACH(channels, SUM);
#undef SUM
        mean = lanes_fold(sums) * a->inverse_channels;
    }
    /* deviations beyond the row's end must be 0, not -mean: hence the load of n means */
    float means[TP_LANES];
    v16_store(means, v16_set1(mean));
#define SQUARE(i, n, j)                                                                            \
    do {                                                                                           \
        v16 d = lanes_load(x + (i), n);                                                            \
        if (NORM_CENTRE) d = v16_sub(d, lanes_load(means, n));                                     \
        squares[j] = v16_fma(d, d, squares[j]);                                                    \
    } while (0)
    LANES_EACH(channels, SQUARE);
#undef SQUARE
    float rstd = norm_rstd(lanes_fold(squares), a->inverse_channels, a->eps);
    if (NORM_CENTRE) a->mean[row] = mean;
    a->rstd[row] = rstd;
    v16 mu = v16_set1(mean), r = v16_set1(rstd);
    float *y = a->y + at;
#define WRITE(i, n, j)                                                                             \
    do {                                                                                           \
        v16 d = lanes_load(x + (i), n);                                                            \
        if (NORM_CENTRE) d = v16_sub(d, mu);                                                       \
        d = v16_mul(d, r);                                                                         \
        v16 bias = a->b ? lanes_load(a->b + (i), n) : v16_zero();                                  \
        lanes_store(y + (i),                                                                       \
                    a->w ? v16_fma(d, lanes_load(a->w + (i), n), bias) : v16_add(d, bias), n);     \
    } while (0)
    LANES_EACH(channels, WRITE);
#undef WRITE
}

/* ---- backward ------------------------------------------------------------------------------- */
typedef struct norm_backward {
    int64_t channels, rows, leaves, rows_each;
    float inverse_channels;
    const float *dy, *x, *w, *mean, *rstd, *dsum, *dmean, *drstd; /* x and rstd are present */
    float *dx, *dw, *db;                                          /* dw, db may be NULL */
    float *leaf; /* (leaves, 2, channels): sums of dy*n, then of dy */
} norm_backward;

/* n = (x - mean) * rstd */
static inline v16 norm_normalised(const float *x, int n, v16 mean, v16 rstd) {
    v16 d = lanes_load(x, n);
    return v16_mul(NORM_CENTRE ? v16_sub(d, mean) : d, rstd);
}

/* dx of one row; adds to the leaf's sums too where leaf_w and leaf_b are given. */
static inline void norm_backward_row(const norm_backward *a, int64_t row, float *leaf_w,
                                     float *leaf_b) {
    int64_t channels = a->channels, at = row * channels;
    const float *x = a->x + at, *dy = a->dy ? a->dy + at : NULL, *w = a->w;
    v16 mean = v16_set1(NORM_CENTRE ? a->mean[row] : 0.0f), rstd = v16_set1(a->rstd[row]);
    v16 s1[LANES_CHAINS], s2[LANES_CHAINS];
    for (int j = 0; j < LANES_CHAINS; j++) s1[j] = s2[j] = v16_zero();
#define SUMS(i, n, j)                                                                              \
    do {                                                                                           \
        v16 nx = norm_normalised(x + (i), n, mean, rstd), g = lanes_load(dy + (i), n);             \
        v16 dn = w ? v16_mul(g, lanes_load(w + (i), n)) : g;                                       \
        if (NORM_CENTRE) s1[j] = v16_add(s1[j], dn);                                               \
        s2[j] = v16_fma(dn, nx, s2[j]);                                                            \
        if (leaf_w) lanes_store(leaf_w + (i), v16_fma(g, nx, lanes_load(leaf_w + (i), n)), n);     \
        if (leaf_b) lanes_store(leaf_b + (i), v16_add(lanes_load(leaf_b + (i), n), g), n);         \
    } while (0)
    if (dy) LANES_EACH(channels, SUMS);
#undef SUMS
    float r = a->rstd[row], c0 = 0;
    float c1 = norm_c1(lanes_fold(s2), r, a->drstd ? a->drstd + row : NULL, a->inverse_channels);
    if (NORM_CENTRE)
        c0 = norm_c0(lanes_fold(s1), r, a->dmean ? a->dmean + row : NULL, a->inverse_channels);
    v16 minus_c0 = v16_set1(-c0), by_n = v16_set1(c1);
    const float *dsum = a->dsum ? a->dsum + at : NULL;
    float *dx = a->dx + at;
    /* dx = rstd*dn - c0 - n*c1 + dsum */
#define WRITE(i, n, j)                                                                             \
    do {                                                                                           \
        v16 nx = norm_normalised(x + (i), n, mean, rstd), d = minus_c0;                            \
        if (dy) {                                                                                  \
            v16 g = lanes_load(dy + (i), n);                                                       \
            d = v16_fma(w ? v16_mul(g, lanes_load(w + (i), n)) : g, rstd, d);                      \
        }                                                                                          \
        d = v16_fnma(nx, by_n, d);                                                                 \
        lanes_store(dx + (i), dsum ? v16_add(d, lanes_load(dsum + (i), n)) : d, n);                \
    } while (0)
    LANES_EACH(channels, WRITE);
#undef WRITE
}

/* The sums of all leaves for channels begin..end-1, with the arithmetic of SUMS above: the way to
 * use more threads than there are leaves. */
static inline void norm_leaves_columns(const norm_backward *a, int64_t begin, int64_t end) {
    for (int64_t s = 0; s < a->leaves; s++) {
        float *leaf = a->leaf + s * 2 * a->channels;
        for (int64_t at = begin; at < end; at += TP_LANES) {
            int n = end - at < TP_LANES ? (int)(end - at) : TP_LANES;
            v16 sum_w = v16_zero(), sum_b = v16_zero();
            for (int64_t t = 0; a->dy && t < a->rows_each; t++) {
                int64_t row = s * a->rows_each + t, i = row * a->channels + at;
                v16 mean = v16_set1(NORM_CENTRE ? a->mean[row] : 0.0f),
                    rstd = v16_set1(a->rstd[row]);
                v16 g = lanes_load(a->dy + i, n);
                sum_w = v16_fma(g, norm_normalised(a->x + i, n, mean, rstd), sum_w);
                sum_b = v16_add(sum_b, g);
            }
            lanes_store(leaf + at, sum_w, n);
            lanes_store(leaf + a->channels + at, sum_b, n);
        }
    }
}

/* The tree over leaves, for channels begin..end-1, and the result to dw and db. */
static inline void norm_leaves_finish(const norm_backward *a, int64_t begin, int64_t end) {
    float *out[2] = {a->dw, a->db};
    for (int i = 0; i < 2; i++) {
        if (!out[i]) continue;
        if (!a->leaves) { /* no sample at all */
            memset(out[i] + begin, 0, (size_t)(end - begin) * sizeof(float));
            continue;
        }
        float *leaf = a->leaf + i * a->channels;
        tp_leaves_sum(leaf, a->leaves, 2 * a->channels, begin, end);
        for (int64_t j = begin; j < end; j++) out[i][j] = leaf[j];
    }
}

/* ---- sharing rows out ----------------------------------------------------------------------- */
static inline const float *norm_data(const tp_tensor *t) { return t ? tp_f32(t) : NULL; }
static inline int64_t norm_grain(int64_t channels) { return NORM_GRAIN / channels + 1; }

static void norm_forward_rows(void *arg, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) norm_forward_row(arg, row);
}

static tp_status norm_forward_run(const tp_call *k, norm_forward *a) {
    const tp_tensor *x = k->in[0];
    a->x = tp_f32(x);
    a->channels = x->shape[x->ndim - 1];
    a->inverse_channels = 1.0f / (float)a->channels;
    a->eps = (float)((const tp_norm_attr *)k->attr)->eps;
    tp_parallel_for(k->ctx, tp_numel(x) / a->channels, norm_grain(a->channels), norm_forward_rows,
                    a);
    return TP_OK;
}

static void norm_backward_leaves(void *arg, int64_t begin, int64_t end) {
    const norm_backward *a = arg;
    for (int64_t s = begin; s < end; s++) {
        float *w = a->leaf + s * 2 * a->channels, *b = w + a->channels;
        memset(w, 0, 2 * (size_t)a->channels * sizeof *w);
        for (int64_t t = 0; t < a->rows_each; t++)
            norm_backward_row(a, s * a->rows_each + t, a->dw ? w : NULL, a->db ? b : NULL);
    }
}
static void norm_backward_rows(void *arg, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) norm_backward_row(arg, row, NULL, NULL);
}
static void norm_backward_columns(void *arg, int64_t begin, int64_t end) {
    norm_leaves_columns(arg, begin, end);
}
static void norm_backward_finish(void *arg, int64_t begin, int64_t end) {
    norm_leaves_finish(arg, begin, end);
}

static inline size_t norm_backward_workspace(const tp_call *k) {
    const tp_norm_backward_attr *attr = k->attr;
    int64_t each, leaves = tp_leaves(k->in[1], &each);
    if (!attr->dw && !attr->db) return 0;
    return (size_t)(leaves * tp_dim(k->in[1], -1)) * 2 * sizeof(float);
}

/* One thread per leaf and one pass over memory where that keeps all threads busy; otherwise rows
 * first and then columns of the leaves. Either way gives the same bits. */
static tp_status norm_backward_run(const tp_call *k, norm_backward *a) {
    const tp_norm_backward_attr *attr = k->attr;
    const tp_tensor *x = k->in[1];
    int64_t threads = tp_threads(k->ctx);
    a->dy = norm_data(k->in[0]);
    a->x = tp_f32(x);
    a->w = norm_data(k->in[2]);
    a->dx = tp_f32(k->out[0]);
    a->dw = attr->dw ? tp_f32(k->out[1]) : NULL;
    a->db = attr->db ? tp_f32(k->out[attr->dw ? 2 : 1]) : NULL;
    a->leaf = k->workspace;
    a->channels = x->shape[x->ndim - 1];
    a->inverse_channels = 1.0f / (float)a->channels;
    a->rows = tp_numel(x) / a->channels;
    a->leaves = tp_leaves(x, &a->rows_each);
    bool sums = a->dw || a->db;
    if (sums && (a->leaves % threads == 0 || a->leaves >= 4 * threads)) {
        tp_parallel_for(k->ctx, a->leaves, 1, norm_backward_leaves, a);
    } else {
        tp_parallel_for(k->ctx, a->rows, norm_grain(a->channels), norm_backward_rows, a);
        if (sums) tp_parallel_for(k->ctx, a->channels, LANES_STEP, norm_backward_columns, a);
    }
    if (sums) tp_parallel_for(k->ctx, a->channels, 1024, norm_backward_finish, a);
    return TP_OK;
}
#endif
