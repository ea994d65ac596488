/* The mailboxes: short messages are copied, long ones wait for their receive, as MPI does. */
#include "local_ranks.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EAGER_BYTES = 4096 };
typedef struct parcel {
    struct parcel *next, *made_before;
    int from, to, tag; /* a receive: from < 0 takes any */
    size_t bytes;
    char *data;
    bool receive, copied, done, truncated;
} parcel;
struct local_world {
    pthread_mutex_t lock;
    int size;
    bool aborted;
    bool *stopped;
    parcel **sent, **wanted; /* per receiving rank, in order */
    parcel *made;            /* all there ever were: a stopped rank never lets go of its own */
};
typedef struct endpoint {
    tp_transport t; /* first */
    local_world *w;
    uint64_t dice;
    char host[][TP_HOST_BYTES];
} endpoint;

static void append(parcel **list, parcel *p) {
    while (*list) list = &(*list)->next;
    *list = p;
}
static void take_out(parcel **list, parcel *p) {
    while (*list && *list != p) list = &(*list)->next;
    if (*list) *list = p->next;
}
static void empty(parcel *p) {
    if (p->copied) free(p->data);
    p->copied = false;
}

/* Joins what fits, in order. Under lock. */
static void match(local_world *w, int to) {
    if (w->stopped[to]) return;
    for (parcel *r = w->wanted[to], *next; r; r = next) {
        next = r->next;
        parcel *s = w->sent[to];
        while (s && (s->tag != r->tag || (r->from >= 0 && s->from != r->from))) s = s->next;
        if (!s) continue;
        r->truncated = s->bytes > r->bytes;
        memcpy(r->data, s->data, s->bytes < r->bytes ? s->bytes : r->bytes);
        take_out(&w->wanted[to], r);
        take_out(&w->sent[to], s);
        r->done = s->done = true;
        empty(s);
    }
}

static bool post(tp_transport *t, parcel p, tp_request *r) {
    endpoint *e = (endpoint *)t;
    local_world *w = e->w;
    parcel *q = malloc(sizeof *q);
    if (!q) return false;
    *q = p;
    pthread_mutex_lock(&w->lock);
    q->made_before = w->made;
    w->made = q;
    if (!p.receive && w->stopped[t->rank]) { /* a stopped process says nothing */
        q->done = true;
    } else {
        if (!p.receive && p.bytes <= EAGER_BYTES) {
            q->data = malloc(p.bytes + 1);
            memcpy(q->data, p.data, p.bytes);
            q->copied = true;
        }
        append(p.receive ? &w->wanted[p.to] : &w->sent[p.to], q);
        match(w, p.to);
    }
    pthread_mutex_unlock(&w->lock);
    r->p = q;
    return true;
}

static bool local_send(tp_transport *t, int to, int tag, const void *data, size_t bytes,
                       tp_request *r) {
    return post(
        t, (parcel){.from = t->rank, .to = to, .tag = tag, .bytes = bytes, .data = (char *)data},
        r);
}
static bool local_recv(tp_transport *t, int from, int tag, void *data, size_t bytes,
                       tp_request *r) {
    return post(
        t,
        (parcel){
            .from = from, .to = t->rank, .tag = tag, .bytes = bytes, .data = data, .receive = true},
        r);
}

static tp_ready local_test(tp_transport *t, tp_request *r) {
    endpoint *e = (endpoint *)t;
    parcel *p = r->p;
    tp_ready ready = TP_NOT_YET;
    pthread_mutex_lock(&e->w->lock);
    e->dice = e->dice * 6364136223846793005u + 1442695040888963407u;
    if (!e->w->stopped[t->rank] && e->dice >> 62) { /* now and then things take longer */
        if (p->done) {
            ready = p->truncated ? TP_BROKEN : TP_READY;
            if (p->truncated) snprintf(t->error, sizeof t->error, "message truncated");
        } else if (p->copied) { /* already in the mail */
            ready = TP_READY;
        }
    }
    pthread_mutex_unlock(&e->w->lock);
    return ready;
}

static void local_cancel(tp_transport *t, tp_request *r) {
    endpoint *e = (endpoint *)t;
    parcel *p = r->p;
    pthread_mutex_lock(&e->w->lock);
    if (!p->done) take_out(&e->w->wanted[t->rank], p);
    p->done = true;
    pthread_mutex_unlock(&e->w->lock);
}

static tp_ready local_probe(tp_transport *t, int tag, int *from, size_t *bytes) {
    endpoint *e = (endpoint *)t;
    tp_ready ready = TP_NOT_YET;
    pthread_mutex_lock(&e->w->lock);
    for (parcel *s = e->w->sent[t->rank]; s && ready == TP_NOT_YET; s = s->next)
        if (s->tag == tag && !e->w->stopped[t->rank]) {
            *from = s->from;
            *bytes = s->bytes;
            ready = TP_READY;
        }
    pthread_mutex_unlock(&e->w->lock);
    return ready;
}

static void local_close(tp_transport *t, tp_leave how) {
    endpoint *e = (endpoint *)t;
    pthread_mutex_lock(&e->w->lock);
    if (how == TP_LEAVE_ABORT && !e->w->stopped[t->rank]) e->w->aborted = true;
    pthread_mutex_unlock(&e->w->lock);
    free(e);
}

tp_transport *local_transport(local_world *w, int rank) {
    endpoint *e = calloc(1, sizeof *e + (size_t)w->size * TP_HOST_BYTES);
    e->w = w;
    e->dice = (uint64_t)rank + 1;
    for (int i = 0; i < w->size; i++) snprintf(e->host[i], TP_HOST_BYTES, "host%d", i);
    e->t = (tp_transport){.name = "local",
                          .rank = rank,
                          .size = w->size,
                          .local_size = w->size,
                          .host = e->host,
                          .send = local_send,
                          .recv = local_recv,
                          .test = local_test,
                          .cancel = local_cancel,
                          .probe = local_probe,
                          .close = local_close};
    return &e->t;
}

local_world *local_world_new(int size) {
    local_world *w = calloc(1, sizeof *w);
    w->size = size;
    w->stopped = calloc((size_t)size, sizeof *w->stopped);
    w->sent = calloc((size_t)size, sizeof *w->sent);
    w->wanted = calloc((size_t)size, sizeof *w->wanted);
    pthread_mutex_init(&w->lock, NULL);
    return w;
}
int local_left_over(const local_world *w) {
    int n = 0;
    for (int r = 0; r < w->size; r++)
        for (const parcel *p = w->sent[r]; p; p = p->next) n++;
    return n;
}
bool local_aborted(const local_world *w) { return w->aborted; }
void local_world_free(local_world *w) {
    for (parcel *before, *p = w->made; p; p = before) {
        before = p->made_before;
        empty(p);
        free(p);
    }
    pthread_mutex_destroy(&w->lock);
    free(w->stopped);
    free(w->sent);
    free(w->wanted);
    free(w);
}
void local_stop(local_world *w, int rank) {
    pthread_mutex_lock(&w->lock);
    w->stopped[rank] = true;
    pthread_mutex_unlock(&w->lock);
}

typedef struct start {
    local_rank r;
    double timeout;
    void (*fn)(local_rank *r);
} start;
static void *rank_main(void *arg) {
    start *s = arg;
    if (tp_ctx_new(&s->r.c, &(tp_ctx_opts){.threads = 1, .memory_limit = 1 << 20})) return NULL;
    if (!tp_comm_open_on(&s->r.m, s->r.c, s->timeout, local_transport(s->r.world, s->r.rank)))
        s->fn(&s->r);
    else
        fprintf(stderr, "rank %d: %s\n", s->r.rank, tp_error(s->r.c));
    tp_ctx_free(s->r.c);
    return NULL;
}
void local_run(local_world *w, double timeout, void (*fn)(local_rank *r), void *arg) {
    pthread_t *thread = calloc((size_t)w->size, sizeof *thread);
    start *s = calloc((size_t)w->size, sizeof *s);
    for (int r = 0; r < w->size; r++) {
        s[r] = (start){{.world = w, .rank = r, .size = w->size, .arg = arg}, timeout, fn};
        pthread_create(&thread[r], NULL, rank_main, &s[r]);
    }
    for (int r = 0; r < w->size; r++) pthread_join(thread[r], NULL);
    free(thread);
    free(s);
}

/* ---- what they add up ----------------------------------------------------------------------- */
float local_value(int rank, int piece, int64_t i) {
    uint32_t w[4];
    tp_philox(w, 7, (uint32_t)(rank * 100 + piece), (uint64_t)i, 0);
    return ldexpf((float)(int32_t)w[0] / 2147483648.0f, (int)(w[1] % 25) - 12);
}

float local_tree_sum(int lo, int hi, int piece, int64_t i) {
    if (hi - lo == 1) return local_value(lo, piece, i);
    int mid = (lo + hi) / 2;
    float left = local_tree_sum(lo, mid, piece, i), right = local_tree_sum(mid, hi, piece, i);
    return left + right;
}
