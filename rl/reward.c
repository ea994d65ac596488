/* Owns the rewards and their weights. */
#include "rl/reward.h"
#include "data/text.h"
#include "rl/advantage.h"
#include "rl/pipe.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum kind { EXACT_MATCH, FORMAT, STEPS, LENGTH, OVERLONG, PROGRAM, KINDS } kind;
/* Of weights and of a program's numbers: sums of their products stay finite, in f32 too. */
static const double most = 1e9;
static const char *const names[KINDS] = {"exact_match", "format",   "steps",
                                         "length",      "overlong", "program"};

struct tp_rewards {
    int n;
    kind which[TP_REWARDS_MOST];
    double weight[TP_REWARDS_MOST], timeout;
    int64_t max_length, buffer;
    char *command;
    tp_pipe *pipe;
};

static tp_status parse(tp_rewards *r, tp_ctx *c, const char *text) {
    bool any = false;
    while (*text) {
        size_t n = strcspn(text, ",");
        const char *equals = memchr(text, '=', n);
        int k = 0;
        size_t name = equals ? (size_t)(equals - text) : n;
        while (k < KINDS && (strlen(names[k]) != name || memcmp(names[k], text, name))) k++;
        if (k == KINDS)
            return tp_fail(
                c, TP_EARG,
                "rl.reward_weights: there is no reward \"%.*s\": exact_match, format, steps, "
                "length, overlong, program",
                (int)name, text);
        for (int i = 0; i < r->n; i++)
            if (r->which[i] == (kind)k)
                return tp_fail(c, TP_EARG, "rl.reward_weights: %s is there twice", names[k]);
        char *end = NULL;
        double w = equals ? strtod(equals + 1, &end) : 1;
        if (equals && (end == equals + 1 || end != text + n || !isfinite(w)))
            return tp_fail(c, TP_EARG, "rl.reward_weights: the weight of %s is no number: \"%.*s\"",
                           names[k], (int)n, text);
        if (fabs(w) > most)
            return tp_fail(c, TP_EARG,
                           "rl.reward_weights: the weight of %s must lie between -%.0f and %.0f: "
                           "\"%.*s\"",
                           names[k], most, most, (int)n, text);
        any |= w != 0;
        r->which[r->n] = (kind)k;
        r->weight[r->n++] = w;
        text += n;
        text += *text == ',';
    }
    if (!r->n) return tp_fail(c, TP_EARG, "rl.reward_weights names no reward");
    return any ? TP_OK
               : tp_fail(c, TP_EARG, "rl.reward_weights: every weight is 0: nothing to learn from");
}

static tp_status check_overlong(tp_rewards *r, tp_ctx *c) {
    if (r->buffer > r->max_length)
        return tp_fail(c, TP_EARG,
                       "rl.overlong_buffer is %lld, but rl.max_completion_length only %lld",
                       (long long)r->buffer, (long long)r->max_length);
    bool asked = tp_rewards_has(r, "overlong");
    if (asked == (r->buffer > 0)) return TP_OK;
    return tp_fail(c, TP_EARG,
                   asked ? "rl.reward_weights: overlong needs rl.overlong_buffer, the number of "
                           "tokens that it punishes"
                         : "rl.overlong_buffer needs a weight: rl.reward_weights: overlong=1");
}

tp_status tp_rewards_new(tp_rewards **out, tp_ctx *c, const tp_reward_opts *o) {
    *out = NULL;
    tp_rewards *r = tp_calloc(c, 1, sizeof *r);
    if (!r) return tp_error_status(c);
    r->timeout = o->timeout;
    r->max_length = o->max_length;
    r->buffer = o->overlong_buffer;
    tp_status st = parse(r, c, o->weights);
    if (!st) st = check_overlong(r, c);
    bool asked = tp_rewards_has(r, "program");
    if (!st && asked != (*o->program != 0))
        st = tp_fail(c, TP_EARG,
                     asked ? "rl.reward_weights: program needs rl.reward_program"
                           : "rl.reward_program needs a weight: rl.reward_weights: "
                             "program=1");
    if (!st && !(r->command = tp_strdup(c, o->program))) st = tp_error_status(c);
    if (st) {
        tp_rewards_free(r);
        return st;
    }
    *out = r;
    return TP_OK;
}

void tp_rewards_free(tp_rewards *r) {
    if (!r) return;
    tp_pipe_close(r->pipe);
    tp_free(r->command);
    tp_free(r);
}

int tp_rewards_count(const tp_rewards *r) { return r->n; }
const char *tp_rewards_name(const tp_rewards *r, int k) { return names[r->which[k]]; }
const double *tp_rewards_weights(const tp_rewards *r) { return r->weight; }

bool tp_rewards_has(const tp_rewards *r, const char *name) {
    for (int i = 0; i < r->n; i++)
        if (!strcmp(names[r->which[i]], name)) return true;
    return false;
}

/* ---- the program ---------------------------------------------------------------------------- */
static void add_line(tp_str *t, const tp_judged *x) {
    tp_str_puts(t, "{\"prompt\":");
    tp_str_json(t, x->item.prompt);
    tp_str_puts(t, ",\"completion\":");
    tp_str_json_n(t, x->text, x->n);
    tp_str_puts(t, ",\"answer\":");
    tp_str_json(t, x->item.answer);
    tp_str_puts(t, "}\n");
}

static tp_status ask(tp_rewards *r, tp_ctx *c, const tp_judged *x, int64_t n, int k, double *out) {
    char *answer = NULL;
    tp_str text;
    tp_str_init(&text, c);
    for (int64_t i = 0; i < n; i++) add_line(&text, &x[i]);
    tp_status st = text.failed ? tp_error_status(c) : TP_OK;
    if (!st && !r->pipe) st = tp_pipe_open(&r->pipe, c, r->command);
    if (!st) st = tp_pipe_ask(r->pipe, c, text.at, text.len, n, r->timeout, &answer);
    char *at = answer;
    for (int64_t i = 0; i < n && !st; i++) {
        char *line = at, *end;
        at += strcspn(at, "\n");
        *at++ = 0;
        double v = strtod(line, &end);
        if (!strncmp(line, "null", 4)) v = NAN, end = line + 4;
        end += strspn(end, " \t\r");
        if (end == line || *end)
            st =
                tp_fail(c, TP_EIO, "the program \"%s\" answered \"%.60s\" where a number should be",
                        r->command, line);
        else if (fabs(v) > most)
            st = tp_fail(c, TP_EIO,
                         "the program \"%s\" answered \"%.60s\": a reward must lie between "
                         "-%.0f and %.0f",
                         r->command, line, most, most);
        out[i * r->n + k] = v;
    }
    tp_str_clear(&text);
    tp_free(answer);
    return st;
}

/* The part of the task's own solution that the completion begins with; 1 with its end only. */
static double agreement(const tp_judged *x) {
    size_t n = strlen(x->item.demo), same = 0;
    if (!n) return NAN;
    while (same < n && same < x->n && x->text[same] == x->item.demo[same]) same++;
    return (double)(same + (same == n && x->n == n && x->ended)) / (double)(n + 1);
}

tp_status tp_rewards_judge(tp_rewards *r, tp_ctx *c, const tp_task *t, const tp_judged *x,
                           int64_t n, double *out) {
    tp_status st = TP_OK;
    for (int k = 0; k < r->n && !st; k++) {
        if (r->which[k] == PROGRAM && n) st = ask(r, c, x, n, k, out);
        for (int64_t i = 0; i < n && r->which[k] != PROGRAM; i++) {
            double *v = &out[i * r->n + k];
            switch (r->which[k]) {
            case EXACT_MATCH:
                *v = x[i].ended && tp_task_right(t, &x[i].item, x[i].text, x[i].n);
                break;
            case FORMAT:
                *v = x[i].ended && tp_task_has_answer(x[i].text, x[i].n);
                break;
            case STEPS:
                *v = agreement(&x[i]);
                break;
            case LENGTH:
                *v = -(double)x[i].tokens / (double)r->max_length;
                break;
            default:
                *v = tp_overlong_punishment(x[i].tokens, r->max_length, r->buffer);
            }
        }
    }
    return st;
}
