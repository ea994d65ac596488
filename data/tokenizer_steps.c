/* Owns reading the steps of a tokenizer.json around the model: what must be absent, how text is cut
 * before merging, and what its decoder and post-processor say. */
#include <string.h>
#include "data/tokenizer_json.h"

/* ---- the parts that must be absent or plain ------------------------------------------------- */
static tp_status check_absent(const tp_json_reader *r) {
    const cJSON *i;
    static const char *const cuts[] = {"truncation", "padding"};
    for (int k = 0; k < 2; k++) {
        tp_status st = tp_json_member(r, r->root, cuts[k], &i);
        if (st) return st;
        if (i) return tp_fail(r->c, TP_EFORMAT, "%s: \"%s\" is set, wanted null", r->name, cuts[k]);
    }
    return TP_OK;
}

/* ---- normalizer ----------------------------------------------------------------------------- */
static tp_status read_form(tp_json_reader *r, const cJSON *i) {
    const char *type;
    tp_status st = tp_json_string(r, i, "type", &type);
    if (st) return st;
    if (strcmp(type, "NFC")) return tp_json_refuse(r, "normalizer", type);
    return r->t->nfc ? TP_OK : tp_nfc_new(&r->t->nfc, r->c);
}

tp_status tp_json_read_normalizer(tp_json_reader *r) {
    const cJSON *i, *list;
    const char *type;
    tp_status st = tp_json_member(r, r->root, "normalizer", &i);
    if (st || !i || (st = tp_json_string(r, i, "type", &type)) ||
        (st = tp_json_member(r, i, "normalizers", &list)))
        return st;
    if (strcmp(type, "Sequence") || !cJSON_IsArray(list)) return read_form(r, i);
    for (i = list->child; i && !st; i = i->next) st = read_form(r, i);
    return st;
}

/* ---- pre-tokenizer, decoder, post-processor ------------------------------------------------- */
/* A literal as a regular expression. */
static tp_status quote(const tp_json_reader *r, const char *s, tp_text_buf *out) {
    for (; *s; s++) {
        bool word = (*s >= '0' && *s <= '9') || ((*s | 32) >= 'a' && (*s | 32) <= 'z') || *s & 0x80;
        if (!word) tp_text_buf_puts(out, r->c, "\\");
        tp_text_buf_put(out, r->c, s, 1);
    }
    return out->st;
}

static tp_status add_split(tp_json_reader *r, const cJSON *p) {
    const cJSON *pattern;
    const char *behavior, *regex, *literal;
    bool invert;
    tp_status st = tp_json_string(r, p, "behavior", &behavior);
    if (st || (st = tp_json_member(r, p, "pattern", &pattern)) ||
        (st = tp_json_string(r, pattern, "Regex", &regex)) ||
        (st = tp_json_string(r, pattern, "String", &literal)) ||
        (st = tp_json_bool(r, p, "invert", false, &invert)))
        return st;
    /* Isolated keeps matches and gaps alike, so `invert` is nothing to it. Removing all but the
     * matches is the same for an expression that matches everything, and would lose text else. */
    bool keeps = !strcmp(behavior, "Isolated") ||
                 (!strcmp(behavior, "Removed") && invert && tp_pattern_covers(regex));
    if (!keeps) return tp_json_refuse(r, "pre_tokenizer Split behavior", behavior);
    tp_text_buf quoted = {0};
    if (!*regex) st = quote(r, literal, &quoted);
    if (!st)
        st = tp_pretok_add(&r->t->pretok, r->c, r->name,
                           *regex     ? regex
                           : quoted.n ? quoted.data
                                      : "");
    tp_free(quoted.data);
    return st;
}

static tp_status add_pretokenizer(tp_json_reader *r, const cJSON *p, bool *byte_level) {
    const char *type;
    bool flag = false;
    tp_status st = tp_json_string(r, p, "type", &type);
    if (st) return st;
    if (*byte_level)
        return tp_fail(r->c, TP_EFORMAT, "%s: a pre_tokenizer stands after ByteLevel", r->name);
    if (!strcmp(type, "Split")) return add_split(r, p);
    if (!strcmp(type, "Digits")) {
        if ((st = tp_json_bool(r, p, "individual_digits", false, &flag))) return st;
        return tp_pretok_add(&r->t->pretok, r->c, r->name, flag ? "\\p{N}" : "\\p{N}+");
    }
    if (strcmp(type, "ByteLevel")) return tp_json_refuse(r, "pre_tokenizer", type);
    *byte_level = true;
    if ((st = tp_json_bool(r, p, "add_prefix_space", true, &flag))) return st;
    if (flag) return tp_json_refuse(r, "pre_tokenizer option", "add_prefix_space");
    if ((st = tp_json_bool(r, p, "use_regex", true, &flag)) || !flag) return st;
    return tp_pretok_add(&r->t->pretok, r->c, r->name, tp_pattern_gpt2);
}

static tp_status read_pretokenizer(tp_json_reader *r) {
    const cJSON *p, *list;
    const char *type;
    bool byte_level = false;
    tp_status st = tp_json_member(r, r->root, "pre_tokenizer", &p);
    if (st || (st = tp_json_string(r, p, "type", &type))) return st;
    if (!strcmp(type, "Sequence")) {
        if ((st = tp_json_member(r, p, "pretokenizers", &list))) return st;
        for (const cJSON *i = list ? list->child : NULL; i && !st; i = i->next)
            st = add_pretokenizer(r, i, &byte_level);
    } else if (p) {
        st = add_pretokenizer(r, p, &byte_level);
    }
    if (!st && !byte_level)
        st = tp_fail(r->c, TP_EFORMAT, "%s: the pre_tokenizer has no ByteLevel step", r->name);
    return st;
}

static tp_status read_decoder(tp_json_reader *r) {
    const cJSON *d, *list;
    const char *type;
    tp_status st = tp_json_member(r, r->root, "decoder", &d);
    if (st || (st = tp_json_string(r, d, "type", &type))) return st;
    if (!strcmp(type, "Sequence")) {
        if ((st = tp_json_member(r, d, "decoders", &list))) return st;
        d = cJSON_IsArray(list) && list->child && !list->child->next ? list->child : NULL;
        if ((st = tp_json_string(r, d, "type", &type))) return st;
    }
    return strcmp(type, "ByteLevel") ? tp_json_refuse(r, "decoder", type) : TP_OK;
}

/* Encoding adds nothing by itself, but callers may ask what the file begins every text with. */
static tp_status read_post_processor(tp_json_reader *r, const cJSON *p) {
    const cJSON *list;
    const char *type, *id;
    tp_status st = tp_json_string(r, p, "type", &type);
    if (st || !p || !strcmp(type, "ByteLevel")) return st;
    if (!strcmp(type, "Sequence")) {
        if ((st = tp_json_member(r, p, "processors", &list))) return st;
        for (const cJSON *i = list ? list->child : NULL; i && !st; i = i->next) {
            const char *inner;
            if ((st = tp_json_string(r, i, "type", &inner))) return st;
            st = strcmp(inner, "Sequence") ? read_post_processor(r, i)
                                           : tp_json_refuse(r, "nested post_processor", inner);
        }
        return st;
    }
    if (strcmp(type, "TemplateProcessing")) return tp_json_refuse(r, "post_processor", type);
    if ((st = tp_json_member(r, p, "single", &list))) return st;
    if (!cJSON_IsArray(list) || !list->child) return TP_OK;
    const cJSON *first;
    if ((st = tp_json_member(r, list->child, "SpecialToken", &first)) ||
        (st = tp_json_string(r, first, "id", &id)))
        return st;
    const int64_t *known = tp_bytemap_find(&r->t->added, id, strlen(id));
    if (known) r->t->bos = (int32_t)*known;
    return TP_OK;
}

tp_status tp_json_read_steps(tp_json_reader *r) {
    const cJSON *post;
    tp_status st = check_absent(r);
    if (st || (st = read_pretokenizer(r)) || (st = read_decoder(r)) ||
        (st = tp_json_member(r, r->root, "post_processor", &post)))
        return st;
    return read_post_processor(r, post);
}
