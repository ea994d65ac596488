/* Any bytes as config.json: refused in one sentence, or a config that can be used: it stands every
 * check, and what is written of it, where a model of theirs computes it, reads back as the same. */
#include <stdint.h>
#include <stdlib.h>
#include "data/hf_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tp_ctx *c = NULL;
    tp_config cfg, back;
    tp_str t;
    if (tp_ctx_new(&c, &(tp_ctx_opts){.meta = true, .threads = 1})) return 0;
    tp_config_defaults(&cfg);
    tp_config_defaults(&back);
    tp_str_init(&t, c);
    if (tp_hf_config_read(c, &cfg, 0, (const char *)data, size, "fuzz")) {
        if (!*tp_error(c)) abort();
    } else if (!tp_hf_none_computes(&cfg)) {
        if (tp_config_check(c, &cfg)) abort();
        tp_hf_config_write(&t, &cfg, 1);
        if (!t.failed && tp_hf_config_read(c, &back, 0, t.at, t.len, "back")) abort();
        if (!t.failed && !tp_config_equal(&cfg, &back)) abort();
    }
    tp_str_clear(&t);
    tp_ctx_free(c);
    return 0;
}
