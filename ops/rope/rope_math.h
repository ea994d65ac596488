/* The scalar formulas of rope. Sine and cosine are made of +, - and * in double only, because
 * libm's differ between machines; their error is below 1e-15, far under the rounding to float. */
#ifndef TP_ROPE_MATH_H
#define TP_ROPE_MATH_H
#include "ops/math.h"
#include "ops/rope/rope.h"

#ifdef __cplusplus
extern "C" {
#endif
/* Frequencies theta^(-i/h), i < h, scaled (rope.c). */
void rope_frequencies(double theta, const tp_rope_scaling *s, int64_t h, double *frequency);
#ifdef __cplusplus
}
#endif

/* cos a and sin a for 0 <= a < 2^20. a = n pi/2 + r, |r| <= pi/4: pi/2 in three parts, of which the
 * first two have 33 bits, so that their multiples by n < 2^20 are exact (Cody and Waite 1980). Then
 * the Taylor series to r^16 and r^17, whose next terms are below 1e-17. */
static inline TP_HD void rope_turn(double a, float *cosine, float *sine) {
    double shifted = a * 0.63661977236758134 + 6755399441055744.0; /* 1.5 * 2^52: rounds a*2/pi */
    double n = shifted - 6755399441055744.0;
    double r = a - n * 1.57079632673412561417e+00;
    r = r - n * 6.07710050630396597660e-11;
    r = r - n * 2.02226624879595063154e-21;
    double z = r * r;
    double s = 1 / 355687428096000.0;
    s = s * z - 1 / 1307674368000.0;
    s = s * z + 1 / 6227020800.0;
    s = s * z - 1 / 39916800.0;
    s = s * z + 1 / 362880.0;
    s = s * z - 1 / 5040.0;
    s = s * z + 1 / 120.0;
    s = s * z - 1 / 6.0;
    s = s * z * r + r;
    double c = 1 / 20922789888000.0;
    c = c * z - 1 / 87178291200.0;
    c = c * z + 1 / 479001600.0;
    c = c * z - 1 / 3628800.0;
    c = c * z + 1 / 40320.0;
    c = c * z - 1 / 720.0;
    c = c * z + 1 / 24.0;
    c = c * z - 0.5;
    c = c * z + 1;
    int64_t quarter = (int64_t)n & 3; /* n quarter turns: swap, then the signs */
    double x = quarter & 1 ? s : c, y = quarter & 1 ? c : s;
    *cosine = (float)(quarter == 1 || quarter == 2 ? -x : x);
    *sine = (float)(quarter >= 2 ? -y : y);
}

/* One plane turned: y_i from (x_i, x_{i+h}), and y_{i+h}. */
static inline TP_HD float rope_first(float x0, float x1, float c, float s) {
    return fmaf(x0, c, -(x1 * s));
}
static inline TP_HD float rope_second(float x0, float x1, float c, float s) {
    return fmaf(x1, c, x0 * s);
}
#endif
