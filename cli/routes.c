/* tapir routes: which tokens of a text the routed layers of a run take. */
#include "cli/routes.h"
#include "cli/cli.h"
#include "data/text.h"
#include "data/textsource.h"
#include "data/sft.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_TOKENS = 1024, USUAL_TOKENS = 256 }; /* of a picture */

static struct args {
    tp_run_args run;
    const char *text, *file, *out;
    int64_t tokens; /* 0: not said */
    bool json;
} a;

static const struct argp_option options[] = {
    {"file", 'f', "FILE", 0, "Take the text from the beginning of FILE (-: standard input)", 0},
    {"tokens", 'n', "N", 0,
     "Take the first N tokens (of the run's corpus: 256, or its context if that is less; of a "
     "text: "
     "all, which must fit)",
     0},
    {"out", 'o', "FILE", 0, "Where the picture goes (routes.svg; with --json: no picture)", 0},
    {"json", 'J', NULL, 0,
     "Instead of the table, a JSON line for each token and routed layer: token, id, text, layer, "
     "logit, "
     "chosen, causal",
     0},
    TP_RUN_OPTIONS,
    {0}};

static error_t parse(int key, char *arg, struct argp_state *s) {
    switch (key) {
    case 'f':
        a.file = arg;
        break;
    case 'n':
        a.tokens = tp_integer_arg(s, "--tokens", arg, 1, MOST_TOKENS);
        break;
    case 'o':
        a.out = arg;
        break;
    case 'J':
        a.json = true;
        break;
    case ARGP_KEY_ARG:
        if (!a.run.path)
            a.run.path = arg;
        else if (!a.text)
            a.text = arg;
        else
            argp_error(s, "one text only; put quotes around it");
        break;
    case ARGP_KEY_END:
        if (!a.run.path) argp_error(s, "which run?");
        if (a.text && a.file) argp_error(s, "a text or --file, not both");
        break;
    default:
        return tp_run_option(&a.run, key, arg, s);
    }
    return 0;
}

/* ---- the text ------------------------------------------------------------------------------- */
static tp_status encode(tp_ids *ids, tp_run *r, const char *text, int64_t n) {
    tp_encoder *encoder = NULL;
    tp_status st = tp_encoder_new(&encoder, r->c, r->tokenizer, NULL);
    if (!st) st = tp_encode_begin(ids, encoder);
    if (!st) st = tp_encode(ids, encoder, text, n);
    tp_encoder_free(encoder);
    return st;
}

/* The first piece of its first document holds more than a picture does. */
static tp_status read_file(tp_ids *ids, tp_run *r) {
    tp_text_source *s = NULL;
    tp_text_piece piece = {0};
    bool more = false;
    tp_status st =
        tp_text_open(&s, r->c, &a.file, 1, &(tp_text_opts){.interrupted = tp_interrupted});
    if (!st) st = tp_text_next(s, r->c, &piece, &more);
    if (!st) st = encode(ids, r, piece.bytes, piece.n);
    tp_text_close(s);
    return st;
}

/* Rows of documents are trained on apart, so there the first one is the text. */
static tp_status read_corpus(tp_ids *ids, tp_run *r, int64_t most) {
    const char *path = r->cfg.data.val;
    tp_corpus *co = NULL;
    if (!*path) return tp_fail(r->c, TP_EARG, "this run has no data.val: give a text");
    if (tp_sft_is(path))
        return tp_fail(r->c, TP_EARG, "%s holds conversations and no running text: give a text",
                       path);
    tp_status st = tp_corpus_open(&co, r->c, path);
    if (!st) st = tp_same_tokenizer(r->c, r->tokenizer, co);
    if (st) goto done;
    int64_t n = r->cfg.data.packing == TP_CFG_DOCUMENTS ? tp_corpus_offsets(co)[1]
                                                        : tp_corpus_get_info(co)->tokens;
    if (n > most) n = most;
    ids->data = tp_malloc(r->c, (size_t)n * sizeof *ids->data);
    st = ids->data ? tp_corpus_read(co, r->c, 0, n, ids->data) : tp_error_status(r->c);
    ids->n = n;
done:
    tp_corpus_close(co);
    return st;
}

static tp_status read_text(tp_ids *ids, tp_run *r) {
    int64_t context = r->cfg.model.context;
    bool given = a.text || a.file;
    int64_t most = context < MOST_TOKENS ? context : MOST_TOKENS;
    if (a.tokens > context)
        return tp_fail(r->c, TP_EARG, "--tokens %lld: the context of this model is %lld tokens",
                       (long long)a.tokens, (long long)context);
    int64_t n = a.tokens ? a.tokens : given || most < USUAL_TOKENS ? most : USUAL_TOKENS;
    tp_status st = a.text   ? encode(ids, r, a.text, (int64_t)strlen(a.text))
                   : a.file ? read_file(ids, r)
                            : read_corpus(ids, r, n);
    if (!st && ids->n > n && !a.tokens)
        st = tp_fail(r->c, TP_EARG,
                     "the text has more tokens than %s, %lld: --tokens %lld takes its beginning",
                     n == context ? "the context of this model" : "a picture holds", (long long)n,
                     (long long)n);
    if (ids->n > n) ids->n = n;
    return st;
}

/* ---- what there is to say -------------------------------------------------------------------- */
static void print_table(const tp_routes *r, const tp_model_cfg *f) {
    printf("layer  top-k    causal   agree    mean logit\n");
    for (int64_t i = 0; i < r->blocks; i++) {
        tp_route_summary s = tp_routes_summary(r, i);
        printf("%5d  %5.1f %%  %5.1f %%  %5.1f %%  %+.3f\n", (int)r->layer[i], 100 * s.chosen,
               100 * s.decided, 100 * s.agree, s.mean);
    }
    printf("%lld tokens, capacity %g", (long long)r->tokens, f->mod.capacity);
    if (r->tokens > 1) /* else there is nothing to predict */
        printf("; loss %.4f nats per token with top-k, %.4f with causal decisions", r->loss,
               r->loss_causal);
    putchar('\n');
}

static tp_status print_json(tp_run *r, const tp_routes *o, const int32_t *ids) {
    tp_str t;
    tp_str_init(&t, r->c);
    for (int64_t i = 0; i < o->tokens; i++)
        for (int64_t b = 0; b < o->blocks; b++) {
            int64_t at = b * o->tokens + i;
            size_t n;
            const char *text = (const char *)tp_tokenizer_token(r->tokenizer, ids[i], &n);
            tp_str_printf(&t, "{\"token\":%lld,\"id\":%d,\"text\":", (long long)i, (int)ids[i]);
            tp_str_json_n(&t, text ? text : "", n);
            tp_str_printf(&t, ",\"layer\":%d,\"logit\":", (int)o->layer[b]);
            if (isfinite(o->logit[at]))
                tp_str_printf(&t, "%.9g", (double)o->logit[at]);
            else
                tp_str_puts(&t, "null");
            tp_str_printf(&t, ",\"chosen\":%s,\"causal\":%s}\n", o->chosen[at] ? "true" : "false",
                          o->decided[at] ? "true" : "false");
        }
    tp_status st = t.failed ? tp_error_status(r->c) : TP_OK;
    if (!st) fwrite(t.at, 1, t.len, stdout);
    tp_str_clear(&t);
    return st;
}

static tp_status draw(tp_run *r, const tp_routes *o, const int32_t *ids) {
    const char *path = a.out ? a.out : "routes.svg";
    const tp_model_cfg *f = tp_model_config(r->trainer.model);
    char about[1024], quoted[512];
    snprintf(about, sizeof about,
             "%s, step %lld: %lld of %lld layers are routed and take %lld of %lld tokens",
             tp_quote(quoted, sizeof quoted, a.run.path, strlen(a.run.path)), (long long)r->step,
             (long long)o->blocks, (long long)f->layers, (long long)tp_mod_tokens(f, o->tokens),
             (long long)o->tokens);
    routes_picture p = {.title = "Mixture-of-Depths: the tokens that each routed layer takes",
                        .subtitle = about,
                        .routes = o,
                        .model = f,
                        .tokenizer = r->tokenizer,
                        .ids = ids};
    FILE *to = fopen(path, "w");
    if (!to) return tp_fail(r->c, TP_EIO, "cannot write %s: %s", path, strerror(errno));
    const char *wrong = routes_draw(&p, to);
    if (fclose(to) && !wrong) wrong = strerror(errno);
    if (wrong) return tp_fail(r->c, TP_EIO, "%s: %s", path, wrong);
    if (!a.json) printf("%s\n", path);
    return TP_OK;
}

static tp_status routes(tp_run *r) {
    const tp_model_cfg *f = tp_model_config(r->trainer.model);
    tp_ids ids = {0};
    tp_routes o = {0};
    tp_status st = TP_OK;
    if (!tp_trainer_routes(&r->trainer))
        return tp_fail(r->c, TP_EARG, "%s has no routed layers (its mod.capacity is 0)",
                       a.run.path);
    st = read_text(&ids, r);
    if (!st) st = tp_routes_find(&o, r->c, r->trainer.model, ids.data, ids.n);
    if (!st && a.json)
        st = print_json(r, &o, ids.data);
    else if (!st)
        print_table(&o, f);
    if (!st && (a.out || !a.json)) st = draw(r, &o, ids.data);
    if (!st && (ferror(stdout) || fflush(stdout)))
        st = tp_fail(r->c, TP_EIO, "cannot write to standard output: %s", strerror(errno));
    tp_routes_clear(&o);
    tp_ids_clear(&ids);
    return st;
}

int cmd_routes(int argc, char **argv) {
    const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "RUN [TEXT]",
        .doc = "Shows which tokens of a text the routed layers of a run take (Mixture-of-Depths; a "
               "model with mod.capacity above 0): a table, and a picture that every browser shows, "
               "with a column for each token and a row for each layer. Two forward passes are "
               "looked at: top-k takes the tokens with the highest logits of the row, as in "
               "training; causal decides for each token from that token alone, as generating "
               "does. `agree` is the part of the tokens of which both say the same. Without TEXT: "
               "the beginning of the run's data.val."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    return tp_with_run(argv[0], &a.run, routes);
}
