/* The emulator of tests/cuda_on_cpu/: kernels that are right give the right numbers in every order
 * of threads and blocks; kernels with one mistake each are reported, in words that name it. */
#include <time.h>
#include "cuda_on_cpu/check.h"
#include "cuda_on_cpu/internal.h"

/* ---- right kernels, and mutants of them ------------------------------------------------------ */
enum mutant {
    RIGHT,
    NO_BARRIER,
    NO_BARRIER_BEHIND,
    DIVERGENT,
    TWO_BARRIERS,
    PAST_END,
    BEFORE_START,
    UNWRITTEN,
    LANE_MISSING,
    LANE_RETURNED,
    NOT_IN_MASK,
    FOREIGN_LANE,
    MISALIGNED,
    MISALIGNED_GLOBAL,
    NO_SYNCWARP,
    ALL_WRITE,
    NO_WAIT,
    NO_RELEASE,
    TOO_EARLY,
    WRONG_COUNT,
    COMES_TWICE,
    NOBODY_WAITS,
    SPIN
};

/* sum[b] = sum of x[b*blockDim.x ...], through a tree in shared memory */
template <mutant M> static void block_sum(const float *x, float *sum) {
    TP_SHARED(float, part, 256);
    unsigned t = threadIdx.x, n = blockDim.x;
    if (M != UNWRITTEN || t != 5) part[t + (M == PAST_END && t == n - 1)] = x[blockIdx.x * n + t];
    if (M != NO_BARRIER) __syncthreads();
    for (unsigned s = n / 2; s > 0; s /= 2) {
        if (t < s) part[t] += (float)part[t + s];
        if (M == DIVERGENT && t >= 32) return;
        if (M == TWO_BARRIERS && t < 64)
            __syncthreads();
        else if (M != NO_BARRIER_BEHIND || s != 4)
            __syncthreads();
    }
    if (t == 0) sum[blockIdx.x] = part[M == BEFORE_START ? -1 : 0];
}

static void test_block_sum(void **state) {
    (void)state;
    enum { BLOCKS = 7, N = 256 };
    float x[BLOCKS * N], got[BLOCKS], first[BLOCKS];
    for (int i = 0; i < BLOCKS * N; i++) x[i] = 1.0f / (float)(i + 1);
    float *dx = on_device(x, BLOCKS * N), *dy = on_device(nullptr, BLOCKS);
    for (size_t o = 0; o < 5; o++) {
        emu_set_order(orders[o]);
        LAUNCH(BLOCKS, N, 0, block_sum<RIGHT>(dx, dy));
        assert_fine();
        to_host(got, dy, sizeof got);
        for (int b = 0; b < BLOCKS; b++) {
            double want = 0;
            for (int i = 0; i < N; i++) want += x[b * N + i];
            assert_true(fabs(got[b] - want) <= 1e-6 * want);
        }
        if (o == 0) memcpy(first, got, sizeof got);
        assert_memory_equal(first, got, sizeof got);

        LAUNCH(BLOCKS, N, 0, block_sum<NO_BARRIER_BEHIND>(dx, dy));
        REPORTED("block_sum<NO_BARRIER_BEHIND>", "race on part[", "written by", "read by",
                 "no __syncwarp or barrier between");
        LAUNCH(BLOCKS, N, 0, block_sum<DIVERGENT>(dx, dy));
        REPORTED("barrier that not all threads reach: 32 of 256 wait at __syncthreads",
                 "cuda_on_cpu_test.cc:", "has returned");
        LAUNCH(BLOCKS, N, 0, block_sum<TWO_BARRIERS>(dx, dy));
        REPORTED("barrier divergence: thread", "waits at __syncthreads", "at another");
        LAUNCH(BLOCKS, N, 0, block_sum<PAST_END>(dx, dy));
        REPORTED("out of bounds: part[256] of an array of 256", "thread 255");
        LAUNCH(BLOCKS, N, 0, block_sum<BEFORE_START>(dx, dy));
        REPORTED("out of bounds: part[-1]", "thread 0");
        LAUNCH(BLOCKS, N, 0, block_sum<UNWRITTEN>(dx, dy));
        REPORTED("read of part[5] (byte 20), which nobody wrote in this block");
        LAUNCH(BLOCKS, N, 0, block_sum<NO_BARRIER>(dx, dy));
        REPORTED("part["); /* what comes first, the read or the write, is the order's choice */
        LAUNCH(1, 512, 0, block_sum<RIGHT>(dx, dy)); /* more threads than the array has room for */
        REPORTED("out of bounds: part[");
    }
    cudaFree(dx), cudaFree(dy);
}

/* Two warps: everyone writes, and reads what the other warp's thread wrote. */
template <mutant M> static void exchange(int *out) {
    TP_SHARED(int, box, 64);
    int t = (int)threadIdx.x;
    box[t] = -1;
    __syncthreads();
    box[M == ALL_WRITE ? 0 : t] = t;
    if (M != NO_BARRIER) __syncthreads();
    out[t] = box[(t + 32) % 64];
    if (M == NO_BARRIER_BEHIND) box[t] = 0;
}
static void test_races(void **state) {
    (void)state;
    int *out, h[64];
    cudaMalloc(&out, sizeof h);
    for (size_t o = 0; o < 5; o++) {
        emu_set_order(orders[o]);
        LAUNCH(3, 64, 0, exchange<RIGHT>(out));
        assert_fine();
        to_host(h, out, sizeof h);
        for (int t = 0; t < 64; t++) assert_int_equal(h[t], (t + 32) % 64);
        LAUNCH(3, 64, 0, exchange<NO_BARRIER>(out));
        REPORTED("race on box[", "no barrier between");
        LAUNCH(3, 64, 0, exchange<NO_BARRIER_BEHIND>(out));
        REPORTED("race on box[", "no barrier between");
        LAUNCH(3, 64, 0, exchange<ALL_WRITE>(out));
        REPORTED("race on box[0]", "written by thread", "barrier between");
    }
    emu_set_order("forward");
    for (uint32_t i = 0; i < 20; i++) { /* clocks near their end begin anew, and nobody notices */
        emu_latest_time = 0xf0000000u - 10 + i;
        LAUNCH(5, 64, 0, exchange<RIGHT>(out));
        assert_fine();
        LAUNCH(5, 64, 0, exchange<NO_BARRIER>(out));
        REPORTED("race on box[");
        assert_true(emu_latest_time < 0xf0000100u);
    }
    assert_true(emu_latest_time < 100000);
    LAUNCH(1, 64, 0, exchange<NO_BARRIER>(out));
    /* thread 63 came last to the first barrier, so it goes on first, and its warp with it */
    REPORTED("exchange<NO_BARRIER>(out), block (0,0,0), thread 0: race on box[0] (byte 0): read by "
             "thread 32, written by thread 0, no barrier between");
    cudaFree(out);
}

/* y = softmax(x), rows of n, one block each: shuffles and barriers */
template <mutant M> static void softmax(const float *x, float *y, int n) {
    TP_SHARED(float, part, 32);
    int t = (int)threadIdx.x, lane = t & 31, w = t >> 5, nw = (int)blockDim.x / 32;
    const float *row = x + (long)blockIdx.x * n;
    float m = -INFINITY, s = 0;
    for (int i = t; i < n; i += (int)blockDim.x) m = fmaxf(m, tp_ldg(row + i));
    if (M == LANE_RETURNED && t == 37) return;
    if (M != LANE_MISSING || t != 37)
        for (int o = 16; o; o >>= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, o));
    if (lane == 0) part[w] = m;
    __syncthreads();
    m = lane < nw ? (float)part[lane] : -INFINITY;
    for (int o = 16; o; o >>= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, o));
    if (M != NO_BARRIER_BEHIND) __syncthreads();
    for (int i = t; i < n; i += (int)blockDim.x) s += expf(row[i] - m);
    for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
    if (lane == 0) part[w] = s;
    __syncthreads();
    s = lane < nw ? (float)part[lane] : 0;
    for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
    for (int i = t; i < n; i += (int)blockDim.x) y[(long)blockIdx.x * n + i] = expf(row[i] - m) / s;
}
static void test_softmax(void **state) {
    (void)state;
    enum { ROWS = 256, N = 1000 };
    float *x = (float *)malloc(ROWS * N * 4), *y = (float *)malloc(ROWS * N * 4);
    for (int i = 0; i < ROWS * N; i++) x[i] = (float)(i % 97) * 0.1f - (float)(i % 13);
    float *dx = on_device(x, ROWS * N), *dy = on_device(nullptr, ROWS * N);
    for (size_t o = 0; o < 5; o++) {
        emu_set_order(orders[o]);
        struct timespec a, b;
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
        LAUNCH(ROWS, 256, 0, softmax<RIGHT>(dx, dy, N));
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
        assert_fine();
        print_message("softmax, %d blocks of 256 threads, %s: %.1f ms\n", ROWS, orders[o],
                      1e3 * (double)(b.tv_sec - a.tv_sec) + 1e-6 * (double)(b.tv_nsec - a.tv_nsec));
        to_host(y, dy, ROWS * N * 4);
        for (int r = 0; r < ROWS; r++) {
            double max = -1e30, sum = 0;
            for (int i = 0; i < N; i++) max = fmax(max, x[r * N + i]);
            for (int i = 0; i < N; i++) sum += exp(x[r * N + i] - max);
            for (int i = 0; i < N; i++)
                assert_true(fabs(y[r * N + i] - exp(x[r * N + i] - max) / sum) <= 1e-6);
        }
        LAUNCH(2, 256, 0, softmax<NO_BARRIER_BEHIND>(dx, dy, N));
        REPORTED("race on part[", "no barrier between");
        LAUNCH(2, 256, 0, softmax<LANE_MISSING>(dx, dy, N));
        REPORTED("lane missing in __shfl_xor_sync: warp 1, mask 0xffffffff: thread 37 waits at "
                 "__syncthreads");
        LAUNCH(2, 256, 0, softmax<LANE_RETURNED>(dx, dy, N));
        REPORTED(
            "lane missing in __shfl_xor_sync: warp 1, mask 0xffffffff: thread 37 has returned");
    }
    LAUNCH(1, 48, 0, softmax<RIGHT>(dx, dy, N));
    REPORTED("lane missing", "thread 48 does not exist");
    cudaFree(dx), cudaFree(dy);
    free(x), free(y);
}

/* y = inclusive prefix sum of x over a warp; z: ballots, shuffles of other widths and types */
template <mutant M> static void warp_scan(const int *x, int *y, long long *z) {
    int lane = (int)threadIdx.x & 31, v = x[threadIdx.x];
    unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;
    for (int d = 1; d < 32; d *= 2) {
        int o = __shfl_up_sync(~0u, v, (unsigned)d);
        if (lane >= d) v += o;
    }
    y[threadIdx.x] = v;
    long long a = __ballot_sync(~0u, x[threadIdx.x] & 1);
    a += (long long)__shfl_sync(half, lane * 1.5, 3, 16) << 32;          /* lane 3 or 19 */
    a += (long long)__shfl_down_sync(half, (long long)lane, 8, 8) << 40; /* its own */
    a += (long long)__any_sync(half, lane == 20) << 48;
    a += (long long)__all_sync(half, lane < 16) << 52;
    a += __popc(__ballot_sync(~0u, 1)) - 32; /* one half may wait here for the other */
    if (M == NOT_IN_MASK) __syncwarp(0xfffffffe);
    if (M == LANE_MISSING && lane == 7)
        __any_sync(~0u, 1);
    else if (M == LANE_MISSING)
        __syncwarp();
    if (M == FOREIGN_LANE) a += __shfl_sync(half, lane, 4);
    z[threadIdx.x] = a;
}
static void test_warp(void **state) {
    (void)state;
    int x[64], y[64], *dx, *dy;
    long long z[64], *dz;
    for (int i = 0; i < 64; i++) x[i] = i * i % 11;
    cudaMalloc(&dx, sizeof x), cudaMalloc(&dy, sizeof y), cudaMalloc(&dz, sizeof z);
    cudaMemcpy(dx, x, sizeof x, cudaMemcpyHostToDevice);
    for (size_t o = 0; o < 5; o++) {
        emu_set_order(orders[o]);
        LAUNCH(1, 64, 0, warp_scan<RIGHT>(dx, dy, dz));
        assert_fine();
        to_host(y, dy, sizeof y), to_host(z, dz, sizeof z);
        for (int w = 0; w < 2; w++) {
            long long ballot = 0;
            for (int l = 0, sum = 0; l < 32; l++) {
                assert_int_equal(y[32 * w + l], sum += x[32 * w + l]);
                ballot |= (long long)(x[32 * w + l] & 1) << l;
            }
            for (int l = 0; l < 32; l++) {
                long long want = ballot + ((l < 16 ? 4ll : 28ll) << 32) + ((long long)l << 40) +
                                 ((long long)(l >= 16) << 48) + ((long long)(l < 16) << 52);
                assert_true(z[32 * w + l] == want);
            }
        }
        LAUNCH(1, 64, 0, warp_scan<NOT_IN_MASK>(dx, dy, dz));
        REPORTED("lane 0 calls __syncwarp with mask 0xfffffffe, which does not name it");
        LAUNCH(1, 64, 0, warp_scan<LANE_MISSING>(dx, dy, dz));
        REPORTED("lane missing in __", "mask 0xffffffff: thread", "waits for __");
        LAUNCH(1, 64, 0, warp_scan<FOREIGN_LANE>(dx, dy, dz));
        REPORTED("__shfl_sync: lane 16 reads lane 4, which the mask does not name");
    }
    cudaFree(dx), cudaFree(dy), cudaFree(dz);
}

/* Lanes of one warp hand values round: __syncwarp must stand between. */
template <mutant M> static void rotate(int *out) {
    TP_SHARED(int, box, 32);
    int l = (int)threadIdx.x;
    box[l] = 0;
    __syncwarp();
    for (int i = 0; i < 4; i++) {
        int v = box[(l + 1) % 32];
        if (M != NO_SYNCWARP) __syncwarp();
        box[l] = v + 1;
        __syncwarp();
    }
    out[l] = box[l];
}
static void test_within_warp(void **state) {
    (void)state;
    int *out, h[32];
    cudaMalloc(&out, sizeof h);
    for (size_t o = 0; o < 5; o++) {
        emu_set_order(orders[o]);
        LAUNCH(1, 32, 0, rotate<RIGHT>(out));
        assert_fine();
        to_host(h, out, sizeof h);
        for (int l = 0; l < 32; l++) assert_int_equal(h[l], 4);
        LAUNCH(1, 32, 0, rotate<NO_SYNCWARP>(out));
        REPORTED("race on box[", "no __syncwarp or barrier between");
    }
    cudaFree(out);
}

/* Transposes a 32x32 tile of floats with 16-byte accesses to global and dynamic shared memory. */
template <mutant M> static void transpose(const float *x, float *y, size_t bytes) {
    TP_SHARED_DYNAMIC(smem);
    float *tile = (float *)(void *)smem; /* [32][36]: rows stay 16-byte aligned */
    int r = (int)threadIdx.x, c = 4 * (int)threadIdx.y;
    float4 v = tp_ldg((const float4 *)(const void *)(x + (M == MISALIGNED_GLOBAL) + r * 32 + c));
    tp_sts((float4 *)(void *)(tile + (M == MISALIGNED) + r * 36 + c), v);
    if (M == PAST_END && r == 31 && c == 28)
        tp_sts((float *)(void *)(smem + bytes - 2 * (r == 31)), 1.0f);
    __syncthreads();
    float4 o;
    o.x = tp_lds(tile + (c + 0) * 36 + r), o.y = tp_lds(tile + (c + 1) * 36 + r);
    o.z = tp_lds(tile + (c + 2) * 36 + r), o.w = tp_lds(tile + (c + 3) * 36 + r);
    if (M == UNWRITTEN) o.x = tp_lds(tile + 34);
    *(float4 *)(void *)(y + r * 32 + c) = o;
}
static void test_vectors(void **state) {
    (void)state;
    float x[32 * 32 + 4], y[32 * 32];
    size_t bytes = 32 * 36 * 4 - 16;
    for (int i = 0; i < 32 * 32 + 4; i++) x[i] = (float)i;
    float *dx = on_device(x, 32 * 32 + 4), *dy = on_device(nullptr, 32 * 32);
    dim3 block(32, 8);
    for (size_t o = 0; o < 5; o++) {
        emu_set_order(orders[o]);
        LAUNCH(2, block, bytes, transpose<RIGHT>(dx, dy, bytes));
        assert_fine();
        to_host(y, dy, sizeof y);
        for (int i = 0; i < 32 * 32; i++) assert_true(y[i] == x[i % 32 * 32 + i / 32]);
        LAUNCH(2, block, bytes, transpose<MISALIGNED>(dx, dy, bytes));
        REPORTED("misaligned: write of 16 bytes in shared memory");
        LAUNCH(2, block, bytes, transpose<MISALIGNED_GLOBAL>(dx, dy, bytes));
        REPORTED("misaligned: global access of 16 bytes");
        LAUNCH(2, block, bytes, transpose<UNWRITTEN>(dx, dy, bytes));
        REPORTED("read of dynamic shared memory at byte 136, which nobody wrote");
        LAUNCH(2, block, bytes - 4, transpose<RIGHT>(dx, dy, bytes));
        REPORTED("out of bounds: write of 16 bytes at byte 4576 of 4588 of dynamic shared memory");
        LAUNCH(2, block, bytes, transpose<RIGHT>(x, dy, bytes));
        REPORTED("global access of 16 bytes at", "which is not device memory");
        LAUNCH(2, block, bytes, transpose<RIGHT>(dx + 32 * 16, dy, bytes));
        REPORTED("global access of 16 bytes", "device memory that is not allocated");
        LAUNCH(2, block, 0, transpose<RIGHT>(dx, dy, bytes));
        REPORTED("the launch gave no dynamic shared memory");
    }
    cudaFree(dx), cudaFree(dy);
}

/* ---- meetings of groups, named barriers, waits ----------------------------------------------- */
static void add_all(void *const *lane, void *arg) {
    int sum = 0;
    for (int i = 0; i < 128; i++) sum += *(int *)lane[i];
    for (int i = 0; i < 128; i++) *(int *)lane[i] = sum + *(int *)arg;
}
/* Warps 0..3 make numbers, 4..7 take them, through two buffers and named barriers. */
template <mutant M> static void pipeline(int *out, int rounds) {
    TP_SHARED(int, box, 256);
    int t = (int)threadIdx.x, g = t / 128, sum = 0;
    for (int i = 0; i < rounds; i++) {
        int b = i % 2, full = 1 + b, empty = 3 + b;
        if (g == 0) {
            if (i >= 2 && M != NO_WAIT) emu_named_barrier(empty, 256, true);
            box[128 * b + t] = t + i;
            emu_named_barrier(full, M == WRONG_COUNT ? 128 : 256, M == TOO_EARLY);
            if (M == COMES_TWICE) emu_named_barrier(full, 256, false);
        } else {
            if (M != NO_RELEASE) emu_named_barrier(full, 256, M != NOBODY_WAITS);
            sum += box[128 * b + (t + 40) % 128];
            if (i + 2 < rounds) emu_named_barrier(empty, 256, false);
        }
    }
    int all = sum, add = g;
    emu_group(128 * g, 128, &all, add_all, &add);
    out[t] = all;
}
static void test_named_barriers(void **state) {
    (void)state;
    int *out, h[256];
    cudaMalloc(&out, sizeof h);
    for (size_t o = 0; o < 5; o++) {
        emu_set_order(orders[o]);
        for (int rounds = 1; rounds < 7; rounds++) {
            LAUNCH(2, 256, 0, pipeline<RIGHT>(out, rounds));
            assert_fine();
            to_host(h, out, sizeof h);
            int want = 0;
            for (int i = 0; i < rounds; i++) want += 127 * 64 + 128 * i;
            for (int t = 0; t < 256; t++) assert_int_equal(h[t], t < 128 ? 0 : want + 1);
        }
        LAUNCH(2, 256, 0, pipeline<NO_RELEASE>(out, 2));
        REPORTED("box["); /* a race, or a read of what is not written yet */
        LAUNCH(2, 256, 0, pipeline<NO_RELEASE>(out, 3));
        REPORTED("");
        LAUNCH(2, 256, 0, pipeline<COMES_TWICE>(out, 1));
        REPORTED("named barrier");
        LAUNCH(2, 256, 0, pipeline<NOBODY_WAITS>(out, 1));
        REPORTED("");
        LAUNCH(2, 256, 0, pipeline<WRONG_COUNT>(out, 3));
        REPORTED("named barrier");
        LAUNCH(2, 256, 0, pipeline<TOO_EARLY>(out, 6));
        assert_fine(); /* bar.sync in place of bar.arrive is slower, not wrong */
    }
    emu_set_order("forward");
    LAUNCH(2, 256, 0, pipeline<COMES_TWICE>(out, 1));
    REPORTED("named barrier 1: the thread comes again");
    LAUNCH(2, 256, 0, pipeline<NO_WAIT>(out, 6)); /* producers run on ahead */
    REPORTED("named barrier 1: the thread comes again");
    cudaFree(out);
}

/* What hardware calls an mbarrier, as the simplest wrapper would have it. */
struct flag {
    int phase, arrived, want;
};
static bool flag_up(void *arg) {
    const struct flag *f = *(struct flag *const *)arg;
    return f->phase > 0;
}
struct copy_job {
    int *dst;
    const int *src;
    struct flag *done;
    int n;
};
static void copy_now(void *arg) { /* as TMA would: write, then complete */
    const copy_job *j = (const copy_job *)arg;
    emu_smem_access(j->dst, (size_t)j->n * 4, true);
    memcpy(j->dst, j->src, (size_t)j->n * 4);
    emu_clock_release(j->done);
    j->done->phase++;
}
template <mutant M> static void engine(const int *x, int *out) {
    TP_SHARED_DYNAMIC(smem);
    int *buf = (int *)(void *)smem, t = (int)threadIdx.x;
    struct flag *f = (struct flag *)(void *)(smem + 1024);
    if (M == TOO_EARLY) tp_sts(buf + t, t);
    if (t == 0) f->phase = 0;
    __syncthreads();
    if (M == TOO_EARLY && t >= 32) t = (int)threadIdx.x + 0 * tp_lds(buf + t);
    if (t == 0 && M != NO_RELEASE) {
        copy_job j = {buf, x + 64 * blockIdx.x, f, 64};
        emu_defer(EMU_QUEUE_ENGINE, copy_now, &j, sizeof j);
    }
    if (M != NO_WAIT) {
        emu_wait(flag_up, &f, "the copy");
        emu_clock_acquire(f);
    }
    out[64 * blockIdx.x + (unsigned)t] = tp_lds(buf + 63 - t);
}
static void test_engine(void **state) {
    (void)state;
    int x[128], y[128], *dx, *dy;
    for (int i = 0; i < 128; i++) x[i] = 3 * i;
    cudaMalloc(&dx, sizeof x), cudaMalloc(&dy, sizeof x);
    cudaMemcpy(dx, x, sizeof x, cudaMemcpyHostToDevice);
    for (size_t o = 0; o < 25; o++) {
        emu_set_order(orders[o % 5]);
        assert_true(emu_set_async(policies[o / 5]));
        LAUNCH(2, 64, 1024 + sizeof(struct flag), engine<RIGHT>(dx, dy));
        assert_fine();
        to_host(y, dy, sizeof y);
        for (int i = 0; i < 128; i++) assert_int_equal(y[i], x[i / 64 * 64 + 63 - i % 64]);
        LAUNCH(2, 64, 1024 + sizeof(struct flag), engine<NO_WAIT>(dx, dy));
        REPORTED("dynamic shared memory at byte"); /* not written yet, or a race */
        LAUNCH(2, 64, 1024 + sizeof(struct flag), engine<NO_RELEASE>(dx, dy));
        REPORTED("deadlock: thread", "waits for the copy, and nobody can go on");
        LAUNCH(2, 64, 1024 + sizeof(struct flag), engine<TOO_EARLY>(dx, dy));
        REPORTED("race on dynamic shared memory at byte");
    }
    emu_set_async("late");
    cudaFree(dx), cudaFree(dy);
}

/* out = x rotated by 40 within the block, tile by tile through two buffers filled by cp.async. */
static void copy_16(void *arg) {
    const copy_job *j = (const copy_job *)arg;
    emu_smem_access(j->dst, 16, true);
    memcpy(j->dst, j->src, 16);
}
template <mutant M> static void copies(const int *x, int *out, int tiles) {
    TP_SHARED_DYNAMIC(smem);
    int *buf = (int *)(void *)smem, t = (int)threadIdx.x, n = 4 * (int)blockDim.x;
    for (int i = -1; i < tiles; i++) {
        if (i + 1 < tiles) {
            copy_job j = {buf + (i + 1) % 2 * n + 4 * t, x + (i + 1) * n + 4 * t, nullptr, 4};
            emu_defer(EMU_QUEUE_CP_ASYNC, copy_16, &j, sizeof j);
        }
        emu_commit(EMU_QUEUE_CP_ASYNC);
        if (i < 0) continue;
        if (M != NO_WAIT) emu_drain_to(EMU_QUEUE_CP_ASYNC, 1);
        if (M != NO_BARRIER) __syncthreads();
        for (int k = t; k < n; k += (int)blockDim.x)
            out[i * n + k] = tp_lds(buf + i % 2 * n + (k + 40) % n);
        if (M != NO_BARRIER_BEHIND) __syncthreads();
    }
}
static void test_copies(void **state) {
    (void)state;
    enum { TILES = 5, N = 256 };
    int x[TILES * N], y[TILES * N], *dx, *dy;
    for (int i = 0; i < TILES * N; i++) x[i] = 3 * i;
    cudaMalloc(&dx, sizeof x), cudaMalloc(&dy, sizeof x);
    cudaMemcpy(dx, x, sizeof x, cudaMemcpyHostToDevice);
    for (size_t o = 0; o < 25; o++) {
        emu_set_order(orders[o % 5]);
        emu_set_async(policies[o / 5]);
        LAUNCH(2, 64, 2 * N * 4, copies<RIGHT>(dx, dy, TILES));
        assert_fine();
        to_host(y, dy, sizeof y);
        for (int i = 0; i < TILES * N; i++) assert_int_equal(y[i], x[i / N * N + (i + 40) % N]);
        LAUNCH(2, 64, 2 * N * 4, copies<NO_BARRIER>(dx, dy, TILES));
        REPORTED("dynamic shared memory at byte");
        LAUNCH(2, 64, 2 * N * 4, copies<NO_BARRIER_BEHIND>(dx, dy, TILES));
        REPORTED("race on dynamic shared memory at byte");
    }
    for (size_t o = 0; o < 25;
         o++) { /* one warp: its lanes' reads and its copies are a race, too */
        emu_set_order(orders[o % 5]);
        emu_set_async(policies[o / 5]);
        LAUNCH(2, 32, N * 4, copies<RIGHT>(dx, dy, 2 * TILES));
        assert_fine();
        LAUNCH(2, 32, N * 4, copies<NO_BARRIER_BEHIND>(dx, dy, 2 * TILES));
        REPORTED("race on dynamic shared memory at byte", "no __syncwarp or barrier between");
    }
    emu_set_async("late");
    LAUNCH(2, 64, 2 * N * 4, copies<NO_WAIT>(dx, dy, TILES));
    REPORTED("read of dynamic shared memory at byte", "nobody wrote");
    cudaFree(dx), cudaFree(dy);
}

/* As wgmma: a warpgroup's 128 threads issue together, the tile in shared memory is read until the
 * wait, and each thread's result is there only after it. out[t] = (t+1) * sum(tile), per tile. */
struct group_job {
    const int *tile;
    int *acc[128];
};
static void sum_tile(void *arg) {
    const group_job *j = (const group_job *)arg;
    int sum = 0;
    emu_smem_access(j->tile, 128 * 4, false);
    for (int i = 0; i < 128; i++) sum += j->tile[i];
    for (int i = 0; i < 128; i++) *j->acc[i] += (i + 1) * sum;
}
static void issue_sum(void *const *lane, void *arg) {
    group_job j;
    j.tile = *(const int *const *)arg;
    for (int i = 0; i < 128; i++) j.acc[i] = (int *)lane[i];
    emu_defer(EMU_QUEUE_GROUP, sum_tile, &j, sizeof j);
    emu_commit(EMU_QUEUE_GROUP); /* here, so once for the group */
}
template <mutant M> static void group_sums(int *out, int tiles) {
    TP_SHARED_DYNAMIC(smem);
    int *tile = (int *)(void *)smem, t = (int)threadIdx.x, acc = 0;
    for (int i = 0; i < tiles; i++) {
        int *now = tile + i % 2 * 128;
        tp_sts(now + t, t * (i + 1));
        if (M == NO_RELEASE)
            emu_named_barrier(1, 128, t < 32); /* warp 0 hears of all, none of it */
        else if (M != NO_BARRIER)
            __syncthreads();
        emu_group(0, 128, &acc, issue_sum, &now);
        if (M != NO_WAIT) emu_drain_to(EMU_QUEUE_GROUP, M == TOO_EARLY ? 1 : 0);
        if (M != NO_BARRIER_BEHIND) __syncthreads();
    }
    out[t] = acc;
}
static void test_groups(void **state) {
    (void)state;
    int h[128], *out;
    cudaMalloc(&out, sizeof h);
    for (size_t o = 0; o < 25; o++) {
        emu_set_order(orders[o % 5]);
        emu_set_async(policies[o / 5]);
        LAUNCH(2, 128, 1024, group_sums<RIGHT>(out, 5));
        assert_fine();
        to_host(h, out, sizeof h);
        for (int t = 0; t < 128; t++) assert_int_equal(h[t], (t + 1) * 15 * 64 * 127);
        LAUNCH(2, 128, 1024, group_sums<NO_BARRIER>(out, 5));
        REPORTED("race on dynamic shared memory at byte", "(asynchronously)");
        LAUNCH(2, 128, 1024, group_sums<NO_RELEASE>(out, 5));
        REPORTED("race on dynamic shared memory at byte", "(asynchronously)");
    }
    emu_set_async("late");
    LAUNCH(2, 128, 1024, group_sums<NO_WAIT>(out, 5)); /* results nobody waited for are not there */
    assert_fine();
    to_host(h, out, sizeof h);
    assert_int_equal(h[5], 0);
    LAUNCH(2, 128, 1024,
           group_sums<TOO_EARLY>(out, 5)); /* the tile before is written over, once
                                              the wait for it is over: right but for */
    assert_fine();
    to_host(h, out, sizeof h); /* the last one */
    assert_int_equal(h[5], 6 * 10 * 64 * 127);
    LAUNCH(2, 128, 1024, group_sums<NO_BARRIER_BEHIND>(out, 5)); /* two buffers: none needed */
    assert_fine();
    cudaFree(out);
}

/* A warp collective that reads shared memory itself, as ldmatrix does. */
static void rotate_lanes(void *const lane[32], void *arg) {
    const int *box = *(const int *const *)arg;
    for (int l = 0; l < 32; l++) {
        emu_smem_access(box + (l + 1) % 32, 4, false);
        *(int *)lane[l] = box[(l + 1) % 32];
    }
}
template <mutant M> static void collective(int *out) {
    TP_SHARED(int, box, 64);
    int t = (int)threadIdx.x, w = t / 32, got = 0;
    for (int i = 0; i < 3; i++) {
        box[t] = t + i;
        if (M == NO_BARRIER) w = 1 - t / 32;
        const int *mine = (int *)box + 32 * w;
        if (M == LANE_MISSING && t == 40) return;
        emu_warp_named("rotate", &got, rotate_lanes, &mine);
    }
    out[t] = got;
}
static void test_collective(void **state) {
    (void)state;
    int h[64], *out;
    cudaMalloc(&out, sizeof h);
    for (size_t o = 0; o < 5; o++) {
        emu_set_order(orders[o]);
        LAUNCH(2, 64, 0, collective<RIGHT>(out));
        assert_fine();
        to_host(h, out, sizeof h);
        for (int t = 0; t < 64; t++) assert_int_equal(h[t], t / 32 * 32 + (t + 1) % 32 + 2);
        LAUNCH(2, 64, 0, collective<NO_BARRIER>(out));
        REPORTED("box["); /* a race with the other warp, or not written yet */
        LAUNCH(2, 64, 0, collective<LANE_MISSING>(out));
        REPORTED("lane missing in rotate: warp 1, mask 0xffffffff: thread 40 has returned");
    }
    cudaFree(out);
}

static void spin(const int *x) {
    while (*(volatile const int *)x != 5) __nanosleep(100);
}
static void test_spin(void **state) {
    (void)state;
    int *x;
    cudaMalloc(&x, 4);
    cudaMemset(x, 0, 4);
    LAUNCH(1, 64, 0, spin(x));
    REPORTED("deadlock: thread 0 spins");
    cudaFree(x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_block_sum),      cmocka_unit_test(test_races),
        cmocka_unit_test(test_softmax),        cmocka_unit_test(test_warp),
        cmocka_unit_test(test_within_warp),    cmocka_unit_test(test_vectors),
        cmocka_unit_test(test_named_barriers), cmocka_unit_test(test_engine),
        cmocka_unit_test(test_copies),         cmocka_unit_test(test_groups),
        cmocka_unit_test(test_collective),     cmocka_unit_test(test_spin),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
