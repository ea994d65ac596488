/* attention.
 *
 *   x_ij = scale q_i.k_j      s_ij = cap(x_ij)   (cap is the identity, or c tanh(x/c))
 *   lse_i = log sum_j exp(s_ij)   p_ij = exp(s_ij - lse_i)   o_i = sum_j p_ij v_j
 *
 * sums over the keys j that query i sees. Saved for backward: q, k, v, o and the one number lse per
 * row, from which p is made again (attention_backward.c). */
#include "ops/attention/attention.h"
#include "ops/attention/attention_problem.h"
#include <math.h>

extern const tp_op op_attention;
TP_CPU_DECLARE(attention_flash_cpu);
TP_CPU_DECLARE(attention_naive_cpu);
TP_CUDA_DECLARE(attention_sm90_cuda);
TP_CUDA_DECLARE(attention_sm80);
TP_CUDA_DECLARE(attention_naive_cuda);

/* ---- what both ops refuse ------------------------------------------------------------------- */
const tp_attr attention_attrs[] = {
    {"causal", TP_ATTR_BOOL, offsetof(attention_attr, causal)},
    {"q_offset_given", TP_ATTR_BOOL, offsetof(attention_attr, q_offset_given)},
    {"q_offset", TP_ATTR_I64, offsetof(attention_attr, q_offset)},
    {"window", TP_ATTR_I64, offsetof(attention_attr, window)},
    {"scale", TP_ATTR_FLOAT, offsetof(attention_attr, scale)},
    {"softcap", TP_ATTR_FLOAT, offsetof(attention_attr, softcap)},
    {0},
};

static tp_status check_shapes(const tp_call *k) {
    const tp_tensor *q = k->in[0], *key = k->in[1], *v = k->in[2];
    if (q->shape[0] != key->shape[0] || q->shape[3] != key->shape[3])
        return tp_refuse(k, TP_ESHAPE,
                         "q (B,T,H,D) and k (B,S,Hkv,D) must agree in B and D, got %s "
                         "and %s",
                         tp_shape_str(k->ctx, q), tp_shape_str(k->ctx, key));
    for (int i = 0; i < 3; i++)
        if (key->shape[i] != v->shape[i])
            return tp_refuse(k, TP_ESHAPE, "k and v must agree in B, S and Hkv, got %s and %s",
                             tp_shape_str(k->ctx, key), tp_shape_str(k->ctx, v));
    int64_t H = q->shape[2], Hkv = key->shape[2];
    if (Hkv ? H % Hkv : H)
        return tp_refuse(k, TP_ESHAPE, "the %lld heads of q must be a multiple of the %lld of k",
                         (long long)H, (long long)Hkv);
    return TP_OK;
}

static tp_status check_attr(const tp_call *k) {
    const attention_attr *a = k->attr;
    const int64_t far = INT64_C(1) << 48; /* so that sums of positions cannot overflow */
    if (a->window < 0)
        return tp_refuse(k, TP_EARG, "window must be 0 (none) or more, got %lld",
                         (long long)a->window);
    if (a->q_offset < -far || a->q_offset > far)
        return tp_refuse(k, TP_EARG, "q_offset %lld is no position", (long long)a->q_offset);
    if (!isfinite(a->scale)) return tp_refuse(k, TP_EARG, "scale must be finite, got %g", a->scale);
    return tp_need_softcap(k, a->softcap);
}

static tp_status check_segments(const tp_call *k, int i) {
    const tp_tensor *q = k->in[0], *key = k->in[1], *s = k->in[i];
    tp_status st;
    if (!s) return TP_OK;
    if ((st = tp_need_int(k, i, "segments"))) return st;
    if (s->ndim != 2 || s->shape[0] != q->shape[0] || s->shape[1] != q->shape[1])
        return tp_refuse(k, TP_ESHAPE, "segments must be (B,T) of q %s, got %s",
                         tp_shape_str(k->ctx, q), tp_shape_str(k->ctx, s));
    if (key->shape[1] != q->shape[1])
        return tp_refuse(k, TP_ESHAPE, "segments need as many keys as queries, got q %s and k %s",
                         tp_shape_str(k->ctx, q), tp_shape_str(k->ctx, key));
    return TP_OK;
}

tp_status attention_check(const tp_call *k, int segments) {
    static const char *const name[3] = {"q", "k", "v"};
    tp_status st;
    for (int i = 0; i < 3; i++) {
        if ((st = tp_need_float(k, i, name[i]))) return st;
        if ((st = tp_need_ndim(k, i, name[i], 4, 4))) return st;
        if (k->in[i]->dtype != k->in[0]->dtype)
            return tp_refuse(k, TP_EDTYPE, "q, k and v must have one dtype, got %s and %s",
                             tp_dtype_name(k->in[0]->dtype), tp_dtype_name(k->in[i]->dtype));
    }
    if ((st = check_shapes(k)) || (st = check_attr(k))) return st;
    return check_segments(k, segments);
}

double attention_pairs(const attention_problem *p) {
    double n = 0;
    for (int64_t t = 0; t < p->T; t++) {
        int64_t lo, hi;
        attention_range(p, t + p->q_offset, &lo, &hi);
        n += hi > lo ? (double)(hi - lo) : 0;
    }
    return n * (double)p->B * (double)p->H;
}

/* ---- the op --------------------------------------------------------------------------------- */
static tp_status attention_infer(tp_call *k) {
    tp_status st = attention_check(k, ATTENTION_SEGMENTS);
    if (st) return st;
    const tp_tensor *q = k->in[0], *v = k->in[2], *starts = k->in[ATTENTION_STARTS];
    if (starts) {
        if ((st = tp_need_int(k, ATTENTION_STARTS, "starts"))) return st;
        if (starts->ndim != 1 || starts->shape[0] != q->shape[0])
            return tp_refuse(k, TP_ESHAPE, "starts must be (B) of q %s, got %s",
                             tp_shape_str(k->ctx, q), tp_shape_str(k->ctx, starts));
    }
    int64_t o[4] = {q->shape[0], q->shape[1], q->shape[2], v->shape[3]};
    int64_t lse[3] = {q->shape[0], q->shape[2], q->shape[1]};
    if ((st = tp_out(k, q->dtype, 4, o))) return st;
    return tp_out(k, q->dtype == TP_F64 ? TP_F64 : TP_F32, 3, lse);
}

static void oracle_row(const tp_call *k, const attention_problem *p, int64_t b, int64_t h,
                       int64_t t) {
    const double *q = tp_f64(k->in[0]) + ((b * p->T + t) * p->H + h) * p->D;
    double *o = tp_f64(k->out[0]) + ((b * p->T + t) * p->H + h) * p->Dv;
    double top = -INFINITY, sum = 0;
    for (int64_t d = 0; d < p->Dv; d++) o[d] = 0;
    for (int pass = 0; pass < 2; pass++) /* first the largest score, so that exp cannot overflow */
        for (int64_t j = 0; j < p->S; j++) {
            if (!attention_sees(p, b, t, j)) continue;
            int64_t at = (b * p->S + j) * p->Hkv + h / p->G;
            double s = 0;
            for (int64_t d = 0; d < p->D; d++) s += q[d] * tp_f64(k->in[1])[at * p->D + d];
            s *= p->scale;
            if (p->softcap > 0) s = p->softcap * tanh(s / p->softcap);
            if (pass == 0) {
                top = fmax(top, s);
                continue;
            }
            sum += exp(s - top);
            for (int64_t d = 0; d < p->Dv; d++)
                o[d] += exp(s - top) * tp_f64(k->in[2])[at * p->Dv + d];
        }
    for (int64_t d = 0; d < p->Dv && sum != 0; d++) o[d] /= sum;
    tp_f64(k->out[1])[(b * p->H + h) * p->T + t] = top + log(sum);
}

static tp_status attention_oracle(const tp_call *k) {
    attention_problem p =
        attention_problem_of(k, k->in[ATTENTION_SEGMENTS], k->in[ATTENTION_STARTS]);
    for (int64_t b = 0; b < p.B; b++)
        for (int64_t h = 0; h < p.H; h++)
            for (int64_t t = 0; t < p.T; t++) oracle_row(k, &p, b, h, t);
    return TP_OK;
}

tp_tensor *tp_attention(tp_ctx *c, tp_tensor *q, tp_tensor *k, tp_tensor *v,
                        const tp_attention_opts *opts, tp_tensor **lse) {
    tp_attention_opts o = opts ? *opts : (tp_attention_opts){0};
    attention_attr a = {o.causal, o.q_offset_given, o.q_offset, o.window, o.scale, o.softcap};
    tp_tensor *in[] = {q, k, v, o.segments, o.starts}, *out[TP_MAXOUT] = {0};
    tp_status st = tp_op_run(c, &op_attention, &a, 5, in, out);
    if (lse) *lse = st ? NULL : out[1];
    return st ? NULL : out[0];
}

static void attention_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    const attention_attr *a = k->attr;
    if (k->in[ATTENTION_STARTS]) {
        tp_refuse(k, TP_EARG, "starts are for decoding: there is no gradient with them");
        return;
    }
    tp_tensor *dqkv[3] = {0};
    tp_attention_backward_args args = {k->in[0],  k->in[1], k->in[2], k->out[0],
                                       k->out[1], dout[0],  dout[1]};
    tp_attention_opts opts = {
        a->causal,  a->q_offset_given,         a->q_offset, a->window, a->scale,
        a->softcap, k->in[ATTENTION_SEGMENTS], NULL};
    if (tp_attention_backward(k->ctx, &args, &opts, dqkv)) return;
    for (int i = 0; i < 3; i++)
        if (tp_wants(k, i)) din[i] = dqkv[i];
}

static double attention_flops(const tp_call *k) {
    attention_problem p = attention_problem_of(k, NULL, NULL);
    return 2 * (double)(p.D + p.Dv) * attention_pairs(&p); /* the two products; segments unknown */
}

/* ---- samples -------------------------------------------------------------------------------- */
#define QKV(B, T, S, H, Hkv, D)                                                                    \
    {TP_GEN_NORMAL, 4, {B, T, H, D}}, {TP_GEN_NORMAL, 4, {B, S, Hkv, D}}, {                        \
        TP_GEN_NORMAL, 4, { B, S, Hkv, D }                                                         \
    }
#define ATTR(...) (&(const attention_attr){__VA_ARGS__})
static const int32_t documents[] = {3, 3, 3, 3, 1, 1, 1, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
                                    0, 0, 0, 0, 0, 2, 2, 2, 2, 0, 0, 0, 0, 9, 9, 9, 9};
static const int32_t begin[] = {4, 0, 69};

static const tp_sample attention_samples[] = {
    {"everything visible", {QKV(2, 5, 7, 2, 2, 4)}},
    {"causal", {QKV(2, 17, 17, 2, 2, 8)}, ATTR(.causal = true)},
    {"causal, several tiles", {QKV(1, 130, 130, 2, 2, 16)}, ATTR(.causal = true)},
    {"many chunks of rows", {QKV(1, 300, 65, 1, 1, 3)}, NULL, .no_grad = true},
    {"wide heads", {QKV(1, 9, 65, 1, 1, 80)}, NULL, .no_grad = true},
    {"grouped heads", {QKV(1, 33, 33, 6, 2, 5)}, ATTR(.causal = true)},
    {"values wider than keys",
     {{TP_GEN_NORMAL, 4, {1, 7, 2, 3}},
      {TP_GEN_NORMAL, 4, {1, 9, 2, 3}},
      {TP_GEN_NORMAL, 4, {1, 9, 2, 19}}},
     ATTR(.causal = true)},
    {"window", {QKV(1, 80, 80, 1, 1, 4)}, ATTR(.causal = true, .window = 9)},
    {"window of one key", {QKV(1, 8, 8, 2, 2, 4)}, ATTR(.causal = true, .window = 1)},
    {"window, not causal", {QKV(1, 6, 9, 1, 1, 4)}, ATTR(.window = 2)},
    {"scale", {QKV(1, 6, 6, 1, 1, 4)}, ATTR(.scale = 0.7)},
    {"softcap", {QKV(1, 20, 20, 2, 1, 4)}, ATTR(.causal = true, .softcap = 1.5)},
    {"more keys than queries", {QKV(1, 3, 70, 2, 2, 4)}, ATTR(.causal = true)},
    {"fewer keys than queries",
     {QKV(1, 6, 4, 1, 1, 4)},
     ATTR(.causal = true),
     .no_grad = true}, /* lse = -inf has no derivative */
    {"keys beyond the queries",
     {QKV(1, 5, 70, 2, 2, 4)},
     ATTR(.causal = true, .q_offset_given = true)},
    {"offset", {QKV(1, 4, 90, 1, 1, 4)}, ATTR(true, true, 66)},
    {"segments",
     {QKV(2, 17, 17, 2, 2, 4), {TP_GEN_DATA, 2, {2, 17}, .data = documents}},
     ATTR(.causal = true)},
    {"segments that come back, not causal",
     {QKV(1, 34, 34, 1, 1, 4), {TP_GEN_DATA, 2, {1, 34}, .data = documents}}},
    {"a start for each sequence",
     {QKV(3, 2, 72, 2, 1, 4), {TP_GEN_ABSENT}, {TP_GEN_DATA, 1, {3}, .data = begin}},
     ATTR(.causal = true),
     .no_grad = true},
    {"one of each", {QKV(1, 1, 1, 1, 1, 1)}, ATTR(.causal = true)},
    {"large scores",
     {{TP_GEN_NORMAL, 4, {1, 8, 1, 4}, 0, 40},
      {TP_GEN_NORMAL, 4, {1, 8, 1, 4}},
      {TP_GEN_NORMAL, 4, {1, 8, 1, 4}}},
     ATTR(.causal = true),
     .no_grad = true},
    {"no queries", {QKV(2, 0, 3, 2, 2, 4)}},
    {"no keys", {QKV(2, 3, 0, 2, 2, 4)}, NULL, .no_grad = true},
    {"no sequences", {QKV(0, 3, 3, 2, 2, 4)}, ATTR(.causal = true)},
    {"no heads", {QKV(1, 3, 3, 0, 0, 4)}},
    {"no width", {QKV(1, 3, 3, 2, 2, 0)}, ATTR(.causal = true)},
    {"three heads over two",
     {QKV(1, 2, 2, 3, 2, 4)},
     .refuse = "the 3 heads of q must be a multiple of the 2 of k"},
    {"widths differ",
     {{TP_GEN_NORMAL, 4, {1, 2, 1, 4}},
      {TP_GEN_NORMAL, 4, {1, 2, 1, 5}},
      {TP_GEN_NORMAL, 4, {1, 2, 1, 4}}},
     .refuse = "must agree in B and D"},
    {"a key without a value",
     {{TP_GEN_NORMAL, 4, {1, 2, 1, 4}},
      {TP_GEN_NORMAL, 4, {1, 3, 1, 4}},
      {TP_GEN_NORMAL, 4, {1, 2, 1, 4}}},
     .refuse = "k and v must agree in B, S and Hkv"},
    {"three dimensions",
     {{TP_GEN_NORMAL, 3, {1, 2, 4}},
      {TP_GEN_NORMAL, 4, {1, 2, 1, 4}},
      {TP_GEN_NORMAL, 4, {1, 2, 1, 4}}},
     .refuse = "q must have 4 dimensions"},
    {"integers",
     {{TP_GEN_INT, 4, {1, 2, 1, 4}, 0, 3},
      {TP_GEN_NORMAL, 4, {1, 2, 1, 4}},
      {TP_GEN_NORMAL, 4, {1, 2, 1, 4}}},
     .refuse = "q must be a float tensor, got i32"},
    {"float segments",
     {QKV(1, 2, 2, 1, 1, 4), {TP_GEN_NORMAL, 2, {1, 2}}},
     .refuse = "segments must be i32"},
    {"segments of another length",
     {QKV(1, 2, 2, 1, 1, 4), {TP_GEN_INT, 2, {1, 3}, 0, 2}},
     .refuse = "segments must be (B,T)"},
    {"segments with a cache",
     {QKV(1, 2, 5, 1, 1, 4), {TP_GEN_INT, 2, {1, 2}, 0, 2}},
     .refuse = "as many keys as queries"},
    {"starts of another batch",
     {QKV(1, 2, 5, 1, 1, 4), {TP_GEN_ABSENT}, {TP_GEN_INT, 1, {2}, 0, 2}},
     .refuse = "starts must be (B)"},
    {"negative window", {QKV(1, 2, 2, 1, 1, 4)}, ATTR(.window = -1), .refuse = "window must be 0"},
    {"negative softcap",
     {QKV(1, 2, 2, 1, 1, 4)},
     ATTR(.softcap = -1),
     .refuse = "softcap must be 0"},
    {"softcap beyond f32",
     {QKV(1, 2, 2, 1, 1, 4)},
     ATTR(.softcap = 1e300),
     .refuse = "softcap must be 0"},
    {"scale is no number",
     {QKV(1, 2, 2, 1, 1, 4)},
     ATTR(.scale = NAN),
     .refuse = "scale must be finite"},
    {"far away", {QKV(1, 2, 2, 1, 1, 4)}, ATTR(true, true, INT64_MAX), .refuse = "is no position"},
    {0},
};

const tp_op op_attention = {
    .name = "attention",
    .synopsis = "o = softmax(scale q k') v",
    .doc =
        "Scaled dot-product attention over (B,T,H,D), with causal and windowed masks, documents "
        "kept apart by segments, grouped key heads and capped scores. A query that sees no key "
        "gets zeros. The (T,S) scores are never held: memory is O(T). Each query is computed on "
        "its own over tiles of 64 keys counted from key 0, so its bits are the same in a training "
        "forward, a chunked prefill and a decoding step. Second output: the log of the sum of "
        "exp(score) for every query.",
    .infer = attention_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(attention_flash_cpu),
                                                     TP_CPU_LIST(attention_naive_cpu), NULL},
               [TP_CUDA] =
                   TP_CUDA_LIST(&attention_sm90_cuda, &attention_sm80, &attention_naive_cuda)},
    .oracle = attention_oracle,
    .vjp = attention_vjp,
    .saves_in = 1 << ATTENTION_Q | 1 << ATTENTION_K | 1 << ATTENTION_V | 1 << ATTENTION_SEGMENTS,
    .saves_out = 3,
    .optional = 1 << ATTENTION_SEGMENTS | 1 << ATTENTION_STARTS,
    .flops = attention_flops,
    .attrs = attention_attrs,
    .attr_bytes = sizeof(attention_attr),
    .samples = attention_samples,
};
