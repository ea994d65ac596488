/* linear_cross_entropy on the CPU: matrix products block by block, a pass over each block while it
 * is in the caches. Three kernels: forward and backward keep a block of some rows by some of the
 * vocabulary; train keeps some whole rows and gets forward and backward from one product. All of
 * them give a token, a row of dx and an entry of dw the same bits. */
#include "core/ctx.h"
#include "ops/linear_cross_entropy/lce_cut.h"
#include "ops/linear_cross_entropy/lce_row.h"
#include "ops/linear_cross_entropy/lce_tree.h"
#include "ops/convert.h"
#include "ops/matmul/gemm_onednn.h"

enum { MERGE_GRAIN = 1 << 15 };

typedef struct work { /* one kernel call */
    const tp_call *k;
    lce_dims d;
    lce_cut u;
    lce_scale scale;
    float *logits; /* (u.rows, u.ld) */
    lce_row *row;  /* (u.rows) */
    float *loss;   /* train: (n) */
    float *place;  /* the tree's places 1, 2, …, each of place_floats */
    int64_t place_floats;
    void *gemm;
    lce_chunk now;
    int64_t v0, nv; /* the tile */
} work;

/* ---- memory --------------------------------------------------------------------------------- */
static tp_gemm logits_gemm(const work *w, int64_t rows, int64_t nv) {
    const lce_dims *d = &w->d;
    return (tp_gemm){.m = rows,
                     .n = nv,
                     .k = d->c,
                     .a_rs = d->c,
                     .a_cs = 1,
                     .b_rs = d->w_cs,
                     .b_cs = d->w_vs,
                     .ldc = w->u.ld,
                     .bf16 = w->k->ctx->bf16_products,
                     .work = w->gemm};
}

static tp_gemm dx_gemm(const work *w, int64_t rows, int64_t nv) {
    const lce_dims *d = &w->d;
    return (tp_gemm){.m = rows,
                     .n = d->c,
                     .k = nv,
                     .a_rs = w->u.ld,
                     .a_cs = 1,
                     .b_rs = d->w_vs,
                     .b_cs = d->w_cs,
                     .ldc = d->c,
                     .bf16 = w->k->ctx->bf16_products,
                     .work = w->gemm};
}

/* dw (V,C) = dlogits^T x, or its transpose; each entry is the same chain over tokens. */
static tp_gemm dw_gemm(const work *w, int64_t rows, int64_t nv, int64_t ld) {
    const lce_dims *d = &w->d;
    tp_gemm g = {.k = rows, .ldc = ld, .work = w->gemm};
    g.bf16 = w->k->ctx->bf16_products;
    if (d->trans_w) {
        g.m = d->c, g.a_rs = 1, g.a_cs = d->c;
        g.n = nv, g.b_rs = w->u.ld, g.b_cs = 1;
    } else {
        g.m = nv, g.a_rs = 1, g.a_cs = w->u.ld;
        g.n = d->c, g.b_rs = d->c, g.b_cs = 1;
    }
    return g;
}

static size_t most(size_t a, size_t b) { return a > b ? a : b; }

/* The largest workspace of the products: chunks and tiles come in two sizes each. */
static size_t gemm_bytes(const work *w, bool dx, bool dw) {
    const lce_dims *d = &w->d;
    const lce_cut *u = &w->u;
    if (!u->chunks) return 0;
    lce_chunk tail = lce_chunk_at(d, u, u->chunks - 1), head = lce_chunk_at(d, u, 0);
    int64_t rows[2] = {head.rows, tail.rows}, nv[2] = {u->cols, d->v % u->cols};
    size_t bytes = 0;
    for (int i = 0; i < 4; i++) {
        int64_t r = rows[i & 1], n = nv[i >> 1];
        if (!n) continue;
        tp_gemm g[5] = {logits_gemm(w, r, n), dx_gemm(w, r, n), dw_gemm(w, r, n, d->v)};
        g[2].leaf = head.leaf_steps;
        g[3] = g[1]; /* a product that resumes may be cut otherwise than one that starts */
        g[4] = g[2];
        g[3].resume = true;
        g[4].resume = true;
        g[4].leaf = 0;
        bool runs[5] = {true, dx, dw, dx, dw};
        for (int t = 0; t < 5; t++)
            if (runs[t]) bytes = most(bytes, tp_gemm_workspace(&g[t], tp_threads(w->k->ctx)));
    }
    return bytes;
}

typedef struct room {
    char *base; /* NULL: only measure */
    size_t used;
} room;

static void *carve(room *r, size_t bytes) {
    void *p = r->base ? r->base + r->used : NULL;
    r->used += (bytes + 63) & ~(size_t)63;
    return p;
}

/* Lays the call's memory out from `base` and returns the bytes; with base NULL it only measures. */
static size_t lay_out(work *w, const tp_call *k, bool whole, bool dx, bool dw, void *base) {
    const lce_attr *at = k->attr;
    room r = {base, 0};
    *w = (work){.k = k, .d = lce_dims_of(k)};
    const lce_dims *d = &w->d;
    w->u = whole ? lce_cut_whole(d, at->o.chunk) : lce_cut_tiled(d, at->o.chunk);
    w->scale = lce_scale_of(d->softcap, d->temperature);
    int places = dw ? lce_tree_places(w->u.leaves) - 1 : 0;
    w->place_floats = (w->u.cols * d->c + 15) / 16 * 16;
    w->logits = carve(&r, (size_t)(w->u.rows * w->u.ld) * sizeof(float));
    w->row = carve(&r, (size_t)w->u.rows * sizeof(lce_row));
    w->loss = carve(&r, whole ? (size_t)d->n * sizeof(float) : 0);
    w->place = carve(&r, places > 0 ? (size_t)(places * w->place_floats) * sizeof(float) : 0);
    w->gemm = carve(&r, gemm_bytes(w, dx, dw));
    return r.used;
}

/* ---- steps ---------------------------------------------------------------------------------- */
static int64_t target_of(const work *w, int64_t i) {
    const tp_tensor *t = w->k->in[LCE_TARGETS];
    return tp_i32(t)[tp_offset(t, i)];
}

static float at_row(const tp_tensor *t, int64_t i) { return tp_f32(t)[tp_offset(t, i)]; }

static int64_t row_grain(const work *w) { return 1 + 8192 / (w->nv + 1); }

static void run_gemm(const work *w, const tp_gemm *g) {
    if (!tp_gemm_onednn(w->k->ctx, g)) TP_CAT(tp_gemm_run, TP_ISA)(w->k->ctx, g);
}

static void run_logits(const work *w) {
    tp_gemm g = logits_gemm(w, w->now.rows, w->nv);
    g.a = tp_f32(w->k->in[LCE_X]) + w->now.row0 * w->d.c;
    g.b = tp_f32(w->k->in[LCE_W]) + w->v0 * w->d.w_vs;
    g.c = w->logits;
    run_gemm(w, &g);
}

static void run_dx(const work *w, tp_tensor *dx) {
    tp_gemm g = dx_gemm(w, w->now.rows, w->nv);
    g.a = w->logits;
    g.b = tp_f32(w->k->in[LCE_W]) + w->v0 * w->d.w_vs;
    g.c = tp_f32(dx) + w->now.row0 * w->d.c;
    g.resume = w->v0 > 0;
    run_gemm(w, &g);
}

typedef struct merge {
    float *left, *right;
    int64_t cols, left_ld, right_ld;
} merge;

static void merge_rows(void *arg, int64_t begin, int64_t end) {
    const merge *m = arg;
    for (int64_t i = begin; i < end; i++) {
        float *restrict l = m->left + i * m->left_ld;
        const float *restrict r = m->right + i * m->right_ld;
        for (int64_t j = 0; j < m->cols; j++) l[j] += r[j];
    }
}

/* Place 0 of the tree is the result's own memory, the others lie in the workspace. */
static float *place_at(const work *w, const tp_tensor *dw, int p, int64_t *ld) {
    bool trans = w->d.trans_w;
    *ld = !trans ? w->d.c : p ? w->nv : w->d.v;
    if (p) return w->place + (p - 1) * w->place_floats;
    return tp_f32(dw) + (trans ? w->v0 : w->v0 * w->d.c);
}

static void merge_places(const work *w, const tp_tensor *dw, int p) {
    merge m = {.cols = w->d.trans_w ? w->nv : w->d.c};
    m.left = place_at(w, dw, p - 1, &m.left_ld);
    m.right = place_at(w, dw, p, &m.right_ld);
    tp_parallel_for(w->k->ctx, w->d.trans_w ? w->d.c : w->nv, 1 + MERGE_GRAIN / (m.cols + 1),
                    merge_rows, &m);
}

static void run_dw(const work *w, tp_tensor *dw) {
    const lce_chunk *now = &w->now;
    int place = lce_leaf_place(now->leaf);
    int64_t ld = 0;
    float *dst = place_at(w, dw, place, &ld);
    tp_gemm g = dw_gemm(w, now->rows, w->nv, ld);
    const float *x = tp_f32(w->k->in[LCE_X]) + now->row0 * w->d.c;
    g.a = w->d.trans_w ? x : w->logits;
    g.b = w->d.trans_w ? w->logits : x;
    g.c = dst;
    g.resume = !now->first;
    g.leaf = now->leaf_steps;
    run_gemm(w, &g);
    if (!now->last) return;
    int merges = now->leaf == w->u.leaves - 1 ? place : lce_leaf_merges(now->leaf);
    for (int i = 0; i < merges; i++) merge_places(w, dw, place - i);
}

static void zero(tp_tensor *t) {
    if (t->data) memset(t->data, 0, (size_t)tp_numel(t) * sizeof(float));
}

/* ---- forward -------------------------------------------------------------------------------- */
static void take_rows(void *arg, int64_t begin, int64_t end) {
    const work *w = arg;
    for (int64_t i = begin; i < end; i++) {
        float *s = w->logits + i * w->u.ld;
        lce_scale_row(s, w->nv, w->scale);
        lce_row_take(&w->row[i], s, w->v0, w->nv, target_of(w, w->now.row0 + i));
    }
}

/* The loss of a token; its parts go to `out`. */
static float lce_token(const work *w, const lce_row *r, bool ignored, lce_stats *out) {
    *out = ignored ? (lce_stats){0} : lce_row_end(r);
    return lce_loss(*out, w->d.z_loss);
}

static void end_chunk(const work *w) {
    tp_tensor *const *out = w->k->out;
    for (int64_t i = 0; i < w->now.rows; i++) {
        int64_t at = w->now.row0 + i;
        lce_stats s;
        tp_f32(out[LCE_LOSS])[at] = lce_token(w, &w->row[i], target_of(w, at) == w->d.ignore, &s);
        tp_f32(out[LCE_LOGPROB])[at] = s.logprob;
        tp_f32(out[LCE_ENTROPY])[at] = s.entropy;
        tp_f32(out[LCE_LSE])[at] = s.lse;
    }
}

static tp_status forward_run(const tp_call *k) {
    work w;
    tp_status st = lce_check_targets(k);
    if (st) return st;
    lay_out(&w, k, false, false, false, k->workspace);
    for (int64_t i = 0; i < w.u.chunks; i++) {
        w.now = lce_chunk_at(&w.d, &w.u, i);
        for (w.v0 = 0; w.v0 < w.d.v; w.v0 += w.nv) {
            w.nv = lce_min(w.u.cols, w.d.v - w.v0);
            run_logits(&w);
            tp_parallel_for(k->ctx, w.now.rows, row_grain(&w), take_rows, &w);
        }
        end_chunk(&w);
    }
    return TP_OK;
}

static size_t forward_workspace(const tp_call *k) {
    work w;
    return lay_out(&w, k, false, false, false, NULL);
}

/* ---- backward ------------------------------------------------------------------------------- */
static void grad_rows(void *arg, int64_t begin, int64_t end) {
    const work *w = arg;
    tp_tensor *const *in = w->k->in;
    for (int64_t i = begin; i < end; i++) {
        int64_t at = w->now.row0 + i, target = target_of(w, at);
        float *s = w->logits + i * w->u.ld;
        if (target == w->d.ignore) {
            memset(s, 0, (size_t)w->nv * sizeof *s);
            continue;
        }
        lce_scale_row(s, w->nv, w->scale);
        lce_grad_row(s, w->nv, w->scale, at_row(in[LCE_BACK_LSE], at), at_row(in[LCE_BACK_A], at),
                     at_row(in[LCE_BACK_B], at), at_row(in[LCE_BACK_D], at), target - w->v0);
    }
}

static tp_status backward_run(const tp_call *k) {
    const lce_attr *at = k->attr;
    work w;
    tp_status st = lce_check_targets(k);
    if (st) return st;
    lay_out(&w, k, false, !at->no_dx, !at->no_dw, k->workspace);
    if (!w.u.chunks && !at->no_dw) zero(k->out[1]);
    for (w.v0 = 0; w.v0 < w.d.v; w.v0 += w.nv) {
        w.nv = lce_min(w.u.cols, w.d.v - w.v0);
        for (int64_t i = 0; i < w.u.chunks; i++) {
            w.now = lce_chunk_at(&w.d, &w.u, i);
            run_logits(&w);
            tp_parallel_for(k->ctx, w.now.rows, row_grain(&w), grad_rows, &w);
            if (!at->no_dx) run_dx(&w, k->out[0]);
            if (!at->no_dw) run_dw(&w, k->out[1]);
        }
    }
    return TP_OK;
}

static size_t backward_workspace(const tp_call *k) {
    const lce_attr *at = k->attr;
    work w;
    return lay_out(&w, k, false, !at->no_dx, !at->no_dw, NULL);
}

/* ---- train ---------------------------------------------------------------------------------- */
static void train_rows(void *arg, int64_t begin, int64_t end) {
    const work *w = arg;
    const tp_tensor *coef = w->k->in[LCE_TRAIN_COEF];
    tp_tensor *const *out = w->k->out;
    for (int64_t i = begin; i < end; i++) {
        int64_t at = w->now.row0 + i, target = target_of(w, at);
        bool ignored = target == w->d.ignore;
        float *s = w->logits + i * w->u.ld, weight = coef ? at_row(coef, at) : 1.0f;
        lce_stats stats;
        lce_scale_row(s, w->nv, w->scale);
        lce_row_take(&w->row[i], s, 0, w->nv, target);
        float loss = lce_token(w, &w->row[i], ignored, &stats);
        w->loss[at] = ignored ? 0.0f : weight * loss;
        tp_f32(out[LCE_SUM_LOGPROB])[at] = stats.logprob;
        tp_f32(out[LCE_SUM_ENTROPY])[at] = stats.entropy;
        if (ignored) {
            memset(s, 0, (size_t)w->nv * sizeof *s);
            continue;
        }
        lce_coef q = lce_coef_of(stats.lse, stats.entropy, w->d.z_loss, weight, 0, 0, 0);
        lce_grad_row(s, w->nv, w->scale, stats.lse, (float)q.a, (float)q.b, (float)q.d, target);
    }
}

/* Per sample a chain in double over t, then the tree over samples, as for dw. */
static float sum_loss(const work *w) {
    float place[65] = {0};
    for (int64_t i = 0; i < w->d.samples; i++) {
        double sum = 0;
        for (int64_t t = 0; t < w->d.t; t++) sum += (double)w->loss[i * w->d.t + t];
        int p = lce_leaf_place(i), merges = i == w->d.samples - 1 ? p : lce_leaf_merges(i);
        place[p] = (float)sum;
        for (; merges > 0; merges--, p--) place[p - 1] += place[p];
    }
    return place[0];
}

static tp_status train_run(const tp_call *k) {
    const bool dw = !((const lce_attr *)k->attr)->no_dw;
    work w;
    tp_status st = lce_check_targets(k);
    if (st) return st;
    lay_out(&w, k, true, true, dw, k->workspace);
    w.nv = w.d.v;
    if (!w.u.chunks && dw) zero(k->out[LCE_SUM_DW]);
    for (int64_t i = 0; i < w.u.chunks; i++) {
        w.now = lce_chunk_at(&w.d, &w.u, i);
        run_logits(&w);
        tp_parallel_for(k->ctx, w.now.rows, row_grain(&w), train_rows, &w);
        run_dx(&w, k->out[LCE_SUM_DX]);
        if (dw) run_dw(&w, k->out[LCE_SUM_DW]);
    }
    tp_f32(k->out[LCE_SUM])[0] = sum_loss(&w);
    return TP_OK;
}

static size_t train_workspace(const tp_call *k) {
    work w;
    return lay_out(&w, k, true, true, !((const lce_attr *)k->attr)->no_dw, NULL);
}

/* ---- rows ----------------------------------------------------------------------------------- */
/* Per-token inputs may be strided (a summed loss sends back one value, expanded). */
static bool dense(const tp_tensor *t) { return tp_numel(t) == 0 || tp_contiguous(t); }

static const char *decline(const tp_call *k) {
    if (!dense(k->in[LCE_X])) return "x is strided";
    if (!dense(k->in[LCE_W])) return "w is strided";
    return tp_decline_unless_f32(k);
}

TP_CPU_KERNEL(lce_cpu, .decline = decline, .run = forward_run, .workspace = forward_workspace);
TP_CPU_KERNEL(lce_backward_cpu, .decline = decline, .run = backward_run,
              .workspace = backward_workspace);
TP_CPU_KERNEL(lce_train_cpu, .decline = decline, .run = train_run, .workspace = train_workspace);
