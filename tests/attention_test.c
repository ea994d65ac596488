/* attention's promise: the bits of a row depend on its query and the keys it sees, and on nothing
 * else. (op_test checks its values, gradients, refusals and allocation failures by the rows'
 * samples.) */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "core/ctx.h"
#include "ops/attention/attention.h"
#include "ops/convert.h"
#include "ops/copy/copy.h"
#include <math.h>
#include <string.h>

enum { B = 2, T = 150, LONG = 210 };

/* One buffer (B,LONG,(H+2Hkv)D), its q, k and v slices, and the options they are used with. */
typedef struct setup {
    tp_ctx *c;
    int64_t H, Hkv, D;
    tp_tensor *qkv;
    tp_attention_opts opts;
} setup;

static float value(int64_t i) {
    /* zeros of both signs, sudden large scores and numbers that vanish when weighted */
    if (i % 97 == 0) return -0.0f;
    if (i % 101 == 0) return 30.0f;
    if (i % 103 == 0) return -1e-42f;
    return (float)tp_normal(1, TP_RNG_TEST, 0, (uint64_t)i);
}

static setup make(int threads, int64_t H, int64_t Hkv, int64_t D, tp_attention_opts opts) {
    setup s = {.H = H, .Hkv = Hkv, .D = D, .opts = opts};
    assert_int_equal(tp_ctx_new(&s.c, &(tp_ctx_opts){.threads = threads}), 0);
    s.qkv = tp_tensor_keep(s.c, TP_F32, TP_SHAPE(B, LONG, (H + 2 * Hkv) * D));
    assert_non_null(s.qkv);
    for (int64_t i = 0, n = tp_numel(s.qkv); i < n; i++) tp_f32(s.qkv)[i] = value(i);
    return s;
}

/* which: 0 q, 1 k, 2 v; sequences b.. of n_b, times t.. of n_t */
static tp_tensor *slice(const setup *s, int which, int64_t b, int64_t n_b, int64_t t, int64_t n_t) {
    int64_t row = (s->H + 2 * s->Hkv) * s->D;
    int64_t start = which == 0 ? 0 : (s->H + (which - 1) * s->Hkv) * s->D;
    tp_tensor *x = tp_tensor_view(s->c, s->qkv);
    assert_non_null(x);
    x->ndim = 4;
    int64_t shape[4] = {n_b, n_t, which ? s->Hkv : s->H, s->D},
            stride[4] = {LONG * row, row, s->D, 1};
    memcpy(x->shape, shape, sizeof shape);
    memcpy(x->stride, stride, sizeof stride);
    tp_view_shift(x, (b * LONG + t) * row + start);
    return x;
}

/* Queries [t, t+n) of sequences [b, b+n_b) against the first `keys` keys. */
static tp_tensor *attend(const setup *s, int64_t b, int64_t n_b, int64_t t, int64_t n, int64_t keys,
                         tp_tensor **lse) {
    tp_attention_opts o = s->opts;
    o.q_offset_given = true;
    o.q_offset = t;
    tp_tensor *out = tp_attention(s->c, slice(s, 0, b, n_b, t, n), slice(s, 1, b, n_b, 0, keys),
                                  slice(s, 2, b, n_b, 0, keys), &o, lse);
    if (!out) fail_msg("%s", tp_error(s->c));
    return out;
}

/* The number of rows of part (queries t0.. of sequences b0..) that differ in a bit from whole's. */
static int differing_rows(const setup *s, tp_tensor *whole, tp_tensor *whole_lse, tp_tensor *part,
                          tp_tensor *part_lse, int64_t b0, int64_t t0) {
    int differ = 0;
    int64_t n_t = part->shape[1], D = s->D, H = s->H;
    for (int64_t b = 0; b < part->shape[0]; b++)
        for (int64_t t = 0; t < n_t; t++)
            for (int64_t h = 0; h < H; h++) {
                const float *x = tp_f32(part) + ((b * n_t + t) * H + h) * D;
                const float *y =
                    tp_f32(whole) + (((b0 + b) * whole->shape[1] + t0 + t) * H + h) * D;
                const float *l = tp_f32(part_lse) + (b * H + h) * n_t + t;
                const float *m = tp_f32(whole_lse) + ((b0 + b) * H + h) * whole->shape[1] + t0 + t;
                differ += memcmp(x, y, (size_t)D * sizeof *x) || memcmp(l, m, sizeof *l);
            }
    return differ;
}

static void keep(tp_tensor **t, setup *s) {
    tp_tensor *k = tp_tensor_keep(s->c, TP_F32, (*t)->ndim, (*t)->shape);
    assert_non_null(k);
    memcpy(k->data, (*t)->data, (size_t)tp_numel(k) * sizeof(float));
    *t = k;
}

static void check_bits(int64_t H, int64_t Hkv, int64_t D, tp_attention_opts opts) {
    setup s = make(1, H, Hkv, D, opts);
    tp_tensor *l0, *l, *o0 = attend(&s, 0, B, 0, T, T, &l0), *o;
    keep(&o0, &s);
    keep(&l0, &s);
    /* what no row sees may hold anything */
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = T; t < LONG; t++)
            for (int64_t i = 0, n = (H + 2 * Hkv) * D; i < n; i++)
                tp_f32(s.qkv)[(b * LONG + t) * n + i] = i % 2 ? NAN : INFINITY;
    for (int threads = 1; threads <= 3; threads++) {
        s.c->threads = threads;
        o = attend(&s, 0, B, 0, T, LONG, &l); /* a longer key buffer */
        assert_int_equal(differing_rows(&s, o0, l0, o, l, 0, 0), 0);
        o = attend(&s, 1, 1, 0, T, T, &l); /* another batch */
        assert_int_equal(differing_rows(&s, o0, l0, o, l, 1, 0), 0);
        tp_step_end(s.c);
    }
    for (int64_t t = 0; t < T; t++) { /* decoding */
        o = attend(&s, 0, B, t, 1, t + 1, &l);
        assert_int_equal(differing_rows(&s, o0, l0, o, l, 0, t), 0);
        o = attend(&s, 0, B, t, 1, LONG, &l);
        assert_int_equal(differing_rows(&s, o0, l0, o, l, 0, t), 0);
        tp_step_end(s.c);
    }
    static const int64_t chunk[] = {2, 7, 64, 100};
    for (size_t i = 0; i < sizeof chunk / sizeof *chunk; i++) /* chunked prefill */
        for (int64_t t = 0; t < T; t += chunk[i]) {
            int64_t n = T - t < chunk[i] ? T - t : chunk[i];
            o = attend(&s, 0, B, t, n, t + n, &l);
            assert_int_equal(differing_rows(&s, o0, l0, o, l, 0, t), 0);
            tp_step_end(s.c);
        }
    for (int isa = 3; isa >= 1; isa -= 2) {
        if (s.c->isa < isa) continue;
        s.c->isa = isa;
        o = attend(&s, 0, B, 0, T, LONG, &l);
        assert_int_equal(differing_rows(&s, o0, l0, o, l, 0, 0), 0);
        o = attend(&s, 1, 1, 77, 3, LONG, &l);
        assert_int_equal(differing_rows(&s, o0, l0, o, l, 1, 77), 0);
    }
    /* and the comparison sees a small change in one key */
    tp_f32(slice(&s, 1, 0, 1, 70, 1))[1] += 1e-3f;
    o = attend(&s, 0, B, 0, T, T, &l);
    int differ = differing_rows(&s, o0, l0, o, l, 0, 0);
    assert_true(differ > 0);
    assert_true(differ <= (T - 70) * H / Hkv); /* one key head of one sequence, from there on */
    tp_ctx_free(s.c);
}

static void bits_causal(void **state) {
    (void)state;
    check_bits(2, 2, 16, (tp_attention_opts){.causal = true});
}
static void bits_grouped_odd_width(void **state) {
    (void)state;
    check_bits(6, 2, 5, (tp_attention_opts){.causal = true});
}
static void bits_window(void **state) {
    (void)state;
    check_bits(1, 1, 8, (tp_attention_opts){.causal = true, .window = 70});
}
static void bits_softcap(void **state) {
    (void)state;
    check_bits(2, 1, 80, (tp_attention_opts){.causal = true, .softcap = 8, .scale = 0.3});
}

/* A NaN at one position reaches the rows that see it and no other. */
static void future_is_unseen(void **state) {
    (void)state;
    setup s = make(2, 2, 2, 16, (tp_attention_opts){.causal = true});
    tp_tensor *l0, *l, *o0 = attend(&s, 0, 1, 0, T, T, &l0), *o;
    for (int which = 1; which <= 2; which++) tp_f32(slice(&s, which, 0, 1, 91, 1))[3] = NAN;
    o = attend(&s, 0, 1, 0, 91, T, &l);
    assert_int_equal(differing_rows(&s, o0, l0, o, l, 0, 0), 0);
    o = attend(&s, 0, 1, 0, T, T, &l);
    for (int64_t t = 0; t < T; t++) assert_int_equal(isnan(tp_f32(l)[t]), t >= 91);
    tp_ctx_free(s.c);
}

/* What one document holds does not change another's bits. */
static void documents_are_apart(void **state) {
    (void)state;
    setup s = make(2, 2, 2, 16, (tp_attention_opts){.causal = true});
    s.opts.segments = tp_tensor_keep(s.c, TP_I32, TP_SHAPE(B, T));
    assert_non_null(s.opts.segments);
    for (int64_t i = 0; i < B * T; i++) tp_i32(s.opts.segments)[i] = (int32_t)(i % T / 37 * 5 - 3);
    tp_tensor *l0, *l, *o0 = attend(&s, 0, B, 0, T, T, &l0), *o;
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 37; t < 74; t++)
            for (int which = 1; which <= 2; which++)
                for (int i = 0; i < 32; i++) tp_f32(slice(&s, which, b, 1, t, 1))[i] = NAN;
    o = attend(&s, 0, B, 0, T, T, &l);
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < T; t++)
            for (int64_t h = 0; h < 2; h++) {
                int64_t at = (b * T + t) * 2 + h;
                bool hit = t >= 37 && t < 74;
                int differ = memcmp(tp_f32(o) + at * 16, tp_f32(o0) + at * 16, 16 * sizeof(float));
                assert_int_equal(differ != 0, hit);
            }
    tp_ctx_free(s.c);
}

static void a_start_for_each_sequence(void **state) {
    (void)state;
    static const int32_t start[B] = {3, 131};
    setup s = make(2, 6, 2, 16, (tp_attention_opts){.causal = true});
    tp_tensor *starts = tp_tensor_keep(s.c, TP_I32, TP_SHAPE(B));
    assert_non_null(starts);
    memcpy(starts->data, start, sizeof start);
    tp_tensor *l, *l1, *o, *q = tp_tensor_keep(s.c, TP_F32, TP_SHAPE(B, 2, 6, 16));
    assert_non_null(q);
    for (int b = 0; b < B; b++)
        for (int t = 0; t < 2; t++)
            memcpy(tp_f32(q) + (b * 2 + t) * 96, slice(&s, 0, b, 1, start[b] + t, 1)->data,
                   96 * sizeof(float));
    o = tp_attention(s.c, q, slice(&s, 1, 0, B, 0, LONG), slice(&s, 2, 0, B, 0, LONG),
                     &(tp_attention_opts){.causal = true, .starts = starts}, &l);
    assert_non_null(o);
    for (int b = 0; b < B; b++) {
        tp_tensor *one = attend(&s, b, 1, start[b], 2, LONG, &l1);
        assert_int_equal(differing_rows(&s, o, l, one, l1, b, 0), 0);
    }
    tp_ctx_free(s.c);
}

/* ---- backward ------------------------------------------------------------------------------- */
typedef struct gradients {
    tp_tensor *d[3];
} gradients;

static gradients differentiate(setup *s, int64_t b, int64_t n_b) {
    tp_tensor *lse, *x[3], *d_o = tp_tensor_new(s->c, TP_F32, TP_SHAPE(n_b, T, s->H, s->D));
    for (int i = 0; i < 3; i++) x[i] = slice(s, i, b, n_b, 0, T);
    tp_tensor *o = tp_attention(s->c, x[0], x[1], x[2], &s->opts, &lse);
    assert_non_null(o);
    assert_non_null(d_o);
    int64_t each = T * s->H * s->D;
    for (int64_t i = 0; i < n_b * each; i++)
        tp_f32(d_o)[i] = (float)tp_normal(2, TP_RNG_TEST, 0, (uint64_t)(b * each + i));
    gradients g;
    tp_attention_backward_args a = {x[0], x[1], x[2], o, lse, d_o, NULL};
    if (tp_attention_backward(s->c, &a, &s->opts, g.d)) fail_msg("%s", tp_error(s->c));
    for (int i = 0; i < 3; i++) { /* of one whole sequence they are packed, as q, k and v are */
        g.d[i] = tp_contiguous_of(s->c, g.d[i]);
        keep(&g.d[i], s);
    }
    tp_step_end(s->c);
    return g;
}

/* One pass (one thread), two passes (few heads for the threads), alone or in a batch, any
 * instruction set. */
static void backward_bits(void **state) {
    (void)state;
    setup s = make(1, 4, 2, 16, (tp_attention_opts){.causal = true, .window = 90});
    gradients g0 = differentiate(&s, 0, B);
    size_t bytes[3], isas[] = {4, 3, 1};
    int isa = s.c->isa;
    for (int i = 0; i < 3; i++) bytes[i] = (size_t)tp_numel(g0.d[i]) * sizeof(float);
    for (int threads = 1; threads <= 3; threads++)
        for (size_t v = 0; v < 3; v++) {
            if ((int)isas[v] > isa) continue;
            s.c->threads = threads;
            s.c->isa = (int)isas[v];
            gradients g = differentiate(&s, 0, B), last = differentiate(&s, B - 1, 1);
            for (int i = 0; i < 3; i++) {
                assert_memory_equal(g.d[i]->data, g0.d[i]->data, bytes[i]);
                assert_memory_equal(last.d[i]->data, (char *)g0.d[i]->data + bytes[i] / B * (B - 1),
                                    bytes[i] / B);
            }
        }
    tp_ctx_free(s.c);
}

/* ---- who sees whom -------------------------------------------------------------------------- */
/* Scores of zero and values that are unit vectors show the weights: 1/n for each of n visible keys.
 * Oracle and kernels share the rule, so it is said a second time here. */
static void check_visible(const tp_attention_opts *o, int64_t queries, int64_t keys, int64_t offset,
                          const int32_t *segment) {
    for (int dtype = TP_F32; dtype <= TP_F64; dtype++) {
        tp_ctx *c;
        assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.threads = 2}), 0);
        tp_tensor *q = tp_tensor_keep(c, dtype, TP_SHAPE(1, queries, 1, 2));
        tp_tensor *k = tp_tensor_keep(c, dtype, TP_SHAPE(1, keys, 1, 2));
        tp_tensor *v = tp_tensor_keep(c, dtype, TP_SHAPE(1, keys, 1, keys));
        memset(q->data, 0, (size_t)tp_numel(q) * tp_dtype_size(q->dtype));
        memset(k->data, 0, (size_t)tp_numel(k) * tp_dtype_size(k->dtype));
        for (int64_t i = 0; i < keys * keys; i++) tp_set(v, i, i / keys == i % keys);
        tp_attention_opts opts = *o;
        if (segment) {
            opts.segments = tp_tensor_keep(c, TP_I32, TP_SHAPE(1, queries));
            memcpy(opts.segments->data, segment, (size_t)queries * sizeof *segment);
        }
        tp_tensor *lse, *out = tp_attention(c, q, k, v, &opts, &lse);
        assert_non_null(out);
        for (int64_t t = 0; t < queries; t++) {
            int n = 0;
            bool sees[128];
            for (int64_t j = 0; j < keys; j++) {
                sees[j] = !(o->causal && j > t + offset) &&
                          !(o->window && t + offset - j >= o->window) &&
                          !(segment && segment[t] != segment[j]);
                n += sees[j];
            }
            for (int64_t j = 0; j < keys; j++)
                assert_true(fabs(tp_get(out, t * keys + j) - (sees[j] ? 1.0 / n : 0)) < 1e-6);
            double l = tp_get(lse, t);
            assert_true(n ? fabs(l - log(n)) < 1e-5 : l == -INFINITY);
        }
        tp_ctx_free(c);
    }
}

static void who_sees_whom(void **state) {
    (void)state;
    static const int32_t segment[9] = {1, 1, 0, 0, 0, 1, -7, -7, 1};
    check_visible(&(tp_attention_opts){0}, 3, 5, 2, NULL);
    check_visible(&(tp_attention_opts){.causal = true}, 70, 70, 0, NULL);
    check_visible(&(tp_attention_opts){.causal = true}, 3, 67, 64, NULL);
    check_visible(&(tp_attention_opts){.causal = true}, 5, 3, -2, NULL);
    check_visible(&(tp_attention_opts){.causal = true, .window = 4}, 70, 70, 0, NULL);
    check_visible(&(tp_attention_opts){.window = 2}, 4, 9, 5, NULL);
    check_visible(&(tp_attention_opts){.causal = true, .q_offset_given = true}, 4, 9, 0, NULL);
    check_visible(&(tp_attention_opts){.causal = true, .q_offset_given = true, .q_offset = -3}, 5,
                  9, -3, NULL);
    check_visible(&(tp_attention_opts){.causal = true, .q_offset_given = true, .q_offset = 80}, 5,
                  70, 80, NULL);
    check_visible(
        &(tp_attention_opts){.causal = true, .window = 3, .q_offset_given = true, .q_offset = 80},
        5, 70, 80, NULL);
    check_visible(&(tp_attention_opts){0}, 9, 9, 0, segment);
    check_visible(&(tp_attention_opts){.causal = true, .window = 5}, 9, 9, 0, segment);
}

/* ---- accuracy, memory ----------------------------------------------------------------------- */
static double worst_error(const setup *s, const tp_kernel *only, const tp_tensor *want) {
    double worst = 0;
    s->c->only_kernel = only;
    tp_tensor *o = attend(s, 0, B, 0, T, T, NULL);
    s->c->only_kernel = NULL;
    for (int64_t i = 0, n = tp_numel(o); i < n; i++)
        worst = fmax(worst, fabs((double)tp_f32(o)[i] - tp_f64(want)[i]));
    return worst;
}

static void tiled_is_as_accurate_as_naive(void **state) {
    (void)state;
    setup s = make(2, 2, 2, 64, (tp_attention_opts){.causal = true});
    const tp_kernel *const *list = tp_op_find("attention")->kernel[TP_CPU], *naive = NULL;
    tp_tensor *x[3];
    for (int i = 0; list[i]; i++)
        if (!strcmp(list[i]->name, "attention_naive_cpu") && list[i]->isa <= s.c->isa) {
            naive = list[i];
            break;
        }
    assert_non_null(naive);
    for (int w = 0; w < 3; w++) {
        x[w] = tp_tensor_keep(s.c, TP_F64, TP_SHAPE(B, T, 2, 64));
        for (int64_t b = 0; b < B; b++)
            for (int64_t t = 0; t < T; t++)
                for (int64_t i = 0; i < 128; i++)
                    tp_f64(x[w])[(b * T + t) * 128 + i] = tp_f32(slice(&s, w, b, 1, t, 1))[i];
    }
    tp_tensor *want = tp_attention(s.c, x[0], x[1], x[2], &s.opts, NULL);
    assert_non_null(want);
    double naive_error = worst_error(&s, naive, want), tiled = worst_error(&s, NULL, want);
    assert_true(naive_error > 0 && naive_error < 1e-4);
    assert_true(tiled <= 2 * naive_error + 1e-6);
    tp_ctx_free(s.c);
}

static size_t peak(int64_t t) {
    tp_ctx *c;
    assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.threads = 2, .meta = true}), 0);
    tp_tensor *x = tp_tensor_new(c, TP_F32, TP_SHAPE(1, t, 4, 64)), *lse, *d[3];
    tp_attention_opts opts = {.causal = true};
    tp_tensor *o = tp_attention(c, x, x, x, &opts, &lse);
    tp_attention_backward_args a = {x, x, x, o, lse, o, NULL};
    assert_int_equal(tp_attention_backward(c, &a, &opts, d), 0);
    size_t bytes = tp_memory_peak(c);
    tp_ctx_free(c);
    return bytes;
}

static void memory_is_linear_in_time(void **state) {
    (void)state;
    assert_true(peak(8192) < 2 * peak(4096)); /* the scores alone would be four times as much */
}

static void no_gradient_with_starts(void **state) {
    (void)state;
    setup s = make(1, 1, 1, 4, (tp_attention_opts){.causal = true});
    tp_tensor *x = slice(&s, 0, 0, 1, 0, 2), *d[3] = {x, x, x};
    tp_tensor *starts = tp_tensor_keep(s.c, TP_I32, TP_SHAPE(1));
    tp_attention_backward_args a = {x, x, x, x, x, x, NULL};
    assert_int_equal(tp_attention_backward(s.c, &a, &(tp_attention_opts){.starts = starts}, d),
                     TP_EARG);
    assert_non_null(strstr(tp_error(s.c), "no gradient with starts"));
    assert_null(d[0]);
    tp_ctx_free(s.c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits_causal),
        cmocka_unit_test(bits_grouped_odd_width),
        cmocka_unit_test(bits_window),
        cmocka_unit_test(bits_softcap),
        cmocka_unit_test(future_is_unseen),
        cmocka_unit_test(documents_are_apart),
        cmocka_unit_test(a_start_for_each_sequence),
        cmocka_unit_test(backward_bits),
        cmocka_unit_test(who_sees_whom),
        cmocka_unit_test(tiled_is_as_accurate_as_naive),
        cmocka_unit_test(memory_is_linear_in_time),
        cmocka_unit_test(no_gradient_with_starts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
