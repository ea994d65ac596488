/* Where a corpus' text comes from: files, folders, standard input; plain text or JSON lines. Hands
 * out one document after the other, long ones in pieces, so that memory stays bounded.
 *
 * Folders are read recursively, in the byte order of their paths; hidden files are left out, and so
 * are files that are no text (counted). A file named by the user that is no text is an error. Bytes
 * are handed on as they are, valid UTF-8 or not; a byte order mark at the start of a file goes. */
#ifndef TP_TEXTSOURCE_H
#define TP_TEXTSOURCE_H
#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum tp_text_format {
    TP_TEXT_BY_NAME, /* .jsonl and .ndjson: JSON lines; all else plain */
    TP_TEXT_PLAIN,
    TP_TEXT_JSONL
} tp_text_format;

typedef struct tp_text_opts {
    tp_text_format format;
    const char *json_key;      /* JSON lines: the key of the text; NULL: "text" */
    const char *split_line;    /* plain text: documents end at a line that is exactly this; "": at
                                  blank lines; NULL: a file is one document */
    int64_t piece_bytes;       /* long documents come in pieces of about this size; 0: 1 MiB */
    bool (*interrupted)(void); /* true ends the wait for a pipe (TP_EINTERRUPT); may be NULL */
} tp_text_opts;

/* Part of a document; valid until the next call. A piece ends between an ASCII letter or digit and
 * a space or line end, where the pre-tokenizers of GPT-2, cl100k and their kin cut anyway and look
 * no further: tokens do not depend on the pieces. Only a stretch of 16 piece_bytes without such a
 * place is cut elsewhere, between UTF-8 characters. Never empty. */
typedef struct tp_text_piece {
    const char *bytes;
    int64_t n;
    bool begins, ends; /* the document's first and last piece */
    const char *name;  /* the file; "standard input" */
    int64_t line;      /* where the document begins, from 1 */
} tp_text_piece;

typedef struct tp_text_counts {
    int64_t files;              /* that are read */
    int64_t json_lines;         /* of them, as JSON lines */
    int64_t bytes;              /* in all files together */
    int64_t bytes_done;         /* read so far in this pass */
    int64_t docs;               /* handed out so far in this pass */
    int64_t empty;              /* documents without text, left out in this pass */
    int64_t not_text;           /* files of folders left out because they are no text */
    const char *first_not_text; /* one of them, "" if none */
} tp_text_counts;

typedef struct tp_text_source tp_text_source;

/* Lists and sizes every input; "-" is standard input (copied to a nameless temporary file, so that
 * it can be read twice, as are pipes). Errors name the file: missing, compressed, no text, none. */
tp_status tp_text_open(tp_text_source **out, tp_ctx *c, const char *const *paths, int64_t n_paths,
                       const tp_text_opts *opts /* NULL: {0} */);
/* The next piece; *more is false (and *piece empty) after the last. */
tp_status tp_text_next(tp_text_source *s, tp_ctx *c, tp_text_piece *piece, bool *more);
void tp_text_rewind(tp_text_source *s); /* next starts again with the first document */
bool tp_text_reads(const tp_text_source *s, const char *path); /* is it one of the inputs? */
tp_text_counts tp_text_get_counts(const tp_text_source *s);
void tp_text_close(tp_text_source *s);

/* Where to end a piece of about `target` bytes of text[0..n): the last good place up to target,
 * else the first after it; 0 if there is none, or it is not certain yet, before n. */
int64_t tp_text_cut(const char *text, int64_t n, int64_t target);
/* `at`, or a little less: moved in front of the UTF-8 character that it would cut. */
int64_t tp_text_char_start(const char *text, int64_t n, int64_t at);

#ifdef __cplusplus
}
#endif
#endif
