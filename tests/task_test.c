/* Tasks and rewards: every item is answered again by reading its prompt, nothing held out is ever
 * practised, and each reward has the value that its definition gives. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "rl/advantage.h"
#include "rl/pipe.h"
#include "rl/reward.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static tp_ctx *c;
static int setup(void **state) {
    (void)state;
    return tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1});
}
static int teardown(void **state) {
    (void)state;
    tp_ctx_free(c);
    return 0;
}
static void near(double a, double b, double tolerance) {
    if (!(fabs(a - b) <= tolerance)) fail_msg("%.12g is not %.12g", a, b);
}

/* ---- tasks ---------------------------------------------------------------------------------- */
static tp_task *task(const char *name, int64_t min, int64_t max, double steps) {
    tp_task *t;
    tp_task_opts o = {name, min, max, steps, 3};
    if (tp_task_new(&t, c, &o)) fail_msg("%s", tp_error(c));
    return t;
}
static bool right(tp_task *t, const tp_task_item *x, const char *text) {
    return tp_task_right(t, x, text, strlen(text));
}

/* Evaluated again, by reading the prompt. */
static void solve(const char *name, const char *prompt, char *out) {
    if (!strcmp(name, "chain")) {
        int v = prompt[0] - '0';
        for (const char *p = prompt + 1; *p != '='; p += 2) {
            int x = p[1] - '0';
            v = *p == '+' ? v + x : *p == '-' ? v - x : v * x;
            v = ((v % 10) + 10) % 10;
        }
        sprintf(out, "%d", v);
    } else if (!strcmp(name, "parity")) {
        int ones = 0;
        for (; *prompt != ':'; prompt++) ones += *prompt == '1';
        sprintf(out, "%d", ones % 2);
    } else if (!strcmp(name, "arithmetic")) {
        long a, b;
        char op;
        assert_int_equal(sscanf(prompt, "%ld%c%ld=", &a, &op, &b), 3);
        sprintf(out, "%ld", op == '+' ? a + b : a - b);
    } else {
        int count[10] = {0}, first = 1;
        for (; *prompt != '>'; prompt++)
            if (*prompt != ' ') count[*prompt - '0']++;
        *out = 0;
        for (int d = 0; d < 10; d++)
            for (; count[d]; count[d]--, first = 0)
                sprintf(out + strlen(out), first ? "%d" : " %d", d);
    }
}

static void test_tasks(void **state) {
    (void)state;
    enum { N = 300 };
    static char held[N][TP_TASK_TEXT];
    for (int k = 0; tp_task_names[k]; k++) {
        const char *name = tp_task_names[k];
        tp_task *t = task(name, 0, 0, 0.5);
        int steps = 0, differ = 0;
        tp_task_item x;
        for (uint64_t i = 0; i < N; i++) {
            assert_int_equal(tp_task_get(t, c, true, i, &x), 0);
            strcpy(held[i], x.prompt);
        }
        for (uint64_t i = 0; i < N; i++) {
            char text[2 * TP_TASK_TEXT], demo[2 * TP_TASK_TEXT], prompt[TP_TASK_TEXT];
            assert_int_equal(tp_task_get(t, c, false, i, &x), 0);
            assert_true(right(t, &x, x.demo));
            steps += x.demo[0] != '#';
            if (strcmp(name, "countdown")) {
                solve(name, x.prompt, text + 1);
                text[0] = '#';
                assert_true(right(t, &x, text));
                strcat(text, "1");
                assert_false(right(t, &x, text));
                assert_string_equal(strchr(x.demo, '#') + 1, x.answer);
            }
            assert_false(right(t, &x, x.answer)); /* without the mark */
            assert_false(right(t, &x, "#"));
            assert_false(right(t, &x, ""));
            for (int j = 0; j < N; j++) assert_string_not_equal(x.prompt, held[j]);
            strcpy(demo, x.demo), strcpy(prompt, x.prompt);
            assert_int_equal(tp_task_get(t, c, false, i, &x), 0);
            assert_string_equal(demo, x.demo);
            assert_int_equal(tp_task_get(t, c, false, i + 1, &x), 0);
            differ += strcmp(prompt, x.prompt) != 0;
        }
        assert_true(steps > N / 3 && steps < 2 * N / 3);
        assert_true(differ > N / 2);
        tp_task_free(t);
    }
    /* sizes */
    tp_task *t = task("chain", 2, 5, 0);
    int seen[8] = {0};
    tp_task_item x;
    for (uint64_t i = 0; i < 200; i++) {
        assert_int_equal(tp_task_get(t, c, false, i, &x), 0);
        seen[(strlen(x.prompt) - 2) / 2]++;
        assert_true(x.demo[0] == '#');
    }
    for (int i = 0; i < 8; i++) assert_int_equal(seen[i] > 0, i >= 2 && i <= 5);
    tp_task_free(t);
}

/* ---- rewards -------------------------------------------------------------------------------- */
static void test_rewards(void **state) {
    (void)state;
    tp_rewards *r;
    tp_reward_opts o = {.weights = "exact_match=1,format=0.5,steps=2,length=0.1,overlong=-1",
                        .program = "",
                        .timeout = 1,
                        .max_length = 16,
                        .overlong_buffer = 4};
    assert_int_equal(tp_rewards_new(&r, c, &o), 0);
    assert_int_equal(tp_rewards_count(r), 5);
    tp_task *t = task("chain", 3, 3, 1);
    tp_task_item x;
    assert_int_equal(tp_task_get(t, c, false, 0, &x), 0);
    assert_int_equal(strlen(x.demo), 5); /* three steps, the mark, the answer */
    char whole[8], other[8], wrong[8];
    strcpy(whole, x.demo);
    strcpy(other, x.demo);
    other[1] = other[1] == '9' ? '0' : (char)(other[1] + 1); /* its second step, and no more */
    strcpy(wrong, x.demo);
    wrong[4] = wrong[4] == '9' ? '0' : (char)(wrong[4] + 1);
    const struct {
        const char *text;
        int64_t tokens;
        bool ended;
        double exact, format, steps, length, overlong;
    } want[] = {{whole, 6, true, 1, 1, 1, -6.0 / 16, 0},
                {whole, 5, false, 0, 0, 5.0 / 6, -5.0 / 16, 0}, /* right, but without an end */
                {other, 6, true, 1, 1, 1.0 / 6, -6.0 / 16, 0},
                {wrong, 6, true, 0, 1, 4.0 / 6, -6.0 / 16, 0},
                {"", 1, true, 0, 0, 0, -1.0 / 16, 0},
                {"x", 14, false, 0, 0, 0, -14.0 / 16, -0.5},
                {"x", 16, false, 0, 0, 0, -1, -1}};
    enum { N = sizeof want / sizeof *want };
    tp_judged j[N];
    double got[N * 5];
    for (int i = 0; i < N; i++)
        j[i] = (tp_judged){x, want[i].text, strlen(want[i].text), want[i].tokens, want[i].ended};
    assert_int_equal(tp_rewards_judge(r, c, t, j, N, got), 0);
    for (int i = 0; i < N; i++) {
        const double *g = got + 5 * i;
        near(g[0], want[i].exact, 0);
        near(g[1], want[i].format, 0);
        near(g[2], want[i].steps, 1e-15);
        near(g[3], want[i].length, 1e-15);
        near(g[4], want[i].overlong, 1e-15);
        double sum = want[i].exact + 0.5 * want[i].format + 2 * want[i].steps +
                     0.1 * want[i].length - want[i].overlong;
        near(tp_weighted_reward(g, tp_rewards_weights(r), 5), sum, 1e-14);
    }
    /* no solution, no reward of this kind: it takes no part in the sum */
    x.demo = whole + 5;
    j[0].item = x;
    assert_int_equal(tp_rewards_judge(r, c, t, j, 1, got), 0);
    assert_true(isnan(got[2]));
    near(tp_weighted_reward(got, tp_rewards_weights(r), 5), 1 + 0.5 - 0.6 / 16, 1e-14);
    tp_rewards_free(r);
    tp_task_free(t);
}

static void test_countdown(void **state) {
    (void)state;
    static const struct {
        const char *text;
        bool ok;
    } cases[] = {{"#25-3+2", true},       {"#2+25-3", true},
                 {"#(25-3)+2", true},     {"#25 - 3 + 2", true},
                 {"#24", false},          {"#25-3+2+0", false},
                 {"#25-3+2=24", false},   {"#2*(3+3*3)", false},
                 {"#25-2/2", false},      {"#", false},
                 {"#25-3+2)", false},     {"#((25-3)+2", false},
                 {"#25-(3-2)", true},     {"#+25-1", false},
                 {"#25--1", false},       {"#25/0", false},
                 {"#3*2*4", false},       {"#9999999999999999999", false},
                 {"#(25-3/3)*2/2", false}};
    tp_task *t = task("countdown", 0, 0, 0);
    tp_task_item x = {.prompt = "24: 2 3 25=", .answer = "25-3+2", .demo = ""};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (right(t, &x, cases[i].text) != cases[i].ok) fail_msg("countdown: %s", cases[i].text);
    x = (tp_task_item){.prompt = "1: 3 3 7=", .answer = "3/3", .demo = ""};
    assert_true(right(t, &x, "#3/3"));
    assert_true(right(t, &x, "#7/7*3/3") == false);
    x.prompt = "7: 3 3 7=";
    assert_true(right(t, &x, "#7/3*3"));
    char deep[3000];
    memset(deep, '(', sizeof deep);
    deep[0] = '#', deep[sizeof deep - 1] = 0;
    assert_false(right(t, &x, deep));
    tp_task_free(t);
}

static void test_nul_in_a_file(void **state) {
    (void)state;
    char path[] = "/tmp/tapir-task-XXXXXX.jsonl";
    int fd = mkstemps(path, 6);
    static const char text[] = "{\"prompt\": \"a\\\\u0000\", \"answer\": \"b\"}\n"
                               "{\"prompt\": \"a\\u0000b\", \"answer\": \"c\"}\n";
    size_t first = (size_t)(strchr(text, '\n') + 1 - text);
    tp_task *t;
    tp_task_opts o = {.name = path};
    assert_int_equal(write(fd, text, first), first);
    assert_int_equal(tp_task_new(&t, c, &o), TP_OK); /* an escaped backslash */
    tp_task_free(t);
    assert_int_equal(write(fd, text + first, sizeof text - 1 - first), sizeof text - 1 - first);
    assert_int_equal(tp_task_new(&t, c, &o), TP_EFORMAT);
    assert_non_null(strstr(tp_error(c), "line 2: a NUL character (\\u0000) is no text"));
    tp_clear(c);
    close(fd);
    unlink(path);
}

/* A program that stops who asks it for twice the time that it has. Asked by a child of this one:
 * the shell that has started this one would take it for stopped. */
static void test_stopped(void **state) {
    (void)state;
    static const char program[] =
        "read x; kill -STOP $PPID; sleep 3; kill -CONT $PPID; sleep 0.2; echo 1";
    tp_pipe *p = NULL;
    char *answer = NULL;
    int status;
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (!pid) {
        tp_status st = tp_pipe_open(&p, c, program);
        if (!st) st = tp_pipe_ask(p, c, "x\n", 2, 1, 1.5, &answer);
        if (st) fprintf(stderr, "%s\n", tp_error(c));
        _exit(st || strcmp(answer, "1\n"));
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tasks),     cmocka_unit_test(test_rewards),
        cmocka_unit_test(test_countdown), cmocka_unit_test(test_nul_in_a_file),
        cmocka_unit_test(test_stopped),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
