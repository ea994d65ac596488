/* rope: rotary position embedding of Su et al., arXiv 2104.09864. */
#ifndef TP_ROPE_H
#define TP_ROPE_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif
enum { TP_ROPE_POSITIONS = 1 << 20 }; /* positions are 0 to this, less one */

typedef struct tp_rope_opts {
    double theta;         /* base of the frequencies; 0: 10000 */
    int64_t n_rot;        /* the first n_rot values of a head turn, the rest pass; 0: all. Even. */
    int64_t offset;       /* position of t = 0, where there are no positions */
    bool inverse;         /* turn back by the same angles */
    tp_tensor *positions; /* i32 (B,T), or NULL: t + offset */
} tp_rope_opts;

/* x (B,T,H,D) -> (B,T,H,D). With h = n_rot/2 and angle a_i = position * theta^(-i/h), i < h:
 *   y_i = x_i cos a_i - x_{i+h} sin a_i,    y_{i+h} = x_{i+h} cos a_i + x_i sin a_i
 * which is Hugging Face's layout ("rotate_half": a value's partner lies h further on). Angles,
 * sines and cosines are computed in double and rounded once. opts may be NULL. A position outside
 * 0..TP_ROPE_POSITIONS-1 is refused. */
tp_tensor *tp_rope(tp_ctx *c, tp_tensor *x, const tp_rope_opts *opts);
#ifdef __cplusplus
}
#endif
#endif
