/* route: the k largest of a row as topk orders them (ops/topk/topk_math.h), but in the order of
 * tokens, so that what a block computes on them is again a sequence. Integers carry no gradient:
 * the router learns through the weight in put_tokens, and from auxiliary losses. */
#include "ops/route/route.h"
#include "ops/route/route_attr.h"
#include "ops/topk/topk_heap.h"

extern const tp_op op_route;
TP_CUDA_DECLARE(route_cuda);

static tp_status check_ints(const tp_call *k, int i, const char *arg) {
    const tp_tensor *x = k->in[i];
    tp_status st = tp_need_int(k, i, arg);
    if (st || !x || tp_same_shape(x, k->in[0])) return st;
    return tp_refuse(k, TP_ESHAPE, "%s must be (B,T) of scores %s, got %s", arg,
                     tp_shape_str(k->ctx, k->in[0]), tp_shape_str(k->ctx, x));
}

static tp_status route_infer(tp_call *k) {
    const route_attr *a = k->attr;
    const tp_tensor *s = k->in[0];
    tp_status st;
    if ((st = tp_need_float(k, 0, "scores")) || (st = tp_need_ndim(k, 0, "scores", 2, 2)) ||
        (st = check_ints(k, 1, "positions")) || (st = check_ints(k, 2, "segments")))
        return st;
    if (tp_numel(s) > INT32_MAX)
        return tp_refuse(k, TP_ESHAPE, "%s has more tokens than i32 can number",
                         tp_shape_str(k->ctx, s));
    if (a->k < 0 || a->k > s->shape[1])
        return tp_refuse(k, TP_EARG, "k must be 0 to %lld for scores %s, got %lld",
                         (long long)s->shape[1], tp_shape_str(k->ctx, s), (long long)a->k);
    int64_t some[2] = {s->shape[0], a->k};
    for (int i = 0; i < 2; i++) /* rows, positions */
        if ((st = tp_out(k, TP_I32, 2, some))) return st;
    if ((st = tp_out(k, TP_I32, 2, s->shape))) return st;
    return k->in[2] ? tp_out(k, TP_I32, 2, some) : TP_OK;
}

/* Where the run of tokens that begins at `from` ends: all of the row, or one document. */
static int64_t run_end(const tp_call *k, int64_t row, int64_t from) {
    const route_attr *a = k->attr;
    int64_t T = k->in[0]->shape[1], end = from + 1;
    if (!a->document || !k->in[2]) return T;
    const int32_t *segment = tp_i32(k->in[2]) + row * T;
    while (end < T && segment[end] == segment[from]) end++;
    return end;
}

/* From member to the lists. */
static void write_lists(const tp_call *k, int64_t row) {
    int64_t T = k->in[0]->shape[1], at = row * ((const route_attr *)k->attr)->k;
    const int32_t *member = tp_i32(k->out[ROUTE_MEMBER]) + row * T;
    for (int64_t t = 0; t < T; t++) {
        int64_t from = row * T + t;
        if (!member[t]) continue;
        tp_i32(k->out[ROUTE_ROWS])[at] = (int32_t)from;
        tp_i32(k->out[ROUTE_POSITIONS])[at] = k->in[1] ? tp_i32(k->in[1])[from] : (int32_t)t;
        if (k->in[2]) tp_i32(k->out[ROUTE_SEGMENTS])[at] = tp_i32(k->in[2])[from];
        at++;
    }
}

/* ---- in double: as many as come before -------------------------------------------------------*/
static bool before(const double *s, int64_t i, int64_t j) {
    bool nan_i = s[i] != s[i], nan_j = s[j] != s[j];
    if (nan_i != nan_j) return nan_i;
    return s[i] > s[j] || (!(s[i] < s[j]) && i < j);
}

static tp_status route_oracle(const tp_call *k) {
    const route_attr *a = k->attr;
    int64_t B = k->in[0]->shape[0], T = k->in[0]->shape[1];
    for (int64_t row = 0; row < B; row++) {
        const double *s = tp_f64(k->in[0]) + row * T;
        for (int64_t from = 0, end; from < T; from = end) {
            end = run_end(k, row, from);
            int64_t take = route_share(a->k, T, end) - route_share(a->k, T, from);
            for (int64_t t = from; t < end; t++) {
                int64_t rank = 0;
                for (int64_t u = from; u < end; u++) rank += before(s, u, t);
                tp_i32(k->out[ROUTE_MEMBER])[row * T + t] = rank < take;
            }
        }
        write_lists(k, row);
    }
    return TP_OK;
}

/* ---- the kernel ----------------------------------------------------------------------------- */
static void route_rows(void *arg, int64_t begin, int64_t end_row) {
    const tp_call *k = arg;
    const route_attr *a = k->attr;
    int64_t T = k->in[0]->shape[1];
    for (int64_t row = begin; row < end_row; row++) {
        const float *s = tp_f32(k->in[0]) + row * T;
        int32_t *member = tp_i32(k->out[ROUTE_MEMBER]) + row * T;
        uint64_t *heap = (uint64_t *)k->workspace + row * a->k;
        for (int64_t from = 0, end; from < T; from = end) {
            end = run_end(k, row, from);
            int64_t n = end - from, take = route_share(a->k, T, end) - route_share(a->k, T, from);
            uint64_t least = 0; /* every key reaches it */
            if (take && take < n) {
                topk_heap_of(heap, take, s + from, n);
                least = heap[0];
            }
            for (int64_t t = 0; t < n; t++)
                member[from + t] = take && topk_key(s[from + t], t) >= least;
        }
        write_lists(k, row);
    }
}

static tp_status route_run(const tp_call *k) {
    tp_parallel_for(k->ctx, k->in[0]->shape[0], 1, route_rows, (void *)k);
    return TP_OK;
}

static size_t route_workspace(const tp_call *k) {
    return (size_t)tp_numel(k->out[ROUTE_ROWS]) * sizeof(uint64_t);
}

tp_routed tp_route(tp_ctx *c, tp_tensor *scores, const tp_route_opts *o) {
    tp_tensor *out[TP_MAXOUT] = {0}, *in[] = {scores, o->positions, o->segments};
    if (tp_op_run(c, &op_route, &((route_attr){o->k, o->document}), 3, in, out))
        return (tp_routed){0};
    return (tp_routed){out[ROUTE_ROWS], out[ROUTE_POSITIONS], out[ROUTE_SEGMENTS],
                       out[ROUTE_MEMBER]};
}

#define DISTINCT(...)                                                                              \
    { TP_GEN_DISTINCT, 2, {__VA_ARGS__}, .lo = -2, .hi = 2 }
#define TAKE(...)                                                                                  \
    &(const route_attr) { __VA_ARGS__ }
static const int32_t documents[] = {4, 4, 4, 4, 4, 9, 9, 2, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5};
static const tp_sample route_samples[] = {
    {"an eighth", {DISTINCT(3, 64), {TP_GEN_ABSENT}, {TP_GEN_ABSENT}}, TAKE(8)},
    {"long row", {DISTINCT(2, 700), {TP_GEN_ABSENT}, {TP_GEN_ABSENT}}, TAKE(88)},
    {"all", {DISTINCT(2, 17), {TP_GEN_ABSENT}, {TP_GEN_ABSENT}}, TAKE(17)},
    {"one", {DISTINCT(2, 130), {TP_GEN_ABSENT}, {TP_GEN_ABSENT}}, TAKE(1)},
    {"none", {DISTINCT(2, 5), {TP_GEN_ABSENT}, {TP_GEN_ABSENT}}, TAKE(0)},
    {"empty", {DISTINCT(0, 5), {TP_GEN_ABSENT}, {TP_GEN_ABSENT}}, TAKE(2)},
    {"ties", {{TP_GEN_UNIFORM, 2, {2, 40}, 1, 1}, {TP_GEN_ABSENT}, {TP_GEN_ABSENT}}, TAKE(7)},
    {"positions", {DISTINCT(2, 10), {TP_GEN_INT, 2, {2, 10}, 0, 99}, {TP_GEN_ABSENT}}, TAKE(4)},
    {"row of documents",
     {DISTINCT(2, 10), {TP_GEN_ABSENT}, {TP_GEN_DATA, 2, {2, 10}, .data = documents}},
     TAKE(4)},
    {"by document",
     {DISTINCT(2, 10),
      {TP_GEN_INT, 2, {2, 10}, 0, 99},
      {TP_GEN_DATA, 2, {2, 10}, .data = documents}},
     TAKE(4, true)},
    {"by document, all",
     {DISTINCT(2, 10), {TP_GEN_ABSENT}, {TP_GEN_DATA, 2, {2, 10}, .data = documents}},
     TAKE(10, true)},
    {"long documents",
     {DISTINCT(2, 600), {TP_GEN_ABSENT}, {TP_GEN_INT, 2, {2, 600}, 0, 2}},
     TAKE(150, true)},
    {"too many",
     {DISTINCT(3, 4), {TP_GEN_ABSENT}, {TP_GEN_ABSENT}},
     TAKE(5),
     .refuse = "k must be 0 to 4"},
    {"segments",
     {DISTINCT(3, 4), {TP_GEN_ABSENT}, {TP_GEN_INT, 2, {3, 5}, 0, 2}},
     TAKE(2),
     .refuse = "segments must be (B,T)"},
    {"float positions",
     {DISTINCT(3, 4), DISTINCT(3, 4), {TP_GEN_ABSENT}},
     TAKE(2),
     .refuse = "positions must be i32"},
    {0},
};
static const tp_kernel route_heap = {.name = "route_heap",
                                     .decline = tp_decline_unless_f32_dense,
                                     .run = route_run,
                                     .workspace = route_workspace};
static const tp_attr route_attrs[] = {{"k", TP_ATTR_I64, offsetof(route_attr, k)},
                                      {"document", TP_ATTR_BOOL, offsetof(route_attr, document)},
                                      {0}};

const tp_op op_route = {
    .name = "route",
    .synopsis = "rows = the k highest scores, in order of tokens",
    .doc = "Expert choice: the tokens of each row, or of each document in it, that a routed block "
           "takes, with their positions and segments, and a mask of them. Of equal scores the "
           "earlier token is taken.",
    .infer = route_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){&route_heap, NULL},
               [TP_CUDA] = TP_CUDA_LIST(&route_cuda)},
    .oracle = route_oracle,
    .no_vjp = "returns integers",
    .optional = 6,
    .attrs = route_attrs,
    .attr_bytes = sizeof(route_attr),
    .samples = route_samples,
};
