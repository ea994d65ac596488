/* Owns the check of index tensors. */
#include "ops/embedding/index.h"

tp_status tp_check_index(const tp_call *k, int i, const char *arg, int64_t limit) {
    const int32_t *v = tp_i32(k->in[i]);
    for (int64_t p = 0, n = tp_numel(k->in[i]); p < n; p++)
        if (v[p] < 0 || v[p] >= limit)
            return tp_refuse(k, TP_EARG,
                             "%s at position %lld is %d, must be at least 0 and below %lld", arg,
                             (long long)p, (int)v[p], (long long)limit);
    return TP_OK;
}
