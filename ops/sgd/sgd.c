/* sgd_: see sgd.h for the step. Nesterov's form follows Sutskever et al. 2013 as frameworks write
 * it: the direction is the gradient plus momentum times the new buffer. */
#include "ops/sgd/sgd.h"
#include <math.h>

extern const tp_op op_sgd_;
TP_CPU_DECLARE(sgd_cpu);
TP_CUDA_DECLARE(sgd_cuda);

static tp_status sgd_infer(tp_call *k) {
    const tp_sgd_opts *o = k->attr;
    tp_status st = tp_need_float(k, 0, "p");
    if (!st) st = tp_need_same(k, 0, 1, "p and b");
    if (!st) st = tp_need_same(k, 0, 2, "p and grad");
    if (st) return st;
    if (!(o->momentum >= 0 && o->momentum < 1))
        return tp_refuse(k, TP_EARG, "momentum must be in [0,1), got %g", o->momentum);
    if (!isfinite(o->learning_rate) || !isfinite(o->weight_decay) || !isfinite(o->grad_scale))
        return tp_refuse(k, TP_EARG,
                         "learning_rate, weight_decay and grad_scale must be finite, got %g, %g "
                         "and %g",
                         o->learning_rate, o->weight_decay, o->grad_scale);
    return TP_OK;
}

static tp_status sgd_oracle(const tp_call *k) {
    const tp_sgd_opts *o = k->attr;
    double *p = tp_f64(k->in[0]), *b = k->in[1] ? tp_f64(k->in[1]) : NULL;
    double scale = o->grad_scale == 0 ? 1 : o->grad_scale;
    for (int64_t i = 0, n = tp_numel(k->in[0]); i < n; i++) {
        double g = k->in[2] ? scale * tp_f64(k->in[2])[i] : 0, u = g;
        if (b) {
            b[i] = o->momentum * b[i] + g;
            u = o->nesterov ? g + o->momentum * b[i] : b[i];
        }
        p[i] -= o->learning_rate * (u + o->weight_decay * p[i]);
    }
    return TP_OK;
}

tp_status tp_sgd_(tp_ctx *c, tp_tensor *p, tp_tensor *b, tp_tensor *grad, const tp_sgd_opts *opts) {
    tp_tensor *none[TP_MAXOUT];
    return tp_op_run(c, &op_sgd_, opts, 3, (tp_tensor *[]){p, b, grad}, none);
}

static double sgd_flops(const tp_call *k) { return 8.0 * (double)tp_numel(k->in[0]); }

#define FIELD(f, type)                                                                             \
    { #f, TP_ATTR_##type, offsetof(tp_sgd_opts, f) }
static const tp_attr sgd_attrs[] = {
    FIELD(learning_rate, FLOAT), FIELD(momentum, FLOAT), FIELD(weight_decay, FLOAT),
    FIELD(grad_scale, FLOAT),    FIELD(nesterov, BOOL),  {0},
};
/* clang-format off */
#define DIMS(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / 8), {__VA_ARGS__}
#define N(...) {TP_GEN_NORMAL, DIMS(__VA_ARGS__)}
#define OPTS(...) &(const tp_sgd_opts){.learning_rate = 0.1, __VA_ARGS__}
static const tp_sample sgd_samples[] = {
    {"momentum", {N(17, 33), N(17, 33), N(17, 33)}, OPTS(.momentum = 0.9, .weight_decay = 0.1)},
    {"nesterov", {N(130), N(130), N(130)},
     OPTS(.momentum = 0.8, .nesterov = true, .grad_scale = 0.4)},
    {"plain", {N(5, 7), {TP_GEN_ABSENT}, N(5, 7)}, OPTS(.weight_decay = 0.2)},
    {"no gradient", {N(5), N(5), {TP_GEN_ABSENT}}, OPTS(.momentum = 0.9)},
    {"neither", {N(5), {TP_GEN_ABSENT}, {TP_GEN_ABSENT}}, OPTS(.weight_decay = 0.2)},
    {"several chunks", {N(70000), N(70000), N(70000)}, OPTS(.momentum = 0.9)},
    {"empty", {N(0), N(0), N(0)}, OPTS(.momentum = 0.9)},
    {"shapes", {N(4), N(5), N(4)}, OPTS(.momentum = 0.9), .refuse = "p and b must have the same"},
    {"bad momentum", {N(4), N(4), N(4)}, OPTS(.momentum = 1),
     .refuse = "momentum must be in [0,1)"},
    {"bad rate", {N(4), N(4), N(4)}, OPTS(.weight_decay = NAN), .refuse = "must be finite"},
    {0},
};
/* clang-format on */

const tp_op op_sgd_ = {
    .name = "sgd_",
    .synopsis = "b = mu*b+g; p -= lr*(b + wd*p)",
    .doc =
        "One step of gradient descent in place, with heavy-ball or Nesterov momentum and decoupled "
        "weight decay. Muon applies its directions with it.",
    .infer = sgd_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(sgd_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&sgd_cuda)},
    .oracle = sgd_oracle,
    .no_vjp = "an update, not a function",
    .optional = 6,
    .inplace = 3,
    .flops = sgd_flops,
    .attrs = sgd_attrs,
    .attr_bytes = sizeof(tp_sgd_opts),
    .samples = sgd_samples,
};
