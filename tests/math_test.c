/* The elementary functions of ops/math.h against libm in double: every 499th float, which visits
 * every exponent and sign, and the special values. And the same bits from the kernels of every
 * instruction set. The largest errors seen are printed; the limits are what math.h promises. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "core/ctx.h"
#include "ops/math.h"
#include <float.h>
#include <stdio.h>

typedef struct function {
    const char *op; /* whose kernels compute it */
    float (*f)(float);
    double (*ref)(double);
    double max_ulp;
    float lo, hi; /* the promise holds here; denormal results count as 2^-149 a unit */
} function;

static float f_exp(float x) { return tp_expf(x); }
static float f_log(float x) { return tp_logf(x); }
static float f_tanh(float x) { return tp_tanhf(x); }
static float f_sigmoid(float x) { return tp_sigmoidf(x); }
static double r_sigmoid(double x) { return 1 / (1 + exp(-x)); }

static const function functions[] = {
    {"exp", f_exp, exp, 1.0, -INFINITY, 88.72f},
    {"log", f_log, log, 1.0, 0, FLT_MAX},
    {"tanh", f_tanh, tanh, 1.3, -INFINITY, INFINITY},
    {"sigmoid", f_sigmoid, r_sigmoid, 2.5, -88.0f, INFINITY},
};
enum { N = sizeof functions / sizeof *functions };

static double ulp_error(float got, double want) {
    int e;
    double unit = 0x1p-149;
    if (got == want) return 0;
    if (fabs(want) >= FLT_MIN) {
        frexp(want, &e);
        unit = ldexp(1, e - 24);
    }
    return fabs((double)got - want) / unit;
}

static double worst_of(const function *f, double spoil, float *at) {
    double worst = 0;
    for (uint64_t u = 0; u < 1ull << 32; u += 499) {
        float x = tp_bits_to_f32((uint32_t)u);
        if (!(x >= f->lo && x <= f->hi)) continue;
        double e = ulp_error(f->f(x), f->ref(x) * (1 + spoil));
        if (!(e <= worst)) worst = e, *at = x;
    }
    return worst;
}

static void errors(void **state) {
    (void)state;
    for (int i = 0; i < N; i++) {
        float at = 0;
        double worst = worst_of(&functions[i], 0, &at);
        print_message("%-8s worst error %.3f ulp at %.9g\n", functions[i].op, worst, (double)at);
        assert_true(worst <= functions[i].max_ulp);
    }
}

/* A result wrong by 2e-7 must not pass. */
static void errors_are_noticed(void **state) {
    (void)state;
    float at;
    assert_false(worst_of(&functions[1], 2e-7, &at) <= functions[1].max_ulp);
}

static void special_values(void **state) {
    (void)state;
    for (int i = 0; i < N; i++) assert_true(isnan(functions[i].f(NAN)));
    assert_true(tp_expf(INFINITY) == INFINITY && tp_expf(-INFINITY) == 0 && tp_expf(0) == 1);
    assert_true(tp_expf(89) == INFINITY && tp_expf(-0.0f) == 1 && tp_expf(-1e30f) == 0);
    assert_true(tp_expf(-100) > 0 && tp_expf(-100) < FLT_MIN);
    assert_true(tp_logf(0) == -INFINITY && tp_logf(-0.0f) == -INFINITY);
    assert_true(tp_logf(INFINITY) == INFINITY && isnan(tp_logf(-1)) && isnan(tp_logf(-INFINITY)));
    assert_true(tp_logf(1) == 0 && isnan(tp_logf(-1e-45f)));
    assert_true(ulp_error(tp_logf(0x1p-149f), log(0x1p-149)) < 1);
    assert_true(tp_tanhf(INFINITY) == 1 && tp_tanhf(-INFINITY) == -1 && tp_tanhf(0) == 0);
    assert_true(tp_tanhf(-0.0f) == 0 && tp_tanhf(1e-40f) == 1e-40f);
    assert_true(tp_sigmoidf(INFINITY) == 1 && tp_sigmoidf(-INFINITY) == 0 &&
                tp_sigmoidf(0) == 0.5f);
    assert_true(tp_sigmoidf(-100) == 0 && tp_sigmoidf(100) == 1);
}

/* The kernels' loops, vectorised or not, against the plain function, NaNs aside. */
static void same_bits(void **state) {
    (void)state;
    enum { COUNT = 100003 }; /* no multiple of any vector length */
    tp_ctx *c;
    assert_int_equal(tp_ctx_new(&c, NULL), 0);
    tp_tensor *x = tp_tensor_keep(c, TP_F32, TP_SHAPE(COUNT));
    for (int i = 0; i < COUNT; i++) tp_f32(x)[i] = tp_bits_to_f32((uint32_t)i * 42949u);
    for (int i = 0; i < N; i++) {
        const tp_op *op = tp_op_find(functions[i].op);
        assert_non_null(op);
        const tp_kernel *const *list = op->kernel[TP_CPU];
        for (int j = 0; list[j]; j++) {
            if (list[j]->isa > c->isa) continue;
            c->only_kernel = list[j];
            tp_tensor *y = tp_op1(c, op, NULL, x);
            assert_non_null(y);
            for (int e = 0; e < COUNT; e++) {
                float want = functions[i].f(tp_f32(x)[e]), got = tp_f32(y)[e];
                if (isnan(want))
                    assert_true(isnan(got));
                else if (tp_f32_to_bits(want) != tp_f32_to_bits(got))
                    fail_msg("%s (v%d) of %a: %a, not %a", op->name, list[j]->isa,
                             (double)tp_f32(x)[e], (double)got, (double)want);
            }
        }
    }
    tp_ctx_free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors),
        cmocka_unit_test(errors_are_noticed),
        cmocka_unit_test(special_values),
        cmocka_unit_test(same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
