/* The NCCL transport, a module of its own (dist/nccl.h): messages stay with MPI, segments of large
 * moves travel between GPUs. Host memory is staged through device memory: one copy there, one
 * ncclSend with ncclRecv, one copy back, on a stream per lane.
 *
 * The communicator is nonblocking (NCCL user guide, "Communicator": ncclConfig_t.blocking = 0),
 * because a transport never waits: a group that meets a new peer connects first, and a peer that is
 * gone would hold the thread that has to notice it. So a lane goes through steps, and whoever tests
 * it takes it further. Groups start one after the other, in the order of the calls, which is the
 * same on both sides. */
#include "dist/comm.h"
#include "dist/nccl.h"
#include <cuda_runtime.h>
#include <nccl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { NLANES = 2, START_SECONDS = 120, END_SECONDS = 10 };
_Static_assert(sizeof(ncclUniqueId) <= TP_NCCL_ID_BYTES, "an id must fit");

/* WAITS: on its way to the device, the group not begun, as another one is. */
typedef enum step { IDLE, WAITS, CONNECTS, TRAVELS } step;
typedef struct lane {
    step step;
    int peer;
    size_t out_bytes, in_bytes;
    void *in;                /* the host's */
    void *to_send, *to_take; /* the device's, TP_SEGMENT_BYTES each */
    cudaStream_t stream;
    cudaEvent_t event;
    bool has_stream, has_event;
} lane;

typedef struct nccl_transport {
    tp_transport t; /* first */
    tp_transport *mpi;
    void (*free)(void *p);
    double (*now)(void);
    tp_status (*fail)(tp_ctx *c, tp_status code, const char *fmt, ...);
    int device;
    ncclComm_t comm; /* NULL: not yet, or given up */
    lane lane[NLANES];
    bool broken; /* t.error has why */
    int first;   /* of two lanes that wait: the one that came first */
} nccl_transport;

static nccl_transport *of(tp_transport *t) { return (nccl_transport *)t; }

/* ---- return codes --------------------------------------------------------------------------- */
static bool cuda_good(tp_transport *t, cudaError_t code, const char *what) {
    if (code == cudaSuccess) return true;
    snprintf(t->error, sizeof t->error, "%s: %s (%s)", what, cudaGetErrorString(code),
             cudaGetErrorName(code));
    return false;
}

/* "Not ready" is an answer, but CUDA keeps it as the thread's last error, which whoever launches a
 * kernel next from this thread would take for its own. */
static cudaError_t asked(cudaError_t code) {
    if (code == cudaErrorNotReady) cudaGetLastError();
    return code;
}

/* ncclInProgress is good: of a nonblocking communicator ask nccl_state then. */
static bool nccl_good(tp_transport *t, ncclResult_t code, const char *what) {
    if (code == ncclSuccess || code == ncclInProgress) return true;
    const char *last = ncclGetLastError(of(t)->comm);
    bool more = last && *last;
    snprintf(t->error, sizeof t->error, "%s: %s%s%.150s", what, ncclGetErrorString(code),
             more ? ": " : "", more ? last : "");
    t->error[strcspn(t->error, "\r\n")] = 0;
    return false;
}

static tp_ready nccl_state(tp_transport *t, const char *what) {
    ncclResult_t state = ncclSuccess;
    if (!nccl_good(t, ncclCommGetAsyncError(of(t)->comm, &state), "ncclCommGetAsyncError"))
        return TP_BROKEN;
    if (state == ncclInProgress) return TP_NOT_YET;
    return nccl_good(t, state, what) ? TP_READY : TP_BROKEN;
}

/* Waits for the communicator itself, while it starts or ends. */
static tp_ready nccl_settle(tp_transport *t, const char *what, double seconds) {
    double end = of(t)->now() + seconds;
    for (;;) {
        tp_ready r = nccl_state(t, what);
        if (r != TP_NOT_YET) return r;
        if (of(t)->now() > end) break;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    snprintf(t->error, sizeof t->error, "%s: not done after %g s", what, seconds);
    return TP_BROKEN;
}

static void abort_comm(nccl_transport *n) {
    if (n->comm) ncclCommAbort(n->comm); /* nobody is left to hear that this failed */
    n->comm = NULL;
}

/* ---- messages: MPI's ------------------------------------------------------------------------ */
static bool told(tp_transport *t, bool ok) {
    if (!ok) memcpy(t->error, of(t)->mpi->error, sizeof t->error);
    return ok;
}
static bool send_message(tp_transport *t, int to, int tag, const void *data, size_t bytes,
                         tp_request *r) {
    return told(t, of(t)->mpi->send(of(t)->mpi, to, tag, data, bytes, r));
}
static bool recv_message(tp_transport *t, int from, int tag, void *data, size_t bytes,
                         tp_request *r) {
    return told(t, of(t)->mpi->recv(of(t)->mpi, from, tag, data, bytes, r));
}
static tp_ready test_message(tp_transport *t, tp_request *r) {
    tp_ready ready = of(t)->mpi->test(of(t)->mpi, r);
    told(t, ready != TP_BROKEN);
    return ready;
}
static void cancel_message(tp_transport *t, tp_request *r) { of(t)->mpi->cancel(of(t)->mpi, r); }
static tp_ready probe_message(tp_transport *t, int tag, int *from, size_t *bytes) {
    tp_ready ready = of(t)->mpi->probe(of(t)->mpi, tag, from, bytes);
    told(t, ready != TP_BROKEN);
    return ready;
}

/* ---- segments ------------------------------------------------------------------------------- */
static bool group(tp_transport *t, lane *l) {
    ncclComm_t comm = of(t)->comm;
    if (!nccl_good(t, ncclGroupStart(), "ncclGroupStart")) return false;
    ncclResult_t sent = ncclSuccess, took = ncclSuccess;
    if (l->out_bytes) sent = ncclSend(l->to_send, l->out_bytes, ncclInt8, l->peer, comm, l->stream);
    if (l->in_bytes) took = ncclRecv(l->to_take, l->in_bytes, ncclInt8, l->peer, comm, l->stream);
    ncclResult_t ended = ncclGroupEnd(); /* also after a failure: it closes the group */
    return nccl_good(t, sent, "ncclSend") && nccl_good(t, took, "ncclRecv") &&
           nccl_good(t, ended, "ncclGroupEnd");
}

static bool copy_back(tp_transport *t, lane *l) {
    return (!l->in_bytes || cuda_good(t,
                                      cudaMemcpyAsync(l->in, l->to_take, l->in_bytes,
                                                      cudaMemcpyDeviceToHost, l->stream),
                                      "cudaMemcpyAsync from the GPU")) &&
           cuda_good(t, cudaEventRecord(l->event, l->stream), "cudaEventRecord");
}

/* One lane, without waiting. BROKEN: t->error has why. READY: the next one may begin. */
static tp_ready push_lane(tp_transport *t, lane *l) {
    if (l->step == WAITS) {
        if (!group(t, l)) return TP_BROKEN;
        l->step = CONNECTS;
    }
    if (l->step == CONNECTS) {
        tp_ready r = nccl_state(t, "ncclGroupEnd");
        if (r != TP_READY) return r;
        if (!copy_back(t, l)) return TP_BROKEN;
        l->step = TRAVELS;
    }
    return TP_READY;
}

/* Takes every lane as far as it goes. A failure stays: nothing may follow a broken group. */
static bool push(tp_transport *t) {
    nccl_transport *n = of(t);
    for (int i = 0; i < NLANES && !n->broken; i++) {
        tp_ready r = push_lane(t, &n->lane[(n->first + i) % NLANES]);
        n->broken = r == TP_BROKEN;
        if (r != TP_READY) break;
    }
    return !n->broken;
}

static bool swap(tp_transport *t, int k, int peer, const void *out, size_t out_bytes, void *in,
                 size_t in_bytes) {
    nccl_transport *n = of(t);
    lane *l = &n->lane[k];
    if (!n->comm || out_bytes > TP_SEGMENT_BYTES || in_bytes > TP_SEGMENT_BYTES) {
        snprintf(t->error, sizeof t->error,
                 n->comm ? "NCCL: a segment of %zu bytes, at most %d"
                         : "NCCL: given up before, %zu bytes to send",
                 out_bytes > in_bytes ? out_bytes : in_bytes, (int)TP_SEGMENT_BYTES);
        return false;
    }
    if (!cuda_good(t, cudaSetDevice(n->device), "cudaSetDevice")) return false;
    if (out_bytes &&
        !cuda_good(t,
                   cudaMemcpyAsync(l->to_send, out, out_bytes, cudaMemcpyHostToDevice, l->stream),
                   "cudaMemcpyAsync to the GPU"))
        return false;
    *l = (lane){.step = WAITS,
                .peer = peer,
                .out_bytes = out_bytes,
                .in_bytes = in_bytes,
                .in = in,
                .to_send = l->to_send,
                .to_take = l->to_take,
                .stream = l->stream,
                .event = l->event,
                .has_stream = l->has_stream,
                .has_event = l->has_event};
    if (n->lane[!k].step != WAITS && n->lane[!k].step != CONNECTS) n->first = k;
    return push(t);
}

static tp_ready swap_test(tp_transport *t, int k) {
    lane *l = &of(t)->lane[k];
    if (!cuda_good(t, cudaSetDevice(of(t)->device), "cudaSetDevice") || !push(t)) return TP_BROKEN;
    tp_ready r = nccl_state(t, "NCCL"); /* a peer's death shows here */
    if (r == TP_BROKEN) return r;
    if (l->step != TRAVELS) return TP_NOT_YET;
    cudaError_t done = asked(cudaEventQuery(l->event));
    if (done == cudaErrorNotReady) return TP_NOT_YET;
    l->step = IDLE;
    return cuda_good(t, done, "the exchange on the GPU") ? TP_READY : TP_BROKEN;
}

static void swap_stop(tp_transport *t) {
    cudaSetDevice(of(t)->device);
    abort_comm(of(t));
    for (int k = 0; k < NLANES; k++) of(t)->lane[k].step = IDLE;
}

/* Pinned, so that copies run beside the computation. */
static void *swap_alloc(tp_transport *t, tp_ctx *c, size_t bytes) {
    void *p = NULL;
    if (cuda_good(t, cudaSetDevice(of(t)->device), "cudaSetDevice") &&
        cuda_good(t, cudaMallocHost(&p, bytes), "cudaMallocHost"))
        return p;
    of(t)->fail(c, TP_ENOMEM, "rank %d (%s): %s", t->rank, t->host[t->rank], t->error);
    return NULL;
}

/* Copies may be under way still when a failure has stopped all else. False: the GPU does not get
 * done with them, so no memory may be given back. */
static bool quiet(nccl_transport *n) {
    double end = n->now() + END_SECONDS;
    for (int k = 0; k < NLANES; k++) {
        while (n->lane[k].has_stream &&
               asked(cudaStreamQuery(n->lane[k].stream)) == cudaErrorNotReady) {
            if (n->now() > end) return false;
            nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
        }
    }
    return true;
}

static void swap_free(tp_transport *t, void *p) {
    if (p && quiet(of(t))) cudaFreeHost(p);
}

/* ---- opening and closing -------------------------------------------------------------------- */
static void release(nccl_transport *n) {
    abort_comm(n);
    if (!quiet(n)) return;
    for (int k = 0; k < NLANES; k++) {
        lane *l = &n->lane[k];
        if (l->to_send) cudaFree(l->to_send);
        if (l->to_take) cudaFree(l->to_take);
        if (l->has_event) cudaEventDestroy(l->event);
        if (l->has_stream) cudaStreamDestroy(l->stream);
    }
}

static void close_transport(tp_transport *t, tp_leave how) {
    nccl_transport *n = of(t);
    tp_transport *mpi = n->mpi;
    void (*free_it)(void *) = n->free;
    if (how == TP_LEAVE_ABORT) { /* the driver may hang as well: the launcher first */
        mpi->close(mpi, how);
        free_it(n);
        return;
    }
    cudaSetDevice(n->device);
    if (how == TP_LEAVE_TOGETHER && n->comm &&
        nccl_good(t, ncclCommFinalize(n->comm), "ncclCommFinalize") &&
        nccl_settle(t, "ncclCommFinalize", END_SECONDS) == TP_READY) {
        ncclCommDestroy(n->comm);
        n->comm = NULL;
    }
    release(n);
    mpi->close(mpi, how);
    free_it(n);
}

/* A device, streams and device memory. */
static bool open_device(tp_transport *t) {
    nccl_transport *n = of(t);
    int devices = 0;
    cudaError_t code = cudaGetDeviceCount(&devices);
    if (code == cudaErrorNoDevice || code == cudaErrorInsufficientDriver || (!code && !devices)) {
        snprintf(t->error, sizeof t->error, "NCCL needs a GPU, and there is none: %s",
                 code ? cudaGetErrorString(code) : "cudaGetDeviceCount says 0");
        return false;
    }
    if (!cuda_good(t, code, "cudaGetDeviceCount")) return false;
    n->device = t->local_rank % devices;
    if (!cuda_good(t, cudaSetDevice(n->device), "cudaSetDevice")) return false;
    for (int k = 0; k < NLANES; k++) {
        lane *l = &n->lane[k];
        l->has_stream = cuda_good(t, cudaStreamCreateWithFlags(&l->stream, cudaStreamNonBlocking),
                                  "cudaStreamCreateWithFlags");
        l->has_event = l->has_stream &&
                       cuda_good(t, cudaEventCreateWithFlags(&l->event, cudaEventDisableTiming),
                                 "cudaEventCreateWithFlags");
        if (!l->has_event || !cuda_good(t, cudaMalloc(&l->to_send, TP_SEGMENT_BYTES), "cudaMalloc"))
            return false;
        if (!cuda_good(t, cudaMalloc(&l->to_take, TP_SEGMENT_BYTES), "cudaMalloc")) return false;
    }
    return true;
}

static bool join(tp_transport *t, const tp_nccl_verdict *v) {
    nccl_transport *n = of(t);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    ncclUniqueId id;
    config.blocking = 0;
    memcpy(&id, v->id, sizeof id);
    return nccl_good(t, ncclCommInitRankConfig(&n->comm, t->size, id, t->rank, &config),
                     "ncclCommInitRankConfig") &&
           nccl_settle(t, "ncclCommInitRankConfig", START_SECONDS) == TP_READY;
}

/* This transport in front of the MPI one, nothing of CUDA yet. */
static nccl_transport *wrap(const tp_nccl_host *host) {
    const tp_transport *mpi = host->mpi;
    nccl_transport *n = host->calloc(host->c, 1, sizeof *n);
    if (!n) return NULL;
    n->t = (tp_transport){.name = "nccl",
                          .rank = mpi->rank,
                          .size = mpi->size,
                          .local_rank = mpi->local_rank,
                          .local_size = mpi->local_size,
                          .host = mpi->host,
                          .send = send_message,
                          .recv = recv_message,
                          .test = test_message,
                          .cancel = cancel_message,
                          .probe = probe_message,
                          .swap = swap,
                          .swap_test = swap_test,
                          .swap_stop = swap_stop,
                          .swap_alloc = swap_alloc,
                          .swap_free = swap_free,
                          .close = close_transport};
    n->mpi = host->mpi;
    n->free = host->free;
    n->fail = host->fail;
    n->now = host->now;
    return n;
}

/* What this rank can do alone: a device, and on rank 0 the id. */
static void prepare(nccl_transport *n, tp_nccl_verdict *v) {
    tp_transport *t = &n->t;
    ncclUniqueId id;
    bool ok = open_device(t);
    if (ok && t->rank == 0 && (ok = nccl_good(t, ncclGetUniqueId(&id), "ncclGetUniqueId")))
        memcpy(v->id, &id, sizeof id);
    if (!ok) memcpy(v->error, t->error, sizeof v->error);
}

__attribute__((visibility("default"))) tp_status tp_nccl_open(tp_transport **out,
                                                              const tp_nccl_host *host) {
    *out = NULL;
    tp_nccl_verdict v = {.error = ""};
    nccl_transport *n = NULL;
    if (host->transport_bytes != sizeof(tp_transport))
        snprintf(v.error, sizeof v.error, "%s is of another build", TP_NCCL_MODULE);
    else if (!(n = wrap(host)))
        snprintf(v.error, sizeof v.error, "out of memory");
    else
        prepare(n, &v);
    tp_status st = host->agree(host->mpi, host->c, &v);
    if (!st && !join(&n->t, &v))
        st = host->fail(host->c, TP_EIO, "rank %d (%s): %s", n->t.rank, n->t.host[n->t.rank],
                        n->t.error);
    if (!st)
        *out = &n->t;
    else if (n) {
        release(n);
        host->free(n);
    }
    return st;
}
