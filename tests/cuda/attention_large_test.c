/* Attention at the sizes of training, where blocks walk many tiles and many rounds: every kernel
 * for tensor cores beside the plain one, which computes in f32 and rounds its results only. The
 * bits must be the same time after time, whatever lay in the memory before. On the CPU
 * (tests/cuda_on_cpu) the shapes are small; the oracle in double is the other tests'. */
#include "core/ctx.h"
#include "core/device.h"
#include "ops/attention/attention.h"
#include "ops/attention/attention_problem.h"
#include "ops/convert.h"
#include "ops/fill/fill.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const tp_op op_attention, op_attention_backward;
extern const tp_kernel attention_naive_cuda, attention_sm80, attention_sm90_cuda;
extern const tp_kernel attention_backward_naive_cuda, attention_backward_sm80,
    attention_backward_sm90_cuda;

typedef struct problem {
    const char *name;
    int64_t B, T, H, Hkv, D;
    attention_attr attr;
    int64_t document; /* tokens of a document; 0: no segments */
} problem;

#if defined(TP_CUDA_ON_CPU)
#include "emu.h"
enum { RUNS = 2 };
static const problem problems[] = {
    {"D 64, causal", 1, 280, 1, 1, 64, {.causal = true}, 0},
    {"D 128, documents", 1, 200, 2, 1, 128, {.causal = true}, 70},
};
#else
enum { RUNS = 5 };
static const problem problems[] = {
    {"GPT-2's", 16, 1024, 12, 12, 64, {.causal = true}, 0},
    {"D 64, everything visible", 8, 2048, 8, 8, 64, {0}, 0},
    {"D 64, documents", 4, 4096, 8, 8, 64, {.causal = true}, 700},
    {"D 64, window", 4, 4096, 8, 4, 64, {.causal = true, .window = 512}, 0},
    {"Llama's", 4, 2048, 16, 16, 128, {.causal = true}, 0},
    {"D 128, long", 1, 16384, 4, 4, 128, {.causal = true}, 0},
    {"D 128, everything visible", 2, 4096, 16, 16, 128, {0}, 0},
    {"D 128, grouped", 4, 2048, 16, 4, 128, {.causal = true}, 0},
    {"D 128, documents that end anywhere", 3, 3001, 8, 2, 128, {.causal = true}, 333},
    {"D 96", 2, 2048, 8, 8, 96, {.causal = true}, 0},
    {"D 80, odd length", 3, 1777, 5, 5, 80, {.causal = true}, 0},
    {"D 256", 2, 2048, 4, 4, 256, {.causal = true}, 0},
    {"D 128, softcap", 2, 2048, 8, 8, 128, {.causal = true, .softcap = 20}, 0},
};
#endif

static int checks, failed;
static void expect(bool ok, const char *name, const char *kernel, const char *what, double got) {
    checks++;
    if (ok) return;
    failed++;
    printf("FAILED %s, %s: %s (%g)\n", name, kernel, what, got);
}

static void give_up(const tp_ctx *c) {
    printf("%s\n", tp_error(c));
    exit(1);
}

/* ---- tensors -------------------------------------------------------------------------------- */
static tp_tensor *random_tensor(tp_ctx *c, uint64_t name, int64_t B, int64_t T, int64_t H,
                                int64_t D) {
    const int64_t shape[4] = {B, T, H, D}, n = B * T * H * D;
    tp_tensor *t = tp_tensor_keep(c, TP_BF16, 4, shape);
    uint16_t *host = malloc((size_t)n * sizeof *host);
    uint64_t state = name * 0x9e3779b97f4a7c15u + 1;
    for (int64_t i = 0; host && i < n;
         i++) { /* four uniforms, of variance 1/12 each: near normal */
        state = state * 6364136223846793005u + 1442695040888963407u;
        float x = 0;
        for (int j = 0; j < 4; j++) x += (float)(state >> 16 * j & 0xffff) / 65536.0f;
        host[i] = tp_f32_to_bf16((x - 2) * 1.7320508f);
    }
    if (!t || !host || tp_upload(c, t, host)) give_up(c);
    free(host);
    return t;
}

static tp_tensor *segments_of(tp_ctx *c, const problem *p) {
    if (!p->document) return NULL;
    const int64_t shape[2] = {p->B, p->T};
    tp_tensor *t = tp_tensor_keep(c, TP_I32, 2, shape);
    int32_t *host = malloc((size_t)(p->B * p->T) * sizeof *host);
    for (int64_t i = 0; host && i < p->B * p->T; i++)
        host[i] = (int32_t)((i % p->T + 37 * (i / p->T)) / p->document);
    if (!t || !host || tp_upload(c, t, host)) give_up(c);
    free(host);
    return t;
}

/* A result on the host, as floats. */
typedef struct values {
    int64_t n;
    float *x;
} values;

static values download(tp_ctx *c, const tp_tensor *t) {
    values v = {tp_numel(t), malloc((size_t)tp_numel(t) * sizeof *v.x)};
    uint16_t *half = malloc((size_t)v.n * sizeof *half);
    if (!v.x || !half || tp_download(c, t, t->dtype == TP_BF16 ? (void *)half : (void *)v.x))
        give_up(c);
    for (int64_t i = 0; i < v.n && t->dtype == TP_BF16; i++) v.x[i] = tp_bf16_to_f32(half[i]);
    free(half);
    return v;
}

/* ---- running -------------------------------------------------------------------------------- */
/* What no call wrote is NaN, in the workspace too: the pool hands out the same bytes again. */
static void poison(tp_ctx *c, const problem *p) {
    const int64_t n = 8 * p->B * p->T * p->H * p->D;
    if (!tp_full(c, TP_F32, NAN, 1, &n)) give_up(c);
    tp_step_end(c);
}

/* 0 results: the kernel declines. */
static int run(tp_ctx *c, const problem *p, const tp_op *op, const tp_kernel *kernel, int nin,
               tp_tensor **in, values out[3]) {
    tp_tensor *made[TP_MAXOUT] = {0};
    poison(c, p);
    c->only_kernel = kernel;
    tp_status st = tp_op_run(c, op, &p->attr, nin, in, made);
    c->only_kernel = NULL;
    if (st == TP_ENOKERNEL) {
        tp_clear(c);
        return 0;
    }
    if (st) give_up(c);
    int n = op == &op_attention ? 2 : 3;
    for (int i = 0; i < n; i++) out[i] = download(c, made[i]);
    tp_step_end(c);
    return n;
}

/* |got - want| / |want|, and NaN if there is one that want has not. Infinities only agree. */
static double distance(const values *got, const values *want) {
    double d = 0, all = 0;
    for (int64_t i = 0; i < want->n; i++) {
        if (got->x[i] == want->x[i] && isinf(want->x[i])) continue;
        double e = (double)got->x[i] - (double)want->x[i];
        d += e * e;
        all += (double)want->x[i] * (double)want->x[i];
    }
    return sqrt(d / all);
}

/* bf16 has 8 bits: a rounding is off by 2^-9 of the value at most, 2^-9.8 in the mean square. The
 * plain kernel rounds its results only; Hopper's backward rounds weights and their gradients as
 * well. */
static const double NEAR = 0.006;

static void compare(tp_ctx *c, const problem *p, const tp_op *op, const tp_kernel *kernel, int nin,
                    tp_tensor **in, const values *want, bool must) {
    static const char *const names[2][3] = {{"o", "lse", ""}, {"dq", "dk", "dv"}};
    const bool backward = op == &op_attention_backward;
    values got[3] = {{0}}, again[3] = {{0}};
    int n = run(c, p, op, kernel, nin, in, got);
    expect(n || !must, p->name, kernel->name, "declines", 0);
    for (int i = 0; i < n; i++) {
        double d = distance(&got[i], &want[i]);
        printf("  %-28s %-3s off by %.1e\n", kernel->name, names[backward][i], d);
        expect(d <= NEAR, p->name, kernel->name, names[backward][i], d);
        float was = got[i].x[got[i].n / 2]; /* one value that is missing is noticed */
        got[i].x[got[i].n / 2] = NAN;
        expect(!(distance(&got[i], &want[i]) <= NEAR), p->name, kernel->name, "NaN passed", i);
        got[i].x[got[i].n / 2] = was;
    }
    for (int r = 1; r < RUNS && n; r++) {
        run(c, p, op, kernel, nin, in, again);
        for (int i = 0; i < n; i++) {
            expect(!memcmp(got[i].x, again[i].x, (size_t)got[i].n * sizeof(float)), p->name,
                   kernel->name, "other bits in run", r);
            free(again[i].x);
        }
    }
    for (int i = 0; i < n; i++) free(got[i].x);
}

static void test(tp_ctx *c, const problem *p, bool hopper) {
    tp_tensor *q = random_tensor(c, 1, p->B, p->T, p->H, p->D), *segments = segments_of(c, p);
    tp_tensor *k = random_tensor(c, 2, p->B, p->T, p->Hkv, p->D);
    tp_tensor *v = random_tensor(c, 3, p->B, p->T, p->Hkv, p->D);
    tp_tensor *d_o = random_tensor(c, 4, p->B, p->T, p->H, p->D);
    tp_tensor *in[8] = {q, k, v, segments, NULL};
    values plain[3] = {{0}}, back[3] = {{0}};
    printf("%s\n", p->name);
    run(c, p, &op_attention, &attention_naive_cuda, 5, in, plain);
    compare(c, p, &op_attention, &attention_sm80, 5, in, plain, true);
    compare(c, p, &op_attention, &attention_sm90_cuda, 5, in, plain, hopper && !p->attr.softcap);

    const int64_t rows[3] = {p->B, p->H, p->T};
    tp_tensor *o = tp_tensor_keep(c, TP_BF16, 4, q->shape),
              *lse = tp_tensor_keep(c, TP_F32, 3, rows);
    uint16_t *half = malloc((size_t)plain[0].n * sizeof *half);
    for (int64_t i = 0; half && i < plain[0].n; i++) half[i] = tp_f32_to_bf16(plain[0].x[i]);
    if (!o || !lse || !half || tp_upload(c, o, half) || tp_upload(c, lse, plain[1].x)) give_up(c);
    free(half);
    tp_tensor *with[8] = {q, k, v, o, lse, d_o, segments, NULL};
    run(c, p, &op_attention_backward, &attention_backward_naive_cuda, 8, with, back);
    compare(c, p, &op_attention_backward, &attention_backward_sm80, 8, with, back, true);
    compare(c, p, &op_attention_backward, &attention_backward_sm90_cuda, 8, with, back,
            hopper && !p->attr.softcap && p->D <= 128);
    for (int i = 0; i < 3; i++) free(plain[i].x), free(back[i].x);
}

int main(int argc, char **argv) {
    const char *only = argc > 1 ? argv[1] : "";
#if defined(TP_CUDA_ON_CPU)
    emu_set_sm(90);
#endif
    for (size_t i = 0; i < sizeof problems / sizeof *problems; i++) {
        if (!strstr(problems[i].name, only)) continue;
        tp_ctx *c; /* one each: what is kept lives as long */
        char why[TP_WHY_BYTES] = "", device[200] = "";
        if (tp_ctx_new(&c, &(tp_ctx_opts){.device = TP_CUDA, .seed = 1, .why = why}))
            return printf("no device: %s\n", why), 1;
        c->backend->describe(device, sizeof device);
        test(c, &problems[i], strstr(device, "capability 9.") != NULL);
        tp_ctx_free(c);
    }
    printf("attention_large: %d checks, %d failed\n", checks, failed);
    return failed != 0;
}
