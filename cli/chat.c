/* tapir chat: a conversation with a model that was fine-tuned on conversations. */
#include "cli/cli.h"
#include "cli/source.h"
#include "data/input.h"
#include "infer/engine.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct args {
    tp_run_args run;
    char *system, *template;
    tp_sampling how;
    int64_t tokens;
} a = {.how = {.temperature = 0.8, .top_p = 0.95, .repetition_penalty = 1, .seed = 1},
       .tokens = 512};

static const struct argp_option options[] = {
    {"system", 's', "TEXT", 0, "What the model is told before the first turn", 0},
    {"chat-template", 'c', "NAME", 0, "plain, chatml, alpaca or llama3 (the run's own)", 0},
    {"max-new-tokens", 'n', "N", 0, "The longest reply (512)", 0},
    {"temperature", 't', "X", 0, "0 takes the most likely token each time (0.8)", 0},
    {"top-k", 'k', "N", 0, "Choose among the N most likely tokens (0: all)", 0},
    {"top-p", 'p', "X", 0, "Choose among the most likely tokens that make up X (0.95)", 0},
    {"min-p", 'm', "X", 0, "Leave out tokens less likely than X times the best (0: none)", 0},
    {"repetition-penalty", 'r', "X", 0,
     "Above 1 makes tokens of the conversation so far less likely (1)", 0},
    {"seed", 'S', "N", 0, "Another seed, other replies (1)", 0},
    TP_RUN_OPTIONS,
    {0}};

static error_t parse(int key, char *arg, struct argp_state *s) {
    switch (key) {
    case 's':
        a.system = arg;
        break;
    case 'c':
        a.template = arg;
        break;
    case 'n':
        a.tokens = tp_integer_arg(s, "--max-new-tokens", arg, 1, 1000000000);
        break;
    case 'S':
        a.how.seed = (uint64_t)tp_integer_arg(s, "--seed", arg, 0, TP_MOST_SEED);
        break;
    case ARGP_KEY_ARG:
        if (a.run.path) argp_error(s, "one run only");
        a.run.path = arg;
        break;
    case ARGP_KEY_NO_ARGS:
        argp_error(s, "which run?");
        break;
    default:
        return tp_sampling_option(&a.how, key, arg, s) ? tp_run_option(&a.run, key, arg, s) : 0;
    }
    return 0;
}

typedef struct talk {
    tp_run *r;
    tp_chat *chat;
    tp_conversation v;
    tp_engine *engine;
    tp_decoder decoder;
    char *bytes;
    int32_t end;
    tp_ids reply;
    uint32_t turns;
} talk;

static bool show(void *arg, int64_t request, int64_t sample, int32_t id) {
    talk *t = arg;
    (void)request, (void)sample;
    if (id == t->end) return true;
    size_t n = tp_decoder_push(&t->decoder, t->r->tokenizer, id, t->bytes);
    return fwrite(t->bytes, 1, n, stdout) == n && !fflush(stdout) && !tp_interrupted();
}

static tp_status keep(void *arg, const tp_completion *x) {
    talk *t = arg;
    tp_ids_clear(&t->reply);
    t->reply.data = tp_malloc(t->r->c, (size_t)(x->n + 1) * sizeof *t->reply.data);
    if (!t->reply.data) return tp_error_status(t->r->c);
    memcpy(t->reply.data, x->ids, (size_t)x->n * sizeof *t->reply.data);
    t->reply.n = x->n - (x->n > 0 && x->ids[x->n - 1] == t->end);
    return TP_OK;
}

/* The reply becomes part of the conversation as text, as if it had been read. */
static tp_status remember(talk *t) {
    char *text = NULL;
    size_t n;
    tp_status st = tp_decode(&text, &n, t->r->c, t->r->tokenizer, t->reply.data, t->reply.n);
    if (!st) st = tp_chat_turn(t->chat, &t->v, "assistant", text, (int64_t)n);
    tp_free(text);
    return st;
}

static tp_status answer(talk *t, const char *line) {
    tp_ctx *c = t->r->c;
    int64_t before = t->v.ids.n, context = t->r->cfg.model.context;
    tp_status st = tp_chat_turn(t->chat, &t->v, "user", line, (int64_t)strlen(line));
    int64_t asked = t->v.ids.n;
    if (!st) st = tp_chat_reply(t->chat, &t->v);
    if (!st && t->v.ids.n >= context) {
        printf("(the conversation is longer than the model's context of %lld tokens: /reset begins "
               "anew)\n",
               (long long)context);
        t->v.ids.n = t->v.trained.n = before;
        return TP_OK;
    }
    tp_request q = {.prompt = t->v.ids.data,
                    .n = t->v.ids.n,
                    .samples = 1,
                    .max_new_tokens = a.tokens,
                    .sampling = a.how,
                    .step = t->turns++,
                    .stop = t->end};
    t->decoder = (tp_decoder){0};
    if (!st) st = tp_engine_run(t->engine, &q, 1, &(tp_engine_calls){keep, show, NULL, t});
    fwrite(t->bytes, 1, tp_decoder_flush(&t->decoder, t->bytes), stdout);
    fputc('\n', stdout);
    t->v.ids.n = t->v.trained.n = asked;
    if (!st) st = remember(t);
    if (!st && ferror(stdout))
        st = tp_fail(c, TP_EIO, "cannot write to standard output: %s", strerror(errno));
    return st;
}

static tp_status begin(talk *t) {
    t->v.ids.n = t->v.trained.n = 0;
    if (!a.system) return TP_OK;
    return tp_chat_turn(t->chat, &t->v, "system", a.system, (int64_t)strlen(a.system));
}

static tp_status converse(talk *t) {
    tp_input in = {.fd = STDIN_FILENO, .name = "standard input", .interrupted = tp_interrupted};
    char *line;
    bool person = isatty(STDIN_FILENO);
    tp_status st = begin(t);
    if (person) printf("/reset begins anew, /exit or Ctrl-D ends.\n");
    while (!st && !tp_interrupted()) {
        if (person) printf("> "), fflush(stdout);
        st = tp_input_line(&in, t->r->c, &line);
        if (person && (st || !line)) fputc('\n', stdout);
        if (st || !line || !strcmp(line, "/exit")) break;
        if (!strcmp(line, "/reset"))
            st = begin(t);
        else if (*line)
            st = answer(t, line);
    }
    tp_input_clear(&in);
    return st ? st : tp_interrupted() ? TP_EINTERRUPT : TP_OK;
}

static tp_status chat(tp_run *r) {
    const char *problem = tp_sampling_problem(&a.how);
    if (problem) return tp_fail(r->c, TP_EARG, "sampling: %s", problem);
    if (a.template) {
        char word[64];
        snprintf(word, sizeof word, "data.chat_template=%s", a.template);
        if (tp_config_set(r->c, &r->cfg, word)) return tp_error_status(r->c);
    }
    talk t = {.r = r, .bytes = tp_malloc(r->c, (size_t)tp_tokenizer_longest(r->tokenizer) + 8)};
    tp_status st = t.bytes ? tp_chat_new(&t.chat, r->c, r->tokenizer, tp_chat_template_of(&r->cfg))
                           : tp_error_status(r->c);
    if (!st) st = tp_engine_new(&t.engine, r->c, r->trainer.model, &(tp_engine_opts){.lanes = 1});
    t.end = st ? -1 : tp_chat_end(t.chat);
    if (!st) st = converse(&t);
    tp_engine_free(t.engine);
    tp_conversation_clear(&t.v);
    tp_ids_clear(&t.reply);
    tp_chat_free(t.chat);
    tp_free(t.bytes);
    return st;
}

int cmd_chat(int argc, char **argv) {
    const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "RUN",
        .doc = "Talks with a run's newest checkpoint, which should have been fine-tuned on "
               "conversations (a .jsonl file as data.train). A line is a turn; from a pipe, every "
               "line is answered. /reset begins anew, /exit ends."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    return tp_with_run(argv[0], &a.run, chat);
}
