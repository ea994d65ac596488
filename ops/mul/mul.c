/* mul.
 *
 *   y = a b   so   da = dy b, db = dy a, each summed over the dimensions along which it was
 * repeated. */
#include "ops/mul/mul.h"
#include "ops/elementwise.h"
#include "ops/sum/sum.h"

extern const tp_op op_mul, op_mul_;
TP_CPU_DECLARE(mul_cpu);
TP_CPU_DECLARE(mul_inplace_cpu);
TP_CUDA_DECLARE(mul_cuda);
TP_CUDA_DECLARE(mul_inplace_cuda);

tp_tensor *tp_mul(tp_ctx *c, tp_tensor *a, tp_tensor *b) { return tp_op1(c, &op_mul, NULL, a, b); }

static double mul_f64(double a, double b) { return a * b; }
static tp_status mul_oracle(const tp_call *k) { return tp_oracle_binary(k, mul_f64); }

static void mul_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    for (int i = 0; i < 2; i++)
        if (tp_wants(k, i))
            din[i] = tp_sum_like(k->ctx, tp_mul(k->ctx, dout[0], k->in[1 - i]), k->in[i]);
}

tp_status tp_mul_(tp_ctx *c, tp_tensor *a, tp_tensor *b) {
    tp_tensor *none[TP_MAXOUT];
    return tp_op_run(c, &op_mul_, NULL, 2, (tp_tensor *[]){a, b}, none);
}

static tp_status mul_inplace_infer(tp_call *k) {
    tp_status st = tp_need_float(k, 0, "a");
    if (st || (st = tp_need_float(k, 1, "b"))) return st;
    if (k->in[0]->dtype != k->in[1]->dtype || tp_numel(k->in[1]) != 1)
        return tp_refuse(k, TP_ESHAPE, "b must be one %s, got %s", tp_dtype_name(k->in[0]->dtype),
                         tp_shape_str(k->ctx, k->in[1]));
    return TP_OK;
}

static tp_status mul_inplace_oracle(const tp_call *k) {
    for (int64_t i = 0, n = tp_numel(k->in[0]); i < n; i++)
        tp_f64(k->in[0])[i] *= tp_f64(k->in[1])[0];
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
#define N(...) {TP_GEN_NORMAL, (int)(sizeof((int64_t[]){__VA_ARGS__}) / 8), {__VA_ARGS__}}
static const tp_sample mul_inplace_samples[] = {
    {"matrix", {N(65, 130), {TP_GEN_NORMAL, 0, {0}}}},
    {"one", {N(17), {TP_GEN_UNIFORM, 1, {1}, 1, 1}}},
    {"chunks", {N(3, 70000), {TP_GEN_NORMAL, 1, {1}}}},
    {"empty", {N(0, 3), {TP_GEN_NORMAL, 0, {0}}}},
    {"two", {N(3), N(2)}, .refuse = "b must be one f32"},
    {"integers", {{TP_GEN_INT, 1, {3}, 0, 9}, N(1)}, .refuse = "a must be a float"},
    {0},
};
/* clang-format on */

const tp_op op_mul = {
    .name = "mul",
    .synopsis = "y = a*b",
    .doc = "Elementwise product of two tensors that broadcast against each other.",
    .infer = tp_infer_broadcast,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(mul_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&mul_cuda)},
    .oracle = mul_oracle,
    .vjp = mul_vjp,
    .saves_in = 3,
    .flops = tp_flops_1,
    .samples = mul_samples,
};
const tp_op op_mul_ = {
    .name = "mul_",
    .synopsis = "a *= b",
    .doc =
        "Multiplies a tensor in place by one number. Where that is 1, as the cotangent of a loss "
        "is, no byte is touched.",
    .infer = mul_inplace_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(mul_inplace_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&mul_inplace_cuda)},
    .oracle = mul_inplace_oracle,
    .no_vjp = "changes its input in place; use mul where a gradient is wanted",
    .inplace = 1,
    .flops = mul_inplace_flops,
    .samples = mul_inplace_samples,
};
