/* Owns writing a tokenizer made here as a tokenizer.json that Hugging Face's tokenizers reads. */
#include "data/tokenizer_impl.h"
#include <stdio.h>
#include <string.h>

/* One character of a JSON string. */
static void put_char(tp_text_buf *b, tp_ctx *c, uint32_t cp) {
    char s[8];
    size_t n = 0;
    if (cp == '"' || cp == '\\') s[n++] = '\\';
    n += tp_utf8_put(s + n, cp);
    tp_text_buf_put(b, c, s, n);
}

/* Token bytes in the byte-level alphabet; no quotes around them. */
static void put_bytes(tp_text_buf *b, tp_ctx *c, const tp_bpe_model *m, int64_t id) {
    for (uint64_t i = m->start[id]; i < m->start[id + 1]; i++)
        put_char(b, c, tp_byte_to_char(m->bytes[i]));
}

static void put_string(tp_text_buf *b, tp_ctx *c, const char *ascii) {
    tp_text_buf_puts(b, c, "\"");
    for (; *ascii; ascii++) put_char(b, c, (unsigned char)*ascii);
    tp_text_buf_puts(b, c, "\"");
}

static void put_added(tp_text_buf *b, tp_ctx *c, const tp_bpe_model *m) {
    tp_text_buf_puts(b, c, "  \"added_tokens\": [");
    for (int i = 0; i < m->n_specials; i++) {
        char s[64];
        snprintf(s, sizeof s, "%s\n    {\"id\": %lld, \"content\": ", i ? "," : "",
                 (long long)(m->n_tokens + i));
        tp_text_buf_puts(b, c, s);
        put_string(b, c, m->specials[i]);
        tp_text_buf_puts(b, c,
                         ", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, "
                         "\"normalized\": false, \"special\": true}");
    }
    tp_text_buf_puts(b, c, m->n_specials ? "\n  ],\n" : "],\n");
}

static void put_pretokenizer(tp_text_buf *b, tp_ctx *c, const char *pattern) {
#define BYTE_LEVEL(prefix, regex)                                                                  \
    "{\"type\": \"ByteLevel\", \"add_prefix_space\": " prefix                                      \
    ", \"trim_offsets\": true, \"use_regex\": " regex "}"
    tp_text_buf_puts(b, c, "  \"normalizer\": null,\n  \"pre_tokenizer\": ");
    if (!strcmp(pattern, "gpt2")) {
        tp_text_buf_puts(b, c, BYTE_LEVEL("false", "true"));
    } else if (!*pattern) {
        tp_text_buf_puts(b, c, BYTE_LEVEL("false", "false"));
    } else {
        tp_text_buf_puts(b, c,
                         "{\"type\": \"Sequence\", \"pretokenizers\": [\n"
                         "    {\"type\": \"Split\", \"pattern\": {\"Regex\": ");
        put_string(b, c, tp_pattern_by_name(pattern));
        tp_text_buf_puts(b, c, "}, \"behavior\": \"Isolated\", \"invert\": false},\n    ");
        tp_text_buf_puts(b, c, BYTE_LEVEL("false", "false") "]}");
    }
    tp_text_buf_puts(b, c, ",\n  \"post_processor\": null,\n  \"decoder\": ");
    tp_text_buf_puts(b, c, BYTE_LEVEL("true", "true") ",\n");
}

tp_status tp_tokenizer_write(tp_text_buf *out, tp_ctx *c, const tp_bpe_model *m) {
    char s[64];
    tp_text_buf_puts(out, c,
                     "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n");
    put_added(out, c, m);
    put_pretokenizer(out, c, m->pattern);
    tp_text_buf_puts(
        out, c,
        "  \"model\": {\n    \"type\": \"BPE\", \"dropout\": null, \"unk_token\": null,\n"
        "    \"continuing_subword_prefix\": null, \"end_of_word_suffix\": null,\n"
        "    \"fuse_unk\": false, \"byte_fallback\": false, \"ignore_merges\": false,\n"
        "    \"vocab\": {\n");
    for (int64_t id = 0; id < m->n_tokens + m->n_specials; id++) {
        tp_text_buf_puts(out, c, "      ");
        if (id < m->n_tokens) {
            tp_text_buf_puts(out, c, "\"");
            put_bytes(out, c, m, id);
            tp_text_buf_puts(out, c, "\"");
        } else {
            put_string(out, c, m->specials[id - m->n_tokens]);
        }
        snprintf(s, sizeof s, ": %lld%s\n", (long long)id,
                 id + 1 < m->n_tokens + m->n_specials ? "," : "");
        tp_text_buf_puts(out, c, s);
    }
    tp_text_buf_puts(out, c, "    },\n    \"merges\": [");
    for (int64_t i = 0; i < m->n_merges; i++) {
        tp_text_buf_puts(out, c, i ? ",\n      \"" : "\n      \"");
        put_bytes(out, c, m, m->merges[2 * i]);
        tp_text_buf_puts(out, c,
                         " "); /* the alphabet has no space, and every version reads this form */
        put_bytes(out, c, m, m->merges[2 * i + 1]);
        tp_text_buf_puts(out, c, "\"");
    }
    tp_text_buf_puts(out, c, m->n_merges ? "\n    ]\n  }\n}\n" : "]\n  }\n}\n");
    return out->st;
}
