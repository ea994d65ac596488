/* linear_cross_entropy on CUDA: logits by products (ops/matmul/gemm_cuda.h), a kernel over their
 * rows (lce_rows_cuda.h; on Hopper the product does that work itself, lce_sm90.h), and the products
 * that make gradients of them. lce_plan_cuda.h says how a call is cut and why; this file walks the
 * pieces. */
#include "ops/broadcast.h"
#include "ops/cuda.h"
#include "ops/linear_cross_entropy/lce_sm90.h"
#include "ops/linear_cross_entropy/lce_tree_cuda.h"

enum { THREADS = 256 };

/* ---- per token, before ---------------------------------------------------------------------- */
enum { IN_TARGET, IN_FLOAT }; /* the tokens' inputs: targets, then up to four floats */
typedef struct token_args {
    tp_walk walk;
    const int32_t *target;
    const void *from[4];
    bool bf16[4];
    int count; /* floats that are given */
    int64_t n, v, ignore;
    tp_fault fault;
    int32_t *to_target;
    float4 *to; /* NULL: not wanted; x is 1 where none is given */
} token_args;

static __device__ __forceinline__ float float_at(const void *p, bool bf16, int64_t i) {
    return bf16 ? tp_to_f32(tp_ldg((const tp_bf16 *)p + i)) : tp_ldg((const float *)p + i);
}

/* Targets are checked here: a wrong one counts for nothing, and the next sync fails. */
__global__ void lce_tokens(token_args a) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, at[5] = {0};
    if (i >= a.n) return;
    int64_t rest = i;
    for (int d = a.walk.ndim - 1; d >= 0; d--) {
        int64_t next = d ? rest / a.walk.shape[d] : 0, x = rest - next * a.walk.shape[d];
#pragma unroll
        for (int j = 0; j < 5; j++) at[j] += x * a.walk.stride[j][d];
        rest = next;
    }
    int64_t target = tp_ldg(a.target + at[IN_TARGET]);
    bool inside = target >= 0 && target < a.v;
    if (!inside && target != a.ignore) tp_report(a.fault, i);
    tp_stg(a.to_target + i, inside && target != a.ignore ? (int32_t)target : -1);
    if (!a.to) return;
    float x[4] = {1, 0, 0, 0};
#pragma unroll
    for (int j = 0; j < 4; j++)
        if (j < a.count) x[j] = float_at(a.from[j], a.bf16[j], at[IN_FLOAT + j]);
    tp_stg(a.to + i, make_float4(x[0], x[1], x[2], x[3]));
}

/* in: what the op has of floats per token from input `first` on. */
static tp_status tokens_run(const tp_call *k, const lce_plan *p, int first) {
    tp_call f = *k; /* the walk of the tokens' inputs alone */
    token_args a = {};
    f.nin = 1;
    f.in[0] = k->in[LCE_TARGETS];
    for (int i = first; i < k->nin && k->in[i]; i++) {
        a.from[a.count] = k->in[i]->data;
        a.bf16[a.count++] = k->in[i]->dtype == TP_BF16;
        f.in[f.nin++] = k->in[i];
    }
    a.walk = tp_walk_of(&f, k->in[LCE_TARGETS]);
    a.target = (const int32_t *)k->in[LCE_TARGETS]->data;
    a.n = p->d.n;
    a.v = p->d.v;
    a.ignore = p->d.ignore;
    a.fault = tp_fault_of(k);
    a.to_target = p->target;
    a.to = (float4 *)p->coef;
    return TP_LAUNCH(k, lce_tokens, tp_blocks(a.n, THREADS), THREADS, 0, a);
}

/* ---- products ------------------------------------------------------------------------------- */
static tp_cuda_matrix matrix(const void *base, tp_dtype t, int64_t first, int64_t row, int64_t col,
                             int64_t batch) {
    tp_cuda_matrix m = {(char *)base + first * (int64_t)tp_dtype_size(t), t, row, col, batch};
    return m;
}

/* Raw logits of tokens row0.. and entries v0..v0+nv-1. */
static tp_status logits_run(const tp_call *k, const lce_plan *p, int64_t row0, int64_t rows,
                            int64_t v0, int64_t nv, float *to, int64_t ld) {
    const lce_dims *d = &p->d;
    const tp_tensor *x = k->in[LCE_X], *w = k->in[LCE_W];
    tp_cuda_gemm g = {};
    g.batch = 1;
    g.m = rows;
    g.n = nv;
    g.k = d->c;
    g.like_n = d->v;
    g.a = matrix(x->data, x->dtype, row0 * d->c, d->c, 1, 0);
    g.b = matrix(w->data, w->dtype, v0 * d->w_vs, d->w_cs, d->w_vs, 0);
    g.c = matrix(to, TP_F32, 0, ld, 1, 0);
    return tp_cuda_gemm_run(k, &g);
}

static __device__ __forceinline__ float4 four_at(const float *p) {
    return tp_ldg((const float4 *)p);
}
static __device__ __forceinline__ float4 plus(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
/* to[i..i+3] of n, whole where that is aligned. */
template <typename T>
static __device__ __forceinline__ void put_four(T *to, int64_t i, int64_t n, float4 x) {
    tp_vec<T, 4> y = {
        {tp_from_f32<T>(x.x), tp_from_f32<T>(x.y), tp_from_f32<T>(x.z), tp_from_f32<T>(x.w)}};
    if (i + 4 <= n && (uintptr_t)(to + i) % sizeof y == 0) {
        tp_store<T, 4>(to + i, y);
        return;
    }
#pragma unroll
    for (int e = 0; e < 4; e++)
        if (i + e < n) tp_stg(to + i + e, y.v[e]);
}

/* The partial sums of dx one after the other, rounded once; four neighbours each. */
template <typename T>
__global__ void __launch_bounds__(THREADS)
    lce_sum_partial(const float *partial, int64_t stride, int64_t segments, T *to, int64_t n) {
    int64_t i = 4 * ((int64_t)blockIdx.x * THREADS + threadIdx.x);
    if (i >= n) return;
    float4 sum = four_at(partial + i);
    for (int64_t s = 1; s < segments; s++) sum = plus(sum, four_at(partial + s * stride + i));
    put_four(to, i, n, sum);
}

/* dx of tokens row0.. from their logits' gradient. */
static tp_status dx_run(const tp_call *k, const lce_plan *p, int64_t row0, int64_t rows,
                        tp_tensor *dx) {
    const lce_dims *d = &p->d;
    const tp_tensor *w = k->in[LCE_W];
    int64_t pitch = p->ld * (int64_t)(sizeof(float) / p->size), whole = d->v / p->seg;
    tp_cuda_gemm g = {};
    g.batch = whole;
    g.m = rows;
    g.n = d->c;
    g.k = p->seg;
    g.a = matrix(p->logits, w->dtype, 0, pitch, 1, p->seg);
    g.b = matrix(w->data, w->dtype, 0, d->w_vs, d->w_cs, p->seg * d->w_vs);
    if (p->segments == 1) {
        g.batch = 1;
        g.k = d->v;
        g.c = matrix(dx->data, dx->dtype, row0 * d->c, d->c, 1, 0);
        return tp_cuda_gemm_run(k, &g);
    }
    g.c = matrix(p->partial, TP_F32, 0, d->c, 1, p->seg_stride);
    tp_status st = whole ? tp_cuda_gemm_run(k, &g) : TP_OK;
    if (!st && whole < p->segments) {
        g.batch = 1;
        g.k = d->v - whole * p->seg;
        g.a = matrix(p->logits, w->dtype, whole * p->seg, pitch, 1, 0);
        g.b = matrix(w->data, w->dtype, whole * p->seg * d->w_vs, d->w_vs, d->w_cs, 0);
        g.c = matrix(p->partial, TP_F32, whole * p->seg_stride, d->c, 1, 0);
        st = tp_cuda_gemm_run(k, &g);
    }
    int64_t n = rows * d->c;
    TP_BY_FLOAT(dx->dtype, T, {
        return st ? st
                  : TP_LAUNCH(k, lce_sum_partial<T>, tp_blocks(n, 4 * THREADS), THREADS, 0,
                              p->partial, p->seg_stride, p->segments, (T *)dx->data + row0 * d->c,
                              n);
    });
}

/* Gradients of a tile of w by `count` leaves of `rows` tokens side by side, which begin `from`
 * tokens into the tile of logits; each goes to its own place. */
static tp_status leaves_run(const tp_call *k, const lce_plan *p, int64_t row0, int64_t from,
                            int64_t rows, int64_t count, int64_t nv, float *to, bool accumulate) {
    const lce_dims *d = &p->d;
    const tp_tensor *x = k->in[LCE_X];
    int64_t pitch = p->tile_ld * (int64_t)(sizeof(float) / p->size);
    tp_cuda_matrix ds = matrix(p->tile, x->dtype, from * pitch, pitch, 1, rows * pitch);
    tp_cuda_matrix xs = matrix(x->data, x->dtype, (row0 + from) * d->c, d->c, 1, rows * d->c);
    tp_cuda_gemm g = {};
    g.batch = count;
    g.m = d->trans_w ? d->c : nv;
    g.n = d->trans_w ? nv : d->c;
    g.like_m = d->trans_w ? d->c : d->v;
    g.like_n = d->trans_w ? d->v : d->c;
    g.k = rows;
    g.a = d->trans_w ? xs : ds;
    g.a.col = g.a.row;
    g.a.row = 1;
    g.b = d->trans_w ? ds : xs;
    g.c = matrix(to, TP_F32, 0, d->trans_w ? lce_up(nv, 8) : d->c, 1, p->leaf);
    g.accumulate = accumulate;
    g.m_fixed = true;
    return tp_cuda_gemm_run(k, &g);
}

/* ---- the tree over samples ------------------------------------------------------------------ */
typedef struct tree_args {
    const float *leaves;
    int64_t stride, n;      /* floats from leaf to leaf, a multiple of 4, and those that count */
    int count;              /* leaves, at most LCE_GROUP */
    float *place;           /* where this subtree would wait; those before it lie below */
    int merges;             /* of them are done now */
    void *to;               /* dw of the tile, if this was the last group; else NULL */
    int64_t row, width, ld; /* dw's entry of element i: i/row*ld + i%row, if i%row < width */
} tree_args;

/* Four neighbours each. */
template <typename T> __global__ void __launch_bounds__(THREADS) lce_tree(tree_args a) {
    int64_t i = 4 * ((int64_t)blockIdx.x * THREADS + threadIdx.x);
    if (i >= a.n) return;
    float4 v[LCE_GROUP];
#pragma unroll
    for (int j = 0; j < LCE_GROUP; j++)
        v[j] = j < a.count ? four_at(a.leaves + j * a.stride + i) : make_float4(0, 0, 0, 0);
#pragma unroll
    for (int w = 1; w < LCE_GROUP; w *= 2)
#pragma unroll
        for (int j = 0; j + w < LCE_GROUP; j += 2 * w)
            if (j + w < a.count) v[j] = plus(v[j], v[j + w]); /* who is alone goes up as it is */
    float4 sum = v[0];
    float *place = a.place + i;
    for (int m = 0; m < a.merges; m++) {
        place -= a.stride;
        sum = plus(four_at(place), sum);
    }
    if (!a.to) {
        tp_stg((float4 *)place, sum);
        return;
    }
    if (a.row == a.ld) {
        put_four((T *)a.to, i, a.n, sum);
        return;
    }
    float y[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (int e = 0; e < 4; e++)
        if (i + e < a.n && (i + e) % a.row < a.width)
            tp_stg((T *)a.to + (i + e) / a.row * a.ld + (i + e) % a.row, tp_from_f32<T>(y[e]));
}

/* Group g's leaves of entries v0.. go up the tree (lce_tree.h, with groups for leaves). */
static tp_status tree_run(const tp_call *k, const lce_plan *p, int64_t g, int64_t v0, int64_t nv,
                          tp_tensor *dw) {
    const lce_dims *d = &p->d;
    tree_args a = {};
    int place = lce_leaf_place(g);
    bool last = g == p->groups - 1;
    int64_t rows = d->n - g * p->group * p->leaf_t, count = (rows + p->leaf_t - 1) / p->leaf_t;
    a.leaves = p->leaves;
    a.stride = p->leaf;
    a.row = d->trans_w ? lce_up(nv, 8) : d->c;
    a.width = d->trans_w ? nv : d->c;
    a.n = d->trans_w ? d->c * a.row : nv * d->c;
    a.count = (int)lce_least(count, p->group);
    a.place = p->places + place * p->leaf;
    a.merges = last ? place : lce_leaf_merges(g);
    a.ld = d->trans_w ? d->v : d->c;
    if (last) a.to = (char *)dw->data + v0 * d->w_vs * (int64_t)tp_dtype_size(dw->dtype);
    TP_BY_FLOAT(dw->dtype, T,
                return TP_LAUNCH(k, lce_tree<T>, tp_blocks(a.n, 4 * THREADS), THREADS, 0, a));
}

/* ---- the two passes ------------------------------------------------------------------------- */
typedef struct outputs {
    tp_tensor *loss, *logprob, *entropy, *lse, *dx, *dw; /* those that are wanted */
    lce_job job;                                         /* of the rows pass */
} outputs;

static lce_rows_args rows_args(const lce_plan *p, float *logits, int64_t ld, int64_t row0,
                               int64_t v0, int64_t nv) {
    lce_rows_args a = {};
    a.logits = logits;
    a.ld = ld;
    a.v = nv;
    a.v0 = v0;
    a.target = p->target + row0;
    if (p->coef) a.coef = (float4 *)p->coef + row0;
    a.scale = lce_scale_of(p->d.softcap, p->d.temperature);
    a.z_loss = p->d.z_loss;
    return a;
}

/* dw's share of a chunk: part after part, each continuing the sums of its leaf, and a leaf that is
 * complete goes up the tree. */
static tp_status weight_of_chunk(const tp_call *k, const lce_plan *p, int64_t row0, int64_t rows,
                                 tp_tensor *dw) {
    tp_status st = TP_OK;
    for (int64_t at = row0, next; at < row0 + rows && !st; at = next) {
        int64_t g = at / p->leaf_t, first = g * p->leaf_t;
        int64_t end = lce_least(first + p->leaf_t, p->d.n);
        next = lce_least(first + ((at - first) / p->part + 1) * p->part, end);
        st = leaves_run(k, p, row0, at - row0, next - at, 1, p->d.v, p->leaves, at > first);
        if (!st && next == end) st = tree_run(k, p, g, 0, p->d.v, dw);
    }
    return st;
}

/* The logits of a chunk, and what the job makes of them. */
static tp_status plain_rows(const tp_call *k, const lce_plan *p, lce_job job, int64_t row0,
                            int64_t rows, const lce_rows_args &a) {
    tp_status st = logits_run(k, p, row0, rows, 0, p->d.v, p->logits, p->ld);
    if (st) return st;
    return job == LCE_JOB_STATS   ? lce_rows_run<LCE_JOB_STATS>(k, rows, a)
           : job == LCE_JOB_TRAIN ? lce_rows_run<LCE_JOB_TRAIN>(k, rows, a)
                                  : lce_rows_run<LCE_JOB_GRAD>(k, rows, a);
}
static tp_status fused_rows(const tp_call *k, const lce_plan *p, lce_job job, int64_t row0,
                            int64_t rows, const lce_rows_args &a) {
    if (job == LCE_JOB_GRAD) return lce90_grad(k, p, row0, rows, 0, p->d.v, p->logits, p->ld);
    tp_status st = lce90_logits(k, p, row0, rows, p->logits, p->ld);
    if (!st) st = lce90_join(k, p, job, rows, a);
    return st || job == LCE_JOB_STATS ? st : lce_rows_run<LCE_JOB_GRAD>(k, rows, a);
}

static tp_status rows_pass(const tp_call *k, const lce_plan *p, const outputs *o) {
    tp_status st = TP_OK;
    for (int64_t row0 = 0, rows; row0 < p->d.n && !st; row0 += rows) {
        rows = lce_least(p->rows, p->d.n - row0);
        if (p->one_pass && p->rows < p->leaf_t) /* parts of one leaf */
            rows = lce_least(rows, p->leaf_t - row0 % p->leaf_t);
        lce_rows_args a = rows_args(p, p->logits, p->ld, row0, 0, p->d.v);
        if (o->job != LCE_JOB_GRAD) {
            a.loss = (o->loss ? tp_f32(o->loss) : p->loss) + row0;
            a.logprob = tp_f32(o->logprob) + row0;
            a.entropy = tp_f32(o->entropy) + row0;
            if (o->lse) a.lse = tp_f32(o->lse) + row0;
        }
        st = p->fused ? fused_rows(k, p, o->job, row0, rows, a)
                      : plain_rows(k, p, o->job, row0, rows, a);
        if (!st && o->dx && p->d.c) st = dx_run(k, p, row0, rows, o->dx);
        if (!st && p->one_pass) st = weight_of_chunk(k, p, row0, rows, o->dw);
    }
    return st;
}

/* The gradient of the logits of `rows` tokens and a tile of the vocabulary. */
static tp_status tile_run(const tp_call *k, const lce_plan *p, int64_t row0, int64_t rows,
                          int64_t v0, int64_t nv) {
    if (p->fused) return lce90_grad(k, p, row0, rows, v0, nv, p->tile, p->tile_ld);
    tp_status st = logits_run(k, p, row0, rows, v0, nv, p->tile, p->tile_ld);
    if (st) return st;
    return lce_rows_run<LCE_JOB_GRAD>(k, rows, rows_args(p, p->tile, p->tile_ld, row0, v0, nv));
}

/* A leaf part by part, each continuing the sums of the one before. */
static tp_status long_leaf(const tp_call *k, const lce_plan *p, int64_t g, int64_t v0, int64_t nv) {
    int64_t first = g * p->leaf_t, end = lce_least(first + p->leaf_t, p->d.n);
    tp_status st = TP_OK;
    for (int64_t row0 = first; row0 < end && !st; row0 += p->part) {
        int64_t rows = lce_least(p->part, end - row0);
        st = tile_run(k, p, row0, rows, v0, nv);
        if (!st) st = leaves_run(k, p, row0, 0, rows, 1, nv, p->leaves, row0 > first);
    }
    return st;
}

/* Leaves side by side; the batch's last may be shorter. */
static tp_status short_leaves(const tp_call *k, const lce_plan *p, int64_t g, int64_t v0,
                              int64_t nv) {
    int64_t row0 = g * p->group * p->leaf_t, rows = lce_least(p->group * p->leaf_t, p->d.n - row0);
    int64_t whole = rows / p->leaf_t, rest = rows % p->leaf_t;
    tp_status st = tile_run(k, p, row0, rows, v0, nv);
    if (!st && whole) st = leaves_run(k, p, row0, 0, p->leaf_t, whole, nv, p->leaves, false);
    if (!st && rest)
        st = leaves_run(k, p, row0, rows - rest, rest, 1, nv, p->leaves + whole * p->leaf, false);
    return st;
}

static tp_status weight_pass(const tp_call *k, const lce_plan *p, tp_tensor *dw) {
    tp_status st = TP_OK;
    if (!p->d.n || !p->d.c) /* no token: 0 */
        return dw->data ? k->ctx->backend->fill(k->ctx, dw->data, 0,
                                                (size_t)tp_numel(dw) * tp_dtype_size(dw->dtype))
                        : TP_OK;
    for (int64_t v0 = 0; v0 < p->d.v && !st; v0 += p->cols)
        for (int64_t g = 0, nv = lce_least(p->cols, p->d.v - v0); g < p->groups && !st; g++) {
            bool parts = p->leaf_t > p->part;
            st = parts ? long_leaf(k, p, g, v0, nv) : short_leaves(k, p, g, v0, nv);
            if (!st) st = tree_run(k, p, g, v0, nv, dw);
        }
    return st;
}

/* ---- the summed loss ------------------------------------------------------------------------ */
/* A sample's tokens in double. */
__global__ void lce_sum_samples(const float *loss, int64_t t, float *sums) {
    TP_SHARED(double, part, THREADS / 32);
    const float *p = loss + blockIdx.x * t;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < t; i += THREADS) sum += tp_ldg(p + i);
    sum = tp_warp_sum(sum);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x) return;
    for (int w = 1; w < THREADS / 32; w++) sum += part[w];
    tp_stg(sums + blockIdx.x, (float)sum);
}

static tp_status sum_loss(const tp_call *k, const lce_plan *p, tp_tensor *to) {
    tp_status st = p->d.n ? TP_LAUNCH(k, lce_sum_samples, (unsigned)p->d.samples, THREADS, 0,
                                      p->loss, p->d.t, p->sums)
                          : TP_OK;
    return st ? st : tp_lce_tree_sum(k, p->sums, p->d.n ? p->d.samples : 0, tp_f32(to));
}

/* ---- kernels -------------------------------------------------------------------------------- */
static bool dense(const tp_tensor *t) { return tp_numel(t) == 0 || tp_contiguous(t); }

static const char *decline(const tp_call *k) {
    if (!dense(k->in[LCE_X])) return "x is strided";
    if (!dense(k->in[LCE_W])) return "w is strided";
    return tp_decline_cuda_floats(k);
}

static tp_status forward_run(const tp_call *k) {
    lce_plan p = lce_plan_of(k, true, false, false, k->workspace);
    outputs o = {k->out[LCE_LOSS], k->out[LCE_LOGPROB], k->out[LCE_ENTROPY], k->out[LCE_LSE]};
    o.job = LCE_JOB_STATS;
    tp_status st = tokens_run(k, &p, k->nin);
    return st ? st : rows_pass(k, &p, &o);
}
static size_t forward_workspace(const tp_call *k) {
    return lce_plan_of(k, true, false, false, NULL).bytes;
}
TP_CUDA_KERNEL(lce_cuda, .decline = decline, .run = forward_run, .workspace = forward_workspace);

static tp_status backward_run(const tp_call *k) {
    const lce_attr *at = (const lce_attr *)k->attr;
    lce_plan p = lce_plan_of(k, false, !at->no_dx, !at->no_dw, k->workspace);
    outputs o = {};
    o.dx = k->out[0];
    o.dw = k->out[1];
    o.job = LCE_JOB_GRAD;
    tp_status st = tokens_run(k, &p, LCE_BACK_LSE);
    if (!st && !at->no_dx) st = rows_pass(k, &p, &o);
    return st || at->no_dw || p.one_pass ? st : weight_pass(k, &p, k->out[1]);
}
static size_t backward_workspace(const tp_call *k) {
    const lce_attr *at = (const lce_attr *)k->attr;
    return lce_plan_of(k, false, !at->no_dx, !at->no_dw, NULL).bytes;
}
TP_CUDA_KERNEL(lce_backward_cuda, .decline = decline, .run = backward_run,
               .workspace = backward_workspace);

static tp_status train_run(const tp_call *k) {
    const bool dw = !((const lce_attr *)k->attr)->no_dw;
    lce_plan p = lce_plan_of(k, true, true, dw, k->workspace);
    outputs o = {};
    o.logprob = k->out[LCE_SUM_LOGPROB];
    o.entropy = k->out[LCE_SUM_ENTROPY];
    o.dx = k->out[LCE_SUM_DX];
    o.dw = k->out[LCE_SUM_DW];
    o.job = LCE_JOB_TRAIN;
    tp_status st = tokens_run(k, &p, LCE_TRAIN_COEF);
    if (!st) st = rows_pass(k, &p, &o);
    if (!st && dw && !p.one_pass) st = weight_pass(k, &p, k->out[LCE_SUM_DW]);
    return st ? st : sum_loss(k, &p, k->out[LCE_SUM]);
}
static size_t train_workspace(const tp_call *k) {
    return lce_plan_of(k, true, true, !((const lce_attr *)k->attr)->no_dw, NULL).bytes;
}
TP_CUDA_KERNEL(lce_train_cuda, .decline = decline, .run = train_run, .workspace = train_workspace);

/* ---- linear_cross_entropy_rows -------------------------------------------------------------- */
typedef struct coef_args {
    tp_walk walk;
    const void *in[6]; /* lse, entropy, then the cotangents; NULL: 0 */
    void *out[3];
    int64_t n;
    double z_loss;
} coef_args;

template <typename T> __global__ void lce_coefs(coef_args a) {
    int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= a.n) return;
    double x[6];
#pragma unroll
    for (int j = 0; j < 6; j++) {
        int64_t rest = i, at = 0;
        for (int d = a.walk.ndim - 1; d >= 0; d--) {
            int64_t next = d ? rest / a.walk.shape[d] : 0;
            at += (rest - next * a.walk.shape[d]) * a.walk.stride[j][d];
            rest = next;
        }
        x[j] = a.in[j] ? (double)tp_to_f32(tp_ldg((const T *)a.in[j] + at)) : 0.0;
    }
    lce_coef q = lce_coef_of(x[0], x[1], a.z_loss, x[2], x[3], x[4], x[5]);
    tp_stg((T *)a.out[0] + i, tp_from_f32<T>((float)q.a));
    tp_stg((T *)a.out[1] + i, tp_from_f32<T>((float)q.b));
    tp_stg((T *)a.out[2] + i, tp_from_f32<T>((float)q.d));
}

static tp_status coefs_run(const tp_call *k) {
    coef_args a = {};
    a.walk = tp_walk_of(k, k->out[0]);
    for (int j = 0; j < k->nin; j++) a.in[j] = k->in[j] ? k->in[j]->data : NULL;
    for (int j = 0; j < 3; j++) a.out[j] = k->out[j]->data;
    a.n = tp_numel(k->out[0]);
    a.z_loss = ((const lce_attr *)k->attr)->o.z_loss;
    TP_BY_FLOAT(k->out[0]->dtype, T,
                return TP_LAUNCH(k, lce_coefs<T>, tp_blocks(a.n, THREADS), THREADS, 0, a));
}
TP_CUDA_KERNEL(lce_rows_cuda, .decline = tp_decline_cuda_floats, .run = coefs_run);
