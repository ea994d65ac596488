/* Any bytes as model.safetensors: refused in one sentence, or every tensor can be read or says why
 * not. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "data/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char dir[] = "/tmp/tapir-fuzz-XXXXXX", path[64];
    tp_ctx *c = NULL;
    tp_safetensors *s = NULL;
    if (!mkdtemp(dir)) return 0;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    FILE *f = fopen(path, "wb");
    const int written = f && fwrite(data, 1, size, f) == size;
    if (f) fclose(f);
    if (!written || tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1})) goto done;
    if (tp_safetensors_open(&s, c, dir) && !*tp_error(c)) abort();
    for (int64_t i = 0; s && i < tp_safetensors_count(s); i++) {
        const tp_safetensors_entry *e = tp_safetensors_at(s, i);
        if (tp_safetensors_find(s, e->name) != e) abort();
        float *x = malloc(((size_t)e->n + 1) * sizeof *x); /* no more than the file has */
        if (x && tp_safetensors_get(c, e, x) && !*tp_error(c)) abort();
        free(x);
    }
    tp_safetensors_close(s);
done:
    tp_ctx_free(c);
    unlink(path);
    rmdir(dir);
    return 0;
}
