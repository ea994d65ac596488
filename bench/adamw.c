/* bench/adamw: one AdamW update with f32 and with bf16 moments, in turns.
 *
 *     bench_adamw [--elements N] [--rounds N] [--threads N]
 *
 * Prints nanoseconds per element, medians over the rounds, and the memory rate of the bytes that an
 * update must move: 28 per element with f32 moments, 20 with bf16. */
#include "core/core.h"
#include "ops/adamw/adamw.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROUNDS = 101 };

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n) {
    qsort(v, (size_t)n, sizeof *v, by_value);
    return v[n / 2];
}

static tp_tensor *filled(tp_ctx *c, tp_dtype t, int64_t n) {
    tp_tensor *x = tp_tensor_keep(c, t, 1, &n);
    for (int64_t i = 0; x && i < n; i++)
        if (t == TP_F32)
            tp_f32(x)[i] = (float)(i % 1000) * 1e-3f + 1e-3f;
        else
            ((uint16_t *)x->data)[i] = (uint16_t)(0x3c00 + i % 64);
    return x;
}

static double once(tp_ctx *c, tp_tensor *p, tp_tensor *m, tp_tensor *v, tp_tensor *g, int64_t at) {
    tp_adamw_opts o = {.learning_rate = 1e-4,
                       .beta1 = 0.9,
                       .beta2 = 0.95,
                       .epsilon = 1e-8,
                       .weight_decay = 0.1,
                       .update = at};
    double start = tp_now();
    tp_adamw_(c, p, m, v, g, &o);
    double took = tp_now() - start;
    tp_step_end(c);
    return took;
}

int main(int argc, char **argv) {
    int64_t n = 100000000;
    int rounds = 9, threads = 1;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--elements")) n = atoll(argv[i + 1]);
        if (!strcmp(argv[i], "--rounds")) rounds = atoi(argv[i + 1]);
        if (!strcmp(argv[i], "--threads")) threads = atoi(argv[i + 1]);
    }
    tp_ctx *c;
    if (n < 1 || rounds < 1 || rounds > MAX_ROUNDS || threads < 0 ||
        tp_ctx_new(&c, &(tp_ctx_opts){.threads = threads, .seed = 1}))
        return fprintf(stderr, "usage: bench_adamw [--elements N] [--rounds N] [--threads N]\n"), 2;
    tp_tensor *p = filled(c, TP_F32, n), *g = filled(c, TP_F32, n);
    tp_tensor *m = filled(c, TP_F32, n), *v = filled(c, TP_F32, n);
    tp_tensor *m16 = filled(c, TP_BF16, n), *v16 = filled(c, TP_BF16, n);
    double f32[MAX_ROUNDS], bf16[MAX_ROUNDS], ratio[MAX_ROUNDS];
    for (int r = -1; r < rounds; r++) { /* round -1 warms up */
        double a = once(c, p, m, v, g, r + 2), b = once(c, p, m16, v16, g, r + 2);
        if (r >= 0) f32[r] = a, bf16[r] = b, ratio[r] = a / b;
    }
    if (tp_error_status(c)) return fprintf(stderr, "bench_adamw: %s\n", tp_error(c)), 1;
    double a = median(f32, rounds) / (double)n * 1e9, b = median(bf16, rounds) / (double)n * 1e9;
    printf("%lld elements, %d thread%s, median of %d rounds\n", (long long)n, tp_threads(c),
           tp_threads(c) == 1 ? "" : "s", rounds);
    printf("f32 moments   %.3f ns per element   %.1f GB/s\n", a, 28 / a);
    printf("bf16 moments  %.3f ns per element   %.1f GB/s   %.2f times as fast\n", b, 20 / b,
           median(ratio, rounds));
    tp_ctx_free(c);
    return 0;
}
