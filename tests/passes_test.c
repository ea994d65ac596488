/* Passes side by side: a step has the bits of passes one by one, for any number of threads and any
 * split, with dropout; and a pass that fails ends the step with its sentence, and nothing else. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "cli/trainer.h"
#include "core/ctx.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 12, STEPS = 3 };
static const char *const config[] = {"model.vocab=40",      "model.layers=2",   "model.heads=2",
                                     "model.channels=16",   "model.context=12", "model.dropout=0.1",
                                     "model.family=gpt2",   "train.batch=12",   "run.steps=3",
                                     "train.warmup_steps=0"};

typedef struct run {
    tp_ctx *c;
    tp_trainer t;
    int64_t fail_sample; /* the pass that begins with it fails; < 0: none */
    tp_step_out out[STEPS];
} run;

static void open_run(run *r, int threads, int micro_batches) {
    tp_config cfg;
    char word[64];
    *r = (run){.fail_sample = -1};
    assert_int_equal(tp_ctx_new(&r->c, &(tp_ctx_opts){.threads = threads, .seed = 7}), 0);
    tp_config_defaults(&cfg);
    for (size_t i = 0; i < sizeof config / sizeof *config; i++)
        assert_int_equal(tp_config_set(r->c, &cfg, config[i]), 0);
    snprintf(word, sizeof word, "train.micro_batches=%d", micro_batches);
    assert_int_equal(tp_config_set(r->c, &cfg, word), 0);
    if (tp_config_resolve(r->c, &cfg)) fail_msg("%s", tp_error(r->c));
    assert_int_equal(tp_trainer_new(&r->t, r->c, &cfg, NULL), 0);
}

static void close_run(run *r) {
    tp_trainer_clear(&r->t);
    tp_ctx_free(r->c);
}

/* Tokens that the sample's number in the batch decides. */
static tp_tensor *tokens(tp_ctx *c, const tp_trainer *t, const tp_batch *b, uint64_t which) {
    int64_t T = t->cfg.model.context, n = b->rows * T;
    int32_t *ids = tp_arena_alloc(c, (size_t)n * sizeof *ids);
    if (!ids) return NULL;
    for (int64_t i = 0; i < n; i++)
        ids[i] =
            (int32_t)(tp_uniform(3, TP_RNG_TEST, which, (uint64_t)(b->sample % BATCH * T + i)) *
                      (double)t->cfg.model.vocab);
    return tp_tensor_from(c, TP_I32, TP_SHAPE(b->rows, T), ids);
}

static tp_tensor *loss(void *arg, tp_ctx *c, tp_model *m, const tp_batch *b) {
    run *r = arg;
    if (b->sample % BATCH == r->fail_sample) {
        tp_fail(c, TP_EIO, "sample %lld is bad", (long long)r->fail_sample);
        return NULL;
    }
    tp_model_in in = {.ids = tokens(c, &r->t, b, 1), .training = true};
    tp_tensor *y = tokens(c, &r->t, b, 2);
    if (!in.ids || !y) return NULL;
    double scale = 1.0 / (double)(BATCH * r->t.cfg.model.context);
    return tp_model_loss(c, m, &in, y, &(tp_model_loss_opts){.scale = scale}).loss;
}

static tp_status step(run *r, int64_t number) {
    tp_fake_batch rows = {.of = tp_share_of(&r->t.cfg, 0, 1), .T = r->t.cfg.model.context};
    rows.taken = number * BATCH;
    tp_step_in in = {.step = number,
                     .targets = 1,
                     .next = tp_fake_next,
                     .arg = &rows,
                     .loss = loss,
                     .loss_arg = r};
    return tp_trainer_step(&r->t, &in, &r->out[number]);
}

static void same(const run *a, const run *b, bool want) {
    const tp_params *p = tp_model_params(a->t.model), *q = tp_model_params(b->t.model);
    bool equal = true;
    for (int i = 0; i < p->n; i++)
        equal &= !memcmp(p->p[i].t->data, q->p[i].t->data, (size_t)tp_numel(p->p[i].t) * 4);
    for (int i = 0; i < STEPS; i++) equal &= a->out[i].grad_norm == b->out[i].grad_norm;
    assert_true(equal == want);
}

static void test_bits(void **state) {
    (void)state;
    static const int splits[] = {1, 2, 3, 4, 6, 12};
    run one, x;
    open_run(&one, 1, 1);
    for (int64_t i = 0; i < STEPS; i++) assert_int_equal(step(&one, i), 0);
    assert_true(one.out[0].grad_norm > 0);
    for (size_t s = 0; s < sizeof splits / sizeof *splits; s++)
        for (int threads = 2; threads <= 5; threads += 3) {
            open_run(&x, threads, splits[s]);
            assert_int_equal(tp_trainer_side_by_side(&x.t, threads), 0);
            for (int64_t i = 0; i < STEPS; i++) assert_int_equal(step(&x, i), 0);
            same(&one, &x, true);
            close_run(&x);
        }
    open_run(&x, 2, 4); /* and a comparison that could fail: one step more */
    assert_int_equal(tp_trainer_side_by_side(&x.t, 2), 0);
    for (int64_t i = 0; i < STEPS; i++) assert_int_equal(step(&x, i), 0);
    assert_int_equal(step(&x, 0), 0);
    same(&one, &x, false);
    close_run(&x);
    close_run(&one);
}

static void test_a_pass_that_fails(void **state) {
    (void)state;
    run one, x;
    open_run(&one, 1, 1);
    open_run(&x, 3, 6);
    assert_int_equal(tp_trainer_side_by_side(&x.t, 3), 0);
    for (int64_t i = 0; i < STEPS; i++) {
        x.fail_sample = 4 * i; /* of the first round, the second, and the last pass but one */
        assert_int_equal(step(&x, i), TP_EIO);
        assert_non_null(strstr(tp_error(x.c), "is bad"));
        tp_clear(x.c);
        tp_gradients_clear(x.t.gradients);
        tp_step_end(x.c);
        x.fail_sample = -1; /* and then it can be taken */
        assert_int_equal(step(&x, i), 0);
        assert_int_equal(step(&one, i), 0);
    }
    same(&one, &x, true);
    close_run(&x);
    close_run(&one);
}

static void test_no_memory(void **state) {
    (void)state;
    for (long at = 1, clean = 0; !clean; at++) {
        run x;
        open_run(&x, 2, 4);
        x.c->fail_alloc_at = at;
        tp_status st = tp_trainer_side_by_side(&x.t, 2);
        if (!st) st = step(&x, 0);
        clean = x.c->fail_alloc_at > 0;
        x.c->fail_alloc_at = 0;
        assert_true(clean ? st == TP_OK : st == TP_ENOMEM);
        close_run(&x);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_a_pass_that_fails),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
