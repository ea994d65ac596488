/* Owns threads: OpenMP behind one function, so that no kernel knows how work is shared out. */
#include "core/ctx.h"
#include <omp.h>
#include <time.h>

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
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < chunks; i++)
        fn(arg, i * grain, (i + 1) * grain < n ? (i + 1) * grain : n);
}
/* end */

double tp_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
