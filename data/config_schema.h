/* config_schema: the table of keys, for the files of config only. */
#ifndef TP_CONFIG_SCHEMA_H
#define TP_CONFIG_SCHEMA_H
#include "data/config.h"
#include "data/text.h"

typedef enum tp_key_type {
    TP_KEY_BOOL,
    TP_KEY_I64,
    TP_KEY_F64,
    TP_KEY_TEXT,
    TP_KEY_CHOICE
} tp_key_type;

typedef struct tp_key {
    const char *name; /* "model.layers": group, dot, leaf; no dot at the top level */
    tp_key_type type;
    size_t offset;              /* of the member in tp_config */
    const char *initial;        /* the default, as it would be written */
    double lo, hi;              /* numbers: smallest and largest allowed */
    bool lo_open, hi_open;      /* the limit itself is refused */
    const char *const *choices; /* TP_KEY_CHOICE: names of values 0, 1, …; ends with NULL */
    const char *unit, *doc;     /* unit "" where there is none */
} tp_key;

extern const tp_key tp_config_keys[];
extern const int tp_config_nkeys;

int tp_config_find(const char *name, size_t n);      /* row of the key, or -1 */
int tp_config_group_row(const char *name, size_t n); /* first row of the group, or -1 */
/* The key nearest to name by edit distance, or NULL where none is near. */
const char *tp_config_nearest(const char *name);
/* "; did you mean KEY?", or where to look, for the end of a sentence about an unknown key. */
enum { TP_CONFIG_HINT = 112 };
const char *tp_config_hint(char out[TP_CONFIG_HINT], const char *name);
/* Reads n bytes of text into row's member of cfg. Returns NULL, or what was wrong with it in words
 * that follow "KEY must"; the words are at out, of cap bytes. */
const char *tp_config_put(tp_config *cfg, int row, const char *text, size_t n, char *out,
                          size_t cap);
void tp_config_allowed(char *out, size_t cap, const tp_key *k); /* "be a whole number >= 1" */
void tp_config_value(tp_str *t, const tp_config *cfg, int row); /* the value as YAML */
/* "config.yaml:12: " or "command line: ": the start of a sentence about row; "" for a default. */
const char *tp_config_origin(char *out, size_t cap, const tp_config *cfg, int row);
#endif
