/* Owns which sequence runs when: lanes, waiting prompts, evictions.
 *
 *   active   prompts that are read or have samples to begin, and samples in their lanes
 *   waiting  those that had to give their pages back; they are read again, with the same bits
 *
 * A turn: begin what can begin; feed everybody's next tokens (prompts in chunks, in a pass of their
 * own); choose a token for each sample that has its logits. */
#include "infer/engine.h"
#include "core/ctx.h"
#include "infer/pages.h"
#include "ops/cast/cast.h"
#include "ops/linear_cross_entropy/lce_math.h"
#include "ops/rope/rope.h"
#include "ops/slice/slice.h"
#include "ops/token_logprob/token_logprob.h"
#include <string.h>

typedef struct list {
    tp_sequence **at;
    int64_t n;
} list;

struct tp_engine {
    tp_ctx *c;
    tp_model *m;
    tp_engine_opts o;
    tp_cache cache;
    tp_sampler *sampler;
    list active, waiting;
    int64_t cap; /* of either list */
    const tp_request *requests;
    int64_t n_requests, begun; /* requests whose prompt has begun */
    const tp_engine_calls *calls;
    int64_t order;
    tp_sequence **some; /* (cap) the sequences of a pass or a choice */
    int64_t *take;      /* (cap) */
    float *logits;      /* (cap,V) on the host */
    tp_engine_stats stats;
};

/* ---- life ----------------------------------------------------------------------------------- */
static int64_t longest(const tp_engine *e) {
    int64_t most = e->o.window ? TP_ROPE_POSITIONS : tp_model_config(e->m)->context;
    return e->o.max_length > 0 && e->o.max_length < most ? e->o.max_length : most;
}

/* Tokens of a sequence of n for which it has pages at a time: with a window the sinks, what the
 * window sees, the next chunk, and the part of a page at either end. */
static int64_t held(const tp_engine *e, int64_t n) {
    if (!e->o.window) return n;
    int64_t page = e->o.page, seen = tp_pages_for(page, e->o.window + e->o.prefill_chunk) + 1;
    int64_t most = (tp_pages_for(page, e->o.sinks) + seen) * page;
    return n < most ? n : most;
}

/* Pages of each routed layer's pool: as many for a page of the dense layers as the capacity asks
 * for, and a quarter more, since nobody promises it; and a sequence that is read takes room as if
 * every token went in. If they run out somebody waits. */
static int64_t routed_pages(const tp_engine *e) {
    const tp_model_cfg *f = tp_model_config(e->m);
    int64_t all = tp_pages_for(e->o.page, longest(e)) + 1;
    int64_t some = tp_pages_for(e->o.page, tp_mod_tokens(f, longest(e)) * 5 / 4) + 1;
    int64_t pages = (e->o.pages * some + all - 1) / all + all;
    if (pages < 2 * all) pages = 2 * all;
    return pages < e->o.pages ? pages : e->o.pages;
}

tp_status tp_engine_new(tp_engine **out, tp_ctx *c, tp_model *m, const tp_engine_opts *opts) {
    *out = NULL;
    const tp_model_cfg *f = tp_model_config(m);
    tp_engine *e = tp_calloc(c, 1, sizeof *e);
    if (!e) return tp_error_status(c);
    e->c = c;
    e->m = m;
    if (opts) e->o = *opts;
    if (!e->o.lanes) e->o.lanes = 32;
    if (!e->o.page) e->o.page = 16;
    if (!e->o.prefill_chunk) e->o.prefill_chunk = 256;
    if (e->o.prefill_chunk > f->context) e->o.prefill_chunk = f->context;
    int64_t whole = e->o.page > 0 ? tp_pages_for(e->o.page, held(e, longest(e))) + 1 : 0;
    if (!e->o.pages) e->o.pages = whole * (e->o.lanes + 4);
    tp_status st = TP_OK;
    if (e->o.lanes < 1 || e->o.page < 16 || e->o.page % 16 || e->o.prefill_chunk < 1)
        st = tp_fail(c, TP_EARG,
                     "engine: lanes and prefill_chunk must be above 0 and page a multiple of 16, "
                     "got %lld, %lld and %lld",
                     (long long)e->o.lanes, (long long)e->o.prefill_chunk, (long long)e->o.page);
    else if (e->o.pages < 2 * whole)
        st = tp_fail(c, TP_EARG,
                     "engine: %lld pages of %lld keys are too few: a sequence of %lld tokens and "
                     "its prompt may need %lld",
                     (long long)e->o.pages, (long long)e->o.page, (long long)held(e, longest(e)),
                     (long long)(2 * whole));
    else if (e->o.window && f->family == TP_FAMILY_GPT2)
        st = tp_fail(c, TP_EARG,
                     "engine: a window is for models with rope; GPT-2's positions end at %lld",
                     (long long)f->context);
    else if (e->o.window && tp_mod_blocks(f))
        st = tp_fail(c, TP_EARG,
                     "engine: a window does not go with mod.capacity: a routed block sees its own "
                     "tokens only, and a window over those would be another distance");
    e->cap = 2 * e->o.lanes + 2;
    if (!st) st = tp_cache_new(&e->cache, c, m, e->o.page, e->o.pages, routed_pages(e));
    e->cache.window = e->o.window;
    e->cache.sinks = e->o.window ? e->o.sinks : 0; /* of a model's own window there are none */
    if (!st) st = tp_sampler_new(&e->sampler, c, f->vocab);
    if (!st) {
        e->active.at = tp_calloc(c, (size_t)e->cap, sizeof(tp_sequence *));
        e->waiting.at = tp_calloc(c, (size_t)e->cap, sizeof(tp_sequence *));
        e->some = tp_calloc(c, (size_t)e->cap, sizeof(tp_sequence *));
        e->take = tp_calloc(c, (size_t)e->cap, sizeof *e->take);
        e->logits = tp_malloc(c, (size_t)(e->cap * f->vocab) * sizeof *e->logits);
        if (!e->active.at || !e->waiting.at || !e->some || !e->take || !e->logits)
            st = tp_error_status(c);
    }
    e->stats.pages = e->o.pages;
    if (st) {
        tp_engine_free(e);
        return st;
    }
    *out = e;
    return TP_OK;
}

static void free_sequence(tp_engine *e, tp_sequence *s) {
    if (!s) return;
    tp_cache_forget(&e->cache, s);
    tp_free(s->ids);
    tp_free(s->logprob);
    tp_free(s->entropy);
    tp_free(s->set);
    tp_free(s->logits);
    tp_free(s);
}

static void forget_all(tp_engine *e) {
    for (int64_t i = 0; i < e->active.n; i++) free_sequence(e, e->active.at[i]);
    for (int64_t i = 0; i < e->waiting.n; i++) free_sequence(e, e->waiting.at[i]);
    e->active.n = e->waiting.n = 0;
}

void tp_engine_free(tp_engine *e) {
    if (!e) return;
    forget_all(e);
    tp_cache_free(&e->cache);
    tp_sampler_free(e->sampler);
    tp_free(e->active.at);
    tp_free(e->waiting.at);
    tp_free(e->some);
    tp_free(e->take);
    tp_free(e->logits);
    tp_free(e);
}

tp_engine_stats tp_engine_get_stats(const tp_engine *e) {
    tp_engine_stats s = e->stats;
    s.pages_peak = e->cache.group[0].peak;
    return s;
}

tp_layer_stats tp_engine_get_layer_stats(const tp_engine *e, int64_t layer) {
    const tp_page_group *g = &e->cache.group[e->cache.group_of[layer]];
    return (tp_layer_stats){.routed = tp_mod_routed(tp_model_config(e->m), layer),
                            .fed = g->fed,
                            .kept = g->kept,
                            .pages = g->pages,
                            .pages_peak = g->peak};
}

double tp_engine_kv_bytes_per_token(const tp_engine *e) {
    double keys = 0;
    for (int64_t i = 0; i < tp_model_config(e->m)->layers; i++) {
        tp_layer_stats s = tp_engine_get_layer_stats(e, i);
        keys += s.fed ? (double)s.kept / (double)s.fed : 0;
    }
    return keys * (double)tp_cache_key_bytes(e->m);
}

/* ---- sequences ------------------------------------------------------------------------------ */
static const tp_request *request_of(const tp_engine *e, const tp_sequence *s) {
    return &e->requests[s->request];
}
static bool is_prompt(const tp_sequence *s) { return s->sample < 0; }
/* Tokens that are known but not yet fed. */
static int64_t unfed(const tp_sequence *s) { return s->n - s->base - s->cached; }
static int64_t words(const tp_engine *e) { return (tp_model_config(e->m)->vocab + 31) / 32; }

static bool wants_set(const tp_request *r) {
    return r->want_sets && tp_sampling_truncates(&r->sampling);
}

/* The most tokens that a sample of r may have in all. */
static int64_t limit(const tp_engine *e, const tp_request *r) {
    int64_t most = r->n + r->max_new_tokens, context = tp_model_config(e->m)->context;
    if (e->o.slide || e->o.window) return most;
    return most < context + 1 ? most : context + 1; /* the last token is not fed */
}

/* A full context leaves its older half behind; the rest is read again from position 0. */
static void leave_half(tp_engine *e, tp_sequence *s) {
    int64_t context = tp_model_config(e->m)->context;
    if (!e->o.slide || s->n - s->base <= context) return;
    tp_cache_drop(&e->cache, s);
    while (s->n - s->base > context) s->base += (context + 1) / 2;
}

static tp_sequence *new_sequence(tp_engine *e, int64_t request, int64_t sample) {
    const tp_request *r = &e->requests[request];
    tp_sequence *s = tp_calloc(e->c, 1, sizeof *s);
    if (!s) return NULL;
    s->request = request;
    s->sample = sample;
    s->order = e->order++;
    s->n = s->n_prompt = r->n;
    s->cap = sample < 0 ? r->n : limit(e, r);
    if (s->cap < r->n) s->cap = r->n;
    size_t made = (size_t)(s->cap - r->n) + 1;
    s->ids = tp_malloc(e->c, (size_t)s->cap * sizeof *s->ids);
    bool ok = s->ids != NULL;
    if (sample < 0) {
        s->logits = tp_malloc(e->c, (size_t)tp_model_config(e->m)->vocab * sizeof *s->logits);
        ok = ok && s->logits;
    } else {
        s->logprob = tp_malloc(e->c, made * sizeof *s->logprob);
        s->entropy = tp_malloc(e->c, made * sizeof *s->entropy);
        if (wants_set(r)) s->set = tp_malloc(e->c, made * (size_t)words(e) * sizeof *s->set);
        ok = ok && s->logprob && s->entropy && (s->set || !wants_set(r));
    }
    if (!ok) {
        free_sequence(e, s);
        return NULL;
    }
    memcpy(s->ids, r->prompt, (size_t)r->n * sizeof *s->ids);
    leave_half(e, s);
    return s;
}

static void take_out(list *l, int64_t i) {
    l->n--;
    memmove(l->at + i, l->at + i + 1, (size_t)(l->n - i) * sizeof *l->at);
}

static int64_t count(const list *l, bool prompts) {
    int64_t n = 0;
    for (int64_t i = 0; i < l->n; i++) n += is_prompt(l->at[i]) == prompts;
    return n;
}

/* Samples of prompts at hand that have not begun. */
static int64_t to_begin(const tp_engine *e) {
    int64_t n = 0;
    for (int64_t i = 0; i < e->active.n; i++)
        if (is_prompt(e->active.at[i]))
            n += request_of(e, e->active.at[i])->samples - e->active.at[i]->started;
    for (int64_t i = 0; i < e->waiting.n; i++)
        if (is_prompt(e->waiting.at[i]))
            n += request_of(e, e->waiting.at[i])->samples - e->waiting.at[i]->started;
    return n;
}

/* ---- pages ---------------------------------------------------------------------------------- */
/* The youngest but `s` with pages in this group, prompts before samples: reading a prompt again
 * costs least. */
static int64_t victim(const tp_engine *e, const tp_sequence *s, int64_t group) {
    int64_t best = -1;
    for (int64_t i = 0; i < e->active.n; i++) {
        const tp_sequence *x = e->active.at[i], *b = best < 0 ? NULL : e->active.at[best];
        if (x == s || !x->pages || !x->pages[group].n) continue;
        if (!b || (is_prompt(x) && !is_prompt(b)) ||
            (is_prompt(x) == is_prompt(b) && x->order > b->order))
            best = i;
    }
    return best;
}

static tp_status make_room(tp_engine *e, tp_sequence *s, int64_t to) {
    for (;;) {
        int64_t short_of;
        tp_status st = tp_cache_room(&e->cache, s, to, &short_of);
        if (st || short_of < 0) return st;
        int64_t i = victim(e, s, short_of);
        if (i < 0)
            return tp_fail(e->c, TP_ENOMEM,
                           "the key-value cache of %lld pages of %lld tokens is too small for a "
                           "sequence of %lld tokens",
                           (long long)e->cache.group[short_of].pages, (long long)e->o.page,
                           (long long)to);
        tp_sequence *x = e->active.at[i];
        tp_cache_drop(&e->cache, x);
        take_out(&e->active, i);
        e->waiting.at[e->waiting.n++] = x;
        e->stats.evicted++;
    }
}

/* Whether n tokens, and one page more for everybody who runs, would find room. */
static bool fits(const tp_engine *e, int64_t n) {
    bool enough = true;
    for (int64_t i = 0; i < e->cache.groups; i++) {
        const tp_page_group *g = &e->cache.group[i];
        enough &= !g->layers || tp_pages_for(e->o.page, n) + 1 + e->active.n <= g->free;
    }
    return enough || e->active.n == 0;
}

/* ---- ending --------------------------------------------------------------------------------- */
static tp_status finish(tp_engine *e, tp_sequence *s, tp_end end) {
    tp_completion x = {.request = s->request,
                       .sample = s->sample,
                       .n = s->n - s->n_prompt,
                       .ids = s->ids + s->n_prompt,
                       .logprob = s->logprob,
                       .entropy = s->entropy,
                       .set = s->set,
                       .end = end};
    tp_status st = e->calls->done ? e->calls->done(e->calls->arg, &x) : TP_OK;
    for (int64_t i = 0; i < e->active.n; i++)
        if (e->active.at[i] == s) take_out(&e->active, i);
    free_sequence(e, s);
    return st;
}

static tp_status finish_empty(tp_engine *e, int64_t request) {
    tp_status st = TP_OK;
    for (int64_t i = 0; i < e->requests[request].samples && !st; i++) {
        tp_completion x = {.request = request, .sample = i, .end = TP_END_LENGTH};
        if (e->calls->done) st = e->calls->done(e->calls->arg, &x);
    }
    return st;
}

/* ---- beginning ------------------------------------------------------------------------------ */
static int64_t free_lanes(const tp_engine *e) {
    return e->o.lanes - count(&e->active, false) - count(&e->waiting, false);
}

/* Those who waited longest first; else prompts, as many as free lanes will want. */
static tp_status begin_sequences(tp_engine *e) {
    while (e->waiting.n) {
        int64_t oldest = 0;
        for (int64_t i = 1; i < e->waiting.n; i++)
            if (e->waiting.at[i]->order < e->waiting.at[oldest]->order) oldest = i;
        tp_sequence *s = e->waiting.at[oldest];
        if (!fits(e, held(e, s->n - s->base))) return TP_OK;
        take_out(&e->waiting, oldest);
        e->active.at[e->active.n++] = s;
        tp_status st = make_room(e, s, held(e, s->n - s->base));
        if (st) return st;
    }
    while (e->begun < e->n_requests && to_begin(e) < free_lanes(e) && e->active.n < e->cap - 1) {
        const tp_request *r = &e->requests[e->begun];
        if (!fits(e, held(e, r->n))) return TP_OK;
        if (limit(e, r) <= r->n) { /* nothing may be added */
            tp_status st = finish_empty(e, e->begun++);
            if (st) return st;
            continue;
        }
        tp_sequence *s = new_sequence(e, e->begun, -1);
        if (!s) return tp_error_status(e->c);
        e->begun++;
        e->active.at[e->active.n++] = s;
        tp_status st = make_room(e, s, held(e, s->n - s->base));
        if (st) return st;
    }
    return TP_OK;
}

/* ---- choosing ------------------------------------------------------------------------------- */
static tp_status sample_row(tp_engine *e, tp_sequence *s, float *row) {
    const tp_request *r = request_of(e, s);
    const tp_model_cfg *f = tp_model_config(e->m);
    int64_t made = s->n - s->n_prompt;
    lce_scale cap = lce_scale_of(f->logit_softcap, 1);
    for (int64_t v = 0; v < f->vocab && f->logit_softcap > 0; v++) row[v] = lce_capped(row[v], cap);
    tp_draw d = {r->step, r->number, r->first_sample + (uint32_t)s->sample, (uint32_t)s->n};
    return tp_sample_token(e->c, e->sampler, &r->sampling, row, s->ids, s->n, d, &s->ids[s->n],
                           s->set ? s->set + made * words(e) : NULL);
}

/* Log-probs of the tokens just chosen by rows [from, from+n), which share a temperature. */
static tp_status record_rows(tp_engine *e, tp_tensor *logits, int64_t from, int64_t n,
                             double temperature) {
    tp_ctx *c = e->c;
    int64_t W = words(e);
    bool sets = e->some[from]->set != NULL;
    int32_t *ids = tp_arena_alloc(c, (size_t)n * sizeof *ids);
    int32_t *set = sets ? tp_arena_alloc(c, (size_t)(n * W) * sizeof *set) : NULL;
    float *got = tp_arena_alloc(c, (size_t)n * 2 * sizeof *got);
    if (!ids || !got || (sets && !set)) return tp_error_status(c);
    for (int64_t i = 0; i < n; i++) {
        tp_sequence *s = e->some[from + i];
        ids[i] = s->ids[s->n];
        if (sets) memcpy(set + i * W, s->set + (s->n - s->n_prompt) * W, (size_t)W * sizeof *set);
    }
    tp_tensor *y = tp_tensor_from(c, TP_I32, TP_SHAPE(n), ids);
    tp_tensor *in_set = sets ? tp_tensor_from(c, TP_I32, TP_SHAPE(n, W), set) : NULL;
    if (!y || (sets && !in_set)) return tp_error_status(c);
    tp_token_logprob_opts o = {tp_model_config(e->m)->logit_softcap, temperature, in_set};
    tp_token_logprob_out out = tp_token_logprob(c, tp_slice(c, logits, 0, from, n), y, &o);
    tp_tensor *p = out.logprob ? tp_cast(c, out.logprob, TP_F32) : NULL;
    tp_tensor *h = out.entropy ? tp_cast(c, out.entropy, TP_F32) : NULL;
    if (!p || !h || tp_download(c, p, got) || tp_download(c, h, got + n)) return tp_error_status(c);
    for (int64_t i = 0; i < n; i++) {
        tp_sequence *s = e->some[from + i];
        s->logprob[s->n - s->n_prompt] = got[i];
        s->entropy[s->n - s->n_prompt] = got[n + i];
    }
    return TP_OK;
}

/* What one call of token_logprob can serve. */
static bool alike(const tp_engine *e, const tp_sequence *a, const tp_sequence *b) {
    return request_of(e, a)->sampling.temperature == request_of(e, b)->sampling.temperature &&
           !a->set == !b->set;
}

static tp_status end_or_go_on(tp_engine *e, tp_sequence *s) {
    const tp_request *r = request_of(e, s);
    int32_t id = s->ids[s->n++];
    e->stats.decoded++;
    bool go = !e->calls->token || e->calls->token(e->calls->arg, s->request, s->sample, id);
    if (!go) return finish(e, s, TP_END_CALLER);
    if (id == r->stop) return finish(e, s, TP_END_STOP);
    if (s->n >= s->cap) return finish(e, s, TP_END_LENGTH);
    leave_half(e, s);
    return TP_OK;
}

/* One token for each of some[0..n), whose logits are the rows of `logits` (n,V), raw. */
static tp_status choose(tp_engine *e, tp_tensor *logits, int64_t n) {
    int64_t V = tp_model_config(e->m)->vocab;
    tp_status st = tp_download(e->c, logits, e->logits);
    for (int64_t i = 0; i < n && !st; i++) st = sample_row(e, e->some[i], e->logits + i * V);
    for (int64_t i = 0, to; i < n && !st; i = to) {
        for (to = i + 1; to < n && alike(e, e->some[i], e->some[to]);) to++;
        double t = request_of(e, e->some[i])->sampling.temperature;
        st = record_rows(e, logits, i, to - i, t > 0 ? t : 1);
    }
    for (int64_t i = 0; i < n && !st; i++) st = end_or_go_on(e, e->some[i]);
    return st;
}

/* ---- a turn --------------------------------------------------------------------------------- */
/* Samples begin in the free lanes, from their prompt's logits. */
static tp_status begin_samples(tp_engine *e) {
    tp_ctx *c = e->c;
    int64_t V = tp_model_config(e->m)->vocab, n = 0, lanes = free_lanes(e);
    for (int64_t i = 0; i < e->active.n && n < lanes; i++) {
        tp_sequence *g = e->active.at[i];
        if (!is_prompt(g) || unfed(g) > 0) continue;
        while (g->started < request_of(e, g)->samples && n < lanes) {
            tp_sequence *s = new_sequence(e, g->request, g->started);
            if (!s || tp_cache_share(&e->cache, g, s)) {
                free_sequence(e, s);
                for (int64_t j = 0; j < n; j++) free_sequence(e, e->some[j]);
                return tp_error_status(c);
            }
            s->order = g->order; /* as old as its prompt */
            memcpy(e->logits + n * V, g->logits, (size_t)V * sizeof *e->logits);
            g->started++;
            e->some[n++] = s;
        }
    }
    for (int64_t i = e->active.n - 1; i >= 0; i--) {
        tp_sequence *g = e->active.at[i];
        if (!is_prompt(g) || g->started < request_of(e, g)->samples) continue;
        take_out(&e->active, i);
        free_sequence(e, g);
    }
    if (!n) return TP_OK;
    for (int64_t i = 0; i < n; i++) e->active.at[e->active.n++] = e->some[i];
    tp_tensor *y = tp_tensor_from(c, TP_F32, TP_SHAPE(n, V), e->logits);
    tp_status st = tp_error_status(c);
    if (!st) st = choose(e, y, n);
    tp_step_end(c);
    return st;
}

/* One pass over those who have many tokens to be fed, or one; then their choices. */
static tp_status feed(tp_engine *e, bool many) {
    tp_ctx *c = e->c;
    int64_t V = tp_model_config(e->m)->vocab, n = 0;
    tp_status st = TP_OK;
    for (int64_t i = 0; i < e->active.n; i++)
        if (many ? unfed(e->active.at[i]) > 1 : unfed(e->active.at[i]) == 1)
            e->some[n++] = e->active.at[i];
    for (int64_t i = 0; i < n && !st; i++) {
        tp_sequence *s = e->some[i];
        e->take[i] = many && unfed(s) > e->o.prefill_chunk ? e->o.prefill_chunk : unfed(s);
        bool active = false; /* room for one may have evicted another */
        for (int64_t j = 0; j < e->active.n; j++) active |= e->active.at[j] == s;
        if (active) st = make_room(e, s, s->cached + e->take[i]);
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i++) {
        bool active = false;
        for (int64_t j = 0; j < e->active.n; j++) active |= e->active.at[j] == e->some[i];
        if (!active) continue;
        e->some[kept] = e->some[i];
        e->take[kept++] = e->take[i];
    }
    n = kept;
    if (st || !n) return st;
    double flops = c->flops;
    tp_tensor *h = tp_cache_forward(&e->cache, e->some, e->take, n);
    tp_tensor *y = h ? tp_model_head(c, e->m, h) : NULL;
    y = y ? tp_cast(c, y, TP_F32) : NULL;
    if (!y) return tp_error_status(c);
    e->stats.passes++;
    if (!many) {
        e->stats.fed_singly += n;
        e->stats.flops_singly += c->flops - flops;
    }
    bool all = true; /* rows that wait for no more tokens of a sample: then y is used as it is */
    for (int64_t i = 0; i < n; i++) {
        if (many || is_prompt(e->some[i])) e->stats.prefilled += e->take[i];
        all &= !is_prompt(e->some[i]) && unfed(e->some[i]) == 0;
    }
    if (!all) {
        if ((st = tp_download(c, y, e->logits))) return st;
        int64_t samples = 0;
        for (int64_t i = 0; i < n; i++) {
            tp_sequence *s = e->some[i];
            if (unfed(s) > 0) continue;
            const float *row = e->logits + i * V;
            if (is_prompt(s)) {
                memcpy(s->logits, row, (size_t)V * sizeof *row);
                continue;
            }
            memmove(e->logits + samples * V, row, (size_t)V * sizeof *row);
            e->some[samples++] = s;
        }
        n = samples;
        y = n ? tp_tensor_from(c, TP_F32, TP_SHAPE(n, V), e->logits) : NULL;
        if (n && !y) return tp_error_status(c);
    }
    if (n) st = choose(e, y, n);
    tp_step_end(c);
    return st;
}

static tp_status check(const tp_engine *e, const tp_request *r, int64_t i) {
    const tp_model_cfg *f = tp_model_config(e->m);
    const char *problem = tp_sampling_problem(&r->sampling);
    if (problem) return tp_fail(e->c, TP_EARG, "sampling: %s", problem);
    if (r->n < 1) return tp_fail(e->c, TP_EARG, "prompt %lld has no tokens", (long long)i);
    if (r->n > f->context && !e->o.slide && !e->o.window)
        return tp_fail(e->c, TP_EARG, "prompt %lld has %lld tokens, the context is %lld",
                       (long long)i, (long long)r->n, (long long)f->context);
    if (e->o.window && r->n + r->max_new_tokens > TP_ROPE_POSITIONS)
        return tp_fail(e->c, TP_EARG, "%lld tokens in all: rotary positions go up to %d",
                       (long long)(r->n + r->max_new_tokens), TP_ROPE_POSITIONS);
    for (int64_t j = 0; j < r->n; j++)
        if (r->prompt[j] < 0 || r->prompt[j] >= f->vocab)
            return tp_fail(e->c, TP_EARG, "token %d of prompt %lld is not in 0..%lld", r->prompt[j],
                           (long long)i, (long long)f->vocab - 1);
    return TP_OK;
}

tp_status tp_engine_run(tp_engine *e, const tp_request *requests, int64_t n,
                        const tp_engine_calls *calls) {
    static const tp_engine_calls none = {0};
    tp_status st = tp_error_status(e->c);
    e->requests = requests;
    e->n_requests = n;
    e->begun = e->order = 0;
    e->calls = calls ? calls : &none;
    for (int64_t i = 0; i < n && !st; i++) st = check(e, &requests[i], i);
    while (!st) {
        st = begin_sequences(e);
        if (!st && !e->active.n) break;
        if (!st) st = feed(e, true);
        if (!st) st = begin_samples(e);
        if (!st) st = feed(e, false);
        if (!st && e->calls->interrupted && e->calls->interrupted(e->calls->arg))
            st = TP_EINTERRUPT;
    }
    forget_all(e);
    tp_step_end(e->c);
    return st;
}
