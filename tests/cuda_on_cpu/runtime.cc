/* The CUDA runtime's host API on the CPU: errors, launches, copies. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include "streams.h"

/* ---- errors --------------------------------------------------------------------------------- */
static thread_local int pending; /* what cudaGetLastError will say: each thread has its own */
static thread_local char sentence[769];
static thread_local int count;
static thread_local bool fresh = true; /* the next error's sentence is kept */

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
cudaError_t emu_fail(cudaError_t code, const char *text) {
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

/* ---- launches ------------------------------------------------------------------------------- */
struct func_limit {
    const void *func;
    int bytes;
    func_limit *next;
};
static func_limit *limits;
extern "C" cudaError_t cudaFuncSetAttribute(const void *func, cudaFuncAttribute a, int value) {
    emu_guard alone;
    if (a != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > emu_optin()) {
        emu_record(cudaErrorInvalidValue,
                   "cudaFuncSetAttribute: %d bytes of dynamic shared memory, the device has %d",
                   value, emu_optin());
        return cudaErrorInvalidValue;
    }
    func_limit *l = limits;
    while (l && l->func != func) l = l->next;
    if (!l) {
        l = (func_limit *)malloc(sizeof *l);
        if (!l) return emu_fail(cudaErrorMemoryAllocation, "cudaFuncSetAttribute: out of memory");
        *l = func_limit{func, 0, limits};
        limits = l;
    }
    l->bytes = value;
    return cudaSuccess;
}
/* Of static and dynamic shared memory together. */
static size_t both_limit_of(const void *func) {
    for (const func_limit *l = limits; l; l = l->next)
        if (l->func == func) return (size_t)emu_optin();
    return func ? 49152 : (size_t)emu_optin();
}
static int limit_of(const void *func) {
    for (const func_limit *l = limits; l; l = l->next)
        if (l->func == func) return l->bytes > 49152 ? l->bytes : 49152;
    return func ? 49152 : emu_optin();
}
extern "C" cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *func,
                                                                     int threads, size_t smem) {
    (void)func;
    int by_smem = smem ? emu_optin() / (int)(smem + 1024) : 32,
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
                   limit_of(func) < emu_optin()
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
    return emu_submit((cudaStream_t)stream, &d, closure_bytes);
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
        return emu_fail(cudaErrorInvalidMemcpyDirection, "cudaMemcpy: unknown kind");
    if (!check_side(what, "source", d->src, span(d->spitch, d->bytes, d->height), from) ||
        !check_side(what, "destination", d->dst, span(d->dpitch, d->bytes, d->height), to))
        return cudaErrorInvalidValue;
    if (emu_stream_of(s)->capturing)
        for (int side = 0; side < 2; side++) {
            const void *host = side ? d->dst : d->src;
            size_t pitch = side ? d->dpitch : d->spitch, n = span(pitch, d->bytes, d->height);
            if (n && !(side ? to : from) && !emu_is_pinned(host, n)) {
                emu_capture_forbids("a copy that is not from or to pinned memory");
                return cudaErrorStreamCaptureUnsupported;
            }
        }
    d->kind = NODE_COPY;
    return emu_submit(s, d, 0);
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
        return emu_fail(cudaErrorInvalidValue, "cudaMemcpy2DAsync: a pitch is less than the width");
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
    return emu_submit(s, &d, 0);
}
extern "C" cudaError_t cudaMemset(void *p, int value, size_t n) {
    if (emu_capture_forbids("cudaMemset")) return cudaErrorStreamCaptureUnsupported;
    return cudaMemsetAsync(p, value, n, nullptr);
}
