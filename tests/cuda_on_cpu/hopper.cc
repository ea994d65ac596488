/* Hopper's asynchronous units on the CPU: mbarriers, TMA, bulk copies and wgmma by their documented
 * layouts (PTX ISA, "mbarrier", "Tensors", "Asynchronous warpgroup level matrix instructions").
 * Addresses are offsets in shared memory, swizzles act on their bits, and what hardware does at its
 * own time is deferred work (emu.h). */
#include <stdlib.h>
#include "internal.h"
#include "ops/cuda_hopper.h"

enum { QUEUE_LOAD = EMU_QUEUE_ENGINE, LOADS = 4, QUEUE_STORE = 1, QUEUE_WGMMA = EMU_QUEUE_GROUP };

/* What a thread owes: fences and waits that nothing on the CPU needs, and hardware does. */
struct debts {
    unsigned long long block;
    bool store;    /* tile stores since its last fence.proxy.async */
    bool fence;    /* no wgmma.fence since registers of products were last free to be written */
    bool bulk;     /* bulk stores that may not have reached global memory */
    bool acquired; /* saw another block's flag, and no fence.proxy.async.global since */
};
static debts owed[MAX_THREADS];
static debts *mine(void) {
    debts *d = &owed[emu_thread()];
    if (d->block != emu_block.serial) *d = debts{emu_block.serial, false, true, false, false};
    return d;
}

/* ---- mbarriers --------------------------------------------------------------------------------
 */
/* The 64 bits of an mbarrier are opaque in the ISA; these are the emulator's. */
struct mbarrier {
    uint64_t magic : 7, fenced : 1, phase : 1, count : 13, pending : 13, tx : 29;
    /* fenced: TMA may use it; tx: two's complement */
};
static_assert(sizeof(mbarrier) == 8, "an mbarrier is 8 bytes");
enum { MAGIC = 0x35, TX_BITS = 29, MAX_NEW = 64 };
/* Those that wait for a fence.mbarrier_init, which their own thread must do. */
static struct new_barrier {
    mbarrier *at;
    int thread;
} new_barriers[MAX_NEW];
static int nnew;
static unsigned long long new_block;

static mbarrier *barrier_at(uint64_t *bar, const char *what) {
    mbarrier *b = (mbarrier *)bar;
    emu_check_aligned(bar, 8, what);
    if (!emu_is_smem(bar))
        emu_report("%s: %p is not in shared memory", what, (void *)bar);
    else if (b->magic != MAGIC)
        emu_report("%s: no mbarrier was initialised at shared offset %u", what,
                   emu_smem_offset(bar));
    return b;
}

void hopper_mbar_init(uint64_t *bar, int count) {
    emu_check_aligned(bar, 8, "mbarrier.init");
    emu_smem_access(bar, 8, true);
    if (count < 1 || count > 4096) emu_report("mbarrier.init with a count of %d", count);
    mbarrier b = {MAGIC, 0, 0, (unsigned)count & 0x1fff, (unsigned)count & 0x1fff, 0};
    memcpy(bar, &b, sizeof b);
    if (new_block != emu_block.serial) nnew = 0, new_block = emu_block.serial;
    if (nnew == MAX_NEW)
        emu_report("mbarrier.init: more than %d without a fence", (int)MAX_NEW);
    else
        new_barriers[nnew++] = new_barrier{(mbarrier *)bar, emu_thread()};
}
void hopper_mbar_init_fence(void) {
    int left = 0, n = new_block == emu_block.serial ? nnew : 0;
    for (int i = 0; i < n; i++)
        if (new_barriers[i].thread == emu_thread())
            new_barriers[i].at->fenced = 1;
        else
            new_barriers[left++] = new_barriers[i];
    if (n) nnew = left;
}
static void check_fenced(uint64_t *bar, const char *what) {
    if (!barrier_at(bar, what)->fenced)
        emu_report("%s: the mbarrier at shared offset %u was initialised without a "
                   "fence.mbarrier_init behind it",
                   what, emu_smem_offset(bar));
}

static void end_phase_if_complete(mbarrier *b) {
    if (b->pending || b->tx) return;
    b->phase ^= 1;
    b->pending = b->count;
}

void hopper_mbar_arrive(uint64_t *bar, int bytes) {
    mbarrier *b = barrier_at(bar, "mbarrier.arrive");
    hopper_no_unfenced_stores("mbarrier.arrive");
    if (!b->pending)
        emu_report("mbarrier.arrive: more than %d arrivals in one phase at shared offset %u",
                   (int)b->count, emu_smem_offset(bar));
    emu_clock_release(bar);
    b->tx += (unsigned)bytes;
    b->pending--;
    end_phase_if_complete(b);
}

static void complete_bytes(uint64_t *bar, int bytes) {
    mbarrier *b = barrier_at(bar, "complete_tx");
    emu_clock_release(bar);
    b->tx -= (unsigned)bytes;
    end_phase_if_complete(b);
}

struct phase_wait {
    uint64_t *bar;
    unsigned parity;
};
static bool phase_over(void *arg) {
    const phase_wait *w = (const phase_wait *)arg;
    return ((const mbarrier *)w->bar)->phase != w->parity;
}
void hopper_mbar_wait(uint64_t *bar, int parity) {
    phase_wait w = {bar, (unsigned)parity};
    barrier_at(bar, "mbarrier.try_wait");
    if (parity & ~1) emu_report("mbarrier.try_wait: parity %d", parity);
    emu_wait(phase_over, &w, "an mbarrier");
    emu_clock_acquire(bar);
}

/* ---- order between ordinary stores and asynchronous reads -------------------------------------
 */
void hopper_store_tile(void *p, uint32_t v) {
    tp_sts((uint32_t *)p, v);
    mine()->store = true;
}
void hopper_store_tile4(void *p, float4 v) {
    tp_sts((float4 *)p, v);
    mine()->store = true;
}
/* Kernels that g++ compiled tell of their stores to tiles. Of nvcc's every store is known: who made
 * the last one to these 16 bytes, and how many fences it had done by then. */
struct last_store {
    unsigned long long block;
    uint32_t fences;
    int thread;
};
static last_store last_stores[SMEM_SPACE / 16];
static uint32_t fences[MAX_THREADS];
void hopper_wrote(const void *p, size_t bytes) {
    uint32_t at = emu_smem_offset(p), t = (uint32_t)emu_thread();
    for (uint32_t i = at / 16; i <= (at + (uint32_t)bytes - 1) / 16; i++)
        last_stores[i] = last_store{emu_block.serial, fences[t], (int)t};
}
static void read_by_engine(const void *p, const char *what) {
    const last_store *s = &last_stores[emu_smem_offset(p) / 16];
    if (s->block == emu_block.serial && s->fences == fences[s->thread])
        emu_report("%s reads what thread %d stored, which has done no fence.proxy.async since",
                   what, s->thread);
}
void hopper_fence_async(void) {
    mine()->store = false;
    fences[emu_thread()]++;
}
void hopper_no_unfenced_stores(const char *what) {
    if (mine()->store)
        emu_report("%s by thread %d: its stores to a tile are not visible to wgmma and TMA, there "
                   "is no fence.proxy.async between",
                   what, emu_thread());
}

/* ---- order between blocks, of what bulk copies read and write in global memory ----------------
 */
void hopper_acquired(void) {
    mine()->acquired = true;
    emu_global_hand_on();
}
void hopper_fence_async_global(void) { mine()->acquired = false; }
void hopper_releases(void) {
    if (mine()->bulk)
        emu_report("st.release by thread %d: its bulk stores may not have reached global memory, "
                   "there is no cp.async.bulk.wait_group 0 (which is not .read) between",
                   emu_thread());
}
static void bulk_store_begins(const char *what) {
    hopper_no_unfenced_stores(what);
    if (mine()->acquired)
        emu_report("%s by thread %d: not ordered behind the flag it has seen, there is no "
                   "fence.proxy.async.global between",
                   what, emu_thread());
    mine()->bulk = true;
}

/* ---- tensor maps and TMA ----------------------------------------------------------------------
 */
struct tensor_map {
    unsigned char *data;
    uint64_t stride[4]; /* bytes */
    uint32_t size[4], box[4];
    uint32_t swizzle, magic;
};
static_assert(sizeof(tensor_map) <= sizeof(tp_tma_map), "fits");
enum { MAP_MAGIC = 0x7a9172 };

const char *hopper_map_bf16(tp_tma_map *out, const tp_tma_shape *s) {
    static const uint32_t row[] = {512, 128, 64, 32};
    tensor_map m = {
        (unsigned char *)const_cast<void *>(s->data), {2}, {}, {}, s->swizzle, MAP_MAGIC};
    if ((uintptr_t)s->data % 16) return "the tensor map's address is not 16-byte aligned";
    if (s->stride[0] != 1) return "the tensor map's innermost stride is not 1";
    for (int i = 0; i < 4; i++) {
        if (s->size[i] < 1 || s->size[i] > UINT32_MAX) return "the tensor map's size is refused";
        if (s->box[i] < 1 || s->box[i] > 256) return "the tensor map's box is refused";
        if (i && (s->stride[i] < 0 || s->stride[i] * 2 % 16 || s->stride[i] * 2 >> 40))
            return "the tensor map's stride is refused";
        m.size[i] = (uint32_t)s->size[i];
        m.box[i] = (uint32_t)s->box[i];
        m.stride[i] = (uint64_t)s->stride[i] * 2;
    }
    if (m.box[0] * 2 % 16 || m.box[0] * 2 > row[s->swizzle])
        return "the tensor map's box is wider than its swizzle";
    memset(out, 0, sizeof *out);
    memcpy(out, &m, sizeof m);
    return nullptr;
}

struct tma_job {
    tensor_map map;
    unsigned char *shared;
    uint64_t *bar;
    int at[4];
    bool load;
};

/* The address in shared memory where the box's byte `offset` lies. */
static unsigned char *swizzled(unsigned char *base, uint32_t offset, uint32_t swizzle) {
    return (unsigned char *)emu_smem_ptr(
        tp_swizzled(emu_smem_offset(base) + offset, (enum tp_swizzle)swizzle));
}

static void tma_do(void *arg) {
    const tma_job *j = (const tma_job *)arg;
    const tensor_map *m = &j->map;
    uint32_t offset = 0;
    for (uint32_t i3 = 0; i3 < m->box[3]; i3++)
        for (uint32_t i2 = 0; i2 < m->box[2]; i2++)
            for (uint32_t i1 = 0; i1 < m->box[1]; i1++)
                for (uint32_t i0 = 0; i0 < m->box[0]; i0 += 8, offset += 16) {
                    int64_t c[4] = {j->at[0] + (int64_t)i0, j->at[1] + (int64_t)i1,
                                    j->at[2] + (int64_t)i2, j->at[3] + (int64_t)i3};
                    unsigned char *s = swizzled(j->shared, offset, m->swizzle);
                    bool inside = true;
                    int64_t address = 0;
                    for (int i = 0; i < 4; i++) {
                        if (i) inside = inside && c[i] >= 0 && c[i] < m->size[i];
                        address += c[i] * (int64_t)m->stride[i];
                    }
                    int64_t values = !inside || c[0] < 0 ? 0 : m->size[0] - c[0];
                    if (values > 8) values = 8;
                    if (values < 0) values = 0;
                    emu_smem_access(s, 16, j->load);
                    if (!j->load) read_by_engine(s, "TMA");
                    if (values) emu_check_global(m->data + address, (size_t)values * 2, 16);
                    if (j->load) {
                        memset(s, 0, 16);
                        if (values) memcpy(s, m->data + address, (size_t)values * 2);
                    } else if (values)
                        memcpy(m->data + address, s, (size_t)values * 2);
                }
    if (j->load) complete_bytes(j->bar, (int)offset);
}

void hopper_tma(const tp_tma_map *map, void *shared, uint64_t *bar, const int at[4], bool load) {
    tma_job j = {{}, (unsigned char *)shared, bar, {at[0], at[1], at[2], at[3]}, load};
    memcpy(&j.map, map, sizeof j.map);
    if (j.map.magic != MAP_MAGIC) {
        emu_report("TMA: no tensor map was made here");
        return;
    }
    emu_check_aligned(shared, 128, "TMA's tile");
    if (load)
        check_fenced(bar, "TMA");
    else
        bulk_store_begins("TMA store");
    emu_defer(load ? QUEUE_LOAD + (int)((uintptr_t)bar / 8 % LOADS) : QUEUE_STORE, tma_do, &j,
              sizeof j);
}

struct bulk_job {
    unsigned char *to;
    const unsigned char *from;
    int bytes;
    uint64_t *bar;
    bool add;
};
static void bulk_load_do(void *arg) {
    const bulk_job *j = (const bulk_job *)arg;
    emu_check_global(j->from, (size_t)j->bytes, 16);
    emu_smem_access(j->to, (size_t)j->bytes, true);
    memcpy(j->to, j->from, (size_t)j->bytes);
    complete_bytes(j->bar, j->bytes);
}
static void bulk_store_do(void *arg) {
    const bulk_job *j = (const bulk_job *)arg;
    emu_check_global(j->to, (size_t)j->bytes, 16);
    emu_smem_access(j->from, (size_t)j->bytes, false);
    for (int i = 0; i < j->bytes; i += 16) read_by_engine(j->from + i, "cp.async.bulk");
    if (!j->add) memcpy(j->to, j->from, (size_t)j->bytes);
    for (int i = 0; j->add && i < j->bytes / 4; i++)
        ((float *)j->to)[i] += ((const float *)j->from)[i];
}
static void check_bulk(const void *a, const void *b, int bytes) {
    emu_check_aligned(a, 16, "cp.async.bulk");
    emu_check_aligned(b, 16, "cp.async.bulk");
    if (bytes <= 0 || bytes % 16) emu_report("cp.async.bulk of %d bytes", bytes);
}
void hopper_bulk_load(void *dst, const void *src, int bytes, uint64_t *bar) {
    bulk_job j = {(unsigned char *)dst, (const unsigned char *)src, bytes, bar, false};
    check_bulk(dst, src, bytes);
    check_fenced(bar, "cp.async.bulk");
    emu_defer(QUEUE_LOAD + (int)((uintptr_t)bar / 8 % LOADS), bulk_load_do, &j, sizeof j);
}
void hopper_bulk_store(void *dst, const void *src, int bytes, bool add) {
    bulk_job j = {(unsigned char *)dst, (const unsigned char *)src, bytes, nullptr, add};
    check_bulk(dst, src, bytes);
    bulk_store_begins("cp.async.bulk");
    emu_defer(QUEUE_STORE, bulk_store_do, &j, sizeof j);
}
void hopper_bulk_commit(void) { emu_commit(QUEUE_STORE); }
void hopper_bulk_wait(int groups, bool read_only) {
    emu_drain_to(QUEUE_STORE, groups);
    if (!read_only && !emu_pending(QUEUE_STORE)) mine()->bulk = false;
}

/* ---- wgmma ------------------------------------------------------------------------------------
 */
/* One product of a warpgroup. Kept in a list of its own, as 128 pointers do not fit deferred work.
 */
struct wgmma_job {
    wgmma_job *next, *made_before;
    int n, ta, tb, add;
    float *d[128];
    const uint32_t *a[128]; /* NULL: from shared memory. Registers are read when the work is done */
    uint64_t a_desc, b_desc;
};
static wgmma_job *spare_jobs, *last_made; /* the latter: every job, also of unwound launches */

static float bf16_at(const unsigned char *p) {
    uint16_t v;
    memcpy(&v, p, 2);
    return __uint_as_float((unsigned)v << 16);
}

/* Reads a (rows, 16) operand where its descriptor says. Not transposed: the 16 summed values are
 * contiguous, rows are one swizzle row apart, groups of 8 rows `stride` bytes. Transposed: a
 * swizzle row holds values of neighbouring rows m; further ones are `leading` bytes away; groups
 * of 8 summed values are `stride` bytes apart. (PTX ISA, "Strides" and "Canonical layouts".) */
static void read_operand(uint64_t desc, int rows, int transposed, float out[256][16]) {
    static const uint32_t row_bytes[] = {16, 128, 64, 32};
    uint32_t start = (uint32_t)(desc & 0x3fff) << 4, leading = (uint32_t)(desc >> 16 & 0x3fff) << 4;
    uint32_t stride = (uint32_t)(desc >> 32 & 0x3fff) << 4, swizzle = (uint32_t)(desc >> 62);
    uint32_t row = row_bytes[swizzle];
    if (swizzle == TP_SWIZZLE_NONE) {
        emu_report("wgmma: descriptors without swizzle are not emulated");
        return;
    }
    if (desc >> 49 & 7) emu_report("wgmma: a base offset is not emulated");
    int outer = transposed ? 16 : rows, inner = transposed ? rows : 16;
    for (int o = 0; o < outer; o++)
        for (int i = 0; i < inner; i += 8) {
            uint32_t byte = (uint32_t)i * 2, group = byte / row;
            uint32_t at = start + (uint32_t)(o / 8) * stride + (uint32_t)(o % 8) * row;
            at += transposed ? group * leading + byte % row : byte;
            const unsigned char *p =
                (const unsigned char *)emu_smem_ptr(tp_swizzled(at, (enum tp_swizzle)swizzle));
            emu_smem_access(p, 16, false);
            read_by_engine(p, "wgmma");
            for (int e = 0; e < 8; e++)
                if (transposed)
                    out[i + e][o] = bf16_at(p + 2 * e);
                else
                    out[o][i + e] = bf16_at(p + 2 * e);
        }
}

static void wgmma_do(void *arg) {
    static float a[256][16], b[256][16];
    wgmma_job *j = *(wgmma_job **)arg;
    if (!j->a[0]) read_operand(j->a_desc, 64, j->ta, a);
    for (int t = 0; t < 128 && j->a[0]; t++)
        for (int e = 0; e < 4; e++) {
            int r = t / 32 * 16 + t % 32 / 4 + e % 2 * 8, k = t % 4 * 2 + e / 2 * 8;
            a[r][k] = __uint_as_float(j->a[t][e] << 16);
            a[r][k + 1] = __uint_as_float(j->a[t][e] & 0xffff0000u);
        }
    read_operand(j->b_desc, j->n, j->tb, b);
    for (int t = 0; t < 128; t++)
        for (int i = 0; i < j->n / 2; i++) {
            int r = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, c = i / 4 * 8 + t % 4 * 2 + i % 2;
            float sum = 0;
            for (int k = 0; k < 16; k++) sum += a[r][k] * b[c][k];
            j->d[t][i] = (j->add ? j->d[t][i] : 0) + sum;
        }
    j->next = spare_jobs;
    spare_jobs = j;
}

struct wgmma_lane {
    int n, ta, tb, add;
    float *d;
    const uint32_t *a;
    uint64_t a_desc, b_desc;
};
static void wgmma_start(void *const *lane, void *group) {
    const wgmma_lane *first = (const wgmma_lane *)lane[0];
    wgmma_job *j = spare_jobs;
    if (j)
        spare_jobs = j->next;
    else if ((j = (wgmma_job *)malloc(sizeof *j)))
        j->made_before = last_made, last_made = j;
    if (!j) {
        emu_report("wgmma: no memory");
        return;
    }
    j->n = first->n, j->ta = first->ta, j->tb = first->tb, j->add = first->add;
    j->a_desc = first->a_desc, j->b_desc = first->b_desc;
    for (int t = 0; t < 128; t++) {
        const wgmma_lane *l = (const wgmma_lane *)lane[t];
        j->d[t] = l->d;
        j->a[t] = l->a;
        if (l->n != first->n || l->ta != first->ta || l->tb != first->tb || l->add != first->add ||
            !l->a != !first->a || l->a_desc != first->a_desc || l->b_desc != first->b_desc)
            emu_report("wgmma: thread %d of the warpgroup starts another product than the first",
                       t);
    }
    emu_defer(QUEUE_WGMMA + *(const int *)group, wgmma_do, &j, sizeof j);
}
void hopper_wgmma(int n, float *d, const uint32_t *a, uint64_t a_desc, uint64_t b_desc, int ta,
                  int tb, int add) {
    wgmma_lane l = {n, ta, tb, add != 0, d, a, a_desc, b_desc};
    int group = emu_thread() / 128;
    hopper_no_unfenced_stores("wgmma");
    if (mine()->fence)
        emu_report("wgmma by thread %d: no wgmma.fence since its registers may have been written",
                   emu_thread());
    emu_group(group * 128, 128, &l, wgmma_start, &group);
}
static void done_at_once(void *const *, void *group) {
    emu_drain(QUEUE_WGMMA + *(const int *)group);
}
void hopper_wgmma_now(int n, float *d, const uint32_t *a, uint64_t a_desc, uint64_t b_desc, int ta,
                      int tb, int add) {
    int group = emu_thread() / 128;
    hopper_wgmma(n, d, a, a_desc, b_desc, ta, tb, add);
    emu_group(group * 128, 128, nullptr, done_at_once, &group);
}
/* What a product has given back may be written, and so may the registers of the next. */
void hopper_wgmma_fence(void) { mine()->fence = false; }
static void commit_once(void *const *, void *group) {
    emu_commit(QUEUE_WGMMA + *(const int *)group);
}
void hopper_wgmma_commit(void) {
    int group = emu_thread() / 128;
    emu_group(group * 128, 128, nullptr, commit_once, &group);
}
/* By all lanes of a warp together, as the instruction is aligned: what one of them does before must
 * not be ordered behind the products because another came here earlier. */
static void wait_once(void *const *, void *groups) {
    emu_drain_to(QUEUE_WGMMA + emu_thread() / 128, *(const int *)groups);
}
void hopper_wgmma_wait(int groups) {
    emu_group(emu_thread() / 32 * 32, 32, nullptr, wait_once, &groups);
    mine()->fence = true;
}
