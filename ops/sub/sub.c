/* sub.
 *
 *   y = a - b   so   da = dy, db = -dy, each summed over the dimensions along which it was
 * repeated. */
#include "ops/sub/sub.h"
#include "ops/elementwise.h"
#include "ops/scale/scale.h"
#include "ops/sum/sum.h"

extern const tp_op op_sub;
TP_CPU_DECLARE(sub_cpu);
TP_CUDA_DECLARE(sub_cuda);

tp_tensor *tp_sub(tp_ctx *c, tp_tensor *a, tp_tensor *b) { return tp_op1(c, &op_sub, NULL, a, b); }

static double sub_f64(double a, double b) { return a - b; }
static tp_status sub_oracle(const tp_call *k) { return tp_oracle_binary(k, sub_f64); }

static void sub_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    if (tp_wants(k, 0)) din[0] = tp_sum_like(k->ctx, dout[0], k->in[0]);
    if (tp_wants(k, 1)) din[1] = tp_scale(k->ctx, tp_sum_like(k->ctx, dout[0], k->in[1]), -1, 0);
}

/* clang-format off */
static const tp_sample sub_samples[] = {
    {"same shape", {{TP_GEN_NORMAL, 2, {17, 33}}, {TP_GEN_NORMAL, 2, {17, 33}}}},
    {"column", {{TP_GEN_NORMAL, 3, {2, 5, 130}}, {TP_GEN_NORMAL, 3, {2, 5, 1}}}},
    {"row", {{TP_GEN_NORMAL, 1, {7}}, {TP_GEN_NORMAL, 2, {5, 7}}}},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}, {TP_GEN_NORMAL, 2, {4, 5}}}},
    {"empty", {{TP_GEN_NORMAL, 1, {0}}, {TP_GEN_NORMAL, 1, {1}}}},
    {"unrelated", {{TP_GEN_NORMAL, 1, {3}}, {TP_GEN_NORMAL, 1, {4}}}, .refuse = "does not broadcast"},
    {0},
};
/* clang-format on */

const tp_op op_sub = {
    .name = "sub",
    .synopsis = "y = a-b",
    .doc = "Elementwise difference of two tensors that broadcast against each other.",
    .infer = tp_infer_broadcast,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(sub_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&sub_cuda)},
    .oracle = sub_oracle,
    .vjp = sub_vjp,
    .flops = tp_flops_1,
    .samples = sub_samples,
};
