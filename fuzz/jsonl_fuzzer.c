/* Any bytes as a JSON line: never a crash, never more text than the line has bytes. What is taken
 * must be taken again, the same, from a line written around it. */
#include <stdlib.h>
#include <string.h>

#include "data/jsonl.h"

#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* {"text": "…"} with every byte that needs it escaped. */
static size_t write_line(char *line, const char *text, size_t n) {
    char *o = line;
    memcpy(o, "{\"text\":\"", 9);
    o += 9;
    for (size_t i = 0; i < n; i++) {
        unsigned char ch = (unsigned char)text[i];
        if (ch < 0x20) {
            memcpy(o, "\\u00", 4);
            o[4] = (char)('0' + ch / 16);
            o[5] = "0123456789abcdef"[ch % 16];
            o += 6;
        } else {
            if (ch == '"' || ch == '\\') *o++ = '\\';
            *o++ = (char)ch;
        }
    }
    memcpy(o, "\"}", 2);
    return (size_t)(o + 2 - line);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    size_t n = 0, m = 0, at = 0;
    char *text = malloc(size + 1), *line = malloc(6 * size + 16), *again = malloc(6 * size + 16);
    if (text && line && again) {
        const char *why = tp_jsonl_text((const char *)data, size, "text", text, &n, &at);
        if (at > size) abort();
        if (!why) {
            if (n > size) abort();
            size_t len = write_line(line, text, n);
            if (tp_jsonl_text(line, len, "text", again, &m, &at)) abort();
            if (m != n || memcmp(text, again, n)) abort();
        }
    }
    free(text);
    free(line);
    free(again);
    return 0;
}
