/* data: tokenizers. A tokenizer turns bytes into ids and back: a byte tokenizer, a byte-level BPE
 * (Sennrich et al. 2016; Radford et al. 2019) trained here, or one read from a tokenizer.json.
 *
 * Text is any bytes. decode(encode(x)) == x for every byte string x, valid UTF-8 or not. Encoding
 * adds nothing by itself: no begin-of-text (tp_encode_begin does), no end-of-text. A tokenizer never changes once made, so
 * any number of threads may share it; each thread has its own encoder. */
#ifndef TP_TOKENIZER_H
#define TP_TOKENIZER_H
#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_tokenizer tp_tokenizer;

/* Called now and then by long work; fraction in [0,1]. Returning false stops the work, which then
 * fails with TP_EINTERRUPT. */
typedef bool (*tp_progress_fn)(void *arg, double fraction, const char *what);

/* ---- making one ----------------------------------------------------------------------------- */
/* Specials are printable ASCII without spaces, such as "<|endoftext|>"; they get the last ids, in
 * the order given. specials == NULL: "<|endoftext|>" alone. */

/* Byte tokenizer: id = byte value, then the specials. */
tp_status tp_tokenizer_new_bytes(tp_tokenizer **out, tp_ctx *c, const char *const *specials,
                                 int n_specials);

/* A tokenizer.json text of n bytes; `name` stands in messages. Byte-level BPE only: what cannot be
 * honoured (a normalizer, another model, a lossy split…) is refused by name (TP_EFORMAT). The
 * tokenizer keeps the text, and tp_tokenizer_json gives it back unchanged. */
tp_status tp_tokenizer_from_json(tp_tokenizer **out, tp_ctx *c, const char *json, size_t n,
                                 const char *name);
tp_status tp_tokenizer_load(tp_tokenizer **out, tp_ctx *c, const char *path);
void tp_tokenizer_free(tp_tokenizer *t);

/* The tokenizer.json text, *n bytes and a NUL; lives as long as t. Hugging Face's tokenizers reads
 * it. Two tokenizers with equal text are the same tokenizer. */
const char *tp_tokenizer_json(const tp_tokenizer *t, size_t *n);
/* Written to a temporary name, fsync, rename: never half a file under `path`. */
tp_status tp_tokenizer_save(const tp_tokenizer *t, tp_ctx *c, const char *path);

/* ---- training byte-level BPE ---------------------------------------------------------------- */
typedef struct tp_bpe_opts {
    int64_t vocab_size;          /* ids in all: 256 bytes + merges + specials */
    const char *pattern;         /* how text is cut before merging: "gpt2" (NULL) or "cl100k" */
    const char *const *specials; /* see above */
    int n_specials;
    int64_t min_count;       /* rarer pairs are not merged; 0: 2 */
    tp_progress_fn progress; /* may be NULL */
    void *progress_arg;
} tp_bpe_opts;

/* A trainer counts the pieces of every document it is given and forgets the text. The result is a
 * function of the documents, in any order, and of the options; never of the number of threads. */
typedef struct tp_bpe_trainer tp_bpe_trainer;
tp_status tp_bpe_trainer_new(tp_bpe_trainer **out, tp_ctx *c, const tp_bpe_opts *opts);
tp_status tp_bpe_trainer_add(tp_bpe_trainer *b, const void *text, int64_t n); /* one document */
/* Merges the most frequent pair (ties: lower ids first) until vocab_size ids exist. A text too
 * small for that gives fewer: ask tp_tokenizer_vocab_size. */
tp_status tp_bpe_trainer_finish(tp_tokenizer **out, tp_bpe_trainer *b);
void tp_bpe_trainer_free(tp_bpe_trainer *b);

/* ---- asking --------------------------------------------------------------------------------- */
typedef enum tp_token_kind {
    TP_TOKEN_BYTE,    /* a single byte */
    TP_TOKEN_TEXT,    /* several bytes, made by merges */
    TP_TOKEN_ADDED,   /* found in text before anything else; not special */
    TP_TOKEN_SPECIAL, /* control token: found in text only with allow_special */
    TP_TOKEN_UNUSED   /* an id that the file leaves free */
} tp_token_kind;

int64_t tp_tokenizer_vocab_size(const tp_tokenizer *t);             /* highest id + 1 */
int64_t tp_tokenizer_longest(const tp_tokenizer *t);                /* bytes of the longest token */
tp_token_kind tp_tokenizer_kind(const tp_tokenizer *t, int32_t id); /* UNUSED out of range */
const char *tp_token_kind_name(tp_token_kind k);                    /* "special" */
/* The token's bytes (a special's name); NULL and *n = 0 for an unused id or one out of range. */
const uint8_t *tp_tokenizer_token(const tp_tokenizer *t, int32_t id, size_t *n);
/* The id whose bytes these are: an added or special token first, else text; -1 if there is none. */
int32_t tp_tokenizer_find(const tp_tokenizer *t, const void *bytes, size_t n);
/* End of text: the special named <|endoftext|>, <|end_of_text|>, <｜end▁of▁sentence｜>, </s>
 * or <eos>, the first of these that exists; -1 if none. */
int32_t tp_tokenizer_eos(const tp_tokenizer *t);
/* The special with which the file's post-processor begins every text; -1 if none. */
int32_t tp_tokenizer_bos(const tp_tokenizer *t);

/* ---- encoding ------------------------------------------------------------------------------- */
/* A growing list of ids. Start with {0}. */
typedef struct tp_ids {
    int32_t *data;
    int64_t n, cap;
} tp_ids;
tp_status tp_ids_add(tp_ids *ids, tp_ctx *c, int32_t id);
void tp_ids_clear(tp_ids *ids);

typedef struct tp_encoder_opts {
    bool allow_special; /* specials' names in the text become their ids; else they are plain text */
} tp_encoder_opts;

/* Scratch space and caches for one thread of control; uses the threads of c. t must outlive it. */
typedef struct tp_encoder tp_encoder;
tp_status tp_encoder_new(tp_encoder **out, tp_ctx *c, const tp_tokenizer *t,
                         const tp_encoder_opts *opts /* NULL: {0} */);
void tp_encoder_free(tp_encoder *e);

/* Appends the ids of a text of n bytes to *out. A stretch that the pre-tokenizer would not cut for
 * more than TP_PIECE_MAX bytes is cut there, so that time stays near linear in n. On failure *out
 * is as before. */
enum { TP_PIECE_MAX = 1 << 16 };
tp_status tp_encode(tp_ids *out, tp_encoder *e, const void *text, int64_t n);

typedef struct tp_text {
    const void *bytes;
    int64_t n;
} tp_text;
/* Appends what a text begins with: the token that tp_tokenizer_bos names, if there is one. */
tp_status tp_encode_begin(tp_ids *out, tp_encoder *e);
/* The same for many texts at once, in parallel: the ids of text i end at out->data[ends[i]], so it
 * has ids [ends[i-1], ends[i]), the first from the old out->n on. */
tp_status tp_encode_batch(tp_ids *out, int64_t *ends, tp_encoder *e, const tp_text *texts,
                          int64_t n_texts);

/* ---- decoding ------------------------------------------------------------------------------- */
/* An id that the tokenizer lacks or leaves free is shown as U+FFFD: a model with a padded
 * vocabulary may draw it. *out gets the bytes of ids[0..n) and a NUL; free it with tp_free. */
tp_status tp_decode(char **out, size_t *n_out, tp_ctx *c, const tp_tokenizer *t, const int32_t *ids,
                    int64_t n);

/* One token at a time, for terminals: holds back the bytes of a UTF-8 character that is not yet
 * complete. All that push and flush write, put together, is what tp_decode gives. Start with {0}.
 */
typedef struct tp_decoder {
    uint8_t held[4];
    int n_held;
} tp_decoder;
/* Writes to `out`, room for tp_tokenizer_longest(t) + 6 bytes; returns how many. */
size_t tp_decoder_push(tp_decoder *d, const tp_tokenizer *t, int32_t id, char *out);
size_t tp_decoder_flush(tp_decoder *d,
                        char *out); /* at the end: what is still held, 3 bytes at most */

#ifdef __cplusplus
}
#endif
#endif
