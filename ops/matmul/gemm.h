/* gemm: C = A B in f32, with one result per problem.
 *
 * Every element of C is one chain of fused multiply-adds in the order of k:
 *     acc = 0;  for k = 0 .. K-1: acc = fmaf(a[i,k], b[k,j], acc)
 * then, where wanted, acc + bias[j], then c[i,j] + acc. Its bits depend on row i of A, column j of
 * B and K, and on nothing else: not on M, N, the layout, the tile it falls into, the number of
 * threads or the instruction set. (The payload of a NaN alone is left open.)
 *
 * With `leaf` set, k runs over samples of `leaf` steps each: every sample is a chain of its own,
 * and the samples' sums are added in a fixed binary tree over the sample index. The tree is that of
 * a binary counter: push a leaf, merge neighbours of equal size (left + right), and at the end
 * merge what remains from the right. An aligned power-of-two run of samples is a subtree, so
 * gradients summed elsewhere in that order have the same bits however the batch was split.
 *
 * With `bf16` set, A and B are rounded to bf16 (nearest, ties to even), and a chain takes two steps
 * at a time, the odd one first:
 *     acc = fmaf(a[i,k+1], b[k+1,j], acc);  acc = fmaf(a[i,k], b[k,j], acc)      k = 0, 2, 4, …
 * of each leaf; where an odd step is missing at the end it is of zeros. That is AVX512_BF16's
 * instruction vdpbf16ps, twice as fast as f32 on processors that run it at full rate, and like it
 * the whole product knows no denormals: they count as zeros. The same promise holds: one result.
 *
 * With `gelu` set, the elementwise gelu of the finished C is written there too, tile by tile while
 * C's tile is still in the nearest cache: the same bits as gelu of C afterwards. */
#ifndef TP_GEMM_H
#define TP_GEMM_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_gemm {
    int64_t m, n, k; /* C is (m,n); any of them may be 0; k = 0 gives zeros (plus bias) */
    const float *a;  /* a[i,k] = a[i*a_rs + k*a_cs]: a transpose is a pair of strides */
    int64_t a_rs, a_cs;
    const float *b; /* b[k,j] = b[k*b_rs + j*b_cs] */
    int64_t b_rs, b_cs;
    float *c; /* c[i,j] = c[i*ldc + j]; overlaps neither A nor B */
    int64_t ldc;
    const float *bias; /* (n), or NULL */
    float *gelu;       /* gelu(c[i,j]) goes to gelu[i*ldc + j]; overlaps nothing; NULL: nowhere */
    bool accumulate;   /* C += A B (+ bias) instead of C = */
    bool resume;       /* the chain starts from c[i,j], not from 0: this call's k follow on those of
                          an earlier call (even in number for bf16), with the bits of one call
                          over both; excludes accumulate and leaf */
    bool bf16;         /* operands are rounded to bf16 */
    bool no_dot;       /* bf16 by FMAs, the instruction or not: for tests */
    int64_t leaf;      /* steps of k per sample; 0: one chain over all of k */
    void *work;        /* tp_gemm_workspace bytes, 64-byte aligned */
} tp_gemm;

/* Bytes of workspace that tp_gemm_run with up to `threads` threads needs; enough for every
 * instruction set. The data pointers of g are not looked at, so a plan may ask without bytes. */
size_t tp_gemm_workspace(const tp_gemm *g, int threads);

/* Whether this processor has the instruction for bf16. */
bool tp_gemm_has_dot(void);

/* Computes C on the ctx's threads (workspace for tp_threads(c)), or on the calling thread alone
 * (workspace for 1), for callers that are inside a parallel region. Both give the same bits. The
 * caller must be compiled for, or have chosen, an instruction set that the machine has:
 *     TP_CAT(tp_gemm_run, TP_ISA)(c, &g);       inside a *_cpu.c file */
void tp_gemm_run_v1(tp_ctx *c, const tp_gemm *g);
void tp_gemm_one_v1(const tp_gemm *g);
#if defined(__x86_64__)
void tp_gemm_run_v3(tp_ctx *c, const tp_gemm *g);
void tp_gemm_one_v3(const tp_gemm *g);
void tp_gemm_run_v4(tp_ctx *c, const tp_gemm *g);
void tp_gemm_one_v4(const tp_gemm *g);
#endif

#ifdef __cplusplus
}
#endif
#endif
