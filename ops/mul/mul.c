/* mul.
 *
 *   y = a b   so   da = dy b, db = dy a, each summed over the dimensions along which it was
 * repeated.
 *
 * mul_ scales in place, for gradients that were computed ahead of the cotangent of their loss. */
#include "ops/mul/mul.h"
#include "ops/elementwise.h"
#include "ops/sum/sum.h"

extern const tp_op op_mul, op_mul_;
TP_CPU_DECLARE(mul_cpu);
TP_CPU_DECLARE(mul_inplace_cpu);

tp_tensor *tp_mul(tp_ctx *c, tp_tensor *a, tp_tensor *b) { return tp_op1(c, &op_mul, NULL, a, b); }

tp_status tp_mul_(tp_ctx *c, tp_tensor *a, tp_tensor *s) {
    tp_tensor *none[1];
    return tp_op_run(c, &op_mul_, NULL, 2, (tp_tensor *[]){a, s}, none);
}

static double mul_f64(double a, double b) { return a * b; }
static tp_status mul_oracle(const tp_call *k) { return tp_oracle_binary(k, mul_f64); }

static void mul_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    for (int i = 0; i < 2; i++)
        if (tp_wants(k, i))
            din[i] = tp_sum_like(k->ctx, tp_mul(k->ctx, dout[0], k->in[1 - i]), k->in[i]);
}

static tp_status mul_inplace_infer(tp_call *k) {
    const tp_tensor *a = k->in[0], *s = k->in[1];
    tp_status st;
    if ((st = tp_need_float(k, 0, "a")) || (st = tp_need_ndim(k, 1, "s", 0, 0))) return st;
    if (a->dtype != s->dtype)
        return tp_refuse(k, TP_EDTYPE, "a is %s but s is %s", tp_dtype_name(a->dtype),
                         tp_dtype_name(s->dtype));
    for (int d = 0; d < a->ndim && tp_numel(a) > 0; d++)
        if (a->shape[d] > 1 && a->stride[d] == 0)
            return tp_refuse(k, TP_ESHAPE, "a is %s with dimension %d repeated; copy it first",
                             tp_shape_str(k->ctx, a), d);
    return TP_OK;
}

static tp_status mul_inplace_oracle(const tp_call *k) {
    double s = tp_f64(k->in[1])[0]; /* read first: it may be one of a's numbers */
    for (int64_t i = 0, n = tp_numel(k->in[0]); i < n; i++) tp_f64(k->in[0])[i] *= s;
    return TP_OK;
}

static double mul_inplace_flops(const tp_call *k) { return (double)tp_numel(k->in[0]); }

/* clang-format off */
static const tp_sample mul_samples[] = {
    {"same shape", {{TP_GEN_NORMAL, 2, {17, 33}}, {TP_GEN_NORMAL, 2, {17, 33}}}},
    {"rows weighted", {{TP_GEN_NORMAL, 3, {2, 5, 7}}, {TP_GEN_NORMAL, 3, {2, 5, 1}}}},
    {"columns weighted", {{TP_GEN_NORMAL, 1, {130}}, {TP_GEN_NORMAL, 2, {5, 130}}}},
    {"outer", {{TP_GEN_NORMAL, 2, {9, 1}}, {TP_GEN_NORMAL, 1, {11}}}},
    {"scalar", {{TP_GEN_NORMAL, 2, {4, 5}}, {TP_GEN_NORMAL, 0, {0}}}},
    {"empty", {{TP_GEN_NORMAL, 2, {4, 0}}, {TP_GEN_NORMAL, 2, {4, 1}}}},
    {"unrelated", {{TP_GEN_NORMAL, 1, {3}}, {TP_GEN_NORMAL, 1, {4}}}, .refuse = "does not broadcast"},
    {0},
};
static const tp_sample mul_inplace_samples[] = {
    {"matrix", {{TP_GEN_NORMAL, 2, {65, 130}}, {TP_GEN_NORMAL, 0, {0}}}},
    {"by one", {{TP_GEN_NORMAL, 2, {3, 20}}, {TP_GEN_UNIFORM, 0, {0}, 1, 1}}},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}, {TP_GEN_NORMAL, 0, {0}}}},
    {"empty", {{TP_GEN_NORMAL, 1, {0}}, {TP_GEN_NORMAL, 0, {0}}}},
    {"a vector", {{TP_GEN_NORMAL, 1, {3}}, {TP_GEN_NORMAL, 1, {1}}}, .refuse = "s must have 0 dim"},
    {"integers", {{TP_GEN_INT, 1, {3}, 0, 9}, {TP_GEN_NORMAL, 0, {0}}}, .refuse = "a must be a float"},
    {"dtypes", {{TP_GEN_NORMAL, 1, {3}}, {TP_GEN_NORMAL, 0, {0}, .dtype = TP_BF16}}, .refuse = "a is f32 but s is bf16"},
    {0},
};
/* clang-format on */

const tp_op op_mul = {
    .name = "mul",
    .synopsis = "y = a*b",
    .doc = "Elementwise product of two tensors that broadcast against each other.",
    .infer = tp_infer_broadcast,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(mul_cpu), NULL}},
    .oracle = mul_oracle,
    .vjp = mul_vjp,
    .saves_in = 3,
    .flops = tp_flops_1,
    .samples = mul_samples,
};
const tp_op op_mul_ = {
    .name = "mul_",
    .synopsis = "a *= s",
    .doc = "Multiplies a by one number in place. Where the number is 1 the kernel leaves a's bytes "
           "alone.",
    .infer = mul_inplace_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(mul_inplace_cpu), NULL}},
    .oracle = mul_inplace_oracle,
    .no_vjp = "changes its input in place; use mul where a gradient is wanted",
    .inplace = 1,
    .flops = mul_inplace_flops,
    .samples = mul_inplace_samples,
};
