/* The NCCL transport without a GPU: CUDA's and NCCL's functions are played by ones that keep the
 * rules which matter here. A stream is a queue that is worked off in order, later, when somebody
 * asks; what is sent and received waits for the other side; nothing may be touched by the wrong
 * device, and device memory only by copies. */
#include "dist/nccl.h"
#include "local_ranks.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { MAXRANKS = 8, MAXWORK = 64, QUEUE = 16 };
/* ---- one machine with up to 8 GPUs ------------------------------------------------------------
 */
typedef struct work {
    enum { COPY, SEND, RECV, RECORD } kind;
    void *to;
    const void *from;
    size_t bytes;
    int peer;
    int *event;
} work;
struct CUstream_st {
    int device, n;
    work work[MAXWORK];
};
struct CUevent_st {
    int recorded, passed;
};
struct ncclComm {
    int rank, size;
};
typedef struct parcel {
    void *data;
    size_t bytes;
} parcel;
static struct {
    pthread_mutex_t lock;
    int devices, comms, buffers; /* comms, buffers: that exist */
    atomic_int broken_rank;
    parcel mail[MAXRANKS][MAXRANKS][QUEUE]; /* from, to */
    int in_mail[MAXRANKS][MAXRANKS];
    char faults[200];
} machine = {.lock = PTHREAD_MUTEX_INITIALIZER};
static _Thread_local int device_now = -1, group_depth;
static _Thread_local work grouped[4];
static _Thread_local int ngrouped;

static void fault(const char *text) { snprintf(machine.faults, sizeof machine.faults, "%s", text); }
static int count(int *what, int by) {
    pthread_mutex_lock(&machine.lock);
    int n = *what += by;
    pthread_mutex_unlock(&machine.lock);
    return n;
}

static bool one(cudaStream_t s, const work *w) { /* can it be done now? Under lock */
    int *in_mail;
    parcel *box;
    switch (w->kind) {
    case COPY:
        memcpy(w->to, w->from, w->bytes);
        return true;
    case RECORD:
        ++*w->event;
        return true;
    case SEND:
        in_mail = &machine.in_mail[s->device][w->peer];
        box = machine.mail[s->device][w->peer];
        if (*in_mail == QUEUE) return false;
        box[*in_mail].data = malloc(w->bytes);
        box[*in_mail].bytes = w->bytes;
        memcpy(box[(*in_mail)++].data, w->from, w->bytes);
        return true;
    default:
        in_mail = &machine.in_mail[w->peer][s->device];
        box = machine.mail[w->peer][s->device];
        if (!*in_mail) return false;
        if (box[0].bytes != w->bytes) fault("sizes differ");
        memcpy(w->to, box[0].data, w->bytes < box[0].bytes ? w->bytes : box[0].bytes);
        free(box[0].data);
        memmove(box, box + 1, (size_t)-- * in_mail * sizeof *box);
        return true;
    }
}
static void
work_off(cudaStream_t s) { /* one thing at a time, so that tests see things unfinished */
    pthread_mutex_lock(&machine.lock);
    if (s->n && one(s, &s->work[0])) memmove(s->work, s->work + 1, (size_t)--s->n * sizeof(work));
    pthread_mutex_unlock(&machine.lock);
}
static void enqueue(cudaStream_t s, work w) {
    if (s->device != device_now) fault("the thread has another device than the stream");
    if (s->n == MAXWORK)
        fault("too much work");
    else
        s->work[s->n++] = w;
}

static cudaError_t get_device_count(int *n) {
    *n = machine.devices;
    return cudaSuccess;
}
static cudaError_t set_device(int d) {
    device_now = d;
    return cudaSuccess;
}
static cudaError_t allocate(void **p, size_t bytes) {
    *p = malloc(bytes);
    count(&machine.buffers, 1);
    return cudaSuccess;
}
static cudaError_t release(void *p) {
    free(p);
    count(&machine.buffers, -1);
    return cudaSuccess;
}
static cudaError_t stream_create(cudaStream_t *s, unsigned flags) {
    (void)flags;
    *s = calloc(1, sizeof **s);
    (*s)->device = device_now;
    return cudaSuccess;
}
static cudaError_t stream_destroy(cudaStream_t s) {
    free(s);
    return cudaSuccess;
}
static cudaError_t event_create(cudaEvent_t *e, unsigned flags) {
    (void)flags;
    *e = calloc(1, sizeof **e);
    return cudaSuccess;
}
static cudaError_t event_destroy(cudaEvent_t e) {
    free(e);
    return cudaSuccess;
}
static _Thread_local cudaStream_t stream_now; /* of the last record: whom a query drives */
static cudaError_t event_record(cudaEvent_t e, cudaStream_t s) {
    e->recorded++;
    stream_now = s;
    enqueue(s, (work){.kind = RECORD, .event = &e->passed});
    return cudaSuccess;
}
static cudaError_t event_query(cudaEvent_t e) {
    work_off(stream_now);
    return e->passed == e->recorded ? cudaSuccess : cudaErrorNotReady;
}
static cudaError_t memcpy_async(void *to, const void *from, size_t n, enum cudaMemcpyKind kind,
                                cudaStream_t s) {
    (void)kind;
    enqueue(s, (work){.kind = COPY, .to = to, .from = from, .bytes = n});
    return cudaSuccess;
}
static const char *cuda_text(cudaError_t e) { return e ? "bad" : "good"; }
static const char *nccl_text(ncclResult_t e) { return e ? "bad" : "good"; }
static ncclResult_t unique_id(ncclUniqueId *id) {
    memset(id, 42, sizeof *id);
    return ncclSuccess;
}
static ncclResult_t comm_init(ncclComm_t *c, int size, ncclUniqueId id, int rank) {
    if (id.internal[0] != 42) fault("another id");
    *c = calloc(1, sizeof **c);
    **c = (struct ncclComm){rank, size};
    count(&machine.comms, 1);
    return ncclSuccess;
}
static ncclResult_t comm_end(ncclComm_t c) {
    free(c);
    count(&machine.comms, -1);
    return ncclSuccess;
}
static ncclResult_t async_error(ncclComm_t c, ncclResult_t *e) {
    *e = c->rank == machine.broken_rank ? ncclRemoteError : ncclSuccess;
    return ncclSuccess;
}
static ncclResult_t group_start(void) {
    group_depth++;
    return ncclSuccess;
}
static ncclResult_t nccl_send(const void *p, size_t n, ncclDataType_t t, int peer, ncclComm_t c,
                              cudaStream_t s) {
    (void)c;
    if (!group_depth || t != ncclInt8) fault("send outside a group");
    grouped[ngrouped++] = (work){.kind = SEND, .from = p, .bytes = n, .peer = peer};
    stream_now = s;
    return ncclSuccess;
}
static ncclResult_t nccl_recv(void *p, size_t n, ncclDataType_t t, int peer, ncclComm_t c,
                              cudaStream_t s) {
    (void)c;
    if (!group_depth || t != ncclInt8) fault("receive outside a group");
    grouped[ngrouped++] = (work){.kind = RECV, .to = p, .bytes = n, .peer = peer};
    stream_now = s;
    return ncclSuccess;
}
static ncclResult_t group_end(void) {
    group_depth--;
    for (int i = 0; i < ngrouped; i++) enqueue(stream_now, grouped[i]);
    ngrouped = 0;
    return ncclSuccess;
}

static tp_nccl_calls played(void) {
    return (tp_nccl_calls){.cudaGetDeviceCount = get_device_count,
                           .cudaSetDevice = set_device,
                           .cudaMalloc = allocate,
                           .cudaFree = release,
                           .cudaMallocHost = allocate,
                           .cudaFreeHost = release,
                           .cudaStreamCreateWithFlags = stream_create,
                           .cudaStreamDestroy = stream_destroy,
                           .cudaEventCreateWithFlags = event_create,
                           .cudaEventDestroy = event_destroy,
                           .cudaEventRecord = event_record,
                           .cudaEventQuery = event_query,
                           .cudaMemcpyAsync = memcpy_async,
                           .cudaGetErrorString = cuda_text,
                           .ncclGetUniqueId = unique_id,
                           .ncclCommInitRank = comm_init,
                           .ncclCommDestroy = comm_end,
                           .ncclCommAbort = comm_end,
                           .ncclCommGetAsyncError = async_error,
                           .ncclGroupStart = group_start,
                           .ncclGroupEnd = group_end,
                           .ncclSend = nccl_send,
                           .ncclRecv = nccl_recv,
                           .ncclGetErrorString = nccl_text};
}
static tp_transport *over_nccl(tp_transport *base, tp_ctx *c) {
    tp_transport *t;
    tp_nccl_calls calls = played();
    return tp_transport_nccl_on(&t, c, base, &calls, NULL) ? NULL : t;
}
static tp_transport *without_library(tp_transport *base, tp_ctx *c) {
    tp_transport *t;
    tp_nccl_calls calls = played();
    const char *why = base->rank == 1 ? "libnccl cannot be loaded" : NULL;
    return tp_transport_nccl_on(&t, c, base, &calls, why) ? NULL : t;
}

/* ---- the tests ------------------------------------------------------------------------------ */
static float value(int rank, int64_t i) {
    uint32_t w[4];
    tp_philox(w, 7, (uint32_t)rank, (uint64_t)i, 0);
    return ldexpf((float)(int32_t)w[0] / 2147483648.0f, (int)(w[1] % 25) - 12);
}
static float tree_sum(int lo, int hi, int64_t i) {
    if (hi - lo == 1) return value(lo, i);
    float left = tree_sum(lo, (lo + hi) / 2, i), right = tree_sum((lo + hi) / 2, hi, i);
    return left + right;
}
typedef struct result {
    char said[MAXRANKS][400];
} result;

static void allreduce(local_rank *r) {
    enum { N = 600001 };
    result *k = r->arg;
    if (!r->m) {
        snprintf(k->said[r->rank], sizeof k->said[0], "%s", tp_error(r->c));
        return;
    }
    float *x = malloc(N * sizeof *x);
    for (int64_t i = 0; i < N; i++) x[i] = value(r->rank, i);
    tp_piece p[2] = {{x, {N / 2, 1, -1}}, {x + N / 2, {N - N / 2, 1, r->size - 1}}};
    double one = 1;
    int64_t t = tp_comm_start(r->m, r->c, TP_ALLREDUCE, p, 2);
    if (t) tp_comm_wait(r->m, r->c, t);
    for (int64_t i = 0; i < N && !tp_error_status(r->c); i++) {
        float want = tree_sum(0, r->size, i);
        if (memcmp(&want, &x[i], sizeof want)) tp_fail(r->c, TP_ENUMERIC, "value %d", (int)i);
    }
    if (!tp_comm_sum_f64(r->m, r->c, &one, 1) && one != r->size) tp_fail(r->c, TP_EARG, "sum");
    snprintf(k->said[r->rank], sizeof k->said[0], "%s", tp_error(r->c));
    tp_comm_close(r->m, tp_error_status(r->c) ? tp_error(r->c) : NULL);
    free(x);
}

static void run(int ranks, int devices, int broken, tp_transport *(*wrap)(tp_transport *, tp_ctx *),
                const char *says) {
    result k = {{{0}}};
    local_world *w = local_world_new(ranks);
    machine.devices = devices;
    machine.broken_rank = broken;
    machine.faults[0] = 0;
    local_wrap(w, wrap);
    local_run(w, 20, allreduce, &k);
    for (int r = 0; r < ranks; r++)
        if (*says ? !strstr(k.said[r], says) : *k.said[r])
            fail_msg("rank %d says \"%s\", not \"%s\"", r, k.said[r], says);
    assert_string_equal(machine.faults, "");
    assert_int_equal(machine.comms, 0);
    assert_int_equal(machine.buffers, 0);
    for (int i = 0; i < MAXRANKS; i++) /* what a failure has left in the mail */
        for (int j = 0; j < MAXRANKS; j++)
            while (machine.in_mail[i][j]) free(machine.mail[i][j][--machine.in_mail[i][j]].data);
    local_world_free(w);
}

static void test_sums(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 8; ranks *= 2) run(ranks, 8, -1, over_nccl, "");
}
static void test_refusals(void **state) {
    (void)state;
    run(4, 3, -1, over_nccl, "NCCL: rank 0 (host0): 4 ranks share 3 GPUs, but each needs its own");
    run(4, 4, -1, without_library, "NCCL: rank 1 (host1): libnccl cannot be loaded");
}
/* The link breaks after opening: everybody hears of it, and nobody hangs in the middle of a swap.
 */
static tp_transport *breaks_later(tp_transport *base, tp_ctx *c) {
    tp_transport *t = over_nccl(base, c);
    if (t && t->rank == 1) machine.broken_rank = 1;
    return t;
}
static void test_break(void **state) {
    (void)state;
    run(4, 8, -1, breaks_later, "rank 1 (host1), exchange with rank ");
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sums), cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_break)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
