/* dist: ranks. One communicator over several transports: self (one process), MPI, NCCL.
 *
 * Every sum follows one fixed binary tree over the ranks,
 *     (r0 + r1) + (r2 + r3), …      left + right at every node, a power of two of them,
 * so that with samples dealt out in rank order the allreduce is the upper part of the tree that a
 * single rank would have walked (docs/architecture.md, "The same bits").
 *
 * A communicator owns one thread. All traffic goes through it: it works while the caller computes,
 * and it tells the other ranks that this one is alive. A rank that dies, falls silent, fails or
 * does something else than the others makes every call here fail, within the time limit, with a
 * sentence that names the rank. */
#ifndef TP_DIST_H
#define TP_DIST_H
#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum tp_comm_kind {
    TP_COMM_AUTO, /* MPI where an MPI launcher started this process, else self */
    TP_COMM_SELF,
    TP_COMM_MPI,
    TP_COMM_NCCL, /* started by MPI; gradients travel between GPUs */
    TP_COMM_PLAN  /* pretends to be rank 0 of plan_ranks: everything succeeds, nothing moves */
} tp_comm_kind;
typedef struct tp_comm_opts {
    tp_comm_kind kind;
    double timeout; /* seconds without a sign of life after which a rank counts as dead; 0: 30 */
    int plan_ranks; /* TP_COMM_PLAN only */
} tp_comm_opts;
typedef struct tp_comm tp_comm;

/* Joins the other ranks. TP_EARG: their number is no power of two, or this build lacks the
 * transport (the sentence says how to get it). */
tp_status tp_comm_open(tp_comm **out, tp_ctx *c, const tp_comm_opts *opts);
/* Leaves. failure: this rank's own sentence where it goes because something failed here: the others
 * then fail with "rank 2 stopped: …". NULL: a normal end, which waits for the others as long as
 * they live. After a failure it waits for them `timeout` at most. If one is dead or silent then,
 * the launcher is told to end the job and this may not return: say what failed before. NULL m is
 * fine. */
void tp_comm_close(tp_comm *m, const char *failure);
int tp_comm_rank(const tp_comm *m);
int tp_comm_size(const tp_comm *m);
int tp_comm_local_size(const tp_comm *m);   /* ranks on this machine: they share its cores */
const char *tp_comm_name(const tp_comm *m); /* "self", "mpi", "nccl" */
/* True where another rank had the failure in the ctx first and says it: this one need not. Where
 * two ranks find it at the same time, it is false on both. */
bool tp_comm_failed_elsewhere(const tp_comm *m);
const char *tp_comm_transports(void); /* what this build has: "self, MPI" */

/* ---- small things, waited for; every rank makes the same calls in the same order ------------- */
tp_status tp_comm_barrier(tp_comm *m, tp_ctx *c);
tp_status tp_comm_broadcast(tp_comm *m, tp_ctx *c, void *data, size_t bytes, int root);
/* x[i] becomes the sum over the ranks of x[i], along the tree. */
tp_status tp_comm_sum_f64(tp_comm *m, tp_ctx *c, double *x, int64_t n);
/* TP_EARG on every rank unless all bring the same text: "rank 1 has another config than rank 0:
 * …". Texts are compared whole, and shown cut to what a sentence holds. */
tp_status tp_comm_agree(tp_comm *m, tp_ctx *c, const char *what, const char *text);

/* ---- shards ---------------------------------------------------------------------------------- */
/* How n values are cut into one range per rank: evenly in multiples of unit (the last piece may be
 * shorter), or all to one rank. Range i belongs to the rank whose number has i's bits reversed,
 * which is where the tree's halving leaves it. */
typedef struct tp_cut {
    int64_t n, unit;
    int owner; /* -1: cut evenly; else the rank that owns all */
} tp_cut;
typedef struct tp_range {
    int64_t first, n;
} tp_range;
tp_range tp_comm_shard(const tp_comm *m, const tp_cut *s, int rank);

/* ---- large things, in the background --------------------------------------------------------- */
typedef enum tp_move {
    TP_REDUCE_SCATTER, /* this rank's range holds the sum; the rest of data is spoilt */
    TP_ALLREDUCE,      /* all of data holds the sum */
    TP_ALLGATHER       /* every rank brings its range; all of data is whole (f32) */
} tp_move;
typedef struct tp_piece {
    float *data; /* cut.n values; NULL under META */
    tp_cut cut;
    bool on_device; /* data is memory of the ctx's device; else of the host */
} tp_piece;
/* Starts one move over the pieces together (small ones should come together: one exchange is made
 * for all). Copies the array of pieces, not the data, which must stay until the ticket was waited
 * for; after a failure, until tp_comm_close. Tickets grow from 1; 0 is a failure. Every rank starts
 * the same moves in the same order.
 *
 * What is on the device passes through pinned memory of the host, both ways beside the kernels: it
 * sets out when the kernels asked for so far are done, and this does not wait for them. */
int64_t tp_comm_start(tp_comm *m, tp_ctx *c, tp_move move, const tp_piece *piece, int n);
/* Returns when this move and all before it are complete: what is on the device, for the kernels
 * that are asked for from here on. */
tp_status tp_comm_wait(tp_comm *m, tp_ctx *c, int64_t ticket);
/* Seconds for which the caller had to wait here, and bytes sent by this rank, since the last call.
 */
void tp_comm_traffic(tp_comm *m, double *waited, double *bytes);

#ifdef __cplusplus
}
#endif
#endif
