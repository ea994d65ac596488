/* The NCCL transport: segments of large moves go from GPU to GPU; all small messages stay with MPI.
 * Host memory passes through buffers on the device. CUDA and NCCL are loaded when they are asked
 * for: the same program starts on machines without them. Compiled where CMake finds both and MPI.
 *
 * One stream per rank. A swap is: host to device, send and receive as one group, device to host, an
 * event. Segments are exchanged, never reduced, by NCCL: the sum is the tree's (collective.c). */
#include "dist/nccl.h"
#include <dlfcn.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

enum { SWAP_BYTES = 1 << 20, FAULT_BYTES = 200 };

typedef struct nccl_transport {
    tp_transport t; /* first */
    tp_transport *base;
    tp_nccl_calls f;
    int device;
    ncclComm_t comm;
    cudaStream_t stream;
    cudaEvent_t done[2];
    void *out[2], *in[2]; /* on the device, SWAP_BYTES each */
} nccl_transport;

bool tp_transport_has_nccl(void) { return true; }

/* ---- errors --------------------------------------------------------------------------------- */
static bool cuda_good(nccl_transport *n, cudaError_t e, const char *what) {
    if (e == cudaSuccess) return true;
    snprintf(n->t.error, sizeof n->t.error, "%s: %.100s", what, n->f.cudaGetErrorString(e));
    return false;
}
static bool nccl_good(nccl_transport *n, ncclResult_t e, const char *what) {
    if (e == ncclSuccess) return true;
    snprintf(n->t.error, sizeof n->t.error, "%s: %.100s", what, n->f.ncclGetErrorString(e));
    return false;
}
#define CUDA(call, ...) cuda_good(n, n->f.call(__VA_ARGS__), #call)
#define NCCL(call, ...) nccl_good(n, n->f.call(__VA_ARGS__), #call)

/* ---- small messages ------------------------------------------------------------------------- */
static tp_transport *base_of(tp_transport *t) { return ((nccl_transport *)t)->base; }
static bool pass_error(tp_transport *t, bool ok) {
    if (!ok) memcpy(t->error, base_of(t)->error, sizeof t->error);
    return ok;
}
static bool small_send(tp_transport *t, int to, int tag, const void *data, size_t bytes,
                       tp_request *r) {
    return pass_error(t, base_of(t)->send(base_of(t), to, tag, data, bytes, r));
}
static bool small_recv(tp_transport *t, int from, int tag, void *data, size_t bytes,
                       tp_request *r) {
    return pass_error(t, base_of(t)->recv(base_of(t), from, tag, data, bytes, r));
}
static tp_ready small_test(tp_transport *t, tp_request *r) {
    tp_ready ready = base_of(t)->test(base_of(t), r);
    pass_error(t, ready != TP_BROKEN);
    return ready;
}
static void small_cancel(tp_transport *t, tp_request *r) { base_of(t)->cancel(base_of(t), r); }
static tp_ready small_probe(tp_transport *t, int tag, int *from, size_t *bytes) {
    return base_of(t)->probe(base_of(t), tag, from, bytes);
}

/* ---- segments ------------------------------------------------------------------------------- */
static bool swap(tp_transport *t, int k, int peer, const void *out, size_t out_bytes, void *in,
                 size_t in_bytes) {
    nccl_transport *n = (nccl_transport *)t;
    /* CUDA keeps the device per thread, and this is not the thread that opened */
    if (!CUDA(cudaSetDevice, n->device)) return false;
    if (out_bytes &&
        !CUDA(cudaMemcpyAsync, n->out[k], out, out_bytes, cudaMemcpyHostToDevice, n->stream))
        return false;
    if (!NCCL(ncclGroupStart)) return false;
    bool ok =
        (!out_bytes || NCCL(ncclSend, n->out[k], out_bytes, ncclInt8, peer, n->comm, n->stream)) &&
        (!in_bytes || NCCL(ncclRecv, n->in[k], in_bytes, ncclInt8, peer, n->comm, n->stream));
    ok = NCCL(ncclGroupEnd) && ok; /* whatever was started in between */
    if (ok && in_bytes)
        ok = CUDA(cudaMemcpyAsync, in, n->in[k], in_bytes, cudaMemcpyDeviceToHost, n->stream);
    return ok && CUDA(cudaEventRecord, n->done[k], n->stream);
}

static tp_ready swap_test(tp_transport *t, int k) {
    nccl_transport *n = (nccl_transport *)t;
    ncclResult_t state = ncclSuccess;
    if (!CUDA(cudaSetDevice, n->device)) return TP_BROKEN;
    if (!NCCL(ncclCommGetAsyncError, n->comm, &state)) return TP_BROKEN;
    if (state != ncclInProgress && !nccl_good(n, state, "NCCL")) return TP_BROKEN;
    cudaError_t e = n->f.cudaEventQuery(n->done[k]);
    if (e == cudaErrorNotReady) return TP_NOT_YET;
    return cuda_good(n, e, "cudaEventQuery") ? TP_READY : TP_BROKEN;
}

static void swap_stop(tp_transport *t) {
    nccl_transport *n = (nccl_transport *)t;
    if (!n->comm) return;
    n->f.cudaSetDevice(n->device);
    n->f.ncclCommAbort(n->comm); /* ends what waits for a peer that does not come */
    n->comm = NULL;
}

/* Copies to and from pageable memory would wait for the stream. */
static void *swap_alloc(tp_transport *t, tp_ctx *c, size_t bytes) {
    nccl_transport *n = (nccl_transport *)t;
    void *p = NULL;
    if (bytes <= SWAP_BYTES && CUDA(cudaMallocHost, &p, bytes)) return p;
    tp_fail(c, TP_ENOMEM, "NCCL: no pinned memory: %s", n->t.error);
    return NULL;
}
static void swap_free(tp_transport *t, void *p) {
    if (p) ((nccl_transport *)t)->f.cudaFreeHost(p);
}

static void nccl_close(tp_transport *t, tp_leave how) {
    nccl_transport *n = (nccl_transport *)t;
    tp_transport *base = n->base;
    if (n->comm && how == TP_LEAVE_TOGETHER) {
        n->f.cudaSetDevice(n->device);
        n->f.ncclCommDestroy(n->comm);
        n->comm = NULL;
    }
    swap_stop(t);
    for (int k = 0; k < 2; k++) {
        if (n->done[k]) n->f.cudaEventDestroy(n->done[k]);
        if (n->out[k]) n->f.cudaFree(n->out[k]);
        if (n->in[k]) n->f.cudaFree(n->in[k]);
    }
    if (n->stream) n->f.cudaStreamDestroy(n->stream);
    tp_free(n);
    base->close(base, how);
}

/* ---- opening -------------------------------------------------------------------------------- */
typedef struct verdict {     /* of one rank, then of rank 0 over all */
    char fault[FAULT_BYTES]; /* "": none */
    ncclUniqueId id;
} verdict;

/* Before the communicator's thread exists: waits. */
static bool exchange(tp_transport *b, bool sends, int peer, verdict *v) {
    tp_request r;
    if (!(sends ? b->send(b, peer, TP_TAG_DATA, v, sizeof *v, &r)
                : b->recv(b, peer, TP_TAG_DATA, v, sizeof *v, &r)))
        return false;
    for (tp_ready ready; (ready = b->test(b, &r)) != TP_READY; sched_yield())
        if (ready == TP_BROKEN) return false;
    return true;
}

/* All learn whether all are fine, and NCCL's id. False: the messages themselves failed. */
static bool agree(tp_transport *b, verdict *v) {
    if (b->rank) return exchange(b, true, 0, v) && exchange(b, false, 0, v);
    for (int r = 1; r < b->size; r++) {
        verdict other;
        if (!exchange(b, false, r, &other)) return false;
        other.fault[FAULT_BYTES - 1] = 0;
        if (!v->fault[0]) memcpy(v->fault, other.fault, FAULT_BYTES);
    }
    for (int r = 1; r < b->size; r++)
        if (!exchange(b, true, r, v)) return false;
    return true;
}

static bool prepare(nccl_transport *n) {
    int devices = 0;
    tp_transport *b = n->base;
    if (!CUDA(cudaGetDeviceCount, &devices)) return false;
    if (devices < b->local_size) { /* NCCL wants one per rank */
        snprintf(n->t.error, sizeof n->t.error, "%d ranks share %d GPUs, but each needs its own",
                 b->local_size, devices);
        return false;
    }
    n->device = b->local_rank;
    bool ok = CUDA(cudaSetDevice, n->device) &&
              CUDA(cudaStreamCreateWithFlags, &n->stream, cudaStreamNonBlocking);
    for (int k = 0; ok && k < 2; k++)
        ok = CUDA(cudaEventCreateWithFlags, &n->done[k], cudaEventDisableTiming) &&
             CUDA(cudaMalloc, &n->out[k], SWAP_BYTES) && CUDA(cudaMalloc, &n->in[k], SWAP_BYTES);
    return ok;
}

/* The first message between two ranks makes their connection, which takes long and waits for the
 * other: it is sent here, so that no later one holds up the signs of life. */
static bool connect_partners(nccl_transport *n) {
    void *byte = swap_alloc(&n->t, NULL, 1);
    bool ok = byte != NULL;
    for (int bit = 1; ok && bit < n->t.size; bit <<= 1) {
        tp_ready ready = TP_NOT_YET;
        ok = swap(&n->t, 0, n->t.rank ^ bit, byte, 1, byte, 1);
        while (ok && (ready = swap_test(&n->t, 0)) == TP_NOT_YET) sched_yield();
        ok = ok && ready == TP_READY;
    }
    swap_free(&n->t, byte);
    return ok;
}

tp_status tp_transport_nccl_on(tp_transport **out, tp_ctx *c, tp_transport *base,
                               const tp_nccl_calls *calls, const char *fault) {
    *out = NULL;
    nccl_transport *n = tp_calloc(c, 1, sizeof *n);
    if (!n) {
        base->close(base, TP_LEAVE_ALONE);
        return TP_ENOMEM;
    }
    n->base = base;
    if (!fault) n->f = *calls;
    n->t = (tp_transport){.name = "nccl",
                          .rank = base->rank,
                          .size = base->size,
                          .local_rank = base->local_rank,
                          .local_size = base->local_size,
                          .host = base->host,
                          .send = small_send,
                          .recv = small_recv,
                          .test = small_test,
                          .cancel = small_cancel,
                          .probe = small_probe,
                          .swap = swap,
                          .swap_test = swap_test,
                          .swap_stop = swap_stop,
                          .swap_alloc = swap_alloc,
                          .swap_free = swap_free,
                          .close = nccl_close};
    verdict v = {.fault = ""};
    if (fault) snprintf(n->t.error, sizeof n->t.error, "%s", fault);
    bool ready = !fault && prepare(n) && (base->rank || NCCL(ncclGetUniqueId, &v.id));
    if (!ready)
        snprintf(v.fault, sizeof v.fault, "rank %d (%s): %.100s", base->rank,
                 base->host[base->rank], n->t.error);
    if (!agree(base, &v)) {
        tp_fail(c, TP_EIO, "NCCL: %s", base->error);
    } else if (v.fault[0]) {
        tp_fail(c, TP_EARG, "NCCL: %s", v.fault);
        nccl_close(&n->t, TP_LEAVE_TOGETHER);
        return TP_EARG;
    } else if (NCCL(ncclCommInitRank, &n->comm, n->t.size, v.id, n->t.rank) &&
               connect_partners(n)) {
        *out = &n->t;
        return TP_OK;
    } else {
        tp_fail(c, TP_EIO, "rank %d (%s): NCCL does not start: %s", base->rank,
                base->host[base->rank], n->t.error);
    }
    nccl_close(&n->t, TP_LEAVE_ALONE);
    return TP_EIO;
}

/* ---- the libraries -------------------------------------------------------------------------- */
static void *library(const char *soname, const char *path) {
    void *lib = dlopen(soname, RTLD_NOW | RTLD_GLOBAL);
    return lib ? lib : dlopen(path, RTLD_NOW | RTLD_GLOBAL);
}

/* They stay loaded: CUDA has threads of its own. NULL, or why it did not work. */
static const char *load(tp_nccl_calls *f) {
    char cudart_name[32];
    snprintf(cudart_name, sizeof cudart_name, "libcudart.so.%d", CUDART_VERSION / 1000);
    void *cuda = library(cudart_name, TP_CUDART_PATH), *nccl = NULL;
    if (!cuda) return "libcudart cannot be loaded";
    if (!(nccl = library("libnccl.so.2", TP_NCCL_PATH))) return "libnccl cannot be loaded";
#define LOAD_CUDA(name)                                                                            \
    if (!(*(void **)&f->name = dlsym(cuda, #name))) return "libcudart lacks " #name;
#define LOAD_NCCL(name)                                                                            \
    if (!(*(void **)&f->name = dlsym(nccl, #name))) return "libnccl lacks " #name;
    TP_CUDA_CALLS(LOAD_CUDA)
    TP_NCCL_CALLS(LOAD_NCCL)
    return NULL;
}

tp_status tp_transport_nccl(tp_transport **out, tp_ctx *c) {
    *out = NULL;
    tp_transport *base;
    tp_nccl_calls calls;
    tp_status st = tp_transport_mpi(&base, c);
    if (st) return st;
    const char *fault = load(&calls);
    return tp_transport_nccl_on(out, c, base, &calls, fault);
}
