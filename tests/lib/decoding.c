/* Owns the parity of decoding with training forwards, for any model. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "decoding.h"
#include "core/ctx.h"
#include "infer/crew.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

const int64_t prompt_lengths[PROMPTS] = {17, 1, 70, 33, 16};

typedef struct got { /* what came of one run */
    int32_t ids[PROMPTS][SAMPLES][NEW];
    float logprob[PROMPTS][SAMPLES][NEW], entropy[PROMPTS][SAMPLES][NEW];
    int32_t set[PROMPTS][SAMPLES][NEW][(V + 31) / 32];
    int64_t n[PROMPTS][SAMPLES];
    tp_end end[PROMPTS][SAMPLES];
    int64_t done, first; /* first: the prompt that was asked for first */
    tp_engine_stats stats;
} got;

net net_new(const family *f, int threads) {
    net n = {0};
    assert_int_equal(tp_ctx_new(&n.c, &(tp_ctx_opts){.threads = threads, .seed = 4}), 0);
    if (tp_model_new(&n.m, n.c, &f->cfg)) fail_msg("%s", tp_error(n.c));
    if (f->prepare) f->prepare(n.m);
    return n;
}
void net_free(net *n) {
    tp_model_free(n->m);
    tp_ctx_free(n->c);
}

void make_prompts(int32_t ids[PROMPTS][CONTEXT]) {
    for (int p = 0; p < PROMPTS; p++)
        for (int i = 0; i < prompt_lengths[p]; i++)
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

typedef struct way {
    tp_engine_opts o;
    int crew; /* > 1: as many engines, a thread each */
} way;

/* By one engine, or a crew of them. */
typedef struct decoder {
    tp_engine *e;
    tp_crew *crew;
} decoder;

static decoder decoder_new(net *n, const way *w) {
    decoder d = {NULL, NULL};
    if (w->crew > 1) {
        assert_int_equal(tp_crew_new(&d.crew, n->c, n->m, &w->o), 0);
        assert_int_equal(tp_crew_engines(d.crew), w->crew);
    } else
        assert_int_equal(tp_engine_new(&d.e, n->c, n->m, &w->o), 0);
    return d;
}

static tp_status decoder_run(decoder *d, const tp_request *r, got *g) {
    tp_engine_calls calls = {.done = take, .arg = g};
    return d->crew ? tp_crew_run(d->crew, r, PROMPTS, &calls)
                   : tp_engine_run(d->e, r, PROMPTS, &calls);
}

static got *decode(const family *f, int threads, const way *w, const tp_sampling *how, int first) {
    static int32_t prompts[PROMPTS][CONTEXT];
    net n = net_new(f, w->crew > 1 ? w->crew : threads);
    got *g = calloc(1, sizeof *g);
    tp_request r[PROMPTS];
    make_prompts(prompts);
    g->first = first;
    for (int i = 0; i < PROMPTS; i++) {
        int p = (i + first) % PROMPTS; /* in another order */
        r[i] = (tp_request){.prompt = prompts[p],
                            .n = prompt_lengths[p],
                            .samples = SAMPLES,
                            .max_new_tokens = NEW,
                            .sampling = *how,
                            .step = 3,
                            .number = (uint32_t)p,
                            .stop = 7,
                            .want_sets = true};
    }
    decoder d = decoder_new(&n, w);
    int st = decoder_run(&d, r, g);
    if (st) print_error("%s\n", tp_error(n.c));
    assert_int_equal(st, 0);
    g->stats = d.crew ? tp_crew_get_stats(d.crew) : tp_engine_get_stats(d.e);
    assert_int_equal(g->done, PROMPTS * SAMPLES);
    /* once more, with whatever the first run left in the pages */
    got *again = calloc(1, sizeof *again);
    again->first = first;
    assert_int_equal(decoder_run(&d, r, again), 0);
    assert_memory_equal(g->ids, again->ids, sizeof g->ids);
    assert_memory_equal(g->logprob, again->logprob, sizeof g->logprob);
    free(again);
    tp_engine_free(d.e);
    tp_crew_free(d.crew);
    net_free(&n);
    return g;
}

tp_tensor *ints(tp_ctx *c, int ndim, const int64_t *shape, const int32_t *from) {
    tp_tensor *t = tp_tensor_new(c, TP_I32, ndim, shape);
    assert_non_null(t);
    assert_int_equal(tp_upload(c, t, from), 0);
    return t;
}

/* Log-probs of all samples by one training forward, rows padded to `width`. */
static float (*forward(const family *f, const got *g, double temperature, bool sets,
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
            for (int64_t i = 0; i < prompt_lengths[p]; i++) ids[row + i] = prompts[p][i];
            for (int64_t i = 0; i < g->n[p][s]; i++) {
                int64_t at = row + prompt_lengths[p] - 1 + i;
                if (i + 1 < g->n[p][s]) ids[at + 1] = g->ids[p][s][i];
                y[at] = g->ids[p][s][i];
                memcpy(set + at * W, g->set[p][s][i], W * 4);
            }
        }
    net n = net_new(f, 1);
    float *flat = malloc((size_t)(ROWS * width) * 4);
    tp_tensor *targets = ints(n.c, TP_SHAPE(ROWS, width), y);
    tp_model_in in = {.ids = ints(n.c, TP_SHAPE(ROWS, width), ids), .mode = TP_MOD_CAUSAL};
    tp_model_logprob_opts o = {.temperature = temperature};
    if (sets) o.set = ints(n.c, TP_SHAPE(ROWS, width, W), set);
    tp_model_out r = tp_model_logprob(n.c, n.m, &in, targets, &o);
    if (!r.logprob) print_error("%s\n", tp_error(n.c));
    assert_non_null(r.logprob);
    assert_int_equal(tp_download(n.c, r.logprob, flat), 0);
    for (int p = 0; p < PROMPTS; p++)
        for (int s = 0; s < SAMPLES; s++)
            for (int64_t i = 0; i < g->n[p][s]; i++)
                out[p * SAMPLES + s][i] =
                    flat[(p * SAMPLES + s) * width + prompt_lengths[p] - 1 + i];
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

void parity(const family *f, const tp_sampling *how) {
    static const way ways[] = {
        {{.lanes = 20}, 0},
        {{.lanes = 1}, 0},
        {{.lanes = 3, .prefill_chunk = 5}, 0},
        {{.lanes = 7, .page = 32, .sinks = 4}, 0}, /* sinks are of `window`, not of a model's own */
        {{.lanes = 20, .page = 64, .prefill_chunk = 33}, 0},
        {{.lanes = 20, .pages = 20}, 0}, /* far too few for all: somebody has to wait */
        {{.lanes = 33}, 2},
        {{.lanes = 48, .prefill_chunk = 5}, 3},
    };
    double temperature = how->temperature > 0 ? how->temperature : 1;
    bool sets = tp_sampling_truncates(how);
    got *first = decode(f, 1, &ways[0], how, 0);
    int64_t tokens, ended = 0;
    for (int64_t width = CONTEXT - 15; width <= CONTEXT; width += 15) {
        float(*want)[ROW] = forward(f, first, temperature, sets, width);
        assert_true(largest_difference(first, want, &tokens) == 0);
        want[0][0] = nextafterf(want[0][0], 0); /* and one bit is noticed */
        assert_false(largest_difference(first, want, &tokens) == 0);
        free(want);
    }
    for (int p = 0; p < PROMPTS; p++)
        for (int s = 0; s < SAMPLES; s++) ended += first->end[p][s] == TP_END_STOP;
    for (size_t i = 1; i < sizeof ways / sizeof *ways; i++) {
        got *g = decode(f, 1 + (int)i % 2, &ways[i], how, (int)i);
        assert_memory_equal(g->ids, first->ids, sizeof g->ids);
        assert_memory_equal(g->logprob, first->logprob, sizeof g->logprob);
        assert_memory_equal(g->entropy, first->entropy, sizeof g->entropy);
        assert_memory_equal(g->set, first->set, sizeof g->set);
        assert_memory_equal(g->n, first->n, sizeof g->n);
        if (ways[i].o.pages) assert_true(g->stats.evicted > 0);
        free(g);
    }
    if (how->temperature > 0) assert_memory_not_equal(first->ids[0][0], first->ids[0][1], 40);
    print_message("%s: %lld tokens, %lld of %d samples stopped, largest difference 0\n", f->name,
                  (long long)tokens, (long long)ended, PROMPTS * SAMPLES);
    free(first);
}

/* ---- a cache without an engine -------------------------------------------------------------- */
tp_sequence sequence(const int32_t *ids, int64_t n) {
    tp_sequence s = {.n = n, .n_prompt = n, .cap = n};
    s.ids = malloc((size_t)n * 4);
    memcpy(s.ids, ids, (size_t)n * 4);
    return s;
}

void feed(tp_cache *k, tp_sequence *s, int64_t n, float *hidden) {
    int64_t short_of;
    assert_int_equal(tp_cache_room(k, s, s->cached + n, &short_of), 0);
    assert_true(short_of < 0);
    tp_tensor *h = tp_cache_forward(k, &s, &n, 1);
    assert_non_null(h);
    assert_int_equal(tp_download(k->c, h, hidden), 0);
    tp_step_end(k->c);
}

void whole_sequence(const family *f, const int32_t *ids, int64_t n, float *hidden) {
    net x = net_new(f, 1);
    tp_model_in in = {.ids = ints(x.c, TP_SHAPE(1, n), ids), .mode = TP_MOD_CAUSAL};
    tp_tensor *h = tp_model_hidden(x.c, x.m, &in);
    assert_non_null(h);
    assert_int_equal(tp_download(x.c, h, hidden), 0);
    net_free(&x);
}

bool fails(tp_status st, net *n, const char *text) {
    bool ok = st && strstr(tp_error(n->c), text);
    if (!ok) print_error("status %d: %s\n", st, tp_error(n->c));
    tp_clear(n->c);
    return ok;
}
