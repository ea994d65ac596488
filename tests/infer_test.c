/* Decoding over a paged cache against training forwards of whole sequences: tokens and log-probs to
 * the last bit, for every way to batch them; pages and their sharing; the sampler's choices. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "core/ctx.h"
#include "decoding.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Adapters begin with zeros; here they have learnt something. */
static void fill_adapters(tp_model *m) {
    const tp_params *p = tp_model_trainable(m);
    for (int i = 0; i < p->n; i++)
        for (int64_t e = 0; e < tp_numel(p->p[i].t); e++)
            tp_f32(p->p[i].t)[e] =
                (float)(0.3 * tp_normal(6, TP_RNG_TEST, (uint64_t)i, (uint64_t)e));
}

static const family families[] = {
    SMALL_GPT2,
    {"llama",
     {.family = TP_FAMILY_LLAMA,
      .layers = 2,
      .heads = 4,
      .kv_heads = 2,
      .channels = 32,
      .head_dim = 8,
      .ffn = 48,
      .context = CONTEXT,
      .vocab = V,
      .norm_eps = 1e-5,
      .init_std = 0.3,
      .rope_theta = 10000,
      .rope_scaling = {TP_ROPE_LLAMA3, 8, 1, 4, 60},
      .qk_norm = true,
      .logit_softcap = 8,
      .attn_softcap = 10,
      .sliding_window = 21}},
    {"llama, LoRA",
     {.family = TP_FAMILY_LLAMA,
      .layers = 2,
      .heads = 2,
      .kv_heads = 1,
      .channels = 24,
      .head_dim = 12,
      .ffn = 40,
      .context = CONTEXT,
      .vocab = V,
      .norm_eps = 1e-5,
      .init_std = 0.3,
      .rope_theta = 10000,
      .lora = {.r = 5, .alpha = 8}},
     fill_adapters},
};

static void test_parity(void **state) {
    (void)state;
    const tp_sampling any = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 5};
    tp_sampling cool = any, cut = any, greedy = any;
    cool.temperature = 0.7;
    cut.top_k = 9, cut.top_p = 0.8, cut.min_p = 0.02, cut.temperature = 1.3;
    greedy.temperature = 0;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        parity(&families[i], &any);
        parity(&families[i], &cool);
        parity(&families[i], &cut);
        parity(&families[i], &greedy);
    }
}

/* ---- what parity must notice: the cache, used wrongly --------------------------------------- */
enum { AT = 50 };
typedef enum mistake { NONE, NO_COPY, SHIFTED, STALE } mistake;

/* Two sequences share 50 tokens; one goes on with 9, the other with 5; the other is then read. */
static void shared_prefix(const family *f, mistake wrong, float *out) {
    static int32_t prompts[PROMPTS][CONTEXT];
    float ignored[64];
    net n = net_new(f, 1);
    tp_cache k;
    make_prompts(prompts);
    assert_int_equal(tp_cache_new(&k, n.c, n.m, 16, 20, 0), 0);
    tp_sequence a = sequence(prompts[2], AT + 9), b = sequence(prompts[2], AT + 5);
    for (int i = 0; i < 5; i++) b.ids[AT + i] = i;
    feed(&k, &a, AT, ignored);
    assert_int_equal(tp_cache_share(&k, &a, &b), 0);
    tp_page_group *g = &k.group[0];
    if (wrong == NO_COPY)
        for (int64_t i = 0; i < a.pages->n; i++) g->refs[a.pages->table[i]] = 1;
    if (wrong == SHIFTED) b.cached--, b.pages->keys--, b.ids++;
    if (wrong == STALE) b.pages->table[0] = b.pages->table[1];
    int64_t pages = g->pages - g->free;
    feed(&k, &b, 2, ignored);
    if (wrong == NONE) assert_int_equal(g->pages - g->free, pages + 1); /* the last, copied */
    feed(&k, &a, 9, ignored);
    feed(&k, &b, 3, out);
    if (wrong == SHIFTED) b.ids--;
    tp_cache_forget(&k, &a);
    tp_cache_forget(&k, &b);
    if (wrong == NONE) assert_int_equal(g->free, g->pages);
    free(a.ids), free(b.ids);
    tp_cache_free(&k);
    net_free(&n);
}

static void test_shared_pages(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        static int32_t prompts[PROMPTS][CONTEXT];
        int32_t ids[AT + 5];
        family open = families[i];
        open.cfg.sliding_window = 0;
        float whole[(AT + 5) * 32], have[64] = {0};
        const float *want = whole + (AT + 4) * open.cfg.channels;
        size_t bytes = (size_t)open.cfg.channels * 4;
        make_prompts(prompts);
        for (int t = 0; t < AT + 5; t++) ids[t] = t < AT ? prompts[2][t] : t - AT;
        whole_sequence(&open, ids, AT + 5, whole);
        for (mistake m = NONE; m <= STALE; m++) {
            shared_prefix(&open, m, have);
            bool same = !memcmp(want, have, bytes);
            assert_true(same == (m == NONE));
        }
    }
}

/* ---- pages ---------------------------------------------------------------------------------- */
static void test_group_shares_its_prompt(void **state) {
    (void)state;
    enum { P = 512, R = 64, G = 16, PAGE = 16 };
    family f = families[1];
    f.cfg.context = 1024;
    f.cfg.sliding_window = 0;
    net n = net_new(&f, 2);
    int32_t prompt[P];
    for (int i = 0; i < P; i++) prompt[i] = i % V;
    tp_engine *e;
    assert_int_equal(tp_engine_new(&e, n.c, n.m, &(tp_engine_opts){.lanes = G, .page = PAGE}), 0);
    tp_request r = {.prompt = prompt,
                    .n = P,
                    .samples = G,
                    .max_new_tokens = R,
                    .stop = -1,
                    .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1}};
    assert_int_equal(tp_engine_run(e, &r, 1, NULL), 0);
    tp_engine_stats s = tp_engine_get_stats(e);
    print_message("16 samples of 64 tokens after 512: %lld pages of 16 tokens at most\n",
                  (long long)s.pages_peak);
    assert_true(s.pages_peak <= (P + G * R) / PAGE + 16);
    assert_int_equal(s.prefilled, P); /* once */
    tp_engine_free(e);
    net_free(&n);
}

static void test_window_gives_pages_back(void **state) {
    (void)state;
    net n = net_new(&families[1], 1);
    int32_t prompt[3] = {1, 2, 3};
    tp_engine *e;
    tp_engine_opts o = {.lanes = 1, .window = 40, .sinks = 4};
    assert_int_equal(tp_engine_new(&e, n.c, n.m, &o), 0);
    tp_request r = {.prompt = prompt,
                    .n = 3,
                    .samples = 1,
                    .max_new_tokens = 700,
                    .stop = -1,
                    .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1}};
    assert_int_equal(tp_engine_run(e, &r, 1, NULL), 0);
    tp_engine_stats s = tp_engine_get_stats(e);
    assert_int_equal(s.decoded, 700);
    assert_true(s.pages_peak <= 1 + 40 / 16 + 2);
    tp_engine_free(e);
    net_free(&n);
}

enum { LONG = 480, MORE = 60, TEXTS = 3, EACH = 3 };
typedef struct texts {
    int32_t ids[TEXTS][EACH][MORE];
    float logprob[TEXTS][EACH][MORE];
} texts;

static tp_status keep_text(void *arg, const tp_completion *x) {
    texts *t = arg;
    assert_int_equal(x->n, MORE);
    memcpy(t->ids[x->request][x->sample], x->ids, sizeof t->ids[0][0]);
    memcpy(t->logprob[x->request][x->sample], x->logprob, sizeof t->logprob[0][0]);
    return TP_OK;
}

static tp_engine_stats windowed(tp_engine_opts o, texts *out) {
    static const int64_t lengths[TEXTS] = {LONG, 7, 333};
    net n = net_new(&families[1], 2);
    int32_t prompt[LONG];
    tp_request r[TEXTS];
    tp_engine *e;
    for (int i = 0; i < LONG; i++) prompt[i] = i * 7 % V;
    for (int i = 0; i < TEXTS; i++)
        r[i] = (tp_request){
            .prompt = prompt + (LONG - lengths[i]) / 2,
            .n = lengths[i],
            .samples = EACH,
            .max_new_tokens = MORE,
            .number = (uint32_t)i,
            .stop = -1,
            .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 5}};
    if (tp_engine_new(&e, n.c, n.m, &o)) fail_msg("%s", tp_error(n.c));
    if (tp_engine_run(e, r, TEXTS, &(tp_engine_calls){.done = keep_text, .arg = out}))
        fail_msg("%s", tp_error(n.c));
    tp_engine_stats s = tp_engine_get_stats(e);
    tp_engine_free(e);
    net_free(&n);
    return s;
}

/* Prompts that are longer than the context, in pages for what the window sees. */
static void test_window_takes_any_prompt(void **state) {
    (void)state;
    static const struct {
        tp_engine_opts o;
        int64_t peak;
        bool waits;
    } ways[] = {
        {{.lanes = 1, .window = 32, .sinks = 4}, 2 * 14, false},
        {{.lanes = 1, .window = 32, .sinks = 4, .prefill_chunk = 16}, 2 * 7, false},
        {{.lanes = 9, .window = 32, .sinks = 4, .prefill_chunk = 45}, 13 * 9, false},
        {{.lanes = 9, .window = 32, .sinks = 4, .prefill_chunk = 16, .pages = 14}, 14, true},
        {{.lanes = 9, .window = 32, .sinks = 4, .prefill_chunk = 7, .pages = 15}, 15, true},
    };
    static texts one, x;
    tp_engine_opts singly = {.lanes = 1, .window = 32, .sinks = 4, .prefill_chunk = 1};
    windowed(singly, &one);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        tp_engine_stats s = windowed(ways[i].o, &x);
        assert_memory_equal(&x, &one, sizeof one);
        assert_true(s.pages_peak <= ways[i].peak);
        assert_true(s.evicted > 0 || !ways[i].waits);
    }
    singly.window = 31;
    windowed(singly, &x);
    assert_memory_not_equal(&x, &one, sizeof one);
    /* windows, and sinks, that are wider than the context */
    tp_engine_opts wide[] = {{.lanes = 2, .window = 1000},
                             {.lanes = 2, .window = 16, .sinks = 2000}};
    for (int i = 0; i < 2; i++) {
        windowed(wide[i], &x);
        wide[i].prefill_chunk = 9, wide[i].max_length = LONG + MORE;
        windowed(wide[i], &one);
        assert_memory_equal(&x, &one, sizeof one);
    }
}

static void test_refusals(void **state) {
    (void)state;
    net n = net_new(&families[0], 1);
    tp_engine *e;
    int32_t prompt[CONTEXT + 1] = {0};
    tp_request r = {.prompt = prompt,
                    .n = CONTEXT + 1,
                    .samples = 1,
                    .max_new_tokens = 1,
                    .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1}};
    assert_true(
        fails(tp_engine_new(&e, n.c, n.m, &(tp_engine_opts){.page = 24}), &n, "multiple of 16"));
    assert_true(fails(tp_engine_new(&e, n.c, n.m, &(tp_engine_opts){.pages = 8}), &n, "too few"));
    assert_true(fails(tp_engine_new(&e, n.c, n.m, &(tp_engine_opts){.window = 8}), &n, "rope"));
    assert_int_equal(tp_engine_new(&e, n.c, n.m, NULL), 0);
    assert_true(fails(tp_engine_run(e, &r, 1, NULL), &n, "the context is 130"));
    r.n = 0;
    assert_true(fails(tp_engine_run(e, &r, 1, NULL), &n, "no tokens"));
    r.n = 1;
    prompt[0] = V;
    assert_true(fails(tp_engine_run(e, &r, 1, NULL), &n, "is not in 0..82"));
    prompt[0] = 0;
    r.sampling.top_p = 0;
    assert_true(fails(tp_engine_run(e, &r, 1, NULL), &n, "top_p"));
    r.sampling.top_p = 1;
    assert_int_equal(tp_engine_run(e, &r, 1, NULL), 0);
    tp_engine_free(e);
    net_free(&n);
}

static void test_allocation_failures(void **state) {
    (void)state;
    int32_t prompt[20] = {0};
    for (long at = 1, clean = 0; !clean; at++) {
        net n = net_new(&families[1], 1);
        n.c->fail_alloc_at = at;
        tp_engine *e = NULL;
        tp_request r = {.prompt = prompt,
                        .n = 20,
                        .samples = 3,
                        .max_new_tokens = 3,
                        .stop = -1,
                        .want_sets = true,
                        .sampling = {.temperature = 1, .top_p = 0.9, .repetition_penalty = 1}};
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

/* ---- the sampler ---------------------------------------------------------------------------- */
static int by_weight(const void *a, const void *b) {
    const double *x = a, *y = b;
    return (x[0] < y[0]) - (x[0] > y[0]);
}

/* The set, made plainly: everything sorted, then the three filters in turn. */
static void plain_set(const float *logits, int n, const tp_sampling *how, bool keep[]) {
    double p[64][2], sum = 0, mass = 0;
    for (int i = 0; i < n; i++) {
        p[i][0] = exp(logits[i] / how->temperature);
        p[i][1] = i;
    }
    qsort(p, (size_t)n, sizeof *p, by_weight);
    int kept = how->top_k > 0 && how->top_k < n ? (int)how->top_k : n;
    for (int i = 0; i < kept; i++) sum += p[i][0];
    int by_p = 0;
    while (how->top_p < 1 && by_p < kept && mass < how->top_p * sum) mass += p[by_p++][0];
    if (how->top_p < 1) kept = by_p;
    int by_min = 0;
    while (by_min < kept && p[by_min][0] >= how->min_p * p[0][0]) by_min++;
    for (int i = 0; i < n; i++) keep[i] = false;
    for (int i = 0; i < by_min; i++) keep[(int)p[i][1]] = true;
}

static void test_sets_and_frequencies(void **state) {
    (void)state;
    enum { N = 40, DRAWS = 40000 };
    static const tp_sampling ways[] = {
        {.temperature = 1, .top_p = 1, .repetition_penalty = 1},
        {.temperature = 0.6, .top_p = 1, .repetition_penalty = 1, .top_k = 5},
        {.temperature = 1, .top_p = 0.7, .repetition_penalty = 1},
        {.temperature = 2, .top_p = 1, .min_p = 0.2, .repetition_penalty = 1},
        {.temperature = 1.5, .top_p = 0.8, .top_k = 12, .min_p = 0.1, .repetition_penalty = 1},
        {.temperature = 1, .top_p = 1, .top_k = 1, .repetition_penalty = 1},
    };
    net n = net_new(&families[0], 1);
    tp_sampler *s;
    float logits[N];
    for (int i = 0; i < N; i++) logits[i] = (float)tp_normal(3, TP_RNG_TEST, 1, (uint64_t)i) * 2;
    assert_int_equal(tp_sampler_new(&s, n.c, N), 0);
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
        bool keep[N];
        double p[N], sum = 0, chi2 = 0;
        int64_t seen[N] = {0}, kept = 0;
        plain_set(logits, N, &ways[w], keep);
        for (int i = 0; i < N; i++)
            sum += p[i] = keep[i] ? exp(logits[i] / ways[w].temperature) : 0;
        for (uint32_t d = 0; d < DRAWS; d++) {
            int32_t id, set[2];
            tp_draw draw = {.sample = d};
            assert_int_equal(tp_sample_token(n.c, s, &ways[w], logits, NULL, 0, draw, &id, set), 0);
            for (int i = 0; i < N && d == 0; i++)
                assert_int_equal((set[i / 32] >> (i % 32)) & 1, keep[i]);
            seen[id]++;
        }
        for (int i = 0; i < N; i++) {
            double want = p[i] / sum * DRAWS;
            kept += keep[i];
            if (!keep[i]) assert_int_equal(seen[i], 0);
            if (keep[i]) chi2 += ((double)seen[i] - want) * ((double)seen[i] - want) / want;
        }
        double most = (double)(kept - 1) + 5 * sqrt(2.0 * (double)kept);
        assert_true(chi2 <= most);
    }
    /* top-p goes by the mass of all k, before min-p: 0.6 of 1.8 needs two tokens, of the 1.5 that
     * min-p leaves it would be one */
    tp_sampling three = {.temperature = 1, .top_k = 5, .top_p = 0.6, .min_p = 0.4};
    three.repetition_penalty = 1;
    int32_t id, set[2];
    for (int i = 0; i < N; i++)
        logits[i] = (float)log(i == 0 ? 1 : i == 1 ? 0.5 : i < 5 ? 0.1 : 0.05);
    assert_int_equal(tp_sample_token(n.c, s, &three, logits, NULL, 0, (tp_draw){0}, &id, set), 0);
    assert_int_equal(set[0], 3);
    tp_sampler_free(s);
    net_free(&n);
}

static void test_penalty_greedy_and_nan(void **state) {
    (void)state;
    net n = net_new(&families[0], 1);
    tp_sampler *s;
    float logits[4] = {2, 3, -1, 3};
    int32_t id, history[] = {1, 1, 9, -3};
    assert_int_equal(tp_sampler_new(&s, n.c, 4), 0);
    tp_sampling how = {.top_p = 1, .repetition_penalty = 1};
    tp_draw d = {0};
    assert_int_equal(tp_sample_token(n.c, s, &how, logits, history, 4, d, &id, NULL), 0);
    assert_int_equal(id, 1); /* the lower of equals */
    how.repetition_penalty = 1.4;
    assert_int_equal(tp_sample_token(n.c, s, &how, logits, history, 4, d, &id, NULL), 0);
    assert_int_equal(id, 3);
    static const double cold[] = {1e-46, 1e-44, 1e-31, 5e-324};
    for (int i = 0; i < 4; i++) {
        how.temperature = cold[i];
        assert_true(fails(tp_sample_token(n.c, s, &how, logits, history, 4, d, &id, NULL), &n,
                          "temperature must be 0, for the most likely token, or at least 1e-30"));
    }
    how.temperature = 1e-30; /* as good as 0 */
    assert_int_equal(tp_sample_token(n.c, s, &how, logits, history, 4, d, &id, NULL), 0);
    assert_int_equal(id, 3);
    how.temperature = 0;
    logits[2] = NAN;
    assert_true(fails(tp_sample_token(n.c, s, &how, logits, history, 4, d, &id, NULL), &n,
                      "logit of token 2 is not a number"));
    tp_sampler_free(s);
    net_free(&n);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parity),
        cmocka_unit_test(test_shared_pages),
        cmocka_unit_test(test_group_shares_its_prompt),
        cmocka_unit_test(test_window_gives_pages_back),
        cmocka_unit_test(test_window_takes_any_prompt),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_sets_and_frequencies),
        cmocka_unit_test(test_penalty_greedy_and_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
