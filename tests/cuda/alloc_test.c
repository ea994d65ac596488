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

#define STEP                                                                                       \
    "tiny.yaml model.vocab=24 model.context=8 model.channels=8 model.family=gpt2 train.batch=3 "   \
    "train.micro_batches=3 train.max_grad_norm=0.1 device=cuda train.cuda_graph=" RECORD

/* The first step only finds plans and addresses; the second is recorded. */
static tp_status open_and_step(rig *r) {
    tp_status st = open_trainer(r);
    return st ? st : train_step(r, true);
}

static void try(const scene *s, int stride, int open, int work) {
    tried n = fail_each(s, stride);
    report_tried(s, &n);
    assert_true(n.open >= open / stride && n.work >= work / stride);
}

static void test_recorded_step(void **state) {
    static const scene s = {"a step on the device", STEP, open_and_step, train_step, close_trainer};
    (void)state;
    try(&s, 13, 500, 400);
}

/* What failed before its first product has found no plans: the step after it is not recorded. */
static void test_first_step(void **state) {
    static const scene s = {"a first step on the device", STEP " gemm=cublaslt", open_trainer,
                            train_step, close_trainer};
    (void)state;
    try(&s, 31, 150, 400);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_recorded_step),
                                       cmocka_unit_test(test_first_step)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
