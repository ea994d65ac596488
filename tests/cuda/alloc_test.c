/* A step on a GPU that is recorded as it runs (train.cuda_graph), with allocations failing one by
 * one (tests/lib/failing.h): what was staged, recorded or held back is let go of, and the step can
 * be taken again. Every `stride`-th allocation: kernels on the CPU take a second a step. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "failing.h"

#if defined(__SANITIZE_ADDRESS__) /* a replay writes to bytes that the pool has poisoned since */
#define RECORD "false"
#else
#define RECORD "true"
#endif

/* The first step only finds plans and addresses; the second is recorded. */
static tp_status open_and_step(rig *r) {
    tp_status st = open_trainer(r);
    return st ? st : train_step(r, true);
}

static void test_recorded_step(void **state) {
    static const scene s = {
        .name = "a step on the device",
        .keys = "tiny.yaml model.vocab=24 model.context=8 model.channels=8 model.family=gpt2 "
                "train.batch=3 train.micro_batches=3 train.max_grad_norm=0.1 device=cuda "
                "train.cuda_graph=" RECORD,
        .open = open_and_step,
        .work = train_step,
        .close = close_trainer,
    };
    const int stride = 13;
    (void)state;
    tried n = fail_each(&s, stride);
    report_tried(&s, &n);
    assert_true(n.open >= 500 / stride && n.work >= 400 / stride);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_recorded_step)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
