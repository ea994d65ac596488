/* Sums over a row in one fixed order: 4 x 16 lanes (four chains hide the latency of an addition),
 * element i in lane i mod 64, then the lanes in one written order; so a row's bits depend on its
 * length only. For the kernels of the norms and of softmax. */
#ifndef TP_LANES_H
#define TP_LANES_H
#include "ops/simd.h"

enum { LANES_CHAINS = 4, LANES_STEP = LANES_CHAINS * TP_LANES };

/* Values i..i+n-1; n is the constant 16 in main loops, less only at a row's end. */
static inline v16 lanes_load(const float *p, int n) {
    return n == 16 ? v16_load(p) : v16_load_n(p, n);
}
static inline void lanes_store(float *p, v16 a, int n) {
    if (n == 16)
        v16_store(p, a);
    else
        v16_store_n(p, a, n);
}
static inline float lanes_fold(const v16 acc[LANES_CHAINS]) {
    return v16_sum(v16_add(v16_add(acc[0], acc[1]), v16_add(acc[2], acc[3])));
}
/* Runs body(i, n, j) over [0,channels): n values from i on belong to chain j. Unrolled,
 * tail included: a chain chosen by a variable would live in memory, not in a register. */
#define LANES_EACH(channels, body)                                                                 \
    do {                                                                                           \
        int64_t i_ = 0, end_ = (channels);                                                         \
        for (; i_ + LANES_STEP <= end_; i_ += LANES_STEP) {                                        \
            body(i_, 16, 0);                                                                       \
            body(i_ + 16, 16, 1);                                                                  \
            body(i_ + 32, 16, 2);                                                                  \
            body(i_ + 48, 16, 3);                                                                  \
        }                                                                                          \
        if (i_ < end_) body(i_, lanes_left(end_ - i_), 0);                                         \
        if (i_ + 16 < end_) body(i_ + 16, lanes_left(end_ - i_ - 16), 1);                          \
        if (i_ + 32 < end_) body(i_ + 32, lanes_left(end_ - i_ - 32), 2);                          \
        if (i_ + 48 < end_) body(i_ + 48, lanes_left(end_ - i_ - 48), 3);                          \
    } while (0)
static inline int lanes_left(int64_t n) { return n < 16 ? (int)n : 16; }
#endif
