/* Attention forward on Hopper. A block of BM = 64*GROUPS queries of one head walks its tiles of BN
 * keys in order: one producer warp brings K and V by TMA into a ring of STAGES tiles; each of
 * GROUPS warpgroups owns 64 queries and computes
 *
 *   S = Q K_j' (wgmma, both from shared memory)    while    O += P_{j-1} V_{j-1} is still running
 *   m, l, P_j = softmax of S in base 2             while    O += P_{j-1} V_{j-1} is still running
 *
 * P never leaves the registers: wgmma's accumulator and A operand have the same layout, two columns
 * per register. A token that goes round the warpgroups (named barriers) lets one of them feed the
 * tensor cores while another is in its softmax.
 *
 * Blocks are persistent: each takes every gridDim'th of a list of work, so the ring stays full
 * across tiles. Every row is computed by itself over tiles counted from key 0: its bits do not
 * depend on the grid. (The tiled form: Dao et al., arXiv 2205.14135; overlapping products with
 * softmax, and warpgroups in turns: Shah et al., arXiv 2407.08608.) */
#include "ops/attention/attention_sm90.h"

template <int D> struct forward_tile;
template <> struct forward_tile<64> {
    enum { GROUPS = 2, BN = 128, STAGES = 4, OWN_O = 1 };
};
template <> struct forward_tile<96> {
    enum { GROUPS = 2, BN = 128, STAGES = 2, OWN_O = 1 };
};
template <> struct forward_tile<128> {
    enum { GROUPS = 2, BN = 128, STAGES = 2, OWN_O = 1 };
};
template <> struct forward_tile<256> {
    enum { GROUPS = 2, BN = 80, STAGES = 2, OWN_O = 0 };
};

/* Shared memory: Q, K ring, V ring, O's way out (where there is room; else it goes out through Q's
 * place), barriers. */
template <int D> struct forward_memory {
    typedef forward_tile<D> F;
    static constexpr int BM = 64 * F::GROUPS, Q_BYTES = BM * D * 2, KV_BYTES = F::BN * D * 2;
    static constexpr int Q = 0, K = Q + Q_BYTES, V = K + F::STAGES * KV_BYTES,
                         O = F::OWN_O ? V + F::STAGES * KV_BYTES : Q,
                         BARS = V + F::STAGES * KV_BYTES + (F::OWN_O ? Q_BYTES : 0),
                         BYTES = BARS + 8 * (2 + 4 * F::STAGES);
    static_assert(BYTES <= SM90_SHARED_BYTES, "more shared memory than a block can have");
};

typedef struct forward_params {
    tp_tma_map q, k, v, o;
    float *lse; /* (B,H,T) */
    sm90_problem p;
    float scale, scale_log2;   /* scale * log2(e) */
    int units, units_per_head; /* what is dealt out: blocks of queries, or pairs of them */
    bool paired;
    int heads, section; /* B*H; how many of them are walked together */
} forward_params;

/* What a block does next. Units are sorted by sections of heads whose keys and values stay in the
 * L2 cache, then from the last block of queries (the longest, if causal) to the first. Rounds
 * alternate in direction, so that no block always gets the longer one. Causal: the x-th block of
 * queries and the x-th from the end are a unit, as they are equally much work together (the middle
 * one is alone); dealt out singly, some block would get a fifth more than the mean at 64 heads
 * of 32. */
typedef struct forward_work {
    int b, h, t0;
    sm90_range keys;
} forward_work;

#if TP_HOPPER
template <int D>
static __device__ __forceinline__ bool forward_next(const forward_params &f, int *i,
                                                    forward_work *w) {
    typedef forward_tile<D> F;
    constexpr int BM = 64 * F::GROUPS;
    int round = f.paired ? *i / 2 : *i, second = f.paired ? *i % 2 : 0;
    int unit = round * (int)gridDim.x + (round & 1 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    if (unit >= f.units) return false; /* then this round is the last */
    int section = unit / (f.section * f.units_per_head), first = section * f.section;
    int heads = f.heads - first < f.section ? f.heads - first : f.section;
    int rest = unit - first * f.units_per_head, x = rest / heads, head = first + rest - x * heads;
    int m = f.p.blocks - 1 - x;
    *i += f.paired && m == x ? 2 : 1;
    if (second) m = x;
    w->b = head / f.p.H;
    w->h = head - w->b * f.p.H;
    w->t0 = m * BM;
    w->keys = sm90_tiles(&f.p, w->b, m, BM, F::BN);
    return true;
}

/* One thread: keeps the rings full. K of tile j+1 is wanted before V of tile j. */
template <int D>
static __device__ __forceinline__ void forward_produce(const forward_params &f,
                                                       unsigned char *shared, uint64_t *bars) {
    typedef forward_tile<D> F;
    typedef forward_memory<D> M;
    constexpr int ST = F::STAGES;
    uint64_t *q_full = bars, *q_empty = bars + 1, *k_full = bars + 2, *k_empty = k_full + ST,
             *v_full = k_empty + ST, *v_empty = v_full + ST;
    forward_work w;
    int used = 0, tiles = 0, i = 0;
    while (forward_next<D>(f, &i, &w)) {
        if (w.keys.first >= w.keys.last) {
            if (F::OWN_O) continue;
            /* zeros go out through Q's place: the next Q must not come before they have left */
            tp_mbar_wait(q_empty, (tiles++ & 1) ^ 1);
            tp_mbar_arrive(q_full);
            continue;
        }
        int kv_head = w.h / f.p.G, n = w.keys.last - w.keys.first;
        for (int j = 0; j <= n; j++) {
            if (j < n) {
                int at = used + j, s = at % ST;
                tp_mbar_wait(&k_empty[s], sm90_phase<ST>(at) ^ 1);
                tp_mbar_arrive_expect(&k_full[s], M::KV_BYTES);
                sm90_load<D, F::BN>(shared + M::K + s * M::KV_BYTES, &f.k, &k_full[s],
                                    (w.keys.first + j) * F::BN, kv_head, w.b);
            }
            if (j == 0) {
                tp_mbar_wait(q_empty, (tiles & 1) ^ 1);
                tp_mbar_arrive_expect(q_full, M::Q_BYTES);
                sm90_load<D, M::BM>(shared + M::Q, &f.q, q_full, w.t0, w.h, w.b);
            } else {
                int at = used + j - 1, s = at % ST;
                tp_mbar_wait(&v_empty[s], sm90_phase<ST>(at) ^ 1);
                tp_mbar_arrive_expect(&v_full[s], M::KV_BYTES);
                sm90_load<D, F::BN>(shared + M::V + s * M::KV_BYTES, &f.v, &v_full[s],
                                    (w.keys.first + j - 1) * F::BN, kv_head, w.b);
            }
        }
        used += n;
        tiles++;
    }
}

/* s (64, BN) = Q K'. Starts it. */
template <int D, int BN>
static __device__ __forceinline__ void forward_scores(float (&s)[BN / 2], uint64_t q, uint64_t k) {
    constexpr int BM = forward_memory<D>::BM;
    tp_wgmma_pin(s);
    tp_wgmma_fence();
#pragma unroll
    for (int i = 0; i < D / 16; i++)
        tp_wgmma_ss<BN, 0, 0>(s, q + sm90_rows_step<D, BM>(i), k + sm90_rows_step<D, BN>(i), i > 0);
    tp_wgmma_commit();
}

/* o (64, D) += P V. Starts it. */
template <int D, int BN>
static __device__ __forceinline__ void forward_values(float (&o)[D / 2],
                                                      const uint32_t (&p)[BN / 16][4], uint64_t v) {
    tp_wgmma_pin(o);
    tp_wgmma_fence();
#pragma unroll
    for (int i = 0; i < BN / 16; i++) tp_wgmma_rs<D, 1>(o, p[i], v + sm90_columns_step<D>(i), 1);
    tp_wgmma_commit();
}

/* s = -inf where the key is not to be seen. This thread's rows are t and t+8, its columns 8*i + c
 * and the next, from key j0. */
template <int BN>
static __device__ __forceinline__ void forward_mask(float (&s)[BN / 2], const sm90_problem &p,
                                                    int t, int j0, int c) {
#pragma unroll
    for (int r = 0; r < 2; r++)
        sm90_mask_row(s, r,
                      sm90_columns_below<BN>(sm90_hi(&p, t + 8 * r) - j0 - c) &
                          ~sm90_columns_below<BN>(sm90_lo(&p, t + 8 * r) - j0 - c));
}

/* One step of the running softmax for the two rows of this thread, a quarter of whose columns it
 * has: m, the largest score; l, this thread's share of the sum of 2^((s - m) scale_log2); s becomes
 * those weights; alpha is what earlier weights must be multiplied with. A tile of which a row sees
 * nothing leaves m and l as they were, to the bit. */
template <int N>
static __device__ __forceinline__ void forward_softmax(float (&s)[N], float (&m)[2], float (&l)[2],
                                                       float (&alpha)[2], float scale_log2) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = m[r];
#pragma unroll
        for (int i = 0; i < N / 4; i++)
            top = fmaxf(top, fmaxf(s[4 * i + 2 * r], s[4 * i + 2 * r + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        /* both products rounded alike: where m stays, alpha is exactly 1 */
        float base = top == -HUGE_VALF ? 0 : __fmul_rn(top, scale_log2);
        alpha[r] = tp_ex2(__fmul_rn(m[r], scale_log2) - base);
        m[r] = top;
        float sum = 0;
#pragma unroll
        for (int i = 0; i < N / 4; i++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float &x = s[4 * i + 2 * r + e];
                x = tp_ex2(fmaf(x, scale_log2, -base));
                sum += x;
            }
        l[r] = fmaf(l[r], alpha[r], sum);
    }
}

/* Sums l over the row, writes lse; part: what o must be multiplied with. */
static __device__ __forceinline__ void forward_sums(const forward_params &f, const forward_work &w,
                                                    const float (&m)[2], float (&l)[2],
                                                    float (&part)[2], int t) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        l[r] += __shfl_xor_sync(0xffffffffu, l[r], 1);
        l[r] += __shfl_xor_sync(0xffffffffu, l[r], 2);
        part[r] = l[r] > 0 ? 1 / l[r] : l[r] == 0 ? 0 : l[r]; /* NaN stays */
        if (threadIdx.x % 4 == 0 && t + 8 * r < f.p.T)
            f.lse[(int64_t)(w.b * f.p.H + w.h) * f.p.T + t + 8 * r] =
                l[r] == 0 ? -HUGE_VALF : fmaf(m[r], f.scale, logf(l[r]));
    }
}

/* Sends o to global memory through the warpgroup's 64 rows of shared memory, which are free: rows
 * beyond T and columns beyond the head's are cut off by TMA. */
template <int D>
static __device__ __forceinline__ void forward_out(const forward_params &f, const forward_work &w,
                                                   unsigned char *out, const float (&o)[D / 2],
                                                   const float (&part)[2], int row, int group) {
    typedef sm90_layout<D> L;
    constexpr int BM = forward_memory<D>::BM;
    const unsigned at = sm90_row_place<D>(64 * group + row);
#pragma unroll
    for (int i = 0; i < D / 8; i++)
#pragma unroll
        for (int r = 0; r < 2; r++)
            tp_sts_tile(out + sm90_pair_place<D, BM>(at, i, r),
                        tp_pack_bf16(o[4 * i + 2 * r] * part[r], o[4 * i + 2 * r + 1] * part[r]));
    tp_fence_async();
    tp_bar_sync(8 + group, 128);
    if (threadIdx.x % 128 == 0) {
        for (int i = 0; i < L::BOXES; i++)
            tp_tma_store_4d(&f.o, out + i * BM * L::ROW + 64 * group * L::ROW, i * L::COLS,
                            w.t0 + 64 * group, w.h, w.b);
        tp_bulk_commit();
    }
}

template <int D>
static __device__ __forceinline__ void
forward_consume(const forward_params &f, unsigned char *shared, uint64_t *bars, int group) {
    typedef forward_tile<D> F;
    typedef forward_memory<D> M;
    constexpr int ST = F::STAGES, BN = F::BN;
    uint64_t *q_full = bars, *q_empty = bars + 1, *k_full = bars + 2, *k_empty = k_full + ST,
             *v_full = k_empty + ST, *v_empty = v_full + ST;
    const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane / 4;
    const uint64_t q = sm90_rows_desc<D, M::BM>(shared + M::Q, 64 * group);
    const int mine = 1 + group, next = 1 + (group + 1) % F::GROUPS; /* barriers of the token */
    forward_work w, w_next = {};
    int used = 0, tiles = 0, i = 0;
    if (group == F::GROUPS - 1) tp_bar_arrive(next, 256);
    for (bool more = forward_next<D>(f, &i, &w); more; w = w_next) {
        float o[D / 2], m[2] = {-HUGE_VALF, -HUGE_VALF}, l[2] = {0, 0}, alpha[2], part[2];
        const int t0 = w.t0 + 64 * group, t = t0 + row, first = w.keys.first, last = w.keys.last;
        /* tiles below `low` or from `high` on hold keys that some row of ours does not see */
        int low = (sm90_lo(&f.p, t0 + 63) + BN - 1) / BN, high = sm90_hi(&f.p, t0) / BN;
        if (sm90_hi(&f.p, t0) < 0) high = first;
#pragma unroll
        for (int x = 0; x < D / 2; x++) o[x] = 0;
        if (first < last) {
            float s[BN / 2];
            uint32_t p[BN / 16][4];
            int at = used, stage = at % ST;
            tp_mbar_wait(q_full, tiles & 1);
            tp_mbar_wait(&k_full[stage], sm90_phase<ST>(at));
            forward_scores<D, BN>(s, q,
                                  sm90_rows_desc<D, BN>(shared + M::K + stage * M::KV_BYTES, 0));
            tp_wgmma_wait<0>();
            tp_wgmma_pin(s);
            if (lane == 0) tp_mbar_arrive(&k_empty[stage]);
            if (F::OWN_O && lane == 0 && first + 1 == last) tp_mbar_arrive(q_empty);
            if (first < low || first >= high) forward_mask<BN>(s, f.p, t, first * BN, lane % 4 * 2);
            if (f.p.segments) sm90_mask_segments<BN>(s, f.p, w.b, t, first * BN);
            forward_softmax(s, m, l, alpha, f.scale_log2);
            sm90_pack(p, s);
            for (int j = first + 1; j < last; j++) {
                int before = stage, phase_before = sm90_phase<ST>(at);
                at++;
                stage = at % ST;
                tp_mbar_wait(&k_full[stage], sm90_phase<ST>(at));
                tp_bar_sync(mine, 256);
                forward_scores<D, BN>(
                    s, q, sm90_rows_desc<D, BN>(shared + M::K + stage * M::KV_BYTES, 0));
                tp_mbar_wait(&v_full[before], phase_before);
                forward_values<D, BN>(
                    o, p, sm90_columns_desc<D, BN>(shared + M::V + before * M::KV_BYTES));
                tp_bar_arrive(next, 256);
                tp_wgmma_wait<1>();
                tp_wgmma_pin(s);
                if (lane == 0) tp_mbar_arrive(&k_empty[stage]);
                /* the next tile's queries come while this one's last softmax is taken */
                if (F::OWN_O && lane == 0 && j + 1 == last) tp_mbar_arrive(q_empty);
                if (j < low || j >= high) forward_mask<BN>(s, f.p, t, j * BN, lane % 4 * 2);
                if (f.p.segments) sm90_mask_segments<BN>(s, f.p, w.b, t, j * BN);
                forward_softmax(s, m, l, alpha, f.scale_log2);
                tp_wgmma_wait_after<0>(l[0] + l[1], bars);
                tp_wgmma_pin(o);
                tp_wgmma_pin(p);
                if (lane == 0) tp_mbar_arrive(&v_empty[before]);
#pragma unroll
                for (int x = 0; x < D / 2; x++) o[x] *= alpha[x / 2 % 2];
                sm90_pack(p, s);
            }
            tp_mbar_wait(&v_full[stage], sm90_phase<ST>(at));
            forward_values<D, BN>(o, p,
                                  sm90_columns_desc<D, BN>(shared + M::V + stage * M::KV_BYTES));
            /* what does not need o is done while that runs */
            more = forward_next<D>(f, &i, &w_next);
            forward_sums(f, w, m, l, part, t);
            if (threadIdx.x % 128 == 0) tp_bulk_wait_read<0>(); /* o's way out is free */
            tp_bar_sync(8 + group, 128);
            tp_wgmma_wait<0>();
            tp_wgmma_pin(o);
            tp_wgmma_pin(p);
            if (lane == 0) tp_mbar_arrive(&v_empty[stage]);
            used += last - first;
            tiles++;
        } else {
            more = forward_next<D>(f, &i, &w_next);
            forward_sums(f, w, m, l, part, t);
            if (!F::OWN_O) tp_mbar_wait(q_full, tiles++ & 1);
            if (threadIdx.x % 128 == 0) tp_bulk_wait_read<0>();
            tp_bar_sync(8 + group, 128);
        }
        forward_out<D>(f, w, shared + M::O, o, part, row, group);
        if (!F::OWN_O) { /* Q's place is free when O has left it */
            if (threadIdx.x % 128 == 0) tp_bulk_wait_read<0>();
            tp_bar_sync(8 + group, 128);
            if (lane == 0) tp_mbar_arrive(q_empty);
        }
    }
    if (group == 0) tp_bar_sync(mine, 256); /* takes the token away */
    if (threadIdx.x % 128 == 0) tp_bulk_wait<0>();
}
#endif

/* Grid: as many blocks as run at once. */
template <int D>
static __global__ void __launch_bounds__(128 * (forward_tile<D>::GROUPS + 1), 1)
    attention_forward_sm90(const __grid_constant__ forward_params f) {
#if TP_HOPPER
    typedef forward_tile<D> F;
    constexpr int ST = F::STAGES;
    TP_SHARED_DYNAMIC(shared);
    uint64_t *bars = (uint64_t *)(shared + forward_memory<D>::BARS);
    if (threadIdx.x == 0) {
        tp_mbar_init(bars, 1);                 /* Q is there */
        tp_mbar_init(bars + 1, 4 * F::GROUPS); /* every warp is done with Q */
        for (int i = 0; i < ST; i++) {
            tp_mbar_init(bars + 2 + i, 1); /* the same for K */
            tp_mbar_init(bars + 2 + ST + i, 4 * F::GROUPS);
            tp_mbar_init(bars + 2 + 2 * ST + i, 1); /* and V */
            tp_mbar_init(bars + 2 + 3 * ST + i, 4 * F::GROUPS);
        }
        tp_mbar_init_fence();
        tp_tma_prefetch_map(&f.q);
        tp_tma_prefetch_map(&f.k);
        tp_tma_prefetch_map(&f.v);
        tp_tma_prefetch_map(&f.o);
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        tp_registers_fewer<F::GROUPS == 3 ? 32 : 24>();
        if (threadIdx.x == 0) forward_produce<D>(f, shared, bars);
    } else {
        tp_registers_more<F::GROUPS == 3 ? 160 : 240>();
        /* the same in a warp, which the compiler cannot know: descriptors in uniform registers.
         * Head size 256 has no registers left to hold more of them. */
        int group = threadIdx.x / 128;
        if (D < 256) group = __shfl_sync(0xffffffffu, group, 0);
        forward_consume<D>(f, shared, bars, group - 1);
    }
#endif
}

/* ---- host ------------------------------------------------------------------------------------ */
template <int D> static tp_status forward_run(const tp_call *k, const attention_problem *p) {
    typedef forward_tile<D> F;
#if defined(TP_CUDA_ON_CPU)
    const int64_t l2 = 100 << 10; /* small tests walk several sections */
#else
    const int64_t l2 = 24 << 20; /* half of Hopper's: the rest is for queries and outputs */
#endif
    forward_params f;
    tp_status st;
    f.p = sm90_problem_of(p, 64 * F::GROUPS, k->workspace);
    f.lse = tp_f32(k->out[1]);
    f.scale = (float)p->scale;
    f.scale_log2 = (float)(p->scale * SM90_LOG2E);
    f.heads = (int)(p->B * p->H);
    int at_once = tp_cuda_of(k->ctx)->multiprocessors;
    f.paired = f.p.causal && (int64_t)f.heads * f.p.blocks >= 2 * at_once;
    f.units_per_head = f.paired ? (f.p.blocks + 1) / 2 : f.p.blocks;
    f.units = f.heads * f.units_per_head;
    int64_t section = p->G * (l2 / (p->S * (p->D + p->Dv) * 2));
    f.section = section < p->G ? (int)p->G : section > f.heads ? f.heads : (int)section;
    if ((st = sm90_map<D>(k, &f.q, k->in[ATTENTION_Q], 64 * F::GROUPS))) return st;
    if ((st = sm90_map<D>(k, &f.k, k->in[ATTENTION_K], F::BN))) return st;
    if ((st = sm90_map<D>(k, &f.v, k->in[ATTENTION_V], F::BN))) return st;
    if ((st = sm90_map<D>(k, &f.o, k->out[0], 64))) return st;
    if (f.p.segments) {
        sm90_problem shape = f.p;
        sm90_range *seen = (sm90_range *)k->workspace;
        st = TP_LAUNCH(k, (attention_seen_sm90<64 * F::GROUPS, F::BN>),
                       dim3((unsigned)f.p.blocks, (unsigned)p->B), 32, 0, shape, seen);
        if (st) return st;
    }
    return TP_LAUNCH(k, attention_forward_sm90<D>, f.units < at_once ? f.units : at_once,
                     128 * (F::GROUPS + 1), forward_memory<D>::BYTES, f);
}

static const char *forward_decline(const tp_call *k) {
    if (k->ctx->as_decoded) return "its bits are not those of paged_attention";
    attention_problem p =
        attention_problem_of(k, k->in[ATTENTION_SEGMENTS], k->in[ATTENTION_STARTS]);
    return sm90_decline(k, &p, 256);
}

static tp_status forward(const tp_call *k) {
    attention_problem p =
        attention_problem_of(k, k->in[ATTENTION_SEGMENTS], k->in[ATTENTION_STARTS]);
    int64_t d = p.D > p.Dv ? p.D : p.Dv;
    return d <= 64    ? forward_run<64>(k, &p)
           : d <= 96  ? forward_run<96>(k, &p)
           : d <= 128 ? forward_run<128>(k, &p)
                      : forward_run<256>(k, &p);
}

static size_t forward_workspace(const tp_call *k) {
    const tp_tensor *segments = k->in[ATTENTION_SEGMENTS]; /* (B,T) */
    if (!segments) return 0;
    return (size_t)(segments->shape[0] * ((segments->shape[1] + 63) / 64)) * sizeof(sm90_range);
}

TP_CUDA_KERNEL(attention_sm90_cuda, .decline = forward_decline, .run = forward,
               .workspace = forward_workspace);
