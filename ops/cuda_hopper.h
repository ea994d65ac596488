/* Hopper's (sm_90a) asynchronous units behind plain functions: mbarriers, the tensor memory
 * accelerator (TMA), warpgroup matrix products (wgmma), register reallocation, named barriers.
 * Source of every instruction and layout: NVIDIA, "Parallel Thread Execution ISA", chapters
 * "Asynchronous warpgroup level matrix instructions" and "Data movement: cp.async.bulk".
 * On nvcc each is inline PTX; under TP_CUDA_ON_CPU tests/cuda_on_cpu/hopper.h has the same
 * functions, which follow the documented layouts on the host.
 *
 * Code that calls them stands inside #if TP_HOPPER: other architectures compile to empty bodies. */
#ifndef TP_CUDA_HOPPER_H
#define TP_CUDA_HOPPER_H
#include "ops/cuda.h"
#include <stdint.h>

#if defined(TP_CUDA_ON_CPU) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TP_HOPPER 1
#else
#define TP_HOPPER 0
#endif

/* How 16-byte chunks of a shared tile are permuted so that neither rows nor columns of it collide
 * in one bank: address bits 4.. are XORed with bits 7.. (3 bits of them for rows of 128 bytes, 2
 * for 64, 1 for 32). Values are those of the wgmma descriptor's field. */
enum tp_swizzle {
    TP_SWIZZLE_NONE = 0,
    TP_SWIZZLE_128B = 1,
    TP_SWIZZLE_64B = 2,
    TP_SWIZZLE_32B = 3
};

/* The byte offset in a swizzled tile (which starts at a multiple of 1024) of plain offset x. */
static inline TP_HD unsigned tp_swizzled(unsigned x, enum tp_swizzle swizzle) {
    unsigned bits = swizzle == TP_SWIZZLE_NONE ? 0 : 8u >> swizzle;
    return x ^ ((x >> 3) & ((bits ? 2 * bits - 1 : 0) << 4));
}

/* Describes a tensor in global memory of up to 4 dimensions, fastest first, and the box of it that
 * one TMA instruction moves. Elements outside the tensor are read as zero and not written. */
#ifdef TP_CUDA_ON_CPU
typedef struct tp_tma_map {
    uint64_t opaque[16]; /* the emulator's own struct */
} tp_tma_map;
#else
typedef struct tp_tma_map {
    alignas(64) uint64_t opaque[16]; /* a CUtensorMap */
} tp_tma_map;
#endif
typedef struct tp_tma_shape {
    const void *data;  /* 16-byte aligned */
    int64_t size[4];   /* elements; all > 0 */
    int64_t stride[4]; /* elements; stride[0] is 1, the others' bytes are multiples of 16 */
    int box[4];        /* elements, <= 256 each; box[0] bytes <= the swizzle's row */
    enum tp_swizzle swizzle;
} tp_tma_shape;
/* Makes the map of a bf16 tensor. Returns NULL, or why not. Host only. */
static const char *tp_tma_map_bf16(tp_tma_map *out, const tp_tma_shape *s);

/* A tile in shared memory for wgmma (PTX ISA, "Matrix descriptor"). Bytes: `leading` between
 * repetitions of the swizzle's row along the contiguous dimension (unused if that is the summed
 * one), `stride` between groups of 8 rows. Adding bytes/16 to it moves the start. */
static inline TP_HD uint64_t tp_wgmma_desc_at(unsigned address, unsigned leading, unsigned stride,
                                              enum tp_swizzle swizzle) {
    return (uint64_t)((address & 0x3ffff) >> 4) | (uint64_t)((leading & 0x3ffff) >> 4) << 16 |
           (uint64_t)((stride & 0x3ffff) >> 4) << 32 | (uint64_t)swizzle << 62;
}

#ifdef TP_CUDA_ON_CPU
#include "hopper.h"
#else
#include <cuda.h>

/* ---- tensor maps (host) --------------------------------------------------------------------- */
/* The driver's function is asked for at run time, so that nothing links to libcuda. */
static inline const char *tp_tma_map_bf16(tp_tma_map *out, const tp_tma_shape *s) {
    typedef CUresult (*encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                                  const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                                  const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                                  CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
    static const CUtensorMapSwizzle swizzles[] = {
        CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_SWIZZLE_64B,
        CU_TENSOR_MAP_SWIZZLE_32B};
    static void *known; /* asked for once; threads that ask at the same time find the same */
    void *encode = __atomic_load_n(&known, __ATOMIC_RELAXED);
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSuccess;
    cudaError_t e = cudaSuccess;
#if CUDART_VERSION >= 12050
    if (!encode)
        e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000,
                                             cudaEnableDefault, &found);
#else
    if (!encode)
        e = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &encode, cudaEnableDefault, &found);
#endif
    if (e || found != cudaDriverEntryPointSuccess || !encode)
        return "the driver has no cuTensorMapEncodeTiled";
    __atomic_store_n(&known, encode, __ATOMIC_RELAXED);
    cuuint64_t size[4], stride[3];
    cuuint32_t box[4], step[4] = {1, 1, 1, 1};
    for (int i = 0; i < 4; i++) {
        size[i] = (cuuint64_t)s->size[i];
        box[i] = (cuuint32_t)s->box[i];
        if (i) stride[i - 1] = (cuuint64_t)s->stride[i] * 2;
    }
    CUresult r = ((encode_fn)encode)(
        (CUtensorMap *)out, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, (void *)s->data, size, stride, box,
        step, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzles[s->swizzle],
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return r ? "the driver refuses the tensor map" : NULL;
}

#if TP_HOPPER
#define TP_DEVICE static __device__ __forceinline__

TP_DEVICE unsigned tp_smem_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }
TP_DEVICE uint64_t tp_wgmma_desc(const void *p, unsigned leading, unsigned stride,
                                 enum tp_swizzle swizzle) {
    return tp_wgmma_desc_at(tp_smem_address(p), leading, stride, swizzle);
}

/* ---- mbarriers: a phase ends when `count` arrivals and all announced bytes have come --------- */
TP_DEVICE void tp_mbar_init(uint64_t *bar, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(tp_smem_address(bar)), "r"(count)
                 : "memory");
}
/* After the inits, before the block's barrier: TMA sees them. */
TP_DEVICE void tp_mbar_init_fence(void) {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
TP_DEVICE void tp_mbar_arrive(uint64_t *bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(tp_smem_address(bar)) : "memory");
}
/* Arrives, and announces bytes that TMA will bring in this phase. */
TP_DEVICE void tp_mbar_arrive_expect(uint64_t *bar, int bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(tp_smem_address(bar)),
        "r"(bytes)
        : "memory");
}
/* Waits for the end of the phase of this parity; the first phase's is 0. A fresh barrier counts as
 * having ended a phase of parity 1. */
TP_DEVICE void tp_mbar_wait(uint64_t *bar, int parity) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@p bra done;\n"
                 "bra again;\n"
                 "done:\n"
                 "}" ::"r"(tp_smem_address(bar)),
                 "r"(parity)
                 : "memory");
}

/* ---- TMA: one thread starts it --------------------------------------------------------------- */
TP_DEVICE void tp_tma_prefetch_map(const tp_tma_map *map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
/* Brings the box at coordinates (c0, c1, c2, c3); bar receives its bytes. */
TP_DEVICE void tp_tma_load_4d(void *dst, const tp_tma_map *map, uint64_t *bar, int c0, int c1,
                              int c2, int c3) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(tp_smem_address(dst)),
                 "l"(map), "r"(tp_smem_address(bar)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}
TP_DEVICE void tp_tma_store_4d(const tp_tma_map *map, const void *src, int c0, int c1, int c2,
                               int c3) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group "
                 "[%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
                 "r"(tp_smem_address(src)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}
/* Contiguous bytes, a multiple of 16, both ends 16-byte aligned. */
TP_DEVICE void tp_bulk_load(void *dst, const void *src, int bytes, uint64_t *bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(tp_smem_address(dst)),
                 "l"(src), "r"(bytes), "r"(tp_smem_address(bar))
                 : "memory");
}
TP_DEVICE void tp_bulk_store(void *dst, const void *src, int bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(dst),
                 "r"(tp_smem_address(src)), "r"(bytes)
                 : "memory");
}
/* dst[i] += src[i] in f32. Bits are fixed only if the caller fixes the order of such additions. */
TP_DEVICE void tp_bulk_add_f32(float *dst, const void *src, int bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 "
                 "[%0], [%1], %2;" ::"l"(dst),
                 "r"(tp_smem_address(src)), "r"(bytes)
                 : "memory");
}
TP_DEVICE void tp_bulk_commit(void) { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/* At most N of this thread's groups have not yet read their shared memory. */
template <int N> TP_DEVICE void tp_bulk_wait_read(void) {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
/* At most N of this thread's groups are unfinished; what the others wrote is visible. */
template <int N> TP_DEVICE void tp_bulk_wait(void) {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}
/* Makes this thread's ordinary stores to shared memory visible to wgmma and TMA (then a barrier
 * tells whoever starts those). */
TP_DEVICE void tp_fence_async(void) { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
/* The same for global memory, in both directions. */
TP_DEVICE void tp_fence_async_global(void) {
    asm volatile("fence.proxy.async.global;" ::: "memory");
}

/* ---- order between blocks -------------------------------------------------------------------- */
TP_DEVICE int tp_load_acquire(const int *p) {
    int v;
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
TP_DEVICE void tp_store_release(int *p, int v) {
    asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

/* ---- warps' roles ---------------------------------------------------------------------------- */
template <int REGISTERS> TP_DEVICE void tp_registers_more(void) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> TP_DEVICE void tp_registers_fewer(void) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
/* Named barriers 1..15; count threads take part, waiting (sync) or not (arrive). */
TP_DEVICE void tp_bar_sync(int id, int count) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(count) : "memory");
}
TP_DEVICE void tp_bar_arrive(int id, int count) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(count) : "memory");
}
/* Ordinary store to a tile in shared memory that wgmma or TMA will read: tp_fence_async follows. */
TP_DEVICE void tp_sts_tile(void *p, uint32_t v) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(tp_smem_address(p)), "r"(v) : "memory");
}
TP_DEVICE void tp_sts_tile4(void *p, float x, float y, float z, float w) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(tp_smem_address(p)), "f"(x),
                 "f"(y), "f"(z), "f"(w)
                 : "memory");
}

/* ---- wgmma: d (64,N) += a (64,16) b (16,N), started by 128 threads, done by tp_wgmma_wait -----
 */
/* Thread t holds rows r = 16*(t/32) + t%32/4 and r+8 of d, columns c = 8*j + 2*(t%4) and c+1:
 * d[4*j+0..1] are (r, c..c+1), d[4*j+2..3] are (r+8, c..c+1). a in registers: (r, k..k+1),
 * (r+8, k..k+1), (r, k+8..k+9), (r+8, k+8..k+9) with k = 2*(t%4). */
TP_DEVICE void tp_wgmma_fence(void) { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
TP_DEVICE void tp_wgmma_commit(void) {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* At most N committed groups are unfinished. */
template <int N> TP_DEVICE void tp_wgmma_wait(void) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
/* The same, but not before x, which is not negative, is known: ptxas moves a plain wait up across
 * any arithmetic, which then would not overlap with the products. It keeps the order of the wait
 * and a store, which is never done. `scratch`: any address in shared memory. */
template <int N> TP_DEVICE void tp_wgmma_wait_after(float x, void *scratch) {
    asm volatile("{\n"
                 ".reg .pred p;\n"
                 "setp.lt.f32 p, %0, 0f00000000;\n"
                 "@p st.shared.f32 [%1], %0;\n"
                 "wgmma.wait_group.sync.aligned %2;\n"
                 "}" ::"f"(x),
                 "r"(tp_smem_address(scratch)), "n"(N)
                 : "memory");
}
/* Registers that a started product reads or writes may not be moved across this line. Stands before
 * the start for accumulators, and behind the wait for these and for a. */
template <int N> TP_DEVICE void tp_wgmma_pin(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N> TP_DEVICE void tp_wgmma_pin(uint32_t (&a)[N][4]) {
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+r"(a[i][0]), "+r"(a[i][1]), "+r"(a[i][2]), "+r"(a[i][3])::"memory");
}

#define TP_R0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define TP_R16 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TP_R32 "%32, %33, %34, %35, %36, %37, %38, %39"
#define TP_R40 "%40, %41, %42, %43, %44, %45, %46, %47"
#define TP_R48 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TP_R64 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define TP_R80 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define TP_R96                                                                                     \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define TP_R112                                                                                    \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "   \
    "%127"
#define TP_L32 TP_R0 ", " TP_R16
#define TP_L40 TP_L32 ", " TP_R32
#define TP_L48 TP_L40 ", " TP_R40
#define TP_L64 TP_L48 ", " TP_R48
#define TP_L96 TP_L64 ", " TP_R64 ", " TP_R80
#define TP_L128 TP_L64 ", " TP_R64 ", " TP_R80 ", " TP_R96 ", " TP_R112
#define TP_D8(i)                                                                                   \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),    \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define TP_D32(i) TP_D8(i), TP_D8(i + 8), TP_D8(i + 16), TP_D8(i + 24)

/* n: columns; list: d's operands; a, b, s (add or not), transposed: the operands behind them. */
#define TP_WGMMA_(n, list, a, b, s, transposed)                                                    \
    "{\n.reg .pred p;\nsetp.ne.b32 p, " s ", 0;\n"                                                 \
    "wgmma.mma_async.sync.aligned.m64n" n "k16.f32.bf16.bf16 {" list "}, " a ", " b                \
    ", p, 1, 1, " transposed ";\n}\n"

/* Both from shared memory. TA, TB: 0 if the tile's rows run along the summed dimension (k
 * contiguous), 1 if along m or n. add = 0 overwrites d. */
template <int N, int TA, int TB>
TP_DEVICE void tp_wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, int add) {
    static_assert(N == 64 || N == 80 || N == 96 || N == 128 || N == 192 || N == 256,
                  "no such width here");
    if constexpr (N == 64)
        asm volatile(TP_WGMMA_("64", TP_L32, "%32", "%33", "%34", "%35, %36")
                     : TP_D32(0)
                     : "l"(a), "l"(b), "r"(add), "n"(TA), "n"(TB));
    if constexpr (N == 80)
        asm volatile(TP_WGMMA_("80", TP_L40, "%40", "%41", "%42", "%43, %44")
                     : TP_D32(0), TP_D8(32)
                     : "l"(a), "l"(b), "r"(add), "n"(TA), "n"(TB));
    if constexpr (N == 96)
        asm volatile(TP_WGMMA_("96", TP_L48, "%48", "%49", "%50", "%51, %52")
                     : TP_D32(0), TP_D8(32), TP_D8(40)
                     : "l"(a), "l"(b), "r"(add), "n"(TA), "n"(TB));
    if constexpr (N == 128)
        asm volatile(TP_WGMMA_("128", TP_L64, "%64", "%65", "%66", "%67, %68")
                     : TP_D32(0), TP_D32(32)
                     : "l"(a), "l"(b), "r"(add), "n"(TA), "n"(TB));
    if constexpr (N == 192)
        asm volatile(TP_WGMMA_("192", TP_L96, "%96", "%97", "%98", "%99, %100")
                     : TP_D32(0), TP_D32(32), TP_D32(64)
                     : "l"(a), "l"(b), "r"(add), "n"(TA), "n"(TB));
    if constexpr (N == 256)
        asm volatile(TP_WGMMA_("256", TP_L128, "%128", "%129", "%130", "%131, %132")
                     : TP_D32(0), TP_D32(32), TP_D32(64), TP_D32(96)
                     : "l"(a), "l"(b), "r"(add), "n"(TA), "n"(TB));
}

/* a from registers, which must keep their values until the product is done. */
template <int N, int TB>
TP_DEVICE void tp_wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int add) {
    static_assert(N == 64 || N == 96 || N == 128 || N == 256, "no such width here");
    if constexpr (N == 64)
        asm volatile(TP_WGMMA_("64", TP_L32, "{%32, %33, %34, %35}", "%36", "%37", "%38")
                     : TP_D32(0)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TB));
    if constexpr (N == 96)
        asm volatile(TP_WGMMA_("96", TP_L48, "{%48, %49, %50, %51}", "%52", "%53", "%54")
                     : TP_D32(0), TP_D8(32), TP_D8(40)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TB));
    if constexpr (N == 128)
        asm volatile(TP_WGMMA_("128", TP_L64, "{%64, %65, %66, %67}", "%68", "%69", "%70")
                     : TP_D32(0), TP_D32(32)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TB));
    if constexpr (N == 256)
        asm volatile(TP_WGMMA_("256", TP_L128, "{%128, %129, %130, %131}", "%132", "%133", "%134")
                     : TP_D32(0), TP_D32(32), TP_D32(64), TP_D32(96)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TB));
}
#endif /* TP_HOPPER */
#endif /* TP_CUDA_ON_CPU */
#endif
