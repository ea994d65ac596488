/* Shared memory and who may touch it: placement of arrays, bounds, alignment, and a shadow that
 * finds reads of what nobody wrote and races.
 *
 * Races are found as FastTrack does (Flanagan and Freund, PLDI 2009), with a warp as the entity
 * that has a clock, plus engines for asynchronous copies. A warp's time advances at each of its
 * collectives, barriers and releases. Two conflicting accesses are a race
 *   - by different entities, if the later one has not synchronised with the earlier one's time;
 *   - by different lanes of a warp, if they happened at the same time of that warp.
 * Times only grow, so a block need not clear the shadow of the one before: older is unwritten. */
#include <stdio.h>
#include <stdlib.h>
#include "internal.h"

enum {
    DYNAMIC_AT = 1024,
    STATIC_BYTES = 48 * 1024,
    MAX_ARRAYS = 64,
    SEVERAL = 0x8000,   /* reader flag: other lanes of that warp, too, at the same time */
    FIRST_ENGINE = 1024 /* codes: thread index, or this + engine */
};
/* The shadow of one word, or of one byte where a word's bytes were touched apart. */
struct cell {
    uint32_t wclk, rclk; /* times of the last write and read */
    uint16_t wcode, rcode;
    uint32_t readers; /* when several entities read: index into many[], else 0 */
};
struct reader_set {
    uint32_t clk[NENT];
    uint16_t code[NENT];
    uint32_t next_free;
};
static cell words[SMEM_SPACE / 4], bytes_of[SMEM_SPACE];
static unsigned char split[SMEM_SPACE / 4]; /* the word's bytes have cells of their own */
static reader_set *many;
static uint32_t many_used, many_room, many_free;

uint32_t emu_clock[NENT][NENT];
static uint32_t base = 1;     /* the time at which this block began */
uint32_t emu_latest_time = 1; /* the latest of any entity */
emu_actor *emu_acting;

struct array_now {
    const char *name;
    uint32_t begin, end;
    size_t elem;
};
static array_now arrays[MAX_ARRAYS];
static int narrays;
static uint32_t static_at, static_end; /* offsets: where static arrays begin, first free one */
static size_t static_used;             /* bytes of arrays, without the gaps between them here */
static size_t dynamic_room;
static unsigned char *static_memory;

/* ---- clocks --------------------------------------------------------------------------------- */
void emu_learn(uint32_t *to, const uint32_t *from) {
    for (int e = 0; e < NENT; e++)
        if (from[e] > to[e]) to[e] = from[e];
}
void emu_tick(int e) {
    if (++emu_clock[e][e] > emu_latest_time) emu_latest_time = emu_clock[e][e];
}
void emu_join_block(void) {
    uint32_t all[NENT];
    memcpy(all, emu_clock[0], sizeof all);
    for (int w = 1; w < emu_block.nwarps; w++) emu_learn(all, emu_clock[w]);
    for (int w = 0; w < emu_block.nwarps; w++) memcpy(emu_clock[w], all, sizeof all), emu_tick(w);
}

enum { MAX_SYNC = 4096 };
struct sync_object {
    void *key;
    unsigned long long block;
    uint32_t knows[NENT];
};
static sync_object syncs[MAX_SYNC]; /* open addressing */
static sync_object *sync_of(void *key, bool make) {
    size_t h = ((uintptr_t)key >> 2) * 0x9e3779b97f4a7c15ull >> 52;
    for (size_t i = 0; i < MAX_SYNC; i++) {
        sync_object *s = &syncs[(h + i) % MAX_SYNC];
        if (s->block != emu_block.serial) { /* free in this block */
            if (!make) return nullptr;
            s->key = key, s->block = emu_block.serial;
            memset(s->knows, 0, sizeof s->knows);
            return s;
        }
        if (s->key == key) return s;
    }
    emu_report("more than %d synchronisation objects in a block", (int)MAX_SYNC);
    return nullptr;
}
void emu_clock_release(void *key) {
    sync_object *s = sync_of(key, true);
    if (emu_acting && emu_acting->code >= FIRST_ENGINE) { /* only what it did itself */
        int e = MAX_WARPS + (int)(emu_acting->code - FIRST_ENGINE);
        if (emu_acting->clk > s->knows[e]) s->knows[e] = emu_acting->clk;
        return;
    }
    int w = emu_block.current / 32;
    emu_learn(s->knows, emu_clock[w]);
    emu_tick(w);
}
void emu_clock_acquire(void *key) {
    const sync_object *s = sync_of(key, false);
    if (s) emu_learn(emu_clock[emu_block.current / 32], s->knows);
}
void emu_clock_release_as(int e, void *key) {
    emu_learn(sync_of(key, true)->knows, emu_clock[e]);
    emu_tick(e);
}
void emu_clock_acquire_as(int e, void *key) {
    const sync_object *s = sync_of(key, false);
    if (s) emu_learn(emu_clock[e], s->knows);
}

/* ---- placement ------------------------------------------------------------------------------ */
void emu_shared_begin_launch(size_t dynamic_bytes) {
    emu_block.dynamic_bytes = dynamic_bytes;
    emu_block.dynamic = nullptr;
    void *p = nullptr;
    /* exactly the size asked, so that AddressSanitizer knows where it ends */
    if (dynamic_bytes && posix_memalign(&p, 1024, dynamic_bytes) == 0)
        emu_block.dynamic = (unsigned char *)p;
    dynamic_room = (dynamic_bytes + 1023) / 1024 * 1024;
    static_at = (uint32_t)(DYNAMIC_AT + dynamic_room);
    if (!static_memory && posix_memalign(&p, 1024, STATIC_BYTES) == 0)
        static_memory = (unsigned char *)p;
}
void emu_shared_end_launch(void) {
    free(emu_block.dynamic);
    emu_block.dynamic = nullptr;
    emu_block.dynamic_bytes = 0;
}
void emu_shared_begin_block(void) {
    if (emu_block.dynamic) memset(emu_block.dynamic, 0xff, emu_block.dynamic_bytes); /* NaN */
    narrays = 0;
    static_end = static_at;
    static_used = 0;
    many_used = 1, many_free = 0;
    emu_acting = nullptr, emu_group_knows = nullptr; /* a report may have left them */
    if (emu_latest_time > 0xf0000000u) {             /* times would wrap: begin anew */
        memset(words, 0, sizeof words), memset(bytes_of, 0, sizeof bytes_of);
        emu_latest_time = 1;
    }
    base = emu_latest_time + 2;
    for (int e = 0; e < NENT; e++) {
        for (int o = 0; o < NENT; o++) emu_clock[e][o] = base - 1;
        emu_clock[e][e] = base;
    }
    emu_latest_time = base;
}

void *emu_shared_place(emu_site *site, size_t elem_bytes, size_t count, size_t align) {
    if (site->block == emu_block.serial) return site->place;
    /* Aligned as the element type asks and no better: a vector access needs a vector type (or
     * dynamic shared memory), since nvcc promises no more. A gap keeps neighbours apart. */
    size_t at = (static_end - static_at + 16 + align - 1) / align * align;
    if (align < 16 && at % (2 * align) == 0) at += align;
    if (narrays == MAX_ARRAYS || at + elem_bytes * count > STATIC_BYTES || !static_memory) {
        emu_report("%s: more than %d bytes or %d arrays of static shared memory", site->name,
                   (int)STATIC_BYTES, (int)MAX_ARRAYS);
        return nullptr;
    }
    static_used = (static_used + align - 1) / align * align + elem_bytes * count;
    if (static_used + emu_block.dynamic_bytes > emu_block.shared_limit) {
        emu_report("%s: %zu bytes of static and %zu of dynamic shared memory, allowed are %zu "
                   "together%s",
                   site->name, static_used, emu_block.dynamic_bytes, emu_block.shared_limit,
                   emu_block.shared_limit > 49152 ? "" : " without cudaFuncSetAttribute");
        return nullptr;
    }
    site->block = emu_block.serial;
    site->place = static_memory + at;
    memset(site->place, 0xff, elem_bytes * count);
    static_end = (uint32_t)(static_at + at + elem_bytes * count);
    arrays[narrays++] = array_now{site->name, (uint32_t)(static_at + at), static_end, elem_bytes};
    return site->place;
}
unsigned char *emu_shared_dynamic(void) {
    if (!emu_block.dynamic) emu_report("the launch gave no dynamic shared memory");
    return emu_block.dynamic;
}
void emu_shared_index(const char *name, long long i, size_t count) {
    if (i < 0 || (size_t)i >= count)
        emu_report("out of bounds: %s[%lld] of an array of %zu", name, i, count);
}

/* The offset of p, or 0 if it is not in shared memory. */
static uint32_t offset_of(const void *p) {
    const unsigned char *c = (const unsigned char *)p;
    if (emu_block.dynamic && c >= emu_block.dynamic && c < emu_block.dynamic + dynamic_room)
        return (uint32_t)(DYNAMIC_AT + (c - emu_block.dynamic));
    if (static_memory && c >= static_memory && c < static_memory + STATIC_BYTES)
        return (uint32_t)(static_at + (c - static_memory));
    return 0;
}
static const array_now *array_at(uint32_t off) {
    for (int i = narrays - 1; i >= 0; i--)
        if (off >= arrays[i].begin && off < arrays[i].end) return &arrays[i];
    return nullptr;
}
bool emu_is_smem(const void *p) { return offset_of(p) != 0; }
uint32_t emu_smem_offset(const void *p) {
    uint32_t off = offset_of(p);
    if (!off) emu_report("%p is no address in shared memory", p);
    return off;
}
void *emu_smem_ptr(uint32_t off) {
    if (off >= DYNAMIC_AT && off < DYNAMIC_AT + dynamic_room && emu_block.dynamic)
        return emu_block.dynamic + (off - DYNAMIC_AT);
    if (off >= static_at && off < static_at + STATIC_BYTES)
        return static_memory + (off - static_at);
    emu_report("shared memory offset %u lies outside the block's", off);
    return nullptr;
}

/* ---- the shadow ----------------------------------------------------------------------------- */
static int entity(unsigned code) {
    return code < FIRST_ENGINE ? (int)(code / 32) : MAX_WARPS + (int)(code - FIRST_ENGINE);
}
static const char *who(unsigned code, char *buf, size_t n) {
    if (code & SEVERAL)
        snprintf(buf, n, "several threads of warp %u", (code & ~SEVERAL) / 32);
    else if (code < FIRST_ENGINE)
        snprintf(buf, n, "thread %u", code);
    else
        snprintf(buf, n, "asynchronous engine %u", code - FIRST_ENGINE);
    return buf;
}
/* "buf[3]" or "dynamic shared memory at byte 1040" */
static const char *where(uint32_t off, char *buf, size_t n) {
    const array_now *a = array_at(off);
    if (!a)
        snprintf(buf, n, "dynamic shared memory at byte %u", off - DYNAMIC_AT);
    else
        snprintf(buf, n, "%s[%u] (byte %u)", a->name, (unsigned)((off - a->begin) / a->elem),
                 off - a->begin);
    return buf;
}
/* Does what `code` did at clk precede what the actor does now? */
static inline bool ordered(uint32_t clk, unsigned code, const emu_actor *a) {
    int e = entity(code & ~SEVERAL);
    if (a->deferred)
        return clk <= a->knows[e] || (code == a->code && clk == a->clk) ||
               (code == a->issuer && clk <= a->since);
    if (code == a->code) return true;
    return e == entity(a->code) && e < MAX_WARPS ? clk < a->knows[e] : clk <= a->knows[e];
}
static void race(const char *did, unsigned before, bool write, const emu_actor *a, uint32_t off) {
    char w[64], b[64], now[64];
    bool lanes = entity(before & ~SEVERAL) == entity(a->code) && entity(a->code) < MAX_WARPS;
    emu_report("race on %s: %s by %s, %s by %s%s, no %s between", where(off, w, sizeof w), did,
               who(before, b, sizeof b), write ? "written" : "read", who(a->code, now, sizeof now),
               a->deferred ? " (asynchronously)" : "", lanes ? "__syncwarp or barrier" : "barrier");
}
static uint32_t new_readers(void) {
    uint32_t i = many_free;
    if (i)
        many_free = many[i].next_free;
    else {
        if (many_used >= many_room) {
            uint32_t room = many_room ? 2 * many_room : 1024;
            reader_set *p = (reader_set *)realloc(many, room * sizeof *p);
            if (!p) return 0;
            many = p, many_room = room;
        }
        i = many_used++;
    }
    memset(&many[i], 0, sizeof many[i]);
    return i;
}

static inline unsigned merged(uint32_t old_clk, unsigned old_code, const emu_actor *a) {
    return old_clk == a->clk && old_code != a->code ? a->code | SEVERAL : a->code;
}
static void read_cell(cell *c, const emu_actor *a, uint32_t off) {
    if (c->wclk < base) {
        char w[64];
        emu_report("read of %s, which nobody wrote in this block", where(off, w, sizeof w));
        return;
    }
    if (!ordered(c->wclk, c->wcode, a)) race("written", c->wcode, false, a, off);
    int e = entity(a->code);
    if (c->rclk < base) {
        c->rclk = a->clk, c->rcode = (uint16_t)a->code, c->readers = 0;
    } else if (c->readers) {
        reader_set *r = &many[c->readers];
        r->code[e] = (uint16_t)merged(r->clk[e], r->code[e], a);
        r->clk[e] = a->clk;
    } else if (c->rclk == a->clk && c->rcode == a->code) {
        return;
    } else if (entity(c->rcode & ~SEVERAL) == e) {
        c->rcode = (uint16_t)merged(c->rclk, c->rcode, a);
        c->rclk = a->clk;
    } else if (!a->deferred && ordered(c->rclk, c->rcode, a)) {
        c->rclk = a->clk, c->rcode = (uint16_t)a->code;
    } else {
        uint32_t i = new_readers();
        if (!i) return;
        reader_set *r = &many[i];
        int o = entity(c->rcode & ~SEVERAL);
        r->clk[o] = c->rclk, r->code[o] = c->rcode;
        r->clk[e] = a->clk, r->code[e] = (uint16_t)a->code;
        c->readers = i;
    }
}
static void write_cell(cell *c, const emu_actor *a, uint32_t off) {
    if (c->wclk >= base && !ordered(c->wclk, c->wcode, a)) race("written", c->wcode, true, a, off);
    if (c->rclk >= base) {
        if (c->readers) {
            reader_set *r = &many[c->readers];
            for (int e = 0; e < NENT; e++)
                if (r->clk[e] >= base && !ordered(r->clk[e], r->code[e], a))
                    race("read", r->code[e], true, a, off);
            r->next_free = many_free, many_free = c->readers;
        } else if (!ordered(c->rclk, c->rcode, a))
            race("read", c->rcode, true, a, off);
    }
    *c = cell{a->clk, 0, (uint16_t)a->code, 0, 0};
}

static void touch(uint32_t off, size_t bytes, bool write, const emu_actor *a) {
    for (uint32_t at = off, end = off + (uint32_t)bytes; at < end;) {
        uint32_t w = at / 4;
        bool whole = at % 4 == 0 && end - at >= 4;
        if (!split[w] && whole) {
            if (write)
                write_cell(&words[w], a, at);
            else
                read_cell(&words[w], a, at);
            at += 4;
            continue;
        }
        if (!split[w]) { /* each byte goes its own way from here */
            split[w] = 1;
            for (int i = 0; i < 4; i++) {
                cell *b = &bytes_of[4 * w + (unsigned)i];
                *b = words[w];
                if (b->rclk >= base && b->readers && i > 0) {
                    uint32_t copy = new_readers();
                    if (copy) many[copy] = many[b->readers];
                    b->readers = copy;
                }
            }
        }
        uint32_t stop = whole ? at + 4 : (w + 1) * 4 < end ? (w + 1) * 4 : end;
        for (uint32_t i = at; i < stop; i++) {
            if (write)
                write_cell(&bytes_of[i], a, i);
            else
                read_cell(&bytes_of[i], a, i);
        }
        if (whole && write) split[w] = 0, words[w] = bytes_of[at];
        at = stop;
    }
}

static uint32_t in_bounds(const void *p, size_t bytes, bool write) {
    uint32_t off = offset_of(p);
    const char *verb = write ? "write" : "read";
    if (!off) {
        emu_report("%s of %zu bytes at %p, which is not in shared memory", verb, bytes, p);
        return 0;
    }
    if (off < static_at) {
        if (off - DYNAMIC_AT + bytes > emu_block.dynamic_bytes) {
            emu_report("out of bounds: %s of %zu bytes at byte %u of %zu of dynamic shared memory",
                       verb, bytes, off - DYNAMIC_AT, emu_block.dynamic_bytes);
            return 0;
        }
        return off;
    }
    const array_now *a = array_at(off);
    if (!a || off + bytes > a->end) {
        if (a)
            emu_report("out of bounds: %s of %zu bytes at byte %u of %u of %s", verb, bytes,
                       off - a->begin, a->end - a->begin, a->name);
        else
            emu_report("out of bounds: %s of %zu bytes between shared arrays", verb, bytes);
        return 0;
    }
    return off;
}

void emu_smem_access(const void *p, size_t bytes, bool write) {
    uint32_t off = in_bounds(p, bytes, write);
    if (!off) return;
    if (emu_acting) {
        touch(off, bytes, write, emu_acting);
        return;
    }
    int w = emu_block.current / 32;
    const uint32_t *knows = emu_group_knows ? emu_group_knows : emu_clock[w];
    const emu_actor me = {
        knows, emu_clock[w][w], (unsigned)emu_block.current, emu_group_knows != nullptr, 0, 0};
    touch(off, bytes, write, &me);
}
void emu_smem_access_as(int e, const void *p, size_t bytes, bool write) {
    if (e < MAX_WARPS || e >= NENT) {
        emu_report("entity %d is no engine: they are %d..%d", e, (int)MAX_WARPS, (int)NENT - 1);
        return;
    }
    uint32_t off = in_bounds(p, bytes, write);
    const emu_actor engine = {emu_clock[e], emu_clock[e][e],
                              FIRST_ENGINE + (unsigned)(e - MAX_WARPS), false};
    if (off) touch(off, bytes, write, &engine);
}
void emu_smem_check(const void *p, size_t bytes, size_t align, bool write) {
    if ((uintptr_t)p % align) {
        emu_report("misaligned: %s of %zu bytes in shared memory at byte %u",
                   write ? "write" : "read", bytes, emu_smem_offset(p));
        return;
    }
    emu_smem_access(p, bytes, write);
}

void emu_check_aligned(const void *p, size_t bytes, const char *what) {
    if ((uintptr_t)p % bytes) emu_report("misaligned: %s of %zu bytes at %p", what, bytes, p);
}
void emu_check_global(const void *p, size_t bytes, size_t align) {
    if ((uintptr_t)p % align) emu_report("misaligned: global access of %zu bytes at %p", bytes, p);
    if (!emu_device_range(p, bytes) && !emu_is_pinned(p, bytes))
        emu_report("global access of %zu bytes at %p, which is %s", bytes, p,
                   emu_is_smem(p)     ? "shared memory"
                   : emu_is_device(p) ? "device memory that is not allocated"
                                      : "not device memory");
}
