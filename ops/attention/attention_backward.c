/* attention_backward. With x, s, p, o and lse as in attention.c, and do and dlse given:
 *
 *   o_i = sum_j p_ij v_j           so  dv_j = sum_i p_ij do_i,   dp_ij = do_i.v_j
 *   dp_ij/ds_ik = p_ij (j==k) - p_ij p_ik,   dlse_i/ds_ij = p_ij
 *                                  so  ds_ij = p_ij (dp_ij - sum_k p_ik dp_ik + dlse_i)
 *   sum_k p_ik dp_ik = do_i.(sum_k p_ik v_k) = do_i.o_i: one number per row, no second walk
 *   dx_ij = ds_ij cap'(x_ij),  cap' = 1 - (s/c)^2
 *   x_ij = scale q_i.k_j           so  dq_i = scale sum_j dx_ij k_j,   dk_j = scale sum_i dx_ij q_i
 *
 * (Dao et al., arXiv 2205.14135, appendix B.2.) p is made again from q, k and lse. */
#include "ops/attention/attention.h"
#include "core/ctx.h"
#include "ops/attention/attention_problem.h"
#include "ops/join/join.h"
#include <math.h>
#include <string.h>

extern const tp_op op_attention_backward;
TP_CPU_DECLARE(attention_backward_cpu);
TP_CUDA_DECLARE(attention_backward_sm90_cuda);
TP_CUDA_DECLARE(attention_backward_sm80);
TP_CUDA_DECLARE(attention_backward_naive_cuda);

static tp_status need_shape(const tp_call *k, int i, const char *arg, int ndim,
                            const int64_t *shape) {
    const tp_tensor *x = k->in[i];
    tp_status st;
    if (!x) return TP_OK;
    if ((st = tp_need_float(k, i, arg)) || (st = tp_need_ndim(k, i, arg, ndim, ndim))) return st;
    if (memcmp(x->shape, shape, (size_t)ndim * sizeof *shape))
        return tp_refuse(k, TP_ESHAPE, "%s does not have the shape that attention gives, got %s",
                         arg, tp_shape_str(k->ctx, x));
    return TP_OK;
}

/* q, k and v are parts of one buffer's heads, (B,T,H+2Hkv,D), as one product makes them: so are
 * their gradients, and nobody has to put them together. */
static tp_status packed_out(tp_call *k, const tp_tensor *like) {
    tp_tensor *all = tp_tensor_new(k->ctx, like->dtype, like->ndim, like->shape);
    tp_status st = all ? TP_OK : k->ctx->status;
    for (int64_t i = 0, head = 0; i < 3 && !st; head += k->in[i++]->shape[2]) {
        if ((st = tp_out_view(k, all))) break;
        k->out[i]->shape[2] = k->in[i]->shape[2];
        tp_view_shift(k->out[i], head * all->stride[2]);
    }
    tp_release(k->ctx, all); /* its bytes are the outputs' */
    return st;
}

static tp_status backward_infer(tp_call *k) {
    tp_status st = attention_check(k, BACKWARD_SEGMENTS);
    if (st) return st;
    const tp_tensor *q = k->in[0], *v = k->in[2];
    int64_t o[4] = {q->shape[0], q->shape[1], q->shape[2], v->shape[3]};
    int64_t lse[3] = {q->shape[0], q->shape[2], q->shape[1]};
    if ((st = need_shape(k, BACKWARD_O, "o", 4, o))) return st;
    if ((st = need_shape(k, BACKWARD_DO, "do", 4, o))) return st;
    if ((st = need_shape(k, BACKWARD_LSE, "lse", 3, lse))) return st;
    if ((st = need_shape(k, BACKWARD_DLSE, "dlse", 3, lse))) return st;
    tp_tensor packed;
    if (tp_lie_joined(2, 3, k->in, &packed) && tp_contiguous(&packed))
        return packed_out(k, &packed);
    for (int i = 0; i < 3; i++)
        if ((st = tp_out_like(k, k->in[i]))) return st;
    return TP_OK;
}

/* One (query, key) pair's terms. x = delta_i = do_i.o_i - dlse_i. */
static void oracle_pair(const tp_call *k, const attention_problem *p, int64_t qrow, int64_t krow,
                        double lse, double delta) {
    const double *q = tp_f64(k->in[BACKWARD_Q]) + qrow * p->D;
    const double *key = tp_f64(k->in[BACKWARD_K]) + krow * p->D;
    const double *v = tp_f64(k->in[BACKWARD_V]) + krow * p->Dv;
    const double *d_o = k->in[BACKWARD_DO] ? tp_f64(k->in[BACKWARD_DO]) + qrow * p->Dv : NULL;
    double *dq = tp_f64(k->out[0]) + qrow * p->D, *dk = tp_f64(k->out[1]) + krow * p->D;
    double *dv = tp_f64(k->out[2]) + krow * p->Dv;
    double s = 0, dp = 0, slope = 1;
    for (int64_t d = 0; d < p->D; d++) s += p->scale * q[d] * key[d];
    if (p->softcap > 0) {
        s = tanh(s / p->softcap);
        slope = 1 - s * s;
        s *= p->softcap;
    }
    double w = exp(s - lse);
    for (int64_t d = 0; d < p->Dv && d_o; d++) {
        dp += d_o[d] * v[d];
        dv[d] += w * d_o[d];
    }
    double dx = w * (dp - delta) * slope;
    for (int64_t d = 0; d < p->D; d++) {
        dq[d] += p->scale * dx * key[d];
        dk[d] += p->scale * dx * q[d];
    }
}

static void oracle_row(const tp_call *k, const attention_problem *p, int64_t b, int64_t h,
                       int64_t t) {
    int64_t qrow = (b * p->T + t) * p->H + h, lrow = (b * p->H + h) * p->T + t;
    double delta = k->in[BACKWARD_DLSE] ? -tp_f64(k->in[BACKWARD_DLSE])[lrow] : 0;
    for (int64_t d = 0; d < p->Dv && k->in[BACKWARD_DO]; d++)
        delta += tp_f64(k->in[BACKWARD_DO])[qrow * p->Dv + d] *
                 tp_f64(k->in[BACKWARD_O])[qrow * p->Dv + d];
    for (int64_t j = 0; j < p->S; j++)
        if (attention_sees(p, b, t, j))
            oracle_pair(k, p, qrow, (b * p->S + j) * p->Hkv + h / p->G,
                        tp_f64(k->in[BACKWARD_LSE])[lrow], delta);
}

static tp_status backward_oracle(const tp_call *k) {
    attention_problem p = attention_problem_of(k, k->in[BACKWARD_SEGMENTS], NULL);
    for (int i = 0; i < 3; i++)
        for (int64_t e = 0, n = tp_numel(k->out[i]); e < n; e++) tp_f64(k->out[i])[e] = 0;
    for (int64_t b = 0; b < p.B; b++)
        for (int64_t h = 0; h < p.H; h++)
            for (int64_t t = 0; t < p.T; t++) oracle_row(k, &p, b, h, t);
    return TP_OK;
}

tp_status tp_attention_backward(tp_ctx *c, const tp_attention_backward_args *x,
                                const tp_attention_opts *opts, tp_tensor *dqkv[3]) {
    tp_attention_opts o = opts ? *opts : (tp_attention_opts){0};
    attention_attr a = {o.causal, o.q_offset_given, o.q_offset, o.window, o.scale, o.softcap};
    tp_tensor *in[] = {x->q, x->k, x->v, x->o, x->lse, x->d_o, o.segments, x->dlse};
    tp_tensor *out[TP_MAXOUT] = {0};
    dqkv[0] = dqkv[1] = dqkv[2] = NULL;
    if (o.starts)
        return tp_fail(c, TP_EARG, "attention_backward: there is no gradient with starts");
    tp_status st = tp_op_run(c, &op_attention_backward, &a, 8, in, out);
    for (int i = 0; i < 3 && !st; i++) dqkv[i] = out[i];
    return st;
}

static double backward_flops(const tp_call *k) {
    attention_problem p = attention_problem_of(k, NULL, NULL);
    return (double)(6 * p.D + 4 * p.Dv) * attention_pairs(&p); /* five products */
}

/* lse is drawn around 3, so that weights exp(s - lse) stay moderate. */
#define ARGS(B, T, S, H, Hkv, D, Dv)                                                               \
    {TP_GEN_NORMAL, 4, {B, T, H, D}}, {TP_GEN_NORMAL, 4, {B, S, Hkv, D}},                          \
        {TP_GEN_NORMAL, 4, {B, S, Hkv, Dv}}, {TP_GEN_NORMAL, 4, {B, T, H, Dv}}, {                  \
        TP_GEN_NORMAL, 3, {B, H, T}, 3, 0.5                                                        \
    }
#define DO(B, T, H, Dv)                                                                            \
    {                                                                                              \
        TP_GEN_NORMAL, 4, { B, T, H, Dv }                                                          \
    }
#define ATTR(...) (&(const attention_attr){__VA_ARGS__})
static const int32_t documents[] = {3, 3, 3, 3, 1, 1, 1, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
                                    0, 0, 0, 0, 0, 2, 2, 2, 2, 0, 0, 0, 0, 9, 9, 9, 9};

static const tp_sample backward_samples[] = {
    {"everything visible", {ARGS(2, 5, 7, 2, 2, 4, 4), DO(2, 5, 2, 4)}},
    {"causal, several tiles",
     {ARGS(1, 130, 130, 2, 2, 16, 16), DO(1, 130, 2, 16)},
     ATTR(.causal = true)},
    {"many heads", {ARGS(3, 70, 70, 4, 4, 8, 8), DO(3, 70, 4, 8)}, ATTR(.causal = true)},
    {"grouped heads", {ARGS(1, 33, 33, 6, 2, 5, 5), DO(1, 33, 6, 5)}, ATTR(.causal = true)},
    {"values wider than keys", {ARGS(1, 7, 9, 2, 2, 3, 19), DO(1, 7, 2, 19)}, ATTR(.causal = true)},
    {"wide heads", {ARGS(1, 9, 65, 1, 1, 80, 80), DO(1, 9, 1, 80)}},
    {"window",
     {ARGS(1, 140, 140, 1, 1, 4, 4), DO(1, 140, 1, 4)},
     ATTR(.causal = true, .window = 9)},
    {"softcap and scale",
     {ARGS(1, 20, 20, 2, 1, 4, 4), DO(1, 20, 2, 4)},
     ATTR(true, .scale = 0.7, .softcap = 1.5)},
    {"segments",
     {ARGS(2, 17, 17, 2, 2, 4, 4), DO(2, 17, 2, 4), {TP_GEN_DATA, 2, {2, 17}, .data = documents}},
     ATTR(.causal = true)},
    {"a gradient of lse",
     {ARGS(1, 5, 5, 2, 2, 4, 4), DO(1, 5, 2, 4), {TP_GEN_ABSENT}, {TP_GEN_NORMAL, 3, {1, 2, 5}}}},
    {"only a gradient of lse",
     {ARGS(1, 5, 5, 2, 2, 4, 4), {TP_GEN_ABSENT}, {TP_GEN_ABSENT}, {TP_GEN_NORMAL, 3, {1, 2, 5}}}},
    {"queries that see nothing", {ARGS(1, 6, 4, 1, 1, 4, 4), DO(1, 6, 1, 4)}, ATTR(.causal = true)},
    {"no queries", {ARGS(2, 0, 3, 2, 2, 4, 4), DO(2, 0, 2, 4)}},
    {"no keys", {ARGS(2, 3, 0, 2, 2, 4, 4), DO(2, 3, 2, 4)}},
    {"no width", {ARGS(1, 3, 3, 2, 2, 0, 0), DO(1, 3, 2, 0)}},
    {"one of each", {ARGS(1, 1, 1, 1, 1, 1, 1), DO(1, 1, 1, 1)}},
    {"do of another shape",
     {ARGS(1, 2, 2, 1, 1, 4, 4), DO(1, 3, 1, 4)},
     .refuse = "do does not have the shape"},
    {"lse of another shape",
     {{TP_GEN_NORMAL, 4, {1, 2, 1, 4}},
      {TP_GEN_NORMAL, 4, {1, 2, 1, 4}},
      {TP_GEN_NORMAL, 4, {1, 2, 1, 4}},
      {TP_GEN_NORMAL, 4, {1, 2, 1, 4}},
      {TP_GEN_NORMAL, 3, {1, 2, 1}}},
     .refuse = "lse does not have the shape"},
    {0},
};

const tp_op op_attention_backward = {
    .name = "attention_backward",
    .synopsis = "dq,dk,dv of o = softmax(scale q k') v",
    .doc =
        "The gradients of attention's q, k and v from those of o and lse. Weights are made again "
        "from q, k and lse, tile by tile: memory is O(T). Sums run over rows and keys in a fixed "
        "order, whatever the number of threads.",
    .infer = backward_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(attention_backward_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&attention_backward_sm90_cuda, &attention_backward_sm80,
                                        &attention_backward_naive_cuda)},
    .oracle = backward_oracle,
    .no_vjp =
        "second-order gradients of attention are not fused; compose it from matmul and softmax",
    .optional = 1 << BACKWARD_DO | 1 << BACKWARD_SEGMENTS | 1 << BACKWARD_DLSE,
    .flops = backward_flops,
    .attrs = attention_attrs,
    .attr_bytes = sizeof(attention_attr),
    .samples = backward_samples,
};
