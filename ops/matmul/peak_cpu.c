/* The arithmetic ceiling: independent fused multiply-adds in registers, nothing else. */
#include "ops/matmul/peak.h"
#include "ops/matmul/gemm_bf16.h"

/* Twelve chains: latency 4 times 2 units needs 8, and twelve accumulators fit every register file.
 */
static inline __attribute__((always_inline)) void chains(const bool dot, int64_t n, float *out) {
    v16 acc[12], a = v16_set1(out[0]), b = v16_set1(out[1]);
    for (int j = 0; j < 12; j++) acc[j] = v16_set1((float)j);
    for (int64_t i = 0; i < n; i++)
        for (int j = 0; j < 12; j++)
            acc[j] = dot ? v16_dot2(true, a, b, acc[j]) : v16_fma(acc[j], a, b);
    for (int j = 1; j < 12; j++) acc[0] = v16_add(acc[0], acc[j]);
    v16_store(out, acc[0]);
}

void TP_CAT(tp_fma_loop, TP_ISA)(int64_t n, float *out) { chains(false, n, out); }
#if TP_ISA >= 4
void TP_CAT(tp_dot_loop, TP_ISA)(int64_t n, float *out) { chains(true, n, out); }
#endif
