/* route_report: what a step says about its routers. Sums per row, so that a batch's are the same
 * however it was split; of a row in double, in the order of tokens. */
#include "ops/binary_cross_entropy/binary_cross_entropy_math.h"
#include "ops/reduce.h"
#include "ops/route/route.h"
#include <math.h>

extern const tp_op op_route_report;
TP_CUDA_DECLARE(route_report_cuda);

tp_tensor *tp_route_report(tp_ctx *c, tp_tensor *scores, tp_tensor *member, tp_tensor *decision,
                           tp_tensor *loss) {
    return tp_op1(c, &op_route_report, NULL, scores, member, decision, loss);
}

static tp_status report_infer(tp_call *k) {
    const tp_tensor *s = k->in[0];
    tp_status st;
    if ((st = tp_need_float(k, 0, "scores")) || (st = tp_need_ndim(k, 0, "scores", 2, 2)) ||
        (st = tp_need_int(k, 1, "member")) || (st = tp_need_same(k, 0, 2, "scores and decision")) ||
        (st = tp_need_same(k, 0, 3, "scores and loss")))
        return st;
    if (!tp_same_shape(s, k->in[1]))
        return tp_refuse(k, TP_ESHAPE, "member must be (B,T) of scores %s, got %s",
                         tp_shape_str(k->ctx, s), tp_shape_str(k->ctx, k->in[1]));
    return tp_out(k, tp_sum_dtype(s->dtype), 2, (int64_t[]){s->shape[0], TP_ROUTE_STATS});
}

static tp_status report_oracle(const tp_call *k) {
    int64_t B = k->in[0]->shape[0], T = k->in[0]->shape[1];
    for (int64_t b = 0; b < B; b++) {
        double *sum = tp_f64(k->out[0]) + b * TP_ROUTE_STATS;
        for (int i = 0; i < TP_ROUTE_STATS; i++) sum[i] = 0;
        for (int64_t at = b * T; at < (b + 1) * T; at++) {
            bool taken = tp_f64(k->in[2])[at] > 0;
            double p = 1 / (1 + exp(-tp_f64(k->in[0])[at])), q = 1 - p;
            sum[TP_ROUTE_TAKEN] += taken;
            sum[TP_ROUTE_AGREE] += taken == (tp_i32(k->in[1])[at] != 0);
            sum[TP_ROUTE_ENTROPY] -= (p > 0 ? p * log(p) : 0) + (q > 0 ? q * log(q) : 0);
            if (k->in[3]) sum[TP_ROUTE_LOSS] += tp_f64(k->in[3])[at];
        }
    }
    return TP_OK;
}

static void report_rows(void *arg, int64_t begin, int64_t end) {
    const tp_call *k = arg;
    int64_t T = k->in[0]->shape[1];
    for (int64_t b = begin; b < end; b++) {
        double sum[TP_ROUTE_STATS] = {0};
        for (int64_t at = b * T; at < (b + 1) * T; at++) {
            bool taken = tp_f32(k->in[2])[at] > 0;
            sum[TP_ROUTE_TAKEN] += taken;
            sum[TP_ROUTE_AGREE] += taken == (tp_i32(k->in[1])[at] != 0);
            sum[TP_ROUTE_ENTROPY] += (double)bce_entropy(tp_f32(k->in[0])[at]);
            if (k->in[3]) sum[TP_ROUTE_LOSS] += (double)tp_f32(k->in[3])[at];
        }
        for (int i = 0; i < TP_ROUTE_STATS; i++)
            tp_f32(k->out[0])[b * TP_ROUTE_STATS + i] = (float)sum[i];
    }
}

static tp_status report_run(const tp_call *k) {
    tp_parallel_for(k->ctx, k->in[0]->shape[0], 1, report_rows, (void *)k);
    return TP_OK;
}

static double report_flops(const tp_call *k) { return 25.0 * (double)tp_numel(k->in[0]); }

#define N(...)                                                                                     \
    {                                                                                              \
        TP_GEN_NORMAL, 2, { __VA_ARGS__ }                                                          \
    }
#define MEMBER(...)                                                                                \
    { TP_GEN_INT, 2, {__VA_ARGS__}, 0, 2 }
static const tp_sample report_samples[] = {
    {"rows", {N(3, 33), MEMBER(3, 33), N(3, 33), N(3, 33)}},
    {"no loss", {N(2, 130), MEMBER(2, 130), N(2, 130), {TP_GEN_ABSENT}}},
    {"wide range",
     {{TP_GEN_UNIFORM, 2, {2, 40}, -25, 25}, MEMBER(2, 40), N(2, 40), {TP_GEN_ABSENT}}},
    {"empty", {N(0, 4), MEMBER(0, 4), N(0, 4), N(0, 4)}},
    {"member", {N(3, 4), MEMBER(3, 5), N(3, 4), N(3, 4)}, .refuse = "member must be (B,T)"},
    {"decision", {N(3, 4), MEMBER(3, 4), N(3, 5), N(3, 4)}, .refuse = "scores and decision"},
    {0},
};
static const tp_kernel report_kernel = {
    .name = "route_report_rows", .decline = tp_decline_unless_f32_dense, .run = report_run};

const tp_op op_route_report = {
    .name = "route_report",
    .synopsis = "sums per row of a router's decisions",
    .doc = "How many tokens of each row a causal decision takes, how often it agrees with the "
           "choice of the k highest, the entropy of the router, and its auxiliary loss.",
    .infer = report_infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){&report_kernel, NULL},
               [TP_CUDA] = TP_CUDA_LIST(&route_report_cuda)},
    .oracle = report_oracle,
    .no_vjp = "statistics to report",
    .optional = 1 << 3,
    .flops = report_flops,
    .samples = report_samples,
};
