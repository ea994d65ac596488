/* A tape that is walked more than once, and what is handed to a walk: gradients by hand, and one
 * sentence where a gradient would be left out. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "autograd/autograd.h"
#include "core/ctx.h"
#include "ops/add/add.h"
#include "ops/fill/fill.h"
#include "ops/mul/mul.h"
#include "ops/scale/scale.h"
#include "ops/sum/sum.h"
#include <stdio.h>
#include <string.h>

enum { N = 4 };

typedef struct rig {
    tp_ctx *c;
    tp_tensor *a, *square; /* square = a a */
    tp_tensor *one, *ten;  /* sums of square and of 10 square */
} rig;

static rig open(void) {
    rig r = {0};
    assert_int_equal(tp_ctx_new(&r.c, &(tp_ctx_opts){.threads = 1}), 0);
    r.a = tp_tensor_keep(r.c, TP_F32, TP_SHAPE(N));
    for (int i = 0; i < N; i++) tp_f32(r.a)[i] = (float)(3 + i);
    tp_require_grad(r.a);
    tp_tape_on(r.c);
    r.square = tp_mul(r.c, r.a, r.a);
    r.one = tp_sum(r.c, r.square, TP_ALL_DIMS, false);
    r.ten = tp_sum(r.c, tp_scale(r.c, r.square, 10, 0), TP_ALL_DIMS, false);
    assert_int_equal(tp_error_status(r.c), 0);
    return r;
}

static void is(const tp_tensor *g, float factor) { /* factor a */
    assert_non_null(g);
    for (int i = 0; i < N; i++) assert_true(tp_f32(g)[i] == factor * (float)(3 + i));
}

static void refused(rig *r, tp_status got, tp_status want, const char *text) {
    assert_int_equal(got, want);
    assert_int_equal(tp_error_status(r->c), want);
    if (!strstr(tp_error(r->c), text)) fail_msg("said: %s", tp_error(r->c));
    tp_clear(r->c);
}

static void test_second_walk(void **state) {
    (void)state;
    rig r = open();
    assert_int_equal(tp_backward(r.c, r.one), 0);
    is(r.a->grad, 2);
    refused(&r, tp_backward(r.c, r.ten), TP_ESTATE, "an earlier walk");
    refused(&r, tp_backward(r.c, r.one), TP_ESTATE, "sum: an earlier walk");
    is(r.a->grad, 2); /* nothing was added */
    tp_tensor *again = tp_sum(r.c, tp_mul(r.c, r.a, r.a), TP_ALL_DIMS, false);
    assert_int_equal(tp_backward(r.c, again), 0); /* calls of their own */
    is(r.a->grad, 4);
    tp_ctx_free(r.c);
}

static void test_several_losses(void **state) {
    (void)state;
    rig r = open();
    assert_int_equal(tp_backward_from(r.c, 2, (tp_tensor *[]){r.one, r.ten}, NULL), 0);
    is(r.a->grad, 22);
    tp_ctx_free(r.c);
}

static void test_second_grad(void **state) {
    (void)state;
    tp_tensor *g = NULL;
    rig r = open();
    for (int i = 0; i < 3; i++) { /* the last lets go */
        tp_grad_opts keep = {.retain_graph = i < 2};
        assert_int_equal(tp_grad(r.c, i == 1 ? r.ten : r.one, NULL, 1, &r.a, &g, &keep), 0);
        is(g, i == 1 ? 20 : 2);
    }
    refused(&r, tp_grad(r.c, r.ten, NULL, 1, &r.a, &g, NULL), TP_ESTATE, "retain_graph");
    assert_null(g);
    refused(&r, tp_grad(r.c, r.ten, NULL, 1, &r.square, &g, NULL), TP_ESTATE, "retain_graph");
    refused(&r, tp_backward(r.c, r.ten), TP_ESTATE, "tp_backward_from");
    assert_null(r.a->grad);
    tp_ctx_free(r.c);
}

/* What is asked for is the output of a call that was walked before: nothing goes through that. */
static void test_grad_up_to_a_walked_call(void **state) {
    (void)state;
    rig r = open();
    tp_tensor *g[2] = {NULL}, *of[2] = {r.square, r.a};
    assert_int_equal(tp_grad(r.c, r.one, NULL, 1, &r.a, g, NULL), 0);
    tp_tensor *more = tp_sum(r.c, tp_scale(r.c, r.square, 5, 0), TP_ALL_DIMS, false);
    refused(&r, tp_grad(r.c, more, NULL, 2, of, g, &(tp_grad_opts){.retain_graph = true}),
            TP_ESTATE, "mul: an earlier walk");
    assert_int_equal(tp_grad(r.c, more, NULL, 1, &r.square, g, NULL), 0);
    for (int i = 0; i < N; i++) assert_true(tp_f32(g[0])[i] == 5);
    tp_ctx_free(r.c);
}

/* What a walk had gathered before it failed is no part of the next one's. */
static void test_failed_walk(void **state) {
    (void)state;
    rig r = open();
    tp_tensor *b = tp_require_grad(tp_full_like(r.c, r.a, 2));
    tp_tensor *wrong = tp_sum(r.c, tp_add(r.c, r.square, tp_mul(r.c, b, b)), TP_ALL_DIMS, false);
    tp_tape_off(r.c);
    tp_add_(r.c, b, r.a);
    tp_tape_on(r.c);
    refused(&r, tp_backward(r.c, wrong), TP_ESTATE, "was changed in place");
    tp_tensor *more = tp_sum(r.c, tp_scale(r.c, r.square, 5, 0), TP_ALL_DIMS, false);
    assert_int_equal(tp_backward(r.c, more), 0);
    is(r.a->grad, 10);
    tp_ctx_free(r.c);
}

static void test_wrong_dy(void **state) {
    (void)state;
    rig r = open();
    tp_tensor *g, *wide = tp_tensor_new(r.c, TP_F32, TP_SHAPE(N)),
                  *twice = tp_tensor_new(r.c, TP_F64, 0, NULL);
    refused(&r, tp_grad(r.c, r.one, wide, 1, &r.a, &g, NULL), TP_ESHAPE,
            "grad: dy is f32[4] for a tensor of f32[]");
    refused(&r, tp_grad(r.c, r.one, twice, 1, &r.a, &g, NULL), TP_EDTYPE, "dy is f64[]");
    refused(&r, tp_backward_from(r.c, 1, &r.one, &wide), TP_ESHAPE, "backward: dy is");
    tp_tensor *y[] = {r.ten, r.one}, *dy[] = {tp_full_like(r.c, r.ten, 1), wide};
    refused(&r, tp_backward_from(r.c, 2, y, dy), TP_ESHAPE, "backward: dy is");
    assert_int_equal(tp_backward(r.c, r.one), 0); /* nothing was lost */
    is(r.a->grad, 2);
    tp_ctx_free(r.c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_second_walk), cmocka_unit_test(test_several_losses),
        cmocka_unit_test(test_second_grad), cmocka_unit_test(test_grad_up_to_a_walked_call),
        cmocka_unit_test(test_failed_walk), cmocka_unit_test(test_wrong_dy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
