/* Fuzzes the reader of tokenizer.json. Whatever it accepts must give back every text, or one with
 * the same normal form where the file normalises: tokens that are found before may keep others. */
#include "data/tokenizer_impl.h"
#include <stdlib.h>
#include <string.h>

static bool same_form(tp_ctx *c, const tp_nfc *f, const char *x, size_t n_x, const char *y,
                      size_t n_y) {
    uint8_t *a = NULL, *b = NULL;
    size_t n_a = 0, n_b = 0;
    if (tp_nfc_form(&a, &n_a, c, f, (const uint8_t *)x, n_x)) abort();
    if (tp_nfc_form(&b, &n_b, c, f, (const uint8_t *)y, n_y)) abort();
    bool same = n_a == n_b && !memcmp(a ? (char *)a : x, b ? (char *)b : y, n_a);
    tp_free(a);
    tp_free(b);
    return same;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char text[] =
        "Hello  world's \xC3\xA9\xE6\x97\xA5 123\n\n\xFF<|endoftext|> the\t\0end"
        " e\xCC\x81!\xE2\x84\xAB\xCC\xA7 \xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8<|a|>\xCC\x81\xCC";
    tp_ctx *c = NULL;
    tp_tokenizer *t = NULL;
    tp_encoder *e = NULL;
    tp_ids ids = {0};
    char *back = NULL;
    size_t n = 0;
    if (tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1, .memory_limit = 1 << 20})) return 0;
    for (int special = 0; special < 2; special++) {
        const tp_encoder_opts opts = {.allow_special = special};
        ids.n = 0;
        if (tp_tokenizer_from_json(&t, c, (const char *)data, size, "fuzz")) break;
        if (tp_encoder_new(&e, c, t, &opts)) break;
        if (!tp_encode(&ids, e, text,
                       sizeof text)) { /* a pattern may give up; it may not lose text */
            if (tp_decode(&back, &n, c, t, ids.data, ids.n)) abort();
            bool same = n == sizeof text && !memcmp(back, text, n);
            if (!same && !(t->nfc && same_form(c, t->nfc, back, n, text, sizeof text))) abort();
            tp_free(back);
        }
        tp_encoder_free(e);
        tp_tokenizer_free(t);
        e = NULL;
        t = NULL;
    }
    if (!t && tp_error_status(c) && !*tp_error(c)) abort(); /* a refusal has a sentence */
    tp_encoder_free(e);
    tp_tokenizer_free(t);
    tp_ids_clear(&ids);
    tp_ctx_free(c);
    return 0;
}
