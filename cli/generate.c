/* tapir generate: writes text after a prompt, token by token, to the terminal. */
#include "cli/cli.h"
#include "infer/infer.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct args {
    char *run, *prompt;
    tp_sampling how;
    int64_t tokens, samples, threads;
    bool best, to_end;
} a = {.how = {.temperature = 0.8, .top_p = 1, .repetition_penalty = 1, .seed = 1},
       .tokens = 256,
       .samples = 1};

static const struct argp_option options[] = {
    {"max-new-tokens", 'n', "N", 0, "How many tokens to write (256)", 0},
    {"temperature", 't', "X", 0, "0 takes the most likely token each time (0.8)", 0},
    {"top-k", 'k', "N", 0, "Choose among the N most likely tokens (0: all)", 0},
    {"top-p", 'p', "X", 0, "Choose among the most likely tokens that make up X (1: all)", 0},
    {"min-p", 'm', "X", 0, "Leave out tokens less likely than X times the best (0: none)", 0},
    {"repetition-penalty", 'r', "X", 0, "Above 1 makes tokens that were seen less likely (1)", 0},
    {"seed", 's', "N", 0, "Another seed, another text (1)", 0},
    {"samples", 'c', "N", 0, "How many texts to write (1)", 0},
    {"ignore-eos", 'e', NULL, 0, "Go on after the end-of-text token", 0},
    {"best", 'b', NULL, 0, "Use the checkpoint with the best validation loss", 0},
    {"threads", 'j', "N", 0, "Threads (all cores)", 0},
    {0}};

static double number(struct argp_state *s, const char *name, const char *text, double lo,
                     double hi) {
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    if (end == text || *end || errno || !(v >= lo && v <= hi))
        argp_error(s, "%s must be a number from %g to %g, got \"%s\"", name, lo, hi, text);
    return v;
}

static int64_t integer(struct argp_state *s, const char *name, const char *text, double lo,
                       double hi) {
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (end == text || *end || errno || !((double)v >= lo && (double)v <= hi))
        argp_error(s, "%s must be a whole number from %g to %g, got \"%s\"", name, lo, hi, text);
    return v;
}

static error_t parse(int key, char *arg, struct argp_state *s) {
    switch (key) {
    case 'n':
        a.tokens = integer(s, "--max-new-tokens", arg, 0, 1e9);
        break;
    case 't':
        a.how.temperature = number(s, "--temperature", arg, 0, 1e6);
        break;
    case 'k':
        a.how.top_k = integer(s, "--top-k", arg, 0, 1e9);
        break;
    case 'p':
        a.how.top_p = number(s, "--top-p", arg, 1e-9, 1);
        break;
    case 'm':
        a.how.min_p = number(s, "--min-p", arg, 0, 1);
        break;
    case 'r':
        a.how.repetition_penalty = number(s, "--repetition-penalty", arg, 1e-6, 1e6);
        break;
    case 's':
        a.how.seed = (uint64_t)integer(s, "--seed", arg, 0, 9e15);
        break;
    case 'c':
        a.samples = integer(s, "--samples", arg, 1, 1e6);
        break;
    case 'e':
        a.to_end = true;
        break;
    case 'b':
        a.best = true;
        break;
    case 'j':
        a.threads = integer(s, "--threads", arg, 1, 1024);
        break;
    case ARGP_KEY_ARG:
        if (!a.run)
            a.run = arg;
        else if (!a.prompt)
            a.prompt = arg;
        else
            argp_error(s, "one prompt only; put quotes around it");
        break;
    case ARGP_KEY_NO_ARGS:
        argp_error(s, "which run?");
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

typedef struct stream {
    const tp_tokenizer *tokenizer;
    tp_decoder decoder;
    char *bytes;
    int32_t stop;
} stream;

static bool show(void *arg, int32_t id) {
    stream *s = arg;
    if (id == s->stop) return false;
    size_t n = tp_decoder_push(&s->decoder, s->tokenizer, id, s->bytes);
    if (fwrite(s->bytes, 1, n, stdout) != n || fflush(stdout)) return false;
    return !tp_interrupted();
}

static tp_status write_text(tp_run *r, stream *s, int32_t *ids, int64_t n_prompt, int64_t sample) {
    tp_generate_opts o = {.sampling = a.how,
                          .max_new_tokens = a.tokens,
                          .stop = s->stop,
                          .sample = (uint32_t)sample,
                          .token = show,
                          .arg = s};
    int64_t n = n_prompt;
    s->decoder = (tp_decoder){0};
    fputs(a.prompt ? a.prompt : "", stdout);
    tp_status st = tp_generate(r->c, r->trainer.model, &o, ids, &n);
    size_t left = tp_decoder_flush(&s->decoder, s->bytes);
    fwrite(s->bytes, 1, left, stdout);
    fputc('\n', stdout);
    if (!st && (ferror(stdout) || fflush(stdout)))
        st = tp_fail(r->c, TP_EIO, "cannot write to standard output: %s", strerror(errno));
    return st;
}

static tp_status generate(tp_run *r) {
    tp_ctx *c = r->c;
    tp_encoder *encoder = NULL;
    tp_ids ids = {0};
    int32_t eos = tp_tokenizer_eos(r->tokenizer);
    stream s = {.tokenizer = r->tokenizer,
                .stop = a.to_end ? -1 : eos,
                .bytes = tp_malloc(c, (size_t)tp_tokenizer_longest(r->tokenizer) + 8)};
    int32_t *room = NULL;
    const char *prompt = a.prompt ? a.prompt : "";
    tp_status st = s.bytes ? tp_encoder_new(&encoder, c, r->tokenizer, NULL) : tp_error_status(c);
    if (!st) st = tp_encode(&ids, encoder, prompt, (int64_t)strlen(prompt));
    int64_t n = ids.n ? ids.n : 1;
    if (!st && !ids.n && eos < 0)
        st = tp_fail(c, TP_EARG,
                     "this tokenizer has no end-of-text token to begin with: give a prompt");
    if (!st && !(room = tp_malloc(c, (size_t)(n + a.tokens) * sizeof *room)))
        st = tp_error_status(c);
    for (int64_t i = 0; i < a.samples && !st && !tp_interrupted(); i++) {
        if (ids.n)
            memcpy(room, ids.data, (size_t)n * sizeof *room);
        else
            room[0] = eos;
        if (i) fputs("\n", stdout);
        st = write_text(r, &s, room, n, i);
    }
    tp_free(room);
    tp_free(s.bytes);
    tp_ids_clear(&ids);
    tp_encoder_free(encoder);
    return st ? st : tp_interrupted() ? TP_EINTERRUPT : TP_OK;
}

int cmd_generate(int argc, char **argv) {
    const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "RUN [PROMPT]",
        .doc = "Writes text with a run's newest checkpoint (RUN may also be a checkpoint file), "
               "after the "
               "prompt or from the beginning of a text. The same arguments give the same text."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    tp_catch_signals();
    tp_ctx *c;
    tp_status st = tp_ctx_new(&c, &(tp_ctx_opts){.threads = (int)a.threads});
    if (st) return tp_say_failure(argv[0], NULL, st);
    tp_run r;
    st = tp_run_open(&r, c, a.run, a.best);
    if (!st) st = generate(&r);
    int code = st ? tp_say_failure(argv[0], c, st) : EXIT_DONE;
    tp_run_close(&r);
    tp_ctx_free(c);
    return code;
}
