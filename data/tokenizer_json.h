/* What the two readers of tokenizer.json share: tokenizer_json.c reads the model and its
 * vocabulary, tokenizer_steps.c all that happens before and after merging. */
#ifndef TP_TOKENIZER_JSON_H
#define TP_TOKENIZER_JSON_H
#include <cjson/cJSON.h>
#include "data/tokenizer_impl.h"

typedef struct tp_json_reader {
    tp_ctx *c;
    const char *name;
    const cJSON *root;
    tp_tokenizer *t;
    tp_bytemap keys;      /* the vocabulary as written: key text to id */
    const char **content; /* (n_vocab) key or added token of each id, in the JSON tree */
    bool *literal;        /* (n_vocab) content is text itself, not the byte-level alphabet */
    bool *plain;          /* (n_vocab) its bytes are what merges make: it is in t->text */
    bool *raw;            /* (n_vocab) an added token that is found before text is normalised */
    const cJSON *model, *vocab, *added;
} tp_json_reader;

/* Refuses what Tapir does not do, naming it. */
tp_status tp_json_refuse(const tp_json_reader *r, const char *what, const char *value);
/* Members of an object; a key that stands twice is refused. Missing or null: NULL, `missing`, "".
 */
tp_status tp_json_member(const tp_json_reader *r, const cJSON *obj, const char *key,
                         const cJSON **out);
tp_status tp_json_bool(const tp_json_reader *r, const cJSON *obj, const char *key, bool missing,
                       bool *out);
tp_status tp_json_string(const tp_json_reader *r, const cJSON *obj, const char *key,
                         const char **out);
tp_status tp_json_read_normalizer(tp_json_reader *r);
/* truncation, padding; pre_tokenizer; decoder; post_processor (needs t->added) */
tp_status tp_json_read_steps(tp_json_reader *r);
#endif
