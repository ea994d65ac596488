/* gelu_mlp and matmul_dgelu: GPT-2's MLP and the product that its gradient ends in.
 *
 *   h = x w1 + b1,  a = gelu(h),  y = a w2 + b2
 *   so   dh = (dy w2^T) gelu'(h) (+ what reaches a and h themselves),   dw2 = a^T dy,
 *
 * and the rest is matmul's. As one op it knows both ends of a's gradient: dy w2^T is multiplied by
 * gelu'(h) as it is made, by matmul_dgelu, and never written. a and h are outputs because the vjp
 * reads them; both are differentiable, since second-order gradients come to them. Of
 *   d = u gelu'(h),  u = p q,   the gradients are   du = G gelu'(h),  dh = G u gelu''(h). */
#include "ops/add/add.h"
#include "ops/gelu/gelu.h"
#include "ops/gelu/gelu_math.h"
#include "ops/matmul/matmul.h"
#include "ops/matmul/matmul_call.h"
#include "ops/mul/mul.h"
#include <string.h>

extern const tp_op op_gelu_mlp, op_matmul_dgelu, op_gelu_backward2;
TP_CUDA_DECLARE(gelu_mlp_cuda);
TP_CUDA_DECLARE(matmul_dgelu_cuda);
enum { X, W1, B1, W2, B2, Y = 0, A, H };

/* ---- matmul_dgelu --------------------------------------------------------------------------- */
tp_tensor *tp_matmul_dgelu(tp_ctx *c, tp_tensor *a, tp_tensor *b, tp_tensor *h, bool trans_b) {
    return tp_op1(c, &op_matmul_dgelu, &((tp_matmul_attr){.trans_b = trans_b}), a, b, h);
}

static tp_call product_of(const tp_call *k) { /* a b alone */
    tp_call p = *k;
    p.nin = 2;
    p.in[2] = NULL;
    return p;
}

static tp_status matmul_dgelu_infer(tp_call *k) {
    const tp_matmul_attr *attr = k->attr;
    tp_call p = product_of(k);
    tp_status st = tp_matmul_infer(&p);
    if (st) return st;
    if (attr->trans_a || k->in[1]->ndim > 2)
        return tp_refuse(k, TP_ESHAPE,
                         "b must be one matrix for all of a, which is not transposed");
    if (!tp_same_shape(p.out[0], k->in[2]) || p.out[0]->dtype != k->in[2]->dtype)
        return tp_refuse(k, TP_ESHAPE, "h must be like the product, %s, got %s",
                         tp_shape_str(k->ctx, p.out[0]), tp_shape_str(k->ctx, k->in[2]));
    k->out[k->nout++] = p.out[0];
    return TP_OK;
}

static tp_status matmul_dgelu_oracle(const tp_call *k) {
    tp_call p = product_of(k);
    tp_status st = tp_matmul_oracle(&p);
    for (int64_t i = 0, n = tp_numel(k->out[0]); i < n && !st; i++)
        tp_f64(k->out[0])[i] *= gelu_dx_f64(tp_f64(k->in[2])[i]);
    return st;
}

static void matmul_dgelu_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_ctx *c = k->ctx;
    const tp_matmul_attr *attr = k->attr;
    tp_tensor *a = k->in[0], *b = k->in[1], *h = k->in[2];
    if (tp_wants(k, 2)) {
        tp_tensor *u = tp_matmul(c, a, b, &(tp_matmul_opts){.trans_b = attr->trans_b});
        din[2] = tp_mul(c, dout[0], tp_op1(c, &op_gelu_backward2, NULL, h, u));
    }
    tp_call p = product_of(k);
    p.wants &= 3;
    tp_tensor *d[TP_MAXIN] = {0};
    if (p.wants) tp_matmul_gradients(&p, tp_gelu_backward(c, h, dout[0]), d);
    din[0] = d[0];
    din[1] = d[1];
}

static double matmul_dgelu_flops(const tp_call *k) {
    tp_call p = product_of(k);
    return tp_matmul_flops(&p) + 20.0 * (double)tp_numel(k->out[0]);
}

/* ---- gelu_mlp ------------------------------------------------------------------------------- */
tp_tensor *tp_gelu_mlp(tp_ctx *c, tp_tensor *x, tp_tensor *w1, tp_tensor *b1, tp_tensor *w2,
                       tp_tensor *b2) {
    return tp_op1(c, &op_gelu_mlp, NULL, x, w1, b1, w2, b2);
}

static tp_call first_of(const tp_call *k) { /* h = x w1 + b1 */
    tp_call p = *k;
    p.nin = 3;
    p.out[0] = k->out[H];
    return p;
}

static tp_call second_of(const tp_call *k) { /* y = a w2 + b2 */
    tp_call p = *k;
    p.nin = 3;
    p.in[0] = k->out[A];
    p.in[1] = k->in[W2];
    p.in[2] = k->in[B2];
    p.wants = k->wants >> W2 << 1 & 6;
    return p;
}

static tp_status gelu_mlp_infer(tp_call *k) {
    tp_call first = first_of(k), second;
    tp_status st;
    if ((st = tp_matmul_infer(&first))) return st;
    if (k->in[W1]->ndim > 2 || (k->in[W2] && k->in[W2]->ndim > 2))
        return tp_refuse(k, TP_ESHAPE, "w1 and w2 must be one matrix each for all of x");
    k->out[A] = first.out[0];
    second = second_of(k);
    if ((st = tp_matmul_infer(&second))) return st;
    k->out[Y] = second.out[0];
    k->nout = 2;
    return tp_out_like(k, k->out[A]);
}

static tp_status gelu_mlp_oracle(const tp_call *k) {
    tp_call first = first_of(k), second = second_of(k);
    tp_status st = tp_matmul_oracle(&first);
    for (int64_t i = 0, n = tp_numel(k->out[A]); i < n && !st; i++)
        tp_f64(k->out[A])[i] = gelu_f64(tp_f64(k->out[H])[i]);
    return st ? st : tp_matmul_oracle(&second);
}

/* sum + term, either of which may not be there */
static tp_tensor *plus(tp_ctx *c, tp_tensor *sum, tp_tensor *term) {
    return sum && term ? tp_add(c, sum, term) : sum ? sum : term;
}

static void gelu_mlp_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_ctx *c = k->ctx;
    tp_tensor *h = k->out[H], *dh = dout[H], *d[TP_MAXIN] = {0};
    tp_call second = second_of(k), first = *k;
    first.wants &= 7;
    if (dout[Y] && second.wants) tp_matmul_gradients(&second, dout[Y], d);
    din[W2] = d[1];
    din[B2] = d[2];
    if (!first.wants) return;
    if (dout[A]) dh = plus(c, dh, tp_gelu_backward(c, h, dout[A]));
    if (dout[Y]) dh = plus(c, dh, tp_matmul_dgelu(c, dout[Y], k->in[W2], h, true));
    if (dh) tp_matmul_gradients(&first, dh, din);
}

static double gelu_mlp_flops(const tp_call *k) {
    tp_call first = first_of(k), second = second_of(k);
    return tp_matmul_flops(&first) + tp_matmul_flops(&second) + 20.0 * (double)tp_numel(k->out[A]);
}

/* ---- rows ----------------------------------------------------------------------------------- */
static const tp_attr attrs[] = {
    {"trans_b", TP_ATTR_BOOL, offsetof(tp_matmul_attr, trans_b)},
    {0},
};
#define ATTR(b) (&(const tp_matmul_attr){.trans_b = b})
/* clang-format off */
#define N(...) {TP_GEN_NORMAL, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), {__VA_ARGS__}}
#define NONE {TP_GEN_ABSENT}
static const tp_sample matmul_dgelu_samples[] = {
    {"matrix", {N(5, 7), N(7, 3), N(5, 3)}, ATTR(0)},
    {"samples, (N,K)", {N(3, 2, 4), N(6, 4), N(3, 2, 6)}, ATTR(1)},
    {"larger than a tile", {N(17, 9), N(37, 9), N(17, 37)}, ATTR(1)},
    {"rows of vectors", {N(2, 8, 16), N(24, 16), N(2, 8, 24)}, ATTR(1)},
    {"size 1", {N(1, 1), N(1, 1), N(1, 1)}, ATTR(0)},
    {"empty M", {N(0, 4), N(4, 3), N(0, 3)}, ATTR(0)},
    {"empty K", {N(3, 0), N(0, 4), N(3, 4)}, ATTR(0)},
    {"K", {N(2, 4), N(5, 3), N(2, 3)}, ATTR(0), .refuse = "disagree about K: 4 and 5"},
    {"h", {N(2, 4), N(4, 3), N(2, 4)}, ATTR(0), .refuse = "h must be like the product"},
    {"batched b", {N(2, 3, 4), N(2, 4, 5), N(2, 3, 5)}, ATTR(0), .refuse = "one matrix for all of a"},
    {0},
};
static const tp_sample gelu_mlp_samples[] = {
    {"matrix", {N(5, 3), N(3, 7), N(7), N(7, 4), N(4)}},
    {"samples", {N(2, 5, 4), N(4, 6), N(6), N(6, 4), N(4)}},
    {"no bias", {N(3, 2, 4), N(4, 5), NONE, N(5, 4)}},
    {"one bias", {N(3, 4), N(4, 5), NONE, N(5, 3), N(3)}},
    {"rows of vectors", {N(2, 8, 16), N(16, 24), N(24), N(24, 8), N(8)}},
    {"size 1", {N(1, 1), N(1, 1), N(1), N(1, 1), N(1)}},
    {"empty M", {N(0, 4), N(4, 3), N(3), N(3, 2), N(2)}},
    {"F", {N(2, 4), N(4, 3), NONE, N(2, 4)}, .refuse = "disagree about K: 3 and 2"},
    {"bias size", {N(2, 4), N(4, 3), N(4), N(3, 4)}, .refuse = "bias must be [3]"},
    {"batched w1", {N(2, 3, 4), N(2, 4, 5), NONE, N(5, 4)}, .refuse = "one matrix each"},
    {0},
};
/* clang-format on */

const tp_op op_matmul_dgelu = {
    .name = "matmul_dgelu",
    .synopsis = "dh = (a*b)*gelu'(h)",
    .doc =
        "matmul, with b shared by all leading dimensions, times the derivative of gelu at h: the "
        "gradient of what was a gelu's input and goes on through a product. On Hopper, in bf16, "
        "cuBLASLt does it in one pass.",
    .infer = matmul_dgelu_infer,
    .kernel = {[TP_CUDA] = TP_CUDA_LIST(&matmul_dgelu_cuda)},
    .oracle = matmul_dgelu_oracle,
    .vjp = matmul_dgelu_vjp,
    .saves_in = 7,
    .flops = matmul_dgelu_flops,
    .attrs = attrs,
    .attr_bytes = sizeof(tp_matmul_attr),
    .samples = matmul_dgelu_samples,
};
const tp_op op_gelu_mlp = {
    .name = "gelu_mlp",
    .synopsis = "y = gelu(h)*w2 + b2, h = x*w1 + b1",
    .doc =
        "GPT-2's MLP: two products and the gelu between them. gelu(h) and h, which the gradient "
        "needs, are the second and third output. CUDA only has kernels for it: there a pass over "
        "h costs as much as its arithmetic.",
    .infer = gelu_mlp_infer,
    .kernel = {[TP_CUDA] = TP_CUDA_LIST(&gelu_mlp_cuda)},
    .oracle = gelu_mlp_oracle,
    .vjp = gelu_mlp_vjp,
    .saves_in = 1 << X | 1 << W1 | 1 << W2,
    .saves_out = 1 << A | 1 << H,
    .optional = 1 << B1 | 1 << B2,
    .flops = gelu_mlp_flops,
    .attr_bytes = sizeof(tp_matmul_attr),
    .samples = gelu_mlp_samples,
};
