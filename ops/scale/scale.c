/* scale.
 *
 *   y = s x + t   so   dx = s dy. */
#include "ops/scale/scale.h"
#include "ops/elementwise.h"
#include "ops/scale/scale_math.h"

extern const tp_op op_scale;
TP_CPU_DECLARE(scale_cpu);
TP_CUDA_DECLARE(scale_cuda);

tp_tensor *tp_scale(tp_ctx *c, tp_tensor *x, double s, double t) {
    return tp_op1(c, &op_scale, (&(scale_attr){s, t}), x);
}

static tp_status scale_oracle(const tp_call *k) {
    const scale_attr *a = k->attr;
    for (int64_t i = 0, n = tp_numel(k->out[0]); i < n; i++)
        tp_f64(k->out[0])[i] = a->s * tp_f64(k->in[0])[i] + a->t;
    return TP_OK;
}

static void scale_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    const scale_attr *a = k->attr;
    din[0] = tp_scale(k->ctx, dout[0], a->s, 0);
}

static double scale_flops(const tp_call *k) { return 2.0 * (double)tp_numel(k->out[0]); }

/* clang-format off */
static const tp_sample scale_samples[] = {
    {"affine", {{TP_GEN_NORMAL, 2, {17, 33}}}, &(const scale_attr){-2.5, 0.75}},
    {"negation", {{TP_GEN_NORMAL, 1, {130}}}, &(const scale_attr){-1, 0}},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}}, &(const scale_attr){0.125, 1}},
    {"empty", {{TP_GEN_NORMAL, 2, {0, 3}}}, &(const scale_attr){2, 1}},
    {"integers", {{TP_GEN_INT, 1, {4}, 0, 3}}, &(const scale_attr){2, 1}, .refuse = "x must be a float"},
    {0},
};
static const tp_attr scale_attrs[] = {{"s", TP_ATTR_FLOAT, offsetof(scale_attr, s)},
                                      {"t", TP_ATTR_FLOAT, offsetof(scale_attr, t)},
                                      {0}};
/* clang-format on */

const tp_op op_scale = {
    .name = "scale",
    .synopsis = "y = s*x + t",
    .doc = "Multiplies by the constant s and adds the constant t.",
    .infer = tp_infer_unary,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(scale_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&scale_cuda)},
    .oracle = scale_oracle,
    .vjp = scale_vjp,
    .flops = scale_flops,
    .attrs = scale_attrs,
    .attr_bytes = sizeof(scale_attr),
    .samples = scale_samples,
};
