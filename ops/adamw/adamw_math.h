/* AdamW's update of one value in float, once, and the constants of a step. */
#ifndef TP_ADAMW_MATH_H
#define TP_ADAMW_MATH_H
#include "ops/adamw/adamw.h"
#include <math.h>

typedef struct adamw_step {
    float scale, b1, b1c, b2, b2c; /* b1c = 1 - b1 */
    float rate;                    /* lr/(1 - b1^update) */
    float v_scale;                 /* 1/sqrt(1 - b2^update) */
    float epsilon, decay;          /* decay = lr*wd */
} adamw_step;

/* x^n by squaring: libm's pow need not give the same bits everywhere. */
static inline double adamw_power(double x, int64_t n) {
    double r = 1;
    for (; n > 0; n >>= 1, x *= x)
        if (n & 1) r *= x;
    return r;
}

static inline adamw_step adamw_step_of(const tp_adamw_opts *o) {
    return (adamw_step){
        .scale = o->grad_scale == 0 ? 1.0f : (float)o->grad_scale,
        .b1 = (float)o->beta1,
        .b1c = (float)(1 - o->beta1),
        .b2 = (float)o->beta2,
        .b2c = (float)(1 - o->beta2),
        .rate = (float)(o->learning_rate / (1 - adamw_power(o->beta1, o->update))),
        .v_scale = (float)(1 / sqrt(1 - adamw_power(o->beta2, o->update))),
        .epsilon = (float)o->epsilon,
        .decay = (float)(o->learning_rate * o->weight_decay),
    };
}

static inline TP_HD void adamw_f(float *p, float *m, float *v, float grad, adamw_step s) {
    float g = s.scale * grad, m1 = fmaf(s.b1, *m, s.b1c * g), v1 = fmaf(s.b2, *v, s.b2c * (g * g));
    float move = s.rate * m1 / fmaf(sqrtf(v1), s.v_scale, s.epsilon);
    *p -= fmaf(s.decay, *p, move);
    *m = m1;
    *v = v1;
}
#endif
