/* Work with the 1st, 2nd, 3rd … allocation failing, until it passes untouched. Each time: out of
 * memory in a sentence, nothing kept in the pool or on the heap, and the same work done again in
 * the same ctx, with the bits of a run that never failed.
 *
 * The work that fails has other data than the work that follows it, so that whatever the first left
 * behind (half a sum, a measured length) would show in the second. */
#ifndef FAILING_H
#define FAILING_H
#include "cli/trainer.h"

typedef struct rig {
    tp_ctx *c;
    tp_config cfg;
    tp_trainer own, *t; /* t: whose weights and optimizer are looked at */
    tp_fake_batch rows;
    const struct scene *scene;
    void *more;       /* what else a scene needs */
    bool failed;      /* for a mutant */
    double number[4]; /* what the work came to */
} rig;

typedef struct scene {
    const char *name, *keys; /* keys: a file of configs/tests/, then key=value words */
    tp_status (*open)(rig *r);
    tp_status (*work)(rig *r, bool again); /* again: with the data that count */
    void (*close)(rig *r);
    /* NULL, or in place of cross-entropy; gets the rig */
    tp_tensor *(*loss)(void *rig, tp_ctx *c, tp_model *m, const tp_batch *b);
} scene;

typedef struct tried {
    long open, work, moved; /* moved: failures that came when weights had been moved */
    char wrong[256];        /* the first thing that was, and then no more is tried; "" if none */
} tried;
/* Every `stride`-th allocation fails. */
tried fail_each(const scene *s, int stride);
/* What was tried, printed; fails the test if anything was wrong. */
void report_tried(const scene *s, const tried *n);
/* Whether blocks on the heap are counted; else LeakSanitizer counts, at the program's end. */
extern const bool heap_is_counted;

/* Training, for scenes. */
tp_status open_trainer(rig *r);
tp_status train_step(rig *r, bool again);
void close_trainer(rig *r);
#endif
