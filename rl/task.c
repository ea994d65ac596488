/* Owns the items of a task: which are held out, demonstrations, files of the user's own. */
#include "rl/task.h"
#include "data/jsonl.h"
#include "data/sha256.h"
#include "rl/task_list.h"
#include <cJSON.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const tp_task_names[] = {"chain", "parity", "arithmetic", "sort", "countdown", NULL};
enum { HELD_OUT_OF = 16, TRIES = 4096 }; /* one prompt of 16 is held out */

struct tp_task {
    tp_task_opts o;
    const tp_task_kind *kind; /* NULL: a file's lines */
    char text[3][2 * TP_TASK_TEXT], steps[TP_TASK_TEXT];
    char **prompt, **answer; /* (n) of a file */
    int64_t n, held_out; /* lines, and how many of them are held out: the last ones in `order` */
    int64_t *order;      /* practised lines first */
    char sha256[65];
};

static const tp_task_kind *find(const char *name) {
    for (const tp_task_kind *k = tp_task_kinds; k->name; k++)
        if (!strcmp(k->name, name)) return k;
    return NULL;
}

const char *tp_task_about(const char *name) {
    const tp_task_kind *k = find(name);
    return k ? k->about : NULL;
}

bool tp_task_is_file(const char *name) {
    size_t n = strlen(name);
    return n > 6 && !strcmp(name + n - 6, ".jsonl");
}

/* FNV-1a, then a finisher: which 16th of all prompts this one is in. */
static bool is_held_out(const char *prompt) {
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    for (; *prompt; prompt++) h = (h ^ (unsigned char)*prompt) * UINT64_C(0x100000001b3);
    h ^= h >> 32;
    h *= UINT64_C(0x9e3779b97f4a7c15);
    return (h >> 32) % HELD_OUT_OF == 0;
}

/* ---- files ---------------------------------------------------------------------------------- */
static tp_status read_line(tp_task *t, tp_ctx *c, const char *line, size_t n, int64_t number,
                           int64_t *cap) {
    const char *why;
    cJSON *o = tp_jsonl_object(line, n, false, &why);
    const cJSON *p = cJSON_GetObjectItemCaseSensitive(o, "prompt");
    const cJSON *a = cJSON_GetObjectItemCaseSensitive(o, "answer");
    bool missing = !a && !t->o.answerless;
    tp_status st = TP_OK;
    const char *more = "", *advice = t->o.advice ? t->o.advice : "";
    if (o && (!cJSON_IsString(p) || (a && !cJSON_IsString(a)))) {
        why = "\"prompt\" or \"answer\" is no string";
    } else if (o && missing) {
        why = "there is no \"answer\"";
        more = advice;
    }
    if (why)
        st = tp_fail(c, TP_EFORMAT,
                     "%s, line %lld: %s; a line is {\"prompt\": \"…\", \"answer\": \"…\"}%s",
                     t->o.name, (long long)number, why, more);
    if (!st && t->n == *cap) {
        *cap = 2 * *cap + 64;
        char **prompts = tp_realloc(c, t->prompt, (size_t)*cap * sizeof *prompts);
        if (prompts) t->prompt = prompts;
        char **answers = prompts ? tp_realloc(c, t->answer, (size_t)*cap * sizeof *answers) : NULL;
        if (answers) t->answer = answers;
        if (!answers) st = tp_error_status(c);
    }
    if (!st) {
        t->prompt[t->n] = tp_strdup(c, p->valuestring);
        t->answer[t->n] = tp_strdup(c, a ? a->valuestring : "");
        t->n++;
        st = tp_error_status(c);
    }
    cJSON_Delete(o);
    return st;
}

static tp_status read_file(tp_task *t, tp_ctx *c) {
    FILE *f = fopen(t->o.name, "r");
    if (!f) return tp_fail(c, TP_EIO, "cannot read %s: %s", t->o.name, strerror(errno));
    tp_sha256 h;
    uint8_t digest[32];
    char *line = NULL;
    size_t room = 0;
    int64_t cap = 0, number = 0, a = 0;
    tp_status st = TP_OK;
    tp_sha256_init(&h);
    for (ssize_t n; !st && (n = getline(&line, &room, f)) >= 0;) {
        number++;
        tp_sha256_update(&h, line, (size_t)n);
        if (strspn(line, " \t\r\n") < (size_t)n)
            st = read_line(t, c, line, (size_t)n, number, &cap);
    }
    if (!st && !feof(f)) st = tp_fail(c, TP_EIO, "cannot read %s: %s", t->o.name, strerror(errno));
    tp_sha256_final(&h, digest);
    tp_sha256_hex(digest, t->sha256);
    free(line);
    fclose(f);
    if (!st && !t->n) st = tp_fail(c, TP_EFORMAT, "%s has no lines", t->o.name);
    if (!st && !(t->order = tp_malloc(c, (size_t)t->n * sizeof *t->order))) st = tp_error_status(c);
    for (int pass = 0; pass < 2 && !st; pass++)
        for (int64_t i = 0; i < t->n; i++)
            if (is_held_out(t->prompt[i]) == pass) t->order[a++] = i, t->held_out += pass;
    return st;
}

/* ---- life ----------------------------------------------------------------------------------- */
static tp_status check(tp_ctx *c, tp_task *t) {
    const tp_task_kind *k = t->kind;
    if (!t->o.min) t->o.min = t->o.max ? t->o.max : k->min;
    if (!t->o.max) t->o.max = t->o.min > k->max ? t->o.min : k->max;
    if (t->o.min > t->o.max || t->o.min < k->least || t->o.max > k->most)
        return tp_fail(c, TP_EARG, "task %s: sizes go from %lld to %lld, got %lld to %lld", k->name,
                       (long long)k->least, (long long)k->most, (long long)t->o.min,
                       (long long)t->o.max);
    return TP_OK;
}

tp_status tp_task_new(tp_task **out, tp_ctx *c, const tp_task_opts *o) {
    *out = NULL;
    tp_task *t = tp_calloc(c, 1, sizeof *t);
    if (!t) return tp_error_status(c);
    t->o = *o;
    t->o.name = NULL;
    t->kind = find(o->name);
    tp_status st = TP_OK;
    if (!(t->o.name = tp_strdup(c, o->name)))
        st = tp_error_status(c);
    else if (t->kind)
        st = check(c, t);
    else if (tp_task_is_file(o->name))
        st = read_file(t, c);
    else
        st = tp_fail(c, TP_EARG,
                     "there is no task \"%s\": chain, parity, arithmetic, sort, countdown, or the "
                     "path of a .jsonl file",
                     o->name);
    if (st) {
        tp_task_free(t);
        return st;
    }
    *out = t;
    return TP_OK;
}

bool tp_task_has_solutions(const tp_task *t) { return t->kind != NULL; }
const char *tp_task_sha256(const tp_task *t) { return t->kind ? "built in" : t->sha256; }

void tp_task_free(tp_task *t) {
    if (!t) return;
    for (int64_t i = 0; i < t->n; i++) {
        tp_free(t->prompt[i]);
        tp_free(t->answer[i]);
    }
    tp_free(t->prompt);
    tp_free(t->answer);
    tp_free(t->order);
    tp_free((void *)(uintptr_t)t->o.name);
    tp_free(t);
}

/* ---- items ---------------------------------------------------------------------------------- */
int64_t tp_task_held_out(const tp_task *t) { return t->kind ? INT64_MAX : t->held_out; }

static tp_status file_item(tp_task *t, tp_ctx *c, bool held_out, uint64_t i, tp_task_item *out) {
    int64_t first = held_out ? t->n - t->held_out : 0,
            n = held_out ? t->held_out : t->n - t->held_out;
    if (!n)
        return tp_fail(c, TP_EARG,
                       "%s has no %s prompts: one in %d is held out by its text, and "
                       "there are %lld in all%s",
                       t->o.name, held_out ? "held-out" : "other", HELD_OUT_OF, (long long)t->n,
                       held_out ? "; rl.eval_prompts=0 does without" : "");
    int64_t at = t->order[first + (int64_t)(i % (uint64_t)n)];
    t->text[2][0] = 0;
    *out = (tp_task_item){t->prompt[at], t->answer[at], t->text[2]};
    return TP_OK;
}

tp_status tp_task_get(tp_task *t, tp_ctx *c, bool held_out, uint64_t i, tp_task_item *out) {
    if (!t->kind) return file_item(t, c, held_out, i, out);
    tp_dice d = {.seed = t->o.seed * 2 + held_out, .item = i};
    tp_task_text x = {t->text[0], t->text[1], t->steps};
    for (int tries = 0;; tries++) {
        if (tries == TRIES)
            return tp_fail(c, TP_EARG, "task %s of size %lld has too few prompts to hold some out",
                           t->o.name, (long long)t->o.min);
        x.prompt[0] = x.answer[0] = x.steps[0] = 0;
        t->kind->make(&d, tp_roll(&d, t->o.min, t->o.max), &x);
        if (is_held_out(x.prompt) == held_out) break;
    }
    bool steps = tp_uniform(t->o.seed, TP_RNG_TASK, i, UINT64_C(1) << 40) < t->o.scratchpad;
    snprintf(t->text[2], sizeof t->text[2], "%s#%s", steps ? x.steps : "", x.answer);
    *out = (tp_task_item){x.prompt, x.answer, t->text[2]};
    return TP_OK;
}

/* Behind the last "#"; without one, NULL. */
static const char *answer_of(const char *completion, size_t n, size_t *length) {
    for (size_t i = n; i-- > 0;)
        if (completion[i] == '#') {
            *length = n - i - 1;
            return completion + i + 1;
        }
    return NULL;
}

bool tp_task_has_answer(const char *completion, size_t n) {
    size_t length;
    return answer_of(completion, n, &length) && length > 0;
}

static bool blank(char x) { return x == ' ' || x == '\t' || x == '\n' || x == '\r'; }

/* A file's answer may hold a "#" itself. It is all of the completion, or what its end says behind a
 * "#"; blanks around it do not count ("#### 18"). */
static bool ends_with(const char *completion, size_t n, const char *answer) {
    size_t m = strlen(answer);
    while (m && blank(answer[m - 1])) m--;
    while (m && blank(*answer)) answer++, m--;
    while (n && blank(completion[n - 1])) n--;
    if (n < m || memcmp(completion + n - m, answer, m) != 0) return false;
    for (n -= m; n && blank(completion[n - 1]);) n--;
    return n == 0 || completion[n - 1] == '#';
}

bool tp_task_right(const tp_task *t, const tp_task_item *item, const char *completion, size_t n) {
    size_t length;
    if (!t->kind) return ends_with(completion, n, item->answer);
    const char *a = answer_of(completion, n, &length);
    if (!a) return false;
    if (t->kind->right) return t->kind->right(item->prompt, a, length);
    return length == strlen(item->answer) && !memcmp(a, item->answer, length);
}
