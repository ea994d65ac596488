/* Owns the tokenizer object: asking it about ids, decoding, and its file. */
#include "data/files.h"
#include "data/text.h"
#include "data/tokenizer_impl.h"
#include <stdio.h>
#include <string.h>

/* The byte-level alphabet. Printable Latin-1 stands for itself; the other 68 bytes, in order, are
 * U+0100 to U+0143. */
static bool stands_for_itself(uint32_t b) {
    return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
}

uint32_t tp_byte_to_char(uint8_t b) {
    if (stands_for_itself(b)) return b;
    if (b <= 0x20) return 0x100u + b;        /* 33 bytes: 0x00 to 0x20 */
    if (b <= 0xA0) return 0x121u + b - 0x7F; /* 34 bytes: 0x7F to 0xA0 */
    return 0x143;                            /* 0xAD, the soft hyphen */
}

int tp_char_to_byte(uint32_t ch) {
    if (ch < 0x100) return stands_for_itself(ch) ? (int)ch : -1;
    if (ch <= 0x120) return (int)(ch - 0x100);
    if (ch <= 0x142) return (int)(ch - 0x121 + 0x7F);
    return ch == 0x143 ? 0xAD : -1;
}

size_t tp_utf8_put(char out[4], uint32_t cp) {
    if (cp < 0x80) return out[0] = (char)cp, 1;
    if (cp < 0x800) return out[0] = (char)(0xC0 | cp >> 6), out[1] = (char)(0x80 | (cp & 63)), 2;
    if (cp < 0x10000) {
        out[0] = (char)(0xE0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 63));
        return out[2] = (char)(0x80 | (cp & 63)), 3;
    }
    out[0] = (char)(0xF0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 63));
    out[2] = (char)(0x80 | (cp >> 6 & 63));
    return out[3] = (char)(0x80 | (cp & 63)), 4;
}

void tp_show(char out[64], const char *s) {
    size_t n = strnlen(s, 48);
    if (s[n]) /* cut: not in the middle of a character */
        while (n && ((unsigned char)s[n] & 0xC0) == 0x80) n--;
    for (size_t i = 0; i < n; i++) out[i] = (unsigned char)s[i] < ' ' || s[i] == 0x7F ? '?' : s[i];
    snprintf(out + n, 64 - n, "%s", s[n] ? "..." : "");
}

/* ---- asking --------------------------------------------------------------------------------- */
int64_t tp_tokenizer_vocab_size(const tp_tokenizer *t) { return t->n_vocab; }
int64_t tp_tokenizer_longest(const tp_tokenizer *t) { return t->longest; }
int32_t tp_tokenizer_eos(const tp_tokenizer *t) { return t->eos; }
int32_t tp_tokenizer_bos(const tp_tokenizer *t) { return t->bos; }

const char *tp_tokenizer_json(const tp_tokenizer *t, size_t *n) {
    if (n) *n = t->n_json;
    return t->json;
}

tp_token_kind tp_tokenizer_kind(const tp_tokenizer *t, int32_t id) {
    return id < 0 || id >= t->n_vocab ? TP_TOKEN_UNUSED : (tp_token_kind)t->kind[id];
}

const char *tp_token_kind_name(tp_token_kind k) {
    static const char *const names[] = {"byte", "text", "added", "special", "unused"};
    return (unsigned)k < sizeof names / sizeof *names ? names[k] : "?";
}

const uint8_t *tp_tokenizer_token(const tp_tokenizer *t, int32_t id, size_t *n) {
    if (tp_tokenizer_kind(t, id) == TP_TOKEN_UNUSED) {
        *n = 0;
        return NULL;
    }
    *n = (size_t)(t->start[id + 1] - t->start[id]);
    return t->bytes + t->start[id];
}

int32_t tp_tokenizer_find(const tp_tokenizer *t, const void *bytes, size_t n) {
    const int64_t *id = tp_bytemap_find(&t->added, bytes, n);
    if (!id) id = tp_bytemap_find(&t->text, bytes, n);
    return id ? (int32_t)*id : -1;
}

void tp_tokenizer_free(tp_tokenizer *t) {
    if (!t) return;
    tp_free(t->json);
    tp_free(t->bytes);
    tp_free(t->start);
    tp_free(t->kind);
    tp_bytemap_clear(&t->text);
    tp_bytemap_clear(&t->added);
    tp_free(t->nfc);
    tp_free(t->raw.ids);
    tp_free(t->found.ids);
    tp_free(t->merges);
    tp_pretok_clear(&t->pretok);
    tp_free(t);
}

/* ---- making one ----------------------------------------------------------------------------- */
tp_status tp_specials_check(tp_ctx *c, const char *const **specials, int *n) {
    static const char *const standard[] = {"<|endoftext|>"};
    if (!*specials) {
        *specials = standard;
        *n = 1;
    }
    if (*n < 0 || *n > 65536)
        return tp_fail(c, TP_EARG, "tokenizer: got %d special tokens, wanted 0 to 65536", *n);
    for (int i = 0; i < *n; i++) {
        const char *s = (*specials)[i];
        size_t len = s ? strlen(s) : 0;
        bool fit = len >= 2 && len <= 256;
        for (size_t k = 0; k < len && fit; k++) fit = s[k] > ' ' && s[k] < 0x7F;
        char shown[64];
        if (!fit)
            return tp_fail(c, TP_EARG,
                           "tokenizer: special token \"%s\" must be 2 to 256 printable ASCII "
                           "characters without spaces",
                           (tp_show(shown, s ? s : ""), shown));
        for (int k = 0; k < i; k++)
            if (!strcmp(s, (*specials)[k]))
                return tp_fail(c, TP_EARG, "tokenizer: special token \"%s\" is given twice",
                               (tp_show(shown, s), shown));
    }
    return TP_OK;
}

tp_status tp_tokenizer_new_bytes(tp_tokenizer **out, tp_ctx *c, const char *const *specials,
                                 int n_specials) {
    *out = NULL;
    tp_status st = tp_specials_check(c, &specials, &n_specials);
    if (st) return st;
    uint8_t bytes[256];
    uint64_t start[257];
    for (int i = 0; i < 257; i++) start[i] = (uint64_t)i;
    for (int i = 0; i < 256; i++) bytes[i] = (uint8_t)i;
    const tp_bpe_model model = {.pattern = "",
                                .n_tokens = 256,
                                .bytes = bytes,
                                .start = start,
                                .specials = specials,
                                .n_specials = n_specials};
    tp_text_buf json = {0};
    st = tp_tokenizer_write(&json, c, &model);
    if (!st) st = tp_tokenizer_from_json(out, c, json.data, json.n, "byte tokenizer");
    tp_free(json.data);
    return st;
}

tp_status tp_tokenizer_load(tp_tokenizer **out, tp_ctx *c, const char *path) {
    char *text;
    size_t n;
    *out = NULL;
    tp_status st = tp_read_file(&text, &n, c, path, (size_t)1 << 30);
    if (!st) st = tp_tokenizer_from_json(out, c, text, n, path);
    tp_free(text);
    return st;
}

tp_status tp_tokenizer_save(const tp_tokenizer *t, tp_ctx *c, const char *path) {
    return tp_write_file(c, path, t->json, t->n_json);
}

/* ---- decoding ------------------------------------------------------------------------------- */
/* A model's vocabulary may be wider than the tokenizer's, so that any of its ids may be drawn. */
static const uint8_t *bytes_of(const tp_tokenizer *t, int32_t id, size_t *n) {
    static const uint8_t replacement[] = {0xEF, 0xBF, 0xBD};
    const uint8_t *b = tp_tokenizer_token(t, id, n);
    if (b) return b;
    *n = sizeof replacement;
    return replacement;
}

tp_status tp_decode(char **out, size_t *n_out, tp_ctx *c, const tp_tokenizer *t, const int32_t *ids,
                    int64_t n) {
    *out = NULL;
    *n_out = 0;
    size_t total = 0;
    for (int64_t i = 0; i < n; i++) {
        size_t len;
        bytes_of(t, ids[i], &len);
        if (len > SIZE_MAX - 1 - total)
            return tp_fail(c, TP_ENOMEM, "decode: the text would not fit into memory");
        total += len;
    }
    char *p = *out = tp_malloc(c, total + 1);
    if (!p) return TP_ENOMEM;
    for (int64_t i = 0; i < n; i++) {
        size_t len;
        const uint8_t *b = bytes_of(t, ids[i], &len);
        memcpy(p, b, len);
        p += len;
    }
    *p = 0;
    *n_out = total;
    return TP_OK;
}

/* How many bytes at the end begin a character that more bytes could complete. */
static size_t unfinished(const uint8_t *p, size_t n) {
    static const uint8_t fill[3][3] = {{0x80, 0x80, 0x80}, {0xA0, 0x80, 0x80}, {0x90, 0x80, 0x80}};
    for (size_t k = 1; k <= 3 && k <= n; k++) {
        const uint8_t *tail = p + n - k;
        if ((tail[0] & 0xC0) == 0x80) continue;
        if (tail[0] < 0x80 || tp_utf8_char(tail, k)) return 0;
        for (int f = 0; f < 3; f++) { /* after E0 and F0 the second byte has a higher lower bound */
            uint8_t ch[6];
            memcpy(ch, tail, k);
            memcpy(ch + k, fill[f], 3);
            if (tp_utf8_char(ch, k + 3) > k) return k;
        }
        return 0;
    }
    return 0;
}

size_t tp_decoder_push(tp_decoder *d, const tp_tokenizer *t, int32_t id, char *out) {
    size_t len, n = (size_t)d->n_held;
    const uint8_t *b = bytes_of(t, id, &len);
    memcpy(out, d->held, n);
    memcpy(out + n, b, len);
    n += len;
    size_t hold = unfinished((const uint8_t *)out, n);
    memcpy(d->held, out + n - hold, hold);
    d->n_held = (int)hold;
    return n - hold;
}

size_t tp_decoder_flush(tp_decoder *d, char *out) {
    size_t n = (size_t)d->n_held;
    memcpy(out, d->held, n);
    d->n_held = 0;
    return n;
}
