/* Work that asynchronous instructions leave for later (cp.async, wgmma, TMA): queues, the policy
 * that says when, and in whose name the work then touches shared memory. */
#include <setjmp.h>
#include <stdlib.h>
#include "internal.h"

enum { ARG_BYTES = 2048 }; /* the accumulators of a warpgroup are 128 pointers */
struct work {
    work *next;
    void (*fn)(void *);
    long long group; /* how many commits the queue had seen */
    size_t bytes;
    unsigned thread; /* who deferred it, */
    uint32_t since;  /* when; 0 for a group's */
    uint32_t knows[NENT];
    alignas(16) unsigned char arg[ARG_BYTES];
};
struct queue {
    work *first, *last;
    long long commits; /* groups closed so far */
    int n;
};
static queue of_thread[MAX_THREADS][EMU_QUEUE_ENGINE], of_block[EMU_NQUEUE - EMU_QUEUE_ENGINE];
static work *spare;
static bool used;

static emu_policy async;
static bool async_set;
static const char *const async_names[3] = {"late", "early", "random"};
bool emu_set_async(const char *policy) {
    async_set = true;
    if (!policy) policy = getenv("TAPIR_EMU_ASYNC");
    return emu_parse_policy(&async, policy && *policy ? policy : "late", async_names);
}
bool emu_async_by_chance;
bool emu_async_random_now(void) { return emu_random(&async, 8) == 0; }

static queue *queue_of(int q) {
    if (q < 0 || q >= EMU_NQUEUE) {
        emu_report("queue %d does not exist", q);
        q = 0;
    }
    return q < EMU_QUEUE_ENGINE ? &of_thread[emu_block.current][q]
                                : &of_block[q - EMU_QUEUE_ENGINE];
}
static void forget(queue *q) {
    if (q->last) q->last->next = spare, spare = q->first;
    *q = queue{nullptr, nullptr, 0, 0};
}
void emu_deferred_drop(void) {
    if (!used) return;
    for (int t = 0; t < emu_block.n; t++)
        for (int q = 0; q < EMU_QUEUE_ENGINE; q++)
            if (of_thread[t][q].commits || of_thread[t][q].first) forget(&of_thread[t][q]);
    for (int q = 0; q < EMU_NQUEUE - EMU_QUEUE_ENGINE; q++) forget(&of_block[q]);
    used = emu_async_by_chance = false;
}
void emu_deferred_begin_block(void) {
    if (!async_set) emu_set_async(nullptr);
}

static jmp_buf *abandon;
void emu_engine_abandon(void) {
    if (abandon) longjmp(*abandon, 1);
}

/* In whose name a queue's work is done: an engine's or a warpgroup's own; -1: the thread's. A
 * warpgroup's products end together, so whoever of its threads waited may tell others (one arrival
 * per warpgroup frees a buffer). */
static int entity_of(int id) {
    if (id < EMU_QUEUE_ENGINE) return -1;
    if (id < EMU_QUEUE_GROUP) return MAX_WARPS + 8 + id - EMU_QUEUE_ENGINE;
    return MAX_WARPS + 16 + (id - EMU_QUEUE_GROUP) % 8;
}

/* Does the queue's first piece of work. */
static void do_first(int id, queue *q) {
    work *w = q->first;
    void (*fn)(void *) = w->fn;
    uint32_t knows[NENT];
    alignas(16) unsigned char arg[ARG_BYTES];
    memcpy(knows, w->knows, sizeof knows);
    memcpy(arg, w->arg, w->bytes);
    q->first = w->next;
    if (!q->first) q->last = nullptr;
    q->n--;
    w->next = spare, spare = w; /* now, since a report does not come back here */
    emu_actor actor = {knows, 0, 0, true, w->thread, w->since}, *before = emu_acting;
    int e = entity_of(id);
    if (e >= 0) {
        emu_tick(e); /* each piece has a time of its own: two of them are not ordered */
        actor.clk = emu_clock[e][e];
        actor.code = (unsigned)(MAX_THREADS + e - MAX_WARPS);
    } else { /* in the name of the thread that waits for it, which orders it with what follows */
        int t = emu_block.current;
        actor.clk = emu_clock[t / 32][t / 32];
        actor.code = (unsigned)t;
    }
    emu_acting = &actor;
    const uint32_t *group = emu_group_knows;
    emu_group_knows = nullptr;
    fn(arg);
    emu_group_knows = group;
    emu_acting = before;
}

void emu_defer(int id, void (*fn)(void *), const void *arg, size_t bytes) {
    queue *q = queue_of(id);
    if (bytes > ARG_BYTES) {
        emu_report("deferred work carries %zu bytes, more than %d", bytes, (int)ARG_BYTES);
        return;
    }
    work *w = spare;
    if (w)
        spare = w->next;
    else if (!(w = (work *)malloc(sizeof *w))) {
        emu_report("no memory for deferred work");
        return;
    }
    used = true;
    emu_async_by_chance = async.kind == emu_policy::RANDOM;
    w->next = nullptr, w->fn = fn, w->bytes = bytes, w->group = q->commits;
    int me = emu_block.current / 32;
    w->thread = (unsigned)emu_block.current;
    if (emu_group_knows) {
        memcpy(w->knows, emu_group_knows, sizeof w->knows);
        w->since = 0;
    } else { /* what its own warp does at this time is released to nobody, so not to this either */
        memcpy(w->knows, emu_clock[me], sizeof w->knows);
        w->since = w->knows[me]--;
    }
    if (bytes) memcpy(w->arg, arg, bytes);
    if (q->last)
        q->last->next = w;
    else
        q->first = w;
    q->last = w;
    q->n++;
    bool now = async.kind == emu_policy::REVERSE /* early */ ||
               (async.kind == emu_policy::RANDOM && emu_random(&async, 2));
    while (now && q->first) do_first(id, q);
}
void emu_commit(int id) { queue_of(id)->commits++; }
void emu_drain_to(int id, int groups) {
    queue *q = queue_of(id);
    while (q->first && (groups < 0 || q->first->group < q->commits - groups)) do_first(id, q);
    int e = entity_of(id), w = emu_block.current / 32;
    if (e >= 0 && emu_clock[e][e] > emu_clock[w][e]) emu_clock[w][e] = emu_clock[e][e];
}
void emu_drain(int id) { emu_drain_to(id, -1); }
int emu_pending(int id) { return queue_of(id)->n; }

/* An engine's pieces are not ordered: puts the one after `skip` others first. */
static void rotate(queue *q, unsigned skip) {
    while (skip-- > 0) {
        work *w = q->first;
        q->first = w->next;
        w->next = nullptr;
        q->last->next = w;
        q->last = w;
    }
}

bool emu_engine_step(bool may_choose) {
    int n = EMU_QUEUE_GROUP - EMU_QUEUE_ENGINE;
    int from = may_choose ? (int)emu_random(&async, (unsigned)n) : 0;
    for (int i = 0; used && i < n; i++) {
        int k = (from + i) % n;
        if (!of_block[k].first) continue;
        if (may_choose) rotate(&of_block[k], emu_random(&async, (unsigned)of_block[k].n));
        jmp_buf here, *before = abandon;
        abandon = &here;
        if (setjmp(here) == 0)
            do_first(EMU_QUEUE_ENGINE + k, &of_block[k]);
        else
            emu_acting = nullptr;
        abandon = before;
        return true;
    }
    return false;
}
