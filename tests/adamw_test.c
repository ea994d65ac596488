/* adamw_ with bf16 moments: the rounding is right in the mean, small steps are not lost, and the
 * bits belong to (seed, parameter, update, element) alone, however the work is cut. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "core/ctx.h"
#include "ops/adamw/adamw.h"
#include "ops/convert.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static float from_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* ---- one value ------------------------------------------------------------------------------ */
/* The mean over all 65536 random numbers is the value itself: every draw is counted. */
static void test_mean_of_all_draws(void **state) {
    (void)state;
    static const float values[] = {1,      -1,       0,       1.00390625f, 1.001f,     -3.14159274f,
                                   1e-30f, 2.5e-39f, -7e-42f, 6.1e20f,     0.99999994f};
    for (size_t k = 0; k < sizeof values / sizeof *values; k++) {
        double sum = 0, nearest = tp_bf16_to_f32(tp_f32_to_bf16(values[k]));
        float lo = INFINITY, hi = -INFINITY;
        for (uint32_t r = 0; r < 65536; r++) {
            float y = tp_bf16_to_f32(tp_f32_to_bf16_stochastic(values[k], r));
            sum += y;
            lo = fminf(lo, y);
            hi = fmaxf(hi, y);
        }
        double x = values[k], mean = sum / 65536;
        assert_true(fabs(mean - x) <= 1e-12 * fabs(x));
        assert_true(lo <= x && x <= hi && (nearest == lo || nearest == hi));
        if (nearest != x) assert_true(fabs(nearest - x) > 1e-12 * fabs(x)); /* it would not do */
    }
    static const uint32_t specials[] = {0x7f800000, 0xff800000, 0x7fc00000,
                                        0x7fffffff, 0xffffffff, 0x7f800001};
    for (size_t k = 0; k < sizeof specials / sizeof *specials; k++)
        for (uint32_t r = 0; r < 65536; r += 257) {
            float x = from_bits(specials[k]);
            float y = tp_bf16_to_f32(tp_f32_to_bf16_stochastic(x, r));
            assert_true(isnan(x) ? isnan(y) : x == y);
        }
}

/* ---- many values ---------------------------------------------------------------------------- */
typedef struct rig {
    tp_ctx *c;
    tp_tensor *p, *m, *v, *g;
} rig;

static rig rig_new(int64_t n, uint64_t seed, int threads, int isa) {
    rig r = {0};
    assert_int_equal(tp_ctx_new(&r.c, &(tp_ctx_opts){.threads = threads, .seed = seed}), 0);
    if (isa < r.c->isa) r.c->isa = isa;
    r.p = tp_tensor_keep(r.c, TP_F32, 1, &n);
    r.g = tp_tensor_keep(r.c, TP_F32, 1, &n);
    r.m = tp_tensor_keep(r.c, TP_BF16, 1, &n);
    r.v = tp_tensor_keep(r.c, TP_BF16, 1, &n);
    assert_non_null(r.v);
    memset(r.p->data, 0, (size_t)n * 4);
    memset(r.m->data, 0, (size_t)n * 2);
    memset(r.v->data, 0, (size_t)n * 2);
    return r;
}

static const tp_adamw_opts plain = {
    .learning_rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .update = 1};

static void update(rig *r, tp_adamw_opts o) {
    if (tp_adamw_(r->c, r->p, r->m, r->v, r->g, &o)) fail_msg("%s", tp_error(r->c));
    tp_step_end(r->c);
}

/* One update of many equal elements: the mean lies within five standard errors of the exact value,
 * and the roundings of m and v of an element do not go together. */
static void test_mean_of_an_update(void **state) {
    (void)state;
    enum { N = 1 << 20 };
    rig r = rig_new(N, 7, 1, 9);
    const double g = (float)0.7315, m1 = (float)(1 - 0.9) * g, v1 = (float)(1 - 0.999) * g * g;
    for (int64_t i = 0; i < N; i++) tp_f32(r.g)[i] = (float)g;
    update(&r, plain);
    double sum[2] = {0}, square[2] = {0}, cross = 0;
    for (int64_t i = 0; i < N; i++) {
        double a = tp_get(r.m, i) - m1, b = tp_get(r.v, i) - v1;
        sum[0] += a, sum[1] += b;
        square[0] += a * a, square[1] += b * b;
        cross += a * b;
    }
    for (int k = 0; k < 2; k++) {
        double exact = k ? v1 : m1, sd = sqrt(square[k] / N), error = sum[k] / N;
        assert_true(sd > 1e-4 * exact); /* there was something to round */
        assert_true(fabs(error) < 5 * sd / sqrt(N) + 1e-7 * exact);
        double nearest = tp_bf16_to_f32(tp_f32_to_bf16((float)exact)) - exact;
        assert_false(fabs(nearest) < 5 * sd / sqrt(N) + 1e-7 * exact); /* the check can fail */
    }
    assert_true(fabs(cross) < 5 * sqrt(square[0] * square[1] / N));
    tp_ctx_free(r.c);
}

/* beta2 = 0.999 moves v by a thousandth of the way, less than half a step of bf16 once v has a
 * fifth of its limit. v must get there nevertheless; rounded to nearest it does not. */
static void test_small_steps_count(void **state) {
    (void)state;
    enum { N = 4096, UPDATES = 3000 };
    rig r = rig_new(N, 7, 1, 9);
    for (int64_t i = 0; i < N; i++) tp_f32(r.g)[i] = 0.5f;
    float stuck = 0;
    tp_adamw_opts o = plain;
    for (o.update = 1; o.update <= UPDATES; o.update++) {
        update(&r, o);
        stuck = tp_bf16_to_f32(tp_f32_to_bf16(fmaf(0.999f, stuck, 0.001f * 0.25f)));
    }
    double mean = 0, exact = 0.25 * (1 - pow(0.999, UPDATES));
    for (int64_t i = 0; i < N; i++) mean += tp_get(r.v, i) / N;
    print_message("v %.5f, exact %.5f, rounded to nearest %.5f\n", mean, exact, stuck);
    assert_true(fabs(mean / exact - 1) < 2e-3);
    assert_true(fabs(stuck / exact - 1) > 0.1);
    tp_ctx_free(r.c);
}

/* ---- cuts ----------------------------------------------------------------------------------- */
enum { LONG = 70001 }; /* two chunks and a bit; no multiple of a block */
typedef struct result {
    float p[LONG];
    uint16_t m[LONG], v[LONG];
} result;

/* Three updates of elements [0,LONG) of stream 5, done in parts that begin at 0 and at cuts. */
static result *in_parts(const int64_t *cuts, int ncuts, int threads, int isa, uint64_t seed,
                        int64_t stream, bool gradient) {
    result *out = malloc(sizeof *out);
    assert_non_null(out);
    for (int k = 0; k <= ncuts; k++) {
        int64_t from = k ? cuts[k - 1] : 0, to = k < ncuts ? cuts[k] : LONG, n = to - from;
        rig r = rig_new(n, seed, threads, isa);
        for (int64_t i = 0; i < n; i++)
            tp_f32(r.p)[i] = (float)tp_normal(1, TP_RNG_TEST, 0, (uint64_t)(from + i));
        tp_adamw_opts o = plain;
        o.stream = stream;
        o.offset = from;
        for (o.update = 1; o.update <= 3; o.update++) {
            for (int64_t i = 0; i < n; i++)
                tp_f32(r.g)[i] =
                    (float)tp_normal(1, TP_RNG_TEST, (uint64_t)o.update, (uint64_t)(from + i));
            if (!gradient && o.update == 2) { /* m and v shrink alone */
                tp_tensor *g = r.g;
                r.g = NULL;
                update(&r, o);
                r.g = g;
            } else
                update(&r, o);
        }
        memcpy(out->p + from, r.p->data, (size_t)n * sizeof *out->p);
        memcpy(out->m + from, r.m->data, (size_t)n * sizeof *out->m);
        memcpy(out->v + from, r.v->data, (size_t)n * sizeof *out->v);
        tp_ctx_free(r.c);
    }
    return out;
}

static bool same(result *a, result *b) {
    bool yes = !memcmp(a, b, sizeof *a);
    free(b);
    return yes;
}

static void test_cuts_threads_and_instructions(void **state) {
    (void)state;
    static const int64_t cuts[][3] = {
        {1, 2, 3}, {64, 127, 128}, {129, 4096, 65536}, {333, 40000, 70000}};
    for (int gradient = 0; gradient < 2; gradient++) {
        result *whole = in_parts(NULL, 0, 1, 9, 3, 5, gradient);
        for (size_t k = 0; k < sizeof cuts / sizeof *cuts; k++)
            assert_true(same(whole, in_parts(cuts[k], 3, 1 + (int)k, 9, 3, 5, gradient)));
        assert_true(same(whole, in_parts(NULL, 0, 3, 3, 3, 5, gradient)));
        assert_true(same(whole, in_parts(cuts[3], 3, 2, 1, 3, 5, gradient)));
        /* and another key gives other bits */
        assert_false(same(whole, in_parts(NULL, 0, 1, 9, 4, 5, gradient)));
        assert_false(same(whole, in_parts(NULL, 0, 1, 9, 3, 6, gradient)));
        free(whole);
    }
}

/* Without the offset, a part would take the random bits of the parameter's beginning. */
static void test_offset_matters(void **state) {
    (void)state;
    rig a = rig_new(1000, 3, 1, 9), b = rig_new(1000, 3, 1, 9);
    for (int64_t i = 0; i < 1000; i++) tp_f32(a.g)[i] = tp_f32(b.g)[i] = 0.7f;
    tp_adamw_opts o = plain;
    update(&a, o);
    o.offset = 1000;
    update(&b, o);
    assert_memory_not_equal(a.m->data, b.m->data, 2000);
    assert_memory_not_equal(a.v->data, b.v->data, 2000);
    assert_memory_equal(a.p->data, b.p->data, 4000); /* the first step is not rounded yet */
    tp_ctx_free(a.c);
    tp_ctx_free(b.c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mean_of_all_draws),
        cmocka_unit_test(test_mean_of_an_update),
        cmocka_unit_test(test_small_steps_count),
        cmocka_unit_test(test_cuts_threads_and_instructions),
        cmocka_unit_test(test_offset_matters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
