/* Owns the check of index tensors, and the copying of rows by index. */
#include "ops/embedding/index.h"
#include <string.h>

tp_status tp_check_index(const tp_call *k, int i, const char *arg, int64_t limit) {
    const int32_t *v = tp_i32(k->in[i]);
    for (int64_t p = 0, n = tp_numel(k->in[i]); p < n; p++)
        if (v[p] < 0 || v[p] >= limit)
            return tp_refuse(k, TP_EARG,
                             "%s at position %lld is %d, must be at least 0 and below %lld", arg,
                             (long long)p, (int)v[p], (long long)limit);
    return TP_OK;
}

typedef struct rows {
    const int32_t *ids;
    const char *table;
    char *y;
    size_t bytes;
    int64_t step; /* bytes from row to row of the table */
} rows;

static void copy_rows(void *arg, int64_t begin, int64_t end) {
    const rows *r = arg;
    for (int64_t p = begin; p < end; p++)
        memcpy(r->y + (size_t)p * r->bytes, r->table + r->ids[p] * r->step, r->bytes);
}

tp_status tp_index_rows(const tp_call *k, int i, const char *arg, const tp_tensor *table) {
    tp_status st = tp_check_index(k, i, arg, table->shape[0]);
    size_t size = tp_dtype_size(table->dtype);
    rows r = {tp_i32(k->in[i]), table->data, k->out[0]->data, (size_t)table->shape[1] * size,
              table->stride[0] * (int64_t)size};
    if (!st && r.bytes)
        tp_parallel_for(k->ctx, tp_numel(k->in[i]), 65536 / (int64_t)r.bytes + 1, copy_rows, &r);
    return st;
}
