/* Any bytes as a checkpoint: refused in one sentence, or every entry of it can be read. */
#define _GNU_SOURCE /* memfd_create */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "data/checkpoint.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tp_ctx *c = NULL;
    tp_checkpoint_reader *r = NULL;
    char path[64];
    int fd = memfd_create("checkpoint", 0);
    if (fd < 0 || tp_ctx_new(&c, &(tp_ctx_opts){.meta = true, .threads = 1})) goto done;
    if (write(fd, data, size) != (ssize_t)size) goto done;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (tp_checkpoint_open(&r, c, path)) {
        if (!*tp_error(c)) abort(); /* a failure without a sentence */
        goto done;
    }
    for (int64_t i = 0; i < tp_checkpoint_count(r); i++) {
        const tp_checkpoint_entry *e = tp_checkpoint_at(r, i);
        void *bytes = tp_malloc(c, e->bytes);
        if (bytes && tp_checkpoint_get(r, e->name, e->dtype, e->ndim, e->shape, bytes, e->bytes))
            abort(); /* what is sealed can be read */
        tp_free(bytes);
    }
done:
    tp_checkpoint_close(r);
    tp_ctx_free(c);
    if (fd >= 0) close(fd);
    return 0;
}
