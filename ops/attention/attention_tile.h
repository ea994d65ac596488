/* The CPU kernels' vocabulary: 64-key tiles, packing, masks as bits, and a register-tiled product.
 * Included by the *_cpu.c files of this folder only; compiled once per instruction set.
 *
 * Every number a product makes is one chain of fused multiply-adds in the order of the summed
 * index, whatever block of rows and columns it is computed in. That is what lets a decode step and
 * a training forward agree to the last bit. */
#ifndef TP_ATTENTION_TILE_H
#define TP_ATTENTION_TILE_H
#include "core/team.h"
#include "ops/attention/attention_math.h"
#include "ops/attention/attention_problem.h"
#include "ops/simd.h"

enum { TILE = 64, TILE_VECTORS = TILE / TP_LANES };
enum { MM_ROWS = 6 }; /* the same everywhere: blocks of rows decide which zeros are added */
#if TP_ISA >= 4
enum { MM_VECTORS = 4 }; /* 24 accumulators, 4 of b, 1 of a: 29 of 32 registers */
#else
enum { MM_VECTORS = 1 }; /* AVX2: a v16 is two registers: 12 + 2 + 1 of 16 */
#endif

/* ---- products ------------------------------------------------------------------------------- */
/* c[r][x] = (zero ? 0 : c[r][x]) + sum over i in [0,n) of a[r*a_rs + i*a_is] * b[i*ldb + x]. */
typedef struct mm {
    const float *a;
    int64_t a_rs, a_is;
    const float *b;
    int64_t ldb;
    float *c;
    int64_t ldc, n;
    bool zero;
} mm;

static inline __attribute__((always_inline)) void mm_block(const int rows, const int vectors,
                                                           const mm *g) {
    v16 acc[MM_ROWS][MM_VECTORS];
    const float *a = g->a, *b = g->b;
    const int64_t a_rs = g->a_rs, a_is = g->a_is, ldb = g->ldb, ldc = g->ldc;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int x = 0; x < vectors; x++)
            acc[r][x] = g->zero ? v16_zero() : v16_load(g->c + r * ldc + TP_LANES * x);
    for (int64_t n = g->n; n > 0; n--) {
        v16 bx[MM_VECTORS];
#pragma GCC unroll 8
        for (int x = 0; x < vectors; x++) bx[x] = v16_load(b + TP_LANES * x);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            v16 ar = v16_set1(a[r * a_rs]);
#pragma GCC unroll 8
            for (int x = 0; x < vectors; x++) acc[r][x] = v16_fma(ar, bx[x], acc[r][x]);
        }
        a += a_is;
        b += ldb;
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int x = 0; x < vectors; x++) v16_store(g->c + r * ldc + TP_LANES * x, acc[r][x]);
}

#define MM_(r, x)                                                                                  \
    static __attribute__((noinline)) void mm_##r##x(const mm *g) { mm_block(r, x, g); }
#if TP_ISA >= 4
#define MM_ROW_(r) MM_(r, 1) MM_(r, 2) MM_(r, 3) MM_(r, 4)
#define MM_NAMES_(r)                                                                               \
    { mm_##r##1, mm_##r##2, mm_##r##3, mm_##r##4 }
#else
#define MM_ROW_(r) MM_(r, 1)
#define MM_NAMES_(r)                                                                               \
    { mm_##r##1 }
#endif
typedef void (*mm_fn)(const mm *);
MM_ROW_(1)
MM_ROW_(2)
MM_ROW_(3)
MM_ROW_(4)
MM_ROW_(5)
MM_ROW_(6)
static const mm_fn mm_fns[MM_ROWS][MM_VECTORS] = {MM_NAMES_(1), MM_NAMES_(2), MM_NAMES_(3),
                                                  MM_NAMES_(4), MM_NAMES_(5), MM_NAMES_(6)};

/* At most MM_ROWS rows, any number of vectors of columns. */
static void mm_rows(int rows, int64_t vectors, const mm *whole) {
    mm g = *whole;
    for (int64_t x = 0; x < vectors; x += MM_VECTORS) {
        int64_t left = vectors - x;
        mm_fns[rows - 1][(left < MM_VECTORS ? left : MM_VECTORS) - 1](&g);
        g.b += TP_LANES * MM_VECTORS;
        g.c += TP_LANES * MM_VECTORS;
    }
}

/* ---- packing -------------------------------------------------------------------------------- */
static inline int64_t padded(int64_t n) { return (n + TP_LANES - 1) / TP_LANES * TP_LANES; }

/* Rows of a tensor (B,time,heads,width): width values at `x`, elements `step` apart. With pages,
 * row j lies in page pages[j / page] of a pool, whose pages are `far` elements apart. */
typedef struct head_rows {
    const float *x;
    int64_t time, step, width;
    const int32_t *pages; /* NULL: all rows `time` apart */
    int64_t page, far;
} head_rows;

static inline head_rows rows_of(const tp_tensor *t, int64_t b, int64_t h) {
    const float *x = t->data ? tp_f32(t) + b * t->stride[0] + h * t->stride[2] : NULL;
    return (head_rows){x, t->stride[1], t->stride[3], t->shape[3], NULL, 0, 0};
}

/* Row j; the rows up to the next multiple of 16 follow it, `time` apart. */
static inline const float *row_at(const head_rows *r, int64_t j) {
    if (!r->pages) return r->x + j * r->time;
    return r->x + r->pages[j / r->page] * r->far + j % r->page * r->time;
}

/* dst[0..padded(width)) = scale * row, zeros behind. */
static void pack_row(float *dst, const float *x, int64_t step, int64_t width, float scale) {
    int64_t d = 0;
    if (step == 1) {
        v16 s = v16_set1(scale);
        for (; d + TP_LANES <= width; d += TP_LANES)
            v16_store(dst + d, v16_mul(v16_load(x + d), s));
    }
    for (; d < width; d++) dst[d] = x[d * step] * scale;
    for (; d < padded(width); d++) dst[d] = 0;
}

/* Rows lie far apart (a head is a slice of a row of 3C), which hardware prefetchers do not foresee.
 */
enum { ROWS_AHEAD = 6 };
static inline void fetch_row(const float *x, int64_t width) {
    for (int64_t d = 0; d < width; d += TP_LANES) __builtin_prefetch(x + d);
}

/* dst (n, padded(width)) = scale * rows [first, first+n). */
static void pack_tile(float *dst, const head_rows *rows, int64_t first, int64_t n, float scale) {
    int64_t ld = padded(rows->width);
    for (int64_t j = 0; j < n; j++) {
        if (j + ROWS_AHEAD < n) fetch_row(row_at(rows, first + j + ROWS_AHEAD), rows->width);
        pack_row(dst + j * ld, row_at(rows, first + j), rows->step, rows->width, scale);
    }
}

/* dst (width, TILE) = the transpose of rows [first, first+n); the columns beyond n, up to the next
 * sixteen, are zero. */
static void pack_tile_transposed(float *dst, const head_rows *rows, int64_t first, int64_t n) {
    if (rows->time == 1 && rows->step != 1) { /* it lies transposed */
        for (int64_t j = 0; j < n; j += TP_LANES) {
            int keys = n - j < TP_LANES ? (int)(n - j) : TP_LANES;
            const float *x = row_at(rows, first + j);
            for (int64_t d = 0; d < rows->width; d++, x += rows->step)
                v16_store(dst + d * TILE + j, keys == TP_LANES ? v16_load(x) : v16_load_n(x, keys));
        }
        return;
    }
    if (rows->step != 1) {
        for (int64_t d = 0; d < rows->width; d++)
            for (int64_t j = 0; j < padded(n); j++)
                dst[d * TILE + j] = j < n ? row_at(rows, first + j)[d * rows->step] : 0;
        return;
    }
    for (int64_t j = 0; j < n; j += TP_LANES) {
        const float *x = row_at(rows, first + j);
        for (int64_t d = 0; d < rows->width; d += TP_LANES) {
            int cols = rows->width - d < TP_LANES ? (int)(rows->width - d) : TP_LANES;
            v16 r[TP_LANES];
            for (int i = 0; i < TP_LANES; i++) {
                const float *at = j + i < n ? x + i * rows->time + d : NULL;
                r[i] = j + i >= n         ? v16_zero()
                       : cols == TP_LANES ? v16_load(at)
                                          : v16_load_n(at, cols);
            }
            v16_transpose(r);
            for (int i = 0; i < cols; i++) v16_store(dst + (d + i) * TILE + j, r[i]);
        }
    }
}

/* ---- masks: bit j of a uint64_t is key j of the tile ---------------------------------------- */
static inline m16 m16_of_bits(uint64_t bits) {
#if TP_ISA >= 4
    return (m16)bits;
#elif TP_ISA == 3
    const __m256i lo = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i hi = _mm256_slli_epi32(lo, 8), all = _mm256_set1_epi32((int)(bits & 0xffff));
    return (m16){_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, lo), lo)),
                 _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, hi), hi))};
#else
    m16 m;
    for (int i = 0; i < TP_LANES; i++) m.b[i] = (bits >> i) & 1;
    return m;
#endif
}

/* The sum of sixteen lanes in the order of v16_sum (i and i+8, then i+4, i+2, i+1), and their
 * largest: without the way through memory, which a row of 64 scores would wait for twice. */
#if TP_ISA >= 3
static inline __m256 lower_half(v16 a) {
#if TP_ISA >= 4
    return _mm512_castps512_ps256(a);
#else
    return a.lo;
#endif
}
static inline __m256 upper_half(v16 a) {
#if TP_ISA >= 4
    return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1));
#else
    return a.hi;
#endif
}
static inline float lanes_sum(v16 a) {
    __m256 y = _mm256_add_ps(lower_half(a), upper_half(a));
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
static inline float lanes_max(v16 a) {
    __m256 y = _mm256_max_ps(lower_half(a), upper_half(a));
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
#else
static inline float lanes_sum(v16 a) { return v16_sum(a); }
static inline float lanes_max(v16 a) { return v16_hmax(a); }
#endif

/* Bit j: seg[j] == mine. */
static inline uint64_t equal_bits(const int32_t seg[TILE], int32_t mine) {
    uint64_t bits = 0;
#if TP_ISA >= 4
    for (int j = 0; j < TILE; j += 16)
        bits |=
            (uint64_t)_mm512_cmpeq_epi32_mask(_mm512_loadu_si512(seg + j), _mm512_set1_epi32(mine))
            << j;
#else
    for (int j = 0; j < TILE; j++) bits |= (uint64_t)(seg[j] == mine) << j;
#endif
    return bits;
}

/* Bits [lo, hi), cut to 0..64. */
static inline uint64_t range_bits(int64_t lo, int64_t hi) {
    if (lo < 0) lo = 0;
    if (hi > TILE) hi = TILE;
    return lo >= hi ? 0 : (~UINT64_C(0) << lo) & (~UINT64_C(0) >> (TILE - hi));
}

static void tile_segments(int32_t seg[TILE], const attention_problem *p, int64_t b, int64_t tile) {
    for (int64_t j = 0; p->segments && j < TILE; j++)
        seg[j] = tile * TILE + j < p->S ? attention_segment(p, b, tile * TILE + j) : 0;
}

/* The keys of this tile that query t sees. */
static inline uint64_t visible_bits(const attention_problem *p, int64_t b, int64_t t, int64_t tile,
                                    const int32_t seg[TILE]) {
    int64_t lo, hi;
    attention_range(p, attention_position(p, b, t), &lo, &hi);
    uint64_t bits = range_bits(lo - tile * TILE, hi - tile * TILE);
    if (p->sinks) {
        int64_t to = p->sinks < hi ? p->sinks : hi;
        bits |= range_bits(0, to - tile * TILE);
    }
    return bits && p->segments ? bits & equal_bits(seg, attention_segment(p, b, t)) : bits;
}

/* Queries t0..t1 see keys before *end only, and (sinks aside) none before tile *first. */
static inline void visible_tiles(const attention_problem *p, int64_t b, int64_t t0, int64_t t1,
                                 int64_t *first, int64_t *end) {
    int64_t lo, ignored;
    attention_range(p, attention_position(p, b, t0), &lo, &ignored);
    attention_range(p, attention_position(p, b, t1), &ignored, end);
    *first = lo / TILE;
    if (*end < 0) *end = 0;
}

static inline int lowest_bit(uint64_t bits) { return __builtin_ctzll(bits); }
static inline int after_highest_bit(uint64_t bits) { return 64 - __builtin_clzll(bits); }
#endif
