/* Owns the files of completions: RUN/rollouts/step-00000001.jsonl, one line for each.
 *     {"item":12,"prompt_ids":[…],"ids":[…],"logprobs":[…],"entropies":[…],"ref_logprobs":[…],
 *      "ended":true,"rewards":{"exact_match":1},"reward":1,"advantage":0.97,
 *      "prompt":"…","completion":"…"}
 * Numbers are written so that reading gives the same bits; sets of truncated sampling are words of
 * bits ("sets"). */
#include "cli/grpo.h"
#include "data/text.h"
#include <cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void file_name(char *out, size_t cap, const char *dir, int64_t step) {
    snprintf(out, cap, "%s/rollouts/step-%08lld.jsonl", dir, (long long)step);
}

/* ---- writing -------------------------------------------------------------------------------- */
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
    file_name(path, sizeof path, g->cfg.run.dir, step);
    snprintf(part, sizeof part, "%s.tmp", path);
    tp_status st = tp_make_folder(g->c, dir);
    FILE *f = st ? NULL : fopen(part, "w");
    if (!st && !f) st = tp_fail(g->c, TP_EIO, "cannot write %s: %s", part, strerror(errno));
    for (int64_t i = 0; i < g->now.rows && !st; i++) st = put_row(g, f, i);
    bool bad = f && ferror(f);
    if (f && fclose(f)) bad = true;
    if (!st && (bad || rename(part, path)))
        st = tp_fail(g->c, TP_EIO, "cannot write %s: %s", path, strerror(errno));
    return st;
}

/* ---- reading -------------------------------------------------------------------------------- */
typedef struct line {
    tp_grpo *g;
    const char *path;
    int64_t row;
    const cJSON *o;
} line;

static tp_status wrong(const line *l, const char *what) {
    return tp_fail(l->g->c, TP_EFORMAT, "%s, line %lld: %s", l->path, (long long)l->row + 1, what);
}

/* The numbers under a key, at most `most`; *n of them, or exactly as many if *n is not negative. */
static tp_status numbers(const line *l, const char *key, int64_t most, int64_t *n, double **out) {
    const cJSON *a = cJSON_GetObjectItemCaseSensitive(l->o, key), *x;
    char what[96];
    int64_t i = 0, have = cJSON_IsArray(a) ? cJSON_GetArraySize(a) : -1;
    *out = NULL;
    if (have < 0 || have > most || (*n >= 0 && have != *n)) {
        snprintf(what, sizeof what, "\"%s\" is not the list it should be", key);
        return wrong(l, what);
    }
    if (!(*out = tp_malloc(l->g->c, (size_t)(have + 1) * sizeof **out)))
        return tp_error_status(l->g->c);
    cJSON_ArrayForEach(x, a) {
        if (!cJSON_IsNumber(x)) {
            snprintf(what, sizeof what, "\"%s\" holds something that is no number", key);
            return wrong(l, what);
        }
        (*out)[i++] = x->valuedouble;
    }
    *n = have;
    return TP_OK;
}

static tp_status get_ints(const line *l, const char *key, int64_t most, int64_t *n, int32_t limit,
                          int32_t *to) {
    double *x;
    tp_status st = numbers(l, key, most, n, &x);
    double least = limit ? 0 : INT32_MIN, most_of = limit ? limit - 1.0 : INT32_MAX;
    for (int64_t i = 0; i < *n && !st; i++) {
        if (!(x[i] >= least && x[i] <= most_of))
            st = wrong(l, limit ? "a token is not in the vocabulary"
                                : "\"sets\" holds no 32-bit words");
        else
            to[i] = (int32_t)x[i];
    }
    tp_free(x);
    return st;
}

static tp_status get_floats(const line *l, const char *key, int64_t n, float *to) {
    double *x;
    tp_status st = numbers(l, key, n, &n, &x);
    for (int64_t i = 0; i < n && !st; i++) to[i] = (float)x[i];
    tp_free(x);
    return st;
}

static tp_status get_double(const line *l, const cJSON *o, const char *key, double *to) {
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(o, key);
    if (!cJSON_IsNumber(x) && !cJSON_IsNull(x)) return wrong(l, "a reward or advantage is missing");
    *to = cJSON_IsNull(x) ? NAN : x->valuedouble;
    return TP_OK;
}

static tp_status get_row(const line *l) {
    tp_grpo *g = l->g;
    tp_rollouts *r = &g->now;
    int64_t row = l->row, p = row / r->G, at = row * r->R;
    int32_t vocab = (int32_t)g->cfg.model.vocab;
    double advantage = 0;
    const cJSON *rewards = cJSON_GetObjectItemCaseSensitive(l->o, "rewards");
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(l->o, "item");
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble < 0x1p53))
        return wrong(l, "there is no \"item\"");
    r->item[p] = (uint64_t)item->valuedouble;
    r->n_prompt[p] = r->n[row] = -1;
    tp_status st = get_ints(l, "prompt_ids", r->P, &r->n_prompt[p], vocab, r->prompt + p * r->P);
    if (!st) st = get_ints(l, "ids", r->R, &r->n[row], vocab, r->ids + at);
    int64_t n = r->n[row], words = n * r->words;
    if (!st && (r->n_prompt[p] < 1 || n < 1)) st = wrong(l, "a prompt or completion is empty");
    if (!st) st = get_floats(l, "logprobs", n, r->logprob + at);
    if (!st) st = get_floats(l, "entropies", n, r->entropy + at);
    if (!st && g->reference) st = get_floats(l, "ref_logprobs", n, r->ref + at);
    if (!st && r->set) st = get_ints(l, "sets", words, &words, 0, r->set + at * r->words);
    r->ended[row] = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(l->o, "ended"));
    for (int64_t k = 0; k < r->K && !st; k++)
        st =
            get_double(l, rewards, tp_rewards_name(g->rewards, (int)k), &r->reward[row * r->K + k]);
    if (!st) st = get_double(l, l->o, "reward", &r->total[row]);
    if (!st) st = get_double(l, l->o, "advantage", &advantage);
    r->advantage[row] = (float)advantage;
    return st;
}

tp_status tp_grpo_read_dump(tp_grpo *g, const char *dir, int64_t step) {
    char path[TP_CONFIG_TEXT + 64], *text = NULL;
    file_name(path, sizeof path, dir, step);
    FILE *f = fopen(path, "r");
    if (!f) return tp_fail(g->c, TP_EIO, "cannot read %s: %s", path, strerror(errno));
    size_t cap = 0;
    line l = {.g = g, .path = path};
    tp_status st = TP_OK;
    for (; !st && getline(&text, &cap, f) >= 0; l.row++) {
        if (l.row == g->now.rows) {
            st = wrong(&l, "there are more completions than a step has");
            break;
        }
        cJSON *o = cJSON_Parse(text);
        l.o = o;
        st = cJSON_IsObject(o) ? get_row(&l) : wrong(&l, "not a JSON object");
        cJSON_Delete(o);
    }
    if (!st && l.row < g->now.rows)
        st = wrong(&l, "the file ends before the step's last completion");
    free(text);
    fclose(f);
    return st;
}
