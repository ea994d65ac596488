/* Fuzzes encoding and decoding: for any bytes, with either pattern and with bytes as tokens,
 * decode(encode(x)) == x, at once and streamed. */
#include "data/tokenizer.h"
#include <stdlib.h>
#include <string.h>

static void check(tp_ctx *c, const tp_tokenizer *t, const uint8_t *p, size_t size, bool special) {
    tp_encoder *e = NULL;
    tp_ids ids = {0};
    char *back = NULL, *out = malloc(size + (size_t)tp_tokenizer_longest(t) + 4);
    size_t n = 0, at = 0;
    tp_decoder d = {0};
    const tp_encoder_opts opts = {.allow_special = special};
    if (!out || tp_encoder_new(&e, c, t, &opts) || tp_encode(&ids, e, p, (int64_t)size)) abort();
    if (tp_decode(&back, &n, c, t, ids.data, ids.n)) abort();
    for (int64_t i = 0; i < ids.n; i++) at += tp_decoder_push(&d, t, ids.data[i], out + at);
    at += tp_decoder_flush(&d, out + at);
    if (n != size || (n && memcmp(back, p, n))) abort();
    if (at != size || (at && memcmp(out, p, at))) abort();
    tp_free(back);
    free(out);
    tp_ids_clear(&ids);
    tp_encoder_free(e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const patterns[] = {"gpt2", "cl100k"};
    tp_ctx *c = NULL;
    if (tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1, .memory_limit = 1 << 20})) return 0;
    for (int k = 0; k < 3;
         k++) { /* tokenizers trained on the input itself, so that merges happen */
        tp_tokenizer *t = NULL;
        tp_bpe_trainer *b = NULL;
        if (k == 2) {
            if (tp_tokenizer_new_bytes(&t, c, NULL, 0)) abort();
        } else {
            const tp_bpe_opts opts = {.vocab_size = 300, .pattern = patterns[k]};
            if (tp_bpe_trainer_new(&b, c, &opts)) abort();
            if (tp_bpe_trainer_add(b, data, (int64_t)size)) abort();
            if (tp_bpe_trainer_finish(&t, b)) abort();
            tp_bpe_trainer_free(b);
        }
        check(c, t, data, size, false);
        check(c, t, data, size, true);
        tp_tokenizer_free(t);
    }
    tp_ctx_free(c);
    return 0;
}
