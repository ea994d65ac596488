/* A race between the chunks of a parallel loop, which ThreadSanitizer must report: it shows that
 * chunks are checked. With a word, on OpenMP's threads, where it shows that what core/parallel.c
 * tells about them hides nothing. CTests of the preset tsan only. */
#include "core/core.h"
#include <sched.h>
#include <stdio.h>

typedef struct job {
    int arrived; /* relaxed: the meeting itself must order nothing */
    long raced;
} job;

static void chunk(void *arg, int64_t begin, int64_t end) {
    job *j = arg;
    __atomic_fetch_add(&j->arrived, 1, __ATOMIC_RELAXED);
    while (__atomic_load_n(&j->arrived, __ATOMIC_RELAXED) < 2) sched_yield();
    j->raced += end - begin;
}

int main(int argc, char **argv) {
    (void)argv;
    tp_ctx *c;
    if (tp_ctx_new(&c, &(tp_ctx_opts){.threads = 2, .fast = argc > 1})) return 1;
    job j = {0};
    tp_parallel_for(c, 2, 1, chunk, &j);
    printf("counted %ld of 2\n", j.raced);
    tp_ctx_free(c);
    return 0;
}
