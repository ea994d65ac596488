/* matmul_gelu: a product that ends in a gelu, as the first half of GPT-2's MLP.
 *
 *   h = a b + bias,  y = gelu(h)   so   dh = dy gelu'(h) (+ what reaches h itself),
 *
 * and the rest is matmul's. h is an output because the vjp reads it; it is differentiable like any
 * other, since second-order gradients come to it through gelu'(h). */
#include "ops/add/add.h"
#include "ops/gelu/gelu.h"
#include "ops/gelu/gelu_math.h"
#include "ops/matmul/matmul.h"
#include "ops/matmul/matmul_call.h"

extern const tp_op op_matmul_gelu;
TP_CPU_DECLARE(matmul_gelu_cpu);
TP_CUDA_DECLARE(matmul_gelu_cuda);
enum { Y, H };

tp_tensor *tp_matmul_gelu(tp_ctx *c, tp_tensor *a, tp_tensor *b, const tp_matmul_opts *o) {
    tp_matmul_attr attr = {o && o->trans_a, o && o->trans_b, false};
    return tp_op1(c, &op_matmul_gelu, &attr, a, b, o ? o->bias : NULL);
}

static tp_status matmul_gelu_infer(tp_call *k) {
    tp_status st = tp_matmul_infer(k);
    if (st) return st;
    if (((const tp_matmul_attr *)k->attr)->trans_a)
        return tp_refuse(k, TP_EARG, "trans_a is not offered");
    if (k->in[1]->ndim > 2)
        return tp_refuse(k, TP_ESHAPE, "b must be one matrix for all of a, got %s",
                         tp_shape_str(k->ctx, k->in[1]));
    return tp_out_like(k, k->out[Y]);
}

static tp_status matmul_gelu_oracle(const tp_call *k) {
    tp_call product = *k;
    product.out[0] = k->out[H];
    tp_status st = tp_matmul_oracle(&product);
    for (int64_t i = 0, n = tp_numel(k->out[Y]); i < n && !st; i++)
        tp_f64(k->out[Y])[i] = gelu_f64(tp_f64(k->out[H])[i]);
    return st;
}

static void matmul_gelu_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_tensor *dh = dout[H];
    if (dout[Y]) {
        tp_tensor *through = tp_gelu_backward(k->ctx, k->out[H], dout[Y]);
        dh = dh ? tp_add(k->ctx, dh, through) : through;
    }
    if (dh) tp_matmul_gradients(k, dh, din);
}

static double matmul_gelu_flops(const tp_call *k) {
    return tp_matmul_flops(k) + 20.0 * (double)tp_numel(k->out[Y]);
}

static const tp_attr matmul_gelu_attrs[] = {
    {"trans_a", TP_ATTR_BOOL, offsetof(tp_matmul_attr, trans_a)},
    {"trans_b", TP_ATTR_BOOL, offsetof(tp_matmul_attr, trans_b)},
    {0},
};
#define ATTR(a, b) (&(const tp_matmul_attr){.trans_a = a, .trans_b = b})
/* clang-format off */
#define X(...) {TP_GEN_NORMAL, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), {__VA_ARGS__}}
static const tp_sample matmul_gelu_samples[] = {
    {"matrix", {X(5, 7), X(7, 3)}, ATTR(0, 0)},
    {"linear", {X(2, 5, 4), X(4, 6), X(6)}, ATTR(0, 0)},
    {"linear, (N,K)", {X(3, 2, 4), X(6, 4), X(6)}, ATTR(0, 1)},
    {"larger than a tile", {X(17, 9), X(9, 37), X(37)}, ATTR(0, 0)},
    {"a row", {X(1, 6), X(6, 20), X(20)}, ATTR(0, 0)},
    {"size 1", {X(1, 1), X(1, 1), X(1)}, ATTR(0, 0)},
    {"empty M", {X(0, 4), X(4, 3), X(3)}, ATTR(0, 0)},
    {"empty K", {X(3, 0), X(0, 4), X(4)}, ATTR(0, 0)},
    {"empty N", {X(3, 2), X(2, 0)}, ATTR(0, 0)},
    {"K", {X(2, 4), X(5, 3)}, ATTR(0, 0), .refuse = "disagree about K: 4 and 5"},
    {"trans_a", {X(4, 2), X(4, 3)}, ATTR(1, 0), .refuse = "trans_a is not offered"},
    {"batched b", {X(2, 3, 4), X(2, 4, 5)}, ATTR(0, 0), .refuse = "one matrix for all of a"},
    {"bias size", {X(2, 4), X(4, 3), X(4)}, ATTR(0, 0), .refuse = "bias must be [3]"},
    {"dtypes", {X(2, 4), {TP_GEN_NORMAL, 2, {4, 3}, .dtype = TP_BF16}}, ATTR(0, 0),
     .refuse = "a is f32 but b is bf16"},
    {0},
};
/* clang-format on */

const tp_op op_matmul_gelu = {
    .name = "matmul_gelu",
    .synopsis = "y = gelu(h), h = a*b + bias",
    .doc = "matmul, with b shared by all leading dimensions and no trans_a, and gelu of it in one "
           "pass: gelu reads each tile of h while it is in cache. The bits are those of the two "
           "ops. h, which the gradient needs, is the second output.",
    .infer = matmul_gelu_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(matmul_gelu_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&matmul_gelu_cuda)},
    .oracle = matmul_gelu_oracle,
    .vjp = matmul_gelu_vjp,
    .saves_in = 3,
    .saves_out = 1 << H,
    .optional = 4,
    .flops = matmul_gelu_flops,
    .attrs = matmul_gelu_attrs,
    .attr_bytes = sizeof(tp_matmul_attr),
    .samples = matmul_gelu_samples,
};
