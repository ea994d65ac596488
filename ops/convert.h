/* Value conversions between element types; the one place that knows how bf16 rounds. */
#ifndef TP_CONVERT_H
#define TP_CONVERT_H
#include "ops/op.h"
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif
static inline TP_HD float tp_bf16_to_f32(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* Nearest, ties to even; NaN stays NaN (a plain rounding add could turn it into infinity). */
static inline TP_HD uint32_t tp_bf16_word(uint32_t bits) { /* in the upper half, zeros below */
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return (nan ? bits | 0x400000u : bits + 0x7fffu + ((bits >> 16) & 1)) & 0xffff0000u;
}
static inline TP_HD uint16_t tp_f32_to_bf16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return (uint16_t)(tp_bf16_word(bits) >> 16);
}

/* One of the two neighbours, the upper with the part of the way that f has gone to it: so the mean
 * over random16 is f. random16: uniform in 0..65535. NaN and infinity stay what they are. */
static inline TP_HD uint16_t tp_f32_to_bf16_stochastic(float f, uint32_t random16) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return (uint16_t)((nan ? bits | 0x400000u : bits + random16) >> 16);
}

/* Element i (in elements from t->data) as a double; integers exactly up to 2^53. */
double tp_get(const tp_tensor *t, int64_t i);
void tp_set(const tp_tensor *t, int64_t i, double v);
/* All values in row-major order of the shape, whatever the strides. */
void tp_read_f64(const tp_tensor *t, double *dst);
void tp_write_f64(const tp_tensor *t, const double *src);
/* The offset, in elements, of the i-th value in row-major order. */
int64_t tp_offset(const tp_tensor *t, int64_t i);
#ifdef __cplusplus
}
#endif
#endif
