/* CUDA C++ as the CPU's compiler sees it: the keywords, built-in variables and functions that
 * Tapir's kernels use, and shared memory whose accesses are checked. Stands in for cuda_runtime.h,
 * cuda_bf16.h and nvcc under TP_CUDA_ON_CPU.
 *
 * `__shared__` is not defined, on purpose: shared memory is TP_SHARED(type, name, count) or
 * TP_SHARED_DYNAMIC(name), and pointers into it are followed with tp_lds and tp_sts. Functions that
 * trade accuracy for speed (__expf, __fdividef) are left out, as are atomics on floats. */
#ifndef TP_CUDA_ON_CPU_H
#define TP_CUDA_ON_CPU_H
#include <math.h>
#include <string.h>
#include "cuda_runtime.h"
#include "emu.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

/* ---- vector types --------------------------------------------------------------------------- */
#define EMU_VEC(t, T)                                                                              \
    struct alignas(2 * sizeof(t)) T##2 {                                                           \
        t x, y;                                                                                    \
    };                                                                                             \
    struct alignas(4 * sizeof(t)) T##4 {                                                           \
        t x, y, z, w;                                                                              \
    };                                                                                             \
    static inline T##2 make_##T##2(t x, t y) { return T##2 {x, y}; }                               \
    static inline T##4 make_##T##4(t x, t y, t z, t w) { return T##4 {x, y, z, w}; }
EMU_VEC(int, int)
EMU_VEC(unsigned, uint)
EMU_VEC(float, float)
EMU_VEC(short, short)
EMU_VEC(unsigned short, ushort)
EMU_VEC(unsigned char, uchar)
#undef EMU_VEC
struct float3 {
    float x, y, z;
};
static inline float3 make_float3(float x, float y, float z) { return float3{x, y, z}; }
struct alignas(16) double2 {
    double x, y;
};
static inline double2 make_double2(double x, double y) { return double2{x, y}; }
struct alignas(16) longlong2 {
    long long x, y;
};
struct alignas(16) ulonglong2 {
    unsigned long long x, y;
};

/* ---- bits and rounding ---------------------------------------------------------------------- */
template <typename To, typename From> static inline To emu_bits(From v) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To r;
    memcpy(&r, &v, sizeof r);
    return r;
}
static inline unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return emu_bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
static inline float __int_as_float(int x) { return emu_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emu_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emu_bits<double>(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
static inline unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (x >> i & 1) << (31 - i);
    return r;
}
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((unsigned long long)a * b >> 32);
}
static inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
__extension__ typedef unsigned __int128 emu_u128;
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((emu_u128)a * b >> 64);
}
/* The correctly rounded operations: as written, since nothing is contracted (-ffp-contract=off). */
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __frcp_rn(float a) { return 1 / a; }
static inline float rsqrtf(float a) { return 1 / sqrtf(a); }
static inline double rsqrt(double a) { return 1 / sqrt(a); }
static inline int __float2int_rn(float a) { return (int)rintf(a); }
static inline int __float2int_rz(float a) { return (int)a; }
static inline float __int2float_rn(int a) { return (float)a; }
static inline float __uint2float_rn(unsigned a) { return (float)a; }
#define EMU_MINMAX(t)                                                                              \
    static inline t min(t a, t b) { return b < a ? b : a; }                                        \
    static inline t max(t a, t b) { return a < b ? b : a; }
EMU_MINMAX(int)
EMU_MINMAX(unsigned)
EMU_MINMAX(long)
EMU_MINMAX(unsigned long)
EMU_MINMAX(long long)
EMU_MINMAX(unsigned long long)
#undef EMU_MINMAX
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

/* ---- bf16: stored in 16 bits, computed with in float ---------------------------------------- */
struct alignas(2) __nv_bfloat16 {
    unsigned short bits;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
static inline float __bfloat162float(__nv_bfloat16 h) {
    return __uint_as_float((unsigned)h.bits << 16);
}
/* To nearest, ties to even; NaN becomes 0x7fff, as cvt.rn.bf16.f32 makes it. */
static inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    unsigned u = __float_as_uint(x);
    if ((u & 0x7fffffff) > 0x7f800000) return __nv_bfloat16{0x7fff};
    return __nv_bfloat16{(unsigned short)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
static inline __nv_bfloat16 __float2bfloat16(float x) { return __float2bfloat16_rn(x); }
static inline __nv_bfloat162 __floats2bfloat162_rn(float lo, float hi) {
    return __nv_bfloat162{__float2bfloat16_rn(lo), __float2bfloat16_rn(hi)};
}
static inline __nv_bfloat162 __float22bfloat162_rn(float2 v) {
    return __floats2bfloat162_rn(v.x, v.y);
}
static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 lo, __nv_bfloat16 hi) {
    return __nv_bfloat162{lo, hi};
}
static inline float __low2float(__nv_bfloat162 v) { return __bfloat162float(v.x); }
static inline float __high2float(__nv_bfloat162 v) { return __bfloat162float(v.y); }
static inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
static inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
static inline float2 __bfloat1622float2(__nv_bfloat162 v) {
    return make_float2(__low2float(v), __high2float(v));
}
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.bits; }
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short b) { return __nv_bfloat16{b}; }

/* ---- meeting of threads --------------------------------------------------------------------- */
static inline void __syncthreads(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
    emu_syncthreads(file, line);
}
static inline void __syncwarp(unsigned mask = 0xffffffffu) {
    emu_warp_mask(mask, "__syncwarp", nullptr, nullptr, nullptr);
}
unsigned __activemask(void)
    __attribute__((unavailable("the warp need not be converged: pass masks")));
static inline void __threadfence(void) {}
static inline void __threadfence_block(void) {}
static inline void __nanosleep(unsigned) { emu_yield(); }

struct emu_shuffle {
    unsigned long long in, out;
    int src;
}; /* src: -1: named no lane in the mask */
void emu_shuffle_all(void *const lane[32], void *what);
void emu_ballot_all(void *const lane[32], void *);
template <typename T>
static inline T emu_shuffle_from(unsigned mask, T v, int src, const char *what) {
    static_assert(__is_trivially_copyable(T) && sizeof(T) <= 8 && sizeof(T) >= 4,
                  "shuffles move 4 or 8 bytes");
    emu_shuffle s = {0, 0, src};
    memcpy(&s.in, &v, sizeof v);
    emu_warp_mask(mask, what, &s, emu_shuffle_all, (void *)what);
    memcpy(&v, &s.out, sizeof v);
    return v;
}
/* CUDA C++ Programming Guide, "Warp Shuffle Functions": lanes are counted within segments of
 * `width`; a source outside the segment gives the lane's own value (except __shfl: modulo). */
template <typename T> static inline T __shfl_sync(unsigned mask, T v, int src, int width = 32) {
    int lane = emu_thread() & 31, first = lane & ~(width - 1);
    return emu_shuffle_from(mask, v, first + (src & (width - 1)), "__shfl_sync");
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) {
    int lane = emu_thread() & 31, src = lane ^ bits;
    return emu_shuffle_from(mask, v, src < (lane | (width - 1)) + 1 ? src : lane,
                            "__shfl_xor_sync");
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32) {
    int lane = emu_thread() & 31, src = lane + (int)delta;
    return emu_shuffle_from(mask, v, src <= (lane | (width - 1)) ? src : lane, "__shfl_down_sync");
}
template <typename T>
static inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32) {
    int lane = emu_thread() & 31, src = lane - (int)delta;
    return emu_shuffle_from(mask, v, src >= (lane & ~(width - 1)) ? src : lane, "__shfl_up_sync");
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
    emu_shuffle s = {predicate != 0, 0, 0};
    emu_warp_mask(mask, "__ballot_sync", &s, emu_ballot_all, nullptr);
    return (unsigned)s.out;
}
static inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
static inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, p) == mask; }

/* ---- atomics: integers only, since a float sum would depend on who comes first --------------- */
#define EMU_ATOMICS(t)                                                                             \
    static inline t atomicAdd(t *p, t v) {                                                         \
        t o = *p;                                                                                  \
        *p = (t)(o + v);                                                                           \
        return o;                                                                                  \
    }                                                                                              \
    static inline t atomicExch(t *p, t v) {                                                        \
        t o = *p;                                                                                  \
        *p = v;                                                                                    \
        return o;                                                                                  \
    }                                                                                              \
    static inline t atomicMax(t *p, t v) {                                                         \
        t o = *p;                                                                                  \
        if (v > o) *p = v;                                                                         \
        return o;                                                                                  \
    }                                                                                              \
    static inline t atomicMin(t *p, t v) {                                                         \
        t o = *p;                                                                                  \
        if (v < o) *p = v;                                                                         \
        return o;                                                                                  \
    }                                                                                              \
    static inline t atomicOr(t *p, t v) {                                                          \
        t o = *p;                                                                                  \
        *p = o | v;                                                                                \
        return o;                                                                                  \
    }                                                                                              \
    static inline t atomicAnd(t *p, t v) {                                                         \
        t o = *p;                                                                                  \
        *p = o & v;                                                                                \
        return o;                                                                                  \
    }                                                                                              \
    static inline t atomicCAS(t *p, t c, t v) {                                                    \
        t o = *p;                                                                                  \
        if (o == c) *p = v;                                                                        \
        return o;                                                                                  \
    }
EMU_ATOMICS(int)
EMU_ATOMICS(unsigned)
EMU_ATOMICS(unsigned long long)
#undef EMU_ATOMICS
float atomicAdd(float *, float) = delete;
double atomicAdd(double *, double) = delete;

/* ---- global memory -------------------------------------------------------------------------- */
void emu_check_global(const void *p, size_t bytes, size_t align);
void emu_global_access(const void *p, size_t bytes, bool write); /* for races (global.cc) */
/* Alignment that a single load or store of T needs: its size for 1, 2, 4, 8 and 16 bytes. */
template <typename T> constexpr size_t emu_align_of() {
    static_assert(__is_trivially_copyable(T) && sizeof(T) <= 16,
                  "one access moves at most 16 bytes");
    return (sizeof(T) & (sizeof(T) - 1)) == 0 ? sizeof(T) : alignof(T);
}
template <typename T> static inline T tp_ldg(const T *p) {
    emu_check_global(p, sizeof(T), emu_align_of<T>());
    emu_global_access(p, sizeof(T), false);
    T v;
    memcpy(&v, (const void *)p, sizeof v);
    return v;
}
template <typename T> static inline void tp_stg(T *p, T v) {
    emu_check_global(p, sizeof(T), emu_align_of<T>());
    emu_global_access(p, sizeof(T), true);
    memcpy((void *)p, &v, sizeof v);
}
template <typename T> static inline T __ldg(const T *p) { return tp_ldg(p); }

/* ---- shared memory -------------------------------------------------------------------------- */
void emu_smem_check(const void *p, size_t bytes, size_t align, bool write);
template <typename T> static inline T tp_lds(const T *p) {
    emu_smem_check(p, sizeof(T), emu_align_of<T>(), false);
    T v;
    memcpy(&v, (const void *)p, sizeof v);
    return v;
}
template <typename T> struct emu_same { typedef T type; };
template <typename T> static inline void tp_sts(T *p, typename emu_same<T>::type v) {
    emu_smem_check(p, sizeof(T), emu_align_of<T>(), true);
    memcpy((void *)p, &v, sizeof v);
}

/* One declaration of an array in a kernel's source; where it lies is found anew for each block. */
struct emu_site {
    const char *name;
    unsigned long long block; /* serial number of the block it was placed for */
    void *place;
};
void *emu_shared_place(emu_site *site, size_t elem_bytes, size_t count, size_t align);
void emu_shared_index(const char *name, long long i, size_t count);
unsigned char *emu_shared_dynamic(void);

/* What name[i] is: reading and assigning it are the checked accesses. */
template <typename T> struct emu_elem {
    T *p;
    operator T() const { return tp_lds(p); }
    T operator=(T v) const { return tp_sts(p, v), v; }
    T operator=(const emu_elem &o) const { return *this = (T)o; }
    template <typename U> T operator+=(U v) const { return *this = (T)(tp_lds(p) + v); }
    template <typename U> T operator-=(U v) const { return *this = (T)(tp_lds(p) - v); }
    template <typename U> T operator*=(U v) const { return *this = (T)(tp_lds(p) * v); }
    template <typename U> T operator|=(U v) const { return *this = (T)(tp_lds(p) | v); }
    T operator++(int) const {
        T v = tp_lds(p);
        tp_sts(p, (T)(v + 1));
        return v;
    }
    T *operator&() const { return p; }
};
template <typename T> struct emu_shared {
    T *p;
    size_t count;
    const char *name;
    template <typename I> emu_elem<T> operator[](I i) const {
        emu_shared_index(name, (long long)i, count);
        return emu_elem<T>{p + i};
    }
    operator T *() const { return p; }
};
/* The array is aligned as its type is and no better: for vector accesses give a vector's type. */
#define TP_SHARED(type, name, n)                                                                   \
    static emu_site name##_site = {#name, 0, nullptr};                                             \
    const emu_shared<type> name = {                                                                \
        (type *)emu_shared_place(&name##_site, sizeof(type), (size_t)(n), alignof(type)),          \
        (size_t)(n), #name}
#define TP_SHARED_DYNAMIC(name) unsigned char *const name = emu_shared_dynamic()

/* ---- launches ------------------------------------------------------------------------------- */
/* Kernels as nvcc compiled them (ptx.h), in place of the functions that the launches name. */
struct emu_param {
    const void *value;
    size_t bytes;
};
bool emu_ptx_wanted(void);
int emu_ptx_launch(const char *name, const void *func, const unsigned grid[3],
                   const unsigned block[3], size_t smem_bytes, void *stream, const emu_param *param,
                   int n);
/* fn() is what one thread does; it must hold its arguments by value, as a captured launch runs
 * later. Returns what cudaPeekAtLastError then says. */
template <typename Fn>
static inline cudaError_t emu_launch_kernel(const char *name, const void *func, dim3 grid,
                                            dim3 block, size_t smem_bytes, cudaStream_t stream,
                                            const Fn &fn) {
    static_assert(__is_trivially_copyable(Fn), "kernel arguments must be plain values");
    const unsigned g[3] = {grid.x, grid.y, grid.z}, b[3] = {block.x, block.y, block.z};
    return (cudaError_t)emu_launch_closure(
        name, func, g, b, smem_bytes, stream, [](const void *c) { (*(const Fn *)c)(); }, &fn,
        sizeof fn);
}
/* A call of a kernel with its arguments as they are now: a recorded launch runs later. */
template <typename T> struct emu_itself { typedef T type; };
template <typename... P>
static inline cudaError_t emu_launch_call(const char *name, void (*kernel)(P...), dim3 grid,
                                          dim3 block, size_t smem_bytes, cudaStream_t stream,
                                          typename emu_itself<P>::type... a) {
    const unsigned g[3] = {grid.x, grid.y, grid.z}, b[3] = {block.x, block.y, block.z};
    const emu_param param[] = {{&a, sizeof a}..., {nullptr, 0}};
    if (emu_ptx_wanted())
        return (cudaError_t)emu_ptx_launch(name, (const void *)kernel, g, b, smem_bytes, stream,
                                           param, (int)sizeof...(P));
    return emu_launch_kernel(name, (const void *)kernel, grid, block, smem_bytes, stream,
                             [=] { kernel(a...); });
}
template <typename Fn>
static inline cudaError_t emu_launch(const char *name, dim3 grid, dim3 block, size_t smem_bytes,
                                     const Fn &fn) {
    return emu_launch_kernel(name, nullptr, grid, block, smem_bytes, nullptr, fn);
}
#endif
