/* Matrix products on the GPU, in TFLOP/s: our own kernels and cuBLASLt on the shapes of GPT-2 and
 * Llama, at 16384 tokens. The figures are of forward (x w), dx (dy w^T) and dw (x^T dy, f32 out).
 *
 *     bench_cuda_gemm [tokens] [--only TEXT] */
#include "bench.h"
#include "core/ctx.h"
#include "ops/matmul/gemm_cuda.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct layer {
    const char *name;
    int64_t in, out;
} layer;
static const layer layers[] = {
    {"GPT-2 124M qkv", 768, 2304},     {"GPT-2 124M proj", 768, 768},
    {"GPT-2 124M mlp up", 768, 3072},  {"GPT-2 124M mlp down", 3072, 768},
    {"GPT-2 124M head", 768, 50304},   {"GPT-2 1.5B mlp up", 1600, 6400},
    {"Llama 1B qkv", 2048, 3072},      {"Llama 1B mlp up", 2048, 8192},
    {"Llama 1B mlp down", 8192, 2048}, {"Llama 7B proj", 4096, 4096},
    {"Llama 7B mlp up", 4096, 11008},
};
static const char *const kinds[] = {"x w", "dy w^T", "x^T dy"};

typedef struct product {
    tp_cuda_gemm g;
} product;

static tp_status run(tp_ctx *c, void *arg) {
    static const tp_op op = {.name = "product"};
    tp_call k = {.ctx = c, .op = &op};
    return tp_cuda_gemm_run(&k, &((product *)arg)->g);
}

/* x (tokens, in), w (in, out), dy (tokens, out); c is as large as the largest of them. */
static product make(int kind, tp_tensor *const t[4], int64_t tokens, const layer *l) {
    tp_cuda_matrix x = {t[0]->data, t[0]->dtype, l->in, 1},
                   w = {t[1]->data, t[1]->dtype, l->out, 1};
    tp_cuda_matrix dy = {t[2]->data, t[2]->dtype, l->out, 1};
    tp_cuda_gemm g = {.batch = 1, .c = {t[3]->data, t[0]->dtype, 0, 1}};
    if (kind == 0)
        g.m = tokens, g.n = l->out, g.k = l->in, g.a = x, g.b = w;
    else if (kind == 1)
        g.m = tokens, g.n = l->in, g.k = l->out, g.a = dy, g.b = w, g.b.row = 1, g.b.col = l->out;
    else {
        g.m = l->in, g.n = l->out, g.k = tokens, g.a = x, g.b = dy, g.m_fixed = true;
        g.a.row = 1, g.a.col = l->in, g.c.dtype = TP_F32;
    }
    g.c.row = g.n;
    return (product){g};
}

static int measure(const layer *l, tp_dtype t, int64_t tokens) {
    tp_ctx *c;
    if (bench_open(&c)) return 1;
    int64_t most = tokens * (l->in > l->out ? l->in : l->out);
    if (most < l->in * l->out) most = l->in * l->out;
    tp_tensor *m[4] = {bench_normal(c, t, 1, 1, TP_SHAPE(tokens, l->in)),
                       bench_normal(c, t, 2, 0.02, TP_SHAPE(l->in, l->out)),
                       bench_normal(c, t, 3, 1, TP_SHAPE(tokens, l->out)),
                       tp_tensor_keep(c, TP_F32, TP_SHAPE(most))};
    for (int kind = 0; kind < 3 && !tp_error_status(c); kind++) {
        product p = make(kind, m, tokens, l);
        double flops = 2.0 * (double)p.g.m * (double)p.g.n * (double)p.g.k, s[2] = {0, 0};
        const int64_t before = tp_cuda_gemm_stats_of(c).cublaslt_runs;
        for (int who = 0; who < 2; who++) {
            c->gemm = who ? TP_GEMM_CUBLASLT : TP_GEMM_OWN;
            s[who] = bench_seconds(c, run, &p);
        }
        if (tp_error_status(c)) break;
        bool lt = tp_cuda_gemm_stats_of(c).cublaslt_runs > before;
        printf("%-20s %-4s %-7s %7lld %7lld %7lld  %8.1f  ", l->name, tp_dtype_name(t), kinds[kind],
               (long long)p.g.m, (long long)p.g.n, (long long)p.g.k, flops / s[0] / 1e12);
        if (lt)
            printf("%8.1f  %5.2f\n", flops / s[1] / 1e12, s[1] / s[0]);
        else
            printf("declined\n");
        fflush(stdout);
    }
    bool bad = tp_error_status(c) != TP_OK;
    if (bad) fprintf(stderr, "%s: %s\n", l->name, tp_error(c));
    tp_ctx_free(c);
    return bad;
}

int main(int argc, char **argv) {
    static const layer tiny = {"tiny", 24, 40};
    int64_t tokens = 16384;
    const char *only = "";
    int small = 0, bad = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--small"))
            small = 1; /* the CPU can run it */
        else if (!strcmp(argv[i], "--only") && i + 1 < argc)
            only = argv[++i];
        else if (!(tokens = atoll(argv[i])) || tokens < 1)
            return fprintf(stderr, "usage: bench_cuda_gemm [tokens] [--only TEXT]\n"), 2;
    }
    printf("%-20s %-4s %-7s %7s %7s %7s  %8s  %8s  own/cuBLASLt\n", "layer", "", "product", "m",
           "n", "k", "own", "cuBLASLt");
    for (int f32 = 0; f32 < 2; f32++) {
        tp_dtype t = f32 ? TP_F32 : TP_BF16;
        if (small) bad |= measure(&tiny, t, 32);
        for (int i = 0; i < (int)(sizeof layers / sizeof *layers) && !small && !bad; i++)
            if (strstr(layers[i].name, only)) bad |= measure(&layers[i], t, tokens);
    }
    return bad;
}
