/* Decoding on the device against whole forward passes, to the last bit: paged_attention over
 * several layouts of pages and ways to cut a text, token_logprob against linear_cross_entropy. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "core/ctx.h"
#include "ops/attention/attention.h"
#include "ops/cache_write/cache_write.h"
#include "ops/convert.h"
#include "ops/linear_cross_entropy/linear_cross_entropy.h"
#include "ops/matmul/gemm_cuda.h"
#include "ops/matmul/matmul.h"
#include "ops/paged_attention/paged_attention_problem.h"
#include "ops/token_logprob/token_logprob.h"
#include <stdlib.h>
#include <string.h>
#if defined(TP_CUDA_ON_CPU)
#include "emu.h"
#endif

enum { IGNORE = -100 };
enum {
    B = 3,
    L = 150,
    BEGIN = 21
}; /* sequence b has (b + 1) BEGIN tokens before they go together */

static bool as_decoded = true;
static tp_ctx *device_new(void) {
    tp_ctx *c;
    assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.device = TP_CUDA,
                                                   .threads = 1,
                                                   .seed = 5,
                                                   .memory_limit = (size_t)64 << 20}),
                     0);
    c->as_decoded = as_decoded;
    return c;
}

static tp_tensor *put(tp_ctx *c, tp_dtype t, int ndim, const int64_t *shape, const void *v) {
    tp_tensor *x = tp_tensor_keep(c, t, ndim, shape);
    assert_non_null(x);
    assert_int_equal(tp_upload(c, x, v), 0);
    return x;
}

static tp_tensor *normal(tp_ctx *c, tp_dtype t, uint64_t which, int ndim, const int64_t *shape) {
    int64_t n = 1;
    for (int i = 0; i < ndim; i++) n *= shape[i];
    float *v = malloc((size_t)n * sizeof *v);
    assert_non_null(v);
    for (int64_t i = 0; i < n; i++) {
        float x = (float)tp_normal(3, TP_RNG_TEST, which, (uint64_t)i);
        if (t == TP_F32)
            v[i] = x;
        else
            ((uint16_t *)v)[i] = tp_f32_to_bf16(x);
    }
    tp_tensor *x = put(c, t, ndim, shape, v);
    free(v);
    return x;
}

static char *bytes(tp_ctx *c, tp_tensor *t) {
    char *v = malloc((size_t)tp_numel(t) * tp_dtype_size(t->dtype) + 1);
    assert_non_null(v);
    if (tp_download(c, t, v)) fail_msg("%s", tp_error(c));
    return v;
}

/* ---- attention ------------------------------------------------------------------------------ */
typedef struct problem {
    const char *name;
    tp_dtype dtype;
    int64_t H, Hkv, D, window, sinks;
    double softcap;
} problem;

typedef struct layout { /* of pages; and the tokens of each pass over all sequences */
    int64_t page;
    int stride; /* page i of sequence b is page (i B + b) stride of the pool, modulo its size */
    int64_t cut[16];
} layout;
static const layout layouts[] = {
    {16, 7, {1, 2, 1, 30, 1}},
    {48, 1, {40, 1, 24}},
    {64, 5, {1, 63, 1}},
    {160, 1, {L - B * BEGIN}},
};
enum { LAYOUTS = sizeof layouts / sizeof *layouts };

/* o (B,L,H,D) and lse (B,H,L), row by row as they were computed; 0 where nothing was. */
typedef struct answer {
    char *o, *lse;
    bool *known; /* (B,L) */
} answer;

static answer answer_new(const problem *p) {
    answer a = {calloc((size_t)(B * L * p->H * p->D), 4), calloc((size_t)(B * L * p->H), 4),
                calloc(B * L, 1)};
    assert_true(a.o && a.lse && a.known);
    return a;
}
static void answer_free(answer *a) {
    free(a->o);
    free(a->lse);
    free(a->known);
}

/* Rows t0.. of sequences b0.. from o (n,T,H,D) and lse (n,H,T). */
static void take(const problem *p, answer *a, tp_ctx *c, tp_tensor *const out[2], int64_t b0,
                 const int64_t *t0) {
    int64_t n = out[0]->shape[0], T = out[0]->shape[1];
    size_t row = (size_t)(p->H * p->D) * tp_dtype_size(p->dtype);
    char *o = bytes(c, out[0]), *lse = bytes(c, out[1]);
    for (int64_t b = 0; b < n; b++)
        for (int64_t t = 0; t < T; t++) {
            int64_t at = (b0 + b) * L + t0[b] + t;
            memcpy(a->o + (size_t)at * row, o + (size_t)(b * T + t) * row, row);
            for (int64_t h = 0; h < p->H; h++)
                memcpy(a->lse + 4 * (at * p->H + h), lse + 4 * ((b * p->H + h) * T + t), 4);
            a->known[at] = true;
        }
    free(o);
    free(lse);
}

static answer whole(const problem *p, int64_t window) {
    tp_ctx *c = device_new();
    answer a = answer_new(p);
    tp_tensor *q = normal(c, p->dtype, 1, 4, (int64_t[]){B, L, p->H, p->D});
    tp_tensor *k = normal(c, p->dtype, 2, 4, (int64_t[]){B, L, p->Hkv, p->D});
    tp_tensor *v = normal(c, p->dtype, 3, 4, (int64_t[]){B, L, p->Hkv, p->D}), *out[2];
    tp_attention_opts o = {.causal = true, .window = window, .softcap = p->softcap};
    out[0] = tp_attention(c, q, k, v, &o, &out[1]);
    if (!out[0]) fail_msg("%s: %s", p->name, tp_error(c));
    take(p, &a, c, out, 0, (int64_t[B]){0});
    tp_ctx_free(c);
    return a;
}

typedef struct cache {
    const problem *p;
    const layout *at;
    tp_ctx *c;
    tp_tensor *q, *k, *v, *key, *value;
    int64_t n; /* pages of a sequence */
} cache;

static int32_t page_of(const cache *x, int64_t b, int64_t i) {
    return (int32_t)((i * B + b) * x->at->stride % (x->n * B));
}

/* T tokens of sequences b0..b0+n-1, each from its own t0 on, into the cache and through it. */
static void pass(const cache *x, answer *a, int64_t b0, int64_t n, const int64_t *t0, int64_t T) {
    const problem *p = x->p;
    tp_ctx *c = x->c;
    int32_t slots[B * L], pages[B * 16], starts[B];
    int64_t width = (t0[n - 1] + T + x->at->page - 1) / x->at->page; /* of the longest */
    tp_tensor *part[3], *all[3] = {x->q, x->k, x->v}, *out[TP_MAXOUT] = {0};
    for (int64_t b = 0; b < n; b++) {
        starts[b] = (int32_t)t0[b];
        for (int64_t t = 0; t < T; t++) {
            int64_t at = t0[b] + t;
            slots[b * T + t] = page_of(x, b0 + b, at / x->at->page) * (int32_t)x->at->page +
                               (int32_t)(at % x->at->page);
        }
        for (int64_t i = 0; i < width; i++) { /* what nobody sees may say anything */
            bool used = i * x->at->page < t0[b] + T;
            pages[b * width + i] = used ? page_of(x, b0 + b, i) : -77;
        }
    }
    for (int i = 0; i < 3; i++) { /* rows t0[b].. of sequence b: as far apart as t0 grows */
        part[i] = tp_tensor_view(c, all[i]);
        assert_non_null(part[i]);
        int64_t apart = n > 1 ? t0[1] - t0[0] : 0;
        size_t first = (size_t)(b0 * all[i]->stride[0] + t0[0] * all[i]->stride[1]);
        part[i]->data = (char *)all[i]->data + first * tp_dtype_size(p->dtype);
        part[i]->shape[0] = n;
        part[i]->shape[1] = T;
        part[i]->stride[0] += apart * all[i]->stride[1];
    }
    tp_tensor *slot = put(c, TP_I32, 2, (int64_t[]){n, T}, slots);
    tp_tensor *table = put(c, TP_I32, 2, (int64_t[]){n, width}, pages);
    tp_tensor *start = put(c, TP_I32, 1, (int64_t[]){n}, starts);
    assert_int_equal(tp_cache_write_(c, x->key, part[1], slot), 0);
    assert_int_equal(tp_cache_write_(c, x->value, part[2], slot), 0);
    paged_attr attr = {.window = p->window, .sinks = p->sinks, .softcap = p->softcap};
    tp_tensor *in[] = {part[0], x->key, x->value, table, start};
    if (tp_op_run(c, &op_paged_attention, &attr, 5, in, out))
        fail_msg("%s: %s", p->name, tp_error(c));
    take(p, a, c, out, b0, t0);
}

static answer paged(const problem *p, const layout *at) {
    cache x = {.p = p, .at = at, .c = device_new(), .n = (L + at->page - 1) / at->page};
    answer a = answer_new(p);
    int64_t pool[4] = {x.n * B, at->page, p->Hkv, p->D}, t0[B];
    size_t n = (size_t)(x.n * B * at->page * p->Hkv * p->D) * tp_dtype_size(p->dtype);
    char *nan = malloc(n);
    assert_non_null(nan);
    memset(nan, 0xff, n); /* whoever reads what was not written has NaN */
    x.q = normal(x.c, p->dtype, 1, 4, (int64_t[]){B, L, p->H, p->D});
    x.k = normal(x.c, p->dtype, 2, 4, (int64_t[]){B, L, p->Hkv, p->D});
    x.v = normal(x.c, p->dtype, 3, 4, (int64_t[]){B, L, p->Hkv, p->D});
    x.key = put(x.c, p->dtype, 4, pool, nan);
    x.value = put(x.c, p->dtype, 4, pool, nan);
    free(nan);
    for (int64_t b = 0; b < B; b++) {
        t0[b] = (b + 1) * BEGIN;
        pass(&x, &a, b, 1, (int64_t[]){0}, t0[b]);
    }
    for (const int64_t *T = at->cut; *T; T++) {
        pass(&x, &a, 0, B, t0, *T);
        for (int64_t b = 0; b < B; b++) t0[b] += *T;
    }
    tp_ctx_free(x.c);
    return a;
}

/* Rows that both know and that differ. */
static int differing(const problem *p, const answer *a, const answer *b) {
    size_t row = (size_t)(p->H * p->D) * tp_dtype_size(p->dtype), stats = (size_t)p->H * 4;
    int n = 0;
    for (size_t i = 0; i < B * L; i++)
        n += a->known[i] && b->known[i] &&
             (memcmp(a->o + i * row, b->o + i * row, row) ||
              memcmp(a->lse + i * stats, b->lse + i * stats, stats));
    return n;
}

static const problem problems[] = {
    {"f32", TP_F32, 4, 2, 20, 0, 0, 0},
    {"f32, window", TP_F32, 2, 2, 8, 37, 0, 0},
    {"f32, softcap", TP_F32, 2, 1, 33, 0, 0, 3},
    {"bf16, D 64, grouped", TP_BF16, 4, 2, 64, 0, 0, 0},
    {"bf16, D 64, window, softcap", TP_BF16, 2, 1, 64, 37, 0, 3},
    {"bf16, D 96", TP_BF16, 1, 1, 96, 0, 0, 0},
    {"bf16, D 128, window", TP_BF16, 2, 1, 128, 70, 0, 0},
    {"bf16, D 128, softcap", TP_BF16, 1, 1, 128, 0, 0, 2},
    {"bf16, D 256", TP_BF16, 1, 1, 256, 0, 0, 0},
    {"bf16, D 20: no tensor cores", TP_BF16, 2, 1, 20, 0, 0, 0},
};

static void test_whole_forward(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof problems / sizeof *problems; i++) {
        const problem *p = &problems[i];
        answer want = whole(p, p->window), other = i % 3 ? answer_new(p) : whole(p, 36);
        for (int j = 0; j < LAYOUTS; j++) {
            if (i % 3 && (i + (size_t)j) % 2) continue; /* in half of the layouts, to save time */
            answer got = paged(p, &layouts[j]);
            if (differing(p, &got, &want))
                fail_msg("%s, pages of %lld: %d rows differ", p->name, (long long)layouts[j].page,
                         differing(p, &got, &want));
            if (i % 3 == 0) assert_true(differing(p, &got, &other) > 0); /* another window shows */
            answer_free(&got);
        }
        answer_free(&want);
        answer_free(&other);
    }
}

/* With sinks there is no such forward pass, unless they cover everything; layouts do not show. */
static void test_sinks(void **state) {
    (void)state;
    static const problem some[] = {{"f32, sinks", TP_F32, 2, 1, 8, 9, 5, 0},
                                   {"f32, many sinks", TP_F32, 2, 1, 8, 40, 70, 0},
                                   {"bf16, sinks", TP_BF16, 2, 1, 64, 33, 4, 0}};
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        answer want = paged(&some[i], &layouts[LAYOUTS - 1]),
               plain = whole(&some[i], some[i].window);
        for (int j = 0; j < LAYOUTS - 1; j++) {
            answer got = paged(&some[i], &layouts[j]);
            assert_int_equal(differing(&some[i], &got, &want), 0);
            assert_true(differing(&some[i], &got, &plain) > 0);
            answer_free(&got);
        }
        answer_free(&want);
        answer_free(&plain);
    }
    problem all = {"f32, all are sinks", TP_F32, 2, 1, 8, 9, L, 0};
    answer want = whole(&all, 0), got = paged(&all, &layouts[0]);
    assert_int_equal(differing(&all, &got, &want), 0);
    answer_free(&want);
    answer_free(&got);
}

/* On Hopper the forward pass has a kernel of its own, with other bits, unless they must be these.
 */
static void test_hopper(void **state) {
    (void)state;
#if defined(TP_CUDA_ON_CPU)
    const problem *p = &problems[3];
    emu_set_sm(90);
    answer want = whole(p, 0), got = paged(p, &layouts[0]);
    as_decoded = false;
    answer own = whole(p, 0);
    as_decoded = true;
    emu_set_sm(0);
    assert_int_equal(differing(p, &got, &want), 0);
    assert_true(differing(p, &got, &own) > 0);
    answer_free(&want);
    answer_free(&got);
    answer_free(&own);
#endif
}

/* ---- log-probs ------------------------------------------------------------------------------ */
static bool same(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    if (!x || !y) fail_msg("%s", tp_error(c));
    assert_int_equal(tp_numel(x), tp_numel(y));
    char *a = bytes(c, x), *b = bytes(c, y);
    bool yes = !memcmp(a, b, (size_t)tp_numel(x) * tp_dtype_size(x->dtype));
    free(a);
    free(b);
    return yes;
}

static void test_log_probs(void **state) {
    (void)state;
    static const int64_t vocab[] = {83, 1024, 1500, 9001};
    enum { N = 5, C = 24 };
    for (int i = 0; i < 32; i++) {
        tp_ctx *c = device_new();
        tp_dtype t = i % 2 ? TP_BF16 : TP_F32;
        bool lt = i / 4 % 2; /* on the CPU, cuBLASLt's stand-in: one plan for both products */
        if (lt) c->gemm = TP_GEMM_CUBLASLT;
        int64_t V = vocab[i / 8];
        double cap = i / 2 % 2 ? 4 : 0, temperature = i / 2 % 2 ? 0.7 : 1;
        int32_t y[N];
        for (int j = 0; j < N; j++) y[j] = j == 3 ? IGNORE : (int32_t)(j * 977 % V);
        tp_tensor *x = normal(c, t, 1, 2, (int64_t[]){N, C});
        tp_tensor *w = normal(c, t, 2, 2, (int64_t[]){V, C});
        tp_tensor *target = put(c, TP_I32, 1, (int64_t[]){N}, y);
        tp_lce_opts lo = {.softcap = cap, .temperature = temperature};
        tp_lce want = tp_linear_cross_entropy(c, x, w, target, &lo);
        tp_tensor *logits = tp_matmul(c, x, w, &(tp_matmul_opts){.trans_b = true, .f32 = true});
        tp_token_logprob_opts to = {.softcap = cap, .temperature = temperature};
        tp_token_logprob_out got = tp_token_logprob(c, logits, target, &to);
        assert_true(same(c, got.logprob, want.logprob));
        assert_true(same(c, got.entropy, want.entropy));
        if (lt) assert_int_equal(tp_cuda_gemm_stats_of(c).plans, 1);
        if (lt) assert_int_equal(tp_cuda_gemm_stats_of(c).cublaslt_runs, 2);
        to.temperature *= 1.0001;
        assert_false(same(c, tp_token_logprob(c, logits, target, &to).logprob, want.logprob));
        tp_ctx_free(c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_forward),
        cmocka_unit_test(test_sinks),
        cmocka_unit_test(test_hopper),
        cmocka_unit_test(test_log_probs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
