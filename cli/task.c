/* tapir task: items of a task as JSON lines, to look at and to fine-tune on. */
#include "cli/cli.h"
#include "rl/task.h"
#include <cJSON.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct args {
    tp_task_opts o;
    int64_t n, from;
    const char *makes; /* an option that says how items are made */
    bool held_out, list;
} a = {.o = {.seed = 1, .scratchpad = 0.25}, .n = 10};

static const struct argp_option options[] = {
    {"number", 'n', "N", 0, "How many items (10)", 0},
    {"from", 'f', "N", 0, "Begin with item N (0)", 0},
    {"seed", 's', "N", 0, "Another seed, other items (1)", 0},
    {"min", 'm', "N", 0, "Smallest size of an item (the task's own)", 0},
    {"max", 'M', "N", 0, "Largest size of an item (the task's own)", 0},
    {"scratchpad", 'p', "X", 0, "Part of the responses that show their steps (0.25)", 0},
    {"held-out", 'o', NULL, 0, "Items that training never sees", 0},
    {"list", 'l', NULL, 0, "List the tasks", 0},
    {0}};

static error_t parse(int key, char *arg, struct argp_state *s) {
    switch (key) {
    case 'n':
        a.n = tp_integer_arg(s, "--number", arg, 0, INT64_C(1) << 40);
        break;
    case 'f':
        a.from = tp_integer_arg(s, "--from", arg, 0, INT64_C(1) << 40);
        break;
    case 's':
        a.makes = "seed";
        a.o.seed = (uint64_t)tp_integer_arg(s, "--seed", arg, 0, TP_MOST_SEED);
        break;
    case 'm':
        a.makes = "min";
        a.o.min = tp_integer_arg(s, "--min", arg, 0, 1 << 20);
        break;
    case 'M':
        a.makes = "max";
        a.o.max = tp_integer_arg(s, "--max", arg, 0, 1 << 20);
        break;
    case 'p':
        a.makes = "scratchpad";
        a.o.scratchpad = tp_number_arg(s, "--scratchpad", arg, 0, 1);
        break;
    case 'o':
        a.held_out = true;
        break;
    case 'l':
        a.list = true;
        break;
    case ARGP_KEY_ARG:
        if (a.o.name) argp_error(s, "one task only");
        a.o.name = arg;
        break;
    case ARGP_KEY_END:
        if (!a.o.name && !a.list) argp_error(s, "which task? --list shows them");
        if (a.o.name && a.makes && tp_task_is_file(a.o.name))
            argp_error(s, "--%s is for tasks whose items are made; %s holds its own", a.makes,
                       a.o.name);
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static tp_status write_item(tp_ctx *c, const tp_task_item *x) {
    cJSON *o = cJSON_CreateObject();
    bool ok = o && cJSON_AddStringToObject(o, "prompt", x->prompt) &&
              cJSON_AddStringToObject(o, "response", *x->demo ? x->demo : x->answer) &&
              cJSON_AddStringToObject(o, "answer", x->answer);
    char *line = ok ? cJSON_PrintUnformatted(o) : NULL;
    tp_status st = line ? TP_OK : tp_fail(c, TP_ENOMEM, "out of memory");
    if (!st && printf("%s\n", line) < 0)
        st = tp_fail(c, TP_EIO, "cannot write to standard output: %s", strerror(errno));
    cJSON_free(line);
    cJSON_Delete(o);
    return st;
}

int cmd_task(int argc, char **argv) {
    const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "TASK",
        .doc = "Writes items of a task, or of a .jsonl file of prompts and answers, as JSON lines "
               "{\"prompt\", \"response\", \"answer\"}, the "
               "form that `tapir train` fine-tunes on. Item i is always the same; held-out items "
               "never come among the others."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    for (const char *const *name = tp_task_names; a.list && *name; name++)
        printf("%-11s %s\n", *name, tp_task_about(*name));
    if (a.list) return EXIT_DONE;
    tp_catch_signals();
    tp_ctx *c;
    tp_task *t = NULL;
    tp_status st = tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1});
    if (st) return tp_say_failure(argv[0], NULL, st);
    st = tp_task_new(&t, c, &a.o);
    for (int64_t i = 0; i < a.n && !st; i++) {
        tp_task_item x;
        st = tp_task_get(t, c, a.held_out, (uint64_t)(a.from + i), &x);
        if (!st) st = write_item(c, &x);
        if (!st && tp_interrupted()) st = TP_EINTERRUPT;
    }
    if (!st && fflush(stdout))
        st = tp_fail(c, TP_EIO, "cannot write to standard output: %s", strerror(errno));
    int code = st ? tp_say_failure(argv[0], c, st) : EXIT_DONE;
    tp_task_free(t);
    tp_ctx_free(c);
    return code;
}
