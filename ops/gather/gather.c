/* gather. y_k = x_{i_k}, so dx_c = sum of dy_k over all k with i_k = c, gather_backward. That is
 * linear in dy: given g for dx, the gradient of dy_k is g_{i_k}, gather again. */
#include "ops/gather/gather.h"
#include "ops/embedding/index.h"
#include <string.h>

extern const tp_op op_gather, op_gather_backward;
TP_CUDA_DECLARE(gather_cuda);
TP_CUDA_DECLARE(gather_backward_cuda);

typedef struct gather_attr {
    int64_t channels;
} gather_attr;

static tp_status need_leading(const tp_call *k, int i, int j, const char *args, int same_last) {
    const tp_tensor *a = k->in[i], *b = k->in[j];
    bool fits = a->ndim == b->ndim;
    for (int d = 0; fits && d < a->ndim - 1 + same_last; d++) fits = a->shape[d] == b->shape[d];
    if (fits) return TP_OK;
    return tp_refuse(k, TP_ESHAPE, "%s, got %s and %s", args, tp_shape_str(k->ctx, a),
                     tp_shape_str(k->ctx, b));
}

static tp_status gather_infer(tp_call *k) {
    tp_status st;
    if ((st = tp_need_float(k, 0, "x")) || (st = tp_need_ndim(k, 0, "x", 1, TP_MAXDIM)) ||
        (st = tp_need_int(k, 1, "idx")) ||
        (st = need_leading(k, 0, 1, "x and idx must agree but for the last dimension", 0)))
        return st;
    return tp_out(k, k->in[0]->dtype, k->in[1]->ndim, k->in[1]->shape);
}

static tp_status backward_infer(tp_call *k) {
    int64_t channels = ((const gather_attr *)k->attr)->channels, shape[TP_MAXDIM];
    tp_status st;
    if ((st = tp_need_int(k, 0, "idx")) || (st = tp_need_ndim(k, 0, "idx", 1, TP_MAXDIM)) ||
        (st = tp_need_float(k, 1, "dy")) ||
        (st = need_leading(k, 0, 1, "idx and dy must have the same shape", 1)))
        return st;
    if (channels < 0)
        return tp_refuse(k, TP_EARG, "channels must not be negative, got %lld",
                         (long long)channels);
    memcpy(shape, k->in[0]->shape, sizeof shape);
    shape[k->in[0]->ndim - 1] = channels;
    return tp_out(k, k->in[1]->dtype, k->in[0]->ndim, shape);
}

/* ---- rows, for the oracle in double and for the kernel in float ----------------------------- */
#define GATHER_ROWS(type)                                                                          \
    static void gather_##type(void *arg, int64_t begin, int64_t end) {                             \
        const tp_call *k = arg;                                                                    \
        int64_t channels = tp_dim(k->in[0], -1), n = tp_dim(k->in[1], -1);                         \
        for (int64_t row = begin; row < end; row++) {                                              \
            const type *x = (const type *)k->in[0]->data + row * channels;                         \
            const int32_t *idx = tp_i32(k->in[1]) + row * n;                                       \
            type *y = (type *)k->out[0]->data + row * n;                                           \
            for (int64_t i = 0; i < n; i++) y[i] = x[idx[i]];                                      \
        }                                                                                          \
    }                                                                                              \
    static void scatter_##type(void *arg, int64_t begin, int64_t end) {                            \
        const tp_call *k = arg;                                                                    \
        int64_t channels = tp_dim(k->out[0], -1), n = tp_dim(k->in[0], -1);                        \
        for (int64_t row = begin; row < end; row++) {                                              \
            const type *dy = (const type *)k->in[1]->data + row * n;                               \
            const int32_t *idx = tp_i32(k->in[0]) + row * n;                                       \
            type *dx = (type *)k->out[0]->data + row * channels;                                   \
            for (int64_t i = 0; i < channels; i++) dx[i] = 0;                                      \
            for (int64_t i = 0; i < n; i++) dx[idx[i]] += dy[i];                                   \
        }                                                                                          \
    }
GATHER_ROWS(float)
GATHER_ROWS(double)

/* The rows that both tensors have; none where one of them has no values. */
static int64_t rows(const tp_tensor *t) {
    int64_t n = 1;
    for (int d = 0; d < t->ndim - 1; d++) n *= t->shape[d];
    return n;
}

static tp_status gather_with(const tp_call *k, tp_range_fn fn) {
    const tp_tensor *x = k->in[0], *y = k->out[0];
    tp_status st = tp_check_index(k, 1, "the index", tp_dim(x, -1));
    if (!st && tp_numel(y))
        tp_parallel_for(k->ctx, rows(y), 4096 / tp_dim(y, -1) + 1, fn, (void *)k);
    return st;
}

static tp_status backward_with(const tp_call *k, tp_range_fn fn) {
    const tp_tensor *dx = k->out[0];
    tp_status st = tp_check_index(k, 0, "the index", tp_dim(dx, -1));
    if (!st && tp_numel(dx))
        tp_parallel_for(k->ctx, rows(dx), 8192 / tp_dim(dx, -1) + 1, fn, (void *)k);
    return st;
}

static tp_status gather_run(const tp_call *k) { return gather_with(k, gather_float); }
static tp_status gather_oracle(const tp_call *k) { return gather_with(k, gather_double); }
static tp_status backward_run(const tp_call *k) { return backward_with(k, scatter_float); }
static tp_status backward_oracle(const tp_call *k) { return backward_with(k, scatter_double); }

tp_tensor *tp_gather_last(tp_ctx *c, tp_tensor *x, tp_tensor *idx) {
    return tp_op1(c, &op_gather, NULL, x, idx);
}
tp_tensor *tp_gather_backward(tp_ctx *c, tp_tensor *idx, tp_tensor *dy, int64_t channels) {
    return tp_op1(c, &op_gather_backward, &((gather_attr){channels}), idx, dy);
}

static void gather_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[0] = tp_gather_backward(k->ctx, k->in[1], dout[0], tp_dim(k->in[0], -1));
}

static void backward_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[1] = tp_gather_last(k->ctx, dout[0], k->in[0]);
}

static double backward_flops(const tp_call *k) { return (double)tp_numel(k->in[1]); }

static const int32_t repeats[] = {3, 0, 3, 6, 3, 1, 6, 6, 3, 5};
#define IDX(n, ...)                                                                                \
    { TP_GEN_INT, n, {__VA_ARGS__}, 0, 7 }
#define REPEATS                                                                                    \
    { TP_GEN_DATA, 2, {2, 5}, .data = repeats }
#define N(...)                                                                                     \
    { TP_GEN_NORMAL, __VA_ARGS__ }
static const tp_sample gather_samples[] = {
    {"one of each row", {N(2, {33, 7}), IDX(2, 33, 1)}},
    {"several", {N(3, {2, 3, 7}), IDX(3, 2, 3, 4)}},
    {"repeats", {N(2, {2, 7}), REPEATS}},
    {"vector", {N(1, {7}), IDX(1, 20)}},
    {"no indices", {N(2, {3, 7}), IDX(2, 3, 0)}},
    {"empty", {N(2, {0, 7}), IDX(2, 0, 2)}},
    {"leading", {N(2, {3, 7}), IDX(2, 4, 2)}, .refuse = "must agree but for the last dimension"},
    {"float idx", {N(1, {7}), N(1, {4})}, .refuse = "idx must be i32"},
    {0},
};
#define CHANNELS(c)                                                                                \
    &(const gather_attr) { c }
static const tp_sample backward_samples[] = {
    {"one of each row", {IDX(2, 33, 1), N(2, {33, 1})}, CHANNELS(7)},
    {"repeats", {REPEATS, N(2, {2, 5})}, CHANNELS(9)},
    {"no indices", {IDX(2, 3, 0), N(2, {3, 0})}, CHANNELS(7)},
    {"empty", {IDX(2, 0, 2), N(2, {0, 2})}, CHANNELS(7)},
    {"shapes", {IDX(2, 3, 2), N(2, {3, 1})}, CHANNELS(7), .refuse = "must have the same shape"},
    {"negative", {IDX(1, 3), N(1, {3})}, CHANNELS(-1), .refuse = "must not be negative"},
    {0},
};
static const tp_kernel gather_cpu = {
    .name = "gather_cpu", .decline = tp_decline_unless_f32_dense, .run = gather_run};
static const tp_kernel gather_backward_cpu = {
    .name = "gather_backward_cpu", .decline = tp_decline_unless_f32_dense, .run = backward_run};
static const tp_attr backward_attrs[] = {{"channels", TP_ATTR_I64, offsetof(gather_attr, channels)},
                                         {0}};

const tp_op op_gather = {
    .name = "gather",
    .synopsis = "y = x[...,idx]",
    .doc =
        "Values of each row by their place in the last dimension: the log-probability of a target.",
    .infer = gather_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){&gather_cpu, NULL},
               [TP_CUDA] = TP_CUDA_LIST(&gather_cuda)},
    .oracle = gather_oracle,
    .vjp = gather_vjp,
    .saves_in = 1 << 1,
    .samples = gather_samples,
};
const tp_op op_gather_backward = {
    .name = "gather_backward",
    .synopsis = "dx[...,idx] += dy",
    .doc = "The gradient of gather: zeros, and each row's values added at their places in order.",
    .infer = backward_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){&gather_backward_cpu, NULL},
               [TP_CUDA] = TP_CUDA_LIST(&gather_backward_cuda)},
    .oracle = backward_oracle,
    .vjp = backward_vjp,
    .saves_in = 1 << 0,
    .flops = backward_flops,
    .attrs = backward_attrs,
    .attr_bytes = sizeof(gather_attr),
    .samples = backward_samples,
};
