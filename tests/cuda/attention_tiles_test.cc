/* The CUDA kernels of attention over several tiles, on the GPU or on the CPU (tests/cuda_on_cpu):
 * - against the float64 oracle: the error of the tensor-core kernels, which round weights to bf16,
 * is at most twice that of the plain kernel, which computes in f32 and rounds only its results;
 * - the same bits in every order in which threads and blocks may run and copies may arrive;
 * - the same bits for a query whether it comes alone (decoding) or with all others;
 * - the checks notice: kernels with a missing barrier or a wrong fragment index must fail them. */
#include "core/ctx.h"
#include "ops/attention/attention.h"
#include "ops/attention/attention_problem.h"
#include "ops/convert.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(TP_CUDA_ON_CPU)
#include "emu.h"
/* The kernels again, each with one error. */
#include "ops/attention/attention_math.h"
#include "ops/attention/attention_tile_sm80.h"
#include "ops/paged_attention/paged_attention_cuda.h"
#undef ATTENTION_MUTANT_BARRIER
#undef ATTENTION_MUTANT_FRAGMENT
#define ATTENTION_MUTANT_BARRIER 1
#define ATTENTION_MUTANT_FRAGMENT 0
#define attention_sm80 attention_no_barrier
#define attention_backward_sm80 attention_backward_no_barrier
#define paged_attention_sm80 paged_attention_no_barrier
namespace no_barrier {
#include "ops/attention/attention_sm80.cu"
#include "ops/attention/attention_backward_sm80.cu"
} // namespace no_barrier
#undef ATTENTION_MUTANT_BARRIER
#undef ATTENTION_MUTANT_FRAGMENT
#undef attention_sm80
#undef attention_backward_sm80
#undef paged_attention_sm80
#define ATTENTION_MUTANT_BARRIER 0
#define ATTENTION_MUTANT_FRAGMENT 1
#define attention_sm80 attention_wrong_fragment
#define attention_backward_sm80 attention_backward_wrong_fragment
#define paged_attention_sm80 paged_attention_wrong_fragment
namespace wrong_fragment {
#include "ops/attention/attention_sm80.cu"
#include "ops/attention/attention_backward_sm80.cu"
} // namespace wrong_fragment
#undef attention_sm80
#undef attention_backward_sm80
#undef paged_attention_sm80
#endif

extern "C" {
extern const tp_op op_attention, op_attention_backward;
extern const tp_kernel attention_sm80, attention_naive_cuda;
extern const tp_kernel attention_backward_sm80, attention_backward_naive_cuda;
}

static int checks, failed;
static void expect(bool ok, const char *problem, const char *fmt, double a, double b) {
    checks++;
    if (ok) return;
    failed++;
    printf("FAILED %s: ", problem);
    printf(fmt, a, b);
    printf("\n");
}

/* ---- problems ------------------------------------------------------------------------------- */
typedef struct problem {
    const char *name;
    int B, T, S, H, Hkv, D;
    attention_attr attr; /* causal, q_offset_given, q_offset, window, scale, softcap */
    int document;        /* documents of about this many tokens; 0: none */
    bool packed, dlse;   /* q, k, v are slices of one buffer; lse has a gradient */
    bool only_dlse;      /* o has none */
    int starts;          /* > 0: each sequence begins this much further than the one before */
} problem;

static const problem problems[] = {
    {"D 64, causal", 1, 300, 300, 2, 2, 64, {.causal = true}, 0, true, false},
    {"D 64, everything visible", 2, 130, 200, 1, 1, 64, {}, 0, false, true},
    {"D 64, window", 1, 400, 400, 1, 1, 64, {.causal = true, .window = 90}, 0, false, false},
    {"D 96, causal, grouped", 1, 210, 210, 4, 2, 96, {.causal = true}, 0, true, true},
    {"D 128, causal", 1, 257, 257, 1, 1, 128, {.causal = true}, 0, false, false},
    {"D 128, documents", 2, 200, 200, 2, 1, 128, {.causal = true}, 60, true, false},
    {"D 128, softcap", 1, 150, 200, 1, 1, 128, {.causal = true, .softcap = 3}, 0, false, true},
    {"D 128, documents, softcap, not causal",
     1,
     200,
     200,
     1,
     1,
     128,
     {.scale = 0.2, .softcap = 2},
     70,
     false,
     true},
    {"D 256, causal", 1, 200, 200, 1, 1, 256, {.causal = true}, 0, false, false},
    {"D 256, softcap, grouped",
     1,
     80,
     80,
     2,
     1,
     256,
     {.causal = true, .softcap = 4},
     0,
     true,
     true},
    {"D 40, offset",
     1,
     70,
     300,
     3,
     1,
     40,
     {.causal = true, .q_offset_given = true, .q_offset = 150},
     0,
     false,
     false},
    {"D 72, keys beyond the queries",
     1,
     140,
     330,
     1,
     1,
     72,
     {.causal = true, .q_offset_given = true, .window = 40},
     0,
     false,
     false},
    {"D 64, fewer keys than queries", 1, 300, 130, 2, 1, 64, {.causal = true}, 0, false, true},
    {"D 128, only a gradient of lse", 1, 90, 150, 1, 1, 128, {.causal = true}, 0, true, true, true},
};

enum { Q, K, V, O, LSE, DO, SEGMENTS, DLSE, STARTS, NIN };
static const int forward_in[] = {Q, K, V, SEGMENTS, STARTS};
static const int backward_in[] = {Q, K, V, O, LSE, DO, SEGMENTS, DLSE};
enum { NOUT = 5 }; /* o, lse, dq, dk, dv */
static const char *const out_name[NOUT] = {"o", "lse", "dq", "dk", "dv"};

typedef struct values {
    int ndim;
    int64_t shape[4], n;
    double *x;
} values;

typedef struct results {
    values out[NOUT];
    char error[800]; /* "": none */
} results;

static void *room(size_t n, size_t each) {
    void *p = calloc(n ? n : 1, each);
    if (!p) exit(3);
    return p;
}

static values values_new(int ndim, int64_t a, int64_t b, int64_t c, int64_t d) {
    values v = {ndim, {a, b, c, d}, a * b * c * (ndim == 4 ? d : 1), NULL};
    v.x = (double *)room((size_t)v.n, sizeof *v.x);
    return v;
}

static void results_free(results *r) {
    for (int i = 0; i < NOUT; i++) free(r->out[i].x);
    memset(r, 0, sizeof *r);
}

static double to_bf16(double x) { return tp_bf16_to_f32(tp_f32_to_bf16((float)x)); }

/* Inputs that bf16 can hold; o and lse come from the oracle. */
static void inputs(const problem *p, values in[NIN]) {
    const int64_t B = p->B, T = p->T, S = p->S, H = p->H, Hkv = p->Hkv, D = p->D;
    in[Q] = values_new(4, B, T, H, D);
    in[K] = values_new(4, B, S, Hkv, D);
    in[V] = values_new(4, B, S, Hkv, D);
    in[O] = values_new(4, B, T, H, D);
    in[LSE] = values_new(3, B, H, T, 1);
    in[DO] = values_new(4, B, T, H, D);
    in[DLSE] = values_new(3, B, H, T, 1);
    in[SEGMENTS] = (values){2, {B, T, 1, 1}, B * T, (double *)room((size_t)(B * T), 8)};
    in[STARTS] = (values){1, {B, 1, 1, 1}, B, (double *)room((size_t)B, 8)};
    for (int b = 0; b < B; b++) in[STARTS].x[b] = b * p->starts;
    for (int i = 0; i < SEGMENTS; i++)
        for (int64_t e = 0; e < in[i].n; e++)
            in[i].x[e] = to_bf16(tp_normal(7, TP_RNG_TEST, (uint64_t)i, (uint64_t)e));
    for (int64_t e = 0; e < in[DLSE].n; e++)
        in[DLSE].x[e] = to_bf16(tp_normal(7, TP_RNG_TEST, DLSE, (uint64_t)e));
    for (int64_t e = 0; e < B * T; e++) /* documents come back, and differ from row to row */
        in[SEGMENTS].x[e] = p->document ? (int)((e + e / 37 % 5) / p->document) % 3 : 0;
}

/* ---- running -------------------------------------------------------------------------------- */
/* A tensor of ctx c with these values; layout: strides and offset of a slice, or dense. */
static tp_tensor *put(tp_ctx *c, tp_dtype dt, const values *v, int slice, int64_t row) {
    const size_t each = tp_dtype_size(dt);
    int64_t n = slice < 0 ? v->n : v->shape[0] * v->shape[1] * row;
    tp_tensor *t = tp_tensor_keep(c, dt, 1, &n);
    if (!t) return NULL;
    char *host = (char *)room((size_t)n, each);
    tp_tensor h = *t;
    t->ndim = v->ndim;
    for (int i = 0; i < v->ndim; i++) t->shape[i] = v->shape[i];
    tp_strides_set(t);
    if (slice >= 0) { /* (B,T,row) with this tensor's heads from `slice` on */
        t->stride[0] = v->shape[1] * row, t->stride[1] = row;
        t->stride[2] = v->shape[3], t->stride[3] = 1;
    }
    h = *t;
    h.data = host + (size_t)(slice < 0 ? 0 : slice) * each;
    tp_write_f64(&h, v->x);
    tp_status st = tp_upload_bytes(c, t->data, host, (size_t)n * each);
    t->data = (char *)t->data + (size_t)(slice < 0 ? 0 : slice) * each;
    free(host);
    return st ? NULL : t;
}

static void get(tp_ctx *c, const tp_tensor *t, values *v) {
    v->ndim = t->ndim;
    v->n = tp_numel(t);
    for (int i = 0; i < t->ndim; i++) v->shape[i] = t->shape[i];
    v->x = (double *)room((size_t)v->n, sizeof *v->x);
    char *host = (char *)room((size_t)v->n, tp_dtype_size(t->dtype));
    tp_tensor h = *t;
    h.data = host;
    if (!tp_download_bytes(c, host, t->data, (size_t)v->n * tp_dtype_size(t->dtype)))
        tp_read_f64(&h, v->x);
    free(host);
}

/* One op by one kernel (NULL: the oracle) into r->out[first...]. */
static void run_op(results *r, const problem *p, const values in[NIN], const tp_op *op,
                   const tp_kernel *kernel, int nin, int first, int nout) {
    tp_ctx *c = NULL;
    char why[TP_WHY_BYTES] = "";
    tp_ctx_opts opts = {};
    opts.device = kernel ? TP_CUDA : TP_CPU;
    opts.threads = 1;
    opts.memory_limit = (size_t)64 << 20;
    opts.why = why;
    if (tp_ctx_new(&c, &opts)) {
        snprintf(r->error, sizeof r->error, "%s", why);
        return;
    }
    tp_tensor *t[8] = {}, *out[TP_MAXOUT] = {};
    const int64_t row = (p->H + 2 * p->Hkv) * p->D;
    const int slice[3] = {0, p->H * p->D, (p->H + p->Hkv) * p->D};
    tp_status st = TP_OK;
    for (int i = 0; i < nin && !st; i++) {
        const int from = nin == 8 ? backward_in[i] : forward_in[i];
        const bool integers = from == SEGMENTS || from == STARTS;
        if ((from == SEGMENTS && !p->document) || (from == DLSE && !p->dlse) ||
            (from == DO && p->only_dlse) || (from == STARTS && !p->starts))
            continue;
        const bool statistic = from == LSE || from == DLSE;
        const tp_dtype dt = integers ? TP_I32 : !kernel ? TP_F64 : statistic ? TP_F32 : TP_BF16;
        const bool cut = p->packed && kernel && from <= V;
        if (!(t[i] = put(c, dt, &in[from], cut ? slice[from] : -1, row))) st = TP_ENOMEM;
    }
    c->only_kernel = kernel;
    if (!st) st = tp_op_run(c, op, &p->attr, nin, t, out);
    if (!st) st = tp_sync(c);
    for (int i = 0; i < nout && !st; i++) get(c, out[i], &r->out[first + i]);
    if (st) snprintf(r->error, sizeof r->error, "%s", tp_error(c));
    tp_ctx_free(c);
}

/* Forward and backward. */
static results run(const problem *p, const values in[NIN], const tp_kernel *forward,
                   const tp_kernel *backward) {
    results r = {};
    run_op(&r, p, in, &op_attention, forward, 5, 0, 2);
    if (!r.error[0]) run_op(&r, p, in, &op_attention_backward, backward, 8, 2, 3);
    return r;
}

/* The oracle; gives the inputs o and lse on the way. */
static results oracle(const problem *p, values in[NIN]) {
    results r = {};
    run_op(&r, p, in, &op_attention, NULL, 5, 0, 2);
    for (int64_t e = 0; e < in[O].n; e++) in[O].x[e] = to_bf16(r.out[0].x[e]);
    for (int64_t e = 0; e < in[LSE].n; e++) in[LSE].x[e] = (float)r.out[1].x[e];
    run_op(&r, p, in, &op_attention_backward, NULL, 8, 2, 3);
    return r;
}

/* ---- comparing ------------------------------------------------------------------------------ */
static bool same_value(double a, double b) { return a == b || (isnan(a) && isnan(b)); }

static int64_t differing(const results *a, const results *b) {
    int64_t n = 0;
    for (int i = 0; i < NOUT; i++)
        for (int64_t e = 0; e < a->out[i].n; e++) n += !same_value(a->out[i].x[e], b->out[i].x[e]);
    return n;
}

/* max |got - want| / max |want|; -inf only agrees with itself. NaN if there is one. */
static double error_of(const values *got, const values *want) {
    double worst = 0, top = 0;
    for (int64_t e = 0; e < want->n; e++) {
        if (got->x[e] == want->x[e]) continue;
        const double d = fabs(got->x[e] - want->x[e]);
        if (!(d <= worst)) worst = d;
        if (isnan(worst)) return worst;
    }
    for (int64_t e = 0; e < want->n; e++)
        if (isfinite(want->x[e])) top = fmax(top, fabs(want->x[e]));
    return worst / (top + 1e-30);
}

/* How many results are too far off. The addend is what f32 sums and 2^x may be off by. */
[[maybe_unused]] static int wrong(const results *got, const results *naive, const results *want) {
    int n = got->error[0] != 0;
    for (int i = 0; i < NOUT && !n; i++)
        n += !(error_of(&got->out[i], &want->out[i]) <=
               2 * error_of(&naive->out[i], &want->out[i]) + 2e-6);
    return n;
}

static void compare(const problem *p, const results *got, const results *naive, const results *want,
                    bool print) {
    if (got->error[0]) printf("%s\n", got->error);
    expect(!got->error[0], p->name, "did not run", 0, 0);
    for (int i = 0; i < NOUT && !got->error[0]; i++) {
        const double e = error_of(&got->out[i], &want->out[i]);
        const double n = error_of(&naive->out[i], &want->out[i]);
        if (print) printf("  %-3s error %.2e, plain kernel's %.2e\n", out_name[i], e, n);
        expect(e <= 2 * n + 2e-6, p->name, "error %.3e, the plain kernel's is %.3e", e, n);
    }
}

/* ---- orders --------------------------------------------------------------------------------- */
static void order(const char *threads, const char *blocks, const char *async) {
#if defined(TP_CUDA_ON_CPU)
    emu_set_order(threads);
    emu_set_block_order(blocks);
    emu_set_async(async);
#else
    (void)threads, (void)blocks, (void)async;
#endif
}

static void same_in_every_order(const problem *p, const values in[NIN], const results *first) {
    static const char *const orders[][3] = {{"reverse", "reverse", "early"},
                                            {"random:3", "random:5", "random:7"}};
    for (int i = 0; i < 2; i++) {
        order(orders[i][0], orders[i][1], orders[i][2]);
        results r = run(p, in, &attention_sm80, &attention_backward_sm80);
        order(NULL, "forward", NULL);
        if (r.error[0]) printf("%s\n", r.error);
        expect(!r.error[0] && !differing(first, &r), p->name, "%g values differ in another order",
               (double)differing(first, &r), 0);
        results_free(&r);
    }
}

/* ---- a query on its own --------------------------------------------------------------------- */
/* One query of each of two sequences, at different places, against all keys: the same bits as in
 * the middle of the others. */
static void query_alone(void) {
    static const problem whole = {.name = "a query alone",
                                  .B = 2,
                                  .T = 300,
                                  .S = 300,
                                  .H = 2,
                                  .Hkv = 1,
                                  .D = 64,
                                  .attr = {.causal = true}};
    values in[NIN];
    inputs(&whole, in);
    results all = {};
    run_op(&all, &whole, in, &op_attention, &attention_sm80, 5, 0, 2);
    static const int at[] = {0, 63, 64, 190, 236};
    for (int i = 0; i < 5; i++) {
        problem one = whole;
        one.T = 1;
        one.starts = 63;
        values part[NIN] = {};
        memcpy(part, in, sizeof part);
        part[Q] = values_new(4, one.B, 1, one.H, one.D);
        const int64_t n = (int64_t)one.H * one.D;
        for (int b = 0; b < one.B; b++) {
            const int t = at[i] + b * one.starts;
            in[STARTS].x[b] = t;
            memcpy(part[Q].x + b * n, in[Q].x + (b * whole.T + t) * n, (size_t)n * 8);
        }
        results r = {};
        run_op(&r, &one, part, &op_attention, &attention_sm80, 5, 0, 2);
        int64_t differ = 0, neighbours = 0;
        for (int b = 0; b < one.B && !r.error[0]; b++)
            for (int64_t e = 0; e < n; e++) {
                const double *row = all.out[0].x + (b * whole.T + at[i] + b * one.starts) * n;
                differ += r.out[0].x[b * n + e] != row[e];
                neighbours += r.out[0].x[b * n + e] != row[n + e - (b ? 2 * n : 0)];
            }
        expect(!r.error[0] && !differ, whole.name, "%g values of query %g differ", (double)differ,
               at[i]);
        expect(neighbours > 0, whole.name, "another query's row was accepted", 0, 0);
        free(part[Q].x);
        results_free(&r);
    }
    results_free(&all);
    for (int i = 0; i < NIN; i++) free(in[i].x);
}

int main(int argc, char **argv) {
    const bool print = argc > 1 && !strcmp(argv[1], "-v");
    order(NULL, "forward", NULL);
    for (size_t i = 0; i < sizeof problems / sizeof *problems; i++) {
        const problem *p = &problems[i];
        values in[NIN];
        if (print) printf("%s\n", p->name);
        inputs(p, in);
        results want = oracle(p, in);
        results naive = run(p, in, &attention_naive_cuda, &attention_backward_naive_cuda);
        results got = run(p, in, &attention_sm80, &attention_backward_sm80);
        compare(p, &naive, &naive, &want, false);
        compare(p, &got, &naive, &want, print);
        same_in_every_order(p, in, &got);
#if defined(TP_CUDA_ON_CPU)
        if (i % 4 == 0) {
            results m = run(p, in, &no_barrier::attention_no_barrier, &attention_backward_sm80);
            expect(wrong(&m, &naive, &want), p->name, "a missing barrier went unnoticed", 0, 0);
            results_free(&m);
            m = run(p, in, &attention_sm80, &no_barrier::attention_backward_no_barrier);
            expect(wrong(&m, &naive, &want), p->name, "backward: missing barrier unnoticed", 0, 0);
            results_free(&m);
            m = run(p, in, &wrong_fragment::attention_wrong_fragment, &attention_backward_sm80);
            expect(wrong(&m, &naive, &want), p->name, "a wrong fragment went unnoticed", 0, 0);
            results_free(&m);
            m = run(p, in, &attention_sm80, &wrong_fragment::attention_backward_wrong_fragment);
            expect(wrong(&m, &naive, &want), p->name, "backward: wrong fragment unnoticed", 0, 0);
            results_free(&m);
        }
#endif
        results_free(&want);
        results_free(&naive);
        results_free(&got);
        for (int j = 0; j < NIN; j++) free(in[j].x);
    }
    query_alone();
    printf("attention_cuda: %d checks, %d failed\n", checks, failed);
    return failed != 0;
}
