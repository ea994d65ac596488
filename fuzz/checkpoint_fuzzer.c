/* Any bytes as a checkpoint: refused in one sentence, or every entry of it can be read. Then the
 * same bytes under a fresh seal. */
#define _GNU_SOURCE /* memfd_create */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "data/checkpoint.h"
#include "data/checkpoint_seal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Opens path and reads all of it. sealed: by the writer itself, so that nothing may fail. */
static void read_all(tp_ctx *c, const char *path, bool sealed) {
    tp_checkpoint_reader *r;
    if (tp_checkpoint_open(&r, c, path)) {
        if (!*tp_error(c)) abort(); /* a failure without a sentence */
        return;
    }
    for (int64_t i = 0; i < tp_checkpoint_count(r); i++) {
        const tp_checkpoint_entry *e = tp_checkpoint_at(r, i);
        void *bytes = tp_malloc(c, e->bytes);
        if (!bytes) continue;
        if (tp_checkpoint_get(r, e->name, e->dtype, e->ndim, e->shape, bytes, e->bytes) && sealed)
            abort();
        tp_free(bytes);
    }
    tp_checkpoint_close(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tp_ctx *c = NULL;
    char path[64];
    int fd = memfd_create("checkpoint", 0);
    if (fd < 0 || tp_ctx_new(&c, &(tp_ctx_opts){.meta = true, .threads = 1})) goto done;
    if (write(fd, data, size) != (ssize_t)size) goto done;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    read_all(c, path, true);
    tp_clear(c);
    /* the seal keeps nearly every input from HDF5; a new one lets them all through to it */
    if (!tp_seal_write(c, path, 3, "fuzz")) read_all(c, path, false);
done:
    tp_ctx_free(c);
    if (fd >= 0) close(fd);
    return 0;
}
