/* matmul, matmul_gelu and matmul_wgrad on the CPU: tensors and attributes turned into gemm.h's
 * strides. */
#include "core/ctx.h"
#include "ops/convert.h"
#include "ops/matmul/column_sums.h"
#include "ops/matmul/gemm.h"
#include "ops/matmul/matmul_call.h"

/* ---- matmul --------------------------------------------------------------------------------- */
typedef struct product {
    const tp_call *call;
    tp_gemm g; /* the first matrix of the batch */
    int64_t batch;
    int64_t tasks; /* > 1: this many threads take whole matrices */
    size_t bytes;  /* workspace of one gemm */
} product;

static product describe(const tp_call *k) {
    const tp_matmul_attr *attr = k->attr;
    const tp_tensor *a = k->in[0], *b = k->in[1], *y = k->out[k->nout - 1]; /* the product */
    int row = a->ndim - 2, col = a->ndim - 1, b_row = b->ndim - 2, b_col = b->ndim - 1;
    product p = {.call = k, .batch = tp_batch(y), .tasks = 1};
    p.g = (tp_gemm){.m = y->shape[row],
                    .n = y->shape[col],
                    .k = a->shape[attr->trans_a ? row : col],
                    .a = tp_f32(a),
                    .a_rs = a->stride[attr->trans_a ? col : row],
                    .a_cs = a->stride[attr->trans_a ? row : col],
                    .b = tp_f32(b),
                    .b_rs = b->stride[attr->trans_b ? b_col : b_row],
                    .b_cs = b->stride[attr->trans_b ? b_row : b_col],
                    .c = tp_f32(y),
                    .ldc = y->shape[col],
                    .bias = k->in[2] ? tp_f32(k->in[2]) : NULL,
                    .gelu = k->nout > 1 ? tp_f32(k->out[0]) : NULL,
                    .bf16 = k->ctx->bf16_products,
                    .work = k->workspace};
    int64_t stride;
    if (b->ndim == 2 && !attr->trans_a && even_rows(a, &stride)) {
        p.g.m *= p.batch; /* all rows meet the same b: one tall matrix */
        p.g.a_rs = stride;
        p.batch = 1;
    }
    int threads = tp_threads(k->ctx);
    if (p.batch >= threads) p.tasks = threads;
    p.bytes = tp_gemm_workspace(&p.g, p.tasks > 1 ? 1 : threads);
    return p;
}

static size_t matmul_workspace(const tp_call *k) {
    product p = describe(k);
    return (size_t)p.tasks * p.bytes;
}

/* The s-th matrices of the batch. */
static tp_gemm matrices(const product *p, int64_t s) {
    const tp_tensor *a = p->call->in[0], *b = p->call->in[1];
    tp_gemm g = p->g;
    if (p->batch > 1) {
        g.a += tp_offset(a, s * a->shape[a->ndim - 2] * a->shape[a->ndim - 1]);
        if (b->ndim > 2) g.b += tp_offset(b, s * b->shape[b->ndim - 2] * b->shape[b->ndim - 1]);
        g.c += s * g.m * g.n;
        if (g.gelu) g.gelu += s * g.m * g.n;
    }
    return g;
}

static void run_matrices(void *arg, int64_t begin, int64_t end) {
    const product *p = arg;
    for (int64_t t = begin; t < end; t++)
        for (int64_t s = p->batch * t / p->tasks; s < p->batch * (t + 1) / p->tasks; s++) {
            tp_gemm g = matrices(p, s);
            g.work = (char *)g.work + (size_t)t * p->bytes;
            TP_CAT(tp_gemm_one, TP_ISA)(&g);
        }
}

static tp_status run_product(const tp_call *k, bool accumulate) {
    product p = describe(k);
    if (accumulate) {
        p.g.accumulate = true;
        p.bytes = tp_gemm_workspace(&p.g, p.tasks > 1 ? 1 : tp_threads(k->ctx));
    }
    if (p.g.m == 0 || p.g.n == 0) return TP_OK;
    if (p.tasks > 1) tp_parallel_for(k->ctx, p.tasks, 1, run_matrices, &p);
    for (int64_t s = 0; p.tasks == 1 && s < p.batch; s++) {
        tp_gemm g = matrices(&p, s);
        TP_CAT(tp_gemm_run, TP_ISA)(k->ctx, &g);
    }
    return TP_OK;
}

static tp_status matmul_run(const tp_call *k) { return run_product(k, false); }

static const char *matmul_decline(const tp_call *k) {
    if (k->in[2] && !tp_contiguous(k->in[2])) return "bias is strided";
    return tp_decline_unless_f32(k);
}

TP_CPU_KERNEL(matmul_cpu, .decline = matmul_decline, .run = matmul_run,
              .workspace = matmul_workspace);
TP_CPU_KERNEL(matmul_gelu_cpu, .decline = matmul_decline, .run = matmul_run,
              .workspace = matmul_workspace);

/* ---- matmul_ -------------------------------------------------------------------------------- */
/* The same product, without an output of its own. */
static tp_call as_matmul(const tp_call *k) {
    tp_call m = *k;
    m.in[0] = k->in[1];
    m.in[1] = k->in[2];
    m.in[2] = NULL;
    m.out[0] = k->in[0];
    m.nout = 1;
    return m;
}

static size_t matmul_add_workspace(const tp_call *k) {
    tp_call m = as_matmul(k);
    product p = describe(&m);
    p.g.accumulate = true;
    return (size_t)p.tasks * tp_gemm_workspace(&p.g, p.tasks > 1 ? 1 : tp_threads(k->ctx));
}

static tp_status matmul_add_run(const tp_call *k) {
    tp_call m = as_matmul(k);
    return run_product(&m, true);
}

static const char *matmul_add_decline(const tp_call *k) {
    return tp_contiguous(k->in[0]) ? tp_decline_unless_f32(k) : "sum is strided";
}

TP_CPU_KERNEL(matmul_add_cpu, .decline = matmul_add_decline, .run = matmul_add_run,
              .workspace = matmul_add_workspace);

/* ---- matmul_wgrad --------------------------------------------------------------------------- */
static const char *wgrad_decline(const tp_call *k) {
    int64_t stride;
    for (int i = 0; i < 2; i++)
        if (!even_rows(k->in[i], &stride)) return "rows do not lie evenly apart";
    return tp_decline_unless_f32(k);
}

/* dw = x^T dy: rows are steps of k, a sample is a leaf of the tree. */
static tp_gemm weight_gemm(const tp_call *k) {
    const tp_wgrad_attr *attr = k->attr;
    const tp_tensor *x = k->in[0], *dy = k->in[1], *dw = wgrad_dw(k);
    const tp_tensor *a = attr->transposed ? dy : x, *b = attr->transposed ? x : dy;
    int last = x->ndim - 1;
    tp_gemm g = {.m = a->shape[last],
                 .n = b->shape[last],
                 .k = tp_batch(x) * x->shape[last - 1],
                 .a = tp_f32(a),
                 .a_rs = a->stride[last],
                 .b = tp_f32(b),
                 .b_cs = b->stride[last],
                 .c = dw ? tp_f32(dw) : NULL,
                 .ldc = b->shape[last],
                 .leaf = tp_sample_rows(x),
                 .bf16 = k->ctx->bf16_products,
                 .work = k->workspace};
    even_rows(a, &g.a_cs);
    even_rows(b, &g.b_rs);
    if (k->ctx->fast) g.leaf = 0; /* one chain over all rows */
    return g;
}

static column_sums bias_sums(const tp_call *k) {
    const tp_tensor *dy = k->in[1], *db = wgrad_db(k);
    column_sums w = {.x = tp_f32(dy),
                     .rows = tp_batch(dy) * dy->shape[dy->ndim - 2],
                     .n = dy->shape[dy->ndim - 1],
                     .step = dy->stride[dy->ndim - 1],
                     .leaf = tp_sample_rows(dy),
                     .out = db ? tp_f32(db) : NULL,
                     .left = k->workspace};
    even_rows(dy, &w.stride);
    if (k->ctx->fast) w.leaf = w.rows;
    return w;
}

static size_t wgrad_workspace(const tp_call *k) {
    tp_gemm w = weight_gemm(k);
    column_sums b = bias_sums(k);
    size_t weight = wgrad_dw(k) ? tp_gemm_workspace(&w, tp_threads(k->ctx)) : 0;
    size_t bias = wgrad_db(k) ? column_sums_bytes(&b) : 0;
    return weight > bias ? weight : bias;
}

static tp_status wgrad_run(const tp_call *k) {
    tp_gemm w = weight_gemm(k);
    column_sums b = bias_sums(k);
    if (wgrad_dw(k)) TP_CAT(tp_gemm_run, TP_ISA)(k->ctx, &w);
    if (wgrad_db(k)) column_sums_run(k->ctx, &b);
    return TP_OK;
}

TP_CPU_KERNEL(matmul_wgrad_cpu, .decline = wgrad_decline, .run = wgrad_run,
              .workspace = wgrad_workspace);
