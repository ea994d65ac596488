/* Fuzzes the reader of tokenizer.json. Whatever it accepts must give back every text. */
#include "data/tokenizer.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char text[] =
        "Hello  world's \xC3\xA9\xE6\x97\xA5 123\n\n\xFF<|endoftext|> the\t\0end";
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
            if (n != sizeof text || memcmp(back, text, n)) abort();
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
