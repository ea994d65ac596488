/* The formulas of layernorm and rmsnorm for one row (the CPU writes those per value in vectors, in
 * norm_rows.h), in the terms of layernorm.c: n = (x - mean) rstd, dn = dy w. */
#ifndef TP_NORM_MATH_H
#define TP_NORM_MATH_H
#include "ops/op.h"
#include <math.h>

/* squares: the sum of (x - mean)^2 */
static inline TP_HD float norm_rstd(float squares, float inverse_channels, float eps) {
    return 1.0f / sqrtf(squares * inverse_channels + eps);
}

/* dx = rstd*dn - c0 - n*c1 (+ dsum), from the row's sums of dn and dn*n and the gradients that
 * reach mean and rstd, NULL where there are none. rmsnorm has no c0. */
static inline TP_HD float norm_c1(float sum_dn_n, float rstd, const float *drstd,
                                  float inverse_channels) {
    float c1 = rstd * (sum_dn_n * inverse_channels);
    return drstd ? c1 + *drstd * rstd * rstd * inverse_channels : c1;
}
static inline TP_HD float norm_c0(float sum_dn, float rstd, const float *dmean,
                                  float inverse_channels) {
    float c0 = rstd * (sum_dn * inverse_channels);
    return dmean ? c0 - *dmean * inverse_channels : c0;
}
#endif
