/* The functions of ops/cuda_hopper.h on the CPU. They follow the layouts that the PTX ISA documents
 * (matrix descriptors, swizzles, wgmma fragments, mbarrier phases), read shared memory where a
 * descriptor points and nowhere else, and do their work late, so that a wrong descriptor, index,
 * phase or wait gives wrong numbers or a report. Included by ops/cuda_hopper.h only. */
#ifndef TP_CUDA_ON_CPU_HOPPER_H
#define TP_CUDA_ON_CPU_HOPPER_H

/* ---- what hopper.cc does --------------------------------------------------------------------- */
const char *hopper_map_bf16(tp_tma_map *out, const tp_tma_shape *s);
void hopper_mbar_init(uint64_t *bar, int count);
void hopper_mbar_arrive(uint64_t *bar, int expected_bytes);
void hopper_mbar_wait(uint64_t *bar, int parity);
void hopper_mbar_init_fence(void);
void hopper_tma(const tp_tma_map *map, void *shared, uint64_t *bar, const int at[4], bool load);
void hopper_bulk_load(void *dst, const void *src, int bytes, uint64_t *bar);
void hopper_bulk_store(void *dst, const void *src, int bytes, bool add);
void hopper_bulk_commit(void);
void hopper_bulk_wait(int groups, bool read_only);
void hopper_fence_async_global(void);
void hopper_acquired(void);
void hopper_releases(void);
void hopper_store_tile(void *p, uint32_t v);
void hopper_store_tile4(void *p, float4 v);
void hopper_fence_async(void);
void hopper_wrote(const void *p,
                  size_t bytes); /* of nvcc's code: any ordinary store to shared memory */
void hopper_no_unfenced_stores(const char *what);
void hopper_wgmma(int n, float *d, const uint32_t *a, uint64_t a_desc, uint64_t b_desc, int ta,
                  int tb, int add);
void hopper_wgmma_now(int n, float *d, const uint32_t *a, uint64_t a_desc, uint64_t b_desc, int ta,
                      int tb,
                      int add); /* d, a: read and written at once, not until it is waited for */
void hopper_wgmma_fence(void);
void hopper_wgmma_commit(void);
void hopper_wgmma_wait(int groups);

/* ---- the wrappers -----------------------------------------------------------------------------
 */
static inline const char *tp_tma_map_bf16(tp_tma_map *out, const tp_tma_shape *s) {
    return hopper_map_bf16(out, s);
}
static inline unsigned tp_smem_address(const void *p) { return emu_smem_offset(p); }
static inline uint64_t tp_wgmma_desc(const void *p, unsigned leading, unsigned stride,
                                     enum tp_swizzle swizzle) {
    return tp_wgmma_desc_at(tp_smem_address(p), leading, stride, swizzle);
}
static inline void tp_mbar_init(uint64_t *bar, int count) { hopper_mbar_init(bar, count); }
static inline void tp_mbar_init_fence(void) { hopper_mbar_init_fence(); }
static inline void tp_mbar_arrive(uint64_t *bar) { hopper_mbar_arrive(bar, 0); }
static inline void tp_mbar_arrive_expect(uint64_t *bar, int bytes) {
    hopper_mbar_arrive(bar, bytes);
}
static inline void tp_mbar_wait(uint64_t *bar, int parity) { hopper_mbar_wait(bar, parity); }
static inline void tp_tma_prefetch_map(const tp_tma_map *) {}
static inline void tp_tma_load_4d(void *dst, const tp_tma_map *map, uint64_t *bar, int c0, int c1,
                                  int c2, int c3) {
    const int at[4] = {c0, c1, c2, c3};
    hopper_tma(map, dst, bar, at, true);
}
static inline void tp_tma_store_4d(const tp_tma_map *map, const void *src, int c0, int c1, int c2,
                                   int c3) {
    const int at[4] = {c0, c1, c2, c3};
    hopper_tma(map, const_cast<void *>(src), nullptr, at, false);
}
static inline void tp_bulk_load(void *dst, const void *src, int bytes, uint64_t *bar) {
    hopper_bulk_load(dst, src, bytes, bar);
}
static inline void tp_bulk_store(void *dst, const void *src, int bytes) {
    hopper_bulk_store(dst, src, bytes, false);
}
static inline void tp_bulk_add_f32(float *dst, const void *src, int bytes) {
    hopper_bulk_store(dst, src, bytes, true);
}
static inline void tp_bulk_commit(void) { hopper_bulk_commit(); }
template <int N> static inline void tp_bulk_wait_read(void) { hopper_bulk_wait(N, true); }
template <int N> static inline void tp_bulk_wait(void) { hopper_bulk_wait(N, false); }
static inline void tp_fence_async(void) { hopper_fence_async(); }
static inline void tp_fence_async_global(void) { hopper_fence_async_global(); }
static inline int tp_load_acquire(const int *p) {
    emu_check_global(p, sizeof *p, sizeof *p);
    hopper_acquired();
    return *p;
}
static inline void tp_store_release(int *p, int v) {
    emu_check_global(p, sizeof *p, sizeof *p);
    hopper_releases();
    *p = v;
}
template <int REGISTERS> static inline void tp_registers_more(void) {
    static_assert(REGISTERS % 8 == 0 && REGISTERS >= 24 && REGISTERS <= 256, "setmaxnreg");
}
template <int REGISTERS> static inline void tp_registers_fewer(void) {
    static_assert(REGISTERS % 8 == 0 && REGISTERS >= 24 && REGISTERS <= 256, "setmaxnreg");
}
static inline void tp_bar_sync(int id, int count) {
    hopper_no_unfenced_stores("bar.sync");
    emu_named_barrier(id, count, true);
}
static inline void tp_bar_arrive(int id, int count) {
    hopper_no_unfenced_stores("bar.arrive");
    emu_named_barrier(id, count, false);
}
static inline void tp_sts_tile(void *p, uint32_t v) { hopper_store_tile(p, v); }
static inline void tp_sts_tile4(void *p, float x, float y, float z, float w) {
    hopper_store_tile4(p, make_float4(x, y, z, w));
}
static inline void tp_wgmma_fence(void) { hopper_wgmma_fence(); }
static inline void tp_wgmma_commit(void) { hopper_wgmma_commit(); }
template <int N> static inline void tp_wgmma_wait(void) { hopper_wgmma_wait(N); }
template <int N> static inline void tp_wgmma_wait_after(float x, void *) {
    if (x < 0) emu_report("tp_wgmma_wait_after: %g is negative", (double)x);
    hopper_wgmma_wait(N);
}
template <int N> static inline void tp_wgmma_pin(float (&)[N]) {}
template <int N> static inline void tp_wgmma_pin(uint32_t (&)[N][4]) {}
template <int N, int TA, int TB>
static inline void tp_wgmma_ss(float (&d)[N / 2], uint64_t a, uint64_t b, int add) {
    static_assert(N == 64 || N == 80 || N == 96 || N == 128 || N == 192 || N == 256,
                  "no such width here");
    hopper_wgmma(N, d, nullptr, a, b, TA, TB, add);
}
template <int N, int TB>
static inline void tp_wgmma_rs(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int add) {
    static_assert(N == 64 || N == 96 || N == 128 || N == 256, "no such width here");
    hopper_wgmma(N, d, a, 0, b, 0, TB, add);
}
#endif
