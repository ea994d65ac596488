/* noise: uniform random numbers of tokens. */
#ifndef TP_NOISE_H
#define TP_NOISE_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
/* Uniform in (0,1), f32 in the shape of `like` i32 (B,T). A token's number is a function of the
 * context's seed, step and sample (tp_rng_at; row b has sample + b), of `stream`, and of the
 * token's place: its positions i32 (B,T), or t where that is NULL. everywhere: step and sample are
 * left out, so it is the same in every batch. */
tp_tensor *tp_noise(tp_ctx *c, tp_tensor *like, tp_tensor *positions, uint32_t stream,
                    bool everywhere);
#ifdef __cplusplus
}
#endif
#endif
