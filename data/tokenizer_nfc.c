/* Owns Unicode's normal form C of text that may be any bytes (UAX #15). utf8proc knows the
 * characters; marks are put in order here, since its own way of doing so takes quadratic time. */
#include <string.h>
#include <utf8proc.h>
#include "data/tokenizer_impl.h"

typedef struct work {
    tp_ctx *c;
    int32_t *cp; /* a run, decomposed */
    int64_t n, cap;
    uint8_t *out;
    size_t n_out, cap_out;
} work;

/* ---- characters ----------------------------------------------------------------------------- */
enum { MOST = 4, JOINED = UTF8PROC_STABLE | UTF8PROC_COMPOSE }; /* MOST: code points of one */

struct tp_nfc {
    /* Below U+10000, a bit for each character that is its own normal form and joins none before it.
     * What lies between two of these is normalised by itself, together with the first. U+11A7 is
     * one: utf8proc 2.8 would join it to a syllable before it, and so drop it. */
    uint8_t plain[0x10000 / 8];
};

static int class_of(int32_t cp) { return utf8proc_get_property(cp)->combining_class; }

/* Code points of the one decomposed, more than MOST for a failure. */
static int64_t decomposed(int32_t out[MOST], int32_t cp) {
    utf8proc_ssize_t n = utf8proc_decompose_char(
        cp, out, MOST, (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE), NULL);
    return n < 0 ? MOST + 1 : n;
}

static void mark(uint8_t *bits, int32_t cp) { bits[cp >> 3] |= (uint8_t)(1 << (cp & 7)); }
static bool marked(const uint8_t *bits, int32_t cp) { return bits[cp >> 3] >> (cp & 7) & 1; }

tp_status tp_nfc_new(tp_nfc **out, tp_ctx *c) {
    tp_nfc *f = *out = tp_calloc(c, 1, sizeof *f);
    uint8_t *joins = tp_calloc(c, 1, sizeof f->plain); /* follow another one in a decomposition */
    if (!f || !joins) {
        tp_free(f);
        tp_free(joins);
        *out = NULL;
        return TP_ENOMEM;
    }
    int32_t parts[MOST + 1];
    for (int32_t cp = 0; cp < 0x30000; cp++) { /* none beyond decomposes */
        int64_t n = decomposed(parts, cp);
        for (int64_t i = 1; i < n && i < MOST; i++)
            if (parts[i] < 0x10000) mark(joins, parts[i]);
    }
    for (int32_t cp = 0; cp < 0x10000; cp++) {
        int64_t n = decomposed(parts, cp);
        int32_t first = parts[0];
        if (n > MOST || first >= 0x10000 || class_of(first) || marked(joins, first)) continue;
        if (n > 1) n = utf8proc_normalize_utf32(parts, n, (utf8proc_option_t)JOINED);
        if (n == 1 && parts[0] == cp) mark(f->plain, cp);
    }
    tp_free(joins);
    return TP_OK;
}

/* ---- runs ----------------------------------------------------------------------------------- */
static bool plain(const tp_nfc *f, const uint8_t *p, size_t len) {
    return len == 1   ? marked(f->plain, p[0])
           : len == 2 ? marked(f->plain, (p[0] & 31) << 6 | (p[1] & 63))
           : len == 3 ? marked(f->plain, (p[0] & 15) << 12 | (p[1] & 63) << 6 | (p[2] & 63))
                      : false;
}

/* The next character that is not plain. */
static size_t next_run(const tp_nfc *f, const uint8_t *p, size_t n, size_t at) {
    const uint64_t each = 0x0101010101010101u;
    while (at < n) {
        uint64_t w; /* bytes below 0xCC, eight at a time: below U+0300 all is plain */
        while (n - at >= 8 &&
               (memcpy(&w, p + at, 8), !(((w & 0x7F * each) + 0x34 * each) & w & 0x80 * each)))
            at += 8;
        size_t len = tp_utf8_char(p + at, n - at);
        if (len && !plain(f, p + at, len)) return at;
        at += len ? len : 1;
    }
    return n;
}

static size_t end_of_run(const tp_nfc *f, const uint8_t *p, size_t n, size_t at) {
    for (size_t len; (len = tp_utf8_char(p + at, n - at)) && !plain(f, p + at, len);) at += len;
    return at;
}

/* Where the character that ends at `at` begins; `at` if there is none after `from`. */
static size_t char_before(const uint8_t *p, size_t from, size_t at) {
    for (size_t k = 1; k <= 3 && k <= at - from; k++)
        if (tp_utf8_char(p + at - k, k) == k) return at - k;
    return at;
}

/* ---- one run -------------------------------------------------------------------------------- */
static tp_status decompose(work *w, const uint8_t *p, size_t n) {
    w->n = 0;
    for (size_t i = 0; i < n;) {
        if (w->n + MOST + 1 > w->cap) { /* one more for the NUL after the text */
            int64_t cap = 2 * w->cap + 64;
            int32_t *more = tp_realloc(w->c, w->cp, (size_t)cap * sizeof *more);
            if (!more) return TP_ENOMEM;
            w->cp = more;
            w->cap = cap;
        }
        utf8proc_int32_t cp;
        utf8proc_ssize_t len = utf8proc_iterate(p + i, (utf8proc_ssize_t)(n - i), &cp);
        int64_t got = len > 0 ? decomposed(w->cp + w->n, cp) : MOST + 1;
        if (got > MOST)
            return tp_fail(w->c, TP_EARG, "tokenizer: utf8proc cannot decompose U+%04X",
                           (unsigned)cp);
        w->n += got;
        i += (size_t)len;
    }
    return TP_OK;
}

/* Marks that follow one another by their class, equals as they stand: a counting sort. */
static tp_status sort_marks(tp_ctx *c, int32_t *cp, int64_t n) {
    int64_t at[257] = {0};
    int32_t *sorted = tp_malloc(c, (size_t)n * sizeof *sorted);
    if (!sorted) return TP_ENOMEM;
    for (int64_t i = 0; i < n; i++) at[class_of(cp[i]) + 1]++;
    for (int k = 0; k < 256; k++) at[k + 1] += at[k];
    for (int64_t i = 0; i < n; i++) sorted[at[class_of(cp[i])]++] = cp[i];
    memcpy(cp, sorted, (size_t)n * sizeof *cp);
    tp_free(sorted);
    return TP_OK;
}

static tp_status order(work *w) {
    tp_status st = TP_OK;
    for (int64_t i = 0, end; i < w->n && !st; i = end + 1) {
        bool sorted = true;
        int last = 0;
        for (end = i; end < w->n; end++) {
            int k = class_of(w->cp[end]);
            if (!k) break;
            sorted &= k >= last;
            last = k;
        }
        if (!sorted) st = sort_marks(w->c, w->cp + i, end - i);
    }
    return st;
}

/* ---- all of it ------------------------------------------------------------------------------ */
static tp_status put(work *w, const void *p, size_t n) {
    if (!n) return TP_OK; /* w->out may not be there yet, which memcpy minds */
    if (n > w->cap_out - w->n_out) {
        size_t cap = w->n_out + n + (w->n_out + n) / 2;
        uint8_t *more = tp_realloc(w->c, w->out, cap);
        if (!more) return TP_ENOMEM;
        w->out = more;
        w->cap_out = cap;
    }
    memcpy(w->out + w->n_out, p, n);
    w->n_out += n;
    return TP_OK;
}

tp_status tp_nfc_form(uint8_t **out, size_t *n_out, tp_ctx *c, const tp_nfc *f, const uint8_t *text,
                      size_t n) {
    work w = {.c = c};
    size_t copied = 0, end = 0; /* text[0..copied) is in w.out; text[0..end) is looked at */
    tp_status st = TP_OK;
    for (size_t at; !st && (at = next_run(f, text, n, end)) < n;) {
        size_t from = char_before(text, end, at);
        end = end_of_run(f, text, n, at);
        if ((st = decompose(&w, text + from, end - from)) || (st = order(&w))) break;
        /* composes, and writes UTF-8 over the code points */
        utf8proc_ssize_t len = utf8proc_reencode(w.cp, w.n, (utf8proc_option_t)JOINED);
        if (len == (utf8proc_ssize_t)(end - from) && !memcmp(w.cp, text + from, (size_t)len))
            continue;
        st = len < 0 ? tp_fail(c, TP_EARG, "tokenizer: %s", utf8proc_errmsg(len))
                     : put(&w, text + copied, from - copied);
        if (!st) st = put(&w, w.cp, (size_t)len);
        copied = end;
    }
    if (!st && copied) st = put(&w, text + copied, n - copied);
    tp_free(w.cp);
    if (st) {
        tp_free(w.out);
        w = (work){0};
    }
    *out = w.out;
    *n_out = copied ? w.n_out : n;
    return st;
}
