/* The MPI transport: nonblocking messages on a communicator of its own. MPI is started here unless
 * the program has started it. Compiled where CMake finds MPI. */
#include "dist/transport.h"
#include <limits.h>
#include <mpi.h>
#include <stdio.h>
#include <string.h>

typedef struct mpi_transport {
    tp_transport t; /* first */
    MPI_Comm comm;
    bool started_here;
} mpi_transport;
_Static_assert(sizeof(MPI_Request) <= sizeof(tp_request), "a request must fit");

bool tp_transport_has_mpi(void) { return true; }

static MPI_Comm comm_of(tp_transport *t) { return ((mpi_transport *)t)->comm; }

static bool good(tp_transport *t, int code, const char *what) {
    if (code == MPI_SUCCESS) return true;
    char text[MPI_MAX_ERROR_STRING] = "";
    int n = 0;
    MPI_Error_string(code, text, &n);
    snprintf(t->error, sizeof t->error, "%s: %.200s", what, text);
    return false;
}

static bool mpi_send(tp_transport *t, int to, int tag, const void *data, size_t bytes,
                     tp_request *r) {
    MPI_Request q = MPI_REQUEST_NULL;
    if (bytes > INT_MAX) return good(t, MPI_ERR_COUNT, "MPI_Isend");
    bool ok = good(t, MPI_Isend(data, (int)bytes, MPI_BYTE, to, tag, comm_of(t), &q), "MPI_Isend");
    memcpy(r, &q, sizeof q);
    return ok;
}

static bool mpi_recv(tp_transport *t, int from, int tag, void *data, size_t bytes, tp_request *r) {
    MPI_Request q = MPI_REQUEST_NULL;
    if (bytes > INT_MAX) return good(t, MPI_ERR_COUNT, "MPI_Irecv");
    if (from < 0) from = MPI_ANY_SOURCE;
    bool ok =
        good(t, MPI_Irecv(data, (int)bytes, MPI_BYTE, from, tag, comm_of(t), &q), "MPI_Irecv");
    memcpy(r, &q, sizeof q);
    return ok;
}

static tp_ready mpi_test(tp_transport *t, tp_request *r) {
    MPI_Request q;
    int done = 0;
    memcpy(&q, r, sizeof q);
    bool ok = good(t, MPI_Test(&q, &done, MPI_STATUS_IGNORE), "MPI_Test");
    memcpy(r, &q, sizeof q);
    return !ok ? TP_BROKEN : done ? TP_READY : TP_NOT_YET;
}

static void mpi_cancel(tp_transport *t, tp_request *r) {
    MPI_Request q;
    (void)t;
    memcpy(&q, r, sizeof q);
    MPI_Cancel(&q);
}

static tp_ready mpi_probe(tp_transport *t, int tag, int *from, size_t *bytes) {
    MPI_Status s;
    int there = 0, n = 0;
    if (!good(t, MPI_Iprobe(MPI_ANY_SOURCE, tag, comm_of(t), &there, &s), "MPI_Iprobe"))
        return TP_BROKEN;
    if (!there) return TP_NOT_YET;
    MPI_Get_count(&s, MPI_BYTE, &n);
    *from = s.MPI_SOURCE;
    *bytes = (size_t)n;
    return TP_READY;
}

static void mpi_close(tp_transport *t, tp_leave how) {
    mpi_transport *m = (mpi_transport *)t;
    if (how == TP_LEAVE_ABORT) {
        fflush(NULL); /* what the program has said must be seen: the launcher ends it next */
        MPI_Abort(m->comm, 1);
    }
    if (how == TP_LEAVE_TOGETHER) {
        if (m->comm != MPI_COMM_NULL) MPI_Comm_free(&m->comm);
        if (m->started_here) MPI_Finalize();
    }
    tp_free(t->host);
    tp_free(m);
}

static tp_status start(tp_ctx *c, bool *started_here) {
    int running = 0, ended = 0, level = MPI_THREAD_SINGLE;
    MPI_Initialized(&running);
    MPI_Finalized(&ended);
    *started_here = !running;
    if (ended) return tp_fail(c, TP_ESTATE, "MPI: this process has ended its use of MPI before");
    if (running)
        MPI_Query_thread(&level);
    else if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &level) != MPI_SUCCESS)
        return tp_fail(c, TP_EIO, "MPI: it does not start");
    /* where the program uses MPI itself, it may call at the same time as the thread here */
    int want = running ? MPI_THREAD_MULTIPLE : MPI_THREAD_SERIALIZED;
    if (level >= want) return TP_OK;
    if (!running) MPI_Finalize();
    return tp_fail(c, TP_EARG, "MPI: it gives thread level %d, %d is needed", level, want);
}

/* Rank, size and the machines' names. All ranks do this together, and it ends on all or none. */
static tp_status join(mpi_transport *m, tp_ctx *c) {
    tp_transport *t = &m->t;
    MPI_Comm local;
    char name[MPI_MAX_PROCESSOR_NAME] = "";
    int n = 0;
    if (!good(t, MPI_Comm_dup(MPI_COMM_WORLD, &m->comm), "MPI_Comm_dup") ||
        !good(t, MPI_Comm_set_errhandler(m->comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler") ||
        !good(t, MPI_Comm_rank(m->comm, &t->rank), "MPI_Comm_rank") ||
        !good(t, MPI_Comm_size(m->comm, &t->size), "MPI_Comm_size"))
        return tp_fail(c, TP_EIO, "MPI: %s", t->error);
    if (!(t->host = tp_calloc(c, (size_t)t->size, sizeof *t->host))) return TP_ENOMEM;
    MPI_Get_processor_name(name, &n);
    char mine[TP_HOST_BYTES];
    snprintf(mine, sizeof mine, "%.*s", TP_HOST_BYTES - 1, name);
    if (!good(t, MPI_Comm_split_type(m->comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local),
              "MPI_Comm_split_type") ||
        !good(t, MPI_Comm_size(local, &t->local_size), "MPI_Comm_size") ||
        !good(t, MPI_Comm_rank(local, &t->local_rank), "MPI_Comm_rank") ||
        !good(t, MPI_Comm_free(&local), "MPI_Comm_free") ||
        !good(t,
              MPI_Allgather(mine, sizeof mine, MPI_BYTE, t->host, sizeof mine, MPI_BYTE, m->comm),
              "MPI_Allgather"))
        return tp_fail(c, TP_EIO, "MPI: %s", t->error);
    return TP_OK;
}

tp_status tp_transport_mpi(tp_transport **out, tp_ctx *c) {
    *out = NULL;
    mpi_transport *m = tp_calloc(c, 1, sizeof *m);
    if (!m) return TP_ENOMEM;
    m->comm = MPI_COMM_NULL;
    m->t = (tp_transport){.name = "mpi",
                          .send = mpi_send,
                          .recv = mpi_recv,
                          .test = mpi_test,
                          .cancel = mpi_cancel,
                          .probe = mpi_probe,
                          .close = mpi_close};
    tp_status st = start(c, &m->started_here);
    if (st)
        tp_free(m);
    else if ((st = join(m, c)))
        mpi_close(&m->t, TP_LEAVE_ALONE);
    else
        *out = &m->t;
    return st;
}
