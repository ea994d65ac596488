/* dropout.
 *
 *   y = m x, m = 1/(1-p) where kept, else 0   so   dx = m dy:
 * the vjp is the op itself with the same attributes, which determine m. */
#include "ops/dropout/dropout.h"
#include "core/ctx.h"
#include "ops/dropout/dropout_math.h"
#include "ops/elementwise.h"

extern const tp_op op_dropout;
TP_CPU_DECLARE(dropout_cpu);
TP_CUDA_DECLARE(dropout_cuda);

tp_tensor *tp_dropout(tp_ctx *c, tp_tensor *x, double p_drop) {
    dropout_attr a = {p_drop, c->seed, c->step, c->sample, c->stream};
    if (p_drop == 0 && x) return x;
    c->stream++;
    return tp_op1(c, &op_dropout, &a, x);
}

static tp_status dropout_infer(tp_call *k) {
    const dropout_attr *a = k->attr;
    if (!(a->p_drop >= 0 && a->p_drop < 1))
        return tp_refuse(k, TP_EARG, "p_drop must be at least 0 and below 1, got %g", a->p_drop);
    return tp_infer_unary(k);
}

static tp_status dropout_oracle(const tp_call *k) {
    const dropout_attr *a = k->attr;
    const tp_tensor *x = k->in[0];
    uint32_t key[4], word[4];
    int64_t n = tp_numel(x), inner = x->ndim && x->shape[0] ? n / x->shape[0] : 1;
    tp_philox(key, a->seed, TP_RNG_DROPOUT, a->step, a->stream);
    uint64_t site = (uint64_t)key[1] << 32 | key[0]; /* a key of its own for every site and step */
    for (int64_t i = 0; i < n; i++) {
        uint64_t at = (uint64_t)(i % inner), sample = a->sample + (uint64_t)(i / inner);
        tp_philox(word, site, TP_RNG_DROPOUT, sample, at / 4);
        bool kept = word[at % 4] >= (uint64_t)(a->p_drop * 0x1p32);
        tp_f64(k->out[0])[i] = kept ? tp_f64(x)[i] / (1 - a->p_drop) : 0;
    }
    return TP_OK;
}

static void dropout_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[0] = tp_op1(k->ctx, &op_dropout, k->attr, dout[0]);
}

/* clang-format off */
#define AT(p, ...) &(const dropout_attr){p, __VA_ARGS__}
static const tp_sample dropout_samples[] = {
    {"three samples", {{TP_GEN_NORMAL, 3, {3, 17, 19}}}, AT(0.25, 7, 3, 100, 2)},
    {"long samples", {{TP_GEN_NORMAL, 2, {2, 2100}}}, AT(0.1, 7, 3, 5, 0)},
    {"vector", {{TP_GEN_NORMAL, 1, {130}}}, AT(0.5, 7, 3, 5, 0)},
    {"scalar", {{TP_GEN_NORMAL, 0, {0}}}, AT(0.5, 1, 0, 0, 0)},
    {"nothing dropped", {{TP_GEN_NORMAL, 1, {70}}}, AT(0, 1, 0, 0, 0)},
    {"nearly all", {{TP_GEN_NORMAL, 1, {70}}}, AT(0.99, 1, 0, 0, 0)},
    {"empty", {{TP_GEN_NORMAL, 2, {3, 0}}}, AT(0.5, 1, 0, 0, 0)},
    {"no samples", {{TP_GEN_NORMAL, 2, {0, 3}}}, AT(0.5, 1, 0, 0, 0)},
    {"all dropped", {{TP_GEN_NORMAL, 1, {4}}}, AT(1, 1, 0, 0, 0), .refuse = "below 1, got 1"},
    {"negative", {{TP_GEN_NORMAL, 1, {4}}}, AT(-0.5, 1, 0, 0, 0), .refuse = "at least 0"},
    {"not a number", {{TP_GEN_NORMAL, 1, {4}}}, AT((double)__builtin_nanf(""), 1, 0, 0, 0), .refuse = "at least 0"},
    {"integers", {{TP_GEN_INT, 1, {4}, 0, 3}}, AT(0.5, 1, 0, 0, 0), .refuse = "x must be a float"},
    {0},
};
static const tp_attr dropout_attrs[] = {{"p_drop", TP_ATTR_FLOAT, offsetof(dropout_attr, p_drop)},
                                        {"step", TP_ATTR_I64, offsetof(dropout_attr, step)},
                                        {"sample", TP_ATTR_I64, offsetof(dropout_attr, sample)},
                                        {"stream", TP_ATTR_INT, offsetof(dropout_attr, stream)},
                                        {0}};
/* clang-format on */

const tp_op op_dropout = {
    .name = "dropout",
    .synopsis = "y = x*m/(1-p)",
    .doc = "Drops elements at random. The mask m is a function of seed, step, site, sample and "
           "position, and is never stored.",
    .infer = dropout_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(dropout_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&dropout_cuda)},
    .oracle = dropout_oracle,
    .vjp = dropout_vjp,
    .flops = tp_flops_1,
    .attrs = dropout_attrs,
    .attr_bytes = sizeof(dropout_attr),
    .samples = dropout_samples,
};
