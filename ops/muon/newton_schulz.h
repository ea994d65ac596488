/* The quintic of Newton-Schulz' iteration, and the cut into blocks; shared by oracle and kernel. */
#ifndef TP_NEWTON_SCHULZ_H
#define TP_NEWTON_SCHULZ_H
#include "ops/muon/muon.h"

/* s -> a s + b s^3 + c s^5. Jordan's coefficients give up s = 1 as a fixed point for the steepest
 * slope at 0 (3.4445 a step) that keeps large s bounded. */
#define NS_A 3.4445
#define NS_B (-4.7750)
#define NS_C 2.0315
#define NS_EPSILON 1e-7 /* beside the norm: a zero matrix stays zero */

typedef struct ns_shape {
    int64_t rows, cols, ld; /* of a block; ld: from row to row */
    int64_t small, large;   /* min and max of rows, cols */
    int64_t blocks, step;   /* step: from block to block, in elements */
    int steps;
    bool tall; /* rows > cols: the Gram matrix is x^T x */
} ns_shape;

static inline ns_shape ns_shape_of(const tp_call *k) {
    const tp_newton_schulz_opts *o = (const tp_newton_schulz_opts *)k->attr;
    const tp_tensor *x = k->in[0];
    ns_shape s;
    s.rows = x->shape[0];
    s.cols = s.ld = x->shape[1];
    s.blocks = o->blocks ? o->blocks : 1;
    s.steps = o->steps ? (int)o->steps : 5;
    if (o->dim == 0)
        s.rows /= s.blocks;
    else
        s.cols /= s.blocks;
    s.step = o->dim == 0 ? s.rows * s.ld : s.cols;
    s.tall = s.rows > s.cols;
    s.small = s.tall ? s.cols : s.rows;
    s.large = s.tall ? s.rows : s.cols;
    return s;
}
#endif
