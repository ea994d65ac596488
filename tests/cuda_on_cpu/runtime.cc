/* The CUDA runtime's host API on the CPU: errors, device properties, copies, streams, events, graph
 * capture, launches. Everything is done at once; a capturing stream records it instead. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "internal.h"

/* ---- errors --------------------------------------------------------------------------------- */
static int pending; /* what cudaGetLastError will say */
static char sentence[769];
static int count;
static bool fresh = true; /* the next error's sentence is kept */

void emu_record(int code, const char *fmt, ...) {
    if (fresh) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(sentence, sizeof sentence, fmt, ap);
        va_end(ap);
        pending = code;
        count = 0;
        fresh = false;
    }
    count++;
}
static cudaError_t fail(cudaError_t code, const char *text) {
    emu_record(code, "%s", text);
    return code;
}
extern "C" const char *emu_last_error(void) { return sentence; }
extern "C" int emu_error_count(void) { return count; }
extern "C" void emu_clear_error(void) {
    sentence[0] = 0;
    pending = count = 0;
    fresh = true;
}
extern "C" cudaError_t cudaPeekAtLastError(void) { return (cudaError_t)pending; }
extern "C" cudaError_t cudaGetLastError(void) {
    cudaError_t e = (cudaError_t)pending;
    pending = 0;
    fresh = true; /* the sentence stays, until the next error or emu_clear_error */
    return e;
}
extern "C" const char *cudaGetErrorName(cudaError_t e) {
    switch (e) {
    case cudaSuccess:
        return "cudaSuccess";
    case cudaErrorInvalidValue:
        return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
        return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
        return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidMemcpyDirection:
        return "cudaErrorInvalidMemcpyDirection";
    case cudaErrorNoDevice:
        return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
        return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
        return "cudaErrorInvalidResourceHandle";
    case cudaErrorNotReady:
        return "cudaErrorNotReady";
    case cudaErrorLaunchFailure:
        return "cudaErrorLaunchFailure";
    case cudaErrorStreamCaptureUnsupported:
        return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
        return "cudaErrorStreamCaptureInvalidated";
    default:
        return "cudaErrorUnknown";
    }
}
extern "C" const char *cudaGetErrorString(cudaError_t e) {
    if (e == cudaSuccess) return "no error";
    if (e == cudaErrorNotReady) return "not ready";
    return sentence[0] ? sentence : cudaGetErrorName(e);
}

/* ---- the device ----------------------------------------------------------------------------- */
static int sm_set;
extern "C" void emu_set_sm(int sm) { sm_set = sm; }
int emu_sm(void) {
    const char *e = getenv("TAPIR_EMU_SM");
    int sm = sm_set ? sm_set : e ? atoi(e) : 80;
    return sm >= 90 ? 90 : 80;
}
static int optin(void) { return emu_sm() == 90 ? 232448 : 166912; }
static int devices = 1; /* all alike, and only one does anything */
extern "C" void emu_set_devices(int n) { devices = n; }
extern "C" cudaError_t cudaGetDeviceCount(int *n) { return *n = devices, cudaSuccess; }
extern "C" cudaError_t cudaGetDevice(int *d) { return *d = 0, cudaSuccess; }
extern "C" cudaError_t cudaSetDevice(int d) {
    if (d >= 0 && d < devices) return cudaSuccess;
    return fail(cudaErrorInvalidDevice, "there is no such device");
}
extern "C" cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int d) {
    if (d < 0 || d >= devices) return fail(cudaErrorInvalidDevice, "there is no such device");
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "CPU emulation");
    size_t unused;
    cudaMemGetInfo(&unused, &p->totalGlobalMem);
    p->sharedMemPerBlock = 49152;
    p->sharedMemPerBlockOptin = (size_t)optin();
    p->sharedMemPerMultiprocessor = (size_t)optin() + 1024;
    p->major = emu_sm() / 10;
    p->multiProcessorCount = 4;
    p->warpSize = 32;
    p->maxThreadsPerBlock = MAX_THREADS;
    p->maxThreadsPerMultiProcessor = 2048;
    p->regsPerBlock = 65536;
    p->l2CacheSize = 40 << 20;
    p->memoryBusWidth = 5120;
    return cudaSuccess;
}
extern "C" cudaError_t cudaDeviceGetAttribute(int *v, cudaDeviceAttr a, int d) {
    if (d < 0 || d >= devices) return fail(cudaErrorInvalidDevice, "there is no such device");
    switch (a) {
    case cudaDevAttrMaxThreadsPerBlock:
        *v = MAX_THREADS;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *v = 49152;
        break;
    case cudaDevAttrWarpSize:
        *v = 32;
        break;
    case cudaDevAttrMaxRegistersPerBlock:
        *v = 65536;
        break;
    case cudaDevAttrClockRate:
        *v = 1000000;
        break;
    case cudaDevAttrMultiProcessorCount:
        *v = 4;
        break;
    case cudaDevAttrMemoryClockRate:
        *v = 1000000;
        break;
    case cudaDevAttrGlobalMemoryBusWidth:
        *v = 5120;
        break;
    case cudaDevAttrL2CacheSize:
        *v = 40 << 20;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *v = 2048;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *v = emu_sm() / 10;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *v = 0;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *v = optin() + 1024;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *v = optin();
        break;
    default:
        return fail(cudaErrorInvalidValue, "cudaDeviceGetAttribute: not emulated");
    }
    return cudaSuccess;
}
extern "C" cudaError_t cudaDriverGetVersion(int *v) { return *v = CUDART_VERSION, cudaSuccess; }
extern "C" cudaError_t cudaRuntimeGetVersion(int *v) { return *v = CUDART_VERSION, cudaSuccess; }
extern "C" cudaError_t cudaDeviceReset(void) { return cudaSuccess; }

/* ---- what a stream does, now or when its graph is launched ----------------------------------- */
enum node_kind { NODE_LAUNCH, NODE_COPY, NODE_FILL };
struct node {
    node *next;
    node_kind kind;
    const char *name;
    dim3 grid, block;
    size_t smem_bytes, shared_limit;
    void (*call)(const void *);
    void *closure;
    void *dst;
    const void *src;
    size_t bytes, dpitch, spitch, height;
    int value;
};
struct CUgraph_st {
    node *first, *last;
    size_t n;
};
struct CUgraphExec_st {
    CUgraph_st graph;
};
struct CUstream_st {
    CUgraph_st *capturing;
    bool invalid;
};
struct CUevent_st {
    double at; /* seconds */
    bool recorded, timed;
};
static CUstream_st default_stream;
static CUstream_st *capture; /* the one stream that captures, or NULL */
static CUstream_st *stream_of(cudaStream_t s) { return s ? s : &default_stream; }
/* What may wait, or ask for what has not run, is unsafe for the thread that captures. */
bool emu_capture_forbids(const char *what) {
    if (!capture) return false;
    capture->invalid = true;
    emu_record(cudaErrorStreamCaptureUnsupported, "%s while a stream captures", what);
    return true;
}

static bool perform(const node *d) {
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
static cudaError_t submit(cudaStream_t stream, const node *d, size_t closure_bytes) {
    if (pending) return (cudaError_t)pending; /* nothing runs after a failure nobody looked at */
    CUstream_st *s = stream_of(stream);
    if (s->capturing) {
        if (append(s->capturing, d, closure_bytes)) return cudaSuccess;
        return fail(cudaErrorMemoryAllocation, "graph capture: out of memory");
    }
    return perform(d) ? cudaSuccess : (cudaError_t)pending;
}

/* ---- launches ------------------------------------------------------------------------------- */
struct func_limit {
    const void *func;
    int bytes;
    func_limit *next;
};
static func_limit *limits;
extern "C" cudaError_t cudaFuncSetAttribute(const void *func, cudaFuncAttribute a, int value) {
    if (a != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > optin()) {
        emu_record(cudaErrorInvalidValue,
                   "cudaFuncSetAttribute: %d bytes of dynamic shared memory, the device has %d",
                   value, optin());
        return cudaErrorInvalidValue;
    }
    func_limit *l = limits;
    while (l && l->func != func) l = l->next;
    if (!l) {
        l = (func_limit *)malloc(sizeof *l);
        if (!l) return fail(cudaErrorMemoryAllocation, "cudaFuncSetAttribute: out of memory");
        *l = func_limit{func, 0, limits};
        limits = l;
    }
    l->bytes = value;
    return cudaSuccess;
}
/* Of static and dynamic shared memory together. */
static size_t both_limit_of(const void *func) {
    for (const func_limit *l = limits; l; l = l->next)
        if (l->func == func) return (size_t)optin();
    return func ? 49152 : (size_t)optin();
}
static int limit_of(const void *func) {
    for (const func_limit *l = limits; l; l = l->next)
        if (l->func == func) return l->bytes > 49152 ? l->bytes : 49152;
    return func ? 49152 : optin();
}
extern "C" cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *func,
                                                                     int threads, size_t smem) {
    (void)func;
    int by_smem = smem ? optin() / (int)(smem + 1024) : 32,
        by_threads = 2048 / (threads ? threads : 1);
    *blocks = by_smem < by_threads ? by_smem : by_threads;
    return cudaSuccess;
}

extern "C" int emu_launch_closure(const char *name, const void *func, const unsigned g[3],
                                  const unsigned b[3], size_t smem, void *stream,
                                  void (*call)(const void *), const void *closure,
                                  size_t closure_bytes) {
    unsigned long long threads = (unsigned long long)b[0] * b[1] * b[2];
    if (threads == 0 || threads > MAX_THREADS || b[2] > 64 || g[0] == 0 || g[1] == 0 || g[2] == 0 ||
        g[0] > 0x7fffffffu || g[1] > 65535 || g[2] > 65535) {
        emu_record(cudaErrorInvalidConfiguration,
                   "%s: grid (%u,%u,%u) of blocks (%u,%u,%u) cannot run", name, g[0], g[1], g[2],
                   b[0], b[1], b[2]);
        return cudaErrorInvalidConfiguration;
    }
    if (smem > (size_t)limit_of(func)) {
        emu_record(cudaErrorInvalidValue,
                   "%s: %zu bytes of dynamic shared memory, allowed are %d%s", name, smem,
                   limit_of(func),
                   limit_of(func) < optin()
                       ? " (cudaFuncSetAttribute with cudaFuncAttributeMaxDynamicSharedMemorySize)"
                       : "");
        return cudaErrorInvalidValue;
    }
    node d = {};
    d.kind = NODE_LAUNCH;
    d.name = name;
    d.grid = dim3(g[0], g[1], g[2]), d.block = dim3(b[0], b[1], b[2]);
    d.smem_bytes = smem;
    d.shared_limit = both_limit_of(func);
    d.call = call;
    d.closure = (void *)(uintptr_t)closure;
    return submit((cudaStream_t)stream, &d, closure_bytes);
}

/* ---- copies --------------------------------------------------------------------------------- */
static size_t span(size_t pitch, size_t width, size_t height) {
    return height ? (height - 1) * pitch + width : 0;
}
static bool check_side(const char *what, const char *side, const void *p, size_t bytes,
                       bool device) {
    if (bytes == 0) return true;
    if (device && !emu_device_range(p, bytes))
        emu_record(cudaErrorInvalidValue, "%s: the %s, %zu bytes at %p, %s", what, side, bytes, p,
                   emu_is_device(p) ? "is not inside one allocation of device memory"
                                    : "should be device memory and is not");
    else if (!device && emu_is_device(p))
        emu_record(cudaErrorInvalidValue,
                   "%s: the %s at %p should be host memory and is the device's", what, side, p);
    else
        return true;
    return false;
}
static cudaError_t copy(const char *what, node *d, enum cudaMemcpyKind kind, cudaStream_t s) {
    bool from = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    bool to = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    if (kind == cudaMemcpyDefault) from = emu_is_device(d->src), to = emu_is_device(d->dst);
    if ((unsigned)kind > 4)
        return fail(cudaErrorInvalidMemcpyDirection, "cudaMemcpy: unknown kind");
    if (!check_side(what, "source", d->src, span(d->spitch, d->bytes, d->height), from) ||
        !check_side(what, "destination", d->dst, span(d->dpitch, d->bytes, d->height), to))
        return cudaErrorInvalidValue;
    if (stream_of(s)->capturing)
        for (int side = 0; side < 2; side++) {
            const void *host = side ? d->dst : d->src;
            size_t pitch = side ? d->dpitch : d->spitch, n = span(pitch, d->bytes, d->height);
            if (n && !(side ? to : from) && !emu_is_pinned(host, n)) {
                emu_capture_forbids("a copy that is not from or to pinned memory");
                return cudaErrorStreamCaptureUnsupported;
            }
        }
    d->kind = NODE_COPY;
    return submit(s, d, 0);
}
extern "C" cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n, enum cudaMemcpyKind k,
                                       cudaStream_t s) {
    node d = {};
    d.dst = dst, d.src = src, d.bytes = n, d.height = n != 0;
    return copy("cudaMemcpyAsync", &d, k, s);
}
extern "C" cudaError_t cudaMemcpy(void *dst, const void *src, size_t n, enum cudaMemcpyKind k) {
    if (emu_capture_forbids("cudaMemcpy")) return cudaErrorStreamCaptureUnsupported;
    node d = {};
    d.dst = dst, d.src = src, d.bytes = n, d.height = n != 0;
    return copy("cudaMemcpy", &d, k, nullptr);
}
extern "C" cudaError_t cudaMemcpy2DAsync(void *dst, size_t dpitch, const void *src, size_t spitch,
                                         size_t width, size_t height, enum cudaMemcpyKind k,
                                         cudaStream_t s) {
    if (dpitch < width || spitch < width)
        return fail(cudaErrorInvalidValue, "cudaMemcpy2DAsync: a pitch is less than the width");
    node d = {};
    d.dst = dst, d.src = src, d.dpitch = dpitch, d.spitch = spitch, d.bytes = width;
    d.height = width ? height : 0;
    return copy("cudaMemcpy2DAsync", &d, k, s);
}
extern "C" cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s) {
    if (!check_side("cudaMemset", "destination", p, n, true)) return cudaErrorInvalidValue;
    node d = {};
    d.kind = NODE_FILL;
    d.dst = p, d.value = value, d.bytes = n, d.height = n != 0;
    return submit(s, &d, 0);
}
extern "C" cudaError_t cudaMemset(void *p, int value, size_t n) {
    if (emu_capture_forbids("cudaMemset")) return cudaErrorStreamCaptureUnsupported;
    return cudaMemsetAsync(p, value, n, nullptr);
}

/* ---- streams and events --------------------------------------------------------------------- */
extern "C" cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) {
    (void)flags;
    *s = (cudaStream_t)calloc(1, sizeof **s);
    return *s ? cudaSuccess : fail(cudaErrorMemoryAllocation, "cudaStreamCreate: out of memory");
}
extern "C" cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithFlags(s, 0); }
extern "C" cudaError_t cudaStreamDestroy(cudaStream_t s) {
    if (!s) return fail(cudaErrorInvalidResourceHandle, "cudaStreamDestroy of no stream");
    if (s->capturing) {
        free_nodes(s->capturing);
        free(s->capturing);
        capture = nullptr;
    }
    free(s);
    return cudaSuccess;
}
/* Waiting for a stream that captures is a mistake, and ends the capture. */
static cudaError_t wait_for(CUstream_st *s) {
    if (s && s->capturing) {
        s->invalid = true;
        return fail(cudaErrorStreamCaptureUnsupported, "a wait for a stream that captures");
    }
    return (cudaError_t)pending;
}
extern "C" cudaError_t cudaStreamSynchronize(cudaStream_t s) { return wait_for(stream_of(s)); }
extern "C" cudaError_t cudaStreamQuery(cudaStream_t s) { return wait_for(stream_of(s)); }
extern "C" cudaError_t cudaDeviceSynchronize(void) { return wait_for(capture); }
extern "C" cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) {
    (void)s, (void)flags;
    return e ? cudaSuccess : fail(cudaErrorInvalidResourceHandle, "cudaStreamWaitEvent: no event");
}
extern "C" cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) {
    *e = (cudaEvent_t)calloc(1, sizeof **e);
    if (!*e) return fail(cudaErrorMemoryAllocation, "cudaEventCreate: out of memory");
    (*e)->timed = !(flags & cudaEventDisableTiming);
    return cudaSuccess;
}
extern "C" cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
extern "C" cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    if (!e) return fail(cudaErrorInvalidResourceHandle, "cudaEventRecord: no event");
    if (stream_of(s)->capturing) return cudaSuccess;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    e->at = (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
    e->recorded = true;
    return cudaSuccess;
}
extern "C" cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    if (emu_capture_forbids("a wait for an event")) return cudaErrorStreamCaptureUnsupported;
    return e ? (cudaError_t)pending
             : fail(cudaErrorInvalidResourceHandle, "cudaEventSynchronize: no event");
}
extern "C" cudaError_t cudaEventQuery(cudaEvent_t e) { return cudaEventSynchronize(e); }
extern "C" cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
    if (!a || !b || !a->recorded || !b->recorded || !a->timed || !b->timed)
        return fail(cudaErrorInvalidResourceHandle,
                    "cudaEventElapsedTime: an event was not recorded, or keeps no time");
    *ms = (float)(1e3 * (b->at - a->at));
    return cudaSuccess;
}
extern "C" cudaError_t cudaEventDestroy(cudaEvent_t e) {
    if (!e) return fail(cudaErrorInvalidResourceHandle, "cudaEventDestroy of no event");
    free(e);
    return cudaSuccess;
}

/* ---- graphs --------------------------------------------------------------------------------- */
extern "C" cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode) {
    (void)mode;
    if (!s) return fail(cudaErrorStreamCaptureUnsupported, "the default stream cannot capture");
    if (capture) return fail(cudaErrorStreamCaptureUnsupported, "a stream captures already");
    s->capturing = (CUgraph_st *)calloc(1, sizeof *s->capturing);
    if (!s->capturing) return fail(cudaErrorMemoryAllocation, "graph capture: out of memory");
    s->invalid = false;
    capture = s;
    return cudaSuccess;
}
extern "C" cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) {
    *g = nullptr;
    if (!s || !s->capturing) return fail(cudaErrorInvalidValue, "cudaStreamEndCapture: none began");
    capture = nullptr;
    CUgraph_st *made = s->capturing;
    s->capturing = nullptr;
    if (s->invalid) {
        free_nodes(made);
        free(made);
        return fail(cudaErrorStreamCaptureInvalidated, "the capture was broken off by a wait");
    }
    *g = made;
    return cudaSuccess;
}
extern "C" cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus *status) {
    const CUstream_st *is = stream_of(s);
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
    return fail(cudaErrorMemoryAllocation, "cudaGraphInstantiate: out of memory");
}
extern "C" cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s) {
    if (!x) return fail(cudaErrorInvalidValue, "cudaGraphLaunch of no graph");
    for (const node *d = x->graph.first; d; d = d->next) {
        cudaError_t e = submit(s, d, d->kind == NODE_LAUNCH ? d->bytes : 0);
        if (e) return e;
    }
    return cudaSuccess;
}
extern "C" cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n) {
    if (nodes) return fail(cudaErrorInvalidValue, "cudaGraphGetNodes: only the count is emulated");
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
