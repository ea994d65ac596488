/* What the Hopper kernels of attention share: the problem as the device sees it, which tiles of
 * keys a block of queries sees, masks, tensor maps, and the reasons to decline. */
#ifndef TP_ATTENTION_SM90_H
#define TP_ATTENTION_SM90_H
#include "ops/attention/attention_problem.h"
#include "ops/cuda_hopper_tile.h"

typedef struct sm90_range {
    int first, last; /* [first, last) */
} sm90_range;

/* attention_problem in 32 bits. */
typedef struct sm90_problem {
    int B, T, S, H, G;
    int q_offset, window, causal;
    const int32_t *segments; /* (B,T) or NULL */
    int64_t segment_stride[2];
    const sm90_range *seen; /* with segments: (B,blocks), made by attention_seen_sm90 */
    int blocks;             /* of queries in one sequence */
} sm90_problem;

/* The keys [lo, hi) that position alone shows query t: attention_range, on the device. */
static inline TP_HD int sm90_lo(const sm90_problem *p, int t) {
    int lo = t + p->q_offset - p->window + 1;
    return lo > 0 ? lo : 0;
}
static inline TP_HD int sm90_hi(const sm90_problem *p, int t) {
    int hi = t + p->q_offset + 1;
    return p->causal && hi < p->S ? hi : p->S;
}

/* The tiles of `keys` keys of which position shows some to the queries t0 .. t0+rows-1. Tiles are
 * counted from key 0, so what a row adds up, and in which order, depends on its position only. */
static inline TP_HD sm90_range sm90_key_tiles(const sm90_problem *p, int t0, int rows, int keys) {
    int t1 = (t0 + rows < p->T ? t0 + rows : p->T) - 1;
    int lo = sm90_lo(p, t0), hi = sm90_hi(p, t1);
    sm90_range r = {0, 0};
    if (lo >= hi) return r; /* also hi <= 0 */
    r.first = lo / keys;
    r.last = (hi + keys - 1) / keys;
    return r;
}
/* The blocks of `rows` queries of which some see keys of tile n: the inverse of the above. */
static inline TP_HD sm90_range sm90_query_blocks(const sm90_problem *p, int n, int rows, int keys) {
    int j0 = n * keys, j1 = (j0 + keys < p->S ? j0 + keys : p->S) - 1;
    int t0 = p->causal ? j0 - p->q_offset : 0, t1 = j1 + p->window - 1 - p->q_offset;
    sm90_range r = {0, 0};
    if (t0 < 0) t0 = 0;
    if (t1 > p->T - 1) t1 = p->T - 1;
    if (t0 > t1) return r;
    r.first = t0 / rows;
    r.last = t1 / rows + 1;
    return r;
}

/* With segments: of those, the tiles from the first to the last with a key whose segment lies
 * between the least and the greatest of the block's queries. (Documents in a row are numbered
 * upwards: then it is their tiles exactly.) What is left out has no weight in any row. */
static __device__ __forceinline__ sm90_range sm90_tiles(const sm90_problem *p, int b, int m,
                                                        int rows, int keys) {
    sm90_range r = sm90_key_tiles(p, m * rows, rows, keys);
    if (p->segments) {
        sm90_range seen = p->seen[(int64_t)b * p->blocks + m];
        if (r.first < seen.first) r.first = seen.first;
        if (r.last > seen.last) r.last = seen.last;
        if (r.first >= r.last) r.first = r.last = 0;
    }
    return r;
}

/* Grid (blocks, B), 32 threads. */
template <int ROWS, int KEYS>
static __global__ void attention_seen_sm90(sm90_problem p, sm90_range *seen) {
    int m = blockIdx.x, b = blockIdx.y, lane = threadIdx.x;
    const int32_t *segment = p.segments + b * p.segment_stride[0];
    int32_t least = INT32_MAX, greatest = INT32_MIN;
    for (int t = m * ROWS + lane; t < (m + 1) * ROWS && t < p.T; t += 32) {
        int32_t s = segment[t * p.segment_stride[1]];
        least = s < least ? s : least;
        greatest = s > greatest ? s : greatest;
    }
    for (int i = 16; i; i >>= 1) {
        int32_t x = __shfl_xor_sync(0xffffffffu, least, i);
        int32_t y = __shfl_xor_sync(0xffffffffu, greatest, i);
        least = x < least ? x : least;
        greatest = y > greatest ? y : greatest;
    }
    sm90_range r = {0, 0};
    for (int n = 0; n * KEYS < p.S; n++) {
        int any = 0;
        for (int j = n * KEYS + lane; j < (n + 1) * KEYS && j < p.S; j += 32) {
            int32_t s = segment[j * p.segment_stride[1]];
            any |= s >= least && s <= greatest;
        }
        if (!__any_sync(0xffffffffu, any)) continue;
        if (!r.last) r.first = n;
        r.last = n + 1;
    }
    if (lane == 0) seen[(int64_t)b * p.blocks + m] = r;
}

#if TP_HOPPER
/* Loads rows row.. of head h, sequence b into a tile of R rows; map's box is (R, COLS). */
template <int D, int R>
static __device__ __forceinline__ void sm90_load(unsigned char *tile, const tp_tma_map *map,
                                                 uint64_t *bar, int row, int h, int b) {
    typedef sm90_layout<D> L;
    for (int i = 0; i < L::BOXES; i++)
        tp_tma_load_4d(tile + i * R * L::ROW, map, bar, i * L::COLS, row, h, b);
}

/* Of the columns 8*i and 8*i + 1, i < N/8, those below x: bits 2*i and 2*i + 1. */
template <int N> static __device__ __forceinline__ uint32_t sm90_columns_below(int x) {
    static_assert(N <= 128, "no more than 32 bits");
    x = x < 0 ? 0 : x > N ? N : x;
    int n = x / 8 * 2 + (x % 8 < 2 ? x % 8 : 2);
    return n < 32 ? (1u << n) - 1 : ~0u;
}
/* s = -inf in the thread's row r (0, 1) where the column's bit is not set: one select each, as the
 * bits become predicates by the dozen. */
template <int N>
static __device__ __forceinline__ void sm90_mask_row(float (&s)[N], int r, uint32_t columns) {
#pragma unroll
    for (int i = 0; i < N / 4; i++)
#pragma unroll
        for (int e = 0; e < 2; e++)
            if (!(columns >> (2 * i + e) & 1)) s[4 * i + 2 * r + e] = -HUGE_VALF;
}

/* s = -inf where a row's segment is not the column's. This thread's rows stand at positions `row`
 * and row + 8, its columns at column0 + 8*i + 2*(lane%4) and the next. Segments come with S == T,
 * so it does not matter which are queries. */
template <int COLUMNS>
static __device__ __forceinline__ void
sm90_mask_segments(float (&s)[COLUMNS / 2], const sm90_problem &p, int b, int row, int column0) {
    const int lane = threadIdx.x % 32, end = p.T - 1; /* what lies beyond has no weight anyway */
    const int64_t step = p.segment_stride[1];
    const int32_t *seg = p.segments + b * p.segment_stride[0];
    int32_t mine[2] = {seg[min(row, end) * step], seg[min(row + 8, end) * step]};
    /* mostly the warp's rows and the whole tile lie in one document */
    int32_t first = __shfl_sync(0xffffffffu, mine[0], 0);
    bool one = mine[0] == first && mine[1] == first;
    for (int j = lane; j < COLUMNS; j += 32)
        one = one && seg[min(column0 + j, end) * step] == first;
    if (__all_sync(0xffffffffu, one)) return;
#pragma unroll
    for (int i = 0; i < COLUMNS / 8; i++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int32_t its = seg[min(column0 + 8 * i + lane % 4 * 2 + e, end) * step];
            if (its != mine[0]) s[4 * i + e] = -HUGE_VALF;
            if (its != mine[1]) s[4 * i + 2 + e] = -HUGE_VALF;
        }
}
#endif

/* ---- host ------------------------------------------------------------------------------------ */
/* log2(e): softmax is computed as a power of two, which is what the hardware has. */
#define SM90_LOG2E 1.4426950408889634

static inline const char *sm90_decline_tensor(const tp_tensor *t, int64_t dmax) {
    if (!t) return NULL;
    if (t->dtype != TP_BF16) return "not bf16";
    if (!tp_numel(t)) return "empty";
    if (t->shape[3] > dmax) return dmax == 128 ? "head size over 128" : "head size over 256";
    if (t->shape[3] % 8) return "head size not a multiple of 8";
    if (t->shape[3] > 1 && t->stride[3] != 1) return "innermost stride is not 1";
    if (!tp_aligned(t->data, 16)) return "not 16-byte aligned";
    for (int i = 0; i < 3; i++)
        if (t->shape[i] > 1 && (t->stride[i] <= 0 || t->stride[i] % 8))
            return "rows not 16-byte aligned";
    return NULL;
}

/* What both directions decline. */
static inline const char *sm90_decline(const tp_call *k, const attention_problem *p, int64_t dmax) {
    const int64_t far = INT64_C(1) << 28;
    const char *no = tp_cuda_sm(k->ctx) == 90 ? NULL : "needs Hopper (sm_90a)";
    for (int i = 0; i < 3 && !no; i++) no = sm90_decline_tensor(k->in[i], dmax);
    if (no) return no;
    if (p->starts) return "a start for each sequence";
    if (p->softcap > 0) return "softcap";
    if (!(p->scale > 0)) return "scale is not positive";
    if (p->T > far || p->S > far || p->q_offset > far || p->q_offset < -far) return "too long";
    const int64_t most = p->T > p->S ? p->T : p->S, tiles = (most + 63) / 64;
    if (p->B > 65535 || p->B * p->H > (1 << 30) / tiles) return "too many heads"; /* for an int */
    return NULL;
}

/* rows: in a block of queries; seen: room for what the struct says, used if there are segments. */
static inline sm90_problem sm90_problem_of(const attention_problem *p, int rows, void *seen) {
    sm90_problem d = {(int)p->B, (int)p->T, (int)p->S, (int)p->H, (int)p->G};
    d.blocks = (int)((p->T + rows - 1) / rows);
    d.q_offset = (int)p->q_offset;
    d.window = (int)(p->window < 1 << 30 ? p->window : 1 << 30);
    d.causal = p->causal;
    if (p->segments) {
        d.segments = tp_i32(p->segments);
        d.seen = (const sm90_range *)seen;
        d.segment_stride[0] = p->segments->stride[0];
        d.segment_stride[1] = p->segments->stride[1];
    }
    return d;
}

/* The map of t (B,time,heads,D) whose box is `rows` times of one head by the tile's COLS. */
template <int D>
static inline tp_status sm90_map(const tp_call *k, tp_tma_map *out, const tp_tensor *t, int rows) {
    typedef sm90_layout<D> L;
    int64_t dense = t->shape[3]; /* a stride that no index uses must be valid all the same */
    tp_tma_shape s = {t->data, {t->shape[3], t->shape[1], t->shape[2], t->shape[0]}};
    static const int axis[4] = {3, 1, 2, 0};
    s.stride[0] = 1;
    for (int i = 1; i < 4; i++) s.stride[i] = t->shape[axis[i]] > 1 ? t->stride[axis[i]] : dense;
    s.box[0] = L::COLS;
    s.box[1] = rows;
    s.box[2] = s.box[3] = 1;
    s.swizzle = L::SWIZZLE;
    const char *no = tp_tma_map_bf16(out, &s);
    return no ? tp_fail(k->ctx, TP_EARG, "%s: %s", k->op->name, no) : TP_OK;
}
#endif
