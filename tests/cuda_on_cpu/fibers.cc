/* Runs the threads of a block as fibers: the context switch, the scheduler, barriers, meetings of
 * lanes, and the report when nobody can go on. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "internal.h"
#include "switch.h"
#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
enum { STACK_BYTES = 256 * 1024 };
#else
enum { STACK_BYTES = 64 * 1024 };
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
block_now emu_block = {};

/* ---- fibers and their stacks ------------------------------------------------------------------
 */
static void *scheduler_sp;
#ifdef EMU_ASAN
static void *scheduler_fake;
static const void *scheduler_bottom;
static size_t scheduler_bytes;
#endif
static void (*job_call)(const void *);
static const void *job_closure;

void emu_switch_to_scheduler(void) {
    fiber *f = &emu_block.fibers[emu_block.current];
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(f->state == DONE ? nullptr : &f->fake_stack, scheduler_bottom,
                                   scheduler_bytes);
#endif
    emu_switch(&f->sp, scheduler_sp);
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(f->fake_stack, &scheduler_bottom, &scheduler_bytes);
#endif
}

/* A fiber's first function; it is entered by a return, so it has no caller. */
static void fiber_main(void) {
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_bytes);
#endif
    job_call(job_closure);
    emu_block.fibers[emu_block.current].state = DONE;
    emu_switch_to_scheduler();
    __builtin_trap();
}

static bool prepare(fiber *f) {
    if (!f->stack) {
        size_t page = (size_t)sysconf(_SC_PAGESIZE);
        char *m = (char *)mmap(nullptr, STACK_BYTES + page, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (m == MAP_FAILED) return false;
        mprotect(m, page, PROT_NONE); /* an overflow stops here */
        f->stack = m + page;
    }
#ifdef EMU_ASAN
    if (f->state != DONE) /* it was dropped, and left its frames */
        __asan_unpoison_memory_region(f->stack, STACK_BYTES);
    f->fake_stack = nullptr;
#endif
    /* Tops at different offsets in their pages: else all of them compete for a few cache sets. */
    size_t colour = (size_t)(f - emu_block.fibers) % 64 * 64;
    void **sp = (void **)(void *)(f->stack + STACK_BYTES - colour) - FRAME_WORDS;
    memset(sp, 0, FRAME_WORDS * sizeof *sp);
    sp[ENTRY_WORD] = (void *)fiber_main;
    f->sp = sp;
    f->state = READY;
    f->yielded = false;
    f->what = nullptr;
    f->file = nullptr;
    f->mask = 0;
    return true;
}

static void resume(int t) {
    fiber *f = &emu_block.fibers[t];
    emu_block.current = t;
    threadIdx = f->idx;
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(&scheduler_fake, f->stack, STACK_BYTES);
#endif
    emu_switch(&scheduler_sp, f->sp);
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr);
#endif
    emu_block.current = -1;
}

bool emu_in_kernel(void) { return emu_block.current >= 0; }
int emu_thread(void) { return emu_block.current; }
int emu_threads(void) { return emu_block.n; }

/* ---- reports -------------------------------------------------------------------------------- */
void emu_report(const char *fmt, ...) {
    char text[768];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (!emu_block.kernel) {
        emu_record(cudaErrorLaunchFailure, "%s", text);
        return;
    }
    char thread[32] = "", line[128] = "";
    if (emu_block.current >= 0) snprintf(thread, sizeof thread, ", thread %d", emu_block.current);
    if (emu_block.current >= 0 && emu_ptx_line && !emu_acting)
        snprintf(line, sizeof line, " (%s.ptx, line %d)", emu_ptx_file, emu_ptx_line);
    emu_record(cudaErrorLaunchFailure, "%s, block (%u,%u,%u)%s: %s%s", emu_block.kernel, blockIdx.x,
               blockIdx.y, blockIdx.z, thread, text, line);
    emu_block.failed = true;
    if (emu_block.current >= 0) emu_switch_to_scheduler(); /* and is never resumed */
    emu_engine_abandon();
}

/* "thread 3 has returned": why f has not come. */
static const char *doing(int t, char *buf, size_t bytes) {
    const fiber *f = &emu_block.fibers[t];
    switch (f->state) {
    case DONE:
        snprintf(buf, bytes, "thread %d has returned", t);
        break;
    case AT_BARRIER:
        snprintf(buf, bytes, "thread %d waits at __syncthreads (%s:%d)", t, f->file, f->line);
        break;
    case AT_NAMED:
        snprintf(buf, bytes, "thread %d waits at named barrier %d", t, f->barrier);
        break;
    case READY:
        snprintf(buf, bytes, "thread %d spins", t);
        break;
    default:
        snprintf(buf, bytes, "thread %d waits for %s", t, f->what);
        break;
    }
    return buf;
}

struct named_barrier {
    int count, arrived;
    uint32_t came[MAX_WARPS]; /* lanes */
    uint32_t knows[NENT];
};
static named_barrier named[16];
static int at_barrier, first_at_barrier; /* threads at __syncthreads, and who came first */
/* Lanes of a warp in collectives. Most often all in the same one, mask and what; mixed: look. */
struct warp_meeting {
    unsigned pending, mask;
    const char *what;
    bool mixed;
};
static warp_meeting meeting[MAX_WARPS];

/* Nobody can go on: says why. */
static void report_stuck(void) {
    char why[256];
    fiber *fs = emu_block.fibers;
    for (int t = 0; t < emu_block.n; t++) {
        if (fs[t].state != IN_WARP) continue;
        int first = t & ~31;
        for (int l = 0; l < 32; l++) {
            int o = first + l;
            if (!(fs[t].mask >> l & 1)) continue;
            if (o < emu_block.n && fs[o].state == IN_WARP && fs[o].mask == fs[t].mask &&
                !strcmp(fs[o].what, fs[t].what))
                continue;
            if (o < emu_block.n)
                doing(o, why, sizeof why);
            else
                snprintf(why, sizeof why, "thread %d does not exist", o);
            emu_report("lane missing in %s: warp %d, mask 0x%08x: %s", fs[t].what, t / 32,
                       fs[t].mask, why);
            return;
        }
    }
    for (int t = 0; t < emu_block.n && at_barrier; t++) {
        if (fs[t].state == AT_BARRIER) continue;
        int waits = 0;
        while (fs[waits].state != AT_BARRIER) waits++;
        emu_report("barrier that not all threads reach: %d of %d wait at __syncthreads (%s:%d), %s",
                   at_barrier, emu_block.n, fs[waits].file, fs[waits].line,
                   doing(t, why, sizeof why));
        return;
    }
    for (int t = 0; t < emu_block.n; t++) {
        if (fs[t].state != AT_NAMED) continue;
        named_barrier *b = &named[fs[t].barrier];
        emu_report(
            "deadlock: named barrier %d waits for %d threads, %d came (thread %d among them)",
            fs[t].barrier, b->count, b->arrived, t);
        return;
    }
    for (int t = 0; t < emu_block.n; t++) {
        if (fs[t].state == DONE) continue;
        emu_report("deadlock: %s, and nobody can go on", doing(t, why, sizeof why));
        return;
    }
}

/* ---- barriers ------------------------------------------------------------------------------- */
void emu_syncthreads(const char *file, int line) {
    fiber *fs = emu_block.fibers, *me = &fs[emu_block.current];
    const char *slash = strrchr(file, '/');
    file = slash ? slash + 1 : file;
    const fiber *first = &fs[first_at_barrier]; /* the others agree with it */
    if (at_barrier == 0)
        first_at_barrier = emu_block.current;
    else if (first->line != line || strcmp(first->file, file) != 0)
        emu_report("barrier divergence: thread %d waits at __syncthreads (%s:%d), thread %d at "
                   "another (%s:%d)",
                   first_at_barrier, first->file, first->line, emu_block.current, file, line);
    me->file = file, me->line = line;
    if (++at_barrier < emu_block.n) {
        me->state = AT_BARRIER;
        emu_switch_to_scheduler();
        return;
    }
    at_barrier = 0;
    emu_join_block();
    for (int t = 0; t < emu_block.n; t++)
        if (fs[t].state == AT_BARRIER) fs[t].state = READY;
}

void emu_named_barrier(int id, int count, bool wait) {
    if (id < 0 || id > 15 || count <= 0 || count > emu_block.n || count % 32 != 0) {
        emu_report("named barrier %d for %d threads: ids are 0..15, counts multiples of 32 up to "
                   "the block's %d",
                   id, count, emu_block.n);
        return;
    }
    named_barrier *b = &named[id];
    int t = emu_block.current, w = t / 32;
    if (b->arrived && b->count != count)
        emu_report("named barrier %d: one thread comes with a count of %d, this one with %d", id,
                   b->count, count);
    if (b->came[w] >> (t & 31) & 1)
        emu_report("named barrier %d: the thread comes again before the barrier is complete", id);
    b->count = count;
    b->came[w] |= 1u << (t & 31);
    emu_learn(b->knows, emu_clock[w]);
    emu_tick(w);
    if (++b->arrived < count) {
        if (!wait) return;
        fiber *me = &emu_block.fibers[t];
        me->state = AT_NAMED;
        me->barrier = id;
        emu_switch_to_scheduler();
        return;
    }
    for (int o = 0; o < emu_block.n; o++) {
        fiber *f = &emu_block.fibers[o];
        if (f->state != AT_NAMED || f->barrier != id) continue;
        f->state = READY;
        wait = true;
        emu_learn(emu_clock[o / 32], b->knows);
    }
    memset(b, 0, sizeof *b);
    if (!wait) emu_report("named barrier %d: %d threads come, and none of them waits", id, count);
}

/* ---- meetings ------------------------------------------------------------------------------- */
void emu_warp_mask(unsigned mask, const char *what, void *mine,
                   void (*fn)(void *const lane[32], void *arg), void *arg) {
    int t = emu_block.current, w = t / 32, l = t & 31;
    fiber *lanes = &emu_block.fibers[w * 32], *me = &lanes[l];
    int nlanes = emu_block.n - w * 32 < 32 ? emu_block.n - w * 32 : 32;
    if (!(mask >> l & 1))
        emu_report("lane %d calls %s with mask 0x%08x, which does not name it", l, what, mask);
    warp_meeting *m = &meeting[w];
    unsigned here = 1u << l | m->pending;
    if (!m->pending)
        m->mask = mask, m->what = what, m->mixed = false;
    else if (m->mixed || m->mask != mask || m->what != what)
        m->mixed = true, here = 1u << l;
    for (int o = 0; o < nlanes && m->mixed; o++) /* others wait elsewhere, and may come later */
        if (lanes[o].state == IN_WARP && lanes[o].mask == mask && !strcmp(lanes[o].what, what))
            here |= 1u << o;
    me->mine = mine, me->mask = mask, me->what = what;
    if (here != mask) {
        m->pending |= 1u << l;
        me->state = IN_WARP;
        emu_switch_to_scheduler();
        return;
    }
    emu_tick(w);
    if (fn) {
        void *all[32];
        for (int o = 0; o < 32; o++) all[o] = mask >> o & 1 ? lanes[o].mine : nullptr;
        fn(all, arg);
        emu_tick(w);
    }
    m->pending &= ~here;
    for (int o = 0; o < nlanes; o++)
        if (here >> o & 1) lanes[o].state = READY;
}

void emu_warp_named(const char *what, void *mine, void (*fn)(void *const lane[32], void *arg),
                    void *arg) {
    emu_warp_mask(0xffffffffu, what, mine, fn, arg);
}

const uint32_t *emu_group_knows;
void emu_group(int first, int count, void *mine, void (*fn)(void *const *lane, void *arg),
               void *arg) {
    int t = emu_block.current;
    fiber *fs = emu_block.fibers, *me = &fs[t];
    if (first < 0 || count <= 0 || first % 32 || count % 32 || first + count > emu_block.n ||
        t < first || t >= first + count) {
        emu_report("emu_group: threads %d..%d are no group of warps with thread %d in it", first,
                   first + count - 1, t);
        return;
    }
    int here = 1;
    for (int o = first; o < first + count; o++)
        here += fs[o].state == IN_GROUP && fs[o].line == first && fs[o].barrier == count;
    me->mine = mine, me->line = first, me->barrier = count;
    me->what = "the other warps of its group";
    if (here < count) {
        me->state = IN_GROUP;
        emu_switch_to_scheduler();
        return;
    }
    void *all[MAX_THREADS];
    uint32_t knows[NENT];
    for (int o = 0; o < count; o++) all[o] = fs[first + o].mine;
    memset(knows, 0xff, sizeof knows); /* what every participant knows of e to be released */
    for (int w = first / 32; w < (first + count) / 32; w++)
        for (int e = 0; e < NENT; e++) {
            uint32_t k = emu_clock[w][e] - (e == w);
            if (k < knows[e]) knows[e] = k;
        }
    const uint32_t *before = emu_group_knows;
    emu_group_knows = knows;
    fn(all, arg);
    emu_group_knows = before;
    for (int w = first / 32; w < (first + count) / 32; w++) emu_tick(w);
    for (int o = first; o < first + count; o++) fs[o].state = READY;
}

void emu_wait(bool (*ready)(void *), void *arg, const char *what) {
    if (ready(arg)) return;
    fiber *me = &emu_block.fibers[emu_block.current];
    me->ready = ready, me->ready_arg = arg, me->what = what;
    me->state = WAITING;
    emu_switch_to_scheduler();
}

void emu_yield(void) {
    emu_block.fibers[emu_block.current].yielded = true;
    emu_switch_to_scheduler();
}

void emu_shuffle_all(void *const lane[32], void *what) {
    for (int l = 0; l < 32; l++) {
        emu_shuffle *s = (emu_shuffle *)lane[l];
        if (!s) continue;
        if (!lane[s->src & 31])
            emu_report("%s: lane %d reads lane %d, which the mask does not name",
                       (const char *)what, l, s->src & 31);
        else
            s->out = ((emu_shuffle *)lane[s->src & 31])->in;
    }
}
void emu_ballot_all(void *const lane[32], void *arg) {
    (void)arg;
    unsigned long long bits = 0;
    for (int l = 0; l < 32; l++)
        if (lane[l]) bits |= ((emu_shuffle *)lane[l])->in << l;
    for (int l = 0; l < 32; l++)
        if (lane[l]) ((emu_shuffle *)lane[l])->out = bits;
}

/* ---- the scheduler -------------------------------------------------------------------------- */
static emu_policy thread_order, block_order;
static bool thread_order_set, block_order_set;
static const char *const order_names[3] = {"forward", "reverse", "random"};

bool emu_parse_policy(emu_policy *p, const char *text, const char *const names[3]) {
    for (int k = 0; k < 3; k++) {
        size_t n = strlen(names[k]);
        if (strncmp(text, names[k], n) != 0 || (text[n] && (k != 2 || text[n] != ':'))) continue;
        p->kind = k == 0 ? p->FORWARD : k == 1 ? p->REVERSE : p->RANDOM;
        /* any seed, 0 too, gives a state other than 0 */
        p->state = (text[n] ? strtoull(text + n + 1, nullptr, 10) : 1) * 2 + 0x9e3779b97f4a7c15ull;
        return true;
    }
    return false;
}
static bool set_policy(emu_policy *p, const char *text) {
    if (!text) text = getenv("TAPIR_EMU_ORDER");
    return emu_parse_policy(p, text && *text ? text : "forward", order_names);
}
bool emu_set_block_order(const char *order) {
    block_order_set = true;
    return set_policy(&block_order, order);
}
bool emu_set_order(const char *order) {
    thread_order_set = true;
    return set_policy(&thread_order, order) && emu_set_block_order(order);
}

void emu_permute(emu_policy *p, int *order, int n) {
    for (int i = 0; i < n; i++) order[i] = p->kind == p->REVERSE ? n - 1 - i : i;
    if (p->kind != p->RANDOM) return;
    for (int i = n - 1; i > 0; i--) { /* Fisher-Yates */
        int j = (int)emu_random(p, (unsigned)i + 1), x = order[i];
        order[i] = order[j], order[j] = x;
    }
}

/* Passes in which every thread only yields, after which that counts as a deadlock. */
enum { MAX_SPINS = 20000 };

struct turn {
    bool went, spun; /* somebody got further; somebody only yielded */
    int live;
};
/* Gives each of these threads that can go on one turn. False: a report ended the launch. */
static bool one_pass(const int *threads, int n, turn *r) {
    fiber *fs = emu_block.fibers;
    *r = turn{false, false, 0};
    for (int i = 0; i < n; i++) {
        fiber *f = &fs[threads[i]];
        if (f->state == DONE) continue;
        r->live++;
        if (f->state == WAITING && f->ready(f->ready_arg)) f->state = READY;
        if (f->state != READY) continue;
        f->yielded = false;
        resume(threads[i]);
        if (f->yielded)
            r->spun = true;
        else
            r->went = true;
        if (emu_block.failed) return false;
        if (emu_async_by_chance && emu_async_random_now()) emu_engine_step(true);
        if (emu_block.failed) return false;
    }
    return true;
}

static bool run_block(void) {
    int order[MAX_THREADS], spins = 0;
    bool shuffled = thread_order.kind == emu_policy::RANDOM;
    at_barrier = 0;
    memset(named, 0, sizeof named);
    memset(meeting, 0, sizeof meeting);
    emu_permute(&thread_order, order, emu_block.n);
    /* Each warp goes on while it can, as its stacks are then in the cache. Shuffled: one step each.
     */
    int each = shuffled ? emu_block.n : 32;
    for (;;) {
        turn all = {false, false, 0};
        for (int from = 0; from < emu_block.n; from += each) {
            int n = emu_block.n - from < each ? emu_block.n - from : each;
            turn now;
            do {
                if (!one_pass(order + from, n, &now)) return false;
                all.went |= now.went, all.spun |= now.spun;
            } while (now.went && !shuffled);
            all.live += now.live;
        }
        if (all.live == 0) return true;
        spins = all.went ? 0 : spins + all.spun;
        if (!all.went) {
            bool stepped = emu_engine_step(false);
            if (emu_block.failed) return false;
            if (!stepped && (!all.spun || spins > MAX_SPINS)) {
                report_stuck();
                return false;
            }
        }
        if (shuffled) emu_permute(&thread_order, order, emu_block.n);
    }
}

static bool run_one(uint3 at, void (*call)(const void *), const void *closure) {
    blockIdx = at;
    job_call = call, job_closure = closure;
    emu_block.serial++;
    for (int t = 0; t < emu_block.n; t++) {
        fiber *f = &emu_block.fibers[t];
        unsigned u = (unsigned)t;
        f->idx = uint3{u % blockDim.x, u / blockDim.x % blockDim.y, u / blockDim.x / blockDim.y};
        if (!prepare(f)) {
            emu_record(cudaErrorMemoryAllocation, "no memory for the stacks of %d threads",
                       emu_block.n);
            return false;
        }
    }
    emu_shared_begin_block();
    emu_deferred_begin_block();
    bool ok = run_block();
    while (ok && emu_engine_step(false)) ok = !emu_block.failed; /* stores under way complete */
    emu_deferred_drop();
    return ok;
}

/* Runs the whole grid now. */
bool emu_run_grid(const char *name, dim3 grid, dim3 block, size_t smem_bytes, size_t shared_limit,
                  void (*call)(const void *), const void *closure) {
    if (emu_block.kernel) { /* a kernel calls a launch macro */
        emu_report("a kernel launches %s", name);
        return false;
    }
    if (!thread_order_set) emu_set_order(nullptr);
    if (!block_order_set) emu_set_block_order(nullptr);
    long long nblocks = (long long)grid.x * grid.y * grid.z;
    emu_block.kernel = name;
    emu_block.n = (int)(block.x * block.y * block.z);
    emu_block.nwarps = (emu_block.n + 31) / 32;
    emu_block.current = -1;
    emu_block.failed = false;
    emu_block.shared_limit = shared_limit;
    gridDim = grid, blockDim = block;
    emu_shared_begin_launch(smem_bytes);
    emu_global_begin_launch();
    int *order = nullptr;
    if (block_order.kind == emu_policy::RANDOM && nblocks < 1 << 24) {
        order = (int *)malloc((size_t)nblocks * sizeof *order);
        if (order) emu_permute(&block_order, order, (int)nblocks);
    }
    emu_device_open();
    bool ok = true;
    for (long long i = 0; ok && i < nblocks; i++) {
        long long b = order                                     ? order[i]
                      : block_order.kind == emu_policy::REVERSE ? nblocks - 1 - i
                                                                : i;
        ok = run_one(uint3{(unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y),
                           (unsigned)(b / grid.x / grid.y)},
                     call, closure);
    }
    emu_device_close();
    free(order);
    emu_shared_end_launch();
    emu_block.kernel = nullptr;
    emu_block.current = -1;
    return ok;
}
