/* take_tokens.
 *
 *   y_p = x_{r_p}, 0 where r_p = -1   so   dx_n = dy_p where r_p = n, else 0.
 * No row is taken twice, so that is a copy; linear in dy, its own gradient is take_tokens again. */
#include "ops/take_tokens/take_tokens.h"
#include "core/ctx.h"
#include "ops/take_tokens/token_rows.h"
#include <string.h>

extern const tp_op op_take_tokens, op_take_tokens_backward, op_take_tokens_backward_;
TP_CPU_DECLARE(take_tokens_add_cpu);
TP_CUDA_DECLARE(take_tokens_cuda);
TP_CUDA_DECLARE(take_tokens_backward_cuda);
TP_CUDA_DECLARE(take_tokens_add_cuda);

typedef struct take_attr {
    int64_t batch, tokens;
} take_attr;

/* ---- shapes --------------------------------------------------------------------------------- */
static tp_status take_infer(tp_call *k) {
    const tp_tensor *x = k->in[0], *rows = k->in[1];
    tp_status st;
    if ((st = tp_need_float(k, 0, "x")) || (st = tp_need_ndim(k, 0, "x", 3, 3)) ||
        (st = tp_need_token_rows(k, 1)))
        return st;
    return tp_out(k, x->dtype, 3, (int64_t[]){rows->shape[0], rows->shape[1], x->shape[2]});
}

static tp_status backward_infer(tp_call *k) {
    const take_attr *a = k->attr;
    tp_status st;
    if ((st = tp_need_token_rows(k, 0)) || (st = tp_need_float(k, 1, "dy")) ||
        (st = tp_need_of_rows(k, 0, 1, "dy", 1)))
        return st;
    if (a->batch < 0 || a->tokens < 0)
        return tp_refuse(k, TP_EARG, "dx cannot be %lld rows of %lld tokens", (long long)a->batch,
                         (long long)a->tokens);
    return tp_out(k, k->in[1]->dtype, 3, (int64_t[]){a->batch, a->tokens, k->in[1]->shape[2]});
}

static tp_status add_infer(tp_call *k) {
    const tp_tensor *sum = k->in[0], *dy = k->in[2];
    tp_status st;
    if ((st = tp_need_float(k, 0, "sum")) || (st = tp_need_ndim(k, 0, "sum", 3, 3)) ||
        (st = tp_need_token_rows(k, 1)) || (st = tp_need_float(k, 2, "dy")) ||
        (st = tp_need_of_rows(k, 1, 2, "dy", 1)))
        return st;
    if (dy->dtype != sum->dtype || dy->shape[2] != sum->shape[2])
        return tp_refuse(k, TP_ESHAPE, "dy must have the channels and dtype of sum %s, got %s",
                         tp_shape_str(k->ctx, sum), tp_shape_str(k->ctx, dy));
    return TP_OK;
}

/* ---- in double ------------------------------------------------------------------------------ */
static tp_status take_oracle(const tp_call *k) {
    int64_t channels = k->in[0]->shape[2];
    tp_status st = tp_check_token_rows(k, 1, k->in[0]->shape[0] * k->in[0]->shape[1]);
    for (int64_t p = 0, n = tp_numel(k->in[1]); p < n && !st; p++) {
        int32_t row = tp_i32(k->in[1])[p];
        for (int64_t i = 0; i < channels; i++)
            tp_f64(k->out[0])[p * channels + i] =
                row < 0 ? 0 : tp_f64(k->in[0])[row * channels + i];
    }
    return st;
}

static void add_rows(const tp_call *k, tp_tensor *sum, int rows, int dy) {
    int64_t channels = sum->shape[2];
    for (int64_t p = 0, n = tp_numel(k->in[rows]); p < n; p++) {
        int32_t row = tp_i32(k->in[rows])[p];
        for (int64_t i = 0; i < channels && row >= 0; i++)
            tp_f64(sum)[row * channels + i] += tp_f64(k->in[dy])[p * channels + i];
    }
}

static tp_status backward_oracle(const tp_call *k) {
    tp_tensor *dx = k->out[0];
    tp_status st = tp_check_token_rows(k, 0, dx->shape[0] * dx->shape[1]);
    if (st) return st;
    for (int64_t i = 0, n = tp_numel(dx); i < n; i++) tp_f64(dx)[i] = 0;
    add_rows(k, dx, 0, 1);
    return TP_OK;
}

static tp_status add_oracle(const tp_call *k) {
    tp_tensor *sum = k->in[0];
    tp_status st = tp_check_token_rows(k, 1, sum->shape[0] * sum->shape[1]);
    if (!st) add_rows(k, sum, 1, 2);
    return st;
}

/* ---- kernels: copies, of any type ----------------------------------------------------------- */
typedef struct copy_job {
    const int32_t *rows;
    char *small, *large; /* (P,K,C) and (B,T,C) */
    size_t bytes;        /* of a token */
} copy_job;

static void take_some(void *arg, int64_t begin, int64_t end) {
    const copy_job *j = arg;
    for (int64_t p = begin; p < end; p++) {
        char *to = j->small + (size_t)p * j->bytes;
        if (j->rows[p] < 0)
            memset(to, 0, j->bytes);
        else
            memcpy(to, j->large + (size_t)j->rows[p] * j->bytes, j->bytes);
    }
}

static void put_some(void *arg, int64_t begin, int64_t end) {
    const copy_job *j = arg;
    for (int64_t p = begin; p < end; p++)
        if (j->rows[p] >= 0)
            memcpy(j->large + (size_t)j->rows[p] * j->bytes, j->small + (size_t)p * j->bytes,
                   j->bytes);
}

static void clear_some(void *arg, int64_t begin, int64_t end) {
    const copy_job *j = arg;
    memset(j->large + (size_t)begin * j->bytes, 0, (size_t)(end - begin) * j->bytes);
}

static copy_job job_of(const tp_call *k, int rows, const tp_tensor *small, const tp_tensor *large) {
    return (copy_job){tp_i32(k->in[rows]), small->data, large->data,
                      (size_t)large->shape[2] * tp_dtype_size(large->dtype)};
}
static int64_t grain(const copy_job *j) { return 65536 / ((int64_t)j->bytes + 1) + 1; }

static tp_status take_run(const tp_call *k) {
    const tp_tensor *x = k->in[0];
    tp_status st = tp_check_token_rows(k, 1, x->shape[0] * x->shape[1]);
    copy_job j = job_of(k, 1, k->out[0], x);
    if (!st && j.bytes) tp_parallel_for(k->ctx, tp_numel(k->in[1]), grain(&j), take_some, &j);
    return st;
}

static tp_status backward_run(const tp_call *k) {
    const tp_tensor *dx = k->out[0];
    int64_t tokens = dx->shape[0] * dx->shape[1];
    tp_status st = tp_check_token_rows(k, 0, tokens);
    copy_job j = job_of(k, 0, k->in[1], dx);
    if (st || !j.bytes) return st;
    tp_parallel_for(k->ctx, tokens, grain(&j), clear_some, &j);
    tp_parallel_for(k->ctx, tp_numel(k->in[0]), grain(&j), put_some, &j);
    return TP_OK;
}

static const char *dense(const tp_call *k) {
    for (int i = 0; i < k->nin; i++)
        if (!tp_contiguous(k->in[i])) return "an input is strided";
    return NULL;
}

/* ---- builders and gradients ----------------------------------------------------------------- */
tp_tensor *tp_take_tokens(tp_ctx *c, tp_tensor *x, tp_tensor *rows) {
    return tp_op1(c, &op_take_tokens, NULL, x, rows);
}

tp_tensor *tp_take_tokens_backward(tp_ctx *c, tp_tensor *rows, tp_tensor *dy, int64_t batch,
                                   int64_t tokens) {
    return tp_op1(c, &op_take_tokens_backward, &((take_attr){batch, tokens}), rows, dy);
}

tp_status tp_take_tokens_backward_(tp_ctx *c, tp_tensor *sum, tp_tensor *rows, tp_tensor *dy) {
    tp_tensor *none[TP_MAXOUT];
    return tp_op_run(c, &op_take_tokens_backward_, NULL, 3, (tp_tensor *[]){sum, rows, dy}, none);
}

/* The tokens that went past a block have their gradient by now, and it is dense: those that went
 * through it are added to that, an eighth of the traffic of another dense one. */
static void take_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_ctx *c = k->ctx;
    tp_tensor *sum = c->grad_partial ? c->grad_partial(c, k->in[0]) : NULL;
    if (sum) {
        tp_take_tokens_backward_(c, sum, k->in[1], dout[0]);
        return;
    }
    din[0] = tp_take_tokens_backward(c, k->in[1], dout[0], k->in[0]->shape[0], k->in[0]->shape[1]);
}

static void backward_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[1] = tp_take_tokens(k->ctx, dout[0], k->in[0]);
}

static double add_flops(const tp_call *k) { return (double)tp_numel(k->in[2]); }

static const int32_t list[] = {0, 2, 3, -1, 6, 7, 11, -1}, twice[] = {0, 2, 2, 5}, far[] = {3, 12};
#define ROWS                                                                                       \
    { TP_GEN_DATA, 2, {2, 4}, .data = list }
#define N(...)                                                                                     \
    {                                                                                              \
        TP_GEN_NORMAL, 3, { __VA_ARGS__ }                                                          \
    }
#define SIZE(b, t)                                                                                 \
    &(const take_attr) { b, t }
static const tp_sample take_samples[] = {
    {"some", {N(2, 6, 5), ROWS}},
    {"long rows", {N(2, 6, 130), ROWS}},
    {"whole vectors", {N(3, 4, 32), ROWS}},
    {"none", {N(2, 6, 5), {TP_GEN_INT, 2, {2, 3}, -1, 0}}},
    {"no places", {N(2, 6, 5), {TP_GEN_INT, 2, {2, 0}, 0, 1}}},
    {"twice", {N(1, 6, 5), {TP_GEN_DATA, 2, {1, 4}, .data = twice}}, .refuse = "must ascend"},
    {"far", {N(2, 6, 5), {TP_GEN_DATA, 2, {1, 2}, .data = far}}, .refuse = "row 12 at position 1"},
    {"matrix", {{TP_GEN_NORMAL, 2, {6, 5}}, ROWS}, .refuse = "x must have 3 dimensions"},
    {"float rows", {N(1, 6, 5), {TP_GEN_NORMAL, 2, {1, 2}}}, .refuse = "rows must be i32"},
    {0},
};
static const tp_sample backward_samples[] = {
    {"some", {ROWS, N(2, 4, 5)}, SIZE(2, 6)},
    {"long rows", {ROWS, N(2, 4, 130)}, SIZE(2, 6)},
    {"whole vectors", {ROWS, N(2, 4, 32)}, SIZE(3, 4)},
    {"no places", {{TP_GEN_INT, 2, {2, 0}, 0, 1}, N(2, 0, 5)}, SIZE(2, 6)},
    {"count", {ROWS, N(2, 3, 5)}, SIZE(2, 6), .refuse = "dy must be (B,K,C)"},
    {"few tokens", {ROWS, N(2, 4, 5)}, SIZE(2, 4), .refuse = "below 8"},
    {"negative", {ROWS, N(2, 4, 5)}, SIZE(-1, 6), .refuse = "cannot be -1 rows"},
    {0},
};
static const tp_sample add_samples[] = {
    {"some", {N(2, 6, 5), ROWS, N(2, 4, 5)}},
    {"long rows", {N(2, 6, 130), ROWS, N(2, 4, 130)}},
    {"whole vectors", {N(3, 4, 32), ROWS, N(2, 4, 32)}},
    {"no places", {N(2, 6, 5), {TP_GEN_INT, 2, {2, 0}, 0, 1}, N(2, 0, 5)}},
    {"channels", {N(2, 6, 4), ROWS, N(2, 4, 5)}, .refuse = "channels and dtype of sum"},
    {0},
};
static const tp_kernel take_copy = {.name = "take_tokens_copy", .decline = dense, .run = take_run};
static const tp_kernel backward_copy = {
    .name = "take_tokens_backward_copy", .decline = dense, .run = backward_run};
static const tp_attr backward_attrs[] = {{"batch", TP_ATTR_I64, offsetof(take_attr, batch)},
                                         {"tokens", TP_ATTR_I64, offsetof(take_attr, tokens)},
                                         {0}};

const tp_op op_take_tokens = {
    .name = "take_tokens",
    .synopsis = "y = x[rows]",
    .doc = "The tokens that a routed block works on, in their order; zeros where a list has ended.",
    .infer = take_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){&take_copy, NULL},
               [TP_CUDA] = TP_CUDA_LIST(&take_tokens_cuda)},
    .oracle = take_oracle,
    .vjp = take_vjp,
    .saves_in = 1 << 1,
    .samples = take_samples,
};
const tp_op op_take_tokens_backward = {
    .name = "take_tokens_backward",
    .synopsis = "dx[rows] = dy, else 0",
    .doc = "The gradient of take_tokens: a copy, as no token is taken twice.",
    .infer = backward_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){&backward_copy, NULL},
               [TP_CUDA] = TP_CUDA_LIST(&take_tokens_backward_cuda)},
    .oracle = backward_oracle,
    .vjp = backward_vjp,
    .saves_in = 1 << 0,
    .attrs = backward_attrs,
    .attr_bytes = sizeof(take_attr),
    .samples = backward_samples,
};
const tp_op op_take_tokens_backward_ = {
    .name = "take_tokens_backward_",
    .synopsis = "dx[rows] += dy",
    .doc = "The gradient of take_tokens added in place to another gradient of the same tokens.",
    .infer = add_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(take_tokens_add_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&take_tokens_add_cuda)},
    .oracle = add_oracle,
    .no_vjp = "changes its input in place; take_tokens_backward is differentiable",
    .inplace = 1,
    .flops = add_flops,
    .samples = add_samples,
};
