/* team: threads that help one thread with its loops. The caller does chunks itself and waits for
 * nobody who has not begun: a helper that is late, because its core is busy with something else,
 * finds the loop over, and goes back to waiting. Between loops helpers look for the next one for a
 * short while, then sleep. */
#ifndef TP_TEAM_H
#define TP_TEAM_H
#include "core/core.h"
#include <pthread.h>

typedef struct tp_team tp_team;
/* With as many helpers as could be started, `threads` - 1 at most; NULL: no memory. */
tp_team *tp_team_new(int threads);
void tp_team_free(tp_team *t);
/* fn over [0,n) in chunks of grain. One loop at a time. */
void tp_team_run(tp_team *t, int64_t n, int64_t grain, tp_range_fn fn, void *arg);
/* The same by this thread alone. */
void tp_loop_alone(int64_t n, int64_t grain, tp_range_fn fn, void *arg);
/* One chunk of a loop of several threads, of which this one is number `slot`. */
void tp_chunk(int slot, int64_t begin, int64_t end, tp_range_fn fn, void *arg);

/* Inside fn: which of the loop's threads this is, from 0 to tp_threads - 1, for scratch memory. */
int tp_slot(void);
bool tp_in_loop(void); /* of several threads: one inside it is this thread's alone */

/* A thread that no signal of the process goes to: those are for the program's own threads, which
 * know what to do. (A fault of its own does.) Answers as pthread_create. */
int tp_thread_start(pthread_t *thread, void *(*run)(void *), void *arg);
#endif
