/* Any bytes as metrics.jsonl: read, cut, appended to; the record appended must be read back. */
#define _GNU_SOURCE /* memfd_create */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "data/metrics.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool last_step(void *arg, int64_t step, const tp_metric *m, int n) {
    (void)m;
    *(int64_t *)arg = step;
    return n >= 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tp_ctx *c = NULL;
    char path[64];
    int fd = memfd_create("metrics", 0);
    if (fd < 0 || tp_ctx_new(&c, &(tp_ctx_opts){.meta = true, .threads = 1})) goto done;
    if (write(fd, data, size) != (ssize_t)size) goto done;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int64_t step = -1, bad;
    if (tp_metrics_read(c, path, last_step, &step, &bad)) abort();
    tp_metrics *m;
    if (tp_metrics_open(&m, c, path, 5)) {
        if (tp_error_status(c) != TP_EFORMAT || !*tp_error(c)) abort();
        goto done;
    }
    tp_metric loss = tp_metric_f64("loss", 0.5);
    if (tp_metrics_write(m, 77, &loss, 1)) abort();
    tp_metrics_close(m);
    if (tp_metrics_read(c, path, last_step, &step, &bad) || step != 77) abort();
done:
    tp_ctx_free(c);
    if (fd >= 0) close(fd);
    return 0;
}
