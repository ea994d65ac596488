/* adamw_: see adamw.h for the step. mhat and vhat undo the start from zero: after t updates with a
 * constant g, m = (1 - b1^t) g and v = (1 - b2^t) g^2. Decay acts on p itself and not through the
 * gradient, whose scale Adam would cancel. */
#include "core/ctx.h"
#include "ops/adamw/adamw_math.h"
#include "ops/convert.h"

extern const tp_op op_adamw_;
TP_CPU_DECLARE(adamw_cpu);
TP_CPU_DECLARE(adamw_bf16_cpu);
TP_CUDA_DECLARE(adamw_cuda);
TP_CUDA_DECLARE(adamw_bf16_cuda);

static tp_status check_state(tp_call *k) {
    static const char *const names[] = {"p", "p and m", "p and v", "p and grad"};
    const tp_adamw_opts *o = k->attr;
    for (int i = 1; i < 4; i++) {
        const tp_tensor *p = k->in[0], *t = k->in[i];
        if (!o->bf16_state || i == 3) {
            tp_status st = tp_need_same(k, 0, i, names[i]);
            if (st) return st;
        } else if (t->dtype != TP_BF16 || !tp_same_shape(p, t))
            return tp_refuse(k, t->dtype == TP_BF16 ? TP_ESHAPE : TP_EDTYPE,
                             "%s must have the same shape and m and v be bf16, got %s and %s",
                             names[i], tp_shape_str(k->ctx, p), tp_shape_str(k->ctx, t));
    }
    return TP_OK;
}

static tp_status adamw_infer(tp_call *k) {
    const tp_adamw_opts *o = k->attr;
    tp_status st = tp_need_float(k, 0, "p");
    if (!st) st = check_state(k);
    if (st) return st;
    if (!(o->beta1 >= 0 && o->beta1 < 1 && o->beta2 >= 0 && o->beta2 < 1))
        return tp_refuse(k, TP_EARG, "beta1 and beta2 must be in [0,1), got %g and %g", o->beta1,
                         o->beta2);
    if (!(o->epsilon > 0 && isfinite(o->learning_rate) && isfinite(o->weight_decay) &&
          isfinite(o->grad_scale)))
        return tp_refuse(k, TP_EARG,
                         "learning_rate, weight_decay and grad_scale must be finite and epsilon "
                         "positive, got %g, %g, %g and %g",
                         o->learning_rate, o->weight_decay, o->grad_scale, o->epsilon);
    if (o->update < 1 || o->update >= ADAMW_UPDATES)
        return tp_refuse(k, TP_EARG, "updates are counted from 1 to 2^40-1, got %lld",
                         (long long)o->update);
    if (o->stream < 0 || o->stream >= ADAMW_STREAMS || o->offset < 0)
        return tp_refuse(k, TP_EARG,
                         "stream must be in [0,2^24) and offset not negative, got %lld and %lld",
                         (long long)o->stream, (long long)o->offset);
    return TP_OK;
}

/* Element i's moments in place: see adamw_math.h for which random bits are whose. */
static void round_state(const tp_call *k, int64_t i, double *m, double *v) {
    const tp_adamw_opts *o = k->attr;
    uint32_t w[4], bits;
    adamw_place at = adamw_place_of(o->offset + i);
    tp_philox(w, k->ctx->seed, TP_RNG_ROUND, adamw_counter(o), (uint64_t)at.counter);
    bits = w[at.word];
    *m = tp_bf16_to_f32(tp_f32_to_bf16_stochastic((float)*m, bits & 0xffff));
    *v = tp_bf16_to_f32(tp_f32_to_bf16_stochastic((float)*v, bits >> 16));
}

static tp_status adamw_oracle(const tp_call *k) {
    const tp_adamw_opts *o = k->attr;
    double *p = tp_f64(k->in[0]), *m = tp_f64(k->in[1]), *v = tp_f64(k->in[2]);
    double scale = o->grad_scale == 0 ? 1 : o->grad_scale, t = (double)o->update;
    for (int64_t i = 0, n = tp_numel(k->in[0]); i < n; i++) {
        double g = k->in[3] ? scale * tp_f64(k->in[3])[i] : 0;
        m[i] = o->beta1 * m[i] + (1 - o->beta1) * g;
        v[i] = o->beta2 * v[i] + (1 - o->beta2) * g * g;
        double mhat = m[i] / (1 - pow(o->beta1, t)), vhat = v[i] / (1 - pow(o->beta2, t));
        p[i] -= o->learning_rate * (mhat / (sqrt(vhat) + o->epsilon) + o->weight_decay * p[i]);
        if (o->bf16_state) round_state(k, i, &m[i], &v[i]);
    }
    return TP_OK;
}

tp_status tp_adamw_(tp_ctx *c, tp_tensor *p, tp_tensor *m, tp_tensor *v, tp_tensor *grad,
                    const tp_adamw_opts *opts) {
    tp_tensor *none[TP_MAXOUT];
    tp_adamw_opts o = *opts;
    o.bf16_state = m && m->dtype == TP_BF16;
    return tp_op_run(c, &op_adamw_, &o, 4, (tp_tensor *[]){p, m, v, grad}, none);
}

static double adamw_flops(const tp_call *k) { return 15.0 * (double)tp_numel(k->in[0]); }

#define FIELD(f, type)                                                                             \
    { #f, TP_ATTR_##type, offsetof(tp_adamw_opts, f) }
static const tp_attr adamw_attrs[] = {
    FIELD(learning_rate, FLOAT),
    FIELD(beta1, FLOAT),
    FIELD(beta2, FLOAT),
    FIELD(epsilon, FLOAT),
    FIELD(weight_decay, FLOAT),
    FIELD(grad_scale, FLOAT),
    FIELD(update, I64),
    FIELD(stream, I64),
    FIELD(offset, I64),
    FIELD(bf16_state, BOOL),
    {0},
};
/* clang-format off */
#define DIMS(...) (int)(sizeof((int64_t[]){__VA_ARGS__}) / 8), {__VA_ARGS__}
#define N(...) {TP_GEN_NORMAL, DIMS(__VA_ARGS__)}
#define POSITIVE(...) {TP_GEN_UNIFORM, DIMS(__VA_ARGS__), 0.01, 2}
#define B(...) {TP_GEN_NORMAL, DIMS(__VA_ARGS__), .dtype = TP_BF16}
#define BPOS(...) {TP_GEN_UNIFORM, DIMS(__VA_ARGS__), 0.01, 2, .dtype = TP_BF16}
#define OPTS(t, ...)                                                                               \
    &(const tp_adamw_opts){.learning_rate = 0.1, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8,     \
                           .update = t, __VA_ARGS__}
static const tp_sample adamw_samples[] = {
    {"matrix", {N(17, 33), N(17, 33), POSITIVE(17, 33), N(17, 33)}, OPTS(3, .weight_decay = 0.1)},
    {"scaled gradient", {N(130), N(130), POSITIVE(130), N(130)}, OPTS(3, .grad_scale = 0.3)},
    {"no gradient", {N(7, 5), N(7, 5), POSITIVE(7, 5)}, OPTS(3, .weight_decay = 0.1)},
    {"late", {N(5), N(5), POSITIVE(5), N(5)}, OPTS(100000, .weight_decay = 0.1)},
    {"several chunks", {N(3, 30000), N(3, 30000), POSITIVE(3, 30000), N(3, 30000)},
     OPTS(1, .weight_decay = 0)},
    {"empty", {N(0, 3), N(0, 3), N(0, 3), N(0, 3)}, OPTS(1, .weight_decay = 0)},
    {"bf16 state", {N(17, 33), B(17, 33), BPOS(17, 33), N(17, 33)},
     OPTS(3, .weight_decay = 0.1, .bf16_state = true)},
    {"bf16 state, part of a parameter", {N(200), B(200), BPOS(200), N(200)},
     OPTS(70000, .grad_scale = 0.3, .bf16_state = true, .stream = 77, .offset = 1000003)},
    {"bf16 state, no gradient", {N(5), B(5), BPOS(5)}, OPTS(1, .bf16_state = true, .offset = 62)},
    {"bf16 state, empty", {N(0), B(0), BPOS(0), N(0)}, OPTS(1, .bf16_state = true)},
    {"f32 m beside bf16 v", {N(4), N(4), BPOS(4), N(4)}, OPTS(1, .bf16_state = true),
     .refuse = "m and v be bf16"},
    {"bf16 v alone", {N(4), N(4), BPOS(4), N(4)}, OPTS(1, .stream = 0),
     .refuse = "p and v must have the same"},
    {"bf16 shapes", {N(4), B(5), BPOS(4), N(4)}, OPTS(1, .bf16_state = true),
     .refuse = "p and m must have the same shape"},
    {"stream", {N(4), N(4), N(4), N(4)}, OPTS(1, .stream = 1 << 24), .refuse = "stream must be"},
    {"offset", {N(4), N(4), N(4), N(4)}, OPTS(1, .offset = -1), .refuse = "offset not negative"},
    {"shapes", {N(4), N(4), N(5), N(4)}, OPTS(1, .weight_decay = 0),
     .refuse = "p and v must have the same"},
    {"bad beta", {N(4), N(4), N(4), N(4)},
     &(const tp_adamw_opts){.beta1 = 1, .epsilon = 1, .update = 1}, .refuse = "beta1 and beta2"},
    {"bad epsilon", {N(4), N(4), N(4), N(4)}, &(const tp_adamw_opts){.update = 1},
     .refuse = "epsilon positive"},
    {"update 0", {N(4), N(4), N(4), N(4)}, &(const tp_adamw_opts){.epsilon = 1},
     .refuse = "counted from 1"},
    {0},
};
/* clang-format on */

const tp_op op_adamw_ = {
    .name = "adamw_",
    .synopsis = "p -= lr*(mhat/(sqrt(vhat)+eps) + wd*p)",
    .doc = "One step of AdamW in place: the moments m and v, then the parameter p. The gradient's "
           "scale "
           "(from clipping) is applied on the way, so gradients are not written again. The moments "
           "may be bf16: they are then rounded stochastically, by random numbers that belong to "
           "the element's place in its parameter.",
    .infer = adamw_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(adamw_cpu),
                                                     TP_CPU_LIST(adamw_bf16_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&adamw_cuda, &adamw_bf16_cuda)},
    .oracle = adamw_oracle,
    .no_vjp = "an update, not a function",
    .optional = 8,
    .inplace = 7,
    .flops = adamw_flops,
    .attrs = adamw_attrs,
    .attr_bytes = sizeof(tp_adamw_opts),
    .samples = adamw_samples,
};
