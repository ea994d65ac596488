/* linear_cross_entropy: its promises about bits, memory and hostile targets. The values themselves
 * are checked by op_test; here the two routes to a gradient, every cut and every split must agree
 * exactly. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "autograd/autograd.h"
#include "ops/linear_cross_entropy/linear_cross_entropy.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct result { /* of one training step's head */
    tp_ctx *c;
    tp_tensor *x, *w, *y, *loss, *logprob, *entropy; /* loss: per token, or summed */
    tp_status st;
} result;

typedef struct problem {
    int64_t b, t, c, v, from; /* from: the global number of the first sample */
    int threads;
    bool train, backward;
    tp_lce_opts o;
} problem;

static void fill_normal(tp_tensor *t, uint64_t which, uint64_t first) {
    for (int64_t i = 0; i < tp_numel(t); i++)
        tp_f32(t)[i] = (float)tp_normal(7, TP_RNG_TEST, which, first + (uint64_t)i);
}

static void head(result *r, const problem *p) {
    tp_lce_opts o = p->o;
    if (p->train) {
        tp_lce_sum s = tp_linear_cross_entropy_train(r->c, r->x, r->w, r->y, NULL, &o);
        r->loss = s.loss, r->logprob = s.logprob, r->entropy = s.entropy;
        if (s.loss && p->backward) tp_backward(r->c, s.loss);
    } else {
        tp_lce s = tp_linear_cross_entropy(r->c, r->x, r->w, r->y, &o);
        r->loss = s.loss, r->logprob = s.logprob, r->entropy = s.entropy;
        if (!s.loss || !p->backward) return;
        tp_tensor *ones = tp_tensor_new(r->c, TP_F32, s.loss->ndim, s.loss->shape);
        assert_non_null(ones);
        for (int64_t i = 0; i < tp_numel(ones); i++) tp_f32(ones)[i] = 1;
        tp_backward_from(r->c, 1, &s.loss, &ones);
    }
}

static bool bf16_products;

static result run(const problem *p) {
    result r = {0};
    tp_ctx_opts how = {.threads = p->threads ? p->threads : 2, .bf16_products = bf16_products};
    assert_int_equal(tp_ctx_new(&r.c, &how), TP_OK);
    r.x = tp_require_grad(tp_tensor_keep(r.c, TP_F32, TP_SHAPE(p->b, p->t, p->c)));
    r.w = tp_require_grad(tp_tensor_keep(
        r.c, TP_F32, 2, p->o.trans_w ? (int64_t[]){p->c, p->v} : (int64_t[]){p->v, p->c}));
    r.y = tp_tensor_keep(r.c, TP_I32, TP_SHAPE(p->b, p->t));
    fill_normal(r.x, 1, (uint64_t)(p->from * p->t * p->c));
    for (int64_t v = 0; v < p->v; v++)
        for (int64_t j = 0; j < p->c; j++)
            tp_f32(r.w)[p->o.trans_w ? j * p->v + v : v * p->c + j] =
                (float)tp_normal(7, TP_RNG_TEST, 2, (uint64_t)(v * p->c + j));
    for (int64_t i = 0; i < p->b * p->t; i++) {
        uint64_t at = (uint64_t)(p->from * p->t + i);
        int32_t y = (int32_t)(tp_uniform(7, TP_RNG_TEST, 3, at) * (double)p->v);
        tp_i32(r.y)[i] = at % 5 == 3 ? -100 : y;
    }
    if (p->backward) tp_tape_on(r.c);
    head(&r, p);
    r.st = tp_error_status(r.c);
    return r;
}

static void same(const tp_tensor *a, const tp_tensor *b) {
    assert_non_null(a);
    assert_non_null(b);
    assert_true(tp_same_shape(a, b));
    assert_memory_equal(a->data, b->data, (size_t)tp_numel(a) * sizeof(float));
}

static void expect_same_bits(const problem *p, const problem *q) {
    result a = run(p), b = run(q);
    assert_string_equal(tp_error(a.c), "");
    assert_string_equal(tp_error(b.c), "");
    same(a.logprob, b.logprob);
    same(a.entropy, b.entropy);
    if (p->train == q->train) same(a.loss, b.loss);
    if (p->backward && q->backward) {
        same(a.x->grad, b.x->grad);
        same(a.w->grad, b.w->grad);
    }
    tp_ctx_free(a.c);
    tp_ctx_free(b.c);
}

static void test_train_and_recompute_agree(void **state) {
    (void)state;
    problem p = {.b = 5,
                 .t = 37,
                 .c = 33,
                 .v = 1301,
                 .backward = true,
                 .o = {.z_loss = 1e-3, .softcap = 9, .temperature = 1.1}},
            q = p;
    q.train = true;
    expect_same_bits(&p, &q);
    p.o.trans_w = q.o.trans_w = true;
    expect_same_bits(&p, &q);
    q.o.chunk = 11; /* parts of samples here, all whole samples there */
    expect_same_bits(&p, &q);
}

static void test_no_cut_shows(void **state) {
    (void)state;
    for (int train = 0; train < 2; train++)
        for (int64_t chunk = 1; chunk <= 1000; chunk = chunk * 3 + 1) {
            problem p = {.b = 7, .t = 13, .c = 24, .v = 2500, .backward = true, .train = train},
                    q = p;
            q.o.chunk = chunk;
            q.threads = 1 + (int)(chunk % 3);
            expect_same_bits(&p, &q);
        }
}

static void test_layouts_of_w_agree(void **state) {
    (void)state;
    problem p = {.b = 3, .t = 9, .c = 40, .v = 777}, q = p;
    q.o.trans_w = true;
    expect_same_bits(&p, &q);
}

/* A token's values depend on its row alone: one token decoded, or the same in a batch. */
static void test_rows_stand_alone(void **state) {
    (void)state;
    problem p = {.b = 6, .t = 3, .c = 50, .v = 1999}, q = {.b = 1, .t = 3, .c = 50, .v = 1999};
    result all = run(&p);
    for (q.from = 0; q.from < 6; q.from++) {
        result one = run(&q);
        for (int i = 0; i < 3; i++) {
            assert_memory_equal(tp_f32(one.logprob) + i, tp_f32(all.logprob) + q.from * 3 + i, 4);
            assert_memory_equal(tp_f32(one.entropy) + i, tp_f32(all.entropy) + q.from * 3 + i, 4);
        }
        tp_ctx_free(one.c);
    }
    tp_ctx_free(all.c);
}

/* Gradients and loss of aligned halves add up, bit for bit, to those of the whole. */
static void test_halves_are_subtrees(void **state) {
    (void)state;
    for (int train = 0; train < 2; train++) {
        problem p = {
            .b = 7, .t = 5, .c = 16, .v = 600, .backward = true, .train = train, .o.chunk = 11};
        problem left = p, right = p;
        left.b = 4, right.b = 3, right.from = 4;
        result a = run(&p), l = run(&left), r = run(&right);
        for (int64_t i = 0; i < tp_numel(a.w); i++) {
            float sum = tp_f32(l.w->grad)[i] + tp_f32(r.w->grad)[i];
            assert_memory_equal(&sum, tp_f32(a.w->grad) + i, 4);
        }
        if (train) {
            float sum = tp_f32(l.loss)[0] + tp_f32(r.loss)[0];
            assert_memory_equal(&sum, tp_f32(a.loss), 4);
        }
        tp_ctx_free(a.c);
        tp_ctx_free(l.c);
        tp_ctx_free(r.c);
    }
}

/* A chunk that cut a pair of tokens in two would show here. */
static void test_the_same_in_bf16(void **state) {
    problem p = {.b = 2, .t = 9, .c = 40, .v = 77};
    result exact = run(&p);
    bf16_products = true;
    result rounded = run(&p);
    assert_memory_not_equal(exact.logprob->data, rounded.logprob->data, 2 * 9 * sizeof(float));
    test_train_and_recompute_agree(state);
    test_no_cut_shows(state);
    test_layouts_of_w_agree(state);
    test_rows_stand_alone(state);
    test_halves_are_subtrees(state);
    bf16_products = false;
    tp_ctx_free(exact.c);
    tp_ctx_free(rounded.c);
}

static void test_all_ignored(void **state) {
    (void)state;
    for (int train = 0; train < 2; train++) {
        problem p = {.b = 2, .t = 4, .c = 8, .v = 30, .train = train};
        result r = run(&p);
        for (int i = 0; i < 8; i++) tp_i32(r.y)[i] = -100;
        tp_tape_on(r.c);
        p.backward = true;
        head(&r, &p);
        assert_string_equal(tp_error(r.c), "");
        for (int64_t i = 0; i < tp_numel(r.loss); i++) assert_true(tp_f32(r.loss)[i] == 0);
        for (int64_t i = 0; i < tp_numel(r.w); i++) assert_true(tp_f32(r.w->grad)[i] == 0);
        for (int64_t i = 0; i < tp_numel(r.x); i++) assert_true(tp_f32(r.x->grad)[i] == 0);
        tp_ctx_free(r.c);
    }
}

static void test_nan_shows(void **state) {
    (void)state;
    problem p = {.b = 1, .t = 4, .c = 8, .v = 700};
    result r = run(&p);
    tp_f32(r.w)[650 * 8 + 3] = NAN; /* one logit of the second block, no target */
    head(&r, &p);
    for (int i = 0; i < 3; i++)
        assert_true(isnan(tp_f32(r.loss)[i]) && isnan(tp_f32(r.entropy)[i]));
    assert_true(tp_f32(r.loss)[3] == 0); /* the ignored one */
    tp_ctx_free(r.c);
}

/* exp of these logits overflows without the running maximum. */
static void test_huge_logits(void **state) {
    (void)state;
    problem p = {.b = 1, .t = 2, .c = 4, .v = 1100};
    result r = run(&p);
    for (int64_t i = 0; i < tp_numel(r.w); i++) tp_f32(r.w)[i] *= 1000;
    for (int i = 0; i < 2; i++) tp_i32(r.y)[i] = i;
    head(&r, &p);
    for (int i = 0; i < 2; i++) {
        double raw[1100], m = -1e30, sum = 0;
        for (int v = 0; v < 1100; v++) {
            raw[v] = 0;
            for (int j = 0; j < 4; j++)
                raw[v] += (double)tp_f32(r.x)[i * 4 + j] * (double)tp_f32(r.w)[v * 4 + j];
            m = raw[v] > m ? raw[v] : m;
        }
        for (int v = 0; v < 1100; v++) sum += exp(raw[v] - m);
        double want = m + log(sum) - raw[i];
        assert_true(fabs((double)tp_f32(r.loss)[i] - want) <= 1e-5 * fabs(m) + 1e-5 * want);
    }
    tp_ctx_free(r.c);
}

static void test_wrong_targets_are_refused(void **state) {
    (void)state;
    static const int32_t wrong[] = {30, -1, INT32_MAX, INT32_MIN, -99};
    for (int train = 0; train < 2; train++)
        for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
            problem p = {.b = 2, .t = 4, .c = 8, .v = 30, .train = train};
            result r = run(&p);
            tp_i32(r.y)[6] = wrong[i];
            head(&r, &p);
            assert_int_equal(tp_error_status(r.c), TP_EARG);
            char want[64];
            snprintf(want, sizeof want, "target %d at position 6 ", wrong[i]);
            assert_non_null(strstr(tp_error(r.c), want));
            assert_null(r.loss);
            tp_ctx_free(r.c);
        }
}

/* The plan for a real vocabulary: the whole logits never fit under this peak. */
static void test_memory_stays_small(void **state) {
    (void)state;
    int64_t n = 65536, v = 151936, c = 64;
    tp_ctx *m;
    assert_int_equal(
        tp_ctx_new(&m, &(tp_ctx_opts){.threads = 2, .meta = true, .memory_limit = (size_t)1 << 40}),
        TP_OK);
    tp_tensor *x = tp_require_grad(tp_tensor_keep(m, TP_F32, TP_SHAPE(64, n / 64, c)));
    tp_tensor *w = tp_require_grad(tp_tensor_keep(m, TP_F32, TP_SHAPE(v, c)));
    tp_tensor *y = tp_tensor_keep(m, TP_I32, TP_SHAPE(64, n / 64));
    size_t before = tp_memory_peak(m), logits = (size_t)n * (size_t)v * 4;
    tp_tape_on(m);
    tp_lce s = tp_linear_cross_entropy(m, x, w, y, NULL);
    assert_non_null(s.loss);
    assert_true(tp_memory_peak(m) - before < (size_t)32 << 20);
    tp_ctx_free(m);
    assert_true(logits > (size_t)39e9);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_train_and_recompute_agree),
        cmocka_unit_test(test_no_cut_shows),
        cmocka_unit_test(test_layouts_of_w_agree),
        cmocka_unit_test(test_rows_stand_alone),
        cmocka_unit_test(test_halves_are_subtrees),
        cmocka_unit_test(test_the_same_in_bf16),
        cmocka_unit_test(test_all_ignored),
        cmocka_unit_test(test_nan_shows),
        cmocka_unit_test(test_huge_logits),
        cmocka_unit_test(test_wrong_targets_are_refused),
        cmocka_unit_test(test_memory_stays_small),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
