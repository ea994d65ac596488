/* sum.
 *
 *   y[kept] = sum over the other dimensions of x   so   dx = dy, repeated along them: expand.
 *
 * sum and expand are each other's vjp; tp_sum_to and tp_mean are written with them. */
#include "ops/sum/sum.h"
#include "ops/expand/expand.h"
#include "ops/reduce.h"
#include "ops/scale/scale.h"

extern const tp_op op_sum;
TP_CPU_DECLARE(sum_cpu);
TP_CUDA_DECLARE(sum_cuda);

tp_tensor *tp_sum_at(tp_ctx *c, tp_tensor *x, unsigned dims, unsigned keep) {
    tp_reduce_attr a = tp_reduce_dims(x, dims, keep);
    return tp_op1(c, &op_sum, &a, x);
}

tp_tensor *tp_sum(tp_ctx *c, tp_tensor *x, unsigned dims, bool keepdim) {
    return tp_sum_at(c, x, dims, keepdim ? dims : 0);
}

tp_tensor *tp_mean(tp_ctx *c, tp_tensor *x, unsigned dims, bool keepdim) {
    tp_tensor *y = tp_sum(c, x, dims, keepdim);
    if (!y) return NULL;
    int64_t n = tp_reduced_count(x, dims);
    if (n == 0) {
        tp_fail(c, TP_ESHAPE, "mean: the dimensions of %s to average over hold no elements",
                tp_shape_str(c, x));
        return NULL;
    }
    return tp_scale(c, y, 1.0 / (double)n, 0);
}

tp_tensor *tp_sum_to(tp_ctx *c, tp_tensor *x, int ndim, const int64_t *shape) {
    if (!x) return NULL;
    unsigned dims = 0, keep = 0;
    int missing = x->ndim - ndim;
    bool fits = missing >= 0;
    for (int d = 0; fits && d < x->ndim; d++) {
        if (d < missing)
            dims |= 1u << d;
        else if (shape[d - missing] == 1 && x->shape[d] != 1)
            keep |= 1u << d;
        else
            fits = shape[d - missing] == x->shape[d];
    }
    if (!fits) {
        tp_tensor want = {.dtype = x->dtype, .ndim = ndim < TP_MAXDIM ? ndim : TP_MAXDIM};
        for (int d = 0; d < want.ndim; d++) want.shape[d] = shape[d];
        tp_fail(c, TP_ESHAPE, "sum_to: %s cannot have come from %s by repetition",
                tp_shape_str(c, x), tp_shape_str(c, &want));
        return NULL;
    }
    return dims | keep ? tp_sum_at(c, x, dims | keep, keep) : x;
}

tp_tensor *tp_sum_like(tp_ctx *c, tp_tensor *x, const tp_tensor *like) {
    return x ? tp_sum_to(c, x, like->ndim, like->shape) : NULL;
}

static tp_status sum_infer(tp_call *k) { return tp_infer_reduce(k); }

static tp_status sum_oracle(const tp_call *k) {
    const tp_reduce_attr *a = k->attr;
    const tp_tensor *x = k->in[0];
    double *y = tp_f64(k->out[0]);
    for (int64_t i = 0, n = tp_numel(k->out[0]); i < n; i++) y[i] = 0;
    for (int64_t i = 0, n = tp_numel(x); i < n; i++)
        y[tp_reduced_at(x, a->dims, i).kept] += tp_f64(x)[i];
    return TP_OK;
}

static void sum_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    const tp_reduce_attr *a = k->attr;
    din[0] = tp_expand_at(k->ctx, dout[0], k->in[0], (unsigned)(a->dims & ~a->keep));
}

static double sum_flops(const tp_call *k) { return (double)tp_numel(k->in[0]); }

#define DIMS(d, k)                                                                                 \
    &(const tp_reduce_attr) { .dims = d, .keep = k }
/* clang-format off */
static const tp_sample sum_samples[] = {
    {"vector", {{TP_GEN_NORMAL, 1, {130}}}, DIMS(1, 0)},
    {"short vector", {{TP_GEN_NORMAL, 1, {5}}}, DIMS(1, 1)},
    {"rows", {{TP_GEN_NORMAL, 2, {17, 33}}}, DIMS(2, 0)},
    {"columns", {{TP_GEN_NORMAL, 2, {65, 130}}}, DIMS(1, 0)},
    {"bias of three samples", {{TP_GEN_NORMAL, 3, {3, 17, 260}}}, DIMS(3, 0)},
    {"positions", {{TP_GEN_NORMAL, 3, {5, 4, 9}}}, DIMS(1, 0)},
    {"middle, kept", {{TP_GEN_NORMAL, 4, {2, 3, 5, 7}}}, DIMS(6, 6)},
    {"first and last, one kept", {{TP_GEN_NORMAL, 4, {6, 3, 2, 19}}}, DIMS(9, 8)},
    {"alternating", {{TP_GEN_NORMAL, 5, {3, 2, 3, 2, 3}}}, DIMS(21, 0)},
    {"all", {{TP_GEN_NORMAL, 3, {7, 5, 18}}}, DIMS(7, 0)},
    {"none", {{TP_GEN_NORMAL, 2, {3, 4}}}, DIMS(0, 0)},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}}, DIMS(0, 0)},
    {"size 1", {{TP_GEN_NORMAL, 3, {1, 1, 1}}}, DIMS(5, 4)},
    {"empty result", {{TP_GEN_NORMAL, 2, {3, 0}}}, DIMS(1, 0)},
    {"sum of nothing", {{TP_GEN_NORMAL, 2, {3, 0}}}, DIMS(2, 0)},
    {"no such dimension", {{TP_GEN_NORMAL, 2, {3, 4}}}, DIMS(4, 0), .refuse = "no dimension 2"},
    {"integers", {{TP_GEN_INT, 1, {4}, 0, 3}}, DIMS(1, 0), .refuse = "x must be a float"},
    {0},
};
/* clang-format on */

const tp_op op_sum = {
    .name = "sum",
    .synopsis = "y = sum of x over dims",
    .doc = "Sums over the dimensions of a bitmask. The order of the additions depends on the shape "
           "only; samples (dimension 0) are added in a binary tree.",
    .infer = sum_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(sum_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&sum_cuda)},
    .oracle = sum_oracle,
    .vjp = sum_vjp,
    .flops = sum_flops,
    .attrs = tp_reduce_attrs,
    .attr_bytes = sizeof(tp_reduce_attr),
    .samples = sum_samples,
};
