/* Owns reading the files of completions that dump.c writes: what they hold is checked against the
 * room that a step has, as anybody may have changed them. */
#include "cli/grpo.h"
#include "data/jsonl.h"
#include <cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

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
    for (int64_t i = 0; i < n && !st; i++) {
        to[i] = (float)x[i];
        if (!isfinite(to[i])) { /* a step never has one, and its loss would be no number */
            char what[96];
            snprintf(what, sizeof what, "\"%s\" holds a number that is too large", key);
            st = wrong(l, what);
        }
    }
    tp_free(x);
    return st;
}

static tp_status get_double(const line *l, const cJSON *o, const char *key, double *to) {
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(o, key);
    if (!cJSON_IsNumber(x) && !cJSON_IsNull(x)) return wrong(l, "a reward or advantage is missing");
    *to = cJSON_IsNull(x) ? NAN : x->valuedouble;
    if (isinf(*to)) return wrong(l, "a reward or advantage is too large");
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
    if (!st && !isfinite(r->advantage[row])) st = wrong(l, "\"advantage\" is no finite number");
    return st;
}

tp_status tp_grpo_read_dump(tp_grpo *g, const char *path) {
    FILE *f = fopen(path, "r");
    if (!f) return tp_fail(g->c, TP_EIO, "cannot read %s: %s", path, strerror(errno));
    char *text = NULL;
    size_t cap = 0;
    line l = {.g = g, .path = path};
    tp_status st = TP_OK;
    for (ssize_t n; !st && (n = getline(&text, &cap, f)) >= 0; l.row++) {
        if (l.row == g->now.rows) {
            st = wrong(&l, "there are more completions than a step has");
            break;
        }
        const char *why;
        cJSON *o = tp_jsonl_object(text, (size_t)n, true, &why);
        l.o = o;
        st = o ? get_row(&l) : wrong(&l, why);
        cJSON_Delete(o);
    }
    if (!st && l.row < g->now.rows && !feof(f)) /* a folder, a bad disk, a line without end */
        st = tp_fail(g->c, TP_EIO, "cannot read %s: %s", path, strerror(errno));
    if (!st && l.row < g->now.rows)
        st = wrong(&l, "the file ends before the step's last completion");
    free(text);
    fclose(f);
    return st;
}
