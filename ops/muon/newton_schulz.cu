/* newton_schulz on CUDA: matrix products (ops/matmul/gemm_cuda.h) in f32, all blocks of x in one
 * batch, and small kernels between them. The norm's squares are summed in double. */
#include "ops/cuda.h"
#include "ops/matmul/gemm_cuda.h"
#include "ops/muon/newton_schulz.h"

enum { NS_THREADS = 256 };

typedef struct ns_work {
    ns_shape s;
    double *row;        /* (blocks, rows): squared lengths */
    float *factor;      /* (blocks): 1/norm */
    float *gram, *poly; /* (blocks, small, small) */
    float *spare;       /* laid out as x: the iterate is in turns here and in the output */
} ns_work;

/* A warp per row. */
__global__ void ns_row_squares(const float *x, ns_shape s, double *row) {
    int64_t r = ((int64_t)blockIdx.x * NS_THREADS + threadIdx.x) / 32;
    if (r >= s.blocks * s.rows) return;
    int64_t block = r / s.rows;
    double sum = 0;
    x += block * s.step + (r - block * s.rows) * s.ld;
    for (int64_t j = threadIdx.x % 32; j < s.cols; j += 32) {
        double v = tp_ldg(x + j);
        sum += v * v;
    }
    sum = tp_warp_sum(sum);
    if (threadIdx.x % 32 == 0) row[r] = sum;
}

/* A block per block. */
__global__ void ns_factors(const double *row, ns_shape s, float *factor) {
    TP_SHARED(double, part, NS_THREADS / 32);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < s.rows; i += NS_THREADS) sum += row[blockIdx.x * s.rows + i];
    sum = tp_warp_sum(sum);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x) return;
    sum = 0;
    for (int w = 0; w < NS_THREADS / 32; w++) sum += (double)part[w];
    factor[blockIdx.x] = (float)(1 / (sqrt(sum) + NS_EPSILON));
}

__global__ void ns_scale(const float *x, float *y, ns_shape s, int64_t n, const float *factor) {
    int64_t i = (int64_t)blockIdx.x * NS_THREADS + threadIdx.x;
    if (i >= n) return;
    int64_t row = i / s.ld, col = i - row * s.ld;
    /* blocks stand side by side if they are narrower than x, else below each other */
    int64_t block = s.cols < s.ld ? col / s.cols : row / s.rows;
    tp_stg(y + i, tp_ldg(x + i) * tp_ldg(factor + block));
}

/* poly = a I + b gram + c gram^2, with gram^2 already in poly; n values of (…,small,small) */
__global__ void ns_poly(const float *gram, float *poly, int64_t small, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * NS_THREADS + threadIdx.x;
    if (i >= n) return;
    float p = fmaf((float)NS_C, tp_ldg(poly + i), (float)NS_B * tp_ldg(gram + i));
    if (i % (small * small) % (small + 1) == 0) p += (float)NS_A;
    tp_stg(poly + i, p);
}

/* ---- products ------------------------------------------------------------------------------- */
static tp_cuda_matrix ns_matrix(const float *p, int64_t row, int64_t col, int64_t batch) {
    tp_cuda_matrix m = {};
    m.p = (void *)p;
    m.dtype = TP_F32;
    m.row = row;
    m.col = col;
    m.batch = batch;
    return m;
}

/* y (m,n) = a (m,k) b (k,n) of every block */
static tp_status ns_product(const tp_call *k, const ns_work *w, int64_t m, int64_t n, int64_t depth,
                            tp_cuda_matrix a, tp_cuda_matrix b, tp_cuda_matrix y) {
    tp_cuda_gemm g = {};
    g.batch = w->s.blocks;
    g.m = m;
    g.n = n;
    g.k = depth;
    g.a = a;
    g.b = b;
    g.c = y;
    return tp_cuda_gemm_run(k, &g);
}

static tp_status ns_step(const tp_call *k, const ns_work *w, const float *from, float *to) {
    const ns_shape *s = &w->s;
    int64_t n = s->small, all = s->blocks * n * n;
    tp_cuda_matrix x = ns_matrix(from, s->ld, 1, s->step), xt = ns_matrix(from, 1, s->ld, s->step);
    tp_cuda_matrix gram = ns_matrix(w->gram, n, 1, n * n), poly = ns_matrix(w->poly, n, 1, n * n);
    tp_status st = ns_product(k, w, n, n, s->large, s->tall ? xt : x, s->tall ? x : xt, gram);
    if (!st) st = ns_product(k, w, n, n, n, gram, gram, poly);
    if (st) return st;
    const float *g = w->gram;
    float *p = w->poly;
    st = TP_LAUNCH(k, ns_poly, tp_blocks(all, NS_THREADS), NS_THREADS, 0, g, p, n, all);
    if (st) return st;
    return ns_product(k, w, s->rows, s->cols, n, s->tall ? x : poly, s->tall ? poly : x,
                      ns_matrix(to, s->ld, 1, s->step));
}

/* ---- the host's side ------------------------------------------------------------------------ */
static void *carve(char *base, size_t *used, size_t bytes) {
    void *p = base ? base + *used : NULL;
    *used += (bytes + 255) & ~(size_t)255;
    return p;
}

static size_t lay_out(ns_work *w, const tp_call *k, void *base) {
    size_t used = 0;
    char *room = (char *)base;
    w->s = ns_shape_of(k);
    size_t blocks = (size_t)w->s.blocks, n = (size_t)w->s.small;
    w->row = (double *)carve(room, &used, blocks * (size_t)w->s.rows * sizeof(double));
    w->factor = (float *)carve(room, &used, blocks * sizeof(float));
    w->gram = (float *)carve(room, &used, blocks * n * n * sizeof(float));
    w->poly = (float *)carve(room, &used, blocks * n * n * sizeof(float));
    w->spare = (float *)carve(room, &used, (size_t)tp_numel(k->in[0]) * sizeof(float));
    return used;
}

static size_t workspace(const tp_call *k) {
    ns_work w;
    return lay_out(&w, k, NULL);
}

static tp_status normalise(const tp_call *k, const ns_work *w, float *to) {
    ns_shape s = w->s;
    const float *x = tp_f32(k->in[0]);
    double *row = w->row;
    float *factor = w->factor;
    int64_t rows = s.blocks * s.rows, n = tp_numel(k->in[0]);
    tp_status st =
        TP_LAUNCH(k, ns_row_squares, tp_blocks(rows, NS_THREADS / 32), NS_THREADS, 0, x, s, row);
    if (!st) st = TP_LAUNCH(k, ns_factors, (unsigned)s.blocks, NS_THREADS, 0, row, s, factor);
    if (st) return st;
    return TP_LAUNCH(k, ns_scale, tp_blocks(n, NS_THREADS), NS_THREADS, 0, x, to, s, n, factor);
}

static tp_status run(const tp_call *k) {
    ns_work w;
    if (tp_numel(k->in[0]) == 0) return TP_OK;
    lay_out(&w, k, k->workspace);
    bool in_out = w.s.steps % 2 == 0; /* so that the last step ends in out */
    float *out = tp_f32(k->out[0]);
    tp_status st = normalise(k, &w, in_out ? out : w.spare);
    for (int i = 0; i < w.s.steps && !st; i++, in_out = !in_out)
        st = ns_step(k, &w, in_out ? out : w.spare, in_out ? w.spare : out);
    return st;
}

static const char *decline(const tp_call *k) {
    if (k->in[0]->dtype != TP_F32) return "x is not f32";
    return tp_numel(k->in[0]) && !tp_contiguous(k->in[0]) ? "x is strided" : NULL;
}
TP_CUDA_KERNEL(newton_schulz_cuda, .decline = decline, .run = run, .workspace = workspace);
