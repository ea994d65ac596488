/* Owns copying between strided places. Dimensions that are evenly spaced in both places are joined
 * first, so that what is dense on both sides becomes one memcpy per row. */
#include "ops/concat/strided.h"
#include <string.h>

enum { CHUNK_BYTES = 1 << 16 };

typedef struct job {
    char *dst;
    const char *src; /* NULL: zeros */
    size_t bytes;    /* per value */
    int outer;       /* dimensions left of the innermost */
    int64_t shape[TP_MAXDIM], to[TP_MAXDIM], from[TP_MAXDIM];
    int64_t n, n_to, n_from; /* the innermost dimension: count and strides */
} job;

/* Joins dimensions; the innermost one goes to n, n_to, n_from. */
static void join(job *j, const tp_tensor *dst, const tp_tensor *src) {
    int n = 0;
    for (int d = 0; d < dst->ndim; d++) {
        int64_t size = dst->shape[d], to = dst->stride[d], from = src ? src->stride[d] : to;
        if (size == 1) continue;
        if (n && j->to[n - 1] == to * size && j->from[n - 1] == from * size) {
            j->shape[n - 1] *= size;
            j->to[n - 1] = to;
            j->from[n - 1] = from;
            continue;
        }
        j->shape[n] = size;
        j->to[n] = to;
        j->from[n++] = from;
    }
    j->outer = n ? n - 1 : 0;
    j->n = n ? j->shape[n - 1] : 1;
    j->n_to = n ? j->to[n - 1] : 1;
    j->n_from = n ? j->from[n - 1] : 1;
}

static void copy_row(const job *j, char *dst, const char *src) {
    int64_t size = (int64_t)j->bytes;
    if (j->n_to == 1 && !src) {
        memset(dst, 0, (size_t)j->n * j->bytes);
    } else if (j->n_to == 1 && j->n_from == 1) {
        memcpy(dst, src, (size_t)j->n * j->bytes);
    } else if (src && j->bytes == sizeof(float)) { /* the common type with a constant size */
        for (int64_t i = 0; i < j->n; i++)
            memcpy(dst + i * j->n_to * 4, src + i * j->n_from * 4, sizeof(float));
    } else {
        for (int64_t i = 0; i < j->n; i++) {
            if (src)
                memcpy(dst + i * j->n_to * size, src + i * j->n_from * size, j->bytes);
            else
                memset(dst + i * j->n_to * size, 0, j->bytes);
        }
    }
}

static void copy_rows(void *arg, int64_t begin, int64_t end) {
    const job *j = arg;
    for (int64_t row = begin; row < end; row++) {
        int64_t left = row, to = 0, from = 0;
        for (int d = j->outer - 1; d >= 0; d--) {
            int64_t i = left % j->shape[d];
            left /= j->shape[d];
            to += i * j->to[d];
            from += i * j->from[d];
        }
        int64_t size = (int64_t)j->bytes;
        copy_row(j, j->dst + to * size, j->src ? j->src + from * size : NULL);
    }
}

void tp_strided_copy(tp_ctx *c, const tp_tensor *dst, const tp_tensor *src) {
    if (!tp_numel(dst)) return;
    job j = {.dst = dst->data, .src = src ? src->data : NULL, .bytes = tp_dtype_size(dst->dtype)};
    join(&j, dst, src);
    int64_t rows = 1, row_bytes = j.n * (int64_t)j.bytes;
    for (int d = 0; d < j.outer; d++) rows *= j.shape[d];
    tp_parallel_for(c, rows, CHUNK_BYTES / row_bytes + 1, copy_rows, &j);
}
