/* passes: several passes of a step at a time, each on a thread of its own.
 *
 * An op of a small model has too little work in it for several threads, and passes over the same
 * weights do not depend on each other. Each thread has a context, a tape and headers of the weights
 * of its own; the gradients are then added up in the order of the passes (optim/gradients.h), so a
 * step has the bits of passes that were made one by one. */
#ifndef TP_PASSES_H
#define TP_PASSES_H
#include "cli/trainer.h"

/* threads: as many passes run at a time. m must outlive it. */
tp_status tp_passes_new(tp_passes **out, tp_ctx *c, tp_model *m, int threads);
void tp_passes_free(tp_passes *p);
int tp_passes_in_a_run(const tp_passes *p);
/* in->loss of each of n batches, at most tp_passes_in_a_run, forward and backward; gradients go to
 * g. FLOPs are counted on the context p was made for, which also gets a failure. */
tp_status tp_passes_run(tp_passes *p, tp_gradients *g, const tp_step_in *in, const tp_batch *b,
                        int64_t n);
#endif
