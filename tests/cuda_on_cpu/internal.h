/* What the emulator's own files share: the block that runs now, its fibers and clocks. */
#ifndef TP_EMU_INTERNAL_H
#define TP_EMU_INTERNAL_H
#include "cuda_on_cpu.h"

enum {
    MAX_THREADS = 1024,
    MAX_WARPS = 32,
    MAX_ENGINES = 24,               /* EMU_ENGINE(0..7), 8 engine queues, 8 group queues */
    NENT = MAX_WARPS + MAX_ENGINES, /* entities that have a clock */
    SMEM_SPACE = 320 * 1024         /* offsets of shared memory: dynamic from 1024, then static */
};

enum fiber_state { READY, AT_BARRIER, AT_NAMED, IN_WARP, IN_GROUP, WAITING, DONE };
struct fiber {
    void *sp, *fake_stack;
    char *stack;
    fiber_state state;
    bool yielded;
    uint3 idx;
    const char *what; /* what it waits for */
    const char *file;
    int line, barrier;
    unsigned mask; /* IN_WARP: the lanes it waits for */
    void *mine;
    bool (*ready)(void *);
    void *ready_arg;
};
struct block_now {
    const char *kernel;
    unsigned long long serial; /* counts all blocks ever run */
    int n, nwarps, current;    /* current: thread that runs; -1: the scheduler */
    bool failed;
    size_t dynamic_bytes, shared_limit; /* the limit is for static arrays as well */
    unsigned char *dynamic;
    fiber fibers[MAX_THREADS];
};
extern block_now emu_block;

/* ---- random numbers for schedules (xorshift64*, Vigna 2016) --------------------------------- */
struct emu_policy {
    enum { FORWARD, REVERSE, RANDOM } kind; /* for async: late, early, random */
    uint64_t state;
};
static inline unsigned emu_random(emu_policy *p, unsigned below) {
    p->state ^= p->state >> 12, p->state ^= p->state << 25, p->state ^= p->state >> 27;
    return (unsigned)((p->state * 2685821657736338717ull >> 32) * below >> 32);
}
/* Fills order[0..n-1] with the policy's permutation. */
void emu_permute(emu_policy *p, int *order, int n);
bool emu_parse_policy(emu_policy *p, const char *text, const char *const names[3]);

/* ---- fibers.cc ------------------------------------------------------------------------------ */
void emu_switch_to_scheduler(void);
void emu_record(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool emu_run_grid(const char *name, dim3 grid, dim3 block, size_t smem_bytes, size_t shared_limit,
                  void (*call)(const void *), const void *closure);

/* ---- clocks and shadow (shared.cc) ---------------------------------------------------------- */
/* In whose name an access is checked and recorded. */
struct emu_actor {
    const uint32_t *knows; /* [NENT]: what it has synchronised with */
    uint32_t clk;          /* its own time */
    unsigned code;         /* thread index, or 1024 + engine */
    bool deferred;         /* knows[] holds what had been released, of the own warp too */
    unsigned issuer;       /* deferred: the thread whose program it stands in, */
    uint32_t since;        /* and when that was; 0: what the issuer did does not count */
};
extern emu_actor *emu_acting; /* NULL: the running thread */
extern uint32_t emu_latest_time;
extern uint32_t emu_clock[NENT][NENT]; /* [e]: what e knows; [e][e]: its own time */
void emu_shared_begin_launch(size_t dynamic_bytes);
void emu_shared_end_launch(void);
void emu_shared_begin_block(void);
void emu_tick(int entity); /* what it did so far precedes what it does next */
void emu_join_block(void); /* __syncthreads: everybody knows everything */
void emu_learn(uint32_t *to, const uint32_t *from); /* elementwise maximum */

/* ---- ptx_run.cc ----------------------------------------------------------------------------- */
extern const char *emu_ptx_file; /* where in nvcc's code the running thread is; line 0: it is not */
extern int emu_ptx_line;

/* ---- global.cc ------------------------------------------------------------------------------- */
void emu_global_begin_launch(void);

/* ---- deferred.cc ---------------------------------------------------------------------------- */
void emu_deferred_begin_block(void);
void emu_deferred_drop(void);           /* what belongs to threads and groups is forgotten */
bool emu_engine_step(bool may_choose);  /* does one piece of engine work; false: there is none */
void emu_engine_abandon(void);          /* leaves the engine work that is being done, if any */
extern bool emu_async_by_chance;        /* deferred work of this block is done at random: then */
bool emu_async_random_now(void);        /* tosses whether to do some now */
extern const uint32_t *emu_group_knows; /* within emu_group's fn: what all participants know */

/* ---- runtime.cc ----------------------------------------------------------------------------- */
void emu_device_open(void); /* nested */
void emu_device_close(void);
bool emu_device_range(const void *p, size_t bytes); /* lies in one live allocation */
bool emu_is_device(const void *p);                  /* lies in the reserved range at all */
bool emu_device_offset(const void *p, size_t *at);  /* and how far from its start */
size_t emu_device_space(void);                      /* bytes of that range */
bool emu_is_pinned(const void *p, size_t bytes);
bool emu_capture_forbids(const char *what); /* a stream captures: fails, and ends the capture */
void emu_settle(void);                      /* all streams: whatever they were asked for is done */
/* Not done yet, by the policy of the streams. */
bool emu_copy_under_way(const void *host, size_t bytes);
cudaError_t emu_fail(cudaError_t code, const char *text);
int emu_sm(void);
int emu_optin(void); /* bytes of shared memory that a block may have */
/* One thread at a time, nested: several may use the device, as the threads of a process may. */
struct emu_guard {
    emu_guard();
    ~emu_guard();
};
#endif
