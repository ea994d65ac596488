/* Any bytes as a file of completions (RUN/rollouts/step-….jsonl): refused in one sentence, or what
 * was read is within the room of a step, and written again it reads back the same. Two groups of
 * two completions, with a reference model and truncated sampling, so that every key is read. */
#define _GNU_SOURCE /* memfd_create */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "cli/grpo.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { PROMPTS = 2, GROUP = 2, CONTEXT = 16, MOST = 8, VOCAB = 257 };
static char folder[] = "/tmp/tapir-dump-fuzzer-XXXXXX"; /* made at the first input, then kept */

static void remove_folder(void) {
    char path[sizeof folder + 64];
    tp_grpo_dump_file(path, sizeof path, folder, 1);
    unlink(path);
    snprintf(path, sizeof path, "%s/rollouts", folder);
    rmdir(path);
    rmdir(folder);
}

static void need(bool ok) {
    if (!ok) abort();
}

/* Everything that is used as an index or a length later. */
static void check_room(const tp_rollouts *r) {
    for (int64_t p = 0; p < r->prompts; p++) {
        need(r->n_prompt[p] >= 1 && r->n_prompt[p] <= r->P);
        for (int64_t i = 0; i < r->n_prompt[p]; i++)
            need(r->prompt[p * r->P + i] >= 0 && r->prompt[p * r->P + i] < VOCAB);
    }
    for (int64_t row = 0; row < r->rows; row++) {
        need(r->n[row] >= 1 && r->n[row] <= r->R);
        need(isfinite(r->advantage[row]) && !isinf(r->total[row]));
        for (int64_t k = 0; k < r->K; k++) need(!isinf(r->reward[row * r->K + k]));
        for (int64_t at = row * r->R, i = at; i < at + r->n[row]; i++) {
            need(r->ids[i] >= 0 && r->ids[i] < VOCAB);
            need(isfinite(r->logprob[i]) && isfinite(r->entropy[i]) && isfinite(r->ref[i]));
        }
    }
}

static bool same_floats(const float *a, const float *b, int64_t n) {
    for (int64_t i = 0; i < n; i++) /* by value: a dump writes -0 as -0, but JSON may read 0 */
        if (a[i] != b[i]) return false;
    return true;
}

static bool same_doubles(const double *a, const double *b, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (a[i] != b[i] && !(isnan(a[i]) && isnan(b[i]))) return false;
    return true;
}

static void check_same(const tp_rollouts *a, const tp_rollouts *b) {
    for (int64_t p = 0; p < a->prompts; p++) {
        need(a->item[p] == b->item[p] && a->n_prompt[p] == b->n_prompt[p]);
        need(!memcmp(a->prompt + p * a->P, b->prompt + p * b->P,
                     (size_t)a->n_prompt[p] * sizeof *a->prompt));
    }
    for (int64_t row = 0; row < a->rows; row++) {
        int64_t at = row * a->R, n = a->n[row];
        need(b->n[row] == n && a->ended[row] == b->ended[row]);
        need(!memcmp(a->ids + at, b->ids + at, (size_t)n * sizeof *a->ids));
        need(!memcmp(a->set + at * a->words, b->set + at * b->words,
                     (size_t)(n * a->words) * sizeof *a->set));
        need(same_floats(a->logprob + at, b->logprob + at, n));
        need(same_floats(a->entropy + at, b->entropy + at, n));
        need(same_floats(a->ref + at, b->ref + at, n));
    }
    need(same_doubles(a->reward, b->reward, a->rows * a->K));
    need(same_doubles(a->total, b->total, a->rows));
    need(same_floats(a->advantage, b->advantage, a->rows));
}

static void read_and_write(tp_grpo *g, const char *path) {
    tp_rollouts first = {0};
    char again[sizeof folder + 64];
    if (tp_grpo_read_dump(g, path)) {
        need(*tp_error(g->c)); /* a refusal has a sentence */
        return;
    }
    check_room(&g->now);
    need(!tp_grpo_dump(g, 1));
    first = g->now;
    need(!tp_rollouts_new(&g->now, g));
    tp_grpo_dump_file(again, sizeof again, folder, 1);
    need(!tp_grpo_read_dump(g, again));
    check_same(&first, &g->now);
    tp_rollouts_free(&first);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *const specials[] = {"<|endoftext|>"};
    char path[64];
    tp_grpo g = {.root = true, .ranks = 1, .eos = VOCAB - 1};
    int fd = memfd_create("dump", 0);
    tp_reward_opts rewards = {.weights = "exact_match=1,length=0.1", .program = "", .timeout = 1};
    rewards.max_length = MOST;
    if (strstr(folder, "XXXXXX")) {
        need(mkdtemp(folder));
        atexit(remove_folder);
    }
    if (fd < 0 || tp_ctx_new(&g.c, &(tp_ctx_opts){.meta = true, .threads = 1})) goto done;
    g.reference = (tp_model *)&g; /* a reader only asks whether there is one */
    g.cfg.rl.prompts_per_step = PROMPTS;
    g.cfg.rl.num_generations = GROUP;
    g.cfg.rl.max_completion_length = MOST;
    g.cfg.rl.temperature = 1;
    g.cfg.rl.top_k = 5; /* truncates: "sets" is asked for */
    g.cfg.rl.top_p = 1;
    g.cfg.rl.dump = true;
    g.cfg.model.context = CONTEXT;
    g.cfg.model.vocab = VOCAB;
    snprintf(g.cfg.run.dir, sizeof g.cfg.run.dir, "%s", folder);
    if (tp_tokenizer_new_bytes(&g.tokenizer, g.c, specials, 1)) goto done;
    if (tp_rewards_new(&g.rewards, g.c, &rewards) || tp_rollouts_new(&g.now, &g)) goto done;
    if (write(fd, data, size) != (ssize_t)size) goto done;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    read_and_write(&g, path);
done:
    tp_rollouts_free(&g.now);
    tp_rewards_free(g.rewards);
    tp_tokenizer_free(g.tokenizer);
    tp_ctx_free(g.c);
    if (fd >= 0) close(fd);
    return 0;
}
