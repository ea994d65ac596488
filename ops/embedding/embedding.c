/* embedding. y_p = table[id_p], so d table[v] = sum of dy_p over all p with id_p = v. That is
 * linear in dy: the gradient of dy_p, given g for the table's gradient, is g[id_p], an embedding
 * again. */
#include "ops/embedding/embedding.h"
#include "core/ctx.h"
#include "ops/embedding/index.h"
#include "ops/embedding/scatter.h"
#include <string.h>

extern const tp_op op_embedding, op_embedding_backward, op_embedding_backward_;
TP_CPU_DECLARE(embedding_backward_cpu);
TP_CPU_DECLARE(embedding_add_cpu);
TP_CUDA_DECLARE(embedding_cuda);
TP_CUDA_DECLARE(embedding_backward_cuda);
TP_CUDA_DECLARE(embedding_add_cuda);

static tp_status embedding_infer(tp_call *k) {
    const tp_tensor *ids = k->in[0], *table = k->in[1];
    tp_status st;
    if ((st = tp_need_int(k, 0, "ids")) || (st = tp_need_ndim(k, 0, "ids", 0, TP_MAXDIM - 1)) ||
        (st = tp_need_float(k, 1, "table")) || (st = tp_need_ndim(k, 1, "table", 2, 2)))
        return st;
    int64_t shape[TP_MAXDIM];
    memcpy(shape, ids->shape, sizeof shape);
    shape[ids->ndim] = table->shape[1];
    return tp_out(k, table->dtype, ids->ndim + 1, shape);
}

static tp_status embedding_oracle(const tp_call *k) {
    int64_t channels = tp_dim(k->in[1], 1);
    tp_status st = tp_check_index(k, 0, "the id", tp_dim(k->in[1], 0));
    for (int64_t p = 0, n = tp_numel(k->in[0]); p < n && !st; p++)
        for (int64_t i = 0; i < channels; i++)
            tp_f64(k->out[0])[p * channels + i] =
                tp_f64(k->in[1])[tp_i32(k->in[0])[p] * channels + i];
    return st;
}

static tp_status backward_infer(tp_call *k) {
    const tp_tensor *ids = k->in[0], *dy = k->in[1];
    int64_t vocab = ((const tp_scatter_attr *)k->attr)->rows;
    tp_status st;
    if ((st = tp_need_int(k, 0, "ids")) || (st = tp_need_float(k, 1, "dy"))) return st;
    bool fits = dy->ndim == ids->ndim + 1;
    for (int d = 0; fits && d < ids->ndim; d++) fits = dy->shape[d] == ids->shape[d];
    if (!fits)
        return tp_refuse(k, TP_ESHAPE, "dy must have the shape of ids and channels, got %s and %s",
                         tp_shape_str(k->ctx, dy), tp_shape_str(k->ctx, ids));
    if (vocab < 0)
        return tp_refuse(k, TP_EARG, "the table cannot have %lld rows", (long long)vocab);
    return tp_out(k, dy->dtype, 2, (int64_t[]){vocab, dy->shape[dy->ndim - 1]});
}

static tp_status backward_oracle(const tp_call *k) {
    const tp_tensor *table = k->out[0];
    int64_t channels = table->shape[1];
    tp_status st = tp_check_index(k, 0, "the id", table->shape[0]);
    if (st) return st;
    for (int64_t i = 0, n = tp_numel(table); i < n; i++) tp_f64(table)[i] = 0;
    for (int64_t p = 0, n = tp_numel(k->in[0]); p < n; p++)
        for (int64_t i = 0; i < channels; i++)
            tp_f64(table)[tp_i32(k->in[0])[p] * channels + i] += tp_f64(k->in[1])[p * channels + i];
    return TP_OK;
}

static tp_status add_infer(tp_call *k) {
    const tp_tensor *sum = k->in[0], *ids = k->in[1], *dy = k->in[2];
    tp_status st;
    if ((st = tp_need_float(k, 0, "sum")) || (st = tp_need_ndim(k, 0, "sum", 2, 2)) ||
        (st = tp_need_int(k, 1, "ids")) || (st = tp_need_float(k, 2, "dy")))
        return st;
    bool fits = dy->dtype == sum->dtype && dy->ndim == ids->ndim + 1 &&
                dy->shape[dy->ndim - 1] == sum->shape[1];
    for (int d = 0; fits && d < ids->ndim; d++) fits = dy->shape[d] == ids->shape[d];
    if (fits) return TP_OK;
    return tp_refuse(
        k, TP_ESHAPE, "dy must have the shape of ids and sum's channels, got %s, %s and %s",
        tp_shape_str(k->ctx, dy), tp_shape_str(k->ctx, ids), tp_shape_str(k->ctx, sum));
}

static tp_status add_oracle(const tp_call *k) {
    int64_t channels = tp_dim(k->in[0], 1);
    tp_status st = tp_check_index(k, 1, "the id", tp_dim(k->in[0], 0));
    for (int64_t p = 0, n = tp_numel(k->in[1]); p < n && !st; p++)
        for (int64_t i = 0; i < channels; i++)
            tp_f64(k->in[0])[tp_i32(k->in[1])[p] * channels + i] +=
                tp_f64(k->in[2])[p * channels + i];
    return st;
}

static tp_status embedding_run(const tp_call *k) { return tp_index_rows(k, 0, "the id", k->in[1]); }

static const char *embedding_decline(const tp_call *k) {
    return tp_contiguous(k->in[0]) && tp_contiguous(k->in[1]) ? NULL : "an input is strided";
}

/* ---- builders and gradients ----------------------------------------------------------------- */
tp_tensor *tp_embedding(tp_ctx *c, tp_tensor *ids, tp_tensor *table) {
    return tp_op1(c, &op_embedding, NULL, ids, table);
}

tp_tensor *tp_embedding_backward(tp_ctx *c, tp_tensor *ids, tp_tensor *dy, int64_t vocab) {
    return tp_op1(c, &op_embedding_backward, &((tp_scatter_attr){vocab}), ids, dy);
}

tp_status tp_embedding_backward_(tp_ctx *c, tp_tensor *sum, tp_tensor *ids, tp_tensor *dy) {
    tp_tensor *none[TP_MAXOUT];
    return tp_op_run(c, &op_embedding_backward_, NULL, 3, (tp_tensor *[]){sum, ids, dy}, none);
}

/* A table tied to the output head has a dense gradient by now: its rows are added to that. */
static void embedding_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_ctx *c = k->ctx;
    tp_tensor *sum = c->grad_partial ? c->grad_partial(c, k->in[1]) : NULL;
    if (sum) {
        tp_embedding_backward_(c, sum, k->in[0], dout[0]);
        return;
    }
    din[1] = tp_embedding_backward(k->ctx, k->in[0], dout[0], k->in[1]->shape[0]);
}

static void backward_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[1] = tp_embedding(k->ctx, k->in[0], dout[0]);
}

static double add_flops(const tp_call *k) { return (double)tp_numel(k->in[2]); }
static double backward_flops(const tp_call *k) { return (double)tp_numel(k->in[1]); }

static const int32_t repeats[] = {3, 0, 3, 6, 3, 1, 6, 6, 3, 5};
#define IDS(n, ...)                                                                                \
    { TP_GEN_INT, n, {__VA_ARGS__}, 0, 7 }
static const tp_sample embedding_samples[] = {
    {"batch", {IDS(2, 3, 4), {TP_GEN_NORMAL, 2, {7, 33}}}},
    {"repeats", {{TP_GEN_DATA, 2, {5, 2}, .data = repeats}, {TP_GEN_NORMAL, 2, {7, 3}}}},
    {"long rows", {IDS(1, 17), {TP_GEN_NORMAL, 2, {7, 130}}}},
    {"one id", {IDS(0, 0), {TP_GEN_NORMAL, 2, {7, 5}}}},
    {"no ids", {IDS(2, 0, 4), {TP_GEN_NORMAL, 2, {7, 5}}}},
    {"no channels", {IDS(1, 4), {TP_GEN_NORMAL, 2, {7, 0}}}},
    {"table", {IDS(1, 4), {TP_GEN_NORMAL, 1, {7}}}, .refuse = "table must have 2 dimensions"},
    {"float ids",
     {{TP_GEN_NORMAL, 1, {4}}, {TP_GEN_NORMAL, 2, {7, 5}}},
     .refuse = "ids must be i32"},
    {0},
};
#define VOCAB(v)                                                                                   \
    &(const tp_scatter_attr) { v }
static const tp_sample backward_samples[] = {
    {"batch", {IDS(2, 5, 4), {TP_GEN_NORMAL, 3, {5, 4, 17}}}, VOCAB(7)},
    {"repeats",
     {{TP_GEN_DATA, 2, {5, 2}, .data = repeats}, {TP_GEN_NORMAL, 3, {5, 2, 3}}},
     VOCAB(9)},
    {"long rows", {IDS(2, 2, 20), {TP_GEN_NORMAL, 3, {2, 20, 161}}}, VOCAB(7)},
    {"one sample", {IDS(1, 130), {TP_GEN_NORMAL, 2, {130, 5}}}, VOCAB(300)},
    {"one id", {IDS(0, 0), {TP_GEN_NORMAL, 1, {5}}}, VOCAB(7)},
    {"no ids", {IDS(2, 0, 4), {TP_GEN_NORMAL, 3, {0, 4, 5}}}, VOCAB(7)},
    {"no channels", {IDS(1, 4), {TP_GEN_NORMAL, 2, {4, 0}}}, VOCAB(7)},
    {"shapes",
     {IDS(1, 4), {TP_GEN_NORMAL, 2, {5, 3}}},
     VOCAB(7),
     .refuse = "dy must have the shape"},
    {"no table",
     {IDS(1, 4), {TP_GEN_NORMAL, 2, {4, 3}}},
     VOCAB(-1),
     .refuse = "cannot have -1 rows"},
    {0},
};
#define TABLE(...)                                                                                 \
    {                                                                                              \
        TP_GEN_NORMAL, 2, { __VA_ARGS__ }                                                          \
    }
/* clang-format off */
static const tp_sample add_samples[] = {
    {"batch", {TABLE(7, 17), IDS(2, 5, 4), {TP_GEN_NORMAL, 3, {5, 4, 17}}}},
    {"repeats", {TABLE(9, 3), {TP_GEN_DATA, 2, {5, 2}, .data = repeats}, {TP_GEN_NORMAL, 3, {5, 2, 3}}}},
    {"long rows", {TABLE(7, 161), IDS(2, 2, 20), {TP_GEN_NORMAL, 3, {2, 20, 161}}}},
    {"no ids", {TABLE(7, 5), IDS(2, 0, 4), {TP_GEN_NORMAL, 3, {0, 4, 5}}}},
    {"channels", {TABLE(7, 4), IDS(1, 4), {TP_GEN_NORMAL, 2, {4, 3}}}, .refuse = "dy must have the shape"},
    {"ids", {TABLE(7, 3), IDS(1, 5), {TP_GEN_NORMAL, 2, {4, 3}}}, .refuse = "dy must have the shape"},
    {0},
};
/* clang-format on */
static const tp_kernel embedding_copy = {
    .name = "embedding_copy", .decline = embedding_decline, .run = embedding_run};
static const tp_attr backward_attrs[] = {{"vocab", TP_ATTR_I64, offsetof(tp_scatter_attr, rows)},
                                         {0}};

const tp_op op_embedding = {
    .name = "embedding",
    .synopsis = "y = table[ids]",
    .doc = "Rows of a table by number: token and position embeddings.",
    .infer = embedding_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){&embedding_copy, NULL},
               [TP_CUDA] = TP_CUDA_LIST(&embedding_cuda)},
    .oracle = embedding_oracle,
    .vjp = embedding_vjp,
    .saves_in = 1 << 0,
    .samples = embedding_samples,
};
const tp_op op_embedding_backward = {
    .name = "embedding_backward",
    .synopsis = "dtable[id] = sum(dy where id)",
    .doc = "The dense gradient of an embedding table, summed per sample in order of position and "
           "then over samples in a fixed tree. Work grows with the ids, not with the vocabulary, "
           "save for writing zeros.",
    .infer = backward_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(embedding_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&embedding_backward_cuda)},
    .oracle = backward_oracle,
    .vjp = backward_vjp,
    .saves_in = 1 << 0,
    .flops = backward_flops,
    .attrs = backward_attrs,
    .attr_bytes = sizeof(tp_scatter_attr),
    .samples = backward_samples,
};
const tp_op op_embedding_backward_ = {
    .name = "embedding_backward_",
    .synopsis = "dtable[id] += sum(dy where id)",
    .doc =
        "The gradient of an embedding table added in place to another gradient of the same table, "
        "in the order of embedding_backward and then once to each row that occurs.",
    .infer = add_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(embedding_add_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&embedding_add_cuda)},
    .oracle = add_oracle,
    .no_vjp = "changes its input in place; embedding_backward is differentiable",
    .inplace = 1,
    .flops = add_flops,
    .samples = add_samples,
};
