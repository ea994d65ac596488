/* tapir prepare: text in, corpus out. */
#include "cli/cli.h"
#include "data/files.h"
#include "data/prepare.h"
#include "data/textsource.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static struct args {
    char *text[4096], *out, *val, *tokenizer, *pattern, *key, *split;
    int n_text;
    int64_t vocab, threads;
    double val_fraction;
    int deflate;
    tp_text_format format;
    bool force;
} a = {.val_fraction = -1};

enum { KEY_FORMAT = 256, KEY_KEY, KEY_SPLIT, KEY_DEFLATE, KEY_PATTERN, KEY_FRACTION };
static const struct argp_option options[] = {
    {"out", 'o', "FILE", 0, "The corpus to write (HDF5)", 0},
    {"val", 'l', "FILE", 0, "Hold out the end of the text into this corpus", 0},
    {"val-fraction", KEY_FRACTION, "X", 0, "How much of the text's bytes --val holds out (0.1)", 0},
    {"vocab", 'v', "N", 0, "Train a byte-level BPE tokenizer of N tokens (4096)", 0},
    {"tokenizer", 't', "FILE", 0,
     "Use this tokenizer, without training one: a Hugging Face tokenizer.json, or \"bytes\"", 0},
    {"pattern", KEY_PATTERN, "NAME", 0, "How text is cut before merging: gpt2 or cl100k (gpt2)", 0},
    {"format", KEY_FORMAT, "NAME", 0, "plain, jsonl, or auto: by the file's name (auto)", 0},
    {"json-key", KEY_KEY, "KEY", 0, "JSON lines: the key of the text (text)", 0},
    {"split-documents", KEY_SPLIT, "LINE", 0,
     "Plain text: a document ends at a line that is exactly LINE; \"\" means a blank line. Without "
     "it a "
     "file is one document",
     0},
    {"deflate", KEY_DEFLATE, "N", 0, "Compress the corpus, 0 (off) to 9", 0},
    {"force", 'f', NULL, 0, "Replace a corpus that is already there", 0},
    {"threads", 'j', "N", 0, "Threads (all cores)", 0},
    {0}};

static double fraction(struct argp_state *s, const char *text) {
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || !(v > 0 && v < 1))
        argp_error(s, "--val-fraction must be above 0 and below 1, got \"%s\"", text);
    return v;
}

static tp_text_format format(struct argp_state *s, const char *text) {
    if (!strcmp(text, "plain")) return TP_TEXT_PLAIN;
    if (!strcmp(text, "jsonl")) return TP_TEXT_JSONL;
    if (strcmp(text, "auto")) argp_error(s, "--format is plain, jsonl or auto, got \"%s\"", text);
    return TP_TEXT_BY_NAME;
}

static void finish(struct argp_state *s) {
    if (!a.n_text) argp_error(s, "which text? give files, folders, or - for standard input");
    if (!a.out) argp_error(s, "--out FILE is needed: where shall the corpus go?");
    if (a.val_fraction > 0 && !a.val) argp_error(s, "--val-fraction needs --val FILE");
    if (a.val && a.val_fraction < 0) a.val_fraction = 0.1;
    if (a.val && tp_same_place(a.val, a.out)) argp_error(s, "--val and --out must differ");
    if (a.tokenizer && (a.vocab || a.pattern))
        argp_error(s, "--%s is for a tokenizer that is trained, and --tokenizer names one",
                   a.vocab ? "vocab" : "pattern");
    if (a.key && a.format == TP_TEXT_PLAIN)
        argp_error(s, "--json-key is for JSON lines, and --format plain says that there are none");
    if (a.split && a.format == TP_TEXT_JSONL)
        argp_error(s, "--split-documents is for plain text; each of the JSON lines is a document");
    if (!a.vocab) a.vocab = 4096;
    if (!a.pattern) a.pattern = "gpt2";
}

static error_t parse(int key, char *arg, struct argp_state *s) {
    switch (key) {
    case 'o':
        a.out = arg;
        break;
    case 'l':
        a.val = arg;
        break;
    case KEY_FRACTION:
        a.val_fraction = fraction(s, arg);
        break;
    case 'v':
        a.vocab = tp_integer_arg(s, "--vocab", arg, 257, 1 << 24);
        break;
    case 't':
        a.tokenizer = arg;
        break;
    case KEY_PATTERN:
        a.pattern = arg;
        break;
    case KEY_FORMAT:
        a.format = format(s, arg);
        break;
    case KEY_KEY:
        a.key = arg;
        break;
    case KEY_SPLIT:
        a.split = arg;
        break;
    case KEY_DEFLATE:
        a.deflate = (int)tp_integer_arg(s, "--deflate", arg, 0, 9);
        break;
    case 'f':
        a.force = true;
        break;
    case 'j':
        a.threads = tp_integer_arg(s, "--threads", arg, 1, 1024);
        break;
    case ARGP_KEY_ARG:
        if (a.n_text == 4096) argp_error(s, "more than 4096 inputs: name a folder instead");
        a.text[a.n_text++] = arg;
        break;
    case ARGP_KEY_END:
        finish(s);
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

typedef struct bar {
    const char *what;
    double since;
    const tp_text_source *src;
} bar;

static bool progress(void *arg, double f, const char *what) {
    bar *b = arg;
    char left[32], rate[32], drawn[31];
    if (!b->what || strcmp(b->what, what)) {
        b->what = what;
        b->since = tp_now();
    }
    double took = tp_now() - b->since;
    int full = (int)(30 * f);
    for (int i = 0; i < 30; i++) drawn[i] = i < full ? '#' : '.';
    drawn[30] = 0;
    double bytes = f * (double)tp_text_get_counts(b->src).bytes;
    tp_progress(false, "%-20.20s %s %3.0f %%  %sB/s  %s left", what, drawn, 100 * f,
                tp_count(rate, took > 0 ? bytes / took : 0),
                tp_duration(left, f > 0 ? took * (1 - f) / f : 0));
    return !tp_interrupted();
}

static tp_status refuse_existing(tp_ctx *c, const char *path) {
    struct stat s;
    tp_status st = path ? tp_may_replace(c, path) : TP_OK;
    if (st || !path || a.force || lstat(path, &s)) return st;
    return tp_fail(c, TP_EARG, "%s is already there; --force replaces it", path);
}

/* An option for a kind of file of which there is none has been misunderstood. */
static tp_status refuse_unread(tp_ctx *c, const tp_text_source *src) {
    tp_text_counts n = tp_text_get_counts(src);
    if (a.key && !n.json_lines)
        return tp_fail(c, TP_EARG,
                       "--json-key is for JSON lines, and no file's name ends in .jsonl or .ndjson "
                       "(--format jsonl reads any file so)");
    if (a.split && n.json_lines == n.files)
        return tp_fail(
            c, TP_EARG,
            "--split-documents is for plain text, and all files are JSON lines, of which "
            "each is a document");
    return TP_OK;
}

static tp_status tokenizer(tp_ctx *c, tp_tokenizer **t) {
    if (!a.tokenizer) return TP_OK;
    if (!strcmp(a.tokenizer, "bytes")) return tp_tokenizer_new_bytes(t, c, NULL, 0);
    return tp_tokenizer_load(t, c, a.tokenizer);
}

/* What the corpus was made from, a line each. */
static char *sources(tp_ctx *c) {
    size_t n = 1;
    for (int i = 0; i < a.n_text; i++) n += strlen(a.text[i]) + 1;
    char *s = tp_malloc(c, n), *at = s;
    for (int i = 0; i < a.n_text && s; i++) at += sprintf(at, "%s\n", a.text[i]);
    if (s) *at = 0;
    return s;
}

static void report(const char *path, const tp_prepare_part *p) {
    printf("%-24s %lld token%s, %lld document%s, %lld bytes (%.3f bytes per token)\n", path,
           (long long)p->tokens, p->tokens == 1 ? "" : "s", (long long)p->docs,
           p->docs == 1 ? "" : "s", (long long)p->bytes,
           p->tokens ? (double)p->bytes / (double)p->tokens : 0.0);
}

int cmd_prepare(int argc, char **argv) {
    const struct argp argp = {.options = options,
                              .parser = parse,
                              .args_doc = "TEXT…",
                              .doc = "Turns text (files, folders, JSON lines, - for standard "
                                     "input) into a corpus of tokens: "
                                     "trains a byte-level BPE tokenizer on it or takes a given "
                                     "one, and encodes every document."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    tp_catch_signals();
    tp_ctx *c;
    tp_ctx_opts no_tensors = {.meta = true, .threads = (int)a.threads};
    tp_status st = tp_ctx_new(&c, &no_tensors);
    if (st) return tp_say_failure(argv[0], NULL, st);
    double start = tp_now();
    bar b = {0};
    char took[32];
    tp_tokenizer *t = NULL;
    tp_text_source *src = NULL;
    tp_prepare_result r;
    char *names = sources(c);
    if (!(st = refuse_existing(c, a.out))) st = refuse_existing(c, a.val);
    if (!st) st = tokenizer(c, &t);
    if (!st)
        st = tp_text_open(&src, c, (const char *const *)a.text, a.n_text,
                          &(tp_text_opts){.format = a.format,
                                          .json_key = a.key,
                                          .split_line = a.split,
                                          .interrupted = tp_interrupted});
    if (!st) st = refuse_unread(c, src);
    tp_prepare_opts o = {.tokenizer = t,
                         .bpe = {.vocab_size = a.vocab, .pattern = a.pattern},
                         .val_fraction = a.val ? a.val_fraction : 0,
                         .deflate = a.deflate,
                         .sources = names,
                         .progress = progress,
                         .progress_arg = &b};
    b.src = src;
    if (!st) st = tp_prepare(&r, c, src, a.out, a.val, &o);
    tp_progress_clear();
    int code = st ? tp_say_failure(argv[0], c, st) : EXIT_DONE;
    if (!code) {
        tp_text_counts n = tp_text_get_counts(src);
        if (n.not_text)
            fprintf(stderr, "note: %lld file%s left out because not text, e.g. %s\n",
                    (long long)n.not_text, n.not_text == 1 ? "" : "s", n.first_not_text);
        report(a.out, &r.train);
        if (a.val) report(a.val, &r.val);
        printf("vocabulary of %lld; %s in all\n", (long long)r.vocab,
               tp_duration(took, tp_now() - start));
    }
    tp_text_close(src);
    tp_tokenizer_free(t);
    tp_free(names);
    tp_ctx_free(c);
    return code;
}
