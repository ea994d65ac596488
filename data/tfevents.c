/* tfevents: scalars as TensorBoard event files. */
#include "data/tfevents.h"
#include "data/text.h"
#include "tfevents.pb-c.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct tp_tfevents {
    tp_ctx *c;
    int fd;
    int64_t bytes; /* of whole events */
    char path[];
};

/* Four bits at a time; table[i] is i through four steps of the reflected polynomial 0x82F63B78. */
uint32_t tp_crc32c(const void *bytes, size_t n) {
    static const uint32_t table[16] = {0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1,
                                       0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
                                       0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
                                       0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75};
    const uint8_t *p = bytes;
    uint32_t crc = ~(uint32_t)0;
    for (; n; n--, p++) {
        crc = crc >> 4 ^ table[(crc ^ *p) & 15];
        crc = crc >> 4 ^ table[(crc ^ *p >> 4) & 15];
    }
    return ~crc;
}

/* A CRC over data that holds CRCs would be weak, so TFRecord stores it rotated, plus a constant. */
static uint32_t masked_crc(const void *bytes, size_t n) {
    uint32_t crc = tp_crc32c(bytes, n);
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static void put_little_endian(uint8_t *out, uint64_t v, int bytes) {
    for (int i = 0; i < bytes; i++) out[i] = (uint8_t)(v >> 8 * i);
}

static tp_status put_event(tp_tfevents *e, const Tapir__Event *event) {
    enum { HEAD = 12, TAIL = 4 };
    size_t n = tapir__event__get_packed_size(event), all = HEAD + n + TAIL;
    uint8_t *record = tp_malloc(e->c, all);
    if (!record) return TP_ENOMEM;
    put_little_endian(record, n, 8);
    put_little_endian(record + 8, masked_crc(record, 8), 4);
    tapir__event__pack(event, record + HEAD);
    put_little_endian(record + HEAD + n, masked_crc(record + HEAD, n), 4);
    ssize_t put;
    do put = write(e->fd, record, all);
    while (put < 0 && errno == EINTR);
    tp_free(record);
    if (put == (ssize_t)all) {
        e->bytes += put;
        return TP_OK;
    }
    tp_status st = tp_fail(e->c, TP_EIO, "%s: cannot write: %s", e->path,
                           put < 0 ? strerror(errno) : "the disk is full");
    if (put > 0 && ftruncate(e->fd, e->bytes)) return st; /* readers stop at the torn event */
    return st;
}

/* A name that sorts by time, as TensorBoard reads a folder's files in that order. */
static tp_status create(tp_tfevents *e, size_t cap, const char *dir, double wall_time) {
    char host[65] = "";
    if (gethostname(host, sizeof host - 1) || !*host) snprintf(host, sizeof host, "localhost");
    for (char *p = host; *p; p++)
        if (*p == '/') *p = '_';
    if (mkdir(dir, 0777) && errno != EEXIST)
        return tp_fail(e->c, TP_EIO, "%s: cannot make the folder: %s", dir, strerror(errno));
    for (int i = 0; i < 10000; i++) {
        snprintf(e->path, cap, "%s/events.out.tfevents.%010lld.%s.%ld.%04d", dir,
                 (long long)wall_time, host, (long)getpid(), i);
        e->fd = open(e->path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
        if (e->fd >= 0) return TP_OK;
        if (errno != EEXIST) break;
    }
    return tp_fail(e->c, TP_EIO, "%s: cannot create: %s", e->path, strerror(errno));
}

tp_status tp_tfevents_open(tp_tfevents **out, tp_ctx *c, const char *dir, double wall_time,
                           int64_t last_step) {
    *out = NULL;
    if (!(wall_time >= 0 && wall_time < 1e12) || last_step == INT64_MAX)
        return tp_fail(c, TP_EARG, "%s: no time or step for an event file", dir);
    size_t cap = strlen(dir) + 160;
    tp_tfevents *e = tp_calloc(c, 1, sizeof *e + cap);
    if (!e) return TP_ENOMEM;
    *e = (tp_tfevents){.c = c, .fd = -1};
    char version[] = "brain.Event:2";
    Tapir__Event first = TAPIR__EVENT__INIT;
    first.wall_time = wall_time;
    first.what_case = TAPIR__EVENT__WHAT_FILE_VERSION;
    first.file_version = version;
    Tapir__SessionLog start = TAPIR__SESSION_LOG__INIT;
    start.status = TAPIR__SESSION_LOG__SESSION_STATUS__START;
    Tapir__Event restart = TAPIR__EVENT__INIT;
    restart.wall_time = wall_time;
    restart.step = last_step + 1; /* events of earlier files from this step on are forgotten */
    restart.what_case = TAPIR__EVENT__WHAT_SESSION_LOG;
    restart.session_log = &start;
    tp_status st = create(e, cap, dir, wall_time);
    if (!st) st = put_event(e, &first);
    if (!st) st = put_event(e, &restart);
    if (!st) {
        *out = e;
        return TP_OK;
    }
    if (e->fd >= 0) unlink(e->path);
    tp_tfevents_close(e);
    return st;
}

tp_status tp_tfevents_write(tp_tfevents *e, double wall_time, int64_t step,
                            const tp_metric *metrics, int n) {
    int count = n > 0 ? n : 0;
    Tapir__SummaryValue *values = tp_malloc(e->c, (size_t)count * sizeof *values);
    Tapir__SummaryValue **list = tp_malloc(e->c, (size_t)count * sizeof *list);
    tp_status st = values && list ? TP_OK : TP_ENOMEM;
    size_t used = 0;
    for (int i = 0; !st && i < count; i++) {
        const tp_metric *m = &metrics[i];
        if (m->type == TP_METRIC_TEXT) continue;
        tapir__summary_value__init(&values[used]);
        values[used].tag = (char *)(uintptr_t)m->key; /* only read, but declared without const */
        values[used].value_case = TAPIR__SUMMARY_VALUE__VALUE_SIMPLE_VALUE;
        values[used].simple_value = (float)(m->type == TP_METRIC_F64 ? m->f64 : (double)m->i64);
        list[used] = &values[used];
        used++;
    }
    Tapir__Summary summary = TAPIR__SUMMARY__INIT;
    summary.n_value = used;
    summary.value = list;
    Tapir__Event event = TAPIR__EVENT__INIT;
    event.wall_time = wall_time;
    event.step = step;
    event.what_case = TAPIR__EVENT__WHAT_SUMMARY;
    event.summary = &summary;
    if (!st && used) st = put_event(e, &event);
    tp_free(list);
    tp_free(values);
    return st;
}

void tp_tfevents_close(tp_tfevents *e) {
    if (!e) return;
    if (e->fd >= 0) close(e->fd);
    tp_free(e);
}

const char *tp_tfevents_path(const tp_tfevents *e) { return e->path; }
