/* tapir tape: the computation of one training step, forward and backward, as it was recorded: as
 * text, as a picture, or as a page that steps through it. */
#include "cli/tape.h"
#include "cli/source.h"
#include "core/ctx.h"
#include "data/files.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Values are shown of steps that take no more than this; the page keeps about so many numbers. */
enum { VALUES_MB = 256, VALUES_CALLS = 10000, VALUES_IN_ALL = 200000, VALUES_LEAST = 16 };

static char *words[256], *svg, *dot, *html;
static int n_words;
static const struct argp_option options[] = {
    {"svg", 's', "FILE", 0,
     "Draw the step: forward goes down, backward comes up beside it, and what is kept for it "
     "stands "
     "between. Blocks alike are drawn once where a model has many",
     0},
    {"html", 'w', "FILE", 0,
     "Write a page, one file that needs no network, which steps through forward and backward: "
     "values, gradients as they grow, what is kept, memory, the formula of each operation. Values "
     "are of a real step on the CPU, with the weights as training begins and the first rows of "
     "data.train (random tokens where it names none); of steps that take more than 256 MB, or "
     "10000 operations, shapes "
     "alone are shown",
     0},
    {"dot", 'd', "FILE", 0, "Write the graph for Graphviz, blocks as clusters", 0},
    {0}};

static error_t parse(int key, char *arg, struct argp_state *s) {
    if (key == 's')
        svg = arg;
    else if (key == 'w')
        html = arg;
    else if (key == 'd')
        dot = arg;
    else if (key == ARGP_KEY_ARG && n_words < 256)
        words[n_words++] = arg;
    else if (key == ARGP_KEY_ARG)
        argp_error(s, "too many arguments");
    else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

static void print(void *arg, const char *line) {
    (void)arg;
    puts(line);
}

/* ---- the rows ------------------------------------------------------------------------------- */
typedef struct rows {
    tp_tokenizer *tokenizer;
    tp_source source;
    tp_rows from;
    tp_fake_batch fake;
    tp_batch batch;
    int64_t targets; /* of the whole batch */
    const char **piece;
} rows;

static tp_status fake_rows(rows *r, tp_ctx *c, const tp_config *cfg) {
    r->fake = (tp_fake_batch){
        .of = tp_share_of(cfg, 0, 1), .T = cfg->model.context, .vocab = cfg->model.vocab};
    r->targets = cfg->train.batch * cfg->model.context;
    tp_status st = c->meta ? TP_OK : tp_fake_fill(&r->fake, c);
    return st ? st : tp_fake_next(&r->fake, c, &r->batch);
}

static tp_status read_rows(rows *r, tp_ctx *c, const tp_config *cfg) {
    tp_share share = tp_share_of(cfg, 0, 1);
    tp_config f = *cfg;
    f.data.prefetch = false;
    tp_status st = tp_begin_tokenizer(&r->tokenizer, c, &f, NULL);
    if (!st) st = tp_source_open(&r->source, c, &f, f.data.train, r->tokenizer);
    if (!st) st = tp_rows_open(&r->from, c, &r->source, &f, &share, 0);
    if (!st) st = tp_rows_count_targets(&r->from, c, 0, f.train.batch, &r->targets);
    if (!st) st = tp_rows_next(&r->from, c, &r->batch);
    if (!st && r->targets < 1)
        st = tp_fail(c, TP_EARG, "none of the first batch's tokens has a target");
    return st;
}

/* What each id of the rows stands for; bytes that are no UTF-8 by themselves stay out. */
static tp_status read_pieces(rows *r, tp_ctx *c, const tp_config *cfg) {
    int64_t n = r->batch.rows * cfg->model.context;
    if (!(r->piece = tp_arena_alloc(c, (size_t)n * sizeof *r->piece))) return tp_error_status(c);
    for (int64_t i = 0; i < n; i++) {
        char *text = NULL;
        size_t bytes;
        tp_status st = tp_decode(&text, &bytes, c, r->tokenizer, &r->batch.inputs[i], 1);
        if (st) return st;
        r->piece[i] = tp_arena_printf(c, "%s", text);
        tp_free(text);
    }
    return tp_error_status(c);
}

static void close_rows(rows *r) {
    tp_rows_close(&r->from);
    tp_source_close(&r->source);
    tp_tokenizer_free(r->tokenizer);
    tp_free(r->fake.ids);
}

/* ---- a step --------------------------------------------------------------------------------- */
typedef struct step {
    tp_ctx *c;
    tp_trainer t;
    rows r;
    tape_log log;
} step;

static tp_status begin(step *s, const tp_config *cfg, bool meta) {
    tp_ctx_opts o = tp_ctx_opts_of(cfg);
    o.device = TP_CPU; /* where the numbers can be looked at */
    o.meta = meta;
    o.memory_limit = meta ? (size_t)1 << 50 : 0;
    tp_status st = tp_ctx_new(&s->c, &o);
    if (!st) st = tp_trainer_check_split(s->c, cfg, 1);
    if (!st) st = tp_trainer_model(&s->t, s->c, cfg);
    return st;
}

/* Shapes only. */
static tp_status shapes(step *s, const tp_config *cfg) {
    tp_status st = begin(s, cfg, true);
    if (!st) st = fake_rows(&s->r, s->c, cfg);
    return st ? st : tape_log_step(&s->log, &s->t, &s->r.batch, s->r.targets);
}

/* Values too; `like`: the same step without them. */
static tp_status values(step *s, const tp_config *cfg, const tape_log *like) {
    int most = VALUES_IN_ALL / (like->n_writes + 1);
    s->log.keep = true;
    s->log.whole = most > TAPE_WHOLE ? TAPE_WHOLE : most < VALUES_LEAST ? VALUES_LEAST : most;
    tp_status st = begin(s, cfg, false);
    if (!st) st = tp_begin_weights(s->c, cfg, tp_model_params(s->t.model));
    if (!st) st = *cfg->data.train ? read_rows(&s->r, s->c, cfg) : fake_rows(&s->r, s->c, cfg);
    if (!st) st = tape_log_step(&s->log, &s->t, &s->r.batch, s->r.targets);
    return st || !s->r.tokenizer ? st : read_pieces(&s->r, s->c, cfg);
}

static void end(step *s) {
    if (!s->c) return;
    tape_log_free(&s->log);
    close_rows(&s->r);
    tp_step_end(s->c);
    tp_trainer_clear(&s->t);
    tp_ctx_free(s->c);
}

/* ---- what is made of it --------------------------------------------------------------------- */
static FILE *open_file(tp_ctx *c, const char *path) {
    FILE *f = fopen(path, "w");
    if (!f) tp_fail(c, TP_EIO, "cannot write %s: %s", path, strerror(errno));
    return f;
}

static tp_status close_file(tp_ctx *c, FILE *f, const char *path) {
    bool bad = ferror(f);
    if (fclose(f) || bad) tp_fail(c, TP_EIO, "cannot write %s: %s", path, strerror(errno));
    if (!tp_error_status(c)) puts(path);
    return tp_error_status(c);
}

static tp_status draw(step *s, const char *path, const char *title,
                      void (*fn)(const tape_log *, FILE *, const char *)) {
    FILE *f = path ? open_file(s->c, path) : NULL;
    if (!f) return tp_error_status(s->c);
    fn(&s->log, f, title);
    return close_file(s->c, f, path);
}

static tp_status write_page(step *s, const tp_config *cfg, const char *title, const char *why_not) {
    FILE *f = open_file(s->c, html);
    if (!f) return tp_error_status(s->c);
    const char *from = *cfg->model.init_from ? cfg->model.init_from : "random",
               *text = *cfg->data.train ? cfg->data.train : "random tokens";
    tape_page p = {.title = title, .why_not = why_not, .piece = s->r.piece};
    if (s->r.piece) p.n_pieces = s->r.batch.rows * cfg->model.context;
    if (!why_not)
        p.weights = tp_arena_printf(s->c, "weights: %s (seed %lld); text: %s", from,
                                    (long long)cfg->seed, text);
    tape_html(&s->log, f, &p);
    return close_file(s->c, f, html);
}

/* v: where values go if they are to be shown. */
static tp_status page(step *s, step *v, const tp_config *cfg, const char *title) {
    if (s->log.peak > (size_t)VALUES_MB * 1000000 || s->log.n_calls > VALUES_CALLS)
        return write_page(s, cfg, title,
                          tp_arena_printf(s->c,
                                          "Shapes only: this step takes %.0f MB and %d operations, "
                                          "and values are shown of steps up to %d MB and %d.",
                                          (double)s->log.peak / 1e6, s->log.n_calls, VALUES_MB,
                                          VALUES_CALLS));
    tp_status st = values(v, cfg, &s->log);
    return st ? st : write_page(v, cfg, title, NULL);
}

/* What is written must not be what is read, or what was written before. */
static bool meet(const char *command) {
    const char *path[] = {words[0], svg, dot, html};
    static const char *const name[] = {"the config", "--svg", "--dot", "--html"};
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < i; j++)
            if (path[i] && path[j] && tp_same_place(path[i], path[j])) {
                tp_say(command, "%s and %s are one file, %s: give each a name of its own", name[j],
                       name[i], path[i]);
                return true;
            }
    return false;
}

static int make(const char *command, const tp_config *cfg, const char *title) {
    step s = {0}, v = {0};
    tp_status st = shapes(&s, cfg);
    if (!st && !svg && !dot && !html) tp_tape_print(s.c, print, NULL);
    if (!st) st = draw(&s, svg, title, tape_svg);
    if (!st) st = draw(&s, dot, title, tape_dot);
    if (!st && html) st = page(&s, &v, cfg, title);
    int code = st ? tp_say_failure(command, v.c ? v.c : s.c, st) : EXIT_DONE;
    end(&v);
    end(&s);
    return code;
}

int cmd_tape(int argc, char **argv) {
    const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "CONFIG [KEY=VALUE…]",
        .doc =
            "Prints every operation of one micro-batch, forward and then backward, in the order "
            "they run: result, shape, operation, operands, what it computes, and the part of the "
            "model it belongs to. Only shapes are computed, so any size of model will do. With "
            "--svg, --html or --dot the step goes to files instead."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    tp_config cfg;
    tp_ctx *c;
    if (meet(argv[0])) return EXIT_USAGE_;
    int code = tp_open_config(argv[0], &cfg, &c, words, n_words);
    if (code) return code;
    tp_status st = tp_config_vocab(c, &cfg);
    if (st) code = tp_say_failure(argv[0], c, st);
    char title[512];
    size_t n = 0;
    for (int i = 0; i < n_words && n < sizeof title; i++)
        n += (size_t)snprintf(title + n, sizeof title - n, "%s%s", i ? " " : "", words[i]);
    tp_ctx_free(c);
    return code ? code : make(argv[0], &cfg, title);
}
