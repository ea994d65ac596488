/* Sums of gradients: the tree over samples for every split, uses apart, updates during the walk,
 * shards, refusals and failing allocations. The trees are also written out here, plainly. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "autograd/autograd.h"
#include "core/ctx.h"
#include "ops/add/add.h"
#include "ops/cast/cast.h"
#include "ops/convert.h"
#include "ops/mul/mul.h"
#include "ops/reshape/reshape.h"
#include "ops/sum/sum.h"
#include "optim/gradients.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 3 * 4096 + 100, SAMPLES = 16 };

typedef struct rig {
    tp_ctx *c;
    tp_comm *comm;
    tp_tensor *w;
    tp_param param;
    tp_params params;
    tp_optim *o;
    tp_gradients *g;
} rig;

static tp_optim_opts adamw(void) {
    return (tp_optim_opts){.kind = TP_OPTIM_ADAMW,
                           .learning_rate = 0.01,
                           .adam_beta1 = 0.9,
                           .adam_beta2 = 0.95,
                           .adam_epsilon = 1e-8,
                           .schedule = TP_CONSTANT,
                           .steps = 10};
}

static tp_status rig_open(rig *r, int ranks, int zero_stage, bool in_bwd, long fail_at) {
    *r = (rig){0};
    tp_status st = tp_ctx_new(&r->c, &(tp_ctx_opts){.threads = 1, .fail_alloc_at = fail_at});
    if (st) return st;
    if (ranks > 1)
        st = tp_comm_open(&r->comm, r->c,
                          &(tp_comm_opts){.kind = TP_COMM_PLAN, .plan_ranks = ranks});
    if (!st && !(r->w = tp_tensor_keep(r->c, TP_F32, TP_SHAPE(N)))) st = tp_error_status(r->c);
    if (st) return st;
    for (int i = 0; i < N; i++) tp_f32(r->w)[i] = (float)i / N;
    tp_require_grad(r->w);
    r->param = (tp_param){.name = "w", .t = r->w};
    r->params = (tp_params){&r->param, 1, 1};
    tp_optim_opts o = adamw();
    o.comm = r->comm;
    o.zero_stage = zero_stage;
    if (!(st = tp_optim_new(&r->o, r->c, &r->params, &o)))
        st = tp_gradients_new(
            &r->g, r->c, r->o,
            &(tp_gradients_opts){.bucket_bytes = 1 << 12, .optimizer_in_bwd = in_bwd});
    return st;
}

static void rig_close(rig *r) {
    tp_gradients_free(r->g);
    tp_optim_free(r->o);
    tp_comm_close(r->comm, NULL);
    tp_ctx_free(r->c);
}

/* Of very different sizes and signs, so that the order of a sum shows. */
static float grad_of(int sample, int i, int use) {
    double u = tp_uniform(7, TP_RNG_TEST, (uint64_t)(use * 1000 + sample), (uint64_t)i);
    return (float)((u - 0.5) *
                   pow(10, 8 * tp_uniform(8, TP_RNG_TEST, (uint64_t)sample, (uint64_t)i)));
}

/* sum over samples and values of w*x: each sample's gradient is its row of x. */
static tp_tensor *root(rig *r, int first, int rows, int use) {
    tp_tensor *x = tp_tensor_new(r->c, TP_F32, TP_SHAPE(rows, 1, N));
    for (int s = 0; x && s < rows; s++)
        for (int i = 0; i < N; i++) tp_f32(x)[s * N + i] = grad_of(first + s, i, use);
    return tp_sum(r->c, tp_mul(r->c, x, r->w), TP_ALL_DIMS, false);
}

/* One pass; with two uses of w, the second is the first that the walk back meets. */
static tp_status walk(rig *r, int first, int rows, int uses) {
    tp_tensor *y[2] = {0};
    tp_status st = tp_tape_on(r->c);
    tp_gradients_pass(r->g, rows);
    for (int use = 0; use < uses; use++) y[use] = root(r, first, rows, use);
    if (!st && !(st = tp_error_status(r->c))) st = tp_backward_from(r->c, uses, y, NULL);
    tp_tape_off(r->c);
    tp_step_end(r->c);
    return st;
}

/* ---- the tree, plainly ----------------------------------------------------------------------- */
/* The sum over samples [first, first+n): halves of the next power of two, left + right. */
static float tree(int first, int n, int i, int use) {
    if (n == 1) return grad_of(first, i, use);
    int half = 1;
    while (2 * half < n) half *= 2;
    return tree(first, half, i, use) + tree(first + half, n - half, i, use);
}

static void check(rig *r, int samples, int uses, const char *split) {
    const tp_tensor *g = r->w->grad;
    assert_non_null(g);
    int differ = 0;
    for (int i = 0; i < N; i++) {
        float want = tree(0, samples, i, uses == 2); /* the later use is walked first */
        if (uses == 2) want += tree(0, samples, i, 0);
        if (tp_f32(g)[i] != want)
            fail_msg("%s: value %d is %.9g, the tree gives %.9g", split, i, (double)tp_f32(g)[i],
                     (double)want);
        float chain = 0;
        for (int s = 0; s < samples; s++) chain += grad_of(s, i, uses == 2);
        if (uses == 2) chain += tree(0, samples, i, 0);
        differ += chain != want;
    }
    assert_true(samples < 4 || differ > N / 10); /* the order shows in these numbers */
}

/* Passes as the trainer makes them: aligned powers of two, or all at once. */
static void test_every_split(void **state) {
    (void)state;
    for (int uses = 1; uses <= 2; uses++)
        for (int samples = 1; samples <= SAMPLES; samples += samples < 8 ? 1 : 4)
            for (int most = 1; most <= 16; most *= 2) {
                rig r;
                int first[SAMPLES], n[SAMPLES], passes = 0;
                for (int at = 0; at < samples; passes++) {
                    int k = 1;
                    while (2 * k <= samples - at && at % (2 * k) == 0 && 2 * k <= most) k *= 2;
                    if (most >= samples) k = samples;
                    first[passes] = at;
                    n[passes] = k;
                    at += k;
                }
                assert_int_equal(rig_open(&r, 1, 0, false, 0), TP_OK);
                for (int step = 0; step < 2; step++) { /* the second forgets the first */
                    assert_int_equal(tp_gradients_begin(r.g, step, passes), TP_OK);
                    for (int p = 0; p < passes; p++)
                        assert_int_equal(walk(&r, first[p], n[p], uses), TP_OK);
                    assert_int_equal(tp_gradients_end(r.g), TP_OK);
                }
                char what[64];
                snprintf(what, sizeof what, "%d samples in %d passes, %d uses", samples, passes,
                         uses);
                check(&r, samples, uses, what);
                rig_close(&r);
            }
}

/* ---- updates during the walk ----------------------------------------------------------------- */
static void step_of(rig *r, int64_t step) {
    tp_optim_report rep;
    assert_int_equal(tp_gradients_begin(r->g, step, 1), TP_OK);
    assert_int_equal(walk(r, (int)step, 2, 2), TP_OK);
    assert_int_equal(tp_gradients_end(r->g), TP_OK);
    assert_int_equal(tp_optim_step(r->o, step, &rep), TP_OK);
    assert_true(rep.grad_norm > 0 && isfinite(rep.grad_norm));
    tp_gradients_clear(r->g);
    tp_step_end(r->c);
}

static void test_optimizer_in_bwd(void **state) {
    (void)state;
    rig a, b;
    assert_int_equal(rig_open(&a, 1, 0, false, 0), TP_OK);
    assert_int_equal(rig_open(&b, 1, 0, true, 0), TP_OK);
    for (int step = 0; step < 3; step++) {
        step_of(&a, step);
        step_of(&b, step);
        assert_memory_equal(a.w->data, b.w->data, N * sizeof(float));
    }
    assert_true(tp_f32(a.w)[5] != 5.0f / N);
    assert_int_equal(tp_gradients_begin(b.g, 3, 2), TP_EARG);
    assert_non_null(strstr(tp_error(b.c), "in one backward pass on one rank, got 2 passes"));
    rig_close(&a);
    rig_close(&b);
}

static void test_bad_gradient_in_bwd(void **state) {
    (void)state;
    rig r;
    assert_int_equal(rig_open(&r, 1, 0, true, 0), TP_OK);
    tp_f32(r.w)[0] = 1;
    assert_int_equal(tp_gradients_begin(r.g, 7, 1), TP_OK);
    tp_tape_on(r.c);
    tp_gradients_pass(r.g, 1);
    tp_tensor *x = tp_tensor_new(r.c, TP_F32, TP_SHAPE(N));
    for (int i = 0; i < N; i++) tp_f32(x)[i] = i == 4100 ? NAN : 1;
    assert_int_equal(tp_backward(r.c, tp_sum(r.c, tp_mul(r.c, x, r.w), TP_ALL_DIMS, false)),
                     TP_ENUMERIC);
    assert_non_null(strstr(tp_error(r.c), "step 8: the gradient of w is not finite"));
    assert_true(tp_f32(r.w)[0] == 1); /* this one has not moved */
    rig_close(&r);
}

static void test_leaf_outside_the_table(void **state) {
    (void)state;
    rig r;
    assert_int_equal(rig_open(&r, 1, 0, false, 0), TP_OK);
    r.param.t = tp_tensor_keep(r.c, TP_F32, TP_SHAPE(N)); /* the table names another tensor */
    assert_int_equal(tp_gradients_begin(r.g, 0, 1), TP_OK);
    assert_int_equal(walk(&r, 0, 1, 1), TP_ESTATE);
    assert_non_null(strstr(tp_error(r.c), "is not in the parameter table"));
    rig_close(&r);
}

/* ---- shards: what ->grad is, on rank 0 of ranks that send nothing ------------------------------
 */
static void test_shards(void **state) {
    (void)state;
    for (int zero = 0; zero <= 2; zero++) {
        rig r;
        tp_optim_report rep;
        assert_int_equal(rig_open(&r, 4, zero, false, 0), TP_OK);
        for (int step = 0; step < 2; step++) {
            assert_int_equal(tp_gradients_begin(r.g, step, 2), TP_OK);
            assert_int_equal(walk(&r, 0, 2, 2), TP_OK);
            assert_int_equal(walk(&r, 2, 2, 2), TP_OK);
            assert_int_equal(tp_gradients_end(r.g), TP_OK);
            tp_range own = tp_optim_own(r.o, 0);
            assert_int_equal(own.first, 0);
            assert_int_equal(own.n, zero ? 4096 : N);
            assert_int_equal(tp_numel(r.w->grad), own.n);
            for (int i = 0; i < own.n; i++)
                assert_true(tp_f32(r.w->grad)[i] == tree(0, 4, i, 1) + tree(0, 4, i, 0));
            if (zero == 2) assert_true(r.w->grad->storage->bytes <= 4096 * sizeof(float));
            float last = tp_f32(r.w)[N - 1], before = tp_f32(r.w)[0];
            assert_int_equal(tp_optim_step(r.o, step, &rep), TP_OK);
            assert_true(tp_f32(r.w)[0] != before);
            if (zero) assert_true(tp_f32(r.w)[N - 1] == last); /* another rank's to move */
            tp_gradients_clear(r.g);
            tp_step_end(r.c);
        }
        assert_int_equal(tp_optim_state_count(r.o), 2);
        rig_close(&r);
    }
}

/* ---- handing on ------------------------------------------------------------------------------ */
enum { HANDED = 6 };
typedef struct taken {
    int n, fills;
    tp_tensor *leaf[2];
    float first[2][HANDED];
    tp_storage *storage[2];
} taken;

static tp_status take(void *arg, tp_ctx *c, tp_tensor *leaf, int use, tp_tensor *g) {
    taken *t = arg;
    (void)c, (void)use;
    assert_true(t->n < 2);
    assert_int_equal(g->dtype, TP_F32);
    assert_int_equal(g->storage->refs, 1); /* alone with its bytes */
    t->leaf[t->n] = leaf;
    tp_storage_retain(t->storage[t->n] = g->storage);
    memcpy(t->first[t->n], g->data, sizeof t->first[0]);
    tp_f32(g)[0] = 77; /* and may do with them what it likes */
    t->n++;
    return TP_OK;
}
static void see_call(void *arg, const tp_call *k, int at, int of, bool saves) {
    (void)at, (void)of, (void)saves;
    ((taken *)arg)->fills += k->backward && !strcmp(k->op->name, "fill");
}
static void see_grad(void *arg, const tp_tensor *t, const tp_tensor *sum) {
    (void)arg, (void)t, (void)sum;
}

/* which: 0: a weight in bf16, whose gradient is summed in f32 and handed on by its cast;
 * 1: one gradient for two weights; 2: the caller's own, of which the weight is a view. */
static taken hand_on(int which, float dy0) {
    tp_ctx *c;
    taken t = {0};
    assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1}), TP_OK);
    tp_tensor *w[2], *y, *dy;
    for (int i = 0; i < 2; i++) {
        w[i] = tp_tensor_keep(c, TP_F32, TP_SHAPE(HANDED));
        for (int j = 0; j < HANDED; j++) tp_f32(w[i])[j] = (float)(i + j);
        tp_require_grad(w[i]);
    }
    tp_tape_on(c);
    tp_tape_trace(c, true);
    tp_tape_watch watch = {&t, see_call, see_grad};
    tp_tape_watch_by(c, &watch);
    tp_tape_sink(c, &(tp_grad_sink){.arg = &t, .take = take});
    if (which == 0) {
        tp_tensor *x = tp_tensor_new(c, TP_F32, TP_SHAPE(3, 1, HANDED));
        for (int j = 0; j < 3 * HANDED; j++) tp_f32(x)[j] = j < HANDED ? 1.0f : 0.0f;
        y = tp_mul(c, tp_cast(c, x, TP_BF16), tp_cast(c, w[0], TP_BF16));
    } else if (which == 1) {
        y = tp_cast(c, tp_add(c, w[0], w[1]), TP_BF16);
    } else {
        y = tp_reshape(c, w[0], TP_SHAPE(2, HANDED / 2));
    }
    assert_non_null(y);
    dy = tp_tensor_new(c, y->dtype, y->ndim, y->shape);
    for (int64_t j = 0; j < tp_numel(dy); j++) tp_set(dy, j, j ? (double)j : (double)dy0);
    assert_int_equal(tp_backward_from(c, 1, &y, &dy), TP_OK);
    assert_true(tp_get(dy, 0) == (double)dy0); /* nobody wrote there */
    for (int i = 0; i < t.n; i++) {
        assert_true(t.storage[i] != dy->storage && t.storage[i] != w[0]->storage);
        tp_storage_drop(c, t.storage[i]);
    }
    assert_true(t.n < 2 || t.storage[0] != t.storage[1]);
    tp_tape_sink(c, NULL);
    tp_ctx_free(c);
    for (int i = 0; i < t.n; i++)
        for (int j = 1; j < HANDED; j++) assert_true(t.first[i][j] == (float)j);
    return t;
}

static void test_handing_on(void **state) {
    (void)state;
    taken t = hand_on(0, 5);
    assert_true(t.n == 1 && t.first[0][0] == 5);
    assert_int_equal(t.fills, 0); /* handed on: nothing was copied */
    t = hand_on(1, 5);
    assert_true(t.n == 2 && t.leaf[0] != t.leaf[1] && t.first[0][0] == 5 && t.first[1][0] == 5);
    assert_int_equal(t.fills, 1); /* the first of the two has a copy, the second what is left */
    t = hand_on(2, -0.0f);
    assert_true(t.n == 1 && t.first[0][0] == 0);
    assert_int_equal(t.fills, 1); /* the caller's bytes are not given away */
}

/* ---- failing allocations -----------------------------------------------------------------------
 */
static void test_failing_allocations(void **state) {
    (void)state;
    for (int zero = 0; zero <= 2; zero += 2)
        for (long at = 1;; at++) {
            rig r;
            tp_status st = rig_open(&r, zero ? 2 : 1, zero, false, at);
            bool opened = st == TP_OK;
            for (int step = 0; step < 2 && !st; step++) {
                tp_optim_report rep;
                st = tp_gradients_begin(r.g, step, 4);
                for (int p = 0; p < 4 && !st; p++) st = walk(&r, p, 1, 2);
                if (!st) st = tp_gradients_end(r.g);
                if (!st) st = tp_optim_step(r.o, step, &rep);
                tp_gradients_clear(opened ? r.g : NULL);
            }
            if (r.c && r.c->fail_alloc_at > 0) { /* never struck: all were tried */
                assert_int_equal(st, TP_OK);
                rig_close(&r);
                assert_true(at > 10);
                break;
            }
            assert_int_equal(st, TP_ENOMEM);
            if (opened) { /* taken again, it goes well */
                tp_step_end(r.c);
                tp_clear(r.c);
                assert_int_equal(tp_gradients_begin(r.g, 2, 4), 0);
                for (int p = 0; p < 4; p++) assert_int_equal(walk(&r, p, 1, 2), 0);
                assert_int_equal(tp_gradients_end(r.g), 0);
                tp_gradients_clear(r.g);
            }
            if (r.c) rig_close(&r);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_split),
        cmocka_unit_test(test_optimizer_in_bwd),
        cmocka_unit_test(test_bad_gradient_in_bwd),
        cmocka_unit_test(test_leaf_outside_the_table),
        cmocka_unit_test(test_shards),
        cmocka_unit_test(test_handing_on),
        cmocka_unit_test(test_failing_allocations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
