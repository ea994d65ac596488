/* Reading a corpus: the header is checked at open, tokens come a block at a time through a small
 * cache. Layout: data/corpus.h. */
#include "data/corpus_format.h"
#include "data/hdf5_lock.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>

enum { CACHE_SLOTS = 256 }; /* of TP_CORPUS_BLOCK tokens: 32 MiB at two bytes each */

typedef struct slot {
    void *raw;     /* TP_CORPUS_BLOCK tokens as in the file; NULL until first used */
    int64_t block; /* which one; -1: none */
    uint64_t used; /* when last */
} slot;

struct tp_corpus {
    tp_corpus_info info;
    char *path, *tokenizer, *sources;
    int64_t *offsets;
    int32_t *id_bytes;
    uint64_t *check; /* of each block */
    hid_t file, tokens, doc_bytes;
    pthread_mutex_t mutex; /* guards the cache; taken before HDF5's lock */
    slot cache[CACHE_SLOTS];
    uint64_t clock;
};

/* ---- pieces of the header; all of these run under HDF5's lock ------------------------------- */

static tp_status damaged(tp_ctx *c, const tp_corpus *co, const char *what) {
    return tp_h5_fail(c, TP_EFORMAT, "corpus: %s: %s", co->path, what);
}

static tp_status read_text_attribute(tp_ctx *c, tp_corpus *co, const char *name, char out[80]) {
    tp_status st = TP_OK;
    hid_t attr = H5Aopen(co->file, name, H5P_DEFAULT), type = -1, space = -1, want = -1;
    if (attr < 0 || (type = H5Aget_type(attr)) < 0 || (space = H5Aget_space(attr)) < 0) {
        st = tp_fail(c, TP_EFORMAT, "corpus: %s has no attribute \"%s\"; it is no Tapir corpus",
                     co->path, name);
        goto done;
    }
    size_t size = H5Tget_size(type);
    if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) > 0 || size > 79 ||
        H5Sget_simple_extent_npoints(space) != 1) {
        st = tp_fail(c, TP_EFORMAT, "corpus: %s: attribute \"%s\" must be a short text", co->path,
                     name);
        goto done;
    }
    memset(out, 0, 80);
    if ((want = H5Tcopy(H5T_C_S1)) < 0 || H5Tset_size(want, 80) < 0 || H5Aread(attr, want, out) < 0)
        st = damaged(c, co, "an attribute cannot be read");
    out[79] = 0;
done:
    if (want >= 0) H5Tclose(want);
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    if (attr >= 0) H5Aclose(attr);
    return st;
}

static tp_status read_int_attribute(tp_ctx *c, tp_corpus *co, const char *name, int64_t lo,
                                    int64_t hi, int64_t *out) {
    tp_status st = TP_OK;
    hid_t attr = H5Aopen(co->file, name, H5P_DEFAULT), type = -1, space = -1;
    if (attr < 0 || (type = H5Aget_type(attr)) < 0 || (space = H5Aget_space(attr)) < 0 ||
        H5Tget_class(type) != H5T_INTEGER || H5Sget_simple_extent_npoints(space) != 1)
        st = tp_fail(c, TP_EFORMAT, "corpus: %s: attribute \"%s\" must be there as one integer",
                     co->path, name);
    else if (H5Aread(attr, H5T_NATIVE_INT64, out) < 0)
        st = damaged(c, co, "an attribute cannot be read");
    else if (*out < lo || *out > hi)
        st = tp_fail(c, TP_EFORMAT, "corpus: %s: %s is %lld; it must be %lld to %lld", co->path,
                     name, (long long)*out, (long long)lo, (long long)hi);
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    if (attr >= 0) H5Aclose(attr);
    return st;
}

/* Opens a one-dimensional integer dataset of exactly this type; its length goes to *n. */
static tp_status open_set(tp_ctx *c, tp_corpus *co, const char *name, size_t size, bool is_signed,
                          hid_t *out, int64_t *n) {
    *out = -1;
    *n = 0;
    tp_status st = TP_OK;
    hsize_t dim = 0;
    hid_t type = -1, space = -1, set = H5Dopen2(co->file, name, H5P_DEFAULT);
    if (set < 0) return damaged(c, co, "a dataset is missing or damaged");
    if ((type = H5Dget_type(set)) < 0 || (space = H5Dget_space(set)) < 0)
        st = damaged(c, co, "a dataset's header is damaged");
    else if (H5Tget_class(type) != H5T_INTEGER || H5Tget_size(type) != size ||
             H5Tget_sign(type) != (is_signed ? H5T_SGN_2 : H5T_SGN_NONE))
        st = tp_fail(c, TP_EFORMAT, "corpus: %s: dataset %s must hold %s integers of %zu bytes",
                     co->path, name, is_signed ? "signed" : "unsigned", size);
    else if (H5Sget_simple_extent_ndims(space) != 1 ||
             H5Sget_simple_extent_dims(space, &dim, NULL) != 1 || dim > INT64_MAX / 8)
        st = tp_fail(c, TP_EFORMAT, "corpus: %s: dataset %s must have one dimension", co->path,
                     name);
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    if (st) {
        H5Dclose(set);
        return st;
    }
    *out = set;
    *n = (int64_t)dim;
    return TP_OK;
}

static tp_status read_slab(tp_ctx *c, const tp_corpus *co, hid_t set, hid_t type, int64_t first,
                           int64_t n, void *out) {
    hsize_t start = (hsize_t)first, count = (hsize_t)n;
    tp_status st = TP_OK;
    if (!n) return TP_OK;
    hid_t memory = H5Screate_simple(1, &count, NULL), space = H5Dget_space(set);
    if (memory < 0 || space < 0 ||
        H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &count, NULL) < 0 ||
        H5Dread(set, type, memory, space, H5P_DEFAULT, out) < 0)
        st =
            tp_h5_fail(c, TP_EFORMAT, "corpus: %s: values %lld to %lld of a dataset cannot be read",
                       co->path, (long long)first, (long long)(first + n - 1));
    if (space >= 0) H5Sclose(space);
    if (memory >= 0) H5Sclose(memory);
    return st;
}

/* The offsets, checked as they come: a false number of documents is found in the first block, long
 * before its memory is touched. */
static tp_status read_offsets(tp_ctx *c, tp_corpus *co) {
    hid_t set = -1;
    int64_t n = 0, last = -1;
    tp_status st = open_set(c, co, "offsets", 8, true, &set, &n);
    if (st) return st;
    if (n < 2 || n - 1 > co->info.tokens)
        st = tp_fail(c, TP_EFORMAT,
                     "corpus: %s: %lld offsets do not fit %lld tokens (none may be empty)",
                     co->path, (long long)n, (long long)co->info.tokens);
    else if (!(co->offsets = tp_malloc(c, (size_t)n * sizeof *co->offsets)))
        st = TP_ENOMEM;
    for (int64_t at = 0; !st && at < n; at += TP_CORPUS_BLOCK) {
        int64_t m = n - at < TP_CORPUS_BLOCK ? n - at : TP_CORPUS_BLOCK;
        st = read_slab(c, co, set, H5T_NATIVE_INT64, at, m, co->offsets + at);
        for (int64_t i = at; !st && i < at + m; i++) {
            if (co->offsets[i] <= last || (i == 0 && co->offsets[0] != 0))
                st = tp_fail(c, TP_EFORMAT,
                             "corpus: %s: offsets must grow from 0; number %lld is "
                             "%lld after %lld",
                             co->path, (long long)i, (long long)co->offsets[i], (long long)last);
            last = co->offsets[i];
        }
    }
    if (!st && last != co->info.tokens)
        st =
            tp_fail(c, TP_EFORMAT, "corpus: %s: the offsets end at %lld, but there are %lld tokens",
                    co->path, (long long)last, (long long)co->info.tokens);
    H5Dclose(set);
    co->info.docs = n - 1;
    return st;
}

/* A whole dataset of n values that must be there. One that claims more than the file holds is
 * refused before memory is taken for it. */
static tp_status read_whole(tp_ctx *c, tp_corpus *co, hid_t set, hid_t type, int64_t n,
                            void **out) {
    size_t bytes = (size_t)n * H5Tget_size(type);
    hsize_t in_file = 0;
    if (H5Fget_filesize(co->file, &in_file) < 0 || H5Dget_storage_size(set) < bytes ||
        bytes > in_file)
        return tp_fail(c, TP_EFORMAT, "corpus: %s: a dataset claims %zu bytes, which are not there",
                       co->path, bytes);
    if (!(*out = tp_calloc(c, bytes + 1, 1))) return TP_ENOMEM;
    return read_slab(c, co, set, type, 0, n, *out);
}

static tp_status read_text(tp_ctx *c, tp_corpus *co, const char *name, char **out, size_t *bytes) {
    hid_t set = -1;
    int64_t n = 0;
    void *text = NULL;
    tp_status st = open_set(c, co, name, 1, false, &set, &n);
    if (st) return st;
    if (n > TP_CORPUS_MAX_TEXT)
        st = tp_fail(c, TP_EFORMAT, "corpus: %s: dataset %s has %lld bytes; at most %d are allowed",
                     co->path, name, (long long)n, TP_CORPUS_MAX_TEXT);
    else
        st = read_whole(c, co, set, H5T_NATIVE_UINT8, n, &text);
    *out = text; /* read_whole puts a zero after it */
    H5Dclose(set);
    *bytes = (size_t)n;
    return st;
}

static tp_status read_id_bytes(tp_ctx *c, tp_corpus *co) {
    hid_t set = -1;
    int64_t n = 0;
    void *values = NULL;
    tp_status st = open_set(c, co, "id_bytes", 4, true, &set, &n);
    if (st) return st;
    if (n != co->info.vocab)
        st = tp_fail(c, TP_EFORMAT, "corpus: %s: id_bytes has %lld values for a vocabulary of %d",
                     co->path, (long long)n, co->info.vocab);
    else
        st = read_whole(c, co, set, H5T_NATIVE_INT32, n, &values);
    co->id_bytes = values;
    for (int64_t i = 0; !st && i < n; i++)
        if (co->id_bytes[i] < 0 || co->id_bytes[i] > TP_CORPUS_MAX_ID_BYTES)
            st = tp_fail(c, TP_EFORMAT, "corpus: %s: id %lld stands for %d bytes", co->path,
                         (long long)i, co->id_bytes[i]);
    H5Dclose(set);
    return st;
}

static tp_status read_checks(tp_ctx *c, tp_corpus *co) {
    hid_t set = -1;
    int64_t n, blocks = (co->info.tokens + TP_CORPUS_BLOCK - 1) / TP_CORPUS_BLOCK;
    void *values = NULL;
    tp_status st = open_set(c, co, "block_check", 8, false, &set, &n);
    if (st) return st;
    if (n != blocks)
        st = tp_fail(c, TP_EFORMAT, "corpus: %s: block_check has %lld values for %lld tokens",
                     co->path, (long long)n, (long long)co->info.tokens);
    else
        st = read_whole(c, co, set, H5T_NATIVE_UINT64, n, &values);
    co->check = values;
    H5Dclose(set);
    return st;
}

static tp_status read_attributes(tp_ctx *c, tp_corpus *co) {
    char text[80];
    int64_t version, vocab, eos;
    tp_status st;
    if ((st = read_text_attribute(c, co, "format", text))) return st;
    if (strcmp(text, TP_CORPUS_FORMAT))
        return tp_fail(c, TP_EFORMAT, "corpus: %s is a \"%s\", not a \"%s\"", co->path, text,
                       TP_CORPUS_FORMAT);
    if ((st = read_int_attribute(c, co, "version", 1, INT_MAX, &version))) return st;
    if (version > TP_CORPUS_VERSION)
        return tp_fail(c, TP_EFORMAT,
                       "corpus: %s has format version %lld; this Tapir reads up to %d", co->path,
                       (long long)version, TP_CORPUS_VERSION);
    if ((st = read_int_attribute(c, co, "vocab", 1, TP_CORPUS_MAX_VOCAB, &vocab)) ||
        (st = read_int_attribute(c, co, "eos", -1, vocab - 1, &eos)) ||
        (st = read_int_attribute(c, co, "bytes", 0, INT64_MAX, &co->info.bytes)) ||
        (st = read_text_attribute(c, co, "sha256", text)))
        return st;
    if (strlen(text) != 64)
        return tp_fail(c, TP_EFORMAT, "corpus: %s: sha256 must have 64 digits", co->path);
    memcpy(co->info.sha256, text, 65);
    co->info.vocab = (int32_t)vocab;
    co->info.eos = (int32_t)eos;
    co->info.token_size = tp_corpus_token_size(co->info.vocab);
    return TP_OK;
}

static tp_status read_header(tp_ctx *c, tp_corpus *co) {
    tp_status st;
    int64_t n = 0;
    size_t n_sources;
    if ((st = read_attributes(c, co)) ||
        (st = open_set(c, co, "tokens", (size_t)co->info.token_size, false, &co->tokens,
                       &co->info.tokens)) ||
        (st = read_offsets(c, co)) ||
        (st = open_set(c, co, "doc_bytes", 8, true, &co->doc_bytes, &n)))
        return st;
    if (n != co->info.docs)
        return tp_fail(c, TP_EFORMAT, "corpus: %s: doc_bytes has %lld values for %lld documents",
                       co->path, (long long)n, (long long)co->info.docs);
    if ((st = read_checks(c, co)) || (st = read_id_bytes(c, co)) ||
        (st = read_text(c, co, "tokenizer", &co->tokenizer, &co->info.tokenizer_bytes)) ||
        (st = read_text(c, co, "sources", &co->sources, &n_sources)))
        return st;
    co->info.path = co->path;
    co->info.tokenizer = co->tokenizer;
    co->info.sources = co->sources;
    return TP_OK;
}

/* ---- open, close ---------------------------------------------------------------------------- */

static tp_status open_any(tp_corpus **out, tp_ctx *c, const char *path, const void *image,
                          size_t n) {
    *out = NULL;
    tp_status st = image ? tp_h5_precheck_image(c, "corpus", path, image, n)
                         : tp_h5_precheck(c, "corpus", path);
    if (st) return st;
    tp_corpus *co = tp_calloc(c, 1, sizeof *co);
    if (!co) return TP_ENOMEM;
    co->file = co->tokens = co->doc_bytes = -1;
    pthread_mutex_init(&co->mutex, NULL);
    for (int i = 0; i < CACHE_SLOTS; i++) co->cache[i].block = -1;
    if (!(co->path = tp_strdup(c, path))) {
        st = TP_ENOMEM;
        goto done;
    }
    tp_h5_lock();
    co->file = image ? tp_h5_open_image(path, image, n) : tp_h5_open(path);
    if (co->file < 0)
        st = damaged(c, co, "cannot be opened; it is damaged or cut short");
    else
        st = read_header(c, co);
    tp_h5_unlock();
done:
    if (st)
        tp_corpus_close(co);
    else
        *out = co;
    return st;
}

tp_status tp_corpus_open(tp_corpus **out, tp_ctx *c, const char *path) {
    return open_any(out, c, path, NULL, 0);
}

tp_status tp_corpus_open_image(tp_corpus **out, tp_ctx *c, const char *name, const void *bytes,
                               size_t n) {
    return open_any(out, c, name, bytes ? bytes : "", n);
}

void tp_corpus_close(tp_corpus *co) {
    if (!co) return;
    tp_h5_lock();
    if (co->tokens >= 0) H5Dclose(co->tokens);
    if (co->doc_bytes >= 0) H5Dclose(co->doc_bytes);
    if (co->file >= 0) H5Fclose(co->file);
    tp_h5_unlock();
    for (int i = 0; i < CACHE_SLOTS; i++) tp_free(co->cache[i].raw);
    pthread_mutex_destroy(&co->mutex);
    tp_free(co->check);
    tp_free(co->offsets);
    tp_free(co->id_bytes);
    tp_free(co->tokenizer);
    tp_free(co->sources);
    tp_free(co->path);
    tp_free(co);
}

const tp_corpus_info *tp_corpus_get_info(const tp_corpus *co) { return &co->info; }

const int64_t *tp_corpus_offsets(const tp_corpus *co) { return co->offsets; }

const int32_t *tp_corpus_id_bytes(const tp_corpus *co) { return co->id_bytes; }

/* ---- tokens --------------------------------------------------------------------------------- */

static uint32_t raw_id(const tp_corpus *co, const void *raw, int64_t i) {
    return co->info.token_size == 2 ? ((const uint16_t *)raw)[i] : ((const uint32_t *)raw)[i];
}

/* Reads block b as it is in the file and checks every id; sets *n to its tokens. */
static tp_status read_block(tp_ctx *c, const tp_corpus *co, int64_t b, void *raw, int64_t *n) {
    int64_t first = b * TP_CORPUS_BLOCK;
    *n = co->info.tokens - first < TP_CORPUS_BLOCK ? co->info.tokens - first : TP_CORPUS_BLOCK;
    tp_h5_lock();
    hid_t type = co->info.token_size == 2 ? H5T_NATIVE_UINT16 : H5T_NATIVE_UINT32;
    tp_status st = read_slab(c, co, co->tokens, type, first, *n, raw);
    tp_h5_unlock();
    if (!st && tp_corpus_check(raw, (size_t)*n * (size_t)co->info.token_size) != co->check[b])
        st = tp_fail(c, TP_EFORMAT, "corpus: %s: tokens %lld to %lld are damaged", co->path,
                     (long long)first, (long long)(first + *n - 1));
    for (int64_t i = 0; !st && i < *n; i++) {
        uint32_t id = raw_id(co, raw, i);
        if (id >= (uint32_t)co->info.vocab)
            st = tp_fail(c, TP_EFORMAT, "corpus: %s: token %lld is %u, but the vocabulary has %d",
                         co->path, (long long)(first + i), id, co->info.vocab);
    }
    return st;
}

/* The slot that holds block b, read now if it is not there. Under co->mutex. */
static tp_status find_block(tp_ctx *c, tp_corpus *co, int64_t b, const slot **out) {
    slot *s = &co->cache[0];
    int64_t n = 0;
    for (int i = 0; i < CACHE_SLOTS; i++) {
        slot *t = &co->cache[i];
        if (t->block == b) {
            t->used = ++co->clock;
            *out = t;
            return TP_OK;
        }
        if (t->used < s->used) s = t;
    }
    s->block = -1;
    if (!s->raw && !(s->raw = tp_malloc(c, (size_t)TP_CORPUS_BLOCK * (size_t)co->info.token_size)))
        return TP_ENOMEM;
    tp_status st = read_block(c, co, b, s->raw, &n);
    if (st) return st;
    s->block = b;
    s->used = ++co->clock;
    *out = s;
    return TP_OK;
}

tp_status tp_corpus_read(tp_corpus *co, tp_ctx *c, int64_t first, int64_t n, int32_t *ids) {
    tp_status st = TP_OK;
    if (first < 0 || n < 0 || first > co->info.tokens || n > co->info.tokens - first)
        return tp_fail(c, TP_EARG, "corpus: %s has %lld tokens; %lld from %lld were asked for",
                       co->path, (long long)co->info.tokens, (long long)n, (long long)first);
    pthread_mutex_lock(&co->mutex);
    while (n) {
        const slot *s;
        if ((st = find_block(c, co, first / TP_CORPUS_BLOCK, &s))) break;
        int64_t at = first % TP_CORPUS_BLOCK;
        int64_t m = TP_CORPUS_BLOCK - at < n ? TP_CORPUS_BLOCK - at : n;
        for (int64_t i = 0; i < m; i++) ids[i] = (int32_t)raw_id(co, s->raw, at + i);
        ids += m;
        first += m;
        n -= m;
    }
    pthread_mutex_unlock(&co->mutex);
    return st;
}

tp_status tp_corpus_doc_bytes(tp_corpus *co, tp_ctx *c, int64_t first, int64_t n, int64_t *bytes) {
    if (first < 0 || n < 0 || first > co->info.docs || n > co->info.docs - first)
        return tp_fail(c, TP_EARG, "corpus: %s has %lld documents; %lld from %lld were asked for",
                       co->path, (long long)co->info.docs, (long long)n, (long long)first);
    tp_h5_lock();
    tp_status st = read_slab(c, co, co->doc_bytes, H5T_NATIVE_INT64, first, n, bytes);
    tp_h5_unlock();
    return st;
}

/* ---- verify --------------------------------------------------------------------------------- */

typedef struct verifier {
    tp_corpus_hash hash;
    void *raw;                     /* TP_CORPUS_BLOCK tokens */
    int64_t *lengths;              /* TP_CORPUS_BLOCK document lengths from the file */
    int64_t doc, left, sum, total; /* document, its tokens to come, its bytes so far; all bytes */
} verifier;

static tp_status verify_doc_end(tp_ctx *c, tp_corpus *co, verifier *v) {
    int64_t in_block = v->doc % TP_CORPUS_BLOCK, n = co->info.docs - v->doc;
    if (in_block == 0) {
        if (n > TP_CORPUS_BLOCK) n = TP_CORPUS_BLOCK;
        tp_status st = tp_corpus_doc_bytes(co, c, v->doc, n, v->lengths);
        if (st) return st;
        tp_sha256_update(&v->hash.doc_bytes, v->lengths, (size_t)n * sizeof *v->lengths);
    }
    if (v->sum != v->lengths[in_block])
        return tp_fail(c, TP_EFORMAT,
                       "corpus: %s: the tokens of document %lld stand for %lld bytes, "
                       "but it has %lld",
                       co->path, (long long)v->doc, (long long)v->sum,
                       (long long)v->lengths[in_block]);
    v->total += v->sum;
    v->sum = 0;
    v->doc++;
    if (v->doc < co->info.docs) v->left = co->offsets[v->doc + 1] - co->offsets[v->doc];
    return TP_OK;
}

static tp_status verify_blocks(tp_ctx *c, tp_corpus *co, verifier *v) {
    for (int64_t b = 0; b * TP_CORPUS_BLOCK < co->info.tokens; b++) {
        int64_t n;
        tp_status st = read_block(c, co, b, v->raw, &n);
        if (st) return st;
        tp_sha256_update(&v->hash.tokens, v->raw, (size_t)n * (size_t)co->info.token_size);
        for (int64_t i = 0; i < n; i++) {
            v->sum += co->id_bytes[raw_id(co, v->raw, i)];
            if (!--v->left && (st = verify_doc_end(c, co, v))) return st;
        }
    }
    return TP_OK;
}

tp_status tp_corpus_verify(tp_corpus *co, tp_ctx *c) {
    verifier v = {.left = co->offsets[1]};
    char hex[65];
    tp_status st;
    tp_corpus_hash_init(&v.hash);
    v.raw = tp_malloc(c, (size_t)TP_CORPUS_BLOCK * (size_t)co->info.token_size);
    v.lengths = tp_malloc(c, TP_CORPUS_BLOCK * sizeof *v.lengths);
    if (!v.raw || !v.lengths) {
        st = TP_ENOMEM;
        goto done;
    }
    if ((st = verify_blocks(c, co, &v))) goto done;
    tp_sha256_update(&v.hash.offsets, co->offsets,
                     (size_t)(co->info.docs + 1) * sizeof *co->offsets);
    tp_sha256_update(&v.hash.id_bytes, co->id_bytes, (size_t)co->info.vocab * sizeof *co->id_bytes);
    tp_sha256_update(&v.hash.tokenizer, co->tokenizer, co->info.tokenizer_bytes);
    tp_corpus_hash_final(&v.hash, co->info.vocab, co->info.eos, hex);
    if (v.total != co->info.bytes)
        st = tp_fail(c, TP_EFORMAT,
                     "corpus: %s: the documents have %lld bytes, the header says %lld", co->path,
                     (long long)v.total, (long long)co->info.bytes);
    else if (strcmp(hex, co->info.sha256))
        st = tp_fail(c, TP_EFORMAT, "corpus: %s is damaged: its sha256 is %s, the header says %s",
                     co->path, hex, co->info.sha256);
done:
    tp_free(v.raw);
    tp_free(v.lengths);
    return st;
}
