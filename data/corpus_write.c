/* Writing a corpus: documents come one after the other and go to disk a block at a time, under a
 * temporary name until everything is there. Layout: data/corpus.h. */
#include "data/corpus_format.h"
#include "data/files.h"
#include "data/hdf5_lock.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

/* A one-dimensional dataset that grows: the last, unwritten part is in `held`. */
typedef struct column {
    const char *name;
    hid_t set;
    hid_t type;
    size_t size;    /* bytes per value */
    int64_t stored; /* values in the file */
    int64_t n_held;
    int64_t block; /* values per block of the file */
    uint8_t *held; /* one block */
    bool filter;   /* HDF5's checksum; tokens have block_check instead */
    tp_sha256 *hash;
} column;

struct tp_corpus_writer {
    char *path, *tmp;
    hid_t file;
    int32_t vocab, eos;
    int64_t tokens, docs, bytes, doc_start;
    column tok, off, len;
    uint64_t *check; /* of each block of tokens */
    int64_t n_check, cap_check;
    tp_corpus_hash hash;
    bool created, finished;
    tp_status failed; /* once a write failed the file is not worth finishing */
};

/* Under HDF5's lock, before anything is closed. */
static tp_status write_failed(tp_ctx *c, tp_corpus_writer *w, const char *name) {
    tp_status st = tp_h5_fail(c, TP_EIO, "corpus: %s: cannot write %s", w->tmp, name);
    tp_h5_divert(w->file);
    return w->failed = st;
}

/* col: name, type, block and hash are set. */
static tp_status column_open(tp_ctx *c, tp_corpus_writer *w, column *col, int deflate) {
    hsize_t none = 0, unlimited = H5S_UNLIMITED, block = (hsize_t)col->block;
    col->set = -1;
    tp_h5_lock();
    col->size = H5Tget_size(col->type);
    hid_t space = H5Screate_simple(1, &none, &unlimited);
    hid_t plist = H5Pcreate(H5P_DATASET_CREATE);
    tp_status st = TP_OK;
    /* After compression, so that damage never reaches inflate. */
    if (space < 0 || plist < 0 || H5Pset_chunk(plist, 1, &block) < 0 ||
        (deflate && (H5Pset_shuffle(plist) < 0 || H5Pset_deflate(plist, (unsigned)deflate) < 0)) ||
        ((deflate || col->filter) && H5Pset_fletcher32(plist) < 0) ||
        (col->set =
             H5Dcreate2(w->file, col->name, col->type, space, H5P_DEFAULT, plist, H5P_DEFAULT)) < 0)
        st = write_failed(c, w, col->name);
    if (space >= 0) H5Sclose(space);
    if (plist >= 0) H5Pclose(plist);
    tp_h5_unlock();
    if (!st && !(col->held = tp_malloc(c, block * col->size))) st = TP_ENOMEM;
    return st;
}

static tp_status column_flush(tp_ctx *c, tp_corpus_writer *w, column *col) {
    if (!col->n_held) return TP_OK;
    hsize_t start = (hsize_t)col->stored, n = (hsize_t)col->n_held, all = start + n;
    tp_sha256_update(col->hash, col->held, (size_t)n * col->size);
    tp_h5_lock();
    tp_status st = TP_OK;
    hid_t memory = H5Screate_simple(1, &n, NULL), space = -1;
    if (memory < 0 || H5Dset_extent(col->set, &all) < 0 || (space = H5Dget_space(col->set)) < 0 ||
        H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &n, NULL) < 0 ||
        H5Dwrite(col->set, col->type, memory, space, H5P_DEFAULT, col->held) < 0)
        st = write_failed(c, w, col->name);
    if (space >= 0) H5Sclose(space);
    if (memory >= 0) H5Sclose(memory);
    tp_h5_unlock();
    col->stored += col->n_held;
    col->n_held = 0;
    return st;
}

static tp_status flush_tokens(tp_ctx *c, tp_corpus_writer *w) {
    if (!w->tok.n_held) return TP_OK;
    if (w->n_check == w->cap_check) {
        int64_t cap = w->cap_check ? 2 * w->cap_check : 64;
        uint64_t *more = tp_realloc(c, w->check, (size_t)cap * sizeof *more);
        if (!more) return w->failed = TP_ENOMEM;
        w->check = more;
        w->cap_check = cap;
    }
    w->check[w->n_check++] = tp_corpus_check(w->tok.held, (size_t)w->tok.n_held * w->tok.size);
    return column_flush(c, w, &w->tok);
}

static tp_status column_add_i64(tp_ctx *c, tp_corpus_writer *w, column *col, int64_t v) {
    memcpy(col->held + (size_t)col->n_held * sizeof v, &v, sizeof v);
    return ++col->n_held == col->block ? column_flush(c, w, col) : TP_OK;
}

/* A dataset written in one go. */
static tp_status put_array(tp_ctx *c, tp_corpus_writer *w, const char *name, hid_t type,
                           const void *data, size_t n) {
    hsize_t dim = n;
    tp_status st = TP_OK;
    tp_h5_lock();
    hid_t space = H5Screate_simple(1, &dim, NULL), set = -1;
    if (space < 0 ||
        (set = H5Dcreate2(w->file, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT)) < 0 ||
        (n && H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) < 0))
        st = write_failed(c, w, name);
    if (set >= 0) H5Dclose(set);
    if (space >= 0) H5Sclose(space);
    tp_h5_unlock();
    return st;
}

/* text NULL: the integer. */
static tp_status put_attribute(tp_ctx *c, tp_corpus_writer *w, const char *name, const char *text,
                               int64_t v) {
    tp_status st = TP_OK;
    tp_h5_lock();
    hid_t space = H5Screate(H5S_SCALAR), attr = -1;
    hid_t type = H5Tcopy(text ? H5T_C_S1 : H5T_STD_I64LE);
    if (space < 0 || type < 0 || (text && H5Tset_size(type, strlen(text) + 1) < 0) ||
        (attr = H5Acreate2(w->file, name, type, space, H5P_DEFAULT, H5P_DEFAULT)) < 0 ||
        H5Awrite(attr, type, text ? (const void *)text : &v) < 0)
        st = write_failed(c, w, name);
    if (attr >= 0) H5Aclose(attr);
    if (type >= 0) H5Tclose(type);
    if (space >= 0) H5Sclose(space);
    tp_h5_unlock();
    return st;
}

static tp_status check_meta(tp_ctx *c, const tp_corpus_meta *m) {
    if (m->vocab < 1 || m->vocab > TP_CORPUS_MAX_VOCAB || !m->id_bytes)
        return tp_fail(c, TP_EARG, "corpus: the vocabulary has %d ids; 1 to %d can be stored",
                       m->vocab, TP_CORPUS_MAX_VOCAB);
    for (int32_t i = 0; i < m->vocab; i++)
        if (m->id_bytes[i] < 0 || m->id_bytes[i] > TP_CORPUS_MAX_ID_BYTES)
            return tp_fail(c, TP_EARG,
                           "corpus: id %d stands for %d bytes; at most %d can be stored", i,
                           m->id_bytes[i], TP_CORPUS_MAX_ID_BYTES);
    if (m->eos >= m->vocab)
        return tp_fail(c, TP_EARG, "corpus: end token %d is not in the vocabulary of %d", m->eos,
                       m->vocab);
    if (m->deflate < 0 || m->deflate > 9)
        return tp_fail(c, TP_EARG, "corpus: deflate must be 0 to 9, got %d", m->deflate);
    if (m->tokenizer_bytes > TP_CORPUS_MAX_TEXT)
        return tp_fail(c, TP_EARG, "corpus: the tokenizer has %zu bytes; at most %d can be stored",
                       m->tokenizer_bytes, TP_CORPUS_MAX_TEXT);
    return TP_OK;
}

static tp_status create_file(tp_ctx *c, tp_corpus_writer *w) {
    tp_status st = tp_may_replace(c, w->path);
    if (!st) st = tp_may_replace(c, w->tmp);
    if (st) return st;
    bool there = !access(w->tmp, F_OK); /* another program may be writing it: then it stays */
    tp_h5_lock();
    if ((w->file = tp_h5_create(w->tmp)) < 0)
        st = tp_h5_fail(c, TP_EIO, "corpus: cannot create %s", w->tmp);
    tp_h5_unlock();
    w->created = !st || !there;
    return st;
}

tp_status tp_corpus_writer_new(tp_corpus_writer **out, tp_ctx *c, const char *path,
                               const tp_corpus_meta *m) {
    *out = NULL;
    tp_status st = check_meta(c, m);
    if (st) return st;
    tp_corpus_writer *w = tp_calloc(c, 1, sizeof *w);
    if (!w) return TP_ENOMEM;
    w->file = w->tok.set = w->off.set = w->len.set = -1;
    w->vocab = m->vocab;
    w->eos = m->eos < 0 ? -1 : m->eos;
    tp_corpus_hash_init(&w->hash);
    size_t cap = strlen(path) + sizeof ".tmp";
    if (!(w->path = tp_strdup(c, path)) || !(w->tmp = tp_malloc(c, cap))) {
        st = TP_ENOMEM;
        goto done;
    }
    snprintf(w->tmp, cap, "%s.tmp", path);
    if ((st = create_file(c, w))) goto done;
    tp_h5_lock(); /* the names of HDF5's types are calls */
    hid_t tok = tp_corpus_token_size(m->vocab) == 2 ? H5T_STD_U16LE : H5T_STD_U32LE;
    hid_t i64 = H5T_STD_I64LE, i32 = H5T_STD_I32LE, u8 = H5T_STD_U8LE;
    tp_h5_unlock();
    size_t n_sources = m->sources ? strlen(m->sources) : 0;
    if (n_sources > TP_CORPUS_MAX_TEXT) n_sources = TP_CORPUS_MAX_TEXT;
    w->tok =
        (column){.name = "tokens", .type = tok, .block = TP_CORPUS_BLOCK, .hash = &w->hash.tokens};
    w->off = (column){.name = "offsets",
                      .type = i64,
                      .block = TP_CORPUS_DOC_BLOCK,
                      .filter = true,
                      .hash = &w->hash.offsets};
    w->len = (column){.name = "doc_bytes",
                      .type = i64,
                      .block = TP_CORPUS_DOC_BLOCK,
                      .filter = true,
                      .hash = &w->hash.doc_bytes};
    if ((st = column_open(c, w, &w->tok, m->deflate)) ||
        (st = column_open(c, w, &w->off, m->deflate)) ||
        (st = column_open(c, w, &w->len, m->deflate)) ||
        (st = put_array(c, w, "id_bytes", i32, m->id_bytes, (size_t)m->vocab)) ||
        (st = put_array(c, w, "tokenizer", u8, m->tokenizer, m->tokenizer_bytes)) ||
        (st = put_array(c, w, "sources", u8, m->sources, n_sources)) ||
        (st = column_add_i64(c, w, &w->off, 0)))
        goto done;
    tp_sha256_update(&w->hash.id_bytes, m->id_bytes, (size_t)m->vocab * sizeof *m->id_bytes);
    tp_sha256_update(&w->hash.tokenizer, m->tokenizer, m->tokenizer_bytes);
    *out = w;
done:
    if (st) tp_corpus_writer_free(w);
    return st;
}

tp_status tp_corpus_writer_add(tp_corpus_writer *w, tp_ctx *c, const int32_t *ids, int64_t n) {
    column *col = &w->tok;
    if (w->failed || w->file < 0)
        return tp_fail(c, TP_ESTATE, "corpus: %s takes no more tokens", w->tmp);
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= w->vocab)
            return w->failed = tp_fail(c, TP_EARG, "corpus: id %d is not in the vocabulary of %d",
                                       ids[i], w->vocab);
        if (col->size == 2)
            ((uint16_t *)(void *)col->held)[col->n_held] = (uint16_t)ids[i];
        else
            ((uint32_t *)(void *)col->held)[col->n_held] = (uint32_t)ids[i];
        if (++col->n_held == col->block && flush_tokens(c, w)) return w->failed;
    }
    w->tokens += n;
    return TP_OK;
}

tp_status tp_corpus_writer_end_doc(tp_corpus_writer *w, tp_ctx *c, int64_t bytes) {
    tp_status st;
    if (w->failed || w->file < 0)
        return tp_fail(c, TP_ESTATE, "corpus: %s takes no more documents", w->tmp);
    if (w->tokens == w->doc_start || bytes < 0)
        return w->failed =
                   tp_fail(c, TP_EARG, "corpus: document %lld has no tokens", (long long)w->docs);
    w->doc_start = w->tokens;
    w->docs++;
    w->bytes += bytes;
    if ((st = column_add_i64(c, w, &w->off, w->tokens))) return st;
    return column_add_i64(c, w, &w->len, bytes);
}

/* HDF5 writes much of a file only when it is closed, so closing can fail like any write. c NULL:
 * the file will not be used. */
static tp_status close_file(tp_ctx *c, tp_corpus_writer *w) {
    tp_status st = TP_OK;
    if (w->file < 0) return TP_OK;
    tp_h5_lock();
    if (!c) {
        tp_h5_divert(w->file);
        H5Fclose(w->file);
    } else if (tp_h5_finish(w->file) < 0) {
        st = tp_h5_fail(c, TP_EIO, "corpus: %s: cannot finish the file", w->tmp);
    }
    tp_h5_unlock();
    w->file = w->tok.set = w->off.set = w->len.set = -1;
    return st;
}

tp_status tp_corpus_writer_seal(tp_corpus_writer *w, tp_ctx *c, char sha256[65]) {
    char hex[65];
    tp_status st;
    if (w->failed || w->file < 0)
        return tp_fail(c, TP_ESTATE, "corpus: %s cannot be finished", w->tmp);
    if (!w->docs)
        return w->failed = tp_fail(c, TP_EARG, "corpus: there is no text to write to %s", w->path);
    if (w->tokens != w->doc_start)
        return w->failed = tp_fail(c, TP_ESTATE, "corpus: the last document was not ended");
    if ((st = flush_tokens(c, w)) || (st = column_flush(c, w, &w->off)) ||
        (st = column_flush(c, w, &w->len)))
        return st;
    tp_h5_lock();
    hid_t u64 = H5T_STD_U64LE;
    tp_h5_unlock();
    if ((st = put_array(c, w, "block_check", u64, w->check, (size_t)w->n_check)))
        return w->failed = st;
    tp_corpus_hash_final(&w->hash, w->vocab, w->eos, hex);
    if ((st = put_attribute(c, w, "format", TP_CORPUS_FORMAT, 0)) ||
        (st = put_attribute(c, w, "version", NULL, TP_CORPUS_VERSION)) ||
        (st = put_attribute(c, w, "vocab", NULL, w->vocab)) ||
        (st = put_attribute(c, w, "eos", NULL, w->eos)) ||
        (st = put_attribute(c, w, "bytes", NULL, w->bytes)) ||
        (st = put_attribute(c, w, "sha256", hex, 0)) || (st = close_file(c, w)))
        return w->failed = st;
    if (sha256) memcpy(sha256, hex, sizeof hex);
    return TP_OK;
}

tp_status tp_corpus_writer_finish(tp_corpus_writer *w, tp_ctx *c, char sha256[65]) {
    bool sealed = w->file < 0 && !w->failed && !w->finished;
    tp_status st = sealed ? TP_OK : tp_corpus_writer_seal(w, c, sha256);
    if (st || (st = tp_commit_file(c, w->tmp, w->path))) return w->failed = st;
    w->finished = true;
    return TP_OK;
}

void tp_corpus_writer_free(tp_corpus_writer *w) {
    if (!w) return;
    close_file(NULL, w);
    if (w->created && !w->finished) unlink(w->tmp);
    tp_free(w->check);
    tp_free(w->tok.held);
    tp_free(w->off.held);
    tp_free(w->len.held);
    tp_free(w->path);
    tp_free(w->tmp);
    tp_free(w);
}
