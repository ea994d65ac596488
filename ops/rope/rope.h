/* rope: rotary position embedding of Su et al., arXiv 2104.09864. */
#ifndef TP_ROPE_H
#define TP_ROPE_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
enum { TP_ROPE_POSITIONS = 1 << 20 }; /* positions are 0 to this, less one */

/* Hugging Face's rope_scaling: frequencies for a context longer than the one first trained with.
 * linear: every one through factor (Chen et al. 2023, arXiv 2306.15595). llama3: those that turn at
 * least high_freq_factor times in the original context stay, those that turn at most
 * low_freq_factor times go through factor, and between them part of each (Llama 3.1). */
typedef enum tp_rope_type { TP_ROPE_DEFAULT, TP_ROPE_LINEAR, TP_ROPE_LLAMA3 } tp_rope_type;
typedef struct tp_rope_scaling {
    tp_rope_type type;
    double factor;                            /* at least 1; DEFAULT reads nothing from here on */
    double low_freq_factor, high_freq_factor; /* of LLAMA3, as the next: 0 < low < high */
    int64_t original_max_position_embeddings; /* tokens */
} tp_rope_scaling;

typedef struct tp_rope_opts {
    double theta;   /* base of the frequencies; 0: 10000 */
    int64_t n_rot;  /* the first n_rot values of a head turn, the rest pass; 0: all. Even. */
    int64_t offset; /* position of t = 0, where there are no positions */
    bool inverse;   /* turn back by the same angles */
    tp_rope_scaling scaling;
    tp_tensor *positions; /* i32 (B,T), or NULL: t + offset */
} tp_rope_opts;

/* x (B,T,H,D) -> (B,T,H,D). With h = n_rot/2 and angle a_i = position * f_i, i < h, where f_i is
 * theta^(-i/h), scaled as asked for:
 *   y_i = x_i cos a_i - x_{i+h} sin a_i,    y_{i+h} = x_{i+h} cos a_i + x_i sin a_i
 * which is Hugging Face's layout ("rotate_half": a value's partner lies h further on). Angles,
 * sines and cosines are computed in double and rounded once. opts may be NULL. A position outside
 * 0..TP_ROPE_POSITIONS-1 is refused. */
tp_tensor *tp_rope(tp_ctx *c, tp_tensor *x, const tp_rope_opts *opts);
#ifdef __cplusplus
}
#endif
#endif
