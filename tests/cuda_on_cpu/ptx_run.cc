/* Does what PTX says, one instruction of one thread after another. What threads do together, and
 * whatever happens later, is the emulator's as it is for kernels that g++ compiled: the functions
 * behind the wrappers of ops/cuda_mma.h and ops/cuda_hopper.h. Only a product of a warpgroup is
 * done at once: nvcc copies accumulators from register to register while products are under way,
 * which ptxas undoes. So a wait that only keeps shared memory from being written too early is not
 * missed here; it is where g++ compiled the same line. */
#include <stdlib.h>
#include "ops/cuda_hopper.h"
#include "ops/cuda_mma.h"
#include "ptx_values.h"

const char *emu_ptx_file;
int emu_ptx_line;

/* ---- memory ---------------------------------------------------------------------------------- */
static void touch(const ptx_ins *in, unsigned char *p, bool in_shared, bool write) {
    size_t each = (size_t)bits_of(in->type) / 8, bytes = each * (size_t)in->vector;
    if (!in->unused) {
        if (in_shared) return emu_smem_check(p, bytes, bytes, write);
        emu_check_global(p, bytes, bytes);
        return emu_global_access(p, bytes, write);
    }
    emu_check_aligned(p, bytes, "a load"); /* nvcc made it wider than what was asked for */
    for (int i = 0; i < in->vector; i++)
        if (in->unused >> i & 1)
            continue;
        else if (in_shared)
            emu_smem_check(p + each * (size_t)i, each, each, write);
        else
            emu_check_global(p + each * (size_t)i, each, each),
                emu_global_access(p + each * (size_t)i, each, write);
}
/* Where an address lies, checked as the emulator checks kernels' own accesses. */
static unsigned char *place(const ptx_ins *in, uint64_t address, const unsigned char *params,
                            size_t param_bytes, bool write) {
    size_t bytes = (size_t)(bits_of(in->type) / 8 * in->vector);
    unsigned char *p = (unsigned char *)(uintptr_t)(address + (uint64_t)in->offset);
    ptx_space space = in->space;
    if (space == PTX_GENERIC && emu_is_smem(p))
        space = PTX_SHARED, address = emu_smem_offset(p) - (uint64_t)in->offset;
    if (space == PTX_PARAM || (space == PTX_GENERIC && p >= params && p < params + param_bytes)) {
        if (p < params || p + bytes > params + PTX_PARAM_BYTES || write)
            emu_report("%s of %zu bytes beside the parameters", write ? "write" : "read", bytes);
        return p;
    }
    if (space == PTX_SHARED) {
        p = (unsigned char *)emu_smem_ptr((uint32_t)(address + (uint64_t)in->offset));
        touch(in, p, true, write);
        return p;
    }
    touch(in, p, false, write);
    return p;
}
static void load(const ptx_ins *in, uint64_t *r, const unsigned char *p) {
    int bits = bits_of(in->type);
    for (int i = 0; i < in->vector; i++) {
        uint64_t x = 0;
        memcpy(&x, p + i * bits / 8, (size_t)bits / 8);
        if (in->arg[i] >= 0) r[in->arg[i]] = is_signed(in->type) ? (uint64_t)extended(x, bits) : x;
    }
}
static void store(const ptx_ins *in, const uint64_t *r, unsigned char *p) {
    int bytes = bits_of(in->type) / 8;
    if (emu_is_smem(p)) hopper_wrote(p, (size_t)(bytes * in->vector));
    for (int i = 0; i < in->vector; i++)
        memcpy(p + i * bytes, &r[in->arg[in->narg - in->vector + i]], (size_t)bytes);
}
template <typename T> static uint64_t atomic(ptx_op op, unsigned char *p, T v) {
    T old;
    memcpy(&old, p, sizeof old);
    T now = op == PTX_ATOM_ADD || op == PTX_ATOM_SHARED_ADD ? (T)(old + v) : v < old ? v : old;
    memcpy(p, &now, sizeof now);
    return old;
}

/* ---- threads together ------------------------------------------------------------------------ */
/* PTX ISA, "shfl.sync": lane numbers within a segment, and what lies outside gives one's own. */
static void shuffle(const ptx_ins *in, uint64_t *r) {
    int lane = emu_thread() & 31, n = in->narg, *arg = in->arg; /* d, |p, a, b, c, mask */
    unsigned b = (unsigned)r[arg[n - 3]] & 31, c = (unsigned)r[arg[n - 2]];
    int segment = (int)(c >> 8 & 31), last = (lane & segment) | ((int)(c & 31) & ~segment),
        src = lane;
    bool inside = true;
    switch (in->op) {
    case PTX_SHFL_UP:
        src = lane - (int)b, inside = src >= last;
        break;
    case PTX_SHFL_DOWN:
        src = lane + (int)b, inside = src <= last;
        break;
    case PTX_SHFL_BFLY:
        src = lane ^ (int)b, inside = src <= last;
        break;
    default:
        src = (lane & segment) | ((int)b & ~segment), inside = src <= last;
    }
    static const char *const names[] = {"shfl.sync.up", "shfl.sync.down", "shfl.sync.bfly",
                                        "shfl.sync.idx"};
    const char *name = names[in->op - PTX_SHFL_UP];
    emu_shuffle s = {r[arg[n - 4]], 0, inside ? src : lane};
    emu_warp_mask((unsigned)r[arg[n - 1]], name, &s, emu_shuffle_all, (void *)(uintptr_t)name);
    if (arg[0] >= 0) r[arg[0]] = cut(s.out, 32);
    if (n == 6 && arg[1] >= 0) r[arg[1]] = inside;
}

static void mma(const ptx_ins *in, uint64_t *r) {
    unsigned a[4], b[2];
    float c[4], d[4];
    for (int i = 0; i < 4; i++) a[i] = (unsigned)r[in->arg[4 + i]], c[i] = f32(r[in->arg[10 + i]]);
    for (int i = 0; i < 2; i++) b[i] = (unsigned)r[in->arg[8 + i]];
    tp_mma_bf16_16x8x16(d, a, b, c);
    for (int i = 0; i < 4; i++) r[in->arg[i]] = of(d[i]);
}

/* {d…}, a or {a, a, a, a}, b, scale-d, imm-scale-a, imm-scale-b, and trans-a unless a is in
 * registers, trans-b */
static void wgmma(const ptx_ins *in, uint64_t *r) {
    const int n = in->vector, *x = in->arg + n / 2, left = in->narg - n / 2;
    const bool registers = left == 9;
    float d[128];
    uint32_t a[4];
    if (in->first != n / 2 || (left != 7 && !registers))
        return emu_report("wgmma: %d operands for %d columns", in->narg, n);
    for (int i = 0; i < n / 2; i++) d[i] = f32(r[in->arg[i]]);
    for (int i = 0; i < 4 && registers; i++) a[i] = (uint32_t)r[x[i]];
    const int *rest = x + (registers ? 4 : 1); /* b, scale-d, … */
    if (r[rest[2]] != 1 || r[rest[3]] != 1) emu_report("wgmma: operands are negated");
    hopper_wgmma_now(n, d, registers ? a : nullptr, registers ? 0 : r[x[0]], r[rest[0]],
                     registers ? 0 : (int)r[rest[4]], (int)r[rest[registers ? 4 : 5]],
                     r[rest[1]] != 0);
    for (int i = 0; i < n / 2; i++) r[in->arg[i]] = of(d[i]);
}

static inline uint64_t *barrier(uint64_t address) {
    return (uint64_t *)emu_smem_ptr((uint32_t)address);
}
static inline void *shared(uint64_t address) { return emu_smem_ptr((uint32_t)address); }

/* Everything that is not arithmetic. */
static void together(const ptx_kernel *k, const ptx_ins *in, uint64_t *r) {
    const int *x = in->arg;
#define R(i) r[x[i]]
    switch (in->op) {
    case PTX_SHFL_UP:
    case PTX_SHFL_DOWN:
    case PTX_SHFL_BFLY:
    case PTX_SHFL_IDX:
        return shuffle(in, r);
    case PTX_BALLOT:
        R(0) = __ballot_sync((unsigned)R(2), R(1) != 0);
        return;
    case PTX_ANY:
        R(0) = __any_sync((unsigned)R(2), R(1) != 0) != 0;
        return;
    case PTX_ALL:
        R(0) = __all_sync((unsigned)R(2), R(1) != 0) != 0;
        return;
    case PTX_BAR_SYNC:
        if (in->narg == 1 && !R(0)) return emu_syncthreads(k->file, in->line);
        return tp_bar_sync((int)R(0), in->narg == 2 ? (int)R(1) : emu_threads());
    case PTX_BAR_ARRIVE:
        return tp_bar_arrive((int)R(0), (int)R(1));
    case PTX_BAR_WARP:
        return __syncwarp((unsigned)R(0));
    case PTX_NANOSLEEP:
        return emu_yield();
    case PTX_NOTHING:
    case PTX_NOTHING_PREFETCH:
    case PTX_SETMAXNREG:
        return;
    case PTX_MMA:
        return mma(in, r);
    case PTX_LDMATRIX:
    case PTX_LDMATRIX_TRANS: {
        unsigned m[4];
        tp_ldmatrix_x4_(m, (tp_smem)R(4), in->op == PTX_LDMATRIX_TRANS);
        for (int i = 0; i < 4; i++) R(i) = m[i];
        return;
    }
    case PTX_CP_ASYNC:
        if (R(2) != 16 || (R(3) != 16 && R(3) != 0))
            emu_report("cp.async of %d bytes, %d of them copied", (int)R(2), (int)R(3));
        return tp_cp_async_16((tp_smem)R(0), (const void *)(uintptr_t)R(1), R(3) != 0);
    case PTX_CP_COMMIT:
        return tp_cp_async_commit();
    case PTX_CP_WAIT:
        return emu_drain_to(EMU_QUEUE_CP_ASYNC, (int)R(0));
    case PTX_MBAR_INIT:
        return hopper_mbar_init(barrier(R(0)), (int)R(1));
    case PTX_MBAR_INIT_FENCE:
        return hopper_mbar_init_fence();
    case PTX_MBAR_ARRIVE:
        return hopper_mbar_arrive(barrier(R(1)), 0);
    case PTX_MBAR_EXPECT:
        return hopper_mbar_arrive(barrier(R(1)), (int)R(2));
    case PTX_MBAR_WAIT: { /* may give up before the phase is over: here, every other time */
        static bool gave_up[MAX_THREADS];
        bool *mine = &gave_up[emu_thread()];
        *mine = !*mine;
        if (*mine) return (void)(R(0) = 0);
        hopper_mbar_wait(barrier(R(1)), (int)R(2));
        R(0) = 1;
        return;
    }
    case PTX_TMA_LOAD:
    case PTX_TMA_STORE: {
        const bool is_load = in->op == PTX_TMA_LOAD;
        const int c = is_load ? 2 : 1; /* shared, map, c…, bar; map, c…, shared */
        const int at[4] = {(int)R(c), (int)R(c + 1), (int)R(c + 2), (int)R(c + 3)};
        return hopper_tma((const tp_tma_map *)(uintptr_t)R(is_load ? 1 : 0),
                          shared(R(is_load ? 0 : 5)), is_load ? barrier(R(6)) : nullptr, at,
                          is_load);
    }
    case PTX_BULK_LOAD:
        return hopper_bulk_load(shared(R(0)), (const void *)(uintptr_t)R(1), (int)R(2),
                                barrier(R(3)));
    case PTX_BULK_STORE:
    case PTX_BULK_ADD:
        return hopper_bulk_store((void *)(uintptr_t)R(0), shared(R(1)), (int)R(2),
                                 in->op == PTX_BULK_ADD);
    case PTX_BULK_COMMIT:
        return hopper_bulk_commit();
    case PTX_BULK_WAIT:
    case PTX_BULK_WAIT_READ:
        return hopper_bulk_wait((int)R(0), in->op == PTX_BULK_WAIT_READ);
    case PTX_FENCE_ASYNC:
        return hopper_fence_async();
    case PTX_FENCE_ASYNC_GLOBAL:
        return hopper_fence_async_global();
    case PTX_WGMMA:
        return wgmma(in, r);
    case PTX_WGMMA_FENCE:
        return hopper_wgmma_fence();
    case PTX_WGMMA_COMMIT:
        return hopper_wgmma_commit();
    case PTX_WGMMA_WAIT:
        return hopper_wgmma_wait((int)R(0));
    default:
        emu_report("%s.ptx, line %d: not done here", k->file, in->line);
    }
#undef R
}

/* ---- products under way ---------------------------------------------------------------------- */
/* A product's results are here at once; on a GPU they may be looked at once it has been waited for.
 * Until then they may be copied, as nvcc does, and added to by a further product. */
struct flights {
    uint32_t committed, done; /* groups of products */
    uint32_t group[]; /* of each slot: the group, from 1, whose result it holds; 0: of none */
};
static void watch(const ptx_ins *in, flights *f) {
    const int *x = in->arg;
    const bool copies = in->op == PTX_MOV && in->narg == 2;
    for (int i = in->op == PTX_WGMMA || copies ? in->narg : in->results; i < in->narg; i++)
        if (f->group[x[i]] > f->done)
            emu_report("a product's result is read before it has been waited for");
    if (copies) {
        f->group[x[0]] = f->group[x[1]];
        return;
    }
    for (int i = in->results; i < in->narg && in->op == PTX_WGMMA; i++)
        if (f->group[x[i]] > f->done)
            emu_report("a product's result is another one's operand before it has been waited for");
    for (int i = 0; i < in->results; i++)
        if (x[i] >= 0) f->group[x[i]] = in->op == PTX_WGMMA ? f->committed + 1 : 0;
}

/* ---- one thread ------------------------------------------------------------------------------ */
static uint64_t special(uint64_t which) {
    const unsigned value[PTX_NSPECIAL] = {threadIdx.x, threadIdx.y, threadIdx.z, blockDim.x,
                                          blockDim.y,  blockDim.z,  blockIdx.x,  blockIdx.y,
                                          blockIdx.z,  gridDim.x,   gridDim.y,   gridDim.z};
    return value[which];
}

/* Its slots, as the kernel finds them, and behind them its flights. */
static uint64_t *begin(const ptx_kernel *k, const unsigned char *params) {
    static uint64_t *slots;
    static size_t room;
    size_t each = (size_t)k->slots + (k->products ? (size_t)k->slots / 2 + 2 : 0);
    size_t need = each * (size_t)emu_threads();
    if (need > room) { /* the block's first thread: no other has begun */
        free(slots);
        slots = (uint64_t *)malloc(need * sizeof *slots);
        room = slots ? need : 0;
        if (!slots) emu_report("PTX: no memory for registers");
    }
    uint64_t *r = slots + (size_t)emu_thread() * each;
    memset(r, 0xff, (size_t)k->slots * sizeof *r); /* what is not written yet is NaN */
    memset(r + k->slots, 0, (each - (size_t)k->slots) * sizeof *r);
    for (int i = 0; i < k->nfixed; i++) {
        const ptx_fixed *f = &k->fixed[i];
        uint64_t v = f->value;
        if (f->what == PTX_SPECIAL) v = special(v);
        if (f->what == PTX_PARAMETER) v += (uintptr_t)params;
        if (f->what == PTX_VARIABLE)
            v = emu_smem_offset(emu_shared_place(f->site, 1, f->size, f->align));
        if (f->what == PTX_DYNAMIC) v = emu_smem_offset(emu_shared_dynamic());
        r[f->slot] = v;
    }
    return r;
}

/* Values from values. */
static void arithmetic(const ptx_ins *now, uint64_t *r) {
    const int *x = now->arg;
#define R(i) r[x[i]]
    switch (now->op) {
    case PTX_MOV:
        if (now->narg == 2) {
            R(0) = now->type == PTX_PRED ? R(1) != 0 : cut(R(1), bits_of(now->type));
        } else { /* {low, high}, x; x, {low, high} */
            int half = bits_of(now->type) / 2;
            uint64_t v = R(2);
            if (now->first == 2)
                R(0) = cut(v, half), R(1) = cut(v >> half, half);
            else
                R(0) = cut(R(1), half) | cut(v, half) << half;
        }
        break;
    case PTX_SETP:
        if (now->type == PTX_F32)
            R(0) = compares(now->compare, f32(R(1)), f32(R(2)));
        else if (now->type == PTX_F64)
            R(0) = compares(now->compare, f64(R(1)), f64(R(2)));
        else if (is_signed(now->type))
            R(0) = compares(now->compare, extended(R(1), bits_of(now->type)),
                            extended(R(2), bits_of(now->type)));
        else
            R(0) = compares(now->compare, cut(R(1), bits_of(now->type)),
                            cut(R(2), bits_of(now->type)));
        break;
    case PTX_SELP:
        R(0) = cut(R(3) ? R(1) : R(2), bits_of(now->type));
        break;
    case PTX_CVT:
        R(0) = converted(now, R(1), now->narg == 3 ? R(2) : 0);
        break;
    case PTX_CVTA:
        R(0) = R(1);
        break;
    case PTX_CVTA_SHARED:
        R(0) = (uintptr_t)emu_smem_ptr((uint32_t)R(1));
        break;
    case PTX_CVTA_TO_SHARED:
        R(0) = emu_smem_offset((const void *)(uintptr_t)R(1));
        break;
    case PTX_BFI: {
        int bits = bits_of(now->type);
        unsigned at = (unsigned)R(3) & 255, n = (unsigned)R(4) & 255;
        uint64_t mask = at >= 64 ? 0 : cut(cut(~(uint64_t)0, n < 64 ? (int)n : 64) << at, bits);
        R(0) = cut((R(2) & ~mask) | (at >= 64 ? 0 : (R(1) << at) & mask), bits);
        break;
    }
    case PTX_BFIND:
        R(0) = (uint32_t)R(1) ? (unsigned)__clz((int)R(1)) : ~0u;
        break;
    case PTX_CLZ:
        R(0) = (unsigned)__clz((int)R(1));
        break;
    case PTX_BREV:
        R(0) = __brev((unsigned)R(1));
        break;
    case PTX_POPC:
        R(0) = (unsigned)__popc((unsigned)R(1));
        break;
    case PTX_EX2:
        R(0) = of(power_of_two(f32(R(1))));
        break;
    case PTX_RCP_APPROX:
        R(0) = of(about_reciprocal(f32(R(1))));
        break;
    default: {
        uint64_t a = R(1), b = now->narg > 2 ? R(2) : 0, c = now->narg > 3 ? R(3) : 0;
        R(0) = now->type == PTX_F32   ? fraction(now->op, f32(a), f32(b), f32(c))
               : now->type == PTX_F64 ? fraction(now->op, f64(a), f64(b), f64(c))
                                      : whole(now->op, now->type, a, b, c);
    }
    }
}

static void memory(const ptx_kernel *k, const ptx_ins *now, uint64_t *r,
                   const unsigned char *params) {
    const int *x = now->arg;
    switch (now->op) {
    case PTX_LD:
        load(now, r, place(now, r[x[now->narg - 1]], params, k->param_bytes, false));
        break;
    case PTX_ST:
        store(now, r, place(now, R(0), params, k->param_bytes, true));
        break;
    case PTX_LD_ACQUIRE:
    case PTX_LD_RELAXED: {
        const int *p = (const int *)(uintptr_t)(R(1) + (uint64_t)now->offset);
        if (now->op == PTX_LD_ACQUIRE)
            R(0) = (uint32_t)tp_load_acquire(p);
        else
            R(0) = (uint32_t)tp_flag_peek(p);
        break;
    }
    case PTX_ST_RELEASE:
    case PTX_ST_RELAXED: {
        int *p = (int *)(uintptr_t)(R(0) + (uint64_t)now->offset);
        if (now->op == PTX_ST_RELEASE)
            tp_store_release(p, (int)R(1));
        else
            tp_flag_put(p, (int)R(1));
        break;
    }
    case PTX_ATOM_ADD:
    case PTX_ATOM_MIN:
    case PTX_ATOM_SHARED_ADD:
    case PTX_ATOM_SHARED_MIN: {
        bool in_shared = now->op == PTX_ATOM_SHARED_ADD || now->op == PTX_ATOM_SHARED_MIN;
        uint64_t address = R(1) + (uint64_t)now->offset;
        unsigned char *p =
            (unsigned char *)(in_shared ? shared(address) : (void *)(uintptr_t)address);
        if (!in_shared)
            emu_check_global(p, (size_t)bits_of(now->type) / 8, (size_t)bits_of(now->type) / 8);
        uint64_t old =
            now->type == PTX_U64 ? atomic(now->op, p, R(2)) : atomic(now->op, p, (uint32_t)R(2));
        if (x[0] >= 0) R(0) = old;
        break;
    }
    default:
        break;
    }
}

/* In the order of PTX_OPS: arithmetic, memory, jumps, the rest. */
void ptx_thread(const ptx_kernel *k, const unsigned char *params) {
    uint64_t *r = begin(k, params);
    const ptx_ins *in = k->code;
    flights *f = (flights *)(r + k->slots);
    for (;;) {
        const ptx_ins *now = in++;
        if (now->guard >= 0 && (r[now->guard] != 0) == now->unless) continue;
        if (k->products) watch(now, f);
        if (now->op < PTX_LD) {
            arithmetic(now, r);
            continue;
        }
        if (now->op == PTX_RET) return;
        if (now->op == PTX_BRA) {
            in = k->code + now->target;
            continue;
        }
        emu_ptx_file = k->file, emu_ptx_line = now->line; /* for reports */
        if (now->op < PTX_BRA) {
            memory(k, now, r, params);
            continue;
        }
        together(k, now, r);
        if (now->op == PTX_WGMMA_COMMIT) f->committed++;
        if (now->op == PTX_WGMMA_WAIT && f->committed >= f->done + r[now->arg[0]])
            f->done = f->committed - (uint32_t)r[now->arg[0]];
    }
#undef R
}

/* ---- launches -------------------------------------------------------------------------------- */
struct ptx_call {
    const ptx_kernel *k;
    unsigned char params[PTX_PARAM_BYTES];
};
static void run_call(const void *call) {
    const ptx_call *c = (const ptx_call *)call;
    ptx_thread(c->k, c->params);
}
bool emu_ptx_wanted(void) {
    static int wanted = -1;
    if (wanted < 0) {
        const char *folder = getenv("TAPIR_EMU_PTX");
        wanted = folder && *folder;
    }
    return wanted;
}
int emu_ptx_launch(const char *name, const void *func, const unsigned grid[3],
                   const unsigned block[3], size_t smem_bytes, void *stream, const emu_param *param,
                   int n) {
    emu_guard alone;
    ptx_kernel *k = ptx_find(func, getenv("TAPIR_EMU_PTX"));
    if (!k) return cudaErrorLaunchFailure;
    ptx_call c = {k, {}};
    bool fits = n == k->nparams;
    /* structs end where their alignment says, which may differ */
    for (int i = 0; i < n && fits; i++) {
        const ptx_param *p = &k->param[i];
        fits = param[i].bytes <= p->size && p->size < param[i].bytes + p->align;
        if (fits) memcpy(c.params + p->at, param[i].value, param[i].bytes);
    }
    if (!fits || (int)(block[0] * block[1] * block[2]) > k->max_threads) {
        emu_record(cudaErrorLaunchFailure,
                   "PTX: %s was compiled for other parameters or smaller blocks", k->name);
        return cudaErrorLaunchFailure;
    }
    return emu_launch_closure(name, func, grid, block, smem_bytes, stream, run_call, &c, sizeof c);
}
