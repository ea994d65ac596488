/* The promise of the same bits, end to end: kill -9 at several moments (one while a checkpoint is
 * being written) and resume, Ctrl-C and resume, one thread and two, run to run: one hash. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <stdbool.h>

static char dir[] = "/tmp/tapir-resume-XXXXXX", reference[128];

static int shell(const char *fmt, ...) {
    char cmd[4096];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(cmd, sizeof cmd, fmt, ap);
    va_end(ap);
    int st = system(cmd);
    return WIFEXITED(st) ? WEXITSTATUS(st) : -1;
}

/* The command of one run; with dropout, Muon and a warm-up, so that every kind of state counts. */
static void train_words(char *const out[], int cap, const char *run, const char *extra,
                        bool resume) {
    (void)cap;
    sprintf(out[0], "run.dir=%s/%s", dir, run);
    sprintf(out[1], "data.train=%s/train.h5", dir);
    sprintf(out[2], "data.val=%s/val.h5", dir);
    sprintf(out[3], "%s", extra);
    sprintf(out[4], "%s", resume ? "--resume" : "seed=3");
}

static pid_t start(const char *run, const char *extra, bool resume) {
    static char words[5][256];
    char *const w[5] = {words[0], words[1], words[2], words[3], words[4]};
    train_words(w, 5, run, extra, resume);
    pid_t pid = fork();
    if (pid) return pid;
    int null = open("/dev/null", O_RDWR);
    dup2(null, 1);
    dup2(null, 2);
    execl(TAPIR_BIN, "tapir", "train", TAPIR_SOURCE "/configs/tests/resume.yaml", w[0], w[1], w[2],
          w[3], w[4], (char *)NULL);
    _exit(127);
}

static int finish(pid_t pid) {
    int st;
    while (waitpid(pid, &st, 0) < 0 && errno == EINTR) {}
    return WIFEXITED(st) ? WEXITSTATUS(st) : 128 + WTERMSIG(st);
}

static void hash(char out[128], const char *run) {
    char cmd[512];
    snprintf(cmd, sizeof cmd, "%s hash %s/%s", TAPIR_BIN, dir, run);
    FILE *f = popen(cmd, "r");
    assert_non_null(f);
    assert_non_null(fgets(out, 128, f));
    assert_int_equal(pclose(f), 0);
    assert_true(strlen(out) > 64);
}

static void same_end(const char *run, const char *extra) {
    char got[128];
    assert_int_equal(finish(start(run, extra, true)), 0);
    hash(got, run);
    assert_string_equal(got, reference);
}

static int setup(void **state) {
    (void)state;
    if (!mkdtemp(dir)) return -1;
    FILE *f;
    char path[256];
    snprintf(path, sizeof path, "%s/text.txt", dir);
    if (!(f = fopen(path, "w"))) return -1;
    uint32_t x = 1; /* some text: words of a small vocabulary in a random order */
    for (int i = 0; i < 20000; i++) {
        x = x * 1664525u + 1013904223u;
        fprintf(f, "%c%c%c%s", 'a' + (x >> 28), 'a' + (x >> 24) % 7, 'a' + (x >> 20) % 5,
                i % 11 ? " " : "\n");
    }
    if (fclose(f)) return -1;
    return shell(
        "%s prepare %s/text.txt --out %s/train.h5 --val %s/val.h5 --vocab 300 >/dev/null 2>&1",
        TAPIR_BIN, dir, dir, dir);
}

static int teardown(void **state) {
    (void)state;
    return shell("rm -rf %s", dir);
}

static void test_reference(void **state) {
    (void)state;
    assert_int_equal(finish(start("ref", "threads=2", false)), 0);
    hash(reference, "ref");
}

static void test_run_to_run_and_threads(void **state) {
    (void)state;
    char got[128];
    assert_int_equal(finish(start("again", "threads=2", false)), 0);
    hash(got, "again");
    assert_string_equal(got, reference);
    assert_int_equal(finish(start("one", "threads=1", false)), 0);
    hash(got, "one");
    assert_string_equal(got, reference);
}

static void test_another_seed_differs(void **state) {
    (void)state;
    char got[128];
    assert_int_equal(finish(start("other", "train.learning_rate=0.0031", false)), 0);
    hash(got, "other");
    assert_string_not_equal(got, reference); /* else the hash sees nothing */
}

static void test_kill_at_moments(void **state) {
    (void)state;
    for (int trial = 0; trial < 3; trial++) {
        char run[32];
        snprintf(run, sizeof run, "kill%d", trial);
        pid_t pid = start(run, "threads=2", false);
        usleep(150000u * (unsigned)(trial + 1));
        kill(pid, SIGKILL);
        finish(pid);
        same_end(run, "threads=2");
    }
}

/* The moment a checkpoint's temporary file appears, or is half written. */
static void test_kill_in_a_checkpoint(void **state) {
    (void)state;
    for (int trial = 0; trial < 3; trial++) {
        char run[32], folder[256];
        snprintf(run, sizeof run, "mid%d", trial);
        snprintf(folder, sizeof folder, "%s/%s/checkpoints", dir, run);
        assert_int_equal(shell("mkdir -p %s", folder), 0);
        int watch = inotify_init1(IN_CLOEXEC);
        assert_true(watch >= 0 && inotify_add_watch(watch, folder, IN_CREATE | IN_MODIFY) >= 0);
        pid_t pid = start(run, "threads=2", false);
        struct pollfd p = {.fd = watch, .events = POLLIN};
        for (int i = 0; i <= 2 * trial; i++) { /* later trials let it write a little first */
            char events[4096];
            assert_true(poll(&p, 1, 60000) == 1 && read(watch, events, sizeof events) > 0);
        }
        kill(pid, SIGKILL);
        assert_int_equal(finish(pid), 128 + SIGKILL);
        close(watch);
        same_end(run, "threads=2");
    }
}

static void test_interrupt(void **state) {
    (void)state;
    struct stat s;
    char path[256];
    snprintf(path, sizeof path, "%s/int/metrics.jsonl", dir);
    pid_t pid = start("int", "threads=2", false);
    for (int i = 0; i < 600 && (stat(path, &s) || !s.st_size); i++) usleep(10000);
    kill(pid, SIGINT);
    assert_int_equal(finish(pid), 130);
    same_end("int", "threads=1");
}

static void test_metrics_are_those_of_an_unbroken_run(void **state) {
    (void)state;
    /* without what the clock says, and without the memory mark, the file is the same */
    const char *strip = "sed -E 's/,\"(tokens_per_s|mfu|memory_mb)\":[^,}]*//g'";
    assert_int_equal(shell("%s %s/ref/metrics.jsonl >%s/a; %s %s/mid1/metrics.jsonl >%s/b; "
                           "cmp -s %s/a %s/b && [ -s %s/a ]",
                           strip, dir, dir, strip, dir, dir, dir, dir, dir),
                     0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),
        cmocka_unit_test(test_run_to_run_and_threads),
        cmocka_unit_test(test_another_seed_differs),
        cmocka_unit_test(test_kill_at_moments),
        cmocka_unit_test(test_kill_in_a_checkpoint),
        cmocka_unit_test(test_interrupt),
        cmocka_unit_test(test_metrics_are_those_of_an_unbroken_run),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
