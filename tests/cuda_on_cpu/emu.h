/* The emulator that runs CUDA kernels on the CPU: what wrappers around tensor-core and asynchronous
 * instructions, and tests, ask of it. Kernels themselves see cuda_on_cpu.h.
 *
 * A grid's blocks run one after another; the threads of a block are fibers of one OS thread, so a
 * fiber runs until it waits. An error is recorded, not fatal: the launch is unwound (its fibers are
 * dropped where they stand) and cudaGetLastError() says cudaErrorLaunchFailure. */
#ifndef TP_EMU_H
#define TP_EMU_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

/* ---- reports -------------------------------------------------------------------------------- */
/* The first error's sentence ("" if none) since emu_clear_error or the last cudaGetLastError that
 * returned it; at most 768 bytes. */
const char *emu_last_error(void);
int emu_error_count(void);
void emu_clear_error(void);
/* Reports an error of the running thread. In a kernel it does not return: the launch is over. */
void emu_report(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* ---- schedules ------------------------------------------------------------------------------ */
/* "forward", "reverse", "random:SEED": the order in which threads, and blocks, run. NULL: what
 * TAPIR_EMU_ORDER says, else forward. False: not understood. A kernel whose blocks wait for
 * earlier blocks keeps their order: emu_set_block_order("forward") after this. */
bool emu_set_order(const char *order); /* forward and reverse: a warp goes on while it can */
bool emu_set_block_order(const char *order);
/* "late" (default), "early", "random:SEED": when deferred work is done; NULL: TAPIR_EMU_ASYNC. */
bool emu_set_async(const char *policy);
/* When a stream does what it was asked for: "at once", or "late": as late as events and waits
 * allow. NULL: what TAPIR_EMU_STREAMS says, else at once. */
bool emu_set_streams(const char *policy);
/* 80 or 90: the compute capability that cudaGetDeviceProperties tells; 0: TAPIR_EMU_SM, else 80. */
void emu_set_sm(int sm);
void emu_set_devices(int n); /* how many there seem to be */

/* ---- the running thread --------------------------------------------------------------------- */
bool emu_in_kernel(void);
int emu_thread(void); /* index in its block, x fastest; its warp is this / 32 */
int emu_threads(void);

/* ---- meeting of threads --------------------------------------------------------------------- */
/* All 32 lanes of the warp must arrive, each with its own `mine`; the last to come runs fn once
 * over the lanes' pointers; then all go on. Orders shared memory accesses within the warp. `what`
 * is the instruction's name, for reports; lanes that meet must agree in it. */
void emu_warp_named(const char *what, void *mine, void (*fn)(void *const lane[32], void *arg),
                    void *arg);
/* The same among the lanes of `mask`; lane[i] is NULL outside it. fn may be NULL. */
void emu_warp_mask(unsigned mask, const char *what, void *mine,
                   void (*fn)(void *const lane[32], void *arg), void *arg);
static inline void emu_warp(void *mine, void (*fn)(void *const lane[32], void *arg), void *arg) {
    emu_warp_named("a warp collective", mine, fn, arg);
}
/* The same for threads first_thread .. first_thread + count - 1 (a warpgroup: 128). It orders
 * nothing between the warps: within fn, shared memory accesses and emu_defer see only what every
 * participating warp has synchronised with. */
void emu_group(int first_thread, int count, void *mine, void (*fn)(void *const *lane, void *arg),
               void *arg);
/* __syncthreads. Threads that wait at another file and line are reported. */
void emu_syncthreads(const char *file, int line);
/* bar.sync (wait) and bar.arrive (!wait) id 0..15 for `count` threads. */
void emu_named_barrier(int id, int count, bool wait);
/* Returns when ready(arg) is true; until then other threads run. `what` is for the report of a
 * deadlock: "mbarrier 3, phase 1". */
void emu_wait(bool (*ready)(void *), void *arg, const char *what);
/* The running kernel's blocks order their accesses to device memory by flags. */
void emu_global_hand_on(void);
void emu_yield(void); /* lets the others run; a block whose threads only do this is a deadlock */

/* ---- shared memory -------------------------------------------------------------------------- */
/* Checks an access of the running thread (or of the deferred work that is being done): bounds,
 * written before it is read, ordered with conflicting accesses. */
void emu_smem_access(const void *p, size_t bytes, bool write);
/* The same for an asynchronous engine: entity EMU_ENGINE(0..7), with that engine's own clock. */
#define EMU_ENGINE(k) (32 + (k))
void emu_smem_access_as(int entity, const void *p, size_t bytes, bool write);
/* p must be divisible by `bytes` (4, 8, 16); `what` names the access in the report. */
void emu_check_aligned(const void *p, size_t bytes, const char *what);
bool emu_is_smem(const void *p);
/* __cvta_generic_to_shared and back. Offsets stay under 256 KB, and dynamic shared memory begins at
 * a multiple of 1024, as wgmma descriptors need. */
uint32_t emu_smem_offset(const void *p);
void *emu_smem_ptr(uint32_t offset);

/* ---- clocks (who has seen whose work) ------------------------------------------------------- */
/* Vector clocks with a warp as the entity. Release: sync_object learns all that the running warp
 * knows (deferred work of an engine: only that work itself). Acquire: the running warp learns it.
 * A sync object is any address, forgotten when the block ends. */
void emu_clock_release(void *sync_object);
void emu_clock_acquire(void *sync_object);
/* The same in the name of an engine. */
void emu_clock_release_as(int entity, void *sync_object);
void emu_clock_acquire_as(int entity, void *sync_object);

/* ---- work done late ------------------------------------------------------------------------- */
/* Queues 0..7 belong to the running thread: drained only by itself. Engine queues belong to the
 * block and make progress of themselves, at the latest when no thread can go on (TMA). Group queues
 * belong to the block and are drained by whoever drains them first (wgmma, one per warpgroup). */
enum {
    EMU_QUEUE_CP_ASYNC = 0,
    EMU_QUEUE_THREAD_LAST = 7,
    EMU_QUEUE_ENGINE = 8, /* 8..15 */
    EMU_QUEUE_GROUP = 16, /* 16..47; of a warpgroup g: 16 + g */
    EMU_NQUEUE = 48
};
/* fn(copy of arg's bytes) will run: at once (early), when drained (late), or either (random), in
 * the queue's order (an engine's: in any). Its shared memory accesses are checked against what the
 * running warp knew when it deferred the work, and count as made when it runs: by the draining
 * thread, or by the engine or group, whose work a warp knows of after it drained the queue (or
 * acquired what fn released). bytes <= 2048. */
void emu_defer(int queue, void (*fn)(void *arg), const void *arg, size_t bytes);
/* Closes a group of what was deferred since the last commit (cp.async.commit_group). Of a group
 * queue: once, as within emu_group's fn, not by each thread. */
void emu_commit(int queue);
/* Does all but the last `groups` committed groups (and what was not committed, if groups < 0 ). */
void emu_drain_to(int queue, int groups);
void emu_drain(int queue); /* does everything, committed or not */
int emu_pending(int queue);

/* ---- launches (C++ callers use the templates of cuda_on_cpu.h) ------------------------------ */
/* Runs, or records in the capturing stream, call(closure) for every thread. closure is copied.
 * func: the kernel's address, for cudaFuncSetAttribute's limit; NULL: unknown, limit not checked.
 */
int emu_launch_closure(const char *name, const void *func, const unsigned grid[3],
                       const unsigned block[3], size_t smem_bytes, void *stream,
                       void (*call)(const void *closure), const void *closure,
                       size_t closure_bytes);
#ifdef __cplusplus
}
#endif
#endif
