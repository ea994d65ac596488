/* Owns waiting for input, and cutting it into lines. */
#include "data/input.h"
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

enum { LOOK_UP_MS = 100, READ_AT_LEAST = 4096 };

static tp_status failed(tp_ctx *c, const char *name) {
    return tp_fail(c, TP_EIO, "cannot read %s: %s", name, strerror(errno));
}

/* A signal may come to another thread, or between a look and the wait: no errno tells of those. */
tp_status tp_input_wait(tp_ctx *c, int fd, const char *name, bool (*interrupted)(void)) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int ready = 0;
    while (!ready) {
        if (interrupted && interrupted()) return tp_fail(c, TP_EINTERRUPT, "%s: stopped", name);
        ready = poll(&p, 1, LOOK_UP_MS);
        if (ready < 0 && errno != EINTR) return failed(c, name);
        if (ready < 0) ready = 0;
    }
    return TP_OK;
}

/* One read more, with room for a NUL behind it. */
static tp_status read_on(tp_input *in, tp_ctx *c) {
    if (in->to) memmove(in->data, in->data + in->from, in->to - in->from);
    in->to -= in->from;
    in->from = 0;
    if (in->cap - in->to < READ_AT_LEAST + 1) {
        size_t cap = 2 * in->cap + READ_AT_LEAST + 1;
        char *data = tp_realloc(c, in->data, cap);
        if (!data) return TP_ENOMEM;
        in->data = data;
        in->cap = cap;
    }
    tp_status st = tp_input_wait(c, in->fd, in->name, in->interrupted);
    if (st) return st;
    ssize_t n = read(in->fd, in->data + in->to, in->cap - in->to - 1);
    if (n < 0 && errno != EINTR && errno != EAGAIN) return failed(c, in->name);
    if (n > 0) in->to += (size_t)n;
    in->ended = n == 0;
    return TP_OK;
}

tp_status tp_input_line(tp_input *in, tp_ctx *c, char **line) {
    char *nl = NULL;
    tp_status st = TP_OK;
    *line = NULL;
    while (!st && !(in->to && (nl = memchr(in->data + in->from, '\n', in->to - in->from))) &&
           !in->ended)
        st = read_on(in, c);
    if (st || in->from == in->to) return st;
    *line = in->data + in->from;
    char *end = nl ? nl : in->data + in->to;
    in->from = nl ? in->from + (size_t)(nl + 1 - *line) : in->to;
    while (end > *line && end[-1] == '\r') end--;
    *end = 0;
    return TP_OK;
}

tp_status tp_input_rest(tp_input *in, tp_ctx *c, char **text, size_t *n) {
    tp_status st = TP_OK;
    *text = NULL;
    *n = 0;
    while (!st && !in->ended) st = read_on(in, c);
    if (st) return st;
    *text = in->data + in->from;
    *n = in->to - in->from;
    in->from = in->to;
    in->data[in->to] = 0;
    return TP_OK;
}

void tp_input_clear(tp_input *in) {
    tp_free(in->data);
    *in = (tp_input){0};
}
