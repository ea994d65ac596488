/* The warp-level instructions of sm_80 that CUDA kernels here are built of: matrix multiply on bf16
 * fragments, loads of fragments from shared memory, asynchronous copies from global to shared
 * memory; and hand-over between blocks through global memory.
 *
 * On nvcc they are inline PTX. With TP_CUDA_ON_CPU they are host functions that follow the fragment
 * layouts of NVIDIA's "PTX ISA" (chapters on mma.m16n8k16 and ldmatrix), lane by lane, so a wrong
 * index in a kernel gives wrong numbers in the tests there as well.
 *
 * Fragments of D(16x8) = A(16x16) B(16x8) + C, for lane l with g = l/4, t = l%4; a register of A or
 * B holds two bf16, the lower index in the lower half:
 *   a0: (g, 2t..2t+1)  a1: (g+8, 2t..)  a2: (g, 2t+8..)  a3: (g+8, 2t+8..)
 *   b0: (2t..2t+1, g)  b1: (2t+8.., g)      d0,d1: (g, 2t..2t+1)  d2,d3: (g+8, 2t..2t+1) */
#ifndef TP_CUDA_MMA_H
#define TP_CUDA_MMA_H
#include "ops/cuda.h"
#include "ops/convert.h"
#include "ops/math.h"

typedef unsigned tp_smem; /* an address in shared memory, in bytes */

#if !defined(TP_CUDA_ON_CPU)
/* ---- PTX ------------------------------------------------------------------------------------ */
static __device__ __forceinline__ tp_smem tp_smem_addr(const void *p) {
    return (tp_smem)__cvta_generic_to_shared(p);
}

static __device__ __forceinline__ void tp_mma_bf16_16x8x16(float d[4], const unsigned a[4],
                                                           const unsigned b[2], const float c[4]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]),
                   "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

static __device__ __forceinline__ void tp_ldmatrix_x4(unsigned r[4], tp_smem row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

static __device__ __forceinline__ void tp_ldmatrix_x4_trans(unsigned r[4], tp_smem row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

static __device__ __forceinline__ void tp_cp_async_16(tp_smem dst, const void *src, bool pred) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(dst), "l"(__cvta_generic_to_global(src)), "r"(pred ? 16 : 0)
                 : "memory");
}

static __device__ __forceinline__ void tp_cp_async_commit(void) {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int N> static __device__ __forceinline__ void tp_cp_async_wait(void) {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

static __device__ __forceinline__ float tp_lds_f32(tp_smem at) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(at) : "memory");
    return x;
}

static __device__ __forceinline__ int tp_lds_s32(tp_smem at) {
    int x;
    asm volatile("ld.shared.s32 %0, [%1];" : "=r"(x) : "r"(at) : "memory");
    return x;
}

static __device__ __forceinline__ void tp_sts_u32(tp_smem at, unsigned x) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(x) : "memory");
}

static __device__ __forceinline__ uint4 tp_lds_u128(tp_smem at) {
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(at)
                 : "memory");
    return x;
}

/* Past the first-level cache, which may hold what another block has replaced since. */
static __device__ __forceinline__ float4 tp_load_l2(const float4 *p) { return __ldcg(p); }

/* Flags in global memory by which blocks hand work over: one thread of the giving block, after a
 * __syncthreads behind the writes, does tp_fence and tp_flag_put; one thread of the taking block
 * sees the value with tp_flag_peek, does tp_fence, and lets the others go on by __syncthreads. */
static __device__ __forceinline__ void tp_fence(void) {
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
}

static __device__ __forceinline__ void tp_flag_put(int *flag, int value) {
    asm volatile("st.relaxed.gpu.global.s32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

static __device__ __forceinline__ int tp_flag_peek(const int *flag) {
    int value;
    asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    return value;
}

static __device__ __forceinline__ void tp_flag_wait(const int *flag, int value) {
    while (tp_flag_peek(flag) != value) __nanosleep(20);
}

#else
/* ---- the same on the CPU -------------------------------------------------------------------- */
static inline tp_smem tp_smem_addr(const void *p) { return (tp_smem)emu_smem_offset(p); }

typedef struct tp_mma_lane {
    float *d;
    const unsigned *a, *b;
    const float *c;
} tp_mma_lane;

static inline float tp_half_of(unsigned r, int i) {
    return tp_bf16_to_f32((uint16_t)(i ? r >> 16 : r));
}

/* Each element is one chain over k from c; products of bf16 are exact in f32. */
/* lesson: mma */
static inline void tp_mma_warp(void *const lane[32], void *) {
    float a[16][16], b[16][8], d[16][8];
    for (int l = 0; l < 32; l++) {
        const tp_mma_lane *x = (const tp_mma_lane *)lane[l];
        int g = l / 4, t = l % 4;
        for (int r = 0; r < 4; r++)
            for (int i = 0; i < 2; i++)
                a[g + 8 * (r & 1)][2 * t + 8 * (r >> 1) + i] = tp_half_of(x->a[r], i);
        for (int r = 0; r < 2; r++)
            for (int i = 0; i < 2; i++) b[2 * t + 8 * r + i][g] = tp_half_of(x->b[r], i);
        for (int r = 0; r < 4; r++) d[g + 8 * (r >> 1)][2 * t + (r & 1)] = x->c[r];
    }
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < 8; n++) d[m][n] += a[m][k] * b[k][n];
    for (int l = 0; l < 32; l++)
        for (int r = 0; r < 4; r++)
            ((const tp_mma_lane *)lane[l])->d[r] = d[l / 4 + 8 * (r >> 1)][2 * (l % 4) + (r & 1)];
}
/* end */

static inline void tp_mma_bf16_16x8x16(float d[4], const unsigned a[4], const unsigned b[2],
                                       const float c[4]) {
    tp_mma_lane mine = {d, a, b, c};
    emu_warp_named("mma", &mine, tp_mma_warp, NULL);
}

typedef struct tp_ldmatrix_lane {
    unsigned *r;
    const uint16_t *row;
} tp_ldmatrix_lane;

/* Lane 8i + j names row j of matrix i. Lane l receives of matrix i row l/4, columns 2(l%4) and
 * 2(l%4) + 1; transposed: rows 2(l%4) and 2(l%4) + 1 of column l/4. */
static inline void tp_ldmatrix_warp(void *const lane[32], void *trans) {
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++) {
            uint16_t half[2];
            for (int e = 0; e < 2; e++) {
                int row = trans ? 2 * (l % 4) + e : l / 4, col = trans ? l / 4 : 2 * (l % 4) + e;
                half[e] = ((const tp_ldmatrix_lane *)lane[8 * i + row])->row[col];
            }
            ((const tp_ldmatrix_lane *)lane[l])->r[i] = half[0] | (unsigned)half[1] << 16;
        }
}

static inline void tp_ldmatrix_x4_(unsigned r[4], tp_smem row, bool trans) {
    tp_ldmatrix_lane mine = {r, (const uint16_t *)emu_smem_ptr(row)};
    emu_check_aligned(mine.row, 16, "ldmatrix");
    emu_smem_access(mine.row, 16, false);
    emu_warp_named("ldmatrix", &mine, tp_ldmatrix_warp, trans ? &mine : NULL);
}
static inline void tp_ldmatrix_x4(unsigned r[4], tp_smem row) { tp_ldmatrix_x4_(r, row, false); }
static inline void tp_ldmatrix_x4_trans(unsigned r[4], tp_smem row) {
    tp_ldmatrix_x4_(r, row, true);
}

/* The bytes arrive as late as cp.async.wait_group allows. */
typedef struct tp_cp_async_job {
    void *dst;
    const void *src; /* NULL: zeros */
} tp_cp_async_job;
static inline void tp_cp_async_do(void *arg) {
    const tp_cp_async_job *j = (const tp_cp_async_job *)arg;
    emu_smem_access(j->dst, 16, true);
    if (j->src)
        memcpy(j->dst, j->src, 16);
    else
        memset(j->dst, 0, 16);
}
static inline void tp_cp_async_16(tp_smem dst, const void *src, bool pred) {
    tp_cp_async_job j = {emu_smem_ptr(dst), pred ? src : NULL};
    emu_check_aligned(j.dst, 16, "cp.async's target");
    if (pred) emu_check_global(src, 16, 16);
    emu_defer(EMU_QUEUE_CP_ASYNC, tp_cp_async_do, &j, sizeof j);
}
static inline void tp_cp_async_commit(void) { emu_commit(EMU_QUEUE_CP_ASYNC); }
template <int N> static inline void tp_cp_async_wait(void) { emu_drain_to(EMU_QUEUE_CP_ASYNC, N); }

static inline float tp_lds_f32(tp_smem at) { return tp_lds((const float *)emu_smem_ptr(at)); }
static inline int tp_lds_s32(tp_smem at) { return tp_lds((const int *)emu_smem_ptr(at)); }
static inline void tp_sts_u32(tp_smem at, unsigned x) { tp_sts((unsigned *)emu_smem_ptr(at), x); }
static inline uint4 tp_lds_u128(tp_smem at) { return tp_lds((const uint4 *)emu_smem_ptr(at)); }
static inline float4 tp_load_l2(const float4 *p) { return tp_ldg(p); }

static inline void tp_fence(void) {}
static inline void tp_flag_put(int *flag, int value) {
    emu_global_hand_on();
    *flag = value;
}
static inline int tp_flag_peek(const int *flag) {
    emu_global_hand_on();
    return *flag;
}
typedef struct tp_flag_of {
    const int *flag;
    int value;
} tp_flag_of;
static inline bool tp_flag_ready(void *arg) {
    const tp_flag_of *f = (const tp_flag_of *)arg;
    return *f->flag == f->value;
}
static inline void tp_flag_wait(const int *flag, int value) {
    tp_flag_of f = {flag, value};
    emu_global_hand_on();
    emu_wait(tp_flag_ready, &f, "another block's flag");
}
#endif
#endif
