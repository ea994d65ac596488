/* paged_attention: attention's formula, keys and values found through a table of pages. The kernel
 * is attention's own (ops/attention/attention_cpu.c), which takes tiles of 64 keys counted from key
 * 0 whether they lie together or in pages: that is why bits agree. */
#include "core/ctx.h"
#include "ops/paged_attention/paged_attention.h"
#include "ops/paged_attention/paged_attention_problem.h"

TP_CPU_DECLARE(paged_attention_cpu);
TP_CUDA_DECLARE(paged_attention_sm80);
TP_CUDA_DECLARE(paged_attention_naive_cuda);

tp_tensor *tp_paged_attention(tp_ctx *c, tp_tensor *q, tp_tensor *key, tp_tensor *value,
                              tp_tensor *pages, tp_tensor *starts,
                              const tp_paged_attention_opts *opts) {
    paged_attr a = {0};
    if (opts) a = (paged_attr){opts->window, opts->sinks, opts->scale, opts->softcap};
    tp_tensor *in[] = {q, key, value, pages, starts}, *out[TP_MAXOUT] = {0};
    return tp_op_run(c, &op_paged_attention, &a, 5, in, out) ? NULL : out[0];
}

static tp_status check_shapes(const tp_call *k) {
    const tp_tensor *q = k->in[0], *key = k->in[1], *pages = k->in[PAGED_PAGES];
    const tp_tensor *starts = k->in[PAGED_STARTS];
    if (!tp_same_shape(key, k->in[2]))
        return tp_refuse(k, TP_ESHAPE, "key and value must have one shape, got %s and %s",
                         tp_shape_str(k->ctx, key), tp_shape_str(k->ctx, k->in[2]));
    if (q->shape[3] != key->shape[3] || (key->shape[2] ? q->shape[2] % key->shape[2] : q->shape[2]))
        return tp_refuse(k, TP_ESHAPE,
                         "q (B,T,H,D) and key (P,page,Hkv,D) must agree in D, and H be a multiple "
                         "of Hkv, got %s and %s",
                         tp_shape_str(k->ctx, q), tp_shape_str(k->ctx, key));
    if (key->shape[1] % 16 || key->shape[1] < 16)
        return tp_refuse(k, TP_ESHAPE, "a page must hold a multiple of 16 keys, got %lld",
                         (long long)key->shape[1]);
    if (pages->shape[0] != q->shape[0] || starts->shape[0] != q->shape[0])
        return tp_refuse(k, TP_ESHAPE, "pages (B,n) and starts (B) must have q's B, got %s and %s",
                         tp_shape_str(k->ctx, pages), tp_shape_str(k->ctx, starts));
    return TP_OK;
}

static tp_status paged_infer(tp_call *k) {
    static const char *const name[3] = {"q", "key", "value"};
    const tp_tensor *q = k->in[0];
    const paged_attr *a = k->attr;
    tp_status st;
    for (int i = 0; i < 3; i++) {
        if ((st = tp_need_float(k, i, name[i])) || (st = tp_need_ndim(k, i, name[i], 4, 4)))
            return st;
        if (k->in[i]->dtype != q->dtype)
            return tp_refuse(k, TP_EDTYPE, "q, key and value must have one dtype, got %s and %s",
                             tp_dtype_name(q->dtype), tp_dtype_name(k->in[i]->dtype));
    }
    if ((st = tp_need_int(k, PAGED_PAGES, "pages")) ||
        (st = tp_need_ndim(k, PAGED_PAGES, "pages", 2, 2)) ||
        (st = tp_need_int(k, PAGED_STARTS, "starts")) ||
        (st = tp_need_ndim(k, PAGED_STARTS, "starts", 1, 1)) || (st = check_shapes(k)))
        return st;
    if (a->window < 0 || a->sinks < 0 || !isfinite(a->scale))
        return tp_refuse(k, TP_EARG,
                         "window and sinks must be 0 (none) or more and scale finite, got %lld, "
                         "%lld and %g",
                         (long long)a->window, (long long)a->sinks, a->scale);
    if ((st = tp_need_softcap(k, a->softcap))) return st;
    int64_t lse[3] = {q->shape[0], q->shape[2], q->shape[1]};
    if ((st = tp_out_like(k, q))) return st;
    return tp_out(k, q->dtype == TP_F64 ? TP_F64 : TP_F32, 3, lse);
}

/* Every page that a query's keys lie in is in the pool, and the table is long enough. */
tp_status paged_attention_check(const tp_call *k) {
    attention_problem p = paged_attention_problem(k);
    int64_t P = k->in[1]->shape[0];
    for (int64_t b = 0; b < p.B && p.T; b++) {
        int64_t start = attention_position(&p, b, 0), end = start + p.T;
        if (start < 0 || end > p.S)
            return tp_refuse(k, TP_EARG, "sequence %lld ends at position %lld, its pages at %lld",
                             (long long)b, (long long)end, (long long)p.S);
        for (int64_t i = 0; i * p.page < end; i++) {
            int64_t at = tp_i32(p.pages)[b * p.pages->stride[0] + i * p.pages->stride[1]];
            if (at < 0 || at >= P)
                return tp_refuse(k, TP_EARG, "page %lld of sequence %lld is not in 0..%lld",
                                 (long long)at, (long long)b, (long long)P - 1);
        }
    }
    return TP_OK;
}

static const double *oracle_key(const tp_call *k, const attention_problem *p, int i, int64_t b,
                                int64_t h, int64_t j) {
    int64_t page = tp_i32(p->pages)[b * p->pages->shape[1] + j / p->page];
    return tp_f64(k->in[i]) + ((page * p->page + j % p->page) * p->Hkv + h / p->G) * p->D;
}

static void oracle_row(const tp_call *k, const attention_problem *p, int64_t b, int64_t h,
                       int64_t t) {
    const double *q = tp_f64(k->in[0]) + ((b * p->T + t) * p->H + h) * p->D;
    double *o = tp_f64(k->out[0]) + ((b * p->T + t) * p->H + h) * p->D;
    int64_t position = attention_position(p, b, t);
    double top = -INFINITY, sum = 0;
    for (int64_t d = 0; d < p->D; d++) o[d] = 0;
    for (int pass = 0; pass < 2; pass++) /* first the largest score, so that exp cannot overflow */
        for (int64_t j = 0; j <= position; j++) {
            if (!paged_sees(p, position, j)) continue;
            const double *key = oracle_key(k, p, 1, b, h, j), *v = oracle_key(k, p, 2, b, h, j);
            double s = 0;
            for (int64_t d = 0; d < p->D; d++) s += q[d] * key[d];
            s *= p->scale;
            if (p->softcap > 0) s = p->softcap * tanh(s / p->softcap);
            if (pass == 0) {
                top = fmax(top, s);
                continue;
            }
            sum += exp(s - top);
            for (int64_t d = 0; d < p->D; d++) o[d] += exp(s - top) * v[d];
        }
    for (int64_t d = 0; d < p->D; d++) o[d] /= sum;
    tp_f64(k->out[1])[(b * p->H + h) * p->T + t] = top + log(sum);
}

static tp_status paged_oracle(const tp_call *k) {
    attention_problem p = paged_attention_problem(k);
    tp_status st = paged_attention_check(k);
    for (int64_t b = 0; b < p.B && !st; b++)
        for (int64_t h = 0; h < p.H; h++)
            for (int64_t t = 0; t < p.T; t++) oracle_row(k, &p, b, h, t);
    return st;
}

/* As attention's; what a query sees is known where starts can be read. */
static double paged_flops(const tp_call *k) {
    attention_problem p = paged_attention_problem(k);
    double seen = 0;
    for (int64_t b = 0; b < p.B && !k->ctx->meta && !k->ctx->backend; b++)
        for (int64_t t = 0; t < p.T; t++) {
            int64_t lo, hi;
            attention_range(&p, attention_position(&p, b, t), &lo, &hi);
            seen += (double)(hi - lo);
        }
    return 2 * (double)(p.D + p.Dv) * (double)p.H * seen;
}

/* clang-format off */
#define QKV(B, T, H, P, page, Hkv, D)                                                              \
    {TP_GEN_NORMAL, 4, {B, T, H, D}}, {TP_GEN_NORMAL, 4, {P, page, Hkv, D}},                       \
    {TP_GEN_NORMAL, 4, {P, page, Hkv, D}}
#define PAGES(B, n, table) {TP_GEN_DATA, 2, {B, n}, .data = table}
#define STARTS(B, at) {TP_GEN_DATA, 1, {B}, .data = at}
#define ATTR(...) (&(const paged_attr){__VA_ARGS__})
static const int32_t table[] = {5, 0, 3, 7, 2, 5, 1, 6, 4, 0, 3, 3, 0, 1, 2}, at[] = {70, 3, 31};
static const int32_t late[] = {200}, early[] = {0}, missing[] = {0, 9};
static const tp_sample paged_samples[] = {
    {"decode", {QKV(3, 1, 4, 8, 16, 2, 8), PAGES(3, 5, table), STARTS(3, at)}},
    {"a chunk of a prompt", {QKV(3, 9, 2, 8, 16, 1, 20), PAGES(3, 5, table), STARTS(3, at)}},
    {"from the beginning", {QKV(1, 40, 2, 8, 16, 2, 5), PAGES(1, 5, table), STARTS(1, early)}},
    {"pages of 32", {QKV(3, 2, 2, 8, 32, 2, 4), PAGES(3, 5, table), STARTS(3, at)}},
    {"pages of 64", {QKV(3, 2, 2, 8, 64, 2, 16), PAGES(3, 5, table), STARTS(3, at)}},
    {"window", {QKV(3, 3, 2, 8, 16, 2, 4), PAGES(3, 5, table), STARTS(3, at)}, ATTR(.window = 7)},
    {"window and sinks", {QKV(3, 3, 2, 8, 16, 2, 4), PAGES(3, 5, table), STARTS(3, at)},
     ATTR(.window = 5, .sinks = 2)},
    {"sinks beyond the window", {QKV(1, 3, 2, 8, 64, 2, 4), PAGES(1, 5, table), STARTS(1, late)},
     ATTR(.window = 5, .sinks = 70)},
    {"softcap and scale", {QKV(3, 2, 2, 8, 16, 1, 4), PAGES(3, 5, table), STARTS(3, at)},
     ATTR(.scale = 0.7, .softcap = 1.5)},
    {"no queries", {QKV(2, 0, 2, 8, 16, 1, 4), PAGES(2, 5, table), STARTS(2, at)}},
    {"page of 8", {QKV(1, 1, 1, 8, 8, 1, 4), PAGES(1, 5, table), STARTS(1, early)},
     .refuse = "multiple of 16"},
    {"too far", {QKV(1, 1, 1, 8, 16, 1, 4), PAGES(1, 5, table), STARTS(1, late)},
     .refuse = "ends at position 201, its pages at 80"},
    {"no such page", {QKV(1, 17, 1, 8, 16, 1, 4), PAGES(1, 2, missing), STARTS(1, early)},
     .refuse = "page 9 of sequence 0"},
    {"three heads over two", {QKV(1, 1, 3, 8, 16, 2, 4), PAGES(1, 5, table), STARTS(1, early)},
     .refuse = "H be a multiple"},
    {"tables of another batch", {QKV(2, 1, 1, 8, 16, 1, 4), PAGES(1, 5, table), STARTS(1, early)},
     .refuse = "must have q's B"},
    {"negative window", {QKV(1, 1, 1, 8, 16, 1, 4), PAGES(1, 5, table), STARTS(1, early)},
     ATTR(.window = -1), .refuse = "must be 0 (none) or more"},
    {0},
};
#define FIELD(f, type) {#f, TP_ATTR_##type, offsetof(paged_attr, f)}
static const tp_attr paged_attrs[] = {
    FIELD(window, I64), FIELD(sinks, I64), FIELD(scale, FLOAT), FIELD(softcap, FLOAT), {0},
};
/* clang-format on */

const tp_op op_paged_attention = {
    .name = "paged_attention",
    .synopsis = "o = softmax(scale q k') v, k and v in pages",
    .doc = "Causal attention of new tokens over a key-value cache in pages. Each sequence has a "
           "row in the table of pages and a position at which its first query stands; sequences "
           "may share pages. With a window, the first keys may stay visible as attention sinks. "
           "Bits are those of attention over the whole sequence. Second output: the log of the "
           "sum of exp(score) for every query.",
    .infer = paged_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){TP_CPU_LIST(paged_attention_cpu), NULL},
               [TP_CUDA] = TP_CUDA_LIST(&paged_attention_sm80, &paged_attention_naive_cuda)},
    .oracle = paged_oracle,
    .no_vjp = "for decoding; training uses attention",
    .flops = paged_flops,
    .attrs = paged_attrs,
    .attr_bytes = sizeof(paged_attr),
    .samples = paged_samples,
};
