/* Lists of tokens by row number, b*T+t, as the ops of routed blocks read them: i32 (B',K), -1 where
 * a list has no more. The others ascend through the whole list, so no token is in it twice and
 * rows can be written by any number of threads. */
#ifndef TP_TOKEN_ROWS_H
#define TP_TOKEN_ROWS_H
#include "ops/op.h"

/* Refuses unless the dense i32 tensor in[i] is such a list of tokens below limit. */
static inline tp_status tp_check_token_rows(const tp_call *k, int i, int64_t limit) {
    const int32_t *row = tp_i32(k->in[i]);
    int64_t last = -1;
    for (int64_t p = 0, n = tp_numel(k->in[i]); p < n; p++) {
        if (row[p] == -1) continue;
        if (row[p] <= last || row[p] >= limit)
            return tp_refuse(k, TP_EARG,
                             "row %d at position %lld: rows must ascend and be below %lld, or -1",
                             (int)row[p], (long long)p, (long long)limit);
        last = row[p];
    }
    return TP_OK;
}

/* in[i] is a list, in[j] (…) has its shape, followed by `more` more dimensions. */
static inline tp_status tp_need_token_rows(const tp_call *k, int i) {
    tp_status st = tp_need_int(k, i, "rows");
    return st ? st : tp_need_ndim(k, i, "rows", 2, 2);
}
static inline tp_status tp_need_of_rows(const tp_call *k, int i, int j, const char *arg, int more) {
    const tp_tensor *rows = k->in[i], *x = k->in[j];
    if (x->ndim == 2 + more && x->shape[0] == rows->shape[0] && x->shape[1] == rows->shape[1])
        return TP_OK;
    return tp_refuse(k, TP_ESHAPE, "%s must be (B,K%s) of rows %s, got %s", arg, more ? ",C" : "",
                     tp_shape_str(k->ctx, rows), tp_shape_str(k->ctx, x));
}
#endif
