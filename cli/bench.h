/* What `tapir bench` can measure, and the trainings that it takes steps of. */
#ifndef TP_BENCH_H
#define TP_BENCH_H
#include "cli/cli.h"

enum { TP_SIDE_STEPS = 1000 };
/* One setting under test: its training on random tokens, and the seconds of each timed step. */
typedef struct tp_side {
    tp_ctx *c;
    tp_config cfg;
    tp_comm *comm; /* the ranks that were started together */
    tp_plan plan;
    tp_trainer t;
    tp_fake_batch f;
    int64_t step;
    int warmup; /* steps that are not timed */
    double took[TP_SIDE_STEPS];
    uint64_t allocs; /* system allocations before the timed steps */
} tp_side;
/* Opens the training that CONFIG and the key=value words behind it describe; alone: on this rank
 * only. An exit code; the failure has been told. */
int tp_side_open(const char *command, tp_side *s, char *const words[], int n, bool alone);
tp_status tp_side_step(tp_side *s);
int tp_side_failed(const char *command, tp_side *s, tp_status st); /* told once */
void tp_side_close(tp_side *s);
int tp_by_value(const void *a, const void *b); /* of doubles, for qsort */

/* For the config in words[0] with the key=value words behind it. Exit codes. */
int tp_bench_decode(const char *command, char *const words[], int n, bool json);
int tp_bench_mod(const char *command, char *const words[], int n, int steps, int warmup, bool json);
#endif
