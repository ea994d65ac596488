/* Owns threads: OpenMP behind one function, so that no kernel knows how work is shared out. */
#include "core/ctx.h"
#include <omp.h>
#include <time.h>

/* ThreadSanitizer sees nothing of what libgomp does, so it would take every parallel loop for a
 * race with what comes before and after it. It is told when the threads start and meet again, which
 * is what OpenMP promises; what the chunks do among themselves it checks as anywhere else. The loop
 * itself is left out: libgomp hands it its variables. */
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

NOT_SANITIZED
/* lesson: parallel */
void tp_parallel_for(tp_ctx *c, int64_t n, int64_t grain, tp_range_fn fn, void *arg) {
    if (n <= 0) return;
    if (grain < 1) grain = 1;
    int64_t chunks = (n + grain - 1) / grain;
    int threads = c && !omp_in_parallel() ? c->threads : 1;
    if (threads > chunks) threads = (int)chunks;
    if (threads == 1) {
        for (int64_t i = 0; i < chunks; i++)
            fn(arg, i * grain, (i + 1) * grain < n ? (i + 1) * grain : n);
        return;
    }
    /* dynamic: a chunk's bits do not depend on who computes it, and a busy core gets fewer */
    char start, end; /* marks for ThreadSanitizer; nothing in other builds */
    HAPPENS_BEFORE(&start);
#pragma omp parallel num_threads(threads)
    {
        HAPPENS_AFTER(&start);
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t i = 0; i < chunks; i++)
            fn(arg, i * grain, (i + 1) * grain < n ? (i + 1) * grain : n);
        HAPPENS_BEFORE(&end);
    }
    HAPPENS_AFTER(&end);
}
/* end */

double tp_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
