/* Owns the helpers of a team and the meeting of caller and helpers.
 *
 * A loop is open while `round` is odd. A helper says that it is inside before it looks whether the
 * loop is still open; the caller closes the loop before it looks whether anybody is inside. Both
 * are sequentially consistent, so one of them sees the other, and no helper reads a loop that its
 * caller has left. */
#define _GNU_SOURCE /* pthread_setaffinity_np */
#include "core/team.h"
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* How long a thread looks before it sleeps: longer than what lies between two loops of a training
 * step, shorter than a time slice, so that a core that others want is given up in time. */
static const double LOOKING = 200e-6;

typedef struct loop {
    int64_t n, grain, chunks;
    tp_range_fn fn;
    void *arg;
} loop;

typedef struct helper {
    tp_team *team;
    int slot;
    pthread_t thread;
} helper;

/* What different threads write lies in cache lines of its own. */
struct tp_team {
    loop loop;
    int helpers;
    pthread_mutex_t lock;
    pthread_cond_t begun, left;
    _Alignas(64) atomic_uint round; /* odd: open */
    atomic_bool end;
    _Alignas(64) atomic_int_fast64_t next; /* chunk */
    _Alignas(64) atomic_int inside;        /* helpers */
    _Alignas(64) atomic_int asleep;
    atomic_bool caller_asleep;
    helper helper[];
};

static _Thread_local int my_slot;
static _Thread_local bool in_loop;
int tp_slot(void) { return my_slot; }
bool tp_in_loop(void) { return in_loop; }

static void rest(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

void tp_chunk(int slot, int64_t begin, int64_t end, tp_range_fn fn, void *arg) {
    const int was = my_slot;
    const bool was_in = in_loop;
    my_slot = slot;
    in_loop = true;
    fn(arg, begin, end);
    my_slot = was;
    in_loop = was_in;
}

/* A loop in a chunk of another one has scratch memory of its own, where its thread is the first. */
void tp_loop_alone(int64_t n, int64_t grain, tp_range_fn fn, void *arg) {
    const int was = my_slot;
    my_slot = 0;
    for (int64_t i = 0; i < n; i += grain) fn(arg, i, grain < n - i ? i + grain : n);
    my_slot = was;
}

/* lesson: chunks */
/* A chunk's bits do not depend on who computes it, and a busy core gets fewer. */
static void do_chunks(tp_team *t, int slot) {
    const loop *l = &t->loop;
    int64_t i;
    while ((i = atomic_fetch_add_explicit(&t->next, 1, memory_order_relaxed)) < l->chunks) {
        int64_t begin = i * l->grain, left = l->n - begin;
        tp_chunk(slot, begin, begin + (l->grain < left ? l->grain : left), l->fn, l->arg);
    }
}
/* end */

/* Looks for a while; answers whether it came to be. */
static bool look_for(const tp_team *t, bool (*is)(const tp_team *, unsigned), unsigned seen) {
    double until = tp_now() + LOOKING;
    do {
        for (int i = 0; i < 64; i++) {
            if (is(t, seen)) return true;
            rest();
        }
    } while (tp_now() < until);
    return false;
}

/* ---- helpers -------------------------------------------------------------------------------- */
static bool is_new(const tp_team *t, unsigned seen) {
    unsigned r = atomic_load(&t->round);
    return (r % 2 && r != seen) || atomic_load_explicit(&t->end, memory_order_relaxed);
}

static void wait_for_new(tp_team *t, unsigned seen) {
    if (look_for(t, is_new, seen)) return;
    pthread_mutex_lock(&t->lock);
    atomic_fetch_add(&t->asleep, 1);
    while (!is_new(t, seen)) pthread_cond_wait(&t->begun, &t->lock);
    atomic_fetch_sub(&t->asleep, 1);
    pthread_mutex_unlock(&t->lock);
}

static void leave(tp_team *t) {
    if (atomic_fetch_sub(&t->inside, 1) > 1 || !atomic_load(&t->caller_asleep)) return;
    pthread_mutex_lock(&t->lock);
    pthread_cond_signal(&t->left);
    pthread_mutex_unlock(&t->lock);
}

/* Where OMP_PROC_BIND or OMP_PLACES ask for places, the program's first thread has been put into
 * one before main, and a thread that it starts would share that. Others are this one's. */
static void take_place(int slot) {
    enum { MOST = 256 };
    int ids[MOST], places = omp_get_num_places(), place = places ? slot % places : 0;
    int n = places ? omp_get_place_num_procs(place) : 0;
    if (n < 1 || n > MOST) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    omp_get_place_proc_ids(place, ids);
    for (int i = 0; i < n; i++)
        if (ids[i] >= 0 && ids[i] < CPU_SETSIZE) CPU_SET(ids[i], &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

static void *help(void *arg) {
    helper *h = arg;
    tp_team *t = h->team;
    unsigned seen = 0;
    take_place(h->slot);
    for (;;) {
        wait_for_new(t, seen);
        if (atomic_load(&t->end)) return NULL;
        unsigned r = atomic_load(&t->round);
        atomic_fetch_add(&t->inside, 1);
        if (r % 2 && atomic_load(&t->round) == r) {
            seen = r;
            do_chunks(t, h->slot);
        }
        leave(t);
    }
}

/* ---- the caller ----------------------------------------------------------------------------- */
static bool is_left(const tp_team *t, unsigned unused) {
    (void)unused;
    return !atomic_load(&t->inside);
}

static void wait_until_left(tp_team *t) {
    if (look_for(t, is_left, 0)) return;
    pthread_mutex_lock(&t->lock);
    atomic_store(&t->caller_asleep, true);
    while (!is_left(t, 0)) pthread_cond_wait(&t->left, &t->lock);
    atomic_store(&t->caller_asleep, false);
    pthread_mutex_unlock(&t->lock);
}

static void wake(tp_team *t, int64_t most) {
    int n = atomic_load(&t->asleep);
    if (!n) return;
    pthread_mutex_lock(&t->lock);
    for (int i = 0; i < n && i < most; i++) pthread_cond_signal(&t->begun);
    pthread_mutex_unlock(&t->lock);
}

void tp_team_run(tp_team *t, int64_t n, int64_t grain, tp_range_fn fn, void *arg) {
    t->loop = (loop){n, grain, (n + grain - 1) / grain, fn, arg};
    atomic_store_explicit(&t->next, 0, memory_order_relaxed);
    atomic_fetch_add(&t->round, 1);
    wake(t, t->loop.chunks - 1);
    do_chunks(t, 0);
    atomic_fetch_add(&t->round, 1);
    wait_until_left(t);
}

/* ---- life ----------------------------------------------------------------------------------- */
int tp_thread_start(pthread_t *thread, void *(*run)(void *), void *arg) {
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    sigset_t set, before;
    sigfillset(&set);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(&set, faults[i]);
    pthread_sigmask(SIG_SETMASK, &set, &before);
    int failed = pthread_create(thread, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}

tp_team *tp_team_new(int threads) {
    int most = threads - 1;
    size_t bytes = sizeof(tp_team) + (size_t)most * sizeof(helper);
    tp_team *t = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!t) return NULL;
    memset(t, 0, bytes);
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->begun, NULL);
    pthread_cond_init(&t->left, NULL);
    for (; t->helpers < most; t->helpers++) {
        helper *h = &t->helper[t->helpers];
        *h = (helper){.team = t, .slot = t->helpers + 1};
        if (tp_thread_start(&h->thread, help, h)) break; /* fewer do the same work */
    }
    return t;
}

void tp_team_free(tp_team *t) {
    if (!t) return;
    pthread_mutex_lock(&t->lock);
    atomic_store(&t->end, true);
    pthread_cond_broadcast(&t->begun);
    pthread_mutex_unlock(&t->lock);
    for (int i = 0; i < t->helpers; i++) pthread_join(t->helper[i].thread, NULL);
    pthread_mutex_destroy(&t->lock);
    pthread_cond_destroy(&t->begun);
    pthread_cond_destroy(&t->left);
    free(t);
}
