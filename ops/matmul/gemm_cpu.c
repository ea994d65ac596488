/* gemm_cpu: the matrix product of gemm.h, compiled once per instruction set.
 *
 * A block of A and a panel of B are copied ("packed") into the order in which the tile
 * function reads them, and the tile function keeps MR x NR elements of C in registers for a whole
 * stage of k: for all the samples in it, one after the other. A chain longer than a stage is put
 * down in C and taken up again, which does not change it.
 *
 * In bf16 a packed element is a pair of steps, as large as a float. So everything is the same with
 * half as many steps ("units"), but for packing and for what a step of the tile does. */
#include "ops/matmul/gemm_gelu.h"
#include "ops/matmul/gemm_pack.h"

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
enum { A_GROUP = 4 }; /* row panels of A packed at a time, where that pays */

/* ---- what is wanted soon -------------------------------------------------------------------- */
/* Operands are packed in short runs from many rows, which the hardware does not foresee. So while
 * a tile is multiplied, the lines that are packed after it are asked for, one for each step of k.
 */
enum { WANTS = 2 };
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

/* ---- the tile ------------------------------------------------------------------------------- */
enum {
    F32,
    BF16,
    DOT,
    KINDS
}; /* of products: gemm.h; bf16 by FMAs, and by the instruction for it */

/* A stage of k for MR x NR elements: the end of a chain, whole chains, or the start of one. */
typedef struct tile {
    const float *a;    /* packed: a[k*MR + i] */
    const float *b;    /* packed: b[k*NR + j], or rows of B where they lie */
    int64_t b_ld;      /* such rows' distance */
    float *b_packed;   /* where to pack them while they pass */
    int64_t k, leaf;   /* units; of them, units per leaf (the last leaf may be shorter) */
    uint64_t number;   /* of the first leaf */
    bool starts, ends; /* the first step starts a leaf; the last step ends one */
    bool last;         /* the last step ends all of k */
    ahead want[WANTS]; /* lines wanted soon */
    float *part;       /* where a chain waits that goes on from stage to stage */
    int64_t part_ld;
    int part_cols;
    float *small, *left; /* subtrees that wait: levels below small_levels, and from there on */
    int small_levels;
    int64_t left_step; /* floats from level to level at left */
    const float *bias; /* or NULL */
    bool accumulate;   /* add what lies at `to` */
    float *to;
    int64_t to_ld;
    int cols;          /* that exist at `to` */
    const float *soon; /* where in C the next tile lies */
} tile;

static float *level_at(const tile *t, int level) {
    return level < t->small_levels ? t->small + level * MR * NR
                                   : t->left + (level - t->small_levels) * t->left_step;
}

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

INLINE void put(v16 acc[MR][NV], int mr, float *p, int64_t ld, int cols) {
#pragma GCC unroll 14
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) {
            float *q = p + i * ld + v * TP_LANES;
            if (cols == NR)
                v16_store(q, acc[i][v]);
            else
                v16_store_n(q, acc[i][v], v16_lanes(cols, v));
        }
}

INLINE void start(v16 acc[MR][NV], int mr, const float *from, int64_t ld, int cols) {
#pragma GCC unroll 14
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) {
            const float *q = from + i * ld + v * TP_LANES;
            if (!from)
                acc[i][v] = v16_zero();
            else
                acc[i][v] = cols == NR ? v16_load(q) : v16_load_n(q, v16_lanes(cols, v));
        }
}

/* The lines that the steps ask for, one each: those of t->want in turn, then none new. Runs of one
 * or two lines, the rows of a panel of B, are walked without a branch: after a step of d bytes
 * comes one of sum - d. */
typedef struct asking {
    const char *line;
    int64_t d, sum, left; /* left: lines until ask_next */
    ahead now;
    int next;
} asking;

INLINE void ask_next(asking *q, const tile *t) {
    while (q->now.runs <= 0) {
        if (q->next == WANTS) {
            q->line = (const char *)t->b_packed; /* in cache anyway */
            q->d = q->sum = 0;
            q->left = INT64_MAX;
            return;
        }
        q->now = t->want[q->next++];
    }
    int64_t runs = q->now.lines <= 2 ? q->now.runs : 1;
    q->line = q->now.run;
    q->left = q->now.lines * runs;
    q->d = q->now.lines == 1 ? q->now.stride : 64;
    q->sum = q->now.lines <= 2 ? q->now.stride * (3 - q->now.lines) : 128;
    q->now.run += q->now.stride * runs;
    q->now.runs -= runs;
}

INLINE void tile_rows(const int mr, const bool direct, const int kind, const tile *t) {
    v16 acc[MR][NV];
    const float *a = t->a, *b = t->b, *from = t->starts ? NULL : t->part;
    const int64_t b_ld = direct ? t->b_ld : NR, b_step = direct && kind != F32 ? 2 * b_ld : b_ld;
    float *packed = t->b_packed;
    asking q = {0};
    int64_t k = t->k;
#pragma GCC unroll 14
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++)
            __builtin_prefetch(t->soon + i * t->to_ld + v * TP_LANES, 1, 3);
    for (uint64_t leaf = t->number;; leaf++) {
        int64_t rest = gemm_min(k, t->leaf);
        k -= rest;
        if (from)
            start(acc, mr, from, t->part_ld, t->part_cols);
        else
            start(acc, mr, NULL, 0, NR);
        from = NULL;
        while (rest > 0) {
            if (q.left <= 0) ask_next(&q, t);
            int64_t steps = gemm_min(rest, kind == F32 ? q.left : q.left / 2 + q.left % 2);
            rest -= steps;
            q.left -= kind == F32 ? steps : 2 * steps;
            for (; steps > 0; steps--, a += MR, b += b_step, q.line += q.d, q.d = q.sum - q.d) {
                v16 bk[NV];
#pragma GCC unroll 2
                for (int v = 0; v < NV; v++) {
                    bk[v] = v16_load(b + v * TP_LANES);
                    if (direct && kind != F32)
                        bk[v] = v16_pairs(kind == DOT, bk[v], v16_load(b + b_ld + v * TP_LANES));
                    if (direct) v16_store(packed + v * TP_LANES, bk[v]);
                }
                packed += direct ? NR : 0;
                __builtin_prefetch(q.line, 0, 2);
                if (kind != F32) {
                    q.line += q.d, q.d = q.sum - q.d;
                    __builtin_prefetch(q.line, 0, 2);
                }
#pragma GCC unroll 14
                for (int i = 0; i < mr; i++) {
                    v16 ai = v16_set1(a[i]);
#pragma GCC unroll 2
                    for (int v = 0; v < NV; v++)
                        acc[i][v] = kind == F32 ? v16_fma(ai, bk[v], acc[i][v])
                                                : v16_dot2(kind == DOT, ai, bk[v], acc[i][v]);
                }
            }
        }
        if (k == 0 && !t->ends) {
            put(acc, mr, t->part, t->part_ld, t->part_cols);
            return;
        }
        /* the binary counter: as many merges as leaf has trailing ones; at the very end all that
         * waits, the rightmost (smallest) subtree first */
        bool last = k == 0 && t->last;
        uint64_t merge = last ? leaf : leaf & ~(leaf + 1);
        for (int level = 0; merge; merge >>= 1, level++)
            if (merge & 1) add_left(acc, mr, level_at(t, level), NR, NR);
        if (last) break;
        put(acc, mr, level_at(t, __builtin_ctzll(leaf + 1)), NR, NR);
        if (k == 0) return;
    }
    if (t->bias) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) {
            v16 x = v16_load_n(t->bias + v * TP_LANES, v16_lanes(t->cols, v));
#pragma GCC unroll 14
            for (int i = 0; i < mr; i++) acc[i][v] = v16_add(acc[i][v], x);
        }
    }
    if (t->accumulate) add_left(acc, mr, t->to, t->to_ld, t->cols);
    put(acc, mr, t->to, t->to_ld, t->cols);
}

/* One function per kind and number of rows, so that a matrix of any height is cut without waste;
 * and one more each that reads B where it lies and packs it in passing, which costs next to
 * nothing. */
#if TP_ISA >= 4
#define TILE(r) TILE_OF(F32, r) TILE_OF(BF16, r) TILE_OF(DOT, r)
#else
#define TILE(r) TILE_OF(F32, r) TILE_OF(BF16, r)
#endif
#define TILE_OF(kind, r)                                                                           \
    static void tile_##kind##_##r(const tile *t) { tile_rows(r, false, kind, t); }                 \
    static void first_##kind##_##r(const tile *t) { tile_rows(r, true, kind, t); }
#if TP_ISA >= 4
#define EACH_HEIGHT(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
#elif TP_ISA == 3
#define EACH_HEIGHT(X) X(1) X(2) X(3) X(4) X(5) X(6)
#else
#define EACH_HEIGHT(X) X(1) X(2) X(3) X(4)
#endif
EACH_HEIGHT(TILE)
#define F32_(r) {tile_F32_##r, first_F32_##r},
#define BF16_(r) {tile_BF16_##r, first_BF16_##r},
#define DOT_(r) {tile_DOT_##r, first_DOT_##r},
static void (*const tiles[KINDS][MR + 1][2])(const tile *) = {
    [F32] = {{NULL, NULL}, EACH_HEIGHT(F32_)},
    [BF16] = {{NULL, NULL}, EACH_HEIGHT(BF16_)},
#if TP_ISA >= 4
    [DOT] = {{NULL, NULL}, EACH_HEIGHT(DOT_)},
#endif
};

/* Rows of the tile, and whether it is the first of its panel: in bf16 without denormals, as the
 * instruction for it has none; neither have then the sums over leaves and with what lies in C. */
static void run_tile(int kind, int64_t rows, bool first, const tile *t) {
    if (kind == F32) {
        tiles[F32][rows][first](t);
        return;
    }
    unsigned was = gemm_no_denormals();
    tiles[kind][rows][first](t);
    gemm_denormals(was);
}

/* ---- blocks and tasks ----------------------------------------------------------------------- */
typedef struct block { /* a part of C with its packed operands and buffers */
    const tp_gemm *g;
    const gemm_plan *p;
    int kind;
    int64_t row, rows;
    int64_t row_panels, few, taller; /* row panels hold `few` rows, the first `taller` one more */
    int64_t col, cols, col_panels;
    float *a, *b, *small, *left; /* left: (level, tile, MR, NR); the last level is the
                                             carried chain */
} block;

/* A panel of B: columns NR*j and on, the units [k0, k0+kc) of a stage. */
typedef struct panel {
    int64_t j, k0, kc;
} panel;

static int64_t panel_row(const block *x, int64_t i) { return i * x->few + gemm_min(i, x->taller); }

/* Steps of k before a unit: in bf16 a unit is two of them, but one at the end of an odd leaf. */
static int64_t step_at(const block *x, int64_t unit) {
    const gemm_plan *p = x->p;
    if (x->kind == F32) return unit;
    return gemm_min(unit / p->leaf * p->leaf_steps + unit % p->leaf * 2, x->g->k);
}
static int64_t steps_in(const block *x, int64_t unit, int64_t units) {
    return step_at(x, unit + units) - step_at(x, unit);
}

/* At a unit of k. */
static const float *a_at(const block *x, int64_t i, int64_t unit) {
    return x->g->a + (x->row + panel_row(x, i)) * x->g->a_rs + step_at(x, unit) * x->g->a_cs;
}
static const float *b_at(const block *x, int64_t j, int64_t unit) {
    return x->g->b + step_at(x, unit) * x->g->b_rs + (x->col + j * NR) * x->g->b_cs;
}

/* Packs `width` rows of A or columns of B, of which `count` are there: units [k0, k0+kc) of k. */
INLINE void pack(const block *x, float *dst, const int width, int count, int64_t k0, int64_t kc,
                 const float *src, int64_t s_i, int64_t s_k) {
    if (x->kind == F32) {
        pack_panel(dst, width, count, kc, src, s_i, s_k);
        return;
    }
    /* leaf by leaf, where one ends in half a unit */
    int64_t end = k0 + kc, leaf = x->p->leaf_steps % 2 ? x->p->leaf : end;
    for (int64_t u = k0, next; u < end; u = next) {
        next = gemm_min((u / leaf + 1) * leaf, end);
        int64_t steps = steps_in(x, u, next - u);
        if (x->kind == DOT)
            pack_pairs(true, dst, width, count, steps, src, s_i, s_k);
        else
            pack_pairs(false, dst, width, count, steps, src, s_i, s_k);
        dst += (next - u) * width;
        src += steps * s_k;
    }
}
static void pack_a(const block *x, float *dst, int count, const panel *v, const float *src) {
    pack(x, dst, MR, count, v->k0, v->kc, src, x->g->a_rs, x->g->a_cs);
}
static void pack_b(const block *x, float *dst, int count, const panel *v, const float *src) {
    pack(x, dst, NR, count, v->k0, v->kc, src, x->g->b_cs, x->g->b_rs);
}

/* The first panel of the stage at k0 (kc 0: there is none). A stage ends where its leaves do. */
static panel stage_at(const block *x, int64_t k0) {
    const gemm_plan *p = x->p;
    int64_t group = p->leaf * p->leaves_per_stage;
    int64_t end = gemm_min((k0 / group + 1) * group, p->k);
    return (panel){0, k0, gemm_min(p->kc, end - k0)};
}
static panel panel_after(const block *x, panel v) {
    if (++v.j < x->col_panels) return v;
    return v.k0 + v.kc < x->p->k ? stage_at(x, v.k0 + v.kc) : (panel){0};
}

/* Everything of a panel's tiles that is the same for all of them and not about speed. */
static tile tile_of(const block *x, const panel *v) {
    const tp_gemm *g = x->g;
    const gemm_plan *p = x->p;
    int64_t c0 = v->j * NR, end = v->k0 + v->kc;
    int cols = (int)gemm_min(NR, x->cols - c0);
    return (tile){.b_ld = g->b_rs,
                  .b_packed = x->b,
                  .k = v->kc,
                  .leaf = p->leaf,
                  .number = (uint64_t)(v->k0 / p->leaf),
                  .starts = v->k0 % p->leaf == 0 && !g->resume,
                  .ends = end == p->k || end % p->leaf == 0,
                  .last = end == p->k,
                  .part_ld = p->carry ? NR : g->ldc,
                  .part_cols = p->carry ? NR : cols,
                  .small = x->small,
                  .small_levels = p->small_levels,
                  .left_step = x->row_panels * x->col_panels * MR * NR,
                  .bias = g->bias ? g->bias + x->col + c0 : NULL,
                  .accumulate = g->accumulate,
                  .to_ld = g->ldc,
                  .cols = cols};
}

/* What is row panel i's own. */
static void place_tile(const block *x, const panel *v, int64_t i, tile *t) {
    const tp_gemm *g = x->g;
    const gemm_plan *p = x->p;
    float *top = g->c + x->row * g->ldc + x->col + v->j * NR;
    t->a = x->a + i * MR * p->kc;
    t->b = x->b;
    t->to = top + panel_row(x, i) * g->ldc;
    t->soon = i + 1 < x->row_panels ? top + panel_row(x, i + 1) * g->ldc : top + NR;
    t->left = x->left + (v->j * x->row_panels + i) * MR * NR;
    t->part = p->carry ? t->left + (p->levels - p->small_levels) * t->left_step : t->to;
    t->want[0].runs = t->want[1].runs = 0;
}

/* Packs row panels [i, i+n) of A for the stage of v. Columns of A that lie contiguous are read once
 * for several panels: a panel's 14 values of a column are less than a cache line. */
static void pack_rows(const block *x, const panel *v, int64_t i, int64_t n) {
    const tp_gemm *g = x->g;
    int64_t step = MR * x->p->kc, row[A_GROUP + 1];
    float *to = x->a + i * step;
    for (int64_t r = 0; r <= n; r++) row[r] = panel_row(x, i + r);
    if (TP_ISA < 4 || g->a_rs != 1 || x->kind != F32) {
        for (int64_t r = 0; r < n; r++)
            pack_a(x, to + r * step, (int)(row[r + 1] - row[r]), v, a_at(x, i + r, v->k0));
        return;
    }
    const float *from = a_at(x, i, v->k0);
    for (int64_t k = 0; k < v->kc; k++, from += g->a_cs)
        for (int64_t r = 0; r < n; r++) {
            int count = (int)(row[r + 1] - row[r]);
            v16_store_n(to + r * step + k * MR, v16_load_n(from + row[r] - row[0], count), count);
        }
}

/* A's panels are packed in groups, each before its first tile; the tiles of a group ask for the
 * next one, each for its share of the steps. */
static void pack_group(const block *x, const panel *now, int64_t i, tile *t) {
    const tp_gemm *g = x->g;
    int64_t n = x->row_panels, size = g->a_rs == 1 ? A_GROUP : 1, at = i % size;
    if (at == 0) pack_rows(x, now, i, gemm_min(size, n - i));
    int64_t next = i - at + size, end = gemm_min(next + size, n);
    if (next >= n) return;
    int64_t k = now->kc * at / size, steps = now->kc * (at + 1) / size - k;
    t->want[0] = ahead_of(a_at(x, next, now->k0 + k), g->a_rs, g->a_cs,
                          panel_row(x, end) - panel_row(x, next), steps_in(x, now->k0 + k, steps));
}

/* Gives the tile its share of the lines of the next panel of B, of as many as it asks for. */
static void ask_panel(tile *t, ahead *next, int64_t lines) {
    lines -= t->want[0].runs * t->want[0].lines;
    if (next->runs <= 0 || lines <= 0) return;
    t->want[1] = *next;
    t->want[1].runs = gemm_min(next->runs, gemm_ceil_div(lines, next->lines));
    next->run += next->stride * t->want[1].runs;
    next->runs -= t->want[1].runs;
}

/* A panel of B against all of the block's rows. It is packed here, or by its first tile where its
 * rows are contiguous. */
static void run_panel(const block *x, const panel *v, const panel *after) {
    const tp_gemm *g = x->g;
    int64_t cols = gemm_min(NR, x->cols - v->j * NR);
    bool whole_units = x->kind == F32 || (x->p->leaf_steps % 2 == 0 && g->k % 2 == 0);
    bool direct = g->b_cs == 1 && cols == NR && whole_units;
    if (!direct) pack_b(x, x->b, (int)cols, v, b_at(x, v->j, v->k0));
    ahead next = ahead_of(b_at(x, after->j, after->k0), g->b_cs, g->b_rs,
                          gemm_min(NR, x->cols - after->j * NR), steps_in(x, after->k0, after->kc));
    tile t = tile_of(x, v);
    for (int64_t i = 0; i < x->row_panels; i++) {
        place_tile(x, v, i, &t);
        if (v->j == 0) pack_group(x, v, i, &t);
        ask_panel(&t, &next, x->kind == F32 ? t.k : 2 * t.k);
        if (direct && i == 0) t.b = b_at(x, v->j, v->k0);
        if (g->gelu && t.last)
            gemm_gelu_soon(g, t.to - g->c, panel_row(x, i + 1) - panel_row(x, i));
        run_tile(x->kind, x->few + (i < x->taller), direct && i == 0, &t);
        if (g->gelu && t.last) {
            int64_t row = panel_row(x, i);
            gemm_gelu(g, x->row + row, panel_row(x, i + 1) - row, x->col + v->j * NR, cols);
        }
    }
}

static void run_block(block *x) {
    x->row_panels = gemm_ceil_div(x->rows, MR);
    x->few = x->rows / x->row_panels;
    x->taller = x->rows % x->row_panels;
    x->col_panels = gemm_ceil_div(x->cols, NR);
    for (panel v = stage_at(x, 0), after; v.kc > 0; v = after) {
        after = panel_after(x, v);
        run_panel(x, &v, &after);
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
    if (g->gelu) gemm_gelu(g, 0, g->m, 0, g->n);
}

static void run_task(const tp_gemm *g, const gemm_plan *p, int64_t t) {
    int64_t ti = t / p->tasks_n, tj = t % p->tasks_n, panels = gemm_ceil_div(g->n, NR);
    int64_t row0 = g->m * ti / p->tasks_m, row1 = g->m * (ti + 1) / p->tasks_m;
    int64_t col0 = panels * tj / p->tasks_n * NR;
    int64_t col1 = gemm_min(panels * (tj + 1) / p->tasks_n * NR, g->n);
    char *work = (char *)g->work + (size_t)t * gemm_task_bytes(p);
    block x = {.g = g,
               .p = p,
               .kind = !g->bf16                                         ? F32
                       : TP_ISA >= 4 && !g->no_dot && tp_gemm_has_dot() ? DOT
                                                                        : BF16,
               .a = (float *)work,
               .b = (float *)(work + p->a_bytes),
               .small = (float *)(work + p->a_bytes + p->b_bytes)};
    x.left = x.small + p->small_levels * MR * NR;
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
