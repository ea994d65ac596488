/* Rows by number on CUDA: copying them out, and adding them in without atomics; for the ops that do
 * either. Tensors are seen as matrices of evenly spaced rows. */
#ifndef TP_ROWS_CUDA_H
#define TP_ROWS_CUDA_H
#include "ops/cuda.h"

/* ---- matrices of rows ----------------------------------------------------------------------- */
/* Element (r,c) stands at p + r*row + c*col, counted in elements. */
typedef struct tp_rows {
    void *p;
    int64_t row, col;
} tp_rows;

/* t (…,C): false if one step does not lead from each row to the next. */
static inline bool tp_rows_of(tp_rows *r, const tp_tensor *t) {
    int last = t->ndim - 1;
    int64_t reach = 0; /* one step behind the last row of the dimensions after d */
    bool any = false;
    *r = tp_rows{t->data, 0, last < 0 ? 1 : t->stride[last]};
    for (int d = last - 1; d >= 0; d--) {
        if (t->shape[d] == 1) continue;
        if (!any)
            r->row = t->stride[d];
        else if (t->stride[d] != reach)
            return tp_numel(t) == 0;
        any = true;
        reach = t->stride[d] * t->shape[d];
    }
    return true;
}
static inline const char *tp_decline_uneven(const tp_tensor *t) {
    tp_rows r;
    return !t || tp_rows_of(&r, t) ? NULL : "its rows do not lie evenly";
}
/* Vectors of V elements of `bytes` each can be moved. */
static inline bool tp_rows_vector(const tp_rows *r, int64_t channels, int V, size_t bytes) {
    return channels % V == 0 && r->col == 1 && r->row % V == 0 &&
           tp_aligned(r->p, (size_t)V * bytes);
}

/* ---- copying rows out ----------------------------------------------------------------------- */
/* out[0] row p = table row in[i][p]; an id outside the table is reported and its row is 0. */
tp_status tp_index_rows_cuda(const tp_call *k, int i, const tp_tensor *table);
const char *tp_decline_index_rows_cuda(const tp_call *k, int i, const tp_tensor *table);

/* ---- sorting ids ---------------------------------------------------------------------------- */
/* Positions in the order of their ids, and those of one id in the order of position. Ids outside
 * 0..limit-1 are reported and have the key limit: they come last. */
typedef struct tp_sorted {
    uint32_t *key, *order; /* (n) each, in the workspace */
} tp_sorted;
size_t tp_sort_ids_bytes(int64_t n);
tp_status tp_sort_ids_cuda(const tp_call *k, const int32_t *ids, int64_t n, uint32_t limit,
                           void *workspace, tp_sorted *sorted);

/* ---- adding rows in, in the order of ops/embedding/scatter_rows.h ---------------------------- */
typedef struct tp_scatter_cuda {
    const int32_t *ids;
    int64_t n, each;        /* positions, and how many of them are one sample's */
    int64_t rows, channels; /* of out */
    tp_dtype dtype;         /* of dy, base and out: f32 or bf16 */
    tp_rows dy, out;
    const tp_tensor *base; /* out starts from it; NULL: from zeros */
    bool add;              /* out += instead of out = ; excludes base */
} tp_scatter_cuda;
size_t tp_scatter_cuda_bytes(int64_t n);
/* out is dense unless add is set. */
tp_status tp_scatter_cuda_run(const tp_call *k, const tp_scatter_cuda *s);
static inline const char *tp_decline_scatter(int64_t n, int64_t rows) {
    return n > INT32_MAX || rows > INT32_MAX ? "more than 2^31 rows" : NULL;
}
#endif
