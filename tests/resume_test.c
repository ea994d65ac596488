/* The promise of the same bits, end to end: Ctrl-C and resume, one thread and two, run to run: one
 * hash (kill -9: kills_test.c). */
#include "programs.h"
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <stdbool.h>

static char dir[] = "/tmp/tapir-resume-XXXXXX", reference[HASH_TEXT];

/* One run; with dropout, Muon and a warm-up, so that every kind of state counts. */
static pid_t start(const char *run, const char *extra, bool resume) {
    char folder[128], train[128], val[128];
    snprintf(folder, sizeof folder, "run.dir=%s/%s", dir, run);
    snprintf(train, sizeof train, "data.train=%s/train.h5", dir);
    snprintf(val, sizeof val, "data.val=%s/val.h5", dir);
    return start_program(
        (const char *const[]){TAPIR_BIN, "train", TAPIR_SOURCE "/configs/tests/resume.yaml", folder,
                              train, val, extra, resume ? "--resume" : "seed=3", NULL});
}

static void hash(char out[HASH_TEXT], const char *run) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, run);
    hash_of_run(out, TAPIR_BIN, path);
}

static void same_end(const char *run, const char *extra) {
    char got[HASH_TEXT];
    assert_int_equal(finish_program(start(run, extra, true)), 0);
    hash(got, run);
    assert_string_equal(got, reference);
}

static int setup(void **state) {
    (void)state;
    char path[128];
    if (!mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/text.txt", dir);
    return write_words(path) || shell("%s prepare %s --out %s/train.h5 --val %s/val.h5 --vocab 300 "
                                      ">/dev/null 2>&1",
                                      TAPIR_BIN, path, dir, dir);
}

static int teardown(void **state) {
    (void)state;
    return shell("rm -rf %s", dir);
}

static void test_reference(void **state) {
    (void)state;
    assert_int_equal(finish_program(start("ref", "threads=2", false)), 0);
    hash(reference, "ref");
}

static void test_run_to_run_and_threads(void **state) {
    (void)state;
    char got[HASH_TEXT];
    assert_int_equal(finish_program(start("again", "threads=2", false)), 0);
    hash(got, "again");
    assert_string_equal(got, reference);
    assert_int_equal(finish_program(start("one", "threads=1", false)), 0);
    hash(got, "one");
    assert_string_equal(got, reference);
}

static void test_another_seed_differs(void **state) {
    (void)state;
    char got[HASH_TEXT];
    assert_int_equal(finish_program(start("other", "train.learning_rate=0.0031", false)), 0);
    hash(got, "other");
    assert_string_not_equal(got, reference); /* else the hash sees nothing */
}

static void test_interrupt(void **state) {
    (void)state;
    struct stat s;
    char path[256];
    snprintf(path, sizeof path, "%s/int/metrics.jsonl", dir);
    pid_t pid = start("int", "threads=2", false);
    for (int i = 0; i < 600 && (stat(path, &s) || !s.st_size); i++) usleep(10000);
    kill(pid, SIGINT);
    assert_int_equal(finish_program(pid), 130);
    same_end("int", "threads=1");
}

static void test_metrics_are_those_of_an_unbroken_run(void **state) {
    (void)state;
    /* without what the clock says, and without the memory mark, the file is the same */
    const char *strip = "sed -E 's/,\"(tokens_per_s|mfu|memory_mb)\":[^,}]*//g'";
    assert_int_equal(shell("%s %s/ref/metrics.jsonl >%s/a; %s %s/int/metrics.jsonl >%s/b; "
                           "cmp -s %s/a %s/b && [ -s %s/a ]",
                           strip, dir, dir, strip, dir, dir, dir, dir, dir),
                     0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),
        cmocka_unit_test(test_run_to_run_and_threads),
        cmocka_unit_test(test_another_seed_differs),
        cmocka_unit_test(test_interrupt),
        cmocka_unit_test(test_metrics_are_those_of_an_unbroken_run),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
