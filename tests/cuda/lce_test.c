/* linear_cross_entropy on CUDA beyond its samples: against the CPU's kernels in f32, against double
 * and a naive kernel in bf16; equal bits for every cut of a batch; targets; memory. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "autograd/autograd.h"
#include "core/ctx.h"
#include "ops/convert.h"
#include "ops/linear_cross_entropy/linear_cross_entropy.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "ops/matmul/gemm_cuda.h"

typedef struct problem {
    int64_t b, t, c, v, from; /* from: the global number of the first sample */
    tp_device device;
    tp_dtype dtype;
    bool train, fast, as_decoded; /* as_decoded: not Hopper's own kernels */
    tp_lce_opts o;
    int32_t bad; /* != 0: the target of token 6 */
    int nan_at;  /* > 0: this element of w is NaN */
    bool no_dx, no_dw;
    tp_gemm_choice path;
} problem;

#if defined(TP_CUDA_ON_CPU)
#include "emu.h"
static int sm = 80; /* what the CPU pretends to be; 90: f32 is as before */
#else
static int sm = 0; /* whatever there is */
#endif

enum { LOSS, LOGPROB, ENTROPY, DX, DW, NVALUES };
typedef struct result { /* on the host, in f32 */
    float *v[NVALUES];
    int64_t n[NVALUES];
    tp_status st;
    char error[256];
    int64_t products;
} result;

static float normal(uint64_t which, uint64_t i, tp_dtype t) {
    float x = (float)tp_normal(7, TP_RNG_TEST, which, i);
    return t == TP_BF16 ? tp_bf16_to_f32(tp_f32_to_bf16(x)) : x;
}
static float x_at(const problem *p, int64_t i) {
    return normal(1, (uint64_t)(p->from * p->t * p->c + i), p->dtype);
}
static float w_at(const problem *p, int64_t v, int64_t j) {
    return normal(2, (uint64_t)(v * p->c + j), p->dtype);
}
static int32_t target_at(const problem *p, int64_t i) {
    uint64_t at = (uint64_t)(p->from * p->t + i);
    if (p->bad && i == 6) return p->bad;
    return at % 5 == 3 ? -100 : (int32_t)(tp_uniform(7, TP_RNG_TEST, 3, at) * (double)p->v);
}
static float coef_at(const problem *p, int64_t i) {
    return 0.5f + (float)tp_uniform(7, TP_RNG_TEST, 4, (uint64_t)(p->from * p->t + i));
}

static void put(void *to, tp_dtype t, int64_t i, float x) {
    if (t == TP_BF16)
        ((uint16_t *)to)[i] = tp_f32_to_bf16(x);
    else
        ((float *)to)[i] = x;
}

static tp_tensor *upload(tp_ctx *c, tp_dtype t, int ndim, const int64_t *shape, void *host) {
    tp_tensor *y = tp_tensor_keep(c, t, ndim, shape);
    assert_non_null(y);
    assert_int_equal(tp_upload(c, y, host), TP_OK);
    free(host);
    return y;
}

static void fetch(result *r, tp_ctx *c, int which, tp_tensor *t) {
    if (!t || r->st) return;
    int64_t n = tp_numel(t);
    void *bytes = malloc((size_t)n * 4 + 4);
    r->v[which] = malloc((size_t)n * 4 + 4);
    r->n[which] = n;
    assert_true(bytes && r->v[which]);
    r->st = tp_download(c, t, bytes);
    for (int64_t i = 0; i < n; i++)
        r->v[which][i] =
            t->dtype == TP_BF16 ? tp_bf16_to_f32(((uint16_t *)bytes)[i]) : ((float *)bytes)[i];
    free(bytes);
}

static void result_free(result *r) {
    for (int i = 0; i < NVALUES; i++) free(r->v[i]);
}

/* The head of one training step; without train, every token's loss with cotangent coef. */
static void head(result *r, tp_ctx *c, const problem *p, tp_tensor *x, tp_tensor *w, tp_tensor *y,
                 tp_tensor *coef) {
    tp_tensor *loss, *logprob, *entropy;
    if (p->train) {
        tp_lce_sum s = tp_linear_cross_entropy_train(c, x, w, y, coef, &p->o);
        loss = s.loss, logprob = s.logprob, entropy = s.entropy;
        if (loss) tp_backward(c, loss);
    } else {
        tp_lce s = tp_linear_cross_entropy(c, x, w, y, &p->o);
        loss = s.loss, logprob = s.logprob, entropy = s.entropy;
        if (loss) tp_backward_from(c, 1, &loss, &coef);
    }
    r->st = tp_error_status(c);
    fetch(r, c, LOSS, loss);
    fetch(r, c, LOGPROB, logprob);
    fetch(r, c, ENTROPY, entropy);
    fetch(r, c, DX, x->grad);
    fetch(r, c, DW, w->grad);
    snprintf(r->error, sizeof r->error, "%s", tp_error(c));
}

static result run(const problem *p) {
    result r = {0};
    tp_ctx *c;
    char why[TP_WHY_BYTES] = "";
    assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.device = p->device,
                                                   .threads = 1,
                                                   .fast = p->fast,
                                                   .memory_limit = (size_t)64 << 20,
                                                   .why = why}),
                     TP_OK);
    int64_t n = p->b * p->t;
    void *x = malloc((size_t)(n * p->c) * 4), *w = malloc((size_t)(p->v * p->c) * 4);
    int32_t *y = malloc((size_t)n * 4);
    float *q = malloc((size_t)n * 4);
    assert_true(x && w && y && q);
    for (int64_t i = 0; i < n * p->c; i++) put(x, p->dtype, i, x_at(p, i));
    for (int64_t v = 0; v < p->v; v++)
        for (int64_t j = 0; j < p->c; j++)
            put(w, p->dtype, p->o.trans_w ? j * p->v + v : v * p->c + j, w_at(p, v, j));
    if (p->nan_at) put(w, p->dtype, p->nan_at, NAN);
    for (int64_t i = 0; i < n; i++) y[i] = target_at(p, i), q[i] = coef_at(p, i);
    int64_t xs[] = {p->b, p->t, p->c}, ws[] = {p->v, p->c}, wt[] = {p->c, p->v};
    tp_tensor *tx = upload(c, p->dtype, 3, xs, x),
              *tw = upload(c, p->dtype, 2, p->o.trans_w ? wt : ws, w),
              *ty = upload(c, TP_I32, 2, xs, y), *tq = upload(c, TP_F32, 2, xs, q);
    if (!p->no_dx) tp_require_grad(tx);
    if (!p->no_dw) tp_require_grad(tw);
    assert_int_equal(tp_tape_on(c), TP_OK);
    c->as_decoded = p->as_decoded;
    if (p->device == TP_CUDA) c->gemm = p->path;
    head(&r, c, p, tx, tw, ty, tq);
    if (p->device == TP_CUDA) {
        tp_cuda_gemm_stats s = tp_cuda_gemm_stats_of(c);
        r.products = s.own_runs + s.cublaslt_runs;
    }
    tp_ctx_free(c);
    return r;
}

static result run_well(const problem *p) {
    result r = run(p);
    assert_string_equal(r.error, "");
    assert_int_equal(r.st, TP_OK);
    return r;
}

static double largest(const float *x, int64_t n) {
    double top = 0;
    for (int64_t i = 0; i < n; i++) top = fmax(top, fabs((double)x[i]));
    return top;
}
/* max |a - b| / max |b|; NaN where there is one */
static double error(const float *a, const float *b, int64_t n) {
    double worst = 0;
    for (int64_t i = 0; i < n; i++) {
        double e = fabs((double)a[i] - (double)b[i]);
        if (!(e <= worst)) worst = e;
        if (isnan(worst)) return NAN;
    }
    return worst / (largest(b, n) + 1e-12);
}

/* ---- f32 against the CPU's kernels ---------------------------------------------------------- */
static const problem ROWS[] = {
    {.b = 3, .t = 11, .c = 24, .v = 1000, .o = {.chunk = 7}},
    {.b = 3, .t = 11, .c = 24, .v = 1000, .o = {.z_loss = 1e-2, .softcap = 6, .temperature = 1.2}},
    {.b = 2, .t = 9, .c = 20, .v = 1003, .o = {.trans_w = true, .z_loss = 1e-3, .chunk = 5}},
    {.b = 1, .t = 2100, .c = 3, .v = 33},                        /* a sample in two parts */
    {.b = 2, .t = 5, .c = 4, .v = 9000, .o = {.z_loss = 1e-3}},  /* tiles of the vocabulary */
    {.b = 37, .t = 3, .c = 5, .v = 300, .o = {.trans_w = true}}, /* leaves, the last one short */
    {.b = 3, .t = 1050, .c = 3, .v = 33, .fast = true},
};

static void test_f32(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++)
        for (int train = 0; train < 2; train++) {
            problem cpu = ROWS[i], gpu = ROWS[i];
            cpu.train = gpu.train = train;
            gpu.device = TP_CUDA;
            result a = run_well(&cpu), b = run_well(&gpu);
            for (int j = 0; j < NVALUES; j++) {
                assert_int_equal(a.n[j], b.n[j]);
                assert_true(error(b.v[j], a.v[j], a.n[j]) <= 5e-6);
                b.v[j][b.n[j] / 3] += 1e-4f * (float)largest(a.v[j], a.n[j]);
                assert_false(error(b.v[j], a.v[j], a.n[j]) <= 5e-6);
            }
            result_free(&a);
            result_free(&b);
        }
}

/* ---- bf16 against double, beside a naive kernel --------------------------------------------- */
static double rounded(double x, bool naive) {
    return naive ? (double)tp_bf16_to_f32(tp_f32_to_bf16((float)x)) : x;
}

/* All in double; naive: rounded to bf16 wherever a naive kernel writes to memory. */
static result by_hand(const problem *p, bool naive) {
    int64_t n = p->b * p->t, sizes[] = {n, n, n, n * p->c, p->v * p->c};
    result r = {0};
    for (int j = 0; j < NVALUES; j++) {
        r.n[j] = sizes[j];
        assert_non_null(r.v[j] = calloc((size_t)sizes[j], 4));
    }
    double *s = malloc((size_t)p->v * sizeof *s), *dw = calloc((size_t)sizes[DW], sizeof *dw);
    assert_true(s && dw);
    for (int64_t i = 0; i < n; i++) {
        int32_t y = target_at(p, i);
        if (y < 0) continue;
        double top = -1e300, sum = 0, entropy = 0;
        for (int64_t v = 0; v < p->v; v++) {
            double raw = 0;
            for (int64_t j = 0; j < p->c; j++)
                raw += (double)x_at(p, i * p->c + j) * (double)w_at(p, v, j);
            s[v] = rounded(raw, naive);
            top = fmax(top, s[v]);
        }
        for (int64_t v = 0; v < p->v; v++) sum += exp(s[v] - top);
        double lse = top + log(sum), z = p->o.z_loss, weight = (double)coef_at(p, i);
        for (int64_t v = 0; v < p->v; v++) entropy -= exp(s[v] - lse) * (s[v] - lse);
        r.v[LOGPROB][i] = (float)rounded(s[y] - lse, naive);
        r.v[LOSS][i] = (float)rounded(lse - s[y] + z * lse * lse, naive);
        r.v[ENTROPY][i] = (float)rounded(entropy, naive);
        for (int64_t v = 0; v < p->v; v++)
            s[v] = rounded(weight * (exp(s[v] - lse) * (1 + 2 * z * lse) - (v == y)), naive);
        for (int64_t j = 0; j < p->c; j++) {
            double dx = 0;
            for (int64_t v = 0; v < p->v; v++) {
                dx += s[v] * (double)w_at(p, v, j);
                dw[v * p->c + j] += s[v] * (double)x_at(p, i * p->c + j);
            }
            r.v[DX][i * p->c + j] = (float)rounded(dx, naive);
        }
    }
    for (int64_t i = 0; i < sizes[DW]; i++) r.v[DW][i] = (float)rounded(dw[i], naive);
    free(s);
    free(dw);
    return r;
}

static void test_bf16(void **state) {
    (void)state;
    problem p = {.b = 3, .t = 4, .c = 32, .v = 1000, .o = {.z_loss = 1e-3, .chunk = 5}};
    p.dtype = TP_BF16;
    result exact = by_hand(&p, false), naive = by_hand(&p, true);
    p.device = TP_CUDA;
    for (int train = 0; train < 2; train++) {
        p.train = train;
        result got = run_well(&p);
        for (int j = train; j < NVALUES; j++) { /* train sums the loss */
            assert_int_equal(got.n[j], exact.n[j]);
            double bound = 2 * error(naive.v[j], exact.v[j], exact.n[j]) + 1e-6;
            assert_true(bound < 0.05);
            assert_true(error(got.v[j], exact.v[j], exact.n[j]) <= bound);
            if (j < DX) assert_true(error(got.v[j], exact.v[j], exact.n[j]) <= 5e-6); /* f32 */
            got.v[j][got.n[j] / 2] += 0.1f * (float)largest(exact.v[j], exact.n[j]);
            assert_false(error(got.v[j], exact.v[j], exact.n[j]) <= bound);
        }
        result_free(&got);
    }
    result_free(&exact);
    result_free(&naive);
}

/* ---- equal bits ----------------------------------------------------------------------------- */
static void expect_same(const result *a, const result *b, int from) {
    for (int j = from; j < NVALUES; j++) {
        assert_int_equal(a->n[j], b->n[j]);
        assert_memory_equal(a->v[j], b->v[j], (size_t)a->n[j] * 4);
    }
}

static void test_no_chunk_shows(void **state) {
    (void)state;
    for (int dtype = sm == 90; dtype < 2; dtype++) {
        problem p = {.b = 5, .t = 13, .c = 16, .v = 1100, .device = TP_CUDA};
        p.dtype = dtype ? TP_BF16 : TP_F32;
        p.o.z_loss = 1e-3;
        result a = run_well(&p);
        for (int64_t chunk = 11; chunk <= 64; chunk = 5 * chunk + 3) {
            p.o.chunk = chunk;
            for (int train = 0; train < 2; train++) { /* both routes to a gradient as well */
                p.train = train;
                result b = run_well(&p);
                expect_same(&a, &b, train);
                result_free(&b);
            }
            p.train = false;
        }
        p.from = 1; /* the comparison notices other numbers */
        result other = run_well(&p);
        assert_memory_not_equal(a.v[DW], other.v[DW], (size_t)a.n[DW] * 4);
        result_free(&other);
        result_free(&a);
    }
}

/* With room for a chunk of logits dw comes out of the rows pass: fewer products, and the bits of
 * two passes. Chunks are parts of a leaf (of 2600 tokens, in parts of 2048), or a leaf.
 */
static void test_one_pass_has_the_bits_of_two(void **state) {
    (void)state;
    static const int64_t chunks[] = {2500, 6000};
    for (int i = sm == 90; i < 2; i++) {
        problem p = {.b = 5, .t = 520, .c = 8, .v = 300, .device = TP_CUDA, .train = true};
        if (sm != 90) p.path = TP_GEMM_CUBLASLT; /* which chooses by sizes; our own do not */
        p.dtype = i ? TP_BF16 : TP_F32;
        p.o.trans_w = i == 0;
        result two = run_well(&p);
        for (size_t j = 0; j < sizeof chunks / sizeof *chunks; j++) {
            p.o.chunk = chunks[j];
            result one = run_well(&p);
            assert_true(one.products < two.products);
            expect_same(&two, &one, 0);
            result_free(&one);
        }
        p.from = 1; /* the comparison notices other numbers */
        result other = run_well(&p);
        assert_memory_not_equal(two.v[DW], other.v[DW], (size_t)two.n[DW] * 4);
        result_free(&other);
        result_free(&two);
    }
}

/* dw of the whole that is not the sum of its parts' */
static int64_t differ(const result *whole, const result *l, const result *r) {
    int64_t n = 0;
    for (int64_t i = 0; i < whole->n[DW]; i++) n += whole->v[DW][i] != l->v[DW][i] + r->v[DW][i];
    return n;
}

/* On Hopper logits are ended by the product that makes them: other bits than those of decoding, the
 * same numbers, and two products less that are asked for. One entry of the vocabulary, one tile,
 * a bit more; one token, a bit more than a tile of them; chunks, and the room for one pass, where a
 * GPU of four multiprocessors takes tiles of 256 tokens, several one after the other; logits of
 * which e^logit is infinite, ignored tokens' too. */
static void test_hopper_ends_logits_itself(void **state) {
    (void)state;
    static const struct {
        int64_t b, t, c, v;
        double temperature, z_loss;
        int64_t chunk;
    } shapes[] = {{1, 1, 8, 1, 0, 0, 0},         {2, 66, 72, 260, 0, 1e-3, 0},
                  {3, 5, 136, 192, 0, 0, 4},     {1, 130, 64, 517, 1.3, 1e-2, 50},
                  {2, 1020, 8, 261, 0, 0, 4096}, {1, 9, 1032, 300, 0, 0, 0}};
    const size_t n = sm == 80 ? 1 : sizeof shapes / sizeof *shapes; /* nothing to compare there */
    for (size_t i = 0; i < n; i++)
        for (int train = 0; train < 2; train++) {
            problem p = {.b = shapes[i].b, .t = shapes[i].t, .c = shapes[i].c, .v = shapes[i].v};
            p.device = TP_CUDA, p.dtype = TP_BF16, p.train = train;
            p.o = (tp_lce_opts){.temperature = shapes[i].temperature,
                                .z_loss = shapes[i].z_loss,
                                .chunk = shapes[i].chunk};
            result a = run_well(&p);
            p.as_decoded = true;
            result b = run_well(&p);
            bool fused = a.products < b.products;
            if (sm) assert_true(fused == (sm == 90 && !p.o.temperature));
            for (int j = 0; j < NVALUES; j++) {
                double bound = j < DX ? 2e-6 : 1e-2; /* gradients of logits are rounded to bf16 */
                assert_int_equal(a.n[j], b.n[j]);
                assert_true(error(a.v[j], b.v[j], b.n[j]) <= bound);
                a.v[j][a.n[j] / 2] += 0.1f * (float)largest(b.v[j], b.n[j]) + 0.1f;
                assert_false(error(a.v[j], b.v[j], b.n[j]) <= bound);
            }
            result_free(&a);
            result_free(&b);
        }
}

/* A gradient that nobody reads leaves the other one's bits. */
static void test_either_gradient_alone(void **state) {
    (void)state;
    for (int dtype = sm == 90; dtype < 2; dtype++) {
        problem p = {.b = 3, .t = 5, .c = 8, .v = 300, .device = TP_CUDA};
        p.dtype = dtype ? TP_BF16 : TP_F32;
        result both = run_well(&p);
        p.no_dx = true;
        result dw = run_well(&p);
        p.no_dx = false, p.no_dw = true;
        result dx = run_well(&p);
        assert_true(both.n[DX] > 0 && both.n[DW] > 0 && dw.n[DX] == 0 && dx.n[DW] == 0);
        assert_memory_equal(both.v[DX], dx.v[DX], (size_t)both.n[DX] * 4);
        assert_memory_equal(both.v[DW], dw.v[DW], (size_t)both.n[DW] * 4);
        assert_true(largest(dx.v[DX], dx.n[DX]) > 0 && largest(dw.v[DW], dw.n[DW]) > 0);
        result_free(&both);
        result_free(&dw);
        result_free(&dx);
    }
}

/* Aligned parts of a batch, of at least a leaf (8 of these samples), are subtrees of its sums. In
 * bf16 dw is rounded at the end of each part; what belongs to a row has the same bits. */
static void check_parts(const problem *p, int64_t at, int64_t elsewhere) {
    bool f32 = p->dtype == TP_F32;
    problem left = *p, right = *p;
    left.b = right.from = at, right.b = p->b - at;
    result a = run_well(p), l = run_well(&left), r = run_well(&right);
    for (int j = p->train ? LOGPROB : LOSS; j < DW; j++) {
        assert_memory_equal(a.v[j], l.v[j], (size_t)l.n[j] * 4);
        assert_memory_equal(a.v[j] + l.n[j], r.v[j], (size_t)r.n[j] * 4);
    }
    if (p->train) assert_true(a.v[LOSS][0] == l.v[LOSS][0] + r.v[LOSS][0]);
    if (f32) assert_int_equal(differ(&a, &l, &r), 0);
    result_free(&l);
    result_free(&r);
    left.b = right.from = elsewhere, right.b = p->b - elsewhere; /* not a subtree: other bits */
    l = run_well(&left), r = run_well(&right);
    if (f32) assert_true(differ(&a, &l, &r) > 0);
    result_free(&l);
    result_free(&r);
    result_free(&a);
}

static void test_parts_are_subtrees(void **state) {
    (void)state;
    for (int dtype = sm == 90; dtype < 2; dtype++)
        for (int train = 0; train < 2; train++) {
            problem p = {.b = 29, .t = 4, .c = 8, .v = 2500, .device = TP_CUDA, .train = train};
            p.dtype = dtype ? TP_BF16 : TP_F32;
            check_parts(&p, 16, 15);
        }
    /* so many leaves that the whole takes four side by side, a part one */
    problem p = {.b = 2043, .t = 1, .c = 4, .v = 100, .device = TP_CUDA, .train = true};
    if (sm != 90) check_parts(&p, 1024, 1020);
}

/* ---- hostile input -------------------------------------------------------------------------- */
static void test_wrong_targets(void **state) {
    (void)state;
    static const int32_t wrong[] = {30, -1, INT32_MAX, INT32_MIN, -99};
    for (int train = 0; train < 2; train++)
        for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
            problem p = {.b = 2, .t = 4, .c = 8, .v = 30, .device = TP_CUDA, .train = train};
            p.bad = wrong[i];
            result r = run(&p);
            assert_int_equal(r.st, TP_EARG);
            assert_non_null(strstr(r.error, "linear_cross_entropy"));
            assert_non_null(strstr(r.error, "value 6 "));
            result_free(&r);
        }
}

static void test_nan_shows(void **state) {
    (void)state;
    problem p = {.b = 1, .t = 4, .c = 8, .v = 1100, .device = TP_CUDA, .nan_at = 650 * 8 + 3};
    if (sm == 90) p.dtype = TP_BF16;
    result r = run_well(&p);
    for (int i = 0; i < 3; i++) assert_true(isnan(r.v[LOSS][i]) && isnan(r.v[ENTROPY][i]));
    assert_true(r.v[LOSS][3] == 0); /* the ignored one */
    result_free(&r);
}

/* ---- memory --------------------------------------------------------------------------------- */
/* What the op takes beyond its results, as a part of the whole logits. */
static double extra(int64_t b, int64_t t, int64_t c, int64_t v, tp_dtype dtype, bool train) {
    tp_ctx *m;
    assert_int_equal(tp_ctx_new(&m, &(tp_ctx_opts){.device = TP_CUDA,
                                                   .threads = 1,
                                                   .meta = true,
                                                   .memory_limit = (size_t)1 << 42}),
                     TP_OK);
    tp_tensor *x = tp_tensor_keep(m, dtype, TP_SHAPE(b, t, c)),
              *w = tp_tensor_keep(m, dtype, TP_SHAPE(v, c)),
              *y = tp_tensor_keep(m, TP_I32, TP_SHAPE(b, t));
    if (train)
        tp_linear_cross_entropy_train(m, x, tp_require_grad(w), y, NULL, NULL);
    else
        tp_linear_cross_entropy(m, x, w, y, NULL);
    assert_string_equal(tp_error(m), "");
    size_t bytes = tp_memory_peak(m) - tp_memory_used(m);
    tp_ctx_free(m);
    return (double)bytes / ((double)(b * t * v) * (double)tp_dtype_size(dtype));
}

static void test_memory_stays_small(void **state) {
    (void)state;
    static const int64_t shape[][4] = {{8, 1024, 768, 50304},     {64, 1024, 768, 50304},
                                       {1, 8192, 1600, 50304},    {4, 2048, 2048, 50304},
                                       {8, 1024, 4096, 128256},   {512, 16, 1024, 50304},
                                       {128, 1024, 1024, 100000}, {3, 4096, 4096, 128000}};
    double worst = 0;
    for (size_t i = 0; i < sizeof shape / sizeof *shape; i++)
        for (int bf16 = 0; bf16 < 2; bf16++)
            for (int train = 0; train < 2; train++) {
                const int64_t *s = shape[i];
                double e = extra(s[0], s[1], s[2], s[3], bf16 ? TP_BF16 : TP_F32, train);
                assert_true(e > 0.001); /* something was measured */
                assert_true(e < 1.0 / 20);
                worst = fmax(worst, e);
            }
    print_message("workspace: at most 1/%.1f of the whole logits\n", 1 / worst);
}

int main(void) {
    const struct CMUnitTest f32[] = {cmocka_unit_test(test_f32)};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_no_chunk_shows),
        cmocka_unit_test(test_one_pass_has_the_bits_of_two),
        cmocka_unit_test(test_hopper_ends_logits_itself),
        cmocka_unit_test(test_either_gradient_alone),
        cmocka_unit_test(test_parts_are_subtrees),
        cmocka_unit_test(test_wrong_targets),
        cmocka_unit_test(test_nan_shows),
        cmocka_unit_test(test_memory_stays_small),
    };
#if defined(TP_CUDA_ON_CPU)
    emu_set_sm(sm);
#endif
    int failed = cmocka_run_group_tests(f32, NULL, NULL);
    failed += cmocka_run_group_tests(tests, NULL, NULL);
#if defined(TP_CUDA_ON_CPU)
    emu_set_sm(sm = 90);
    failed += cmocka_run_group_tests_name("sm_90", tests, NULL, NULL);
#endif
    return failed;
}
