/* matmul, matmul_, matmul_gelu, matmul_dgelu and gelu_mlp on CUDA: tensors and attributes turned
 * into gemm_cuda.h's matrices. */
#include "ops/cuda.h"
#include "ops/matmul/gemm_cuda.h"
#include "ops/matmul/matmul_call.h"

typedef struct product {
    const tp_tensor *a, *b, *bias;
    tp_tensor *c, *h; /* h: what the epilogue reads or writes; dense */
    tp_cuda_epilogue epilogue;
    bool accumulate;
    int64_t pitch; /* 0: c is dense; else what c.row is */
} product;

/* The first of t's `dims` leading dimensions from which on they lie evenly apart, and how far. */
static int even_from(const tp_tensor *t, int dims, int64_t *stride) {
    int64_t n = 1;
    *stride = 0;
    for (; dims > 0; dims--) {
        if (t->shape[dims - 1] == 1) continue;
        if (n == 1)
            *stride = t->stride[dims - 1];
        else if (t->stride[dims - 1] != *stride * n)
            break;
        n *= t->shape[dims - 1];
    }
    return dims;
}

/* The i-th matrix, counted over all leading dimensions. */
static void *matrix_at(const tp_tensor *t, int64_t i) {
    int64_t at = 0;
    for (int d = t->ndim - 3; d >= 0 && i; d--) { /* i = 0: a dimension may be empty */
        at += i % t->shape[d] * t->stride[d];
        i /= t->shape[d];
    }
    return (char *)t->data + at * (int64_t)tp_dtype_size(t->dtype);
}

static tp_status run_product(const tp_call *k, const product *p) {
    const tp_matmul_attr *attr = (const tp_matmul_attr *)k->attr;
    const tp_tensor *a = p->a, *b = p->b;
    int row = a->ndim - 2, col = a->ndim - 1, b_row = b->ndim - 2, b_col = b->ndim - 1;
    int64_t m = tp_dim(p->c, -2), n = tp_dim(p->c, -1), stride;
    tp_cuda_gemm g = {
        .batch = 1,
        .m = m,
        .n = n,
        .k = a->shape[attr->trans_a ? row : col],
        .a = {a->data, a->dtype, a->stride[attr->trans_a ? col : row],
              a->stride[attr->trans_a ? row : col]},
        .b = {b->data, b->dtype, b->stride[attr->trans_b ? b_col : b_row],
              b->stride[attr->trans_b ? b_row : b_col]},
        .c = {p->c->data, p->c->dtype, p->pitch ? p->pitch : n, 1, m * n},
        .bias = p->bias ? p->bias->data : NULL,
        .accumulate = p->accumulate,
        .epilogue = p->epilogue,
        .aux = p->h ? p->h->data : NULL,
    };
    if (b->ndim == 2 && !attr->trans_a && even_rows(a, &stride)) {
        g.m *= tp_batch(p->c); /* all rows meet the same b: one tall matrix */
        g.a.row = stride;
        return tp_cuda_gemm_run(k, &g);
    }
    int first = even_from(a, row, &g.a.batch), first_b = 0;
    if (b->ndim > 2) first_b = even_from(b, row, &g.b.batch);
    if (first_b > first) first = first_b;
    int64_t outer = 1;
    for (int i = 0; i < first; i++) outer *= a->shape[i];
    for (int i = first; i < row; i++) g.batch *= a->shape[i];
    size_t step = (size_t)(g.batch * m * n) * tp_dtype_size(p->c->dtype);
    tp_status st = TP_OK;
    for (int64_t s = 0; s < outer && !st; s++) {
        g.a.p = matrix_at(a, s * g.batch);
        if (b->ndim > 2) g.b.p = matrix_at(b, s * g.batch);
        g.c.p = (char *)p->c->data + (size_t)s * step;
        if (p->h) g.aux = (char *)p->h->data + (size_t)s * step;
        st = tp_cuda_gemm_run(k, &g);
    }
    return st;
}

static const char *matmul_decline(const tp_call *k) {
    if (k->in[2] && !tp_contiguous(k->in[2])) return "bias is strided";
    return tp_decline_cuda_floats(k);
}

/* ---- logits: rows of TP_CUDA_LOGITS_PITCH, and then without what is between them
 * ------------------- */
enum { THREADS = 256 };
__global__ void __launch_bounds__(THREADS)
    unpad_rows(const float *from, int64_t pitch, float *to, int64_t n, int64_t count) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, row = i / n;
    if (i < count) tp_stg(to + i, tp_ldg(from + row * pitch + (i - row * n)));
}

static int64_t logits_pitch(const tp_call *k) {
    const tp_matmul_attr *attr = (const tp_matmul_attr *)k->attr;
    int64_t n = tp_dim(k->out[0], -1), stride;
    if (!attr->f32 || attr->trans_a || n % TP_CUDA_LOGITS_PITCH == 0 ||
        k->out[0]->dtype != TP_F32 || k->in[1]->ndim != 2 || !even_rows(k->in[0], &stride))
        return 0;
    return (n / TP_CUDA_LOGITS_PITCH + 1) * TP_CUDA_LOGITS_PITCH;
}
static size_t matmul_workspace(const tp_call *k) {
    int64_t pitch = logits_pitch(k), n = tp_dim(k->out[0], -1);
    return pitch ? (size_t)(tp_numel(k->out[0]) / n * pitch) * sizeof(float) : 0;
}

static tp_status matmul_run(const tp_call *k) {
    product p = {k->in[0], k->in[1],         k->in[2], k->out[0],
                 NULL,     TP_EPILOGUE_NONE, false,    logits_pitch(k)};
    if (!p.pitch) return run_product(k, &p);
    tp_tensor padded = *k->out[0];
    int64_t n = tp_dim(&padded, -1), count = tp_numel(&padded);
    padded.data = k->workspace;
    p.c = &padded;
    tp_status st = run_product(k, &p);
    return st ? st
              : TP_LAUNCH(k, unpad_rows, tp_blocks(count, THREADS), THREADS, 0,
                          (const float *)k->workspace, p.pitch, tp_f32(k->out[0]), n, count);
}
TP_CUDA_KERNEL(matmul_cuda, .decline = matmul_decline, .run = matmul_run,
               .workspace = matmul_workspace);

static tp_status matmul_gelu_run(const tp_call *k) {
    product p = {k->in[0], k->in[1], k->in[2], k->out[0], k->out[1], TP_EPILOGUE_GELU, false, 0};
    return run_product(k, &p);
}
TP_CUDA_KERNEL(matmul_gelu_cuda, .decline = matmul_decline, .run = matmul_gelu_run);

static const char *matmul_dgelu_decline(const tp_call *k) {
    return tp_contiguous(k->in[2]) ? tp_decline_cuda_floats(k) : "h is strided";
}

static tp_status matmul_dgelu_run(const tp_call *k) {
    product p = {k->in[0], k->in[1], NULL, k->out[0], k->in[2], TP_EPILOGUE_DGELU, false, 0};
    return run_product(k, &p);
}
TP_CUDA_KERNEL(matmul_dgelu_cuda, .decline = matmul_dgelu_decline, .run = matmul_dgelu_run);

static const char *gelu_mlp_decline(const tp_call *k) {
    for (int i = 2; i < 5; i += 2)
        if (k->in[i] && !tp_contiguous(k->in[i])) return "a bias is strided";
    return tp_decline_cuda_floats(k);
}

static tp_status gelu_mlp_run(const tp_call *k) {
    product up = {k->in[0], k->in[1], k->in[2], k->out[1], k->out[2], TP_EPILOGUE_GELU, false, 0};
    product down = {k->out[1], k->in[3], k->in[4], k->out[0], NULL, TP_EPILOGUE_NONE, false, 0};
    tp_status st = run_product(k, &up);
    return st ? st : run_product(k, &down);
}
TP_CUDA_KERNEL(gelu_mlp_cuda, .decline = gelu_mlp_decline, .run = gelu_mlp_run);

static const char *matmul_add_decline(const tp_call *k) {
    return tp_contiguous(k->in[0]) ? tp_decline_cuda_floats(k) : "sum is strided";
}

static tp_status matmul_add_run(const tp_call *k) {
    product p = {k->in[1], k->in[2], NULL, k->in[0], NULL, TP_EPILOGUE_NONE, true, 0};
    return run_product(k, &p);
}
TP_CUDA_KERNEL(matmul_add_cuda, .decline = matmul_add_decline, .run = matmul_add_run);
