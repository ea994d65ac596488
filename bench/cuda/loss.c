/* linear_cross_entropy with its gradients on the GPU: milliseconds, and the memory that it takes
 * over its inputs and outputs, against that of the whole logits. bf16, 16384 tokens. Each shape
 * with as little memory as by default, and with room for CHUNK tokens' logits
 * (train.loss_chunk_size); and both again by cuBLASLt's products and passes over rows (gemm).
 *
 *     bench_cuda_loss [--small] [C V]… */
#include "bench.h"
#include "core/ctx.h"
#include "ops/linear_cross_entropy/linear_cross_entropy.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 4096 };

typedef struct problem {
    tp_tensor *x, *w, *targets, *coef;
    tp_lce_opts opts;
} problem;

static tp_status run(tp_ctx *c, void *arg) {
    problem *p = arg;
    tp_linear_cross_entropy_train(c, p->x, p->w, p->targets, p->coef, &p->opts);
    return tp_error_status(c);
}

static int measure_with(tp_gemm_choice gemm, int64_t chunk, int64_t rows, int64_t T, int64_t C,
                        int64_t V) {
    tp_ctx *c;
    if (bench_open(&c)) return 1;
    c->gemm = gemm;
    problem p = {bench_normal(c, TP_BF16, 1, 1, 3, (int64_t[]){rows, T, C}),
                 bench_normal(c, TP_BF16, 2, 0.02, 2, (int64_t[]){V, C}),
                 bench_ids(c, V, 2, (int64_t[]){rows, T}),
                 bench_normal(c, TP_F32, 3, 1.0 / (double)(rows * T), 2, (int64_t[]){rows, T}),
                 {.chunk = chunk}};
    /* the tape must hold x and w for gradients to be made */
    if (p.x) p.x->requires_grad = p.w->requires_grad = true;
    size_t before = tp_memory_used(c);
    tp_pool_forget_peak(c);
    double s = tp_error_status(c) ? 0 : bench_seconds(c, run, &p);
    if (tp_error_status(c)) {
        fprintf(stderr, "C=%lld V=%lld: %s\n", (long long)C, (long long)V, tp_error(c));
        tp_ctx_free(c);
        return 1;
    }
    /* dw in f32, dx in bf16, log-probs and entropies */
    double n = (double)(rows * T), outputs = (double)(V * C) * 4 + n * ((double)C * 2 + 2 * 4);
    double extra = (double)(tp_memory_peak(c) - before) - outputs, logits = n * (double)V * 2;
    printf("tapir loss C=%-4lld V=%-6lld %-8s chunk %-4lld %.3f ms (%.1f TFLOP/s)  extra memory "
           "%.1f MB, 1/%.0f of the logits' %.0f MB\n",
           (long long)C, (long long)V, gemm == TP_GEMM_AUTO ? "auto" : "cublaslt", (long long)chunk,
           1e3 * s, 6 * n * (double)C * (double)V / s / 1e12, extra / 1e6,
           extra > 0 ? logits / extra : INFINITY, logits / 1e6);
    tp_ctx_free(c);
    return 0;
}

static int measure(int64_t rows, int64_t T, int64_t C, int64_t V) {
    static const tp_gemm_choice gemm[] = {TP_GEMM_AUTO, TP_GEMM_CUBLASLT};
    int bad = 0;
    for (int i = 0; i < 4 && !bad; i++)
        bad = measure_with(gemm[i / 2], i % 2 ? CHUNK : 0, rows, T, C, V);
    return bad;
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "--small")) return measure(2, 32, 32, 300);
    if (argc % 2 == 0) return fprintf(stderr, "usage: bench_cuda_loss [--small] [C V]…\n"), 2;
    for (int i = 1; i + 1 < argc; i += 2)
        if (measure(16, 1024, atoll(argv[i]), atoll(argv[i + 1]))) return 1;
    if (argc > 1) return 0;
    return measure(16, 1024, 768, 50304) || measure(16, 1024, 2048, 128256);
}
