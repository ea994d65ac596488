/* Owns the pool of pages, and what a pass of the model over cached sequences looks like. */
#include "infer/pages.h"
#include "core/ctx.h"
#include "ops/cache_write/cache_write.h"
#include "ops/gather_rows/gather_rows.h"
#include "ops/paged_attention/paged_attention.h"
#include "ops/reshape/reshape.h"
#include <string.h>

/* ---- the pool ------------------------------------------------------------------------------- */
int64_t tp_cache_page_bytes(const tp_model *m, int64_t page) {
    const tp_model_cfg *f = tp_model_config(m);
    return 2 * f->layers * page * f->kv_heads * f->head_dim *
           (int64_t)tp_dtype_size(f->compute == TP_BF16 ? TP_BF16 : f->dtype);
}

tp_status tp_cache_new(tp_cache *k, tp_ctx *c, tp_model *m, int64_t page, int64_t pages) {
    const tp_model_cfg *f = tp_model_config(m);
    *k = (tp_cache){.c = c, .m = m, .page = page, .pages = pages};
    k->refs = tp_calloc(c, (size_t)pages, sizeof *k->refs);
    k->stack = tp_calloc(c, (size_t)pages, sizeof *k->stack);
    k->key = tp_calloc(c, (size_t)f->layers, sizeof(tp_tensor *));
    k->value = tp_calloc(c, (size_t)f->layers, sizeof(tp_tensor *));
    if (!k->refs || !k->stack || !k->key || !k->value) return tp_error_status(c);
    for (; k->free < pages; k->free++) k->stack[k->free] = (int32_t)(pages - 1 - k->free);
    tp_dtype type = f->compute == TP_BF16 ? TP_BF16 : f->dtype;
    int64_t shape[4] = {pages, page, f->kv_heads, f->head_dim};
    for (int i = 0; i < f->layers; i++) {
        k->key[i] = tp_tensor_keep(c, type, 4, shape);
        k->value[i] = tp_tensor_keep(c, type, 4, shape);
        if (!k->key[i] || !k->value[i]) return tp_error_status(c);
        /* Where a shorter row of a pass is filled up nothing was written, and tensor cores multiply
         * what a query does not see by 0. On the CPU, where they do not, memory stays untouched. */
        if (c->backend && (tp_zero(c, k->key[i]) || tp_zero(c, k->value[i])))
            return tp_error_status(c);
    }
    return TP_OK;
}

void tp_cache_free(tp_cache *k) {
    int64_t layers = k->m ? tp_model_config(k->m)->layers : 0;
    for (int64_t i = 0; i < layers && k->key && k->value; i++) {
        if (k->key[i]) tp_release(k->c, k->key[i]);
        if (k->value[i]) tp_release(k->c, k->value[i]);
    }
    tp_free(k->key);
    tp_free(k->value);
    tp_free(k->refs);
    tp_free(k->stack);
    *k = (tp_cache){0};
}

static int32_t take_page(tp_cache *k) {
    if (!k->free) return -1;
    int32_t p = k->stack[--k->free];
    k->refs[p] = 1;
    if (k->pages - k->free > k->peak) k->peak = k->pages - k->free;
    return p;
}

static void give_page(tp_cache *k, int32_t p) {
    if (--k->refs[p] == 0) k->stack[k->free++] = p;
}

static tp_status copy_page(tp_cache *k, int32_t from, int32_t to) {
    tp_status st = TP_OK;
    for (int64_t i = 0; i < tp_model_config(k->m)->layers && !st; i++)
        for (int which = 0; which < 2 && !st; which++) {
            tp_tensor *t = which ? k->value[i] : k->key[i];
            size_t bytes = (size_t)t->stride[0] * tp_dtype_size(t->dtype);
            char *base = t->data;
            st = tp_copy_bytes(k->c, base + (size_t)to * bytes, base + (size_t)from * bytes, bytes);
        }
    return st;
}

/* ---- a sequence's pages --------------------------------------------------------------------- */
static int64_t sink_pages(const tp_cache *k) { return (k->sinks + k->page - 1) / k->page; }

static bool is_dead(const tp_cache *k, const tp_sequence *s, int64_t i) {
    return i >= sink_pages(k) && i < s->dead;
}

tp_status tp_cache_room(tp_cache *k, tp_sequence *s, int64_t to, bool *enough) {
    int64_t need = (to + k->page - 1) / k->page;
    *enough = false;
    if (need > s->cap_pages) {
        int64_t cap = need + 16;
        int32_t *table = tp_realloc(k->c, s->table, (size_t)cap * sizeof *table);
        if (!table) return tp_error_status(k->c);
        s->table = table;
        s->cap_pages = cap;
    }
    for (int64_t i = s->cached / k->page; i < s->n_pages; i++) { /* shared, about to be written */
        int32_t old = s->table[i];
        if (k->refs[old] == 1) continue;
        int32_t copy = take_page(k);
        if (copy < 0) return TP_OK;
        tp_status st = copy_page(k, old, copy);
        if (st) {
            give_page(k, copy);
            return st;
        }
        s->table[i] = copy;
        give_page(k, old);
    }
    while (s->n_pages < need) {
        int32_t p = take_page(k);
        if (p < 0) return TP_OK;
        s->table[s->n_pages++] = p;
    }
    *enough = true;
    return TP_OK;
}

void tp_cache_share(tp_cache *k, const tp_sequence *s) {
    for (int64_t i = 0; i < s->n_pages; i++)
        if (!is_dead(k, s, i)) k->refs[s->table[i]]++;
}

void tp_cache_drop(tp_cache *k, tp_sequence *s) {
    for (int64_t i = 0; i < s->n_pages; i++)
        if (!is_dead(k, s, i)) give_page(k, s->table[i]);
    s->n_pages = s->cached = s->dead = 0;
}

/* Pages that no later query sees go back; their places in the table point at any page. */
static void leave_behind(tp_cache *k, tp_sequence *s) {
    int64_t window = k->window ? k->window : tp_model_config(k->m)->sliding_window;
    int64_t past = window ? (s->cached - window + 1) / k->page : 0;
    if (s->dead < sink_pages(k)) s->dead = sink_pages(k);
    for (; s->dead < past && s->dead < s->n_pages; s->dead++) {
        give_page(k, s->table[s->dead]);
        s->table[s->dead] = 0;
    }
}

/* ---- a pass --------------------------------------------------------------------------------- */
static tp_tensor *attend(void *arg, tp_ctx *c, tp_tensor *q, tp_tensor *key, tp_tensor *value,
                         const tp_attend_opts *o) {
    tp_cache *k = arg;
    tp_paged_attention_opts with = {
        .window = k->window ? k->window : o->window, .sinks = k->sinks, .softcap = o->softcap};
    if (tp_cache_write_(c, k->key[o->layer], key, k->slots) ||
        tp_cache_write_(c, k->value[o->layer], value, k->slots))
        return NULL;
    return tp_paged_attention(c, q, k->key[o->layer], k->value[o->layer], k->tables, k->starts,
                              &with);
}

static tp_tensor *ints(tp_ctx *c, int ndim, const int64_t *shape, const int32_t *from) {
    tp_tensor *t = tp_tensor_new(c, TP_I32, ndim, shape);
    return t && !tp_upload(c, t, from) ? t : NULL;
}

/* Rows shorter than the longest are filled with tokens that nobody reads: id 0, no slot. */
static tp_tensor *load(tp_cache *k, tp_sequence *const s[], const int64_t take[], int64_t n,
                       tp_model_in *in) {
    tp_ctx *c = k->c;
    int64_t T = 0, width = 1, last = tp_model_config(k->m)->context - 1;
    for (int64_t i = 0; i < n; i++) {
        if (take[i] > T) T = take[i];
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t w = (s[i]->cached + T + k->page - 1) / k->page;
        if (w > width) width = w;
    }
    if (k->window) last = INT32_MAX;
    size_t tokens = (size_t)(n * T), cells = (size_t)(n * width);
    int32_t *room = tp_arena_alloc(c, (3 * tokens + cells + 2 * (size_t)n) * sizeof *room);
    if (!room) return NULL;
    int32_t *ids = room, *positions = ids + tokens, *slots = positions + tokens;
    int32_t *tables = slots + tokens, *starts = tables + cells, *ends = starts + n;
    memset(room, 0, (3 * tokens + cells) * sizeof *room);
    for (int64_t i = 0; i < n; i++) {
        starts[i] = (int32_t)s[i]->cached;
        ends[i] = (int32_t)(i * T + take[i] - 1);
        memcpy(tables + i * width, s[i]->table,
               (size_t)(s[i]->n_pages < width ? s[i]->n_pages : width) * sizeof *tables);
        for (int64_t t = 0; t < T; t++) {
            int64_t at = s[i]->cached + t, cell = i * T + t;
            bool real = t < take[i];
            ids[cell] = real ? s[i]->ids[s[i]->base + at] : 0;
            positions[cell] = (int32_t)(at < last ? at : last);
            slots[cell] =
                real ? s[i]->table[at / k->page] * (int32_t)k->page + (int32_t)(at % k->page) : -1;
        }
    }
    in->ids = ints(c, TP_SHAPE(n, T), ids);
    in->positions = ints(c, TP_SHAPE(n, T), positions);
    k->slots = ints(c, TP_SHAPE(n, T), slots);
    k->tables = ints(c, TP_SHAPE(n, width), tables);
    k->starts = ints(c, TP_SHAPE(n), starts);
    tp_tensor *rows = ints(c, TP_SHAPE(n), ends);
    return in->ids && in->positions && k->slots && k->tables && k->starts ? rows : NULL;
}

tp_tensor *tp_cache_forward(tp_cache *k, tp_sequence *const s[], const int64_t take[], int64_t n) {
    tp_model_in in = {.attend = attend, .attend_arg = k};
    tp_tensor *rows = load(k, s, take, n, &in);
    tp_tensor *h = rows ? tp_model_hidden(k->c, k->m, &in) : NULL;
    if (!h) return NULL;
    int64_t channels = h->shape[2];
    h = tp_reshape(k->c, h, TP_SHAPE(h->shape[0] * h->shape[1], channels));
    h = h ? tp_gather_rows(k->c, h, rows) : NULL;
    for (int64_t i = 0; i < n && h; i++) {
        s[i]->cached += take[i];
        leave_behind(k, s[i]);
    }
    return h;
}
