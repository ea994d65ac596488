/* pages: the key-value cache of a model in pages of pools, and the passes of the model over it.
 *
 * Layers form groups. Dense ones share a table of pages for each sequence. A routed layer
 * (Mixture-of-Depths) has a table of its own, whose entries are the tokens that it took and no
 * others: key j is the j-th of them, whatever its position. A page is shared by whoever counts on
 * it and is copied before somebody writes to a page that others read. Keys are counted from the
 * sequence's beginning, so attention takes the same tiles as in a training forward, and has its
 * bits. */
#ifndef TP_PAGES_H
#define TP_PAGES_H
#include "infer/infer.h"

typedef struct tp_pages { /* of a sequence, in one group */
    int32_t *table;
    int64_t n, cap; /* pages in the table, and its room */
    int64_t keys;   /* 0..keys-1 lie in them */
    int64_t dead;   /* pages [sinks, dead) were given back: the window has left them */
} tp_pages;

typedef struct tp_sequence {
    int64_t request, sample; /* sample -1: a prompt, whose samples share its pages */
    int32_t *ids;            /* (cap) tokens: the prompt's, then those chosen */
    int64_t n, n_prompt, cap;
    int64_t base;    /* position 0 is ids[base]; above 0 only after the context was full */
    int64_t cached;  /* positions 0..cached-1 were fed */
    tp_pages *pages; /* (groups); NULL: it never had room */
    float *logprob;  /* (cap - n_prompt) of the tokens chosen */
    float *entropy;  /* the same */
    int32_t *set;    /* (cap - n_prompt, words) the sets chosen from; NULL unless wanted */
    float *logits;   /* a prompt's: (V) after its last token */
    int64_t started; /* a prompt's: samples that have begun */
    int64_t order;   /* number by age */
} tp_sequence;

typedef struct tp_page_group { /* group 0: the dense layers; then each routed layer */
    int64_t layers;            /* 0: group 0 where every layer is routed; it has no pages */
    int64_t pages, free, peak; /* of its pool: in all, free now, used at most */
    int32_t *refs, *stack;     /* (pages) uses of each; those that are free */
    int64_t fed, kept;         /* tokens that came by in all passes; keys that it kept of them */
} tp_page_group;

typedef struct tp_cache {
    tp_ctx *c;
    tp_model *m;
    int64_t page; /* keys of a page */
    int64_t groups;
    tp_page_group *group;
    int32_t *group_of; /* (layers) */
    tp_tensor **key,
        **value; /* of each layer: (pages of its group, page, Hkv, D) in some order, kept */
    int64_t window, sinks; /* 0: the model's window, no sinks */
    struct tp_pass *pass;  /* that runs */
} tp_cache;

static inline int64_t tp_pages_for(int64_t page, int64_t keys) { return (keys + page - 1) / page; }
/* pages: of the dense layers' pool; routed_pages: of each routed layer's. */
tp_status tp_cache_new(tp_cache *k, tp_ctx *c, tp_model *m, int64_t page, int64_t pages,
                       int64_t routed_pages);
void tp_cache_free(tp_cache *k);
/* Bytes of one token's key and value in one layer. */
int64_t tp_cache_key_bytes(const tp_model *m);
/* Makes positions up to `to` (not with it) writable for s, in a routed layer as if it took every
 * token still to come: fresh pages, copies of shared ones. *short_of is -1, or the group whose pool
 * has no page left; s stays valid. */
tp_status tp_cache_room(tp_cache *k, tp_sequence *s, int64_t to, int64_t *short_of);
/* The pages of `from` are also those of its copy `to`, which has none yet. */
tp_status tp_cache_share(tp_cache *k, const tp_sequence *from, tp_sequence *to);
void tp_cache_drop(tp_cache *k, tp_sequence *s);   /* gives its pages back; cached becomes 0 */
void tp_cache_forget(tp_cache *k, tp_sequence *s); /* frees its tables, too */
/* Feeds the next take[i] > 0 tokens of each s[i], for which there is room; what routed layers did
 * not need of it goes back. hidden: (n,C) after the last token fed of each, a step tensor; NULL on
 * failure. */
tp_tensor *tp_cache_forward(tp_cache *k, tp_sequence *const s[], const int64_t take[], int64_t n);
#endif
