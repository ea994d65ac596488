/* The inside of a tokenizer, for the files data/tokenizer*.c, bpe_train.c and pretokenize.c. */
#ifndef TP_TOKENIZER_IMPL_H
#define TP_TOKENIZER_IMPL_H
#include "data/tokenizer.h"

/* ---- tokenizer_map.c: byte strings to numbers ----------------------------------------------- */
typedef struct tp_bytemap_entry {
    uint64_t at; /* of the key, in keys */
    uint32_t n, hash;
    int64_t value;
} tp_bytemap_entry;
typedef struct tp_bytemap {
    tp_bytemap_entry *entries; /* in order of arrival */
    uint32_t n_entries, cap_entries;
    uint32_t *index; /* entry + 1, open addressing; 0: free */
    uint64_t mask;   /* slots of index - 1 */
    uint8_t *keys;
    uint64_t n_keys, cap_keys;
} tp_bytemap;
uint64_t tp_hash_bytes(const uint8_t *p, size_t n);
const int64_t *tp_bytemap_find(const tp_bytemap *m, const void *key,
                               size_t n); /* NULL: not there */
/* Finds or inserts (with value 0) the key; *value stays valid until the next put. */
tp_status tp_bytemap_put(tp_bytemap *m, tp_ctx *c, const void *key, size_t n, int64_t **value,
                         bool *fresh);
static inline const uint8_t *tp_bytemap_key(const tp_bytemap *m, uint32_t entry) {
    return m->keys + m->entries[entry].at;
}
void tp_bytemap_clear(tp_bytemap *m);

/* A growing byte string, for the JSON writer. */
typedef struct tp_text_buf {
    char *data;
    size_t n, cap;
    tp_status st; /* the first failure; later appends do nothing */
} tp_text_buf;
void tp_text_buf_put(tp_text_buf *b, tp_ctx *c, const char *s, size_t n);
void tp_text_buf_puts(tp_text_buf *b, tp_ctx *c, const char *s);

/* ---- pretokenize.c: cutting text into pieces that no merge crosses -------------------------- */
enum { TP_MAX_SPLITS = 16, TP_PATTERN_MAX = 4096 };
typedef struct tp_pretokenizer {
    int n;
    void *code[TP_MAX_SPLITS]; /* pcre2_code */
    bool jit[TP_MAX_SPLITS];
    bool has_words, has_other; /* steps with a well-known word pattern; steps unknown to us */
    bool cuts_words; /* always cuts between an ASCII letter and a space, looking at neither side */
} tp_pretokenizer;
typedef struct tp_splitter tp_splitter; /* per thread: match data and JIT stack */
typedef void (*tp_piece_fn)(void *arg, const uint8_t *piece, size_t n);

extern const char tp_pattern_gpt2[], tp_pattern_cl100k[];
/* "gpt2" or "cl100k" (NULL: "gpt2") to its regular expression; NULL if the name is unknown. */
const char *tp_pattern_by_name(const char *name);
bool tp_pattern_covers(const char *regex); /* known to match every character of every text */
/* Adds one splitting step: matches and the stretches between them become pieces of their own. */
tp_status tp_pretok_add(tp_pretokenizer *p, tp_ctx *c, const char *name, const char *regex);
void tp_pretok_clear(tp_pretokenizer *p);
tp_status tp_splitter_new(tp_splitter **out, tp_ctx *c);
void tp_splitter_free(tp_splitter *s);
/* Calls fn for each piece in order; together they are the text. 0 or a PCRE2 error number. */
int tp_pretok_split(const tp_pretokenizer *p, tp_splitter *s, const uint8_t *text, size_t n,
                    tp_piece_fn fn, void *arg);
tp_status tp_pretok_fail(tp_ctx *c, int pcre2_error);
/* Where a text may be cut at or after `want` without changing any piece; n if nowhere. */
size_t tp_pretok_cut(const tp_pretokenizer *p, const uint8_t *text, size_t n, size_t want);
size_t tp_utf8_char(const uint8_t *p, size_t n); /* bytes of the valid character at p; 0: invalid */

/* ---- tokenizer_nfc.c: Unicode's normal form C ------------------------------------------------ */
typedef struct tp_nfc tp_nfc; /* what is known of characters; tp_free ends it */
tp_status tp_nfc_new(tp_nfc **out, tp_ctx *c);
/* *out: the text in normal form C, *n_out bytes, to be freed; NULL where it is so already. Bytes
 * that are not UTF-8 stay, and what stands between them is normalised alone. */
tp_status tp_nfc_form(uint8_t **out, size_t *n_out, tp_ctx *c, const tp_nfc *f, const uint8_t *text,
                      size_t n);
enum { TP_NFC_GROWTH = 3 }; /* times as many bytes at most (U+1D160) */

/* ---- tokenizer.c ---------------------------------------------------------------------------- */
/* Added tokens that are searched for together. */
typedef struct tp_added_set {
    int32_t *ids;    /* sorted by first byte, then longest first */
    int32_t at[257]; /* those that start with byte b: ids[at[b] .. at[b+1]) */
    bool starts_added[256],
        starts_any[256]; /* some ADDED (any added) token starts with this byte */
} tp_added_set;

typedef struct tp_merge {
    uint64_t key; /* left id << 32 | right id */
    int32_t rank, id;
} tp_merge;

struct tp_tokenizer {
    char *json;
    size_t n_json;
    int64_t n_vocab, longest;
    uint8_t *bytes; /* of token id: bytes[start[id] .. start[id+1]) */
    uint64_t *start;
    uint8_t *kind;
    int32_t byte_id[256];
    tp_bytemap text;    /* BYTE and TEXT tokens by their bytes */
    tp_bytemap added;   /* ADDED and SPECIAL tokens by theirs */
    tp_nfc *nfc;        /* text is normalised, once the tokens in raw are found; NULL: it is not */
    tp_added_set raw;   /* "normalized": false; none without nfc */
    tp_added_set found; /* found in what is cut into pieces */
    tp_merge *merges;   /* open addressing on key; rank < 0: free */
    uint64_t merge_mask;
    int64_t n_merges;
    bool ignore_merges; /* a piece that is itself a token becomes that token at once */
    tp_pretokenizer pretok;
    int32_t eos, bos;
};

/* The byte-level alphabet of GPT-2: each byte is shown as a printable character. */
uint32_t tp_byte_to_char(uint8_t b);
int tp_char_to_byte(uint32_t codepoint); /* -1: not of the alphabet */
size_t tp_utf8_put(char out[4], uint32_t codepoint);
void tp_show(char out[64], const char *s); /* s fit for a message: printable and short */
/* specials == NULL: the default list; refuses names that are unfit, and repeated ones. */
tp_status tp_specials_check(tp_ctx *c, const char *const **specials, int *n);

static inline const tp_merge *tp_merge_find(const tp_tokenizer *t, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    for (uint64_t i = (key * 0x9E3779B97F4A7C15u >> 32) & t->merge_mask;;
         i = (i + 1) & t->merge_mask) {
        const tp_merge *m = &t->merges[i];
        if (m->rank < 0) return NULL;
        if (m->key == key) return m;
    }
}

/* tokenizer_write.c: the tokenizer.json text of a tokenizer made here. */
typedef struct tp_bpe_model {
    const char *pattern;  /* "gpt2", "cl100k" or "" for none */
    int64_t n_tokens;     /* text tokens: ids 0 .. n_tokens - 1 */
    const uint8_t *bytes; /* of token id: bytes[start[id] .. start[id+1]) */
    const uint64_t *start;
    int64_t n_merges;
    const int32_t *merges; /* (n_merges, 2): pairs of ids, first merge first */
    const char *const *specials;
    int n_specials;
} tp_bpe_model;
tp_status tp_tokenizer_write(tp_text_buf *out, tp_ctx *c, const tp_bpe_model *m);
#endif
