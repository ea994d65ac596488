/* LoRA: gradients of A and B against differences in float64; an adapter that has learnt nothing
 * changes no bit; frozen weights stay, get no gradient and cost no product; the same bits for any
 * threads, parts and recomputation; merged weights compute the same. What a wrong scale, a wrong
 * layout or a base that moves would do is tried beside each. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "autograd/autograd.h"
#include "core/ctx.h"
#include "nn/nn.h"
#include "ops/convert.h"
#include "ops/linear_cross_entropy/linear_cross_entropy.h"
#include "optim/optim.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { B = 4, T = 12, V = 41, R = 3 };
static tp_model_cfg small(tp_family family, int64_t r) {
    bool llama = family == TP_FAMILY_LLAMA;
    return (tp_model_cfg){.family = family,
                          .layers = 2,
                          .heads = 4,
                          .kv_heads = llama ? 2 : 4,
                          .channels = 32,
                          .head_dim = 8,
                          .ffn = llama ? 48 : 64,
                          .context = T,
                          .vocab = V,
                          .rope_theta = 10000,
                          .norm_eps = 1e-5,
                          .init_std = 0.1,
                          .tie_embeddings = !llama,
                          .qk_norm = llama,
                          .attention_bias = true,
                          .mlp_bias = !llama,
                          .lora = {.r = r, .alpha = 5}};
}

typedef struct net {
    tp_ctx *c;
    tp_model *m;
    double flops; /* of the last part */
} net;

static net net_new(const tp_model_cfg *f, int threads) {
    net n = {0};
    assert_int_equal(tp_ctx_new(&n.c, &(tp_ctx_opts){.threads = threads, .seed = 4}), 0);
    if (tp_model_new(&n.m, n.c, f)) fail_msg("%s", tp_error(n.c));
    return n;
}

static void net_free(net *n) {
    tp_model_free(n->m);
    tp_ctx_free(n->c);
}

/* As if adapters had learnt something: B begins with zeros. */
static void fill_b(net *n) {
    tp_params *p = tp_model_params(n->m);
    for (int i = 0; i < p->n; i++)
        for (int64_t e = 0; strstr(p->p[i].name, "lora_B") && e < tp_numel(p->p[i].t); e++)
            tp_set(p->p[i].t, e, 0.1 * tp_normal(3, TP_RNG_TEST, (uint64_t)i, (uint64_t)e));
}

static tp_tensor *tokens(tp_ctx *c, int64_t first, int64_t rows, int shift) {
    tp_tensor *x = tp_tensor_new(c, TP_I32, TP_SHAPE(rows, T));
    for (int64_t i = 0; x && i < rows * T; i++)
        tp_i32(x)[i] = (int32_t)(tp_uniform(9, TP_RNG_TEST, (uint64_t)(first + i / T),
                                            (uint64_t)(i % T + shift)) *
                                 V);
    return x;
}

/* The loss's share of some samples, with its gradient where wanted. */
static double part(net *n, int64_t first, int64_t rows, bool gradient) {
    tp_ctx *c = n->c;
    if (gradient) tp_tape_on(c);
    c->flops = 0;
    tp_model_in in = {.ids = tokens(c, first, rows, 0), .training = gradient};
    tp_model_out y =
        tp_model_loss(c, n->m, &in, tokens(c, first, rows, 1),
                      &(tp_model_loss_opts){.scale = 1.0 / (B * T), .gradient = gradient});
    if (!y.loss || (gradient && tp_backward(c, y.loss))) fail_msg("%s", tp_error(c));
    double loss = tp_get(y.loss, 0);
    n->flops = c->flops;
    tp_tape_off(c);
    tp_step_end(c);
    return loss;
}

static const tp_family families[] = {TP_FAMILY_GPT2, TP_FAMILY_LLAMA};

/* ---- gradients ------------------------------------------------------------------------------ */
/* The largest difference between a gradient and five-point differences over all adapters, as a part
 * of the largest gradient; wrong: of A's gradient, this much is added. */
static double gradient_error(tp_family family, double wrong) {
    tp_model_cfg f = small(family, R);
    f.dtype = TP_F64;
    net n = net_new(&f, 1);
    fill_b(&n);
    part(&n, 0, 1, true);
    tp_params *p = tp_model_trainable(n.m);
    double worst = 0, largest = 0;
    for (int i = 0; i < p->n; i++)
        for (int64_t e = 0; e < tp_numel(p->p[i].t); e += 29) {
            tp_tensor *t = p->p[i].t;
            assert_non_null(t->grad);
            const double was = tp_get(t, e), h = 1e-3, at[] = {-2, -1, 1, 2}, by[] = {1, -8, 8, -1};
            double got = tp_get(t->grad, e), want = 0;
            if (strstr(p->p[i].name, "lora_A")) got += wrong * fabs(got);
            for (int k = 0; k < 4; k++) {
                tp_set(t, e, was + at[k] * h);
                want += by[k] * part(&n, 0, 1, false) / (12 * h);
            }
            tp_set(t, e, was);
            if (!(fabs(got - want) <= worst)) worst = fabs(got - want);
            largest = fmax(largest, fabs(want));
        }
    net_free(&n);
    assert_true(largest > 1e-4);
    return worst / largest;
}

static void test_gradients(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        double is = gradient_error(families[i], 0), mutant = gradient_error(families[i], 1e-4);
        printf("gradients: error %.1e, of the mutant %.1e (allowed 1e-8)\n", is, mutant);
        assert_true(is <= 1e-8);
        assert_false(mutant <= 1e-8);
    }
}

/* ---- an adapter that has learnt nothing ------------------------------------------------------ */
static void test_begins_as_the_base(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        tp_model_cfg without = small(families[i], 0), with = small(families[i], R);
        net a = net_new(&without, 2), b = net_new(&with, 2);
        for (int gradient = 0; gradient < 2; gradient++) {
            double base = part(&a, 0, B, gradient);
            assert_true(part(&b, 0, B, gradient) == base);
        }
        fill_b(&b);
        assert_false(part(&b, 0, B, false) == part(&a, 0, B, false)); /* else adapters do nothing */
        net_free(&a);
        net_free(&b);
    }
}

/* ---- what is frozen ------------------------------------------------------------------------- */
static uint64_t bits(const tp_params *p, unsigned with, unsigned without, bool of_gradient) {
    uint64_t h = 14695981039346656037u;
    for (int i = 0; i < p->n; i++) {
        const tp_tensor *t = of_gradient ? p->p[i].t->grad : p->p[i].t;
        if ((p->p[i].flags & with) != with || (p->p[i].flags & without)) continue;
        assert_non_null(t);
        for (int64_t e = 0; e < tp_numel(t); e++) {
            uint32_t x;
            memcpy(&x, &tp_f32(t)[e], sizeof x);
            h = (h ^ x) * 1099511628211u;
        }
    }
    return h;
}

static void train(net *n, tp_params *moved) {
    tp_optim *o;
    tp_optim_report r;
    tp_optim_opts opts = {.kind = TP_OPTIM_ADAMW,
                          .learning_rate = 1e-2,
                          .adam_beta1 = 0.9,
                          .adam_beta2 = 0.95,
                          .adam_epsilon = 1e-8,
                          .weight_decay = 0.1,
                          .max_grad_norm = 1,
                          .schedule = TP_CONSTANT,
                          .steps = 3};
    assert_int_equal(tp_optim_new(&o, n->c, moved, &opts), 0);
    for (int s = 0; s < 3; s++) {
        part(n, 0, B, true);
        assert_int_equal(tp_optim_step(o, s, &r), 0);
        for (int i = 0; i < moved->n; i++) tp_zero_grad(n->c, &moved->p[i].t, 1);
        tp_step_end(n->c);
    }
    tp_optim_free(o);
}

static void test_base_is_frozen(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        tp_model_cfg f = small(families[i], R);
        net n = net_new(&f, 2);
        tp_params *p = tp_model_params(n.m), *t = tp_model_trainable(n.m);
        uint64_t base = bits(p, 0, TP_P_LORA, false), learnt = bits(p, TP_P_LORA, 0, false);
        assert_int_equal(t->n, 2 * 2 * (families[i] == TP_FAMILY_LLAMA ? 7 : 4));
        part(&n, 0, B, true);
        for (int j = 0; j < p->n; j++) {
            assert_true(!(p->p[j].flags & TP_P_LORA) == !p->p[j].t->requires_grad);
            assert_true(!p->p[j].t->requires_grad == !p->p[j].t->grad);
        }
        double first = part(&n, 0, B, false);
        train(&n, t);
        assert_true(bits(p, 0, TP_P_LORA, false) == base);
        assert_false(bits(p, TP_P_LORA, 0, false) == learnt);
        assert_true(part(&n, 0, B, false) < first - 0.01);
        tp_params *all = tp_model_params(n.m); /* the mutant: everything is trained */
        for (int j = 0; j < all->n; j++) tp_require_grad(all->p[j].t);
        train(&n, all);
        assert_false(bits(p, 0, TP_P_LORA, false) == base);
        net_free(&n);
    }
}

/* A step of dense products costs 2 a weight and token forward, 2 for dx, 2 for dw: without dw a
 * third goes, which is more than small adapters bring. */
static void test_frozen_weights_cost_no_product(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        tp_model_cfg f = small(families[i], 0), g = small(families[i], 1);
        net full = net_new(&f, 1), lora = net_new(&g, 1), mutant = net_new(&g, 1);
        tp_params *all = tp_model_params(mutant.m);
        for (int j = 0; j < all->n; j++) tp_require_grad(all->p[j].t);
        part(&full, 0, B, true);
        part(&lora, 0, B, true);
        part(&mutant, 0, B, true);
        printf("flops of a step: all %.3g, adapters of rank 1 %.3g, both %.3g\n", full.flops,
               lora.flops, mutant.flops);
        assert_true(lora.flops < 0.85 * full.flops);
        assert_false(mutant.flops < 0.85 * full.flops);
        net_free(&full);
        net_free(&lora);
        net_free(&mutant);
    }
}

/* The head, frozen: dx has the same bits, dw is not there, and its product is left out. */
static double head_flops(bool frozen, uint64_t *dx) {
    enum { ROWS = 2, C = 8 };
    tp_ctx *c;
    assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.threads = 2}), 0);
    tp_tensor *x = tp_require_grad(tp_tensor_keep(c, TP_F32, TP_SHAPE(ROWS, T, C)));
    tp_tensor *w = tp_tensor_keep(c, TP_F32, TP_SHAPE(V, C));
    for (int64_t i = 0; i < tp_numel(x); i++)
        tp_set(x, i, tp_normal(1, TP_RNG_TEST, 0, (uint64_t)i));
    for (int64_t i = 0; i < tp_numel(w); i++)
        tp_set(w, i, tp_normal(1, TP_RNG_TEST, 1, (uint64_t)i));
    if (!frozen) tp_require_grad(w);
    tp_tape_on(c);
    c->flops = 0;
    tp_lce_sum s = tp_linear_cross_entropy_train(c, x, w, tokens(c, 0, ROWS, 1), NULL, NULL);
    double flops = c->flops;
    if (!s.loss || tp_backward(c, s.loss)) fail_msg("%s", tp_error(c));
    assert_true(!w->grad == frozen);
    tp_param one = {.name = "x", .t = x};
    *dx = bits(&(tp_params){&one, 1, 1}, 0, 0, true);
    tp_ctx_free(c);
    return flops;
}

static void test_frozen_head(void **state) {
    (void)state;
    uint64_t dx[2];
    double all = head_flops(false, &dx[0]), less = head_flops(true, &dx[1]);
    assert_true(dx[0] == dx[1]);
    assert_true(all - less == 2.0 * 2 * T * V * 8);
}

/* ---- bit for bit ---------------------------------------------------------------------------- */
static uint64_t gradient_of(const tp_model_cfg *f, int threads, int parts, size_t *peak) {
    net n = net_new(f, threads);
    fill_b(&n);
    for (int p = 0; p < parts; p++) part(&n, p * (B / parts), B / parts, true);
    uint64_t h = bits(tp_model_trainable(n.m), 0, 0, true);
    *peak = tp_memory_peak(n.c);
    net_free(&n);
    return h;
}

static void test_gradient_bits(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        tp_model_cfg f = small(families[i], R);
        size_t whole, less;
        uint64_t h = gradient_of(&f, 1, 1, &whole);
        assert_true(h == gradient_of(&f, 2, 1, &less));
        assert_true(h == gradient_of(&f, 3, 2, &less));
        f.activation_checkpointing = true;
        assert_true(h == gradient_of(&f, 1, 1, &less));
        assert_true(less < whole);
        f.lora.alpha = 5.001;
        assert_false(h == gradient_of(&f, 1, 1, &less)); /* else the hash sees nothing */
    }
}

/* Another ctx's model has the same adapters and the same part that is trained. */
static void test_share(void **state) {
    (void)state;
    tp_model_cfg f = small(TP_FAMILY_LLAMA, R);
    net n = net_new(&f, 1), other = {0};
    fill_b(&n);
    assert_int_equal(tp_ctx_new(&other.c, &(tp_ctx_opts){.threads = 1}), 0);
    assert_int_equal(tp_model_share(&other.m, other.c, n.m), 0);
    tp_params *a = tp_model_trainable(n.m), *b = tp_model_trainable(other.m);
    assert_int_equal(a->n, b->n);
    for (int i = 0; i < a->n; i++) {
        assert_string_equal(a->p[i].name, b->p[i].name);
        assert_ptr_equal(a->p[i].t->data, b->p[i].t->data);
    }
    double loss = part(&n, 0, B, true);
    assert_true(part(&other, 0, B, true) == loss);
    assert_true(bits(a, 0, 0, true) == bits(b, 0, 0, true));
    net_free(&other);
    net_free(&n);
}

/* A reference model: the same frozen bytes, adapters of its own that stay. */
static void test_beside(void **state) {
    (void)state;
    tp_model_cfg f = small(TP_FAMILY_GPT2, R);
    net n = net_new(&f, 1), reference = {0};
    fill_b(&n);
    reference.c = n.c;
    assert_int_equal(tp_lora_beside(&reference.m, n.c, n.m), 0);
    tp_params *a = tp_model_params(n.m), *b = tp_model_params(reference.m);
    for (int i = 0; i < a->n; i++)
        assert_true((a->p[i].t->data == b->p[i].t->data) == !(a->p[i].flags & TP_P_LORA));
    double loss = part(&n, 0, B, false);
    assert_true(part(&reference, 0, B, false) == loss);
    train(&n, tp_model_trainable(n.m));
    assert_true(part(&reference, 0, B, false) == loss);
    assert_false(part(&n, 0, B, false) == loss);
    tp_model_free(reference.m);
    net_free(&n);
}

/* ---- merging -------------------------------------------------------------------------------- */
static tp_param *find(tp_params *p, const char *name) {
    for (int i = 0; i < p->n; i++)
        if (!strcmp(p->p[i].name, name)) return &p->p[i];
    return NULL;
}

/* What the loss of the merged model differs by from that of the model with adapters. */
static double merged_apart(tp_family family, bool rslora, double scale_by) {
    tp_model_cfg f = small(family, R), plain = small(family, 0);
    f.lora.rslora = rslora;
    net n = net_new(&f, 2), m = net_new(&plain, 2);
    fill_b(&n);
    tp_params *from = tp_model_params(n.m), *to = tp_model_params(m.m);
    for (int i = 0; i < to->n; i++) {
        const tp_param *p = &to->p[i];
        char a[128], b[128];
        int module = (int)(strlen(p->name) - strlen("weight"));
        snprintf(a, sizeof a, "%.*slora_A.weight", module, p->name);
        snprintf(b, sizeof b, "%.*slora_B.weight", module, p->name);
        memcpy(p->t->data, find(from, p->name)->t->data, (size_t)tp_numel(p->t) * sizeof(float));
        const tp_param *pa = find(from, a), *pb = find(from, b);
        if (!pa) continue;
        tp_lora_merge(m.c, tp_f32(p->t), tp_f32(pa->t), tp_f32(pb->t),
                      &(tp_lora_merge_opts){.in = pa->t->shape[1],
                                            .out = pb->t->shape[0],
                                            .r = R,
                                            .out_first = p->out_first,
                                            .scale = scale_by * tp_lora_scale(&f.lora)});
    }
    double apart = fabs(part(&n, 0, B, false) - part(&m, 0, B, false));
    net_free(&n);
    net_free(&m);
    return apart;
}

static void test_merge(void **state) {
    (void)state;
    for (int i = 0; i < 4; i++) {
        double is = merged_apart(families[i % 2], i / 2, 1);
        double mutant = merged_apart(families[i % 2], i / 2, 1.01);
        printf("merged: losses differ by %.1e, with 1.01 times the scale by %.1e (allowed 2e-6)\n",
               is, mutant);
        assert_true(is <= 2e-6);
        assert_false(mutant <= 2e-6);
    }
    assert_true(tp_lora_scale(&(tp_lora_cfg){.r = 16, .alpha = 8}) == 0.5);
    assert_true(tp_lora_scale(&(tp_lora_cfg){.r = 16, .alpha = 8, .rslora = true}) == 2);
}

/* ---- which matrices ------------------------------------------------------------------------- */
static void has(tp_family family, const char *names, int adapters, const char *one, int64_t in,
                int64_t out) {
    tp_model_cfg f = small(family, R);
    tp_ctx *c;
    assert_int_equal(tp_ctx_new(&c, NULL), 0);
    assert_int_equal(tp_lora_targets(c, &f, names), 0);
    tp_ctx_free(c);
    net n = net_new(&f, 1);
    char name[128];
    assert_int_equal(tp_model_trainable(n.m)->n, 2 * 2 * adapters);
    for (int b = 0; b < 2; b++) {
        snprintf(name, sizeof name, "%s.lora_%c.weight", one, "AB"[b]);
        const tp_param *p = tp_model_param(n.m, name);
        if (!p) fail_msg("%s: there is no %s", names, name);
        assert_int_equal(p->t->shape[0], b ? out : R);
        assert_int_equal(p->t->shape[1], b ? R : in);
    }
    net_free(&n);
}

static void test_targets(void **state) {
    (void)state;
    const char *const bad[] = {"", "q_proj,", "foo", "q_proj,c_attn", "proj", "q_proj;v_proj"};
    has(TP_FAMILY_LLAMA, "all-linear", 7, "model.layers.1.mlp.down_proj", 48, 32);
    has(TP_FAMILY_LLAMA, "q_proj, v_proj", 2, "model.layers.1.self_attn.v_proj", 32, 16);
    has(TP_FAMILY_LLAMA, "mlp.up_proj", 1, "model.layers.0.mlp.up_proj", 32, 48);
    has(TP_FAMILY_GPT2, "all-linear", 4, "transformer.h.1.attn.c_attn", 32, 96);
    has(TP_FAMILY_GPT2, "c_proj", 2, "transformer.h.1.mlp.c_proj", 64, 32);
    has(TP_FAMILY_GPT2, "attn.c_proj", 1, "transformer.h.0.attn.c_proj", 32, 32);
    has(TP_FAMILY_GPT2, "mlp.c_proj,c_fc", 2, "transformer.h.0.mlp.c_fc", 32, 64);
    tp_ctx *c;
    assert_int_equal(tp_ctx_new(&c, NULL), 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        tp_model_cfg f = small(TP_FAMILY_LLAMA, R);
        assert_int_equal(tp_lora_targets(c, &f, bad[i]), TP_EARG);
        assert_non_null(strstr(tp_error(c), "is no matrix of a block of family llama"));
        assert_non_null(strstr(tp_error(c), "q_proj, k_proj, v_proj, o_proj, gate_proj"));
        tp_clear(c);
    }
    tp_model_cfg f = small(TP_FAMILY_GPT2, -1);
    tp_model *m;
    assert_int_equal(tp_model_new(&m, c, &f), TP_EARG);
    assert_non_null(strstr(tp_error(c), "lora.r"));
    tp_ctx_free(c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_begins_as_the_base),
        cmocka_unit_test(test_base_is_frozen),
        cmocka_unit_test(test_frozen_weights_cost_no_product),
        cmocka_unit_test(test_frozen_head),
        cmocka_unit_test(test_gradient_bits),
        cmocka_unit_test(test_share),
        cmocka_unit_test(test_beside),
        cmocka_unit_test(test_merge),
        cmocka_unit_test(test_targets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
