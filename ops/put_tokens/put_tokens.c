/* put_tokens.
 *
 *   y_n = x_n + w_p s_p where r_p = n, else x_n   so   dx = dy,  ds_p = w_p dy_{r_p},
 *                                                      dw_p = sum_c dy_{r_p,c} s_pc
 * The weight is how a router learns; dx is dy itself, no copy of it. */
#include "ops/put_tokens/put_tokens.h"
#include "ops/reduce.h"
#include "ops/take_tokens/token_rows.h"

extern const tp_op op_put_tokens, op_put_tokens_backward;
TP_CPU_DECLARE(put_tokens_cpu);
TP_CPU_DECLARE(put_tokens_backward_cpu);
TP_CUDA_DECLARE(put_tokens_cuda);
TP_CUDA_DECLARE(put_tokens_backward_cuda);

static tp_status check(tp_call *k) {
    const tp_tensor *x = k->in[0], *src = k->in[2], *w = k->in[3];
    tp_status st;
    if ((st = tp_need_float(k, 0, "x")) || (st = tp_need_ndim(k, 0, "x", 3, 3)) ||
        (st = tp_need_token_rows(k, 1)) || (st = tp_need_float(k, 2, "src")) ||
        (st = tp_need_of_rows(k, 1, 2, "src", 1)) || (st = tp_need_float(k, 3, "weight")) ||
        (st = tp_need_of_rows(k, 1, 3, "weight", 0)))
        return st;
    if (src->dtype != x->dtype || src->shape[2] != x->shape[2])
        return tp_refuse(k, TP_ESHAPE, "src must have the channels and dtype of x %s, got %s",
                         tp_shape_str(k->ctx, x), tp_shape_str(k->ctx, src));
    if (w->dtype != x->dtype && w->dtype != tp_sum_dtype(x->dtype))
        return tp_refuse(k, TP_EDTYPE, "weight must be %s or %s, got %s", tp_dtype_name(x->dtype),
                         tp_dtype_name(tp_sum_dtype(x->dtype)), tp_dtype_name(w->dtype));
    return TP_OK;
}

static tp_status put_infer(tp_call *k) {
    tp_status st = check(k);
    return st ? st : tp_out_like(k, k->in[0]);
}

static tp_status backward_infer(tp_call *k) {
    tp_status st = check(k);
    if (!st) st = tp_out_like(k, k->in[2]);
    return st ? st : tp_out_like(k, k->in[3]);
}

static int64_t tokens_of(const tp_call *k) { return k->in[0]->shape[0] * k->in[0]->shape[1]; }

static tp_status put_oracle(const tp_call *k) {
    int64_t channels = k->in[0]->shape[2];
    double *y = tp_f64(k->out[0]);
    tp_status st = tp_check_token_rows(k, 1, tokens_of(k));
    for (int64_t i = 0, n = tp_numel(k->out[0]); i < n && !st; i++) y[i] = tp_f64(k->in[0])[i];
    for (int64_t p = 0, n = tp_numel(k->in[1]); p < n && !st; p++) {
        int32_t row = tp_i32(k->in[1])[p];
        for (int64_t i = 0; i < channels && row >= 0; i++)
            y[row * channels + i] += tp_f64(k->in[3])[p] * tp_f64(k->in[2])[p * channels + i];
    }
    return st;
}

/* lesson: backward */
static tp_status backward_oracle(const tp_call *k) {
    int64_t channels = k->in[0]->shape[2];
    const double *dy = tp_f64(k->in[0]), *src = tp_f64(k->in[2]);
    tp_status st = tp_check_token_rows(k, 1, tokens_of(k));
    for (int64_t p = 0, n = tp_numel(k->in[1]); p < n && !st; p++) {
        int32_t row = tp_i32(k->in[1])[p];
        double w = tp_f64(k->in[3])[p], dw = 0;
        for (int64_t i = 0; i < channels; i++) {
            double d = row < 0 ? 0 : dy[row * channels + i];
            tp_f64(k->out[0])[p * channels + i] = w * d;
            dw += d * src[p * channels + i];
        }
        tp_f64(k->out[1])[p] = dw;
    }
    return st;
}
/* end */

tp_tensor *tp_put_tokens(tp_ctx *c, tp_tensor *x, tp_tensor *rows, tp_tensor *src,
                         tp_tensor *weight) {
    return tp_op1(c, &op_put_tokens, NULL, x, rows, src, weight);
}

static void put_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_tensor *out[TP_MAXOUT] = {0};
    if (tp_wants(k, 0)) din[0] = dout[0];
    if (!tp_wants(k, 2) && !tp_wants(k, 3)) return;
    tp_op_run(k->ctx, &op_put_tokens_backward, NULL, 4,
              (tp_tensor *[]){dout[0], k->in[1], k->in[2], k->in[3]}, out);
    din[2] = out[0];
    din[3] = out[1];
}

static double put_flops(const tp_call *k) { return 2.0 * (double)tp_numel(k->in[2]); }
static double backward_flops(const tp_call *k) { return 3.0 * (double)tp_numel(k->in[2]); }

static const int32_t list[] = {0, 2, 3, -1, 6, 7, 11, -1}, back[] = {0, 3, 2, 5};
#define ROWS                                                                                       \
    { TP_GEN_DATA, 2, {2, 4}, .data = list }
#define N(n, ...)                                                                                  \
    {                                                                                              \
        TP_GEN_NORMAL, n, { __VA_ARGS__ }                                                          \
    }
static const tp_sample put_samples[] = {
    {"some", {N(3, 2, 6, 5), ROWS, N(3, 2, 4, 5), N(2, 2, 4)}},
    {"long rows", {N(3, 2, 6, 130), ROWS, N(3, 2, 4, 130), N(2, 2, 4)}},
    {"whole vectors", {N(3, 3, 4, 32), ROWS, N(3, 2, 4, 32), N(2, 2, 4)}},
    {"none", {N(3, 2, 6, 5), {TP_GEN_INT, 2, {2, 3}, -1, 0}, N(3, 2, 3, 5), N(2, 2, 3)}},
    {"no places", {N(3, 2, 6, 5), {TP_GEN_INT, 2, {2, 0}, 0, 1}, N(3, 2, 0, 5), N(2, 2, 0)}},
    {"not ascending",
     {N(3, 1, 6, 5), {TP_GEN_DATA, 2, {1, 4}, .data = back}, N(3, 1, 4, 5), N(2, 1, 4)},
     .refuse = "row 2 at position 2"},
    {"channels", {N(3, 2, 6, 4), ROWS, N(3, 2, 4, 5), N(2, 2, 4)}, .refuse = "channels and dtype"},
    {"weights", {N(3, 2, 6, 5), ROWS, N(3, 2, 4, 5), N(2, 2, 3)}, .refuse = "weight must be (B,K)"},
    {"f64 weights",
     {N(3, 2, 6, 5), ROWS, N(3, 2, 4, 5), {TP_GEN_NORMAL, 2, {2, 4}, .dtype = TP_F64}},
     .refuse = "weight must be f32"},
    {0},
};

const tp_op op_put_tokens = {
    .name = "put_tokens",
    .synopsis = "y = x, y[rows] += weight*src",
    .doc = "Adds what a routed block computed, each token's by its router weight, to the tokens "
           "that it took; the others keep their bits.",
    .infer = put_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(put_tokens_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&put_tokens_cuda)},
    .oracle = put_oracle,
    .vjp = put_vjp,
    .saves_in = 14,
    .flops = put_flops,
    .samples = put_samples,
};
const tp_op op_put_tokens_backward = {
    .name = "put_tokens_backward",
    .synopsis = "dsrc = weight*dy[rows], dweight = sum(dy[rows]*src)",
    .doc = "Both gradients of put_tokens that are not dy itself, in one pass over the tokens that "
           "the block took.",
    .infer = backward_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(put_tokens_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&put_tokens_backward_cuda)},
    .oracle = backward_oracle,
    .no_vjp = "second order through a router: compose gather_rows, mul and scatter_add_rows",
    .flops = backward_flops,
    .samples = put_samples,
};
