/* Owns how loops are shared out, so that no kernel knows. */
#include "core/ctx.h"
#include "core/team.h"
#include <omp.h>
#include <time.h>

/* ThreadSanitizer sees nothing of what libgomp does, so it would take every loop on its threads for
 * a race with what comes before and after it. It is told when the threads start and meet again,
 * which is what OpenMP promises; what the chunks do among themselves it checks as anywhere else. */
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define NOT_SANITIZED __attribute__((no_sanitize("thread")))
#define HAPPENS_BEFORE(mark) __tsan_release(mark)
#define HAPPENS_AFTER(mark) __tsan_acquire(mark)
#else
#define NOT_SANITIZED
#define HAPPENS_BEFORE(mark) (void)(mark)
#define HAPPENS_AFTER(mark) (void)(mark)
#endif

/* On the threads that oneDNN's products run on: after each they look for more for milliseconds, and
 * a team beside them would wait for its cores. */
NOT_SANITIZED
static void loop_beside_onednn(tp_ctx *c, int64_t n, int64_t grain, tp_range_fn fn, void *arg) {
    const int64_t chunks = (n + grain - 1) / grain;
    const int threads = c->threads < chunks ? c->threads : (int)chunks;
    char start, end; /* marks for ThreadSanitizer; nothing in other builds */
    HAPPENS_BEFORE(&start);
#pragma omp parallel num_threads(threads)
    {
        HAPPENS_AFTER(&start);
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t i = 0; i < chunks; i++) {
            int64_t begin = i * grain, size = grain < n - begin ? grain : n - begin;
            tp_chunk(omp_get_thread_num(), begin, begin + size, fn, arg);
        }
        HAPPENS_BEFORE(&end);
    }
    HAPPENS_AFTER(&end);
}

void tp_parallel_for(tp_ctx *c, int64_t n, int64_t grain, tp_range_fn fn, void *arg) {
    if (grain < 1) grain = 1;
    if (!c || c->threads == 1 || n <= grain || tp_in_loop())
        tp_loop_alone(n, grain, fn, arg);
    else if (c->fast)
        loop_beside_onednn(c, n, grain, fn, arg);
    else if (c->team || (c->team = tp_team_new(c->threads)))
        tp_team_run(c->team, n, grain, fn, arg);
    else
        tp_loop_alone(n, grain, fn, arg);
}

double tp_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
