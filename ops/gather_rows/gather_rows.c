/* gather_rows and scatter_add_rows, each the other's gradient.
 *
 *   y_m = x_{i_m}                 so   dx_n = sum of dy_m over all m with i_m = n: scatter_add_rows
 * on zeros y_n = x_n + sum of s_m over all m with i_m = n    so   dx = dy,  ds_m = dy_{i_m}:
 * gather_rows */
#include "ops/gather_rows/gather_rows.h"
#include "ops/embedding/index.h"
#include "ops/embedding/scatter.h"

extern const tp_op op_gather_rows, op_scatter_add_rows;
TP_CPU_DECLARE(scatter_add_rows_cpu);
TP_CUDA_DECLARE(gather_rows_cuda);
TP_CUDA_DECLARE(scatter_add_rows_cuda);

static tp_status gather_infer(tp_call *k) {
    tp_status st;
    if ((st = tp_need_float(k, 0, "x")) || (st = tp_need_ndim(k, 0, "x", 2, 2)) ||
        (st = tp_need_int(k, 1, "idx")) || (st = tp_need_ndim(k, 1, "idx", 1, 1)))
        return st;
    return tp_out(k, k->in[0]->dtype, 2, (int64_t[]){k->in[1]->shape[0], k->in[0]->shape[1]});
}

static tp_status gather_oracle(const tp_call *k) {
    const tp_tensor *x = k->in[0], *idx = k->in[1];
    int64_t channels = x->shape[1];
    tp_status st = tp_check_index(k, 1, "the index", x->shape[0]);
    for (int64_t m = 0; m < idx->shape[0] && !st; m++)
        for (int64_t i = 0; i < channels; i++)
            tp_f64(k->out[0])[m * channels + i] = tp_f64(x)[tp_i32(idx)[m] * channels + i];
    return st;
}

static tp_status gather_run(const tp_call *k) { return tp_index_rows(k, 1, "the index", k->in[0]); }

static const char *gather_decline(const tp_call *k) {
    const tp_tensor *x = k->in[0];
    if (x->stride[1] != 1 && x->shape[1] > 1) return "the values of a row lie apart";
    return tp_contiguous(k->in[1]) ? NULL : "idx is strided";
}

static tp_status scatter_infer(tp_call *k) {
    const tp_tensor *x = k->in[0], *idx = k->in[1], *src = k->in[2];
    int64_t rows = ((const tp_scatter_attr *)k->attr)->rows;
    tp_status st;
    if ((st = tp_need_float(k, 0, "x")) || (st = tp_need_ndim(k, 0, "x", 2, 2)) ||
        (st = tp_need_int(k, 1, "idx")) || (st = tp_need_ndim(k, 1, "idx", 1, 1)) ||
        (st = tp_need_float(k, 2, "src")) || (st = tp_need_ndim(k, 2, "src", 2, 2)))
        return st;
    if (src->shape[0] != idx->shape[0] || (x && src->shape[1] != x->shape[1]))
        return tp_refuse(k, TP_ESHAPE, "src must have a row per index and x's columns, got %s",
                         tp_shape_str(k->ctx, src));
    if (x && x->dtype != src->dtype)
        return tp_refuse(k, TP_EDTYPE, "src must have the dtype of x, got %s beside %s",
                         tp_dtype_name(src->dtype), tp_dtype_name(x->dtype));
    if (rows < 0 || (x && rows != x->shape[0]))
        return tp_refuse(k, TP_EARG, "rows is %lld, which does not fit x", (long long)rows);
    return tp_out(k, src->dtype, 2, (int64_t[]){rows, src->shape[1]});
}

static tp_status scatter_oracle(const tp_call *k) {
    const tp_tensor *y = k->out[0], *idx = k->in[1];
    int64_t channels = y->shape[1];
    tp_status st = tp_check_index(k, 1, "the index", y->shape[0]);
    if (st) return st;
    for (int64_t i = 0, n = tp_numel(y); i < n; i++)
        tp_f64(y)[i] = k->in[0] ? tp_f64(k->in[0])[i] : 0;
    for (int64_t m = 0; m < idx->shape[0]; m++)
        for (int64_t i = 0; i < channels; i++)
            tp_f64(y)[tp_i32(idx)[m] * channels + i] += tp_f64(k->in[2])[m * channels + i];
    return TP_OK;
}

tp_tensor *tp_gather_rows(tp_ctx *c, tp_tensor *x, tp_tensor *idx) {
    return tp_op1(c, &op_gather_rows, NULL, x, idx);
}

tp_tensor *tp_scatter_add_rows(tp_ctx *c, tp_tensor *x, tp_tensor *idx, tp_tensor *src) {
    if (!x) {
        tp_fail(c, TP_EARG, "scatter_add_rows: x is missing");
        return NULL;
    }
    return tp_op1(c, &op_scatter_add_rows, &((tp_scatter_attr){tp_dim(x, 0)}), x, idx, src);
}

static void gather_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_scatter_attr a = {k->in[0]->shape[0]};
    din[0] = tp_op1(k->ctx, &op_scatter_add_rows, &a, NULL, k->in[1], dout[0]);
}

static void scatter_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    if (tp_wants(k, 0)) din[0] = dout[0];
    if (tp_wants(k, 2)) din[2] = tp_gather_rows(k->ctx, dout[0], k->in[1]);
}

static double scatter_flops(const tp_call *k) { return (double)tp_numel(k->in[2]); }

static const int32_t repeats[] = {3, 0, 3, 6, 3, 1, 6, 6, 3, 5};
#define IDX(n)                                                                                     \
    { TP_GEN_INT, 1, {n}, 0, 7 }
#define N(...)                                                                                     \
    { TP_GEN_NORMAL, __VA_ARGS__ }
static const tp_sample gather_samples[] = {
    {"rows", {N(2, {7, 33}), IDX(4)}},
    {"repeats", {N(2, {7, 3}), {TP_GEN_DATA, 1, {10}, .data = repeats}}},
    {"long rows", {N(2, {7, 130}), IDX(17)}},
    {"whole vectors", {N(2, {7, 16}), IDX(5)}},
    {"no indices", {N(2, {7, 5}), IDX(0)}},
    {"one row", {N(2, {1, 1}), {TP_GEN_INT, 1, {3}, 0, 1}}},
    {"idx", {N(2, {7, 5}), {TP_GEN_INT, 2, {2, 2}, 0, 7}}, .refuse = "idx must have 1 dimensions"},
    {"float idx", {N(2, {7, 5}), N(1, {4})}, .refuse = "idx must be i32"},
    {"vector", {N(1, {7}), IDX(4)}, .refuse = "x must have 2 dimensions"},
    {0},
};
#define ROWS(n)                                                                                    \
    &(const tp_scatter_attr) { n }
static const tp_sample scatter_samples[] = {
    {"rows", {N(2, {7, 33}), IDX(4), N(2, {4, 33})}, ROWS(7)},
    {"repeats", {N(2, {7, 3}), {TP_GEN_DATA, 1, {10}, .data = repeats}, N(2, {10, 3})}, ROWS(7)},
    {"on zeros", {{TP_GEN_ABSENT}, IDX(40), N(2, {40, 161})}, ROWS(9)},
    {"whole vectors", {N(2, {7, 16}), IDX(9), N(2, {9, 16})}, ROWS(7)},
    {"no indices", {N(2, {7, 5}), IDX(0), N(2, {0, 5})}, ROWS(7)},
    {"src", {N(2, {7, 5}), IDX(4), N(2, {4, 6})}, ROWS(7), .refuse = "a row per index"},
    {"count", {N(2, {7, 5}), IDX(4), N(2, {3, 5})}, ROWS(7), .refuse = "a row per index"},
    {"other rows", {N(2, {7, 5}), IDX(4), N(2, {4, 5})}, ROWS(8), .refuse = "rows is 8"},
    {0},
};
static const tp_kernel gather_rows_copy = {
    .name = "gather_rows_copy", .decline = gather_decline, .run = gather_run};
static const tp_attr scatter_attrs[] = {{"rows", TP_ATTR_I64, offsetof(tp_scatter_attr, rows)},
                                        {0}};

const tp_op op_gather_rows = {
    .name = "gather_rows",
    .synopsis = "y = x[idx,:]",
    .doc = "Rows of a matrix by number. With topk it takes out the tokens that a block works on.",
    .infer = gather_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){&gather_rows_copy, NULL},
               [TP_CUDA] = TP_CUDA_LIST(&gather_rows_cuda)},
    .oracle = gather_oracle,
    .vjp = gather_vjp,
    .saves_in = 1 << 1,
    .samples = gather_samples,
};
const tp_op op_scatter_add_rows = {
    .name = "scatter_add_rows",
    .synopsis = "y = x, y[idx,:] += src",
    .doc =
        "Rows added into a matrix by number, in the order of the indices; an absent x stands for "
        "zeros.",
    .infer = scatter_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(scatter_add_rows_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&scatter_add_rows_cuda)},
    .oracle = scatter_oracle,
    .vjp = scatter_vjp,
    .saves_in = 1 << 1,
    .optional = 1 << 0,
    .flops = scatter_flops,
    .attrs = scatter_attrs,
    .attr_bytes = sizeof(tp_scatter_attr),
    .samples = scatter_samples,
};
