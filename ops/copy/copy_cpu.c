/* copy on the CPU. A transposed matrix is copied in square tiles, so that a cache line that was
 * fetched is used whole; anything else goes through the elementwise walk, which packs rows. */
#include "ops/broadcast.h"
#include "ops/reduce.h"
#include <string.h>

enum { TILE = 32 }; /* 32 x 32 floats: 4 KB read, 4 KB written */

static void copy_run(const tp_run *r) {
    memcpy(r->out[0], r->in[0], (size_t)r->n * *(const size_t *)r->attr);
}

typedef struct transposed {
    const uint32_t *x;
    uint32_t *y;
    tp_dims outer;      /* what stands before the two dimensions that change places */
    int64_t rows, cols; /* of y; x's column stride is not 1, its row stride is */
    int64_t col_stride;
} transposed;

static void tiles(void *arg, int64_t begin, int64_t end) {
    const transposed *t = arg;
    int64_t down = (t->rows + TILE - 1) / TILE, across = (t->cols + TILE - 1) / TILE;
    for (int64_t u = begin; u < end; u++) {
        int64_t matrix = u / (down * across), r0 = u / across % down * TILE, c0 = u % across * TILE;
        int64_t r1 = r0 + TILE < t->rows ? r0 + TILE : t->rows;
        int64_t c1 = c0 + TILE < t->cols ? c0 + TILE : t->cols;
        const uint32_t *x = t->x + tp_dims_offset(&t->outer, matrix);
        uint32_t *y = t->y + matrix * t->rows * t->cols;
        for (int64_t i = r0; i < r1; i++)
            for (int64_t j = c0; j < c1; j++) y[i * t->cols + j] = x[i + j * t->col_stride];
    }
}

/* The last two dimensions exchanged, four bytes a value. */
static bool copy_transposed(const tp_call *k) {
    const tp_tensor *x = k->in[0];
    int n = x->ndim;
    if (n < 2 || tp_dtype_size(x->dtype) != 4 || x->stride[n - 2] != 1 || x->shape[n - 1] < 8)
        return false;
    transposed t = {.x = x->data,
                    .y = k->out[0]->data,
                    .rows = x->shape[n - 2],
                    .cols = x->shape[n - 1],
                    .col_stride = x->stride[n - 1]};
    tp_dims_push(&t.outer, 1, 0);
    for (int d = 0; d < n - 2; d++) tp_dims_push(&t.outer, x->shape[d], x->stride[d]);
    int64_t units = t.outer.n * ((t.rows + TILE - 1) / TILE) * ((t.cols + TILE - 1) / TILE);
    tp_parallel_for(k->ctx, units, 16, tiles, &t);
    return true;
}

static tp_status copy_all(const tp_call *k) {
    size_t size = tp_dtype_size(k->in[0]->dtype);
    if (tp_numel(k->in[0]) == 0 || copy_transposed(k)) return TP_OK;
    tp_call with_size = *k;
    with_size.attr = &size;
    tp_elementwise(&with_size, 1, k->out, copy_run);
    return TP_OK;
}
TP_CPU_KERNEL(copy_cpu, .run = copy_all);
