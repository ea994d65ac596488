/* Owns the measured peak that MFU is a fraction of. */
#include "cli/cli.h"
#include "core/ctx.h"
#include "ops/matmul/peak.h"

typedef struct loop {
    int isa;
    int64_t n;
} loop;

static void run(void *arg, int64_t begin, int64_t end)
{
    const loop *l = arg;
    for (int64_t i = begin; i < end; i++) {
        float out[16] = {0.999f, 0.001f};
#if defined(__x86_64__)
        if (l->isa == 4) tp_fma_loop_v4(l->n, out);
        else if (l->isa == 3) tp_fma_loop_v3(l->n, out);
        else
#endif
            tp_fma_loop_v1(l->n, out);
    }
}

double tp_measure_peak(tp_ctx *c)
{
    loop l = {c->isa, 1 << 12};
    double best = 0, until = tp_now() + 0.2;
    while (tp_now() < until) { /* the best of many short loops: a neighbour may take a core meanwhile */
        double start = tp_now();
        tp_parallel_for(c, tp_threads(c), 1, run, &l);
        double took = tp_now() - start;
        double rate = (double)l.n * TP_FMA_LOOP_FLOPS * tp_threads(c) / took;
        if (rate > best) best = rate;
        if (took < 2e-3) l.n *= 2;
    }
    return best;
}
