/* Who touches which bytes of device memory in one launch: finds what would be a race on a GPU and
 * cannot show here, where blocks run one after another. tp_ldg and tp_stg tell of their accesses;
 * atomics, asynchronous copies and accesses by plain pointers do not. Two accesses of one place, at
 * least one of them a write, are a race
 *   - by threads of different blocks, unless the kernel's blocks hand work on by flags: then
 * nothing is said of that launch;
 *   - by threads of one block with no barrier between (shared.cc's clocks), or by lanes of a warp
 *     at the same time of it.
 * Of several readers only the last is remembered, so not every race is found. */
#include <stdlib.h>
#include <sys/mman.h>
#include "internal.h"

/* Of two bytes. Single bytes are not watched: their neighbours may be other threads'. */
struct mark {
    uint32_t wblock, rblock; /* low halves of the blocks' serial numbers; 0: nobody */
    uint32_t wclk, rclk;
    uint16_t wthread, rthread;
};
enum { UNIT = 2 };
static mark *marks;
static bool off;
static unsigned long long first_block; /* of the launch */

void emu_global_begin_launch(void) {
    first_block = emu_block.serial + 1;
    off = false;
    size_t bytes = emu_device_space() / UNIT * sizeof(mark);
    if (marks) return;
    void *m = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m != MAP_FAILED) marks = (mark *)m;
}
void emu_global_hand_on(void) { off = true; }

/* Did `thread` of block `block`, at its warp's time clk, come before what this thread does? */
static bool before(uint32_t block, uint32_t clk, int thread) {
    if (block < (uint32_t)first_block) return true; /* of a launch before */
    if (block != (uint32_t)emu_block.serial) return false;
    int me = emu_block.current, w = me / 32;
    if (thread == me) return true;
    return thread / 32 == w ? clk < emu_clock[w][w] : clk <= emu_clock[w][thread / 32];
}
static void race(const char *did, uint32_t block, int thread, const void *p, bool write) {
    if (block != (uint32_t)emu_block.serial)
        emu_report("race on device memory at %p: %s by thread %d of another block, %s here", p, did,
                   thread, write ? "written" : "read");
    else
        emu_report("race on device memory at %p: %s by thread %d, %s by this one, no barrier "
                   "between",
                   p, did, thread, write ? "written" : "read");
}

void emu_global_access(const void *p, size_t bytes, bool write) {
    size_t at;
    if (off || !marks || bytes < UNIT || emu_block.current < 0 || !emu_device_offset(p, &at))
        return;
    int me = emu_block.current;
    uint32_t block = (uint32_t)emu_block.serial, clk = emu_clock[me / 32][me / 32];
    for (mark *m = &marks[at / UNIT], *end = m + bytes / UNIT; m < end; m++) {
        if (m->wblock && !before(m->wblock, m->wclk, m->wthread))
            race("written", m->wblock, m->wthread, p, write);
        if (write) {
            if (m->rblock && !before(m->rblock, m->rclk, m->rthread))
                race("read", m->rblock, m->rthread, p, true);
            *m = mark{block, 0, clk, 0, (uint16_t)me, 0};
        } else {
            m->rblock = block, m->rclk = clk, m->rthread = (uint16_t)me;
        }
    }
}
