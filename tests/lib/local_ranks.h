/* Ranks that are threads of one process, joined by mailboxes: a transport that tests can disturb.
 */
#ifndef LOCAL_RANKS_H
#define LOCAL_RANKS_H
#include "dist/comm.h"

typedef struct local_world local_world;
local_world *local_world_new(int size);
void local_world_free(local_world *w);
tp_transport *local_transport(local_world *w, int rank);
/* From now on the rank neither hears nor says anything, like a process that was stopped. */
void local_stop(local_world *w, int rank);
bool local_aborted(const local_world *w);  /* somebody left with TP_LEAVE_ABORT */
int local_left_over(const local_world *w); /* messages that were sent and never received */

/* Runs fn as every rank at the same time, each with a ctx and a communicator of its own, which fn
 * closes. */
typedef struct local_rank {
    local_world *world;
    tp_ctx *c;
    tp_comm *m;
    int rank, size;
    void *arg;
} local_rank;
void local_run(local_world *w, double timeout, void (*fn)(local_rank *r), void *arg);

/* A value in which the order of adding matters: any sign, 24 bits, magnitudes from 2^-12 to 2^12.
 */
float local_value(int rank, int piece, int64_t i);
/* The contract of sums, by recursion: ranks lo <= r < hi, left half plus right half. */
float local_tree_sum(int lo, int hi, int piece, int64_t i);
#endif
