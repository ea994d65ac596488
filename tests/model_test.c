/* Whole models: the f32 loss curve against a float64 run of the same code, gradients,
 * recomputation, documents that must not see each other, micro-batches, names, and a step without
 * allocations. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "autograd/autograd.h"
#include "core/ctx.h"
#include "nn/nn.h"
#include "ops/convert.h"
#include "optim/optim.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- every call to the system's allocator, by anybody in the process ------------------------ */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COUNT_ALLOCATIONS 1
static long allocations;
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t m);
void *__libc_realloc(void *p, size_t n);
void *malloc(size_t n) {
    __atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED);
    return __libc_malloc(n);
}
void *calloc(size_t n, size_t m) {
    __atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED);
    return __libc_calloc(n, m);
}
void *realloc(void *p, size_t n) {
    __atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED);
    return __libc_realloc(p, n);
}
#endif

enum { B = 4, T = 24, V = 61 };
static tp_model_cfg small(tp_family family) {
    bool llama = family == TP_FAMILY_LLAMA;
    return (tp_model_cfg){.family = family,
                          .layers = 2,
                          .heads = 4,
                          .kv_heads = llama ? 2 : 4,
                          .channels = 32,
                          .head_dim = 8,
                          .ffn = llama ? 48 : 128,
                          .context = T,
                          .vocab = V,
                          .rope_theta = 10000,
                          .norm_eps = 1e-5,
                          .init_std = 0.05,
                          .tie_embeddings = !llama,
                          .qk_norm = llama,
                          .attention_bias = true,
                          .mlp_bias = !llama,
                          .dropout = 0.1,
                          .logit_softcap = llama ? 15 : 0};
}

typedef struct net {
    tp_ctx *c;
    tp_model *m;
    tp_optim *o;
} net;

static net net_new(const tp_model_cfg *f, int threads, tp_optim_kind kind) {
    net n = {0};
    assert_int_equal(tp_ctx_new(&n.c, &(tp_ctx_opts){.threads = threads, .seed = 4}), 0);
    assert_int_equal(tp_model_new(&n.m, n.c, f), 0);
    tp_optim_opts o = {.kind = kind,
                       .learning_rate = 3e-3,
                       .muon_learning_rate = 0.02,
                       .adam_beta1 = 0.9,
                       .adam_beta2 = 0.95,
                       .adam_epsilon = 1e-8,
                       .weight_decay = 0.1,
                       .muon_momentum = 0.95,
                       .max_grad_norm = 1,
                       .schedule = TP_COSINE,
                       .min_lr_ratio = 0.1,
                       .steps = 10,
                       .warmup_steps = 2};
    assert_int_equal(tp_optim_new(&n.o, n.c, tp_model_params(n.m), &o), 0);
    return n;
}

static void net_free(net *n) {
    tp_optim_free(n->o);
    tp_model_free(n->m);
    tp_ctx_free(n->c);
}

/* Token t of sample s of step: a pattern with some noise, so that there is something to learn. */
static int32_t token(int64_t step, int64_t s, int64_t t) {
    uint32_t w[4];
    tp_philox(w, 9, TP_RNG_TEST, (uint64_t)(step * 64 + s), (uint64_t)t);
    return (int32_t)(w[0] % 4 ? (t * 7 + s) % V : w[1] % V);
}

static tp_tensor *tokens(tp_ctx *c, int64_t step, int64_t first, int64_t rows, int shift) {
    tp_tensor *x = tp_tensor_new(c, TP_I32, TP_SHAPE(rows, T));
    for (int64_t s = 0; x && s < rows; s++)
        for (int64_t t = 0; t < T; t++) tp_i32(x)[s * T + t] = token(step, first + s, t + shift);
    return x;
}

/* Forward and backward over samples [first, first+rows) of a step; returns the loss's share. */
static double part(net *n, int64_t step, int64_t first, int64_t rows) {
    tp_ctx *c = n->c;
    tp_rng_at(c, (uint64_t)step, (uint64_t)first);
    tp_tape_on(c);
    tp_model_in in = {.ids = tokens(c, step, first, rows, 0), .training = true};
    tp_tensor *targets = tokens(c, step, first, rows, 1);
    tp_model_out y = tp_model_loss(c, n->m, &in, targets,
                                   &(tp_model_loss_opts){.scale = 1.0 / (B * T), .gradient = true});
    if (!y.loss || tp_backward(c, y.loss)) fail_msg("%s", tp_error(c));
    double loss = tp_get(y.loss, 0);
    tp_tape_off(c);
    tp_step_end(c);
    return loss;
}

static void zero(net *n) {
    tp_params *p = tp_model_params(n->m);
    for (int i = 0; i < p->n; i++) tp_zero_grad(n->c, &p->p[i].t, 1);
}

static void update(net *n, int64_t step) {
    tp_optim_report r;
    assert_int_equal(tp_optim_step(n->o, step, &r), 0);
    assert_false(r.skipped);
    zero(n);
    tp_step_end(n->c);
}

/* ---- the curve ------------------------------------------------------------------------------ */
/* How far may the curves part? A loss is a mean over B*T = 96 tokens of numbers near ln V = 4.1,
 * each with a rounding error of a few units of 2^-24 * 4: at most about 1e-6. Gradients carry
 * relative errors near 1e-6 (op_test sees up to 7e-7); an update moves a weight by at most lr, and
 * AdamW divides a gradient by its own size, so the error of an update is at most about lr * 1e-6
 * where the gradient is not itself rounding noise, and lr where it is. Those latter weights do not
 * move the loss (their gradient is noise, about 1e-8). So ten steps part the losses by some 10 * lr
 * * 1e-6 * |g|_1, with |g|_1 below 100 here: 3e-6. */
static const double CURVE_TOL = 3e-6;

static void curve(double loss[10], const tp_model_cfg *f, tp_optim_kind kind, double lr_factor) {
    net n = net_new(f, 2, kind);
    for (int s = 0; s < 10; s++) {
        loss[s] = part(&n, s, 0, B);
        if (lr_factor != 1) { /* the mutant: gradients of the first parameter are a little off */
            tp_tensor *g = tp_model_params(n.m)->p[0].t->grad;
            for (int64_t i = 0; i < tp_numel(g); i++)
                tp_set(g, i, lr_factor * tp_get(g, i) + (lr_factor - 1) * 1e-3);
        }
        update(&n, s);
    }
    net_free(&n);
}

static double apart(const double a[10], const double b[10]) {
    double worst = 0;
    for (int s = 0; s < 10; s++)
        if (!(fabs(a[s] - b[s]) <= worst)) worst = fabs(a[s] - b[s]);
    return worst;
}

static void check_curve(tp_family family, tp_optim_kind kind) {
    double f32[10], f64[10], mutant[10];
    tp_model_cfg f = small(family);
    curve(f32, &f, kind, 1);
    curve(mutant, &f, kind, 1.01);
    f.dtype = TP_F64;
    curve(f64, &f, kind, 1);
    printf("loss %.6f -> %.6f; f32 and f64 part by %.1e, the mutant by %.1e (allowed %.0e)\n",
           f64[0], f64[9], apart(f32, f64), apart(mutant, f64), CURVE_TOL);
    assert_true(apart(f32, f64) <= CURVE_TOL);
    assert_false(apart(mutant, f64) <= CURVE_TOL);
    assert_true(f64[9] < f64[0] - 0.1); /* it learns */
}

static void test_curve_gpt2(void **state) {
    (void)state;
    check_curve(TP_FAMILY_GPT2, TP_OPTIM_ADAMW);
}

static void test_curve_llama(void **state) {
    (void)state;
    check_curve(TP_FAMILY_LLAMA, TP_OPTIM_ADAMW);
}

/* ---- gradients by other routes: bit for bit ------------------------------------------------- */
static uint64_t gradient_bits(net *n) {
    uint64_t h = 14695981039346656037u;
    tp_params *p = tp_model_params(n->m);
    for (int i = 0; i < p->n; i++) {
        const tp_tensor *g = p->p[i].t->grad;
        assert_non_null(g);
        for (int64_t e = 0; e < tp_numel(g); e++) {
            uint32_t bits;
            memcpy(&bits, &tp_f32(g)[e], sizeof bits);
            h = (h ^ bits) * 1099511628211u;
        }
    }
    return h;
}

static uint64_t gradient_of(const tp_model_cfg *f, int threads, int parts, size_t *peak) {
    net n = net_new(f, threads, TP_OPTIM_ADAMW);
    for (int p = 0; p < parts; p++) part(&n, 3, p * (B / parts), B / parts);
    uint64_t h = gradient_bits(&n);
    if (peak) *peak = tp_memory_peak(n.c);
    net_free(&n);
    return h;
}

static void test_gradient_bits(void **state) {
    (void)state;
    for (int family = 0; family < 2; family++) {
        tp_model_cfg f = small(family ? TP_FAMILY_LLAMA : TP_FAMILY_GPT2);
        f.tie_embeddings = false; /* a tied table has two sums, which interleave by micro-batch */
        size_t whole, less;
        uint64_t h = gradient_of(&f, 1, 1, &whole);
        assert_true(h == gradient_of(&f, 2, 1, NULL));
        assert_true(h == gradient_of(&f, 3, 1, NULL));
        assert_true(h == gradient_of(&f, 2, 2, NULL)); /* two halves of the batch */
        f.activation_checkpointing = true;
        assert_true(h == gradient_of(&f, 2, 1, &less));
        assert_true(less < whole);
        f.activation_checkpointing = false;
        f.dropout = 0.11;
        assert_false(h == gradient_of(&f, 1, 1, NULL)); /* else the hash sees nothing */
    }
}

/* ---- documents ------------------------------------------------------------------------------ */
static void logprobs(net *n, float out[T], int32_t first_token, bool cut) {
    tp_ctx *c = n->c;
    tp_model_in in = {.ids = tokens(c, 0, 0, 1, 0)};
    tp_tensor *targets = tokens(c, 0, 0, 1, 1);
    in.segments = tp_tensor_new(c, TP_I32, TP_SHAPE(1, T));
    in.positions = tp_tensor_new(c, TP_I32, TP_SHAPE(1, T));
    for (int t = 0; t < T; t++) {
        tp_i32(in.segments)[t] = cut && t >= T / 2;
        tp_i32(in.positions)[t] = cut ? t % (T / 2) : t;
    }
    tp_i32(in.ids)[0] = first_token;
    tp_model_out y = tp_model_loss(c, n->m, &in, targets, &(tp_model_loss_opts){.scale = 1});
    if (!y.logprob) fail_msg("%s", tp_error(c));
    memcpy(out, y.logprob->data, T * sizeof(float));
    tp_step_end(c);
}

static void test_documents_do_not_see_each_other(void **state) {
    (void)state;
    for (int family = 0; family < 2; family++) {
        tp_model_cfg f = small(family ? TP_FAMILY_LLAMA : TP_FAMILY_GPT2);
        net n = net_new(&f, 2, TP_OPTIM_ADAMW);
        float a[T], b[T];
        logprobs(&n, a, 1, true);
        logprobs(&n, b, 2, true);
        assert_memory_equal(a + T / 2, b + T / 2, sizeof(float) * (T / 2));
        assert_memory_not_equal(a, b, sizeof(float) * (T / 2));
        logprobs(&n, a, 1, false);
        logprobs(&n, b, 2, false);
        assert_memory_not_equal(a + T / 2, b + T / 2, sizeof(float) * (T / 2));
        net_free(&n);
    }
}

/* ---- scaled positions ----------------------------------------------------------------------- */
/* Log-probs of one row whose tokens lie `gap` positions apart. */
static void spread(const tp_model_cfg *f, int gap, float out[T]) {
    net n = net_new(f, 1, TP_OPTIM_ADAMW);
    tp_model_in in = {.ids = tokens(n.c, 0, 0, 1, 0)};
    tp_tensor *targets = tokens(n.c, 0, 0, 1, 1);
    in.positions = tp_tensor_new(n.c, TP_I32, TP_SHAPE(1, T));
    for (int t = 0; t < T; t++) tp_i32(in.positions)[t] = t * gap;
    tp_model_out y = tp_model_loss(n.c, n.m, &in, targets, &(tp_model_loss_opts){.scale = 1});
    if (!y.logprob) fail_msg("%s", tp_error(n.c));
    memcpy(out, y.logprob->data, T * sizeof(float));
    net_free(&n);
}

/* Half the frequency at twice the position is the same angle, to the bit. */
static void test_scaled_positions(void **state) {
    (void)state;
    const tp_rope_scaling halved[] = {{TP_ROPE_LINEAR, 2, 0, 0, 0},
                                      {TP_ROPE_LLAMA3, 2, 1e6, 2e6, 8192}}; /* all are low */
    const tp_rope_scaling kept = {TP_ROPE_LLAMA3, 2, 1e-9, 2e-9, 8192};     /* none is */
    const tp_rope_scaling some = {TP_ROPE_LLAMA3, 8, 1, 4, 20};
    tp_model_cfg f = small(TP_FAMILY_LLAMA);
    float plain[T], scaled[T];
    f.init_std = 0.3;
    spread(&f, 1, plain);
    for (int i = 0; i < 2; i++) {
        f.rope_scaling = halved[i];
        spread(&f, 2, scaled);
        assert_memory_equal(scaled, plain, sizeof plain);
        spread(&f, 1, scaled);
        assert_memory_not_equal(scaled, plain, sizeof plain);
    }
    f.rope_scaling = kept;
    spread(&f, 1, scaled);
    assert_memory_equal(scaled, plain, sizeof plain);
    f.rope_scaling = some;
    spread(&f, 1, scaled);
    assert_memory_not_equal(scaled, plain, sizeof plain);
}

/* ---- names
 * ----------------------------------------------------------------------------------------------------
 */
static void has(const net *n, const char *name, int64_t rows, int64_t cols) {
    const tp_param *p = tp_model_param(n->m, name);
    if (!p) fail_msg("there is no parameter %s", name);
    assert_int_equal(p->t->shape[0], rows);
    if (cols) assert_int_equal(p->t->shape[1], cols);
}

/* Names and shapes as Hugging Face's GPT2LMHeadModel and Qwen3ForCausalLM list them. */
static void test_names(void **state) {
    (void)state;
    tp_model_cfg f = small(TP_FAMILY_GPT2);
    net n = net_new(&f, 1, TP_OPTIM_ADAMW);
    has(&n, "transformer.wte.weight", V, 32);
    has(&n, "transformer.wpe.weight", T, 32);
    has(&n, "transformer.h.1.attn.c_attn.weight", 32, 96);
    has(&n, "transformer.h.1.attn.c_attn.bias", 96, 0);
    has(&n, "transformer.h.0.attn.c_proj.weight", 32, 32);
    has(&n, "transformer.h.0.mlp.c_fc.weight", 32, 128);
    has(&n, "transformer.h.0.mlp.c_proj.weight", 128, 32);
    has(&n, "transformer.ln_f.bias", 32, 0);
    assert_null(tp_model_param(n.m, "lm_head.weight")); /* tied */
    assert_int_equal(tp_model_params(n.m)->n, 2 + 2 * 12 + 2);
    net_free(&n);
    f = small(TP_FAMILY_LLAMA);
    n = net_new(&f, 1, TP_OPTIM_ADAMW);
    has(&n, "model.embed_tokens.weight", V, 32);
    has(&n, "model.layers.1.self_attn.q_proj.weight", 32, 32);
    has(&n, "model.layers.1.self_attn.k_proj.weight", 16, 32);
    has(&n, "model.layers.1.self_attn.v_proj.bias", 16, 0);
    has(&n, "model.layers.1.self_attn.q_norm.weight", 8, 0);
    has(&n, "model.layers.1.mlp.gate_proj.weight", 48, 32);
    has(&n, "model.layers.1.mlp.down_proj.weight", 32, 48);
    has(&n, "model.layers.0.post_attention_layernorm.weight", 32, 0);
    has(&n, "model.norm.weight", 32, 0);
    has(&n, "lm_head.weight", V, 32);
    net_free(&n);
}

/* ---- memory
 * ---------------------------------------------------------------------------------------------------
 */
static void test_steady_steps_do_not_allocate(void **state) {
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        tp_model_cfg f = small(kind ? TP_FAMILY_LLAMA : TP_FAMILY_GPT2);
        net n = net_new(&f, 2, kind ? TP_OPTIM_MUON : TP_OPTIM_ADAMW);
        uint64_t before = 0;
        size_t used = 0, peak = 0;
        for (int s = 0; s < 8; s++) {
            if (s == 2) {
                before = tp_system_allocs(n.c);
                used = tp_memory_used(n.c);
                peak = tp_memory_peak(n.c);
#if defined(COUNT_ALLOCATIONS)
                allocations = 0;
#endif
            }
            part(&n, s, 0, B);
            update(&n, s);
        }
#if defined(COUNT_ALLOCATIONS)
        assert_int_equal(allocations, 0);
        void *volatile one = malloc(1); /* volatile: an unused pair of calls would be left out */
        free(one);
        assert_int_equal(allocations, 1); /* the counter counts */
#endif
        assert_int_equal(tp_system_allocs(n.c), before);
        assert_int_equal(tp_memory_used(n.c), used);
        assert_int_equal(tp_memory_peak(n.c), peak);
        net_free(&n);
    }
}

static void test_bad_models(void **state) {
    (void)state;
    tp_ctx *c;
    tp_model *m;
    assert_int_equal(tp_ctx_new(&c, NULL), 0);
    tp_model_cfg f = small(TP_FAMILY_LLAMA);
    f.kv_heads = 3;
    assert_int_not_equal(tp_model_new(&m, c, &f), 0);
    assert_non_null(strstr(tp_error(c), "kv_heads"));
    tp_clear(c);
    f = small(TP_FAMILY_GPT2);
    f.channels = (int64_t)1 << 30;
    f.vocab = (int64_t)1 << 30; /* 4 EB */
    assert_int_not_equal(tp_model_new(&m, c, &f), 0);
    assert_true(strlen(tp_error(c)) > 0);
    tp_clear(c);
    f = small(TP_FAMILY_GPT2);
    net n = net_new(&f, 1, TP_OPTIM_ADAMW);
    tp_tensor *ids = tp_tensor_new(n.c, TP_I32, TP_SHAPE(1, T + 1));
    memset(ids->data, 0, sizeof(int32_t) * (T + 1));
    assert_null(tp_model_hidden(n.c, n.m, &(tp_model_in){.ids = ids}));
    assert_non_null(strstr(tp_error(n.c), "context"));
    net_free(&n);
    tp_ctx_free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_curve_gpt2),
        cmocka_unit_test(test_curve_llama),
        cmocka_unit_test(test_gradient_bits),
        cmocka_unit_test(test_documents_do_not_see_each_other),
        cmocka_unit_test(test_scaled_positions),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_steady_steps_do_not_allocate),
        cmocka_unit_test(test_bad_models),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
