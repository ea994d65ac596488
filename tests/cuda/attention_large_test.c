/* Attention at the sizes of training, where blocks walk many tiles and many rounds, and at random
 * ones: every kernel for tensor cores beside the plain one, which computes in f32 and rounds its
 * results only. The bits must be the same time after time, whatever lay in the memory before. On
 * the CPU (tests/cuda_on_cpu) the shapes are small; the oracle in double is the other tests'.
 *
 *     cuda_attention_large_test               all of them, and a few random ones
 *     cuda_attention_large_test PART          those of this list whose name has PART in it
 *     cuda_attention_large_test random FROM N random problems number FROM to FROM + N - 1 */
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
    /* of random ones */
    int64_t S, Dv;     /* 0: as T, as D */
    int64_t pad;       /* heads between the rows that do not belong to them */
    bool packed, dlse; /* q, k and v in one tensor; the log-sums have gradients as well */
    uint64_t seed;
} problem;

#if defined(TP_CUDA_ON_CPU)
#include "emu.h"
enum { RUNS = 2, RANDOM = 5, LONGEST = 330, MOST_WORK = 20000000 };
static const problem problems[] = {
    {"D 64, causal", 1, 280, 1, 1, 64, {.causal = true}, 0},
    {"D 128, documents", 1, 200, 2, 1, 128, {.causal = true}, 70},
};
#else
enum { RUNS = 5, RANDOM = 100, LONGEST = 3000, MOST_WORK = 2000000000 };
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

/* ---- random problems ------------------------------------------------------------------------ */
static uint64_t next(uint64_t *state) {
    return *state = *state * 6364136223846793005u + 1442695040888963407u;
}
static int64_t dice(uint64_t *state, int64_t n) {
    return (int64_t)((next(state) >> 33) % (uint64_t)n);
}

/* Sizes that are usual, and others; shrunk until the plain kernel does it in good time. */
static problem random_problem(uint64_t seed, char name[200]) {
    static const int64_t sizes[] = {8,   16,  24,  32,  40,  48,  56,  64,  64,
                                    64,  72,  80,  88,  96,  96,  104, 112, 120,
                                    128, 128, 128, 136, 160, 192, 200, 256, 256};
    enum { SIZES = sizeof sizes / sizeof *sizes };
    uint64_t s = seed * 0x9e3779b97f4a7c15u + 12345;
    problem p = {.name = name, .seed = seed};
    p.D = sizes[dice(&s, SIZES)];
    p.Dv = dice(&s, 12) ? p.D : sizes[dice(&s, SIZES)];
    p.B = 1 + dice(&s, 3);
    p.Hkv = 1 + dice(&s, 3);
    p.H = p.Hkv * (1 + dice(&s, 4));
    p.T = 1 + dice(&s, dice(&s, 4) ? LONGEST : 2 * LONGEST);
    p.S = dice(&s, 3) ? p.T : 1 + dice(&s, LONGEST);
    while (p.B * p.H * p.T * p.S * p.D > MOST_WORK) {
        const bool square = p.T == p.S;
        if (p.B > 1)
            p.B--;
        else if (p.H > p.Hkv)
            p.H -= p.Hkv;
        else if (p.Hkv > 1)
            p.H = --p.Hkv;
        else
            p.T = (p.T + 1) / 2, p.S = square ? p.T : (p.S + 1) / 2;
    }
    p.attr.causal = dice(&s, 3) > 0;
    if (!dice(&s, 3)) p.attr.window = 1 + dice(&s, dice(&s, 2) ? 20 : p.S + 10);
    if (!dice(&s, 6)) p.attr.softcap = (double)(1 + dice(&s, 50));
    if (!dice(&s, 4)) p.attr.scale = dice(&s, 2) ? 0.3 : -0.1;
    if (!dice(&s, 5)) {
        p.attr.q_offset_given = true;
        p.attr.q_offset = dice(&s, p.S + 20) - 10;
    }
    if (p.T == p.S && !dice(&s, 3)) p.document = 1 + dice(&s, p.T + 20);
    p.packed = p.T == p.S && p.D == p.Dv && dice(&s, 2);
    if (!p.packed) p.pad = dice(&s, 3);
    p.dlse = !dice(&s, 3);
    snprintf(name, 200, "random %llu", (unsigned long long)seed);
    return p;
}

static void describe(const problem *p) {
    printf(
        "%s: B %lld, T %lld, S %lld, heads %lld/%lld, D %lld/%lld, causal %d, window %lld, softcap "
        "%g, scale %g, offset %lld (%d), documents %lld, packed %d, pad %lld, dlse %d\n",
        p->name, (long long)p->B, (long long)p->T, (long long)p->S, (long long)p->H,
        (long long)p->Hkv, (long long)p->D, (long long)p->Dv, p->attr.causal,
        (long long)p->attr.window, p->attr.softcap, p->attr.scale, (long long)p->attr.q_offset,
        p->attr.q_offset_given, (long long)p->document, p->packed, (long long)p->pad, p->dlse);
}

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
/* A result on the host, as floats. */
typedef struct values {
    int64_t n;
    float *x;
} values;

static tp_tensor *random_tensor(tp_ctx *c, uint64_t name, int64_t B, int64_t T, int64_t H,
                                int64_t D) {
    const int64_t shape[4] = {B, T, H, D}, n = B * T * H * D;
    tp_tensor *t = tp_tensor_keep(c, TP_BF16, 4, shape);
    uint16_t *host = malloc((size_t)n * sizeof *host);
    uint64_t state = name * 0x9e3779b97f4a7c15u + 1;
    for (int64_t i = 0; host && i < n;
         i++) { /* four uniforms, of variance 1/12 each: near normal */
        next(&state);
        float x = 0;
        for (int j = 0; j < 4; j++) x += (float)(state >> 16 * j & 0xffff) / 65536.0f;
        host[i] = tp_f32_to_bf16((x - 2) * 1.7320508f);
    }
    if (!t || !host || tp_upload(c, t, host)) give_up(c);
    free(host);
    return t;
}

/* Heads `first` to first + n - 1 of x (B,T,H,D), where they lie. */
static tp_tensor *heads(tp_ctx *c, const tp_tensor *x, int64_t first, int64_t n) {
    tp_tensor *t = tp_tensor_borrow(c, x);
    if (!t) give_up(c);
    t->shape[2] = n;
    t->offset += first * t->stride[2];
    t->data = (uint16_t *)t->data + first * t->stride[2];
    return t;
}

static tp_tensor *padded(tp_ctx *c, const problem *p, uint64_t name, int64_t T, int64_t H,
                         int64_t D) {
    tp_tensor *x = random_tensor(c, 8 * p->seed + name, p->B, T, H + p->pad, D);
    return p->pad ? heads(c, x, p->pad / 2, H) : x;
}

static void query_key_value(tp_ctx *c, const problem *p, tp_tensor *in[3]) {
    const int64_t S = p->S ? p->S : p->T, Dv = p->Dv ? p->Dv : p->D;
    if (p->packed) {
        tp_tensor *x = random_tensor(c, 8 * p->seed + 1, p->B, p->T, p->H + 2 * p->Hkv, p->D);
        in[0] = heads(c, x, 0, p->H);
        in[1] = heads(c, x, p->H, p->Hkv);
        in[2] = heads(c, x, p->H + p->Hkv, p->Hkv);
        return;
    }
    in[0] = padded(c, p, 1, p->T, p->H, p->D);
    in[1] = padded(c, p, 2, S, p->Hkv, p->D);
    in[2] = padded(c, p, 3, S, p->Hkv, Dv);
}

/* Of the log-sums (B,H,T), none where nothing is seen. */
static tp_tensor *gradients_of(tp_ctx *c, const problem *p, const values *lse,
                               const int64_t shape[3]) {
    uint64_t s = p->seed;
    tp_tensor *t = tp_tensor_keep(c, TP_F32, 3, shape);
    float *host = malloc((size_t)lse->n * sizeof *host + 1);
    for (int64_t i = 0; host && i < lse->n; i++)
        host[i] = isinf(lse->x[i]) ? 0 : (float)(dice(&s, 2001) - 1000) / 1000;
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

/* |got - want| / |want|, and NaN if there is one that want has not. Infinities only agree. What is
 * 0 but for roundings, as gradients of queries that see one key are, is compared with 0.003. */
static double distance(const values *got, const values *want) {
    double d = 0, all = 1e-5 * (double)want->n;
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

/* How many problems each kernel has taken. */
static const tp_kernel *const compared[] = {
    &attention_sm80, &attention_sm90_cuda, &attention_backward_sm80, &attention_backward_sm90_cuda};
enum { COMPARED = sizeof compared / sizeof *compared };
static int ran[COMPARED];
static int which(const tp_kernel *kernel) {
    int i = 0;
    while (compared[i] != kernel) i++;
    return i;
}

static void compare(tp_ctx *c, const problem *p, const tp_op *op, const tp_kernel *kernel, int nin,
                    tp_tensor **in, const values *want, bool must) {
    static const char *const names[2][3] = {{"o", "lse", ""}, {"dq", "dk", "dv"}};
    const bool backward = op == &op_attention_backward;
    values got[3] = {{0}}, again[3] = {{0}};
    int n = run(c, p, op, kernel, nin, in, got);
    ran[which(kernel)] += n > 0;
    expect(n || !must, p->name, kernel->name, "declines", 0);
    for (int i = 0; i < n; i++) {
        double d = distance(&got[i], &want[i]);
        if (must) printf("  %-28s %-3s off by %.1e\n", kernel->name, names[backward][i], d);
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
    const bool fixed = !p->seed;
    tp_tensor *in[8] = {NULL}, *segments = segments_of(c, p);
    query_key_value(c, p, in);
    in[3] = segments;
    tp_tensor *d_o = padded(c, p, 4, p->T, p->H, in[2]->shape[3]);
    values plain[3] = {{0}}, back[3] = {{0}};
    if (fixed) printf("%s\n", p->name);
    run(c, p, &op_attention, &attention_naive_cuda, 5, in, plain);
    compare(c, p, &op_attention, &attention_sm80, 5, in, plain, fixed);
    compare(c, p, &op_attention, &attention_sm90_cuda, 5, in, plain,
            fixed && hopper && !p->attr.softcap);

    const int64_t rows[3] = {p->B, p->H, p->T};
    const int64_t results[4] = {p->B, p->T, p->H, in[2]->shape[3]};
    tp_tensor *o = tp_tensor_keep(c, TP_BF16, 4, results),
              *lse = tp_tensor_keep(c, TP_F32, 3, rows);
    tp_tensor *dlse = p->dlse ? gradients_of(c, p, &plain[1], rows) : NULL;
    uint16_t *half = malloc((size_t)plain[0].n * sizeof *half);
    for (int64_t i = 0; half && i < plain[0].n; i++) half[i] = tp_f32_to_bf16(plain[0].x[i]);
    if (!o || !lse || !half || tp_upload(c, o, half) || tp_upload(c, lse, plain[1].x)) give_up(c);
    free(half);
    tp_tensor *with[8] = {in[0], in[1], in[2], o, lse, d_o, segments, dlse};
    run(c, p, &op_attention_backward, &attention_backward_naive_cuda, 8, with, back);
    compare(c, p, &op_attention_backward, &attention_backward_sm80, 8, with, back, fixed);
    compare(c, p, &op_attention_backward, &attention_backward_sm90_cuda, 8, with, back,
            fixed && hopper && !p->attr.softcap && p->D <= 128);
    for (int i = 0; i < 3; i++) free(plain[i].x), free(back[i].x);
}

/* With a context of its own: what is kept lives as long. Answers whether it is Hopper's. */
static bool try_problem(const problem *p) {
    tp_ctx *c;
    char why[TP_WHY_BYTES] = "", device[200] = "";
#if defined(TP_CUDA_ON_CPU)
    static const char *const orders[] = {NULL, "reverse", "random:3", "random:99"};
    emu_set_order(orders[p->seed % 4]);
    emu_set_async(p->seed / 4 % 2 ? "early" : NULL);
#endif
    const int before = failed;
    const tp_ctx_opts opts = {
        .device = TP_CUDA, .memory_limit = (size_t)4 << 30, .seed = 1, .why = why};
    if (tp_ctx_new(&c, &opts)) printf("no device: %s\n", why), exit(1);
    c->backend->describe(device, sizeof device);
    const bool hopper = strstr(device, "capability 9.") != NULL;
    test(c, p, hopper);
    tp_ctx_free(c);
    if (failed > before && p->seed) describe(p);
    return hopper;
}

static void try_random(uint64_t from, uint64_t n) {
    bool hopper = false;
    memset(ran, 0, sizeof ran);
    for (uint64_t seed = from; seed < from + n; seed++) {
        char name[200];
        const problem p = random_problem(seed, name);
        hopper = try_problem(&p);
    }
    for (int i = 0; i < COMPARED; i++) {
        printf("%-28s %3d of %llu random problems\n", compared[i]->name, ran[i],
               (unsigned long long)n);
        if (n >= RANDOM && (hopper || i % 2 == 0))
            expect(ran[i] > 0, "random", compared[i]->name, "took none", 0);
    }
}

int main(int argc, char **argv) {
    const char *only = argc > 1 ? argv[1] : "";
    const bool random = !strcmp(only, "random");
#if defined(TP_CUDA_ON_CPU)
    emu_set_sm(90);
#endif
    for (size_t i = 0; i < sizeof problems / sizeof *problems && !random; i++)
        if (strstr(problems[i].name, only)) try_problem(&problems[i]);
    if (random)
        try_random(argc > 2 ? strtoull(argv[2], NULL, 10) : 1,
                   argc > 3 ? strtoull(argv[3], NULL, 10) : RANDOM);
    else if (!*only)
        try_random(1, RANDOM);
    printf("attention_large: %d checks, %d failed\n", checks, failed);
    return failed != 0;
}
