/* What route's kernels share. */
#ifndef TP_ROUTE_ATTR_H
#define TP_ROUTE_ATTR_H
#include "ops/op.h"

typedef struct route_attr {
    int64_t k;
    bool document;
} route_attr;
enum { ROUTE_ROWS, ROUTE_POSITIONS, ROUTE_MEMBER, ROUTE_SEGMENTS }; /* outputs, in order */

/* How many of the k that a row of T takes belong to tokens before `end`. */
static inline TP_HD int64_t route_share(int64_t k, int64_t T, int64_t end) {
    return (k * end + T - 1) / T;
}
#endif
