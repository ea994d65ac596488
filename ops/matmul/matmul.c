/* matmul.
 *
 *   y = a b + bias   so   da = dy b^T,   db = a^T dy,   dbias = the sum of dy's rows
 *
 * With transposes, A = a or a^T and B = b or b^T stand for a and b above, and a gradient with
 * respect to a^T is transposed back:  da = (dy B^T)^T = B dy^T,  db = (A^T dy)^T = dy^T A.  Where b
 * is shared by several samples its gradient is a sum over them, which matmul_wgrad takes in a fixed
 * order. */
#include "core/ctx.h"
#include "ops/cast/cast.h"
#include "ops/matmul/matmul.h"
#include "ops/matmul/matmul_call.h"

extern const tp_op op_matmul;
TP_CPU_DECLARE(matmul_cpu);
TP_CPU_DECLARE(matmul_naive_cpu); /* matmul_ladder_cpu.c */
TP_CPU_DECLARE(matmul_rows_cpu);
TP_CPU_DECLARE(matmul_blocks_cpu);
TP_CPU_DECLARE(matmul_tile_cpu);
TP_CUDA_DECLARE(matmul_cuda);

tp_tensor *tp_matmul(tp_ctx *c, tp_tensor *a, tp_tensor *b, const tp_matmul_opts *o) {
    tp_matmul_attr attr = {o && o->trans_a, o && o->trans_b, o && o->f32};
    return tp_op1(c, &op_matmul, &attr, a, b, o ? o->bias : NULL);
}

static tp_status check_types(const tp_call *k) {
    static const char *const names[3] = {"a", "b", "bias"};
    tp_status st;
    for (int i = 0; i < 3; i++) {
        if ((st = tp_need_float(k, i, names[i]))) return st;
        if (k->in[i] && k->in[i]->dtype != k->in[0]->dtype)
            return tp_refuse(k, TP_EDTYPE, "a is %s but %s is %s", tp_dtype_name(k->in[0]->dtype),
                             names[i], tp_dtype_name(k->in[i]->dtype));
    }
    if ((st = tp_need_ndim(k, 0, "a", 2, TP_MAXDIM))) return st;
    return tp_need_ndim(k, 1, "b", 2, TP_MAXDIM);
}

static tp_status check_bias(const tp_call *k, int64_t n) {
    const tp_matmul_attr *attr = k->attr;
    const tp_tensor *bias = k->in[2];
    if (!bias) return TP_OK;
    if (bias->ndim != 1 || bias->shape[0] != n)
        return tp_refuse(k, TP_ESHAPE, "bias must be [%lld], got %s", (long long)n,
                         tp_shape_str(k->ctx, bias));
    if (attr->f32) return tp_refuse(k, TP_EARG, "a bias does not go with f32 sums");
    if (k->in[1]->ndim > 2 || attr->trans_a)
        return tp_refuse(k, TP_ESHAPE, "bias goes only with a shared b and without trans_a");
    return TP_OK;
}

tp_status tp_matmul_infer(tp_call *k) {
    const tp_matmul_attr *attr = k->attr;
    tp_status st = check_types(k);
    if (st) return st;
    const tp_tensor *a = k->in[0], *b = k->in[1];
    int64_t m = tp_dim(a, attr->trans_a ? -1 : -2), ka = tp_dim(a, attr->trans_a ? -2 : -1);
    int64_t n = tp_dim(b, attr->trans_b ? -2 : -1), kb = tp_dim(b, attr->trans_b ? -1 : -2);
    if (ka != kb)
        return tp_refuse(k, TP_ESHAPE, "a %s%s and b %s%s disagree about K: %lld and %lld",
                         tp_shape_str(k->ctx, a), attr->trans_a ? "^T" : "",
                         tp_shape_str(k->ctx, b), attr->trans_b ? "^T" : "", (long long)ka,
                         (long long)kb);
    bool same = a->ndim == b->ndim;
    for (int i = 0; same && i < a->ndim - 2; i++) same = a->shape[i] == b->shape[i];
    if (b->ndim > 2 && !same)
        return tp_refuse(k, TP_ESHAPE,
                         "b must be [K,N] or have a's leading dimensions, got %s for %s",
                         tp_shape_str(k->ctx, b), tp_shape_str(k->ctx, a));
    if (b->ndim == 2 && a->ndim > 2 && attr->trans_a)
        return tp_refuse(k, TP_ESHAPE, "trans_a with leading dimensions needs a batched b, got %s",
                         tp_shape_str(k->ctx, b));
    if ((st = check_bias(k, n))) return st;
    int64_t shape[TP_MAXDIM] = {0};
    for (int i = 0; i < a->ndim - 2; i++) shape[i] = a->shape[i];
    shape[a->ndim - 2] = m;
    shape[a->ndim - 1] = n;
    return tp_out(k, attr->f32 && a->dtype == TP_BF16 ? TP_F32 : a->dtype, a->ndim, shape);
}

tp_status tp_matmul_oracle(const tp_call *k) {
    const tp_matmul_attr *attr = k->attr;
    const double *a = tp_f64(k->in[0]), *b = tp_f64(k->in[1]);
    int64_t m = tp_dim(k->out[0], -2), n = tp_dim(k->out[0], -1);
    int64_t kk = tp_dim(k->in[0], attr->trans_a ? -2 : -1), batch = tp_batch(k->out[0]);
    for (int64_t s = 0; s < batch; s++) {
        const double *as = a + s * m * kk, *bs = k->in[1]->ndim > 2 ? b + s * kk * n : b;
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) {
                double y = 0;
                for (int64_t l = 0; l < kk; l++)
                    y += as[attr->trans_a ? l * m + i : i * kk + l] *
                         bs[attr->trans_b ? j * kk + l : l * n + j];
                tp_f64(k->out[0])[(s * m + i) * n + j] = y + (k->in[2] ? tp_f64(k->in[2])[j] : 0);
            }
    }
    return TP_OK;
}

/* lesson: gradients */
void tp_matmul_gradients(const tp_call *k, tp_tensor *dy, tp_tensor *din[]) {
    const tp_matmul_attr *attr = k->attr;
    tp_ctx *c = k->ctx;
    tp_tensor *a = k->in[0], *b = k->in[1];
    if (tp_wants(k, 0) && !attr->trans_a) {
        tp_matmul_opts o = {.trans_b = !attr->trans_b};
        tp_tensor *sum = c->grad_partial && b->ndim == 2 ? c->grad_partial(c, a) : NULL;
        if (sum)
            tp_matmul_(c, sum, dy, b, &o);
        else
            din[0] = tp_matmul(c, dy, b, &o);
    }
    if (tp_wants(k, 0) && attr->trans_a)
        din[0] = tp_matmul(c, b, dy, &(tp_matmul_opts){.trans_a = attr->trans_b, .trans_b = true});
    if (b->ndim == 2 && !attr->trans_a) {
        tp_tensor *out[2] = {NULL, NULL};
        tp_wgrad_opts o = {attr->trans_b, tp_wants(k, 1), tp_wants(k, 2)};
        if (!o.weight && !o.bias) return;
        tp_matmul_wgrad(c, a, dy, &o, out);
        din[1] = out[0];
        din[2] = out[1];
        return;
    }
    if (tp_wants(k, 1) && !attr->trans_b)
        din[1] = tp_matmul(c, a, dy, &(tp_matmul_opts){.trans_a = !attr->trans_a});
    if (tp_wants(k, 1) && attr->trans_b)
        din[1] = tp_matmul(c, dy, a, &(tp_matmul_opts){.trans_a = true, .trans_b = attr->trans_a});
}
/* end */

static void matmul_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_matmul_gradients(k, tp_cast(k->ctx, dout[0], k->in[0]->dtype), din);
}

double tp_matmul_flops(const tp_call *k) {
    const tp_matmul_attr *attr = k->attr;
    double kk = (double)tp_dim(k->in[0], attr->trans_a ? -2 : -1);
    return (double)tp_numel(k->out[0]) * (2 * kk + (k->in[2] ? 1 : 0));
}

static const tp_attr matmul_attrs[] = {
    {"trans_a", TP_ATTR_BOOL, offsetof(tp_matmul_attr, trans_a)},
    {"trans_b", TP_ATTR_BOOL, offsetof(tp_matmul_attr, trans_b)},
    {"f32", TP_ATTR_BOOL, offsetof(tp_matmul_attr, f32)},
    {0},
};
#define ATTR(a, b) (&(const tp_matmul_attr){.trans_a = a, .trans_b = b})
/* clang-format off */
#define X(...) {TP_GEN_NORMAL, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), {__VA_ARGS__}}
static const tp_sample matmul_samples[] = {
    {"matrix", {X(5, 7), X(7, 3)}, ATTR(0, 0)},
    {"a transposed", {X(7, 5), X(7, 3)}, ATTR(1, 0)},
    {"b transposed", {X(5, 7), X(3, 7)}, ATTR(0, 1)},
    {"both transposed", {X(7, 5), X(3, 7)}, ATTR(1, 1)},
    {"linear", {X(2, 5, 4), X(4, 6), X(6)}, ATTR(0, 0)},
    {"linear, (N,K)", {X(3, 2, 4), X(6, 4), X(6)}, ATTR(0, 1)},
    {"five samples in four dimensions", {X(5, 1, 2, 3), X(3, 4)}, ATTR(0, 0)},
    {"batched", {X(3, 4, 5), X(3, 5, 2)}, ATTR(0, 0)},
    {"batched, a transposed", {X(2, 2, 5, 4), X(2, 2, 5, 3)}, ATTR(1, 0)},
    {"batched, b transposed", {X(3, 4, 5), X(3, 2, 5)}, ATTR(0, 1)},
    {"batched, both transposed", {X(2, 5, 4), X(2, 3, 5)}, ATTR(1, 1)},
    {"larger than a tile", {X(17, 19), X(19, 37)}, ATTR(0, 0)},
    {"larger than a block", {X(8, 50), X(50, 270)}, ATTR(0, 0), .no_grad = true},
    {"f32 sums", {X(2, 5, 7), X(3, 7)}, &(const tp_matmul_attr){.trans_b = true, .f32 = true}},
    {"f32 sums and a bias", {X(5, 7), X(7, 3), X(3)}, &(const tp_matmul_attr){.f32 = true},
     .refuse = "does not go with"},
    {"sixteen rows of a vector", {X(16, 16), X(16, 16)}, ATTR(0, 1)},
    {"size 1", {X(1, 1), X(1, 1), X(1)}, ATTR(0, 0)},
    {"empty M", {X(0, 4), X(4, 3), X(3)}, ATTR(0, 0)},
    {"empty K", {X(3, 0), X(0, 4), X(4)}, ATTR(0, 0)},
    {"empty N", {X(3, 2), X(2, 0)}, ATTR(0, 0)},
    {"empty batch", {X(0, 3, 2), X(0, 2, 4)}, ATTR(0, 0)},
    {"a vector", {X(4), X(4, 3)}, ATTR(0, 0), .refuse = "a must have 2 to 6 dimensions"},
    {"K", {X(2, 4), X(5, 3)}, ATTR(0, 0), .refuse = "disagree about K: 4 and 5"},
    {"K transposed", {X(2, 4), X(4, 3)}, ATTR(0, 1), .refuse = "disagree about K: 4 and 3"},
    {"batch", {X(2, 3, 4), X(3, 4, 5)}, ATTR(0, 0), .refuse = "a's leading dimensions"},
    {"shared a", {X(3, 4), X(2, 4, 5)}, ATTR(0, 0), .refuse = "a's leading dimensions"},
    {"shared b, trans_a", {X(2, 4, 3), X(4, 5)}, ATTR(1, 0), .refuse = "needs a batched b"},
    {"bias size", {X(2, 4), X(4, 3), X(4)}, ATTR(0, 0), .refuse = "bias must be [3]"},
    {"bias shape", {X(2, 4), X(4, 3), X(1, 3)}, ATTR(0, 0), .refuse = "bias must be [3]"},
    {"bias, batched", {X(2, 2, 4), X(2, 4, 3), X(3)}, ATTR(0, 0), .refuse = "bias goes only with"},
    {"integers", {X(2, 4), {TP_GEN_INT, 2, {4, 3}, 0, 5}}, ATTR(0, 0), .refuse = "b must be a float"},
    {"dtypes", {X(2, 4), {TP_GEN_NORMAL, 2, {4, 3}, .dtype = TP_BF16}}, ATTR(0, 0),
     .refuse = "a is f32 but b is bf16"},
    {0},
};
/* clang-format on */

const tp_op op_matmul = {
    .name = "matmul",
    .synopsis = "y = a*b + bias",
    .doc = "The matrix product over the last two dimensions of a (…,M,K) and b, which is (K,N) and "
           "shared by all leading dimensions or has the same ones. trans_a and trans_b take a as "
           "(…,K,M) and b as (…,N,K). bias (N) is optional. Each element is one chain of fused "
           "multiply-adds in the order of K, whatever the shape around it.",
    .infer = tp_matmul_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){&matmul_onednn, TP_CPU_LIST(matmul_cpu),
                                                     TP_CPU_LIST(matmul_tile_cpu),
                                                     TP_CPU_LIST(matmul_blocks_cpu),
                                                     TP_CPU_LIST(matmul_rows_cpu),
                                                     TP_CPU_LIST(matmul_naive_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&matmul_cuda)},
    .oracle = tp_matmul_oracle,
    .vjp = matmul_vjp,
    .saves_in = 3,
    .optional = 4,
    .flops = tp_matmul_flops,
    .attrs = matmul_attrs,
    .attr_bytes = sizeof(tp_matmul_attr),
    .samples = matmul_samples,
};
