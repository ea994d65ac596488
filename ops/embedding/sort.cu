/* Owns the sorting of ids on the device: a stable radix sort, eight bits a pass, from the lowest.
 *
 * A pass is three kernels over tiles of TILE positions: count each tile's digits; per digit, sum
 * the counts of the tiles before each; and place every position at (all smaller digits) + (this
 * digit in earlier tiles) + (this digit earlier in the tile). The last term is counted warp by
 * warp, each warp owning neighbouring positions. The counts are integers, so atomics on them do not
 * let the order of threads be seen. */
#include "ops/embedding/rows_cuda.h"

enum {
    SORT_DIGITS = 256,
    SORT_THREADS = SORT_DIGITS, /* a thread per digit */
    SORT_WARPS = SORT_THREADS / 32,
    SORT_ROUNDS = 8, /* positions of a thread */
    TILE = SORT_THREADS * SORT_ROUNDS
};

typedef struct sort_pass {
    const int32_t *ids;          /* of the first pass; else NULL, and: */
    const uint32_t *key, *order; /* from the pass before */
    uint32_t *to_key, *to_order;
    uint32_t *count, *total; /* (digits, tiles): of the tile, then of those before; (digits) */
    uint32_t limit;
    int64_t n;
    int tiles, shift;
} sort_pass;

static __device__ __forceinline__ uint32_t sort_key(const sort_pass &a, int64_t i) {
    if (!a.ids) return tp_ldg(a.key + i);
    uint32_t id = (uint32_t)tp_ldg(a.ids + i); /* negative ids are large */
    return id < a.limit ? id : a.limit;
}

__global__ void sort_count(sort_pass a, tp_fault fault) {
    TP_SHARED(uint32_t, count, SORT_DIGITS);
    count[threadIdx.x] = 0;
    __syncthreads();
    for (int r = 0; r < SORT_ROUNDS; r++) {
        int64_t i = (int64_t)blockIdx.x * TILE + r * SORT_THREADS + threadIdx.x;
        if (i >= a.n) break;
        uint32_t key = sort_key(a, i);
        if (a.ids && key == a.limit) tp_report(fault, i);
        atomicAdd(&count[key >> a.shift & (SORT_DIGITS - 1)], 1u);
    }
    __syncthreads();
    a.count[(int64_t)threadIdx.x * a.tiles + blockIdx.x] = count[threadIdx.x];
}

/* The sum over the lanes before this one; *all: over the whole warp. */
static __device__ __forceinline__ uint32_t warp_before(uint32_t x, uint32_t *all) {
    uint32_t sum = x;
    int lane = threadIdx.x % 32;
    for (int m = 1; m < 32; m *= 2) {
        uint32_t left = __shfl_up_sync(0xffffffffu, sum, (unsigned)m);
        if (lane >= m) sum += left;
    }
    *all = __shfl_sync(0xffffffffu, sum, 31);
    return sum - x;
}

/* A warp per digit. */
__global__ void sort_sum(sort_pass a) {
    int lane = threadIdx.x % 32, digit = blockIdx.x * SORT_WARPS + threadIdx.x / 32;
    uint32_t *count = a.count + (int64_t)digit * a.tiles, carry = 0, all;
    for (int first = 0; first < a.tiles; first += 32) {
        int i = first + lane;
        uint32_t before = warp_before(i < a.tiles ? count[i] : 0, &all);
        if (i < a.tiles) count[i] = carry + before;
        carry += all;
    }
    if (lane == 0) a.total[digit] = carry;
}

/* Where digit threadIdx.x of this tile begins. A lone tile has nothing before it. */
static __device__ __forceinline__ uint32_t digit_begin(const sort_pass &a) {
    TP_SHARED(uint32_t, part, SORT_WARPS);
    bool lone = a.tiles == 1;
    int digit = threadIdx.x, warp = digit / 32;
    uint32_t all, begin = warp_before(tp_ldg((lone ? a.count : a.total) + digit), &all);
    if (digit % 32 == 0) part[warp] = all;
    __syncthreads();
    for (int w = 0; w < warp; w++) begin += part[w];
    return lone ? begin : begin + tp_ldg(a.count + (int64_t)digit * a.tiles + blockIdx.x);
}

__global__ void sort_place(sort_pass a) {
    TP_SHARED(uint32_t, seen,
              SORT_WARPS * SORT_DIGITS); /* so far in each warp, then where it begins */
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t first = (int64_t)blockIdx.x * TILE + warp * (TILE / SORT_WARPS);
    uint32_t key[SORT_ROUNDS], place[SORT_ROUNDS];
    for (int w = 0; w < SORT_WARPS; w++) seen[w * SORT_DIGITS + threadIdx.x] = 0;
    __syncthreads();
#pragma unroll
    for (int r = 0; r < SORT_ROUNDS; r++) {
        int64_t i = first + r * 32 + lane;
        bool here = i < a.n;
        key[r] = here ? sort_key(a, i) : 0;
        uint32_t digit = key[r] >> a.shift & (SORT_DIGITS - 1);
        uint32_t same = __ballot_sync(0xffffffffu, here); /* the lanes that have this digit */
        for (int bit = 0; bit < 8; bit++) {
            uint32_t set = __ballot_sync(0xffffffffu, digit >> bit & 1);
            same &= digit >> bit & 1 ? set : ~set;
        }
        uint32_t before = (uint32_t)__popc(same & ((1u << lane) - 1)), old = 0;
        if (here) old = seen[warp * SORT_DIGITS + digit];
        __syncwarp();
        if (here && before == 0) seen[warp * SORT_DIGITS + digit] = old + (uint32_t)__popc(same);
        __syncwarp();
        place[r] = old + before;
    }
    __syncthreads();
    uint32_t begin = digit_begin(a);
    for (int w = 0; w < SORT_WARPS; w++) {
        uint32_t mine = seen[w * SORT_DIGITS + threadIdx.x];
        seen[w * SORT_DIGITS + threadIdx.x] = begin;
        begin += mine;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < SORT_ROUNDS; r++) {
        int64_t i = first + r * 32 + lane;
        if (i >= a.n) break;
        uint32_t digit = key[r] >> a.shift & (SORT_DIGITS - 1);
        int64_t to = (int64_t)seen[warp * SORT_DIGITS + digit] + place[r];
        tp_stg(a.to_key + to, key[r]);
        tp_stg(a.to_order + to, a.ids ? (uint32_t)i : tp_ldg(a.order + i));
    }
}

/* ---- the host's side ------------------------------------------------------------------------ */
static size_t padded(int64_t n) { return ((size_t)n + 63) & ~(size_t)63; }
static int64_t tiles_of(int64_t n) { return (n + TILE - 1) / TILE; }

size_t tp_sort_ids_bytes(int64_t n) {
    return (4 * padded(n) + padded(tiles_of(n) * SORT_DIGITS) + SORT_DIGITS) * sizeof(uint32_t);
}

tp_status tp_sort_ids_cuda(const tp_call *k, const int32_t *ids, int64_t n, uint32_t limit,
                           void *workspace, tp_sorted *sorted) {
    uint32_t *buffer[4]; /* keys and order, twice */
    for (int i = 0; i < 4; i++) buffer[i] = (uint32_t *)workspace + i * padded(n);
    sort_pass a = {};
    a.ids = ids;
    a.count = (uint32_t *)workspace + 4 * padded(n);
    a.total = a.count + padded(tiles_of(n) * SORT_DIGITS);
    a.limit = limit;
    a.n = n;
    a.tiles = (int)tiles_of(n);
    tp_fault fault = tp_fault_of(k);
    tp_status st = TP_OK;
    for (int half = 0; !st && a.shift < 32 && (a.ids || limit >> a.shift); half ^= 1) {
        a.to_key = buffer[2 * half];
        a.to_order = buffer[2 * half + 1];
        st = TP_LAUNCH(k, sort_count, a.tiles, SORT_THREADS, 0, a, fault);
        if (!st && a.tiles > 1)
            st = TP_LAUNCH(k, sort_sum, SORT_DIGITS / SORT_WARPS, SORT_THREADS, 0, a);
        if (!st) st = TP_LAUNCH(k, sort_place, a.tiles, SORT_THREADS, 0, a);
        a.ids = NULL;
        a.key = a.to_key;
        a.order = a.to_order;
        a.shift += 8;
    }
    sorted->key = a.to_key;
    sorted->order = a.to_order;
    return st;
}
