/* metrics: records appended to metrics.jsonl, read back, and cut at a resume. */
#include "data/metrics.h"
#include "data/text.h"
#include <cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LINE_MOST = 1 << 20 };

struct tp_metrics {
    tp_ctx *c;
    int fd;
    int64_t bytes; /* of whole records */
    tp_str line;
    char path[]; /* for messages */
};

/* ---- lines ---------------------------------------------------------------------------------- */
typedef struct lines {
    tp_ctx *c;
    const char *path;
    int fd;
    char *buffer; /* LINE_MOST bytes: [from, to) is read and not yet handed out */
    size_t from, to;
    int64_t end; /* offset in the file after the latest line, its '\n' included */
} lines;

typedef enum line_kind { LINE_WHOLE, LINE_TORN, LINE_LONG, LINE_NONE, LINE_ERROR } line_kind;

/* Reads on behind what is in the buffer, having moved that to its start. False at the file's end or
 * on an error, which is recorded. */
static bool refill(lines *l, bool *failed) {
    memmove(l->buffer, l->buffer + l->from, l->to - l->from);
    l->to -= l->from;
    l->from = 0;
    ssize_t got;
    do got = read(l->fd, l->buffer + l->to, LINE_MOST - l->to);
    while (got < 0 && errno == EINTR);
    if (got < 0) {
        tp_fail(l->c, TP_EIO, "%s: cannot read: %s", l->path, strerror(errno));
        *failed = true;
    }
    l->to += got > 0 ? (size_t)got : 0;
    return got > 0;
}

/* The next line; *at has *n bytes without '\n'. LONG: more than fits, skipped. TORN: no '\n'. */
static line_kind next_line(lines *l, const char **at, size_t *n) {
    bool skipped = false, failed = false;
    for (;;) {
        char *start = l->buffer + l->from, *nl = memchr(start, '\n', l->to - l->from);
        if (nl) {
            *at = start;
            *n = (size_t)(nl - start);
            l->from += *n + 1;
            l->end += (int64_t)*n + 1;
            return skipped ? LINE_LONG : LINE_WHOLE;
        }
        if (l->from == 0 && l->to == LINE_MOST) {
            l->end += LINE_MOST;
            l->from = l->to;
            skipped = true;
        }
        if (refill(l, &failed)) continue;
        if (failed) return LINE_ERROR;
        *at = l->buffer;
        *n = l->to;
        l->end += (int64_t)l->to;
        l->from = l->to;
        return skipped ? LINE_LONG : *n ? LINE_TORN : LINE_NONE;
    }
}

static tp_status lines_open(lines *l, tp_ctx *c, const char *path, int flags) {
    struct stat info;
    *l = (lines){.c = c, .path = path};
    l->fd = open(path, flags | O_CLOEXEC | O_NONBLOCK, 0666); /* a FIFO must not hang us */
    if (l->fd < 0) return tp_fail(c, TP_EIO, "%s: cannot open: %s", path, strerror(errno));
    tp_status st = TP_OK;
    if (fstat(l->fd, &info))
        st = tp_fail(c, TP_EIO, "%s: cannot read: %s", path, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        st = tp_fail(c, TP_EIO, "%s: not a file", path);
    else if (!(l->buffer = tp_malloc(c, LINE_MOST)))
        st = TP_ENOMEM;
    if (st) close(l->fd);
    return st;
}

/* Parses a line into an object with a step; NULL where it is none. To be given to cJSON_Delete. */
static cJSON *parse_record(int64_t *step, const char *at, size_t n) {
    const char *end = NULL;
    if (!n || at[0] != '{') return NULL;
    cJSON *o = cJSON_ParseWithLengthOpts(at, n, &end, 0);
    const cJSON *s = o ? cJSON_GetObjectItemCaseSensitive(o, "step") : NULL;
    if (o && end == at + n && cJSON_IsNumber(s) && s->valuedouble >= 0 &&
        s->valuedouble <= 9007199254740992.0 && s->valuedouble == floor(s->valuedouble)) {
        *step = (int64_t)s->valuedouble;
        return o;
    }
    cJSON_Delete(o);
    return NULL;
}

/* ---- reading -------------------------------------------------------------------------------- */
static tp_status hand_out(tp_ctx *c, const cJSON *o, int64_t step, tp_metrics_fn fn, void *arg,
                          bool *go_on) {
    int n = 0;
    for (const cJSON *v = o->child; v; v = v->next) n++;
    tp_metric *m = tp_malloc(c, (size_t)n * sizeof *m);
    if (!m) return TP_ENOMEM;
    n = 0;
    for (const cJSON *v = o->child; v; v = v->next) {
        if (!strcmp(v->string, "step")) continue;
        if (cJSON_IsNumber(v)) m[n++] = tp_metric_f64(v->string, v->valuedouble);
        if (cJSON_IsNull(v)) m[n++] = tp_metric_f64(v->string, NAN);
        if (cJSON_IsString(v)) m[n++] = tp_metric_text(v->string, v->valuestring);
    }
    *go_on = fn(arg, step, m, n);
    tp_free(m);
    return TP_OK;
}

tp_status tp_metrics_read(tp_ctx *c, const char *path, tp_metrics_fn fn, void *arg, int64_t *bad) {
    lines l;
    const char *at;
    size_t n;
    int64_t unused;
    bool go_on = true;
    if (!bad) bad = &unused;
    *bad = 0;
    tp_status st = lines_open(&l, c, path, O_RDONLY);
    if (st) return st;
    while (!st && go_on) {
        int64_t step = 0;
        line_kind kind = next_line(&l, &at, &n);
        if (kind == LINE_NONE) break;
        if (kind == LINE_ERROR) {
            st = TP_EIO;
            break;
        }
        cJSON *o = kind == LINE_WHOLE ? parse_record(&step, at, n) : NULL;
        if (o)
            st = hand_out(c, o, step, fn, arg, &go_on);
        else
            ++*bad;
        cJSON_Delete(o);
    }
    close(l.fd);
    tp_free(l.buffer);
    return st;
}

/* ---- writing -------------------------------------------------------------------------------- */
/* Where to cut: after the last record with step <= last_step before any later one. */
static tp_status find_cut(int64_t *cut, lines *l, int64_t last_step) {
    const char *at;
    size_t n;
    int64_t records = 0, step = 0;
    bool foreign = false;
    *cut = 0;
    for (;;) {
        line_kind kind = next_line(l, &at, &n);
        if (kind == LINE_ERROR) return TP_EIO;
        if (kind == LINE_NONE) break;
        cJSON *o = kind == LINE_WHOLE ? parse_record(&step, at, n) : NULL;
        /* a torn first record is ours; anything else without one record is not */
        static const char ours[] = "{\"step\":";
        size_t head = n < sizeof ours - 1 ? n : sizeof ours - 1;
        foreign = foreign || (!o && !(kind == LINE_TORN && !memcmp(at, ours, head)));
        records += o != NULL;
        cJSON_Delete(o);
        if (o && step > last_step) break;
        if (o) *cut = l->end;
    }
    if (records || !foreign) return TP_OK;
    return tp_fail(l->c, TP_EFORMAT, "%s: holds no metrics; move it away to start a new file",
                   l->path);
}

tp_status tp_metrics_open(tp_metrics **out, tp_ctx *c, const char *path, int64_t last_step) {
    lines l;
    int64_t cut = 0;
    *out = NULL;
    tp_status st = lines_open(&l, c, path, O_RDWR | O_CREAT | O_APPEND);
    if (st) return st;
    st = find_cut(&cut, &l, last_step);
    tp_free(l.buffer);
    size_t n = strlen(path) + 1;
    tp_metrics *m = st ? NULL : tp_malloc(c, sizeof *m + n);
    if (!st && !m) st = TP_ENOMEM;
    if (!st && ftruncate(l.fd, cut))
        st = tp_fail(c, TP_EIO, "%s: cannot cut: %s", path, strerror(errno));
    if (st) {
        tp_free(m);
        close(l.fd);
        return st;
    }
    *m = (tp_metrics){.c = c, .fd = l.fd, .bytes = cut};
    memcpy(m->path, path, n);
    tp_str_init(&m->line, c);
    *out = m;
    return TP_OK;
}

void tp_metrics_close(tp_metrics *m) {
    if (!m) return;
    close(m->fd);
    tp_str_clear(&m->line);
    tp_free(m);
}

static tp_status check_keys(tp_metrics *m, int64_t step, const tp_metric *v, int n) {
    if (step < 0 || step > INT64_C(9007199254740992)) /* JSON numbers are doubles to most readers */
        return tp_fail(m->c, TP_EARG, "%s: step %lld cannot be written", m->path, (long long)step);
    for (int i = 0; i < n; i++) {
        bool twice = !strcmp(v[i].key, "step");
        for (int j = 0; j < i; j++) twice = twice || !strcmp(v[i].key, v[j].key);
        if (twice) return tp_fail(m->c, TP_EARG, "%s: a record has one \"%s\"", m->path, v[i].key);
    }
    return TP_OK;
}

static void put_value(tp_str *t, const tp_metric *v) {
    char number[TP_F64_TEXT];
    tp_str_add(t, ",", 1);
    tp_str_json(t, v->key);
    tp_str_add(t, ":", 1);
    switch (v->type) {
    case TP_METRIC_I64:
        tp_str_printf(t, "%lld", (long long)v->i64);
        break;
    case TP_METRIC_TEXT:
        tp_str_json(t, v->text);
        break;
    case TP_METRIC_F64:
        if (isfinite(v->f64)) {
            tp_f64_print(number, v->f64);
            tp_str_puts(t, number);
        } else
            tp_str_puts(t, "null"); /* JSON has no NaN */
        break;
    }
}

tp_status tp_metrics_write(tp_metrics *m, int64_t step, const tp_metric *metrics, int n) {
    tp_status st = check_keys(m, step, metrics, n);
    if (st) return st;
    m->line.len = 0;
    m->line.failed = false;
    tp_str_printf(&m->line, "{\"step\":%lld", (long long)step);
    for (int i = 0; i < n; i++) put_value(&m->line, &metrics[i]);
    tp_str_puts(&m->line, "}\n");
    if (m->line.failed) return TP_ENOMEM;
    if (m->line.len > LINE_MOST)
        return tp_fail(m->c, TP_EARG, "%s: a record of %zu bytes; at most 1 MiB", m->path,
                       m->line.len);
    ssize_t put;
    do put = write(m->fd, m->line.at, m->line.len);
    while (put < 0 && errno == EINTR);
    if (put == (ssize_t)m->line.len) {
        m->bytes += put;
        return TP_OK;
    }
    st = tp_fail(m->c, TP_EIO, "%s: cannot write: %s", m->path,
                 put < 0 ? strerror(errno) : "the disk is full");
    /* the part that was written goes, or the next record would continue its line */
    if (put > 0 && ftruncate(m->fd, m->bytes))
        return st; /* a reader counts it as a bad line; the sentence above stays the first */
    return st;
}

tp_status tp_metrics_sync(tp_metrics *m) {
    if (!fsync(m->fd)) return TP_OK;
    return tp_fail(m->c, TP_EIO, "%s: cannot sync: %s", m->path, strerror(errno));
}
