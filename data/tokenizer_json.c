/* Owns reading a tokenizer.json (the format of Hugging Face's tokenizers): byte-level BPE and what
 * goes with it. Whatever Tapir would not do exactly as the file says is refused by name. */
#include <stdlib.h>
#include <string.h>
#include "data/tokenizer_json.h"
#include "data/text.h"

enum { MAX_IDS = 1 << 24 };

/* ---- members -------------------------------------------------------------------------------- */
tp_status tp_json_refuse(const tp_json_reader *r, const char *what, const char *value) {
    char shown[64];
    tp_show(shown, value);
    return tp_fail(r->c, TP_EFORMAT, "%s: %s \"%s\" is not supported (byte-level BPE only)",
                   r->name, what, shown);
}

tp_status tp_json_member(const tp_json_reader *r, const cJSON *obj, const char *key,
                         const cJSON **out) {
    *out = NULL;
    if (!cJSON_IsObject(obj)) return TP_OK;
    bool seen = false;
    for (const cJSON *i = obj->child; i; i = i->next) {
        if (strcmp(i->string, key)) continue;
        if (seen) return tp_fail(r->c, TP_EFORMAT, "%s: key \"%s\" stands twice", r->name, key);
        seen = true;
        if (!cJSON_IsNull(i)) *out = i;
    }
    return TP_OK;
}

tp_status tp_json_bool(const tp_json_reader *r, const cJSON *obj, const char *key, bool missing,
                       bool *out) {
    const cJSON *i;
    tp_status st = tp_json_member(r, obj, key, &i);
    *out = i ? cJSON_IsTrue(i) : missing;
    if (!st && i && !cJSON_IsBool(i))
        st = tp_fail(r->c, TP_EFORMAT, "%s: \"%s\" must be true or false", r->name, key);
    return st;
}

tp_status tp_json_string(const tp_json_reader *r, const cJSON *obj, const char *key,
                         const char **out) {
    const cJSON *i;
    tp_status st = tp_json_member(r, obj, key, &i);
    *out = i && cJSON_IsString(i) ? i->valuestring : "";
    if (!st && i && !cJSON_IsString(i))
        st = tp_fail(r->c, TP_EFORMAT, "%s: \"%s\" must be a string", r->name, key);
    return st;
}

static tp_status as_id(const tp_json_reader *r, const cJSON *i, const char *token, int64_t *id) {
    char shown[64];
    double d = i && cJSON_IsNumber(i) ? i->valuedouble : -1;
    if (!(d >= 0 && d < MAX_IDS) || d != (double)(int64_t)d)
        return tp_fail(r->c, TP_EFORMAT,
                       "%s: the id of token \"%s\" is not a whole number below %d", r->name,
                       (tp_show(shown, token), shown), MAX_IDS);
    *id = (int64_t)d;
    return TP_OK;
}

/* ---- model ---------------------------------------------------------------------------------- */
static tp_status check_model(tp_json_reader *r) {
    const cJSON *i;
    const char *s;
    tp_status st = tp_json_member(r, r->root, "model", &r->model);
    if (st) return st;
    if (!cJSON_IsObject(r->model))
        return tp_fail(r->c, TP_EFORMAT, "%s: not a tokenizer.json: it has no \"model\"", r->name);
    if ((st = tp_json_string(r, r->model, "type", &s))) return st;
    if (*s && strcmp(s, "BPE"))
        return tp_json_refuse(r, "model", s); /* old files leave the type out */
    if ((st = tp_json_member(r, r->model, "dropout", &i))) return st;
    if (i && !(cJSON_IsNumber(i) && i->valuedouble == 0))
        return tp_json_refuse(r, "model option", "dropout");
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int k = 0; k < 2; k++) {
        if ((st = tp_json_string(r, r->model, affixes[k], &s))) return st;
        if (*s) return tp_json_refuse(r, "model option", affixes[k]);
    }
    return tp_json_bool(r, r->model, "ignore_merges", false, &r->t->ignore_merges);
}

/* ---- vocabulary ----------------------------------------------------------------------------- */
static tp_status read_vocab(tp_json_reader *r, int64_t *n_tokens, int64_t *max_id) {
    char shown[64];
    tp_status st = tp_json_member(r, r->model, "vocab", &r->vocab);
    if (st) return st;
    if (!cJSON_IsObject(r->vocab))
        return tp_fail(r->c, TP_EFORMAT, "%s: model.vocab is not an object", r->name);
    for (const cJSON *i = r->vocab->child; i; i = i->next) {
        int64_t id = 0, *value;
        bool fresh;
        if ((st = as_id(r, i, i->string, &id))) return st;
        if ((st = tp_bytemap_put(&r->keys, r->c, i->string, strlen(i->string), &value, &fresh)))
            return st;
        if (!fresh || !*i->string)
            return tp_fail(r->c, TP_EFORMAT, "%s: token \"%s\" %s", r->name,
                           (tp_show(shown, i->string), shown), fresh ? "is empty" : "stands twice");
        *value = id;
        *max_id = id > *max_id ? id : *max_id;
        ++*n_tokens;
    }
    return TP_OK;
}

static tp_status read_added_ids(tp_json_reader *r, int64_t *n_tokens, int64_t *max_id) {
    tp_status st = tp_json_member(r, r->root, "added_tokens", &r->added);
    if (st || !r->added) return st;
    if (!cJSON_IsArray(r->added))
        return tp_fail(r->c, TP_EFORMAT, "%s: added_tokens is not an array", r->name);
    for (const cJSON *a = r->added->child; a; a = a->next) {
        const cJSON *i;
        const char *s;
        int64_t id = 0;
        if ((st = tp_json_string(r, a, "content", &s)) || (st = tp_json_member(r, a, "id", &i)))
            return st;
        if (!*s) return tp_fail(r->c, TP_EFORMAT, "%s: an added token is empty", r->name);
        if ((st = as_id(r, i, s, &id))) return st;
        *max_id = id > *max_id ? id : *max_id;
        ++*n_tokens;
    }
    return TP_OK;
}

/* Gives every id its content and kind, refusing an id that two tokens claim. */
static tp_status assign_ids(tp_json_reader *r) {
    tp_tokenizer *t = r->t;
    char s1[64], s2[64];
    memset(t->kind, TP_TOKEN_UNUSED, (size_t)t->n_vocab);
    for (const cJSON *i = r->vocab->child; i; i = i->next) {
        int64_t id = (int64_t)i->valuedouble;
        if (r->content[id])
            return tp_fail(r->c, TP_EFORMAT, "%s: tokens \"%s\" and \"%s\" both have id %lld",
                           r->name, (tp_show(s1, r->content[id]), s1), (tp_show(s2, i->string), s2),
                           (long long)id);
        r->content[id] = i->string;
        t->kind[id] = TP_TOKEN_TEXT;
    }
    for (const cJSON *a = r->added ? r->added->child : NULL; a; a = a->next) {
        static const char *const flags[] = {"single_word", "lstrip", "rstrip"};
        const cJSON *i;
        const char *s;
        bool special = false, flag = false, normalized = false;
        tp_status st = tp_json_string(r, a, "content", &s);
        if (st || (st = tp_json_member(r, a, "id", &i)) ||
            (st = tp_json_bool(r, a, "special", false, &special)) ||
            (st = tp_json_bool(r, a, "normalized", !special, &normalized)))
            return st;
        int64_t id = (int64_t)i->valuedouble;
        const int64_t *known = tp_bytemap_find(&r->keys, s, strlen(s));
        if ((known && *known != id) || (r->content[id] && strcmp(r->content[id], s)) ||
            t->kind[id] == TP_TOKEN_SPECIAL || t->kind[id] == TP_TOKEN_ADDED)
            return tp_fail(r->c, TP_EFORMAT,
                           "%s: added token \"%s\" with id %lld contradicts another "
                           "token",
                           r->name, (tp_show(s1, s), s1), (long long)id);
        for (int k = 0; k < 3; k++) {
            if ((st = tp_json_bool(r, a, flags[k], false, &flag))) return st;
            if (flag)
                return tp_fail(r->c, TP_EFORMAT,
                               "%s: added token \"%s\" wants %s, which is not "
                               "supported",
                               r->name, (tp_show(s1, s), s1), flags[k]);
        }
        r->content[id] = s;
        r->literal[id] = true;
        r->raw[id] = t->nfc && !normalized;
        t->kind[id] = special ? TP_TOKEN_SPECIAL : TP_TOKEN_ADDED;
    }
    return TP_OK;
}

/* Bytes of a vocabulary key, through the byte-level alphabet; -1 if it has another character. */
static int64_t key_bytes(const char *key, uint8_t *out) {
    int64_t n = 0;
    const uint8_t *p = (const uint8_t *)key;
    for (size_t left = strlen(key), len; left; p += len, left -= len) {
        len = tp_utf8_char(p, left);
        if (len == 0 || len > 2) return -1;
        int b = tp_char_to_byte(len == 1 ? p[0] : (p[0] & 31u) << 6 | (p[1] & 63u));
        if (b < 0) return -1;
        out[n++] = (uint8_t)b;
    }
    return n;
}

static tp_status map_token(const tp_json_reader *r, tp_bytemap *map, int64_t id, size_t n) {
    int64_t *value;
    bool fresh;
    tp_status st = tp_bytemap_put(map, r->c, r->t->bytes + r->t->start[id], n, &value, &fresh);
    if (st) return st;
    if (!fresh)
        return tp_fail(r->c, TP_EFORMAT, "%s: ids %lld and %lld are the same token", r->name,
                       (long long)*value, (long long)id);
    *value = id;
    return TP_OK;
}

/* Bytes of one token, and where text finds it: through merges (t->text), before them (t->added),
 * both, or, for a key outside the byte-level alphabet, not at all. */
static tp_status fill_token(tp_json_reader *r, int64_t id) {
    tp_tokenizer *t = r->t;
    const char *s = r->content[id];
    uint8_t *to = t->bytes + t->start[id];
    size_t len = strlen(s);
    int64_t n = key_bytes(s, to);
    bool same = n == (int64_t)len && !memcmp(s, to, len); /* printable ASCII */
    if (r->literal[id])
        r->plain[id] = same && t->kind[id] == TP_TOKEN_ADDED && tp_bytemap_find(&r->keys, s, len);
    else
        r->plain[id] = n >= 0;
    if (n < 0 || r->literal[id]) {
        uint8_t *normal = NULL;
        if (t->nfc && r->literal[id] && !r->raw[id]) { /* it stands in normalised text */
            tp_status st = tp_nfc_form(&normal, &len, r->c, t->nfc, (const uint8_t *)s, len);
            if (st) return st;
        }
        n = (int64_t)len;
        memcpy(to, normal ? (const char *)normal : s, len);
        tp_free(normal);
    }
    if (n == 1 && !r->literal[id]) t->kind[id] = TP_TOKEN_BYTE;
    t->longest = n > t->longest ? n : t->longest;
    t->start[id + 1] = t->start[id] + (uint64_t)n;
    tp_status st = r->plain[id] ? map_token(r, &t->text, id, (size_t)n) : TP_OK;
    return !st && r->literal[id] ? map_token(r, &t->added, id, (size_t)n) : st;
}

static tp_status fill_bytes(tp_json_reader *r) {
    tp_tokenizer *t = r->t;
    size_t room = 1;
    for (int64_t id = 0; id < t->n_vocab; id++)
        room += r->content[id] ? strlen(r->content[id]) * (r->literal[id] ? TP_NFC_GROWTH : 1) : 0;
    if (!(t->bytes = tp_malloc(r->c, room))) return TP_ENOMEM;
    for (int64_t id = 0; id < t->n_vocab; id++) {
        t->start[id + 1] = t->start[id];
        tp_status st = r->content[id] ? fill_token(r, id) : TP_OK;
        if (st) return st;
    }
    for (int b = 0; b < 256; b++) {
        uint8_t byte = (uint8_t)b;
        const int64_t *id = tp_bytemap_find(&t->text, &byte, 1);
        if (!id)
            return tp_fail(r->c, TP_EFORMAT,
                           "%s: the vocabulary has no token for byte 0x%02X, so it is "
                           "not byte-level",
                           r->name, (unsigned)b);
        t->byte_id[b] = (int32_t)*id;
    }
    return TP_OK;
}

static tp_status build_vocab(tp_json_reader *r) {
    tp_tokenizer *t = r->t;
    int64_t n = 0, max_id = -1;
    tp_status st = read_vocab(r, &n, &max_id);
    if (st || (st = read_added_ids(r, &n, &max_id))) return st;
    if (max_id > 2 * n + 65536) /* a few free ids are fine; a table of holes is not */
        return tp_fail(r->c, TP_EFORMAT, "%s: highest id is %lld, but there are only %lld tokens",
                       r->name, (long long)max_id, (long long)n);
    t->n_vocab = max_id + 1;
    size_t ids = (size_t)t->n_vocab;
    r->content = tp_calloc(r->c, ids + 1, sizeof *r->content);
    r->literal = tp_calloc(r->c, ids + 1, sizeof *r->literal);
    r->plain = tp_calloc(r->c, ids + 1, sizeof *r->plain);
    r->raw = tp_calloc(r->c, ids + 1, sizeof *r->raw);
    t->kind = tp_calloc(r->c, ids + 1, sizeof *t->kind);
    t->start = tp_calloc(r->c, ids + 1, sizeof *t->start);
    if (!r->content || !r->literal || !r->plain || !r->raw || !t->kind || !t->start)
        return TP_ENOMEM;
    if ((st = assign_ids(r))) return st;
    return fill_bytes(r);
}

/* ---- merges --------------------------------------------------------------------------------- */
/* The two halves of a merge, "a b" or ["a","b"]. */
static bool merge_halves(const cJSON *m, const char *half[2], size_t len[2]) {
    if (cJSON_IsString(m)) {
        const char *space = strchr(m->valuestring, ' ');
        if (!space || strchr(space + 1, ' ')) return false;
        half[0] = m->valuestring;
        len[0] = (size_t)(space - m->valuestring);
        half[1] = space + 1;
        len[1] = strlen(half[1]);
        return len[0] && len[1];
    }
    const cJSON *a = cJSON_IsArray(m) ? m->child : NULL, *b = a ? a->next : NULL;
    if (!b || b->next || !cJSON_IsString(a) || !cJSON_IsString(b)) return false;
    half[0] = a->valuestring;
    half[1] = b->valuestring;
    for (int i = 0; i < 2; i++) len[i] = strlen(half[i]);
    return len[0] && len[1];
}

static tp_status add_merge(tp_json_reader *r, const cJSON *m, int32_t rank) {
    tp_tokenizer *t = r->t;
    const char *half[2];
    size_t len[2];
    if (!merge_halves(m, half, len))
        return tp_fail(r->c, TP_EFORMAT, "%s: merge %d is neither \"a b\" nor [\"a\", \"b\"]",
                       r->name, (int)rank);
    char *both = tp_malloc(r->c, len[0] + len[1] + 1);
    if (!both) return TP_ENOMEM;
    memcpy(both, half[0], len[0]);
    memcpy(both + len[0], half[1], len[1]);
    both[len[0] + len[1]] = 0;
    const int64_t *a = tp_bytemap_find(&r->keys, half[0], len[0]);
    const int64_t *b = tp_bytemap_find(&r->keys, half[1], len[1]);
    const int64_t *ab = tp_bytemap_find(&r->keys, both, len[0] + len[1]);
    tp_status st = TP_OK;
    char shown[64];
    tp_show(shown, both);
    if (!a || !b || !ab) {
        st = tp_fail(r->c, TP_EFORMAT, "%s: merge %d makes \"%s\", but the vocabulary lacks %s",
                     r->name, (int)rank, shown, ab ? "one of its halves" : "that");
    } else if (!r->plain[*a] || !r->plain[*b] || !r->plain[*ab]) {
        st = tp_fail(r->c, TP_EFORMAT,
                     "%s: merge %d (\"%s\") involves a special token or one outside "
                     "the byte-level alphabet",
                     r->name, (int)rank, shown);
    } else if (tp_merge_find(t, (int32_t)*a, (int32_t)*b)) {
        st = tp_fail(r->c, TP_EFORMAT, "%s: merge %d (\"%s\") stands twice", r->name, (int)rank,
                     shown);
    } else {
        uint64_t key = (uint64_t)*a << 32 | (uint64_t)*b;
        uint64_t i = (key * 0x9E3779B97F4A7C15u >> 32) & t->merge_mask;
        while (t->merges[i].rank >= 0) i = (i + 1) & t->merge_mask;
        t->merges[i] = (tp_merge){.key = key, .rank = rank, .id = (int32_t)*ab};
    }
    tp_free(both);
    return st;
}

static tp_status read_merges(tp_json_reader *r) {
    const cJSON *list;
    tp_status st = tp_json_member(r, r->model, "merges", &list);
    if (st) return st;
    if (!cJSON_IsArray(list))
        return tp_fail(r->c, TP_EFORMAT, "%s: model.merges is not an array", r->name);
    int64_t n = 0;
    for (const cJSON *m = list->child; m; m = m->next) n++;
    if (n > MAX_IDS) return tp_fail(r->c, TP_EFORMAT, "%s: more than %d merges", r->name, MAX_IDS);
    uint64_t slots = 16;
    while (slots < 2 * (uint64_t)n + 2) slots *= 2;
    if (!(r->t->merges = tp_malloc(r->c, slots * sizeof *r->t->merges))) return TP_ENOMEM;
    for (uint64_t i = 0; i < slots; i++) r->t->merges[i].rank = -1;
    r->t->merge_mask = slots - 1;
    r->t->n_merges = n;
    int32_t rank = 0;
    for (const cJSON *m = list->child; m && !st; m = m->next) st = add_merge(r, m, rank++);
    return st;
}

/* ---- added tokens, ready to be searched ----------------------------------------------------- */
typedef struct by_start {
    const uint8_t *p;
    uint64_t n;
    int32_t id;
} by_start;

static int cmp_start(const void *x, const void *y) {
    const by_start *a = x, *b = y;
    if (a->p[0] != b->p[0]) return a->p[0] < b->p[0] ? -1 : 1;
    if (a->n != b->n) return a->n > b->n ? -1 : 1;
    return a->id < b->id ? -1 : a->id > b->id;
}

/* Those added tokens that are raw, or those that are not. */
static tp_status index_set(const tp_json_reader *r, tp_added_set *set, bool raw) {
    const tp_tokenizer *t = r->t;
    size_t room = (size_t)t->added.n_entries + 1;
    int32_t n = 0;
    by_start *list = tp_calloc(r->c, room, sizeof *list);
    set->ids = tp_calloc(r->c, room, sizeof *set->ids);
    if (!list || !set->ids) {
        tp_free(list);
        return TP_ENOMEM;
    }
    for (uint32_t i = 0; i < t->added.n_entries; i++) {
        const tp_bytemap_entry *e = &t->added.entries[i];
        if (r->raw[e->value] != raw) continue;
        list[n++] = (by_start){tp_bytemap_key(&t->added, i), e->n, (int32_t)e->value};
    }
    qsort(list, (size_t)n, sizeof *list, cmp_start);
    for (int32_t i = 0; i < n; i++) {
        uint8_t first = list[i].p[0];
        set->ids[i] = list[i].id;
        set->at[first + 1] = i + 1;
        set->starts_any[first] = true;
        if (t->kind[list[i].id] == TP_TOKEN_ADDED) set->starts_added[first] = true;
    }
    for (int b = 1; b <= 256; b++)
        if (set->at[b] < set->at[b - 1]) set->at[b] = set->at[b - 1];
    tp_free(list);
    return TP_OK;
}

static tp_status index_added(tp_json_reader *r) {
    tp_tokenizer *t = r->t;
    tp_status st = index_set(r, &t->found, false);
    if (st || (st = index_set(r, &t->raw, true))) return st;
    static const char *const ends[] = {"<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>",
                                       "</s>", "<eos>"};
    for (int i = 0; i < 5 && t->eos < 0; i++) {
        const int64_t *id = tp_bytemap_find(&t->added, ends[i], strlen(ends[i]));
        if (id) t->eos = (int32_t)*id;
    }
    return TP_OK;
}

/* ---- the text
 * --------------------------------------------------------------------------------------------------
 */
static tp_status parse(tp_json_reader *r, const char *json, size_t n, cJSON **tree) {
    if (tp_json_has_nul(json, n))
        return tp_fail(r->c, TP_EFORMAT, "%s: not a tokenizer.json: it contains a NUL character",
                       r->name);
    const char *end = NULL;
    *tree = cJSON_ParseWithLengthOpts(json, n, &end, 0);
    bool tail = false;
    for (const char *p = end; *tree && p < json + n && !tail; p++) tail = !strchr(" \t\r\n", *p);
    if (!*tree || tail) {
        size_t line = 1;
        for (const char *p = json; end && p < end && p < json + n; p++) line += *p == '\n';
        return tp_fail(r->c, TP_EFORMAT, "%s: line %zu: not valid JSON", r->name, line);
    }
    if (!cJSON_IsObject(*tree))
        return tp_fail(r->c, TP_EFORMAT, "%s: not a tokenizer.json: not a JSON object", r->name);
    r->root = *tree;
    return TP_OK;
}

tp_status tp_tokenizer_from_json(tp_tokenizer **out, tp_ctx *c, const char *json, size_t n,
                                 const char *name) {
    *out = NULL;
    cJSON *tree = NULL;
    tp_json_reader r = {.c = c, .name = name, .t = tp_calloc(c, 1, sizeof(tp_tokenizer))};
    if (!r.t) return TP_ENOMEM;
    r.t->eos = r.t->bos = -1;
    tp_status st = parse(&r, json, n, &tree);
    if (st || (st = check_model(&r)) || (st = tp_json_read_normalizer(&r)) ||
        (st = build_vocab(&r)) || (st = read_merges(&r)) || (st = tp_json_read_steps(&r)) ||
        (st = index_added(&r)))
        goto done;
    if (!(r.t->json = tp_malloc(c, n + 1))) {
        st = TP_ENOMEM;
        goto done;
    }
    memcpy(r.t->json, json, n);
    r.t->json[n] = 0;
    r.t->n_json = n;
done:
    cJSON_Delete(tree);
    tp_bytemap_clear(&r.keys);
    tp_free(r.content);
    tp_free(r.literal);
    tp_free(r.plain);
    tp_free(r.raw);
    if (st)
        tp_tokenizer_free(r.t);
    else
        *out = r.t;
    return st;
}
