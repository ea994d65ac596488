/* A race between the chunks of a parallel loop, which ThreadSanitizer must report: it shows that
 * what core/parallel.c tells it about OpenMP hides nothing. A CTest of the preset tsan only. */
#include "core/core.h"
#include <stdio.h>

static void count(void *arg, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) ++*(volatile long *)arg;
}

int main(void) {
    tp_ctx *c;
    if (tp_ctx_new(&c, &(tp_ctx_opts){.threads = 4})) return 1;
    long n = 0;
    tp_parallel_for(c, 100000, 100, count, &n);
    printf("counted %ld of 100000\n", n);
    tp_ctx_free(c);
    return 0;
}
