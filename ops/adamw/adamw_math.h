/* The constants of an AdamW step in float, and which random bits belong to which element. */
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
    return (adamw_place){element / ADAMW_BLOCK * 32 + in_block % 32, (int)(in_block / 32)};
}
static inline uint64_t adamw_counter(const tp_adamw_opts *o) {
    return (uint64_t)o->stream << 40 | (uint64_t)o->update;
}
#endif
