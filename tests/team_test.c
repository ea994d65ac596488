/* The threads of a loop: every chunk is done once, by a thread whose number is nobody else's at the
 * time; a caller that comes back has left nothing that a late thread would still read; a loop
 * inside a loop is its thread's alone. Checks that look at counts are shown wrong ones. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "core/core.h"
#include "core/team.h"
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 4, MOST = 512, ALIVE = 0x7a61 };

typedef struct job {
    int alive; /* ALIVE until its loop is over */
    tp_ctx *c;
    int64_t n, grain;
    atomic_int done[MOST]; /* how often, by index */
    atomic_int busy[THREADS];
    atomic_int wrong; /* what was amiss while it ran */
    atomic_int arrived;
} job;

static void chunk(void *arg, int64_t begin, int64_t end) {
    job *j = arg;
    const int slot = tp_slot();
    if (j->alive != ALIVE || slot < 0 || slot >= THREADS) {
        atomic_fetch_add(&j->wrong, 1);
        return;
    }
    if (atomic_fetch_add(&j->busy[slot], 1)) atomic_fetch_add(&j->wrong, 1);
    if (begin % j->grain || end != (begin + j->grain < j->n ? begin + j->grain : j->n))
        atomic_fetch_add(&j->wrong, 1);
    for (int64_t i = begin; i < end; i++) atomic_fetch_add(&j->done[i], 1);
    atomic_fetch_sub(&j->busy[slot], 1);
}

static bool all_once(const job *j) {
    bool once = true;
    for (int64_t i = 0; i < MOST; i++) once = once && j->done[i] == (i < j->n);
    return once;
}

/* The memory of a loop is used for something else as soon as the loop is over. */
static void run_one(tp_ctx *c, int64_t n, int64_t grain) {
    job j = {.alive = ALIVE, .c = c, .n = n, .grain = grain};
    tp_parallel_for(c, n, grain, chunk, &j);
    assert_int_equal(j.wrong, 0);
    assert_true(all_once(&j));
    if (n) {
        j.done[n / 2]++;
        assert_false(all_once(&j));
        j.done[n / 2] -= 2;
        assert_false(all_once(&j));
    }
    memset(&j, 0, sizeof j);
}

static tp_ctx *ctx_of(int threads, bool fast) {
    tp_ctx *c;
    assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.threads = threads, .fast = fast}), 0);
    return c;
}

static void pause_for(long ns) {
    struct timespec t = {.tv_nsec = ns};
    nanosleep(&t, NULL);
}

/* Loops follow each other at once, so that threads come late; after pauses, so that they sleep. */
static void test_every_chunk_once(void **state) {
    (void)state;
    static const int64_t sizes[][2] = {{0, 1}, {1, 1},  {2, 1},  {3, 2},    {7, 7},
                                       {8, 7}, {64, 1}, {65, 8}, {MOST, 1}, {MOST, 100}};
    for (int threads = 1; threads <= THREADS; threads++)
        for (int fast = 0; fast < 2; fast++) {
            tp_ctx *c = ctx_of(threads, fast);
            for (int r = 0; r < 300; r++) {
                const int64_t *s = sizes[r % 10];
                run_one(c, s[0], s[1]);
                if (r % 50 == 49) pause_for(1000000);
            }
            tp_ctx_free(c);
        }
}

static void test_many_short_loops(void **state) {
    (void)state;
    tp_ctx *c = ctx_of(THREADS, false);
    for (int r = 0; r < 50000; r++) {
        job j = {.alive = ALIVE, .c = c, .n = 2 + r % 5, .grain = 1};
        tp_parallel_for(c, j.n, 1, chunk, &j);
        if (j.wrong || !all_once(&j)) fail_msg("loop %d: %d wrong", r, j.wrong);
        j.alive = 0;
    }
    tp_ctx_free(c);
}

/* Each waits for the other: no thread can do both. */
static void meet(void *arg, int64_t begin, int64_t end) {
    job *j = arg;
    (void)begin, (void)end;
    atomic_fetch_add(&j->arrived, 1);
    while (atomic_load(&j->arrived) < 2) sched_yield();
    atomic_fetch_add(&j->done[tp_slot()], 1);
}

static void test_others_do_help(void **state) {
    (void)state;
    tp_ctx *c = ctx_of(2, false);
    for (int r = 0; r < 20; r++) {
        job j = {.alive = ALIVE};
        tp_parallel_for(c, 2, 1, meet, &j);
        assert_true(j.done[0] == 1 && j.done[1] == 1);
        pause_for(r % 2 ? 1000000 : 0);
    }
    tp_ctx_free(c);
}

static void inner(void *arg, int64_t begin, int64_t end) {
    job *j = arg;
    if (tp_slot() != 0) atomic_fetch_add(&j->wrong, 1);
    for (int64_t i = begin; i < end; i++) atomic_fetch_add(&j->done[i], 1);
}

static void outer(void *arg, int64_t begin, int64_t end) {
    job *j = arg;
    const int slot = tp_slot();
    job in = {.alive = ALIVE, .n = 40};
    (void)begin, (void)end;
    tp_parallel_for(j->c, in.n, 3, inner, &in);
    if (in.wrong || !all_once(&in) || tp_slot() != slot || !tp_in_loop())
        atomic_fetch_add(&j->wrong, 1);
}

static void test_loop_inside_a_loop(void **state) {
    (void)state;
    for (int fast = 0; fast < 2; fast++) {
        tp_ctx *c = ctx_of(THREADS, fast);
        for (int r = 0; r < 100; r++) {
            job j = {.alive = ALIVE, .c = c};
            tp_parallel_for(c, 16, 1, outer, &j);
            assert_int_equal(j.wrong, 0);
            assert_false(tp_in_loop());
            assert_int_equal(tp_slot(), 0);
        }
        tp_ctx_free(c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_chunk_once),
        cmocka_unit_test(test_many_short_loops),
        cmocka_unit_test(test_others_do_help),
        cmocka_unit_test(test_loop_inside_a_loop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
