/* Adding rows into a table by number, in a fixed order, without atomics: the kernel behind the
 * gradients of embedding and gather_rows. Included by their *_cpu.c.
 *
 * A stable counting sort lists, per table row, the positions that add to it. Each table row is then
 * one thread's: positions of one sample form a chain that starts from 0, in order; the samples'
 * sums are added in the tree of ops/layernorm/leaves.h. Samples that do not touch the row have the
 * leaf 0, and adding 0 changes nothing (a sum that starts from +0 is never -0), so they are
 * skipped: the tree over the samples present is walked with a stack. Two neighbours a < b on it are
 * merged before c > b comes if their common node lies below that of b and c, that is, if the
 * highest bit in which a and b differ is lower: (a ^ b) < (b ^ c). */
#ifndef TP_SCATTER_ROWS_H
#define TP_SCATTER_ROWS_H
#include "ops/op.h"
#include <string.h>

enum { SCATTER_COLUMNS = 128, SCATTER_IDS = 16, SCATTER_DEPTH = 65 };

typedef struct scatter_rows {
    const int32_t *ids;
    int64_t n, each; /* positions, and how many of them are one sample's */
    int64_t rows, channels;
    const float *dy, *base; /* (n, channels); (rows, channels) to start from, or NULL for zeros */
    bool add;               /* out += instead of out = ; excludes base */
    float *out;             /* (rows, channels) */
    int64_t *start, *order, *present, npresent; /* per row where its positions begin in order */
} scatter_rows;

static inline size_t scatter_bytes(int64_t rows, int64_t n) {
    return (2 * (size_t)rows + 1 + (size_t)n) * sizeof(int64_t);
}

static inline void scatter_sort(scatter_rows *s, void *workspace) {
    s->start = workspace;
    s->present = s->start + s->rows + 1;
    s->order = s->present + s->rows;
    memset(s->start, 0, ((size_t)s->rows + 1) * sizeof *s->start);
    for (int64_t p = 0; p < s->n; p++) s->start[s->ids[p]]++;
    int64_t at = 0;
    for (int64_t v = 0; v < s->rows; v++) { /* counts become the ends of the ranges … */
        if (s->start[v]) s->present[s->npresent++] = v;
        s->start[v] = at += s->start[v];
    }
    s->start[s->rows] = at;
    for (int64_t p = s->n; p-- > 0;) s->order[--s->start[s->ids[p]]] = p; /* … and these begins */
}

/* Rows begin..end-1 get their start: base or zeros, runs at once. Rows that positions add to are
 * written later unless there is a base. */
static inline void scatter_clear(void *arg, int64_t begin, int64_t end) {
    const scatter_rows *s = arg;
    size_t row_bytes = (size_t)s->channels * sizeof(float);
    if (s->base) {
        memcpy(s->out + begin * s->channels, s->base + begin * s->channels,
               (size_t)(end - begin) * row_bytes);
        return;
    }
    for (int64_t v = begin, run; v < end; v = run + 1) {
        for (run = v; run < end && s->start[run] == s->start[run + 1]; run++) {}
        memset(s->out + v * s->channels, 0, (size_t)(run - v) * row_bytes);
    }
}

/* n columns of table row v. */
static inline void scatter_row(const scatter_rows *s, int64_t v, int64_t column, int64_t n) {
    float sum[SCATTER_DEPTH][SCATTER_COLUMNS];
    int64_t sample[SCATTER_DEPTH];
    int top = -1;
    float *out = s->out + v * s->channels + column;
    for (int64_t i = s->start[v]; i < s->start[v + 1]; i++) {
        int64_t p = s->order[i], now = s->base ? 0 : p / s->each;
        if (top < 0 || sample[top] != now) {
            while (top > 0 && (sample[top - 1] ^ sample[top]) < (sample[top] ^ now)) {
                for (int64_t j = 0; j < n; j++) sum[top - 1][j] += sum[top][j];
                sample[top - 1] = sample[top];
                top--;
            }
            top++;
            for (int64_t j = 0; j < n; j++) sum[top][j] = s->base ? out[j] : 0.0f;
            sample[top] = now;
        }
        const float *restrict dy = s->dy + p * s->channels + column;
        float *restrict chain = sum[top];
        for (int64_t j = 0; j < n; j++) chain[j] += dy[j];
    }
    for (; top > 0; top--)
        for (int64_t j = 0; j < n; j++) sum[top - 1][j] += sum[top][j];
    for (int64_t j = 0; j < n; j++) out[j] = s->add ? out[j] + sum[0][j] : sum[0][j];
}

static inline void scatter_blocks(void *arg, int64_t begin, int64_t end) {
    const scatter_rows *s = arg;
    int64_t columns = (s->channels + SCATTER_COLUMNS - 1) / SCATTER_COLUMNS;
    for (int64_t block = begin; block < end; block++) {
        int64_t first = block / columns * SCATTER_IDS, column = block % columns * SCATTER_COLUMNS;
        int64_t left = s->channels - column;
        for (int64_t i = first; i < first + SCATTER_IDS && i < s->npresent; i++)
            scatter_row(s, s->present[i], column, left < SCATTER_COLUMNS ? left : SCATTER_COLUMNS);
    }
}

/* The indices are checked; fills all of s->out. */
static inline void scatter_run(tp_ctx *c, scatter_rows *s, void *workspace) {
    if (!s->rows || !s->channels) return;
    scatter_sort(s, workspace);
    if (!s->add) tp_parallel_for(c, s->rows, (1 << 18) / s->channels + 1, scatter_clear, s);
    int64_t columns = (s->channels + SCATTER_COLUMNS - 1) / SCATTER_COLUMNS;
    int64_t groups = (s->npresent + SCATTER_IDS - 1) / SCATTER_IDS;
    tp_parallel_for(c, groups * columns, 1, scatter_blocks, s);
}
#endif
