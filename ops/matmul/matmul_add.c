/* matmul_: a product added to what is there. The walk back uses it where a tensor has several
 * readers (queries, keys and values of one norm): the second cotangent goes onto the first without
 * being written and read in between. Addition comes last, so the bits are those of add_. */
#include "ops/matmul/matmul.h"
#include "ops/matmul/matmul_call.h"

extern const tp_op op_matmul_;
TP_CPU_DECLARE(matmul_add_cpu);
TP_CUDA_DECLARE(matmul_add_cuda);

tp_status tp_matmul_(tp_ctx *c, tp_tensor *sum, tp_tensor *a, tp_tensor *b,
                     const tp_matmul_opts *o) {
    tp_matmul_attr attr = {o && o->trans_a, o && o->trans_b, false};
    tp_tensor *none[TP_MAXOUT];
    return tp_op_run(c, &op_matmul_, &attr, 3, (tp_tensor *[]){sum, a, b}, none);
}

static tp_status matmul_add_infer(tp_call *k) {
    const tp_matmul_attr *attr = k->attr;
    const tp_tensor *sum = k->in[0], *a = k->in[1], *b = k->in[2];
    static const char *const names[3] = {"sum", "a", "b"};
    tp_status st;
    for (int i = 0; i < 3; i++) {
        if ((st = tp_need_float(k, i, names[i]))) return st;
        if ((st = tp_need_ndim(k, i, names[i], 2, i == 2 ? 2 : TP_MAXDIM))) return st;
        if (k->in[i]->dtype != sum->dtype)
            return tp_refuse(k, TP_EDTYPE, "sum is %s but %s is %s", tp_dtype_name(sum->dtype),
                             names[i], tp_dtype_name(k->in[i]->dtype));
    }
    bool fits = !attr->trans_a && sum->ndim == a->ndim && sum->storage != a->storage &&
                sum->storage != b->storage && tp_dim(a, -1) == b->shape[attr->trans_b ? 1 : 0] &&
                tp_dim(sum, -1) == b->shape[attr->trans_b ? 0 : 1];
    for (int i = 0; fits && i < a->ndim - 1; i++) fits = sum->shape[i] == a->shape[i];
    if (fits) return TP_OK;
    return tp_refuse(k, TP_ESHAPE,
                     "sum must be a tensor of a*b's shape beside a and b, got %s, %s, %s",
                     tp_shape_str(k->ctx, sum), tp_shape_str(k->ctx, a), tp_shape_str(k->ctx, b));
}

static tp_status matmul_add_oracle(const tp_call *k) {
    const tp_matmul_attr *attr = k->attr;
    double *sum = tp_f64(k->in[0]);
    const double *a = tp_f64(k->in[1]), *b = tp_f64(k->in[2]);
    int64_t n = tp_dim(k->in[0], -1), kk = tp_dim(k->in[1], -1);
    int64_t rows = tp_batch(k->in[1]) * tp_dim(k->in[1], -2);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < n; j++)
            for (int64_t l = 0; l < kk; l++)
                sum[i * n + j] += a[i * kk + l] * b[attr->trans_b ? j * kk + l : l * n + j];
    return TP_OK;
}

static double matmul_add_flops(const tp_call *k) {
    return (double)tp_numel(k->in[0]) * (2 * (double)tp_dim(k->in[1], -1) + 1);
}

static const tp_attr matmul_add_attrs[] = {
    {"trans_a", TP_ATTR_BOOL, offsetof(tp_matmul_attr, trans_a)},
    {"trans_b", TP_ATTR_BOOL, offsetof(tp_matmul_attr, trans_b)},
    {0},
};
#define ATTR(a, b) (&(const tp_matmul_attr){.trans_a = a, .trans_b = b})
/* clang-format off */
#define X(...) {TP_GEN_NORMAL, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), {__VA_ARGS__}}
static const tp_sample matmul_add_samples[] = {
    {"matrix", {X(5, 3), X(5, 7), X(7, 3)}, ATTR(0, 0)},
    {"b transposed", {X(2, 5, 6), X(2, 5, 4), X(6, 4)}, ATTR(0, 1)},
    {"larger than a tile", {X(17, 37), X(17, 19), X(19, 37)}, ATTR(0, 0)},
    {"several stages", {X(20, 33), X(20, 1600), X(1600, 33)}, ATTR(0, 0)},
    {"few rows", {X(1, 2, 40), X(1, 2, 17), X(40, 17)}, ATTR(0, 1)},
    {"size 1", {X(1, 1), X(1, 1), X(1, 1)}, ATTR(0, 0)},
    {"empty K", {X(3, 4), X(3, 0), X(0, 4)}, ATTR(0, 0)},
    {"empty M", {X(0, 3), X(0, 4), X(4, 3)}, ATTR(0, 0)},
    {"K", {X(2, 3), X(2, 4), X(5, 3)}, ATTR(0, 0), .refuse = "of a*b's shape"},
    {"trans_a", {X(4, 3), X(2, 4), X(2, 3)}, ATTR(1, 0), .refuse = "of a*b's shape"},
    {"batched b", {X(2, 3, 4), X(2, 3, 5), X(2, 5, 4)}, ATTR(0, 0), .refuse = "b must have 2 dimensions"},
    {0},
};
/* clang-format on */

const tp_op op_matmul_ = {
    .name = "matmul_",
    .synopsis = "sum += a*b",
    .doc =
        "A matrix product with a shared b, added in place once each element's chain is complete: "
        "the bits of matmul and add_, without the product in memory.",
    .infer = matmul_add_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(matmul_add_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&matmul_add_cuda)},
    .oracle = matmul_add_oracle,
    .no_vjp = "changes its input in place; matmul and add are differentiable",
    .inplace = 1,
    .flops = matmul_add_flops,
    .attrs = matmul_add_attrs,
    .attr_bytes = sizeof(tp_matmul_attr),
    .samples = matmul_add_samples,
};
