/* Decoding of models with routed blocks (Mixture-of-Depths): the bits of a training forward with
 * causal decisions, in every way to batch them; caches whose layers hold different tokens, shared,
 * copied, evicted; what is left of a dense cache; and what tp_routes_find shows of it. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "core/ctx.h"
#include "decoding.h"
#include "nn/routes.h"
#include "ops/convert.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { C = 24, AT = 50, MORE = 40 };
static const tp_sampling any = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 5};

static family routed(tp_family which, tp_mod_causal causal) {
    bool llama = which == TP_FAMILY_LLAMA;
    return (family){.name = llama ? "llama" : "gpt2",
                    .cfg = {.family = which,
                            .layers = 4,
                            .heads = 2,
                            .kv_heads = llama ? 1 : 2,
                            .channels = C,
                            .head_dim = 12,
                            .ffn = 50,
                            .context = CONTEXT,
                            .vocab = V,
                            .norm_eps = 1e-5,
                            .init_std = 0.3,
                            .rope_theta = 10000,
                            .qk_norm = llama,
                            .attn_softcap = llama ? 10 : 0,
                            .tie_embeddings = !llama,
                            .attention_bias = !llama,
                            .mlp_bias = !llama,
                            .mod = {.capacity = 0.25, .every = 2, .causal = causal}}};
}

/* ---- bits ----------------------------------------------------------------------------------- */
static void test_parity(void **state) {
    (void)state;
    tp_sampling cut = any;
    cut.top_k = 9, cut.temperature = 0.7;
    for (int which = 0; which < 2; which++)
        for (int causal = 0; causal < 3; causal++) {
            family f = routed((tp_family)which, (tp_mod_causal)causal);
            parity(&f, causal == TP_MOD_AUX_LOSS ? &cut : &any);
        }
}

/* Every block routed, linear gates, and choices that are no router's. */
static void test_parity_of_the_rest(void **state) {
    (void)state;
    family every = routed(TP_FAMILY_LLAMA, TP_MOD_PREDICTOR);
    every.cfg.layers = 2;
    every.cfg.mod.every = 1;
    every.cfg.mod.gate = TP_MOD_GATE_LINEAR;
    parity(&every, &any);
    family random = routed(TP_FAMILY_GPT2, TP_MOD_PREDICTOR);
    random.cfg.mod.router = TP_MOD_RANDOM;
    parity(&random, &any);
    family all = routed(TP_FAMILY_LLAMA, TP_MOD_PREDICTOR);
    all.cfg.mod.router = TP_MOD_ALL;
    parity(&all, &any);
}

static void shift(tp_model *m, float by) {
    for (int i = 0; i < tp_model_params(m)->n; i++) {
        const tp_param *p = &tp_model_params(m)->p[i];
        if (strstr(p->name, "predictor.out.bias")) tp_f32(p->t)[0] = by;
    }
}
static void take_none(tp_model *m) { shift(m, -1e9f); }
static void take_all(tp_model *m) { shift(m, 1e9f); }

/* A routed layer's pool is made for the capacity; decisions that keep to none must wait. */
static void test_parity_at_the_ends(void **state) {
    (void)state;
    family f = routed(TP_FAMILY_LLAMA, TP_MOD_PREDICTOR);
    f.cfg.mod.capacity = 0.05;
    f.prepare = take_none;
    parity(&f, &any);
    f.prepare = take_all;
    parity(&f, &any);
    net n = net_new(&f, 1);
    static int32_t prompts[PROMPTS][CONTEXT];
    make_prompts(prompts);
    tp_engine *e;
    assert_int_equal(tp_engine_new(&e, n.c, n.m, &(tp_engine_opts){.lanes = 20}), 0);
    tp_request r = {.prompt = prompts[2],
                    .n = 70,
                    .samples = 20,
                    .max_new_tokens = NEW,
                    .stop = -1,
                    .sampling = any};
    assert_int_equal(tp_engine_run(e, &r, 1, NULL), 0);
    tp_layer_stats l = tp_engine_get_layer_stats(e, 1);
    assert_true(tp_engine_get_stats(e).evicted > 0);
    assert_true(l.routed && l.kept == l.fed && l.pages_peak == l.pages);
    tp_engine_free(e);
    net_free(&n);
}

/* ---- what parity must notice: the cache, used wrongly --------------------------------------- */
typedef enum mistake {
    NONE,
    FROM_POSITIONS, /* slots of a routed layer counted from positions, not from tokens taken */
    NO_COPY,
    ONE_COUNT, /* both routed layers count the tokens of one */
    LOST_KEY
} mistake;

/* Two sequences share AT tokens, read in chunks; each goes on, in passes of both. out (MORE,C):
 * what one of them has on the way. */
static void shared_prefix(const family *f, const int32_t *ids, mistake wrong, float *out) {
    float hidden[2 * C];
    net n = net_new(f, 1);
    tp_cache k;
    assert_int_equal(tp_cache_new(&k, n.c, n.m, 16, 30, 30), 0);
    tp_sequence a = sequence(ids, AT + MORE), b = sequence(ids, AT + MORE);
    for (int i = 0; i < MORE; i++) a.ids[AT + i] = i;
    feed(&k, &a, AT - 21, hidden);
    feed(&k, &a, 21, hidden);
    assert_int_equal(tp_cache_share(&k, &a, &b), 0);
    tp_pages *p = &b.pages[1];
    if (!(p->keys > 0 && p->keys < AT && p->keys % 16)) fail_msg("%lld keys", (long long)p->keys);
    assert_true(k.group[1].refs[p->table[0]] == 2 && p->keys != b.pages[2].keys);
    if (wrong == FROM_POSITIONS) p->keys = b.cached;
    if (wrong == NO_COPY)
        for (int64_t i = 0; i < p->n; i++) k.group[1].refs[p->table[i]] = 1;
    if (wrong == LOST_KEY) p->keys--;
    if (wrong == ONE_COUNT) b.pages[2].keys = p->keys;
    for (int i = 0; i < MORE; i++) {
        tp_sequence *both[] = {&b, &a};
        int64_t one[] = {1, 1}, short_of, count = i < MORE - 1 ? 2 : 1; /* b alone at last */
        for (int j = 0; j < count; j++) {
            assert_int_equal(tp_cache_room(&k, both[j], both[j]->cached + 1, &short_of), 0);
            assert_true(short_of < 0);
        }
        tp_tensor *h = tp_cache_forward(&k, both, one, count);
        assert_non_null(h);
        assert_int_equal(tp_download(n.c, h, hidden), 0);
        memcpy(out + i * C, hidden, C * sizeof *out);
        tp_step_end(n.c);
    }
    tp_cache_drop(&k, &a);
    tp_cache_drop(&k, &b);
    if (wrong == NONE) {
        for (int i = 0; i < 3; i++) assert_int_equal(k.group[i].free, k.group[i].pages);
        assert_int_equal(k.group[0].kept, k.group[0].fed);
        assert_int_equal(k.group[1].fed, AT + 2 * MORE - 1);
        assert_true(k.group[1].kept < k.group[1].fed && k.group[2].kept < k.group[2].fed);
    }
    tp_cache_forget(&k, &a);
    tp_cache_forget(&k, &b);
    free(a.ids), free(b.ids);
    tp_cache_free(&k);
    net_free(&n);
}

static void test_shared_pages(void **state) {
    (void)state;
    static int32_t prompts[PROMPTS][CONTEXT];
    int32_t ids[AT + MORE];
    make_prompts(prompts);
    for (int i = 0; i < AT + MORE; i++) ids[i] = prompts[2][i % 70];
    for (int which = 0; which < 2; which++) {
        family f = routed((tp_family)which, TP_MOD_PREDICTOR);
        float want[(AT + MORE) * C], have[MORE * C];
        whole_sequence(&f, ids, AT + MORE, want);
        for (mistake m = NONE; m <= LOST_KEY; m++) {
            shared_prefix(&f, ids, m, have);
            bool same = !memcmp(want + AT * C, have, sizeof have);
            if (same != (m == NONE)) fail_msg("%s: mistake %d", f.name, m);
        }
    }
}

/* ---- what is saved -------------------------------------------------------------------------- */
static void test_pages_follow_the_capacity(void **state) {
    (void)state;
    enum { P = 512, R = 256, G = 16 };
    family f = routed(TP_FAMILY_LLAMA, TP_MOD_PREDICTOR);
    f.cfg.context = 1024;
    f.cfg.mod.router = TP_MOD_RANDOM; /* keeps to the capacity, in the mean */
    net n = net_new(&f, 2);
    int32_t prompt[P];
    for (int i = 0; i < P; i++) prompt[i] = i % V;
    tp_engine *e;
    assert_int_equal(tp_engine_new(&e, n.c, n.m, &(tp_engine_opts){.lanes = G}), 0);
    tp_request r = {
        .prompt = prompt, .n = P, .samples = G, .max_new_tokens = R, .stop = -1, .sampling = any};
    assert_int_equal(tp_engine_run(e, &r, 1, NULL), 0);
    tp_layer_stats dense = tp_engine_get_layer_stats(e, 0);
    assert_true(!dense.routed && dense.kept == dense.fed && dense.fed == P + G * (R - 1));
    for (int64_t i = 1; i < 4; i += 2) {
        tp_layer_stats l = tp_engine_get_layer_stats(e, i);
        double part = (double)l.kept / (double)l.fed;
        print_message("layer %lld: %.3f of the keys, %lld pages at most, dense %lld\n",
                      (long long)i, part, (long long)l.pages_peak, (long long)dense.pages_peak);
        assert_true(l.routed && l.fed == dense.fed && fabs(part - 0.25) < 0.02);
        assert_true((double)l.pages_peak < 0.3 * (double)dense.pages_peak + G);
        assert_true((double)l.pages < 0.5 * (double)dense.pages);
    }
    double bytes = tp_engine_kv_bytes_per_token(e), planned = (double)tp_kv_bytes_per_token(n.m);
    assert_true(planned == (2 + 2 * 0.25) * 2 * 12 * sizeof(float));
    assert_true(fabs(bytes / planned - 1) < 0.02);
    assert_int_equal(tp_engine_get_stats(e).evicted, 0);
    tp_engine_free(e);
    net_free(&n);
}

/* Operations of a pass over one token: those who pass a block by cost nothing there. */
static double flops_per_token(const family *f) {
    net n = net_new(f, 1);
    tp_engine *e;
    int32_t prompt[] = {1, 2, 3};
    tp_request r = {
        .prompt = prompt, .n = 3, .samples = 1, .max_new_tokens = 60, .stop = -1, .sampling = any};
    assert_int_equal(tp_engine_new(&e, n.c, n.m, &(tp_engine_opts){.lanes = 1}), 0);
    assert_int_equal(tp_engine_run(e, &r, 1, NULL), 0);
    tp_engine_stats s = tp_engine_get_stats(e);
    assert_int_equal(s.fed_singly, 59);
    tp_engine_free(e);
    net_free(&n);
    return s.flops_singly / (double)s.fed_singly;
}

static void test_passing_by_costs_nothing(void **state) {
    (void)state;
    family f = routed(TP_FAMILY_LLAMA, TP_MOD_PREDICTOR), dense = f, half = f;
    dense.cfg.mod.capacity = 0;
    half.cfg.mod.capacity = 0;
    half.cfg.layers = 2;
    f.prepare = take_none;
    double none = flops_per_token(&f), two = flops_per_token(&half);
    double all = flops_per_token(&dense);
    print_message("FLOPs of a token: dense %.0f, two of its four blocks %.0f, the others routed "
                  "and passed by %.0f\n",
                  all, two, none);
    assert_true(none >= two && none < two + 0.05 * (all - two) * 2);
}

/* ---- what tp_routes_find shows ----------------------------------------------------------------
 */
/* Of a text fed token by token: which of them each routed layer keeps. */
static void decisions(const family *f, const int32_t *ids, int64_t n, unsigned char *out) {
    float hidden[C];
    net x = net_new(f, 1);
    tp_cache k;
    assert_int_equal(tp_cache_new(&k, x.c, x.m, 16, 30, 30), 0);
    tp_sequence s = sequence(ids, n);
    for (int64_t t = 0; t < n; t++) {
        int64_t before[8] = {0};
        for (int64_t g = 1; g < k.groups && s.pages; g++) before[g] = s.pages[g].keys;
        feed(&k, &s, 1, hidden);
        for (int64_t g = 1; g < k.groups; g++) out[(g - 1) * n + t] = s.pages[g].keys != before[g];
    }
    tp_cache_forget(&k, &s);
    free(s.ids);
    tp_cache_free(&k);
    net_free(&x);
}

/* Those chosen are as many as the model says, and the highest. */
static void check_chosen(const family *f, const tp_routes *r) {
    for (int64_t b = 0; b < r->blocks; b++) {
        float least = INFINITY, rest = -INFINITY;
        int64_t n = 0;
        for (int64_t i = b * r->tokens; i < (b + 1) * r->tokens; i++) {
            n += r->chosen[i];
            if (r->chosen[i] && r->logit[i] < least) least = r->logit[i];
            if (!r->chosen[i] && r->logit[i] > rest) rest = r->logit[i];
        }
        assert_int_equal(n, tp_mod_tokens(&f->cfg, r->tokens));
        assert_true(tp_mod_routed(&f->cfg, r->layer[b]));
        assert_true(b == 0 || r->layer[b] > r->layer[b - 1]);
        if (f->cfg.mod.router == TP_MOD_LINEAR) assert_true(least >= rest);
    }
}

static void routes_of(const family *f, const int32_t *ids, int64_t n, tp_routes *out) {
    net x = net_new(f, 2);
    if (tp_routes_find(out, x.c, x.m, ids, n)) fail_msg("%s", tp_error(x.c));
    net_free(&x);
}

static void test_routes(void **state) {
    (void)state;
    enum { N = 70 };
    static int32_t prompts[PROMPTS][CONTEXT];
    unsigned char kept[4 * N];
    int differ = 0;
    make_prompts(prompts);
    for (int i = 0; i < 10; i++) {
        family f = routed(i % 2 ? TP_FAMILY_LLAMA : TP_FAMILY_GPT2, (tp_mod_causal)(i / 2 % 3));
        if (i >= 6) f.cfg.mod.every = 1;
        if (i >= 8) f.cfg.mod.router = i == 8 ? TP_MOD_RANDOM : TP_MOD_ALL;
        tp_routes r;
        routes_of(&f, prompts[2], N, &r);
        assert_int_equal(r.blocks, tp_mod_blocks(&f.cfg));
        assert_true(r.loss > 0 && r.loss_causal > 0);
        check_chosen(&f, &r);
        decisions(&f, prompts[2], N, kept);
        assert_memory_equal(r.decided, kept, (size_t)r.blocks * N);
        differ += memcmp(r.chosen, kept, (size_t)r.blocks * N) != 0; /* the choice by a row */
        tp_routes_clear(&r);
    }
    assert_true(differ >= 8);
}

static void double_router(tp_model *m) {
    for (int i = 0; i < tp_model_params(m)->n; i++) {
        const tp_param *p = &tp_model_params(m)->p[i];
        if (!strstr(p->name, "router")) continue;
        for (int64_t j = 0; j < tp_numel(p->t); j++) tp_f32(p->t)[j] *= 2;
    }
}

/* Other weights, other numbers: of the first routed block nothing but the logits, to the bit. */
static void test_routes_follow_the_weights(void **state) {
    (void)state;
    enum { N = 33 };
    static int32_t prompts[PROMPTS][CONTEXT];
    make_prompts(prompts);
    family f = routed(TP_FAMILY_LLAMA, TP_MOD_PREDICTOR), twice = f, all = f;
    twice.prepare = double_router;
    all.prepare = take_all;
    tp_routes r, two, every;
    routes_of(&f, prompts[3], N, &r);
    routes_of(&twice, prompts[3], N, &two);
    routes_of(&all, prompts[3], N, &every);
    for (int i = 0; i < N; i++) assert_true(two.logit[i] == 2 * r.logit[i] && r.logit[i] != 0);
    assert_memory_equal(two.chosen, r.chosen, N);
    assert_memory_not_equal(two.logit + N, r.logit + N, N * sizeof *r.logit);
    for (int64_t i = 0; i < every.blocks * N; i++) assert_int_equal(every.decided[i], 1);
    tp_route_summary s = tp_routes_summary(&every, 0);
    double part = (double)tp_mod_tokens(&f.cfg, N) / N;
    assert_true(fabs(s.chosen - part) < 1e-9 && fabs(s.agree - part) < 1e-9);
    assert_true(fabs(s.decided - 1) < 1e-9);
    tp_route_summary t = tp_routes_summary(&two, 0);
    s = tp_routes_summary(&r, 0);
    assert_true(s.deviation > 0 && t.mean == 2 * s.mean && t.deviation == 2 * s.deviation);
    tp_routes_clear(&r), tp_routes_clear(&two), tp_routes_clear(&every);
}

static void test_routes_at_the_ends(void **state) {
    (void)state;
    static const int32_t ids[CONTEXT + 1];
    tp_routes r;
    family f = routed(TP_FAMILY_GPT2, TP_MOD_THRESHOLD), dense = f;
    dense.cfg.mod.capacity = 0;
    net n = net_new(&f, 1), d = net_new(&dense, 1);
    assert_true(fails(tp_routes_find(&r, d.c, d.m, ids, 5), &d, "no routed block"));
    assert_true(fails(tp_routes_find(&r, n.c, n.m, ids, 0), &n, "no tokens"));
    assert_true(fails(tp_routes_find(&r, n.c, n.m, ids, CONTEXT + 1), &n, "do not fit"));
    tp_routes_clear(&r);
    assert_int_equal(tp_routes_find(&r, n.c, n.m, ids, 1), 0);
    assert_true(isnan(r.loss) && isnan(r.loss_causal) && r.chosen[0] && r.chosen[1]);
    tp_routes_clear(&r);
    net_free(&n), net_free(&d);
    for (long at = 1, clean = 0; !clean; at++) {
        n = net_new(&f, 1);
        n.c->fail_alloc_at = at;
        tp_status st = tp_routes_find(&r, n.c, n.m, ids, 20);
        clean = n.c->fail_alloc_at > 0;
        assert_true(clean ? st == TP_OK : st == TP_ENOMEM);
        tp_routes_clear(&r);
        net_free(&n);
    }
}

/* ---- odds and ends -------------------------------------------------------------------------- */
typedef struct text {
    int32_t ids[400];
    float logprob[400];
    int64_t n;
} text;
static tp_status keep(void *arg, const tp_completion *x) {
    text *t = (text *)arg + x->sample;
    t->n = x->n;
    memcpy(t->ids, x->ids, (size_t)x->n * sizeof *t->ids);
    memcpy(t->logprob, x->logprob, (size_t)x->n * sizeof *t->logprob);
    return TP_OK;
}

/* A text longer than the context: what is left of it is read again, whatever the way. */
static void test_slide(void **state) {
    (void)state;
    static const tp_engine_opts ways[] = {
        {.lanes = 3, .slide = true},
        {.lanes = 1, .slide = true, .page = 32, .prefill_chunk = 7},
        {.lanes = 3, .slide = true, .pages = 20},
    };
    family f = routed(TP_FAMILY_LLAMA, TP_MOD_THRESHOLD);
    text *t = calloc(6, sizeof *t);
    for (int w = 0; w < 3; w++) {
        net n = net_new(&f, 1);
        tp_engine *e;
        int32_t prompt[] = {1, 2, 3};
        tp_request r = {.prompt = prompt,
                        .n = 3,
                        .samples = 3,
                        .max_new_tokens = 400,
                        .stop = -1,
                        .sampling = any};
        memset(t + 3, 0, 3 * sizeof *t);
        assert_int_equal(tp_engine_new(&e, n.c, n.m, &ways[w]), 0);
        assert_int_equal(
            tp_engine_run(e, &r, 1, &(tp_engine_calls){.done = keep, .arg = w ? t + 3 : t}), 0);
        for (int i = 0; i < 3; i++) assert_int_equal(t[i].n, 400);
        if (w) assert_memory_equal(t, t + 3, 3 * sizeof *t);
        tp_engine_free(e);
        net_free(&n);
    }
    free(t);
}

static void test_refusals(void **state) {
    (void)state;
    family f = routed(TP_FAMILY_LLAMA, TP_MOD_PREDICTOR);
    net n = net_new(&f, 1);
    tp_engine *e;
    assert_true(fails(tp_engine_new(&e, n.c, n.m, &(tp_engine_opts){.window = 8}), &n,
                      "a window does not go with mod.capacity"));
    net_free(&n);
}

static void test_allocation_failures(void **state) {
    (void)state;
    int32_t prompt[20] = {0};
    family f = routed(TP_FAMILY_LLAMA, TP_MOD_PREDICTOR);
    for (long at = 1, clean = 0; !clean; at++) {
        net n = net_new(&f, 1);
        n.c->fail_alloc_at = at;
        tp_engine *e = NULL;
        tp_request r = {.prompt = prompt,
                        .n = 20,
                        .samples = 3,
                        .max_new_tokens = 3,
                        .stop = -1,
                        .sampling = any};
        tp_status st = tp_engine_new(&e, n.c, n.m, &(tp_engine_opts){.lanes = 2});
        if (!st) st = tp_engine_run(e, &r, 1, NULL);
        clean = n.c->fail_alloc_at > 0;
        n.c->fail_alloc_at = 0;
        assert_true(clean ? st == TP_OK : st == TP_ENOMEM);
        tp_engine_free(e);
        net_free(&n);
        assert_true(at < 100000);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parity),
        cmocka_unit_test(test_parity_of_the_rest),
        cmocka_unit_test(test_parity_at_the_ends),
        cmocka_unit_test(test_shared_pages),
        cmocka_unit_test(test_pages_follow_the_capacity),
        cmocka_unit_test(test_passing_by_costs_nothing),
        cmocka_unit_test(test_routes),
        cmocka_unit_test(test_routes_follow_the_weights),
        cmocka_unit_test(test_routes_at_the_ends),
        cmocka_unit_test(test_slide),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_allocation_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
