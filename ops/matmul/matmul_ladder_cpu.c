/* The way from three loops to matmul_cpu, a kernel for each step, for docs/lessons/06-kernels.md.
 * They run only where they are asked for (tp_ctx.only_kernel), and are tested like all others.
 *
 * Each takes dense a (…,M,K) and a shared b (K,N), and each makes an element of y as one chain of
 * fused multiply-adds in the order of k, so all of them have the bits of matmul_cpu. */
#include "core/ctx.h"
#include "ops/matmul/matmul_call.h"
#include "ops/simd.h"

typedef struct product { /* y (m,n) = a (m,k) b (k,n) */
    int64_t m, n, k;
    const float *a, *b;
    float *y;
} product;

static product product_of(const tp_call *k) {
    const tp_tensor *a = k->in[0], *y = k->out[0];
    return (product){.m = tp_batch(y) * tp_dim(y, -2),
                     .n = tp_dim(y, -1),
                     .k = tp_dim(a, -1),
                     .a = tp_f32(a),
                     .b = tp_f32(k->in[1]),
                     .y = tp_f32(y)};
}

static const char *ladder_decline(const tp_call *k) {
    const tp_matmul_attr *attr = k->attr;
    if (!k->ctx->only_kernel) return "a step of a lesson, for those who ask for it";
    if (attr->trans_a || attr->trans_b) return "transposes are matmul_cpu's";
    if (k->in[2] || k->in[1]->ndim > 2) return "a bias and a batched b are matmul_cpu's";
    return tp_decline_unless_f32_dense(k);
}

/* lesson: naive */
/* Rows [i0,i1), columns [j0,n): element by element. */
static void elements(const product *p, int64_t i0, int64_t i1, int64_t j0) {
    for (int64_t i = i0; i < i1; i++)
        for (int64_t j = j0; j < p->n; j++) {
            float y = 0;
            for (int64_t k = 0; k < p->k; k++) y = fmaf(p->a[i * p->k + k], p->b[k * p->n + j], y);
            p->y[i * p->n + j] = y;
        }
}

static tp_status naive_run(const tp_call *call) {
    product p = product_of(call);
    elements(&p, 0, p.m, 0);
    return TP_OK;
}
/* end */
TP_CPU_KERNEL(matmul_naive_cpu, .decline = ladder_decline, .run = naive_run);

/* lesson: rows */
/* y[i][j0..j1) += a[i][k0..k1) b[k0..k1)[j0..j1), for every row i. */
static void add_rows(const product *p, int64_t k0, int64_t k1, int64_t j0, int64_t j1) {
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t k = k0; k < k1; k++) {
            const float a = p->a[i * p->k + k], *restrict b = p->b + k * p->n;
            float *restrict y = p->y + i * p->n;
            for (int64_t j = j0; j < j1; j++) y[j] = fmaf(a, b[j], y[j]);
        }
}

static product zeroed(const tp_call *call) {
    product p = product_of(call);
    for (int64_t i = 0; i < p.m * p.n; i++) p.y[i] = 0;
    return p;
}

static tp_status rows_run(const tp_call *call) {
    product p = zeroed(call);
    add_rows(&p, 0, p.k, 0, p.n);
    return TP_OK;
}
/* end */
TP_CPU_KERNEL(matmul_rows_cpu, .decline = ladder_decline, .run = rows_run);

/* lesson: blocks */
enum { BLOCK_K = 32, BLOCK_N = 256 }; /* of b: 32 KB, which the nearest cache holds */

static tp_status blocks_run(const tp_call *call) {
    product p = zeroed(call);
    for (int64_t j = 0; j < p.n; j += BLOCK_N)
        for (int64_t k = 0; k < p.k; k += BLOCK_K)
            add_rows(&p, k, k + BLOCK_K < p.k ? k + BLOCK_K : p.k, j,
                     j + BLOCK_N < p.n ? j + BLOCK_N : p.n);
    return TP_OK;
}
/* end */
TP_CPU_KERNEL(matmul_blocks_cpu, .decline = ladder_decline, .run = blocks_run);

/* lesson: tile */
#if TP_ISA >= 4
enum { ROWS = 6, VECTORS = 4 }; /* 24 sums, 4 of b and 1 of a: 29 of 32 registers */
#else
enum { ROWS = 6, VECTORS = 1 }; /* a v16 is two registers here: 12 + 2 + 1 of 16 */
#endif

/* ROWS x VECTORS sums stay in registers while k runs; each is written once. */
static void tile(const product *p, int64_t i, int64_t j) {
    v16 y[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) y[r][v] = v16_zero();
    for (int64_t k = 0; k < p->k; k++) {
        v16 b[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) b[v] = v16_load(p->b + k * p->n + j + TP_LANES * v);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            v16 a = v16_set1(p->a[(i + r) * p->k + k]);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) y[r][v] = v16_fma(a, b[v], y[r][v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++)
            v16_store(p->y + (i + r) * p->n + j + TP_LANES * v, y[r][v]);
}
/* end */

static tp_status tile_run(const tp_call *call) {
    product p = product_of(call);
    int64_t rows = p.m / ROWS * ROWS, wide = TP_LANES * VECTORS, cols = p.n / wide * wide;
    for (int64_t j = 0; j < cols; j += wide)
        for (int64_t i = 0; i < rows; i += ROWS) tile(&p, i, j);
    elements(&p, 0, rows, cols); /* what no whole tile covers */
    elements(&p, rows, p.m, 0);
    return TP_OK;
}
TP_CPU_KERNEL(matmul_tile_cpu, .decline = ladder_decline, .run = tile_run);
