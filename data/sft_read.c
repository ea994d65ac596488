/* Owns reading a file of conversations into examples. */
#include "data/jsonl.h"
#include "data/sft_data.h"
#include "data/sha256.h"
#include <cJSON.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

bool tp_sft_is(const char *path) {
    size_t n = strlen(path);
    return n >= 6 && !strcmp(path + n - 6, ".jsonl");
}

void tp_sft_data_free(tp_sft_data *d) {
    if (!d) return;
    tp_free(d->offset);
    tp_free(d->ids);
    tp_free(d->trained);
    tp_free(d->id_bytes);
    tp_free(d);
}

const tp_sft_info *tp_sft_get_info(const tp_sft_data *d) { return &d->info; }

typedef struct reader {
    tp_ctx *c;
    tp_sft_data *d;
    const char *path;
    int64_t line, cap_examples, cap_ids, T;
    tp_chat *chat;
    tp_conversation v;
} reader;

static tp_status wrong(reader *r, const char *what) {
    return tp_fail(r->c, TP_EFORMAT, "%s, line %lld: %s", r->path, (long long)r->line, what);
}

static tp_status turn(reader *r, const char *role, const cJSON *text, const char *key) {
    char what[96];
    if (!cJSON_IsString(text)) {
        snprintf(what, sizeof what, "\"%s\" must be a string", key);
        return wrong(r, what);
    }
    tp_status st =
        tp_chat_turn(r->chat, &r->v, role, text->valuestring, (int64_t)strlen(text->valuestring));
    if (st != TP_EARG) return st;
    char why[TP_WHY_BYTES];
    snprintf(why, sizeof why, "%s", tp_error(r->c));
    tp_clear(r->c);
    return wrong(r, why);
}

static tp_status messages(reader *r, const cJSON *list) {
    const cJSON *m;
    tp_status st = TP_OK;
    if (!cJSON_IsArray(list)) return wrong(r, "\"messages\" must be a list");
    cJSON_ArrayForEach(m, list) {
        const cJSON *role = cJSON_GetObjectItemCaseSensitive(m, "role");
        if (!cJSON_IsString(role)) return wrong(r, "a message needs a \"role\"");
        st = turn(r, role->valuestring, cJSON_GetObjectItemCaseSensitive(m, "content"), "content");
        if (st) return st;
    }
    return st;
}

static tp_status conversation(reader *r, const cJSON *o) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(o, "messages");
    if (list) return messages(r, list);
    const cJSON *prompt = cJSON_GetObjectItemCaseSensitive(o, "prompt");
    const cJSON *response = cJSON_GetObjectItemCaseSensitive(o, "response");
    if (!response) response = cJSON_GetObjectItemCaseSensitive(o, "completion");
    if (!prompt || !response)
        return wrong(r, "an example needs \"prompt\" and \"response\", or \"messages\"");
    tp_status st = turn(r, "user", prompt, "prompt");
    return st ? st : turn(r, "assistant", response, "response");
}

static tp_status grow(tp_ctx *c, void *at, int64_t *cap, int64_t need, size_t each) {
    void **p = at;
    if (need <= *cap) return TP_OK;
    int64_t to = need + need / 2 + 64;
    void *more = tp_realloc(c, *p, (size_t)to * each);
    if (!more) return tp_error_status(c);
    *p = more;
    *cap = to;
    return TP_OK;
}

/* The conversation becomes an example of at most T+1 tokens. */
static tp_status keep(reader *r) {
    tp_sft_data *d = r->d;
    int64_t n = r->v.ids.n, from = d->offset[d->info.examples], trained = 0;
    if (n > r->T + 1) {
        n = r->T + 1;
        d->info.cut++;
    }
    for (int64_t i = 1; i < n; i++) trained += r->v.trained.data[i];
    if (!trained) {
        d->info.left_out++;
        return TP_OK;
    }
    int64_t cap = r->cap_ids;
    tp_status st = grow(r->c, &d->ids, &cap, from + n, sizeof *d->ids);
    if (!st) st = grow(r->c, &d->trained, &r->cap_ids, from + n, sizeof *d->trained);
    if (!st) st = grow(r->c, &d->offset, &r->cap_examples, d->info.examples + 2, sizeof *d->offset);
    if (st) return st;
    for (int64_t i = 0; i < n; i++) {
        d->ids[from + i] = r->v.ids.data[i];
        d->trained[from + i] = (uint8_t)r->v.trained.data[i];
    }
    d->offset[++d->info.examples] = from + n;
    d->info.tokens += n;
    d->info.trained += trained;
    return TP_OK;
}

static tp_status read_line(reader *r, const char *line, size_t n, int32_t eos) {
    r->line++;
    while (n && (line[n - 1] == '\n' || line[n - 1] == '\r' || line[n - 1] == ' ')) n--;
    if (!n) return TP_OK;
    const char *why;
    cJSON *o = tp_jsonl_object(line, n, false, &why);
    r->v.ids.n = r->v.trained.n = 0;
    tp_status st = o ? conversation(r, o) : wrong(r, why);
    cJSON_Delete(o);
    if (!st && r->v.ids.n && r->v.trained.data[0]) { /* no prompt: something to begin with */
        int64_t ids = r->v.ids.cap, m = r->v.ids.n;
        st = grow(r->c, &r->v.ids.data, &ids, m + 1, sizeof(int32_t));
        r->v.ids.cap = ids;
        if (!st) st = grow(r->c, &r->v.trained.data, &r->v.trained.cap, m + 1, sizeof(int32_t));
        if (st) return st;
        memmove(r->v.ids.data + 1, r->v.ids.data, (size_t)m * sizeof(int32_t));
        memmove(r->v.trained.data + 1, r->v.trained.data, (size_t)m * sizeof(int32_t));
        r->v.ids.data[0] = eos;
        r->v.trained.data[0] = 0;
        r->v.ids.n = r->v.trained.n = m + 1;
    }
    return st ? st : keep(r);
}

static tp_status read_file(reader *r, int32_t eos) {
    FILE *f = fopen(r->path, "r");
    if (!f) return tp_fail(r->c, TP_EIO, "cannot read %s: %s", r->path, strerror(errno));
    tp_sha256 h;
    uint8_t digest[32];
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    tp_status st = TP_OK;
    tp_sha256_init(&h);
    while (!st && (n = getline(&line, &cap, f)) >= 0) {
        tp_sha256_update(&h, line, (size_t)n);
        st = read_line(r, line, (size_t)n, eos);
    }
    if (!st && !feof(f)) /* also a line that memory has no room for */
        st = tp_fail(r->c, TP_EIO, "cannot read %s: %s", r->path, strerror(errno));
    tp_sha256_final(&h, digest);
    tp_sha256_hex(digest, r->d->info.sha256);
    free(line);
    fclose(f);
    return st;
}

tp_status tp_sft_read(tp_sft_data **out, tp_ctx *c, const char *path, const tp_tokenizer *t,
                      tp_chat_template kind, int64_t T) {
    *out = NULL;
    tp_sft_data *d = tp_calloc(c, 1, sizeof *d);
    if (!d) return tp_error_status(c);
    reader r = {.c = c, .d = d, .path = path, .T = T};
    int64_t vocab = tp_tokenizer_vocab_size(t);
    d->T = T;
    d->id_bytes = tp_calloc(c, (size_t)vocab, sizeof *d->id_bytes);
    for (int64_t i = 0; i < vocab && d->id_bytes; i++) {
        size_t n = 0;
        if (tp_tokenizer_kind(t, (int32_t)i) != TP_TOKEN_SPECIAL)
            tp_tokenizer_token(t, (int32_t)i, &n);
        d->id_bytes[i] = (int32_t)n;
    }
    tp_status st = d->id_bytes ? tp_chat_new(&r.chat, c, t, kind) : tp_error_status(c);
    if (!st) st = grow(c, &d->offset, &r.cap_examples, 1, sizeof *d->offset);
    if (!st) d->offset[0] = 0;
    if (!st) st = read_file(&r, tp_tokenizer_eos(t));
    if (!st && !d->info.examples)
        st = tp_fail(c, TP_EFORMAT,
                     d->info.left_out
                         ? "%s holds no example with a reply that begins within the %lld tokens of "
                           "model.context"
                         : "%s holds no example at all",
                     path, (long long)T);
    tp_conversation_clear(&r.v);
    tp_chat_free(r.chat);
    if (st) {
        tp_sft_data_free(d);
        return st;
    }
    *out = d;
    return TP_OK;
}
