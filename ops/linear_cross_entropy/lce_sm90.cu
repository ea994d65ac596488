/* What lce_sm90.h promises: two ends of a product, and the kernel that joins a row's tiles. */
#include "ops/linear_cross_entropy/lce_sm90.h"
#include "ops/matmul/gemm_sm90.h"

/* The element of this thread's row r at `column` of the tile, 0 if it is another's. */
template <int N>
static __device__ __forceinline__ float element_of(const float (&d)[N], int r, int column) {
    const int mine = column - threadIdx.x % 4 * 2;
    float x = 0.0f;
#pragma unroll
    for (int j = 0; j < N / 4; j++)
#pragma unroll
        for (int e = 0; e < 2; e++)
            if (mine == 8 * j + e) x = d[4 * j + 2 * r + e];
    return x;
}

/* ---- a tile's sums, and the logits where they are wanted ------------------------------------- */
typedef struct sums_end {
    float *logits; /* NULL: not wanted */
    int64_t ld;
    float4 *sums; /* (rows, tiles): m, sum, es; the target's logit in one of a row's, else 0 */
    const int32_t *target;
    int rows, v, tiles;

    /* Raw; rows are whole multiples of four floats. */
    template <int N>
    __device__ __forceinline__ void store(const float (&d)[N], int row, int col) const {
        const int first = col + gemm90_four_column(0);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float *to = logits + (int64_t)(row + 8 * r) * ld + first;
            const int left = row + 8 * r < rows ? v - first : 0;
#pragma unroll
            for (int j = 0; j < N / 4; j += 2) {
                const gemm90_four x = gemm90_four_of(d, j, r);
                if (8 * j < left)
                    tp_stg((float4 *)(to + 8 * j), make_float4(x.v[0], x.v[1], x.v[2], x.v[3]));
            }
        }
    }

    template <int N>
    __device__ __forceinline__ void operator()(float (&d)[N], int, int row, int col) const {
        if (logits) store(d, row, col);
        const int left = v - col - threadIdx.x % 4 * 2; /* of this thread's columns */
        if (left < 2 * N)
#pragma unroll
            for (int i = 0; i < N; i++)
                if (i / 4 * 8 + i % 2 >= left) d[i] = LCE_LOWEST;
        int y[2]; /* the target, counted from the tile's first column; -1: none here */
        lce_row a[2];
#pragma unroll
        for (int r = 0; r < 2; r++) { /* both rows at a time, as they wait for other things */
            y[r] = row + 8 * r < rows ? tp_ldg(target + row + 8 * r) - col : -1;
            a[r] = lce_row{LCE_LOWEST, 0.0f, 0.0f, 0.0f};
        }
#pragma unroll
        for (int i = 0; i < N; i++) a[i / 2 % 2].m = fmaxf(a[i / 2 % 2].m, d[i]);
#pragma unroll
        for (int i = 0; i < N; i++) {
            lce_row *mine = a + i / 2 % 2;
            const float x = d[i] - mine->m, w = lce_exp(x);
            mine->sum += w;
            mine->es = fmaf(w, x, mine->es);
        }
#pragma unroll
        for (int r = 0; r < 2; r++)
            if (y[r] >= 0 && y[r] < 2 * N) a[r].target = element_of(d, r, y[r]);
#pragma unroll
        for (int bit = 1; bit < 4; bit *= 2)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float m = __shfl_xor_sync(0xffffffffu, a[r].m, bit);
                const float sum = __shfl_xor_sync(0xffffffffu, a[r].sum, bit);
                const float es = __shfl_xor_sync(0xffffffffu, a[r].es, bit);
                a[r].target += __shfl_xor_sync(0xffffffffu, a[r].target, bit);
                lce_merge(a + r, m, sum, es);
            }
#pragma unroll
        for (int r = 0; r < 2; r++)
            if (row + 8 * r < rows && threadIdx.x % 4 == 0)
                tp_stg(sums + (int64_t)(row + 8 * r) * tiles + col / (2 * N),
                       make_float4(a[r].m, a[r].sum, a[r].es, a[r].target));
    }
} sums_end;

/* ---- the logits' gradient -------------------------------------------------------------------- */
typedef struct grad_end {
    tp_bf16 *to;
    int64_t ld;
    const float4 *coef;
    const int32_t *target;
    int rows, v, v0; /* v: entries from v0 on */
    static constexpr int IGNORED = INT32_MIN;

    template <bool GENERAL>
    static __device__ __forceinline__ float gradient(float s, float4 k, bool is_target) {
        const float g = lce_grad_plain(s, k);
        return GENERAL && is_target ? g + k.w : g;
    }
    /* Row r from p on, of which `left` entries are left; the target is entry `at` of this thread's
     * columns, or IGNORED. Four entries at a time, as registers are full of logits. Not GENERAL:
     * the row counts, and its target is elsewhere. */
    template <bool GENERAL, int N>
    __device__ __forceinline__ void write_row(const float (&d)[N], int r, float4 k, int at,
                                              tp_bf16 *p, int left) const {
#pragma unroll
        for (int j = 0; j < N / 4; j += 2) {
            uint32_t pair[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float *x = d + 4 * (j + h) + 2 * r;
                const int column = 8 * (j + h);
                pair[h] = tp_pack_bf16(gradient<GENERAL>(x[0], k, at == column),
                                       gradient<GENERAL>(x[1], k, at == column + 1));
            }
            uint2 four = gemm90_four_bf16(pair[0], pair[1]);
            if (GENERAL && at == IGNORED) four = make_uint2(0, 0); /* whatever it is */
            if (8 * j < left)
                tp_stg((uint2 *)(p + 8 * j), four); /* rows have room for whole ones */
        }
    }

    template <int N>
    __device__ __forceinline__ void operator()(const float (&d)[N], int, int row, int col) const {
        const int first = col + gemm90_four_column(0);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int i = row + 8 * r, left = i < rows ? v - first : 0;
            const int y = i < rows ? tp_ldg(target + i) : -1;
            const int lane_column = (int)threadIdx.x % 4 * 2;
            const int at = y < 0 ? IGNORED : y - v0 - col - lane_column;
            const float4 k = y < 0 ? make_float4(0, 0, 0, 0) : tp_ldg(coef + i);
            tp_bf16 *p = to + i * ld + first;
            /* most warps have no target in their eight rows of a tile, and count all of them */
            if (__any_sync(0xffffffffu, at == IGNORED || (at >= 0 && at < 2 * N)))
                write_row<true>(d, r, k, at, p, left);
            else
                write_row<false>(d, r, k, at, p, left);
        }
    }
} grad_end;

/* ---- joining a row's tiles ------------------------------------------------------------------- */
enum { JOIN_ROWS = 8 }; /* of a block: one for each warp */

template <lce_job JOB>
__global__ void __launch_bounds__(32 * JOIN_ROWS)
    lce_join(const lce_rows_args a, const float4 *sums, int tiles, int64_t rows) {
    const int lane = threadIdx.x % 32;
    const int64_t row = (int64_t)blockIdx.x * JOIN_ROWS + threadIdx.x / 32;
    if (row >= rows) return;
    const int target = tp_ldg(a.target + row);
    lce_row r = {LCE_LOWEST, 0.0f, 0.0f, 0.0f};
    if (target >= 0) {
        for (int t = lane; t < tiles; t += 32) {
            const float4 s = tp_ldg(sums + row * tiles + t);
            lce_merge(&r, s.x, s.y, s.z);
            r.target += s.w; /* zeros but for one */
        }
        r.target = tp_warp_sum(r.target);
        lce_warp_merge(&r);
    }
    const float weight = JOB == LCE_JOB_TRAIN ? tp_ldg(&a.coef[row].x) : 0.0f;
    __syncwarp();
    lce_finish<JOB>(a, row, r, target >= 0, weight, lane == 0);
}

/* ---- host ------------------------------------------------------------------------------------ */
static tp_tile_side side(const tp_tensor *t, int64_t first, int64_t count, int64_t c) {
    return tp_tile_side{(const tp_bf16 *)t->data + first * c, count, c, 1, 0, true};
}

/* As many rows at once as take least time. */
template <class END>
static tp_status run(const tp_call *k, const tp_tile_side *x, const tp_tile_side *w, int64_t c,
                     const END &end) {
    const int64_t wide = gemm90_clocks<2, LCE90_COLS>(k, x->count, w->count, 1);
    return wide <= gemm90_clocks<1, LCE90_COLS>(k, x->count, w->count, 1)
               ? gemm90_run<END, 2, LCE90_COLS, true, true>(k, x, w, c, 1, end)
               : gemm90_run<END, 1, LCE90_COLS, true, true>(k, x, w, c, 1, end);
}

tp_status lce90_logits(const tp_call *k, const lce_plan *p, int64_t row0, int64_t rows, float *to,
                       int64_t ld) {
    const tp_tile_side x = side(k->in[LCE_X], row0, rows, p->d.c);
    const tp_tile_side w = side(k->in[LCE_W], 0, p->d.v, p->d.c);
    sums_end end = {};
    end.logits = to;
    end.ld = ld;
    end.sums = (float4 *)p->sums90;
    end.target = p->target + row0;
    end.rows = (int)rows;
    end.v = (int)p->d.v;
    end.tiles = (int)lce_tiles90(p->d.v);
    return run(k, &x, &w, p->d.c, end);
}

tp_status lce90_grad(const tp_call *k, const lce_plan *p, int64_t row0, int64_t rows, int64_t v0,
                     int64_t nv, void *to, int64_t ld) {
    const tp_tile_side x = side(k->in[LCE_X], row0, rows, p->d.c);
    const tp_tile_side w = side(k->in[LCE_W], v0, nv, p->d.c);
    grad_end end = {};
    end.to = (tp_bf16 *)to;
    end.ld = 2 * ld;
    end.coef = (const float4 *)p->coef + row0;
    end.target = p->target + row0;
    end.rows = (int)rows;
    end.v = (int)nv;
    end.v0 = (int)v0;
    return run(k, &x, &w, p->d.c, end);
}

tp_status lce90_join(const tp_call *k, const lce_plan *p, lce_job job, int64_t rows,
                     const lce_rows_args &a) {
    const int tiles = (int)lce_tiles90(p->d.v);
    const float4 *sums = (const float4 *)p->sums90;
    if (job == LCE_JOB_TRAIN)
        return TP_LAUNCH(k, lce_join<LCE_JOB_TRAIN>, tp_blocks(rows, JOIN_ROWS), 32 * JOIN_ROWS, 0,
                         a, sums, tiles, rows);
    return TP_LAUNCH(k, lce_join<LCE_JOB_STATS>, tp_blocks(rows, JOIN_ROWS), 32 * JOIN_ROWS, 0, a,
                     sums, tiles, rows);
}
