/* Owns the chat templates. */
#include "data/chat.h"
#include <string.h>

typedef struct marks { /* around one role's words */
    const char *before, *after;
} marks;
typedef struct format {
    marks system, user, assistant;
    const char *end;  /* the token that ends a reply; NULL, or where there is none: end-of-text */
    const char *next; /* between a reply and the turn after it */
} format;

static const format formats[] = {
    [TP_CHAT_PLAIN] = {{"", ""}, {"", ""}, {"", ""}, NULL, ""},
    [TP_CHAT_CHATML] = {{"<|im_start|>system\n", "<|im_end|>\n"},
                        {"<|im_start|>user\n", "<|im_end|>\n"},
                        {"<|im_start|>assistant\n", ""},
                        "<|im_end|>",
                        "\n"},
    [TP_CHAT_ALPACA] =
        {{"", "\n\n"}, {"### Instruction:\n", "\n\n"}, {"### Response:\n", ""}, NULL, ""},
#define HEADER(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
    [TP_CHAT_LLAMA3] = {{HEADER("system"), "<|eot_id|>"},
                        {HEADER("user"), "<|eot_id|>"},
                        {HEADER("assistant"), ""},
                        "<|eot_id|>",
                        ""},
};

struct tp_chat {
    tp_ctx *c;
    const format *f;
    tp_encoder *words, *marks; /* of the turns' own text, of the template's */
    int32_t end;
};

static bool is_mark(const tp_tokenizer *t, const char *text) {
    const int32_t id = tp_tokenizer_find(t, text, strlen(text));
    const tp_token_kind kind = tp_tokenizer_kind(t, id);
    return kind == TP_TOKEN_SPECIAL || kind == TP_TOKEN_ADDED;
}

tp_chat_template tp_chat_suits(const tp_tokenizer *t) {
    if (is_mark(t, "<|im_start|>") && is_mark(t, "<|im_end|>")) return TP_CHAT_CHATML;
    if (is_mark(t, "<|start_header_id|>") && is_mark(t, "<|eot_id|>")) return TP_CHAT_LLAMA3;
    return TP_CHAT_PLAIN;
}

tp_status tp_chat_new(tp_chat **out, tp_ctx *c, const tp_tokenizer *t, tp_chat_template kind) {
    *out = NULL;
    tp_chat *h = tp_calloc(c, 1, sizeof *h);
    if (!h) return tp_error_status(c);
    *h = (tp_chat){.c = c, .f = &formats[kind], .end = tp_tokenizer_eos(t)};
    tp_status st = TP_OK;
    if (h->end < 0)
        st = tp_fail(c, TP_EARG, "this tokenizer has no end-of-text token to end a reply with");
    if (h->f->end && is_mark(t, h->f->end))
        h->end = tp_tokenizer_find(t, h->f->end, strlen(h->f->end));
    if (!st) st = tp_encoder_new(&h->words, c, t, NULL);
    if (!st) st = tp_encoder_new(&h->marks, c, t, &(tp_encoder_opts){.allow_special = true});
    if (st) {
        tp_chat_free(h);
        return st;
    }
    *out = h;
    return TP_OK;
}

void tp_chat_free(tp_chat *h) {
    if (!h) return;
    tp_encoder_free(h->words);
    tp_encoder_free(h->marks);
    tp_free(h);
}

void tp_conversation_clear(tp_conversation *v) {
    tp_ids_clear(&v->ids);
    tp_ids_clear(&v->trained);
}

int32_t tp_chat_end(const tp_chat *h) { return h->end; }

/* Tells the ids from `from` on apart. */
static tp_status tell(tp_chat *h, tp_conversation *v, int64_t from, int32_t trained) {
    tp_ids *t = &v->trained;
    if (t->cap < v->ids.n) {
        int64_t cap = 2 * v->ids.n + 64;
        int32_t *data = tp_realloc(h->c, t->data, (size_t)cap * sizeof *data);
        if (!data) return tp_error_status(h->c);
        t->data = data;
        t->cap = cap;
    }
    for (t->n = from; t->n < v->ids.n; t->n++) t->data[t->n] = trained;
    return TP_OK;
}

static tp_status add(tp_chat *h, tp_conversation *v, tp_encoder *e, const char *text, int64_t n,
                     int32_t trained) {
    int64_t from = v->ids.n;
    tp_status st = n ? tp_encode(&v->ids, e, text, n) : TP_OK;
    return st ? st : tell(h, v, from, trained);
}

static tp_status add_mark(tp_chat *h, tp_conversation *v, const char *text) {
    return add(h, v, h->marks, text, (int64_t)strlen(text), 0);
}

static tp_status add_end(tp_chat *h, tp_conversation *v) {
    int64_t from = v->ids.n;
    tp_status st = tp_ids_add(&v->ids, h->c, h->end);
    return st ? st : tell(h, v, from, 1);
}

/* What stands before a turn's words, and before the first one what every text begins with. Only the
 * end of a reply is learnt, so what follows it is told by that. */
static tp_status begin(tp_chat *h, tp_conversation *v, const marks *m) {
    bool replied = v->ids.n && v->trained.data[v->ids.n - 1];
    tp_status st = replied ? add_mark(h, v, h->f->next) : TP_OK;
    if (!v->ids.n && !(st = tp_encode_begin(&v->ids, h->marks))) st = tell(h, v, 0, 0);
    return st ? st : add_mark(h, v, m->before);
}

tp_status tp_chat_reply(tp_chat *h, tp_conversation *v) { return begin(h, v, &h->f->assistant); }

tp_status tp_chat_turn(tp_chat *h, tp_conversation *v, const char *role, const char *text,
                       int64_t n) {
    bool mine = !strcmp(role, "assistant");
    const marks *m = mine                      ? &h->f->assistant
                     : !strcmp(role, "user")   ? &h->f->user
                     : !strcmp(role, "system") ? &h->f->system
                                               : NULL;
    if (!m)
        return tp_fail(h->c, TP_EARG, "the role of a turn is system, user or assistant, got \"%s\"",
                       role);
    tp_status st = begin(h, v, m);
    if (!st) st = add(h, v, h->words, text, n, mine);
    return st ? st : mine ? add_end(h, v) : add_mark(h, v, m->after);
}
