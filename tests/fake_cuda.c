/* See fake_cuda.h. Everything happens under one lock, in looks: every query takes the head of every
 * stream further. */
#include "fake_cuda.h"
#include <cuda_runtime.h>
#include <nccl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 8, PATIENCE = 3, ROOMS = 64 };
typedef enum kind { COPY, GROUP, EVENT } kind;
typedef struct op {
    struct op *next;
    kind kind;
    int patience; /* looks that it still takes */
    void *to;     /* COPY; GROUP: what comes */
    const void *from;
    size_t to_bytes, from_bytes;
    int peer, turn; /* turn: among the groups of the communicator */
    bool sent;
    ncclComm_t comm;
    cudaEvent_t event;
} op;
struct CUstream_st {
    struct CUstream_st *next;
    op *first;
};
struct CUevent_st {
    bool done;
};
struct ncclComm {
    int rank, patience; /* > 0: in progress */
    bool up;            /* all have come */
    int begun, done;    /* groups: they get done in order */
};
typedef struct mail {
    struct mail *next;
    size_t bytes;
    char data[];
} mail;

typedef struct room { /* an allocation */
    char *at;
    size_t bytes;
    bool pinned;
} room;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local int me;
static _Thread_local bool not_ready; /* the last error */
static _Thread_local op *open_group;
static struct {
    int ranks, devices, joined, left, groups;
    bool broken; /* a rank failed before all had come */
    cudaStream_t streams;
    void *handle[ROOMS + 1]; /* streams, events, communicators */
    mail *box[MOST][MOST];   /* from, to */
    room room[ROOMS];
    int fail_rank, fail_nth;
    const char *fail_function, *sin;
    bool failed;
} w;

static void wrong(const char *what) {
    if (!w.sin) w.sin = what;
}
static void *keep(size_t bytes) {
    int i = 0;
    while (w.handle[i]) i++;
    w.left++;
    return w.handle[i] = calloc(1, bytes);
}
static void let_go(void *p) {
    int i = 0;
    while (w.handle[i] != p) i++;
    w.handle[i] = NULL;
    w.left--;
    free(p);
}
static void drop_all(cudaStream_t s) {
    for (op *next, *o = s->first; o; o = next) {
        next = o->next;
        free(o);
    }
    s->first = NULL;
}
void fake_begin(int ranks, int devices) {
    for (cudaStream_t s = w.streams; s; s = s->next) drop_all(s);
    for (int i = 0; i < ROOMS; i++) {
        free(w.handle[i]);
        free(w.room[i].at);
    }
    for (int i = 0; i < MOST * MOST; i++)
        for (mail *next, *m = w.box[i / MOST][i % MOST]; m; m = next) {
            next = m->next;
            free(m);
        }
    memset(&w, 0, sizeof w);
    w.ranks = ranks;
    w.devices = devices;
}
void fake_be(int rank) { me = rank; }
void fake_fail(int rank, const char *function, int nth) {
    w.fail_rank = rank;
    w.fail_function = function;
    w.fail_nth = nth;
}
bool fake_failed(void) { return w.failed; }
int fake_left(void) { return w.left; }
int fake_groups(void) { return w.groups; }
const char *fake_sin(void) { return w.sin; }

static bool fails(const char *function) {
    if (!w.fail_function || me != w.fail_rank || strcmp(function, w.fail_function)) return false;
    if (--w.fail_nth) return false;
    if (w.joined < w.ranks) w.broken = true;
    return w.failed = true;
}
/* Every function that may fail begins and ends with these. */
#define ENTER(bad)                                                                                 \
    pthread_mutex_lock(&lock);                                                                     \
    if (fails(__func__)) {                                                                         \
        pthread_mutex_unlock(&lock);                                                               \
        return bad;                                                                                \
    }
#define LEAVE(good)                                                                                \
    do {                                                                                           \
        __typeof__(good) result_ = (good); /* still under the lock */                              \
        pthread_mutex_unlock(&lock);                                                               \
        return result_;                                                                            \
    } while (0)

/* ---- memory --------------------------------------------------------------------------------- */
static cudaError_t take_room(void **p, size_t bytes, bool pinned) {
    for (int i = 0; i < ROOMS; i++) {
        if (w.room[i].at) continue;
        *p = w.room[i].at = malloc(bytes);
        w.room[i].bytes = bytes;
        w.room[i].pinned = pinned;
        w.left++;
        return cudaSuccess;
    }
    return cudaErrorMemoryAllocation;
}
static bool touches(const room *r, const op *o) {
    const char *to = o->to, *from = o->from, *end = r->at + r->bytes;
    return (to >= r->at && to < end) || (from >= r->at && from < end);
}
static cudaError_t give_room(void *p) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < ROOMS; i++)
        if (w.room[i].at == p) {
            for (cudaStream_t s = w.streams; s; s = s->next)
                for (const op *o = s->first; o; o = o->next)
                    if (o->kind == COPY && touches(&w.room[i], o)) wrong("freed under a copy");
            free(p);
            w.room[i].at = NULL;
            w.left--;
            LEAVE(cudaSuccess);
        }
    wrong("freed what was not allocated");
    LEAVE(cudaErrorInvalidValue);
}
static void must_lie_in(const void *p, size_t bytes, bool pinned) {
    const char *c = p;
    for (int i = 0; i < ROOMS; i++)
        if (w.room[i].at && w.room[i].pinned == pinned && c >= w.room[i].at &&
            c + bytes <= w.room[i].at + w.room[i].bytes)
            return;
    wrong(pinned ? "a copy with memory that is not pinned" : "a copy beyond device memory");
}
cudaError_t cudaMalloc(void **p, size_t n) {
    ENTER(cudaErrorMemoryAllocation)
    LEAVE(take_room(p, n, false));
}
cudaError_t cudaMallocHost(void **p, size_t n) {
    ENTER(cudaErrorMemoryAllocation)
    LEAVE(take_room(p, n, true));
}
cudaError_t cudaFree(void *p) { return give_room(p); }
cudaError_t cudaFreeHost(void *p) { return give_room(p); }

/* ---- streams -------------------------------------------------------------------------------- */
static void enqueue(cudaStream_t s, op o) {
    op **at = &s->first, *p = malloc(sizeof *p);
    for (const op *q = s->first; q; q = q->next)
        if (q->kind == GROUP && q->comm->patience > 0) wrong("work behind a group in progress");
    while (*at) at = &(*at)->next;
    *p = o;
    p->patience = PATIENCE;
    *at = p;
}

/* True when it is done. */
static bool exchange(op *o) {
    int rank = o->comm->rank;
    if (!o->sent && o->from_bytes) {
        mail *m = malloc(sizeof *m + o->from_bytes), **at = &w.box[rank][o->peer];
        m->next = NULL;
        m->bytes = o->from_bytes;
        memcpy(m->data, o->from, o->from_bytes);
        while (*at) at = &(*at)->next;
        *at = m;
    }
    o->sent = true;
    mail *m = w.box[o->peer][rank];
    if (o->to_bytes && !m) return false;
    if (o->to_bytes) {
        if (m->bytes != o->to_bytes) wrong("a send and a receive of other sizes");
        memcpy(o->to, m->data, m->bytes < o->to_bytes ? m->bytes : o->to_bytes);
        w.box[o->peer][rank] = m->next;
        free(m);
    }
    o->comm->done++;
    w.groups++;
    return true;
}

static void look(void) {
    for (cudaStream_t s = w.streams; s; s = s->next) {
        op *o = s->first;
        if (!o || --o->patience > 0) continue;
        if (o->kind == COPY) memcpy(o->to, o->from, o->to_bytes);
        if (o->kind == EVENT) o->event->done = true;
        if (o->kind == GROUP && (o->comm->patience > 0 || o->turn != o->comm->done || !exchange(o)))
            continue;
        s->first = o->next;
        free(o);
    }
}

cudaError_t cudaGetDeviceCount(int *n) {
    ENTER(cudaErrorUnknown)
    *n = w.devices;
    LEAVE(w.devices ? cudaSuccess : cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
    me = device;
    ENTER(cudaErrorUnknown)
    LEAVE(cudaSuccess);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) {
    (void)flags;
    ENTER(cudaErrorUnknown)
    *s = keep(sizeof **s);
    (*s)->next = w.streams;
    w.streams = *s;
    LEAVE(cudaSuccess);
}
cudaError_t cudaStreamQuery(cudaStream_t s) {
    ENTER(cudaErrorUnknown)
    look();
    not_ready |= s->first != NULL;
    LEAVE(s->first ? cudaErrorNotReady : cudaSuccess);
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
    pthread_mutex_lock(&lock);
    cudaStream_t *at = &w.streams;
    while (*at != s) at = &(*at)->next;
    *at = s->next;
    drop_all(s);
    let_go(s);
    LEAVE(cudaSuccess);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind k,
                            cudaStream_t s) {
    ENTER(cudaErrorUnknown)
    if (not_ready) wrong("\"not ready\" is left as the last error, for a kernel's launch to find");
    must_lie_in(to, n, k == cudaMemcpyDeviceToHost);
    must_lie_in(from, n, k == cudaMemcpyHostToDevice);
    enqueue(s, (op){.kind = COPY, .to = to, .from = from, .to_bytes = n});
    LEAVE(cudaSuccess);
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) {
    (void)flags;
    ENTER(cudaErrorUnknown)
    *e = keep(sizeof **e);
    LEAVE(cudaSuccess);
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    ENTER(cudaErrorUnknown)
    e->done = false;
    enqueue(s, (op){.kind = EVENT, .event = e});
    LEAVE(cudaSuccess);
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
    ENTER(cudaErrorUnknown)
    look();
    not_ready |= !e->done;
    LEAVE(e->done ? cudaSuccess : cudaErrorNotReady);
}
cudaError_t cudaGetLastError(void) {
    cudaError_t e = not_ready ? cudaErrorNotReady : cudaSuccess;
    not_ready = false;
    return e;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    pthread_mutex_lock(&lock);
    let_go(e);
    LEAVE(cudaSuccess);
}
const char *cudaGetErrorString(cudaError_t e) { return e == cudaErrorNoDevice ? "none" : "broken"; }
const char *cudaGetErrorName(cudaError_t e) {
    (void)e;
    return "cudaErrorPretended";
}

/* ---- NCCL ----------------------------------------------------------------------------------- */
ncclResult_t ncclGroupStart(void), ncclGroupEnd(void); /* nccl.h leaves the void out */
static void must_be_settled(ncclComm_t c) {
    if (c->patience > 0 || !c->up) wrong("a call on a communicator in progress");
}
ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    ENTER(ncclSystemError)
    memset(id, 77, sizeof *id);
    LEAVE(ncclSuccess);
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t *c, int n, ncclUniqueId id, int rank,
                                    ncclConfig_t *config) {
    ENTER(ncclSystemError)
    if (n != w.ranks || rank != me || id.internal[0] != 77 || config->blocking)
        wrong("a communicator that is not as it should be");
    *c = keep(sizeof **c);
    (*c)->rank = rank;
    (*c)->patience = PATIENCE;
    w.joined++;
    LEAVE(ncclInProgress);
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *state) {
    ENTER(ncclSystemError)
    look();
    if (w.joined == w.ranks && c->patience > 0) c->patience--;
    if (!c->patience) c->up = true;
    *state = c->up && !c->patience ? ncclSuccess : w.broken ? ncclRemoteError : ncclInProgress;
    LEAVE(ncclSuccess);
}
ncclResult_t ncclGroupStart(void) {
    ENTER(ncclSystemError)
    open_group = calloc(1, sizeof *open_group);
    LEAVE(ncclSuccess);
}
static _Thread_local cudaStream_t group_stream;
static ncclResult_t join_group(ncclComm_t c, int peer, cudaStream_t s) {
    must_be_settled(c);
    if (!open_group) wrong("no group");
    open_group->comm = c;
    open_group->peer = peer;
    group_stream = s;
    return ncclSuccess;
}
ncclResult_t ncclSend(const void *p, size_t n, ncclDataType_t type, int peer, ncclComm_t c,
                      cudaStream_t s) {
    ENTER(ncclSystemError)
    if (type != ncclInt8) wrong("not bytes");
    must_lie_in(p, n, false);
    open_group->from = p;
    open_group->from_bytes = n;
    LEAVE(join_group(c, peer, s));
}
ncclResult_t ncclRecv(void *p, size_t n, ncclDataType_t type, int peer, ncclComm_t c,
                      cudaStream_t s) {
    ENTER(ncclSystemError)
    if (type != ncclInt8) wrong("not bytes");
    must_lie_in(p, n, false);
    open_group->to = p;
    open_group->to_bytes = n;
    LEAVE(join_group(c, peer, s));
}
ncclResult_t ncclGroupEnd(void) {
    pthread_mutex_lock(&lock);
    op *g = open_group;
    open_group = NULL;
    bool bad = fails(__func__);
    if (g && g->comm && !bad) {
        g->kind = GROUP;
        g->turn = g->comm->begun++;
        enqueue(group_stream, *g);
        g->comm->patience = PATIENCE;
    }
    free(g);
    LEAVE(bad ? ncclSystemError : ncclInProgress);
}
ncclResult_t ncclCommFinalize(ncclComm_t c) {
    ENTER(ncclSystemError)
    must_be_settled(c);
    c->patience = PATIENCE;
    LEAVE(ncclInProgress);
}
ncclResult_t ncclCommDestroy(ncclComm_t c) {
    pthread_mutex_lock(&lock);
    must_be_settled(c);
    let_go(c);
    LEAVE(ncclSuccess);
}
ncclResult_t ncclCommAbort(ncclComm_t c) {
    pthread_mutex_lock(&lock);
    for (cudaStream_t s = w.streams; s; s = s->next)
        for (op **at = &s->first; *at;)
            if ((*at)->kind == GROUP && (*at)->comm == c) {
                op *o = *at;
                *at = o->next;
                free(o);
            } else {
                at = &(*at)->next;
            }
    let_go(c);
    LEAVE(ncclSuccess);
}
const char *ncclGetErrorString(ncclResult_t r) {
    (void)r;
    return "pretended";
}
const char *ncclGetLastError(ncclComm_t c) {
    (void)c;
    return "";
}
