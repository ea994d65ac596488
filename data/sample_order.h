/* Which tokens make training sample i: a pure function of (seed, i), so that a run resumes at any
 * sample and any rank finds its own samples without asking another. No tokens are read here.
 *
 * The corpus is a virtual stream: its documents one after the other, in their own order (packing
 * "stream") or shuffled anew each epoch ("documents"). Each epoch the stream, taken as a ring, is
 * cut from a random place into rows of T, and the rows are dealt in a random order: each token is
 * an input exactly once an epoch. The last row may be short. Sequential order (validation) shuffles
 * and shifts nothing and has one epoch.
 *
 * Both shuffles are keyed permutations that are computed, not stored. Packing "documents" keeps one
 * running sum for every 32 documents and epoch (two epochs at a time), found anew in O(documents).
 */
#ifndef TP_SAMPLE_ORDER_H
#define TP_SAMPLE_ORDER_H
#include "core/core.h"

/* A bijection of [0, n), keyed by (seed, epoch, which): a Feistel network on the smallest 2^bits >=
 * n, walking on until it lands below n (Black and Rogaway 2002). */
enum { TP_PERM_ROUNDS = 8 };
typedef struct tp_perm {
    uint64_t n;
    int left_bits, right_bits;
    uint64_t key[TP_PERM_ROUNDS];
} tp_perm;
void tp_perm_init(tp_perm *p, uint64_t n, uint64_t seed, uint64_t epoch, uint32_t which);
uint64_t tp_perm_at(const tp_perm *p, uint64_t i);

/* Tokens that lie next to each other in the corpus and in the row. */
typedef struct tp_run {
    int64_t first;        /* in the corpus */
    int64_t n;            /* inputs first .. first+n-1 */
    bool last_has_target; /* first+n is the target of the last one; else that one is ignored */
} tp_run;

typedef struct tp_order_opts {
    int64_t T; /* inputs per row */
    uint64_t seed;
    bool documents;  /* packing "documents"; else "stream" */
    bool sequential; /* validation */
} tp_order_opts;

typedef struct tp_order tp_order;
/* offsets (docs+1) as in the corpus; not copied. TP_EARG: nothing can be learnt from it. */
tp_status tp_order_new(tp_order **out, tp_ctx *c, const int64_t *offsets, int64_t docs,
                       const tp_order_opts *opts);
void tp_order_free(tp_order *o);
int64_t tp_order_rows(const tp_order *o); /* per epoch */

/* The runs of a sample, T inputs in all (fewer in an epoch's last row): *runs lives in o until the
 * next call. Sequential orders have no sample >= rows: *n_runs is 0 there. One thread at a time. */
tp_status tp_order_sample(tp_order *o, tp_ctx *c, int64_t sample, const tp_run **runs,
                          int64_t *n_runs);
#endif
