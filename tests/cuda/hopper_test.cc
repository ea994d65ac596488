/* The wrappers of ops/cuda_hopper.h, on a Hopper GPU or as tests/cuda_on_cpu/hopper.cc carries them
 * out: products in every width, layout and swizzle against a plain sum; TMA at the edges of a
 * tensor; bulk copies; and a pipeline of mbarriers, TMA and wgmma. On the CPU every way to get that
 * wrong must be noticed, by a report or by wrong numbers. Values are small integers, so all sums
 * are exact. */
#include "either.h"
#include "ops/cuda_hopper.h"
#include <stdio.h>
#include <stdlib.h>

static int failed, checks;
static void expect(bool ok, const char *fmt, const char *name, int a, int b) {
    checks++;
    if (ok) return;
    failed++;
    printf("FAILED ");
    printf(fmt, name, a, b);
    printf(" (%s)\n", either_report());
}

static uint32_t random_state = 1;
static int small_integer(void) {
    random_state = random_state * 1664525u + 1013904223u;
    return (int)(random_state >> 24) % 9 - 4;
}

/* A (rows, columns) matrix of integers on the device, in bf16, and on the host. */
typedef struct matrix {
    int rows, columns;
    tp_bf16 *device;
    float *host;
} matrix;
static matrix new_matrix(int rows, int columns) {
    matrix m = {rows, columns, NULL, (float *)malloc((size_t)(rows * columns) * 4)};
    tp_bf16 *h = (tp_bf16 *)malloc((size_t)(rows * columns) * 2);
    for (int i = 0; i < rows * columns; i++) {
        m.host[i] = (float)small_integer();
        h[i] = __float2bfloat16_rn(m.host[i]);
    }
    cudaMalloc((void **)&m.device, (size_t)(rows * columns) * 2);
    cudaMemcpy(m.device, h, (size_t)(rows * columns) * 2, cudaMemcpyHostToDevice);
    free(h);
    return m;
}
static void free_matrix(matrix *m) {
    cudaFree(m->device);
    free(m->host);
}

static tp_tma_map map_of(const matrix *m, int box_rows, int box_columns, enum tp_swizzle swizzle) {
    tp_tma_map map;
    int64_t columns = m->columns;
    tp_tma_shape s = {m->device,
                      {columns, m->rows, 1, 1},
                      {1, columns, 8, 8},
                      {box_columns, box_rows, 1, 1},
                      swizzle};
    const char *no = tp_tma_map_bf16(&map, &s);
    if (no) printf("%s\n", no), exit(3);
    return map;
}

/* Where thread t's accumulator i of (64, N) lies. */
static inline TP_HD void where(int t, int i, int *row, int *column) {
    *row = t / 32 * 16 + t % 32 / 4 + (i & 2 ? 8 : 0);
    *column = i / 4 * 8 + t % 4 * 2 + (i & 1);
}

/* ---- products ---------------------------------------------------------------------------------
 */
enum { SUM = 64 }; /* length of the sums: 4 steps of 16 */
typedef struct product_params {
    tp_tma_map a, b;
    float *c; /* (64, N), starts as 1 */
    int load; /* bytes of both */
} product_params;

/* c += a b. A tile is boxes of COLS columns. TA, TB: the tile's rows are the summed dimension.
 * From registers (RS), a is gathered by hand from the tile. */
template <int N, int TA, int TB, int COLS, int RS>
static __global__ void product(const __grid_constant__ product_params f) {
#if TP_HOPPER
    constexpr enum tp_swizzle SWIZZLE = COLS == 64   ? TP_SWIZZLE_128B
                                        : COLS == 32 ? TP_SWIZZLE_64B
                                                     : TP_SWIZZLE_32B;
    constexpr int ROW = COLS * 2, A_ROWS = TA ? SUM : 64, A_COLUMNS = TA ? 64 : SUM,
                  B_ROWS = TB ? SUM : N, B_COLUMNS = TB ? N : SUM;
    TP_SHARED_DYNAMIC(shared);
    unsigned char *a = shared, *b = shared + 8192;
    uint64_t *bar = (uint64_t *)(b + 32768);
    if (threadIdx.x == 0) {
        tp_mbar_init(bar, 1);
        tp_mbar_init_fence();
        tp_mbar_arrive_expect(bar, f.load);
        for (int i = 0; i < A_COLUMNS / COLS; i++)
            tp_tma_load_4d(a + i * A_ROWS * ROW, &f.a, bar, i * COLS, 0, 0, 0);
        for (int i = 0; i < B_COLUMNS / COLS; i++)
            tp_tma_load_4d(b + i * B_ROWS * ROW, &f.b, bar, i * COLS, 0, 0, 0);
    }
    __syncthreads();
    tp_mbar_wait(bar, 0);
    float d[N / 2];
    uint32_t regs[SUM / 16][4];
    int t = threadIdx.x, r, c;
#pragma unroll
    for (int i = 0; i < N / 2; i++) where(t, i, &r, &c), d[i] = f.c[r * N + c];
#pragma unroll
    for (int k = 0; k < (RS ? SUM / 16 : 0); k++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            r = t / 32 * 16 + t % 32 / 4 + e % 2 * 8, c = 16 * k + t % 4 * 2 + e / 2 * 8;
            regs[k][e] = tp_lds((const uint32_t *)(a + c / COLS * A_ROWS * ROW +
                                                   tp_swizzled(r * ROW + c % COLS * 2, SWIZZLE)));
        }
    tp_wgmma_pin(d);
    tp_wgmma_fence();
#pragma unroll
    for (int k = 0; k < SUM / 16; k++) {
        int x = 16 * k;
        uint64_t ad = tp_wgmma_desc(TA ? a + x * ROW : a + x / COLS * A_ROWS * ROW + x % COLS * 2,
                                    A_ROWS * ROW, 8 * ROW, SWIZZLE);
        uint64_t bd = tp_wgmma_desc(TB ? b + x * ROW : b + x / COLS * B_ROWS * ROW + x % COLS * 2,
                                    B_ROWS * ROW, 8 * ROW, SWIZZLE);
        if constexpr (RS)
            tp_wgmma_rs<N, TB>(d, regs[k], bd, 1);
        else
            tp_wgmma_ss<N, TA, TB>(d, ad, bd, 1);
    }
    tp_wgmma_commit();
    tp_wgmma_wait<0>();
    tp_wgmma_pin(d);
    if constexpr (RS) tp_wgmma_pin(regs);
#pragma unroll
    for (int i = 0; i < N / 2; i++) where(t, i, &r, &c), f.c[r * N + c] = d[i];
#endif
}

template <int N, int TA, int TB, int COLS, int RS> static void test_product(void) {
    const enum tp_swizzle swizzle = COLS == 64   ? TP_SWIZZLE_128B
                                    : COLS == 32 ? TP_SWIZZLE_64B
                                                 : TP_SWIZZLE_32B;
    matrix a = TA ? new_matrix(SUM, 64) : new_matrix(64, SUM);
    matrix b = TB ? new_matrix(SUM, N) : new_matrix(N, SUM);
    float *c = (float *)malloc(64 * N * 4);
    product_params f;
    f.a = map_of(&a, a.rows, COLS, swizzle);
    f.b = map_of(&b, b.rows, COLS, swizzle);
    f.load = 2 * (64 * SUM + N * SUM);
    for (int i = 0; i < 64 * N; i++) c[i] = 1;
    cudaMalloc((void **)&f.c, 64 * N * 4);
    cudaMemcpy(f.c, c, 64 * N * 4, cudaMemcpyHostToDevice);
    EITHER_LAUNCH((product<N, TA, TB, COLS, RS>), 1, 128, 8192 + 32768 + 8, f);
    expect(either_fine(), "%s N %d, columns %d: a report", RS ? "RS" : "SS", N, COLS);
    cudaMemcpy(c, f.c, 64 * N * 4, cudaMemcpyDeviceToHost);
    int wrong = 0;
    for (int i = 0; i < 64; i++)
        for (int j = 0; j < N; j++) {
            float sum = 1;
            for (int k = 0; k < SUM; k++)
                sum += (TA ? a.host[k * 64 + i] : a.host[i * SUM + k]) *
                       (TB ? b.host[k * N + j] : b.host[j * SUM + k]);
            wrong += c[i * N + j] != sum;
        }
    expect(!wrong, "%s transposed %d%d: wrong values", RS ? "RS" : "SS", TA, TB);
    cudaFree(f.c);
    free(c);
    free_matrix(&a), free_matrix(&b);
}

template <int N> static void test_width(void) {
    if constexpr (N != 80) {
        test_product<N, 0, 0, 64, 1>();
        test_product<N, 0, 1, 32, 1>();
    }
    test_product<N, 0, 0, 64, 0>();
    test_product<N, 1, 0, 64, 0>();
    test_product<N, 0, 0, 32, 0>();
    if constexpr (N % 64 == 0) test_product<N, 1, 1, 64, 0>(), test_product<N, 0, 1, 64, 0>();
    if constexpr (N % 32 == 0) test_product<N, 1, 1, 32, 0>();
    test_product<N, 1, 1, 16, 0>();
}

/* ---- TMA at the edges -------------------------------------------------------------------------
 */
/* Copies the box at (c0, c1) of a tensor to the same place of another. */
static __global__ void edge(const __grid_constant__ tp_tma_map from,
                            const __grid_constant__ tp_tma_map to, int c0, int c1, float *seen) {
#if TP_HOPPER
    TP_SHARED_DYNAMIC(shared);
    uint64_t *bar = (uint64_t *)(shared + 1024);
    if (threadIdx.x == 0) {
        tp_mbar_init(bar, 1);
        tp_mbar_init_fence();
        tp_mbar_arrive_expect(bar, 1024);
        tp_tma_load_4d(shared, &from, bar, c0, c1, 0, 0);
        tp_mbar_wait(bar, 0);
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 64; j++)
                seen[i * 64 + j] = __bfloat162float(tp_lds(
                    (const tp_bf16 *)(shared + tp_swizzled(i * 128 + j * 2, TP_SWIZZLE_128B))));
        tp_tma_store_4d(&to, shared, c0, c1, 0, 0);
        tp_bulk_commit();
        tp_bulk_wait<0>();
    }
#endif
}
static void test_edge(int c0, int c1) {
    matrix x = new_matrix(13, 72), y = new_matrix(13, 72);
    tp_tma_map from = map_of(&x, 8, 64, TP_SWIZZLE_128B), to = map_of(&y, 8, 64, TP_SWIZZLE_128B);
    static float seen[512];
    static tp_bf16 after[13 * 72];
    float *device;
    cudaMalloc((void **)&device, sizeof seen);
    EITHER_LAUNCH(edge, 1, 32, 1032, from, to, c0, c1, device);
    expect(either_fine(), "%s at %d, %d: a report", "TMA", c0, c1);
    cudaMemcpy(seen, device, sizeof seen, cudaMemcpyDeviceToHost);
    cudaMemcpy(after, y.device, sizeof after, cudaMemcpyDeviceToHost);
    int wrong = 0;
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 64; j++) {
            int r = c1 + i, c = c0 + j;
            bool inside = r >= 0 && r < 13 && c >= 0 && c < 72;
            wrong += seen[i * 64 + j] != (inside ? x.host[r * 72 + c] : 0);
        }
    expect(!wrong, "%s at %d, %d: wrong values, or no zeros outside", "TMA load", c0, c1);
    wrong = 0;
    for (int r = 0; r < 13; r++)
        for (int c = 0; c < 72; c++) {
            bool inside = r >= c1 && r < c1 + 8 && c >= c0 && c < c0 + 64;
            wrong += __bfloat162float(after[r * 72 + c]) !=
                     (inside ? x.host[r * 72 + c] : y.host[r * 72 + c]);
        }
    expect(!wrong, "%s at %d, %d: wrote elsewhere, or not", "TMA store", c0, c1);
    cudaFree(device);
    free_matrix(&x), free_matrix(&y);
}

static __global__ void bulk(const float *x, float *y) {
#if TP_HOPPER
    TP_SHARED_DYNAMIC(shared);
    uint64_t *bar = (uint64_t *)(shared + 256);
    if (threadIdx.x) return;
    tp_mbar_init(bar, 1);
    tp_mbar_init_fence();
    tp_mbar_arrive_expect(bar, 256);
    tp_bulk_load(shared, x, 256, bar);
    tp_mbar_wait(bar, 0);
    tp_bulk_store(y, shared, 256);
    tp_bulk_commit();
    tp_bulk_wait<0>();
    tp_bulk_add_f32(y + 32, shared, 128);
    tp_bulk_commit();
    tp_bulk_wait<0>();
#endif
}
static void test_bulk(void) {
    float x[64], *dx, *dy;
    for (int i = 0; i < 64; i++) x[i] = (float)i;
    cudaMalloc((void **)&dx, 256), cudaMalloc((void **)&dy, 256);
    cudaMemcpy(dx, x, 256, cudaMemcpyHostToDevice);
    EITHER_LAUNCH(bulk, 1, 32, 264, dx, dy);
    bool fine = either_fine();
    cudaMemcpy(x, dy, 256, cudaMemcpyDeviceToHost);
    int wrong = 0;
    for (int i = 0; i < 64; i++) wrong += x[i] != (float)(i < 32 ? i : i + i - 32);
    expect(!wrong && fine, "%s: wrong values", "bulk copies", 0, 0);
    cudaFree(dx), cudaFree(dy);
}

/* ---- a sum that blocks hand on -----------------------------------------------------------------
 */
enum handing { RIGHT, WAITS_FOR_READ, NO_WAIT, NO_PROXY_FENCE, NHANDING };
/* Each block adds its part when it is its turn, as attention_backward_sm90 does. */
static __global__ void hand_on(float *sum, int *turn, int handing) {
#if TP_HOPPER
    TP_SHARED_DYNAMIC(shared);
    if (threadIdx.x) return;
    tp_sts_tile4(shared, 1, 2, 3, 4);
    tp_fence_async();
    while (tp_load_acquire(turn) != (int)blockIdx.x) __nanosleep(20);
    if (handing != NO_PROXY_FENCE) tp_fence_async_global();
    tp_bulk_add_f32(sum, shared, 16);
    tp_bulk_commit();
    if (handing == WAITS_FOR_READ)
        tp_bulk_wait_read<0>();
    else if (handing != NO_WAIT)
        tp_bulk_wait<0>();
    tp_store_release(turn, (int)blockIdx.x + 1);
#endif
}
static void test_hand_on(void) {
    static const char *const names[NHANDING] = {"right", "waits for the reading only",
                                                "does not wait", "no fence behind the flag"};
    float sum[4], *dsum;
    int *turn;
    cudaMalloc((void **)&dsum, 16), cudaMalloc((void **)&turn, 4);
    for (int handing = 0; handing < (EITHER_TELLS ? NHANDING : RIGHT + 1); handing++) {
        cudaMemset(dsum, 0, 16), cudaMemset(turn, 0, 4);
        EITHER_LAUNCH(hand_on, 3, 32, 16, dsum, turn, handing);
        bool fine = either_fine();
        cudaMemcpy(sum, dsum, 16, cudaMemcpyDeviceToHost);
        if (handing == RIGHT)
            expect(fine && sum[0] == 3 && sum[3] == 12, "%s: reported, or wrong", names[0], 0, 0);
        else
            expect(!fine, "not noticed: a sum that is handed on %s", names[handing], 0, 0);
    }
    cudaFree(dsum), cudaFree(turn);
}

/* ---- a pipeline, and what can go wrong --------------------------------------------------------
 */
enum fault {
    NONE,
    NO_FULL_WAIT,
    WRONG_PHASE,
    NO_EMPTY_WAIT,
    EARLY_RELEASE,
    NO_WGMMA_WAIT,
    WRONG_SWIZZLE,
    WRONG_STRIDE,
    WRONG_LEADING,
    WRONG_STEP,
    WRONG_FRAGMENT,
    TOO_MANY_BYTES,
    TOO_FEW_ARRIVALS,
    NO_BARRIER_INIT,
    NO_FENCE,
    NO_GROUP_BARRIER,
    NO_INIT_FENCE,
    NO_WGMMA_FENCE,
    NFAULT
};
static const char *const fault_names[NFAULT] = {
    "none",
    "the consumer does not wait for the tile",
    "the consumer waits for the other phase",
    "the producer does not wait for the place",
    "the consumer gives the place back before wgmma has read it",
    "accumulators are read before wgmma is done",
    "the descriptor has another swizzle than the tile",
    "the descriptor has a wrong stride",
    "the descriptor has a wrong leading dimension",
    "the step along the summed dimension is wrong",
    "two accumulators are exchanged",
    "more bytes are announced than come",
    "a warp does not give the place back",
    "a barrier is not initialised",
    "tile stores are not fenced",
    "wgmma starts before all stores of the warpgroup",
    "no fence behind the barriers' initialisation",
    "no wgmma.fence before a product",
};
enum { CHUNKS = 6, PN = 128, TILE = 8192 + PN * 128 };

typedef struct pipeline_params {
    tp_tma_map a, b; /* (64, 64*CHUNKS), (64*CHUNKS, PN) */
    float *c;        /* (64, PN) = a (a b)_64: two products, the second through a stored tile */
    int fault;
} pipeline_params;

/* Thread 0 produces; threads 128..255 compute. */
static __global__ void pipeline(const __grid_constant__ pipeline_params f) {
#if TP_HOPPER
    const int ROW = 128;
    TP_SHARED_DYNAMIC(shared);
    unsigned char *own = shared + 2 * TILE; /* a tile that the warpgroup writes itself */
    uint64_t *full = (uint64_t *)(own + 8192), *empty = full + 2;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            if (f.fault != NO_BARRIER_INIT || i) tp_mbar_init(&full[i], 1);
            tp_mbar_init(&empty[i], 4);
        }
        if (f.fault != NO_INIT_FENCE) tp_mbar_init_fence();
    }
    __syncthreads();
    if (threadIdx.x == 0)
        for (int j = 0; j < CHUNKS; j++) {
            unsigned char *tile = shared + j % 2 * TILE;
            if (f.fault != NO_EMPTY_WAIT) tp_mbar_wait(&empty[j % 2], (j / 2 & 1) ^ 1);
            tp_mbar_arrive_expect(&full[j % 2], TILE + (f.fault == TOO_MANY_BYTES ? 16 : 0));
            tp_tma_load_4d(tile, &f.a, &full[j % 2], 64 * j, 0, 0, 0);
            for (int i = 0; i < PN / 64; i++)
                tp_tma_load_4d(tile + 8192 + i * 64 * ROW, &f.b, &full[j % 2], 64 * i, 64 * j, 0,
                               0);
        }
    if (threadIdx.x < 128) return;
    float d[PN / 2], e[32];
    int t = threadIdx.x % 128;
#pragma unroll
    for (int i = 0; i < PN / 2; i++) d[i] = 0;
#pragma unroll
    for (int i = 0; i < 32; i++) e[i] = 0;
    for (int j = 0; j < CHUNKS; j++) {
        unsigned char *tile = shared + j % 2 * TILE;
        int phase = j / 2 & 1;
        if (f.fault == WRONG_PHASE) phase ^= 1;
        if (f.fault != NO_FULL_WAIT) tp_mbar_wait(&full[j % 2], phase);
        uint64_t a = tp_wgmma_desc(tile, 16, f.fault == WRONG_STRIDE ? 512 : 1024,
                                   f.fault == WRONG_SWIZZLE ? TP_SWIZZLE_64B : TP_SWIZZLE_128B);
        uint64_t b = tp_wgmma_desc(tile + 8192, f.fault == WRONG_LEADING ? 1024 : 64 * ROW, 1024,
                                   TP_SWIZZLE_128B);
        tp_wgmma_pin(d);
        if (f.fault != NO_WGMMA_FENCE || j < 3) tp_wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++)
            tp_wgmma_ss<PN, 0, 1>(d, a + (uint64_t)((f.fault == WRONG_STEP ? 16 : 32) * k >> 4),
                                  b + (uint64_t)(16 * k * ROW >> 4), 1);
        tp_wgmma_commit();
        if (f.fault != EARLY_RELEASE && f.fault != NO_WGMMA_WAIT) tp_wgmma_wait<0>();
        if (t % 32 == 0 && !(f.fault == TOO_FEW_ARRIVALS && t == 32)) tp_mbar_arrive(&empty[j % 2]);
        if (f.fault == EARLY_RELEASE) tp_wgmma_wait<0>();
        tp_wgmma_pin(d);
    }
    /* the left half of d as a tile in bf16 (a fraction of it, so that it is exact) */
    int r, c;
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
        where(t, i, &r, &c);
        tp_sts_tile(own + tp_swizzled(r * ROW + c * 2, TP_SWIZZLE_128B),
                    tp_pack_bf16((float)((int)d[i] & 127), (float)((int)d[i + 1] & 127)));
    }
    if (f.fault != NO_FENCE) tp_fence_async();
    if (f.fault != NO_GROUP_BARRIER) tp_bar_sync(1, 128);
    uint64_t o = tp_wgmma_desc(own, 16, 1024, TP_SWIZZLE_128B);
    tp_wgmma_pin(e);
    tp_wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) tp_wgmma_ss<64, 0, 0>(e, o + 2 * k, o + 2 * k, 1);
    tp_wgmma_commit();
    tp_wgmma_wait<0>();
    tp_wgmma_pin(e);
    if (f.fault == WRONG_FRAGMENT) {
        float x = d[5];
        d[5] = d[6], d[6] = x;
    }
#pragma unroll
    for (int i = 0; i < PN / 2; i++) where(t, i, &r, &c), f.c[r * PN + c] = d[i];
#pragma unroll
    for (int i = 0; i < 32; i++) where(t, i, &r, &c), f.c[64 * PN + r * 64 + c] = e[i];
#endif
}

/* Runs it in one schedule. True if nobody noticed anything. */
static bool pipeline_is_right(int fault, const char *order, const char *async) {
    enum { NC = 64 * PN + 64 * 64 };
    matrix a = new_matrix(64, 64 * CHUNKS), b = new_matrix(64 * CHUNKS, PN);
    float *c = (float *)calloc(NC, 4);
    pipeline_params f;
    f.a = map_of(&a, 64, 64, TP_SWIZZLE_128B);
    f.b = map_of(&b, 64, 64, TP_SWIZZLE_128B);
    f.fault = fault;
    cudaMalloc((void **)&f.c, NC * 4);
    cudaMemcpy(f.c, c, NC * 4, cudaMemcpyHostToDevice);
    either_schedule(order, async);
    EITHER_LAUNCH(pipeline, 1, 256, 2 * TILE + 8192 + 32, f);
    either_schedule(NULL, NULL);
    bool right = either_fine();
    if (getenv("HOPPER_TEST_VERBOSE") && !right)
        printf("  %s: %s\n", fault_names[fault], either_report());
    cudaMemcpy(c, f.c, NC * 4, cudaMemcpyDeviceToHost);
    static float d[64 * PN];
    for (int i = 0; i < 64; i++)
        for (int j = 0; j < PN; j++) {
            float sum = 0;
            for (int k = 0; k < 64 * CHUNKS; k++)
                sum += a.host[i * 64 * CHUNKS + k] * b.host[k * PN + j];
            d[i * PN + j] = sum;
            right = right && c[i * PN + j] == sum;
        }
    for (int i = 0; i < 64; i++)
        for (int j = 0; j < 64; j++) {
            float sum = 0;
            for (int k = 0; k < 64; k++)
                sum += (float)(((int)d[i * PN + k] & 127) * ((int)d[j * PN + k] & 127));
            right = right && c[64 * PN + i * 64 + j] == sum;
        }
    cudaFree(f.c);
    free(c);
    free_matrix(&a), free_matrix(&b);
    return right;
}

int main(void) {
    static const char *const schedules[][2] = {{"forward", "late"},
                                               {"forward", "early"},
                                               {"reverse", "late"},
                                               {"random:1", "random:2"},
                                               {"random:3", "random:4"}};
    if (!either_is_hopper()) return puts("skipped: needs a Hopper GPU"), 77;
    test_width<64>(), test_width<80>(), test_width<96>(), test_width<128>(), test_width<256>();
    for (int c0 = -8; c0 <= 64; c0 += 8)
        for (int c1 = -3; c1 <= 12; c1 += 5) test_edge(c0, c1);
    test_bulk();
    test_hand_on();
    for (int fault = 0; fault < (EITHER_TELLS ? NFAULT : NONE + 1); fault++) {
        int caught = 0;
        for (size_t s = 0; s < sizeof schedules / sizeof *schedules; s++)
            caught += !pipeline_is_right(fault, schedules[s][0], schedules[s][1]);
        if (fault == NONE)
            expect(!caught, "%s: a right pipeline fails in %d schedules", "pipeline", caught, 0);
        else
            expect(caught > 0, "not noticed: %s", fault_names[fault], 0, 0);
        if (getenv("HOPPER_TEST_VERBOSE"))
            printf("%s: %d of 5 schedules\n", fault_names[fault], caught);
    }
    printf("hopper: %d checks, %d failed\n", checks, failed);
    return failed != 0;
}
