/* matmul and matmul_wgrad by oneDNN's dnnl_sgemm, first in their lists under `numerics: fast`.
 * Built without oneDNN (TAPIR_ONEDNN undefined) the kernels are listed too, and say so. */
#include "core/ctx.h"
#include "ops/matmul/gemm_onednn.h"
#include "ops/matmul/matmul_call.h"
#ifdef TAPIR_ONEDNN
#include <dnnl.h>
#include <omp.h>
#endif

/* ---- gemm ----------------------------------------------------------------------------------- */
/* A matrix as BLAS takes it: rows, or columns, of values without gaps, ld apart. */
typedef struct side {
    char trans;
    int64_t ld;
} side;

static bool side_of(side *s, int64_t rows, int64_t cols, int64_t rs, int64_t cs) {
    if (cs == 1 || cols == 1) {
        *s = (side){'N', rows == 1 ? cols : rs};
        return s->ld >= cols;
    }
    *s = (side){'T', cs};
    return (rs == 1 || rows == 1) && cs >= rows;
}

const char *tp_gemm_onednn_declines(const tp_ctx *c, const tp_gemm *g) {
    side s;
    if (!c->fast) return "numerics: exact";
    if (c->bf16_products) return "products in bf16";
#ifndef TAPIR_ONEDNN
    return "this build has no oneDNN";
#endif
    if (!g->m || !g->n || !g->k) return "empty";
    if (g->bias) return "a bias is added faster inside matmul_cpu";
    if (g->gelu) return "gelu is fused into our own product";
    if (g->m == 1 || g->n == 1) return "a vector";
    if (!side_of(&s, g->m, g->k, g->a_rs, g->a_cs) || !side_of(&s, g->k, g->n, g->b_rs, g->b_cs))
        return "neither rows nor columns are dense";
    return NULL;
}

#ifdef TAPIR_ONEDNN
bool tp_gemm_onednn(tp_ctx *c, const tp_gemm *g) {
    side a, b;
    if (tp_gemm_onednn_declines(c, g)) return false;
    side_of(&a, g->m, g->k, g->a_rs, g->a_cs);
    side_of(&b, g->k, g->n, g->b_rs, g->b_cs);
    float beta = g->accumulate || g->resume ? 1.0f : 0.0f;
    int before = omp_get_max_threads(); /* oneDNN takes its number of threads from OpenMP */
    omp_set_num_threads(tp_threads(c));
    dnnl_status_t st = dnnl_sgemm(a.trans, b.trans, g->m, g->n, g->k, 1.0f, g->a, a.ld, g->b, b.ld,
                                  beta, g->c, g->ldc);
    omp_set_num_threads(before);
    return st == dnnl_success;
}
#else
bool tp_gemm_onednn(tp_ctx *c, const tp_gemm *g) {
    (void)c, (void)g;
    return false;
}
#endif

/* ---- matmul --------------------------------------------------------------------------------- */
/* a's rows, in all leading dimensions, times one shared b. */
static const char *product_of(const tp_call *k, tp_gemm *g) {
    const tp_matmul_attr *attr = k->attr;
    const tp_tensor *a = k->in[0], *b = k->in[1], *y = k->out[0];
    int row = a->ndim - 2, col = a->ndim - 1;
    int64_t stride = a->stride[row];
    if (b->ndim != 2) return "a batch of matrices";
    if (a->ndim > 2 && !even_rows(a, &stride)) return "rows do not lie evenly apart";
    *g = (tp_gemm){.m = tp_batch(y) * y->shape[row],
                   .n = y->shape[col],
                   .k = a->shape[attr->trans_a ? row : col],
                   .a = tp_f32(a),
                   .a_rs = attr->trans_a ? a->stride[col] : stride,
                   .a_cs = attr->trans_a ? stride : a->stride[col],
                   .b = tp_f32(b),
                   .b_rs = b->stride[attr->trans_b ? 1 : 0],
                   .b_cs = b->stride[attr->trans_b ? 0 : 1],
                   .c = tp_f32(y),
                   .ldc = y->shape[col],
                   .bias = k->in[2] ? tp_f32(k->in[2]) : NULL};
    return NULL;
}

static const char *matmul_decline(const tp_call *k) {
    tp_gemm g;
    const char *no = product_of(k, &g);
    if (!k->ctx->fast) return "numerics: exact";
    if (k->in[2]) return "a bias is added faster inside matmul_cpu";
    if (!no) no = tp_gemm_onednn_declines(k->ctx, &g);
    return no ? no : tp_decline_unless_f32(k);
}

static tp_status failed(const tp_call *k) {
    return tp_refuse(k, TP_ENOMEM, "oneDNN could not compute it (out of memory outside the pool?)");
}

static tp_status matmul_run(const tp_call *k) {
    tp_gemm g;
    product_of(k, &g);
    return tp_gemm_onednn(k->ctx, &g) ? TP_OK : failed(k);
}

const tp_kernel matmul_onednn = {
    .name = "matmul_onednn", .decline = matmul_decline, .run = matmul_run, .isa = 1};

/* ---- matmul_wgrad --------------------------------------------------------------------------- */
/* dw = x^T dy over all rows at once: rows are steps of k. */
static const char *weight_of(const tp_call *k, tp_gemm *g) {
    const tp_wgrad_attr *attr = k->attr;
    const tp_tensor *x = k->in[0], *dw = wgrad_dw(k);
    const tp_tensor *a = attr->transposed ? k->in[1] : x, *b = attr->transposed ? x : k->in[1];
    int last = x->ndim - 1;
    *g = (tp_gemm){.m = a->shape[last],
                   .n = b->shape[last],
                   .k = tp_batch(x) * x->shape[last - 1],
                   .a = tp_f32(a),
                   .a_rs = a->stride[last],
                   .b = tp_f32(b),
                   .b_cs = b->stride[last],
                   .c = dw ? tp_f32(dw) : NULL,
                   .ldc = b->shape[last]};
    bool even = even_rows(a, &g->a_cs) && even_rows(b, &g->b_rs);
    return even ? NULL : "rows do not lie evenly apart";
}

/* db = 1^T dy, by our own kernel: it reads dy once. */
static tp_gemm bias_of(const tp_call *k) {
    static const float one = 1.0f;
    const tp_tensor *dy = k->in[1], *db = wgrad_db(k);
    int last = dy->ndim - 1;
    tp_gemm g = {.m = 1,
                 .n = dy->shape[last],
                 .k = tp_batch(dy) * dy->shape[last - 1],
                 .a = &one,
                 .b = tp_f32(dy),
                 .b_cs = dy->stride[last],
                 .c = db ? tp_f32(db) : NULL,
                 .ldc = dy->shape[last],
                 .work = k->workspace};
    even_rows(dy, &g.b_rs);
    return g;
}

static void own_gemm(tp_ctx *c, const tp_gemm *g) {
#if defined(__x86_64__)
    if (c->isa >= 4) {
        tp_gemm_run_v4(c, g);
        return;
    }
    if (c->isa >= 3) {
        tp_gemm_run_v3(c, g);
        return;
    }
#endif
    tp_gemm_run_v1(c, g);
}

static const char *wgrad_decline(const tp_call *k) {
    tp_gemm g;
    const char *no = weight_of(k, &g);
    if (!k->ctx->fast) return "numerics: exact";
    if (!wgrad_dw(k)) return "only the bias is wanted";
    if (!no) no = tp_gemm_onednn_declines(k->ctx, &g);
    return no ? no : tp_decline_unless_f32(k);
}

static size_t wgrad_workspace(const tp_call *k) {
    tp_gemm g = bias_of(k);
    return wgrad_db(k) ? tp_gemm_workspace(&g, tp_threads(k->ctx)) : 0;
}

static tp_status wgrad_run(const tp_call *k) {
    tp_gemm w, b = bias_of(k);
    weight_of(k, &w);
    if (!tp_gemm_onednn(k->ctx, &w)) return failed(k);
    if (wgrad_db(k)) own_gemm(k->ctx, &b);
    return TP_OK;
}

const tp_kernel matmul_wgrad_onednn = {.name = "matmul_wgrad_onednn",
                                       .decline = wgrad_decline,
                                       .run = wgrad_run,
                                       .workspace = wgrad_workspace,
                                       .isa = 1};
