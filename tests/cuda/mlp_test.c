/* GPT-2's MLP as one op (gelu_mlp, whose gradient ends in matmul_dgelu) against the three ops that
 * it stands for. With our own products, and with cuBLASLt's where gelu stays a pass of its own: the
 * same bits, forward and backward. Where cuBLASLt's products end in gelu and its derivative: values
 * within bf16's error, a row's bits the same whatever rows are beside it, and fewer launches. */
#include "autograd/autograd.h"
#include "core/ctx.h"
#include "core/device.h"
#include "expect.h"
#include "ops/cast/cast.h"
#include "ops/gelu/gelu.h"
#include "ops/matmul/gemm_cuda.h"
#include "ops/matmul/matmul.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(TP_CUDA_ON_CPU)
#include "cublasLt.h"
#include "emu.h"
#endif

enum { X, W1, B1, W2, B2, LEAVES, DY = LEAVES, Y = LEAVES, RESULTS };
static const int64_t C = 24, F = 40; /* multiples of 8: rows of vectors */
typedef struct run {
    const char *who;
    int sm;
    tp_gemm_choice path;
    tp_dtype dtype;
    int64_t first, samples; /* of the batch, of 3 rows each */
    bool one, bias;         /* one: gelu_mlp */
    int gelus;              /* passes over h, forward and backward, by ops */
} run;

typedef struct result {
    float *v[RESULTS]; /* gradients of the leaves, and y */
    int64_t n[RESULTS];
    size_t peak;
} result;

static void drop(result *r) {
    for (int i = 0; i < RESULTS; i++) free(r->v[i]);
}

static void see_call(void *arg, const tp_call *k, int at, int of, bool saves) {
    (void)at, (void)of, (void)saves;
    ((run *)arg)->gelus += !strcmp(k->op->name, "gelu") || !strcmp(k->op->name, "gelu_backward");
}
static void see_grad(void *arg, const tp_tensor *t, const tp_tensor *sum) {
    (void)arg, (void)t, (void)sum;
}

static tp_tensor *leaf(tp_ctx *c, const run *r, int which, int ndim, const int64_t *shape) {
    tp_tensor *t = tp_tensor_keep(c, TP_F32, ndim, shape);
    if (!t) exit(3);
    int64_t n = tp_numel(t), skip = which == X || which == DY ? r->first * 3 * C : 0;
    float *v = calloc((size_t)n + 1, sizeof *v);
    for (int64_t i = 0; i < n; i++)
        v[i] = (float)tp_normal((uint64_t)which, TP_RNG_TEST, 0, (uint64_t)(skip + i)) *
               (which == X || which == DY ? 1.0f : 0.3f);
    if (!c->meta) tp_upload(c, t, v);
    free(v);
    return t;
}

static void fetch(tp_ctx *c, result *out, int i, tp_tensor *t) {
    out->n[i] = t ? tp_numel(t) : 0;
    out->v[i] = calloc((size_t)out->n[i] + 1, sizeof(float));
    tp_tensor *f32 = t ? tp_cast(c, t, TP_F32) : NULL; /* planned too */
    if (f32 && !c->meta) tp_download(c, f32, out->v[i]);
}

static result differentiate(run *r, bool meta) {
    result out = {0};
    tp_ctx *c;
    char why[TP_WHY_BYTES] = "";
#if defined(TP_CUDA_ON_CPU)
    emu_set_sm(r->sm);
#endif
    tp_ctx_opts opts = {.device = TP_CUDA, .meta = meta, .threads = 1, .why = why};
    opts.memory_limit = (size_t)64 << 20;
    if (tp_ctx_new(&c, &opts)) printf("no device: %s\n", why), exit(3);
    if (!meta) c->gemm = r->path;
    tp_tensor *l[LEAVES] = {
        leaf(c, r, X, 3, (int64_t[]){r->samples, 3, C}), leaf(c, r, W1, 2, (int64_t[]){C, F}),
        r->bias ? leaf(c, r, B1, 1, &F) : NULL, leaf(c, r, W2, 2, (int64_t[]){F, C}),
        r->bias ? leaf(c, r, B2, 1, &C) : NULL};
    tp_tensor *dy = leaf(c, r, DY, 3, (int64_t[]){r->samples, 3, C}), *t[LEAVES], *y;
    tp_tape_on(c);
    tp_tape_trace(c, true);
    tp_tape_watch w = {r, see_call, see_grad};
    tp_tape_watch_by(c, &w);
    r->gelus = 0;
    for (int i = 0; i < LEAVES; i++) {
        if (l[i]) tp_require_grad(l[i]);
        t[i] = l[i] ? tp_cast(c, l[i], r->dtype) : NULL;
    }
    tp_scope s = tp_scope_open(c, "mlp");
    if (r->one)
        y = tp_gelu_mlp(c, t[X], t[W1], t[B1], t[W2], t[B2]);
    else
        y = tp_matmul(c, tp_gelu(c, tp_matmul(c, t[X], t[W1], &(tp_matmul_opts){.bias = t[B1]})),
                      t[W2], &(tp_matmul_opts){.bias = t[B2]});
    tp_scope_close(c, s, y);
    fetch(c, &out, Y, y);
    tp_tensor *cast = tp_cast(c, dy, r->dtype);
    tp_backward_from(c, 1, &y, &cast);
    for (int i = 0; i < LEAVES; i++) fetch(c, &out, i, l[i] ? l[i]->grad : NULL);
    expect(!c->status, tp_error(c), r->who);
    out.peak = tp_memory_peak(c);
    tp_ctx_free(c);
    return out;
}

/* The largest difference, relative to the largest value. */
static double apart(const result *a, const result *b, int i) {
    double worst = 0, top = 1e-30;
    for (int64_t e = 0; e < a->n[i]; e++) {
        double d = fabs((double)a->v[i][e] - b->v[i][e]);
        worst = d <= worst ? worst : isnan(d) ? INFINITY : d;
        top = fmax(top, fabs((double)b->v[i][e]));
    }
    return a->n[i] == b->n[i] ? worst / top : INFINITY;
}

static bool equal(const result *a, const result *b, int i) {
    return a->n[i] == b->n[i] && !memcmp(a->v[i], b->v[i], (size_t)a->n[i] * sizeof(float));
}

/* Rows of x's gradient and of y: those of samples from `first` on, alone, have the same bits. */
static bool rows_kept(const result *all, const result *some, int64_t first) {
    bool same = true;
    for (int i = 0; i < RESULTS; i += Y)
        same = same &&
               !memcmp(all->v[i] + first * 3 * C, some->v[i], (size_t)some->n[i] * sizeof(float));
    return same;
}

static void compare(run r, bool bits) {
    char who[80];
    snprintf(who, sizeof who, "%s, %s", r.who, tp_dtype_name(r.dtype));
    r.who = who;
    run three = r;
    r.one = true;
    result want = differentiate(&three, false), got = differentiate(&r, false);
    expect(three.gelus == 2 && r.gelus == 0, "gelu is a pass of its own", who);
    double tol = r.dtype == TP_BF16 ? 1.5e-2 : 1e-5;
    bool all = true;
    for (int i = 0; i < RESULTS; i++) {
        double e = apart(&got, &want, i);
        if (!(e <= tol)) printf("%s: result %d is off by %.2e\n", who, i, e);
        expect(e <= tol, "wrong values", who);
        all = all && equal(&got, &want, i);
        if (!want.n[i]) continue;
        got.v[i][want.n[i] / 2] += 0.1f * (1 + fabsf(want.v[i][want.n[i] / 2])) + 2;
        expect(!(apart(&got, &want, i) <= tol) && !equal(&got, &want, i), "a mutant passed", who);
        got.v[i][want.n[i] / 2] = NAN;
        expect(!(apart(&got, &want, i) <= tol), "NaN passed", who);
    }
    expect(all == bits, bits ? "other bits than three ops" : "no product ended in gelu", who);
    drop(&got);
    got = differentiate(&r, false);
    run part = r;
    part.first = 2, part.samples = 2; /* a micro-batch */
    result some = differentiate(&part, false);
    expect(rows_kept(&got, &some, 2), "a row has other bits in a micro-batch", who);
    expect(!rows_kept(&got, &some, 1), "other rows passed for the same", who);
    result plan = differentiate(&r, true);
    expect(plan.peak == got.peak, "another peak was planned", who);
    drop(&some), drop(&got), drop(&want), drop(&plan);
}

/* Whether such a case can be had: the emulator is what it is told to be, a card is what it is. */
static bool may_be(int sm) {
#if defined(TP_CUDA_ON_CPU)
    return sm == 80 || sm == 90;
#else
    char card[160];
    tp_cuda_backend.describe(card, sizeof card);
    return (strstr(card, "compute capability 9.0") != NULL) == (sm == 90);
#endif
}

int main(void) {
    for (int bias = 0; bias < 2; bias++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            run r = {"own products", 80, TP_GEMM_OWN, bf16 ? TP_BF16 : TP_F32, 0, 6, .bias = bias};
            compare(r, true);
            r.sm = 90;
            if (may_be(90)) compare(r, true);
            r.path = TP_GEMM_CUBLASLT;
            r.who = "cuBLASLt on Hopper";
            if (may_be(90)) compare(r, !bf16);
            r.sm = 80;
            r.who = "cuBLASLt on Ampere";
            if (may_be(80)) compare(r, true);
        }
#if defined(TP_CUDA_ON_CPU)
    expect(emu_lt.runs[0] == 0 && emu_lt.runs[1] == 0, "k was split", "cuBLASLt");
#endif
    printf("%d checks, %d failed\n", checks, failed);
    return failed != 0;
}
