/* Flash attention, backward, on tensor cores (mma.sync, sm_80 and later); the mathematics is in
 * attention_backward.c.
 *
 * A block owns N keys of one key head: K and V stay in shared memory, dK and dV in registers. It
 * walks the query heads of the group and, from the last to the first, the tiles of M queries that
 * see its keys; the next Q and dO tiles are copied meanwhile. Per tile, with p and ds rounded to
 * bf16 on their way through shared memory:
 *   S = Q K'   P = 2^(c S - lse log2 e)   dP = dO V'   dS = P (dP - delta)
 *   dV += P' dO   dK += dS' Q   dQ += dS K
 *
 * dQ of a tile gets a term from each of the key blocks that it sees. They add up in f32 in global
 * memory in the order of the keys, whatever the number of blocks at work: a flag per tile counts
 * the terms so far, and the block with the next one waits for it; the last turns the sum into dq.
 * That cannot lock up: a block waits for blocks of smaller number only, and takes its number when
 * it starts to run. Nor does it wait long: all walk their tiles in the same direction, and those of
 * smaller number were there first. */
#include "ops/attention/attention_math.h"
#include "ops/attention/attention_tile_sm80.h"

/* Tiles by head size: M queries, N keys; how the eight warps share out, as rows x columns, S and dP
 * (S_M x rest), dK and dV (KV_N x rest) and dQ (Q_M x rest). */
template <int D> struct backward_shape;
template <> struct backward_shape<64> {
    enum { M = 128, N = 128, S_M = 4, KV_N = 4, Q_M = 4 };
};
template <> struct backward_shape<96> {
    enum { M = 64, N = 128, S_M = 2, KV_N = 4, Q_M = 4 };
};
template <> struct backward_shape<128> {
    enum { M = 64, N = 128, S_M = 2, KV_N = 4, Q_M = 2 };
};
template <> struct backward_shape<256> {
    enum { M = 32, N = 64, S_M = 2, KV_N = 2, Q_M = 2 };
};

constexpr int WARPS = 8, THREADS = 32 * WARPS;

template <int D> struct backward_size {
    typedef backward_shape<D> S;
    enum {
        M = S::M,
        N = S::N,
        S_MT = M / S::S_M / 16,
        S_NT = N / (WARPS / S::S_M) / 8,
        KV_MT = N / S::KV_N / 16,
        KV_NT = D / (WARPS / S::KV_N) / 8,
        Q_MT = M / S::Q_M / 16,
        Q_NT = D / (WARPS / S::Q_M) / 8,
        /* shared memory: K, V, two stages of (Q, dO, lse, delta), P, dS, the block's place */
        Q_AT = 2 * N * D * 2,
        ROWS_AT = 2 * M * D * 2, /* lse, delta within a stage */
        STAGE = ROWS_AT + 2 * M * 4,
        P_AT = Q_AT + 2 * STAGE,
        DS_AT = P_AT + M * N * 2,
        PLACE_AT = DS_AT + M * N * 2,
        SHARED = PLACE_AT + 32
    };
};

/* What the kernels of one backward share in global memory. */
typedef struct backward_space {
    float *lse, *delta; /* (B*H, rows): lse log2(e), +inf where it is not finite; do.o - dlse */
    float *dq;          /* (B*H, tiles, M*D) in the order of the warps' fragments */
    int *flags;         /* (B*H, tiles) terms of dq so far; then the next block's number */
    int tiles, rows;    /* of M queries per head; M tiles */
    int keys;           /* blocks of N keys per head */
    int section;        /* (b, key head) pairs whose blocks are neighbours */
} backward_space;

/* The key blocks [*first, *last] that queries of tile i see by position; none: *first > *last. */
template <int M, int N>
static __device__ __forceinline__ void
backward_key_blocks(const attention_params &p, attention_band band, int i, int *first, int *last) {
    int lo, hi;
    attention_keys(band, i * M, min(i * M + M, p.T), p.S, &lo, &hi);
    *first = lo / N;
    *last = hi > lo ? (hi - 1) / N : *first - 1;
}

/* ---- delta ---------------------------------------------------------------------------------- */
static __device__ __forceinline__ float dot8(uint4 a, uint4 b) {
    const unsigned x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sum = fmaf(__uint_as_float(x[i] << 16), __uint_as_float(y[i] << 16), sum);
        sum = fmaf(__uint_as_float(x[i] & 0xffff0000u), __uint_as_float(y[i] & 0xffff0000u), sum);
    }
    return sum;
}

/* Sets lse and delta of every row, with PER threads on a row of which each takes 8 values; clears
 * the flags; and zeroes dq of tiles that see no key, as no block will come by. */
template <int D>
__global__ void __launch_bounds__(256)
    attention_delta_sm80_kernel(const attention_backward_params x, const backward_space s) {
    constexpr int M = backward_shape<D>::M, N = backward_shape<D>::N;
    constexpr int PER = D == 64 ? 8 : D == 256 ? 32 : 16;
    const attention_params &p = x.f;
    const int64_t thread = (int64_t)blockIdx.x * 256 + threadIdx.x, heads = (int64_t)p.B * p.H;
    const int64_t row = thread / PER;
    const int part = (int)(thread % PER), d = part * 8;
    if (thread < heads * s.tiles + 1) s.flags[thread] = 0;
    const bool inside = row < heads * s.rows;
    const int64_t head = inside ? row / s.rows : 0;
    const int t = inside ? (int)(row - head * s.rows) : p.T;
    const int b = (int)(head / p.H), h = (int)(head % p.H);
    const bool live = t < p.T, mine = live && d < p.D;
    float sum = 0;
    if (mine && x.d_o.x)
        sum =
            dot8(*(const uint4 *)((const uint16_t *)x.o.x + b * x.o.b + t * x.o.t + h * x.o.h + d),
                 *(const uint4 *)((const uint16_t *)x.d_o.x + b * x.d_o.b + t * x.d_o.t +
                                  h * x.d_o.h + d));
#pragma unroll
    for (int m = PER / 2; m; m /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, m);
    if (mine) {
        int first, last;
        backward_key_blocks<M, N>(p, attention_band_of(&p, b), t / M, &first, &last);
        if (first > last)
            *(uint4 *)(attention_out_row<uint16_t>(x.dq, b, t, h) + d) = make_uint4(0, 0, 0, 0);
    }
    if (!inside || part) return;
    float lse = INFINITY;
    if (live) {
        lse = attention_statistic_at(x.lse, b, h, t) * LOG2E;
        sum -= attention_statistic_at(x.dlse, b, h, t);
    }
    s.lse[row] = lse == -INFINITY ? INFINITY : lse; /* then 2^(s - lse) is 0 */
    s.delta[row] = live ? sum : 0;
}

/* ---- the pieces of the main kernel ---------------------------------------------------------- */
/* Begins to copy Q, dO, lse and delta of tile i of head (b, h). */
template <int D>
static __device__ __forceinline__ void
backward_load(tp_smem stage, const attention_backward_params &x, const backward_space s, int b,
              int h, int i, int thread) {
    typedef backward_size<D> size;
    constexpr int M = size::M;
    const attention_params &p = x.f;
    const int t = i * M;
    const uint16_t *q = (const uint16_t *)p.q.x + b * p.q.b + h * p.q.h + t * p.q.t;
    tile_load<M, D, THREADS>(stage, tile_from<D, THREADS>(q, p.q.t), p.q.t, p.T - t, p.D, thread);
    const uint16_t *d_o = (const uint16_t *)x.d_o.x;
    d_o = d_o ? d_o + b * x.d_o.b + h * x.d_o.h + t * x.d_o.t : q;
    tile_load<M, D, THREADS>(stage + M * D * 2, tile_from<D, THREADS>(d_o, x.d_o.t), x.d_o.t,
                             x.d_o.x ? p.T - t : 0, p.D, thread);
    if (thread < M / 2) {
        const int at = thread % (M / 4) * 4;
        const float *from = thread < M / 4 ? s.lse : s.delta;
        tp_cp_async_16(stage + size::ROWS_AT + thread * 16,
                       from + ((int64_t)b * p.H + h) * s.rows + t + at, true);
    }
}

/* Scores become weights p and slopes ds/dx; what is not seen becomes 0. t, j: this thread's first
 * query and key; rows: lse of the warp's rows in shared memory. */
template <int MT, int NT, bool CAPPED>
static __device__ __forceinline__ void
backward_weights(float (&s)[MT][NT][4], float (&slope)[MT][NT][4], const attention_params &p,
                 attention_band band, int b, int t, int j, bool whole, tp_smem rows) {
    const float c = CAPPED ? LOG2E : p.scale * LOG2E;
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float lse = tp_lds_f32(rows + (16 * i + 8 * half) * 4);
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float &x = s[i][n][2 * half + e];
                    if (CAPPED) {
                        x = attention_softcap(x * p.scale, p.softcap);
                        slope[i][n][2 * half + e] = attention_softcap_dx(x, p.softcap);
                    }
                    x = tp_ex2(fmaf(x, c, -lse));
                }
        }
    if (!whole)
        tile_hide(s, p, band, p.segments ? p.segments + b * p.segments_b : NULL, t, j, 0.0f);
}

/* dx = p slope (dp - delta); w: p slope. */
template <int MT, int NT>
static __device__ __forceinline__ void backward_slopes(float (&dp)[MT][NT][4],
                                                       const float (&w)[MT][NT][4], tp_smem rows) {
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float delta = tp_lds_f32(rows + (16 * i + 8 * half) * 4);
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int e = 2 * half; e < 2 * half + 2; e++)
                    dp[i][n][e] = w[i][n][e] * (dp[i][n][e] - delta);
        }
}

template <int MT, int NT>
static __device__ __forceinline__ void backward_times(float (&x)[MT][NT][4],
                                                      const float (&by)[MT][NT][4]) {
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) x[i][n][e] *= by[i][n][e];
}

/* A thread's first place in a tile's sums of dQ. Each fragment of a warp's 32 lanes lies together.
 */
template <int D>
static __device__ __forceinline__ float4 *backward_sum(const backward_space s, int head, int tile,
                                                       int warp, int lane) {
    typedef backward_size<D> size;
    float *tile_sums = s.dq + ((int64_t)head * s.tiles + tile) * size::M * D;
    return (float4 *)tile_sums + warp * size::Q_MT * size::Q_NT * 32 + lane;
}

/* The sum of dQ so far is what the block's own term is added to. */
template <int MT, int NT>
static __device__ __forceinline__ void backward_dq_load(float (&acc)[MT][NT][4],
                                                        const float4 *sum) {
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int n = 0; n < NT; n++) {
            float4 v = tp_load_l2(sum + (i * NT + n) * 32);
            acc[i][n][0] = v.x, acc[i][n][1] = v.y, acc[i][n][2] = v.z, acc[i][n][3] = v.w;
        }
}

template <int MT, int NT>
static __device__ __forceinline__ void backward_dq_store(const float (&acc)[MT][NT][4],
                                                         float4 *sum) {
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int n = 0; n < NT; n++) {
            const float *v = acc[i][n];
            sum[(i * NT + n) * 32] = make_float4(v[0], v[1], v[2], v[3]);
        }
}

/* The sum is complete. t, d: this thread's first query and value of it. */
template <int MT, int NT>
static __device__ __forceinline__ void backward_dq_finish(const float (&acc)[MT][NT][4],
                                                          const attention_backward_params &x, int b,
                                                          int h, int t, int d) {
    const attention_params &p = x.f;
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = t + 16 * i + 8 * half;
            if (row >= p.T) continue;
            uint16_t *to = attention_out_row<uint16_t>(x.dq, b, row, h) + d;
#pragma unroll
            for (int n = 0; n < NT; n++)
                if (d + 8 * n < p.D)
                    *(unsigned *)(to + 8 * n) = tp_pack_bf16(p.scale * acc[i][n][2 * half],
                                                             p.scale * acc[i][n][2 * half + 1]);
        }
}

template <int MT, int NT>
static __device__ __forceinline__ void tile_scale(float (&x)[MT][NT][4], float by) {
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) x[i][n][e] *= by;
}

/* The tiles [*i0, *i1) of queries that see keys of block n by position. */
template <int M, int N>
static __device__ __forceinline__ void
backward_tiles(const attention_params &p, attention_band band, int n, int *i0, int *i1) {
    /* t sees key j where j - hi <= t <= j - lo */
    int t0 = max(n * N - band.hi, 0), t1 = min(min(n * N + N, p.S) - band.lo, p.T);
    *i0 = t0 / M;
    *i1 = t1 > t0 ? (t1 - 1) / M + 1 : *i0;
}

/* What a block works on: keys n N.. of key head hkv of sequence b, and tiles [i0, i1) of the
 * queries of its heads. Kept in shared memory, as registers are scarce. */
typedef struct backward_place {
    int b, hkv, n, i0, i1;
    attention_band band;
    int zero; /* which the compiler cannot know: what is computed from lane + zero is computed
                 afresh, where it would else be kept in registers from the phase before */
} backward_place;

static __device__ __forceinline__ backward_place backward_place_of(tp_smem at) {
    const uint4 x = tp_lds_u128(at), y = tp_lds_u128(at + 16);
    backward_place a = {(int)x.x, (int)x.y, (int)x.z, (int)x.w, (int)y.x, {(int)y.y, (int)y.z},
                        (int)y.w};
    return a;
}

/* Blocks in the order in which they start: by sections of heads, whose queries and sums of dq stay
 * in the second-level cache; then by keys; then by head. */
template <int M, int N>
static __device__ __forceinline__ void backward_place_find(tp_smem at, const attention_params &p,
                                                           const backward_space s) {
    const int number = atomicAdd(s.flags + p.B * p.H * s.tiles, 1);
    const int per = s.section * s.keys, first = number / per * s.section;
    const int in = min(s.section, p.B * p.Hkv - first), rest = number % per;
    const int head = first + rest % in, n = rest / in, b = head / p.Hkv;
    const attention_band band = attention_band_of(&p, b);
    int i0, i1;
    backward_tiles<M, N>(p, band, n, &i0, &i1);
    const int a[8] = {b, head % p.Hkv, n, i0, i1, band.lo, band.hi, 0};
    for (int i = 0; i < 8; i++) tp_sts_u32(at + 4 * i, (unsigned)a[i]);
}

/* Phase one of a tile: P and dS to shared memory. The warp's part is 16 MT rows by 8 PART columns
 * at row m, column c. */
template <int D, int MT, int PART, bool CAPPED>
static __device__ __forceinline__ void
backward_scores(const attention_params &p, const backward_place &a, tp_smem k_tile, tp_smem q_tile,
                int i, int m, int c, int lane) {
    typedef backward_size<D> size;
    constexpr int M = size::M, N = size::N;
    const int t = i * M + m, j = a.n * N + c;
    const tp_smem v_tile = k_tile + N * D * 2, do_tile = q_tile + M * D * 2;
    const tp_smem p_tile = k_tile + size::P_AT, ds_tile = k_tile + size::DS_AT;
    const tp_smem rows = q_tile + size::ROWS_AT + (m + lane / 4) * 4;
    const bool whole = j + 8 * PART <= p.S && j + 8 * PART - 1 <= t + a.band.hi &&
                       j >= t + 16 * MT - 1 + a.band.lo && !p.segments;
    float w[MT][PART][4], slope[MT][PART][4], ds[MT][PART][4];
    tile_zero(w);
    tile_zero(ds);
    tile_product<MT, PART, D, D, false, D, false>(w, q_tile, m, k_tile, c, lane);
    /* Early, so that the tensor cores have work during the exponentials; with CAPPED late, so that
     * fewer values are kept at a time. */
    if (!CAPPED) tile_product<MT, PART, D, D, false, D, false>(ds, do_tile, m, v_tile, c, lane);
    backward_weights<MT, PART, CAPPED>(w, slope, p, a.band, a.b, t + lane / 4, j + lane % 4 * 2,
                                       whole, rows);
    tile_store<MT, PART, N>(w, p_tile, m, c, lane);
    if (CAPPED) {
        backward_times<MT, PART>(w, slope);
        tile_product<MT, PART, D, D, false, D, false>(ds, do_tile, m, v_tile, c, lane);
    }
    backward_slopes<MT, PART>(ds, w, rows + M * 4);
    tile_store<MT, PART, N>(ds, ds_tile, m, c, lane ^ ATTENTION_MUTANT_FRAGMENT);
}

/* ---- the main kernel ------------------------------------------------------------------------ */
template <int D, bool CAPPED>
__global__ void __launch_bounds__(THREADS, 1)
    attention_backward_sm80_kernel(const attention_backward_params x, const backward_space s) {
    typedef backward_size<D> size;
    typedef backward_shape<D> shape;
    constexpr int M = size::M, N = size::N, KV_MT = size::KV_MT, KV_NT = size::KV_NT;
    TP_SHARED_DYNAMIC(shared);
    const attention_params &p = x.f;
    const tp_smem k_tile = tp_smem_addr(shared), v_tile = k_tile + N * D * 2;
    const tp_smem stages = k_tile + size::Q_AT, p_tile = k_tile + size::P_AT;
    const tp_smem ds_tile = k_tile + size::DS_AT, place = k_tile + size::PLACE_AT;
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;

    if (threadIdx.x == 0) backward_place_find<M, N>(place, p, s);
    __syncthreads();
    int h, i, end; /* head, tile of queries; the head after the last */
    {
        const backward_place a = backward_place_of(place);
        const int j0 = a.n * N;
        const uint16_t *k = (const uint16_t *)p.k.x + a.b * p.k.b + a.hkv * p.k.h + j0 * p.k.t;
        const uint16_t *v = (const uint16_t *)p.v.x + a.b * p.v.b + a.hkv * p.v.h + j0 * p.v.t;
        tile_load<N, D, THREADS>(k_tile, tile_from<D, THREADS>(k, p.k.t), p.k.t, p.S - j0, p.D,
                                 (int)threadIdx.x);
        tile_load<N, D, THREADS>(v_tile, tile_from<D, THREADS>(v, p.v.t), p.v.t, p.S - j0, p.D,
                                 (int)threadIdx.x);
        h = a.hkv * p.G, end = a.i1 > a.i0 ? h + p.G : h;
        i = a.i1 - 1;
        if (h < end) backward_load<D>(stages, x, s, a.b, h, i, (int)threadIdx.x);
        tp_cp_async_commit();
    }
    float dk[KV_MT][KV_NT][4], dv[KV_MT][KV_NT][4];
    tile_zero(dk);
    tile_zero(dv);

    int done = -1, terms = 0; /* the flag of the tile before, and what it is to become */
    for (int stage = 0; h < end; stage ^= 1) {
        const tp_smem q_tile = stages + stage * size::STAGE, do_tile = q_tile + M * D * 2;
        tp_cp_async_wait<0>();
        __syncthreads(); /* tile i is there for all, and all are done with the one before */
        int seen = 0;
        {
            const backward_place a = backward_place_of(place);
            const int at = lane + a.zero, w = warp + a.zero;
            const int next_h = i > a.i0 ? h : h + 1, next_i = i > a.i0 ? i - 1 : a.i1 - 1;
            if (next_h < end)
                backward_load<D>(stages + (stage ^ 1) * size::STAGE, x, s, a.b, next_h, next_i,
                                 (int)threadIdx.x + a.zero);
            tp_cp_async_commit();
            int first, last;
            backward_key_blocks<M, N>(p, a.band, i, &first, &last);
            if (a.n > first && threadIdx.x == 0)
                seen = tp_flag_peek(s.flags + (a.b * p.H + h) * s.tiles + i);

            constexpr int NT = size::S_NT, PART = CAPPED && NT > 2 ? NT / 2 : NT;
            constexpr int MT = CAPPED ? 1 : size::S_MT; /* in pieces: registers */
            const int m = w / (WARPS / shape::S_M) * 16 * size::S_MT;
            const int c = w % (WARPS / shape::S_M) * NT * 8;
#pragma unroll 1
            for (int part = 0; part < NT / PART * (size::S_MT / MT); part++)
                backward_scores<D, MT, PART, CAPPED>(p, a, k_tile, q_tile, i,
                                                     m + part / (NT / PART) * 16 * MT,
                                                     c + part % (NT / PART) * PART * 8, at);
        }
        /* One thread hands over the tile before and takes this one. One fence serves both, unless
         * it must wait and meanwhile keep nobody waiting. */
        if (threadIdx.x == 0) {
            const backward_place a = backward_place_of(place);
            int first, last;
            backward_key_blocks<M, N>(p, a.band, i, &first, &last);
            if (a.n > first && seen != a.n - first) {
                if (done >= 0) {
                    tp_fence();
                    tp_flag_put(s.flags + done, terms);
                    done = -1;
                }
                tp_flag_wait(s.flags + (a.b * p.H + h) * s.tiles + i, a.n - first);
            }
            tp_fence();
            if (done >= 0) tp_flag_put(s.flags + done, terms);
        }
        if (!ATTENTION_MUTANT_BARRIER) __syncthreads();
        float dq[size::Q_MT][size::Q_NT][4];
        const backward_place a = backward_place_of(place);
        const int at = lane + a.zero, w = warp + a.zero, head = a.b * p.H + h;
        int first, last;
        backward_key_blocks<M, N>(p, a.band, i, &first, &last);
        if (a.n > first) /* needed last, when it will have come */
            backward_dq_load(dq, backward_sum<D>(s, head, i, w, at));
        else
            tile_zero(dq);
        { /* dV += P' dO, dK += dS' Q */
            const int m = w / (WARPS / shape::KV_N) * 16 * KV_MT;
            const int c = w % (WARPS / shape::KV_N) * 8 * KV_NT;
            tile_product<KV_MT, KV_NT, M, N, true, D, true>(dv, p_tile, m, do_tile, c, at);
            tile_product<KV_MT, KV_NT, M, N, true, D, true>(dk, ds_tile, m, q_tile, c, at);
        }
        { /* dQ += dS K */
            constexpr int MT = size::Q_MT, NT = size::Q_NT;
            const backward_place z = backward_place_of(place);
            const int lane_q = lane + z.zero, warp_q = warp + z.zero;
            const int m = warp_q / (WARPS / shape::Q_M) * 16 * MT;
            const int c = warp_q % (WARPS / shape::Q_M) * 8 * NT;
            tile_product<MT, NT, N, N, false, D, true>(dq, ds_tile, m, k_tile, c, lane_q);
            backward_key_blocks<M, N>(p, z.band, i, &first, &last);
            done = z.n < last ? (z.b * p.H + h) * s.tiles + i : -1;
            terms = z.n - first + 1;
            if (done >= 0)
                backward_dq_store(dq, backward_sum<D>(s, z.b * p.H + h, i, warp_q, lane_q));
            else
                backward_dq_finish(dq, x, z.b, h, i * M + m + lane_q / 4, c + lane_q % 4 * 2);
            h += i == z.i0;
            i = i == z.i0 ? z.i1 - 1 : i - 1;
        }
    }
    tp_cp_async_wait<0>();
    __syncthreads();
    if (threadIdx.x == 0 && done >= 0) {
        tp_fence();
        tp_flag_put(s.flags + done, terms);
    }

    { /* dk and dv leave through the places of K and V */
        const backward_place a = backward_place_of(place);
        const int m = warp / (WARPS / shape::KV_N) * 16 * KV_MT;
        const int c = warp % (WARPS / shape::KV_N) * 8 * KV_NT, j0 = a.n * N;
        tile_scale(dk, p.scale);
        tile_store<KV_MT, KV_NT, D>(dk, k_tile, m, c, lane);
        tile_store<KV_MT, KV_NT, D>(dv, v_tile, m, c, lane);
        __syncthreads();
        uint16_t *to = attention_out_row<uint16_t>(x.dk, a.b, j0, a.hkv);
        tile_write<N, D>(to, x.dk.t, k_tile, 0, p.S - j0, p.D, (int)threadIdx.x, THREADS);
        to = attention_out_row<uint16_t>(x.dv, a.b, j0, a.hkv);
        tile_write<N, D>(to, x.dv.t, v_tile, 0, p.S - j0, p.D, (int)threadIdx.x, THREADS);
    }
}

/* ---- on the host ---------------------------------------------------------------------------- */
/* Lays the space out from `at` on; returns its bytes. */
template <int D>
static size_t backward_space_of(const attention_params &p, char *at, backward_space *s) {
    typedef backward_size<D> size;
    const size_t heads = (size_t)p.B * p.H;
    s->tiles = (int)tp_blocks(p.T, size::M);
    s->rows = s->tiles * size::M;
    s->keys = (int)tp_blocks(p.S, size::N);
    /* Queries, gradients and sums of 24 MB at a time: half of the second-level cache of an H100. */
    double section = 24e6 / (8.0 * D * p.T * p.G + 1);
    s->section = section < 1 ? 1 : section > p.B * p.Hkv ? p.B * p.Hkv : (int)section;
    size_t row_bytes = (heads * s->rows * 4 + 63) / 64 * 64;
    size_t flag_bytes = ((heads * s->tiles + 1) * 4 + 63) / 64 * 64;
    s->lse = (float *)at;
    s->delta = (float *)(at + row_bytes);
    s->flags = (int *)(at + 2 * row_bytes);
    s->dq = (float *)(at + 2 * row_bytes + flag_bytes);
    return 2 * row_bytes + flag_bytes + (s->keys > 1 ? heads * s->rows * D * 4 : 0);
}

template <int D>
static tp_status backward_launch(const tp_call *k, const attention_backward_params &x) {
    typedef backward_size<D> size;
    const attention_params &p = x.f;
    constexpr int PER = D == 64 ? 8 : D == 256 ? 32 : 16;
    backward_space s;
    tp_status st;
    backward_space_of<D>(p, (char *)k->workspace, &s);
    int64_t threads = (int64_t)p.B * p.H * s.rows * PER + 1;
    if ((st =
             TP_LAUNCH(k, (attention_delta_sm80_kernel<D>), tp_blocks(threads, 256), 256, 0, x, s)))
        return st;
    const unsigned blocks = (unsigned)(p.B * p.Hkv * s.keys);
    if (p.softcap > 0)
        return TP_LAUNCH(k, (attention_backward_sm80_kernel<D, true>), blocks, THREADS,
                         size::SHARED, x, s);
    return TP_LAUNCH(k, (attention_backward_sm80_kernel<D, false>), blocks, THREADS, size::SHARED,
                     x, s);
}

static size_t backward_workspace(const tp_call *k) {
    attention_backward_params x = attention_backward_params_of(k);
    backward_space s;
    if (x.f.D <= 64) return backward_space_of<64>(x.f, NULL, &s);
    if (x.f.D <= 96) return backward_space_of<96>(x.f, NULL, &s);
    if (x.f.D <= 128) return backward_space_of<128>(x.f, NULL, &s);
    return backward_space_of<256>(x.f, NULL, &s);
}

static tp_status backward_run(const tp_call *k) {
    attention_backward_params x = attention_backward_params_of(k);
    if (x.f.B == 0 || x.f.Hkv == 0) return TP_OK;
    if (x.f.D <= 64) return backward_launch<64>(k, x);
    if (x.f.D <= 96) return backward_launch<96>(k, x);
    if (x.f.D <= 128) return backward_launch<128>(k, x);
    return backward_launch<256>(k, x);
}

static size_t backward_shared(int64_t D) {
    if (D <= 64) return backward_size<64>::SHARED;
    if (D <= 96) return backward_size<96>::SHARED;
    if (D <= 128) return backward_size<128>::SHARED;
    return backward_size<256>::SHARED;
}

static const char *backward_decline(const tp_call *k) {
    const double scale = ((const attention_attr *)k->attr)->scale;
    const char *no = attention_sm80_decline(k, backward_shared(k->in[0]->shape[3]), scale);
    if (!no) no = attention_sm80_decline_rows(k->in[BACKWARD_O]);
    if (!no) no = attention_sm80_decline_rows(k->in[BACKWARD_DO]);
    if (!no) no = tp_decline_cuda_floats(k);
    return no;
}

TP_CUDA_KERNEL(attention_backward_sm80, .decline = backward_decline, .run = backward_run,
               .workspace = backward_workspace);
