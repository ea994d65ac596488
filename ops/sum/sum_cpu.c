/* sum on the CPU: two walks, by rows where the last dimension is summed and by columns where it is
 * kept. sum.h states the order of the additions. */
#include "ops/op.h"
#include "ops/reduce.h"
#include <string.h>

enum {
    WIDTH = 128, /* columns at a time: eight AVX-512 registers, and 512 bytes in a row of memory */
    LEVELS = 48, /* of the tree over samples: 2^47 of them */
    GRAIN = 1 << 14
};

typedef struct sum_plan {
    const float *x;
    float *y;
    tp_dims kept, chain;
    int64_t samples, sample_stride;
    int64_t lane_n, lane_stride; /* by rows: along the last dimension */
    int64_t cols, col_stride;    /* by columns: the innermost kept dimensions */
} sum_plan;

static bool plan_make(sum_plan *p, const tp_call *k) {
    const tp_tensor *x = k->in[0];
    const tp_reduce_attr *a = k->attr;
    int last = x->ndim - 1;
    bool rows = last >= 0 && ((a->dims >> last) & 1);
    bool tree = (a->dims & 1) && (x->ndim >= 3 || (rows && x->ndim == 2));
    *p = (sum_plan){.x = tp_f32(x), .y = tp_f32(k->out[0]), .samples = 1, .cols = 1};
    tp_dims_push(&p->kept, 1, 0);
    tp_dims_push(&p->chain, 1, 0);
    for (int d = 0; d <= last; d++) {
        bool reduced = (a->dims >> d) & 1;
        if (d == 0 && tree)
            p->samples = x->shape[0], p->sample_stride = x->stride[0];
        else if (d == last && rows)
            p->lane_n = x->shape[d], p->lane_stride = x->stride[d];
        else
            tp_dims_push(reduced ? &p->chain : &p->kept, x->shape[d], x->stride[d]);
    }
    if (!rows) { /* the innermost of the kept dimensions are the columns */
        int inner = p->kept.ndim - 1;
        p->cols = p->kept.shape[inner];
        p->col_stride = p->kept.stride[inner];
        p->kept.n /= p->cols ? p->cols : 1;
        p->kept.ndim--;
    }
    return rows;
}

/* ---- the tree over samples: a binary counter of blocks of w sums ---------------------------- */
typedef struct tree {
    int depth;
    int64_t pushed;
    float level[LEVELS][WIDTH];
} tree;

static inline void tree_merge(tree *t, int64_t w) {
    float *restrict left = t->level[t->depth - 2];
    const float *restrict right = t->level[t->depth - 1];
    for (int64_t i = 0; i < w; i++) left[i] += right[i];
    t->depth--;
}

/* The leaf has been written to level[depth]. */
static inline void tree_push(tree *t, int64_t w) {
    t->depth++;
    for (int64_t n = ++t->pushed; !(n & 1); n >>= 1) tree_merge(t, w);
}

static inline void tree_end(tree *t, int64_t w, float *y) {
    while (t->depth > 1) tree_merge(t, w);
    if (t->depth == 1)
        memcpy(y, t->level[0], (size_t)w * sizeof *y);
    else
        memset(y, 0, (size_t)w * sizeof *y);
}

/* ---- by columns ----------------------------------------------------------------------------- */
static inline void add_row(float *restrict acc, const float *restrict x, int64_t stride,
                           int64_t w) {
    if (stride == 1 && w == WIDTH)
        for (int i = 0; i < WIDTH; i++) acc[i] += x[i];
    else if (stride == 1)
        for (int64_t i = 0; i < w; i++) acc[i] += x[i];
    else
        for (int64_t i = 0; i < w; i++) acc[i] += x[i * stride];
}

static void column_block(const sum_plan *p, tree *t, const float *x, int64_t w, float *y) {
    const tp_dims *c = &p->chain;
    int64_t inner = c->shape[c->ndim - 1], step = c->stride[c->ndim - 1];
    t->depth = 0;
    t->pushed = 0;
    for (int64_t s = 0; s < p->samples; s++) {
        float *acc = t->level[t->depth];
        memset(acc, 0, (size_t)w * sizeof *acc);
        for (int64_t m = 0; m < c->n; m += inner) {
            const float *row = x + s * p->sample_stride + tp_dims_offset(c, m);
            for (int64_t i = 0; i < inner; i++) add_row(acc, row + i * step, p->col_stride, w);
        }
        tree_push(t, w);
    }
    tree_end(t, w, y);
}

static void columns(void *arg, int64_t begin, int64_t end) {
    const sum_plan *p = arg;
    int64_t blocks = (p->cols + WIDTH - 1) / WIDTH;
    tree t;
    for (int64_t u = begin; u < end; u++) {
        int64_t row = u / blocks, col = u % blocks * WIDTH;
        int64_t w = p->cols - col < WIDTH ? p->cols - col : WIDTH;
        const float *x = p->x + tp_dims_offset(&p->kept, row) + col * p->col_stride;
        column_block(p, &t, x, w, p->y + row * p->cols + col);
    }
}

/* ---- by rows -------------------------------------------------------------------------------- */
static inline float lane_sum(const float *x, int64_t n, int64_t stride) {
    float lane[16] = {0};
    int64_t i = 0;
    if (stride == 1)
        for (; i + 16 <= n; i += 16)
            for (int j = 0; j < 16; j++) lane[j] += x[i + j];
    for (int64_t j = 0; i + j < n; j++) lane[(i + j) % 16] += x[(i + j) * stride];
    for (int half = 8; half > 0; half /= 2)
        for (int j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}

static void rows(void *arg, int64_t begin, int64_t end) {
    const sum_plan *p = arg;
    tree t;
    for (int64_t u = begin; u < end; u++) {
        const float *x = p->x + tp_dims_offset(&p->kept, u);
        t.depth = 0;
        t.pushed = 0;
        for (int64_t s = 0; s < p->samples; s++) {
            float *acc = t.level[t.depth];
            *acc = 0;
            for (int64_t m = 0; m < p->chain.n; m++)
                *acc += lane_sum(x + s * p->sample_stride + tp_dims_offset(&p->chain, m), p->lane_n,
                                 p->lane_stride);
            tree_push(&t, 1);
        }
        tree_end(&t, 1, p->y + u);
    }
}

static tp_status sum_run(const tp_call *k) {
    sum_plan p;
    int64_t n = tp_numel(k->out[0]), work = tp_numel(k->in[0]);
    if (n == 0) return TP_OK;
    if (work == 0) {
        memset(p.y = tp_f32(k->out[0]), 0, (size_t)n * sizeof(float));
        return TP_OK;
    }
    bool by_rows = plan_make(&p, k);
    int64_t units = by_rows ? p.kept.n : p.kept.n * ((p.cols + WIDTH - 1) / WIDTH);
    int64_t each = work / units;
    tp_parallel_for(k->ctx, units, each < GRAIN ? GRAIN / each : 1, by_rows ? rows : columns, &p);
    return TP_OK;
}
TP_CPU_KERNEL(sum_cpu, .decline = tp_decline_unless_f32, .run = sum_run);
