/* What the samples of norms, views, embedding, gather and topk cannot say: which bits, in which
 * order, which bytes are shared, and what a bad index is told. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "autograd/autograd.h"
#include "core/ctx.h"
#include "ops/concat/concat.h"
#include "ops/embedding/embedding.h"
#include "ops/gather/gather.h"
#include "ops/gather_rows/gather_rows.h"
#include "ops/layernorm/layernorm.h"
#include "ops/log_softmax/log_softmax.h"
#include "ops/reshape/reshape.h"
#include "ops/rmsnorm/rmsnorm.h"
#include "ops/slice/slice.h"
#include "ops/softmax/softmax.h"
#include "ops/split/split.h"
#include "ops/topk/topk.h"
#include "ops/transpose/transpose.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static tp_ctx *new_ctx(int threads) {
    tp_ctx *c = NULL;
    assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.threads = threads, .seed = 3}), TP_OK);
    return c;
}

static tp_tensor *randn(tp_ctx *c, uint64_t which, int ndim, const int64_t *shape) {
    tp_tensor *t = tp_tensor_keep(c, TP_F32, ndim, shape);
    assert_non_null(t);
    for (int64_t i = 0; i < tp_numel(t); i++)
        tp_f32(t)[i] = (float)tp_normal(11, TP_RNG_TEST, which, (uint64_t)i);
    return t;
}

static tp_tensor *ids_of(tp_ctx *c, int ndim, const int64_t *shape, int64_t limit) {
    tp_tensor *t = tp_tensor_keep(c, TP_I32, ndim, shape);
    assert_non_null(t);
    for (int64_t i = 0; i < tp_numel(t); i++) {
        double u = tp_uniform(11, TP_RNG_TEST, 99, (uint64_t)i);
        tp_i32(t)[i] = (int32_t)((double)limit * u * u); /* low ids often, high ones rarely */
    }
    return t;
}

static void assert_same_bits(const tp_tensor *a, const tp_tensor *b) {
    assert_non_null(a);
    assert_non_null(b);
    assert_true(tp_same_shape(a, b));
    assert_memory_equal(a->data, b->data, (size_t)tp_numel(a) * tp_dtype_size(a->dtype));
}

/* The binary counter, said as it is specified: push, merge equal sizes, at the end from the right.
 */
static void counter_sum(float *leaf, int64_t n, int64_t width, float *out) {
    int64_t size[64], at[64];
    int top = -1;
    for (int64_t s = 0; s < n; s++) {
        top++;
        size[top] = 1;
        at[top] = s;
        while (top > 0 && size[top - 1] == size[top]) {
            for (int64_t j = 0; j < width; j++)
                leaf[at[top - 1] * width + j] += leaf[at[top] * width + j];
            size[top - 1] *= 2;
            top--;
        }
    }
    for (; top > 0; top--)
        for (int64_t j = 0; j < width; j++)
            leaf[at[top - 1] * width + j] += leaf[at[top] * width + j];
    memcpy(out, leaf, (size_t)width * sizeof *out);
}

/* ---- the order of sums ---------------------------------------------------------------------- */
/* Dense leaves (sample, V, C), then the counter: what embedding_backward must give bit for bit. */
static float *dense_embedding_backward(const tp_tensor *ids, const tp_tensor *dy, int64_t vocab,
                                       bool backwards) {
    int64_t samples = ids->shape[0], each = tp_numel(ids) / samples, channels = tp_dim(dy, -1);
    float *leaf = calloc((size_t)(samples * vocab * channels), sizeof *leaf);
    float *out = calloc((size_t)(vocab * channels), sizeof *out);
    assert_true(leaf && out);
    for (int64_t s = 0; s < samples; s++)
        for (int64_t t = 0; t < each; t++) {
            int64_t p = s * each + (backwards ? each - 1 - t : t);
            for (int64_t j = 0; j < channels; j++)
                leaf[(s * vocab + tp_i32(ids)[p]) * channels + j] += tp_f32(dy)[p * channels + j];
        }
    counter_sum(leaf, samples, vocab * channels, out);
    free(leaf);
    return out;
}

static void embedding_gradient_has_the_tree_order(void **state) {
    (void)state;
    for (int64_t samples = 1; samples <= 13; samples++)
        for (int isa = 1; isa <= 4; isa++) {
            tp_ctx *c = new_ctx(2);
            if (isa == 2 || isa > c->isa) {
                tp_ctx_free(c);
                continue;
            }
            c->isa = isa;
            tp_tensor *ids = ids_of(c, TP_SHAPE(samples, 30), 23);
            tp_tensor *dy = randn(c, 1, TP_SHAPE(samples, 30, 130));
            tp_tensor *got = tp_embedding_backward(c, ids, dy, 29);
            assert_non_null(got);
            float *want = dense_embedding_backward(ids, dy, 29, false);
            float *other = dense_embedding_backward(ids, dy, 29, true);
            assert_memory_equal(got->data, want, 29 * 130 * sizeof *want);
            assert_memory_not_equal(got->data, other, 29 * 130 * sizeof *want);
            free(want);
            free(other);
            tp_ctx_free(c);
        }
}

static tp_tensor *part_of(tp_ctx *c, tp_tensor *x, int64_t start, int64_t n) {
    tp_tensor *y = tp_slice(c, x, 0, start, n);
    assert_non_null(y);
    return y;
}

/* Whole batch = tree of aligned parts: 8 samples as 4+4, 6 as 4+2. */
static void micro_batches_are_subtrees(void **state) {
    (void)state;
    for (int64_t samples = 6; samples <= 8; samples += 2)
        for (int threads = 1; threads <= 3; threads++) {
            tp_ctx *c = new_ctx(threads);
            tp_tensor *ids = ids_of(c, TP_SHAPE(samples, 7), 19), *whole[3], *sum[3] = {0};
            tp_tensor *x = randn(c, 2, TP_SHAPE(samples, 7, 80)), *w = randn(c, 3, TP_SHAPE(80));
            tp_tensor *b = randn(c, 4, TP_SHAPE(80)), *dy = randn(c, 5, TP_SHAPE(samples, 7, 80));
            w->requires_grad = b->requires_grad = true;
            for (int round = 0; round < 3; round++) { /* whole, first part, second part */
                int64_t start = round == 2 ? 4 : 0, n = round == 0   ? samples
                                                        : round == 1 ? 4
                                                                     : samples - 4;
                w->grad = b->grad = NULL;
                assert_int_equal(tp_tape_on(c), TP_OK);
                tp_tensor *y = tp_layernorm(c, part_of(c, x, start, n), w, b, 1e-5);
                tp_tensor *g = part_of(c, dy, start, n);
                assert_int_equal(tp_backward_from(c, 1, &y, &g), TP_OK);
                tp_tensor *rows = tp_embedding_backward(c, part_of(c, ids, start, n), g, 19);
                tp_tensor *got[3] = {w->grad, b->grad, rows};
                for (int i = 0; i < 3; i++) {
                    tp_tensor *copy = tp_tensor_keep(c, TP_F32, got[i]->ndim, got[i]->shape);
                    assert_non_null(copy);
                    int64_t all = tp_numel(copy);
                    memcpy(copy->data, got[i]->data, (size_t)all * sizeof(float));
                    if (round == 0) whole[i] = copy;
                    if (round == 1) sum[i] = copy;
                    for (int64_t j = 0; round == 2 && j < all; j++)
                        tp_f32(sum[i])[j] += tp_f32(copy)[j];
                }
                tp_step_end(c);
            }
            for (int i = 0; i < 3; i++) assert_same_bits(whole[i], sum[i]);
            tp_ctx_free(c);
        }
}

/* A row's result depends on nothing but the row: alone, in a batch, fused or not, by any CPU. */
static void rows_stand_alone(void **state) {
    (void)state;
    static const int64_t sizes[] = {1, 15, 16, 17, 63, 64, 65, 100, 384, 1000};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int64_t n = sizes[s];
        tp_ctx *c = new_ctx(2);
        tp_tensor *x = randn(c, 6, TP_SHAPE(70, n)), *r = randn(c, 7, TP_SHAPE(70, n));
        tp_tensor *w = randn(c, 8, TP_SHAPE(n)), *b = randn(c, 9, TP_SHAPE(n)), *sum, *sum2;
        tp_tensor *fused = tp_add_layernorm(c, x, r, w, b, 1e-5, &sum);
        assert_same_bits(fused, tp_layernorm(c, sum, w, b, 1e-5));
        tp_tensor *fused_rms = tp_add_rmsnorm(c, x, r, w, 1e-5, &sum2);
        assert_same_bits(sum, sum2);
        assert_same_bits(fused_rms, tp_rmsnorm(c, sum, w, 1e-5));
        tp_tensor *soft = tp_softmax(c, x), *logs = tp_log_softmax(c, x);
        tp_tensor *one = part_of(c, x, 41, 1), *one_sum = part_of(c, sum, 41, 1);
        for (int isa = c->isa; isa >= 1; isa--) {
            if (isa == 2) continue;
            c->isa = isa;
            assert_same_bits(part_of(c, fused, 41, 1), tp_layernorm(c, one_sum, w, b, 1e-5));
            assert_same_bits(part_of(c, fused_rms, 41, 1), tp_rmsnorm(c, one_sum, w, 1e-5));
            assert_same_bits(part_of(c, soft, 41, 1), tp_softmax(c, one));
            assert_same_bits(part_of(c, logs, 41, 1), tp_log_softmax(c, one));
        }
        tp_ctx_free(c);
    }
}

/* ---- views ---------------------------------------------------------------------------------- */
static void reshape_is_a_view_where_it_can_be(void **state) {
    (void)state;
    tp_ctx *c = new_ctx(1);
    tp_tensor *x = randn(c, 1, TP_SHAPE(2, 3, 24)), *qkv[3], *t;
    assert_int_equal(tp_split(c, x, -1, 3, (int64_t[]){8, 8, 8}, qkv), TP_OK);
    for (int i = 0; i < 3; i++) { /* (B,T,C) -> (B,T,H,D) of a strided piece */
        t = tp_reshape(c, qkv[i], TP_SHAPE(2, 3, 2, 4));
        assert_ptr_equal(t->storage, x->storage);
        assert_int_equal(t->stride[1], 24);
        assert_int_equal(t->stride[2], 4);
        assert_true(tp_f32(t)[24 * 4 + 6] == tp_f32(x)[24 * 4 + 8 * i + 6]);
    }
    t = tp_reshape(c, qkv[1], TP_SHAPE(6, 8)); /* rows are evenly spaced: still a view */
    assert_ptr_equal(t->storage, x->storage);
    t = tp_reshape(c, qkv[1], TP_SHAPE(-1)); /* a piece is not one dense run: a copy */
    assert_ptr_not_equal(t->storage, x->storage);
    assert_true(tp_f32(t)[8 + 3] == tp_f32(x)[24 + 8 + 3]);
    t = tp_reshape(c, tp_transpose(c, x, 0, 1), TP_SHAPE(3, 48));
    assert_ptr_not_equal(t->storage, x->storage);
    assert_true(tp_f32(t)[48 + 24 + 5] == tp_f32(x)[(3 + 1) * 24 + 5]);
    t = tp_unsqueeze(c, tp_transpose(c, x, 0, 2), 1);
    assert_ptr_equal(t->storage, x->storage);
    assert_int_equal(t->ndim, 4);
    assert_ptr_equal(tp_squeeze(c, t, -3)->storage, x->storage);
    assert_null(tp_squeeze(c, x, 0));
    assert_string_equal(tp_error(c),
                        "squeeze: dimension 0 must exist and have size 1, got f32[2,3,24]");
    tp_ctx_free(c);
}

/* Only the middle piece is read: its neighbours get zeros, in one concat. */
static void unread_pieces_have_zero_gradient(void **state) {
    (void)state;
    tp_ctx *c = new_ctx(1);
    tp_tensor *x = randn(c, 1, TP_SHAPE(2, 6)), *piece[3];
    x->requires_grad = true;
    assert_int_equal(tp_tape_on(c), TP_OK);
    assert_int_equal(tp_split(c, x, 1, 3, (int64_t[]){1, 2, 3}, piece), TP_OK);
    tp_tensor *dy = randn(c, 2, TP_SHAPE(2, 2));
    assert_int_equal(tp_backward_from(c, 1, &piece[1], &dy), TP_OK);
    for (int64_t i = 0; i < 12; i++) {
        int64_t row = i / 6, column = i % 6;
        float want = column == 1 || column == 2 ? tp_f32(dy)[row * 2 + column - 1] : 0.0f;
        assert_true(tp_f32(x->grad)[i] == want);
    }
    tp_ctx_free(c);
}

/* ---- what is refused ------------------------------------------------------------------------ */
static void refuses(tp_ctx *c, const tp_tensor *t, const char *sentence) {
    assert_null(t);
    assert_string_equal(tp_error(c), sentence);
    assert_int_equal(tp_error_status(c), TP_EARG);
    tp_clear(c);
}

static void bad_indices_are_named(void **state) {
    (void)state;
    extern const tp_kernel tp_reference_kernel;
    tp_ctx *c = new_ctx(2);
    tp_tensor *ids = ids_of(c, TP_SHAPE(3, 4), 5), *flat = ids_of(c, TP_SHAPE(12), 5);
    tp_tensor *table = randn(c, 1, TP_SHAPE(5, 3)), *dy = randn(c, 2, TP_SHAPE(3, 4, 3));
    tp_tensor *x = randn(c, 3, TP_SHAPE(3, 5)), *g = randn(c, 4, TP_SHAPE(3, 4));
    tp_tensor *src = randn(c, 5, TP_SHAPE(12, 3));
    tp_i32(ids)[7] = tp_i32(flat)[7] = 5;
    tp_i32(ids)[9] = tp_i32(flat)[9] = INT32_MIN;
    for (int reference = 0; reference < 2; reference++) {
        c->only_kernel = reference ? &tp_reference_kernel : NULL;
#define TAIL " at position 7 is 5, must be at least 0 and below 5"
        refuses(c, tp_embedding(c, ids, table), "embedding: the id" TAIL);
        refuses(c, tp_embedding_backward(c, ids, dy, 5), "embedding_backward: the id" TAIL);
        refuses(c, tp_gather_last(c, x, ids), "gather: the index" TAIL);
        refuses(c, tp_gather_backward(c, ids, g, 5), "gather_backward: the index" TAIL);
        refuses(c, tp_gather_rows(c, table, flat), "gather_rows: the index" TAIL);
        refuses(c, tp_scatter_add_rows(c, table, flat, src), "scatter_add_rows: the index" TAIL);
        tp_i32(ids)[7] = tp_i32(flat)[7] = 4;
        refuses(c, tp_embedding(c, ids, table),
                "embedding: the id at position 9 is -2147483648, must be at least 0 and below 5");
        tp_i32(ids)[7] = tp_i32(flat)[7] = 5;
    }
    tp_ctx_free(c);
}

static void no_row_has_no_id(void **state) {
    (void)state;
    tp_ctx *c = new_ctx(1);
    tp_tensor *ids = ids_of(c, TP_SHAPE(2), 1), *table = tp_tensor_new(c, TP_F32, TP_SHAPE(0, 3));
    refuses(c, tp_embedding(c, ids, table),
            "embedding: the id at position 0 is 0, must be at least 0 and below 0");
    tp_ctx_free(c);
}

/* ---- special values ------------------------------------------------------------------------- */
static void topk_orders_ties_and_nan(void **state) {
    (void)state;
    extern const tp_kernel tp_reference_kernel;
    tp_ctx *c = new_ctx(1);
    static const float values[] = {0.0f, 3, -0.0f, NAN, 3, -INFINITY, INFINITY, NAN, -1, 0.0f};
    static const int32_t order[] = {3, 7, 6, 1, 4, 0, 2, 9, 8, 5};
    tp_tensor *x = tp_tensor_keep(c, TP_F32, TP_SHAPE(10)), *at;
    memcpy(x->data, values, sizeof values);
    for (int64_t n = 1; n <= 10; n++)
        for (int reference = 0; reference < 2; reference++) {
            c->only_kernel = reference ? &tp_reference_kernel : NULL;
            tp_tensor *top = tp_topk(c, x, n, &at);
            assert_non_null(top);
            assert_memory_equal(at->data, order, (size_t)n * sizeof *order);
            for (int64_t i = 0; i < n; i++) {
                float got = tp_f32(top)[i], want = values[order[i]];
                assert_true(got == want || (isnan(got) && isnan(want)));
            }
        }
    tp_ctx_free(c);
}

static void softmax_of_masked_rows(void **state) {
    (void)state;
    tp_ctx *c = new_ctx(1);
    tp_tensor *x = tp_tensor_keep(c, TP_F32, TP_SHAPE(3, 70));
    for (int64_t i = 0; i < 210; i++) tp_f32(x)[i] = -INFINITY;
    for (int64_t i = 0; i < 20; i++) tp_f32(x)[i] = 1000; /* row 0: 20 visible */
    tp_f32(x)[70] = 1, tp_f32(x)[139] = NAN;              /* row 1: a NaN at the end */
    tp_tensor *y = tp_softmax(c, x), *z = tp_log_softmax(c, x);
    for (int64_t i = 0; i < 70; i++) {
        assert_true(i < 20 ? fabsf(tp_f32(y)[i] - 0.05f) < 1e-8f : tp_f32(y)[i] == 0);
        assert_true(i < 20 ? fabsf(tp_f32(z)[i] + 2.99573227f) < 1e-6f : tp_f32(z)[i] == -INFINITY);
        for (int64_t row = 1; row < 3; row++) {
            assert_true(isnan(tp_f32(y)[row * 70 + i]));
            assert_true(isnan(tp_f32(z)[row * 70 + i]));
        }
    }
    tp_ctx_free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(embedding_gradient_has_the_tree_order),
        cmocka_unit_test(micro_batches_are_subtrees),
        cmocka_unit_test(rows_stand_alone),
        cmocka_unit_test(reshape_is_a_view_where_it_can_be),
        cmocka_unit_test(unread_pieces_have_zero_gradient),
        cmocka_unit_test(bad_indices_are_named),
        cmocka_unit_test(no_row_has_no_id),
        cmocka_unit_test(topk_orders_ties_and_nan),
        cmocka_unit_test(softmax_of_masked_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
