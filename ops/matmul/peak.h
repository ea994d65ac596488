/* A loop of n times 12 x 16 fused multiply-adds, to measure what a CPU can do at most. */
#ifndef TP_PEAK_H
#define TP_PEAK_H
#include "ops/op.h"
enum { TP_FMA_LOOP_FLOPS = 12 * 16 * 2 }; /* per iteration */
/* out: 16 floats; the first two are the factor and the summand, then it is overwritten. */
void tp_fma_loop_v1(int64_t n, float *out);
void tp_fma_loop_v3(int64_t n, float *out);
void tp_fma_loop_v4(int64_t n, float *out);
/* Twice as many, of bf16: where tp_gemm_has_dot (gemm.h). */
void tp_dot_loop_v4(int64_t n, float *out);
#endif
