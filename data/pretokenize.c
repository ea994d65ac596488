/* Owns pre-tokenization: cutting text by regular expressions into the pieces that BPE merges stay
 * inside of. PCRE2 wants valid UTF-8, text here is any bytes: maximal runs of valid UTF-8 go
 * through the expressions, and each run of invalid bytes between them is a piece of its own. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/tokenizer_impl.h"
#include <pcre2.h>
#include <string.h>

/* Radford et al. 2019, the released encoder; also what Hugging Face's ByteLevel uses. */
const char tp_pattern_gpt2[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
/* GPT-4's, as in Llama 3's tokenizer.json: numbers in groups of three, newlines kept apart. */
#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define CL100K(digits)                                                                             \
    CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits                                           \
                "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
const char tp_pattern_cl100k[] = CL100K("\\p{N}{1,3}");
static const char pattern_qwen2[] = CL100K("\\p{N}");
static const char pattern_o200k[] =
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+"
    "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}"
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
/* All of these match any character, and none matches a letter and a space that follows it, nor
 * looks past such a place; so a text may be cut there and its parts split in parallel. */
static const char *const word_patterns[] = {tp_pattern_gpt2, tp_pattern_cl100k, pattern_qwen2,
                                            pattern_o200k};

const char *tp_pattern_by_name(const char *name) {
    if (!name || !strcmp(name, "gpt2")) return tp_pattern_gpt2;
    if (!strcmp(name, "cl100k")) return tp_pattern_cl100k;
    return NULL;
}

bool tp_pattern_covers(const char *regex) {
    for (size_t i = 0; i < sizeof word_patterns / sizeof *word_patterns; i++)
        if (!strcmp(regex, word_patterns[i])) return true;
    return false;
}

/* ---- compiling ------------------------------------------------------------------------------ */
/* PCRE2 counts U+180E as a space, Unicode (since 6.3) and the regex engines that these patterns
 * were written for do not; so \s is spelled out as Unicode's White_Space. */
#define WHITE                                                                                      \
    "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"            \
    "\\x{205f}\\x{3000}"

/* Why a construct means something else in PCRE2 than in the engines of tokenizer.json; NULL: it
 * does not. p is at a character that no backslash stands before. */
static const char *foreign(const char *p, bool in_class) {
    if (p[0] == '\\' && p[1] && strchr("wWbBhHKQCRX", p[1]))
        return "an escape (one of \\w \\b \\h \\K \\Q \\C \\R \\X) that differs between regex "
               "engines";
    if (in_class && p[0] == '&' && p[1] == '&') return "a class intersection (&&)";
    if (in_class && p[0] == '[') return "a class inside a class";
    if (!in_class && p[0] == '[' && p[p[1] == '^' ? 2 : 1] == ']')
        return "a class that begins with ]";
    if (!in_class && p[0] == '(' && p[1] == '*') return "a (*VERB)";
    return NULL;
}

/* Copies the regex with \s spelled out. */
static tp_status translate(tp_ctx *c, const char *name, const char *re, tp_text_buf *out) {
    bool in_class = false;
    for (const char *p = re; *p; p++) {
        const char *no = foreign(p, in_class);
        if (no) return tp_fail(c, TP_EFORMAT, "%s: a pre_tokenizer pattern uses %s", name, no);
        if (p[0] == '\\' && p[1]) {
            p++;
            if (*p == 's')
                tp_text_buf_puts(out, c, in_class ? WHITE : "[" WHITE "]");
            else if (*p == 'S' && !in_class)
                tp_text_buf_puts(out, c, "[^" WHITE "]");
            else
                tp_text_buf_put(out, c, p - 1, 2);
            continue;
        }
        if (p[0] == '[') in_class = true;
        if (p[0] == ']') in_class = false;
        tp_text_buf_put(out, c, p, 1);
    }
    return out->st;
}

tp_status tp_pretok_add(tp_pretokenizer *p, tp_ctx *c, const char *name, const char *regex) {
    if (p->n == TP_MAX_SPLITS)
        return tp_fail(c, TP_EFORMAT, "%s: pre_tokenizer has more than %d splits", name,
                       TP_MAX_SPLITS);
    if (!*regex || strlen(regex) > TP_PATTERN_MAX)
        return tp_fail(c, TP_EFORMAT, "%s: a pre_tokenizer pattern has %zu bytes, wanted 1 to %d",
                       name, strlen(regex), TP_PATTERN_MAX);
    tp_text_buf re = {0};
    tp_status st = translate(c, name, regex, &re);
    int err = 0;
    PCRE2_SIZE at = 0;
    pcre2_code *code = NULL;
    if (st) goto done;
    code = pcre2_compile((PCRE2_SPTR)re.data, re.n,
                         PCRE2_UTF | PCRE2_UCP | PCRE2_DOLLAR_ENDONLY | PCRE2_NEVER_BACKSLASH_C,
                         &err, &at, NULL);
    if (!code) {
        char why[160] = "";
        pcre2_get_error_message(err, (PCRE2_UCHAR *)why, sizeof why);
        st = tp_fail(c, TP_EFORMAT, "%s: a pre_tokenizer pattern does not compile: %s", name, why);
        goto done;
    }
    p->jit[p->n] = !pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    p->code[p->n++] = code;
    /* \p{N} alone cuts around digits only: it leaves the last pattern's promise as it is */
    if (tp_pattern_covers(regex))
        p->has_words = true;
    else if (strcmp(regex, "\\p{N}") && strcmp(regex, "\\p{N}+") && strcmp(regex, "\\p{N}{1,3}"))
        p->has_other = true;
    p->cuts_words = p->has_words && !p->has_other;
done:
    tp_free(re.data);
    return st;
}

void tp_pretok_clear(tp_pretokenizer *p) {
    for (int i = 0; i < p->n; i++) pcre2_code_free(p->code[i]);
    *p = (tp_pretokenizer){0};
}

/* ---- splitting ------------------------------------------------------------------------------ */
struct tp_splitter {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};

tp_status tp_splitter_new(tp_splitter **out, tp_ctx *c) {
    tp_splitter *s = *out = tp_calloc(c, 1, sizeof *s);
    if (!s) return TP_ENOMEM;
    s->data = pcre2_match_data_create(1, NULL);
    s->context = pcre2_match_context_create(NULL);
    s->stack = pcre2_jit_stack_create(32 << 10, 1 << 20, NULL); /* NULL where PCRE2 has no JIT */
    if (!s->data || !s->context) {
        tp_splitter_free(s);
        *out = NULL;
        return tp_fail(c, TP_ENOMEM, "tokenizer: no memory for PCRE2's match data");
    }
    if (s->stack) pcre2_jit_stack_assign(s->context, NULL, s->stack);
    /* a catastrophic pattern from a file gives up after a fraction of a second */
    pcre2_set_match_limit(s->context, 2000000);
    return TP_OK;
}

void tp_splitter_free(tp_splitter *s) {
    if (!s) return;
    pcre2_match_data_free(s->data);
    pcre2_match_context_free(s->context);
    pcre2_jit_stack_free(s->stack);
    tp_free(s);
}

tp_status tp_pretok_fail(tp_ctx *c, int pcre2_error) {
    char why[160] = "";
    pcre2_get_error_message(pcre2_error, (PCRE2_UCHAR *)why, sizeof why);
    return tp_fail(c, TP_EARG, "tokenizer: the pre-tokenizer's pattern gave up on this text: %s",
                   why);
}

size_t tp_utf8_char(const uint8_t *p, size_t n) {
    if (!n) return 0;
    if (p[0] < 0x80) return 1;
    size_t len = p[0] >= 0xC2 && p[0] < 0xE0   ? 2
                 : p[0] >= 0xE0 && p[0] < 0xF0 ? 3
                 : p[0] >= 0xF0 && p[0] < 0xF5 ? 4
                                               : 0;
    if (!len || len > n) return 0;
    for (size_t i = 1; i < len; i++)
        if ((p[i] & 0xC0) != 0x80) return 0;
    if (p[0] == 0xE0 && p[1] < 0xA0) return 0; /* overlong */
    if (p[0] == 0xED && p[1] > 0x9F) return 0; /* surrogates */
    if (p[0] == 0xF0 && p[1] < 0x90) return 0; /* overlong */
    if (p[0] == 0xF4 && p[1] > 0x8F) return 0; /* beyond U+10FFFF */
    return len;
}

static size_t valid_run(const uint8_t *p, size_t n) {
    size_t i = 0;
    for (;;) {
        uint64_t w;
        while (n - i >= 8 && (memcpy(&w, p + i, 8), !(w & 0x8080808080808080u))) i += 8;
        size_t len = tp_utf8_char(p + i, n - i);
        if (!len) return i;
        i += len;
    }
}

static void emit(const uint8_t *p, size_t n, tp_piece_fn fn, void *arg) {
    while (n > TP_PIECE_MAX) {
        size_t cut = TP_PIECE_MAX;
        while (cut > TP_PIECE_MAX - 4 && (p[cut] & 0xC0) == 0x80)
            cut--; /* not inside a character */
        fn(arg, p, cut);
        p += cut;
        n -= cut;
    }
    if (n) fn(arg, p, n);
}

typedef struct split_job {
    const tp_pretokenizer *p;
    tp_splitter *s;
    tp_piece_fn fn;
    void *arg;
} split_job;

static int match_in(const split_job *j, int step, const uint8_t *text, size_t n, size_t from) {
    const pcre2_code *code = j->p->code[step];
    return j->p->jit[step]
               ? pcre2_jit_match(code, text, n, from, 0, j->s->data, j->s->context)
               : pcre2_match(code, text, n, from, PCRE2_NO_UTF_CHECK, j->s->data, j->s->context);
}

/* The next match at or after `from`. Where a very long stretch exhausts the match limit or the JIT
 * stack, it looks no further than a piece may reach, and goes on so (*near) until a match ends by
 * itself: else every piece of the stretch would pay for a look at all of it. *reach: how far it
 * looked. */
static int match(const split_job *j, int step, const uint8_t *text, size_t n, size_t from,
                 bool *near, size_t *reach) {
    size_t end = n;
    if (n - from > TP_PIECE_MAX) {
        end = from + TP_PIECE_MAX;
        while ((text[end] & 0xC0) == 0x80) end--;
    }
    int rc = PCRE2_ERROR_MATCHLIMIT;
    *reach = n;
    if (!*near || end == n) rc = match_in(j, step, text, n, from);
    if (rc >= 0 || rc == PCRE2_ERROR_NOMATCH || end == n) return rc;
    rc = match_in(j, step, text, end, from);
    *reach = end;
    *near = rc == PCRE2_ERROR_NOMATCH || pcre2_get_ovector_pointer(j->s->data)[1] == end;
    return rc;
}

/* Splits valid UTF-8 by the expressions from `step` on. The recursion is as deep as there are
 * expressions. */
static int split_valid(const split_job *j, int step, const uint8_t *text, size_t n) {
    if (step == j->p->n) {
        emit(text, n, j->fn, j->arg);
        return 0;
    }
    size_t done = 0, from = 0, reach = 0;
    bool near = false;
    int st = 0;
    while (from < n) {
        int rc = match(j, step, text, n, from, &near, &reach);
        if (rc == PCRE2_ERROR_NOMATCH) {
            from = reach;
            continue;
        }
        if (rc < 0) return rc;
        const PCRE2_SIZE *o = pcre2_get_ovector_pointer(j->s->data);
        size_t s = o[0], e = o[1];
        if (s < done || e < s) return PCRE2_ERROR_INTERNAL;
        if (s > done && (st = split_valid(j, step + 1, text + done, s - done))) return st;
        if (e > s && (st = split_valid(j, step + 1, text + s, e - s))) return st;
        done = e;
        from = e > s ? e : e + tp_utf8_char(text + e, n - e);
        if (e == n) break;
    }
    return done < n ? split_valid(j, step + 1, text + done, n - done) : 0;
}

int tp_pretok_split(const tp_pretokenizer *p, tp_splitter *s, const uint8_t *text, size_t n,
                    tp_piece_fn fn, void *arg) {
    const split_job job = {p, s, fn, arg};
    while (n) {
        size_t good = valid_run(text, n);
        int st = good ? split_valid(&job, 0, text, good) : 0;
        if (st) return st;
        text += good;
        n -= good;
        size_t bad = 0;
        while (bad < n && !tp_utf8_char(text + bad, n - bad)) bad++;
        emit(text, bad, fn, arg);
        text += bad;
        n -= bad;
    }
    return 0;
}

size_t tp_pretok_cut(const tp_pretokenizer *p, const uint8_t *text, size_t n, size_t want) {
    if (!p->cuts_words) return n;
    for (size_t i = want ? want : 1; i < n; i++)
        if (text[i] == ' ' && ((text[i - 1] | 32) >= 'a' && (text[i - 1] | 32) <= 'z')) return i;
    return n;
}
