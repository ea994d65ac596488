/* Matrix products on CUDA, as other kernels call them. A product is one kernel chosen by (n, k) and
 * dtypes, never by m, and never split along k: a row of the result has the same bits whatever other
 * rows it is computed with. */
#ifndef TP_GEMM_CUDA_H
#define TP_GEMM_CUDA_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Element (i,j) of matrix b stands at p + b*batch + i*row + j*col, counted in elements; row or col is
 * 1 (or the dimension it walks is). */
typedef struct tp_cuda_matrix {
    void *p;
    tp_dtype dtype; /* f32 or bf16 */
    int64_t row, col, batch;
} tp_cuda_matrix;

typedef enum tp_cuda_epilogue {
    TP_EPILOGUE_NONE,
    TP_EPILOGUE_GELU, /* c = gelu(h), h = a b + bias; h is written to aux, laid out as c */
} tp_cuda_epilogue;

/* c (m,n) = a (m,k) b (k,n) + bias (n), or c += …; sums in f32, then rounded to c's dtype once.
 * a and b have one dtype; c has it too, or is f32. bf16 inputs run on tensor cores; f32 inputs are
 * computed in f32 (no TF32). */
typedef struct tp_cuda_gemm {
    int64_t batch, m, n, k; /* batch >= 1; k = 0 gives the bias, or 0 */
    tp_cuda_matrix a, b, c; /* c.col is 1 */
    const void *bias;       /* NULL, or n values of c's dtype */
    bool accumulate;        /* c += a b; without bias */
    tp_cuda_epilogue epilogue;
    void *aux;
} tp_cuda_gemm;
/* Launches on the ctx's stream; k names the op in errors. Needs no workspace of the call. */
tp_status tp_cuda_gemm_run(const tp_call *k, const tp_cuda_gemm *g);
#ifdef __cplusplus
}
#endif
#endif
