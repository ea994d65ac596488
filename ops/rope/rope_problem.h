/* What a call of rope asks for; shared by the oracle and the kernels. */
#ifndef TP_ROPE_PROBLEM_H
#define TP_ROPE_PROBLEM_H
#include "ops/rope/rope.h"

typedef struct rope_attr {
    double theta;
    int64_t n_rot, offset;
    bool inverse;
    tp_rope_scaling scaling; /* what its type does not read is 0 */
} rope_attr;

enum { ROPE_X, ROPE_POSITIONS };

/* Refuses positions outside the range; every run begins with it. */
tp_status rope_check_positions(const tp_call *k);

static inline int64_t rope_half(const tp_call *k) {
    const rope_attr *a = (const rope_attr *)k->attr;
    return (a->n_rot ? a->n_rot : k->in[ROPE_X]->shape[3]) / 2;
}
static inline double rope_theta(const tp_call *k) {
    const rope_attr *a = (const rope_attr *)k->attr;
    return a->theta != 0 ? a->theta : 10000;
}
static inline int64_t rope_position(const tp_call *k, int64_t b, int64_t t) {
    const tp_tensor *p = k->in[ROPE_POSITIONS];
    return p ? tp_i32(p)[b * p->stride[0] + t * p->stride[1]]
             : t + ((const rope_attr *)k->attr)->offset;
}
#endif
