/* concat. y holds the inputs one behind the other along a dimension, so each din is a slice of
 * dout: a view, no arithmetic. An absent input stands for zeros, which is what the gradients of
 * slice and split need. */
#include "ops/concat/concat.h"
#include "ops/concat/concat_attr.h"
#include "ops/concat/strided.h"
#include "ops/split/split.h"
#include <string.h>

extern const tp_op op_concat;
TP_CUDA_DECLARE(concat_cuda);

static tp_status check_input(const tp_call *k, const tp_tensor *first, int i, int dim) {
    const tp_tensor *t = k->in[i];
    int64_t size = ((const concat_attr *)k->attr)->size[i];
    if (size < 0) return tp_refuse(k, TP_ESHAPE, "input %d has size %lld", i, (long long)size);
    if (!t) return TP_OK;
    bool fits = t->ndim == first->ndim && t->shape[dim] == size;
    for (int d = 0; fits && d < t->ndim; d++) fits = d == dim || t->shape[d] == first->shape[d];
    if (fits && t->dtype == first->dtype) return TP_OK;
    return tp_refuse(k, fits ? TP_EDTYPE : TP_ESHAPE,
                     "input %d must be like the first save for dimension %d, which has size %lld: "
                     "got %s beside %s",
                     i, dim, (long long)size, tp_shape_str(k->ctx, t), tp_shape_str(k->ctx, first));
}

static tp_status concat_infer(tp_call *k) {
    const concat_attr *a = k->attr;
    const tp_tensor *first = NULL;
    for (int i = k->nin - 1; i >= 0; i--)
        if (k->in[i]) first = k->in[i];
    if (!first) return tp_refuse(k, TP_EARG, "at least one input must be present");
    int dim = concat_dim(k, first);
    if (dim < 0 || dim >= first->ndim)
        return tp_refuse(k, TP_ESHAPE, "there is no dimension %d in %s", a->dim,
                         tp_shape_str(k->ctx, first));
    int64_t shape[TP_MAXDIM], total = 0;
    memcpy(shape, first->shape, sizeof shape);
    for (int i = 0; i < k->nin; i++) {
        tp_status st = check_input(k, first, i, dim);
        if (st) return st;
        if (__builtin_add_overflow(total, a->size[i], &total))
            return tp_refuse(k, TP_ESHAPE, "the sizes add up to more than 2^63");
    }
    shape[dim] = total;
    return tp_out(k, first->dtype, first->ndim, shape);
}

/* For each index left of dim, every input gives size[i] * (all right of dim) values in a row. */
static tp_status concat_oracle(const tp_call *k) {
    const concat_attr *a = k->attr;
    const tp_tensor *y = k->out[0];
    size_t bytes = tp_dtype_size(y->dtype), inner = bytes, at = 0;
    int dim = concat_dim(k, y);
    int64_t outer = 1;
    for (int d = 0; d < dim; d++) outer *= y->shape[d];
    for (int d = dim + 1; d < y->ndim; d++) inner *= (size_t)y->shape[d];
    for (int64_t o = 0; o < outer; o++)
        for (int i = 0; i < k->nin; i++) {
            size_t run = (size_t)a->size[i] * inner;
            if (!run) continue;
            if (k->in[i])
                memcpy((char *)y->data + at, (char *)k->in[i]->data + (size_t)o * run, run);
            else
                memset((char *)y->data + at, 0, run);
            at += run;
        }
    return TP_OK;
}

static tp_status concat_run(const tp_call *k) {
    const concat_attr *a = k->attr;
    int64_t start = 0;
    if (!k->out[0]->data) return TP_OK;
    for (int i = 0; i < k->nin; i++) {
        tp_tensor part = concat_part(k, i, start);
        tp_strided_copy(k->ctx, &part, k->in[i]);
        start += a->size[i];
    }
    return TP_OK;
}

tp_tensor *tp_concat_sized(tp_ctx *c, int dim, int n, tp_tensor *const x[], const int64_t *sizes) {
    concat_attr a = {.dim = dim};
    if (n < 1 || n > TP_MAXIN) {
        tp_fail(c, TP_EARG, "concat: 1 to %d inputs are possible, got %d", TP_MAXIN, n);
        return NULL;
    }
    memcpy(a.size, sizes, (size_t)n * sizeof *sizes);
    return tp_op1_(c, &op_concat, &a, n, x);
}

tp_tensor *tp_concat(tp_ctx *c, int dim, int n, tp_tensor *const x[]) {
    int64_t sizes[TP_MAXIN] = {0};
    for (int i = 0; i < n && i < TP_MAXIN; i++) {
        if (!x[i]) {
            tp_fail(c, TP_EARG, "concat: input %d is missing", i);
            return NULL;
        }
        sizes[i] = tp_dim(x[i], dim);
    }
    return tp_concat_sized(c, dim, n, x, sizes);
}

static void concat_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    const concat_attr *a = k->attr;
    tp_split(k->ctx, dout[0], a->dim, k->nin, a->size, din);
    for (int i = 0; i < k->nin; i++)
        if (!tp_wants(k, i)) din[i] = NULL;
}

#define CONCAT(dim, ...)                                                                           \
    &(const concat_attr) {                                                                         \
        dim, { __VA_ARGS__ }                                                                       \
    }
static const tp_sample concat_samples[] = {
    {"rows", {{TP_GEN_NORMAL, 2, {2, 3}}, {TP_GEN_NORMAL, 2, {4, 3}}}, CONCAT(0, 2, 4)},
    {"columns",
     {{TP_GEN_NORMAL, 2, {17, 3}}, {TP_GEN_NORMAL, 2, {17, 1}}, {TP_GEN_NORMAL, 2, {17, 33}}},
     CONCAT(-1, 3, 1, 33)},
    {"middle",
     {{TP_GEN_NORMAL, 4, {2, 1, 3, 2}}, {TP_GEN_NORMAL, 4, {2, 4, 3, 2}}},
     CONCAT(1, 1, 4)},
    {"zeros on both sides",
     {{TP_GEN_ABSENT}, {TP_GEN_NORMAL, 2, {5, 3}}, {TP_GEN_ABSENT}},
     CONCAT(1, 2, 3, 1)},
    {"one", {{TP_GEN_NORMAL, 1, {7}}}, CONCAT(0, 7)},
    {"empty input", {{TP_GEN_NORMAL, 2, {0, 3}}, {TP_GEN_NORMAL, 2, {2, 3}}}, CONCAT(0, 0, 2)},
    {"empty", {{TP_GEN_NORMAL, 2, {0, 3}}, {TP_GEN_NORMAL, 2, {0, 4}}}, CONCAT(1, 3, 4)},
    {"integers",
     {{TP_GEN_INT, 2, {3, 2}, 0, 9}, {TP_GEN_INT, 2, {3, 4}, 0, 9}},
     CONCAT(1, 2, 4),
     .no_grad = true},
    {"shapes",
     {{TP_GEN_NORMAL, 2, {2, 3}}, {TP_GEN_NORMAL, 2, {2, 4}}},
     CONCAT(0, 2, 2),
     .refuse = "input 1 must be like the first"},
    {"dtypes",
     {{TP_GEN_NORMAL, 1, {2}}, {TP_GEN_INT, 1, {2}, 0, 3}},
     CONCAT(0, 2, 2),
     .refuse = "input 1 must be like the first"},
    {"dimensions",
     {{TP_GEN_NORMAL, 2, {2, 3}}, {TP_GEN_NORMAL, 1, {3}}},
     CONCAT(0, 2, 1),
     .refuse = "input 1 must be like the first"},
    {"no dimension", {{TP_GEN_NORMAL, 1, {2}}}, CONCAT(1, 2), .refuse = "no dimension 1"},
    {"all absent", {{TP_GEN_ABSENT}, {TP_GEN_ABSENT}}, CONCAT(0, 1, 1), .refuse = "at least one"},
    {0},
};
static const tp_attr concat_attrs[] = {{"dim", TP_ATTR_INT, offsetof(concat_attr, dim)}, {0}};
static const tp_kernel concat_copy = {.name = "concat_copy", .run = concat_run};

const tp_op op_concat = {
    .name = "concat",
    .synopsis = "y = [x0, x1, ...]",
    .doc = "Tensors one behind the other along a dimension; an absent input stands for zeros.",
    .infer = concat_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){&concat_copy, NULL},
               [TP_CUDA] = TP_CUDA_LIST(&concat_cuda)},
    .oracle = concat_oracle,
    .vjp = concat_vjp,
    .optional = 0xff,
    .attrs = concat_attrs,
    .attr_bytes = sizeof(concat_attr),
    .samples = concat_samples,
};
