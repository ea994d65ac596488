/* add.
 *
 *   y = a + b   so   da = dy, db = dy, each summed over the dimensions along which it was repeated.
 *
 * add_ is the same in place, for the engine's accumulation of gradients and for optimisers. */
#include "ops/add/add.h"
#include "ops/elementwise.h"
#include "ops/sum/sum.h"

extern const tp_op op_add, op_add_;
TP_CPU_DECLARE(add_cpu);
TP_CPU_DECLARE(add_inplace_cpu);
TP_CUDA_DECLARE(add_cuda);
TP_CUDA_DECLARE(add_inplace_cuda);

tp_tensor *tp_add(tp_ctx *c, tp_tensor *a, tp_tensor *b) { return tp_op1(c, &op_add, NULL, a, b); }

tp_status tp_add_(tp_ctx *c, tp_tensor *a, tp_tensor *b) {
    tp_tensor *none[1];
    return tp_op_run(c, &op_add_, NULL, 2, (tp_tensor *[]){a, b}, none);
}

static double add_f64(double a, double b) { return a + b; }
static tp_status add_oracle(const tp_call *k) { return tp_oracle_binary(k, add_f64); }

/* lesson: vjp */
static void add_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    for (int i = 0; i < 2; i++)
        if (tp_wants(k, i)) din[i] = tp_sum_like(k->ctx, dout[0], k->in[i]);
}
/* end */

/* The bytes that t lies in: [0] to before [1]. */
static void extent(const tp_tensor *t, uintptr_t at[2]) {
    int64_t last = 0;
    for (int d = 0; d < t->ndim; d++) last += (t->shape[d] - 1) * t->stride[d];
    at[0] = (uintptr_t)t->data;
    at[1] = at[0] + ((size_t)last + 1) * tp_dtype_size(t->dtype);
}

/* b may be a itself, or lie elsewhere; if it met a shifted, results would depend on the order. */
static bool overlaps_shifted(const tp_tensor *a, const tp_tensor *b) {
    uintptr_t x[2], y[2];
    bool same = a->data == b->data;
    for (int d = 0; d < a->ndim; d++) same &= a->shape[d] == 1 || a->stride[d] == b->stride[d];
    if (a->storage != b->storage || !a->data || same) return false;
    extent(a, x);
    extent(b, y);
    return x[0] < y[1] && y[0] < x[1];
}

static tp_status add_inplace_infer(tp_call *k) {
    tp_status st;
    const tp_tensor *a = k->in[0];
    if ((st = tp_need_float(k, 0, "a")) || (st = tp_need_same(k, 0, 1, "a and b"))) return st;
    if (tp_numel(a) == 0) return TP_OK;
    for (int d = 0; d < a->ndim; d++)
        if (a->shape[d] > 1 && a->stride[d] == 0)
            return tp_refuse(k, TP_ESHAPE, "a is %s with dimension %d repeated; copy it first",
                             tp_shape_str(k->ctx, a), d);
    if (overlaps_shifted(a, k->in[1]))
        return tp_refuse(k, TP_EARG, "a and b overlap in memory, got two views of %s",
                         tp_shape_str(k->ctx, a));
    return TP_OK;
}

static tp_status add_inplace_oracle(const tp_call *k) {
    for (int64_t i = 0, n = tp_numel(k->in[0]); i < n; i++)
        tp_f64(k->in[0])[i] += tp_f64(k->in[1])[i];
    return TP_OK;
}

static double add_inplace_flops(const tp_call *k) { return (double)tp_numel(k->in[0]); }

/* clang-format off */
static const tp_sample add_samples[] = {
    {"same shape", {{TP_GEN_NORMAL, 2, {17, 33}}, {TP_GEN_NORMAL, 2, {17, 33}}}},
    {"bias", {{TP_GEN_NORMAL, 3, {3, 5, 7}}, {TP_GEN_NORMAL, 1, {7}}}},
    {"long rows", {{TP_GEN_NORMAL, 2, {3, 1300}}, {TP_GEN_NORMAL, 2, {3, 1}}}},
    {"positions", {{TP_GEN_NORMAL, 3, {4, 5, 3}}, {TP_GEN_NORMAL, 2, {5, 3}}}},
    {"outer", {{TP_GEN_NORMAL, 2, {9, 1}}, {TP_GEN_NORMAL, 2, {1, 11}}}},
    {"outer, fewer dimensions", {{TP_GEN_NORMAL, 1, {6}}, {TP_GEN_NORMAL, 4, {2, 1, 3, 1}}}},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}, {TP_GEN_NORMAL, 2, {4, 5}}}},
    {"two scalars", {{TP_GEN_NORMAL, 0, {0}}, {TP_GEN_NORMAL, 0, {0}}}},
    {"empty", {{TP_GEN_NORMAL, 2, {0, 4}}, {TP_GEN_NORMAL, 1, {4}}}},
    {"empty by repetition", {{TP_GEN_NORMAL, 2, {3, 1}}, {TP_GEN_NORMAL, 2, {3, 0}}}},
    {"unrelated", {{TP_GEN_NORMAL, 2, {2, 3}}, {TP_GEN_NORMAL, 1, {4}}}, .refuse = "does not broadcast"},
    {"integers", {{TP_GEN_INT, 1, {3}, 0, 9}, {TP_GEN_NORMAL, 1, {3}}}, .refuse = "a must be a float"},
    {0},
};
static const tp_sample add_inplace_samples[] = {
    {"matrix", {{TP_GEN_NORMAL, 2, {65, 130}}, {TP_GEN_NORMAL, 2, {65, 130}}}},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}, {TP_GEN_NORMAL, 0, {0}}}},
    {"empty", {{TP_GEN_NORMAL, 1, {0}}, {TP_GEN_NORMAL, 1, {0}}}},
    {"shapes", {{TP_GEN_NORMAL, 1, {3}}, {TP_GEN_NORMAL, 1, {1}}}, .refuse = "same shape"},
    {0},
};
/* clang-format on */

const tp_op op_add = {
    .name = "add",
    .synopsis = "y = a+b",
    .doc = "Elementwise sum of two tensors that broadcast against each other.",
    .infer = tp_infer_broadcast,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(add_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&add_cuda)},
    .oracle = add_oracle,
    .vjp = add_vjp,
    .flops = tp_flops_1,
    .samples = add_samples,
};
const tp_op op_add_ = {
    .name = "add_",
    .synopsis = "a += b",
    .doc = "Adds b to a in place. Both have one shape and dtype; the fast kernel wants a dense.",
    .infer = add_inplace_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(add_inplace_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&add_inplace_cuda)},
    .oracle = add_inplace_oracle,
    .no_vjp = "changes its input in place; use add where a gradient is wanted",
    .inplace = 1,
    .flops = add_inplace_flops,
    .samples = add_inplace_samples,
};
