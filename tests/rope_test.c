/* rope: its sines against long double, the layout by hand, and what makes it a position embedding.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "core/ctx.h"
#include "ops/rope/rope.h"
#include "ops/rope/rope_math.h"
#include <math.h>
#include <string.h>

static tp_ctx *context(int threads) {
    tp_ctx *c;
    assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.threads = threads}), 0);
    return c;
}

static void sines(void **state) {
    (void)state;
    for (int64_t i = 0; i < 400000; i++) {
        double a =
            i < 200000 ? (double)i * 5.2428799 : tp_uniform(1, TP_RNG_TEST, 0, (uint64_t)i) * 8;
        if (i >= 300000)
            a = (double)(i - 300000) * 0.78539816339744831; /* edges of the reduction */
        float c, s;
        rope_turn(a, &c, &s);
        assert_true(fabsl((long double)c - cosl((long double)a)) <= 0x1.001p-25L);
        assert_true(fabsl((long double)s - sinl((long double)a)) <= 0x1.001p-25L);
    }
}

static void frequencies(void **state) {
    (void)state;
    static const double theta[] = {1, 500, 10000, 500000, 1e12};
    static const int64_t half[] = {1, 2, 3, 32, 128};
    double f[128];
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 5; j++) {
            rope_frequencies(theta[i], &(tp_rope_scaling){0}, half[j], f);
            for (int64_t n = 0; n < half[j]; n++) {
                long double want = powl(theta[i], -(long double)n / (long double)half[j]);
                assert_true(fabsl((long double)f[n] - want) <= 1e-13L * want);
            }
        }
}

/* Scaled frequencies as transformers 5.24 computes them (_compute_llama3_parameters and
 * _compute_linear_scaling_rope_parameters), there in float64. */
/* clang-format off */
static const double llama_3_2_1b[] = {
    1, 0.663601237696088, 0.44036660267178, 0.292227822573015, 0.193922744748686,
    0.128687373432651, 0.0853971002857656, 0.056669621445291, 0.0376060309308639,
    0.0249554086705587, 0.0165604400809944, 0.0109895285345398, 0.00729266473721711,
    0.00483942134571989, 0.00321144599475259, 0.00129054792820926, 0.000429556796559368,
    9.70828780262767e-05, 1.94616381848311e-05, 1.29147671870474e-05, 8.57025548988148e-06,
    5.68723215045705e-06, 3.77405429410828e-06, 2.50446710070249e-06, 1.66196746779531e-06,
    1.1028836686396e-06, 7.31874967544042e-07, 4.85673134301011e-07, 3.22293293037889e-07,
    2.13874228161092e-07, 1.41927202518996e-07, 9.41830672543491e-08,
};
static const double llama3_small[] = {
    1, 0.562341325190349, 0.224072961394777, 0.0679755756731699, 0.0333333333333333,
    0.0187447108396783, 0.0105409255338946, 0.00592759803346308, 0.00333333333333333,
    0.00187447108396783, 0.00105409255338946, 0.000592759803346308, 0.000333333333333333,
    0.000187447108396783, 0.000105409255338946, 5.92759803346308e-05,
};
static const double linear[] = {
    0.25, 0.121741881291466, 0.0592843426415414, 0.0288695496172365, 0.0140585331297587,
    0.0068460490856609, 0.00333380358040831, 0.00162345407894053, 0.000790569415042095,
    0.000384981631514873, 0.000187473552333114, 9.12935318137094e-05, 4.44569852509731e-05,
    2.16491080840016e-05, 1.05424125857146e-05, 5.13381256614287e-06,
};
/* clang-format on */
static const struct recorded {
    double theta;
    tp_rope_scaling scaling;
    int64_t h;
    const double *want;
} transformers[] = {
    {500000, {TP_ROPE_LLAMA3, 32, 1, 4, 8192}, 32, llama_3_2_1b},
    {10000, {TP_ROPE_LLAMA3, 3, 2.5, 7, 100}, 16, llama3_small},
    {100000, {TP_ROPE_LINEAR, 4, 0, 0, 0}, 16, linear},
};

static bool is_recorded(const struct recorded *r, const tp_rope_scaling *s) {
    double f[32];
    rope_frequencies(r->theta, s, r->h, f);
    for (int64_t i = 0; i < r->h; i++)
        if (!(fabs(f[i] - r->want[i]) <= 1e-13 * r->want[i])) return false;
    return true;
}

static void scaled_frequencies(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof transformers / sizeof *transformers; i++) {
        const struct recorded *r = &transformers[i];
        bool llama3 = r->scaling.type == TP_ROPE_LLAMA3;
        tp_rope_scaling other[5];
        for (int j = 0; j < 5; j++) other[j] = r->scaling;
        other[0].factor *= 1.001;
        other[1].low_freq_factor *= 1.001;
        other[2].high_freq_factor *= 1.001;
        other[3].original_max_position_embeddings++;
        other[4].type = llama3 ? TP_ROPE_LINEAR : TP_ROPE_DEFAULT;
        assert_true(is_recorded(r, &r->scaling)); /* each number counts, where it is read */
        for (int j = 0; j < 5; j++)
            assert_true(is_recorded(r, &other[j]) == (!llama3 && j >= 1 && j <= 3));
    }
}

/* Without a type the other numbers, such as the config's, are not looked at. */
static void unscaled(void **state) {
    (void)state;
    tp_ctx *c = context(1);
    tp_tensor *x = tp_tensor_new(c, TP_F32, TP_SHAPE(1, 9, 1, 6));
    for (int i = 0; i < 54; i++) tp_f32(x)[i] = (float)i;
    tp_rope_scaling s = {TP_ROPE_DEFAULT, 0.5, 4, 1, 0};
    tp_tensor *a = tp_rope(c, x, NULL), *b = tp_rope(c, x, &(tp_rope_opts){.scaling = s});
    s = (tp_rope_scaling){TP_ROPE_LINEAR, 2, 4, 1, 0};
    tp_tensor *d = tp_rope(c, x, &(tp_rope_opts){.scaling = s});
    assert_non_null(d);
    assert_memory_equal(a->data, b->data, 54 * sizeof(float));
    assert_memory_not_equal(a->data, d->data, 54 * sizeof(float));
    tp_ctx_free(c);
}

/* A quarter turn and an eighth, in Hugging Face's layout: partners lie D/2 apart. */
static void layout(void **state) {
    (void)state;
    tp_ctx *c = context(1);
    tp_tensor *x = tp_tensor_new(c, TP_F32, TP_SHAPE(1, 2, 1, 6));
    for (int i = 0; i < 12; i++) tp_f32(x)[i] = (float)(i % 6 + 1);
    tp_tensor *y = tp_rope(c, x, &(tp_rope_opts){.theta = 100, .n_rot = 4});
    assert_non_null(y);
    /* t = 1: angles 1 and 0.1; pairs (1,3) and (2,4); 5 and 6 pass */
    double want[6] = {1 * cos(1) - 3 * sin(1),
                      2 * cos(0.1) - 4 * sin(0.1),
                      3 * cos(1) + 1 * sin(1),
                      4 * cos(0.1) + 2 * sin(0.1),
                      5,
                      6};
    for (int i = 0; i < 6; i++) {
        assert_true(tp_f32(y)[i] == (float)(i + 1)); /* t = 0 */
        assert_true(fabs(tp_f32(y)[6 + i] - want[i]) < 1e-6);
    }
    tp_ctx_free(c);
}

static tp_tensor *noise(tp_ctx *c, uint64_t key, int64_t T) {
    tp_tensor *x = tp_tensor_new(c, TP_F32, TP_SHAPE(1, T, 1, 64));
    assert_non_null(x);
    for (int64_t i = 0; i < tp_numel(x); i++)
        tp_f32(x)[i] = (float)tp_normal(key, TP_RNG_TEST, 0, (uint64_t)(i % 64));
    return x;
}

static double product(const tp_tensor *a, int64_t i, const tp_tensor *b, int64_t j) {
    double s = 0;
    for (int d = 0; d < 64; d++) s += (double)tp_f32(a)[i * 64 + d] * tp_f32(b)[j * 64 + d];
    return s;
}

/* One vector at every position: products of turned vectors depend on the distance only. */
static void distance_only(void **state) {
    (void)state;
    tp_ctx *c = context(2);
    tp_tensor *q = tp_rope(c, noise(c, 1, 200), NULL), *k = tp_rope(c, noise(c, 2, 200), NULL);
    assert_non_null(q);
    assert_non_null(k);
    for (int64_t gap = 0; gap < 60; gap += 13)
        for (int64_t t = gap; t < 200; t += 17)
            assert_true(fabs(product(q, t, k, t - gap) - product(q, gap, k, 0)) < 1e-4);
    assert_true(fabs(product(q, 13, k, 0) - product(q, 0, k, 0)) > 1e-2);
    tp_ctx_free(c);
}

/* Positions, an offset and a strided slice are other ways to the same bits. */
static void same_bits(void **state) {
    (void)state;
    enum { T = 21, D = 12 };
    for (int threads = 1; threads <= 3; threads++) {
        tp_ctx *c = context(threads);
        tp_tensor *x = tp_tensor_new(c, TP_F32, TP_SHAPE(2, T, 3, D));
        tp_tensor *p = tp_tensor_new(c, TP_I32, TP_SHAPE(2, T));
        for (int64_t i = 0; i < tp_numel(x); i++)
            tp_f32(x)[i] = (float)tp_normal(4, TP_RNG_TEST, 0, (uint64_t)i);
        for (int i = 0; i < 2 * T; i++) tp_i32(p)[i] = i % T + 5;
        tp_tensor *a = tp_rope(c, x, &(tp_rope_opts){.positions = p});
        tp_tensor *b = tp_rope(c, x, &(tp_rope_opts){.offset = 5});
        tp_tensor *last = tp_tensor_view(c, x);
        last->data = tp_f32(x) + (T - 1) * 3 * D; /* (2,1,2,D) out of (2,T,3,D) */
        last->shape[1] = 1, last->shape[2] = 2;
        tp_tensor *d = tp_rope(c, last, &(tp_rope_opts){.offset = 5 + T - 1});
        assert_non_null(d);
        assert_memory_equal(a->data, b->data, (size_t)tp_numel(x) * sizeof(float));
        for (int s = 0; s < 2; s++)
            assert_memory_equal(tp_f32(d) + s * 2 * D, tp_f32(a) + ((s + 1) * T - 1) * 3 * D,
                                2 * D * sizeof(float));
        tp_tensor *back = tp_rope(c, a, &(tp_rope_opts){.offset = 5, .inverse = true});
        for (int64_t i = 0; i < tp_numel(x); i++)
            assert_true(fabsf(tp_f32(back)[i] - tp_f32(x)[i]) < 1e-6f);
        tp_ctx_free(c);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sines),
        cmocka_unit_test(frequencies),
        cmocka_unit_test(scaled_frequencies),
        cmocka_unit_test(unscaled),
        cmocka_unit_test(layout),
        cmocka_unit_test(distance_only),
        cmocka_unit_test(same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
