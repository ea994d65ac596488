/* Device memory on the CPU: one reserved range of addresses that the host may not touch. A kernel,
 * a copy or a fill opens it while it runs, so host code that follows a device pointer dies at once.
 * First fit from a fixed address, so addresses repeat from run to run. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "internal.h"
#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#else
#define __asan_poison_memory_region(p, n) ((void)(p), (void)(n))
#define __asan_unpoison_memory_region(p, n) ((void)(p), (void)(n))
#endif

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
emu_guard::emu_guard() { pthread_mutex_lock(&lock); }
emu_guard::~emu_guard() { pthread_mutex_unlock(&lock); }

static const size_t RANGE = (size_t)16 << 30, TOTAL = (size_t)8 << 30; /* addresses; memory told */
/* Of an allocation, FILL bytes at most are filled with NaN, and KEEP stay mapped when it is freed.
 */
static const size_t ALIGN = 256, GAP = 256, FILL = 1 << 20, KEEP = 16 << 20;
static const size_t HUGE_PAGE = 2 << 20;
struct allocation { /* sorted by address */
    size_t at, bytes;
};
static allocation *allocs;
static size_t nallocs, allocs_room, used_bytes;
static size_t high; /* whole huge pages from the range's start that were ever in use */
static unsigned char *range;
static int opened;

static void protect(bool open) {
    if (high) mprotect(range, high, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}
void emu_device_open(void) {
    if (opened++ == 0 && range) protect(true);
}
void emu_device_close(void) {
    if (--opened == 0 && range) protect(false);
}

static bool reserve(void) {
    if (range) return true;
    void *m = mmap((void *)0x200000000000, RANGE, PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m == MAP_FAILED) return false;
    range = (unsigned char *)m;
    madvise(range, RANGE, MADV_HUGEPAGE); /* few pages to open and close */
    return true;
}

bool emu_is_device(const void *p) {
    const unsigned char *c = (const unsigned char *)p;
    return range && c >= range && c < range + RANGE;
}
bool emu_device_offset(const void *p, size_t *at) {
    if (!emu_is_device(p)) return false;
    *at = (size_t)((const unsigned char *)p - range);
    return true;
}
size_t emu_device_space(void) { return RANGE; }
/* The last allocation that begins at or before `at`; -1: none. */
static long find(size_t at) {
    long lo = 0, hi = (long)nallocs;
    while (lo < hi) {
        long mid = (lo + hi) / 2;
        if (allocs[mid].at <= at)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo - 1;
}
bool emu_device_range(const void *p, size_t bytes) {
    emu_guard alone;
    if (!emu_is_device(p)) return false;
    size_t at = (size_t)((const unsigned char *)p - range);
    long i = find(at);
    return i >= 0 && at + bytes <= allocs[i].at + allocs[i].bytes;
}

extern "C" cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    emu_guard alone;
    *free_bytes = TOTAL - used_bytes;
    *total_bytes = TOTAL;
    return cudaSuccess;
}

extern "C" cudaError_t cudaMalloc(void **p, size_t bytes) {
    emu_guard alone;
    *p = nullptr;
    if (emu_capture_forbids("cudaMalloc")) return cudaErrorStreamCaptureUnsupported;
    if (bytes == 0) return cudaSuccess;
    size_t room = (bytes + ALIGN - 1) / ALIGN * ALIGN + GAP, at = 0, i = 0;
    if (bytes > TOTAL - used_bytes || !reserve()) {
        emu_record(cudaErrorMemoryAllocation, "cudaMalloc of %zu bytes: out of memory", bytes);
        return cudaErrorMemoryAllocation;
    }
    for (; i < nallocs && allocs[i].at < at + room; i++)
        at = (allocs[i].at + allocs[i].bytes + ALIGN - 1) / ALIGN * ALIGN + GAP;
    if (nallocs == allocs_room) {
        size_t more = allocs_room ? 2 * allocs_room : 64;
        allocation *a = (allocation *)realloc(allocs, more * sizeof *a);
        if (a) allocs = a, allocs_room = more;
    }
    if (at + room > RANGE || nallocs == allocs_room) {
        emu_record(cudaErrorMemoryAllocation, "cudaMalloc of %zu bytes: no room", bytes);
        return cudaErrorMemoryAllocation;
    }
    memmove(&allocs[i + 1], &allocs[i], (nallocs - i) * sizeof *allocs);
    allocs[i] = allocation{at, bytes};
    nallocs++;
    used_bytes += bytes;
    size_t to = (at + room + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    __asan_poison_memory_region(range + at + bytes, room - bytes); /* the gap behind it */
    if (to > high) { /* beyond `to`, nothing is mapped */
        __asan_poison_memory_region(range + at + room, to - at - room);
        high = to;
    }
    __asan_unpoison_memory_region(range + at, bytes);
    emu_device_open(); /* what is not written yet is NaN */
    memset(range + at, 0xff, bytes <= FILL ? bytes : FILL);
    emu_device_close();
    *p = range + at;
    return cudaSuccess;
}

extern "C" cudaError_t cudaFree(void *p) {
    emu_guard alone;
    if (!p) return cudaSuccess;
    if (emu_capture_forbids("cudaFree")) return cudaErrorStreamCaptureUnsupported;
    emu_settle(); /* as CUDA waits for all that may use it */
    long i = emu_is_device(p) ? find((size_t)((unsigned char *)p - range)) : -1;
    if (i < 0 || range + allocs[i].at != p) {
        emu_record(cudaErrorInvalidValue, "cudaFree of %p, which cudaMalloc did not give", p);
        return cudaErrorInvalidValue;
    }
    size_t bytes = allocs[i].bytes;
    __asan_poison_memory_region(p, bytes <= FILL ? bytes : FILL);
    used_bytes -= bytes;
    nallocs--;
    memmove(&allocs[i], &allocs[i + 1], (nallocs - (size_t)i) * sizeof *allocs);
    if (bytes > KEEP) { /* pages go back to the system, but for what the next owner will fill */
        size_t page = (size_t)sysconf(_SC_PAGESIZE), at = (size_t)((unsigned char *)p - range);
        size_t from = (at + KEEP + page - 1) / page * page, to = (at + bytes) / page * page;
        if (from < to) madvise(range + from, to - from, MADV_DONTNEED);
    }
    return cudaSuccess;
}

/* ---- pinned host memory --------------------------------------------------------------------- */
struct pinned {
    unsigned char *p;
    size_t bytes;
    pinned *next;
};
static pinned *pins;
extern "C" cudaError_t cudaMallocHost(void **p, size_t bytes) {
    emu_guard alone;
    *p = nullptr;
    if (emu_capture_forbids("cudaMallocHost")) return cudaErrorStreamCaptureUnsupported;
    pinned *n = (pinned *)malloc(sizeof *n);
    if (!n || posix_memalign(p, 256, bytes ? bytes : 1) != 0) {
        free(n);
        emu_record(cudaErrorMemoryAllocation, "cudaMallocHost of %zu bytes: out of memory", bytes);
        return cudaErrorMemoryAllocation;
    }
    *n = pinned{(unsigned char *)*p, bytes, pins};
    pins = n;
    return cudaSuccess;
}
extern "C" cudaError_t cudaFreeHost(void *p) {
    emu_guard alone;
    if (!p) return cudaSuccess;
    if (emu_capture_forbids("cudaFreeHost")) return cudaErrorStreamCaptureUnsupported;
    for (pinned **at = &pins; *at; at = &(*at)->next) {
        if ((*at)->p != p) continue;
        pinned *gone = *at;
        if (emu_copy_under_way(p, gone->bytes)) {
            emu_record(cudaErrorInvalidValue, "cudaFreeHost of %p while a copy is under way", p);
            return cudaErrorInvalidValue;
        }
        *at = gone->next;
        free(gone->p);
        free(gone);
        return cudaSuccess;
    }
    emu_record(cudaErrorInvalidValue, "cudaFreeHost of %p, which cudaMallocHost did not give", p);
    return cudaErrorInvalidValue;
}
bool emu_is_pinned(const void *p, size_t bytes) {
    emu_guard alone;
    const unsigned char *c = (const unsigned char *)p;
    for (const pinned *n = pins; n; n = n->next)
        if (c >= n->p && c + bytes <= n->p + n->bytes) return true;
    return false;
}
