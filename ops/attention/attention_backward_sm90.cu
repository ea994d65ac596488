/* Attention backward on Hopper. A block owns BN = 128 keys of one key head and walks the queries
 * that see them, BM at a time; each of two warpgroups owns 64 keys. With keys as rows (attention.c
 * and attention_backward.c have the formulas; P is made again from lse):
 *
 *   S' = K Q'   P' = 2^(S' scale log2e - lse log2e)   dP' = V dO'   dS' = P' (dP' - delta)
 *   dV += P' dO     dK += dS' Q     P' and dS' are wgmma's A operand, in registers
 *   dQ  = dS K      dS' passes through shared memory, as each warpgroup needs all 128 keys of it
 *
 * The tensor cores always have something queued: dP' while the exponentials are taken, dV while dS'
 * is made, dK while dQ is taken away. dS' is made from P' as rounded to bf16 for dV: keeping both
 * forms would need more registers than there are.
 *
 * dV and dK stay in registers. dQ is a sum over blocks: each adds its part to an f32 buffer in a
 * FIXED order of key tiles, which a counter per block of queries enforces, so the bits are the same
 * in every run (one block at a time adds, so nothing relies on atomicity). A block takes its work
 * by a ticket and waits only for lower tickets: those run or are done, so none can wait for ever.
 * Causal: tiles from the last to the first, each starting at its diagonal: the block before has
 * then always been there already. Else from the first to the last.
 *
 * Three kernels: prepare (delta = rowsum(do o) - dlse, lse in base 2, counters), the main one, and
 * finish (dq from f32 to bf16). */
#include "ops/attention/attention_cuda.h"
#include "ops/attention/attention_sm90.h"

template <int D> struct backward_tile;
template <> struct backward_tile<64> {
    enum { BM = 128 };
};
template <> struct backward_tile<128> {
    enum { BM = 64 };
};
enum { BN = 128, STAGES = 2, DQ_FLOATS = 8192 /* BM*D */, DQ_BYTES = 4 * DQ_FLOATS };

template <int D> struct backward_memory {
    static constexpr int BM = backward_tile<D>::BM, KV_BYTES = BN * D * 2, Q_BYTES = BM * D * 2,
                         STAT_BYTES = 2 * BM * 4, DS_BYTES = BN * BM * 2;
    static constexpr int K = 0, V = K + KV_BYTES, Q = V + KV_BYTES, DO = Q + STAGES * Q_BYTES;
    static constexpr int DS = DO + STAGES * Q_BYTES; /* two: one is written, one still read */
    static constexpr int DQ = DS + 2 * DS_BYTES;     /* two: one is written, one taken away */
    static constexpr int STATS = DQ + 2 * DQ_BYTES, BARS = STATS + STAGES * STAT_BYTES,
                         BYTES = BARS + 8 * 16;
    static_assert(BYTES <= SM90_SHARED_BYTES, "more shared memory than a block can have");
};
static_assert(backward_tile<64>::BM * 64 == DQ_FLOATS && backward_tile<128>::BM * 128 == DQ_FLOATS,
              "a tile of dq");

typedef struct backward_params {
    tp_tma_map q, k, v, d_o, dk, dv;
    sm90_problem p;
    float scale, scale_log2; /* scale * log2(e) */
    int blocks, tiles;       /* of BM queries, of BN keys */
    int work;                /* B*Hkv*tiles */
    float *stats;            /* (B*H, blocks, 2, BM): lse log2e (inf: no weight), delta */
    float *dq;               /* (B*H, blocks, DQ_FLOATS), in the order of wgmma's fragments */
    int *turn;               /* (B*H, blocks): how many tiles have added to dq */
    int *ticket;
} backward_params;

/* The tiles add to block m's dq in this order. -1: tile n has nothing to add. */
static __device__ __forceinline__ int backward_turn(const backward_params &f, int b, int m, int bm,
                                                    int n) {
    sm90_range r = sm90_tiles(&f.p, b, m, bm, BN);
    if (n < r.first || n >= r.last) return -1;
    return f.p.causal ? r.last - 1 - n : n - r.first;
}

typedef struct backward_work {
    int b, kv_head, n;
    sm90_range blocks;
} backward_work;

#if TP_HOPPER
template <int D>
static __device__ __forceinline__ backward_work backward_take(const backward_params &f,
                                                              int ticket) {
    backward_work w;
    int hkv = f.p.H / f.p.G, head = ticket / f.tiles, i = ticket % f.tiles;
    w.b = head / hkv;
    w.kv_head = head % hkv;
    w.n = f.p.causal ? f.tiles - 1 - i : i;
    w.blocks = sm90_query_blocks(&f.p, w.n, backward_tile<D>::BM, BN);
    if (f.p.segments) { /* from the first to the last block with something to add */
        int none = w.blocks.last, first = none, last = none;
#pragma unroll 1
        for (int m0 = w.blocks.first; m0 < none; m0 += 32) {
            int m = m0 + threadIdx.x % 32;
            unsigned hit = __ballot_sync(
                0xffffffffu, m < none && backward_turn(f, w.b, m, backward_tile<D>::BM, w.n) >= 0);
            if (!hit) continue;
            if (first == none) first = m0 + __ffs(hit) - 1;
            last = m0 + 32 - __clz(hit);
        }
        w.blocks.first = first;
        w.blocks.last = last;
    }
    return w;
}

static __device__ __forceinline__ backward_work backward_read(const backward_work *place) {
    backward_work w = {tp_lds(&place->b), tp_lds(&place->kv_head), tp_lds(&place->n)};
    w.blocks.first = tp_lds(&place->blocks.first);
    w.blocks.last = tp_lds(&place->blocks.last);
    return w;
}

typedef struct backward_bars {
    uint64_t *kv_full, *q_full, *do_full, *empty, *dq_full, *dq_empty;
} backward_bars;
static __device__ __forceinline__ backward_bars backward_bars_at(uint64_t *b) {
    backward_bars r = {
        b, b + 1, b + 1 + STAGES, b + 1 + 2 * STAGES, b + 1 + 3 * STAGES, b + 3 + 3 * STAGES};
    return r;
}

/* One thread: K and V once, then Q, dO and their statistics for every head and block. */
template <int D>
static __device__ __forceinline__ void
backward_produce(const backward_params &f, const backward_work &w, unsigned char *shared,
                 const backward_bars &bars) {
    typedef backward_memory<D> M;
    int i = 0;
    tp_mbar_arrive_expect(bars.kv_full, 2 * M::KV_BYTES);
    sm90_load<D, BN>(shared + M::K, &f.k, bars.kv_full, w.n * BN, w.kv_head, w.b);
    sm90_load<D, BN>(shared + M::V, &f.v, bars.kv_full, w.n * BN, w.kv_head, w.b);
#pragma unroll 1
    for (int h = w.kv_head * f.p.G; h < (w.kv_head + 1) * f.p.G; h++)
#pragma unroll 1
        for (int m = w.blocks.first; m < w.blocks.last; m++, i++) {
            int s = i % STAGES;
            int64_t stat = ((int64_t)(w.b * f.p.H + h) * f.blocks + m) * 2 * M::BM;
            tp_mbar_wait(&bars.empty[s], sm90_phase<STAGES>(i) ^ 1);
            tp_mbar_arrive_expect(&bars.q_full[s], M::Q_BYTES);
            sm90_load<D, M::BM>(shared + M::Q + s * M::Q_BYTES, &f.q, &bars.q_full[s], m * M::BM, h,
                                w.b);
            tp_mbar_arrive_expect(&bars.do_full[s], M::Q_BYTES + M::STAT_BYTES);
            sm90_load<D, M::BM>(shared + M::DO + s * M::Q_BYTES, &f.d_o, &bars.do_full[s],
                                m * M::BM, h, w.b);
            tp_bulk_load(shared + M::STATS + s * M::STAT_BYTES, f.stats + stat, M::STAT_BYTES,
                         &bars.do_full[s]);
        }
}

/* Two threads, one for even rounds and one for odd: they add the block's parts of dq to global
 * memory when it is their turn. While one waits for its sums to land, the other goes on. */
template <int D>
static __device__ __forceinline__ void backward_add(const backward_params &f,
                                                    const backward_work &w, unsigned char *shared,
                                                    const backward_bars &bars, int odd) {
    typedef backward_memory<D> M;
    const unsigned char *part = shared + M::DQ + odd * DQ_BYTES;
    const int blocks = w.blocks.last - w.blocks.first;
#pragma unroll 1
    for (int i = odd; i < f.p.G * blocks; i += 2) {
        int h = w.kv_head * f.p.G + i / blocks, m = w.blocks.first + i % blocks;
        int64_t at = (int64_t)(w.b * f.p.H + h) * f.blocks + m;
        int turn = backward_turn(f, w.b, m, M::BM, w.n);
        tp_mbar_wait(&bars.dq_full[odd], sm90_phase<2>(i));
        if (turn < 0) { /* between documents: zeros */
            tp_mbar_arrive(&bars.dq_empty[odd]);
            continue;
        }
        while (tp_load_acquire(&f.turn[at]) != turn) __nanosleep(40);
        tp_fence_async_global();
        if (turn)
            tp_bulk_add_f32(f.dq + at * DQ_FLOATS, part, DQ_BYTES);
        else
            tp_bulk_store(f.dq + at * DQ_FLOATS, part, DQ_BYTES);
        tp_bulk_commit();
        tp_bulk_wait_read<0>();
        tp_mbar_arrive(&bars.dq_empty[odd]);
        tp_bulk_wait<0>(); /* not only read: the sums have landed */
        tp_fence_async_global();
        tp_store_release(&f.turn[at], turn + 1);
    }
}

/* s = -inf where the key is not to be seen. This thread's keys are j and j+8, its queries
 * t0 + 8*i + c and the next. */
template <int BM>
static __device__ __forceinline__ void backward_mask(float (&s)[BM / 2], const sm90_problem &p,
                                                     int j, int t0, int c) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int key = j + 8 * r; /* seen by the queries lo <= t - t0 < hi */
        int lo = p.causal ? key - p.q_offset - t0 : 0;
        int hi = key < p.S ? key + p.window - p.q_offset - t0 : 0;
        sm90_mask_row(s, r, sm90_columns_below<BM>(hi - c) & ~sm90_columns_below<BM>(lo - c));
    }
}

/* d (64 keys, BM) = rows of `keys` times `queries`'. Starts it. */
template <int D, int BM>
static __device__ __forceinline__ void backward_scores(float (&d)[BM / 2], uint64_t keys,
                                                       uint64_t queries) {
    tp_wgmma_pin(d);
    tp_wgmma_fence();
#pragma unroll
    for (int i = 0; i < D / 16; i++)
        tp_wgmma_ss<BM, 0, 0>(d, keys + sm90_rows_step<D, BN>(i),
                              queries + sm90_rows_step<D, BM>(i), i > 0);
    tp_wgmma_commit();
}

/* d (64 keys, D) += w (64, BM) times the rows of a tile. Starts it. */
template <int D, int BM>
static __device__ __forceinline__ void
backward_rows(float (&d)[D / 2], const uint32_t (&w)[BM / 16][4], uint64_t tile, int add) {
    tp_wgmma_pin(d);
    tp_wgmma_fence();
#pragma unroll
    for (int i = 0; i < BM / 16; i++)
        tp_wgmma_rs<D, 1>(d, w[i], tile + sm90_columns_step<D>(i), add || i > 0);
    tp_wgmma_commit();
}

/* A warpgroup's 64 rows of dk or dv, through its rows of `tile`, to global memory. */
template <int D>
static __device__ __forceinline__ void backward_out(const float (&d)[D / 2], float scale,
                                                    unsigned char *tile, int row) {
    const unsigned at = sm90_row_place<D>(row);
#pragma unroll
    for (int i = 0; i < D / 8; i++)
#pragma unroll
        for (int r = 0; r < 2; r++)
            tp_sts_tile(tile + sm90_pair_place<D, BN>(at, i, r),
                        tp_pack_bf16(d[4 * i + 2 * r] * scale, d[4 * i + 2 * r + 1] * scale));
}

template <int D>
static __device__ __forceinline__ void
backward_consume(const backward_params &f, const backward_work &w, unsigned char *shared,
                 const backward_bars &bars, const backward_work *place, int group) {
    typedef backward_memory<D> M;
    typedef sm90_layout<D> L;
    constexpr int BM = M::BM;
    const int lane = threadIdx.x % 32, thread = threadIdx.x % 128, c = lane % 4 * 2;
    const int row = 64 * group + thread / 32 * 16 + lane / 4, j0 = w.n * BN + 64 * group;
    const uint64_t keys = sm90_rows_desc<D, BN>(shared + M::K, 64 * group);
    const uint64_t values = keys + ((M::V - M::K) >> 4);
    /* dQ's product: D = 64: each warpgroup has 64 of the queries; D = 128: 64 of the columns */
    const uint64_t dq_keys =
        sm90_columns_desc<64, BN>(shared + M::K + (D == 128 ? group * BN * 128 : 0));
    const unsigned ds_place = sm90_row_place<64>(row);
    float dk[D / 2], dv[D / 2];
    uint32_t ds[BM / 16][4] = {}; /* read by a product that goes on into the next round */
    tp_mbar_wait(bars.kv_full, 0);
    const int rounds = f.p.G * (w.blocks.last - w.blocks.first);
    for (int it = 0, m = w.blocks.first; it < rounds; it++) {
        const int stage = it % STAGES, phase = sm90_phase<STAGES>(it), t0 = m * BM;
        unsigned char *q = shared + M::Q + stage * M::Q_BYTES;
        unsigned char *d_o = shared + M::DO + stage * M::Q_BYTES;
        unsigned char *ds_tile = shared + M::DS + (it & 1) * M::DS_BYTES;
        const float *lse = (const float *)(shared + M::STATS + stage * M::STAT_BYTES);
        const float *delta = lse + BM;
        float s[BM / 2], dp[BM / 2];
        uint32_t p[BM / 16][4];
        tp_mbar_wait(&bars.q_full[stage], phase);
        backward_scores<D, BM>(s, keys, sm90_rows_desc<D, BM>(q, 0));
        tp_mbar_wait(&bars.do_full[stage], phase);
        backward_scores<D, BM>(dp, values, sm90_rows_desc<D, BM>(d_o, 0));
        tp_wgmma_wait<1>();
        tp_wgmma_pin(s);
        tp_wgmma_pin(dk); /* of the round before, is done too */
        tp_wgmma_pin(ds);
        if (it > 0 && lane == 0) tp_mbar_arrive(&bars.empty[stage ^ 1]);
        /* some query does not see some key */
        if (sm90_hi(&f.p, t0) < j0 + 64 || sm90_lo(&f.p, t0 + BM - 1) > j0)
            backward_mask<BM>(s, f.p, w.n * BN + row, t0, c);
        if (f.p.segments) sm90_mask_segments<BM>(s, f.p, w.b, w.n * BN + row, t0);
#pragma unroll
        for (int i = 0; i < BM / 8; i++) {
            float2 x = tp_lds((const float2 *)(lse + 8 * i + c));
#pragma unroll
            for (int e = 0; e < 4; e++)
                s[4 * i + e] = tp_ex2(fmaf(s[4 * i + e], f.scale_log2, -(e % 2 ? x.y : x.x)));
        }
        sm90_pack(p, s);
        backward_rows<D, BM>(dv, p, sm90_columns_desc<D, BM>(d_o), it > 0);
        tp_wgmma_wait<1>();
        tp_wgmma_pin(dp);
#pragma unroll
        for (int i = 0; i < BM / 8; i++) {
            float2 x = tp_lds((const float2 *)(delta + 8 * i + c));
#pragma unroll
            for (int e = 0; e < 4; e++) { /* the weight as dv sees it: s is not kept */
                uint32_t pair = p[i / 2][i % 2 * 2 + e / 2];
                float weight = __uint_as_float(e % 2 ? pair & 0xffff0000u : pair << 16);
                dp[4 * i + e] = weight * (dp[4 * i + e] - (e % 2 ? x.y : x.x));
            }
        }
        sm90_pack(ds, dp);
#pragma unroll
        for (int i = 0; i < BM / 8; i++)
#pragma unroll
            for (int r = 0; r < 2; r++) /* boxes of 64 queries */
                tp_sts_tile(ds_tile + sm90_pair_place<64, BN>(ds_place, i, r),
                            ds[i / 2][i % 2 * 2 + r]);
        tp_fence_async();
        tp_bar_sync(1, 256); /* all of dS is there */
        float dq[32];
        const uint64_t dq_rows =
            sm90_columns_desc<64, BN>(ds_tile + (D == 64 ? group * BN * 128 : 0));
        tp_wgmma_pin(dq);
        tp_wgmma_fence();
#pragma unroll
        for (int i = 0; i < BN / 16; i++)
            tp_wgmma_ss<64, 1, 1>(dq, dq_rows + sm90_columns_step<64>(i),
                                  dq_keys + sm90_columns_step<64>(i), i > 0);
        tp_wgmma_commit();
        backward_rows<D, BM>(dk, ds, sm90_columns_desc<D, BM>(q), it > 0);
        tp_wgmma_wait<1>();
        tp_wgmma_pin(dv);
        tp_wgmma_pin(p);
        tp_wgmma_pin(dq);
        tp_mbar_wait(&bars.dq_empty[it & 1], sm90_phase<2>(it) ^ 1);
#pragma unroll
        for (int i = 0; i < 8; i++)
            tp_sts_tile4(shared + M::DQ + (it & 1) * DQ_BYTES +
                             ((group * 8 + i) * 128 + thread) * 16,
                         dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]);
        tp_fence_async();
        __syncwarp();
        if (lane == 0) tp_mbar_arrive(&bars.dq_full[it & 1]);
        if (D == 64) { /* its registers are needed */
            tp_wgmma_wait<0>();
            tp_wgmma_pin(dk);
        }
        /* the next head of the group; read again, as no registers are left to keep it in */
        if (++m == tp_lds(&place->blocks.last)) m = tp_lds(&place->blocks.first);
    }
    tp_wgmma_wait<0>();
    tp_wgmma_pin(dk);
#pragma unroll
    for (int x = 0; x < D / 2 && !rounds; x++) dk[x] = dv[x] = 0;
    tp_bar_sync(1, 256); /* nobody reads K and V any more */
    backward_out<D>(dk, f.scale, shared + M::K, row);
    backward_out<D>(dv, 1, shared + M::V, row);
    tp_fence_async();
    tp_bar_sync(2 + group, 128);
    if (thread == 0) {
        for (int i = 0; i < L::BOXES; i++) {
            int at = i * BN * L::ROW + 64 * group * L::ROW;
            tp_tma_store_4d(&f.dk, shared + M::K + at, i * L::COLS, j0, w.kv_head, w.b);
            tp_tma_store_4d(&f.dv, shared + M::V + at, i * L::COLS, j0, w.kv_head, w.b);
        }
        tp_bulk_commit();
        tp_bulk_wait_read<0>(); /* the next block may have the shared memory */
    }
}
#endif

/* Grid: B*Hkv*tiles. Warp 0 brings, warps 1 and 2 take away; warpgroups 1 and 2 compute. */
template <int D>
static __global__ void __launch_bounds__(384, 1)
    attention_backward_sm90(const __grid_constant__ backward_params f) {
#if TP_HOPPER
    TP_SHARED_DYNAMIC(shared);
    uint64_t *at = (uint64_t *)(shared + backward_memory<D>::BARS);
    backward_work *place = (backward_work *)(at + 13);
    const backward_bars bars = backward_bars_at(at);
    if (threadIdx.x == 0) {
        tp_mbar_init(bars.kv_full, 1);
        for (int i = 0; i < STAGES; i++) {
            tp_mbar_init(&bars.q_full[i], 1);
            tp_mbar_init(&bars.do_full[i], 1);
            tp_mbar_init(&bars.empty[i], 8); /* warps */
        }
        for (int i = 0; i < 2; i++) {
            tp_mbar_init(&bars.dq_full[i], 8);
            tp_mbar_init(&bars.dq_empty[i], 1);
        }
        tp_mbar_init_fence();
        tp_tma_prefetch_map(&f.k);
        tp_tma_prefetch_map(&f.v);
        tp_tma_prefetch_map(&f.q);
        tp_tma_prefetch_map(&f.d_o);
    }
    if (threadIdx.x < 32) {
        int ticket = threadIdx.x ? 0 : atomicAdd(f.ticket, 1);
        const backward_work w = backward_take<D>(f, __shfl_sync(0xffffffffu, ticket, 0));
        if (threadIdx.x == 0) {
            tp_sts(&place->b, w.b);
            tp_sts(&place->kv_head, w.kv_head);
            tp_sts(&place->n, w.n);
            tp_sts(&place->blocks.first, w.blocks.first);
            tp_sts(&place->blocks.last, w.blocks.last);
        }
    }
    __syncthreads();
    if (threadIdx.x < 128) { /* 24 registers: nothing is unrolled here */
        tp_registers_fewer<24>();
        const backward_work w = backward_read(place);
        if (threadIdx.x == 0) backward_produce<D>(f, w, shared, bars);
        if (threadIdx.x == 32 || threadIdx.x == 64)
            backward_add<D>(f, w, shared, bars, threadIdx.x / 64);
    } else {
        tp_registers_more<240>();
        const backward_work w = backward_read(place);
        /* the same in a warp, which the compiler cannot know: descriptors in uniform registers */
        int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0) - 1;
        backward_consume<D>(f, w, shared, bars, place, group);
    }
#endif
}

/* ---- before and after -------------------------------------------------------------------------
 */
typedef struct prepare_params {
    const tp_bf16 *o, *d_o;
    const float *lse, *dlse; /* dlse: NULL is zero */
    int64_t o_stride[3], do_stride[3], lse_stride[3], dlse_stride[3];
    float *stats;
    int *turn, *ticket;
    int T, H, D, blocks;
} prepare_params;

/* Grid (blocks, B*H), 256 threads: 16 lanes to a row of o and do. */
template <int BM> static __global__ void attention_prepare_sm90(prepare_params f) {
    int m = blockIdx.x, b = blockIdx.y / f.H, h = blockIdx.y % f.H;
    int64_t at = (int64_t)blockIdx.y * f.blocks + m;
    int lane = threadIdx.x % 16;
    if (threadIdx.x == 0) f.turn[at] = 0;
    if (threadIdx.x == 0 && at == 0) *f.ticket = 0;
    for (int r = threadIdx.x / 16; r < BM; r += 16) {
        int t = m * BM + r;
        float delta = 0;
        if (t < f.T && 8 * lane < f.D) {
            tp_vec<tp_bf16, 8> x = tp_load<tp_bf16, 8>(f.o + b * f.o_stride[0] + t * f.o_stride[1] +
                                                       h * f.o_stride[2] + 8 * lane);
            tp_vec<tp_bf16, 8> y = tp_load<tp_bf16, 8>(
                f.d_o + b * f.do_stride[0] + t * f.do_stride[1] + h * f.do_stride[2] + 8 * lane);
            for (int e = 0; e < 8; e++) delta = fmaf(tp_to_f32(x.v[e]), tp_to_f32(y.v[e]), delta);
        }
        for (int s = 8; s; s >>= 1) delta += __shfl_xor_sync(0xffffffffu, delta, s);
        if (lane) continue;
        float lse = -HUGE_VALF;
        if (t < f.T) {
            lse = f.lse[b * f.lse_stride[0] + h * f.lse_stride[1] + t * f.lse_stride[2]];
            if (f.dlse)
                delta -= f.dlse[b * f.dlse_stride[0] + h * f.dlse_stride[1] + t * f.dlse_stride[2]];
        }
        /* a row that sees nothing, or is not there, has no weights */
        f.stats[at * 2 * BM + r] = lse == -HUGE_VALF ? HUGE_VALF : lse * (float)SM90_LOG2E;
        f.stats[at * 2 * BM + BM + r] = lse == -HUGE_VALF ? 0 : delta;
    }
}

/* dq in bf16. Grid (blocks, B*H), 256 threads. */
template <int D>
static __global__ void attention_finish_sm90(const float *dq, attention_out out, sm90_problem p,
                                             int width, int blocks, float scale) {
    constexpr int BM = backward_tile<D>::BM;
    int m = blockIdx.x, b = blockIdx.y / p.H, h = blockIdx.y % p.H;
    const float *tile = dq + ((int64_t)blockIdx.y * blocks + m) * DQ_FLOATS;
    sm90_range seen = sm90_tiles(&p, b, m, BM, BN);
    for (int i = threadIdx.x; i < DQ_FLOATS / 4; i += 256) {
        int group = i / 1024, j = i / 128 % 8, thread = i % 128;
        int row = thread / 32 * 16 + thread % 32 / 4 + (D == 64 ? 64 * group : 0);
        int column = 8 * j + thread % 4 * 2 + (D == 128 ? 64 * group : 0);
        tp_vec<float, 4> x = {{0, 0, 0, 0}};
        if (seen.first < seen.last) x = tp_load<float, 4>(tile + 4 * i);
        for (int r = 0; r < 2; r++) {
            int t = m * BM + row + 8 * r;
            if (t >= p.T || column >= width) continue;
            tp_vec<tp_bf16, 2> y = {{tp_from_f32<tp_bf16>(x.v[2 * r] * scale),
                                     tp_from_f32<tp_bf16>(x.v[2 * r + 1] * scale)}};
            tp_store<tp_bf16, 2>(attention_out_row<tp_bf16>(out, b, t, h) + column, y);
        }
    }
}

/* ---- host ------------------------------------------------------------------------------------ */
typedef struct backward_sizes {
    int64_t blocks, rows; /* blocks of queries per head; B*H*blocks */
    size_t stats, dq, ints, seen, bytes;
} backward_sizes;

static backward_sizes backward_sizes_of(const attention_problem *p) {
    backward_sizes z;
    int64_t bm = backward_tile<64>::BM;
    if (p->D > 64 || p->Dv > 64) bm = backward_tile<128>::BM;
    z.blocks = (p->T + bm - 1) / bm;
    z.rows = p->B * p->H * z.blocks;
    z.stats = (size_t)(z.rows * 2 * bm) * sizeof(float);
    z.dq = (size_t)z.rows * DQ_BYTES;
    z.ints = (size_t)(z.rows + 1) * sizeof(int);
    z.seen = p->segments ? (size_t)(p->B * z.blocks) * sizeof(sm90_range) : 0;
    z.bytes = z.stats + z.dq + z.ints + z.seen;
    return z;
}

static void strides_of(int64_t out[3], const tp_tensor *t) {
    for (int i = 0; i < 3; i++) out[i] = t->stride[i];
}

template <int D> static tp_status backward_run(const tp_call *k, const attention_problem *p) {
    constexpr int BM = backward_tile<D>::BM;
    backward_sizes z = backward_sizes_of(p);
    backward_params f;
    tp_status st;
    f.p = sm90_problem_of(p, BM, (char *)k->workspace + z.dq + z.stats + z.ints);
    f.scale = (float)p->scale;
    f.scale_log2 = (float)(p->scale * SM90_LOG2E);
    f.blocks = (int)z.blocks;
    f.tiles = (int)((p->S + BN - 1) / BN);
    f.work = (int)(p->B * p->Hkv) * f.tiles;
    f.dq = (float *)k->workspace;
    f.stats = (float *)((char *)k->workspace + z.dq);
    f.ticket = (int *)((char *)f.stats + z.stats);
    f.turn = f.ticket + 1;
    if ((st = sm90_map<D>(k, &f.q, k->in[BACKWARD_Q], BM))) return st;
    if ((st = sm90_map<D>(k, &f.k, k->in[BACKWARD_K], BN))) return st;
    if ((st = sm90_map<D>(k, &f.v, k->in[BACKWARD_V], BN))) return st;
    if ((st = sm90_map<D>(k, &f.d_o, k->in[BACKWARD_DO], BM))) return st;
    if ((st = sm90_map<D>(k, &f.dk, k->out[1], 64))) return st;
    if ((st = sm90_map<D>(k, &f.dv, k->out[2], 64))) return st;

    const tp_tensor *o = k->in[BACKWARD_O], *d_o = k->in[BACKWARD_DO];
    const tp_tensor *lse = k->in[BACKWARD_LSE], *dlse = k->in[BACKWARD_DLSE];
    prepare_params r = {};
    r.o = (const tp_bf16 *)o->data;
    r.d_o = (const tp_bf16 *)d_o->data;
    r.lse = tp_f32(lse);
    r.dlse = dlse ? tp_f32(dlse) : NULL;
    strides_of(r.o_stride, o);
    strides_of(r.do_stride, d_o);
    strides_of(r.lse_stride, lse);
    if (dlse) strides_of(r.dlse_stride, dlse);
    r.stats = f.stats;
    r.turn = f.turn;
    r.ticket = f.ticket;
    r.T = (int)p->T, r.H = (int)p->H, r.D = (int)p->Dv, r.blocks = f.blocks;
    dim3 rows((unsigned)z.blocks, (unsigned)(p->B * p->H));
    st = TP_LAUNCH(k, attention_prepare_sm90<BM>, rows, 256, 0, r);
    if (!st && f.p.segments) {
        sm90_problem shape = f.p;
        sm90_range *seen = (sm90_range *)((char *)k->workspace + z.dq + z.stats + z.ints);
        st = TP_LAUNCH(k, (attention_seen_sm90<BM, BN>), dim3((unsigned)z.blocks, (unsigned)p->B),
                       32, 0, shape, seen);
    }
    if (!st)
        st = TP_LAUNCH(k, attention_backward_sm90<D>, (unsigned)f.work, 384,
                       backward_memory<D>::BYTES, f);
    const float *dq = f.dq;
    const attention_out out = attention_out_of(k->out[0]);
    sm90_problem shape = f.p;
    int width = (int)p->D, blocks = f.blocks;
    float scale = f.scale;
    if (!st)
        st = TP_LAUNCH(k, attention_finish_sm90<D>, rows, 256, 0, dq, out, shape, width, blocks,
                       scale);
    return st;
}

static const char *backward_decline(const tp_call *k) {
    attention_problem p = attention_problem_of(k, k->in[BACKWARD_SEGMENTS], NULL);
    const tp_tensor *lse = k->in[BACKWARD_LSE], *dlse = k->in[BACKWARD_DLSE];
    const char *no = sm90_decline(k, &p, 128);
    if (no) return no;
    if (!k->in[BACKWARD_DO]) return "no do";
    if ((no = sm90_decline_tensor(k->in[BACKWARD_O], 128))) return no;
    if ((no = sm90_decline_tensor(k->in[BACKWARD_DO], 128))) return no;
    if (lse->dtype != TP_F32 || (dlse && dlse->dtype != TP_F32)) return "lse is not f32";
    return p.B * p.H > 65535 ? "too many heads" : NULL;
}

static size_t backward_workspace(const tp_call *k) {
    attention_problem p = attention_problem_of(k, k->in[BACKWARD_SEGMENTS], NULL);
    return backward_sizes_of(&p).bytes;
}

static tp_status backward(const tp_call *k) {
    attention_problem p = attention_problem_of(k, k->in[BACKWARD_SEGMENTS], NULL);
    return p.D > 64 || p.Dv > 64 ? backward_run<128>(k, &p) : backward_run<64>(k, &p);
}

TP_CUDA_KERNEL(attention_backward_sm90_cuda, .decline = backward_decline, .run = backward,
               .workspace = backward_workspace);
