/* A corpus: one HDF5 file of tokens, with the tokenizer that made them.
 *
 * Layout, version 1. Attributes of the root: format = "tapir-corpus", version, vocab, eos, bytes
 * (i64), sha256 (text). Datasets, all one-dimensional:
 *     tokens     u16 (vocab <= 65536) or u32   every document's ids, one after the other
 *     offsets    i64 (docs+1)   document d is tokens [offsets[d], offsets[d+1]); none is empty
 *     doc_bytes  i64 (docs)     bytes of text in each document
 *     block_check u64          a checksum for every 65536 tokens
 *     id_bytes   i32 (vocab)    bytes of text that each id stands for; 0 for special tokens
 *     tokenizer  u8             the tokenizer's JSON text
 *     sources    u8             what the text was made from, a line each
 * sha256 covers all of it but the sources, so the same text and tokenizer have the same name
 * wherever they came from. The checksums of the blocks find damage in the tokens when they are
 * read, not only in tp_corpus_verify.
 *
 * The tokens are read a block at a time: a corpus may be larger than memory and have more than 2^31
 * tokens. The offsets are held in memory: 8 bytes per document. */
#ifndef TP_CORPUS_H
#define TP_CORPUS_H
#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

/* ---- reading -------------------------------------------------------------------------------- */
typedef struct tp_corpus tp_corpus;

typedef struct tp_corpus_info {
    int64_t tokens, docs, bytes; /* bytes: of text */
    int32_t vocab, eos;          /* eos < 0: documents have no end token */
    int token_size;              /* bytes per token in the file: 2 or 4 */
    const char *path;
    const char *tokenizer; /* JSON text, NUL after the last byte */
    size_t tokenizer_bytes;
    const char *sources; /* lines, NUL after the last byte */
    char sha256[65];
} tp_corpus_info;

/* Opens a corpus and checks its header: types, shapes, offsets. The tokens themselves are checked
 * as they are read. TP_EIO: cannot be read; TP_EFORMAT: damaged, foreign or newer. A file that is
 * replaced by renaming a new one over it stays readable here as it was. */
tp_status tp_corpus_open(tp_corpus **out, tp_ctx *c, const char *path);
/* The same from the bytes of a whole file; they are copied. `name` stands in error messages. */
tp_status tp_corpus_open_image(tp_corpus **out, tp_ctx *c, const char *name, const void *bytes,
                               size_t n);
void tp_corpus_close(tp_corpus *co);

const tp_corpus_info *tp_corpus_get_info(const tp_corpus *co);
const int64_t *tp_corpus_offsets(const tp_corpus *co);  /* (docs+1) */
const int32_t *tp_corpus_id_bytes(const tp_corpus *co); /* (vocab) */

/* Tokens [first, first+n) into ids. Any thread may call it. Fails on damage and on ids that are
 * not in the vocabulary. */
tp_status tp_corpus_read(tp_corpus *co, tp_ctx *c, int64_t first, int64_t n, int32_t *ids);
/* Bytes of text of documents [first, first+n). */
tp_status tp_corpus_doc_bytes(tp_corpus *co, tp_ctx *c, int64_t first, int64_t n, int64_t *bytes);
/* Reads everything: the sha256, every id, and that each document's ids make up its bytes. */
tp_status tp_corpus_verify(tp_corpus *co, tp_ctx *c);

/* ---- writing -------------------------------------------------------------------------------- */
typedef struct tp_corpus_writer tp_corpus_writer;

typedef struct tp_corpus_meta {
    int32_t vocab, eos;      /* eos < 0: none */
    const int32_t *id_bytes; /* (vocab) */
    const char *tokenizer;   /* JSON text; NULL: none */
    size_t tokenizer_bytes;
    const char *sources; /* lines; NULL: none */
    int deflate;         /* 0 (off) to 9: smaller file, slower to read */
} tp_corpus_meta;

/* Writes under path + ".tmp"; nothing is at `path` (or what was there stays) until finish. */
tp_status tp_corpus_writer_new(tp_corpus_writer **out, tp_ctx *c, const char *path,
                               const tp_corpus_meta *meta);
/* Appends to the document being written; then ends it. `bytes`: of its text. */
tp_status tp_corpus_writer_add(tp_corpus_writer *w, tp_ctx *c, const int32_t *ids, int64_t n);
tp_status tp_corpus_writer_end_doc(tp_corpus_writer *w, tp_ctx *c, int64_t bytes);
/* Flush, checksum, close: what can fail for want of space. `sha256` may be NULL. A corpus of no
 * documents is refused. */
tp_status tp_corpus_writer_seal(tp_corpus_writer *w, tp_ctx *c, char sha256[65]);
/* The same if it was not done yet; then fsync, rename to the real name. */
tp_status tp_corpus_writer_finish(tp_corpus_writer *w, tp_ctx *c, char sha256[65]);
void tp_corpus_writer_free(tp_corpus_writer *w); /* without finish before: removes the .tmp */

#ifdef __cplusplus
}
#endif
#endif
