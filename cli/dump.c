/* Owns writing the files of completions: RUN/rollouts/step-00000001.jsonl, one line for each.
 *     {"item":12,"prompt_ids":[…],"ids":[…],"logprobs":[…],"entropies":[…],"ref_logprobs":[…],
 *      "ended":true,"rewards":{"exact_match":1},"reward":1,"advantage":0.97,
 *      "prompt":"…","completion":"…"}
 * Numbers are written so that reading gives the same bits; sets of truncated sampling are words of
 * bits ("sets"). */
#include "cli/grpo.h"
#include "data/files.h"
#include "data/text.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void tp_grpo_dump_file(char *out, size_t cap, const char *dir, int64_t step) {
    snprintf(out, cap, "%s/rollouts/step-%08lld.jsonl", dir, (long long)step);
}

static void put_ints(FILE *f, const char *key, const int32_t *x, int64_t n) {
    fprintf(f, "\"%s\":[", key);
    for (int64_t i = 0; i < n; i++) fprintf(f, i ? ",%d" : "%d", x[i]);
    fputs("],", f);
}

static void put_floats(FILE *f, const char *key, const float *x, int64_t n) {
    fprintf(f, "\"%s\":[", key);
    for (int64_t i = 0; i < n; i++) fprintf(f, i ? ",%.9g" : "%.9g", (double)x[i]);
    fputs("],", f);
}

static void put_double(FILE *f, const char *key, double x) {
    if (isnan(x))
        fprintf(f, "\"%s\":null", key);
    else
        fprintf(f, "\"%s\":%.17g", key, x);
}

/* Tokens may make bytes that are no text: what is not UTF-8 becomes U+FFFD; ids are what counts. */
static tp_status put_text(tp_ctx *c, FILE *f, const char *key, const char *text, size_t n) {
    tp_str t;
    tp_str_init(&t, c);
    tp_str_json_n(&t, text, n);
    tp_status st = t.failed ? tp_error_status(c) : TP_OK;
    if (!st) fprintf(f, ",\"%s\":%s", key, t.at);
    tp_str_clear(&t);
    return st;
}

static tp_status put_row(tp_grpo *g, FILE *f, int64_t row) {
    const tp_rollouts *r = &g->now;
    int64_t p = row / r->G, at = row * r->R, n = r->n[row];
    char *prompt = NULL, *text = NULL;
    size_t asked = 0, wrote = 0;
    tp_status st = tp_grpo_text(g, r->prompt + p * r->P, r->n_prompt[p], false, &prompt, &asked);
    if (!st) st = tp_grpo_text(g, r->ids + at, n, r->ended[row], &text, &wrote);
    if (!st) {
        fprintf(f, "{\"item\":%llu,", (unsigned long long)r->item[p]);
        put_ints(f, "prompt_ids", r->prompt + p * r->P, r->n_prompt[p]);
        put_ints(f, "ids", r->ids + at, n);
        put_floats(f, "logprobs", r->logprob + at, n);
        put_floats(f, "entropies", r->entropy + at, n);
        if (g->reference) put_floats(f, "ref_logprobs", r->ref + at, n);
        if (r->set) put_ints(f, "sets", r->set + at * r->words, n * r->words);
        fprintf(f, "\"ended\":%s,\"rewards\":{", r->ended[row] ? "true" : "false");
        for (int64_t k = 0; k < r->K; k++) {
            if (k) fputc(',', f);
            put_double(f, tp_rewards_name(g->rewards, (int)k), r->reward[row * r->K + k]);
        }
        fputs("},", f);
        put_double(f, "reward", r->total[row]);
        fprintf(f, ",\"advantage\":%.9g", (double)r->advantage[row]);
        st = put_text(g->c, f, "prompt", prompt, asked);
        if (!st) st = put_text(g->c, f, "completion", text, wrote);
        fputs("}\n", f);
    }
    tp_free(prompt);
    tp_free(text);
    return st;
}

tp_status tp_grpo_dump(tp_grpo *g, int64_t step) {
    char path[TP_CONFIG_TEXT + 64], part[TP_CONFIG_TEXT + 72], dir[TP_CONFIG_TEXT + 32];
    if (!g->root || !g->cfg.rl.dump) return TP_OK;
    snprintf(dir, sizeof dir, "%s/rollouts", g->cfg.run.dir);
    tp_grpo_dump_file(path, sizeof path, g->cfg.run.dir, step);
    snprintf(part, sizeof part, "%s.tmp", path);
    tp_status st = tp_make_folder(g->c, dir);
    if (!st) st = tp_may_replace(g->c, path);
    if (!st) st = tp_may_replace(g->c, part); /* opening a pipe would wait for its reader */
    FILE *f = st ? NULL : fopen(part, "w");
    if (!st && !f) st = tp_fail(g->c, TP_EIO, "cannot write %s: %s", part, strerror(errno));
    for (int64_t i = 0; i < g->now.rows && !st; i++) st = put_row(g, f, i);
    bool bad = f && ferror(f);
    if (f && fclose(f)) bad = true;
    if (!st && (bad || rename(part, path)))
        st = tp_fail(g->c, TP_EIO, "cannot write %s: %s", path, strerror(errno));
    return st;
}
