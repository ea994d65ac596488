/* text: growing buffer, strict numbers, JSON and YAML strings, whole-file replacement. */
#include "data/text.h"
#include "data/files.h"
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void tp_str_init(tp_str *t, tp_ctx *c) { *t = (tp_str){.c = c}; }

void tp_str_clear(tp_str *t) {
    tp_free(t->at);
    tp_str_init(t, t->c);
}

static bool reserve(tp_str *t, size_t more) {
    if (t->failed) return false;
    if (more >= SIZE_MAX / 2 - t->len) {
        tp_fail(t->c, TP_ENOMEM, "text: more than %zu bytes", SIZE_MAX / 2);
        return !(t->failed = true);
    }
    size_t need = t->len + more + 1;
    if (need <= t->cap) return true;
    size_t cap = t->cap ? t->cap : 256;
    while (cap < need) cap *= 2;
    char *at = tp_realloc(t->c, t->at, cap);
    if (!at) return !(t->failed = true);
    t->at = at;
    t->cap = cap;
    return true;
}

void tp_str_add(tp_str *t, const char *bytes, size_t n) {
    if (!reserve(t, n)) return;
    if (n) memcpy(t->at + t->len, bytes, n);
    t->len += n;
    t->at[t->len] = 0;
}

void tp_str_puts(tp_str *t, const char *s) { tp_str_add(t, s, strlen(s)); }

void tp_str_printf(tp_str *t, const char *fmt, ...) {
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    if (n >= 0 && reserve(t, (size_t)n)) {
        vsnprintf(t->at + t->len, (size_t)n + 1, fmt, again);
        t->len += (size_t)n;
    }
    va_end(again);
    va_end(ap);
}

int tp_utf8_decode(uint32_t *code, const char *s, size_t n) {
    static const uint32_t smallest[5] = {0, 0, 0x80, 0x800, 0x10000};
    if (!n) return 0;
    unsigned char b = (unsigned char)s[0];
    int len = b < 0x80 ? 1 : b < 0xC0 ? 0 : b < 0xE0 ? 2 : b < 0xF0 ? 3 : b < 0xF8 ? 4 : 0;
    if (!len || (size_t)len > n) return 0;
    uint32_t v = len == 1 ? b : b & (0x7Fu >> len);
    for (int i = 1; i < len; i++) {
        unsigned char more = (unsigned char)s[i];
        if ((more & 0xC0) != 0x80) return 0;
        v = v << 6 | (more & 0x3Fu);
    }
    if (v < smallest[len] || v > 0x10FFFF || (v >= 0xD800 && v <= 0xDFFF)) return 0;
    *code = v;
    return len;
}

void tp_str_json(tp_str *t, const char *s) { tp_str_json_n(t, s, strlen(s)); }

void tp_str_json_n(tp_str *t, const char *s, size_t n) {
    tp_str_add(t, "\"", 1);
    while (n) {
        uint32_t code = 0;
        int len = tp_utf8_decode(&code, s, n);
        if (!len)
            tp_str_puts(t, "\xEF\xBF\xBD");
        else if (code == '"' || code == '\\')
            tp_str_printf(t, "\\%c", (int)code);
        else if (code == '\n')
            tp_str_puts(t, "\\n");
        else if (code < 0x20 || code == 0x7F)
            tp_str_printf(t, "\\u%04x", (unsigned)code);
        else
            tp_str_add(t, s, (size_t)len);
        s += len ? len : 1;
        n -= (size_t)(len ? len : 1);
    }
    tp_str_add(t, "\"", 1);
}

bool tp_json_has_nul(const char *s, size_t n) {
    if (memchr(s, 0, n)) return true;
    for (size_t i = 0; i + 6 <= n; i++) {
        if (s[i] != '\\') continue;
        if (!memcmp(s + i, "\\u0000", 6)) return true;
        i++; /* the escaped character, maybe a backslash */
    }
    return false;
}

/* What YAML calls printable and does not treat as a line break or byte order mark. */
static bool yaml_plain(uint32_t code) {
    return (code >= 0x20 && code < 0x7F) || (code >= 0xA0 && code < 0x2028) ||
           (code > 0x2029 && code < 0xFEFF) || (code > 0xFEFF && code <= 0xFFFD) || code >= 0x10000;
}

void tp_str_yaml(tp_str *t, const char *s) {
    tp_str_add(t, "\"", 1);
    for (size_t n = strlen(s); n;) {
        uint32_t code = 0;
        int len = tp_utf8_decode(&code, s, n);
        if (code == '"' || code == '\\')
            tp_str_printf(t, "\\%c", (int)code);
        else if (code == '\n')
            tp_str_puts(t, "\\n");
        else if (code == '\t')
            tp_str_puts(t, "\\t");
        else if (len && yaml_plain(code))
            tp_str_add(t, s, (size_t)len);
        else
            tp_str_printf(t, "\\u%04X", len ? (unsigned)code : 0xFFFDu);
        s += len ? len : 1;
        n -= (size_t)(len ? len : 1);
    }
    tp_str_add(t, "\"", 1);
}

/* printf and strtod follow the thread's locale ("0,1"); every number in a file is in the C locale.
 */
static locale_t locale_enter(locale_t *plain) {
    *plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    return *plain ? uselocale(*plain) : (locale_t)0;
}

static void locale_leave(locale_t plain, locale_t before) {
    if (!plain) return;
    uselocale(before);
    freelocale(plain);
}

void tp_f64_print(char out[TP_F64_TEXT], double v) {
    locale_t plain, before = locale_enter(&plain);
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(out, TP_F64_TEXT, "%.*g", digits, v);
        if (strtod(out, NULL) == v) break;
    }
    locale_leave(plain, before);
    char *e = strchr(out, 'e');
    if (!e) return;
    /* 1e-08 -> 1e-8, 1e+20 -> 1e20 */
    char *to = e + 1, *from = e + 1;
    if (*from == '-') *to++ = *from;
    from += *from == '-' || *from == '+';
    while (*from == '0' && from[1]) from++;
    memmove(to, from, strlen(from) + 1);
}

static size_t digits_at(const char *s, size_t n) {
    size_t k = 0;
    while (k < n && s[k] >= '0' && s[k] <= '9') k++;
    return k;
}

const char *tp_f64_parse(double *out, const char *s, size_t n) {
    static const char *const not_number = "be a number such as 12, 0.5 or 1e-4";
    char text[64];
    size_t i = 0;
    if (n && (s[0] == '-' || s[0] == '+')) i++;
    size_t whole = digits_at(s + i, n - i);
    i += whole;
    size_t part = 0;
    if (i < n && s[i] == '.') {
        part = digits_at(s + i + 1, n - i - 1);
        i += 1 + part;
    }
    if (!whole && !part) return not_number;
    if (i < n && (s[i] == 'e' || s[i] == 'E')) {
        i++;
        if (i < n && (s[i] == '-' || s[i] == '+')) i++;
        size_t power = digits_at(s + i, n - i);
        if (!power) return not_number;
        i += power;
    }
    if (i != n) return not_number;
    if (n >= sizeof text) return "be a number of at most 63 characters";
    memcpy(text, s, n);
    text[n] = 0;
    locale_t plain, before = locale_enter(&plain);
    double v = strtod(text, NULL);
    locale_leave(plain, before);
    if (!isfinite(v)) return "be a number below 1.8e308 in size";
    bool zero = true;
    for (size_t k = 0; k < n && s[k] != 'e' && s[k] != 'E'; k++)
        zero = zero && !(s[k] >= '1' && s[k] <= '9');
    if (v == 0 && !zero) return "be 0 or a number above 4.9e-324 in size";
    *out = v;
    return NULL;
}

const char *tp_i64_parse(int64_t *out, const char *s, size_t n) {
    size_t i = n && (s[0] == '-' || s[0] == '+');
    bool negative = i && s[0] == '-';
    if (i == n || digits_at(s + i, n - i) != n - i) return "be a whole number written in digits";
    /* 010 is eight to some YAML readers and ten to others */
    if (s[i] == '0' && n - i > 1) return "be a whole number without leading zeros";
    uint64_t v = 0, most = (uint64_t)INT64_MAX + negative;
    for (; i < n; i++) {
        uint64_t d = (uint64_t)(s[i] - '0');
        if (v > (most - d) / 10) return "be a whole number that fits in 64 bits";
        v = v * 10 + d;
    }
    *out = negative ? (int64_t)(0 - v) : (int64_t)v;
    return NULL;
}

const char *tp_quote(char *out, size_t cap, const char *s, size_t n) {
    static const char more[] = "…";
    size_t o = 0;
    for (size_t i = 0; i < n;) {
        uint32_t code = 0;
        int len = tp_utf8_decode(&code, s + i, n - i);
        bool shown = len && code >= 0x20 && code != 0x7F && !(code >= 0x80 && code < 0xA0);
        size_t bytes = shown ? (size_t)len : 1;
        if (o + bytes + sizeof more > cap) {
            if (o + sizeof more <= cap)
                memcpy(out + o, more, sizeof more - 1), o += sizeof more - 1;
            break;
        }
        if (shown)
            memcpy(out + o, s + i, bytes);
        else
            out[o] = '?';
        o += bytes;
        i += len ? (size_t)len : 1;
    }
    out[o] = 0;
    return out;
}

tp_status tp_write_file(tp_ctx *c, const char *path, const void *bytes, size_t n) {
    tp_str tmp;
    tp_str_init(&tmp, c);
    tp_str_printf(&tmp, "%s.tmp", path);
    if (tmp.failed) return TP_ENOMEM;
    tp_status st = tp_may_replace(c, path);
    if (!st) st = tp_may_replace(c, tmp.at); /* opening a pipe would wait for its reader */
    if (st) {
        tp_str_clear(&tmp);
        return st;
    }
    int fd = open(tmp.at, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    bool good = fd >= 0 && tp_write_all(fd, bytes, n);
    if (!good) st = tp_fail(c, TP_EIO, "%s: cannot write: %s", path, strerror(errno));
    if (fd >= 0 && close(fd) && good)
        st = tp_fail(c, TP_EIO, "%s: cannot write: %s", path, strerror(errno));
    if (!st) st = tp_commit_file(c, tmp.at, path);
    if (st && fd >= 0) unlink(tmp.at);
    tp_str_clear(&tmp);
    return st;
}
