/* A crew of engines: every sample once and with one engine's bits (decoding.h compares those), and
 * what it does when one of its engines cannot go on. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "core/ctx.h"
#include "decoding.h"
#include "infer/crew.h"
#include <string.h>

static const family small = SMALL_GPT2;

enum { ENGINES = 3, REQUESTS = 4, MOST = 40, LENGTH = 6 };
static const int64_t samples_of[REQUESTS] = {1, 0, 37, 4}; /* shares begin and end within one */

typedef struct record {
    int32_t ids[REQUESTS][MOST][LENGTH];
    int times[REQUESTS][MOST];
    int64_t done, tokens;
    int64_t fail_at, stop_at, enough; /* 0: never; the completion, the question, the token */
    int64_t asked;
    bool inside; /* a call runs */
    tp_ctx *c;
} record;

/* Calls come one at a time. */
static void enter(record *r) {
    assert_false(r->inside);
    r->inside = true;
}

static tp_status done(void *arg, const tp_completion *x) {
    record *r = arg;
    enter(r);
    memcpy(r->ids[x->request][x->sample], x->ids, (size_t)x->n * sizeof *x->ids);
    r->times[x->request][x->sample]++;
    bool fail = ++r->done == r->fail_at;
    r->inside = false;
    return fail ? tp_fail(r->c, TP_EIO, "the disk is full") : TP_OK;
}
static bool token(void *arg, int64_t request, int64_t sample, int32_t id) {
    record *r = arg;
    enter(r);
    bool go = r->enough == 0 || id != r->ids[request][sample][r->enough - 1];
    r->tokens++;
    r->inside = false;
    return go;
}
static bool interrupted(void *arg) {
    record *r = arg;
    enter(r);
    bool stop = ++r->asked == r->stop_at;
    r->inside = false;
    return stop;
}

static void make_requests(tp_request r[REQUESTS], int32_t prompts[PROMPTS][CONTEXT]) {
    make_prompts(prompts);
    for (int i = 0; i < REQUESTS; i++)
        r[i] = (tp_request){
            .prompt = prompts[i],
            .n = prompt_lengths[i],
            .samples = samples_of[i],
            .max_new_tokens = LENGTH,
            .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 5},
            .number = (uint32_t)i,
            .first_sample = 2,
            .stop = -1};
}

static void check_each_once(const record *have, const record *want) {
    for (int i = 0; i < REQUESTS; i++)
        for (int64_t s = 0; s < MOST; s++) assert_int_equal(have->times[i][s], s < samples_of[i]);
    assert_memory_equal(have->ids, want->ids, sizeof want->ids);
}

static void test_every_sample_once(void **state) {
    (void)state;
    static int32_t prompts[PROMPTS][CONTEXT];
    static record one, many;
    tp_request r[REQUESTS];
    make_requests(r, prompts);
    for (int threads = 1; threads <= ENGINES; threads += ENGINES - 1) {
        record *x = threads > 1 ? &many : &one;
        net n = net_new(&small, threads);
        tp_crew *crew;
        assert_int_equal(tp_crew_new(&crew, n.c, n.m, NULL), 0);
        assert_int_equal(tp_crew_engines(crew), threads);
        tp_engine_calls calls = {
            .done = done, .token = token, .interrupted = interrupted, .arg = x};
        assert_int_equal(tp_crew_run(crew, r, REQUESTS, &calls), 0);
        assert_int_equal(x->done, 42);
        assert_int_equal(x->tokens, 42 * LENGTH);
        assert_int_equal(tp_crew_get_stats(crew).decoded, 42 * LENGTH);
        assert_int_equal(tp_crew_run(crew, r, 0, NULL), 0); /* nothing to do */
        tp_crew_free(crew);
        net_free(&n);
    }
    check_each_once(&many, &one);
    assert_memory_not_equal(one.ids[2][0], one.ids[2][1], sizeof one.ids[2][0]); /* it could fail */
}

static void test_one_that_fails_ends_all(void **state) {
    (void)state;
    static int32_t prompts[PROMPTS][CONTEXT];
    static record whole, x;
    tp_request r[REQUESTS];
    net n = net_new(&small, ENGINES);
    tp_crew *crew;
    make_requests(r, prompts);
    assert_int_equal(tp_crew_new(&crew, n.c, n.m, &(tp_engine_opts){.lanes = 48}), 0);
    whole = (record){.c = n.c};
    tp_engine_calls calls = {.done = done, .arg = &whole};
    assert_int_equal(tp_crew_run(crew, r, REQUESTS, &calls), 0);

    x = (record){.c = n.c, .fail_at = 1};
    calls.arg = &x;
    assert_true(fails(tp_crew_run(crew, r, REQUESTS, &calls), &n, "the disk is full"));
    x = (record){.c = n.c, .stop_at = 2};
    calls.interrupted = interrupted;
    assert_int_equal(tp_crew_run(crew, r, REQUESTS, &calls), TP_EINTERRUPT);
    assert_true(x.done < 42);
    tp_clear(n.c);
    r[3].stop = -1, r[3].n = 0; /* the last engine's request alone is wrong */
    x = (record){.c = n.c};
    assert_true(fails(tp_crew_run(crew, r, REQUESTS, &calls), &n, "has no tokens"));

    make_requests(r, prompts); /* and then they work again */
    x = (record){.c = n.c};
    assert_int_equal(tp_crew_run(crew, r, REQUESTS, &calls), 0);
    check_each_once(&x, &whole);
    memcpy(x.ids, whole.ids, sizeof x.ids); /* the caller has enough after the third token */
    x.enough = 3, x.tokens = 0;
    calls.token = token;
    assert_int_equal(tp_crew_run(crew, r, REQUESTS, &calls), 0);
    assert_true(x.tokens >= 42 && x.tokens <= 42 * 3);
    tp_crew_free(crew);
    net_free(&n);
}

/* Weights that not every core should read for itself; and a crew that finds no memory. */
static void test_one_engine_and_none(void **state) {
    (void)state;
    family large = small;
    large.cfg.ffn = 90000;
    net n = net_new(&large, ENGINES);
    tp_crew *crew;
    assert_int_equal(tp_crew_new(&crew, n.c, n.m, NULL), 0);
    assert_int_equal(tp_crew_engines(crew), 1);
    tp_crew_free(crew);
    net_free(&n);
    static const int64_t lanes[] = {1, 31, 32, 47, 48, 1000}, engines[] = {1, 1, 2, 2, 3, 3};
    for (int i = 0; i < 6; i++) { /* few lanes are not cut into shares of a few */
        n = net_new(&small, ENGINES);
        assert_int_equal(tp_crew_new(&crew, n.c, n.m, &(tp_engine_opts){.lanes = lanes[i]}), 0);
        assert_int_equal(tp_crew_engines(crew), engines[i]);
        tp_crew_free(crew);
        net_free(&n);
    }
    n = net_new(&small, ENGINES);
    assert_true(
        fails(tp_crew_new(&crew, n.c, n.m, &(tp_engine_opts){.page = 24}), &n, "multiple of 16"));
    net_free(&n);
    for (long at = 1, clean = 0; !clean; at++) {
        n = net_new(&small, ENGINES);
        n.c->fail_alloc_at = at;
        tp_status st = tp_crew_new(&crew, n.c, n.m, NULL);
        clean = n.c->fail_alloc_at > 0;
        n.c->fail_alloc_at = 0;
        assert_true(clean ? st == TP_OK : st == TP_ENOMEM && !crew);
        tp_crew_free(crew);
        net_free(&n);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_sample_once),
        cmocka_unit_test(test_one_that_fails_ends_all),
        cmocka_unit_test(test_one_engine_and_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
