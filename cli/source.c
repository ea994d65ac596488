/* Owns the choice between a corpus and conversations, and what a run begins with. */
#include "cli/source.h"
#include <string.h>
#include <sys/stat.h>

/* ---- sources -------------------------------------------------------------------------------- */
tp_chat_template tp_chat_template_of(const tp_config *f) {
    static const tp_chat_template chat[] = {[TP_CFG_PLAIN] = TP_CHAT_PLAIN,
                                            [TP_CFG_CHATML] = TP_CHAT_CHATML,
                                            [TP_CFG_ALPACA] = TP_CHAT_ALPACA,
                                            [TP_CFG_LLAMA3] = TP_CHAT_LLAMA3};
    return chat[f->data.chat_template];
}

tp_status tp_source_open(tp_source *s, tp_ctx *c, const tp_config *f, const char *path,
                         const tp_tokenizer *t) {
    *s = (tp_source){0};
    if (tp_sft_is(path))
        return tp_sft_read(&s->sft, c, path, t, tp_chat_template_of(f), f->model.context);
    tp_status st = tp_corpus_open(&s->corpus, c, path);
    return st || !t ? st : tp_same_tokenizer(c, t, s->corpus);
}

void tp_source_close(tp_source *s) {
    tp_corpus_close(s->corpus);
    tp_sft_data_free(s->sft);
    *s = (tp_source){0};
}

bool tp_source_is_open(const tp_source *s) { return s->corpus || s->sft; }

const char *tp_source_sha256(const tp_source *s) {
    return s->corpus ? tp_corpus_get_info(s->corpus)->sha256
           : s->sft  ? tp_sft_get_info(s->sft)->sha256
                     : "none";
}

/* ---- rows ----------------------------------------------------------------------------------- */
tp_status tp_rows_open(tp_rows *r, tp_ctx *c, const tp_source *s, const tp_config *f,
                       const tp_share *share, int64_t batch) {
    bool documents = f->data.packing == TP_CFG_DOCUMENTS;
    tp_share of = share ? *share : (tp_share){.rows = batch};
    *r = (tp_rows){0};
    if (s->sft) {
        tp_sft_opts o = {.batch = of.rows,
                         .period = of.period,
                         .first = of.first,
                         .share = of.share,
                         .T = f->model.context,
                         .seed = (uint64_t)f->seed,
                         .pack = documents,
                         .sequential = !share};
        return tp_sft_new(&r->sft, c, s->sft, &o);
    }
    tp_loader_opts o = {.batch = of.rows,
                        .period = of.period,
                        .first = of.first,
                        .share = of.share,
                        .T = f->model.context,
                        .seed = (uint64_t)f->seed,
                        .packing = documents ? TP_PACK_DOCUMENTS : TP_PACK_STREAM,
                        .sequential = !share,
                        .prefetch = share && f->data.prefetch};
    tp_scope name = tp_scope_open(c, "%s", tp_corpus_get_info(s->corpus)->path);
    tp_status st = tp_loader_new(&r->loader, c, s->corpus, &o);
    tp_scope_close(c, name, NULL);
    return st;
}

void tp_rows_close(tp_rows *r) {
    tp_loader_free(r->loader);
    tp_sft_free(r->sft);
    *r = (tp_rows){0};
}

tp_status tp_rows_next(void *rows, tp_ctx *c, tp_batch *out) {
    tp_rows *r = rows;
    return r->sft ? tp_sft_next(r->sft, c, out) : tp_loader_next(r->loader, c, out);
}

tp_status tp_rows_seek(tp_rows *r, tp_ctx *c, int64_t sample) {
    return r->sft ? tp_sft_seek(r->sft, c, sample) : tp_loader_seek(r->loader, c, sample);
}

tp_status tp_rows_count_targets(tp_rows *r, tp_ctx *c, int64_t first, int64_t n, int64_t *targets) {
    return r->sft ? tp_sft_count_targets(r->sft, c, first, n, targets)
                  : tp_loader_count_targets(r->loader, c, first, n, targets);
}

int64_t tp_rows_count(const tp_rows *r) {
    return r->sft ? tp_sft_rows(r->sft) : tp_loader_rows(r->loader);
}

/* ---- what a run begins with ----------------------------------------------------------------- */
static tp_status of_corpus(tp_tokenizer **out, tp_ctx *c, tp_config *f) {
    tp_corpus *co = NULL;
    tp_status st = tp_corpus_open(&co, c, f->data.train);
    if (st) return st;
    const tp_corpus_info *i = tp_corpus_get_info(co);
    st = tp_tokenizer_from_json(out, c, i->tokenizer, i->tokenizer_bytes, i->path);
    if (!st && f->model.vocab && f->model.vocab < i->vocab)
        st = tp_fail(c, TP_EARG,
                     "model.vocab is %lld, but %s has %d tokens; 0 takes the corpus' own",
                     (long long)f->model.vocab, i->path, i->vocab);
    if (!f->model.vocab) f->model.vocab = i->vocab;
    tp_corpus_close(co);
    return st;
}

static tp_status of_file(tp_tokenizer **out, tp_ctx *c, tp_config *f) {
    bool bytes = !strcmp(f->data.tokenizer, "bytes");
    tp_status st = bytes ? tp_tokenizer_new_bytes(out, c, NULL, 0)
                         : tp_tokenizer_load(out, c, f->data.tokenizer);
    if (st) return st;
    int64_t vocab = tp_tokenizer_vocab_size(*out);
    if (f->model.vocab && f->model.vocab < vocab)
        return tp_fail(c, TP_EARG, "model.vocab is %lld, but the tokenizer has %lld tokens",
                       (long long)f->model.vocab, (long long)vocab);
    if (!f->model.vocab) f->model.vocab = vocab;
    return TP_OK;
}

/* A model that was made elsewhere reads texts far longer than most are, and rows are as long. */
static void tell_context(const tp_config *f) {
    enum { LONG = 8192 };
    static const char *const key[] = {"model.context", NULL};
    char given[32];
    if (f->model.context > LONG && !tp_config_given(given, sizeof given, f, key))
        tp_progress(true,
                    "model.context is %lld, as of %s: with a smaller one (model.context=1024) rows "
                    "take less memory and time",
                    (long long)f->model.context, f->model.init_from);
}

static tp_status adopt(tp_tokenizer **out, tp_ctx *c, tp_config *f, tp_run *r) {
    tp_status st = tp_config_adopt_model(c, f, &r->cfg);
    if (st) return st;
    tell_context(f);
    *out = r->tokenizer;
    r->tokenizer = NULL;
    return TP_OK;
}

tp_status tp_begin_tokenizer(tp_tokenizer **out, tp_ctx *c, tp_config *f,
                             tp_checkpoint_reader *from) {
    *out = NULL;
    if (!*f->model.init_from)
        return tp_sft_is(f->data.train) || !*f->data.train ? of_file(out, c, f)
                                                           : of_corpus(out, c, f);
    tp_run r = {.c = c, .from = from};
    tp_status st = TP_OK;
    if (from) {
        if (!(st = tp_run_texts(&r))) st = adopt(out, c, f, &r);
        tp_tokenizer_free(r.tokenizer);
        return st;
    }
    struct stat s;
    if (stat(f->model.init_from, &s))
        return tp_fail(c, TP_EIO,
                       "model.init_from: %s: there is no such run or checkpoint yet; what makes it "
                       "comes first",
                       f->model.init_from);
    if (!S_ISDIR(s.st_mode) && !S_ISREG(s.st_mode))
        return tp_fail(c, TP_EARG,
                       "model.init_from: %s is neither the folder of a run nor a checkpoint file",
                       f->model.init_from);
    st = tp_run_peek(&r, c, f->model.init_from, false);
    if (!st) st = adopt(out, c, f, &r);
    tp_run_close(&r);
    return st;
}

/* A run without LoRA has no adapters: they begin as the model made them, adding nothing. */
static tp_status load_base(tp_ctx *c, tp_checkpoint_reader *from, const tp_params *p) {
    tp_params base = {.p = tp_calloc(c, (size_t)p->n + 1, sizeof *base.p), .cap = p->n};
    if (!base.p) return tp_error_status(c);
    for (int i = 0; i < p->n; i++)
        if (!(p->p[i].flags & TP_P_LORA)) base.p[base.n++] = p->p[i];
    tp_status st = tp_load_weights(c, from, &base, "weights");
    tp_free(base.p);
    return st;
}

tp_status tp_begin_weights(tp_ctx *c, const tp_config *f, tp_params *p) {
    if (!*f->model.init_from) return TP_OK;
    tp_run r;
    tp_status st = tp_run_peek(&r, c, f->model.init_from, false);
    if (!st) st = r.cfg.lora.r ? tp_load_weights(c, r.from, p, "weights") : load_base(c, r.from, p);
    tp_run_close(&r);
    return st;
}

tp_status tp_begin_check(tp_ctx *c, const tp_config *f) {
    char at[TP_CONFIG_TEXT + 64];
    if (!f->lora.r || *f->model.init_from) return TP_OK;
    return tp_fail(c, TP_EARG,
                   "%s: adapters learn beside weights that stay as they are, and these would be "
                   "random: set model.init_from",
                   tp_config_where(at, sizeof at, f, "lora.r"));
}
