/* embedding. y_p = table[id_p], so d table[v] = sum of dy_p over all p with id_p = v. That is
 * linear in dy: the gradient of dy_p, given g for the table's gradient, is g[id_p], an embedding
 * again. */
#include "ops/embedding/embedding.h"
#include "ops/embedding/index.h"
#include "ops/embedding/scatter.h"
#include <string.h>

extern const tp_op op_embedding, op_embedding_backward;
TP_CPU_DECLARE(embedding_backward_cpu);

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

static void embedding_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[1] = tp_embedding_backward(k->ctx, k->in[0], dout[0], k->in[1]->shape[0]);
}

static void backward_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[1] = tp_embedding(k->ctx, k->in[0], dout[0]);
}

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
static const tp_kernel embedding_copy = {
    .name = "embedding_copy", .decline = embedding_decline, .run = embedding_run};
static const tp_attr backward_attrs[] = {{"vocab", TP_ATTR_I64, offsetof(tp_scatter_attr, rows)},
                                         {0}};

const tp_op op_embedding = {
    .name = "embedding",
    .synopsis = "y = table[ids]",
    .doc = "Rows of a table by number: token and position embeddings.",
    .infer = embedding_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){&embedding_copy, NULL}},
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
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(embedding_backward_cpu), NULL}},
    .oracle = backward_oracle,
    .vjp = backward_vjp,
    .saves_in = 1 << 0,
    .flops = backward_flops,
    .attrs = backward_attrs,
    .attr_bytes = sizeof(tp_scatter_attr),
    .samples = backward_samples,
};
