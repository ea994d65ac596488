/* pages: the key-value cache of a model in pages of a pool, and the passes of the model over it.
 *
 * A sequence owns a table of pages; a page is shared by whoever counts on it and is copied before
 * somebody writes to a page that others read. Keys lie at their position from the sequence's
 * beginning, so attention takes the same tiles as in a training forward, and has its bits. */
#ifndef TP_PAGES_H
#define TP_PAGES_H
#include "infer/infer.h"

typedef struct tp_sequence {
    int64_t request, sample; /* sample -1: a prompt, whose samples share its pages */
    int32_t *ids;            /* (cap) tokens: the prompt's, then those chosen */
    int64_t n, n_prompt, cap;
    int64_t base;   /* position 0 is ids[base]; above 0 only after the context was full */
    int64_t cached; /* positions 0..cached-1 lie in pages */
    int32_t *table;
    int64_t n_pages, cap_pages;
    int64_t dead;    /* pages [sinks, dead) were given back: the window has left them */
    float *logprob;  /* (cap - n_prompt) of the tokens chosen */
    float *entropy;  /* the same */
    int32_t *set;    /* (cap - n_prompt, words) the sets chosen from; NULL unless wanted */
    float *logits;   /* a prompt's: (V) after its last token */
    int64_t started; /* a prompt's: samples that have begun */
    int64_t order;   /* number by age */
} tp_sequence;

typedef struct tp_cache {
    tp_ctx *c;
    tp_model *m;
    int64_t page, pages, free, peak;    /* keys of a page; pages in all, free now, used at most */
    int32_t *refs, *stack;              /* (pages) uses of each; those that are free */
    tp_tensor **key, **value;           /* of each layer: (pages, page, Hkv, D), kept */
    int64_t window, sinks;              /* 0: the model's window, no sinks */
    tp_tensor *tables, *starts, *slots; /* of the pass that runs */
} tp_cache;

tp_status tp_cache_new(tp_cache *k, tp_ctx *c, tp_model *m, int64_t page, int64_t pages);
void tp_cache_free(tp_cache *k);
/* Bytes of one page in all layers. */
int64_t tp_cache_page_bytes(const tp_model *m, int64_t page);
/* Makes positions up to `to` (not with it) writable for s: fresh pages, copies of shared ones.
 * *enough is false, and s still valid, where the pool has no page left. */
tp_status tp_cache_room(tp_cache *k, tp_sequence *s, int64_t to, bool *enough);
/* The pages of s are also those of a copy of it. */
void tp_cache_share(tp_cache *k, const tp_sequence *s);
void tp_cache_drop(tp_cache *k, tp_sequence *s); /* gives its pages back; cached becomes 0 */
/* Feeds the next take[i] tokens of each s[i], for which there is room. hidden: (n,C) after the last
 * token fed of each, a step tensor; NULL on failure. */
tp_tensor *tp_cache_forward(tp_cache *k, tp_sequence *const s[], const int64_t take[], int64_t n);
#endif
