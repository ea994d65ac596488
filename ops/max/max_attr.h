/* What max.c and max_cpu.c share. */
#ifndef TP_MAX_ATTR_H
#define TP_MAX_ATTR_H
#include "ops/convert.h"
#include "ops/reduce.h"

typedef struct max_attr {
    tp_reduce_attr reduce;
    int32_t ndim; /* of x; max_pick has x at hand and ignores ndim and shape */
    int64_t shape[TP_MAXDIM];
} max_attr;

/* Every position in in[0] is one of n. */
static inline tp_status max_positions_ok(const tp_call *k, int64_t n) {
    const tp_tensor *at = k->in[0];
    for (int64_t i = 0, m = tp_numel(at); i < m; i++) {
        int32_t v = tp_i32(at)[tp_offset(at, i)];
        if (v < 0 || v >= n)
            return tp_refuse(k, TP_EARG, "position %d of element %lld is not among %lld", v,
                             (long long)i, (long long)n);
    }
    return TP_OK;
}
#endif
