/* rng: the inside of tp_philox, for kernels that draw many numbers at once. */
#ifndef TP_RNG_H
#define TP_RNG_H
#include <stdint.h>

/* The key's second word; the first is the seed's lower half. The key has 64 bits: the purpose is
 * spread over the seed's upper half, which users leave 0. */
static inline uint32_t tp_philox_key(uint64_t seed, uint32_t purpose) {
    return (uint32_t)(seed >> 32) ^ (purpose * 0x9E3779B9u);
}
#endif
