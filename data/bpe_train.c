/* Owns training byte-level BPE (Sennrich et al. 2016): count the pieces of all texts, then merge
 * the most frequent adjacent pair until the vocabulary is full. Counts are whole numbers and ties
 * are broken by ids, so neither the threads nor the order of the texts changes the result. */
#include "data/tokenizer_impl.h"
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum {
    LONGEST_PIECE = 256, /* longer pieces are counted in parts: each merge rescans its pieces */
    SEGMENT = 1 << 16,   /* bytes of text that a thread counts at a time */
    BUFFER = 1 << 22,    /* short documents are gathered until there is work for all threads */
    SEGMENTS = 1 << 12,
    MAX_IDS = 1 << 24
};

typedef struct lane { /* what one thread counts */
    atomic_flag busy;
    tp_ctx *c; /* its own: a context belongs to one thread */
    tp_splitter *splitter;
    tp_bytemap counts;
    tp_status st;
} lane;

typedef struct segment {
    const uint8_t *p;
    size_t n;
    int err;
} segment;

struct tp_bpe_trainer {
    tp_ctx *c;
    tp_bpe_opts opts;
    const char **specials; /* copies */
    tp_pretokenizer pretok;
    int n_lanes;
    lane *lanes;
    uint8_t *buffer; /* (BUFFER) */
    size_t n_buffer;
    segment *segments; /* (SEGMENTS) waiting to be counted */
    int64_t n_segments;
    bool finished;
};

/* ---- counting pieces ------------------------------------------------------------------------ */
static void count_piece(void *arg, const uint8_t *p, size_t n) {
    lane *l = arg;
    while (n > 1 && !l->st) {
        size_t part = n;
        if (n > LONGEST_PIECE) {
            part = LONGEST_PIECE;
            while (part > LONGEST_PIECE - 4 && (p[part] & 0xC0) == 0x80) part--;
        }
        int64_t *count;
        bool fresh;
        l->st = tp_bytemap_put(&l->counts, l->c, p, part, &count, &fresh);
        if (!l->st) ++*count;
        p += part;
        n -= part;
    }
}

static void count_segments(void *arg, int64_t begin, int64_t end) {
    tp_bpe_trainer *b = arg;
    int k = 0; /* as many lanes as threads: one is free */
    while (atomic_flag_test_and_set_explicit(&b->lanes[k].busy, memory_order_acquire))
        k = (k + 1) % b->n_lanes;
    lane *l = &b->lanes[k];
    for (int64_t i = begin; i < end; i++) {
        segment *s = &b->segments[i];
        s->err = tp_pretok_split(&b->pretok, l->splitter, s->p, s->n, count_piece, l);
    }
    atomic_flag_clear_explicit(&l->busy, memory_order_release);
}

static tp_status flush(tp_bpe_trainer *b) {
    tp_parallel_for(b->c, b->n_segments, b->n_segments > 512 ? 16 : 1, count_segments, b);
    tp_status st = TP_OK;
    for (int64_t i = 0; i < b->n_segments && !st; i++)
        if (b->segments[i].err) st = tp_pretok_fail(b->c, b->segments[i].err);
    for (int k = 0; k < b->n_lanes && !st; k++)
        if (b->lanes[k].st) st = tp_fail(b->c, b->lanes[k].st, "%s", tp_error(b->lanes[k].c));
    b->n_segments = 0;
    b->n_buffer = 0;
    return st;
}

static tp_status add_segments(tp_bpe_trainer *b, const uint8_t *p, size_t n) {
    while (n) {
        if (b->n_segments == SEGMENTS) {
            tp_status st = flush(b);
            if (st) return st;
        }
        size_t cut = tp_pretok_cut(&b->pretok, p, n, n < SEGMENT ? n : SEGMENT);
        b->segments[b->n_segments++] = (segment){.p = p, .n = cut};
        p += cut;
        n -= cut;
    }
    return TP_OK;
}

tp_status tp_bpe_trainer_add(tp_bpe_trainer *b, const void *text, int64_t n) {
    if (n < 0 || (n && !text))
        return tp_fail(b->c, TP_EARG, "BPE training: a document has no bytes or a negative length");
    if (b->finished) return tp_fail(b->c, TP_ESTATE, "BPE training: already finished");
    tp_status st = TP_OK;
    bool large = n > BUFFER / 4; /* counted where it lies; shorter ones are copied and wait */
    if ((large || (size_t)n > BUFFER - b->n_buffer || b->n_segments + n / SEGMENT + 1 > SEGMENTS) &&
        (st = flush(b)))
        return st;
    if (!large && n) {
        text = memcpy(b->buffer + b->n_buffer, text, (size_t)n);
        b->n_buffer += (size_t)n;
    }
    st = add_segments(b, text, (size_t)n);
    return !st && large ? flush(b) : st;
}

/* ---- pairs ---------------------------------------------------------------------------------- */
typedef struct pair {
    uint64_t key;          /* left id << 32 | right id: ties go to the lower */
    int64_t count, queued; /* now; in its newest heap entry */
    uint32_t *words;       /* words that have (or had) it */
    uint32_t n, cap;
    int64_t stamp; /* the last merge that made it more frequent */
    bool banned;   /* would spell a special token */
} pair;

typedef struct heap_entry {
    int64_t count;
    uint64_t key;
    uint32_t pair;
} heap_entry;

typedef struct merger {
    tp_ctx *c;
    /* words: the pieces as ids, shrinking as merges happen */
    int32_t *ids;
    uint64_t *at;
    uint32_t *len, n_words;
    int64_t *freq;
    /* pairs, found by key through an open-addressing index of pair + 1 */
    pair *pairs;
    uint32_t n_pairs, cap_pairs, *index;
    uint64_t mask;
    heap_entry *heap;
    size_t n_heap, cap_heap;
    uint32_t *touched; /* pairs that the current merge made more frequent */
    size_t n_touched, cap_touched;
    int64_t step;
    tp_bytemap tokens; /* bytes to id; entry number = id */
    int32_t *merges;   /* (n_merges, 2) */
    int64_t n_merges;
    size_t cap_merges;
} merger;

/* The array, with room for one more element; NULL if there is no memory (the array is as it was).
 */
static void *grown(tp_ctx *c, void *data, size_t *cap, size_t n, size_t size) {
    if (n < *cap) return data;
    size_t more = 2 * *cap + 64;
    void *p = tp_realloc(c, data, more * size);
    if (p) *cap = more;
    return p;
}

static bool before(const heap_entry *a, const heap_entry *b) {
    return a->count != b->count ? a->count > b->count : a->key < b->key;
}

static tp_status heap_push(merger *m, uint32_t p) {
    const heap_entry x = {m->pairs[p].count, m->pairs[p].key, p};
    heap_entry *heap = grown(m->c, m->heap, &m->cap_heap, m->n_heap, sizeof *heap);
    if (!heap) return TP_ENOMEM;
    m->heap = heap;
    size_t i = m->n_heap++;
    for (; i && before(&x, &m->heap[(i - 1) / 2]); i = (i - 1) / 2)
        m->heap[i] = m->heap[(i - 1) / 2];
    m->heap[i] = x;
    m->pairs[p].queued = x.count;
    return TP_OK;
}

static heap_entry heap_pop(merger *m) {
    heap_entry top = m->heap[0], x = m->heap[--m->n_heap];
    size_t i = 0;
    for (size_t kid; (kid = 2 * i + 1) < m->n_heap; i = kid) {
        if (kid + 1 < m->n_heap && before(&m->heap[kid + 1], &m->heap[kid])) kid++;
        if (!before(&m->heap[kid], &x)) break;
        m->heap[i] = m->heap[kid];
    }
    m->heap[i] = x;
    return top;
}

static uint64_t pair_slot(const merger *m, uint64_t key) {
    uint64_t h = (key ^ key >> 31) * 0x9E3779B97F4A7C15u, i = (h >> 32) & m->mask;
    while (m->index[i] && m->pairs[m->index[i] - 1].key != key) i = (i + 1) & m->mask;
    return i;
}

static tp_status grow_pairs(merger *m) {
    uint32_t cap = m->cap_pairs ? 2 * m->cap_pairs : 1 << 14;
    if (cap > UINT32_MAX / 4) return tp_fail(m->c, TP_ENOMEM, "BPE training: over 2^30 pairs");
    pair *pairs = tp_realloc(m->c, m->pairs, cap * sizeof *pairs);
    if (!pairs) return TP_ENOMEM;
    m->pairs = pairs;
    uint32_t *index = tp_calloc(m->c, 2 * (size_t)cap, sizeof *index);
    if (!index) return TP_ENOMEM;
    tp_free(m->index);
    m->index = index;
    m->mask = 2 * (uint64_t)cap - 1;
    m->cap_pairs = cap;
    for (uint32_t i = 0; i < m->n_pairs; i++) index[pair_slot(m, pairs[i].key)] = i + 1;
    return TP_OK;
}

/* The pair (left, right) became more frequent by word w's frequency (sign > 0), or less. */
static tp_status pair_add(merger *m, int32_t left, int32_t right, uint32_t w, int sign) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    tp_status st = m->n_pairs == m->cap_pairs ? grow_pairs(m) : TP_OK;
    if (st) return st;
    uint64_t slot = pair_slot(m, key);
    if (!m->index[slot]) {
        m->pairs[m->n_pairs] = (pair){.key = key, .stamp = -1};
        m->index[slot] = ++m->n_pairs;
    }
    uint32_t at = m->index[slot] - 1;
    pair *p = &m->pairs[at];
    p->count += sign * m->freq[w];
    if (sign < 0) return TP_OK;
    if (p->stamp != m->step) {
        p->stamp = m->step;
        uint32_t *touched = grown(m->c, m->touched, &m->cap_touched, m->n_touched, sizeof *touched);
        if (!touched) return TP_ENOMEM;
        m->touched = touched;
        m->touched[m->n_touched++] = at;
    }
    if (p->n && p->words[p->n - 1] == w) return TP_OK;
    if (p->n == p->cap) {
        uint32_t cap = p->cap ? p->cap + p->cap / 2 + 1 : 2;
        uint32_t *words = tp_realloc(m->c, p->words, cap * sizeof *words);
        if (!words) return TP_ENOMEM;
        p->words = words;
        p->cap = cap;
    }
    p->words[p->n++] = w;
    return TP_OK;
}

static tp_status queue_touched(merger *m, int64_t min_count) {
    tp_status st = TP_OK;
    for (size_t i = 0; i < m->n_touched && !st; i++) {
        const pair *p = &m->pairs[m->touched[i]];
        if (p->count >= min_count && p->count != p->queued && !p->banned)
            st = heap_push(m, m->touched[i]);
    }
    m->n_touched = 0;
    return st;
}

/* Replaces (left, right) by id in word w, keeping the counts of all pairs of adjacent ids exact. */
static tp_status merge_word(merger *m, uint32_t w, int32_t left, int32_t right, int32_t id) {
    int32_t *s = m->ids + m->at[w];
    uint32_t n = m->len[w], k = 0;
    tp_status st = TP_OK;
    for (uint32_t i = 0; i < n && !st;) {
        if (s[i] != left || i + 1 == n || s[i + 1] != right) {
            s[k++] = s[i++];
            continue;
        }
        st = pair_add(m, left, right, w, -1);
        if (!st && k) st = pair_add(m, s[k - 1], left, w, -1);
        if (!st && k) st = pair_add(m, s[k - 1], id, w, +1);
        if (!st && i + 2 < n) st = pair_add(m, right, s[i + 2], w, -1);
        if (!st && i + 2 < n) st = pair_add(m, id, s[i + 2], w, +1);
        s[k++] = id;
        i += 2;
    }
    m->len[w] = k;
    return st;
}

/* The id of left's bytes followed by right's: a new one unless these bytes are a token already.
 * -1 if they spell a special token. */
static tp_status join(merger *m, const tp_bpe_opts *o, int32_t left, int32_t right, int32_t *id) {
    uint8_t both[2 * LONGEST_PIECE];
    const tp_bytemap_entry *a = &m->tokens.entries[left], *b = &m->tokens.entries[right];
    size_t n = (size_t)a->n + b->n;
    TP_CHECK(m->c, n <= sizeof both);
    memcpy(both, m->tokens.keys + a->at, a->n);
    memcpy(both + a->n, m->tokens.keys + b->at, b->n);
    *id = -1;
    for (int i = 0; i < o->n_specials; i++)
        if (strlen(o->specials[i]) == n && !memcmp(o->specials[i], both, n)) return TP_OK;
    int64_t *value;
    bool fresh;
    tp_status st = tp_bytemap_put(&m->tokens, m->c, both, n, &value, &fresh);
    if (st) return st;
    if (fresh) *value = m->tokens.n_entries - 1;
    *id = (int32_t)*value;
    return TP_OK;
}

static tp_status merge_pair(merger *m, const tp_bpe_opts *o, uint32_t at, int64_t min_count) {
    int32_t left = (int32_t)(m->pairs[at].key >> 32), right = (int32_t)(uint32_t)m->pairs[at].key,
            id;
    tp_status st = join(m, o, left, right, &id);
    if (st) return st;
    if (id < 0) {
        m->pairs[at].banned = true;
        return TP_OK;
    }
    int32_t *merges =
        grown(m->c, m->merges, &m->cap_merges, (size_t)m->n_merges, 2 * sizeof *merges);
    if (!merges) return TP_ENOMEM;
    m->merges = merges;
    m->merges[2 * m->n_merges] = left;
    m->merges[2 * m->n_merges + 1] = right;
    m->step = ++m->n_merges;
    uint32_t *words = m->pairs[at].words, n = m->pairs[at].n; /* the array of pairs may move */
    m->pairs[at].words = NULL;
    m->pairs[at].n = m->pairs[at].cap = 0;
    for (uint32_t i = 0; i < n && !st; i++) st = merge_word(m, words[i], left, right, id);
    tp_free(words);
    return st ? st : queue_touched(m, min_count);
}

static tp_status merge_all(merger *m, const tp_bpe_opts *o) {
    int64_t want = o->vocab_size - o->n_specials, min_count = o->min_count ? o->min_count : 2;
    tp_status st = queue_touched(m, min_count);
    for (int64_t turn = 0; !st && m->n_heap && m->tokens.n_entries < want;) {
        heap_entry e = heap_pop(m);
        const pair *p = &m->pairs[e.pair];
        if (e.count != p->queued || p->banned) continue; /* a newer entry exists */
        if (e.count != p->count) {                       /* it became rarer since */
            m->pairs[e.pair].queued = 0;
            if (p->count >= min_count) st = heap_push(m, e.pair);
            continue;
        }
        m->pairs[e.pair].queued = 0;
        st = merge_pair(m, o, e.pair, min_count);
        if (!st && o->progress && turn++ % 64 == 0 &&
            !o->progress(o->progress_arg,
                         (double)(m->tokens.n_entries - 256) / (double)(want - 256 + 1),
                         "merging pairs"))
            st = tp_fail(m->c, TP_EINTERRUPT, "BPE training: stopped after %lld merges",
                         (long long)m->n_merges);
    }
    return st;
}

/* ---- from counted pieces to words ----------------------------------------------------------- */
/* Sums every lane's counts into the first lane's. */
static tp_status sum_lanes(tp_bpe_trainer *b) {
    tp_bytemap *all = &b->lanes[0].counts;
    for (int k = 1; k < b->n_lanes; k++) {
        const tp_bytemap *m = &b->lanes[k].counts;
        for (uint32_t i = 0; i < m->n_entries; i++) {
            int64_t *count;
            bool fresh;
            tp_status st =
                tp_bytemap_put(all, b->c, tp_bytemap_key(m, i), m->entries[i].n, &count, &fresh);
            if (st) return st;
            *count += m->entries[i].value;
        }
        tp_bytemap_clear(&b->lanes[k].counts);
    }
    return TP_OK;
}

static tp_status make_words(merger *m, const tp_bytemap *counts) {
    uint32_t n = m->n_words = counts->n_entries;
    m->ids = tp_malloc(m->c, (counts->n_keys + 1) * sizeof *m->ids);
    m->at = tp_malloc(m->c, ((size_t)n + 1) * sizeof *m->at);
    m->len = tp_malloc(m->c, ((size_t)n + 1) * sizeof *m->len);
    m->freq = tp_malloc(m->c, ((size_t)n + 1) * sizeof *m->freq);
    if (!m->ids || !m->at || !m->len || !m->freq) return TP_ENOMEM;
    for (int i = 0; i < 256; i++) {
        uint8_t byte = (uint8_t)i;
        int64_t *id;
        bool fresh;
        tp_status st = tp_bytemap_put(&m->tokens, m->c, &byte, 1, &id, &fresh);
        if (st) return st;
        *id = i;
    }
    for (uint64_t i = 0; i < counts->n_keys; i++) m->ids[i] = counts->keys[i];
    for (uint32_t w = 0; w < n; w++) {
        const tp_bytemap_entry *e = &counts->entries[w];
        m->at[w] = e->at;
        m->len[w] = e->n;
        m->freq[w] = e->value;
        const int32_t *s = m->ids + e->at;
        for (uint32_t i = 0; i + 1 < e->n; i++) {
            tp_status st = pair_add(m, s[i], s[i + 1], w, +1);
            if (st) return st;
        }
    }
    return TP_OK;
}

static void merger_clear(merger *m) {
    for (uint32_t i = 0; i < m->n_pairs; i++) tp_free(m->pairs[i].words);
    tp_free(m->ids);
    tp_free(m->at);
    tp_free(m->len);
    tp_free(m->freq);
    tp_free(m->pairs);
    tp_free(m->index);
    tp_free(m->heap);
    tp_free(m->touched);
    tp_free(m->merges);
    tp_bytemap_clear(&m->tokens);
}

static tp_status build(tp_tokenizer **out, tp_bpe_trainer *b, const merger *m) {
    uint32_t n = m->tokens.n_entries;
    uint64_t *start = tp_malloc(b->c, ((size_t)n + 1) * sizeof *start);
    if (!start) return TP_ENOMEM;
    for (uint32_t i = 0; i < n; i++) start[i] = m->tokens.entries[i].at;
    start[n] = m->tokens.n_keys;
    const tp_bpe_model model = {.pattern = b->opts.pattern,
                                .n_tokens = n,
                                .bytes = m->tokens.keys,
                                .start = start,
                                .n_merges = m->n_merges,
                                .merges = m->merges,
                                .specials = b->opts.specials,
                                .n_specials = b->opts.n_specials};
    tp_text_buf json = {0};
    tp_status st = tp_tokenizer_write(&json, b->c, &model);
    if (!st) st = tp_tokenizer_from_json(out, b->c, json.data, json.n, "trained tokenizer");
    tp_free(json.data);
    tp_free(start);
    return st;
}

tp_status tp_bpe_trainer_finish(tp_tokenizer **out, tp_bpe_trainer *b) {
    *out = NULL;
    if (b->finished) return tp_fail(b->c, TP_ESTATE, "BPE training: already finished");
    b->finished = true;
    merger m = {.c = b->c};
    tp_status st = flush(b);
    if (!st) st = sum_lanes(b);
    if (!st) st = make_words(&m, &b->lanes[0].counts);
    tp_bytemap_clear(&b->lanes[0].counts);
    if (!st) st = merge_all(&m, &b->opts);
    if (!st) st = build(out, b, &m);
    merger_clear(&m);
    return st;
}

/* ---- the trainer ---------------------------------------------------------------------------- */
static tp_status check_opts(tp_bpe_trainer *b) {
    tp_bpe_opts *o = &b->opts;
    tp_status st = tp_specials_check(b->c, &o->specials, &o->n_specials);
    if (st) return st;
    if (o->vocab_size < 256 + o->n_specials || o->vocab_size > MAX_IDS)
        return tp_fail(b->c, TP_EARG,
                       "BPE training: vocabulary size is %lld, wanted %d (256 bytes and "
                       "the specials) to %d",
                       (long long)o->vocab_size, 256 + o->n_specials, MAX_IDS);
    if (o->min_count < 0)
        return tp_fail(b->c, TP_EARG, "BPE training: min_count is %lld, wanted 0 or more",
                       (long long)o->min_count);
    const char *regex = tp_pattern_by_name(o->pattern);
    if (!regex)
        return tp_fail(b->c, TP_EARG, "BPE training: pattern is \"%.40s\", wanted gpt2 or cl100k",
                       o->pattern);
    o->pattern = regex == tp_pattern_gpt2 ? "gpt2" : "cl100k";
    b->specials = tp_calloc(b->c, (size_t)o->n_specials + 1, sizeof *b->specials);
    if (!b->specials) return TP_ENOMEM;
    for (int i = 0; i < o->n_specials; i++)
        if (!(b->specials[i] = tp_strdup(b->c, o->specials[i]))) return TP_ENOMEM;
    o->specials = b->specials;
    return tp_pretok_add(&b->pretok, b->c, "BPE training", regex);
}

tp_status tp_bpe_trainer_new(tp_bpe_trainer **out, tp_ctx *c, const tp_bpe_opts *opts) {
    *out = NULL;
    tp_bpe_trainer *b = tp_calloc(c, 1, sizeof *b);
    if (!b) return TP_ENOMEM;
    b->c = c;
    b->opts = *opts;
    tp_status st = check_opts(b);
    if (st) goto done;
    b->n_lanes = tp_threads(c) > 1 ? tp_threads(c) : 1;
    b->lanes = tp_calloc(c, (size_t)b->n_lanes, sizeof *b->lanes);
    b->buffer = tp_malloc(c, BUFFER);
    b->segments = tp_malloc(c, SEGMENTS * sizeof *b->segments);
    if (!b->lanes || !b->buffer || !b->segments) {
        st = TP_ENOMEM;
        goto done;
    }
    for (int k = 0; k < b->n_lanes && !st; k++) {
        const tp_ctx_opts lane_opts = {.threads = 1, .memory_limit = 1 << 20};
        atomic_flag_clear(&b->lanes[k].busy);
        if ((st = tp_ctx_new(&b->lanes[k].c, &lane_opts)))
            st =
                tp_fail(c, st, "BPE training: no context for thread %d: %s", k, tp_status_name(st));
        else
            st = tp_splitter_new(&b->lanes[k].splitter, c);
    }
done:
    if (st)
        tp_bpe_trainer_free(b);
    else
        *out = b;
    return st;
}

void tp_bpe_trainer_free(tp_bpe_trainer *b) {
    if (!b) return;
    for (int k = 0; b->lanes && k < b->n_lanes; k++) {
        tp_bytemap_clear(&b->lanes[k].counts);
        tp_splitter_free(b->lanes[k].splitter);
        tp_ctx_free(b->lanes[k].c);
    }
    for (int i = 0; b->specials && i < b->opts.n_specials; i++) tp_free((void *)b->specials[i]);
    tp_free(b->specials);
    tp_pretok_clear(&b->pretok);
    tp_free(b->lanes);
    tp_free(b->buffer);
    tp_free(b->segments);
    tp_free(b);
}
