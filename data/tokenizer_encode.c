/* Owns encoding: finding added tokens, cutting texts for the threads, and byte-pair merging of each
 * piece, lowest rank first. Threads share nothing but the tokenizer; a piece's ids depend on the
 * piece only, so neither threads nor the cache can change a result. */
#include "data/tokenizer_impl.h"
#include <stdatomic.h>
#include <string.h>

enum {
    SHORT_PIECE = 96, /* up to here a quadratic loop over an array is faster than a heap */
    CACHE_KEY = 30,   /* bytes of the longest piece that is remembered, */
    CACHE_IDS = 8,    /* and its ids; a slot is one cache line */
    CACHE_SLOTS = 1 << 15,
    SEGMENT = 1 << 15, /* bytes of text that a thread takes at a time, */
    ROUND = 1 << 22,   /* and all threads together before ids are collected */
    ROUND_SEGMENTS = 1 << 13
};

typedef struct cache_slot {
    uint8_t n_key, n_ids, key[CACHE_KEY];
    int32_t ids[CACHE_IDS];
} cache_slot;

/* A piece under merging as a linked list, with a heap of (rank, position). */
typedef struct long_piece {
    int32_t id[TP_PIECE_MAX], prev[TP_PIECE_MAX], next[TP_PIECE_MAX];
    const tp_merge *merge[TP_PIECE_MAX]; /* of this symbol and the next; NULL if none */
    uint64_t heap[3 * TP_PIECE_MAX];     /* n - 1 at first, then at most 2 for each merge */
    size_t n_heap;
} long_piece;

typedef struct lane { /* one thread's scratch */
    atomic_flag busy;
    const tp_tokenizer *t;
    tp_splitter *splitter;
    cache_slot *cache; /* (CACHE_SLOTS), direct-mapped */
    long_piece *big;
    int32_t *out; /* next id goes here */
} lane;

typedef struct segment {
    const uint8_t *p;
    int64_t n;
    int32_t *ids; /* room for n: a token has at least one byte */
    int64_t n_ids;
    int32_t added; /* >= 0: not text, but this id */
    int err;
    bool last; /* of its text */
} segment;

struct tp_encoder {
    tp_ctx *c;
    const tp_tokenizer *t;
    bool allow_special, bytes_only;
    int n_lanes;
    lane *lanes;
    segment *segments; /* (ROUND_SEGMENTS) */
    int64_t n_segments;
    int32_t *scratch;
    int64_t cap_scratch;
};

/* ---- merging one piece ---------------------------------------------------------------------- */
/* Merges the pair of lowest rank, the leftmost of equals, until none is left. */
static int merge_short(const tp_tokenizer *t, const uint8_t *p, int n, int32_t *id) {
    const tp_merge *merge[SHORT_PIECE];
    for (int i = 0; i < n; i++) id[i] = t->byte_id[p[i]];
    for (int i = 0; i + 1 < n; i++) merge[i] = tp_merge_find(t, id[i], id[i + 1]);
    for (;;) {
        int best = -1;
        int32_t rank = INT32_MAX;
        for (int i = 0; i + 1 < n; i++)
            if (merge[i] && merge[i]->rank < rank) rank = merge[best = i]->rank;
        if (best < 0) return n;
        id[best] = merge[best]->id;
        n--;
        for (int i = best + 1; i < n; i++) {
            id[i] = id[i + 1];
            merge[i - 1] = merge[i];
        }
        if (best + 1 < n) merge[best] = tp_merge_find(t, id[best], id[best + 1]);
        if (best > 0) merge[best - 1] = tp_merge_find(t, id[best - 1], id[best]);
    }
}

static void heap_push(long_piece *b, uint64_t x) {
    size_t i = b->n_heap++;
    for (; i && x < b->heap[(i - 1) / 2]; i = (i - 1) / 2) b->heap[i] = b->heap[(i - 1) / 2];
    b->heap[i] = x;
}

static uint64_t heap_pop(long_piece *b) {
    uint64_t top = b->heap[0], x = b->heap[--b->n_heap];
    size_t i = 0;
    for (size_t kid; (kid = 2 * i + 1) < b->n_heap; i = kid) {
        if (kid + 1 < b->n_heap && b->heap[kid + 1] < b->heap[kid]) kid++;
        if (x <= b->heap[kid]) break;
        b->heap[i] = b->heap[kid];
    }
    b->heap[i] = x;
    return top;
}

/* Looks up the pair that begins at i and queues it. */
static void offer(const tp_tokenizer *t, long_piece *b, int32_t i) {
    b->merge[i] = b->next[i] < 0 ? NULL : tp_merge_find(t, b->id[i], b->id[b->next[i]]);
    if (b->merge[i]) heap_push(b, (uint64_t)b->merge[i]->rank << 32 | (uint32_t)i);
}

/* The same as merge_short in O(n log n). An entry of the heap is stale if its position no longer
 * begins a pair of that rank. */
static int merge_long(const tp_tokenizer *t, long_piece *b, const uint8_t *p, int n, int32_t *out) {
    for (int i = 0; i < n; i++) {
        b->id[i] = t->byte_id[p[i]];
        b->prev[i] = i - 1;
        b->next[i] = i + 1 < n ? i + 1 : -1;
    }
    b->n_heap = 0;
    for (int i = 0; i < n; i++) offer(t, b, i);
    while (b->n_heap) {
        uint64_t top = heap_pop(b);
        int32_t i = (int32_t)(uint32_t)top;
        if (!b->merge[i] || (uint64_t)b->merge[i]->rank != top >> 32) continue;
        int32_t gone = b->next[i];
        b->id[i] = b->merge[i]->id;
        b->next[i] = b->next[gone];
        b->merge[gone] = NULL;
        if (b->next[i] >= 0) b->prev[b->next[i]] = i;
        offer(t, b, i);
        if (b->prev[i] >= 0) offer(t, b, b->prev[i]);
    }
    int k = 0;
    for (int32_t i = 0; i >= 0; i = b->next[i]) out[k++] = b->id[i];
    return k;
}

static void encode_piece(void *arg, const uint8_t *p, size_t n) {
    lane *l = arg;
    cache_slot *slot = NULL;
    if (n == 1) {
        *l->out++ = l->t->byte_id[*p];
        return;
    }
    if (n <= CACHE_KEY) {
        slot = &l->cache[tp_hash_bytes(p, n) & (CACHE_SLOTS - 1)];
        if (slot->n_key == n && !memcmp(slot->key, p, n)) {
            for (int i = 0; i < slot->n_ids; i++) l->out[i] = slot->ids[i];
            l->out += slot->n_ids;
            return;
        }
    }
    const int64_t *whole = l->t->ignore_merges ? tp_bytemap_find(&l->t->text, p, n) : NULL;
    int k = 1;
    if (whole)
        l->out[0] = (int32_t)*whole;
    else if (n <= SHORT_PIECE)
        k = merge_short(l->t, p, (int)n, l->out);
    else
        k = merge_long(l->t, l->big, p, (int)n, l->out);
    if (slot && k <= CACHE_IDS) {
        slot->n_key = (uint8_t)n;
        slot->n_ids = (uint8_t)k;
        memcpy(slot->key, p, n);
        memcpy(slot->ids, l->out, (size_t)k * sizeof *slot->ids);
    }
    l->out += k;
}

/* ---- segments, in parallel ------------------------------------------------------------------ */
static void encode_segments(void *arg, int64_t begin, int64_t end) {
    tp_encoder *e = arg;
    int k = 0; /* as many lanes as threads: one is free */
    while (atomic_flag_test_and_set_explicit(&e->lanes[k].busy, memory_order_acquire))
        k = (k + 1) % e->n_lanes;
    lane *l = &e->lanes[k];
    for (int64_t i = begin; i < end; i++) {
        segment *s = &e->segments[i];
        l->out = s->ids;
        if (s->added >= 0)
            *l->out++ = s->added;
        else if (e->bytes_only)
            for (int64_t j = 0; j < s->n; j++) *l->out++ = e->t->byte_id[s->p[j]];
        else
            s->err =
                tp_pretok_split(&e->t->pretok, l->splitter, s->p, (size_t)s->n, encode_piece, l);
        s->n_ids = l->out - s->ids;
    }
    atomic_flag_clear_explicit(&l->busy, memory_order_release);
}

/* Where we are in the texts. */
typedef struct cursor {
    const tp_text *texts;
    int64_t n_texts, text, at; /* at: byte of texts[text] */
    int64_t stop;              /* next added token, or the end; < at: not yet searched */
    int32_t added;             /* the token there; -1 if none */
    size_t added_n;
} cursor;

/* The first added token at or after `at`, the longest of those that begin there. */
static void find_added(const tp_encoder *e, cursor *q) {
    const tp_tokenizer *t = e->t;
    const uint8_t *p = q->texts[q->text].bytes;
    const bool *starts = e->allow_special ? t->starts_any : t->starts_added;
    size_t n = (size_t)q->texts[q->text].n;
    q->added = -1;
    q->stop = (int64_t)n;
    if (!t->added.n_entries) return;
    for (size_t i = (size_t)q->at; i < n; i++) {
        if (!starts[p[i]]) continue;
        for (int32_t k = t->added_at[p[i]]; k < t->added_at[p[i] + 1]; k++) {
            int32_t id = t->added_ids[k];
            size_t len = (size_t)(t->start[id + 1] - t->start[id]);
            if (!e->allow_special && t->kind[id] == TP_TOKEN_SPECIAL) continue;
            if (len > n - i || memcmp(t->bytes + t->start[id], p + i, len)) continue;
            q->stop = (int64_t)i;
            q->added = id;
            q->added_n = len;
            return;
        }
    }
}

/* Fills e->segments with the next round; returns the bytes of it. */
static int64_t next_round(tp_encoder *e, cursor *q) {
    int64_t bytes = 0;
    e->n_segments = 0;
    while (q->text < q->n_texts && bytes < ROUND && e->n_segments < ROUND_SEGMENTS) {
        const tp_text *x = &q->texts[q->text];
        segment s = {.p = (const uint8_t *)x->bytes + (x->n ? q->at : 0), .added = -1};
        if (q->stop < q->at) find_added(e, q);
        if (q->at < q->stop) {
            size_t left = (size_t)(q->stop - q->at), want = left < SEGMENT ? left : SEGMENT;
            s.n = (int64_t)(e->bytes_only ? want : tp_pretok_cut(&e->t->pretok, s.p, left, want));
        } else if (q->added >= 0) {
            s.n = (int64_t)q->added_n;
            s.added = q->added;
            q->stop = -1;
        }
        bytes += s.n;
        q->at += s.n;
        s.last = q->at == x->n;
        if (s.last) {
            q->text++;
            q->at = 0;
            q->stop = -1;
        }
        e->segments[e->n_segments++] = s;
    }
    return bytes;
}

static tp_status reserve(tp_ctx *c, int32_t **data, int64_t *cap, int64_t need) {
    if (need <= *cap) return TP_OK;
    if (need > INT64_MAX / 16 || (uint64_t)need > SIZE_MAX / 16)
        return tp_fail(c, TP_ENOMEM, "encode: %lld ids do not fit into memory", (long long)need);
    int64_t grown = need + need / 2 + 64;
    int32_t *p = tp_realloc(c, *data, (size_t)grown * sizeof *p);
    if (!p) return TP_ENOMEM;
    *data = p;
    *cap = grown;
    return TP_OK;
}

/* Encodes one round and appends its ids; *ends moves past the texts that ended. */
static tp_status run_round(tp_encoder *e, tp_ids *out, int64_t **ends, int64_t bytes) {
    /* one more: empty texts need a place to stand at, too */
    tp_status st = reserve(e->c, &e->scratch, &e->cap_scratch, bytes + 1);
    if (st) return st;
    int32_t *at = e->scratch;
    for (int64_t i = 0; i < e->n_segments; at += e->segments[i++].n) e->segments[i].ids = at;
    tp_parallel_for(e->c, e->n_segments, e->n_segments > 512 ? 16 : 1, encode_segments, e);
    int64_t n = out->n;
    for (int64_t i = 0; i < e->n_segments; i++) {
        if (e->segments[i].err) return tp_pretok_fail(e->c, e->segments[i].err);
        n += e->segments[i].n_ids;
    }
    if ((st = reserve(e->c, &out->data, &out->cap, n))) return st;
    for (int64_t i = 0; i < e->n_segments; i++) {
        const segment *s = &e->segments[i];
        if (s->n_ids) memcpy(out->data + out->n, s->ids, (size_t)s->n_ids * sizeof *s->ids);
        out->n += s->n_ids;
        if (s->last && *ends) *(*ends)++ = out->n;
    }
    return TP_OK;
}

tp_status tp_encode_batch(tp_ids *out, int64_t *ends, tp_encoder *e, const tp_text *texts,
                          int64_t n_texts) {
    int64_t before = out->n;
    cursor q = {.texts = texts, .n_texts = n_texts, .stop = -1};
    for (int64_t i = 0; i < n_texts; i++)
        if (texts[i].n < 0 || (texts[i].n && !texts[i].bytes))
            return tp_fail(e->c, TP_EARG, "encode: text %lld has no bytes or a negative length",
                           (long long)i);
    tp_status st = TP_OK;
    while (!st && q.text < n_texts) {
        int64_t bytes = next_round(e, &q);
        st = run_round(e, out, &ends, bytes);
    }
    if (st) out->n = before;
    return st;
}

tp_status tp_encode(tp_ids *out, tp_encoder *e, const void *text, int64_t n) {
    const tp_text one = {text, n};
    return tp_encode_batch(out, NULL, e, &one, 1);
}

tp_status tp_encode_begin(tp_ids *out, tp_encoder *e) {
    return e->t->bos < 0 ? TP_OK : tp_ids_add(out, e->c, e->t->bos);
}

tp_status tp_ids_add(tp_ids *ids, tp_ctx *c, int32_t id) {
    tp_status st = reserve(c, &ids->data, &ids->cap, ids->n + 1);
    if (!st) ids->data[ids->n++] = id;
    return st;
}

void tp_ids_clear(tp_ids *ids) {
    tp_free(ids->data);
    *ids = (tp_ids){0};
}

/* ---- the encoder ---------------------------------------------------------------------------- */
tp_status tp_encoder_new(tp_encoder **out, tp_ctx *c, const tp_tokenizer *t,
                         const tp_encoder_opts *opts) {
    tp_encoder *e = *out = tp_calloc(c, 1, sizeof *e);
    if (!e) return TP_ENOMEM;
    tp_status st = TP_ENOMEM;
    e->c = c;
    e->t = t;
    e->allow_special = opts && opts->allow_special;
    e->bytes_only = !t->n_merges && !t->ignore_merges;
    e->n_lanes = tp_threads(c) > 1 ? tp_threads(c) : 1;
    e->segments = tp_malloc(c, ROUND_SEGMENTS * sizeof *e->segments);
    e->lanes = tp_calloc(c, (size_t)e->n_lanes, sizeof *e->lanes);
    if (!e->segments || !e->lanes) goto failed;
    for (int k = 0; k < e->n_lanes; k++) {
        lane *l = &e->lanes[k];
        atomic_flag_clear(&l->busy);
        l->t = t;
        if (e->bytes_only) continue;
        if ((st = tp_splitter_new(&l->splitter, c))) goto failed;
        l->cache = tp_calloc(c, CACHE_SLOTS, sizeof *l->cache);
        l->big = tp_malloc(c, sizeof *l->big);
        st = TP_ENOMEM;
        if (!l->cache || !l->big) goto failed;
    }
    return TP_OK;
failed:
    tp_encoder_free(e);
    *out = NULL;
    return st;
}

void tp_encoder_free(tp_encoder *e) {
    if (!e) return;
    for (int k = 0; e->lanes && k < e->n_lanes; k++) {
        tp_splitter_free(e->lanes[k].splitter);
        tp_free(e->lanes[k].cache);
        tp_free(e->lanes[k].big);
    }
    tp_free(e->lanes);
    tp_free(e->segments);
    tp_free(e->scratch);
    tp_free(e);
}
