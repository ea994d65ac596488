/* What the builders of layernorm and rmsnorm share. */
#ifndef TP_NORM_H
#define TP_NORM_H
#include "ops/op.h"

typedef struct tp_norm_opts {
    tp_tensor *w, *b; /* (C) each or NULL; rmsnorm has no b */
    double eps;       /* added to the mean square before the root; above 0 */
} tp_norm_opts;

/* The residual stream after an addition, and its norm. Both NULL after a failure. */
typedef struct tp_sum_norm {
    tp_tensor *sum, *y;
} tp_sum_norm;
#endif
