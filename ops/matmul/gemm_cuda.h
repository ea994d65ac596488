/* Matrix products on CUDA, as other kernels call them. A product is one kernel chosen by (n, k),
 * layouts and dtypes, never by m, and never split along k: a row of the result has the same bits
 * whatever other rows it is computed with.
 *
 * Two things can run a product, by the ctx's choice (tp_gemm_choice): cuBLASLt (gemm_cublaslt.cu)
 * with an algorithm that is chosen once and kept, and our own tiled kernels. gemm_tile.cu and
 * gemm_mma.cu take every view and size, gemm_sm90.cu what Hopper's units do. They are what the CPU
 * runs in tests. */
#ifndef TP_GEMM_CUDA_H
#define TP_GEMM_CUDA_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Gradients of weights are summed over leaves of so many samples (dimension 0) at a time, and the
 * leaves in the binary tree of gemm.h: parts of a batch that are powers of two of at least a leaf
 * are subtrees of it. */
enum { TP_CUDA_LEAF = 8 };

/* Rows of logits are a multiple of so many floats apart, whoever computes them: cuBLASLt chooses by
 * how well rows are aligned, and decoding would have other bits. */
enum { TP_CUDA_LOGITS_PITCH = 8 };

/* Element (i,j) of matrix b stands at p + b*batch + i*row + j*col, counted in elements. Fast where
 * row or col is 1 (or the dimension it walks is) and rows begin at multiples of 16 bytes. */
typedef struct tp_cuda_matrix {
    void *p;
    tp_dtype dtype; /* f32 or bf16 */
    int64_t row, col, batch;
} tp_cuda_matrix;

typedef enum tp_cuda_epilogue {
    TP_EPILOGUE_NONE,
    TP_EPILOGUE_GELU,  /* c = gelu(h), h = a b + bias; h is written to aux, laid out as c */
    TP_EPILOGUE_DGELU, /* c = (a b) gelu'(h), h read from aux, laid out as c; without bias and
                          accumulate. Where a pass of its own follows, a b is rounded between. */
} tp_cuda_epilogue;

/* c (m,n) = a (m,k) b (k,n) + bias (n), or c += …; sums in f32, then rounded to c's dtype once.
 * a and b have one dtype; c has it too, or is f32. bf16 inputs run on tensor cores; f32 inputs are
 * computed in f32 (no TF32). */
typedef struct tp_cuda_gemm {
    int64_t batch, m, n, k; /* batch >= 1; k = 0 gives the bias, or 0 */
    tp_cuda_matrix a, b, c; /* c.col is 1 */
    const void *bias;       /* NULL, or n values of c's dtype */
    bool accumulate;        /* c += a b; without bias */
    bool m_fixed;           /* m is a dimension of a weight, not a number of rows: the algorithm may
                               be chosen by it. Implied where a's columns are dense (a.row is 1) */
    int64_t like_m, like_n; /* not 0: a part of a product of these sizes, with that one's bits */
    tp_cuda_epilogue epilogue;
    void *aux;
} tp_cuda_gemm;
/* Launches on the ctx's stream; k names the op in errors. Needs no workspace of the call. */
tp_status tp_cuda_gemm_run(const tp_call *k, const tp_cuda_gemm *g);

/* Products so far that cuBLASLt ran, and its plans (one per problem, made once). later_algos: of
 * its products those whose rows may have other bits than with another m. */
typedef struct tp_cuda_gemm_stats {
    int64_t plans, cublaslt_runs, later_algos, own_runs;
    int64_t wgmma_runs, wgmma_wide,
        wgmma_flat; /* own ones on Hopper's units; in 256 x 192, 128 x 192 */
} tp_cuda_gemm_stats;
tp_cuda_gemm_stats tp_cuda_gemm_stats_of(const tp_ctx *c);
#ifdef __cplusplus
}
#endif
#endif
