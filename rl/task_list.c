/* Owns what the tasks are. */
#include "rl/task_list.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int64_t tp_roll(tp_dice *d, int64_t lo, int64_t hi) {
    double u = tp_uniform(d->seed, TP_RNG_TASK, d->item, d->n++);
    int64_t x = lo + (int64_t)(u * (double)(hi - lo + 1));
    return x > hi ? hi : x;
}

static void put(char *to, const char *fmt, ...) TP_PRINTF(2, 3);
static void put(char *to, const char *fmt, ...) {
    size_t n = strlen(to);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(to + n, TP_TASK_TEXT - n, fmt, ap);
    va_end(ap);
}

static void operations(tp_dice *d, int64_t size, bool letters, tp_task_text *t) {
    int value = (int)tp_roll(d, 0, 9), first = letters ? (int)tp_roll(d, 0, 25) : 0;
    put(t->prompt, "%d", value);
    for (int64_t i = 0; i < size; i++) {
        int op = (int)tp_roll(d, 0, 2), x = (int)tp_roll(d, 1, 9); /* *0 would forget the rest */
        char letter[2] = {letters ? (char)('a' + (first + i) % 26) : 0, 0};
        value = (op == 0 ? value + x : op == 1 ? value - x + 10 : value * x) % 10;
        put(t->prompt, "%c%d%s", "+-*"[op], x, letter);
        put(t->steps, "%s%d", letter, value);
    }
    put(t->prompt, "=");
    put(t->answer, "%d", value);
}
static void chain(tp_dice *d, int64_t size, tp_task_text *t) { operations(d, size, false, t); }
/* A step names the operation that it follows, so nothing has to be counted, and longer chains are
 * within reach of a model that has seen shorter ones only. */
static void lettered(tp_dice *d, int64_t size, tp_task_text *t) { operations(d, size, true, t); }

static void parity(tp_dice *d, int64_t size, tp_task_text *t) {
    int odd = 0;
    for (int64_t i = 0; i < size; i++) {
        int bit = (int)tp_roll(d, 0, 1);
        odd ^= bit;
        put(t->prompt, "%d", bit);
        put(t->steps, "%d", odd);
    }
    put(t->prompt, ":");
    put(t->answer, "%d", odd);
}

/* Steps: the result's digits from the last to the first, as they are found. */
static void arithmetic(tp_dice *d, int64_t size, tp_task_text *t) {
    int64_t lo = 1, hi;
    for (int64_t i = 1; i < size; i++) lo *= 10;
    hi = lo * 10 - 1;
    int64_t a = tp_roll(d, size == 1 ? 0 : lo, hi), b = tp_roll(d, size == 1 ? 0 : lo, hi);
    bool minus = tp_roll(d, 0, 1);
    int64_t y = minus ? a - b : a + b;
    put(t->prompt, "%lld%c%lld=", (long long)a, minus ? '-' : '+', (long long)b);
    put(t->answer, "%lld", (long long)y);
    for (size_t i = strlen(t->answer); i-- > 0;) put(t->steps, "%c", t->answer[i]);
}

/* Steps: what is left after each smallest one is taken. */
static void sort_digits(tp_dice *d, int64_t size, tp_task_text *t) {
    int x[32] = {0};
    for (int64_t i = 0; i < size; i++) {
        x[i] = (int)tp_roll(d, 0, 9);
        put(t->prompt, i ? " %d" : "%d", x[i]);
    }
    put(t->prompt, ">");
    for (int64_t i = 0; i < size; i++) {
        int64_t least = i;
        for (int64_t j = i + 1; j < size; j++)
            if (x[j] < x[least]) least = j;
        int v = x[least];
        memmove(x + i + 1, x + i,
                (size_t)(least - i) * sizeof *x); /* the others keep their order */
        x[i] = v;
        put(t->answer, i ? " %d" : "%d", v);
        for (int64_t j = i + 1; j < size; j++) put(t->steps, "%d", x[j]);
        if (i + 1 < size) put(t->steps, ",");
    }
}

/* ---- countdown ------------------------------------------------------------------------------ */
/* An expression is made first, and its value is what is asked for: so there always is an answer.
 * Steps: the value after each operation. */
static void countdown(tp_dice *d, int64_t size, tp_task_text *t) {
    int64_t x[8] = {0}, order[8], value;
    for (int64_t i = 0; i < size; i++) {
        x[i] = tp_roll(d, 1, 25);
        order[i] = i;
    }
    value = x[0];
    put(t->answer, "%lld", (long long)value);
    for (int64_t i = 1; i < size; i++) {
        int64_t op = tp_roll(d, 0, 2);
        if (op == 1 && value <= x[i]) op = 0;
        if (op == 2 && value * x[i] > 999) op = 0;
        value = op == 0 ? value + x[i] : op == 1 ? value - x[i] : value * x[i];
        char before[TP_TASK_TEXT];
        snprintf(before, sizeof before, "%s", t->answer);
        bool brackets = op == 2 && i > 1;
        snprintf(t->answer, TP_TASK_TEXT, brackets ? "(%.*s)%c%lld" : "%.*s%c%lld",
                 TP_TASK_TEXT - 32, before, "+-*"[op], (long long)x[i]);
        put(t->steps, i > 1 ? ",%lld" : "%lld", (long long)value);
    }
    for (int64_t i = size - 1; i > 0; i--) {
        int64_t j = tp_roll(d, 0, i), keep = order[i];
        order[i] = order[j];
        order[j] = keep;
    }
    put(t->prompt, "%lld:", (long long)value);
    for (int64_t i = 0; i < size; i++) put(t->prompt, " %lld", (long long)x[order[i]]);
    put(t->prompt, "=");
}

typedef struct parser { /* fractions, so that 1/3*3 is 1 */
    const char *p, *end;
    int64_t used[64];
    int n_used, depth;
    bool bad;
} parser;
typedef struct fraction {
    int64_t a, b;
} fraction;

static fraction fail_parse(parser *s) {
    s->bad = true;
    return (fraction){0, 1};
}
/* a/b in lowest terms; what would leave 2^30 is no exercise for people. */
static fraction reduce(parser *s, int64_t a, int64_t b) {
    const int64_t most = INT64_C(1) << 30;
    if (b == 0) return fail_parse(s);
    if (b < 0) a = -a, b = -b;
    int64_t x = a < 0 ? -a : a, y = b;
    while (y) {
        int64_t r = x % y;
        x = y;
        y = r;
    }
    if (x > 1) a /= x, b /= x;
    if (a > most || a < -most || b > most) return fail_parse(s);
    return (fraction){a, b};
}
static void spaces(parser *s) {
    while (s->p < s->end && *s->p == ' ') s->p++;
}
static fraction sum(parser *s);

static fraction atom(parser *s) {
    spaces(s);
    if (s->bad || s->p == s->end || ++s->depth > 64) return fail_parse(s);
    if (*s->p == '(') {
        s->p++;
        fraction x = sum(s);
        spaces(s);
        if (s->bad || s->p == s->end || *s->p != ')') return fail_parse(s);
        s->p++;
        s->depth--;
        return x;
    }
    int64_t v = 0, digits = 0;
    for (; s->p < s->end && *s->p >= '0' && *s->p <= '9' && digits < 9; s->p++, digits++)
        v = v * 10 + (*s->p - '0');
    if (!digits || s->n_used == 64) return fail_parse(s);
    s->used[s->n_used++] = v;
    s->depth--;
    return (fraction){v, 1};
}

static fraction product(parser *s) {
    fraction x = atom(s);
    for (spaces(s); !s->bad && s->p < s->end && (*s->p == '*' || *s->p == '/'); spaces(s)) {
        bool times = *s->p++ == '*';
        fraction y = atom(s);
        x = times ? reduce(s, x.a * y.a, x.b * y.b) : reduce(s, x.a * y.b, x.b * y.a);
    }
    return x;
}

static fraction sum(parser *s) {
    fraction x = product(s);
    for (spaces(s); !s->bad && s->p < s->end && (*s->p == '+' || *s->p == '-'); spaces(s)) {
        int64_t sign = *s->p++ == '+' ? 1 : -1;
        fraction y = product(s);
        x = reduce(s, x.a * y.b + sign * y.a * x.b, x.b * y.b);
    }
    return x;
}

bool tp_countdown_right(const char *prompt, const char *answer, size_t n) {
    parser s = {.p = answer, .end = answer + n};
    char *at;
    long long target = strtoll(prompt, &at, 10), given[64];
    int n_given = 0;
    for (at = *at == ':' ? at + 1 : at; n_given < 64; n_given++) {
        char *next;
        given[n_given] = strtoll(at, &next, 10);
        if (next == at) break;
        at = next;
    }
    fraction x = sum(&s);
    spaces(&s);
    if (s.bad || s.p != s.end || x.b != 1 || x.a != target) return false;
    for (int i = 0; i < s.n_used; i++) { /* each of the given ones at most once */
        int j = 0;
        while (j < n_given && given[j] != s.used[i]) j++;
        if (j == n_given) return false;
        given[j] = given[--n_given];
    }
    return true;
}

const tp_task_kind tp_task_kinds[] = {
    {"chain", "one digit and some operations, left to right modulo 10: 7+3*4=", 8, 8, 1, 64, chain,
     NULL},
    {"lettered", "the same with a letter behind each operation: 7+3k*4l=", 8, 8, 1, 26, lettered,
     NULL},
    {"parity", "is the number of ones odd? 0110101:", 12, 12, 2, 128, parity, NULL},
    {"arithmetic", "sums and differences of two numbers: 347+891=", 3, 3, 1, 15, arithmetic, NULL},
    {"sort", "digits in ascending order: 5 2 9 1>", 5, 5, 2, 16, sort_digits, NULL},
    {"countdown", "an expression that makes a number from others: 24: 3 7 4=", 3, 3, 2, 6,
     countdown, tp_countdown_right},
    {0},
};
