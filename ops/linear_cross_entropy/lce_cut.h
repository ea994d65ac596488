/* How a call is cut: rows into chunks, the vocabulary into tiles. A chunk is a power of two of
 * whole samples, or a part of one long sample, so that the weight's gradient of a chunk is a
 * subtree or a stretch of one leaf's chain. Everything follows from sizes and the chunk attribute.
 */
#ifndef TP_LCE_CUT_H
#define TP_LCE_CUT_H
#include "ops/linear_cross_entropy/lce.h"

typedef struct lce_cut {
    int64_t rows;   /* most rows of a chunk */
    int64_t group;  /* samples of a chunk; 0: a chunk is a part of a sample */
    int64_t parts;  /* chunks per sample where group is 0 */
    int64_t chunks; /* in all */
    int64_t leaves; /* of the tree over groups (or samples) */
    int64_t cols;   /* vocabulary entries per tile, a multiple of 512, unless it is all of V */
    int64_t ld;     /* floats from row to row of the block of logits */
} lce_cut;

typedef struct lce_chunk {
    int64_t row0, rows;
    int64_t leaf, leaf_steps; /* leaf_steps: tokens per sample inside the chunk; 0: one chain */
    bool first, last;         /* begins, ends a leaf */
} lce_chunk;

static inline int64_t lce_min(int64_t a, int64_t b) { return a < b ? a : b; }

/* want: the rows asked for (0: auto), auto_rows: the rows chosen by size. */
static inline lce_cut lce_cut_rows(const lce_dims *d, int64_t want, int64_t auto_rows) {
    lce_cut u = {.rows = want > 0 ? want : auto_rows};
    if (d->n == 0) return (lce_cut){.rows = 0, .group = 1};
    if (d->t <= u.rows) {
        u.group = 1;
        while (2 * u.group * d->t <= u.rows && u.group < d->samples) u.group *= 2;
        u.rows = lce_min(u.group * d->t, d->n);
        u.chunks = u.leaves = (d->samples + u.group - 1) / u.group;
    } else {
        u.rows += u.rows % 2; /* products in bf16 take two steps at a time (gemm.h, resume) */
        u.parts = (d->t + u.rows - 1) / u.rows;
        u.chunks = d->samples * u.parts;
        u.leaves = d->samples;
    }
    return u;
}

/* A block of 8 MB at most: 1024 rows by up to 2048 entries, and a tile of the weight of 4 MB. */
static inline lce_cut lce_cut_tiled(const lce_dims *d, int64_t want) {
    lce_cut u = lce_cut_rows(d, want, 1024);
    int64_t cols = (1 << 20) / (d->c > 0 ? d->c : 1) / 512 * 512;
    cols = cols < 512 ? 512 : cols > 2048 ? 2048 : cols;
    u.cols = lce_min(cols, d->v);
    u.ld = (u.cols + 15) / 16 * 16 + 16; /* + 16: rows a power of two apart collide in L1 */
    return u;
}

/* Whole rows of logits: 16 MB, but 256 rows at least, or reading the weight would set the pace. */
static inline lce_cut lce_cut_whole(const lce_dims *d, int64_t want) {
    int64_t rows = (4 << 20) / d->v;
    lce_cut u = lce_cut_rows(d, want, rows < 256 ? 256 : rows > 4096 ? 4096 : rows);
    u.cols = d->v;
    u.ld = (u.cols + 15) / 16 * 16 + 16;
    return u;
}

static inline lce_chunk lce_chunk_at(const lce_dims *d, const lce_cut *u, int64_t i) {
    if (u->group) {
        int64_t row0 = i * u->group * d->t;
        return (lce_chunk){row0, lce_min(u->group * d->t, d->n - row0), i, d->t, true, true};
    }
    int64_t s = i / u->parts, part = i % u->parts, t0 = part * u->rows;
    return (lce_chunk){s * d->t + t0, lce_min(u->rows, d->t - t0), s, 0,
                       part == 0,     part == u->parts - 1};
}
#endif
