/* gemm_cpu: the matrix product of gemm.h, compiled once per instruction set.
 *
 * A block of A and a panel of B are copied ("packed") into the order in which the tile
 * function reads them, and the tile function keeps MR x NR elements of C in registers for a whole
 * stage of k. A chain longer than a stage is put down in C and taken up again, which does not
 * change it. */
#include "ops/matmul/gemm_plan.h"
#include "ops/simd.h"

/* One tile: MR rows of NV vectors. 14 x 2 accumulators, 2 vectors of B and a broadcast of A fill 31
 * of AVX-512's 32 registers; AVX2 has 16 of half the width, so 6 x 2 there. */
#if TP_ISA >= 4
enum { MR = 14, NV = 2 };
#elif TP_ISA == 3
enum { MR = 6, NV = 1 };
#else
enum { MR = 4, NV = 1 };
#endif
enum { NR = NV * TP_LANES };

/* ---- the tile ------------------------------------------------------------------------------- */
typedef struct tile {
    const float *a;  /* packed: a[k*MR + i] */
    const float *b;  /* packed, or rows of B where they lie */
    int64_t b_ld;    /* such rows' distance */
    float *b_packed; /* where to pack them while they pass */
    int64_t k;
    const char *ahead; /* memory wanted soon: runs of ahead_lines cache lines, ahead_stride apart */
    int64_t ahead_lines, ahead_stride;
    const float *from; /* the chain so far, or NULL at its start */
    int64_t from_ld;
    int from_cols, cols; /* columns that exist at from and at to */
    const float *left;   /* finished subtrees to the left, `left_step` floats apart */
    int64_t left_step;
    uint64_t merge;    /* bit l set: add the subtree of level l; lowest first */
    const float *bias; /* or NULL */
    bool accumulate;   /* add what lies at `to` */
    float *to;
    int64_t to_ld;
    const float *soon; /* where in C the next tile lies */
} tile;

/* acc = p + acc: the left operand is the earlier one. */
INLINE void add_left(v16 acc[MR][NV], int mr, const float *p, int64_t ld, int cols) {
#pragma GCC unroll 14
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) {
            const float *q = p + i * ld + v * TP_LANES;
            v16 x = cols == NR ? v16_load(q) : v16_load_n(q, v16_lanes(cols, v));
            acc[i][v] = v16_add(x, acc[i][v]);
        }
}

INLINE void tile_rows(const int mr, const bool direct, const tile *t) {
    v16 acc[MR][NV];
    if (t->from) {
#pragma GCC unroll 14
        for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
            for (int v = 0; v < NV; v++) {
                const float *q = t->from + i * t->from_ld + v * TP_LANES;
                acc[i][v] =
                    t->from_cols == NR ? v16_load(q) : v16_load_n(q, v16_lanes(t->from_cols, v));
            }
    } else {
#pragma GCC unroll 14
        for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
            for (int v = 0; v < NV; v++) acc[i][v] = v16_zero();
    }
    const float *a = t->a, *b = t->b;
    const int64_t b_ld = direct ? t->b_ld : NR;
    float *packed = t->b_packed;
    const char *run = t->ahead;
#pragma GCC unroll 14
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++)
            __builtin_prefetch(t->soon + i * t->to_ld + v * TP_LANES, 1, 3);
    for (int64_t k = t->k; k > 0; run += t->ahead_stride) {
        int64_t steps = k < t->ahead_lines ? k : t->ahead_lines;
        const char *ahead = run;
        k -= steps;
        for (; steps > 0; steps--, a += MR, b += b_ld, ahead += 64) {
            v16 bk[NV];
#pragma GCC unroll 2
            for (int v = 0; v < NV; v++) {
                bk[v] = v16_load(b + v * TP_LANES);
                if (direct) v16_store(packed + v * TP_LANES, bk[v]);
            }
            packed += direct ? NR : 0;
            __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 14
            for (int i = 0; i < mr; i++) {
                v16 ai = v16_set1(a[i]);
#pragma GCC unroll 2
                for (int v = 0; v < NV; v++) acc[i][v] = v16_fma(ai, bk[v], acc[i][v]);
            }
        }
    }
    const float *left = t->left;
    for (uint64_t bits = t->merge; bits; bits >>= 1, left += t->left_step)
        if (bits & 1) add_left(acc, mr, left, NR, NR);
    if (t->bias) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) {
            v16 x = v16_load_n(t->bias + v * TP_LANES, v16_lanes(t->cols, v));
#pragma GCC unroll 14
            for (int i = 0; i < mr; i++) acc[i][v] = v16_add(acc[i][v], x);
        }
    }
    if (t->accumulate) add_left(acc, mr, t->to, t->to_ld, t->cols);
#pragma GCC unroll 14
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) {
            float *q = t->to + i * t->to_ld + v * TP_LANES;
            if (t->cols == NR)
                v16_store(q, acc[i][v]);
            else
                v16_store_n(q, acc[i][v], v16_lanes(t->cols, v));
        }
}

/* One function per number of rows, so that a matrix of any height is cut without waste; and one
 * more each that reads B where it lies and packs it in passing, which costs next to nothing. */
#define TILE(r)                                                                                    \
    static void tile_##r(const tile *t) { tile_rows(r, false, t); }                                \
    static void first_##r(const tile *t) { tile_rows(r, true, t); }
#if TP_ISA >= 4
#define EACH_HEIGHT(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
#elif TP_ISA == 3
#define EACH_HEIGHT(X) X(1) X(2) X(3) X(4) X(5) X(6)
#else
#define EACH_HEIGHT(X) X(1) X(2) X(3) X(4)
#endif
EACH_HEIGHT(TILE)
#define PAIR(r) {tile_##r, first_##r},
static void (*const tiles[MR + 1][2])(const tile *) = {{NULL, NULL}, EACH_HEIGHT(PAIR)};

/* ---- packing -------------------------------------------------------------------------------- */
/* dst[k*width + i] = src[i*s_i + k*s_k] for i < count, 0 for count <= i < width. */
INLINE void store_width(float *dst, v16 x, const int width, const int v) {
    const int n = width - v * TP_LANES;
    if (n >= TP_LANES) {
        v16_store(dst + v * TP_LANES, x);
    } else if (TP_ISA >= 4) {
        v16_store_n(dst + v * TP_LANES, x, n);
    } else { /* narrower masked stores are slow; a copy of constant size is not */
        float f[TP_LANES];
        v16_store(f, x);
        memcpy(dst + v * TP_LANES, f, (size_t)n * sizeof(float));
    }
}

INLINE void pack_panel(float *dst, const int width, int count, int64_t kc, const float *src,
                       int64_t s_i, int64_t s_k) {
    const int nv = (width + TP_LANES - 1) / TP_LANES;
    if (s_i == 1) {
        for (int64_t k = 0; k < kc; k++)
#pragma GCC unroll 2
            for (int v = 0; v < nv; v++) {
                const float *q = src + k * s_k + v * TP_LANES;
                int n = v16_lanes(count, v);
                store_width(dst + k * width, n == TP_LANES ? v16_load(q) : v16_load_n(q, n), width,
                            v);
            }
    } else if (s_k == 1) {
        for (int64_t k = 0; k < kc; k += TP_LANES)
            for (int v = 0; v < nv; v++) {
                int kn = (int)gemm_min(kc - k, TP_LANES), n = v16_lanes(count, v);
                const float *q = src + v * TP_LANES * s_i + k;
                v16 r[TP_LANES];
                if (kn == TP_LANES && n == TP_LANES) {
#pragma GCC unroll 16
                    for (int i = 0; i < TP_LANES; i++) r[i] = v16_load(q + i * s_i);
                } else {
                    for (int i = 0; i < TP_LANES; i++)
                        r[i] = i < n ? v16_load_n(q + i * s_i, kn) : v16_zero();
                }
                v16_transpose(r);
                if (kn == TP_LANES) {
#pragma GCC unroll 16
                    for (int j = 0; j < TP_LANES; j++)
                        store_width(dst + (k + j) * width, r[j], width, v);
                } else {
                    for (int j = 0; j < kn; j++) store_width(dst + (k + j) * width, r[j], width, v);
                }
            }
    } else {
        for (int64_t k = 0; k < kc; k++)
            for (int i = 0; i < width; i++)
                dst[k * width + i] = i < count ? src[i * s_i + k * s_k] : 0.0f;
    }
}

static void pack_a(float *dst, int count, int64_t kc, const float *src, int64_t rs, int64_t cs) {
    pack_panel(dst, MR, count, kc, src, rs, cs);
}
static void pack_b(float *dst, int count, int64_t kc, const float *src, int64_t rs, int64_t cs) {
    pack_panel(dst, NR, count, kc, src, cs, rs);
}

/* ---- prefetching ---------------------------------------------------------------------------- */
/* Operands are packed in short runs from many rows, which the hardware does not foresee. So while
 * one piece is multiplied, the lines of the next are asked for, one in each step of k. */
typedef struct ahead {
    const char *run;
    int64_t lines, stride; /* cache lines of a run; bytes from run to run */
    int64_t runs;          /* left */
} ahead;

/* The lines of src[i*s_i + k*s_k], i < count, k < kc. */
static ahead ahead_of(const float *src, int64_t s_i, int64_t s_k, int64_t count, int64_t kc) {
    ahead w = {0};
    if (count <= 0 || kc <= 0 || (s_i != 1 && s_k != 1)) return w;
    w.run = (const char *)src;
    w.runs = s_i == 1 ? kc : count;
    w.lines = gemm_ceil_div((s_i == 1 ? count : kc) * (int64_t)sizeof(float), 64);
    w.stride = (s_i == 1 ? s_k : s_i) * (int64_t)sizeof(float);
    return w;
}

/* Gives tile t its share of w, or, where nothing is left, lines that it has in cache anyway. */
static void ask_ahead(tile *t, ahead *w) {
    if (w->runs <= 0) {
        t->ahead = (const char *)t->b;
        t->ahead_lines = t->k;
        t->ahead_stride = 0;
        return;
    }
    int64_t runs = gemm_ceil_div(t->k, w->lines);
    t->ahead = w->run;
    t->ahead_lines = w->lines;
    t->ahead_stride = w->stride;
    w->runs -= runs;
    w->run += w->stride * runs;
}

/* ---- blocks and tasks ----------------------------------------------------------------------- */
typedef struct block { /* a part of C with its packed operands and buffers */
    const tp_gemm *g;
    const gemm_plan *p;
    int64_t row, rows,
        row_panels; /* panel i holds rows [rows*i/row_panels, rows*(i+1)/row_panels) */
    int64_t col, cols;
    float *a, *b, *buf; /* buf: (level, tile, MR, NR); the carried chain is the last level */
    int64_t tiles;
} block;

static int64_t panel_row(const block *x, int64_t i) { return x->rows * i / x->row_panels; }

static const float *a_at(const block *x, int64_t i, int64_t k) {
    return x->g->a + (x->row + panel_row(x, i)) * x->g->a_rs + k * x->g->a_cs;
}
static const float *b_at(const block *x, int64_t j, int64_t k) {
    return x->g->b + k * x->g->b_rs + (x->col + j * NR) * x->g->b_cs;
}

/* One tile through all the leaves, or the part of a leaf, that the stage [k0, k0+kc) holds. */
static void run_tile(const block *x, int64_t k0, int64_t kc, int64_t i, int64_t j, bool direct,
                     ahead *next) {
    const tp_gemm *g = x->g;
    const gemm_plan *p = x->p;
    int64_t r0 = panel_row(x, i), mr = panel_row(x, i + 1) - r0, c0 = j * NR;
    int64_t step = x->tiles * MR * NR; /* floats from level to level */
    float *buf = x->buf + (p->local ? 0 : (j * x->row_panels + i) * MR * NR);
    float *c_top = g->c + x->row * g->ldc + x->col + c0, *c = c_top + r0 * g->ldc;
    int cols = (int)gemm_min(NR, x->cols - c0);
    for (int64_t k = k0; k < k0 + kc;) {
        int64_t leaf = p->leaf > 0 ? k / p->leaf : 0, leaf_end = (leaf + 1) * p->leaf;
        int64_t end = gemm_min(gemm_min(leaf_end, g->k), k0 + kc);
        bool starts = k == leaf * p->leaf, ends = end == leaf_end || end == g->k;
        bool last = end == g->k;
        tile t = {.a = x->a + i * MR * p->kc + (k - k0) * MR,
                  .b = direct ? b_at(x, j, k) : x->b + (k - k0) * NR,
                  .b_ld = g->b_rs,
                  .b_packed = x->b + (k - k0) * NR,
                  .k = end - k,
                  .left = buf,
                  .left_step = step,
                  .to = c,
                  .to_ld = g->ldc,
                  .cols = cols,
                  .soon = i + 1 < x->row_panels ? c + mr * g->ldc : c_top + NR};
        if (!starts || g->resume) {
            t.from = p->carry ? buf + p->levels * step : c;
            t.from_ld = p->carry ? NR : g->ldc;
            t.from_cols = p->carry ? NR : cols;
        }
        if (last) { /* everything that waits, the rightmost (smallest) subtree first */
            t.merge = (uint64_t)leaf;
            t.bias = g->bias ? g->bias + x->col + c0 : NULL;
            t.accumulate = g->accumulate;
        } else if (ends) { /* the binary counter: as many merges as leaf has trailing ones */
            t.merge = (uint64_t)leaf & ~((uint64_t)leaf + 1);
            int level = __builtin_ctzll((uint64_t)leaf + 1);
            t.to = buf + level * step;
            t.to_ld = t.cols = NR;
        } else if (p->carry) {
            t.to = buf + p->levels * step;
            t.to_ld = t.cols = NR;
        }
        ask_ahead(&t, next);
        tiles[mr][direct](&t);
        k = end;
    }
}

/* Panel j of B against all of the block's rows, for the stage [k0, k0+kc). B's panel is packed
 * here, or by its first tile where its rows are contiguous; A's panels are packed before the first
 * j. */
static void run_panel(const block *x, int64_t k0, int64_t kc, int64_t j, ahead next_b) {
    const tp_gemm *g = x->g;
    bool direct = g->b_cs == 1 && (j + 1) * NR <= x->cols;
    if (!direct)
        pack_b(x->b, (int)gemm_min(NR, x->cols - j * NR), kc, b_at(x, j, k0), g->b_rs, g->b_cs);
    for (int64_t i = 0; i < x->row_panels; i++) {
        ahead next_a = {0};
        if (j == 0) {
            pack_a(x->a + i * MR * x->p->kc, (int)(panel_row(x, i + 1) - panel_row(x, i)), kc,
                   a_at(x, i, k0), g->a_rs, g->a_cs);
            if (i + 1 < x->row_panels)
                next_a = ahead_of(a_at(x, i + 1, k0), g->a_rs, g->a_cs,
                                  panel_row(x, i + 2) - panel_row(x, i + 1), kc);
        }
        run_tile(x, k0, kc, i, j, direct && i == 0, next_a.runs ? &next_a : &next_b);
    }
}

static void run_stage(const block *x, int64_t k0, int64_t kc, int64_t next_kc) {
    const tp_gemm *g = x->g;
    int64_t panels = gemm_ceil_div(x->cols, NR);
    for (int64_t j = 0; j < panels; j++) {
        bool last = j + 1 == panels; /* then the next stage's first panel comes */
        int64_t next = last ? 0 : j + 1, cols = gemm_min(NR, x->cols - next * NR);
        ahead next_b = ahead_of(b_at(x, next, last ? k0 + kc : k0), g->b_cs, g->b_rs, cols,
                                last ? next_kc : kc);
        run_panel(x, k0, kc, j, next_b);
    }
}

static void run_block(block *x) {
    const gemm_plan *p = x->p;
    int64_t k = x->g->k, leaf_end = 0, k1;
    x->row_panels = gemm_ceil_div(x->rows, MR);
    x->tiles = p->local ? 1 : x->row_panels * gemm_ceil_div(x->cols, NR);
    for (int64_t k0 = 0; k0 < k; k0 = k1) { /* a stage ends where its leaf does */
        if (k0 == leaf_end) leaf_end = gemm_min(k0 + p->leaf * p->leaves_per_stage, k);
        k1 = gemm_min(k0 + p->kc, leaf_end);
        run_stage(x, k0, k1 - k0, gemm_min(p->kc, k - k1));
    }
}

/* k = 0: an empty chain. */
static void run_empty(const tp_gemm *g) {
    for (int64_t i = 0; i < g->m; i++)
        for (int64_t j = 0; j < g->n; j++) {
            float *c = &g->c[i * g->ldc + j], y = g->resume ? *c : 0.0f;
            if (g->bias) y = y + g->bias[j];
            *c = g->accumulate ? *c + y : y;
        }
}

static void run_task(const tp_gemm *g, const gemm_plan *p, int64_t t) {
    int64_t ti = t / p->tasks_n, tj = t % p->tasks_n, panels = gemm_ceil_div(g->n, NR);
    int64_t row0 = g->m * ti / p->tasks_m, row1 = g->m * (ti + 1) / p->tasks_m;
    int64_t col0 = panels * tj / p->tasks_n * NR;
    int64_t col1 = gemm_min(panels * (tj + 1) / p->tasks_n * NR, g->n);
    char *work = (char *)g->work + (size_t)t * gemm_task_bytes(p);
    block x = {.g = g,
               .p = p,
               .a = (float *)work,
               .b = (float *)(work + p->a_bytes),
               .buf = (float *)(work + p->a_bytes + p->b_bytes)};
    for (x.col = col0; x.col < col1; x.col += p->nc) {
        x.cols = gemm_min(p->nc, col1 - x.col);
        for (x.row = row0; x.row < row1; x.row += p->mc) {
            x.rows = gemm_min(p->mc, row1 - x.row);
            run_block(&x);
        }
    }
}

typedef struct job {
    const tp_gemm *g;
    gemm_plan p;
} job;

static void run_tasks(void *arg, int64_t begin, int64_t end) {
    const job *w = arg;
    for (int64_t t = begin; t < end; t++) run_task(w->g, &w->p, t);
}

void TP_CAT(tp_gemm_run, TP_ISA)(tp_ctx *c, const tp_gemm *g) {
    if (g->m == 0 || g->n == 0) return;
    if (g->k == 0) {
        run_empty(g);
        return;
    }
    job w = {.g = g, .p = tp_gemm_plan(g, tp_threads(c), MR, NR)};
    if (w.p.few) {
        TP_CAT(tp_gemm_few, TP_ISA)(c, g);
        return;
    }
    if (w.p.tasks_m * w.p.tasks_n == 1)
        run_task(g, &w.p, 0);
    else
        tp_parallel_for(c, w.p.tasks_m * w.p.tasks_n, 1, run_tasks, &w);
}

void TP_CAT(tp_gemm_one, TP_ISA)(const tp_gemm *g) {
    if (g->m == 0 || g->n == 0) return;
    if (g->k == 0) {
        run_empty(g);
        return;
    }
    gemm_plan p = tp_gemm_plan(g, 1, MR, NR);
    if (p.few)
        TP_CAT(tp_gemm_few, TP_ISA)(NULL, g);
    else
        run_task(g, &p, 0);
}
