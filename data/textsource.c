/* Cutting files into documents and long documents into pieces. One buffer slides over the current
 * file; a document that must be whole (a JSON line, a split document) makes it grow. */
#include "data/textsource.h"
#include "data/jsonl.h"
#include "data/textfiles.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PIECE_BYTES = 1 << 20, FORCE_AFTER = 16 };

struct tp_text_source {
    tp_text_files files;
    tp_text_format format;
    int64_t json_lines;          /* files that are read so */
    char *json_key, *split_line; /* split_line NULL: files are documents */
    int64_t piece;

    int64_t at; /* the current file */
    bool is_open, jsonl, eof;
    int fd;
    int64_t offset; /* bytes read from it */
    char *buf;      /* [lo,hi) is not yet handed out */
    int64_t lo, hi, cap;
    int64_t line; /* of buf[lo], from 1 */

    const char *doc;                /* rest of a document that is whole in memory; NULL: none */
    int64_t doc_n, doc_line, after; /* after: bytes of buf to drop once doc is handed out */
    int64_t pending;                /* bytes of the last piece, to drop from buf at the next call */
    bool inside;                    /* a document has begun and not ended */
    char *text;                     /* a decoded JSON string */
    int64_t cap_text;
    int64_t docs, empty, bytes_done;
};

/* ---- where text may be cut ------------------------------------------------------------------ */

static bool good_cut(const char *t, int64_t p) {
    char a = t[p - 1], b = t[p];
    bool word = (a >= 'a' && a <= 'z') || (a >= 'A' && a <= 'Z') || (a >= '0' && a <= '9');
    return word && (b == ' ' || b == '\n' || b == '\r' || b == '\t');
}

int64_t tp_text_cut(const char *t, int64_t n, int64_t target) {
    for (int64_t p = target < n ? target : n - 1; p > 0; p--)
        if (good_cut(t, p)) return p;
    for (int64_t p = target + 1; p < n; p++)
        if (good_cut(t, p)) return p;
    return 0;
}

int64_t tp_text_char_start(const char *t, int64_t n, int64_t at) {
    if (at >= n) return n;
    for (int64_t p = at; p > 0 && p > at - 4; p--)
        if (((unsigned char)t[p] & 0xc0) != 0x80) return p;
    return at; /* no UTF-8 anyway */
}

/* ---- the sliding buffer --------------------------------------------------------------------- */

static tp_status reserve(tp_ctx *c, char **buf, int64_t *cap, int64_t want) {
    if (want <= *cap) return TP_OK;
    int64_t n = *cap ? *cap : 1 << 16;
    while (n < want) n *= 2;
    char *more = tp_realloc(c, *buf, (size_t)n);
    if (!more) return TP_ENOMEM;
    *buf = more;
    *cap = n;
    return TP_OK;
}

/* Reads on until `want` bytes are there or the file ends. */
static tp_status fill(tp_text_source *s, tp_ctx *c, int64_t want) {
    const tp_text_file *f = &s->files.file[s->at];
    if (s->eof || s->hi - s->lo >= want) return TP_OK;
    if (s->lo) memmove(s->buf, s->buf + s->lo, (size_t)(s->hi - s->lo));
    s->hi -= s->lo;
    s->lo = 0;
    tp_scope name = tp_scope_open(c, "%s", f->path);
    tp_status st = reserve(c, &s->buf, &s->cap, want);
    tp_scope_close(c, name, NULL);
    if (st) return st;
    while (s->hi < want) {
        ssize_t n = pread(s->fd, s->buf + s->hi, (size_t)(s->cap - s->hi), (off_t)s->offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return tp_fail(c, TP_EIO, "text: %s: %s", f->path, strerror(errno));
        s->hi += n;
        s->offset += n;
        if (n) continue;
        s->eof = true;
        if (s->offset != f->size)
            return tp_fail(c, TP_EIO,
                           "text: %s changed while it was read: it had %lld bytes, now "
                           "%lld",
                           f->path, (long long)f->size, (long long)s->offset);
        break;
    }
    return TP_OK;
}

static void drop(tp_text_source *s, int64_t n) {
    for (const char *p = s->buf + s->lo, *end = p + n; (p = memchr(p, '\n', (size_t)(end - p)));) {
        s->line++;
        if (++p == end) break;
    }
    s->lo += n;
    s->bytes_done += n;
}

/* Length of the line that begins `from` bytes after lo, with its line end; 0 at the end. */
static tp_status line_length(tp_text_source *s, tp_ctx *c, int64_t from, int64_t *n) {
    int64_t seen = from;
    for (;;) {
        const char *start = s->buf + s->lo;
        int64_t have = s->hi - s->lo;
        const char *nl = have > seen ? memchr(start + seen, '\n', (size_t)(have - seen)) : NULL;
        if (nl || s->eof) {
            *n = nl ? nl + 1 - (start + from) : have - from;
            return TP_OK;
        }
        seen = have;
        int64_t step = have > 1 << 16 ? have : 1 << 16; /* doubling: linear time for huge lines */
        tp_status st = fill(s, c, have + step);
        if (st) return st;
    }
}

/* ---- files ---------------------------------------------------------------------------------- */

static bool ends_with(const char *s, const char *tail) {
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && !strcasecmp(s + n - m, tail);
}

static bool is_jsonl(const tp_text_source *s, const tp_text_file *f) {
    return s->format == TP_TEXT_JSONL ||
           (s->format == TP_TEXT_BY_NAME &&
            (ends_with(f->path, ".jsonl") || ends_with(f->path, ".ndjson")));
}

static tp_status open_file(tp_text_source *s, tp_ctx *c) {
    const tp_text_file *f = &s->files.file[s->at];
    s->jsonl = is_jsonl(s, f);
    s->fd = f->spool >= 0 ? f->spool : open(f->path, O_RDONLY | O_CLOEXEC);
    if (s->fd < 0) return tp_fail(c, TP_EIO, "text: %s: %s", f->path, strerror(errno));
    s->is_open = true;
    s->eof = false;
    s->offset = s->lo = s->hi = 0;
    s->line = 1;
    tp_status st = fill(s, c, 3);
    if (!st && s->hi - s->lo >= 3 && !memcmp(s->buf + s->lo, "\xef\xbb\xbf", 3)) drop(s, 3);
    return st;
}

static void close_file(tp_text_source *s) {
    if (s->is_open && s->files.file[s->at].spool < 0) close(s->fd);
    s->is_open = false;
}

/* ---- documents ------------------------------------------------------------------------------ */

static bool is_blank(const char *t, int64_t n) {
    while (n && (t[n - 1] == ' ' || t[n - 1] == '\t' || t[n - 1] == '\r' || t[n - 1] == '\n')) n--;
    return !n;
}

/* Without its line end. */
static int64_t chomp(const char *t, int64_t n) {
    if (n && t[n - 1] == '\n') n--;
    if (n && t[n - 1] == '\r') n--;
    return n;
}

static bool is_split(const tp_text_source *s, const char *t, int64_t n) {
    if (!s->split_line[0]) return is_blank(t, n);
    n = chomp(t, n);
    return (size_t)n == strlen(s->split_line) && !memcmp(t, s->split_line, (size_t)n);
}

/* The next document that ends at a split line, as doc in buf. */
static tp_status load_split(tp_text_source *s, tp_ctx *c) {
    int64_t n = 0, len;
    tp_status st;
    for (;;) {
        if ((st = line_length(s, c, n, &len))) return st;
        if (!len || is_split(s, s->buf + s->lo + n, len)) break;
        n += len;
    }
    s->doc = s->buf + s->lo;
    s->doc_line = s->line;
    s->doc_n = chomp(s->doc, n);
    s->after = n + len;
    return TP_OK;
}

/* The next line's text, decoded. */
static tp_status load_json(tp_text_source *s, tp_ctx *c) {
    int64_t len;
    size_t n, at;
    tp_status st = line_length(s, c, 0, &len);
    if (st || (st = reserve(c, &s->text, &s->cap_text, len))) return st;
    s->doc = s->text;
    s->doc_line = s->line;
    s->doc_n = 0;
    s->after = len;
    if (is_blank(s->buf + s->lo, len)) return TP_OK;
    size_t line = (size_t)chomp(s->buf + s->lo, len);
    const char *why = tp_jsonl_text(s->buf + s->lo, line, s->json_key, s->text, &n, &at);
    if (why)
        return tp_fail(c, TP_EFORMAT, "text: %s:%lld: byte %zu: %s (wanted {\"%s\": \"…\"})",
                       s->files.file[s->at].path, (long long)s->line, at + 1, why, s->json_key);
    s->doc_n = (int64_t)n;
    s->empty += !n;
    return TP_OK;
}

/* A piece of the document that is in memory. */
static void piece_of_doc(tp_text_source *s, tp_text_piece *p) {
    int64_t n = s->doc_n;
    if (n > s->piece) {
        int64_t limit = n < FORCE_AFTER * s->piece ? n : FORCE_AFTER * s->piece;
        int64_t cut = tp_text_cut(s->doc, limit, s->piece);
        n = cut ? cut : tp_text_char_start(s->doc, n, limit);
    }
    *p = (tp_text_piece){.bytes = s->doc,
                         .n = n,
                         .begins = !s->inside,
                         .ends = n == s->doc_n,
                         .name = s->files.file[s->at].path,
                         .line = s->doc_line};
    s->doc += n;
    s->doc_n -= n;
    if (!p->ends) return;
    s->doc = NULL;
    s->pending = s->after;
}

/* A piece of a file that is one document; more of it is read only as needed. */
static tp_status piece_of_file(tp_text_source *s, tp_ctx *c, tp_text_piece *p) {
    tp_status st = fill(s, c, s->piece + 1);
    int64_t n = s->hi - s->lo, cut = 0, limit = s->piece + 1;
    if (st) return st;
    if (!s->inside) s->doc_line = s->line;
    if (n > s->piece) {
        for (;; limit *= 2) {
            if (limit > FORCE_AFTER * s->piece) limit = FORCE_AFTER * s->piece;
            if ((st = fill(s, c, limit))) return st;
            n = s->hi - s->lo < limit ? s->hi - s->lo : limit;
            if ((cut = tp_text_cut(s->buf + s->lo, n, s->piece))) break;
            if (n < limit || limit == FORCE_AFTER * s->piece) break;
        }
        if (!cut) {
            if ((st = fill(s, c, n + 1))) return st; /* is there more? */
            cut = tp_text_char_start(s->buf + s->lo, s->hi - s->lo, n);
        }
        n = cut;
    }
    *p = (tp_text_piece){.bytes = s->buf + s->lo,
                         .n = n,
                         .begins = !s->inside,
                         .ends = s->eof && n == s->hi - s->lo,
                         .name = s->files.file[s->at].path,
                         .line = s->doc_line};
    s->pending = n;
    return TP_OK;
}

/* One step in the current file: a piece, or (p->n = 0) a blank line or empty text was passed. */
static tp_status step(tp_text_source *s, tp_ctx *c, tp_text_piece *p) {
    tp_status st = TP_OK;
    if (!s->doc && s->jsonl) {
        st = load_json(s, c);
    } else if (!s->doc && s->split_line) {
        st = load_split(s, c);
    } else if (!s->doc) {
        return piece_of_file(s, c, p);
    }
    if (!st) piece_of_doc(s, p);
    return st;
}

tp_status tp_text_next(tp_text_source *s, tp_ctx *c, tp_text_piece *p, bool *more) {
    tp_status st;
    *more = false;
    *p = (tp_text_piece){.bytes = ""};
    for (;;) {
        if (s->is_open) {
            drop(s, s->pending);
            s->pending = 0;
            if (!s->doc && (st = fill(s, c, 1))) return st;
            if (!s->doc && s->lo == s->hi && s->eof) {
                close_file(s);
                s->at++;
            }
        }
        if (!s->is_open) {
            if (s->at == s->files.n) return TP_OK;
            if ((st = open_file(s, c))) return st;
            s->empty += s->lo == s->hi;
            continue;
        }
        if ((st = step(s, c, p))) return st;
        if (!p->n) continue;
        s->inside = !p->ends;
        s->docs += p->begins;
        *more = true;
        return TP_OK;
    }
}

void tp_text_rewind(tp_text_source *s) {
    close_file(s);
    s->at = s->lo = s->hi = s->pending = s->docs = s->empty = s->bytes_done = 0;
    s->doc = NULL;
    s->inside = false;
}

bool tp_text_reads(const tp_text_source *s, const char *path) {
    struct stat a, b;
    if (stat(path, &a)) return false;
    for (int64_t i = 0; i < s->files.n; i++)
        if (s->files.file[i].spool < 0 && !stat(s->files.file[i].path, &b) &&
            a.st_dev == b.st_dev && a.st_ino == b.st_ino)
            return true;
    return false;
}

tp_text_counts tp_text_get_counts(const tp_text_source *s) {
    return (tp_text_counts){.files = s->files.n,
                            .json_lines = s->json_lines,
                            .bytes = s->files.bytes,
                            .bytes_done = s->bytes_done,
                            .docs = s->docs,
                            .empty = s->empty,
                            .not_text = s->files.not_text,
                            .first_not_text =
                                s->files.first_not_text ? s->files.first_not_text : ""};
}

tp_status tp_text_open(tp_text_source **out, tp_ctx *c, const char *const *paths, int64_t n_paths,
                       const tp_text_opts *opts) {
    static const tp_text_opts defaults;
    *out = NULL;
    if (!opts) opts = &defaults;
    if (n_paths < 1) return tp_fail(c, TP_EARG, "text: no file or folder was named");
    if (opts->piece_bytes < 0 || opts->piece_bytes > 1 << 30)
        return tp_fail(c, TP_EARG, "text: pieces of %lld bytes cannot be made; 1 to 2^30 can",
                       (long long)opts->piece_bytes);
    tp_text_source *s = tp_calloc(c, 1, sizeof *s);
    if (!s) return TP_ENOMEM;
    tp_status st = TP_OK;
    s->format = opts->format;
    s->files.interrupted = opts->interrupted;
    s->piece = opts->piece_bytes ? opts->piece_bytes : PIECE_BYTES;
    if (!(s->json_key = tp_strdup(c, opts->json_key ? opts->json_key : "text")) ||
        (opts->split_line && !(s->split_line = tp_strdup(c, opts->split_line))) ||
        reserve(c, &s->buf, &s->cap, 1))
        st = TP_ENOMEM;
    for (int64_t i = 0; !st && i < n_paths; i++) st = tp_text_files_add(&s->files, c, paths[i]);
    for (int64_t i = 0; i < s->files.n; i++) s->json_lines += is_jsonl(s, &s->files.file[i]);
    if (!st && !s->files.n)
        st = tp_fail(c, TP_EARG, "text: there is no text file in %s%s (%lld files are no text)",
                     paths[0], n_paths > 1 ? " and the others" : "", (long long)s->files.not_text);
    if (st)
        tp_text_close(s);
    else
        *out = s;
    return st;
}

void tp_text_close(tp_text_source *s) {
    if (!s) return;
    close_file(s);
    tp_text_files_clear(&s->files);
    tp_free(s->json_key);
    tp_free(s->split_line);
    tp_free(s->buf);
    tp_free(s->text);
    tp_free(s);
}
