/* How bytes travel between two ranks. A transport knows no jobs and no sums: it sends, receives and
 * tests, and never waits. After open only the communicator's thread calls it, save close. */
#ifndef TP_DIST_TRANSPORT_H
#define TP_DIST_TRANSPORT_H
#include "dist/dist.h"

enum { TP_TAG_CONTROL = 1, TP_TAG_DATA };
enum { TP_HOST_BYTES = 64 };
typedef union tp_request {
    void *p;
    int64_t i;
} tp_request;

/* TOGETHER: all ranks leave at the same time. ABORT: some will never leave, so the launcher is told
 * to end them all; may not return. ALONE: this rank never joined properly; the others are not
 * waited for. */
typedef enum tp_leave { TP_LEAVE_TOGETHER, TP_LEAVE_ABORT, TP_LEAVE_ALONE } tp_leave;
typedef enum tp_ready { TP_NOT_YET, TP_READY, TP_BROKEN } tp_ready; /* BROKEN: t->error has why */

typedef struct tp_transport tp_transport;
struct tp_transport {
    const char *name;
    int rank, size, local_rank, local_size;
    char (*host)[TP_HOST_BYTES]; /* per rank: the name of its machine */
    char error[256];

    /* Messages between the same two ranks with the same tag arrive in the order they were sent.
     * False: t->error says why. from < 0 takes any rank's. */
    bool (*send)(tp_transport *t, int to, int tag, const void *data, size_t bytes, tp_request *r);
    bool (*recv)(tp_transport *t, int from, int tag, void *data, size_t bytes, tp_request *r);
    /* After READY the request is gone. */
    tp_ready (*test)(tp_transport *t, tp_request *r);
    void (*cancel)(tp_transport *t, tp_request *r); /* a receive; test it until it is ready */
    /* Is there a message that no receive has taken? From whom, how long. */
    tp_ready (*probe)(tp_transport *t, int tag, int *from, size_t *bytes);

    /* Both directions of one segment of a large move with one peer; two of them, k = 0 and 1, may
     * be under way. NULL where they go by send and recv. Buffers come from swap_alloc. */
    bool (*swap)(tp_transport *t, int k, int peer, const void *out, size_t out_bytes, void *in,
                 size_t in_bytes);
    tp_ready (*swap_test)(tp_transport *t, int k);
    void (*swap_stop)(tp_transport *t); /* gives up what is under way */
    void *(*swap_alloc)(tp_transport *t, tp_ctx *c, size_t bytes);
    void (*swap_free)(tp_transport *t, void *p);

    void (*close)(tp_transport *t, tp_leave how); /* frees t */
};

/* mpi.c and nccl.c. A build without the library fails with a sentence that says how to get it. */
tp_status tp_transport_mpi(tp_transport **out, tp_ctx *c);
tp_status tp_transport_nccl(tp_transport **out, tp_ctx *c);
bool tp_transport_has_mpi(void), tp_transport_has_nccl(void);
/* Ranks that the launcher says it started: 1 where there is no launcher, 0 where it does not say.
 */
int tp_transport_launched(void);
#endif
