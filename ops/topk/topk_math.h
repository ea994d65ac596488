/* The order of topk as an unsigned integer. */
#ifndef TP_TOPK_MATH_H
#define TP_TOPK_MATH_H
#include "ops/math.h"

/* Larger keys come first: the value's bits made monotone, then the complement of the index. No key
 * is 0. */
static inline TP_HD uint64_t topk_key(float x, int64_t i) {
    uint32_t bits = tp_f32_to_bits(x + 0.0f); /* -0 equals +0 */
    if (x != x) bits = 0x7fffffffu;           /* all NaN are one, above infinity */
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | (uint32_t) ~(uint32_t)i;
}
static inline TP_HD int32_t topk_index(uint64_t key) { return (int32_t) ~(uint32_t)key; }
#endif
