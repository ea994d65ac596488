/* The loop of softmax_weights.h, once for each instruction set. */
#include "ops/math.h"
#include "ops/simd.h"
#include "ops/softmax/softmax_weights.h"

void TP_CAT(tp_softmax_weights, TP_ISA)(float *restrict w, const float *restrict x, int64_t n,
                                        float top, float temperature) {
    for (int64_t i = 0; i < n; i++) w[i] = tp_expf((x[i] - top) / temperature);
}
