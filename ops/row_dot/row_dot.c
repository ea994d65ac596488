/* row_dot.
 *
 *   s_i = sum_c x_ic w_c   so   dx_ic = ds_i w_c,  dw_c = sum_i ds_i x_ic:
 * a product with repetition, and the weight gradient of a matrix of one column. */
#include "ops/row_dot/row_dot.h"
#include "ops/cast/cast.h"
#include "ops/matmul/matmul.h"
#include "ops/mul/mul.h"
#include "ops/reduce.h"
#include "ops/reshape/reshape.h"

extern const tp_op op_row_dot;
TP_CPU_DECLARE(row_dot_cpu);
TP_CUDA_DECLARE(row_dot_cuda);

tp_tensor *tp_row_dot(tp_ctx *c, tp_tensor *x, tp_tensor *w) {
    return tp_op1(c, &op_row_dot, NULL, x, w);
}

static tp_status row_dot_infer(tp_call *k) {
    const tp_tensor *x = k->in[0], *w = k->in[1];
    tp_status st;
    if ((st = tp_need_float(k, 0, "x")) || (st = tp_need_ndim(k, 0, "x", 1, TP_MAXDIM)) ||
        (st = tp_need_float(k, 1, "w")) || (st = tp_need_ndim(k, 1, "w", 1, 1)))
        return st;
    if (x->dtype != w->dtype)
        return tp_refuse(k, TP_EDTYPE, "w must have the dtype of x, got %s and %s",
                         tp_dtype_name(w->dtype), tp_dtype_name(x->dtype));
    if (w->shape[0] != tp_dim(x, -1))
        return tp_refuse(k, TP_ESHAPE, "w must be as long as a row of x %s, got %s",
                         tp_shape_str(k->ctx, x), tp_shape_str(k->ctx, w));
    return tp_out(k, tp_sum_dtype(x->dtype), x->ndim - 1, x->shape);
}

static tp_status row_dot_oracle(const tp_call *k) {
    int64_t channels = tp_numel(k->in[1]);
    for (int64_t i = 0, n = tp_numel(k->out[0]); i < n; i++) {
        double sum = 0;
        for (int64_t j = 0; j < channels; j++)
            sum += tp_f64(k->in[0])[i * channels + j] * tp_f64(k->in[1])[j];
        tp_f64(k->out[0])[i] = sum;
    }
    return TP_OK;
}

static void row_dot_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_ctx *c = k->ctx;
    tp_tensor *x = k->in[0], *ds = tp_unsqueeze(c, tp_cast(c, dout[0], x->dtype), x->ndim - 1);
    if (tp_wants(k, 0)) din[0] = tp_mul(c, ds, k->in[1]);
    if (!tp_wants(k, 1) || !ds) return;
    tp_tensor *dw[2] = {0}, *row = x;
    if (x->ndim == 1) { /* a single row */
        row = tp_unsqueeze(c, x, 0);
        ds = tp_unsqueeze(c, ds, 0);
    }
    if (!row || !ds || tp_matmul_wgrad(c, row, ds, &(tp_wgrad_opts){.weight = true}, dw)) return;
    din[1] = tp_reshape(c, dw[0], 1, k->in[1]->shape);
}

static double row_dot_flops(const tp_call *k) { return 2.0 * (double)tp_numel(k->in[0]); }

#define X(n, ...)                                                                                  \
    {                                                                                              \
        TP_GEN_NORMAL, n, { __VA_ARGS__ }                                                          \
    }
static const tp_sample row_dot_samples[] = {
    {"batch", {X(3, 3, 5, 33), X(1, 33)}},
    {"long rows", {X(2, 4, 700), X(1, 700)}},
    {"whole vectors", {X(3, 2, 3, 128), X(1, 128)}},
    {"four dimensions", {X(4, 3, 2, 2, 17), X(1, 17)}},
    {"one row", {X(1, 40), X(1, 40)}},
    {"one channel", {X(3, 2, 3, 1), X(1, 1)}},
    {"no rows", {X(3, 0, 3, 4), X(1, 4)}},
    {"other width", {X(2, 3, 4), X(1, 5)}, .refuse = "w must be as long"},
    {"matrix", {X(2, 3, 4), X(2, 4, 1)}, .refuse = "w must have 1 dimensions"},
    {"scalar", {X(0, 0), X(1, 4)}, .refuse = "1 to 6 dimensions"},
    {"f64 weight", {X(2, 3, 4), {TP_GEN_NORMAL, 1, {4}, .dtype = TP_F64}}, .refuse = "dtype of x"},
    {0},
};

const tp_op op_row_dot = {
    .name = "row_dot",
    .synopsis = "s = x w",
    .doc = "The product of every row with one vector: the logits of a router. In f32 also where "
           "the rows are bf16.",
    .infer = row_dot_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(row_dot_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&row_dot_cuda)},
    .oracle = row_dot_oracle,
    .vjp = row_dot_vjp,
    .saves_in = 3,
    .flops = row_dot_flops,
    .samples = row_dot_samples,
};
