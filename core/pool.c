/* Owns tensor bytes: one reserved address range, handed out best fit, lowest address first.
 *
 * Every decision depends on the sequence of requests and on what is in use, never on what was in
 * use before: what is free at the top is no hole, so a step that leaves nothing behind finds what
 * the first one found. So the second step gets the addresses of the first, META (no range behind
 * it) predicts the peak to the byte, and fragmentation is part of the prediction. Pages are touched
 * once and stay: a steady step has no page fault. */
#include "core/ctx.h"
#include "core/device.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define POISON(p, n) __asan_poison_memory_region(p, n)
#define UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
enum { REDZONE = 64 };
#else
#define POISON(p, n) ((void)0)
#define UNPOISON(p, n) ((void)0)
enum { REDZONE = 0 };
#endif
enum { ALIGN = 64, HUGE_PAGE = 2 << 20 };

typedef struct span {
    size_t at, bytes;
} span;
struct tp_pool {
    char *map, *base;          /* base: map rounded up to a huge page, so that THP can serve it */
    const tp_backend *backend; /* whose range it is; NULL: this process's */
    bool poison;               /* addresses are this process's, for AddressSanitizer */
    size_t map_bytes, limit, used;
    size_t top, peak; /* everything from top on is free; peak: the highest top ever */
    span *hole;       /* free spans below top, by address, never adjacent to each other or to top */
    size_t nhole, cap_hole;
};

static size_t machine_memory(void) {
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages <= 0 || page <= 0) return (size_t)4 << 30;
    return (size_t)pages * (size_t)page;
}

static bool reserve(tp_ctx *c, tp_pool *p) {
    if (c->backend) {
        p->base = c->backend->reserve(c, &p->limit);
        p->poison = p->base && c->backend->poison;
        if (p->poison) POISON(p->base, p->limit);
        return p->base != NULL;
    }
    p->poison = true;
    if (!p->limit) p->limit = machine_memory();
    /* NORESERVE: address space, not memory. A tight RLIMIT_AS is met by asking for less, and a
     * quarter of what fits is given back: the process needs room for all else. */
    size_t want = p->limit < SIZE_MAX / 4 ? p->limit : SIZE_MAX / 4;
    for (; want >= (1u << 20); want /= 2) {
        size_t mine = (want + 2 * HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
        size_t other = want / 3 / HUGE_PAGE * HUGE_PAGE;
        char *m = mmap(NULL, mine + other, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (m == MAP_FAILED) continue;
        if (other) munmap(m + mine, other);
        p->map = m;
        p->map_bytes = mine;
        p->limit = want;
        size_t off = (size_t)(uintptr_t)m % HUGE_PAGE;
        p->base = p->map + (off ? HUGE_PAGE - off : 0);
#if defined(MADV_HUGEPAGE)
        madvise(p->base, want, MADV_HUGEPAGE); /* a hint: refusal costs speed only */
#endif
        return true;
    }
    return false;
}

tp_pool *tp_pool_new(tp_ctx *c, size_t limit) {
    tp_pool *p = tp_calloc(c, 1, sizeof *p);
    if (!p) return NULL;
    p->limit = limit & ~(size_t)(ALIGN - 1);
    p->backend = c->backend;
    if (c->meta && !p->limit) p->limit = machine_memory();
    if (!c->meta && !reserve(c, p)) {
        tp_free(p);
        tp_fail(c, TP_ENOMEM, "cannot reserve %zu bytes of address space", limit);
        return NULL;
    }
    return p;
}

void tp_pool_free(tp_ctx *c, tp_pool *p) {
    if (!p) return;
    if (p->backend && p->base) {
        if (p->poison) UNPOISON(p->base, p->limit);
        p->backend->release(c, p->base);
    } else if (p->map) {
        UNPOISON(p->base, p->peak);
        munmap(p->map, p->map_bytes);
    }
    tp_free(p->hole);
    tp_free(p);
}

static size_t rounded(size_t bytes) {
    return ((bytes + ALIGN - 1) & ~(size_t)(ALIGN - 1)) + REDZONE;
}

static tp_status no_memory(tp_ctx *c, size_t bytes) {
    const tp_pool *p = c->pool;
    return tp_fail(c, TP_ENOMEM,
                   "out of memory: %.1f MB wanted, %.1f MB of %.1f MB in use "
                   "(a smaller train.batch, more train.micro_batches or "
                   "model.activation_checkpointing lower the need)",
                   (double)bytes / 1e6, (double)p->used / 1e6, (double)p->limit / 1e6);
}

tp_status tp_pool_take(tp_ctx *c, size_t bytes, size_t *at, void **mem) {
    tp_pool *p = c->pool;
    if (bytes > p->limit || tp_alloc_fails(c)) return no_memory(c, bytes);
    size_t want = rounded(bytes), best = p->nhole;
    for (size_t i = 0; i < p->nhole; i++)
        if (p->hole[i].bytes >= want &&
            (best == p->nhole || p->hole[i].bytes < p->hole[best].bytes))
            best = i;
    if (best < p->nhole) {
        span *h = &p->hole[best];
        *at = h->at;
        h->at += want;
        h->bytes -= want;
        if (!h->bytes) memmove(h, h + 1, (--p->nhole - best) * sizeof *h);
    } else {
        if (want > p->limit - p->top) return no_memory(c, bytes);
        *at = p->top;
        p->top += want;
        if (p->top > p->peak) p->peak = p->top;
    }
    p->used += want;
    *mem = p->base ? p->base + *at : NULL;
    if (p->poison) UNPOISON(p->base + *at, want - REDZONE);
#if defined(TP_POISON)
    if (p->base && !p->backend)
        memset(*mem, 0xff, want - REDZONE); /* NaN: reading what nobody wrote shows */
#endif
    /* where it costs next to nothing, so does what a device's kernel reads and nobody wrote */
    if (p->base && p->backend && p->backend->poison)
        return p->backend->fill(c, *mem, 0xff, want - REDZONE);
    return TP_OK;
}

void tp_pool_give(tp_ctx *c, size_t at, size_t bytes) {
    tp_pool *p = c->pool;
    size_t want = rounded(bytes), i = p->nhole;
    if (p->backend) p->backend->send(c); /* it may read these bytes */
    p->used -= want;
#if defined(TP_POISON)
    if (p->base && !p->backend) memset(p->base + at, 0xff, want - REDZONE);
#endif
    if (p->poison) POISON(p->base + at, want);
    if (at + want == p->top) { /* the top comes down, over a hole that ends there too */
        p->top = at;
        if (i && p->hole[i - 1].at + p->hole[i - 1].bytes == at) p->top = p->hole[--p->nhole].at;
        return;
    }
    while (i && p->hole[i - 1].at > at) i--;
    bool left = i && p->hole[i - 1].at + p->hole[i - 1].bytes == at;
    bool right = i < p->nhole && at + want == p->hole[i].at;
    if (left && right) {
        p->hole[i - 1].bytes += want + p->hole[i].bytes;
        memmove(&p->hole[i], &p->hole[i + 1], (--p->nhole - i) * sizeof *p->hole);
    } else if (left) {
        p->hole[i - 1].bytes += want;
    } else if (right) {
        p->hole[i].at = at;
        p->hole[i].bytes += want;
    } else {
        if (p->nhole == p->cap_hole) {
            /* Failing here would leak a span inside the range, harmless; so no failure is raised.
             */
            size_t cap = p->cap_hole ? 2 * p->cap_hole : 256;
            span *grown = realloc(p->hole, cap * sizeof *grown);
            c->sys_allocs++;
            if (!grown) return;
            p->hole = grown;
            p->cap_hole = cap;
        }
        memmove(&p->hole[i + 1], &p->hole[i], (p->nhole++ - i) * sizeof *p->hole);
        p->hole[i] = (span){at, want};
    }
}

size_t tp_memory_used(const tp_ctx *c) { return c->pool->used; }
size_t tp_memory_peak(const tp_ctx *c) { return c->pool->peak; }
size_t tp_pool_limit(const tp_ctx *c) { return c->pool->limit; }
void tp_pool_forget_peak(tp_ctx *c) { c->pool->peak = c->pool->top; }
