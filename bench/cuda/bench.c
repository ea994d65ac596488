/* Owns what the GPU benchmarks share. */
#include "bench.h"
#include "core/ctx.h"
#include "ops/convert.h"
#include <stdio.h>
#include <stdlib.h>

tp_status bench_open(tp_ctx **c) {
    char why[TP_WHY_BYTES] = "";
    tp_status st = tp_ctx_new(c, &(tp_ctx_opts){.device = TP_CUDA, .seed = 1, .why = why});
    if (st) fprintf(stderr, "%s\n", why);
    return st;
}

/* Values are drawn from a table, as the host is slow. Each by itself: where neighbours are alike,
 * tensor cores take less power, a GPU at its limit keeps higher clocks, and figures flatter. */
enum { NORMALS = 4096 };
typedef struct fill_job {
    void *to;
    tp_dtype t;
    float normal[NORMALS];
} fill_job;

static void fill_range(void *arg, int64_t begin, int64_t end) {
    const fill_job *j = arg;
    for (int64_t i = begin; i < end; i++) {
        uint64_t x = ((uint64_t)i + 1) * UINT64_C(0x9e3779b97f4a7c15); /* splitmix64's first step */
        x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
        float v = j->normal[x >> 32 & (NORMALS - 1)];
        if (j->t == TP_BF16)
            ((uint16_t *)j->to)[i] = tp_f32_to_bf16(v);
        else
            ((float *)j->to)[i] = v;
    }
}

tp_tensor *bench_normal(tp_ctx *c, tp_dtype t, int name, double std, int ndim,
                        const int64_t *shape) {
    tp_tensor *x = tp_tensor_keep(c, t, ndim, shape);
    int64_t n = x ? tp_numel(x) : 0;
    fill_job j = {tp_malloc(c, (size_t)n * sizeof(float)), t, {0}};
    for (int i = 0; i < NORMALS; i++)
        j.normal[i] = (float)(std * tp_normal(1, TP_RNG_TEST, (uint64_t)name, (uint64_t)i));
    if (j.to) {
        tp_parallel_for(c, n, 1 << 14, fill_range, &j);
        tp_upload(c, x, j.to);
    }
    tp_free(j.to);
    return tp_error_status(c) ? NULL : x;
}

tp_tensor *bench_ids(tp_ctx *c, int64_t n, int ndim, const int64_t *shape) {
    tp_tensor *x = tp_tensor_keep(c, TP_I32, ndim, shape);
    int64_t count = x ? tp_numel(x) : 0;
    int32_t *host = tp_malloc(c, (size_t)count * sizeof *host);
    for (int64_t i = 0; host && i < count; i++)
        host[i] = (int32_t)(tp_uniform(1, TP_RNG_TEST, 7, (uint64_t)i) * (double)n);
    if (host) tp_upload(c, x, host);
    tp_free(host);
    return tp_error_status(c) ? NULL : x;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double burst(tp_ctx *c, tp_status (*fn)(tp_ctx *, void *), void *arg, int calls) {
    tp_sync(c);
    double start = tp_now();
    for (int i = 0; i < calls && !tp_error_status(c); i++) {
        tp_scope s = tp_scope_open(c, "%s", "");
        fn(c, arg);
        tp_scope_close(c, s, NULL);
    }
    tp_sync(c);
    return (tp_now() - start) / calls;
}

double bench_seconds(tp_ctx *c, tp_status (*fn)(tp_ctx *, void *), void *arg) {
    enum { ROUNDS = 9 };
    double took[ROUNDS], one = burst(c, fn, arg, 1); /* warms up */
    one = burst(c, fn, arg, 1);
    int calls = one > 0.02 ? 1 : (int)(0.02 / (one > 1e-6 ? one : 1e-6)) + 1;
    for (int i = 0; i < ROUNDS; i++) took[i] = burst(c, fn, arg, calls);
    tp_step_end(c);
    qsort(took, ROUNDS, sizeof *took, by_value);
    return took[ROUNDS / 2];
}

uint64_t bench_hash(tp_ctx *c, const tp_tensor *t) {
    size_t n = (size_t)tp_numel(t) * tp_dtype_size(t->dtype);
    unsigned char *host = tp_malloc(c, n);
    uint64_t h = 14695981039346656037u; /* FNV-1a over 8-byte words */
    if (host && !tp_download(c, t, host))
        for (size_t i = 0; i + 8 <= n; i += 8) {
            uint64_t w = 0;
            for (int b = 0; b < 8; b++) w |= (uint64_t)host[i + (size_t)b] << (8 * b);
            h = (h ^ w) * 1099511628211u;
        }
    tp_free(host);
    return h;
}
