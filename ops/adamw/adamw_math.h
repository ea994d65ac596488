/* The step of AdamW in float, its constants, and which random bits belong to which element. */
#ifndef TP_ADAMW_MATH_H
#define TP_ADAMW_MATH_H
#include "ops/adamw/adamw.h"
#include <math.h>

/* The formula, for an element or for a vector of them: ADAMW_FORMULA(step, update, V, op) makes the
 * type `step` of the constants and the function `update` on values of type V, out of op_mul,
 * op_fma, op_div, op_sub and op_sqrt. m and v become the new moments; the new p is returned. */
#define ADAMW_FORMULA(step, update, V, op)                                                         \
    typedef struct step {                                                                          \
        V scale, b1, b1c, b2, b2c; /* b1c = 1 - b1 */                                              \
        V rate;                    /* lr/(1 - b1^update) */                                        \
        V v_scale;                 /* 1/sqrt(1 - b2^update) */                                     \
        V epsilon, decay;          /* decay = lr*wd */                                             \
    } step;                                                                                        \
    static inline TP_HD V update(V p, V *m, V *v, V grad, const step *s) {                         \
        V g = op##_mul(s->scale, grad);                                                            \
        *m = op##_fma(s->b1, *m, op##_mul(s->b1c, g));                                             \
        *v = op##_fma(s->b2, *v, op##_mul(s->b2c, op##_mul(g, g)));                                \
        V under = op##_fma(op##_sqrt(*v), s->v_scale, s->epsilon);                                 \
        V move = op##_div(op##_mul(s->rate, *m), under);                                           \
        return op##_sub(p, op##_fma(s->decay, p, move));                                           \
    }

#define adamw_f_mul(a, b) ((a) * (b))
#define adamw_f_fma(a, b, c) fmaf(a, b, c)
#define adamw_f_div(a, b) ((a) / (b))
#define adamw_f_sub(a, b) ((a) - (b))
#define adamw_f_sqrt(a) sqrtf(a)
ADAMW_FORMULA(adamw_step, adamw_update, float, adamw_f)

/* x^n by squaring: libm's pow need not give the same bits everywhere. */
static inline double adamw_power(double x, int64_t n) {
    double r = 1;
    for (; n > 0; n >>= 1, x *= x)
        if (n & 1) r *= x;
    return r;
}

static inline adamw_step adamw_step_of(const tp_adamw_opts *o) {
    adamw_step s;
    s.scale = o->grad_scale == 0 ? 1.0f : (float)o->grad_scale;
    s.b1 = (float)o->beta1;
    s.b1c = (float)(1 - o->beta1);
    s.b2 = (float)o->beta2;
    s.b2c = (float)(1 - o->beta2);
    s.rate = (float)(o->learning_rate / (1 - adamw_power(o->beta1, o->update)));
    s.v_scale = (float)(1 / sqrt(1 - adamw_power(o->beta2, o->update)));
    s.epsilon = (float)o->epsilon;
    s.decay = (float)(o->learning_rate * o->weight_decay);
    return s;
}

/* Random bits for bf16 moments. One Philox counter gives four words, each serves one element: its
 * lower half rounds m, its upper half v. Elements are taken in blocks of 128, whose 32 counters
 * follow each other; word w of all of them serves 32 neighbouring elements, so that
 * counters worked out side by side give words in the order of the elements. */
enum { ADAMW_BLOCK = 128 };
#define ADAMW_UPDATES ((int64_t)1 << 40)
#define ADAMW_STREAMS ((int64_t)1 << 24)
typedef struct adamw_place {
    int64_t counter;
    int word;
} adamw_place;
static inline TP_HD adamw_place adamw_place_of(int64_t element) { /* in the whole parameter */
    int64_t in_block = element % ADAMW_BLOCK;
    adamw_place at = {element / ADAMW_BLOCK * 32 + in_block % 32, (int)(in_block / 32)};
    return at;
}
static inline uint64_t adamw_counter(const tp_adamw_opts *o) {
    return (uint64_t)o->stream << 40 | (uint64_t)o->update;
}
#endif
