/* numerics: fast. The kernels that it lets in, against the float64 oracle over the samples of the
 * ops; the reasons of those that stay out; and a training run beside the exact one, as there is one
 * with products in bf16. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "core/ctx.h"
#include "nn/nn.h"
#include "opcheck.h"
#include "ops/convert.h"
#include "ops/matmul/matmul.h"
#include "ops/matmul/matmul_call.h"
#include "optim/optim.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Whether the build has oneDNN: the kernel itself says so. */
static bool with_onednn(void) {
    tp_ctx *c;
    assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.fast = true, .threads = 1}), 0);
    tp_tensor *a = tp_tensor_new(c, TP_F32, TP_SHAPE(4, 4));
    memset(a->data, 0, 64);
    c->only_kernel = &matmul_onednn;
    bool yes = tp_matmul(c, a, a, NULL) != NULL;
    if (!yes) assert_non_null(strstr(tp_error(c), "this build has no oneDNN"));
    tp_ctx_free(c);
    return yes;
}

/* ---- samples -------------------------------------------------------------------------------- */
typedef struct tally {
    int runs, refused;
    double worst;
} tally;

/* The op and its gradients in a fast ctx; `only`: by this kernel, which may decline. */
typedef struct answer {
    tp_ctx *c;
    tp_tensor *in[TP_MAXIN], *out[TP_MAXOUT];
    tp_status st;
} answer;

static answer ask(const tp_op *op, const tp_sample *s, tp_dtype dt, bool fast, int threads,
                  op_layout layout, const tp_kernel *only) {
    answer a = {0};
    assert_int_equal(tp_ctx_new(&a.c, &(tp_ctx_opts){.fast = fast, .threads = threads, .seed = 5}),
                     0);
    tp_ctx *c = a.c;
    bool differentiable = !op->no_vjp && !s->no_grad;
    assert_int_equal(op_inputs(c, s, dt, layout, differentiable, a.in), 0);
    c->only_kernel = only;
    a.st = tp_tape_on(c);
    if (!a.st) a.st = tp_op_run(c, op, s->attr, op_sample_nin(s), a.in, a.out);
    c->only_kernel = NULL;
    tp_tensor *y[TP_MAXOUT], *dy[TP_MAXOUT];
    int n = 0;
    for (int j = 0; j < TP_MAXOUT && a.out[j] && !a.st && differentiable; j++) {
        if (!a.out[j]->requires_grad) continue;
        y[n] = a.out[j];
        dy[n] = tp_tensor_new(c, y[n]->dtype, y[n]->ndim, y[n]->shape);
        assert_non_null(dy[n]);
        for (int64_t i = 0, m = tp_numel(dy[n]); i < m; i++)
            tp_set(dy[n], i, (float)tp_normal(17, TP_RNG_TEST, (uint64_t)j, (uint64_t)i));
        n++;
    }
    if (!a.st && n) a.st = tp_backward_from(c, n, y, dy);
    return a;
}

static void near(const tp_op *op, const tp_sample *s, const tp_tensor *got, const tp_tensor *want,
                 double tol, tally *t) {
    double e = op_error(got, want);
    if (e > t->worst) t->worst = e;
    if (!(e <= tol)) fail_msg("%s, \"%s\": off by %.2e", op->name, s->name, e);
    int64_t n = tp_numel(got);
    if (!n) return;
    int64_t at = tp_offset(got, n / 2);
    double old = tp_get(got, at), top = 1e-6; /* the comparison must see one value wrong by 1 % */
    for (int64_t i = 0; i < n; i++) top = fmax(top, fabs(tp_get(want, tp_offset(want, i))));
    tp_set(got, at, old + 0.01 * top);
    assert_false(op_error(got, want) <= tol);
    tp_set(got, at, old);
}

static void sample(const tp_op *op, const tp_sample *s, const tp_kernel *only, tally *t) {
    double tol = s->tol ? s->tol : op->tol ? op->tol : 1e-5;
    answer want = ask(op, s, TP_F64, false, 1, OP_DENSE, NULL);
    assert_int_equal(want.st, 0);
    for (int i = 0; i < 2 * OP_NLAYOUT; i++) {
        answer got = ask(op, s, TP_F32, true, 1 + i % 2, i / 2, only);
        if (only && got.st == TP_ENOKERNEL) {
            t->refused++;
            tp_ctx_free(got.c);
            continue;
        }
        if (got.st) fail_msg("%s, \"%s\": %s", op->name, s->name, tp_error(got.c));
        for (int j = 0; j < TP_MAXOUT && want.out[j]; j++)
            near(op, s, got.out[j], want.out[j], tol, t);
        for (int j = 0; j < op_sample_nin(s); j++)
            if (want.in[j] && want.in[j]->grad)
                near(op, s, got.in[j]->grad, want.in[j]->grad, 4 * tol, t);
        t->runs++;
        tp_ctx_free(got.c);
    }
    tp_ctx_free(want.c);
}

static void samples(const char *name, const tp_kernel *only, int at_least) {
    const tp_op *op = tp_op_find(name);
    tally t = {0};
    for (const tp_sample *s = op->samples; s->name; s++)
        if (!s->refuse) sample(op, s, only, &t);
    print_message("%s by %s: %d runs, worst error %.1e, %d declined\n", name,
                  only ? only->name : "whatever comes first", t.runs, t.worst, t.refused);
    assert_true(t.runs >= at_least);
}

static void test_samples(void **state) {
    (void)state;
    bool onednn = with_onednn();
    samples("matmul", &matmul_onednn, onednn ? 30 : 0);
    samples("matmul_wgrad", &matmul_wgrad_onednn, onednn ? 20 : 0);
    static const char *const names[] = {"matmul", "matmul_wgrad", "linear_cross_entropy",
                                        "linear_cross_entropy_backward",
                                        "linear_cross_entropy_train"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) samples(names[i], NULL, 30);
}

/* Sizes at which blocking and threads matter, beside the exact kernel. */
#define MATRIX(m, n)                                                                               \
    {                                                                                              \
        TP_GEN_NORMAL, 2, { m, n }                                                                 \
    }
#define SAMPLES(s, t, n)                                                                           \
    {                                                                                              \
        TP_GEN_NORMAL, 3, { s, t, n }                                                              \
    }
static void test_large(void **state) {
    (void)state;
    static const tp_matmul_attr plain = {false, false}, trans_b = {false, true};
    static const tp_wgrad_attr both = {true, true, true};
    static const tp_sample products[] = {
        {"tall", {MATRIX(700, 96), MATRIX(96, 130)}, &plain},
        {"wide, transposed", {SAMPLES(3, 40, 333), MATRIX(257, 333)}, &trans_b},
        {0},
    };
    static const tp_sample weights[] = {
        {"seven samples", {SAMPLES(7, 65, 90), SAMPLES(7, 65, 143)}, &both},
        {0},
    };
    tally t = {0};
    for (const tp_sample *s = products; s->name; s++) sample(tp_op_find("matmul"), s, NULL, &t);
    for (const tp_sample *s = weights; s->name; s++)
        sample(tp_op_find("matmul_wgrad"), s, NULL, &t);
    assert_int_equal(t.runs, 18);
}

static void test_reasons(void **state) {
    (void)state;
    tp_ctx *c;
    assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1}), 0);
    tp_tensor *a = tp_tensor_keep(c, TP_F32, TP_SHAPE(4, 4)), *out[2];
    memset(a->data, 0, 64);
    c->only_kernel = &matmul_onednn;
    assert_null(tp_matmul(c, a, a, NULL));
    assert_non_null(strstr(tp_error(c), "matmul_onednn: numerics: exact"));
    tp_clear(c);
    c->only_kernel = &matmul_wgrad_onednn;
    assert_int_equal(tp_matmul_wgrad(c, a, a, &(tp_wgrad_opts){.weight = true}, out), TP_ENOKERNEL);
    assert_non_null(strstr(tp_error(c), "matmul_wgrad_onednn: numerics: exact"));
    tp_ctx_free(c);
}

/* ---- training ------------------------------------------------------------------------------- */
enum { B = 4, T = 24, V = 61, STEPS = 12 };

static tp_tensor *tokens(tp_ctx *c, int64_t step, int shift) {
    tp_tensor *x = tp_tensor_new(c, TP_I32, TP_SHAPE(B, T));
    for (int64_t s = 0; x && x->data && s < B; s++)
        for (int64_t t = 0; t < T; t++) {
            uint32_t w[4];
            tp_philox(w, 9, TP_RNG_TEST, (uint64_t)(step * B + s), (uint64_t)(t + shift));
            tp_i32(x)[s * T + t] = (int32_t)(w[0] % 4 ? ((t + shift) * 7 + s) % V : w[1] % V);
        }
    return x;
}

typedef struct curve {
    double loss[STEPS];
    uint64_t weights; /* a hash of the last weights' bits */
    size_t peak;
} curve;

static curve train(tp_family family, tp_ctx_opts how) {
    curve out = {0};
    bool llama = family == TP_FAMILY_LLAMA;
    tp_ctx *c;
    tp_model *m;
    tp_optim *o;
    const bool meta = how.meta;
    how.seed = 4;
    assert_int_equal(tp_ctx_new(&c, &how), 0);
    tp_model_cfg f = {.family = family,
                      .layers = 2,
                      .heads = 4,
                      .kv_heads = llama ? 2 : 4,
                      .channels = 64,
                      .head_dim = 16,
                      .ffn = 160,
                      .context = T,
                      .vocab = V,
                      .rope_theta = 10000,
                      .norm_eps = 1e-5,
                      .init_std = 0.05,
                      .tie_embeddings = !llama,
                      .attention_bias = !llama,
                      .mlp_bias = !llama};
    assert_int_equal(tp_model_new(&m, c, &f), 0);
    tp_optim_opts opts = {.learning_rate = 3e-3,
                          .adam_beta1 = 0.9,
                          .adam_beta2 = 0.95,
                          .adam_epsilon = 1e-8,
                          .weight_decay = 0.1,
                          .max_grad_norm = 1,
                          .schedule = TP_CONSTANT,
                          .steps = STEPS,
                          .warmup_steps = 2};
    assert_int_equal(tp_optim_new(&o, c, tp_model_params(m), &opts), 0);
    tp_params *p = tp_model_params(m);
    for (int64_t step = 0; step < STEPS; step++) {
        tp_optim_report r;
        tp_rng_at(c, (uint64_t)step, 0);
        tp_tape_on(c);
        tp_model_in in = {.ids = tokens(c, step, 0), .training = true};
        tp_tensor *targets = tokens(c, step, 1);
        tp_model_out y = tp_model_loss(
            c, m, &in, targets, &(tp_model_loss_opts){.scale = 1.0 / (B * T), .gradient = true});
        if (!y.loss || tp_backward(c, y.loss)) fail_msg("%s", tp_error(c));
        if (!meta) out.loss[step] = tp_get(y.loss, 0);
        tp_tape_off(c);
        tp_step_end(c);
        assert_int_equal(tp_optim_step(o, step, &r), 0);
        for (int i = 0; i < p->n; i++) tp_zero_grad(c, &p->p[i].t, 1);
        tp_step_end(c);
    }
    for (int i = 0; i < p->n && !meta; i++)
        for (int64_t j = 0, n = tp_numel(p->p[i].t); j < n; j++) {
            uint32_t bits;
            memcpy(&bits, tp_f32(p->p[i].t) + j, sizeof bits);
            out.weights = (out.weights ^ bits) * 0x100000001b3u;
        }
    out.peak = tp_memory_peak(c);
    tp_optim_free(o);
    tp_model_free(m);
    tp_ctx_free(c);
    return out;
}

static void test_training(void **state) {
    (void)state;
    const tp_ctx_opts exactly = {.threads = 1};
    tp_ctx_opts how = {.fast = true};
    for (int family = TP_FAMILY_GPT2; family <= TP_FAMILY_LLAMA; family++) {
        double worst = 0;
        curve exact = train((tp_family)family, exactly);
        assert_true(exact.loss[STEPS - 1] < 0.95 * exact.loss[0]); /* it learns, so steps count */
        for (int threads = 1; threads <= 2; threads++) {
            how.threads = threads, how.meta = false;
            curve fast = train((tp_family)family, how);
            for (int i = 0; i < STEPS; i++)
                worst = fmax(worst, fabs(fast.loss[i] / exact.loss[i] - 1));
            assert_true(fast.weights != exact.weights); /* else fast was the exact run */
            how.meta = true;
            assert_int_equal(train((tp_family)family, how).peak, fast.peak);
        }
        print_message("loss %.4f to %.4f, fast off by %.1e at most\n", exact.loss[0],
                      exact.loss[STEPS - 1], worst);
        assert_true(worst <= 1e-4);
    }
}

/* Products in bf16 learn the same, and keep every promise of the exact ones. */
static void test_bf16_products(void **state) {
    (void)state;
    tp_ctx_opts how = {.bf16_products = true};
    for (int family = TP_FAMILY_GPT2; family <= TP_FAMILY_LLAMA; family++) {
        double worst = 0;
        curve exact = train((tp_family)family, (tp_ctx_opts){.threads = 1}), first = {0};
        for (int threads = 1; threads <= 3; threads++) {
            how.threads = threads, how.meta = false;
            curve bf16 = train((tp_family)family, how);
            if (threads == 1) first = bf16;
            assert_memory_equal(first.loss, bf16.loss, sizeof first.loss);
            assert_true(first.weights == bf16.weights);
            how.meta = true;
            assert_int_equal(train((tp_family)family, how).peak, bf16.peak);
        }
        for (int i = 0; i < STEPS; i++)
            worst = fmax(worst, fabs(first.loss[i] / exact.loss[i] - 1));
        print_message("products in bf16 off by %.1e at most\n", worst);
        assert_true(worst > 1e-6 && worst <= 5e-3);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_samples),       cmocka_unit_test(test_large),
        cmocka_unit_test(test_reasons),       cmocka_unit_test(test_training),
        cmocka_unit_test(test_bf16_products),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
