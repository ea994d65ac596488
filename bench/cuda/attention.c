/* Flash attention on the GPU, in TFLOP/s: 4 B T^2 H D floating-point operations forward (half of it
 * when causal), 2.5 times that backward. B T = 16384 tokens and as many heads as 2048 values hold,
 * bf16.
 *
 *     bench_cuda_attention [D T causal(0/1)]…   --runs N: backward N times, the bits compared */
#include "bench.h"
#include "core/ctx.h"
#include "ops/attention/attention.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct shape {
    int64_t D, T;
    bool causal;
} shape;

typedef struct problem {
    tp_tensor *q, *k, *v, *d_o, *o, *lse;
    tp_attention_opts opts;
} problem;

static tp_status forward(tp_ctx *c, void *arg) {
    problem *p = arg;
    tp_tensor *lse;
    return tp_attention(c, p->q, p->k, p->v, &p->opts, &lse) ? TP_OK : tp_error_status(c);
}

static tp_status backward_into(tp_ctx *c, problem *p, tp_tensor *dqkv[3]) {
    tp_attention_backward_args a = {p->q, p->k, p->v, p->o, p->lse, p->d_o, NULL};
    return tp_attention_backward(c, &a, &p->opts, dqkv);
}

static tp_status backward(tp_ctx *c, void *arg) {
    tp_tensor *dqkv[3];
    return backward_into(c, arg, dqkv);
}

static tp_tensor *keep(tp_ctx *c, tp_tensor *t) {
    tp_tensor *k = t ? tp_tensor_keep(c, t->dtype, t->ndim, t->shape) : NULL;
    if (k) tp_copy_bytes(c, k->data, t->data, (size_t)tp_numel(t) * tp_dtype_size(t->dtype));
    return k;
}

static tp_status make(tp_ctx *c, problem *p, const shape *s, int64_t tokens, int64_t heads) {
    int64_t dims[4] = {tokens / s->T, s->T, heads, s->D};
    p->opts = (tp_attention_opts){.causal = s->causal};
    p->q = bench_normal(c, TP_BF16, 1, 1, 4, dims);
    p->k = bench_normal(c, TP_BF16, 2, 1, 4, dims);
    p->v = bench_normal(c, TP_BF16, 3, 1, 4, dims);
    p->d_o = bench_normal(c, TP_BF16, 4, 1, 4, dims);
    if (tp_error_status(c)) return tp_error_status(c);
    tp_tensor *lse, *o = tp_attention(c, p->q, p->k, p->v, &p->opts, &lse);
    p->o = keep(c, o);
    p->lse = o ? keep(c, lse) : NULL;
    tp_step_end(c);
    return tp_error_status(c);
}

static int same_bits(tp_ctx *c, problem *p, int runs) {
    uint64_t first = 0;
    int same = 0;
    for (int i = 0; i < runs && !tp_error_status(c); i++) {
        tp_tensor *g[3];
        uint64_t h = 0;
        if (!backward_into(c, p, g))
            for (int j = 0; j < 3; j++) h = h * 31 + bench_hash(c, g[j]);
        if (!i) first = h;
        same += h == first;
        tp_step_end(c);
    }
    return same;
}

int main(int argc, char **argv) {
    shape list[64] = {{64, 1024, true},
                      {128, 4096, true},
                      {128, 4096, false},
                      {96, 2048, true},
                      {256, 4096, true}};
    int n = 5, runs = 0, given = 0;
    int64_t tokens = 16384, width = 2048;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--runs") && i + 1 < argc)
            runs = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--small")) /* the CPU can run it */
            tokens = 128, width = 128, list[0] = (shape){64, 128, true},
            list[1] = (shape){96, 128, true}, n = 2;
        else if (i + 2 < argc && given < 64) {
            list[given++] = (shape){atoll(argv[i]), atoll(argv[i + 1]), atoi(argv[i + 2]) != 0};
            i += 2;
        } else
            return fprintf(stderr, "usage: bench_cuda_attention [--runs N] [D T causal]…\n"), 2;
    }
    if (given) n = given;
    for (int i = 0; i < n; i++) { /* a ctx each: kept tensors live as long as it does */
        tp_ctx *c;
        problem p;
        shape *s = &list[i];
        if (s->D < 1 || s->D > width || s->T < 1 || tokens % s->T)
            return fprintf(stderr, "T must divide %lld, and D be 1 to %lld\n", (long long)tokens,
                           (long long)width),
                   2;
        if (bench_open(&c)) return 1;
        const int64_t heads = width / s->D; /* 96 leaves a rest */
        double flops =
            4.0 * (double)tokens * (double)s->T * (double)(heads * s->D) / (s->causal ? 2 : 1);
        tp_status st = make(c, &p, s, tokens, heads);
        double f = st ? 0 : bench_seconds(c, forward, &p),
               b = st ? 0 : bench_seconds(c, backward, &p);
        int same = runs ? same_bits(c, &p, runs) : 0;
        if (tp_error_status(c)) {
            fprintf(stderr, "D=%lld: %s\n", (long long)s->D, tp_error(c));
        } else {
            printf(
                "tapir attention D=%-3lld T=%-4lld %-6s forward %6.1f TFLOP/s (%.3f ms)  backward "
                "%6.1f TFLOP/s (%.3f ms)",
                (long long)s->D, (long long)s->T, s->causal ? "causal" : "full", flops / f / 1e12,
                1e3 * f, 2.5 * flops / b / 1e12, 1e3 * b);
            printf(runs ? "  bits equal in %d of %d\n" : "\n", same, runs);
        }
        fflush(stdout);
        bool bad = tp_error_status(c) || same != runs;
        tp_ctx_free(c);
        if (bad) return 1;
    }
    return 0;
}
