/* Ended with kill -9 at any moment and resumed, a run has the bits of one that was never stopped:
 * pretraining and reinforcement learning in turn, every fifth time inside a checkpoint that is
 * being written. `kills_test 100` does it a hundred times; the suite, ten. */
#include "programs.h"
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <stdbool.h>

enum { WORDS = 16, EVERY_CHECKPOINT = 5 };
static char dir[] = "/tmp/tapir-kills-XXXXXX";
static int kills = 10;

typedef struct job {
    const char *name, *words[WORDS]; /* the command, without run.dir */
    char hash[HASH_TEXT];
    double seconds;
} job;

static char corpus[2][64], init_from[64];
static job jobs[] = {
    /* dropout, Muon and a warm-up: every kind of state counts */
    {"pretraining",
     {TAPIR_BIN, "train", TAPIR_SOURCE "/configs/tests/resume.yaml", "seed=3", corpus[0],
      corpus[1]},
     "",
     0},
    /* a reference model that moves, several updates of a step, prompts that are drawn again */
    {"reinforcement",
     {TAPIR_BIN, "grpo", TAPIR_SOURCE "/configs/tests/grpo.yaml", "seed=3", init_from,
      "run.steps=10", "rl.beta=0.05", "rl.sync_ref_model=true", "rl.ref_model_sync_steps=2",
      "rl.num_iterations=2", "rl.steps_per_generation=2", "rl.dynamic_sampling=true"},
     "",
     0}};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static pid_t start(const job *j, const char *folder, const char *more) {
    const char *argv[WORDS + 3];
    char run[80];
    int n = 0;
    while (j->words[n]) {
        argv[n] = j->words[n];
        n++;
    }
    snprintf(run, sizeof run, "run.dir=%s", folder);
    argv[n++] = run;
    argv[n++] = more;
    argv[n] = NULL;
    return start_program(argv);
}

static int setup(void **state) {
    (void)state;
    char path[64];
    if (!mkdtemp(dir)) return -1;
    snprintf(path, sizeof path, "%s/text.txt", dir);
    snprintf(corpus[0], sizeof corpus[0], "data.train=%s/train.h5", dir);
    snprintf(corpus[1], sizeof corpus[1], "data.val=%s/val.h5", dir);
    snprintf(init_from, sizeof init_from, "model.init_from=%s/sft", dir);
    return write_words(path) ||
           shell("%s prepare %s --out %s/train.h5 --val %s/val.h5 --vocab 300 >/dev/null 2>&1",
                 TAPIR_BIN, path, dir, dir) ||
           shell("%s task parity --min 4 --max 8 -n 500 -p 0.5 >%s/demos.jsonl", TAPIR_BIN, dir) ||
           shell("%s train %s/configs/tests/sft.yaml run.dir=%s/sft run.steps=40 "
                 "data.train=%s/demos.jsonl >/dev/null 2>&1",
                 TAPIR_BIN, TAPIR_SOURCE, dir, dir);
}

static int teardown(void **state) {
    (void)state;
    return shell("rm -rf %s", dir);
}

static void test_never_stopped(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++) {
        job *j = &jobs[i];
        char run[64], other[HASH_TEXT];
        snprintf(run, sizeof run, "%s/straight", dir);
        double begin = now();
        assert_int_equal(finish_program(start(j, run, "threads=2")), 0);
        j->seconds = now() - begin;
        hash_of_run(j->hash, TAPIR_BIN, run);
        assert_int_equal(shell("rm -r %s", run), 0);
        /* a run that differs a little has another hash, or equal ones would say nothing */
        assert_int_equal(finish_program(start(j, run, "train.learning_rate=0.0031")), 0);
        hash_of_run(other, TAPIR_BIN, run);
        assert_string_not_equal(other, j->hash);
        assert_int_equal(shell("rm -r %s", run), 0);
    }
}

static double uniform(uint32_t *x) {
    *x = *x * 1664525u + 1013904223u;
    return (*x >> 8) / 16777216.0;
}

/* Starts a run and ends it; where it was: inside a checkpoint, or after so many seconds. */
static void kill_once(const job *j, const char *run, bool in_checkpoint, uint32_t *x, char *where,
                      size_t room) {
    char folder[128];
    snprintf(folder, sizeof folder, "%s/checkpoints", run);
    for (double most = j->seconds;; most /= 2) { /* it may have ended before: sooner, then */
        watched w = {-1};
        if (in_checkpoint) w = watch_folder(folder);
        pid_t pid = start(j, run, "threads=2");
        if (in_checkpoint) {
            int writes = 1 + (int)(12 * uniform(x));
            snprintf(where, room, "after %d writes to the folder of checkpoints", writes);
            assert_int_equal(wait_for_writes(w, writes), 0);
        } else {
            double seconds = most * uniform(x);
            snprintf(where, room, "after %.3f s", seconds);
            usleep((useconds_t)(1e6 * seconds));
        }
        kill(pid, SIGKILL);
        if (finish_program(pid) == 128 + SIGKILL) return;
        assert_int_equal(shell("rm -rf %s", run), 0);
    }
}

static void test_killed_and_resumed(void **state) {
    (void)state;
    uint32_t x = 20;
    int inside = 0;
    for (int i = 0; i < kills; i++) {
        const job *j = &jobs[i % 2];
        char run[64], hash[HASH_TEXT], where[64];
        bool in_checkpoint = i % EVERY_CHECKPOINT == EVERY_CHECKPOINT - 1;
        snprintf(run, sizeof run, "%s/killed", dir);
        kill_once(j, run, in_checkpoint, &x, where, sizeof where);
        assert_int_equal(finish_program(start(j, run, "--resume")), 0);
        hash_of_run(hash, TAPIR_BIN, run);
        printf("%3d  %-13s  %s\n", i + 1, j->name, where);
        assert_string_equal(hash, j->hash);
        assert_int_equal(shell("rm -r %s", run), 0);
        inside += in_checkpoint;
    }
    printf("%d runs ended with kill -9, %d of them inside a checkpoint: %d equal hashes\n", kills,
           inside, kills);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_never_stopped),
                                       cmocka_unit_test(test_killed_and_resumed)};
    if (argc > 1) kills = atoi(argv[1]);
    return cmocka_run_group_tests(tests, setup, teardown);
}
