/* Owns sharing out samples among engines, and their calls to whoever asked. */
#include "infer/crew.h"
#include "core/ctx.h"
#include <pthread.h>
#include <stdatomic.h>

enum { FEWEST_LANES = 16 };                          /* of an engine: rows enough for a product */
static const size_t most_weights = (size_t)16 << 20; /* bytes that every core reads for itself */

typedef struct part { /* a request of an engine: some samples of one of the caller's */
    int64_t request, first;
} part;

typedef struct worker {
    tp_crew *crew;
    tp_ctx *c;
    tp_model *m;
    tp_engine *e;
    tp_request *requests;
    part *parts;
    int64_t n, cap;
    tp_status st;
} worker;

struct tp_crew {
    tp_ctx *c;
    int n;
    worker *w; /* one alone works on c and the caller's model themselves */
    const tp_engine_calls *calls;
    pthread_mutex_t lock; /* held during a call */
    atomic_bool stop;     /* one of them failed */
};

/* ---- life ----------------------------------------------------------------------------------- */
int tp_threads_apart(const tp_ctx *c, const tp_model *m) {
    const tp_model_cfg *f = tp_model_config(m);
    if (c->meta || c->backend) return 1;
    return (size_t)tp_model_numel(m) * tp_dtype_size(f->dtype) > most_weights ? 1 : c->threads;
}

static tp_status open_worker(tp_crew *crew, worker *w, tp_model *m, const tp_engine_opts *opts) {
    tp_ctx *c = crew->c;
    w->crew = crew;
    if (crew->n == 1) {
        w->c = c;
        return tp_engine_new(&w->e, c, m, opts);
    }
    tp_status st = tp_ctx_beside(&w->c, c);
    if (st) return st;
    st = tp_model_share(&w->m, w->c, m);
    if (!st) st = tp_engine_new(&w->e, w->c, w->m, opts);
    return st ? tp_fail(c, st, "%s", tp_error(w->c)) : TP_OK;
}

tp_status tp_crew_new(tp_crew **out, tp_ctx *c, tp_model *m, const tp_engine_opts *opts) {
    tp_engine_opts o = opts ? *opts : (tp_engine_opts){0};
    *out = NULL;
    tp_crew *crew = tp_calloc(c, 1, sizeof *crew);
    if (!crew) return tp_error_status(c);
    pthread_mutex_init(&crew->lock, NULL);
    crew->c = c;
    crew->n = tp_threads_apart(c, m);
    if (o.lanes > 0) {
        int64_t most = o.lanes / FEWEST_LANES;
        if (crew->n > most) crew->n = most > 1 ? (int)most : 1;
        o.lanes = (o.lanes + crew->n - 1) / crew->n;
    }
    if (o.pages > 0) o.pages = (o.pages + crew->n - 1) / crew->n;
    crew->w = tp_calloc(c, (size_t)crew->n, sizeof *crew->w);
    tp_status st = crew->w ? TP_OK : tp_error_status(c);
    for (int i = 0; i < crew->n && !st; i++) st = open_worker(crew, &crew->w[i], m, &o);
    if (st) {
        tp_crew_free(crew);
        return st;
    }
    *out = crew;
    return TP_OK;
}

void tp_crew_free(tp_crew *crew) {
    if (!crew) return;
    for (int i = 0; i < crew->n && crew->w; i++) {
        worker *w = &crew->w[i];
        tp_engine_free(w->e);
        tp_free(w->requests);
        tp_free(w->parts);
        tp_model_free(w->m);
        if (crew->n > 1) tp_ctx_free(w->c);
    }
    pthread_mutex_destroy(&crew->lock);
    tp_free(crew->w);
    tp_free(crew);
}

int tp_crew_engines(const tp_crew *crew) { return crew->n; }

tp_engine_stats tp_crew_get_stats(const tp_crew *crew) {
    tp_engine_stats s = {0};
    for (int i = 0; i < crew->n; i++) {
        tp_engine_stats x = tp_engine_get_stats(crew->w[i].e);
        s.prefilled += x.prefilled;
        s.decoded += x.decoded;
        s.passes += x.passes;
        s.pages += x.pages;
        s.pages_peak += x.pages_peak;
        s.evicted += x.evicted;
        s.fed_singly += x.fed_singly;
        s.flops_singly += x.flops_singly;
    }
    return s;
}

/* ---- calls ---------------------------------------------------------------------------------- */
static tp_status done(void *arg, const tp_completion *x) {
    worker *w = arg;
    tp_crew *crew = w->crew;
    tp_completion y = *x;
    y.request = w->parts[x->request].request;
    y.sample += w->parts[x->request].first;
    pthread_mutex_lock(&crew->lock);
    tp_status st = crew->calls->done(crew->calls->arg, &y);
    pthread_mutex_unlock(&crew->lock);
    return st;
}

static bool token(void *arg, int64_t request, int64_t sample, int32_t id) {
    worker *w = arg;
    tp_crew *crew = w->crew;
    const part *p = &w->parts[request];
    pthread_mutex_lock(&crew->lock);
    bool go = crew->calls->token(crew->calls->arg, p->request, p->first + sample, id);
    pthread_mutex_unlock(&crew->lock);
    return go;
}

static bool interrupted(void *arg) {
    tp_crew *crew = ((worker *)arg)->crew;
    if (atomic_load(&crew->stop)) return true;
    if (!crew->calls->interrupted) return false;
    pthread_mutex_lock(&crew->lock);
    bool stop = crew->calls->interrupted(crew->calls->arg);
    pthread_mutex_unlock(&crew->lock);
    return stop;
}

/* ---- a run ---------------------------------------------------------------------------------- */
/* Of all samples, one after the other, the w-th of crew->n equal shares. */
static tp_status share_out(tp_crew *crew, int i, const tp_request *requests, int64_t n) {
    worker *w = &crew->w[i];
    int64_t all = 0, at = 0;
    for (int64_t r = 0; r < n; r++) all += requests[r].samples;
    int64_t begin = all * i / crew->n, end = all * (i + 1) / crew->n;
    w->n = 0;
    w->st = TP_OK;
    if (n > w->cap) {
        tp_request *q = tp_realloc(crew->c, w->requests, (size_t)n * sizeof *q);
        if (q) w->requests = q;
        part *p = tp_realloc(crew->c, w->parts, (size_t)n * sizeof *p);
        if (p) w->parts = p;
        if (!q || !p) return tp_error_status(crew->c);
        w->cap = n;
    }
    for (int64_t r = 0; r < n; at += requests[r++].samples) {
        int64_t first = begin > at ? begin - at : 0, past = end - at;
        if (past > requests[r].samples) past = requests[r].samples;
        if (first >= past) continue;
        tp_request *q = &w->requests[w->n];
        *q = requests[r];
        q->first_sample += (uint32_t)first;
        q->samples = past - first;
        w->parts[w->n++] = (part){r, first};
    }
    return TP_OK;
}

static void work(void *arg, int64_t begin, int64_t end) {
    tp_crew *crew = arg;
    for (int64_t i = begin; i < end; i++) {
        worker *w = &crew->w[i];
        tp_engine_calls calls = {.done = crew->calls->done ? done : NULL,
                                 .token = crew->calls->token ? token : NULL,
                                 .interrupted = interrupted,
                                 .arg = w};
        if (w->n) w->st = tp_engine_run(w->e, w->requests, w->n, &calls);
        if (w->st) atomic_store(&crew->stop, true);
    }
}

/* The failure of one ends the others as if interrupted: the other reason is the one to tell. */
static tp_status outcome(tp_crew *crew) {
    tp_status st = tp_error_status(crew->c);
    for (int i = 0; i < crew->n; i++) {
        worker *w = &crew->w[i];
        if (w->st && (!st || st == TP_EINTERRUPT)) st = w->st;
        if (*tp_error(w->c)) tp_fail(crew->c, w->st, "%s", tp_error(w->c));
        tp_clear(w->c);
    }
    return st;
}

tp_status tp_crew_run(tp_crew *crew, const tp_request *requests, int64_t n,
                      const tp_engine_calls *calls) {
    static const tp_engine_calls none = {0};
    if (crew->n == 1) return tp_engine_run(crew->w[0].e, requests, n, calls);
    tp_status st = tp_error_status(crew->c);
    crew->calls = calls ? calls : &none;
    atomic_store(&crew->stop, false);
    for (int i = 0; i < crew->n && !st; i++) st = share_out(crew, i, requests, n);
    if (st) return st;
    tp_parallel_for(crew->c, crew->n, 1, work, crew);
    tp_step_end(crew->c);
    return outcome(crew);
}
