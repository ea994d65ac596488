/* matmul_wgrad: the gradient of a weight and bias that all rows of x share.
 *
 *   dw = sum over s, t of x[s,t]^T dy[s,t],   db = sum over s, t of dy[s,t]
 *
 * It is linear in both inputs. With G and h the cotangents of dw (K,N) and db (N):
 *   d(x) = dy G^T,   d(dy) = x G + h */
#include "ops/cast/cast.h"
#include "ops/expand/expand.h"
#include "ops/matmul/matmul.h"
#include "ops/matmul/matmul_call.h"
#include "ops/reduce.h"

extern const tp_op op_matmul_wgrad;
TP_CPU_DECLARE(matmul_wgrad_cpu);
TP_CUDA_DECLARE(matmul_wgrad_cuda);

tp_status tp_matmul_wgrad(tp_ctx *c, tp_tensor *x, tp_tensor *dy, const tp_wgrad_opts *o,
                          tp_tensor *out[2]) {
    tp_wgrad_attr attr = {o->transposed, o->weight, o->bias};
    tp_tensor *made[TP_MAXOUT] = {0};
    out[0] = out[1] = NULL;
    tp_status st = tp_op_run(c, &op_matmul_wgrad, &attr, 2, (tp_tensor *[]){x, dy}, made);
    if (st) return st;
    if (o->weight) out[0] = made[0];
    if (o->bias) out[1] = made[o->weight ? 1 : 0];
    return TP_OK;
}

static tp_status wgrad_infer(tp_call *k) {
    const tp_wgrad_attr *attr = k->attr;
    const tp_tensor *x = k->in[0], *dy = k->in[1];
    tp_status st;
    if ((st = tp_need_float(k, 0, "x")) || (st = tp_need_float(k, 1, "dy"))) return st;
    if ((st = tp_need_ndim(k, 0, "x", 2, TP_MAXDIM))) return st;
    bool same = x->ndim == dy->ndim && x->dtype == dy->dtype;
    for (int i = 0; same && i < x->ndim - 1; i++) same = x->shape[i] == dy->shape[i];
    if (!same)
        return tp_refuse(k, x->dtype == dy->dtype ? TP_ESHAPE : TP_EDTYPE,
                         "x and dy must agree in dtype and in all dimensions but the last, got %s "
                         "and %s",
                         tp_shape_str(k->ctx, x), tp_shape_str(k->ctx, dy));
    if (!attr->weight && !attr->bias)
        return tp_refuse(k, TP_EARG, "neither weight nor bias is wanted");
    int64_t in = tp_dim(x, -1), n = tp_dim(dy, -1), shape[2] = {in, n};
    if (attr->transposed) shape[0] = n, shape[1] = in;
    if (attr->weight && (st = tp_out(k, tp_sum_dtype(x->dtype), 2, shape))) return st;
    return attr->bias ? tp_out(k, tp_sum_dtype(x->dtype), 1, &n) : TP_OK;
}

static tp_status wgrad_oracle(const tp_call *k) {
    const tp_wgrad_attr *attr = k->attr;
    const double *x = tp_f64(k->in[0]), *dy = tp_f64(k->in[1]);
    tp_tensor *dw = wgrad_dw(k), *db = wgrad_db(k);
    int64_t in = tp_dim(k->in[0], -1), n = tp_dim(k->in[1], -1);
    int64_t rows = tp_batch(k->in[0]) * tp_dim(k->in[0], -2);
    for (int64_t i = 0; dw && i < in; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t r = 0; r < rows; r++) sum += x[r * in + i] * dy[r * n + j];
            tp_f64(dw)[attr->transposed ? j * in + i : i * n + j] = sum;
        }
    for (int64_t j = 0; db && j < n; j++) {
        double sum = 0;
        for (int64_t r = 0; r < rows; r++) sum += dy[r * n + j];
        tp_f64(db)[j] = sum;
    }
    return TP_OK;
}

static void wgrad_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    const tp_wgrad_attr *attr = k->attr;
    tp_ctx *c = k->ctx;
    tp_tensor *x = k->in[0], *dy = k->in[1];
    tp_tensor *g = attr->weight ? dout[0] : NULL, *h = attr->bias ? dout[k->nout - 1] : NULL;
    if (g) g = tp_cast(c, g, x->dtype);
    if (h) h = tp_cast(c, h, x->dtype);
    if (tp_wants(k, 0) && g)
        din[0] = tp_matmul(c, dy, g, &(tp_matmul_opts){.trans_b = !attr->transposed});
    if (tp_wants(k, 1) && g)
        din[1] = tp_matmul(c, x, g, &(tp_matmul_opts){.trans_b = attr->transposed, .bias = h});
    else if (tp_wants(k, 1) && h)
        din[1] = tp_expand(c, h, dy->ndim, dy->shape);
}

static double wgrad_flops(const tp_call *k) {
    double rows = (double)(tp_batch(k->in[0]) * tp_dim(k->in[0], -2)),
           n = (double)tp_dim(k->in[1], -1);
    double weight = 2 * rows * n * (double)tp_dim(k->in[0], -1);
    return (wgrad_dw(k) ? weight : 0) + (wgrad_db(k) ? rows * n : 0);
}

static const tp_attr wgrad_attrs[] = {
    {"transposed", TP_ATTR_BOOL, offsetof(tp_wgrad_attr, transposed)},
    {"weight", TP_ATTR_BOOL, offsetof(tp_wgrad_attr, weight)},
    {"bias", TP_ATTR_BOOL, offsetof(tp_wgrad_attr, bias)},
    {0},
};
#define ATTR(t, w, b) (&(const tp_wgrad_attr){t, w, b})
/* clang-format off */
#define X(...) {TP_GEN_NORMAL, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), {__VA_ARGS__}}
static const tp_sample wgrad_samples[] = {
    {"one sample", {X(6, 4), X(6, 3)}, ATTR(0, 1, 0)},
    {"with bias", {X(2, 3, 4), X(2, 3, 5)}, ATTR(0, 1, 1)},
    {"bias only", {X(3, 2, 4), X(3, 2, 5)}, ATTR(0, 0, 1)},
    {"transposed, seven samples", {X(7, 2, 3), X(7, 2, 4)}, ATTR(1, 1, 1)},
    {"samples of two dimensions", {X(3, 2, 2, 3), X(3, 2, 2, 2)}, ATTR(0, 1, 1)},
    {"samples of three dimensions", {X(5, 2, 1, 3, 3), X(5, 2, 1, 3, 2)}, ATTR(1, 1, 1)},
    {"larger than a tile", {X(3, 5, 17), X(3, 5, 34)}, ATTR(0, 1, 1)},
    {"size 1", {X(1, 1, 1), X(1, 1, 1)}, ATTR(1, 1, 1)},
    {"no samples", {X(0, 3, 2), X(0, 3, 4)}, ATTR(0, 1, 1)},
    {"no steps", {X(2, 0, 2), X(2, 0, 4)}, ATTR(0, 1, 1)},
    {"no columns", {X(2, 3, 0), X(2, 3, 4)}, ATTR(0, 1, 1)},
    {"rows", {X(2, 3, 4), X(2, 4, 5)}, ATTR(0, 1, 0), .refuse = "all dimensions but the last"},
    {"rank", {X(2, 3, 4), X(6, 5)}, ATTR(0, 1, 0), .refuse = "all dimensions but the last"},
    {"vectors", {X(4), X(4)}, ATTR(0, 1, 0), .refuse = "x must have 2 to 6 dimensions"},
    {"integers", {{TP_GEN_INT, 2, {4, 3}, 0, 5}, X(4, 3)}, ATTR(0, 1, 0), .refuse = "x must be a float"},
    {"nothing wanted", {X(4, 2), X(4, 3)}, ATTR(0, 0, 0), .refuse = "neither weight nor bias"},
    {0},
};
/* clang-format on */

const tp_op op_matmul_wgrad = {
    .name = "matmul_wgrad",
    .synopsis = "dw = x^T*dy, db = sum(dy)",
    .doc =
        "The gradient of a weight and a bias that every row shares. Each sample (an index of the "
        "first of three or more dimensions; fewer are one sample) is a chain over its rows in "
        "order; samples are added in a fixed binary tree over their index, so that aligned "
        "power-of-two parts of a batch are subtrees.",
    .infer = wgrad_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){&matmul_wgrad_onednn,
                                                     TP_CPU_LIST(matmul_wgrad_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&matmul_wgrad_cuda)},
    .oracle = wgrad_oracle,
    .vjp = wgrad_vjp,
    .saves_in = 3,
    .flops = wgrad_flops,
    .attrs = wgrad_attrs,
    .attr_bytes = sizeof(tp_wgrad_attr),
    .samples = wgrad_samples,
};
