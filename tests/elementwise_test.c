/* What op samples cannot say about elementwise ops and reductions: the order of sums, dropout's
 * independence of batch splits, aliasing, ties, NaN, and the builders' refusals. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "autograd/autograd.h"
#include "core/ctx.h"
#include "ops/add/add.h"
#include "ops/cast/cast.h"
#include "ops/copy/copy.h"
#include "ops/dropout/dropout.h"
#include "ops/expand/expand.h"
#include "ops/fill/fill.h"
#include "ops/max/max.h"
#include "ops/minimum/minimum.h"
#include "ops/mul/mul.h"
#include "ops/relu/relu.h"
#include "ops/scale/scale.h"
#include "ops/sum/sum.h"
#include "ops/where/where.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

static tp_ctx *fresh(int threads) {
    tp_ctx *c;
    assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.threads = threads, .seed = 11}), 0);
    return c;
}

static tp_tensor *noise(tp_ctx *c, int ndim, const int64_t *shape) {
    tp_tensor *t = tp_tensor_keep(c, TP_F32, ndim, shape);
    assert_non_null(t);
    for (int64_t i = 0, n = tp_numel(t); i < n; i++)
        tp_f32(t)[i] = (float)tp_normal(1, TP_RNG_TEST, 0, (uint64_t)i);
    return t;
}

/* Samples from..from+n-1 of x. */
static tp_tensor *batch(tp_ctx *c, tp_tensor *x, int64_t from, int64_t n) {
    tp_tensor *v = tp_tensor_view(c, x);
    assert_non_null(v);
    v->shape[0] = n;
    v->data = tp_f32(x) + from * x->stride[0];
    return v;
}

static void assert_bits(const tp_tensor *a, const tp_tensor *b) {
    assert_true(a && b && tp_same_shape(a, b));
    assert_memory_equal(a->data, b->data, (size_t)tp_numel(a) * tp_dtype_size(a->dtype));
}

/* ---- sums ----------------------------------------------------------------------------------- */
static void subbatches_are_subtrees(void **state) {
    (void)state;
    static const unsigned dims[] = {1, 3, 7, 5};
    tp_ctx *c = fresh(2);
    tp_tensor *x = noise(c, TP_SHAPE(8, 37, 150));
    for (int i = 0; i < 4; i++) {
        tp_tensor *all = tp_sum(c, x, dims[i], false), *half[2], *quarter[4];
        for (int q = 0; q < 4; q++) quarter[q] = tp_sum(c, batch(c, x, 2 * q, 2), dims[i], false);
        for (int h = 0; h < 2; h++) {
            half[h] = tp_sum(c, batch(c, x, 4 * h, 4), dims[i], false);
            assert_bits(half[h], tp_add(c, quarter[2 * h], quarter[2 * h + 1]));
        }
        assert_bits(all, tp_add(c, half[0], half[1]));
    }
    /* an unaligned split must not agree, or the check above shows nothing */
    tp_tensor *a = tp_sum(c, batch(c, x, 0, 3), 3, false),
              *b = tp_sum(c, batch(c, x, 3, 5), 3, false);
    tp_tensor *y = tp_add(c, a, b), *all = tp_sum(c, x, 3, false);
    assert_int_not_equal(memcmp(y->data, all->data, 150 * sizeof(float)), 0);
    tp_ctx_free(c);
}

/* sum.h's order, written out. */
static float sum_as_stated(const float *x, int B, int T, int C) {
    float leaf[8];
    assert_true(B == 5);
    for (int b = 0; b < B; b++) {
        leaf[b] = 0;
        for (int t = 0; t < T; t++) {
            float lane[16] = {0};
            for (int i = 0; i < C; i++) lane[i % 16] += x[(b * T + t) * C + i];
            for (int h = 8; h; h /= 2)
                for (int l = 0; l < h; l++) lane[l] += lane[l + h];
            leaf[b] += lane[0];
        }
    }
    return ((leaf[0] + leaf[1]) + (leaf[2] + leaf[3])) + leaf[4];
}

static void order_is_as_stated(void **state) {
    (void)state;
    tp_ctx *c = fresh(2);
    tp_tensor *x = noise(c, TP_SHAPE(5, 7, 45)), *y = tp_sum(c, x, TP_ALL_DIMS, false);
    assert_non_null(y);
    assert_int_equal(y->ndim, 0);
    float want = sum_as_stated(tp_f32(x), 5, 7, 45);
    assert_memory_equal(&want, y->data, sizeof want);
    /* and a strided x gives the same bits */
    tp_tensor *wide = noise(c, TP_SHAPE(5, 7, 90)), *v = tp_tensor_view(c, wide);
    v->shape[2] = 45;
    v->stride[2] = 2;
    for (int i = 0; i < 5 * 7 * 45; i++) tp_f32(wide)[2 * i] = tp_f32(x)[i];
    assert_bits(y, tp_sum(c, v, TP_ALL_DIMS, false));
    tp_ctx_free(c);
}

static void means(void **state) {
    (void)state;
    tp_ctx *c = fresh(1);
    tp_tensor *x = tp_full(c, TP_F32, 3, TP_SHAPE(4, 5)), *y = tp_mean(c, x, TP_ALL_DIMS, true);
    assert_true(y && y->ndim == 2 && tp_f32(y)[0] == 3);
    assert_null(tp_mean(c, tp_zeros(c, TP_F32, TP_SHAPE(2, 0)), 2, false));
    assert_int_equal(tp_error_status(c), TP_ESHAPE);
    assert_non_null(strstr(tp_error(c), "mean: "));
    tp_ctx_free(c);
}

static void sum_to_refuses(void **state) {
    (void)state;
    tp_ctx *c = fresh(1);
    tp_tensor *x = noise(c, TP_SHAPE(2, 3));
    assert_ptr_equal(tp_sum_to(c, x, TP_SHAPE(2, 3)), x);
    assert_null(tp_sum_to(c, x, TP_SHAPE(4)));
    assert_non_null(strstr(tp_error(c), "sum_to: f32[2,3] cannot have come from f32[4]"));
    tp_clear(c);
    assert_null(tp_sum_to(c, x, TP_SHAPE(1, 2, 3)));
    assert_int_equal(tp_error_status(c), TP_ESHAPE);
    tp_ctx_free(c);
}

/* ---- dropout -------------------------------------------------------------------------------- */
static tp_tensor *drop_at(tp_ctx *c, tp_tensor *x, uint64_t step, uint64_t sample, int site) {
    tp_rng_at(c, step, sample);
    c->stream = (uint32_t)site;
    return tp_dropout(c, x, 0.3);
}

static void dropout_ignores_the_split(void **state) {
    (void)state;
    tp_ctx *c = fresh(2), *one = fresh(1);
    tp_tensor *x = noise(c, TP_SHAPE(4, 33, 301)), *all = drop_at(c, x, 5, 40, 1);
    assert_bits(all, drop_at(one, noise(one, TP_SHAPE(4, 33, 301)), 5, 40, 1));
    for (int b = 0; b < 4; b++) {
        tp_tensor *part = drop_at(c, batch(c, x, b, 1), 5, 40 + (uint64_t)b, 1);
        assert_bits(part, batch(c, all, b, 1));
    }
    /* another step, sample, site or seed is another mask */
    tp_tensor *other[4] = {drop_at(c, x, 6, 40, 1), drop_at(c, x, 5, 41, 1),
                           drop_at(c, x, 5, 40, 2)};
    c->seed++;
    other[3] = drop_at(c, x, 5, 40, 1);
    for (int i = 0; i < 4; i++) {
        int64_t same = 0, n = tp_numel(x);
        for (int64_t e = 0; e < n; e++) same += !tp_f32(other[i])[e] == !tp_f32(all)[e];
        assert_true(fabs((double)same / (double)n - 0.58) < 0.01); /* 0.7^2 + 0.3^2 */
    }
    tp_ctx_free(c);
    tp_ctx_free(one);
}

static void dropout_rates(void **state) {
    (void)state;
    tp_ctx *c = fresh(2);
    tp_tensor *x = tp_full(c, TP_F32, 1, TP_SHAPE(2, 100000)), *y = tp_dropout(c, x, 0.3);
    assert_int_equal(c->stream, 1);
    double kept = 0;
    for (int i = 0; i < 200000; i++) {
        assert_true(tp_f32(y)[i] == 0 || tp_f32(y)[i] == (float)(1 / 0.7));
        kept += tp_f32(y)[i] != 0;
    }
    assert_true(fabs(kept / 200000 - 0.7) < 0.005); /* five standard deviations */
    assert_ptr_equal(tp_dropout(c, x, 0), x);
    assert_null(tp_dropout(c, x, 1));
    assert_non_null(strstr(tp_error(c), "dropout: p_drop must be"));
    tp_ctx_free(c);
}

/* The gradient is masked with the mask of the forward pass, although the context has moved on. */
static void dropout_gradient(void **state) {
    (void)state;
    tp_ctx *c = fresh(2);
    assert_int_equal(tp_tape_on(c), 0);
    tp_tensor *x = noise(c, TP_SHAPE(2, 999));
    tp_require_grad(x);
    tp_tensor *y = drop_at(c, x, 9, 2, 0), *z = tp_dropout(c, y, 0.5);
    assert_int_equal(tp_backward(c, tp_sum(c, z, TP_ALL_DIMS, false)), 0);
    for (int i = 0; i < 1998; i++)
        assert_true(fabsf(tp_f32(z)[i] - tp_f32(x)[i] * tp_f32(x->grad)[i]) <= 1e-6f);
    tp_ctx_free(c);
}

/* ---- the rest ------------------------------------------------------------------------------- */
static void adding_in_place(void **state) {
    (void)state;
    tp_ctx *c = fresh(2);
    tp_tensor *a = tp_full(c, TP_F32, 1.5, TP_SHAPE(40000));
    uint32_t version = a->storage->version;
    assert_int_equal(tp_add_(c, a, a), 0);
    assert_true(a->storage->version > version);
    for (int i = 0; i < 40000; i++) assert_true(tp_f32(a)[i] == 3);
    tp_tensor *lo = batch(c, a, 0, 30000), *hi = batch(c, a, 10000, 30000);
    assert_int_equal(tp_add_(c, lo, hi), TP_EARG);
    assert_non_null(strstr(tp_error(c), "overlap"));
    tp_clear(c);
    tp_tensor *left = batch(c, a, 0, 20000), *right = batch(c, a, 20000, 20000);
    assert_int_equal(tp_add_(c, left, right), 0); /* two halves of one storage are fine */
    assert_true(tp_f32(a)[19999] == 6 && tp_f32(a)[20000] == 3);
    tp_tensor *rep = tp_expand(c, tp_full(c, TP_F32, 1, 0, NULL), TP_SHAPE(5));
    assert_int_equal(tp_add_(c, rep, tp_zeros(c, TP_F32, TP_SHAPE(5))), TP_ESHAPE);
    tp_ctx_free(c);
}

static void broadcasts_against_strides(void **state) {
    (void)state;
    tp_ctx *c = fresh(2);
    tp_tensor *a = noise(c, TP_SHAPE(30, 1, 70)), *b = noise(c, TP_SHAPE(20, 1));
    tp_tensor *at = tp_tensor_view(c, a); /* (70,1,30) */
    at->shape[0] = 70, at->shape[2] = 30, at->stride[0] = 1, at->stride[2] = 70;
    tp_tensor *y = tp_mul(c, at, b);
    assert_true(y && y->shape[0] == 70 && y->shape[1] == 20 && y->shape[2] == 30);
    for (int i = 0; i < 70; i++)
        for (int j = 0; j < 20; j++)
            for (int k = 0; k < 30; k++)
                assert_true(tp_f32(y)[(i * 20 + j) * 30 + k] ==
                            tp_f32(a)[k * 70 + i] * tp_f32(b)[j]);
    tp_ctx_free(c);
}

static void copies(void **state) {
    (void)state;
    tp_ctx *c = fresh(2);
    tp_tensor *x = noise(c, TP_SHAPE(3, 45, 67)), *t = tp_tensor_view(c, x);
    t->shape[1] = 67, t->shape[2] = 45, t->stride[1] = 1, t->stride[2] = 67;
    tp_tensor *y = tp_contiguous_of(c, t);
    assert_true(y && y != t && tp_contiguous(y));
    for (int b = 0; b < 3; b++)
        for (int i = 0; i < 67; i++)
            for (int j = 0; j < 45; j++)
                assert_true(tp_f32(y)[(b * 67 + i) * 45 + j] == tp_f32(x)[(b * 45 + j) * 67 + i]);
    assert_ptr_equal(tp_contiguous_of(c, x), x);
    tp_tensor *row = tp_expand(c, noise(c, TP_SHAPE(5)), TP_SHAPE(1000, 5)),
              *dense = tp_copy(c, row);
    for (int i = 0; i < 5000; i++) assert_true(tp_f32(dense)[i] == tp_f32(row)[i % 5]);
    tp_ctx_free(c);
}

static void largest(void **state) {
    (void)state;
    tp_ctx *c = fresh(1);
    float v[] = {1, 5, 5, 2, /**/ -1, NAN, 9, NAN, /**/ -INFINITY, -INFINITY, -3, -4};
    tp_tensor *x = tp_tensor_keep(c, TP_F32, TP_SHAPE(3, 4));
    memcpy(x->data, v, sizeof v);
    tp_tensor *y = tp_max(c, x, 2, false), *at = tp_argmax(c, x, 2, true);
    assert_true(tp_f32(y)[0] == 5 && isnan(tp_f32(y)[1]) && tp_f32(y)[2] == -3);
    assert_true(at->ndim == 2 && tp_i32(at)[0] == 1 && tp_i32(at)[1] == 1 && tp_i32(at)[2] == 2);
    tp_ctx_free(c);
}

static void not_a_number(void **state) {
    (void)state;
    tp_ctx *c = fresh(1);
    tp_tensor *nan = tp_full(c, TP_F32, NAN, TP_SHAPE(20)), *one = tp_ones_like(c, nan);
    assert_true(isnan(tp_f32(tp_relu(c, nan))[17]));
    assert_true(isnan(tp_f32(tp_maximum(c, nan, one))[3]) &&
                isnan(tp_f32(tp_maximum(c, one, nan))[3]));
    assert_true(isnan(tp_f32(tp_minimum(c, nan, one))[3]) &&
                isnan(tp_f32(tp_minimum(c, one, nan))[3]));
    tp_tensor *no = tp_zeros(c, TP_U8, TP_SHAPE(20));
    assert_true(tp_f32(tp_where(c, no, nan, one))[5] == 1); /* 0*NaN would be NaN */
    assert_true(tp_i32(tp_cast(c, nan, TP_I32))[0] == 0);
    uint16_t *h = tp_cast(c, nan, TP_BF16)->data;
    assert_true((h[0] & 0x7f80) == 0x7f80 && (h[0] & 0x7f));
    tp_ctx_free(c);
}

/* NULL goes through builders without a crash and the first failure stays. */
static void null_passes(void **state) {
    (void)state;
    tp_ctx *c = fresh(1);
    tp_tensor *bad = tp_add(c, noise(c, TP_SHAPE(2)), noise(c, TP_SHAPE(3)));
    assert_null(bad);
    char first[256];
    snprintf(first, sizeof first, "%s", tp_error(c));
    assert_null(tp_sum(c, bad, TP_ALL_DIMS, false));
    assert_null(tp_mean(c, bad, 1, false));
    assert_null(tp_sum_like(c, bad, NULL));
    assert_null(tp_scale(c, tp_mul(c, bad, bad), 2, 0));
    assert_null(tp_dropout(c, bad, 0.1));
    assert_null(tp_dropout(c, bad, 0));
    assert_null(tp_cast(c, bad, TP_F64));
    assert_null(tp_contiguous_of(c, bad));
    assert_null(tp_expand(c, bad, TP_SHAPE(2)));
    assert_null(tp_zeros_like(c, bad));
    assert_null(tp_max(c, bad, 1, false));
    assert_string_equal(first, tp_error(c));
    tp_ctx_free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(subbatches_are_subtrees),
        cmocka_unit_test(order_is_as_stated),
        cmocka_unit_test(means),
        cmocka_unit_test(sum_to_refuses),
        cmocka_unit_test(dropout_ignores_the_split),
        cmocka_unit_test(dropout_rates),
        cmocka_unit_test(dropout_gradient),
        cmocka_unit_test(adding_in_place),
        cmocka_unit_test(broadcasts_against_strides),
        cmocka_unit_test(copies),
        cmocka_unit_test(largest),
        cmocka_unit_test(not_a_number),
        cmocka_unit_test(null_passes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
