/* Owns host memory: the counted heap and the arenas for headers, attributes and nodes. */
#include "core/arena.h"
#include "core/ctx.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool tp_alloc_fails(tp_ctx *c) { return c && c->fail_alloc_at > 0 && --c->fail_alloc_at == 0; }

static void *counted(tp_ctx *c, void *old, size_t bytes) {
    if (tp_alloc_fails(c)) {
        tp_fail(c, TP_ENOMEM, "out of memory: %zu bytes refused", bytes);
        return NULL;
    }
    void *p = realloc(old, bytes ? bytes : 1);
    if (c) c->sys_allocs++;
    if (!p) tp_fail(c, TP_ENOMEM, "out of memory: %zu bytes refused", bytes);
    return p;
}

void *tp_malloc(tp_ctx *c, size_t bytes) { return counted(c, NULL, bytes); }
void *tp_realloc(tp_ctx *c, void *p, size_t bytes) { return counted(c, p, bytes); }
void tp_free(void *p) { free(p); }

void *tp_calloc(tp_ctx *c, size_t n, size_t bytes_each) {
    if (bytes_each && n > SIZE_MAX / bytes_each) {
        tp_fail(c, TP_ENOMEM, "out of memory: %zu x %zu bytes overflow", n, bytes_each);
        return NULL;
    }
    void *p = counted(c, NULL, n * bytes_each);
    if (p) memset(p, 0, n * bytes_each);
    return p;
}

char *tp_strdup(tp_ctx *c, const char *s) {
    size_t n = strlen(s) + 1;
    char *p = tp_malloc(c, n);
    if (p) memcpy(p, s, n);
    return p;
}

typedef struct chunk {
    struct chunk *next;
    size_t cap, used;
} chunk;
struct tp_arena {
    chunk *first, *now;
};
enum { CHUNK_BYTES = 1 << 18, CHUNK_HEAD = (sizeof(chunk) + 15) & ~15 };

tp_arena *tp_arena_new(tp_ctx *c) { return tp_calloc(c, 1, sizeof(tp_arena)); }

static chunk *chunk_new(tp_ctx *c, size_t bytes) {
    size_t cap = bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES;
    chunk *k = tp_malloc(c, CHUNK_HEAD + cap);
    if (k) *k = (chunk){.cap = cap};
    return k;
}

void *tp_arena_take(tp_arena *a, tp_ctx *c, size_t bytes) {
    if (tp_alloc_fails(c)) {
        tp_fail(c, TP_ENOMEM, "out of memory: %zu bytes refused", bytes);
        return NULL;
    }
    bytes = (bytes + 15) & ~(size_t)15;
    while (a->now && a->now->cap - a->now->used < bytes && a->now->next) a->now = a->now->next;
    if (!a->now || a->now->cap - a->now->used < bytes) {
        chunk *k = chunk_new(c, bytes);
        if (!k) return NULL;
        if (a->now)
            a->now->next = k;
        else
            a->first = k;
        a->now = k;
    }
    void *p = (char *)a->now + CHUNK_HEAD + a->now->used;
    a->now->used += bytes;
    return memset(p, 0, bytes);
}

void tp_arena_reset(tp_arena *a) {
    for (chunk *k = a->first; k; k = k->next) k->used = 0;
    a->now = a->first;
}

void tp_arena_free(tp_arena *a) {
    if (!a) return;
    for (chunk *k = a->first, *next; k; k = next) {
        next = k->next;
        tp_free(k);
    }
    tp_free(a);
}

void *tp_arena_alloc(tp_ctx *c, size_t bytes) { return tp_arena_take(c->step_arena, c, bytes); }

const char *tp_arena_printf(tp_ctx *c, const char *fmt, ...) {
    char buf[512];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(buf, sizeof buf, fmt, ap);
    va_end(ap);
    if (n < 0) return "";
    if ((size_t)n >= sizeof buf) n = (int)sizeof buf - 1;
    char *s = tp_arena_alloc(c, (size_t)n + 1);
    return s ? memcpy(s, buf, (size_t)n + 1) : "";
}

uint64_t tp_system_allocs(const tp_ctx *c) { return c->sys_allocs; }
