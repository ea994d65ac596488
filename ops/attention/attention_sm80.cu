/* Flash attention, forward, on tensor cores (mma.sync, sm_80 and later). Dao, arXiv 2307.08691.
 *
 * A block owns M queries of one head, a warp 16 MT of them. It walks the tiles of N keys, counted
 * from key 0, in order: while tile j is computed, tile j + 1 is copied to the other half of the K
 * and V buffers. Per tile and row, with c = scale log2(e): m' = max(m, max_j s_j)   p_j = 2^(c s_j
 * - c m')   f = 2^(c m - c m') l = f l + sum_j p_j      o = f o + sum_j bf16(p_j) v_j A row is on
 * its own: a key that it does not see adds exact zeros, and a tile without visible keys changes
 * nothing. So its bits do not depend on the queries that it is computed with.
 *
 * For paged_attention only the copying of keys and values differs, so it has the same bits. */
#include "ops/attention/attention_math.h"
#include "ops/attention/attention_tile_sm80.h"
#include "ops/paged_attention/paged_attention_cuda.h"

/* Tiles by head size. MT > 1 lets a fragment of K or V serve several products; beyond D = 64 the
 * queries do not fit into registers beside two such tiles of outputs. N_CAPPED: keys per tile with
 * softcap, whose arithmetic wants registers as well. */
template <int D> struct forward_shape;
template <> struct forward_shape<64> {
    enum { MT = 2, WARPS = 4, N = 64, N_CAPPED = 64, BLOCKS = 2 };
};
template <> struct forward_shape<96> {
    enum { MT = 2, WARPS = 4, N = 64, N_CAPPED = 64, BLOCKS = 2 };
};
template <> struct forward_shape<128> {
    enum { MT = 2, WARPS = 4, N = 64, N_CAPPED = 32, BLOCKS = 2 };
};
template <> struct forward_shape<256> {
    enum { MT = 1, WARPS = 8, N = 32, N_CAPPED = 32, BLOCKS = 1 };
};

/* PAGED: queries are few when decoding, so a warp takes 16 of them. How many it takes shows in no
 * bit of a row; N would. */
template <int D, bool CAPPED, bool PAGED> struct forward_size {
    typedef forward_shape<D> S;
    enum {
        N = CAPPED ? (int)S::N_CAPPED : (int)S::N,
        MT = PAGED ? 1 : (int)S::MT,
        ROWS = 16 * MT * S::WARPS,
        THREADS = 32 * S::WARPS,
        PLACE_AT = (ROWS + 4 * N) * D * 2, /* after Q and two stages of K and V */
        SHARED = PLACE_AT + 32
    };
};

/* Which queries a block owns: heads in sections of `section`, so that the keys and values of those
 * in flight stay in the second-level cache; within a section the last queries, which see most,
 * first. */
typedef struct forward_grid {
    int heads, section, blocks; /* (b,h) pairs; row blocks per head */
} forward_grid;

/* A block's part of that. Kept in shared memory, as registers are scarce. */
typedef struct forward_place {
    int b, h, t0, lo, hi; /* queries from t0 on; they see keys [lo, hi) by position */
    attention_band band;
    int zero; /* which the compiler cannot know: what is computed from lane + zero is computed
                 afresh, where it would else be kept in registers from one product to the next */
} forward_place;

static __device__ __forceinline__ forward_place forward_place_of(tp_smem at) {
    const uint4 x = tp_lds_u128(at), y = tp_lds_u128(at + 16);
    forward_place a = {(int)x.x, (int)x.y, (int)x.z, (int)x.w, (int)y.x, {(int)y.y, (int)y.z},
                       (int)y.w};
    return a;
}

static __device__ __forceinline__ void forward_place_find(tp_smem at, const attention_params &p,
                                                          const forward_grid g, int M) {
    int id = (int)blockIdx.x, per = g.section * g.blocks, s = id / per, first = s * g.section;
    int in = min(g.section, g.heads - first), rest = id - s * per, lo, hi;
    const int head = first + rest % in, t0 = (g.blocks - 1 - rest / in) * M, b = head / p.H;
    const attention_band band = attention_band_of(&p, b);
    attention_keys(band, t0, min(t0 + M, p.T), p.S, &lo, &hi);
    const int a[8] = {b, head % p.H, t0, lo, hi, band.lo, band.hi, 0};
    for (int i = 0; i < 8; i++) tp_sts_u32(at + 4 * i, (unsigned)a[i]);
}

/* What a thread knows of its rows: row r = 2i + half is query t + 16 i + 8 half. */
template <int MT> struct forward_row_state {
    float m[2 * MT], l[2 * MT]; /* c times the running maximum; this thread's part of the sum */
};

/* Scores become weights; returns through `o` what was summed before, shrunk. */
template <int MT, int NT, int OT>
static __device__ __forceinline__ void forward_softmax(float (&s)[MT][NT][4], float (&o)[MT][OT][4],
                                                       forward_row_state<MT> &row, float c) {
#pragma unroll
    for (int i = 0; i < MT; i++) {
        float f[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int r = 2 * i + half, at = 2 * half;
            float top = s[i][0][at];
#pragma unroll
            for (int n = 0; n < NT; n++) top = fmaxf(top, fmaxf(s[i][n][at], s[i][n][at + 1]));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            float m = fmaxf(row.m[r], top * c);
            float base = m == -INFINITY ? 0.0f : m; /* -inf - -inf would be NaN */
            f[half] = tp_ex2(row.m[r] - base);
            float sum = 0;
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    s[i][n][at + e] = tp_ex2(fmaf(s[i][n][at + e], c, -base));
                    sum += s[i][n][at + e];
                }
            row.l[r] = fmaf(row.l[r], f[half], sum);
            row.m[r] = m;
        }
        /* Once the maximum stands, the factor is exactly 1. */
        if (__any_sync(0xffffffffu, f[0] != 1.0f || f[1] != 1.0f))
#pragma unroll
            for (int n = 0; n < OT; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) o[i][n][e] *= f[e / 2];
    }
}

/* o += P V: the weights, as they lie in the accumulators of Q K', are fragments of A. */
/* lesson: values */
template <int MT, int NT, int OT, int D>
static __device__ __forceinline__ void
forward_values(float (&o)[MT][OT][4], const float (&s)[MT][NT][4], tp_smem v, int lane) {
    constexpr int swap = ATTENTION_MUTANT_FRAGMENT;
#pragma unroll
    for (int k = 0; k < NT; k += 2) {
        unsigned a[MT][4];
#pragma unroll
        for (int i = 0; i < MT; i++) {
            a[i][0] = tp_pack_bf16(s[i][k][0], s[i][k][1]);
            a[i][1 + swap] = tp_pack_bf16(s[i][k][2], s[i][k][3]);
            a[i][2 - swap] = tp_pack_bf16(s[i][k + 1][0], s[i][k + 1][1]);
            a[i][3] = tp_pack_bf16(s[i][k + 1][2], s[i][k + 1][3]);
        }
#pragma unroll
        for (int n = 0; n < OT; n += 2) {
            unsigned fb[4];
            tile_b<D, true>(fb, v, 8 * k, 8 * n, lane);
#pragma unroll
            for (int i = 0; i < MT; i++) {
                tp_mma_bf16_16x8x16(o[i][n], a[i], fb, o[i][n]);
                tp_mma_bf16_16x8x16(o[i][n + 1], a[i], fb + 2, o[i][n + 1]);
            }
        }
    }
}
/* end */

/* o/l and lse of the warp's rows; its part of the queries' tile serves as the way out. */
template <int MT, int OT, int D>
static __device__ __forceinline__ void
forward_finish(float (&o)[MT][OT][4], forward_row_state<MT> &row, const attention_params &p, int b,
               int h, int t0, tp_smem tile, int warp, int lane) {
    const int first = warp * 16 * MT;
#pragma unroll
    for (int r = 0; r < 2 * MT; r++) {
        float l = row.l[r];
        l += __shfl_xor_sync(0xffffffffu, l, 1);
        l += __shfl_xor_sync(0xffffffffu, l, 2);
        float inverse = l == 0 ? 0.0f : 1.0f / l; /* 0: no key was seen */
        int t = t0 + first + 8 * r + lane / 4;
        if (lane % 4 == 0 && t < p.T)
            p.lse[((int64_t)b * p.H + h) * p.T + t] =
                l == 0 ? -INFINITY : fmaf(row.m[r], LN2, tp_logf(l));
#pragma unroll
        for (int n = 0; n < OT; n++) {
            o[r / 2][n][r % 2 * 2] *= inverse;
            o[r / 2][n][r % 2 * 2 + 1] *= inverse;
        }
    }
    tile_store<MT, OT, D>(o, tile, first, 0, lane);
    __syncwarp();
    int64_t stride = (int64_t)p.H * p.D;
    uint16_t *to = (uint16_t *)p.o + ((int64_t)b * p.T + t0 + first) * stride + (int64_t)h * p.D;
    tile_write<16 * MT, D>(to, stride, tile, first, p.T - t0 - first, p.D, lane, 32);
}

template <int D, bool CAPPED, bool PAGED>
__global__ void __launch_bounds__(32 * forward_shape<D>::WARPS, forward_shape<D>::BLOCKS)
    attention_sm80_kernel(const attention_params p, const forward_grid grid) {
    typedef forward_size<D, CAPPED, PAGED> size;
    constexpr int MT = size::MT, N = size::N, NT = N / 8, OT = D / 8;
    constexpr int M = size::ROWS, THREADS = size::THREADS;
    TP_SHARED_DYNAMIC(shared);
    const tp_smem q_tile = tp_smem_addr(shared), kv_tile = q_tile + M * D * 2;
    constexpr int V_AT = N * D * 2, STAGE = 2 * V_AT;
    const tp_smem place = q_tile + size::PLACE_AT;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    if (threadIdx.x == 0) forward_place_find(place, p, grid, M);
    __syncthreads();

    int j0; /* the tile's first key */
    const uint16_t *keys, *values;
    {
        const forward_place a = forward_place_of(place);
        const uint16_t *queries = (const uint16_t *)p.q.x + a.b * p.q.b + a.h * p.q.h;
        queries = tile_from<D, THREADS>(queries + a.t0 * p.q.t, p.q.t);
        tile_load<M, D, THREADS>(q_tile, queries, p.q.t, p.T - a.t0, p.D, (int)threadIdx.x);
        j0 = a.lo / N * N;
        const tp_smem k_tile = kv_tile + (j0 / N & 1) * STAGE;
        keys = (const uint16_t *)p.k.x + a.b * p.k.b + a.h / p.G * p.k.h;
        values = (const uint16_t *)p.v.x + a.b * p.v.b + a.h / p.G * p.v.h;
        keys = tile_from<D, THREADS>(keys + j0 * p.k.t, p.k.t);
        values = tile_from<D, THREADS>(values + j0 * p.v.t, p.v.t);
        if (a.lo < a.hi && PAGED) {
            const int head = a.h / p.G, thread = (int)threadIdx.x;
            tile_load_pages<N, D, THREADS>(k_tile, p, p.k, a.b, head, j0, a.lo, a.hi, thread);
            tile_load_pages<N, D, THREADS>(k_tile + V_AT, p, p.v, a.b, head, j0, a.lo, a.hi,
                                           thread);
        } else if (a.lo < a.hi) {
            const int rows = p.S - j0;
            tile_load<N, D, THREADS>(k_tile, keys, p.k.t, rows, p.D, (int)threadIdx.x);
            tile_load<N, D, THREADS>(k_tile + V_AT, values, p.v.t, rows, p.D, (int)threadIdx.x);
        } else
            j0 = a.hi;
        tp_cp_async_commit();
    }
    float o[MT][OT][4];
    forward_row_state<MT> row;
    tile_zero(o);
#pragma unroll
    for (int r = 0; r < 2 * MT; r++) {
        row.m[r] = -INFINITY;
        row.l[r] = 0;
    }
    const float c = CAPPED ? LOG2E : p.scale * LOG2E;

    for (; j0 < forward_place_of(place).hi; j0 += N) {
        const tp_smem k_tile = kv_tile + (j0 / N & 1) * STAGE, v_tile = k_tile + V_AT;
        tp_cp_async_wait<0>();
        /* Tile j0 is there for all, and all are done with the one before. */
        if (!ATTENTION_MUTANT_BARRIER) __syncthreads();
        const forward_place a = forward_place_of(place);
        const tp_smem next = kv_tile + ((j0 / N & 1) ^ 1) * STAGE;
        if (j0 + N < a.hi && PAGED) {
            const int head = a.h / p.G, thread = (int)threadIdx.x + a.zero, j = j0 + N;
            tile_load_pages<N, D, THREADS>(next, p, p.k, a.b, head, j, a.lo, a.hi, thread);
            tile_load_pages<N, D, THREADS>(next + V_AT, p, p.v, a.b, head, j, a.lo, a.hi, thread);
        } else if (j0 + N < a.hi) {
            const int thread = (int)threadIdx.x + a.zero, rows = p.S - j0 - N;
            keys += N * p.k.t;
            values += N * p.v.t;
            tile_load<N, D, THREADS>(next, keys, p.k.t, rows, p.D, thread);
            tile_load<N, D, THREADS>(next + V_AT, values, p.v.t, rows, p.D, thread);
        }
        tp_cp_async_commit();
        const int at = lane + a.zero, w0 = a.t0 + warp * 16 * MT; /* the warp's first query */
        if (j0 > w0 + 16 * MT - 1 + a.band.hi || j0 + N - 1 < w0 + a.band.lo) continue;

        float s[MT][NT][4];
        tile_zero(s);
        tile_product<MT, NT, D, D, false, D, false>(s, q_tile, warp * 16 * MT, k_tile, 0, at);
        if (CAPPED)
#pragma unroll
            for (int i = 0; i < MT; i++)
#pragma unroll
                for (int n = 0; n < NT; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        s[i][n][e] = attention_softcap(s[i][n][e] * p.scale, p.softcap);
        {
            const forward_place z = forward_place_of(place);
            const int t = z.t0 + warp * 16 * MT, lane_z = lane + z.zero;
            const bool whole = j0 + N <= p.S && j0 + N - 1 <= t + z.band.hi &&
                               j0 >= t + 16 * MT - 1 + z.band.lo && !p.segments;
            if (!whole)
                tile_hide(s, p, z.band, p.segments ? p.segments + z.b * p.segments_b : NULL,
                          t + lane_z / 4, j0 + lane_z % 4 * 2, -INFINITY);
        }
        forward_softmax(s, o, row, c);
        forward_values<MT, NT, OT, D>(o, s, v_tile, lane + forward_place_of(place).zero);
    }
    tp_cp_async_wait<0>();
    __syncthreads(); /* without tiles, the queries may only just have come */
    const forward_place a = forward_place_of(place);
    forward_finish<MT, OT, D>(o, row, p, a.b, a.h, a.t0, q_tile, warp, lane);
}

/* ---- on the host ---------------------------------------------------------------------------- */
template <int D, bool CAPPED, bool PAGED>
static tp_status forward_launch(const tp_call *k, const attention_params &p) {
    typedef forward_size<D, CAPPED, PAGED> size;
    /* 16 MB of keys and values at a time: a third of the second-level cache of an H100. */
    double bytes = 4.0 * D * p.S / p.G;
    forward_grid g = {p.B * p.H, (int)(16e6 / (bytes + 1)), (int)tp_blocks(p.T, size::ROWS)};
    g.section = g.section < p.G ? p.G : g.section / p.G * p.G; /* they share keys */
    if (g.section > g.heads) g.section = g.heads;
    return TP_LAUNCH(k, (attention_sm80_kernel<D, CAPPED, PAGED>), (unsigned)(g.heads * g.blocks),
                     size::THREADS, size::SHARED, p, g);
}

template <int D, bool PAGED>
static tp_status forward_run_d(const tp_call *k, const attention_params &p) {
    return p.softcap > 0 ? forward_launch<D, true, PAGED>(k, p)
                         : forward_launch<D, false, PAGED>(k, p);
}

template <bool PAGED>
static tp_status forward_by_width(const tp_call *k, const attention_params &p) {
    if (p.B == 0 || p.H == 0 || p.T == 0) return TP_OK;
    if (p.D <= 64) return forward_run_d<64, PAGED>(k, p);
    if (p.D <= 96) return forward_run_d<96, PAGED>(k, p);
    if (p.D <= 128) return forward_run_d<128, PAGED>(k, p);
    return forward_run_d<256, PAGED>(k, p);
}

/* Of the unpaged kernel, for both: where it declines, decoding must as well. */
static size_t forward_shared(int64_t D) {
    if (D <= 64) return forward_size<64, false, false>::SHARED;
    if (D <= 96) return forward_size<96, false, false>::SHARED;
    if (D <= 128) return forward_size<128, false, false>::SHARED;
    return forward_size<256, false, false>::SHARED;
}

static const char *forward_decline(const tp_call *k) {
    return attention_sm80_decline(k, forward_shared(k->in[0]->shape[3]),
                                  ((const attention_attr *)k->attr)->scale);
}
static tp_status forward_run(const tp_call *k) {
    attention_params p = attention_params_of(k, k->in[ATTENTION_SEGMENTS], k->in[ATTENTION_STARTS]);
    p.o = k->out[0]->data;
    p.lse = tp_f32(k->out[1]);
    return forward_by_width<false>(k, p);
}
TP_CUDA_KERNEL(attention_sm80, .decline = forward_decline, .run = forward_run);

static const char *paged_decline(const tp_call *k) {
    const paged_attr *a = (const paged_attr *)k->attr;
    const char *no = attention_sm80_decline(k, forward_shared(k->in[0]->shape[3]), a->scale);
    if (no || (no = paged_decline_sizes(k))) return no;
    return a->sinks > 0 ? "attention sinks" : NULL;
}
static tp_status paged_run(const tp_call *k) {
    attention_params p = paged_params_of(k);
    tp_status st = paged_attention_check_cuda(k, &p);
    return st ? st : forward_by_width<true>(k, p);
}
TP_CUDA_KERNEL(paged_attention_sm80, .decline = paged_decline, .run = paged_run,
               .workspace = paged_workspace);
