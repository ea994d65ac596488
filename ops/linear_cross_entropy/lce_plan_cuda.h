/* How a call is cut on CUDA, and where its memory lies. The vocabulary is far larger than anything
 * else, so whole logits never exist:
 *
 *   rows pass    `rows` tokens by the whole vocabulary: loss and statistics; their gradient in
 *                place; dx, a product over the vocabulary.
 *   weight pass  `part` tokens, or `group` short leaves, by `cols` entries: the logits once more
 *                (as the backward op does anyway), their gradient in place; dw of those entries.
 *   one pass     dw comes out of the rows pass, which saves the fourth product, and writing and
 *                reading logits twice: about a third of the time. But dw grows chunk by chunk in
 * f32, and V*C floats wait at each level of the tree over samples: several hundred MB for a model
 * of 124 M parameters. So it is taken where the memory that a call may have is enough: a 24th of
 * its whole logits, or what the `chunk` that is asked for takes.
 *
 * Both have the same bits: the same products (tp_cuda_gemm's like_m and like_n) of the same tokens.
 *
 * dw is the sum of leaves in the CPU's tree. A leaf is one sample, or so many (a power of two, at
 * most TP_CUDA_LEAF) as make LCE_LEAF tokens together, since a GPU needs long sums; it is the sum
 * of products over LCE_PART tokens, one continuing the other's sums. So a split of the batch into
 * powers of two of at least a leaf keeps the bits. (`numerics: fast` has no samples: leaves are
 * LCE_LEAF tokens.)
 *
 * Logits are f32 everywhere: rounded to bf16, a logit of 20 is off by up to 1/16 and its
 * probability by 6 %, and statistics in f32 would be for show. Their gradient has the type of w, as
 * tensor cores want it, and overwrites the logits.
 *
 * What enters bits (seg, leaf_t, part) depends on T, C and V only; what memory decides (rows, cols,
 * group, one pass or two) does not show. Unless `chunk` asks for more, a call takes less than 1/20
 * of its whole logits as soon as they are large. */
#ifndef TP_LCE_PLAN_CUDA_H
#define TP_LCE_PLAN_CUDA_H
#include "core/ctx.h"
#include "ops/cuda.h"
#include "ops/linear_cross_entropy/lce.h"
#include "ops/linear_cross_entropy/lce_tree.h"
#include "ops/matmul/gemm_cuda.h"

enum {
    LCE_MIN_ROWS = 128, /* of a chunk: fewer would leave a product nothing to share */
    LCE_MAX_ROWS = 4096,
    LCE_PART = 2048, /* tokens in one product of dw */
    LCE_LEAF = 8192, /* tokens of a leaf, if samples are short */
    LCE_GROUP = 8,   /* leaves side by side, at most */
    LCE_MAX_COLS = 16384,
    /* a tile on Hopper: vocabulary entries, tokens; how many tiles run at once */
    LCE90_COLS = 192,
    LCE90_ROWS = 256,
    LCE90_AT_ONCE = 132,
};

typedef struct lce_plan {
    lce_dims d;
    size_t size; /* of an element of x, w, dx, dw */
    bool fused;  /* Hopper ends the logits where they are made (lce_sm90.h) */
    /* rows pass */
    int64_t rows, ld;      /* tokens of a chunk; floats from row to row (0: no logits are kept) */
    int64_t seg, segments; /* dx is the sum of `segments` products over seg entries (the last less),
                              which run side by side: a chunk has few rows for a whole GPU */
    int64_t seg_stride;    /* floats from one partial dx to the next */
    int64_t row_floats;    /* what a token of a chunk takes in all */
    /* weight pass */
    bool one_pass;         /* there is none: cols is V, and the tile is the chunk of logits */
    int64_t cols, tile_ld; /* vocabulary entries of a tile; floats from row to row */
    int64_t leaf_t;        /* tokens of a leaf; the last may have fewer */
    int64_t part;          /* tokens of a leaf in one product */
    int64_t group, groups; /* leaves side by side */
    int64_t leaf;          /* floats of one leaf's dw, a multiple of 4 */
    /* memory */
    int32_t *target; /* (n): -1 where the token counts for nothing */
    float *coef;     /* (n,4): lse, a, b, d; before train's row pass the weight */
    float *loss;     /* train (n): coef*loss; (samples): their sums */
    float *sums;
    float *logits, *partial;       /* rows pass */
    float *sums90;                 /* fused: (rows, tiles, 4), a tile's sums */
    float *tile, *leaves, *places; /* weight pass, in the same bytes unless it is one pass */
    size_t bytes;
} lce_plan;

static inline int64_t lce_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static inline int64_t lce_least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t lce_most(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t lce_tiles90(int64_t v) { return (v + LCE90_COLS - 1) / LCE90_COLS; }

/* By what does not depend on the number of tokens, as its sums have an order of their own. It is a
 * product of ours. */
static inline bool lce_fuses(const tp_call *k, const lce_dims *d) {
    const tp_tensor *x = k->in[LCE_X], *w = k->in[LCE_W];
    return tp_cuda_sm(k->ctx) == 90 && !k->ctx->as_decoded && k->ctx->gemm != TP_GEMM_CUBLASLT &&
           x->dtype == TP_BF16 && !d->trans_w && !(d->softcap > 0) && d->temperature == 1 &&
           d->c > 0 && d->c % 8 == 0 && tp_aligned(x->data, 16) && tp_aligned(w->data, 16);
}

/* stats: the pass makes them. Logits are f32, but where their gradient comes at once. */
static inline void lce_plan_rows(lce_plan *p, int64_t want, bool stats, bool dx, size_t budget) {
    const lce_dims *d = &p->d;
    int64_t c = lce_most(d->c, 1), tiles = lce_least(lce_most(6144 / c, 1), 8);
    int64_t most = LCE_MAX_ROWS;
    p->ld = lce_up(d->v, TP_CUDA_LOGITS_PITCH);
    if (p->fused && !stats) p->ld = lce_up(d->v, 16) / 2;
    if (p->fused && !dx) p->ld = 0, most = d->n;
    tiles = lce_most(lce_least(tiles, d->v / 512), 1);
    p->seg = lce_up((d->v + tiles - 1) / tiles, 64);
    p->segments = (d->v + p->seg - 1) / p->seg;
    p->row_floats = p->ld + (dx && p->segments > 1 ? p->segments * c : 0) +
                    (p->fused && stats ? 4 * lce_tiles90(d->v) : 0);
    int64_t fit = (int64_t)(budget / ((size_t)lce_most(p->row_floats, 1) * sizeof(float)));
    const int64_t unit = p->fused && fit >= LCE90_ROWS ? LCE90_ROWS : LCE_MIN_ROWS;
    if (fit > unit) fit -= fit % unit;
    if (p->fused && !dx && fit >= d->n - d->n / 16) fit = d->n; /* not a few rows more for a rest */
    fit = lce_least(lce_most(fit, LCE_MIN_ROWS), most);
    p->rows = lce_least(want > 0 ? want : fit, d->n);
    p->seg_stride = dx && p->segments > 1 ? lce_up(p->rows * c, 4) : 0;
}

/* Floats that wait in the tree over the leaves for one entry of the vocabulary, and the leaves. */
static inline int64_t lce_waiting(const lce_plan *p) {
    int64_t places = p->groups > 0 ? lce_tree_places(p->groups - 1) : 0;
    return (p->group + places) * p->d.c;
}

static inline void lce_plan_leaves(lce_plan *p, bool fast) {
    const lce_dims *d = &p->d;
    int64_t samples = 1;
    while (samples < TP_CUDA_LEAF && 2 * samples * d->t <= LCE_LEAF) samples *= 2;
    p->leaf_t = lce_least(fast ? (int64_t)LCE_LEAF : samples * d->t, d->n);
    p->part = lce_least(p->leaf_t, LCE_PART);
}

static inline void lce_plan_groups(lce_plan *p, int64_t group) {
    int64_t leaves = p->leaf_t ? (p->d.n + p->leaf_t - 1) / p->leaf_t : 0;
    p->groups = (leaves + group - 1) / group;
    p->group = lce_most(lce_least(group, leaves), 1);
}

/* Gradient and weight from the same chunks: of whole leaves, or whole parts of one leaf. */
static inline bool lce_plan_one_pass(lce_plan *p, int64_t want, size_t budget) {
    const lce_dims *d = &p->d;
    int64_t rows = want;
    lce_plan_groups(p, 1);
    if (!d->n || !d->c) return false;
    if (want <= 0) {
        size_t floats = budget / sizeof(float), waiting = (size_t)(lce_waiting(p) * d->v);
        rows = waiting < floats ? (int64_t)((floats - waiting) / (size_t)p->row_floats) : 0;
        rows = lce_least(rows, LCE_MAX_ROWS);
    }
    if (rows < p->part) return false;
    p->rows = rows < p->leaf_t ? rows / p->part * p->part : rows / p->leaf_t * p->leaf_t;
    p->rows = lce_least(p->rows, d->n);
    p->seg_stride = p->segments > 1 ? lce_up(p->rows * d->c, 4) : 0;
    p->cols = d->v;
    p->tile_ld = p->ld;
    p->leaf = lce_up(lce_up(d->v, 8) * d->c, 4);
    return true;
}

/* The most columns up to `fit` (at least a tile) that leave Hopper's last round of tiles nearly
 * full. */
static inline int64_t lce_cols90(const lce_plan *p, int64_t fit) {
    const int64_t down = (p->group * p->part + LCE90_ROWS - 1) / LCE90_ROWS;
    const int64_t most = fit / LCE90_COLS;
    const int64_t rounds = (most * down + LCE90_AT_ONCE / 8) / LCE90_AT_ONCE;
    const int64_t across = rounds ? rounds * LCE90_AT_ONCE / lce_most(down, 1) : most;
    return lce_least(across, most) * LCE90_COLS;
}

static inline void lce_plan_weight(lce_plan *p, size_t budget) {
    const lce_dims *d = &p->d;
    int64_t floats = (int64_t)(budget / sizeof(float)), half = p->fused ? 2 : 1; /* bf16 at once */
    for (int64_t group = p->leaf_t > p->part ? 1 : LCE_GROUP;; group /= 2) {
        lce_plan_groups(p, group);
        p->cols = floats / lce_most(p->group * p->part / half + lce_waiting(p), 1);
        if (group == 1 || (p->group * p->part <= LCE_PART && p->cols >= 2048)) break;
    }
    p->cols = lce_least(lce_most(p->cols, 256), LCE_MAX_COLS);
    p->cols = p->fused ? lce_cols90(p, p->cols) : p->cols - p->cols % 256;
    p->cols = lce_least(p->cols, d->v);
    p->tile_ld = p->fused ? lce_up(p->cols, 16) / 2 : lce_up(p->cols, 8);
    p->leaf = lce_up(lce_up(p->cols, 8) * d->c, 4);
}

/* The next count*4 bytes of the workspace, NULL for none; without a base only counts. */
static inline void *lce_carve(char *base, size_t *used, int64_t count) {
    void *p = base && count ? base + *used : NULL;
    *used += ((size_t)count * 4 + 63) & ~(size_t)63;
    return p;
}

/* base NULL: only the sizes. */
static inline lce_plan lce_plan_of(const tp_call *k, bool stats, bool dx, bool dw, void *base) {
    lce_plan p = {};
    char *b = (char *)base;
    p.d = lce_dims_of(k);
    p.size = tp_dtype_size(k->in[LCE_X]->dtype);
    p.fused = lce_fuses(k, &p.d);
    int64_t n = p.d.n, want = ((const lce_attr *)k->attr)->o.chunk;
    size_t budget = (size_t)n * (size_t)p.d.v / 24 * p.size, at, end;
    lce_plan_rows(&p, want, stats, dx, budget);
    lce_plan_leaves(&p, k->ctx->fast);
    p.one_pass = dx && dw && lce_plan_one_pass(&p, want, budget);
    if (!p.one_pass) lce_plan_weight(&p, budget);
    bool train = stats && (dx || dw);
    p.target = (int32_t *)lce_carve(b, &p.bytes, n);
    p.coef = (float *)lce_carve(b, &p.bytes, dx || dw ? 4 * n : 0);
    p.loss = (float *)lce_carve(b, &p.bytes, train ? n : 0);
    p.sums = (float *)lce_carve(b, &p.bytes, train ? p.d.samples : 0);
    at = end = p.bytes;
    if (stats || dx) {
        p.logits = (float *)lce_carve(b, &at, p.rows * p.ld);
        p.partial = (float *)lce_carve(b, &at, dx ? p.segments * p.seg_stride : 0);
        p.sums90 =
            (float *)lce_carve(b, &at, p.fused && stats ? p.rows * 4 * lce_tiles90(p.d.v) : 0);
        end = at;
        if (!p.one_pass) at = p.bytes;
    }
    if (dw && n) {
        p.tile = p.one_pass ? p.logits : (float *)lce_carve(b, &at, p.group * p.part * p.tile_ld);
        p.leaves = (float *)lce_carve(b, &at, p.group * p.leaf);
        p.places = (float *)lce_carve(b, &at, lce_tree_places(p.groups - 1) * p.leaf);
        end = at > end ? at : end;
    }
    p.bytes = end;
    return p;
}
#endif
