/* tapir generate: writes text after a prompt, token by token, to the terminal. */
#include "cli/cli.h"
#include "data/input.h"
#include "infer/engine.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct args {
    tp_run_args run;
    char *prompt;
    tp_sampling how;
    int64_t tokens, samples, window, sinks;
    bool to_end;
} a = {.how = {.temperature = 0.8, .top_p = 1, .repetition_penalty = 1, .seed = 1},
       .tokens = 256,
       .samples = 1,
       .sinks = 4};

static const struct argp_option options[] = {
    {"max-new-tokens", 'n', "N", 0, "How many tokens to write (256)", 0},
    {"temperature", 't', "X", 0, "0 takes the most likely token each time (0.8)", 0},
    {"top-k", 'k', "N", 0, "Choose among the N most likely tokens (0: all)", 0},
    {"top-p", 'p', "X", 0, "Choose among the most likely tokens that make up X (1: all)", 0},
    {"min-p", 'm', "X", 0, "Leave out tokens less likely than X times the best (0: none)", 0},
    {"repetition-penalty", 'r', "X", 0, "Above 1 makes tokens that were seen less likely (1)", 0},
    {"seed", 's', "N", 0, "Another seed, another text (1)", 0},
    {"samples", 'c', "N", 0, "How many texts to write (1)", 0},
    {"window", 'w', "N", 0,
     "Attend to the last N tokens only; texts may then be longer than the context without reading "
     "anything twice (rope models; 0: to all)",
     0},
    {"sinks", 'S', "N", 0, "With --window: attend to the first N tokens as well (4)", 0},
    {"ignore-eos", 'e', NULL, 0, "Go on after the end-of-text token", 0},
    TP_RUN_OPTIONS,
    {0}};

static error_t parse(int key, char *arg, struct argp_state *s) {
    switch (key) {
    case 'n':
        a.tokens = tp_integer_arg(s, "--max-new-tokens", arg, 0, 1000000000);
        break;
    case 's':
        a.how.seed = (uint64_t)tp_integer_arg(s, "--seed", arg, 0, TP_MOST_SEED);
        break;
    case 'c':
        a.samples = tp_integer_arg(s, "--samples", arg, 1, 1000000);
        break;
    case 'w':
        a.window = tp_integer_arg(s, "--window", arg, 0, 1000000000);
        break;
    case 'S':
        a.sinks = tp_integer_arg(s, "--sinks", arg, 0, 1000000);
        break;
    case 'e':
        a.to_end = true;
        break;
    case ARGP_KEY_ARG:
        if (!a.run.path)
            a.run.path = arg;
        else if (!a.prompt)
            a.prompt = arg;
        else
            argp_error(s, "one prompt only; put quotes around it");
        break;
    case ARGP_KEY_NO_ARGS:
        argp_error(s, "which run?");
        break;
    default:
        return tp_sampling_option(&a.how, key, arg, s) ? tp_run_option(&a.run, key, arg, s) : 0;
    }
    return 0;
}

/* One sample is shown token by token; of several, each when those before it have been shown. */
typedef struct writer {
    tp_run *r;
    tp_decoder decoder;
    char *bytes;
    int32_t stop;
    char **text; /* (samples) of those that are done; NULL: not yet, or shown */
    int64_t shown;
} writer;

static bool show(void *arg, int64_t request, int64_t sample, int32_t id) {
    writer *w = arg;
    (void)request, (void)sample;
    if (a.samples > 1 || id == w->stop) return !tp_interrupted();
    size_t n = tp_decoder_push(&w->decoder, w->r->tokenizer, id, w->bytes);
    return fwrite(w->bytes, 1, n, stdout) == n && !fflush(stdout) && !tp_interrupted();
}

static tp_status keep(void *arg, const tp_completion *x) {
    writer *w = arg;
    size_t n;
    if (a.samples == 1) return TP_OK;
    int64_t tokens = x->n - (x->n > 0 && x->ids[x->n - 1] == w->stop);
    tp_status st = tp_decode(&w->text[x->sample], &n, w->r->c, w->r->tokenizer, x->ids, tokens);
    for (; !st && w->shown < a.samples && w->text[w->shown]; w->shown++) {
        printf("%s%s%s\n", w->shown ? "\n" : "", a.prompt ? a.prompt : "", w->text[w->shown]);
        tp_free(w->text[w->shown]);
        w->text[w->shown] = NULL;
        fflush(stdout);
    }
    return st;
}

static bool stopped(void *arg) {
    (void)arg;
    return tp_interrupted();
}

static tp_status write_texts(writer *w, const tp_ids *prompt) {
    tp_ctx *c = w->r->c;
    tp_engine *e = NULL;
    tp_engine_opts o = {.lanes = a.samples < 16 ? a.samples : 16,
                        .max_length = prompt->n + a.tokens,
                        .window = a.window,
                        .sinks = a.sinks,
                        .slide = !a.window};
    tp_request q = {.prompt = prompt->data,
                    .n = prompt->n,
                    .samples = a.samples,
                    .max_new_tokens = a.tokens,
                    .sampling = a.how,
                    .stop = w->stop};
    tp_engine_calls calls = {keep, show, stopped, w};
    tp_status st = tp_engine_new(&e, c, w->r->trainer.model, &o);
    if (!st && a.samples == 1) fputs(a.prompt ? a.prompt : "", stdout);
    if (!st) st = tp_engine_run(e, &q, 1, &calls);
    if (a.samples == 1) {
        fwrite(w->bytes, 1, tp_decoder_flush(&w->decoder, w->bytes), stdout);
        fputc('\n', stdout);
    }
    tp_engine_free(e);
    if (!st && (ferror(stdout) || fflush(stdout)))
        st = tp_fail(c, TP_EIO, "cannot write to standard output: %s", strerror(errno));
    return st;
}

/* A prompt from a pipe, without the newline that ends its last line. */
static tp_status read_prompt(tp_ctx *c, tp_input *in) {
    char *text;
    size_t n;
    tp_status st = tp_input_rest(in, c, &text, &n);
    if (st) return st;
    if (memchr(text, 0, n))
        return tp_fail(c, TP_EFORMAT,
                       "the prompt on standard input has a byte 0, so it is no text");
    if (n && text[n - 1] == '\n') text[n - 1] = 0;
    a.prompt = n ? text : NULL;
    return TP_OK;
}

static tp_status generate(tp_run *r) {
    tp_ctx *c = r->c;
    tp_input piped = {.fd = STDIN_FILENO, .name = "standard input", .interrupted = tp_interrupted};
    tp_status st = a.prompt && !strcmp(a.prompt, "-") ? read_prompt(c, &piped) : TP_OK;
    tp_encoder *encoder = NULL;
    tp_ids ids = {0};
    int32_t eos = tp_tokenizer_eos(r->tokenizer);
    writer w = {.r = r,
                .stop = a.to_end ? -1 : eos,
                .bytes = tp_malloc(c, (size_t)tp_tokenizer_longest(r->tokenizer) + 8),
                .text = tp_calloc(c, (size_t)a.samples, sizeof *w.text)};
    const char *prompt = a.prompt ? a.prompt : "";
    if (!st)
        st = w.bytes && w.text ? tp_encoder_new(&encoder, c, r->tokenizer, NULL)
                               : tp_error_status(c);
    if (!st) st = tp_encode_begin(&ids, encoder);
    if (!st) st = tp_encode(&ids, encoder, prompt, (int64_t)strlen(prompt));
    if (!st && !ids.n && eos < 0)
        st = tp_fail(c, TP_EARG,
                     "this tokenizer has no end-of-text token to begin with: give a prompt");
    if (!st && !ids.n) st = tp_ids_add(&ids, c, eos);
    if (!st) st = write_texts(&w, &ids);
    for (int64_t i = 0; i < a.samples && w.text; i++) tp_free(w.text[i]);
    tp_free(w.text);
    tp_free(w.bytes);
    tp_ids_clear(&ids);
    tp_encoder_free(encoder);
    tp_input_clear(&piped);
    return st ? st : tp_interrupted() ? TP_EINTERRUPT : TP_OK;
}

int cmd_generate(int argc, char **argv) {
    const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "RUN [PROMPT]",
        .doc = "Writes text with a run's newest checkpoint (RUN may also be a checkpoint file), "
               "after the prompt (- reads it from standard input) or from the beginning of a text. "
               "The same arguments give the same text. When the context is full its older half is "
               "left behind and the rest read again."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    return tp_with_run(argv[0], &a.run, generate);
}
