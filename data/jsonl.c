/* A strict JSON reader for one line, after RFC 8259: checks all of it, keeps one string. */
#include "data/jsonl.h"
#include "data/text.h"

#include <cJSON.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { MAX_DEPTH = 256 }; /* nesting is recursion here */

typedef struct scan {
    const char *p, *end;
    const char *why; /* first refusal */
} scan;

static bool refuse(scan *s, const char *why) {
    if (!s->why) s->why = why;
    return false;
}

static void skip_space(scan *s) {
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\t' || *s->p == '\r' || *s->p == '\n'))
        s->p++;
}

static bool take(scan *s, char ch, const char *why) {
    if (s->p == s->end || *s->p != ch) return refuse(s, why);
    s->p++;
    return true;
}

static bool read_hex4(scan *s, uint32_t *v) {
    *v = 0;
    if (s->end - s->p < 4) return refuse(s, "the line ends in a \\u escape");
    for (int i = 0; i < 4; i++, s->p++) {
        char ch = *s->p;
        int d = ch >= '0' && ch <= '9'   ? ch - '0'
                : ch >= 'a' && ch <= 'f' ? ch - 'a' + 10
                : ch >= 'A' && ch <= 'F' ? ch - 'A' + 10
                                         : -1;
        if (d < 0) return refuse(s, "a \\u escape needs four hexadecimal digits");
        *v = *v << 4 | (uint32_t)d;
    }
    return true;
}

static char *put_utf8(char *out, uint32_t cp) {
    if (cp < 0x80) {
        *out++ = (char)cp;
    } else if (cp < 0x800) {
        *out++ = (char)(0xc0 | cp >> 6);
        *out++ = (char)(0x80 | (cp & 63));
    } else if (cp < 0x10000) {
        *out++ = (char)(0xe0 | cp >> 12);
        *out++ = (char)(0x80 | (cp >> 6 & 63));
        *out++ = (char)(0x80 | (cp & 63));
    } else {
        *out++ = (char)(0xf0 | cp >> 18);
        *out++ = (char)(0x80 | (cp >> 12 & 63));
        *out++ = (char)(0x80 | (cp >> 6 & 63));
        *out++ = (char)(0x80 | (cp & 63));
    }
    return out;
}

/* After "\u". A high surrogate takes the low one that follows it. */
static bool read_codepoint(scan *s, uint32_t *cp) {
    if (!read_hex4(s, cp)) return false;
    if (*cp < 0xd800 || *cp > 0xdfff) return true;
    if (*cp < 0xdc00 && s->end - s->p >= 6 && s->p[0] == '\\' && s->p[1] == 'u') {
        const char *before = s->p;
        uint32_t low;
        s->p += 2;
        if (!read_hex4(s, &low)) return false;
        if (low >= 0xdc00 && low <= 0xdfff) {
            *cp = 0x10000 + ((*cp - 0xd800) << 10) + (low - 0xdc00);
            return true;
        }
        s->p = before;
    }
    *cp = 0xfffd;
    return true;
}

/* Reads a string and writes it to out, which never takes more bytes than the string has; out NULL:
 * only checks. */
static bool read_string(scan *s, char *out, size_t *n_out) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char *o = out, skipped[4];
    if (!take(s, '"', "a string must begin here")) return false;
    while (s->p < s->end && *s->p != '"') {
        unsigned char ch = (unsigned char)*s->p++;
        if (ch < 0x20) return refuse(s, "a control character in a string must be escaped");
        if (ch != '\\') {
            if (out) *o++ = (char)ch;
            continue;
        }
        if (s->p == s->end) break;
        ch = (unsigned char)*s->p++;
        uint32_t cp = 0;
        if (ch == 'u') {
            if (!read_codepoint(s, &cp)) return false;
        } else {
            const char *found = ch ? strchr(from, ch) : NULL;
            if (!found) return refuse(s, "no such escape in a string");
            cp = (unsigned char)to[found - from];
        }
        char *end = put_utf8(out ? o : skipped, cp);
        if (out) o = end;
    }
    if (n_out) *n_out = out ? (size_t)(o - out) : 0;
    return take(s, '"', "the line ends inside a string");
}

static bool read_digits(scan *s) {
    const char *from = s->p;
    while (s->p < s->end && *s->p >= '0' && *s->p <= '9') s->p++;
    return s->p > from ? true : refuse(s, "a number needs a digit here");
}

static bool read_number(scan *s) {
    if (s->p < s->end && *s->p == '-') s->p++;
    if (s->p < s->end && *s->p == '0') {
        s->p++;
    } else if (!read_digits(s)) {
        return false;
    }
    if (s->p < s->end && *s->p == '.') {
        s->p++;
        if (!read_digits(s)) return false;
    }
    if (s->p < s->end && (*s->p == 'e' || *s->p == 'E')) {
        s->p++;
        if (s->p < s->end && (*s->p == '+' || *s->p == '-')) s->p++;
        return read_digits(s);
    }
    return true;
}

static bool read_word(scan *s, const char *word) {
    size_t n = strlen(word);
    if ((size_t)(s->end - s->p) < n || memcmp(s->p, word, n))
        return refuse(s, "a value must begin here");
    s->p += n;
    return true;
}

/* What to take out of the outermost object. */
typedef struct wanted {
    const char *key;
    char *out;
    size_t n;
    bool found;
} wanted;

static bool read_value(scan *s, int depth);

static bool read_member(scan *s, int depth, wanted *w) {
    size_t n_key = 0;
    /* The key is decoded behind the text that may already be there: together they are shorter than
     * the line. */
    char *key = w ? w->out + w->n : NULL;
    if (!read_string(s, key, &n_key)) return false;
    bool is_it = w && n_key == strlen(w->key) && !memcmp(key, w->key, n_key);
    skip_space(s);
    if (!take(s, ':', "a colon must follow the key")) return false;
    skip_space(s);
    if (!is_it) return read_value(s, depth);
    if (w->found) return refuse(s, "the key stands here for the second time");
    if (s->p == s->end || *s->p != '"') return refuse(s, "the text must be a string");
    w->found = true;
    return read_string(s, w->out, &w->n);
}

/* An object (w: the outermost one) or an array. */
static bool read_group(scan *s, int depth, wanted *w) {
    bool object = *s->p++ == '{';
    char close = object ? '}' : ']';
    if (depth > MAX_DEPTH) return refuse(s, "nested too deeply");
    skip_space(s);
    if (s->p < s->end && *s->p == close) {
        s->p++;
        return true;
    }
    for (;;) {
        skip_space(s);
        if (!(object ? read_member(s, depth, w) : read_value(s, depth))) return false;
        skip_space(s);
        if (s->p < s->end && *s->p == ',') {
            s->p++;
            continue;
        }
        return take(s, close,
                    object ? "a comma or } must come here" : "a comma or ] must come here");
    }
}

static bool read_value(scan *s, int depth) {
    if (s->p == s->end) return refuse(s, "the line ends where a value must begin");
    switch (*s->p) {
    case '{':
    case '[':
        return read_group(s, depth + 1, NULL);
    case '"':
        return read_string(s, NULL, NULL);
    case 't':
        return read_word(s, "true");
    case 'f':
        return read_word(s, "false");
    case 'n':
        return read_word(s, "null");
    default:
        return read_number(s);
    }
}

const char *tp_jsonl_text(const char *line, size_t n, const char *key, char *out, size_t *n_out,
                          size_t *at) {
    scan s = {.p = line, .end = line + n};
    wanted w = {.key = key, .out = out};
    skip_space(&s);
    if (s.p == s.end || *s.p != '{') {
        refuse(&s, "the line must hold an object in braces");
    } else if (read_group(&s, 1, &w)) {
        skip_space(&s);
        if (s.p < s.end)
            refuse(&s, "there is more after the object");
        else if (!w.found)
            refuse(&s, "the object has no such key");
    }
    *at = (size_t)(s.p - line);
    *n_out = w.n;
    return s.why;
}

static const char *zeros_in(const char *line, size_t n, bool escaped) {
    if (memchr(line, 0, n)) return "a zero byte is no text";
    return !escaped && tp_json_has_nul(line, n) ? "a NUL character (\\u0000) is no text" : NULL;
}

cJSON *tp_jsonl_object(const char *line, size_t n, bool zeros, const char **why) {
    const char *end = NULL;
    if ((*why = zeros_in(line, n, zeros))) return NULL;
    cJSON *o = cJSON_ParseWithLengthOpts(line, n, &end, 0);
    if (!cJSON_IsObject(o)) {
        *why = "not a JSON object";
    } else {
        scan rest = {.p = end, .end = line + n};
        skip_space(&rest);
        if (rest.p == rest.end) return o;
        *why = "there is more after the object";
    }
    cJSON_Delete(o);
    return NULL;
}
