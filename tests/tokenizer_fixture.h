/* What the tests of tokenizers share: contexts, a text to train on, and the identity check. */
#ifndef TOKENIZER_FIXTURE_H
#define TOKENIZER_FIXTURE_H
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "data/tokenizer_impl.h"

static inline tp_ctx *new_ctx(int threads, long fail_at) {
    tp_ctx *c = NULL;
    const tp_ctx_opts o = {.threads = threads, .memory_limit = 1 << 20, .fail_alloc_at = fail_at};
    assert_int_equal(tp_ctx_new(&c, &o), TP_OK);
    return c;
}

static inline uint32_t rnd(uint64_t i, uint32_t below) {
    uint32_t w[4];
    tp_philox(w, 5, TP_RNG_TEST, i, 0);
    return w[0] % below;
}

/* A few words over and over, with punctuation, digits and other scripts. */
static inline size_t sample_text(char *out, size_t room, uint64_t seed) {
    static const char *const words[] = {
        "the",  "then",  "thing", "in",   "nation", "ing", "Ünïcode",      "日本",
        "it's", "12345", "...",   "\n\n", "  ",     "\t",  "🙂👍🏽", "ation"};
    size_t n = 0;
    for (uint64_t i = 0; n + 32 < room; i++) {
        uint32_t r = rnd(seed << 32 | i, 4096);
        n += (size_t)snprintf(out + n, 32, "%s%s", words[r % 16], r & 16 ? "" : " ");
    }
    return n;
}

static inline tp_tokenizer *train(tp_ctx *c, const char *text, size_t n, const tp_bpe_opts *o) {
    tp_bpe_trainer *b = NULL;
    tp_tokenizer *t = NULL;
    tp_status st = tp_bpe_trainer_new(&b, c, o);
    if (!st) st = tp_bpe_trainer_add(b, text, (int64_t)n);
    if (!st) st = tp_bpe_trainer_finish(&t, b);
    tp_bpe_trainer_free(b);
    assert_true((st == TP_OK) == (t != NULL));
    return t;
}

static char sample[1 << 16];

static inline tp_tokenizer *sample_tokenizer(tp_ctx *c, const char *pattern) {
    size_t n = sample_text(sample, sizeof sample, 1);
    tp_tokenizer *t = train(c, sample, n, &(tp_bpe_opts){.vocab_size = 400, .pattern = pattern});
    assert_non_null(t);
    assert_int_equal(tp_tokenizer_vocab_size(t), 400);
    return t;
}

static inline tp_ids encode(tp_ctx *c, const tp_tokenizer *t, const void *p, size_t n,
                            bool special) {
    tp_ids ids = {0};
    tp_encoder *e = NULL;
    const tp_encoder_opts o = {.allow_special = special};
    assert_int_equal(tp_encoder_new(&e, c, t, &o), TP_OK);
    assert_int_equal(tp_encode(&ids, e, p, (int64_t)n), TP_OK);
    tp_encoder_free(e);
    return ids;
}

static inline void assert_same_ids(tp_ids *a, tp_ids *b) {
    assert_int_equal(a->n, b->n);
    if (a->n) assert_memory_equal(a->data, b->data, (size_t)a->n * sizeof(int32_t));
    tp_ids_clear(a);
    tp_ids_clear(b);
}

/* decode(encode(p)) == p, at once and token by token */
static inline void assert_identity(tp_ctx *c, const tp_tokenizer *t, const void *p, size_t n) {
    tp_ids ids = encode(c, t, p, n, false);
    char *back = NULL;
    size_t n_back = 0, at = 0;
    assert_int_equal(tp_decode(&back, &n_back, c, t, ids.data, ids.n), TP_OK);
    assert_int_equal(n_back, n);
    if (n) assert_memory_equal(back, p, n);
    char *out = tp_malloc(c, n + (size_t)tp_tokenizer_longest(t) + 4);
    tp_decoder d = {0};
    for (int64_t i = 0; i < ids.n; i++) at += tp_decoder_push(&d, t, ids.data[i], out + at);
    at += tp_decoder_flush(&d, out + at);
    assert_int_equal(at, n);
    if (n) assert_memory_equal(out, p, n);
    tp_free(back);
    tp_free(out);
    tp_ids_clear(&ids);
}

/* json with the first `from` replaced */
static inline char *replaced(const char *json, const char *from, const char *to) {
    const char *at = strstr(json, from);
    if (!at) fail_msg("the JSON has no '%s'", from);
    size_t head = (size_t)(at - json);
    char *out = malloc(strlen(json) + strlen(to) + 1);
    memcpy(out, json, head);
    strcpy(out + head, to);
    strcat(out + head, at + strlen(from));
    return out;
}

#endif
