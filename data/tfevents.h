/* tfevents: event files that TensorBoard reads, scalars only.
 *
 * Framing (TFRecord): length u64, its masked CRC-32C, a protobuf Event, its masked CRC-32C, all
 * little-endian. Each event reaches the file in one write. */
#ifndef TP_TFEVENTS_H
#define TP_TFEVENTS_H
#include "core/core.h"
#include "data/metrics.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_tfevents tp_tfevents;

/* Makes a new events.out.tfevents.* file in dir, which is made if only that folder is missing;
 * wall_time in seconds since 1970 goes into its name. Training goes on after last_step, and
 * TensorBoard is told to forget what earlier files say about later ones. -1: from the beginning,
 * perhaps of a run that ended before its first checkpoint; then it forgets all of them. */
tp_status tp_tfevents_open(tp_tfevents **out, tp_ctx *c, const char *dir, double wall_time,
                           int64_t last_step);
/* Appends one event with a scalar for every number among the metrics; texts are left out. */
tp_status tp_tfevents_write(tp_tfevents *e, double wall_time, int64_t step,
                            const tp_metric *metrics, int n);
void tp_tfevents_close(tp_tfevents *e);
const char *tp_tfevents_path(const tp_tfevents *e);

/* CRC-32C (Castagnoli polynomial, RFC 3720 appendix B.4) of n bytes. */
uint32_t tp_crc32c(const void *bytes, size_t n);

#ifdef __cplusplus
}
#endif
#endif
