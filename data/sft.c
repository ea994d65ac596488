/* Owns the order of examples and their packing into rows.
 *
 * Each epoch the examples are shuffled (a keyed permutation). Unpacked, row r is the r-th of them.
 * Packed, rows are filled in that order, and an example that does not fit begins the next row. */
#include "data/sample_order.h"
#include "data/sft_data.h"
#include <string.h>

struct tp_sft {
    const tp_sft_data *d;
    tp_sft_opts o;
    int64_t at;                      /* own rows handed out; the samples they are: see sample_of */
    struct {                         /* the epoch that `row` looks into */
        int64_t number, first, rows; /* first: samples before it */
        tp_perm perm;
        int64_t *begin; /* packed: (rows+1) place of each row's first example in the order */
    } epoch;
    int64_t first_rows;
    int32_t *inputs, *targets, *segments, *positions; /* (batch,T) */
};

void tp_sft_free(tp_sft *s) {
    if (!s) return;
    tp_free(s->epoch.begin);
    tp_free(s->inputs);
    tp_free(s->targets);
    tp_free(s->segments);
    tp_free(s->positions);
    tp_free(s);
}

/* ---- rows ----------------------------------------------------------------------------------- */
/* The i-th example of this epoch's order. */
static int64_t example_at(const tp_sft *s, int64_t i) {
    return s->o.sequential ? i : (int64_t)tp_perm_at(&s->epoch.perm, (uint64_t)i);
}

static int64_t inputs_of(const tp_sft *s, int64_t example) {
    return s->d->offset[example + 1] - s->d->offset[example] - 1;
}

enum { PERM_SFT = 7 }; /* which permutation, of those that one seed keys */

static void open_epoch(tp_sft *s, int64_t number, int64_t first) {
    int64_t n = s->d->info.examples, rows = 0, used = s->o.T;
    s->epoch.number = number;
    s->epoch.first = first;
    s->epoch.rows = n;
    tp_perm_init(&s->epoch.perm, (uint64_t)n, s->o.seed, (uint64_t)number, PERM_SFT);
    for (int64_t i = 0; i < n && s->o.pack; i++) {
        int64_t m = inputs_of(s, example_at(s, i));
        if (used + m > s->o.T) {
            s->epoch.begin[rows++] = i;
            used = 0;
        }
        used += m;
    }
    if (!s->o.pack) return;
    s->epoch.begin[rows] = n;
    s->epoch.rows = rows;
}

/* Opens the epoch that holds this sample; false if there is none (sequential). */
static bool find_epoch(tp_sft *s, int64_t sample) {
    if (sample < s->epoch.first) open_epoch(s, 0, 0);
    while (sample >= s->epoch.first + s->epoch.rows) {
        if (s->o.sequential) return false;
        if (s->o.pack)
            open_epoch(s, s->epoch.number + 1, s->epoch.first + s->epoch.rows);
        else
            open_epoch(s, sample / s->epoch.rows, sample / s->epoch.rows * s->epoch.rows);
    }
    return true;
}

/* The examples of a sample of the open epoch: places [*from, *to) of its order. */
static void places(const tp_sft *s, int64_t sample, int64_t *from, int64_t *to) {
    int64_t row = sample - s->epoch.first;
    *from = s->o.pack ? s->epoch.begin[row] : row;
    *to = s->o.pack ? s->epoch.begin[row + 1] : row + 1;
}

tp_status tp_sft_new(tp_sft **out, tp_ctx *c, const tp_sft_data *d, const tp_sft_opts *opts) {
    *out = NULL;
    tp_sft *s = tp_calloc(c, 1, sizeof *s);
    if (!s) return tp_error_status(c);
    s->d = d;
    s->o = *opts;
    if (!s->o.period) s->o.period = s->o.share = s->o.batch;
    size_t cells = (size_t)(s->o.batch * s->o.T);
    s->inputs = tp_malloc(c, cells * sizeof(int32_t));
    s->targets = tp_malloc(c, cells * sizeof(int32_t));
    if (s->o.pack) {
        s->segments = tp_malloc(c, cells * sizeof(int32_t));
        s->positions = tp_malloc(c, cells * sizeof(int32_t));
        s->epoch.begin = tp_malloc(c, (size_t)(d->info.examples + 1) * sizeof(int64_t));
    }
    if (!s->inputs || !s->targets ||
        (s->o.pack && (!s->segments || !s->positions || !s->epoch.begin))) {
        tp_sft_free(s);
        return tp_error_status(c);
    }
    open_epoch(s, 0, 0);
    s->first_rows = s->epoch.rows;
    *out = s;
    return TP_OK;
}

int64_t tp_sft_rows(const tp_sft *s) { return s->first_rows; }

static int64_t sample_of(const tp_sft *s, int64_t own) {
    return own / s->o.share * s->o.period + s->o.first + own % s->o.share;
}

tp_status tp_sft_seek(tp_sft *s, tp_ctx *c, int64_t sample) {
    if (sample < 0 || sample % s->o.period)
        return tp_fail(c, TP_EARG, "sft: sample %lld does not begin a batch", (long long)sample);
    s->at = sample / s->o.period * s->o.share;
    return TP_OK;
}

tp_status tp_sft_count_targets(tp_sft *s, tp_ctx *c, int64_t first, int64_t n, int64_t *targets) {
    (void)c;
    *targets = 0;
    for (int64_t i = first; i < first + n && find_epoch(s, i); i++) {
        int64_t from, to;
        places(s, i, &from, &to);
        for (; from < to; from++) {
            int64_t x = example_at(s, from);
            for (int64_t j = s->d->offset[x] + 1; j < s->d->offset[x + 1]; j++)
                *targets += s->d->trained[j];
        }
    }
    return TP_OK;
}

/* ---- batches -------------------------------------------------------------------------------- */
static void fill_row(tp_sft *s, int64_t sample, int64_t row, tp_batch *b) {
    int64_t T = s->o.T, at = row * T, end = at + T, from, to;
    places(s, sample, &from, &to);
    for (int32_t segment = 0; from < to; from++, segment++) {
        int64_t x = example_at(s, from), begin = s->d->offset[x], n = inputs_of(s, x);
        for (int64_t i = 0; i < n; i++, at++) {
            int32_t next = s->d->ids[begin + i + 1];
            bool counts = s->d->trained[begin + i + 1];
            s->inputs[at] = s->d->ids[begin + i];
            s->targets[at] = counts ? next : TP_IGNORE;
            b->n_targets += counts;
            b->target_bytes += counts ? s->d->id_bytes[next] : 0;
            if (!s->o.pack) continue;
            s->segments[at] = segment;
            s->positions[at] = (int32_t)i;
        }
    }
    for (; at < end; at++) { /* padding */
        s->inputs[at] = 0;
        s->targets[at] = TP_IGNORE;
        if (!s->o.pack) continue;
        s->segments[at] = -1;
        s->positions[at] = 0;
    }
}

static void pad_row(tp_sft *s, int64_t row) {
    for (int64_t i = row * s->o.T; i < (row + 1) * s->o.T; i++) {
        s->inputs[i] = 0;
        s->targets[i] = TP_IGNORE;
        if (s->o.pack) s->segments[i] = -1, s->positions[i] = 0;
    }
}

tp_status tp_sft_next(tp_sft *s, tp_ctx *c, tp_batch *out) {
    (void)c;
    *out = (tp_batch){.sample = sample_of(s, s->at),
                      .inputs = s->inputs,
                      .targets = s->targets,
                      .segments = s->segments,
                      .positions = s->positions};
    for (int64_t r = 0; r < s->o.batch; r++) {
        int64_t sample = sample_of(s, s->at + r);
        if (!find_epoch(s, sample)) {
            pad_row(s, r);
            continue;
        }
        if (r == 0) out->epoch = s->epoch.number;
        fill_row(s, sample, r, out);
        out->rows++;
    }
    s->at += s->o.batch;
    return TP_OK;
}
