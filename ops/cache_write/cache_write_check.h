/* Which slot a row goes to, and that it is one. */
#ifndef TP_CACHE_WRITE_CHECK_H
#define TP_CACHE_WRITE_CHECK_H
#include "ops/convert.h"

static inline int64_t cache_write_slot(const tp_call *k, int64_t i) {
    return tp_i32(k->in[2])[tp_offset(k->in[2], i)];
}

static inline tp_status cache_write_check(const tp_call *k) {
    int64_t slots = k->in[0]->shape[0] * k->in[0]->shape[1];
    for (int64_t i = 0, n = tp_numel(k->in[2]); i < n; i++) {
        int64_t s = cache_write_slot(k, i);
        if (s < -1 || s >= slots)
            return tp_refuse(k, TP_EARG, "slot %lld at position %lld is not in -1..%lld",
                             (long long)s, (long long)i, (long long)slots - 1);
    }
    return TP_OK;
}
#endif
