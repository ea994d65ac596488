/* Owns the layout of a safetensors file. */
#include "data/safetensors.h"
#include "data/files.h"
#include "data/text.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { PATH_CAP = 4096, ALIGN = 8 };

struct tp_safetensors_writer {
    tp_ctx *c;
    char path[PATH_CAP], tmp[PATH_CAP];
    int fd;
    tp_str header; /* without its end, until the first value */
    bool begun;
    int64_t declared, put; /* values */
    tp_status st;
};

tp_status tp_safetensors_create(tp_safetensors_writer **out, tp_ctx *c, const char *path) {
    *out = NULL;
    tp_safetensors_writer *w = tp_calloc(c, 1, sizeof *w);
    if (!w) return tp_error_status(c);
    w->c = c;
    snprintf(w->path, sizeof w->path, "%s", path);
    if (snprintf(w->tmp, sizeof w->tmp, "%s.tmp", path) >= (int)sizeof w->tmp) {
        tp_free(w);
        return tp_fail(c, TP_EARG, "%s: the path is too long", path);
    }
    /* EXCL: what another process writes there is not to be mixed with this, nor removed */
    w->fd = open(w->tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (w->fd < 0) {
        tp_status st = tp_fail(c, TP_EIO, "%s: cannot write: %s", w->tmp, strerror(errno));
        tp_free(w);
        return st;
    }
    tp_str_init(&w->header, c);
    tp_str_puts(&w->header, "{\"__metadata__\":{\"format\":\"pt\"}"); /* transformers asks for it */
    *out = w;
    return TP_OK;
}

tp_status tp_safetensors_declare(tp_safetensors_writer *w, const char *name, int ndim,
                                 const int64_t *shape) {
    if (w->st) return w->st;
    if (w->begun)
        return w->st = tp_fail(w->c, TP_EARG, "%s: %s is declared too late", w->path, name);
    int64_t n = 1;
    tp_str *h = &w->header;
    tp_str_puts(h, ",");
    tp_str_json(h, name);
    tp_str_puts(h, ":{\"dtype\":\"F32\",\"shape\":[");
    for (int d = 0; d < ndim; d++) {
        tp_str_printf(h, d ? ",%lld" : "%lld", (long long)shape[d]);
        n *= shape[d];
    }
    tp_str_printf(h, "],\"data_offsets\":[%lld,%lld]}", (long long)(4 * w->declared),
                  (long long)(4 * (w->declared + n)));
    w->declared += n;
    return w->st = h->failed ? tp_error_status(w->c) : TP_OK;
}

static tp_status put_bytes(tp_safetensors_writer *w, const void *bytes, size_t n) {
    if (!w->st && !tp_write_all(w->fd, bytes, n))
        w->st = tp_fail(w->c, TP_EIO, "%s: cannot write: %s", w->path, strerror(errno));
    return w->st;
}

static tp_status begin(tp_safetensors_writer *w) {
    uint8_t length[8];
    tp_str *h = &w->header;
    if (w->st || w->begun) return w->st;
    w->begun = true;
    tp_str_puts(h, "}");
    while (!h->failed && h->len % ALIGN) tp_str_puts(h, " ");
    if (h->failed) return w->st = tp_error_status(w->c);
    for (int b = 0; b < 8; b++) length[b] = (uint8_t)((uint64_t)h->len >> (8 * b));
    if (!put_bytes(w, length, sizeof length)) put_bytes(w, h->at, h->len);
    return w->st;
}

tp_status tp_safetensors_put(tp_safetensors_writer *w, const float *x, int64_t n) {
    if (begin(w)) return w->st;
    w->put += n;
    return put_bytes(w, x, (size_t)n * sizeof *x);
}

tp_status tp_safetensors_finish(tp_safetensors_writer *w) {
    begin(w); /* a file without tensors is one, too */
    if (!w->st && w->put != w->declared)
        w->st = tp_fail(w->c, TP_EARG, "%s: %lld values of %lld were put", w->path,
                        (long long)w->put, (long long)w->declared);
    if (close(w->fd) && !w->st) /* where a disk over a network says that it is full */
        w->st = tp_fail(w->c, TP_EIO, "%s: cannot write: %s", w->path, strerror(errno));
    w->fd = -1;
    if (!w->st) w->st = tp_commit_file(w->c, w->tmp, w->path);
    tp_status st = w->st;
    if (!st) *w->tmp = 0;
    tp_safetensors_abandon(w);
    return st;
}

void tp_safetensors_abandon(tp_safetensors_writer *w) {
    if (!w) return;
    if (w->fd >= 0) close(w->fd);
    if (*w->tmp) unlink(w->tmp);
    tp_str_clear(&w->header);
    tp_free(w);
}
