/* Decoding over a paged cache against training forwards of whole sequences: tokens and log-probs to
 * the last bit, for every way to batch them; pages and their sharing; the sampler's choices. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "core/ctx.h"
#include "infer/engine.h"
#include "infer/pages.h"
#include "ops/convert.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONTEXT = 130, V = 83, PROMPTS = 5, SAMPLES = 4, NEW = 45, ROW = CONTEXT + 1 };
static const int64_t lengths[PROMPTS] = {17, 1, 70, 33, 16};

typedef struct family {
    const char *name;
    tp_model_cfg cfg;
} family;
static const family families[] = {
    {"gpt2",
     {.family = TP_FAMILY_GPT2,
      .layers = 2,
      .heads = 2,
      .kv_heads = 2,
      .channels = 24,
      .head_dim = 12,
      .ffn = 50,
      .context = CONTEXT,
      .vocab = V,
      .norm_eps = 1e-5,
      .init_std = 0.3,
      .tie_embeddings = true,
      .attention_bias = true,
      .mlp_bias = true}},
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
      .qk_norm = true,
      .logit_softcap = 8,
      .attn_softcap = 10,
      .sliding_window = 21}},
};

typedef struct got { /* what came of one run */
    int32_t ids[PROMPTS][SAMPLES][NEW];
    float logprob[PROMPTS][SAMPLES][NEW], entropy[PROMPTS][SAMPLES][NEW];
    int32_t set[PROMPTS][SAMPLES][NEW][(V + 31) / 32];
    int64_t n[PROMPTS][SAMPLES];
    tp_end end[PROMPTS][SAMPLES];
    int64_t done, first; /* first: the prompt that was asked for first */
    tp_engine_stats stats;
} got;

typedef struct net {
    tp_ctx *c;
    tp_model *m;
} net;
static net net_new(const tp_model_cfg *f, int threads) {
    net n = {0};
    assert_int_equal(tp_ctx_new(&n.c, &(tp_ctx_opts){.threads = threads, .seed = 4}), 0);
    assert_int_equal(tp_model_new(&n.m, n.c, f), 0);
    return n;
}
static void net_free(net *n) {
    tp_model_free(n->m);
    tp_ctx_free(n->c);
}

static void make_prompts(int32_t ids[PROMPTS][CONTEXT]) {
    for (int p = 0; p < PROMPTS; p++)
        for (int i = 0; i < lengths[p]; i++)
            ids[p][i] = (int32_t)(tp_uniform(9, TP_RNG_TEST, (uint64_t)p, (uint64_t)i) * V);
}

static tp_status take(void *arg, const tp_completion *x) {
    got *g = arg;
    int64_t p = (x->request + g->first) % PROMPTS, s = x->sample;
    g->done++;
    g->n[p][s] = x->n;
    g->end[p][s] = x->end;
    memcpy(g->ids[p][s], x->ids, (size_t)x->n * 4);
    memcpy(g->logprob[p][s], x->logprob, (size_t)x->n * 4);
    memcpy(g->entropy[p][s], x->entropy, (size_t)x->n * 4);
    if (x->set) memcpy(g->set[p][s], x->set, (size_t)x->n * sizeof g->set[p][s][0]);
    return TP_OK;
}

static got *decode(const tp_model_cfg *f, int threads, const tp_engine_opts *o,
                   const tp_sampling *how, int first) {
    static int32_t prompts[PROMPTS][CONTEXT];
    net n = net_new(f, threads);
    got *g = calloc(1, sizeof *g);
    tp_request r[PROMPTS];
    make_prompts(prompts);
    g->first = first;
    for (int i = 0; i < PROMPTS; i++) {
        int p = (i + first) % PROMPTS; /* in another order */
        r[i] = (tp_request){.prompt = prompts[p],
                            .n = lengths[p],
                            .samples = SAMPLES,
                            .max_new_tokens = NEW,
                            .sampling = *how,
                            .step = 3,
                            .number = (uint32_t)p,
                            .stop = 7,
                            .want_sets = true};
    }
    tp_engine *e;
    assert_int_equal(tp_engine_new(&e, n.c, n.m, o), 0);
    int st = tp_engine_run(e, r, PROMPTS, &(tp_engine_calls){.done = take, .arg = g});
    if (st) print_error("%s\n", tp_error(n.c));
    assert_int_equal(st, 0);
    g->stats = tp_engine_get_stats(e);
    assert_int_equal(g->done, PROMPTS * SAMPLES);
    /* once more, with whatever the first run left in the pages */
    got *again = calloc(1, sizeof *again);
    again->first = first;
    assert_int_equal(tp_engine_run(e, r, PROMPTS, &(tp_engine_calls){.done = take, .arg = again}),
                     0);
    assert_memory_equal(g->ids, again->ids, sizeof g->ids);
    assert_memory_equal(g->logprob, again->logprob, sizeof g->logprob);
    free(again);
    tp_engine_free(e);
    net_free(&n);
    return g;
}

static tp_tensor *ints(tp_ctx *c, int ndim, const int64_t *shape, const int32_t *from) {
    tp_tensor *t = tp_tensor_new(c, TP_I32, ndim, shape);
    assert_non_null(t);
    assert_int_equal(tp_upload(c, t, from), 0);
    return t;
}

/* Log-probs of all samples by one training forward, rows padded to `width`. */
static float (*forward(const tp_model_cfg *f, const got *g, double temperature, bool sets,
                       int64_t width))[ROW] {
    static int32_t prompts[PROMPTS][CONTEXT];
    enum { ROWS = PROMPTS * SAMPLES, W = (V + 31) / 32 };
    float(*out)[ROW] = calloc(ROWS, sizeof *out);
    int32_t *ids = calloc((size_t)(ROWS * width), 4), *y = malloc((size_t)(ROWS * width) * 4);
    int32_t *set = malloc((size_t)(ROWS * width * W) * 4);
    memset(set, -1, (size_t)(ROWS * width * W) * 4);
    make_prompts(prompts);
    for (int64_t i = 0; i < ROWS * width; i++) y[i] = -100;
    for (int p = 0; p < PROMPTS; p++)
        for (int s = 0; s < SAMPLES; s++) {
            int64_t row = (p * SAMPLES + s) * width;
            for (int64_t i = 0; i < lengths[p]; i++) ids[row + i] = prompts[p][i];
            for (int64_t i = 0; i < g->n[p][s]; i++) {
                int64_t at = row + lengths[p] - 1 + i;
                if (i + 1 < g->n[p][s]) ids[at + 1] = g->ids[p][s][i];
                y[at] = g->ids[p][s][i];
                memcpy(set + at * W, g->set[p][s][i], W * 4);
            }
        }
    net n = net_new(f, 1);
    float *flat = malloc((size_t)(ROWS * width) * 4);
    tp_tensor *targets = ints(n.c, TP_SHAPE(ROWS, width), y);
    tp_model_in in = {.ids = ints(n.c, TP_SHAPE(ROWS, width), ids)};
    tp_model_logprob_opts o = {.temperature = temperature};
    if (sets) o.set = ints(n.c, TP_SHAPE(ROWS, width, W), set);
    tp_model_out r = tp_model_logprob(n.c, n.m, &in, targets, &o);
    if (!r.logprob) print_error("%s\n", tp_error(n.c));
    assert_non_null(r.logprob);
    assert_int_equal(tp_download(n.c, r.logprob, flat), 0);
    for (int p = 0; p < PROMPTS; p++)
        for (int s = 0; s < SAMPLES; s++)
            for (int64_t i = 0; i < g->n[p][s]; i++)
                out[p * SAMPLES + s][i] = flat[(p * SAMPLES + s) * width + lengths[p] - 1 + i];
    free(ids), free(y), free(set), free(flat);
    net_free(&n);
    return out;
}

static double largest_difference(const got *g, float (*want)[ROW], int64_t *tokens) {
    double worst = 0;
    *tokens = 0;
    for (int p = 0; p < PROMPTS; p++)
        for (int s = 0; s < SAMPLES; s++)
            for (int64_t i = 0; i < g->n[p][s]; i++, ++*tokens) {
                double d = fabs((double)g->logprob[p][s][i] - (double)want[p * SAMPLES + s][i]);
                if (!(d <= worst)) worst = d;
            }
    return worst;
}

static void parity(const family *f, const tp_sampling *how) {
    static const tp_engine_opts ways[] = {
        {.lanes = 20},
        {.lanes = 1},
        {.lanes = 3, .prefill_chunk = 5},
        {.lanes = 7, .page = 32},
        {.lanes = 20, .page = 64, .prefill_chunk = 33},
        {.lanes = 20, .pages = 20}, /* far too few for all: somebody has to wait */
    };
    double temperature = how->temperature > 0 ? how->temperature : 1;
    bool sets = tp_sampling_truncates(how);
    got *first = decode(&f->cfg, 1, &ways[0], how, 0);
    int64_t tokens, ended = 0;
    for (int64_t width = CONTEXT - 15; width <= CONTEXT; width += 15) {
        float(*want)[ROW] = forward(&f->cfg, first, temperature, sets, width);
        assert_true(largest_difference(first, want, &tokens) == 0);
        want[0][0] = nextafterf(want[0][0], 0); /* and one bit is noticed */
        assert_false(largest_difference(first, want, &tokens) == 0);
        free(want);
    }
    for (int p = 0; p < PROMPTS; p++)
        for (int s = 0; s < SAMPLES; s++) ended += first->end[p][s] == TP_END_STOP;
    for (size_t i = 1; i < sizeof ways / sizeof *ways; i++) {
        got *g = decode(&f->cfg, 1 + (int)i % 2, &ways[i], how, (int)i);
        assert_memory_equal(g->ids, first->ids, sizeof g->ids);
        assert_memory_equal(g->logprob, first->logprob, sizeof g->logprob);
        assert_memory_equal(g->entropy, first->entropy, sizeof g->entropy);
        assert_memory_equal(g->set, first->set, sizeof g->set);
        assert_memory_equal(g->n, first->n, sizeof g->n);
        if (ways[i].pages) assert_true(g->stats.evicted > 0);
        free(g);
    }
    if (how->temperature > 0) assert_memory_not_equal(first->ids[0][0], first->ids[0][1], 40);
    print_message("%s: %lld tokens, %lld of %d samples stopped, largest difference 0\n", f->name,
                  (long long)tokens, (long long)ended, PROMPTS * SAMPLES);
    free(first);
}

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

static tp_sequence sequence(const int32_t *ids, int64_t n) {
    tp_sequence s = {.n = n, .n_prompt = n, .cap = n};
    s.ids = malloc((size_t)n * 4);
    memcpy(s.ids, ids, (size_t)n * 4);
    return s;
}

static void feed(tp_cache *k, tp_sequence *s, int64_t n, float *hidden) {
    bool enough;
    assert_int_equal(tp_cache_room(k, s, s->cached + n, &enough), 0);
    assert_true(enough);
    tp_tensor *h = tp_cache_forward(k, &s, &n, 1);
    assert_non_null(h);
    assert_int_equal(tp_download(k->c, h, hidden), 0);
    tp_step_end(k->c);
}

/* Two sequences share 50 tokens; one goes on with 9, the other with 5; the other is then read. */
static void shared_prefix(const tp_model_cfg *f, mistake wrong, float *out) {
    static int32_t prompts[PROMPTS][CONTEXT];
    float ignored[64];
    net n = net_new(f, 1);
    tp_cache k;
    make_prompts(prompts);
    assert_int_equal(tp_cache_new(&k, n.c, n.m, 16, 20), 0);
    tp_sequence a = sequence(prompts[2], AT + 9), b = sequence(prompts[2], AT + 5);
    for (int i = 0; i < 5; i++) b.ids[AT + i] = i;
    feed(&k, &a, AT, ignored);
    b.table = malloc((size_t)a.cap_pages * 4);
    memcpy(b.table, a.table, (size_t)a.n_pages * 4);
    b.cap_pages = a.cap_pages, b.n_pages = a.n_pages, b.cached = a.cached;
    tp_cache_share(&k, &a);
    if (wrong == NO_COPY)
        for (int64_t i = 0; i < a.n_pages; i++) k.refs[a.table[i]] = 1;
    if (wrong == SHIFTED) b.cached--, b.ids++;
    if (wrong == STALE) b.table[0] = b.table[1];
    int64_t pages = k.pages - k.free;
    feed(&k, &b, 2, ignored);
    if (wrong == NONE) assert_int_equal(k.pages - k.free, pages + 1); /* the last, copied */
    feed(&k, &a, 9, ignored);
    feed(&k, &b, 3, out);
    if (wrong == SHIFTED) b.ids--;
    if (wrong == NONE) {
        tp_cache_drop(&k, &a);
        tp_cache_drop(&k, &b);
        assert_int_equal(k.free, k.pages);
    }
    free(a.ids), free(b.ids), free(b.table), tp_free(a.table);
    tp_cache_free(&k);
    net_free(&n);
}

static void whole_sequence(const tp_model_cfg *f, float *out) {
    static int32_t prompts[PROMPTS][CONTEXT];
    int32_t ids[AT + 5];
    float all[(AT + 5) * 32];
    net n = net_new(f, 1);
    make_prompts(prompts);
    for (int i = 0; i < AT + 5; i++) ids[i] = i < AT ? prompts[2][i] : i - AT;
    tp_model_in in = {.ids = ints(n.c, TP_SHAPE(1, AT + 5), ids)};
    tp_tensor *h = tp_model_hidden(n.c, n.m, &in);
    assert_non_null(h);
    assert_int_equal(tp_download(n.c, h, all), 0);
    memcpy(out, all + (AT + 4) * f->channels, (size_t)f->channels * 4);
    net_free(&n);
}

static void test_shared_pages(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        const tp_model_cfg *f = &families[i].cfg;
        tp_model_cfg open = *f;
        open.sliding_window = 0;
        float want[64] = {0}, have[64] = {0};
        size_t bytes = (size_t)f->channels * 4;
        whole_sequence(&open, want);
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
    tp_model_cfg f = families[1].cfg;
    f.context = 1024;
    f.sliding_window = 0;
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
    tp_model_cfg f = families[1].cfg;
    net n = net_new(&f, 1);
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

static bool fails(tp_status st, net *n, const char *text) {
    bool ok = st && strstr(tp_error(n->c), text);
    if (!ok) print_error("status %d: %s\n", st, tp_error(n->c));
    tp_clear(n->c);
    return ok;
}

static void test_refusals(void **state) {
    (void)state;
    net n = net_new(&families[0].cfg, 1);
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
        net n = net_new(&families[1].cfg, 1);
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
    net n = net_new(&families[0].cfg, 1);
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
    tp_sampler_free(s);
    net_free(&n);
}

static void test_penalty_greedy_and_nan(void **state) {
    (void)state;
    net n = net_new(&families[0].cfg, 1);
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
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_sets_and_frequencies),
        cmocka_unit_test(test_penalty_greedy_and_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
