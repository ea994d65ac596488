/* Owns the pools of pages, and what a pass of the model over cached sequences looks like. */
#include "infer/pages.h"
#include "core/ctx.h"
#include "infer/engine.h"
#include "ops/cache_write/cache_write.h"
#include "ops/cast/cast.h"
#include "ops/gather_rows/gather_rows.h"
#include "ops/paged_attention/paged_attention.h"
#include "ops/reshape/reshape.h"
#include "ops/transpose/transpose.h"
#include <string.h>

/* ---- the pools ------------------------------------------------------------------------------ */
static tp_dtype type_of(const tp_model_cfg *f) {
    return f->compute == TP_BF16 ? TP_BF16 : f->dtype;
}

int64_t tp_cache_key_bytes(const tp_model *m) {
    const tp_model_cfg *f = tp_model_config(m);
    return 2 * f->kv_heads * f->head_dim * (int64_t)tp_dtype_size(type_of(f));
}

int64_t tp_kv_bytes_per_token(const tp_model *m) {
    const tp_model_cfg *f = tp_model_config(m);
    int64_t T = f->context, routed = tp_mod_blocks(f);
    int64_t keys = (f->layers - routed) * T + routed * tp_mod_tokens(f, T);
    return (keys * tp_cache_key_bytes(m) + T - 1) / T;
}

static tp_status open_pool(tp_cache *k, tp_page_group *g, int64_t pages) {
    g->pages = pages;
    g->refs = tp_calloc(k->c, (size_t)pages, sizeof *g->refs);
    g->stack = tp_calloc(k->c, (size_t)pages, sizeof *g->stack);
    if (!g->refs || !g->stack) return tp_error_status(k->c);
    for (; g->free < pages; g->free++) g->stack[g->free] = (int32_t)(pages - 1 - g->free);
    return TP_OK;
}

/* (pages of the group, page, Hkv, D) as they lie in memory, outermost first. On the CPU a head has
 * its part of a page to itself, and keys are transposed: attention multiplies sixteen keys at a
 * time, and so needs no copy of them. The kernels for GPUs read whole rows. */
static const int rows_together[4] = {0, 1, 2, 3}, keys_by_head[4] = {0, 2, 3, 1},
                 values_by_head[4] = {0, 2, 1, 3};
static const int *key_order(const tp_ctx *c) { return c->backend ? rows_together : keys_by_head; }
static const int *value_order(const tp_ctx *c) {
    return c->backend ? rows_together : values_by_head;
}

static tp_tensor *open_pool_tensor(tp_cache *k, const int64_t shape[4], const int order[4]) {
    const tp_model_cfg *f = tp_model_config(k->m);
    int64_t lies[4];
    for (int d = 0; d < 4; d++) lies[d] = shape[order[d]];
    return tp_tensor_keep(k->c, type_of(f), 4, lies);
}

/* A pool as ops take it: (pages,page,Hkv,D). */
static tp_tensor *as_rows(tp_ctx *c, tp_tensor *pool, const int order[4]) {
    int perm[4];
    for (int d = 0; d < 4; d++) perm[order[d]] = d;
    return tp_permute(c, pool, perm);
}

static tp_status open_layer(tp_cache *k, int64_t i) {
    const tp_model_cfg *f = tp_model_config(k->m);
    tp_ctx *c = k->c;
    const int64_t shape[4] = {k->group[k->group_of[i]].pages, k->page, f->kv_heads, f->head_dim};
    k->key[i] = open_pool_tensor(k, shape, key_order(c));
    k->value[i] = open_pool_tensor(k, shape, value_order(c));
    if (!k->key[i] || !k->value[i]) return tp_error_status(c);
    /* Where a shorter row of a pass is filled up nothing was written, and tensor cores multiply
     * what a query does not see by 0. On the CPU, where they do not, memory stays untouched. */
    if (c->backend && (tp_zero(c, k->key[i]) || tp_zero(c, k->value[i]))) return tp_error_status(c);
    return TP_OK;
}

tp_status tp_cache_new(tp_cache *k, tp_ctx *c, tp_model *m, int64_t page, int64_t pages,
                       int64_t routed_pages) {
    const tp_model_cfg *f = tp_model_config(m);
    *k = (tp_cache){.c = c, .m = m, .page = page, .groups = 1 + tp_mod_blocks(f)};
    k->group = tp_calloc(c, (size_t)k->groups, sizeof *k->group);
    k->group_of = tp_calloc(c, (size_t)f->layers, sizeof *k->group_of);
    k->key = tp_calloc(c, (size_t)f->layers, sizeof(tp_tensor *));
    k->value = tp_calloc(c, (size_t)f->layers, sizeof(tp_tensor *));
    if (!k->group || !k->group_of || !k->key || !k->value) return tp_error_status(c);
    for (int64_t i = 0, routed = 0; i < f->layers; i++) {
        k->group_of[i] = tp_mod_routed(f, i) ? (int32_t)++routed : 0;
        k->group[k->group_of[i]].layers++;
    }
    tp_status st = TP_OK;
    for (int64_t i = 0; i < k->groups && !st; i++)
        if (k->group[i].layers) st = open_pool(k, &k->group[i], i ? routed_pages : pages);
    for (int64_t i = 0; i < f->layers && !st; i++) st = open_layer(k, i);
    return st;
}

void tp_cache_free(tp_cache *k) {
    int64_t layers = k->m ? tp_model_config(k->m)->layers : 0;
    for (int64_t i = 0; i < layers && k->key && k->value; i++) {
        if (k->key[i]) tp_release(k->c, k->key[i]);
        if (k->value[i]) tp_release(k->c, k->value[i]);
    }
    for (int64_t i = 0; i < k->groups && k->group; i++) {
        tp_free(k->group[i].refs);
        tp_free(k->group[i].stack);
    }
    tp_free(k->key);
    tp_free(k->value);
    tp_free(k->group);
    tp_free(k->group_of);
    *k = (tp_cache){0};
}

static int32_t take_page(tp_page_group *g) {
    if (!g->free) return -1;
    int32_t p = g->stack[--g->free];
    g->refs[p] = 1;
    if (g->pages - g->free > g->peak) g->peak = g->pages - g->free;
    return p;
}

static void give_page(tp_page_group *g, int32_t p) {
    if (--g->refs[p] == 0) g->stack[g->free++] = p;
}

static tp_status copy_page(tp_cache *k, int64_t group, int32_t from, int32_t to) {
    tp_status st = TP_OK;
    for (int64_t i = 0; i < tp_model_config(k->m)->layers && !st; i++)
        for (int which = 0; which < 2 && !st && k->group_of[i] == group; which++) {
            tp_tensor *t = which ? k->value[i] : k->key[i];
            size_t bytes = (size_t)t->stride[0] * tp_dtype_size(t->dtype);
            char *base = t->data;
            st = tp_copy_bytes(k->c, base + (size_t)to * bytes, base + (size_t)from * bytes, bytes);
        }
    return st;
}

/* ---- a sequence's pages --------------------------------------------------------------------- */
static bool is_dead(const tp_cache *k, const tp_pages *p, int64_t i) {
    return i >= tp_pages_for(k->page, k->sinks) && i < p->dead;
}

static tp_status grow_table(tp_cache *k, tp_pages *p, int64_t need) {
    if (need <= p->cap) return TP_OK;
    int64_t cap = need + 16;
    int32_t *table = tp_realloc(k->c, p->table, (size_t)cap * sizeof *table);
    if (!table) return tp_error_status(k->c);
    p->table = table;
    p->cap = cap;
    return TP_OK;
}

/* Room for keys up to `to`. */
static tp_status room(tp_cache *k, int64_t group, tp_pages *p, int64_t to, bool *enough) {
    tp_page_group *g = &k->group[group];
    int64_t need = tp_pages_for(k->page, to);
    tp_status st = TP_OK;
    *enough = false;
    for (int64_t i = p->keys / k->page; i < p->n; i++) { /* shared, about to be written */
        int32_t old = p->table[i];
        if (g->refs[old] == 1) continue;
        int32_t copy = take_page(g);
        if (copy < 0) return TP_OK;
        if ((st = copy_page(k, group, old, copy))) {
            give_page(g, copy);
            return st;
        }
        p->table[i] = copy;
        give_page(g, old);
    }
    while (p->n < need) {
        int32_t fresh = take_page(g);
        if (fresh < 0) return TP_OK;
        p->table[p->n++] = fresh;
    }
    *enough = true;
    return TP_OK;
}

static tp_pages *tables_of(tp_cache *k, tp_sequence *s) {
    if (!s->pages) s->pages = tp_calloc(k->c, (size_t)k->groups, sizeof *s->pages);
    return s->pages;
}

tp_status tp_cache_room(tp_cache *k, tp_sequence *s, int64_t to, int64_t *short_of) {
    tp_pages *p = tables_of(k, s);
    tp_status st = p ? TP_OK : tp_error_status(k->c);
    int64_t known = s->n - s->base > to ? s->n - s->base : to;
    *short_of = -1;
    for (int64_t i = 0; i < k->groups && !st && *short_of < 0; i++) {
        bool enough = false;
        if (!k->group[i].layers) continue;
        st = grow_table(k, &p[i], tp_pages_for(k->page, p[i].keys + known - s->cached));
        if (!st) st = room(k, i, &p[i], p[i].keys + to - s->cached, &enough);
        if (!enough) *short_of = i;
    }
    return st;
}

tp_status tp_cache_share(tp_cache *k, const tp_sequence *from, tp_sequence *to) {
    tp_pages *p = tables_of(k, to);
    tp_status st = p ? TP_OK : tp_error_status(k->c);
    for (int64_t i = 0; i < k->groups && !st; i++) st = grow_table(k, &p[i], from->pages[i].n);
    for (int64_t i = 0; i < k->groups && !st; i++) {
        const tp_pages *x = &from->pages[i];
        if (x->n) memcpy(p[i].table, x->table, (size_t)x->n * sizeof *x->table);
        p[i].n = x->n;
        p[i].keys = x->keys;
        p[i].dead = x->dead;
        for (int64_t j = 0; j < x->n; j++)
            if (!is_dead(k, x, j)) k->group[i].refs[x->table[j]]++;
    }
    if (!st) to->cached = from->cached;
    return st;
}

void tp_cache_drop(tp_cache *k, tp_sequence *s) {
    for (int64_t i = 0; i < k->groups && s->pages; i++) {
        tp_pages *p = &s->pages[i];
        for (int64_t j = 0; j < p->n; j++)
            if (!is_dead(k, p, j)) give_page(&k->group[i], p->table[j]);
        p->n = p->keys = p->dead = 0;
    }
    s->cached = 0;
}

void tp_cache_forget(tp_cache *k, tp_sequence *s) {
    tp_cache_drop(k, s);
    for (int64_t i = 0; i < k->groups && s->pages; i++) tp_free(s->pages[i].table);
    tp_free(s->pages);
    s->pages = NULL;
}

/* Pages that no later query sees take what is still to come of the `more` keys that are known, so
 * that who is read needs no more pages than it began with; or they go back. Their places in the
 * table point at any page. What is behind the known keys goes back, too. */
static void leave_behind(tp_cache *k, int64_t group, tp_pages *p, int64_t more) {
    tp_page_group *g = &k->group[group];
    int64_t window = k->window ? k->window : tp_model_config(k->m)->sliding_window;
    int64_t past = window ? (p->keys - window + 1) / k->page : 0,
            sinks = tp_pages_for(k->page, k->sinks);
    int64_t need = tp_pages_for(k->page, p->keys + more);
    if (p->dead < sinks) p->dead = sinks;
    for (; p->dead < past && p->dead < p->n; p->dead++) {
        int32_t left = p->table[p->dead];
        if (p->n < need && g->refs[left] == 1)
            p->table[p->n++] = left;
        else
            give_page(g, left);
        p->table[p->dead] = 0;
    }
    while (p->n > need) give_page(g, p->table[--p->n]);
}

/* ---- a pass --------------------------------------------------------------------------------- */
typedef struct layout {  /* of a group in this pass: where its keys lie and where the new ones go */
    int64_t P, K, width; /* sequences that add keys, at most K each; pages of the longest table */
    int32_t *slots, *tables, *starts; /* (P,K), (P,width), (P) */
} layout;

typedef struct placed { /* the same, as tensors */
    tp_tensor *slots, *tables, *starts;
} placed;

struct tp_pass {
    tp_sequence *const *s;
    const int64_t *take;
    int64_t n, T;       /* sequences; tokens of the longest */
    int32_t *positions; /* (n,T) */
    int64_t *took;      /* (groups,n): keys that each sequence adds; 0 until it is decided */
    placed dense;
    layout routed; /* of the layer at work */
};

static placed place(tp_ctx *c, const layout *x) {
    placed p = {tp_tensor_from(c, TP_I32, TP_SHAPE(x->P, x->K), x->slots),
                tp_tensor_from(c, TP_I32, TP_SHAPE(x->P, x->width), x->tables),
                tp_tensor_from(c, TP_I32, TP_SHAPE(x->P), x->starts)};
    return p.slots && p.tables && p.starts ? p : (placed){0};
}

/* From took. Places of a row behind its last key have no slot. */
static bool lay_out(tp_cache *k, int64_t group, layout *x) {
    const struct tp_pass *p = k->pass;
    const int64_t *took = p->took + group * p->n;
    *x = (layout){.width = 1};
    for (int64_t i = 0; i < p->n; i++) {
        x->P += took[i] > 0;
        if (took[i] > x->K) x->K = took[i];
    }
    for (int64_t i = 0; i < p->n; i++) {
        int64_t w = took[i] ? tp_pages_for(k->page, p->s[i]->pages[group].keys + x->K) : 0;
        if (w > x->width) x->width = w;
    }
    size_t slots = (size_t)(x->P * x->K), cells = (size_t)(x->P * x->width);
    x->slots = tp_arena_alloc(k->c, (slots + cells + (size_t)x->P + 1) * sizeof *x->slots);
    if (!x->slots) return false;
    x->tables = x->slots + slots;
    x->starts = x->tables + cells;
    memset(x->slots, 0xff, slots * sizeof *x->slots); /* -1 */
    memset(x->tables, 0, cells * sizeof *x->tables);
    for (int64_t i = 0, row = 0; i < p->n; i++) {
        const tp_pages *at = &p->s[i]->pages[group];
        if (!took[i]) continue;
        x->starts[row] = (int32_t)at->keys;
        memcpy(x->tables + row * x->width, at->table,
               (size_t)(at->n < x->width ? at->n : x->width) * sizeof *at->table);
        for (int64_t j = 0; j < took[i]; j++) {
            int64_t key = at->keys + j, in_page = key % k->page;
            x->slots[row * x->K + j] =
                at->table[key / k->page] * (int32_t)k->page + (int32_t)in_page;
        }
        row++;
    }
    return true;
}

static tp_tensor *attend(void *arg, tp_ctx *c, tp_tensor *q, tp_tensor *key, tp_tensor *value,
                         const tp_attend_opts *o) {
    tp_cache *k = arg;
    tp_paged_attention_opts with = {
        .window = k->window ? k->window : o->window, .sinks = k->sinks, .softcap = o->softcap};
    placed at = k->group_of[o->layer] ? place(c, &k->pass->routed) : k->pass->dense;
    tp_tensor *keys = as_rows(c, k->key[o->layer], key_order(c));
    tp_tensor *values = as_rows(c, k->value[o->layer], value_order(c));
    if (!keys || !values || tp_cache_write_(c, keys, key, at.slots) ||
        tp_cache_write_(c, values, value, at.slots))
        return NULL;
    return tp_paged_attention(c, q, keys, values, at.tables, at.starts, &with);
}

/* Those taken, a list for each sequence that has some. What fills a pass up is never taken. */
static tp_chosen choose(void *arg, tp_ctx *c, int layer, tp_tensor *decision) {
    tp_cache *k = arg;
    struct tp_pass *p = k->pass;
    int64_t group = k->group_of[layer], *took = p->took + group * p->n;
    layout *x = &p->routed;
    float *d = tp_arena_alloc(c, (size_t)(p->n * p->T) * sizeof *d);
    tp_tensor *f32 = tp_cast(c, decision, TP_F32);
    if (!d || !f32 || tp_download(c, f32, d)) return (tp_chosen){0};
    for (int64_t i = 0; i < p->n; i++)
        for (int64_t t = 0; t < p->take[i]; t++) took[i] += d[i * p->T + t] > 0;
    if (!lay_out(k, group, x)) return (tp_chosen){0};
    int64_t cells = x->P * x->K;
    int32_t *rows = tp_arena_alloc(c, (size_t)(2 * cells + 1) * sizeof *rows);
    if (!rows) return (tp_chosen){0};
    int32_t *positions = rows + cells;
    for (int64_t i = 0; i < cells; i++) rows[i] = -1, positions[i] = 0; /* rope turns by it */
    for (int64_t i = 0, row = 0; i < p->n; i++) {
        int64_t at = row * x->K;
        for (int64_t t = i * p->T; t < i * p->T + p->take[i]; t++) {
            if (!(d[t] > 0)) continue;
            rows[at] = (int32_t)t;
            positions[at++] = p->positions[t];
        }
        row += took[i] > 0;
    }
    tp_chosen r = {.rows = tp_tensor_from(c, TP_I32, TP_SHAPE(x->P, x->K), rows),
                   .positions = tp_tensor_from(c, TP_I32, TP_SHAPE(x->P, x->K), positions)};
    return r.rows && r.positions ? r : (tp_chosen){0};
}

/* Rows shorter than the longest are filled with tokens that nobody reads: id 0, no slot. -> the
 * rows of the last tokens. */
static tp_tensor *load(tp_cache *k, tp_model_in *in) {
    tp_ctx *c = k->c;
    struct tp_pass *p = k->pass;
    int64_t n = p->n, T, last = k->window ? INT32_MAX : tp_model_config(k->m)->context - 1;
    for (int64_t i = 0; i < n; i++)
        if (p->take[i] > p->T) p->T = p->take[i];
    T = p->T;
    size_t tokens = (size_t)(n * T), took = (size_t)(k->groups * n);
    int32_t *ids = tp_arena_alloc(c, (2 * tokens + (size_t)n) * sizeof *ids);
    p->took = tp_arena_alloc(c, took * sizeof *p->took);
    if (!ids || !p->took) return NULL;
    int32_t *ends = ids + 2 * tokens;
    p->positions = ids + tokens;
    memset(ids, 0, tokens * sizeof *ids);
    memset(p->took, 0, took * sizeof *p->took);
    memcpy(p->took, p->take, (size_t)n * sizeof *p->took);
    for (int64_t i = 0; i < n; i++) {
        const tp_sequence *s = p->s[i];
        ends[i] = (int32_t)(i * T + p->take[i] - 1);
        memcpy(ids + i * T, s->ids + s->base + s->cached, (size_t)p->take[i] * sizeof *ids);
        for (int64_t t = 0; t < T; t++) {
            int64_t at = s->cached + t;
            p->positions[i * T + t] = (int32_t)(at < last ? at : last);
        }
    }
    layout dense;
    if (k->group[0].layers) {
        if (!lay_out(k, 0, &dense)) return NULL;
        p->dense = place(c, &dense);
        if (!p->dense.slots) return NULL;
    }
    in->ids = tp_tensor_from(c, TP_I32, TP_SHAPE(n, T), ids);
    in->positions = tp_tensor_from(c, TP_I32, TP_SHAPE(n, T), p->positions);
    tp_tensor *rows = tp_tensor_from(c, TP_I32, TP_SHAPE(n), ends);
    return in->ids && in->positions ? rows : NULL;
}

static void advance(tp_cache *k, const struct tp_pass *p) {
    for (int64_t i = 0; i < p->n; i++) {
        tp_sequence *s = p->s[i];
        s->cached += p->take[i];
        for (int64_t g = 0; g < k->groups; g++) {
            s->pages[g].keys += p->took[g * p->n + i];
            k->group[g].fed += p->take[i];
            k->group[g].kept += p->took[g * p->n + i];
            leave_behind(k, g, &s->pages[g], s->n - s->base - s->cached);
        }
    }
}

tp_tensor *tp_cache_forward(tp_cache *k, tp_sequence *const s[], const int64_t take[], int64_t n) {
    struct tp_pass pass = {.s = s, .take = take, .n = n};
    tp_model_in in = {.attend = attend,
                      .attend_arg = k,
                      .mode = TP_MOD_CAUSAL,
                      .choose = choose,
                      .choose_arg = k};
    k->pass = &pass;
    tp_tensor *rows = load(k, &in);
    tp_tensor *h = rows ? tp_model_hidden(k->c, k->m, &in) : NULL;
    if (h) {
        h = tp_reshape(k->c, h, TP_SHAPE(h->shape[0] * h->shape[1], h->shape[2]));
        h = h ? tp_gather_rows(k->c, h, rows) : NULL;
    }
    if (h) advance(k, &pass);
    k->pass = NULL;
    return h;
}
