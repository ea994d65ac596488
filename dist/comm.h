/* The inside of a communicator, for the files of dist/ and its tests. */
#ifndef TP_DIST_COMM_H
#define TP_DIST_COMM_H
#include "dist/transport.h"
#include <pthread.h>
#include <stdatomic.h>

/* A large move goes in segments of this many bytes, two of them under way. */
enum { TP_SEGMENT_BYTES = 1 << 20, TP_SENTENCE_BYTES = 400 };

/* ---- what a call is ------------------------------------------------------------------------- */
typedef enum tp_work {
    TP_WORK_REDUCE_SCATTER = TP_REDUCE_SCATTER,
    TP_WORK_ALLREDUCE = TP_ALLREDUCE,
    TP_WORK_ALLGATHER = TP_ALLGATHER,
    TP_WORK_BARRIER,
    TP_WORK_BROADCAST,
    TP_WORK_SUM_F64
} tp_work;
/* Sent to every partner before a call's data: all of it must be the same on both sides. */
typedef struct tp_header {
    int64_t number; /* of the call, from 1 */
    int64_t count;  /* values, or bytes of a broadcast */
    int32_t work, pieces, root, unused;
    uint64_t cuts; /* hash of the pieces' splits */
} tp_header;
typedef struct tp_load tp_load;
typedef struct tp_job {
    struct tp_job *next;
    tp_header header;
    tp_load *load; /* NULL: all is in host memory */
    tp_piece *piece;
    int cap;    /* room in piece */
    void *data; /* of a small call */
    int met;    /* partners whose header was compared, a bit each */
} tp_job;

/* ---- what ranks tell each other besides data ------------------------------------------------ */
typedef enum tp_told { TP_TOLD_ALIVE, TP_TOLD_CALL, TP_TOLD_FAILED, TP_TOLD_BYE } tp_told;
typedef struct tp_message {
    int32_t told, from;
    int32_t whole, unused; /* FAILED: as in tp_comm */
    tp_header call;
    char text[TP_SENTENCE_BYTES];
} tp_message;
typedef struct tp_letter { /* a message on its way */
    tp_message message;
    tp_request request;
    bool busy;
} tp_letter;
/* One letter per thing that may be on its way to a peer at the same time. A partner is at most one
 * call ahead, because no call ends without the header of every partner. */
enum { TP_LETTER_ALIVE, TP_LETTER_CALL, TP_LETTER_FAILED = 3, TP_LETTER_BYE, TP_NLETTER };
enum { TP_CALLS_AHEAD = 4 };
typedef struct tp_peer {
    double heard;      /* tp_now() at its last sign of life */
    double told_alive; /* tp_now() at the last one sent to it */
    bool bye;          /* it wants nothing more */
    tp_header call[TP_CALLS_AHEAD];
    int ncall;
    tp_letter letter[TP_NLETTER];
} tp_peer;

typedef struct tp_lane { /* one exchange of a segment */
    void *out, *in;      /* TP_SEGMENT_BYTES each */
    tp_request sending, receiving;
    bool send_busy, recv_busy, swap_busy;
} tp_lane;

struct tp_comm {
    const char *name;
    int rank, size, local_size;
    double timeout;
    tp_transport *t; /* NULL: nobody else is there, and there is no thread */

    /* shared with the thread, under lock */
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    tp_job *first, *last, *spare;
    int64_t started, finished; /* numbers of calls */
    bool closing;
    tp_status status; /* of the first failure */
    bool quiet;       /* after a failure: nothing is under way any more */
    bool elsewhere;   /* another rank has said it */
    bool whole;       /* means the same on any rank: "rank 2 stopped:" need not stand before it */
    double broken_at;
    char sentence[TP_SENTENCE_BYTES];
    double waited, bytes;
    atomic_bool broken;            /* status != 0, to be read without the lock */
    bool shown;                    /* the caller's: a ctx has the sentence */
    bool disagreed;                /* the caller's: a ctx has tp_comm_agree's sentence */
    tp_load *loaded, *loaded_last; /* the caller's: on their way, in the order of their calls … */
    tp_load *unloaded;             /* … and those that may be used again */

    /* the thread's own */
    pthread_t thread;
    double last_turn;
    bool announced, said_bye;
    tp_peer *peer;
    tp_letter inbox;
    tp_lane lane[2];
    double sent;
    tp_leave leave;
};

/* comm.c */
tp_status tp_comm_open_on(tp_comm **out, tp_ctx *c, double timeout, tp_transport *t); /* owns t */
/* Records the first failure; returns status, so `return tp_comm_break(…)`. */
tp_status tp_comm_break(tp_comm *m, tp_status status, bool elsewhere, const char *fmt, ...)
    TP_PRINTF(4, 5);

/* ---- load.c: memory of the device, on its way through the host's ---------------------------- */
struct tp_load {
    tp_load *next;
    int64_t number; /* of the call it belongs to */
    const struct tp_backend *backend;
    struct tp_carry *carry;
    tp_piece *piece;            /* as handed in, but in the host's memory */
    struct tp_carry_part *part; /* what comes back */
    int nparts, cap;
};
/* For the caller. Sends what of these pieces is on the device on its way to the host; the job gets
 * load->piece. */
tp_status tp_load_out(tp_load **out, tp_comm *m, tp_ctx *c, tp_move move, const tp_piece *piece,
                      int n);
void tp_load_joins(tp_comm *m, tp_load *l, int64_t number); /* 0: its call was not taken */
/* The same way back, for all calls up to this one, which are finished. */
tp_status tp_loads_in(tp_comm *m, tp_ctx *c, int64_t number);
void tp_loads_free(tp_comm *m);
/* For the thread: waits until the job's bytes are there. */
tp_status tp_load_arrives(tp_comm *m, const tp_job *j);

/* ---- shard.c -------------------------------------------------------------------------------- */
int tp_bit_reverse(int i, int size); /* of a number below size, a power of two */
/* Where range i of the split begins; i = size: where the last one ends. */
int64_t tp_cut_at(const tp_cut *s, int size, int i);
const char *tp_cut_fault(const tp_cut *s, int size); /* what is wrong with it; NULL: nothing */

/* ---- control.c: headers, signs of life, failures, goodbyes; on the thread ---------------------
 */
tp_status tp_control_begin(tp_comm *m);
/* Reads what the others said, says that this rank lives, looks whether all others do. To be called
 * over and over. Fails once the communicator is broken. */
tp_status tp_control_turn(tp_comm *m);
/* Waits a little, longer each time, so that waiting leaves the cores to the computation. */
void tp_control_pause(int *turns);
tp_status tp_control_call(tp_comm *m, tp_job *j); /* tells all partners what comes */
/* Waits until the partner rank ^ bit has come to this call too. */
tp_status tp_control_meet(tp_comm *m, tp_job *j, int bit);
void tp_control_farewell(tp_comm *m);

/* ---- collective.c: the tree, on the thread -------------------------------------------------- */
tp_status tp_collective_run(tp_comm *m, tp_job *j);
void tp_collective_stop(tp_comm *m); /* after a failure: gives up what is under way */
/* After a failure: takes off the wire what others had sent; true once nothing is under way. */
bool tp_collective_drain(tp_comm *m);
#endif
