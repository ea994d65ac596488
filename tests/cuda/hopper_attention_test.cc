/* attention and its backward on Hopper, run on such a GPU or on the CPU (tests/cuda_on_cpu): each
 * kernel against the float64 oracle. Its error may be at most twice that of the formula written
 * plainly with the same roundings (weights and results in bf16), and its bits are the same in every
 * schedule of the emulator, or every time on the GPU. */
#include "core/ctx.h"
#include "core/device.h"
#include "either.h"
#include "ops/attention/attention.h"
#include "ops/attention/attention_problem.h"
#include "ops/convert.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
extern const tp_op op_attention, op_attention_backward;
extern const tp_kernel attention_sm90_cuda, attention_backward_sm90_cuda __attribute__((weak));
}

static int failed, checks;
static void expect(bool ok, const char *test, const char *fmt, double a, double b) {
    checks++;
    if (ok) return;
    failed++;
    printf("FAILED %s: ", test);
    printf(fmt, a, b);
    printf("\n");
}

typedef struct shape {
    const char *name;
    int B, T, S, H, Hkv, D;
    attention_attr attr;
    int segments; /* documents of about this many tokens; 0: none; < 0: they come back */
    bool packed;  /* q, k and v are slices of one buffer */
} shape;

/* ---- inputs -----------------------------------------------------------------------------------
 */
static float rounded(float x) { return tp_bf16_to_f32(tp_f32_to_bf16(x)); }
static uint32_t random_state;
static float normal(void) { /* near enough: a sum of uniforms */
    float x = -6;
    for (int i = 0; i < 12; i++) {
        random_state = random_state * 1664525u + 1013904223u;
        x += (float)(random_state >> 8) / (float)(1 << 24);
    }
    return x;
}

enum { Q, K, V, O, LSE, DO, DLSE, NIN, DQ = 0, DK, DV };
typedef struct problem {
    shape s;
    int64_t n[NIN];
    float *in[NIN];           /* what both sides get: bf16 values (lse, dlse: f32) */
    int32_t *segment;         /* (B,T) or NULL */
    double *o, *lse, *d[3];   /* the oracle's results */
    float *no, *nlse, *nd[3]; /* those of the plain formula in bf16 */
} problem;

static void *room(int64_t n, size_t each) {
    void *p = calloc((size_t)(n ? n : 1), each);
    if (!p) exit(3);
    return p;
}

static bool sees(const problem *p, int b, int t, int j) {
    const attention_attr *a = &p->s.attr;
    int64_t at = t + (a->q_offset_given ? a->q_offset : p->s.S - p->s.T);
    if (a->causal && j > at) return false;
    if (a->window > 0 && j <= at - a->window) return false;
    return !p->segment || p->segment[b * p->s.T + t] == p->segment[b * p->s.S + j];
}

/* The formula of attention.c and attention_backward.c, in float, weights rounded to bf16. */
static void naive_row(problem *p, int b, int h, int t, float *w, float *dw) {
    const shape *s = &p->s;
    int D = s->D;
    int64_t qrow = ((int64_t)(b * s->T + t) * s->H + h) * D, lrow = (b * s->H + h) * s->T + t;
    float scale = (float)(1 / sqrt((double)D)), top = -HUGE_VALF, sum = 0, delta = 0;
    if (s->attr.scale != 0) scale = (float)s->attr.scale;
    for (int j = 0; j < s->S; j++) {
        int64_t krow = ((int64_t)(b * s->S + j) * s->Hkv + h / (s->H / s->Hkv)) * D;
        float x = 0;
        for (int d = 0; d < D; d++) x += p->in[Q][qrow + d] * p->in[K][krow + d];
        w[j] = sees(p, b, t, j) ? x * scale : -HUGE_VALF;
        top = fmaxf(top, w[j]);
    }
    for (int j = 0; j < s->S; j++) dw[j] = w[j] == -HUGE_VALF ? 0 : expf(w[j] - top), sum += dw[j];
    for (int j = 0; j < s->S; j++) {
        int64_t krow = ((int64_t)(b * s->S + j) * s->Hkv + h / (s->H / s->Hkv)) * D;
        for (int d = 0; d < D; d++) p->no[qrow + d] += rounded(dw[j]) * p->in[V][krow + d];
    }
    for (int d = 0; d < D; d++) {
        p->no[qrow + d] = sum > 0 ? rounded(p->no[qrow + d] / sum) : 0;
        delta += p->in[DO][qrow + d] * p->in[O][qrow + d];
    }
    p->nlse[lrow] = sum > 0 ? top + logf(sum) : -HUGE_VALF;
    delta -= p->in[DLSE][lrow];
    for (int j = 0; j < s->S; j++) {
        if (w[j] == -HUGE_VALF) continue;
        int64_t krow = ((int64_t)(b * s->S + j) * s->Hkv + h / (s->H / s->Hkv)) * D;
        float weight = expf(w[j] - p->in[LSE][lrow]), dp = 0;
        for (int d = 0; d < D; d++) dp += p->in[DO][qrow + d] * p->in[V][krow + d];
        float dx = rounded(weight * (dp - delta));
        for (int d = 0; d < D; d++) {
            p->nd[DV][krow + d] += rounded(weight) * p->in[DO][qrow + d];
            p->nd[DQ][qrow + d] += dx * p->in[K][krow + d] * scale;
            p->nd[DK][krow + d] += dx * p->in[Q][qrow + d] * scale;
        }
    }
}

static tp_tensor *make(tp_ctx *c, tp_dtype dt, int n, const int64_t *dim) {
    tp_tensor *t = tp_tensor_keep(c, dt, n, dim);
    if (!t) printf("%s\n", tp_error(c)), exit(3);
    return t;
}

static void dims_of(const shape *s, int i, int *n, int64_t dim[4]) {
    bool key = i == K || i == V;
    *n = i == LSE || i == DLSE ? 3 : 4;
    dim[0] = s->B;
    dim[1] = *n == 3 ? s->H : key ? s->S : s->T;
    dim[2] = *n == 3 ? s->T : key ? s->Hkv : s->H;
    dim[3] = *n == 3 ? 1 : s->D;
}

/* Runs forward and backward in double on the CPU. */
static void oracle(problem *p) {
    tp_ctx *c;
    tp_ctx_opts opts = {};
    opts.threads = 1;
    if (tp_ctx_new(&c, &opts)) exit(3);
    tp_tensor *in[8] = {}, *t[NIN], *out[TP_MAXOUT] = {};
    for (int i = 0; i < NIN; i++) {
        int n;
        int64_t dim[4];
        dims_of(&p->s, i, &n, dim);
        t[i] = make(c, TP_F64, n, dim);
        for (int64_t e = 0; e < p->n[i]; e++) tp_f64(t[i])[e] = p->in[i][e];
    }
    tp_tensor *segment = NULL;
    if (p->segment) {
        int64_t dim[2] = {p->s.B, p->s.T};
        segment = make(c, TP_I32, 2, dim);
        memcpy(segment->data, p->segment, (size_t)(dim[0] * dim[1]) * 4);
    }
    in[0] = t[Q], in[1] = t[K], in[2] = t[V], in[3] = segment;
    if (tp_op_run(c, &op_attention, &p->s.attr, 5, in, out)) printf("%s\n", tp_error(c)), exit(3);
    memcpy(p->o, out[0]->data, (size_t)p->n[O] * 8);
    memcpy(p->lse, out[1]->data, (size_t)p->n[LSE] * 8);
    for (int64_t e = 0; e < p->n[O]; e++) tp_f64(t[O])[e] = p->in[O][e] = rounded((float)p->o[e]);
    for (int64_t e = 0; e < p->n[LSE]; e++) tp_f64(t[LSE])[e] = p->in[LSE][e] = (float)p->lse[e];
    tp_tensor *back[8] = {t[Q], t[K], t[V], t[O], t[LSE], t[DO], segment, t[DLSE]};
    if (tp_op_run(c, &op_attention_backward, &p->s.attr, 8, back, out))
        printf("%s\n", tp_error(c)), exit(3);
    for (int i = 0; i < 3; i++) memcpy(p->d[i], out[i]->data, (size_t)p->n[i] * 8);
    tp_ctx_free(c);
}

static problem new_problem(const shape *s) {
    problem p = {};
    p.s = *s;
    random_state = 12345;
    for (int i = 0; i < NIN; i++) {
        int n;
        int64_t dim[4];
        dims_of(s, i, &n, dim);
        p.n[i] = dim[0] * dim[1] * dim[2] * dim[3];
        p.in[i] = (float *)room(p.n[i], 4);
        for (int64_t e = 0; e < p.n[i]; e++) p.in[i][e] = rounded(normal());
    }
    if (s->segments) {
        p.segment = (int32_t *)room(s->B * s->T, 4);
        for (int e = 0; e < s->B * s->T; e++) { /* packing pads with -1 */
            int t = e % s->T, b = e / s->T, length = abs(s->segments);
            p.segment[e] = t > s->T - 9 ? -1 : (t + 11 * b) / length;
            if (s->segments < 0) p.segment[e] = (e + e / 7 % 2) / length % 3;
        }
    }
    p.o = (double *)room(p.n[O], 8), p.lse = (double *)room(p.n[LSE], 8);
    p.no = (float *)room(p.n[O], 4), p.nlse = (float *)room(p.n[LSE], 4);
    for (int i = 0; i < 3; i++)
        p.d[i] = (double *)room(p.n[i], 8), p.nd[i] = (float *)room(p.n[i], 4);
    oracle(&p);
    float *w = (float *)room(s->S, 4), *dw = (float *)room(s->S, 4);
    for (int b = 0; b < s->B; b++)
        for (int h = 0; h < s->H; h++)
            for (int t = 0; t < s->T; t++) naive_row(&p, b, h, t, w, dw);
    for (int i = 0; i < 3; i++)
        for (int64_t e = 0; e < p.n[i]; e++) p.nd[i][e] = rounded(p.nd[i][e]);
    free(w), free(dw);
    return p;
}

static void free_problem(problem *p) {
    for (int i = 0; i < NIN; i++) free(p->in[i]);
    for (int i = 0; i < 3; i++) free(p->d[i]), free(p->nd[i]);
    free(p->segment), free(p->o), free(p->lse), free(p->no), free(p->nlse);
}

/* ---- the device -------------------------------------------------------------------------------
 */
static tp_ctx *open_device(void) {
    tp_ctx *c;
    tp_ctx_opts opts = {};
    static char why[TP_WHY_BYTES];
    opts.device = TP_CUDA;
    opts.threads = 1;
    opts.memory_limit = (size_t)64 << 20;
    opts.why = why;
    if (tp_ctx_new(&c, &opts)) printf("no device: %s\n", why), exit(3);
    return c;
}

/* q, k and v as slices of one (B,T,H+2Hkv,D) buffer if packed; everything else dense. */
static tp_tensor *upload(tp_ctx *c, const problem *p, int i, tp_tensor **buffer) {
    int n;
    int64_t dim[4];
    const shape *s = &p->s;
    dims_of(s, i, &n, dim);
    tp_dtype dt = n == 3 ? TP_F32 : TP_BF16;
    tp_tensor *t;
    int64_t heads = s->packed && i <= V ? s->H + 2 * s->Hkv : 0, total = p->n[i];
    uint16_t *bits = NULL;
    if (heads) {
        int64_t all[4] = {s->B, s->T, heads, s->D};
        total = s->B * s->T * heads * s->D;
        if (!*buffer) *buffer = make(c, TP_BF16, 4, all);
        t = tp_tensor_view(c, *buffer);
        int64_t at = i == Q ? 0 : i == K ? s->H : s->H + s->Hkv;
        t->shape[2] = dim[2];
        tp_view_shift(t, at * s->D);
        bits = (uint16_t *)room(total, 2);
        tp_download_bytes(c, bits, (*buffer)->data, (size_t)total * 2);
        for (int64_t e = 0; e < p->n[i]; e++)
            bits[(e / s->D / dim[2] * heads + at + e / s->D % dim[2]) * s->D + e % s->D] =
                tp_f32_to_bf16(p->in[i][e]);
        tp_upload_bytes(c, (*buffer)->data, bits, (size_t)total * 2);
    } else {
        t = make(c, dt, n, dim);
        bits = (uint16_t *)room(total, 2);
        for (int64_t e = 0; e < total; e++) bits[e] = tp_f32_to_bf16(p->in[i][e]);
        tp_upload_bytes(c, t->data, dt == TP_F32 ? (void *)p->in[i] : (void *)bits,
                        (size_t)total * (dt == TP_F32 ? 4 : 2));
    }
    free(bits);
    return t;
}

/* t's values, wherever they lie in its buffer, as floats. */
static tp_status download(tp_ctx *c, const tp_tensor *t, float *to) {
    size_t size = tp_dtype_size(t->dtype), bytes = t->storage->bytes;
    char *all = (char *)room((int64_t)bytes, 1);
    tp_status st = tp_download_bytes(c, all, t->storage->base, bytes);
    for (int64_t e = 0, n = tp_numel(t); e < n; e++) {
        const char *from = all + (t->offset + tp_offset(t, e)) * (int64_t)size;
        uint16_t bits;
        if (t->dtype == TP_BF16)
            memcpy(&bits, from, 2), to[e] = tp_bf16_to_f32(bits);
        else
            memcpy(&to[e], from, 4);
    }
    free(all);
    return st;
}

static char *declined; /* not NULL: failures are expected, and their sentence goes here */

/* Runs forward (backward = false) or backward and returns the outputs as floats. */
static bool run(const problem *p, bool backward, float *result[3], const char *what) {
    tp_ctx *c = open_device();
    const tp_kernel *forward_list[] = {&attention_sm90_cuda, NULL};
    const tp_kernel *backward_list[] = {&attention_backward_sm90_cuda, NULL};
    tp_op op = backward ? op_attention_backward : op_attention;
    op.kernel[TP_CUDA] = backward ? backward_list : forward_list;
    tp_tensor *in[8] = {}, *out[TP_MAXOUT] = {}, *buffer = NULL, *segment = NULL;
    if (p->segment) {
        int64_t dim[2] = {p->s.B, p->s.T};
        segment = make(c, TP_I32, 2, dim);
        tp_upload_bytes(c, segment->data, p->segment, (size_t)(dim[0] * dim[1]) * 4);
    }
    for (int i = 0; i <= (backward ? DO : V); i++) in[i] = upload(c, p, i, &buffer);
    in[backward ? 6 : 3] = segment;
    if (backward) in[7] = upload(c, p, DLSE, &buffer);
    tp_status st = tp_op_run(c, &op, &p->s.attr, backward ? 8 : 5, in, out);
    if (!st) st = tp_sync(c);
    for (int i = 0; i < 3 && !st; i++) {
        if (!out[i]) continue;
        st = download(c, out[i], result[i] = (float *)room(tp_numel(out[i]), 4));
        bool whole = p->s.packed && p->s.S == p->s.T; /* then the gradients are packed too */
        expect(!backward || tp_contiguous(out[i]) != whole || p->s.T == 1, p->s.name,
               "gradient %g lies as it should not (%g)", i, whole);
    }
    if (st && declined)
        snprintf(declined, 600, "%s", tp_error(c));
    else if (st)
        printf("%s (%s): %s\n", p->s.name, what, tp_error(c));
    tp_ctx_free(c);
    return !st;
}

/* ---- comparing --------------------------------------------------------------------------------
 */
static double error(const float *x, const double *want, int64_t n) {
    double worst = 0;
    for (int64_t i = 0; i < n; i++) {
        if (want[i] == -HUGE_VAL && x[i] == -HUGE_VALF) continue;
        double e = fabs(x[i] - want[i]);
        if (!(e <= worst)) worst = e; /* NaN stays */
        if (e != e) return e;
    }
    return worst;
}

static void check(const problem *p, const char *what, float *got, const float *naive,
                  const double *want, int64_t n) {
    char name[200];
    snprintf(name, sizeof name, "%s: %s", p->s.name, what);
    double e = error(got, want, n), allowed = 2 * error(naive, want, n) + 1e-6;
    expect(e <= allowed, name, "is off by %.3e, allowed are %.3e", e, allowed);
    if (getenv("HOPPER_TEST_VERBOSE")) printf("  %-44s %.2e of %.2e\n", name, e, allowed);
    int64_t at = n / 2; /* the comparison notices one wrong value */
    while (want[at] == -HUGE_VAL) at = (at + 1) % n;
    float was = got[at];
    got[at] = was + 0.1f + 2 * (float)allowed;
    expect(!(error(got, want, n) <= allowed), name, "a wrong value passed (%g, %g)", e, allowed);
    got[at] = NAN;
    expect(!(error(got, want, n) <= allowed), name, "NaN passed (%g, %g)", e, allowed);
    got[at] = was;
}

static void test(const shape *s, bool backward, int schedules) {
    static const char *const names[2][3] = {{"o", "lse", ""}, {"dq", "dk", "dv"}};
    static const char *const orders[] = {"reverse", "random:3", "random:4"};
    problem p = new_problem(s);
    float *first[3] = {}, *again[3] = {};
    int64_t n[3] = {backward ? p.n[Q] : p.n[O], backward ? p.n[K] : p.n[LSE],
                    backward ? p.n[V] : 0};
    either_schedule("forward", "late");
    if (!run(&p, backward, first, "in order")) {
        expect(false, s->name, "does not run (%g, %g)", 0, 0);
        free_problem(&p);
        return;
    }
    for (int i = 0; i < (backward ? 3 : 2); i++)
        check(&p, names[backward][i], first[i],
              backward ? p.nd[i]
              : i      ? p.nlse
                       : p.no,
              backward ? p.d[i]
              : i      ? p.lse
                       : p.o,
              n[i]);
    for (int o = 0; o < schedules; o++) {
        either_schedule(orders[o], o ? orders[o] : "early");
        bool ok = run(&p, backward, again, orders[o]);
        for (int i = 0; i < 3; i++) {
            expect(ok &&
                       !memcmp(first[i] ? first[i] : (float *)"", again[i] ? again[i] : (float *)"",
                               first[i] ? (size_t)n[i] * 4 : 0),
                   s->name, "other bits in schedule %g (output %g)", o, i);
            free(again[i]), again[i] = NULL;
        }
    }
    either_schedule(NULL, NULL);
    for (int i = 0; i < 3; i++) free(first[i]);
    free_problem(&p);
}

/* Queries t0 .. t0+n-1 of p alone, against its first `keys` keys. */
static problem part_of(const problem *p, int t0, int n, int keys) {
    problem part = *p;
    const shape *s = &p->s;
    part.s.T = n, part.s.S = keys;
    part.s.attr.q_offset_given = true;
    part.s.attr.q_offset = t0;
    part.n[Q] = (int64_t)n * s->H * s->D;
    part.n[K] = part.n[V] = (int64_t)keys * s->Hkv * s->D;
    part.in[Q] = p->in[Q] + (int64_t)t0 * s->H * s->D;
    return part;
}

/* A query's bits do not depend on which others are computed with it, nor on keys behind it. */
static void test_rows(int D) {
    shape s = {"rows", 1, 300, 300, 2, 1, D, {true, false, 0, 200}, 0, false};
    static const int parts[][3] = {{0, 300, 300}, {230, 70, 300}, {100, 97, 200}, {299, 1, 300}};
    problem p = new_problem(&s);
    float *all[3] = {};
    if (!run(&p, false, all, "all rows")) exit(3);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        int t0 = parts[i][0], n = parts[i][1];
        problem part = part_of(&p, t0, n, parts[i][2]);
        float *some[3] = {};
        bool same = run(&part, false, some, "some rows");
        same =
            same && !memcmp(some[0], all[0] + (int64_t)t0 * 2 * D, (size_t)n * 2 * (size_t)D * 4);
        for (int h = 0; h < 2 && same; h++)
            same = !memcmp(some[1] + h * n, all[1] + h * 300 + t0, (size_t)n * 4);
        expect(same, "rows", "other bits in a part from %g (D %g)", t0, D);
        if (same) { /* the comparison notices one bit */
            some[0][n - 1] += 1;
            expect(memcmp(some[0], all[0] + (int64_t)t0 * 2 * D, (size_t)n * 2 * (size_t)D * 4),
                   "rows", "a wrong bit passed (%g, %g)", t0, D);
        }
        free(some[0]), free(some[1]);
    }
    free(all[0]), free(all[1]);
    free_problem(&p);
}

/* What the kernels do not take they decline in words. */
static void test_decline(const char *why, int sm, shape s) {
    problem p = new_problem(&s);
    for (int backward = 0; backward < 2; backward++) {
        float *result[3] = {};
        char said[600];
        either_pretend_sm(sm);
        declined = said;
        said[0] = 0;
        bool ran = run(&p, backward, result, "declined");
        declined = NULL;
        either_pretend_sm(90);
        expect(!ran && strstr(said, why), why, "is not the reason (ran: %g, backward: %g)", ran,
               backward);
        for (int i = 0; i < 3; i++) free(result[i]);
    }
    free_problem(&p);
}

#define CAUSAL                                                                                     \
    { true }
static const shape shapes[] = {
    {"D 64, causal", 1, 300, 300, 2, 2, 64, CAUSAL, 0, true},
    {"D 64, everything visible", 2, 200, 330, 1, 1, 64, {}, 0, false},
    {"D 64, window", 1, 400, 400, 1, 1, 64, {true, false, 0, 70}, 0, false},
    {"D 64, window, not causal", 1, 200, 200, 1, 1, 64, {false, false, 0, 70}, 0, false},
    {"D 64, segments", 2, 260, 260, 1, 1, 64, CAUSAL, 60, true},
    {"D 64, segments that come back", 2, 260, 260, 1, 1, 64, CAUSAL, -60, false},
    {"D 64, short segments, not causal", 1, 700, 700, 1, 1, 64, {}, 50, false},
    {"D 128, segments, grouped", 1, 600, 600, 4, 2, 128, CAUSAL, 150, true},
    {"D 64, grouped heads", 1, 260, 260, 6, 2, 64, CAUSAL, 0, true},
    {"D 64, more keys than queries", 1, 70, 300, 1, 1, 64, CAUSAL, 0, false},
    {"D 64, queries that see nothing", 1, 300, 100, 1, 1, 64, CAUSAL, 0, false},
    {"D 64, offset", 1, 140, 300, 1, 1, 64, {true, true, 77}, 0, false},
    {"D 48 of 64, scale", 1, 130, 130, 1, 1, 48, {true, false, 0, 0, 0.3}, 0, false},
    {"D 96, causal", 1, 200, 200, 2, 1, 96, CAUSAL, 0, true},
    {"D 80 of 96, segments", 1, 200, 200, 1, 1, 80, CAUSAL, 50, false},
    {"D 128, causal", 1, 300, 300, 2, 2, 128, CAUSAL, 0, true},
    {"D 128, everything visible", 1, 200, 280, 1, 1, 128, {}, 0, false},
    {"D 128, window and segments", 1, 300, 300, 1, 1, 128, {true, false, 0, 100}, 90, true},
    {"D 256, causal", 1, 220, 220, 2, 1, 256, CAUSAL, 0, true},
    {"D 200 of 256", 1, 100, 170, 1, 1, 200, {}, 0, false},
    {"D 256, queries that see nothing", 1, 700, 100, 5, 5, 256, CAUSAL, 0, false},
};

int main(int argc, char **argv) {
    const char *only = argc > 1 ? argv[1] : "";
    if (!either_is_hopper()) return puts("skipped: needs a Hopper GPU"), 77;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int backward = 0; backward < 2; backward++) {
            if (!strstr(shapes[i].name, only)) continue;
            if (argc > 2 && (argv[2][0] == 'b') != backward) continue;
            if (backward && shapes[i].D > 128) continue;
            test(&shapes[i], backward, 3);
        }
    if (!*only) {
        test_rows(64), test_rows(96), test_rows(128), test_rows(256);
#if defined(TP_CUDA_ON_CPU)
        test_decline("needs Hopper", 80, {"declined", 1, 8, 8, 1, 1, 64, CAUSAL, 0, false});
#endif
        test_decline("softcap", 90,
                     {"declined", 1, 8, 8, 1, 1, 64, {true, false, 0, 0, 0, 3}, 0, false});
        test_decline("scale is not positive", 90,
                     {"declined", 1, 8, 8, 1, 1, 64, {true, false, 0, 0, -1}, 0, false});
        test_decline("not a multiple of 8", 90, {"declined", 1, 8, 8, 1, 1, 20, CAUSAL, 0, false});
        test_decline("head size over", 90, {"declined", 1, 8, 8, 1, 1, 264, CAUSAL, 0, false});
    }
    printf("hopper_attention: %d checks, %d failed\n", checks, failed);
    return failed != 0;
}
