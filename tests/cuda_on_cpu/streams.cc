/* Streams, events and graphs of the CUDA runtime's host API. Everything is done at once, unless the
 * policy of the streams is to do it late; a capturing stream records it instead. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "streams.h"

static CUstream_st default_stream, *streams = &default_stream;
static CUevent_st *events;
static CUstream_st *capture; /* the one stream that captures, or NULL */
CUstream_st *emu_stream_of(cudaStream_t s) { return s ? s : &default_stream; }
/* What may wait, or ask for what has not run, is unsafe for the thread that captures. */
bool emu_capture_forbids(const char *what) {
    if (!capture) return false;
    capture->invalid = true;
    emu_record(cudaErrorStreamCaptureUnsupported, "%s while a stream captures", what);
    return true;
}

static bool reach(cudaEvent_t e, long long ticket);
static bool is(const CUevent_st *e) {
    for (const CUevent_st *x = events; x; x = x->next)
        if (x == e) return true;
    return false;
}
static bool is(const CUstream_st *s) {
    for (const CUstream_st *x = streams; x; x = x->next)
        if (x == s) return true;
    return false;
}

static bool perform(const node *d) {
    if (d->kind == NODE_RECORD || d->kind == NODE_WAIT) {
        if (!is(d->event)) return true; /* destroyed since: what it stood for is done */
        if (d->kind == NODE_WAIT) return reach(d->event, d->ticket);
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        d->event->at = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
        d->event->done = d->ticket;
        return true;
    }
    if (d->kind == NODE_LAUNCH)
        return emu_run_grid(d->name, d->grid, d->block, d->smem_bytes, d->shared_limit, d->call,
                            d->closure);
    emu_device_open();
    for (size_t r = 0; r < d->height; r++) {
        char *to = (char *)d->dst + r * d->dpitch;
        if (d->kind == NODE_FILL)
            memset(to, d->value, d->bytes);
        else
            memcpy(to, (const char *)d->src + r * d->spitch, d->bytes);
    }
    emu_device_close();
    return true;
}
static void free_nodes(CUgraph_st *g) {
    while (g->first) {
        node *d = g->first;
        g->first = d->next;
        free(d->closure);
        free(d);
    }
    g->last = nullptr;
    g->n = 0;
}
/* Appends a copy of d, with closure_bytes of its closure. */
static bool append(CUgraph_st *g, const node *d, size_t closure_bytes) {
    node *n = (node *)malloc(sizeof *n);
    void *closure = nullptr; /* aligned for a tensor map among the arguments */
    if (!n || posix_memalign(&closure, 128, closure_bytes ? closure_bytes : 1) != 0) {
        free(n);
        return false;
    }
    *n = *d;
    n->next = nullptr;
    n->closure = closure;
    n->bytes = d->kind == NODE_LAUNCH ? closure_bytes : d->bytes;
    if (closure_bytes) memcpy(closure, d->closure, closure_bytes);
    if (g->last)
        g->last->next = n;
    else
        g->first = n;
    g->last = n;
    g->n++;
    return true;
}

/* ---- later ----------------------------------------------------------------------------------- */
/* A GPU does what it was asked for some time later, each stream for itself, in an order among the
 * streams that only events settle. Policy "late" is as late as that may be: a stream goes on when
 * somebody waits for it, host or other stream, or has asked the same event a few times. */
enum { QUERIES = 3 };
static bool late, late_set;
extern "C" bool emu_set_streams(const char *policy) {
    late_set = true;
    if (!policy) policy = getenv("TAPIR_EMU_STREAMS");
    late = policy && !strcmp(policy, "late");
    return !policy || late || !strcmp(policy, "at once");
}

static bool do_first(CUstream_st *s) {
    node *d = s->later.first;
    s->later.first = d->next;
    if (!s->later.first) s->later.last = nullptr;
    s->later.n--;
    bool ok = perform(d);
    free(d->closure);
    free(d);
    return ok;
}
static bool settle(CUstream_st *s) {
    bool ok = true;
    while (ok && s->later.first) ok = do_first(s);
    return ok;
}
void emu_settle(void) {
    for (CUstream_st *s = streams; s; s = s->next) settle(s);
}
/* Until the event's recording is done. */
static bool reach(cudaEvent_t e, long long ticket) {
    bool ok = true;
    while (ok && e->done < ticket && is(e->on) && e->on->later.first) ok = do_first(e->on);
    return ok;
}
/* The host's side of a copy must be pinned to be left for later: else CUDA takes it at once, too.
 */
static bool may_wait(const node *d) {
    if (d->kind != NODE_COPY || !d->height) return true;
    size_t to = (d->height - 1) * d->dpitch + d->bytes,
           from = (d->height - 1) * d->spitch + d->bytes;
    return (emu_is_device(d->dst) || emu_is_pinned(d->dst, to)) &&
           (emu_is_device(d->src) || emu_is_pinned(d->src, from));
}
bool emu_copy_under_way(const void *p, size_t bytes) {
    const char *lo = (const char *)p, *hi = lo + bytes;
    for (const CUstream_st *s = streams; s; s = s->next)
        for (const node *d = s->later.first; d; d = d->next)
            if (d->kind == NODE_COPY && d->height && /* rows of pinned memory lie in one piece */
                (((const char *)d->dst >= lo && (const char *)d->dst < hi) ||
                 ((const char *)d->src >= lo && (const char *)d->src < hi)))
                return true;
    return false;
}

cudaError_t emu_submit(cudaStream_t stream, const node *d, size_t closure_bytes) {
    emu_guard alone;
    if (int before = cudaPeekAtLastError()) /* nothing runs after a failure nobody looked at */
        return (cudaError_t)before;
    if (!late_set) emu_set_streams(nullptr);
    CUstream_st *s = emu_stream_of(stream);
    if (!is(s)) return emu_fail(cudaErrorInvalidResourceHandle, "work for a stream that is gone");
    if (s->capturing || (late && may_wait(d))) {
        if (append(s->capturing ? s->capturing : &s->later, d, closure_bytes)) return cudaSuccess;
        return emu_fail(cudaErrorMemoryAllocation, "work for a stream: out of memory");
    }
    return settle(s) && perform(d) ? cudaSuccess : cudaPeekAtLastError();
}

/* ---- streams and events --------------------------------------------------------------------- */
extern "C" cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) {
    emu_guard alone;
    (void)flags;
    *s = (cudaStream_t)calloc(1, sizeof **s);
    if (!*s) return emu_fail(cudaErrorMemoryAllocation, "cudaStreamCreate: out of memory");
    (*s)->next = streams;
    streams = *s;
    return cudaSuccess;
}
extern "C" cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithFlags(s, 0); }
extern "C" cudaError_t cudaStreamDestroy(cudaStream_t s) {
    emu_guard alone;
    if (!s || !is(s))
        return emu_fail(cudaErrorInvalidResourceHandle, "cudaStreamDestroy of no stream");
    settle(s);
    free_nodes(&s->later);
    if (s->capturing) {
        free_nodes(s->capturing);
        free(s->capturing);
        capture = nullptr;
    }
    CUstream_st **at = &streams;
    while (*at != s) at = &(*at)->next;
    *at = s->next;
    free(s);
    return cudaSuccess;
}
/* Waiting for a stream that captures is a mistake, and ends the capture. */
static cudaError_t wait_for(CUstream_st *s) {
    emu_guard alone;
    if (s && s->capturing) {
        s->invalid = true;
        return emu_fail(cudaErrorStreamCaptureUnsupported, "a wait for a stream that captures");
    }
    if (s && !is(s)) return emu_fail(cudaErrorInvalidResourceHandle, "a wait for no stream");
    if (s) settle(s);
    return cudaPeekAtLastError();
}
extern "C" cudaError_t cudaStreamSynchronize(cudaStream_t s) { return wait_for(emu_stream_of(s)); }
extern "C" cudaError_t cudaStreamQuery(cudaStream_t s) { return wait_for(emu_stream_of(s)); }
extern "C" cudaError_t cudaDeviceSynchronize(void) {
    emu_guard alone;
    emu_settle();
    return wait_for(capture);
}
extern "C" cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) {
    emu_guard alone;
    (void)flags;
    if (!is(e)) return emu_fail(cudaErrorInvalidResourceHandle, "cudaStreamWaitEvent: no event");
    if (!e->recorded || emu_stream_of(s)->capturing) return cudaSuccess;
    node d = {};
    d.kind = NODE_WAIT, d.event = e, d.ticket = e->asked;
    return emu_submit(s, &d, 0);
}
extern "C" cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) {
    emu_guard alone;
    *e = (cudaEvent_t)calloc(1, sizeof **e);
    if (!*e) return emu_fail(cudaErrorMemoryAllocation, "cudaEventCreate: out of memory");
    (*e)->timed = !(flags & cudaEventDisableTiming);
    (*e)->next = events;
    events = *e;
    return cudaSuccess;
}
extern "C" cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
extern "C" cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    emu_guard alone;
    if (!is(e)) return emu_fail(cudaErrorInvalidResourceHandle, "cudaEventRecord: no event");
    if (emu_stream_of(s)->capturing) return cudaSuccess;
    e->recorded = true;
    e->on = emu_stream_of(s);
    e->queries = 0;
    node d = {};
    d.kind = NODE_RECORD, d.event = e, d.ticket = ++e->asked;
    return emu_submit(s, &d, 0);
}
extern "C" cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    emu_guard alone;
    if (emu_capture_forbids("a wait for an event")) return cudaErrorStreamCaptureUnsupported;
    if (!is(e)) return emu_fail(cudaErrorInvalidResourceHandle, "cudaEventSynchronize: no event");
    reach(e, e->asked);
    return cudaPeekAtLastError();
}
extern "C" cudaError_t cudaEventQuery(cudaEvent_t e) {
    emu_guard alone;
    if (emu_capture_forbids("a wait for an event")) return cudaErrorStreamCaptureUnsupported;
    if (!is(e)) return emu_fail(cudaErrorInvalidResourceHandle, "cudaEventQuery: no event");
    if (e->done < e->asked && e->queries++ < QUERIES) /* CUDA keeps that as the last error */
        return emu_fail(cudaErrorNotReady, "not ready");
    return cudaEventSynchronize(e);
}
extern "C" cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
    emu_guard alone;
    if (!is(a) || !is(b) || !a->recorded || !b->recorded || !a->timed || !b->timed)
        return emu_fail(cudaErrorInvalidResourceHandle,
                        "cudaEventElapsedTime: an event was not recorded, or keeps no time");
    *ms = (float)(1e3 * (b->at - a->at));
    return cudaSuccess;
}
extern "C" cudaError_t cudaEventDestroy(cudaEvent_t e) {
    emu_guard alone;
    if (!is(e)) return emu_fail(cudaErrorInvalidResourceHandle, "cudaEventDestroy of no event");
    reach(e, e->asked);
    CUevent_st **at = &events;
    while (*at != e) at = &(*at)->next;
    *at = e->next;
    free(e);
    return cudaSuccess;
}

/* ---- graphs --------------------------------------------------------------------------------- */
extern "C" cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode) {
    (void)mode;
    if (!s) return emu_fail(cudaErrorStreamCaptureUnsupported, "the default stream cannot capture");
    if (capture) return emu_fail(cudaErrorStreamCaptureUnsupported, "a stream captures already");
    s->capturing = (CUgraph_st *)calloc(1, sizeof *s->capturing);
    if (!s->capturing) return emu_fail(cudaErrorMemoryAllocation, "graph capture: out of memory");
    s->invalid = false;
    capture = s;
    return cudaSuccess;
}
extern "C" cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) {
    *g = nullptr;
    if (!s || !s->capturing)
        return emu_fail(cudaErrorInvalidValue, "cudaStreamEndCapture: none began");
    capture = nullptr;
    CUgraph_st *made = s->capturing;
    s->capturing = nullptr;
    if (s->invalid) {
        free_nodes(made);
        free(made);
        return emu_fail(cudaErrorStreamCaptureInvalidated, "the capture was broken off by a wait");
    }
    *g = made;
    return cudaSuccess;
}
extern "C" cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus *status) {
    const CUstream_st *is = emu_stream_of(s);
    *status = !is->capturing ? cudaStreamCaptureStatusNone
              : is->invalid  ? cudaStreamCaptureStatusInvalidated
                             : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
extern "C" cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g,
                                            unsigned long long f) {
    (void)f;
    *x = (cudaGraphExec_t)calloc(1, sizeof **x);
    bool ok = *x != nullptr;
    for (const node *d = g ? g->first : nullptr; ok && d; d = d->next)
        ok = append(&(*x)->graph, d, d->kind == NODE_LAUNCH ? d->bytes : 0);
    if (ok) return cudaSuccess;
    if (*x) free_nodes(&(*x)->graph);
    free(*x);
    *x = nullptr;
    return emu_fail(cudaErrorMemoryAllocation, "cudaGraphInstantiate: out of memory");
}
extern "C" cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s) {
    if (!x) return emu_fail(cudaErrorInvalidValue, "cudaGraphLaunch of no graph");
    for (const node *d = x->graph.first; d; d = d->next) {
        cudaError_t e = emu_submit(s, d, d->kind == NODE_LAUNCH ? d->bytes : 0);
        if (e) return e;
    }
    return cudaSuccess;
}
extern "C" cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n) {
    if (nodes)
        return emu_fail(cudaErrorInvalidValue, "cudaGraphGetNodes: only the count is emulated");
    *n = g->n;
    return cudaSuccess;
}
extern "C" cudaError_t cudaGraphDestroy(cudaGraph_t g) {
    if (g) free_nodes(g);
    free(g);
    return cudaSuccess;
}
extern "C" cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x) {
    if (x) free_nodes(&x->graph);
    free(x);
    return cudaSuccess;
}
