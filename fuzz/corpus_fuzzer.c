/* Any bytes as a corpus file: opened in memory, verified and read if it opens. */
#include "data/corpus.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* HDF5 1.10 loses some of its own memory when it refuses a damaged header. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "leak:libhdf5"; }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tp_ctx *c;
    tp_corpus *co;
    int32_t ids[64];
    if (tp_ctx_new(&c, &(tp_ctx_opts){.meta = true, .threads = 1})) return 0;
    tp_status st = tp_corpus_open_image(&co, c, "input", data, size);
    if (st && !tp_error(c)[0]) abort(); /* a refusal without a sentence */
    if (!st) {
        const tp_corpus_info *info = tp_corpus_get_info(co);
        int64_t n = info->tokens < 64 ? info->tokens : 64;
        if (tp_corpus_read(co, c, info->tokens - n, n, ids) == TP_OK)
            for (int64_t i = 0; i < n; i++)
                if (ids[i] < 0 || ids[i] >= info->vocab) abort();
        /* a forged file may claim any number of tokens that were never written */
        if (info->tokens <= 1 << 20) tp_corpus_verify(co, c);
    }
    tp_corpus_close(co);
    tp_ctx_free(c);
    return 0;
}
