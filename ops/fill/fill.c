/* fill: y = v, a constant. */
#include "ops/fill/fill.h"
#include "ops/convert.h"
#include "ops/fill/fill_attr.h"
#include <string.h>

extern const tp_op op_fill;
TP_CPU_DECLARE(fill_cpu);
TP_CUDA_DECLARE(fill_cuda);

tp_tensor *tp_full(tp_ctx *c, tp_dtype t, double v, int ndim, const int64_t *shape) {
    fill_attr a = {.v = v, .dtype = (int32_t)t, .ndim = ndim};
    tp_tensor *none[1] = {NULL};
    if (ndim > 0 && ndim <= TP_MAXDIM) memcpy(a.shape, shape, (size_t)ndim * sizeof *shape);
    return tp_op1_(c, &op_fill, &a, 0, none);
}

tp_tensor *tp_zeros(tp_ctx *c, tp_dtype t, int ndim, const int64_t *shape) {
    return tp_full(c, t, 0, ndim, shape);
}

tp_tensor *tp_full_like(tp_ctx *c, const tp_tensor *x, double v) {
    return x ? tp_full(c, x->dtype, v, x->ndim, x->shape) : NULL;
}
tp_tensor *tp_zeros_like(tp_ctx *c, const tp_tensor *x) { return tp_full_like(c, x, 0); }
tp_tensor *tp_ones_like(tp_ctx *c, const tp_tensor *x) { return tp_full_like(c, x, 1); }

static tp_status fill_infer(tp_call *k) {
    const fill_attr *a = k->attr;
    if (a->dtype < 0 || a->dtype >= TP_NDTYPE)
        return tp_refuse(k, TP_EDTYPE, "there is no dtype number %d", a->dtype);
    for (int d = 0; d < a->ndim && d < TP_MAXDIM; d++)
        if (a->shape[d] < 0)
            return tp_refuse(k, TP_ESHAPE, "dimension %d cannot have size %lld", d,
                             (long long)a->shape[d]);
    return tp_out(k, (tp_dtype)a->dtype, a->ndim, a->shape);
}

void fill_value(const tp_call *k, void *one) {
    tp_tensor t = {.data = one, .dtype = k->out[0]->dtype};
    tp_set(&t, 0, ((const fill_attr *)k->attr)->v);
}

static tp_status fill_oracle(const tp_call *k) {
    const fill_attr *a = k->attr;
    for (int64_t i = 0, n = tp_numel(k->out[0]); i < n; i++) tp_set(k->out[0], i, a->v);
    return TP_OK;
}

/* clang-format off */
#define FILL(t, value, n, ...) &(const fill_attr){.v = value, .dtype = t, .ndim = n, .shape = {__VA_ARGS__}}
static const tp_sample fill_samples[] = {
    {"zeros", {{0}}, FILL(TP_F32, 0, 3, 3, 5, 7)},
    {"constant", {{0}}, FILL(TP_F32, -1.375, 1, 40000)},
    {"integers", {{0}}, FILL(TP_I32, 7, 2, 5, 9)},
    {"bytes", {{0}}, FILL(TP_U8, 1, 1, 100)},
    {"scalar", {{0}}, FILL(TP_F32, 2.5, 0, 0)},
    {"empty", {{0}}, FILL(TP_F32, 1, 2, 0, 3)},
    {"negative size", {{0}}, FILL(TP_F32, 1, 1, -1), .refuse = "cannot have size -1"},
    {"dtype", {{0}}, FILL(99, 1, 1, 1), .refuse = "no dtype number 99"},
    {0},
};
static const tp_attr fill_attrs[] = {{"v", TP_ATTR_FLOAT, offsetof(fill_attr, v)}, {0}};
/* clang-format on */

const tp_op op_fill = {
    .name = "fill",
    .synopsis = "y = v",
    .doc = "A tensor of a given shape and dtype with every value the same.",
    .infer = fill_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(fill_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&fill_cuda)},
    .oracle = fill_oracle,
    .no_vjp = "a constant depends on no tensor",
    .attrs = fill_attrs,
    .attr_bytes = sizeof(fill_attr),
    .samples = fill_samples,
};
