/* bench/gemm: our matrix product beside oneDNN's dnnl_sgemm and OpenBLAS, where they are installed.
 *
 *     bench_gemm [--json] [--rounds N] [--threads N] [--only TEXT]
 *
 * The peers are opened at run time, so nothing here is linked to them. Each row of the table is
 * timed in rounds of ours, oneDNN, OpenBLAS, ours, oneDNN, … so that a slow moment of the machine
 * hits all of them; the figures are medians, the ratio is the median of the rounds' ratios. */
#include "core/core.h"
#include "core/ctx.h"
#include "ops/matmul/gemm.h"
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ROUNDS = 101, PEERS = 3 };
static const char *const peer_names[PEERS] = {"tapir", "dnnl_sgemm", "openblas"};

typedef struct problem {
    const char *model, *layer, *kind;
    int64_t m, n, k;
    bool trans_a, trans_b; /* how A (m,k) and B (k,n) are stored */
} problem;

typedef int (*dnnl_fn)(char, char, int64_t, int64_t, int64_t, float, const float *, int64_t,
                       const float *, int64_t, float, float *, int64_t);
typedef void (*cblas_fn)(int, int, int, int, int, int, float, const float *, int, const float *,
                         int, float, float *, int);
typedef struct bench {
    tp_ctx *ctx;
    float *a, *b, *c;
    void *work;
    dnnl_fn dnnl;
    cblas_fn cblas;
    const char *blas_core, *only;
    int rounds;
    bool json;
} bench;
typedef struct totals {
    double log_ratio[PEERS];
    int rows;
} totals;

/* A function pointer out of dlsym, without the cast that ISO C leaves undefined. */
static bool find(void *lib, const char *name, void *fn_out) {
    void *p = lib ? dlsym(lib, name) : NULL;
    memcpy(fn_out, &p, sizeof p);
    return p != NULL;
}

static void open_peers(bench *x) {
    if (!find(dlopen("libdnnl.so.2", RTLD_NOW), "dnnl_sgemm", &x->dnnl))
        find(dlopen("libdnnl.so.3", RTLD_NOW), "dnnl_sgemm", &x->dnnl);
    /* OpenBLAS 0.3.21 takes CPUs that it does not know for SSE3 ones; it reads this when opened */
    setenv("OPENBLAS_CORETYPE", x->ctx->isa >= 4 ? "SkylakeX" : "Haswell", 0);
    void *blas = dlopen("libopenblas.so.0", RTLD_NOW);
    void (*set_threads)(int);
    char *(*core)(void);
    if (!find(blas, "cblas_sgemm", &x->cblas)) return;
    if (find(blas, "openblas_set_num_threads", &set_threads)) set_threads(tp_threads(x->ctx));
    if (find(blas, "openblas_get_corename", &core)) x->blas_core = core();
}

static bool there(const bench *x, int peer) {
    return peer == 0 || (peer == 1 && x->dnnl) || (peer == 2 && x->cblas);
}

static void run_ours(bench *x, const problem *p) {
    tp_gemm g = {.m = p->m, .n = p->n, .k = p->k, .a = x->a, .b = x->b, .c = x->c, .ldc = p->n};
    g.work = x->work;
    g.a_rs = p->trans_a ? 1 : p->k;
    g.a_cs = p->trans_a ? p->m : 1;
    g.b_rs = p->trans_b ? 1 : p->n;
    g.b_cs = p->trans_b ? p->k : 1;
#if defined(__x86_64__)
    if (x->ctx->isa >= 4) {
        tp_gemm_run_v4(x->ctx, &g);
        return;
    }
    if (x->ctx->isa == 3) {
        tp_gemm_run_v3(x->ctx, &g);
        return;
    }
#endif
    tp_gemm_run_v1(x->ctx, &g);
}

static void run_peer(bench *x, const problem *p, int peer) {
    int64_t lda = p->trans_a ? p->m : p->k, ldb = p->trans_b ? p->k : p->n;
    if (peer == 0)
        run_ours(x, p);
    else if (peer == 1)
        x->dnnl(p->trans_a ? 'T' : 'N', p->trans_b ? 'T' : 'N', p->m, p->n, p->k, 1.0f, x->a, lda,
                x->b, ldb, 0.0f, x->c, p->n);
    else
        x->cblas(101, p->trans_a ? 112 : 111, p->trans_b ? 112 : 111, (int)p->m, (int)p->n,
                 (int)p->k, 1.0f, x->a, (int)lda, x->b, (int)ldb, 0.0f, x->c, (int)p->n);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *v, int n) {
    double s[MAX_ROUNDS];
    memcpy(s, v, (size_t)n * sizeof *s);
    qsort(s, (size_t)n, sizeof *s, by_value);
    return n % 2 ? s[n / 2] : 0.5 * (s[n / 2 - 1] + s[n / 2]);
}

/* Seconds per product, one per round, for each peer that is there. */
static void measure(bench *x, const problem *p, double seconds[PEERS][MAX_ROUNDS]) {
    run_ours(x, p);
    double t0 = tp_now();
    run_ours(x, p);
    int64_t reps = (int64_t)(0.015 / fmax(tp_now() - t0, 1e-7)) + 1;
    for (int r = -1; r < x->rounds; r++) /* round -1 warms up */
        for (int peer = 0; peer < PEERS; peer++) {
            if (!there(x, peer)) continue;
            t0 = tp_now();
            for (int64_t i = 0; i < (r < 0 ? 1 : reps); i++) run_peer(x, p, peer);
            if (r >= 0) seconds[peer][r] = (tp_now() - t0) / (double)reps;
        }
}

static void report(const bench *x, const problem *p, double s[PEERS][MAX_ROUNDS], totals *sum) {
    double flop = 2.0 * (double)p->m * (double)p->n * (double)p->k;
    const char *form = x->json ? "{\"model\": \"%s\", \"layer\": \"%s\", \"kind\": \"%s\", "
                                 "\"m\": %lld, \"n\": %lld, \"k\": %lld"
                               : "%-7s %-7s %-8s %6lld %6lld %6lld";
    printf(form, p->model, p->layer, p->kind, (long long)p->m, (long long)p->n, (long long)p->k);
    for (int peer = 0; peer < PEERS; peer++) {
        if (!there(x, peer)) continue;
        double gflops = flop / median(s[peer], x->rounds) * 1e-9, ratio[MAX_ROUNDS];
        for (int r = 0; r < x->rounds; r++) ratio[r] = s[peer][r] / s[0][r];
        double mid = median(ratio, x->rounds);
        sum->log_ratio[peer] += log(mid);
        printf(x->json ? ", \"%s_gflops\": %.1f" : "", peer_names[peer], gflops);
        if (x->json && peer) printf(", \"ratio_%s\": %.4f", peer_names[peer], mid);
        if (!x->json) printf(" %8.1f", gflops);
        if (!x->json && peer) printf(" x%5.3f", mid);
    }
    printf(x->json ? "}\n" : "\n");
    fflush(stdout);
    sum->rows++;
}

static void finish(const bench *x, const char *what, totals *sum) {
    for (int peer = 1; peer < PEERS; peer++) {
        if (!there(x, peer) || !sum->rows) continue;
        double mean = exp(sum->log_ratio[peer] / sum->rows);
        printf(x->json ? "{\"geomean\": \"%s\", \"against\": \"%s\", \"ratio\": %.4f}\n"
                       : "%s: geo-mean of tapir / %s = %.3f\n",
               what, peer_names[peer], mean);
    }
    *sum = (totals){0};
}

static void one(bench *x, problem p, totals *sum) {
    static double seconds[PEERS][MAX_ROUNDS];
    char label[96];
    snprintf(label, sizeof label, "%s %s %s m%lld", p.model, p.layer, p.kind, (long long)p.m);
    if (x->only && !strstr(label, x->only)) return;
    measure(x, &p, seconds);
    report(x, &p, seconds, sum);
}

typedef struct shape {
    const char *name;
    int64_t n, k;
} shape;

/* The products of a layer y (M,N) = x (M,K) W, with W stored (K,N), as in GPT-2's Conv1D, or, where
 * the kind says W' for y or W for dx, (N,K) as in a Linear. */
static void layer(bench *x, const char *model, const shape *s, int64_t m, totals *sum) {
    one(x, (problem){model, s->name, "y=xW", m, s->n, s->k, false, false}, sum);
    one(x, (problem){model, s->name, "y=xW'", m, s->n, s->k, false, true}, sum);
    one(x, (problem){model, s->name, "dx=dyW'", m, s->k, s->n, false, true}, sum);
    one(x, (problem){model, s->name, "dx=dyW", m, s->k, s->n, false, false}, sum);
    one(x, (problem){model, s->name, "dW=x'dy", s->k, s->n, m, true, false}, sum);
}

static void run_all(bench *x) {
    static const shape gpt2[] = {{"qkv", 2304, 768},
                                 {"proj", 768, 768},
                                 {"fc", 3072, 768},
                                 {"fcproj", 768, 3072},
                                 {"head", 50304, 768}};
    static const shape small[] = {
        {"qkv", 1152, 384}, {"proj", 384, 384}, {"fc", 1536, 384}, {"fcproj", 384, 1536}};
    totals sum = {0};
    for (int i = 0; i < 5; i++) layer(x, "gpt2", &gpt2[i], 256, &sum);
    finish(x, "GPT-2 124M, 256 tokens", &sum);
    for (int i = 0; i < 4; i++) layer(x, "small", &small[i], 2048, &sum);
    finish(x, "small model, 2048 tokens", &sum);
    for (int64_t m = 1; m <= 16; m *= 2)
        for (int i = 0; i < 5; i++) {
            if (i == 1 || i == 2) continue;
            one(x, (problem){"decode", gpt2[i].name, "y=xW", m, gpt2[i].n, gpt2[i].k, false, false},
                &sum);
            one(x, (problem){"decode", gpt2[i].name, "y=xW'", m, gpt2[i].n, gpt2[i].k, false, true},
                &sum);
        }
    finish(x, "decode, 1 to 16 rows", &sum);
}

/* Operands as large as the largest, the head's weight, with numbers in [-0.5, 0.5). */
static bool allocate(bench *x) {
    const int64_t most = 50304 * 768;
    tp_gemm widest = {.m = 50304, .n = 50304, .k = 50304};
    size_t bytes = (size_t)most * sizeof(float);
    x->a = aligned_alloc(64, bytes);
    x->b = aligned_alloc(64, bytes);
    x->c = aligned_alloc(64, bytes);
    x->work = aligned_alloc(64, tp_gemm_workspace(&widest, tp_threads(x->ctx)));
    if (!x->a || !x->b || !x->c || !x->work) return false;
    for (int64_t i = 0; i < most; i++) {
        uint32_t u = (uint32_t)i * 2654435761u;
        x->a[i] = (float)(u >> 8) / 16777216.0f - 0.5f;
        x->b[i] = x->a[i];
        x->c[i] = 0;
    }
    return true;
}

int main(int argc, char **argv) {
    bench x = {.rounds = 7};
    tp_ctx_opts opts = {0};
    bool bad = false;
    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;
        if (!strcmp(argv[i], "--json"))
            x.json = true;
        else if (!strcmp(argv[i], "--rounds") && more)
            x.rounds = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--threads") && more)
            opts.threads = atoi(argv[++i]);
        else if (!strcmp(argv[i], "--only") && more)
            x.only = argv[++i];
        else
            bad = true;
    }
    if (bad || x.rounds < 1 || x.rounds > MAX_ROUNDS || opts.threads < 0) {
        fprintf(stderr,
                "usage: bench_gemm [--json] [--rounds 1..101] [--threads N] [--only TEXT]\n");
        return 2;
    }
    int status = 1;
    if (tp_ctx_new(&x.ctx, &opts) || !allocate(&x)) {
        fprintf(stderr, "bench_gemm: not enough memory\n");
        goto done;
    }
    open_peers(&x);
    if (!x.json)
        printf("%d threads, instruction set v%d, OpenBLAS %s; GFLOP/s, x = ours / theirs\n"
               "%-24s %6s %6s %6s %8s %8s %6s %8s\n",
               tp_threads(x.ctx), x.ctx->isa, x.blas_core ? x.blas_core : "absent", "", "m", "n",
               "k", "tapir", x.dnnl ? "oneDNN" : "", "", x.cblas ? "OpenBLAS" : "");
    run_all(&x);
    status = 0;
done:
    free(x.a), free(x.b), free(x.c), free(x.work);
    tp_ctx_free(x.ctx);
    return status;
}
