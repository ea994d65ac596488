/* Owns the measured peak that MFU is a fraction of. */
#include "cli/cli.h"
#include "core/ctx.h"
#include "ops/matmul/peak.h"

typedef struct probe {
    int isa;
    double seconds, *best; /* best: a rate for each thread */
} probe;

static void burst(int isa, int64_t n) {
    float out[16] = {0.999f, 0.001f};
#if defined(__x86_64__)
    if (isa == 4) {
        tp_fma_loop_v4(n, out);
        return;
    }
    if (isa == 3) {
        tp_fma_loop_v3(n, out);
        return;
    }
#endif
    tp_fma_loop_v1(n, out);
}

/* Each thread keeps the rate of its best burst: bursts are short, so some run undisturbed however
 * busy the machine is. */
static void run(void *arg, int64_t begin, int64_t end) {
    const probe *p = arg;
    enum { N = 1 << 14 };
    for (int64_t i = begin; i < end; i++) {
        double until = tp_now() + p->seconds;
        for (double start = tp_now(); start < until; start = tp_now()) {
            burst(p->isa, N);
            double rate = (double)N * TP_FMA_LOOP_FLOPS / (tp_now() - start);
            if (rate > p->best[i]) p->best[i] = rate;
        }
    }
}

double tp_measure_peak(tp_ctx *c) {
    double best[1024] = {0}, sum = 0;
    int n = tp_threads(c) < 1024 ? tp_threads(c) : 1024;
    probe p = {c->isa, 0.2, best};
    tp_parallel_for(c, n, 1, run, &p);
    for (int i = 0; i < n; i++) sum += best[i];
    return sum;
}
