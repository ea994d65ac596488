/* One line of a JSON-lines file. For corpora: the text out of {"text": "…"}, by strict JSON
 * (RFC 8259), written here because the text may hold \u0000, which a C string cannot; for all else
 * cJSON's tree. */
#ifndef TP_JSONL_H
#define TP_JSONL_H
#include <stdbool.h>
#include <stddef.h>

/* Writes the string under `key` of the outermost object to out (room for n bytes) and its length
 * to *n_out. A \u escape that is half a surrogate pair becomes U+FFFD; all other bytes stay as they
 * are, valid UTF-8 or not. Returns NULL, or why the line was refused, with *at the byte of the line
 * (from 0) where. `out` may hold anything after a refusal. */
const char *tp_jsonl_text(const char *line, size_t n, const char *key, char *out, size_t *n_out,
                          size_t *at);

/* The object that a line holds, and nothing beside it, for cJSON_Delete; NULL: *why says what is
 * wrong. zeros: \u0000 may stand in it, though strings of the tree, being C strings, end there. */
struct cJSON *tp_jsonl_object(const char *line, size_t n, bool zeros, const char **why);
#endif
