/* The order of training samples: keyed permutations and the arithmetic from sample to tokens. */
#include "data/sample_order.h"

#include <string.h>

enum { SHUFFLE_ROWS, SHUFFLE_DOCS, SHUFFLE_START }; /* what a random number is for */
enum { SUM_EVERY = 32 };

/* ---- permutations --------------------------------------------------------------------------- */

/* Mixes all bits of x into all others: the finisher of MurmurHash3 (Appleby 2011). Philox makes
 * the keys; ten of its rounds for each step of each document would cost more than they give. */
static uint64_t mix(uint64_t x) {
    x = (x ^ x >> 33) * 0xff51afd7ed558ccdull;
    x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53ull;
    return x ^ x >> 33;
}

/* Four words of randomness for (epoch, which, index): index stays far below 2^32. */
static void draw(uint32_t out[4], uint64_t seed, uint64_t epoch, uint32_t which, uint32_t index) {
    tp_philox(out, seed, TP_RNG_SHUFFLE, epoch, (uint64_t)which << 32 | index);
}

void tp_perm_init(tp_perm *p, uint64_t n, uint64_t seed, uint64_t epoch, uint32_t which) {
    int bits = 0;
    while (bits < 63 && (uint64_t)1 << bits < n) bits++;
    p->n = n;
    p->left_bits = (bits + 1) / 2;
    p->right_bits = bits / 2;
    for (int r = 0; r < TP_PERM_ROUNDS; r += 2) {
        uint32_t w[4];
        draw(w, seed, epoch, which, (uint32_t)r);
        p->key[r] = (uint64_t)w[1] << 32 | w[0];
        p->key[r + 1] = (uint64_t)w[3] << 32 | w[2];
    }
}

uint64_t tp_perm_at(const tp_perm *p, uint64_t i) {
    uint64_t left_mask = ((uint64_t)1 << p->left_bits) - 1;
    uint64_t right_mask = ((uint64_t)1 << p->right_bits) - 1;
    if (p->n < 2) return 0;
    do { /* fewer than two turns on average, as 2^bits < 2n */
        uint64_t left = i >> p->right_bits, right = i & right_mask;
        for (int r = 0; r < TP_PERM_ROUNDS; r += 2) {
            left ^= mix(right ^ p->key[r]) & left_mask;
            right ^= mix(left ^ p->key[r + 1]) & right_mask;
        }
        i = left << p->right_bits | right;
    } while (i >= p->n);
    return i;
}

/* ---- orders --------------------------------------------------------------------------------- */

/* One epoch's shuffles. */
typedef struct epoch_order {
    int64_t epoch; /* -1: none */
    uint64_t used;
    int64_t start; /* place in the virtual stream where row 0 begins */
    tp_perm rows, docs;
    int64_t *sums; /* tokens before document SUM_EVERY*j of the shuffled order */
} epoch_order;

struct tp_order {
    tp_order_opts opts;
    const int64_t *offsets;
    int64_t docs, tokens, rows;
    epoch_order cache[2]; /* a batch may reach over the end of an epoch */
    uint64_t clock;
    tp_run *runs;
    int64_t n_runs, cap_runs;
};

tp_status tp_order_new(tp_order **out, tp_ctx *c, const int64_t *offsets, int64_t docs,
                       const tp_order_opts *opts) {
    *out = NULL;
    if (opts->T < 1 || opts->T > 1 << 28)
        return tp_fail(c, TP_EARG, "loader: rows of %lld tokens cannot be made; 1 to 2^28 can",
                       (long long)opts->T);
    if (docs < 1) return tp_fail(c, TP_EARG, "loader: the corpus has no documents");
    int64_t tokens = offsets[docs], longest = 0;
    for (int64_t d = 0; d < docs; d++)
        if (offsets[d + 1] - offsets[d] > longest) longest = offsets[d + 1] - offsets[d];
    if (tokens < 2)
        return tp_fail(c, TP_EARG,
                       "loader: the corpus has %lld token; there is nothing to predict in it",
                       (long long)tokens);
    if (opts->documents && longest < 2)
        return tp_fail(c, TP_EARG,
                       "loader: every document is a single token; packing documents "
                       "leaves nothing to predict");
    tp_order *o = tp_calloc(c, 1, sizeof *o);
    if (!o) return TP_ENOMEM;
    o->opts = *opts;
    o->offsets = offsets;
    o->docs = docs;
    o->tokens = tokens;
    /* The corpus' last token predicts nothing, so a sequential pass needs no row for it alone. */
    int64_t inputs = opts->sequential ? tokens - 1 : tokens;
    o->rows = inputs / opts->T + (inputs % opts->T != 0);
    o->cache[0].epoch = o->cache[1].epoch = -1;
    *out = o;
    return TP_OK;
}

void tp_order_free(tp_order *o) {
    if (!o) return;
    tp_free(o->cache[0].sums);
    tp_free(o->cache[1].sums);
    tp_free(o->runs);
    tp_free(o);
}

int64_t tp_order_rows(const tp_order *o) { return o->rows; }

/* The document that stands at place k of this epoch's order. */
static int64_t doc_at(const tp_order *o, const epoch_order *e, int64_t k) {
    return o->opts.sequential ? k : (int64_t)tp_perm_at(&e->docs, (uint64_t)k);
}

static tp_status build_epoch(tp_order *o, tp_ctx *c, epoch_order *e, int64_t epoch) {
    uint64_t seed = o->opts.seed;
    uint32_t w[4];
    e->epoch = -1;
    e->start = 0;
    tp_perm_init(&e->rows, (uint64_t)o->rows, seed, (uint64_t)epoch, SHUFFLE_ROWS);
    tp_perm_init(&e->docs, (uint64_t)o->docs, seed, (uint64_t)epoch, SHUFFLE_DOCS);
    if (!o->opts.sequential) {
        draw(w, seed, (uint64_t)epoch, SHUFFLE_START, 0);
        e->start = (int64_t)(((uint64_t)w[1] << 32 | w[0]) % (uint64_t)o->tokens);
    }
    if (o->opts.documents) {
        size_t n = (size_t)(o->docs / SUM_EVERY + 1);
        if (!e->sums && !(e->sums = tp_calloc(c, n, sizeof *e->sums))) return TP_ENOMEM;
        int64_t sum = 0;
        for (int64_t k = 0; k < o->docs; k++) {
            if (k % SUM_EVERY == 0) e->sums[k / SUM_EVERY] = sum;
            int64_t d = doc_at(o, e, k);
            sum += o->offsets[d + 1] - o->offsets[d];
        }
    }
    e->epoch = epoch;
    return TP_OK;
}

static tp_status find_epoch(tp_order *o, tp_ctx *c, int64_t epoch, epoch_order **out) {
    epoch_order *e = o->cache[0].epoch == epoch             ? &o->cache[0]
                     : o->cache[1].epoch == epoch           ? &o->cache[1]
                     : o->cache[0].used <= o->cache[1].used ? &o->cache[0]
                                                            : &o->cache[1];
    e->used = ++o->clock;
    *out = e;
    return e->epoch == epoch ? TP_OK : build_epoch(o, c, e, epoch);
}

static tp_status add_run(tp_order *o, tp_ctx *c, int64_t first, int64_t n, bool last_has_target) {
    if (o->n_runs == o->cap_runs) {
        int64_t cap = o->cap_runs ? 2 * o->cap_runs : 64;
        tp_run *more = tp_realloc(c, o->runs, (size_t)cap * sizeof *more);
        if (!more) return TP_ENOMEM;
        o->runs = more;
        o->cap_runs = cap;
    }
    o->runs[o->n_runs++] = (tp_run){first, n, last_has_target};
    return TP_OK;
}

/* Packing "stream": tokens [at, at+n) of the ring; the corpus' last token has no target. */
static tp_status stream_runs(tp_order *o, tp_ctx *c, int64_t at, int64_t n) {
    while (n) {
        int64_t m = o->tokens - at < n ? o->tokens - at : n;
        tp_status st = add_run(o, c, at, m, at + m < o->tokens);
        if (st) return st;
        n -= m;
        at = 0;
    }
    return TP_OK;
}

/* Packing "documents": the same places of the ring of shuffled documents. */
static tp_status document_runs(tp_order *o, tp_ctx *c, const epoch_order *e, int64_t at,
                               int64_t n) {
    int64_t lo = 0, hi = (o->docs - 1) / SUM_EVERY; /* the last sum <= at */
    while (lo < hi) {
        int64_t mid = lo + (hi - lo + 1) / 2;
        if (e->sums[mid] <= at)
            lo = mid;
        else
            hi = mid - 1;
    }
    int64_t k = lo * SUM_EVERY, skip = at - e->sums[lo];
    while (n) {
        int64_t d = doc_at(o, e, k), len = o->offsets[d + 1] - o->offsets[d];
        if (skip < len) {
            int64_t m = len - skip < n ? len - skip : n;
            tp_status st = add_run(o, c, o->offsets[d] + skip, m, skip + m < len);
            if (st) return st;
            n -= m;
            skip = 0;
        } else {
            skip -= len;
        }
        if (++k == o->docs) k = 0;
    }
    return TP_OK;
}

tp_status tp_order_sample(tp_order *o, tp_ctx *c, int64_t sample, const tp_run **runs,
                          int64_t *n_runs) {
    epoch_order *e;
    tp_status st;
    o->n_runs = *n_runs = 0;
    if (sample < 0)
        return tp_fail(c, TP_EARG, "loader: there is no sample %lld", (long long)sample);
    if (o->opts.sequential && sample >= o->rows) return TP_OK;
    if ((st = find_epoch(o, c, sample / o->rows, &e))) return st;
    int64_t row = sample % o->rows;
    if (!o->opts.sequential) row = (int64_t)tp_perm_at(&e->rows, (uint64_t)row);
    int64_t at = row * o->opts.T; /* counted from the epoch's start */
    int64_t n = o->tokens - at < o->opts.T ? o->tokens - at : o->opts.T;
    at = at < o->tokens - e->start ? at + e->start : at - (o->tokens - e->start);
    st = o->opts.documents ? document_runs(o, c, e, at, n) : stream_runs(o, c, at, n);
    if (st) return st;
    *runs = o->runs;
    *n_runs = o->n_runs;
    return TP_OK;
}
