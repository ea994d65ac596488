/* text: a growing text buffer, and numbers as text that mean the same in every locale.
 *
 * What config, metrics and checkpoint write passes through here: a double is written with the
 * fewest digits that read back to the same bits, and read strictly. */
#ifndef TP_TEXT_H
#define TP_TEXT_H
#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Zero-initialise with tp_str_init; at is NUL-terminated once something was added. The first
 * allocation that fails sets failed (and the ctx's sentence); later calls do nothing. */
typedef struct tp_str {
    tp_ctx *c;
    char *at;
    size_t len, cap;
    bool failed;
} tp_str;

void tp_str_init(tp_str *t, tp_ctx *c);
void tp_str_clear(tp_str *t); /* frees; the text may be used again */
void tp_str_add(tp_str *t, const char *bytes, size_t n);
void tp_str_puts(tp_str *t, const char *s);
void tp_str_printf(tp_str *t, const char *fmt, ...) TP_PRINTF(2, 3);
/* s as a JSON string (RFC 8259, section 7) with its quotes. Bytes that are not UTF-8 become U+FFFD.
 */
void tp_str_json(tp_str *t, const char *s);
void tp_str_json_n(tp_str *t, const char *s, size_t n); /* of n bytes, NULs among them */
/* Whether n bytes of JSON have a NUL, or an escaped one: cJSON keeps strings as C strings, and it
 * would silently end one. */
bool tp_json_has_nul(const char *s, size_t n);
/* s as a double-quoted YAML scalar that libyaml reads back to the same bytes; s must be UTF-8. */
void tp_str_yaml(tp_str *t, const char *s);

enum { TP_F64_TEXT = 32 };
/* v with the fewest of 15, 16 or 17 digits that read back to v: "0.1", "1e-8". v must be finite. */
void tp_f64_print(char out[TP_F64_TEXT], double v);
/* Strict readers of all n bytes at s. They return NULL, or why not in words that follow "must":
 * no blanks, no digit separators, no hex, no NaN or infinity, no value lost to rounding to 0 or
 * past the largest double; a whole number has digits only. */
const char *tp_f64_parse(double *out, const char *s, size_t n);
const char *tp_i64_parse(int64_t *out, const char *s, size_t n);

/* Decodes one UTF-8 character of at most n bytes at s. Returns its length in bytes, or 0 where the
 * bytes are not UTF-8 (overlong forms, surrogates and values above U+10FFFF are refused). */
int tp_utf8_decode(uint32_t *code, const char *s, size_t n);
/* Copies s for use in a message: at most cap-1 bytes, control characters and foreign bytes as '?',
 * "…" where it was cut. Returns out. */
const char *tp_quote(char *out, size_t cap, const char *s, size_t n);

/* Replaces path by n bytes, all or nothing: writes PATH.tmp, fsync, rename, fsync of the folder. */
tp_status tp_write_file(tp_ctx *c, const char *path, const void *bytes, size_t n);
#ifdef __cplusplus
}
#endif
#endif
