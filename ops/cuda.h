/* The vocabulary of CUDA kernels: launching, element types, vectors, sums over warps and blocks.
 *
 * A kernel is compiled three ways: by nvcc for sm_80 and sm_90a, and as C++ for the CPU, where
 * tests/cuda_on_cpu/ runs it thread by thread and checks every barrier and every access to shared
 * memory. So it uses only what both offer: TP_SHARED and TP_SHARED_DYNAMIC with tp_lds and tp_sts,
 * the warp's shuffles, and wrappers for anything that is written in PTX. */
#ifndef TP_OPS_CUDA_H
#define TP_OPS_CUDA_H
#include "core/cuda.h"
#include "ops/math.h"
#include "ops/op.h"

/* ---- declaring and launching ---------------------------------------------------------------- */
/* TP_CUDA_KERNEL(gelu_cuda, .decline = …, .run = …) in a .cu file makes the row that the op's .c
 * file lists with TP_CUDA_DECLARE(gelu_cuda) and [TP_CUDA] = TP_CUDA_LIST(&gelu_cuda). */
#define TP_CUDA_KERNEL(id, ...)                                                                    \
    extern "C" const tp_kernel id;                                                                 \
    const tp_kernel id = {.name = #id, __VA_ARGS__}

/* Runs kernel on the ctx's stream: TP_LAUNCH(k, (rows<float, 4>), blocks, 256, shared_bytes, a, b).
 * No blocks: nothing to do. Answers a tp_status. */
#if defined(TP_CUDA_ON_CPU)
#define TP_LAUNCH(k, kernel, grid, block, shared_bytes, ...)                                       \
    tp_launch_((k), dim3(grid), (shared_bytes), (const void *)(kernel), [&](cudaStream_t s_) {     \
        emu_launch_call(#kernel, kernel, dim3(grid), dim3(block), (shared_bytes), s_,              \
                        __VA_ARGS__);                                                              \
    })
#else
#define TP_LAUNCH(k, kernel, grid, block, shared_bytes, ...)                                       \
    tp_launch_((k), dim3(grid), (shared_bytes), (const void *)(kernel), [&](cudaStream_t s_) {     \
        kernel<<<dim3(grid), dim3(block), (shared_bytes), s_>>>(__VA_ARGS__);                      \
    })
#define TP_SHARED(type, name, count) __shared__ type name[count]
#define TP_SHARED_DYNAMIC(name) extern __shared__ __align__(1024) unsigned char name[]
template <typename T> __device__ __forceinline__ T tp_lds(const T *p) { return *p; }
template <typename T> struct tp_same_ { typedef T type; };
template <typename T> __device__ __forceinline__ void tp_sts(T *p, typename tp_same_<T>::type v) {
    *p = v;
}
template <typename T> __device__ __forceinline__ T tp_ldg(const T *p) { return *p; }
template <typename T> __device__ __forceinline__ void tp_stg(T *p, typename tp_same_<T>::type v) {
    *p = v;
}
#endif

/* A block has 48 KB of shared memory unless its kernel asks for more. */
template <typename F>
static inline tp_status tp_launch_(const tp_call *k, dim3 grid, size_t shared_bytes,
                                   const void *kernel, F launch) {
    tp_ctx *c = k->ctx;
    if (c->status || !grid.x || !grid.y || !grid.z) return c->status;
    if (shared_bytes > 48 << 10) {
        tp_status st =
            tp_cuda_check(c,
                          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                               (int)shared_bytes),
                          k->op->name);
        if (st) return st;
    }
    launch(tp_cuda_stream(c));
    return tp_cuda_check(c, cudaGetLastError(), k->op->name);
}

static inline unsigned tp_blocks(int64_t n, int64_t each) {
    return (unsigned)((n + each - 1) / each);
}

/* ---- element types -------------------------------------------------------------------------- */
typedef __nv_bfloat16 tp_bf16; /* not for arithmetic: load as float, compute, store */
static __device__ __forceinline__ float tp_to_f32(float x) { return x; }
static __device__ __forceinline__ float tp_to_f32(tp_bf16 x) { return __bfloat162float(x); }
template <typename T> __device__ __forceinline__ T tp_from_f32(float x);
template <> __device__ __forceinline__ float tp_from_f32<float>(float x) { return x; }
template <> __device__ __forceinline__ tp_bf16 tp_from_f32<tp_bf16>(float x) {
    return __float2bfloat16_rn(x);
}

/* Calls F<float> or F<tp_bf16> by a tensor's dtype: TP_BY_FLOAT(t->dtype, T, return run<T>(k)). */
#define TP_BY_FLOAT(dt, T, ...)                                                                    \
    do {                                                                                           \
        if ((dt) == TP_F32) {                                                                      \
            typedef float T;                                                                       \
            __VA_ARGS__;                                                                           \
        } else {                                                                                   \
            typedef tp_bf16 T;                                                                     \
            __VA_ARGS__;                                                                           \
        }                                                                                          \
    } while (0)

/* N neighbouring elements that move in one access of at most 16 bytes. */
template <typename T, int N> struct alignas(sizeof(T) * N) tp_vec { T v[N]; };
template <typename T, int N> static __device__ __forceinline__ tp_vec<T, N> tp_load(const T *p) {
    return tp_ldg((const tp_vec<T, N> *)p);
}
template <typename T, int N>
static __device__ __forceinline__ void tp_store(T *p, const tp_vec<T, N> &x) {
    tp_stg((tp_vec<T, N> *)p, x);
}
/* The compiler forgets what it has made of these 16 bytes, and makes it again where it is used
 * later: what is unpacked takes more registers. */
template <typename T, int N>
static __device__ __forceinline__ void tp_forget([[maybe_unused]] tp_vec<T, N> *x) {
    static_assert(sizeof *x == 16, "four words");
#if !defined(TP_CUDA_ON_CPU)
    uint32_t w[4];
    memcpy(w, x, 16);
    asm volatile("" : "+r"(w[0]), "+r"(w[1]), "+r"(w[2]), "+r"(w[3]));
    memcpy(x, w, 16);
#endif
}
/* x again, as a value that the compiler must take for a new one: what is computed from it in a loop
 * stays there, where it would otherwise be kept in registers throughout. */
static __device__ __forceinline__ int tp_fresh(int x) {
#if !defined(TP_CUDA_ON_CPU)
    asm volatile("" : "+r"(x));
#endif
    return x;
}
template <typename T> struct tp_width { /* elements in 16 bytes */
    enum { N = 16 / sizeof(T) };
};
static inline bool tp_aligned(const void *p, size_t bytes) { return (uintptr_t)p % bytes == 0; }

/* Two bf16, lo in the lower half; rounds to nearest even. */
static __device__ __forceinline__ uint32_t tp_pack_bf16(float lo, float hi) {
#if defined(TP_CUDA_ON_CPU)
    return __float2bfloat16_rn(lo).bits | (uint32_t)__float2bfloat16_rn(hi).bits << 16;
#else
    uint32_t y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo));
    return y;
#endif
}

/* 2^x by the hardware (2 ulp; results below 2^-126 are 0): 2^-inf = 0, 2^0 = 1. */
static __device__ __forceinline__ float tp_ex2(float x) {
#if defined(TP_CUDA_ON_CPU)
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

/* ---- sums and maxima, in an order that depends on the block's size only ---------------------- */
static __device__ __forceinline__ float tp_warp_sum(float x) {
    for (int m = 16; m; m >>= 1) x += __shfl_xor_sync(0xffffffffu, x, m);
    return x; /* all lanes have the same bits: x + y is y + x */
}
static __device__ __forceinline__ double tp_warp_sum(double x) {
    for (int m = 16; m; m >>= 1) x += __shfl_xor_sync(0xffffffffu, x, m);
    return x;
}
static __device__ __forceinline__ float tp_warp_max(float x) {
    for (int m = 16; m; m >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, m));
    return x;
}
/* Over a block of up to 32 whole warps; everyone gets the answer. May be called again at once. */
static __device__ __forceinline__ float tp_block_sum(float x) {
    TP_SHARED(float, part, 32);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
    x = tp_warp_sum(x);
    if (warps == 1) return x;
    __syncthreads(); /* an earlier call's readers are done */
    if (lane == 0) part[warp] = x;
    __syncthreads();
    return tp_warp_sum(lane < warps ? (float)part[lane] : 0.0f);
}
static __device__ __forceinline__ float tp_block_max(float x) {
    TP_SHARED(float, part, 32);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
    x = tp_warp_max(x);
    if (warps == 1) return x;
    __syncthreads();
    if (lane == 0) part[warp] = x;
    __syncthreads();
    return tp_warp_max(lane < warps ? (float)part[lane] : -HUGE_VALF);
}

/* ---- faults --------------------------------------------------------------------------------- */
/* A value that only the device can see is out of range: the next sync fails with the op's name. */
typedef struct tp_fault {
    tp_cuda_fault *at;
    unsigned long long code;
} tp_fault;
static inline tp_fault tp_fault_of(const tp_call *k) {
    unsigned long long i = 0;
    while (tp_ops[i] && tp_ops[i] != k->op) i++;
    return tp_fault{tp_cuda_of(k->ctx)->fault, i << 40};
}
static __device__ __forceinline__ void tp_report(tp_fault f, int64_t position) {
    atomicMin(&f.at->first, f.code + (unsigned long long)position);
}

/* ---- declining ------------------------------------------------------------------------------ */
static inline const char *tp_not_f32_bf16(const tp_tensor *t) {
    if (!t || !tp_is_float(t->dtype) || t->dtype == TP_F32 || t->dtype == TP_BF16) return NULL;
    return "f64 is the CPU's";
}
/* Every float in and out is f32 or bf16. */
static inline const char *tp_decline_cuda_floats(const tp_call *k) {
    const char *no = NULL;
    for (int i = 0; i < k->nin && !no; i++) no = tp_not_f32_bf16(k->in[i]);
    for (int i = 0; i < k->nout && !no; i++) no = tp_not_f32_bf16(k->out[i]);
    return no;
}
/* … and everything is contiguous. */
static inline const char *tp_decline_cuda_dense(const tp_call *k) {
    for (int i = 0; i < k->nin; i++)
        if (k->in[i] && !tp_contiguous(k->in[i])) return "an input is strided";
    return tp_decline_cuda_floats(k);
}
#endif
