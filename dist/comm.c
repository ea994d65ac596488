/* A communicator's life: opening, its thread and the queue of calls, failures, closing. */
#include "dist/comm.h"
#include "core/team.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* ---- failures ------------------------------------------------------------------------------- */
static void break_locked(tp_comm *m, tp_status status, bool elsewhere, bool whole,
                         const char *sentence) {
    if (m->status) return;
    m->status = status;
    m->elsewhere = elsewhere;
    m->whole = whole;
    m->broken_at = tp_now();
    snprintf(m->sentence, sizeof m->sentence, "%s", sentence);
    m->sentence[strcspn(m->sentence, "\r\n")] = 0;
    atomic_store(&m->broken, true);
    pthread_cond_broadcast(&m->done);
}

tp_status tp_comm_break(tp_comm *m, tp_status status, bool elsewhere, const char *fmt, ...) {
    char sentence[TP_SENTENCE_BYTES];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(sentence, sizeof sentence, fmt, ap);
    va_end(ap);
    pthread_mutex_lock(&m->lock);
    break_locked(m, status, elsewhere, true, sentence);
    pthread_mutex_unlock(&m->lock);
    return status;
}

/* The caller's side: the ctx gets the sentence. Under lock. */
static tp_status hand_over(tp_comm *m, tp_ctx *c) {
    if (!tp_error_status(c)) m->shown = true;
    return tp_fail(c, m->status, "%s", m->sentence);
}

bool tp_comm_failed_elsewhere(const tp_comm *m) {
    return (m->shown && m->elsewhere) || (m->disagreed && m->rank != 0);
}

/* ---- the thread ----------------------------------------------------------------------------- */
/* The next call, or NULL when the idle time is over; *leave: there is none and there will be none.
 */
static tp_job *next_job(tp_comm *m, bool *leave) {
    enum { IDLE_MS = 20 };
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += IDLE_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&m->lock);
    bool broken = m->status != TP_OK;
    if ((broken || !m->first) && !m->closing) pthread_cond_timedwait(&m->work, &m->lock, &until);
    tp_job *j = broken ? NULL : m->first;
    *leave = m->closing && !j;
    pthread_mutex_unlock(&m->lock);
    return j;
}

static void job_done(tp_comm *m, tp_job *j) {
    pthread_mutex_lock(&m->lock);
    m->first = j->next;
    if (!m->first) m->last = NULL;
    j->next = m->spare;
    m->spare = j;
    m->finished = j->header.number;
    m->bytes += m->sent;
    m->sent = 0;
    pthread_cond_broadcast(&m->done);
    pthread_mutex_unlock(&m->lock);
}

static void *thread_main(void *arg) {
    tp_comm *m = arg;
    bool leave = false, stopped = false;
    tp_control_begin(m); /* where it fails, the first turn says so */
    while (!leave) {
        tp_job *j = next_job(m, &leave);
        if (j && !tp_collective_run(m, j)) job_done(m, j);
        if (!tp_control_turn(m)) continue;
        if (!stopped) tp_collective_stop(m);
        stopped = true;
        if (!tp_collective_drain(m) || m->quiet) continue;
        pthread_mutex_lock(&m->lock);
        m->quiet = true;
        pthread_cond_broadcast(&m->done);
        pthread_mutex_unlock(&m->lock);
    }
    tp_control_farewell(m);
    return NULL;
}

/* ---- opening -------------------------------------------------------------------------------- */
static void *lane_alloc(tp_transport *t, tp_ctx *c) {
    return t->swap_alloc ? t->swap_alloc(t, c, TP_SEGMENT_BYTES) : tp_malloc(c, TP_SEGMENT_BYTES);
}
static void lane_free(tp_transport *t, void *p) {
    if (t->swap_free)
        t->swap_free(t, p);
    else
        tp_free(p);
}

static void comm_free(tp_comm *m) {
    for (tp_job *next, *j = m->first; j; j = next) {
        next = j->next;
        j->next = m->spare;
        m->spare = j;
    }
    for (tp_job *next, *j = m->spare; j; j = next) {
        next = j->next;
        tp_free(j->piece);
        tp_free(j);
    }
    if (m->t) {
        for (int k = 0; k < 2; k++) {
            lane_free(m->t, m->lane[k].out);
            lane_free(m->t, m->lane[k].in);
        }
        m->t->close(m->t, m->leave);
    }
    tp_loads_free(m); /* what came from others may have been written there until now */
    tp_free(m->peer);
    pthread_mutex_destroy(&m->lock);
    pthread_cond_destroy(&m->work);
    pthread_cond_destroy(&m->done);
    tp_free(m);
}

static tp_comm *comm_new(tp_ctx *c, const char *name, int size) {
    tp_comm *m = tp_calloc(c, 1, sizeof *m);
    if (!m) return NULL;
    m->name = name;
    m->size = size;
    m->local_size = 1;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->work, &monotonic);
    pthread_cond_init(&m->done, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return m;
}

static tp_status check_size(tp_ctx *c, int size) {
    if (size >= 1 && !(size & (size - 1))) return TP_OK;
    return tp_fail(c, TP_EARG, "%d ranks: the reduction tree needs a power of two", size);
}

tp_status tp_comm_open_on(tp_comm **out, tp_ctx *c, double timeout, tp_transport *t) {
    *out = NULL;
    if (check_size(c, t->size)) { /* every rank sees the same, and leaves */
        t->close(t, TP_LEAVE_TOGETHER);
        return TP_EARG;
    }
    tp_comm *m = comm_new(c, t->name, t->size);
    if (!m) {
        t->close(t, TP_LEAVE_ALONE);
        return TP_ENOMEM;
    }
    m->t = t;
    m->rank = t->rank;
    m->local_size = t->local_size;
    m->timeout = timeout > 0 ? timeout : 30;
    m->leave = TP_LEAVE_ALONE;
    m->peer = tp_calloc(c, (size_t)t->size, sizeof *m->peer);
    bool ok = m->peer != NULL;
    for (int k = 0; ok && k < 2; k++)
        ok = (m->lane[k].out = lane_alloc(t, c)) && (m->lane[k].in = lane_alloc(t, c));
    if (ok && tp_thread_start(&m->thread, thread_main, m))
        tp_fail(c, TP_EIO, "rank %d: no thread for its traffic could be started", m->rank);
    else if (ok) {
        *out = m;
        return TP_OK;
    }
    comm_free(m);
    return tp_error_status(c);
}

static tp_status open_alone(tp_comm **out, tp_ctx *c, const char *name, int size) {
    if (check_size(c, size)) return TP_EARG;
    *out = comm_new(c, name, size);
    return *out ? TP_OK : TP_ENOMEM;
}

tp_status tp_comm_open(tp_comm **out, tp_ctx *c, const tp_comm_opts *opts) {
    *out = NULL;
    tp_comm_opts o = opts ? *opts : (tp_comm_opts){0};
    int launched = o.kind == TP_COMM_SELF || o.kind == TP_COMM_PLAN ? 1 : tp_transport_launched();
    if (o.kind == TP_COMM_AUTO) o.kind = launched == 1 ? TP_COMM_SELF : TP_COMM_MPI;
    if (o.kind == TP_COMM_SELF) return open_alone(out, c, "self", 1);
    if (o.kind == TP_COMM_PLAN) return open_alone(out, c, "plan", o.plan_ranks);
    if (o.kind != TP_COMM_MPI && o.kind != TP_COMM_NCCL)
        return tp_fail(c, TP_EARG, "there is no communicator of kind %d", (int)o.kind);
    tp_transport *t;
    tp_status st = o.kind == TP_COMM_MPI ? tp_transport_mpi(&t, c) : tp_transport_nccl(&t, c);
    if (st) return st;
    if (launched > 1 && launched != t->size) {
        st = tp_fail(c, TP_EARG,
                     "the launcher started %d ranks, but MPI knows of %d: this mpirun belongs to "
                     "another MPI than the one Tapir was built with",
                     launched, t->size);
        t->close(t, TP_LEAVE_TOGETHER);
        return st;
    }
    return tp_comm_open_on(out, c, o.timeout, t);
}

void tp_comm_close(tp_comm *m, const char *failure) {
    if (!m) return;
    if (m->t) {
        pthread_mutex_lock(&m->lock);
        if (failure) break_locked(m, TP_ESTATE, false, false, failure);
        m->closing = true;
        pthread_cond_signal(&m->work);
        pthread_mutex_unlock(&m->lock);
        pthread_join(m->thread, NULL);
    }
    comm_free(m);
}

int tp_comm_rank(const tp_comm *m) { return m->rank; }
int tp_comm_size(const tp_comm *m) { return m->size; }
int tp_comm_local_size(const tp_comm *m) { return m->local_size; }
const char *tp_comm_name(const tp_comm *m) { return m->name; }
const char *tp_comm_transports(void) {
    return tp_transport_has_nccl()  ? "self, MPI, NCCL"
           : tp_transport_has_mpi() ? "self, MPI"
                                    : "self";
}

/* ---- calls ---------------------------------------------------------------------------------- */
/* A job with room for n pieces: one that was used before, if there is. Under lock. */
static tp_job *job_new(tp_comm *m, tp_ctx *c, int n) {
    tp_job *j = m->spare;
    if (j)
        m->spare = j->next;
    else if (!(j = tp_calloc(c, 1, sizeof *j)))
        return NULL;
    if (j->cap < n) {
        tp_piece *more = tp_realloc(c, j->piece, (size_t)n * sizeof *more);
        if (!more) {
            j->next = m->spare;
            m->spare = j;
            return NULL;
        }
        j->piece = more;
        j->cap = n;
    }
    *j = (tp_job){.piece = j->piece, .cap = j->cap, .header = {.pieces = n}};
    return j;
}

static uint64_t hash(uint64_t h, const void *data, size_t n) { /* FNV-1a */
    const unsigned char *p = data;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3;
    return h;
}

/* Queues one call; its number, or 0. */
static int64_t enqueue(tp_comm *m, tp_ctx *c, const tp_job *call, const tp_piece *piece) {
    int64_t number = 0;
    pthread_mutex_lock(&m->lock);
    int n = call->header.pieces;
    tp_job *j = NULL;
    if (m->status)
        hand_over(m, c);
    else
        j = job_new(m, c, n);
    if (j) {
        j->header = call->header;
        j->data = call->data;
        j->load = call->load;
        j->header.cuts = 0xcbf29ce484222325;
        for (int i = 0; i < n; i++) {
            const tp_cut *s = &piece[i].cut;
            int64_t fields[3] = {s->n, s->unit, s->owner};
            j->piece[i] = piece[i];
            j->header.count += s->n;
            j->header.cuts = hash(j->header.cuts, fields, sizeof fields);
        }
        j->header.number = number = ++m->started;
        if (m->last)
            m->last->next = j;
        else
            m->first = j;
        m->last = j;
        pthread_cond_signal(&m->work);
    }
    pthread_mutex_unlock(&m->lock);
    return number;
}

int64_t tp_comm_start(tp_comm *m, tp_ctx *c, tp_move move, const tp_piece *piece, int n) {
    const char *fault = move < TP_REDUCE_SCATTER || move > TP_ALLGATHER ? "no known kind"
                        : n < 0 ? "a negative number of pieces"
                                : NULL;
    int64_t count = 0;
    for (int i = 0; !fault && i < n; i++) {
        fault = tp_cut_fault(&piece[i].cut, m->size);
        if (!fault && m->t && piece[i].cut.n && !piece[i].data) fault = "a piece without data";
        if (!fault && __builtin_add_overflow(count, piece[i].cut.n, &count))
            fault = "more values than can be counted";
    }
    if (fault) {
        tp_fail(c, TP_EARG, "rank %d starts a move with %s", m->rank, fault);
        return 0;
    }
    if (!m->t) return ++m->started;
    tp_job call = {.header = {.work = (int32_t)move, .pieces = n}};
    if (tp_load_out(&call.load, m, c, move, piece, n)) return 0;
    int64_t number = enqueue(m, c, &call, call.load ? call.load->piece : piece);
    tp_load_joins(m, call.load, number);
    return number;
}

/* After a failure, until nothing of the caller's is under way any more: what it handed in may be on
 * its stack. A dead peer may never take what was sent to it, so this has an end. Under lock. */
static void wait_quiet(tp_comm *m) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += 2;
    while (!m->quiet && !pthread_cond_timedwait(&m->done, &m->lock, &until)) {}
}

tp_status tp_comm_wait(tp_comm *m, tp_ctx *c, int64_t ticket) {
    tp_status st = TP_OK;
    pthread_mutex_lock(&m->lock);
    if (ticket < 1 || ticket > m->started) {
        st = tp_fail(c, TP_EARG, "wait for call %lld, of %lld that were started", (long long)ticket,
                     (long long)m->started);
    } else if (m->t) {
        double begin = m->finished < ticket ? tp_now() : 0;
        while (m->finished < ticket && !m->status) pthread_cond_wait(&m->done, &m->lock);
        if (begin > 0) m->waited += tp_now() - begin;
        if (m->status) {
            wait_quiet(m);
            st = hand_over(m, c);
        }
    }
    pthread_mutex_unlock(&m->lock);
    return st ? st : tp_loads_in(m, c, ticket);
}

void tp_comm_traffic(tp_comm *m, double *waited, double *bytes) {
    pthread_mutex_lock(&m->lock);
    *waited = m->waited;
    *bytes = m->bytes;
    m->waited = m->bytes = 0;
    pthread_mutex_unlock(&m->lock);
}

static tp_status small_call(tp_comm *m, tp_ctx *c, const tp_job *call) {
    if (!m->t) return TP_OK;
    int64_t number = enqueue(m, c, call, NULL);
    return number ? tp_comm_wait(m, c, number) : tp_error_status(c);
}

tp_status tp_comm_barrier(tp_comm *m, tp_ctx *c) {
    return small_call(m, c, &(tp_job){.header.work = TP_WORK_BARRIER});
}

tp_status tp_comm_broadcast(tp_comm *m, tp_ctx *c, void *data, size_t bytes, int root) {
    if (root < 0 || root >= m->size)
        return tp_fail(c, TP_EARG, "broadcast from rank %d of %d", root, m->size);
    tp_header h = {.work = TP_WORK_BROADCAST, .count = (int64_t)bytes, .root = root};
    return small_call(m, c, &(tp_job){.header = h, .data = data});
}

tp_status tp_comm_sum_f64(tp_comm *m, tp_ctx *c, double *x, int64_t n) {
    if (n < 0) return tp_fail(c, TP_EARG, "sum of %lld numbers", (long long)n);
    tp_header h = {.work = TP_WORK_SUM_F64, .count = n};
    return small_call(m, c, &(tp_job){.header = h, .data = x});
}
