/* Batches of training rows: filling them, and the thread that fills the next one ahead. */
#include "data/loader.h"
#include "core/team.h"
#include "data/sample_order.h"

#include <pthread.h>
#include <string.h>

typedef struct buffer {
    tp_batch batch;
    int32_t *inputs, *targets, *segments, *positions;
} buffer;

struct tp_loader {
    tp_loader_opts opts;
    tp_corpus *co;
    tp_order *order;
    pthread_mutex_t order_mutex; /* the order's runs: the thread and count_targets ask for them */
    buffer buf[2];
    int front;    /* the caller's buffer; the thread fills the other */
    int64_t next; /* sample that the next fill begins with */

    /* The prefetch thread. All of this under mutex. */
    bool threaded, ready, stop;
    uint64_t generation; /* grows with every seek: what was begun before is stale */
    tp_status failed;    /* the fill that is ready did not succeed; thread_ctx has the sentence */
    tp_ctx *thread_ctx;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
};

/* ---- filling -------------------------------------------------------------------------------- */

/* The sample that follows a batch at `sample`. At the end of this rank's share: its share of the
 * next period. (first + share may be the period itself, so count within the share.) */
static int64_t sample_after(const tp_loader_opts *o, int64_t sample) {
    if (!o->period) return sample + o->batch;
    int64_t done = sample % o->period - o->first + o->batch;
    return done < o->share ? sample + o->batch : sample - sample % o->period + o->period + o->first;
}

/* One run into the row at place `at`. */
static tp_status fill_run(tp_loader *l, tp_ctx *c, buffer *b, const tp_run *run, int64_t at,
                          int32_t segment) {
    const int32_t *id_bytes = tp_corpus_id_bytes(l->co);
    int64_t n = run->n;
    tp_status st = tp_corpus_read(l->co, c, run->first, n, b->inputs + at);
    if (st) return st;
    if (n > 1) memcpy(b->targets + at, b->inputs + at + 1, (size_t)(n - 1) * sizeof *b->targets);
    int64_t counted = n - 1 + run->last_has_target;
    if (run->last_has_target &&
        (st = tp_corpus_read(l->co, c, run->first + n, 1, b->targets + at + n - 1)))
        return st;
    for (int64_t i = 0; i < counted; i++) b->batch.target_bytes += id_bytes[b->targets[at + i]];
    b->batch.n_targets += counted;
    if (b->segments) {
        for (int64_t i = 0; i < n; i++) {
            b->segments[at + i] = segment;
            b->positions[at + i] = (int32_t)i;
        }
    }
    return TP_OK;
}

static void fill_padding(const tp_loader *l, buffer *b) {
    int64_t n = l->opts.batch * l->opts.T;
    memset(b->inputs, 0, (size_t)n * sizeof *b->inputs);
    for (int64_t i = 0; i < n; i++) b->targets[i] = TP_IGNORE;
    if (!b->segments) return;
    for (int64_t i = 0; i < n; i++) b->segments[i] = -1;
    memset(b->positions, 0, (size_t)n * sizeof *b->positions);
}

static tp_status fill_batch(tp_loader *l, tp_ctx *c, buffer *b, int64_t sample) {
    tp_status st = TP_OK;
    b->batch = (tp_batch){.sample = sample,
                          .inputs = b->inputs,
                          .targets = b->targets,
                          .segments = b->segments,
                          .positions = b->positions,
                          .epoch = sample / tp_order_rows(l->order)};
    fill_padding(l, b);
    pthread_mutex_lock(&l->order_mutex);
    for (int64_t r = 0; !st && r < l->opts.batch; r++) {
        const tp_run *run;
        int64_t n, at = r * l->opts.T;
        if ((st = tp_order_sample(l->order, c, sample + r, &run, &n)) || !n) break;
        for (int64_t i = 0; !st && i < n; at += run[i++].n)
            st = fill_run(l, c, b, &run[i], at, (int32_t)i);
        b->batch.rows++;
    }
    pthread_mutex_unlock(&l->order_mutex);
    return st;
}

/* ---- the prefetch thread -------------------------------------------------------------------- */

static void *prefetch(void *arg) {
    tp_loader *l = arg;
    pthread_mutex_lock(&l->mutex);
    for (;;) {
        while (l->ready && !l->stop) pthread_cond_wait(&l->changed, &l->mutex);
        if (l->stop) break;
        uint64_t generation = l->generation;
        int64_t sample = l->next;
        buffer *b = &l->buf[!l->front];
        pthread_mutex_unlock(&l->mutex);
        tp_clear(l->thread_ctx);
        tp_status st = fill_batch(l, l->thread_ctx, b, sample);
        pthread_mutex_lock(&l->mutex);
        if (generation != l->generation) continue; /* a seek came in between: fill again */
        l->failed = st;
        l->ready = true;
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->mutex);
    return NULL;
}

static tp_status start_thread(tp_loader *l, tp_ctx *c) {
    /* META: this ctx is for error messages and heap memory, it needs no tensor pool. */
    tp_status st = tp_ctx_new(&l->thread_ctx, &(tp_ctx_opts){.meta = true, .threads = 1});
    if (st) return tp_fail(c, st, "loader: cannot make the prefetch thread's context");
    int e = tp_thread_start(&l->thread, prefetch, l);
    if (e) return tp_fail(c, TP_EIO, "loader: cannot start the prefetch thread: %s", strerror(e));
    l->threaded = true;
    return TP_OK;
}

/* ---- the interface -------------------------------------------------------------------------- */

static tp_status check_opts(tp_ctx *c, const tp_loader_opts *o) {
    if (o->batch < 1 || o->T < 1 || o->T > 1 << 28 || o->batch > ((int64_t)1 << 40) / o->T)
        return tp_fail(c, TP_EARG, "loader: a batch of %lld rows of %lld tokens cannot be made",
                       (long long)o->batch, (long long)o->T);
    if (!o->period) {
        if (o->first || o->share)
            return tp_fail(c, TP_EARG, "loader: first and share need a period");
        return TP_OK;
    }
    if (o->period < 0 || o->first < 0 || o->share < 1 || o->first > o->period - o->share ||
        o->share % o->batch)
        return tp_fail(c, TP_EARG,
                       "loader: %lld samples from %lld in every %lld cannot be handed "
                       "out in batches of %lld",
                       (long long)o->share, (long long)o->first, (long long)o->period,
                       (long long)o->batch);
    return TP_OK;
}

static tp_status new_buffer(tp_loader *l, tp_ctx *c, buffer *b) {
    size_t n = (size_t)(l->opts.batch * l->opts.T) * sizeof(int32_t);
    if (!(b->inputs = tp_malloc(c, n)) || !(b->targets = tp_malloc(c, n))) return TP_ENOMEM;
    if (l->opts.packing == TP_PACK_DOCUMENTS &&
        (!(b->segments = tp_malloc(c, n)) || !(b->positions = tp_malloc(c, n))))
        return TP_ENOMEM;
    return TP_OK;
}

tp_status tp_loader_new(tp_loader **out, tp_ctx *c, tp_corpus *co, const tp_loader_opts *opts) {
    *out = NULL;
    tp_loader *l = tp_calloc(c, 1, sizeof *l);
    if (!l) return TP_ENOMEM;
    pthread_mutex_init(&l->mutex, NULL);
    pthread_mutex_init(&l->order_mutex, NULL);
    pthread_cond_init(&l->changed, NULL);
    l->opts = *opts;
    l->co = co;
    tp_order_opts order = {.T = opts->T,
                           .seed = opts->seed,
                           .sequential = opts->sequential,
                           .documents = opts->packing == TP_PACK_DOCUMENTS};
    tp_status st = check_opts(c, &l->opts);
    l->next = l->opts.first;
    if (!st)
        st =
            tp_order_new(&l->order, c, tp_corpus_offsets(co), tp_corpus_get_info(co)->docs, &order);
    for (int i = 0; !st && i < 1 + opts->prefetch; i++) st = new_buffer(l, c, &l->buf[i]);
    if (!st && opts->prefetch) st = start_thread(l, c);
    if (st)
        tp_loader_free(l);
    else
        *out = l;
    return st;
}

tp_status tp_loader_next(tp_loader *l, tp_ctx *c, tp_batch *out) {
    tp_status st;
    *out = (tp_batch){0};
    if (!l->threaded) {
        if ((st = fill_batch(l, c, &l->buf[0], l->next))) return st;
    } else {
        pthread_mutex_lock(&l->mutex);
        while (!l->ready) pthread_cond_wait(&l->changed, &l->mutex);
        if ((st = l->failed)) { /* stays so until a seek */
            tp_fail(c, st, "%s", tp_error(l->thread_ctx));
            pthread_mutex_unlock(&l->mutex);
            return st;
        }
        l->front = !l->front;
    }
    *out = l->buf[l->front].batch;
    l->next = out->rows ? sample_after(&l->opts, out->sample) : out->sample;
    if (l->threaded) {
        l->ready = false;
        pthread_cond_broadcast(&l->changed);
        pthread_mutex_unlock(&l->mutex);
    }
    return TP_OK;
}

tp_status tp_loader_seek(tp_loader *l, tp_ctx *c, int64_t sample) {
    if (sample < 0 || sample > INT64_MAX / 2)
        return tp_fail(c, TP_EARG, "loader: cannot seek to sample %lld", (long long)sample);
    if (l->opts.period && sample % l->opts.period)
        return tp_fail(c, TP_EARG,
                       "loader: cannot seek to sample %lld: no period of %lld begins there",
                       (long long)sample, (long long)l->opts.period);
    pthread_mutex_lock(&l->mutex);
    l->next = sample + l->opts.first;
    l->generation++;
    l->ready = false;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->mutex);
    return TP_OK;
}

tp_status tp_loader_count_targets(tp_loader *l, tp_ctx *c, int64_t first, int64_t n,
                                  int64_t *targets) {
    tp_status st = TP_OK;
    *targets = 0;
    pthread_mutex_lock(&l->order_mutex);
    for (int64_t s = first; !st && s < first + n; s++) {
        const tp_run *run;
        int64_t n_runs;
        if ((st = tp_order_sample(l->order, c, s, &run, &n_runs))) break;
        for (int64_t i = 0; i < n_runs; i++) *targets += run[i].n - 1 + run[i].last_has_target;
    }
    pthread_mutex_unlock(&l->order_mutex);
    return st;
}

int64_t tp_loader_rows(const tp_loader *l) { return tp_order_rows(l->order); }

void tp_loader_free(tp_loader *l) {
    if (!l) return;
    if (l->threaded) {
        pthread_mutex_lock(&l->mutex);
        l->stop = true;
        pthread_cond_broadcast(&l->changed);
        pthread_mutex_unlock(&l->mutex);
        pthread_join(l->thread, NULL);
    }
    tp_ctx_free(l->thread_ctx);
    tp_order_free(l->order);
    for (int i = 0; i < 2; i++) {
        tp_free(l->buf[i].inputs);
        tp_free(l->buf[i].targets);
        tp_free(l->buf[i].segments);
        tp_free(l->buf[i].positions);
    }
    pthread_mutex_destroy(&l->mutex);
    pthread_mutex_destroy(&l->order_mutex);
    pthread_cond_destroy(&l->changed);
    tp_free(l);
}
