/* Any bytes as a configuration: refused in one sentence, or read, written and read again alike. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "data/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tp_ctx *c = NULL;
    if (tp_ctx_new(&c, &(tp_ctx_opts){.meta = true, .threads = 1})) return 0;
    tp_config cfg, back;
    tp_config_defaults(&cfg);
    tp_config_defaults(&back);
    if (tp_config_read(c, &cfg, "fuzz.yaml", (const char *)data, size)) {
        if (!*tp_error(c)) abort(); /* a failure without a sentence */
    } else {
        char *text = tp_config_text(c, &cfg);
        if (!text || tp_config_read(c, &back, "back.yaml", text, strlen(text)) ||
            !tp_config_equal(&cfg, &back))
            abort();
        tp_free(text);
        tp_config_resolve(c, &cfg);
    }
    tp_clear(c);
    char *word = malloc(size + 1);
    if (word) {
        memcpy(word, data, size);
        word[size] = 0;
        if (tp_config_set(c, &cfg, word) && !*tp_error(c)) abort();
    }
    free(word);
    tp_ctx_free(c);
    return 0;
}
