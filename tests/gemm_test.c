/* gemm_test: the promise of ops/matmul/gemm.h, bit for bit: every element is one k-ordered chain of
 * fused multiply-adds, whatever the shape, layout, threads, tile or instruction set; samples are
 * added in a fixed binary tree. The oracle here is the sentence itself, written with fmaf. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "core/ctx.h"
#include "ops/convert.h"
#include "ops/gelu/gelu.h"
#include "ops/gelu/gelu_math.h"
#include "ops/matmul/gemm.h"
#include "ops/matmul/matmul.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- what is wanted ------------------------------------------------------------------------- */
/* Rounded to bf16; denormals, of either kind, are zeros. */
static float flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }
static float rounded(float x) { return flushed(tp_bf16_to_f32(tp_f32_to_bf16(flushed(x)))); }
static float step_of_two(const tp_gemm *g, int64_t i, int64_t j, int64_t k, bool there, float acc) {
    float a = there ? rounded(g->a[i * g->a_rs + k * g->a_cs]) : 0;
    float b = there ? rounded(g->b[k * g->b_rs + j * g->b_cs]) : 0;
    return flushed(fmaf(a, b, flushed(acc)));
}

static float chain(const tp_gemm *g, int64_t i, int64_t j, int64_t k0, int64_t k1) {
    float acc = 0.0f;
    for (int64_t k = k0; k < k1 && g->bf16; k += 2) {
        acc = step_of_two(g, i, j, k + 1, k + 1 < k1, acc);
        acc = step_of_two(g, i, j, k, true, acc);
    }
    for (int64_t k = k0; k < k1 && !g->bf16; k++)
        acc = fmaf(g->a[i * g->a_rs + k * g->a_cs], g->b[k * g->b_rs + j * g->b_cs], acc);
    return acc;
}

/* The binary counter over samples, as gemm.h tells it. */
static float tree(const tp_gemm *g, int64_t i, int64_t j) {
    float stack[64];
    int64_t size[64], leaf = g->leaf > 0 ? g->leaf : g->k;
    int n = 0;
    for (int64_t k = 0; k < g->k; k += leaf) {
        stack[n] = chain(g, i, j, k, k + leaf < g->k ? k + leaf : g->k);
        size[n++] = 1;
        for (; n > 1 && size[n - 1] == size[n - 2]; n--) {
            stack[n - 2] = stack[n - 2] + stack[n - 1];
            size[n - 2] *= 2;
        }
    }
    for (; n > 1; n--) stack[n - 2] = stack[n - 2] + stack[n - 1];
    return n ? stack[0] : 0.0f;
}

static float wanted(const tp_gemm *g, int64_t i, int64_t j, float old) {
    float y = tree(g, i, j);
    if (g->bias) y = y + g->bias[j];
    return g->accumulate ? old + y : y;
}

/* ---- running it ----------------------------------------------------------------------------- */
typedef void (*run_fn)(tp_ctx *, const tp_gemm *);
typedef void (*one_fn)(const tp_gemm *);
static const struct {
    int isa;
    run_fn run;
    one_fn one;
    bool no_dot; /* for bf16 only */
} versions[] = {
    {1, tp_gemm_run_v1, tp_gemm_one_v1, false},
#if defined(__x86_64__)
    {3, tp_gemm_run_v3, tp_gemm_one_v3, false},
    {4, tp_gemm_run_v4, tp_gemm_one_v4, true},
    {4, tp_gemm_run_v4, tp_gemm_one_v4, false},
#endif
};
enum { VERSIONS = sizeof versions / sizeof *versions };

static tp_ctx *ctx_with(int threads) {
    tp_ctx *c = NULL;
    assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.threads = threads}), TP_OK);
    return c;
}

static float value(uint64_t which, int64_t i) {
    return (float)tp_normal(11, TP_RNG_TEST, which, (uint64_t)i);
}

/* Exactly as many floats as asked for, so that a sanitizer sees a read beyond them. */
static float *floats(int64_t n, uint64_t which) {
    float *p = malloc((size_t)(n > 0 ? n : 1) * sizeof(float));
    assert_non_null(p);
    for (int64_t i = 0; i < n; i++) p[i] = value(which, i);
    return p;
}

typedef struct shape {
    int64_t m, n, k, leaf;
    int layout; /* bit 0: a transposed, 1: b transposed, 2: a strided, 3: b strided, 4: wide c */
    bool bias, accumulate, bf16;
} shape;

static int64_t extent(int64_t rows, int64_t rs, int64_t cols, int64_t cs) {
    return rows && cols ? (rows - 1) * rs + (cols - 1) * cs + 1 : 0;
}

static tp_gemm problem(const shape *s) {
    tp_gemm g = {.m = s->m, .n = s->n, .k = s->k, .leaf = s->leaf, .accumulate = s->accumulate};
    g.bf16 = s->bf16;
    int64_t pa = s->layout & 4 ? 3 : 0, pb = s->layout & 8 ? 5 : 0;
    int64_t ea = s->layout & 4 && s->k % 2 ? 2 : 1; /* also an element stride that is not 1 */
    g.a_rs = s->layout & 1 ? ea : (s->k + pa) * ea;
    g.a_cs = s->layout & 1 ? (s->m + pa) * ea : ea;
    g.b_rs = s->layout & 2 ? 1 : s->n + pb;
    g.b_cs = s->layout & 2 ? s->k + pb : 1;
    g.ldc = s->n + (s->layout & 16 ? 7 : 0);
    g.a = floats(extent(s->m, g.a_rs, s->k, g.a_cs), 1);
    g.b = floats(extent(s->k, g.b_rs, s->n, g.b_cs), 2);
    g.bias = s->bias ? floats(s->n, 3) : NULL;
    return g;
}

static void free_problem(tp_gemm *g) {
    free((void *)(uintptr_t)g->a), free((void *)(uintptr_t)g->b), free((void *)(uintptr_t)g->bias);
}

static void *workspace(const tp_gemm *g, int threads) {
    size_t bytes = (tp_gemm_workspace(g, threads) + 63) / 64 * 64;
    void *p = aligned_alloc(64, bytes ? bytes : 64);
    assert_non_null(p);
    memset(p, 0xff, bytes ? bytes : 64); /* NaN: nothing may be read before it is written */
    return p;
}

/* All versions, with 1 to 3 threads and without a ctx, against the oracle; c's gaps untouched. With
 * a ctx the gelu is asked for too, but for three threads. */
static void check_one(const shape *s, int most_isa, tp_ctx *ctx[4]) {
    tp_gemm g = problem(s);
    int64_t nc = extent(s->m, g.ldc, s->n, 1);
    size_t bytes = (size_t)nc * sizeof(float);
    float *want = floats(nc, 4), *got = floats(nc, 4);
    float *want_gelu = floats(nc, 4), *got_gelu = floats(nc, 4);
    for (int64_t i = 0; i < s->m; i++)
        for (int64_t j = 0; j < s->n; j++) {
            want[i * g.ldc + j] = wanted(&g, i, j, want[i * g.ldc + j]);
            want_gelu[i * g.ldc + j] = gelu_f(want[i * g.ldc + j]);
        }
    for (int v = 0; v < VERSIONS; v++)
        for (int threads = 0; threads <= 3 && versions[v].isa <= most_isa; threads++) {
            if (versions[v].no_dot && !g.bf16) break;
            g.no_dot = versions[v].no_dot;
            for (int64_t i = 0; i < nc; i++) got[i] = got_gelu[i] = value(4, i);
            g.c = got;
            g.gelu = threads < 3 ? got_gelu : NULL;
            g.work = workspace(&g, threads ? threads : 1);
            if (threads)
                versions[v].run(ctx[threads], &g);
            else
                versions[v].one(&g);
            free(g.work);
            bool same = !memcmp(got, want, bytes);
            if (!same || (g.gelu && memcmp(got_gelu, want_gelu, bytes)))
                fail_msg(
                    "%lld x %lld x %lld, leaf %lld, layout %d, bias %d, accumulate %d, bf16 %d: "
                    "v%d%s with %d threads gives other bits%s",
                    (long long)s->m, (long long)s->n, (long long)s->k, (long long)s->leaf,
                    s->layout, s->bias, s->accumulate, s->bf16, versions[v].isa,
                    g.no_dot ? " without dot" : "", threads, same ? " of gelu" : "");
        }
    free(want), free(got), free(want_gelu), free(got_gelu);
    free_problem(&g);
}

static void check(const shape *s, int most_isa, tp_ctx *ctx[4]) {
    shape with = *s;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        with.bf16 = bf16;
        check_one(&with, most_isa, ctx);
    }
}

static int setup(void **state) {
    static tp_ctx *ctx[4];
    for (int t = 1; t <= 3; t++) ctx[t] = ctx_with(t);
    *state = ctx;
    return 0;
}
static int teardown(void **state) {
    for (int t = 1; t <= 3; t++) tp_ctx_free(((tp_ctx **)*state)[t]);
    return 0;
}

/* ---- tests ---------------------------------------------------------------------------------- */
static void small_shapes(void **state) {
    tp_ctx **ctx = *state;
    static const int64_t sizes[] = {0, 1, 2, 7, 15, 16, 17, 33};
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++)
            for (int l = 0; l < 8; l++) {
                int mix = i * 7 + j * 3 + l;
                check(&(shape){sizes[i], sizes[j], sizes[l], 0, mix % 32, mix % 3 == 0, mix % 2},
                      ctx[1]->isa, ctx);
            }
}

static void every_height_and_edge(void **state) {
    tp_ctx **ctx = *state;
    for (int64_t m = 1; m <= 30; m++)
        check(&(shape){m, 30 + m, 40, 0, (int)(m % 32), m % 2, m % 3 == 0}, ctx[1]->isa, ctx);
}

/* Larger than the blocks, so that chains are put down and taken up again. */
static void blocks_and_stages(void **state) {
    tp_ctx **ctx = *state;
    static const shape shapes[] = {
        {40, 70, 801, 0, 0, true, false},   {40, 70, 801, 0, 1, false, true},
        {40, 70, 801, 0, 2, true, true},    {40, 70, 801, 0, 3, false, false},
        {3, 200, 900, 0, 0, true, true},    {8, 100, 900, 0, 2, true, true},
        {345, 40, 790, 0, 0, false, false}, {345, 40, 790, 0, 28, false, true},
        {20, 2100, 30, 0, 0, true, false},  {16, 540, 800, 0, 2, false, true},
        {30, 50, 400, 0, 12, false, false},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) check(&shapes[i], ctx[1]->isa, ctx);
}

static void trees(void **state) {
    tp_ctx **ctx = *state;
    for (int64_t samples = 1; samples <= 17; samples++)
        check(&(shape){20, 40, samples * 5, 5, 1, samples % 2, samples % 3 == 0}, ctx[1]->isa, ctx);
    static const shape shapes[] = {
        {17, 40, 7 * 100, 100, 1, false, false}, /* several stages of several leaves */
        {17, 40, 5 * 100, 100, 1, true, true},
        {17, 40, 5 * 780, 780, 1, false, false},
        {17, 40, 3 * 780, 780, 1, false, true}, /* leaves longer than a stage, chains carried */
        {5, 600, 5 * 200, 200, 1, false, false},
        {1, 70, 6 * 50, 50, 0, false, false},
        {20, 40, 23 * 90, 90, 1, true, true}, /* trees within a stage and from stage to stage */
        {70, 70, 11 * 130, 130, 1, false, false},
        {16, 33, 9 * 770, 770, 0, false, true},
        {9, 33, 107, 10, 0, false, false}, /* a last sample that is shorter */
        {9, 33, 9 * 11, 11, 0, false, false},
        {20, 40, 6 * 781 + 3, 781, 1, true, true}, /* odd */
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) check(&shapes[i], ctx[1]->isa, ctx);
}

/* A part of the rows and columns gives the same bits as the whole: decode is training. */
static void parts_in(tp_ctx **ctx, bool bf16) {
    shape s = {60, 90, 450, 0, 0, true, false, bf16};
    tp_gemm g = problem(&s);
    float *whole = floats(s.m * s.n, 5), *part = floats(s.m * s.n, 6);
    g.c = whole;
    g.work = workspace(&g, 2);
    versions[VERSIONS - 1].isa <= ctx[2]->isa ? versions[VERSIONS - 1].run(ctx[2], &g)
                                              : tp_gemm_run_v1(ctx[2], &g);
    free(g.work);
    for (int v = 0; v < VERSIONS; v++)
        for (int64_t m = 1; m < 20 && versions[v].isa <= ctx[2]->isa; m += 3) {
            int64_t row = 41 - m, col = 11 + m, n = 90 - col - m;
            tp_gemm h = g;
            h.m = m, h.n = n;
            h.a += row * h.a_rs, h.b += col, h.bias += col;
            h.c = part, h.ldc = n;
            h.no_dot = versions[v].no_dot;
            h.work = workspace(&h, 2);
            versions[v].run(ctx[2], &h);
            free(h.work);
            for (int64_t i = 0; i < m; i++)
                assert_memory_equal(part + i * n, whole + (row + i) * s.n + col,
                                    (size_t)n * sizeof(float));
        }
    free(whole), free(part);
    free_problem(&g);
}
static void parts_of_a_whole(void **state) {
    parts_in(*state, false);
    parts_in(*state, true);
}

/* One chain in two calls: the second resumes where the first stopped, and alone adds the bias. */
static void resumed_chains(void **state) {
    tp_ctx **ctx = *state;
    static const int64_t cuts[] = {0, 1, 400, 799, 900};
    for (int form = 0; form < 4; form++) {
        const bool few = form & 1, bf16 = form & 2;
        shape s = {few ? 3 : 31, 50, 900, 0, few ? 2 : 0, true, false, bf16};
        tp_gemm g = problem(&s);
        float *want = floats(s.m * s.n, 5), *got = floats(s.m * s.n, 6);
        for (int64_t i = 0; i < s.m; i++)
            for (int64_t j = 0; j < s.n; j++) want[i * s.n + j] = wanted(&g, i, j, 0);
        for (int v = 0; v < VERSIONS; v++)
            for (int cut = 0; cut < 5 && versions[v].isa <= ctx[2]->isa; cut++) {
                if (bf16 && cuts[cut] % 2) continue;
                tp_gemm head = g, tail = g;
                head.no_dot = tail.no_dot = versions[v].no_dot;
                head.c = tail.c = got;
                head.k = cuts[cut], head.bias = NULL;
                tail.k = s.k - head.k, tail.resume = true;
                tail.a += head.k * g.a_cs, tail.b += head.k * g.b_rs;
                head.work = workspace(&head, 2);
                versions[v].run(ctx[2], &head);
                free(head.work);
                tail.work = workspace(&tail, 2);
                versions[v].run(ctx[2], &tail);
                free(tail.work);
                assert_memory_equal(got, want, (size_t)(s.m * s.n) * sizeof(float));
            }
        free(want), free(got);
        free_problem(&g);
    }
}

/* Denormals are zeros to bf16, whatever the machine has: operands, sums, and what lies in C. The
 * mutant, which keeps them, is told apart. */
static void bf16_without_denormals(void **state) {
    tp_ctx **ctx = *state;
    for (int rows = 3; rows <= 20; rows += 17)
        for (int v = 0; v < VERSIONS && versions[v].isa <= ctx[1]->isa; v++) {
            shape s = {rows, 40, 60, 0, 0, true, true, true};
            tp_gemm g = problem(&s);
            float *a = (float *)(uintptr_t)g.a, *b = (float *)(uintptr_t)g.b, got[20 * 40];
            float *bias = (float *)(uintptr_t)g.bias;
            int kept = 0;
            for (int i = 0; i < rows * 60; i++) a[i] *= i % 5 ? 0x1p-64f : 0x1p-127f;
            for (int i = 0; i < 60 * 40; i++) b[i] *= i % 7 ? 0x1p-62f : 0x1p-126f;
            for (int i = 0; i < 40; i++) bias[i] *= 0x1p-126f;
            for (int i = 0; i < rows * 40; i++) got[i] = value(4, i) * 0x1p-126f;
            g.c = got;
            g.no_dot = versions[v].no_dot;
            g.work = workspace(&g, 1);
            versions[v].one(&g);
            for (int i = 0; i < rows * 40; i++) {
                float sum =
                    flushed(flushed(chain(&g, i / 40, i % 40, 0, 60)) + flushed(bias[i % 40]));
                float want = flushed(flushed(value(4, i) * 0x1p-126f) + sum);
                assert_memory_equal(&got[i], &want, sizeof want);
                kept += want != value(4, i) * 0x1p-126f + (sum + bias[i % 40]);
            }
            assert_true(kept > 0);
            free(g.work);
            free_problem(&g);
        }
}

/* Mutants that the comparison must notice: a pairwise sum, and products rounded before adding. */
static void oracle_can_fail(void **state) {
    (void)state;
    shape s = {8, 8, 300, 0, 0, false, false};
    tp_gemm g = problem(&s);
    int pairwise = 0, unfused = 0, merged = 0;
    for (int64_t i = 0; i < s.m; i++)
        for (int64_t j = 0; j < s.n; j++) {
            float right = chain(&g, i, j, 0, 300), acc = 0.0f;
            for (int64_t k = 0; k < 300; k++) acc = acc + g.a[i * 300 + k] * g.b[k * 8 + j];
            pairwise += right != chain(&g, i, j, 0, 150) + chain(&g, i, j, 150, 300);
            unfused += right != acc;
            g.leaf = 50; /* six samples: ((0+1)+(2+3))+(4+5), not one after the other */
            float one_by_one = chain(&g, i, j, 0, 50);
            for (int64_t k = 50; k < 300; k += 50) one_by_one += chain(&g, i, j, k, k + 50);
            merged += tree(&g, i, j) != one_by_one;
        }
    assert_true(pairwise > 0 && unfused > 0 && merged > 0);
    int even_first = 0, unrounded = 0;
    for (int64_t i = 0; i < s.m; i++)
        for (int64_t j = 0; j < s.n; j++) {
            g.bf16 = true;
            float right = chain(&g, i, j, 0, 300), acc = 0.0f;
            for (int64_t k = 0; k < 300; k++) acc = step_of_two(&g, i, j, k, true, acc);
            even_first += right != acc;
            g.bf16 = false;
            unrounded += right != chain(&g, i, j, 0, 300);
        }
    assert_true(even_first > 0 && unrounded > 0);
    free_problem(&g);
}

/* matmul_wgrad of a batch is the tree over the matmul_wgrads of its aligned parts. */
static void split_batches(void **state) {
    (void)state;
    tp_ctx *c = ctx_with(2);
    tp_wgrad_opts o = {.weight = true, .bias = true};
    tp_tensor *x = tp_tensor_keep(c, TP_F32, TP_SHAPE(8, 6, 20));
    tp_tensor *dy = tp_tensor_keep(c, TP_F32, TP_SHAPE(8, 6, 35)), *out[2], *part[4][2];
    assert_true(x && dy);
    for (int64_t i = 0; i < tp_numel(x); i++) tp_f32(x)[i] = value(7, i);
    for (int64_t i = 0; i < tp_numel(dy); i++) tp_f32(dy)[i] = value(8, i);
    assert_int_equal(tp_matmul_wgrad(c, x, dy, &o, out), TP_OK);
    for (int p = 0; p < 4; p++) {
        tp_tensor *px = tp_tensor_view(c, x), *pdy = tp_tensor_view(c, dy);
        px->shape[0] = pdy->shape[0] = 2;
        px->data = tp_f32(x) + p * 2 * 6 * 20;
        pdy->data = tp_f32(dy) + p * 2 * 6 * 35;
        assert_int_equal(tp_matmul_wgrad(c, px, pdy, &o, part[p]), TP_OK);
    }
    for (int w = 0; w < 2; w++)
        for (int64_t i = 0; i < tp_numel(out[w]); i++) {
            float sum = (tp_f32(part[0][w])[i] + tp_f32(part[1][w])[i]) +
                        (tp_f32(part[2][w])[i] + tp_f32(part[3][w])[i]);
            assert_memory_equal(&sum, &tp_f32(out[w])[i], sizeof sum);
        }
    tp_ctx_free(c);
}

/* matmul_gelu is tp_gelu(tp_matmul(...)) to the bit, for every instruction set and for many rows,
 * few rows, and samples whose rows do not lie evenly apart, each a product of its own. */
static void gelu_is_the_two_ops(void **state) {
    (void)state;
    enum { ROWS = 3, K = 900, N = 70 };
    for (int threads = 1; threads <= 3; threads++) {
        tp_ctx *c = ctx_with(threads);
        int isa = c->isa;
        tp_tensor *a = tp_tensor_keep(c, TP_F32, TP_SHAPE(4, ROWS * 7, K));
        tp_tensor *b = tp_tensor_keep(c, TP_F32, TP_SHAPE(K, N));
        tp_tensor *bt = tp_tensor_keep(c, TP_F32, TP_SHAPE(N, K));
        tp_tensor *bias = tp_tensor_keep(c, TP_F32, TP_SHAPE(N));
        assert_true(a && b && bt && bias);
        for (int64_t i = 0; i < tp_numel(a); i++) tp_f32(a)[i] = value(7, i) / 16;
        for (int64_t i = 0; i < K * N; i++) tp_f32(b)[i] = tp_f32(bt)[i] = value(8, i);
        for (int64_t i = 0; i < N; i++) tp_f32(bias)[i] = value(9, i);
        for (int form = 0; form < 12; form++)
            for (int v = 0; v < VERSIONS && versions[v].isa <= isa; v++) {
                c->isa = versions[v].isa;
                tp_tensor *x = tp_tensor_view(c, a);
                if (form / 4 == 1) x->shape[0] = 1, x->shape[1] = ROWS;              /* few */
                if (form / 4 == 2) x->shape[1] = ROWS * 6, x->stride[1] = K + K / 7; /* uneven */
                if (form / 4 == 2) x->shape[2] = K / 7;
                tp_tensor *w = tp_tensor_view(c, form & 1 ? bt : b);
                w->shape[form & 1] = x->shape[2];
                tp_matmul_opts o = {.trans_b = form & 1, .bias = form & 2 ? bias : NULL};
                tp_tensor *h = tp_matmul(c, x, w, &o), *y = tp_gelu(c, h);
                tp_tensor *got = tp_matmul_gelu(c, x, w, &o);
                assert_true(h && y && got);
                size_t bytes = (size_t)tp_numel(y) * sizeof(float);
                assert_memory_equal(y->data, got->data, bytes);
                assert_memory_not_equal(h->data, got->data, bytes);
                tp_step_end(c);
            }
        tp_ctx_free(c);
    }
}

static tp_tensor *with_shape(tp_ctx *c, tp_tensor *x, int ndim, const int64_t *dims) {
    tp_tensor *v = tp_tensor_keep(c, TP_F32, ndim, dims);
    assert_non_null(v);
    memcpy(v->data, x->data, (size_t)tp_numel(x) * sizeof(float));
    return v;
}

/* Dimension 0 alone counts samples: what lies between it and the rows lengthens the chains. The
 * mutant, all leading dimensions counted, gives other bits. */
static void samples_are_dimension_0(void **state) {
    (void)state;
    tp_ctx *c = ctx_with(2);
    tp_wgrad_opts o = {.weight = true, .bias = true};
    tp_tensor *x = tp_tensor_keep(c, TP_F32, TP_SHAPE(3, 20, 9));
    tp_tensor *dy = tp_tensor_keep(c, TP_F32, TP_SHAPE(3, 20, 17)), *want[2], *got[2], *other[2];
    assert_true(x && dy);
    for (int64_t i = 0; i < tp_numel(x); i++) tp_f32(x)[i] = value(7, i);
    for (int64_t i = 0; i < tp_numel(dy); i++) tp_f32(dy)[i] = value(8, i);
    tp_tensor *x4 = with_shape(c, x, TP_SHAPE(3, 4, 5, 9)),
              *d4 = with_shape(c, dy, TP_SHAPE(3, 4, 5, 17));
    tp_tensor *x12 = with_shape(c, x, TP_SHAPE(12, 5, 9)),
              *d12 = with_shape(c, dy, TP_SHAPE(12, 5, 17));
    assert_int_equal(tp_matmul_wgrad(c, x, dy, &o, want), TP_OK);
    assert_int_equal(tp_matmul_wgrad(c, x4, d4, &o, got), TP_OK);
    assert_int_equal(tp_matmul_wgrad(c, x12, d12, &o, other), TP_OK);
    for (int w = 0; w < 2; w++) {
        size_t bytes = (size_t)tp_numel(want[w]) * sizeof(float);
        assert_memory_equal(want[w]->data, got[w]->data, bytes);
        assert_memory_not_equal(want[w]->data, other[w]->data, bytes);
    }
    tp_ctx_free(c);
}

/* db is the product of a row of ones and dy: the same chains, the same tree, for any layout. */
static void bias_is_a_product_with_ones(void **state) {
    (void)state;
    tp_ctx *c = ctx_with(2);
    tp_wgrad_opts o = {.bias = true};
    float one = 1.0f;
    for (int64_t samples = 1; samples <= 7; samples++)
        for (int layout = 0; layout < 2; layout++) { /* 1: dy is a transposed view */
            int64_t n = 40 * samples, rows = samples * 9;
            tp_tensor *dy = tp_tensor_new(c, TP_F32, TP_SHAPE(samples, 9, n)), *out[2];
            tp_tensor *x = tp_tensor_new(c, TP_F32, TP_SHAPE(samples, 9, 2));
            assert_true(x && dy);
            for (int64_t i = 0; i < tp_numel(x); i++) tp_f32(x)[i] = 1;
            for (int64_t i = 0; i < tp_numel(dy); i++) tp_f32(dy)[i] = value(9, i);
            if (layout) dy->stride[0] = 9, dy->stride[1] = 1, dy->stride[2] = rows;
            tp_gemm g = {.m = 1, .n = n, .k = rows, .leaf = 9, .a = &one, .b = tp_f32(dy)};
            g.b_rs = dy->stride[1], g.b_cs = dy->stride[2];
            assert_int_equal(tp_matmul_wgrad(c, x, dy, &o, out), TP_OK);
            for (int64_t j = 0; j < n; j++) {
                float want = tree(&g, 0, j);
                assert_memory_equal(&want, &tp_f32(out[1])[j], sizeof want);
            }
            tp_step_end(c);
        }
    tp_ctx_free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_shapes),
        cmocka_unit_test(every_height_and_edge),
        cmocka_unit_test(blocks_and_stages),
        cmocka_unit_test(trees),
        cmocka_unit_test(parts_of_a_whole),
        cmocka_unit_test(resumed_chains),
        cmocka_unit_test(bf16_without_denormals),
        cmocka_unit_test(oracle_can_fail),
        cmocka_unit_test(split_batches),
        cmocka_unit_test(samples_are_dimension_0),
        cmocka_unit_test(bias_is_a_product_with_ones),
        cmocka_unit_test(gelu_is_the_two_ops),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
