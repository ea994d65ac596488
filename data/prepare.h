/* From text to corpora: trains a tokenizer if none is given, encodes every document, holds out the
 * end of the text for validation. The work behind `tapir prepare`. */
#ifndef TP_PREPARE_H
#define TP_PREPARE_H
#include "data/corpus.h"
#include "data/textsource.h"
#include "data/tokenizer.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_prepare_opts {
    const tp_tokenizer *tokenizer; /* NULL: train one on the training part, after bpe */
    tp_bpe_opts bpe;               /* its progress is set here */
    double val_fraction; /* of the text's bytes, 0 to below 1: the documents that begin in the last
                            part. If none begins there the last document is cut, at a line end. */
    int deflate;         /* see tp_corpus_meta */
    const char *sources; /* see tp_corpus_meta */
    tp_progress_fn progress; /* each stage counts its own fraction from 0 to 1; may be NULL */
    void *progress_arg;
} tp_prepare_opts;

typedef struct tp_prepare_part {
    int64_t docs, bytes, tokens; /* tokens: with an end token for each document */
    char sha256[65];
} tp_prepare_part;

typedef struct tp_prepare_result {
    tp_prepare_part train, val;           /* val: all 0 without a val_fraction */
    int64_t vocab, empty;                 /* empty: documents without text that were left out */
    double train_seconds, encode_seconds; /* of the tokenizer */
} tp_prepare_result;

/* Reads src from its beginning, up to four times. Nothing appears under train_path or val_path
 * (may be NULL if val_fraction is 0) unless all went well. The files are the same for any number of
 * threads. */
tp_status tp_prepare(tp_prepare_result *out, tp_ctx *c, tp_text_source *src, const char *train_path,
                     const char *val_path, const tp_prepare_opts *opts);

#ifdef __cplusplus
}
#endif
#endif
