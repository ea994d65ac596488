/* metrics: metrics.jsonl, one JSON object per record, appended as training goes.
 *     {"step":100,"loss":5.4321,"tokens":1638400,"split":"train"}
 * A record reaches the file in one write. After a crash the file is cut back to the step that
 * training goes on from, so that in the end it equals the file of a run that was never stopped. */
#ifndef TP_METRICS_H
#define TP_METRICS_H
#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum tp_metric_type { TP_METRIC_F64, TP_METRIC_I64, TP_METRIC_TEXT } tp_metric_type;

/* One key of a record; text is not copied. */
typedef struct tp_metric {
    const char *key;
    tp_metric_type type;
    double f64;
    int64_t i64;
    const char *text;
} tp_metric;

static inline tp_metric tp_metric_f64(const char *key, double v) {
    tp_metric m = {key, TP_METRIC_F64, v, 0, NULL};
    return m;
}
static inline tp_metric tp_metric_i64(const char *key, int64_t v) {
    tp_metric m = {key, TP_METRIC_I64, 0, v, NULL};
    return m;
}
static inline tp_metric tp_metric_text(const char *key, const char *v) {
    tp_metric m = {key, TP_METRIC_TEXT, 0, 0, v};
    return m;
}

typedef struct tp_metrics tp_metrics;

/* Opens path for appending and first cuts it after the last whole record with step <= last_step
 * that stands before any record with a later one; -1 empties it. A torn or unreadable end goes too.
 * TP_EFORMAT, and nothing is cut, where a file is there that holds no record but is not empty: it
 * is somebody else's. Write every record of a step before the checkpoint of that step. */
tp_status tp_metrics_open(tp_metrics **out, tp_ctx *c, const char *path, int64_t last_step);
/* Appends a record: "step", then the n metrics in their order. NaN and infinity become null. On
 * failure (TP_EIO: say, a full disk) the file holds the records before, whole. */
tp_status tp_metrics_write(tp_metrics *m, int64_t step, const tp_metric *metrics, int n);
/* fsync: call before a checkpoint is finished, so that a power cut loses no record up to it. */
tp_status tp_metrics_sync(tp_metrics *m);
void tp_metrics_close(tp_metrics *m);

/* Calls fn with every record of the file in order; the metrics live during the call. A number is
 * TP_METRIC_F64 (null: NaN), a string TP_METRIC_TEXT; other values are left out. Lines that are no
 * records (torn, foreign, longer than 1 MiB) are counted in *bad, which may be NULL. fn returns
 * false to stop. */
typedef bool (*tp_metrics_fn)(void *arg, int64_t step, const tp_metric *metrics, int n);
tp_status tp_metrics_read(tp_ctx *c, const char *path, tp_metrics_fn fn, void *arg, int64_t *bad);

#ifdef __cplusplus
}
#endif
#endif
