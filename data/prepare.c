/* The prepare pipeline: count (only to hold out a part), train the tokenizer, encode and write. */
#include "data/prepare.h"
#include "data/files.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { BATCH_BYTES = 8 << 20, BATCH_TEXTS = 4096 }; /* encoded at once, in parallel */
enum { PATH_CAP = 4096 };

/* Text on its way, with the train/val border drawn in. */
typedef struct reader {
    tp_text_source *src;
    int64_t cut;      /* byte of the text where validation begins; -1: nowhere. In the last
                         document it is a border; else what begins there or later is held out */
    int64_t last_doc; /* number of the last document, from 0 */
    int64_t pos, doc; /* bytes handed out; documents begun */
    bool in_val;
    tp_text_piece rest; /* n > 0: the validation half of a piece that was cut */
    bool begin_next;    /* the cut fell between two pieces */
} reader;

typedef struct part {
    tp_corpus_writer *writer;
    tp_prepare_part *result;
    int64_t doc_bytes;
} part;

typedef struct job {
    tp_ctx *c;
    const tp_prepare_opts *opts;
    tp_prepare_result *result;
    reader in;
    tp_tokenizer *trained;
    const tp_tokenizer *tok;
    int32_t eos;
    int32_t *id_bytes;
    part train, val;

    /* the batch on its way to the encoder */
    tp_encoder *encoder;
    char *bytes; /* all texts, one after the other */
    int64_t n_bytes, cap_bytes, n_texts;
    tp_text *text;
    tp_text_piece *piece; /* name, begins, ends; bytes unused */
    bool *is_val;
    int64_t *ends;
    tp_ids ids;
} job;

static tp_status report(job *j, double fraction, const char *what) {
    if (!j->opts->progress || j->opts->progress(j->opts->progress_arg, fraction, what))
        return TP_OK;
    return tp_fail(j->c, TP_EINTERRUPT, "prepare: stopped while %s", what);
}

static tp_status report_bytes(job *j, const char *what) {
    tp_text_counts n = tp_text_get_counts(j->in.src);
    return report(j, n.bytes ? (double)n.bytes_done / (double)n.bytes : 1, what);
}

/* ---- the border between training and validation --------------------------------------------- */

static void reader_rewind(reader *r) {
    tp_text_rewind(r->src);
    r->pos = r->doc = 0;
    r->in_val = r->begin_next = false;
    r->rest.n = 0;
}

static tp_status reader_next(reader *r, tp_ctx *c, tp_text_piece *p, bool *is_val, bool *more) {
    if (r->rest.n) {
        *p = r->rest;
        r->rest.n = 0;
        *is_val = *more = true;
        return TP_OK;
    }
    tp_status st = tp_text_next(r->src, c, p, more);
    if (st || !*more) return st;
    int64_t start = r->pos;
    r->pos += p->n;
    r->doc += p->begins;
    if (r->begin_next) p->begins = true;
    r->begin_next = false;
    if (r->cut >= 0 && p->begins && start >= r->cut) r->in_val = true;
    *is_val = r->in_val;
    if (r->cut <= start || r->in_val || r->doc - 1 != r->last_doc || r->pos < r->cut) return TP_OK;
    int64_t at = r->cut - start;
    if (at == p->n && p->ends) return TP_OK;
    r->in_val = true; /* from here on; this half still trains */
    r->rest = *p;
    r->rest.bytes += at;
    r->rest.n -= at;
    r->rest.begins = true;
    r->begin_next = !r->rest.n;
    p->n = at;
    p->ends = true;
    return TP_OK;
}

/* Where to cut the last document near r->cut: after the next line end, else after the last one
 * before, else between characters. The document's own ends do not count: they leave nothing. */
static tp_status find_border(job *j, int64_t doc_start) {
    reader *r = &j->in;
    tp_text_piece p;
    bool is_val, more = true;
    int64_t want = r->cut, after = -1, before = -1, between = want;
    r->cut = -1; /* read all as one part */
    reader_rewind(r);
    for (;;) {
        tp_status st = reader_next(r, j->c, &p, &is_val, &more);
        if (st) return st;
        if (!more) break;
        int64_t start = r->pos - p.n;
        if (start <= want && want < r->pos)
            between = start + tp_text_char_start(p.bytes, p.n, want - start);
        if (r->pos <= doc_start || after >= 0) continue;
        for (int64_t i = 1; i <= p.n && after < 0; i++) {
            if (p.bytes[i - 1] != '\n') continue;
            if (start + i < want)
                before = start + i;
            else
                after = start + i;
        }
        if ((st = report_bytes(j, "reading"))) return st;
    }
    r->cut = after >= 0 && after < r->pos ? after : before > doc_start ? before : between;
    return TP_OK;
}

/* The first pass: how much text there is, so where its last part begins. */
static tp_status place_border(job *j) {
    tp_text_piece p;
    bool is_val = false, more = true;
    int64_t doc_start = 0;
    tp_status st;
    j->in.cut = -1;
    if (j->opts->val_fraction <= 0) return TP_OK;
    reader_rewind(&j->in);
    for (;;) {
        if ((st = reader_next(&j->in, j->c, &p, &is_val, &more))) return st;
        if (!more) break;
        if (p.begins) doc_start = j->in.pos - p.n;
        if ((st = report_bytes(j, "reading"))) return st;
    }
    j->in.last_doc = j->in.doc - 1;
    j->in.cut = j->in.pos - (int64_t)ceil((double)j->in.pos * j->opts->val_fraction);
    return doc_start < j->in.cut ? find_border(j, doc_start) : TP_OK;
}

/* ---- the tokenizer -------------------------------------------------------------------------- */

static tp_status train(job *j) {
    tp_bpe_opts bpe = j->opts->bpe;
    tp_bpe_trainer *trainer;
    tp_text_piece p;
    bool is_val = false, more = true;
    bpe.progress = j->opts->progress;
    bpe.progress_arg = j->opts->progress_arg;
    tp_status st = tp_bpe_trainer_new(&trainer, j->c, &bpe);
    if (st) return st;
    reader_rewind(&j->in);
    for (;;) {
        if ((st = reader_next(&j->in, j->c, &p, &is_val, &more)) || !more) break;
        if (is_val) break; /* the tokenizer must not know the held-out text */
        if ((st = tp_bpe_trainer_add(trainer, p.bytes, p.n))) break;
        if ((st = report_bytes(j, "counting words"))) break;
    }
    if (!st) st = tp_bpe_trainer_finish(&j->trained, trainer);
    tp_bpe_trainer_free(trainer);
    j->tok = j->trained;
    return st;
}

static tp_status look_at_tokenizer(job *j) {
    int64_t vocab = tp_tokenizer_vocab_size(j->tok);
    if (vocab < 1 || vocab > INT32_MAX)
        return tp_fail(j->c, TP_EARG, "prepare: the tokenizer has %lld ids", (long long)vocab);
    j->result->vocab = vocab;
    j->eos = tp_tokenizer_eos(j->tok);
    if (!(j->id_bytes = tp_calloc(j->c, (size_t)vocab, sizeof *j->id_bytes))) return TP_ENOMEM;
    for (int32_t id = 0; id < vocab; id++) {
        tp_token_kind kind = tp_tokenizer_kind(j->tok, id);
        size_t n = 0;
        if (kind == TP_TOKEN_SPECIAL || kind == TP_TOKEN_UNUSED) continue;
        tp_tokenizer_token(j->tok, id, &n);
        j->id_bytes[id] = n > INT32_MAX ? INT32_MAX : (int32_t)n;
    }
    return TP_OK;
}

/* ---- encoding ------------------------------------------------------------------------------- */

static tp_status new_batch(job *j) {
    tp_ctx *c = j->c;
    if (!(j->text = tp_calloc(c, BATCH_TEXTS, sizeof *j->text)) ||
        !(j->piece = tp_calloc(c, BATCH_TEXTS, sizeof *j->piece)) ||
        !(j->is_val = tp_calloc(c, BATCH_TEXTS, sizeof *j->is_val)) ||
        !(j->ends = tp_calloc(c, BATCH_TEXTS, sizeof *j->ends)))
        return TP_ENOMEM;
    return tp_encoder_new(&j->encoder, c, j->tok, NULL);
}

/* What a document begins or ends with, if the tokenizer has such a token. */
static tp_status write_mark(job *j, part *to, int32_t id) {
    if (id < 0) return TP_OK;
    to->result->tokens++;
    return tp_corpus_writer_add(to->writer, j->c, &id, 1);
}

static tp_status write_text(job *j, int64_t i) {
    part *to = j->is_val[i] ? &j->val : &j->train;
    int64_t first = i ? j->ends[i - 1] : 0, n = j->ends[i] - first;
    tp_status st = j->piece[i].begins ? write_mark(j, to, tp_tokenizer_bos(j->tok)) : TP_OK;
    if (!st) st = tp_corpus_writer_add(to->writer, j->c, j->ids.data + first, n);
    if (st) return st;
    to->doc_bytes += j->piece[i].n;
    to->result->tokens += n;
    if (!j->piece[i].ends) return TP_OK;
    if ((st = write_mark(j, to, j->eos)) ||
        (st = tp_corpus_writer_end_doc(to->writer, j->c, to->doc_bytes)))
        return st;
    to->result->docs++;
    to->result->bytes += to->doc_bytes;
    to->doc_bytes = 0;
    return TP_OK;
}

static tp_status flush_batch(job *j) {
    const char *at = j->bytes;
    if (!j->n_texts) return TP_OK;
    for (int64_t i = 0; i < j->n_texts; i++) { /* the bytes may have moved while they came in */
        j->text[i] = (tp_text){at, j->piece[i].n};
        at += j->piece[i].n;
    }
    j->ids.n = 0;
    tp_status st = tp_encode_batch(&j->ids, j->ends, j->encoder, j->text, j->n_texts);
    for (int64_t i = 0; !st && i < j->n_texts; i++) st = write_text(j, i);
    j->n_texts = j->n_bytes = 0;
    return st ? st : report_bytes(j, "encoding");
}

static tp_status add_to_batch(job *j, const tp_text_piece *p, bool is_val) {
    if (j->n_bytes + p->n > j->cap_bytes) {
        int64_t cap = j->n_bytes + p->n > BATCH_BYTES ? 2 * (j->n_bytes + p->n) : 2 * BATCH_BYTES;
        char *more = tp_realloc(j->c, j->bytes, (size_t)cap);
        if (!more) return TP_ENOMEM;
        j->bytes = more;
        j->cap_bytes = cap;
    }
    memcpy(j->bytes + j->n_bytes, p->bytes, (size_t)p->n);
    j->n_bytes += p->n;
    j->piece[j->n_texts] = *p;
    j->is_val[j->n_texts++] = is_val;
    return j->n_texts == BATCH_TEXTS || j->n_bytes >= BATCH_BYTES ? flush_batch(j) : TP_OK;
}

static tp_status encode(job *j) {
    tp_text_piece p;
    bool is_val = false, more = true;
    tp_status st = new_batch(j);
    if (st) return st;
    reader_rewind(&j->in);
    for (;;) {
        if ((st = reader_next(&j->in, j->c, &p, &is_val, &more))) return st;
        if (!more) break;
        if ((st = add_to_batch(j, &p, is_val))) return st;
    }
    if ((st = flush_batch(j))) return st;
    j->result->empty = tp_text_get_counts(j->in.src).empty;
    return TP_OK;
}

/* ---- all of it ------------------------------------------------------------------------------ */

/* What a corpus is called until it is whole (data/corpus_write.c). */
static void until_whole(char out[PATH_CAP], const char *path) {
    snprintf(out, PATH_CAP, "%s.tmp", path);
}

static bool meets(const char *a, const char *b) {
    char a_tmp[PATH_CAP], b_tmp[PATH_CAP];
    until_whole(a_tmp, a);
    until_whole(b_tmp, b);
    return tp_same_place(a, b) || tp_same_place(a_tmp, b) || tp_same_place(a, b_tmp);
}

static tp_status check_path(tp_ctx *c, const tp_text_source *src, const char *path) {
    char tmp[PATH_CAP];
    until_whole(tmp, path);
    if (tp_text_reads(src, path) || tp_text_reads(src, tmp))
        return tp_fail(c, TP_EARG,
                       "prepare: writing the corpus would overwrite the text it is made "
                       "from");
    return tp_may_replace(c, path);
}

static tp_status check(tp_ctx *c, const tp_text_source *src, const char *train_path,
                       const char *val_path, const tp_prepare_opts *o) {
    if (!(o->val_fraction >= 0 && o->val_fraction < 1))
        return tp_fail(c, TP_EARG, "prepare: the held-out fraction must be 0 to below 1, got %g",
                       o->val_fraction);
    if (o->val_fraction > 0 && (!val_path || meets(train_path, val_path)))
        return tp_fail(c, TP_EARG, "prepare: the held-out text needs a file of its own");
    tp_status st = check_path(c, src, train_path);
    return st || !val_path ? st : check_path(c, src, val_path);
}

static tp_status open_writers(job *j, const char *train_path, const char *val_path) {
    tp_corpus_meta meta = {.vocab = (int32_t)j->result->vocab,
                           .eos = j->eos,
                           .id_bytes = j->id_bytes,
                           .sources = j->opts->sources,
                           .deflate = j->opts->deflate};
    meta.tokenizer = tp_tokenizer_json(j->tok, &meta.tokenizer_bytes);
    tp_status st = tp_corpus_writer_new(&j->train.writer, j->c, train_path, &meta);
    if (st || j->in.cut < 0) return st;
    return tp_corpus_writer_new(&j->val.writer, j->c, val_path, &meta);
}

/* Neither gets its name before both are written: a full disk must not leave one of each age.
 * Validation first: when the training corpus is there, all is there. */
static tp_status finish(job *j) {
    tp_status st = TP_OK;
    if (j->in.cut >= 0 && (!j->result->val.docs || !j->result->train.docs))
        return tp_fail(j->c, TP_EARG,
                       "prepare: %lld bytes of text are too few to hold out %g of it",
                       (long long)j->in.pos, j->opts->val_fraction);
    if (j->val.writer) st = tp_corpus_writer_seal(j->val.writer, j->c, j->result->val.sha256);
    if (!st) st = tp_corpus_writer_seal(j->train.writer, j->c, j->result->train.sha256);
    if (j->val.writer && !st) st = tp_corpus_writer_finish(j->val.writer, j->c, NULL);
    if (!st) st = tp_corpus_writer_finish(j->train.writer, j->c, NULL);
    return st;
}

static void job_clear(job *j) {
    tp_corpus_writer_free(j->train.writer);
    tp_corpus_writer_free(j->val.writer);
    tp_encoder_free(j->encoder);
    tp_tokenizer_free(j->trained);
    tp_ids_clear(&j->ids);
    tp_free(j->id_bytes);
    tp_free(j->bytes);
    tp_free(j->text);
    tp_free(j->piece);
    tp_free(j->is_val);
    tp_free(j->ends);
}

tp_status tp_prepare(tp_prepare_result *out, tp_ctx *c, tp_text_source *src, const char *train_path,
                     const char *val_path, const tp_prepare_opts *opts) {
    *out = (tp_prepare_result){0};
    job j = {.c = c, .opts = opts, .result = out, .in.src = src, .tok = opts->tokenizer};
    j.train.result = &out->train;
    j.val.result = &out->val;
    tp_status st = check(c, src, train_path, val_path, opts);
    if (st || (st = place_border(&j))) goto done;
    double t0 = tp_now();
    if (!j.tok && (st = train(&j))) goto done;
    double t1 = tp_now();
    if ((st = look_at_tokenizer(&j)) || (st = open_writers(&j, train_path, val_path)) ||
        (st = encode(&j)) || (st = finish(&j)))
        goto done;
    out->train_seconds = t1 - t0;
    out->encode_seconds = tp_now() - t1;
done:
    job_clear(&j);
    return st;
}
