/* policy_loss on the CPU, row by row. A row's sums run over its tokens in order, in double; a
 * token's gradient follows from its row alone. */
#include "ops/convert.h"
#include "ops/linear_cross_entropy/lce_tree.h"
#include "ops/policy_loss/policy_loss_math.h"
#include <math.h>

typedef struct row {
    const tp_call *k;
    const tp_policy_opts *o;
    int64_t b, T;
    policy_row all;
} row;

static float value(const row *w, int which, int64_t t) {
    const tp_tensor *x = w->k->in[which];
    return tp_f32(x)[w->b * x->stride[0] + t * x->stride[1]];
}

static policy_token token(const row *w, int64_t t) {
    tp_tensor *const *in = w->k->in;
    policy_token x = {.l = value(w, POLICY_LOGPROB, t), .weight = value(w, POLICY_WEIGHT, t)};
    x.d = in[POLICY_OLD] ? x.l - value(w, POLICY_OLD, t) : 0.0f;
    x.mask = in[POLICY_MASK] ? value(w, POLICY_MASK, t) != 0 : x.weight != 0;
    if ((x.has_ref = in[POLICY_REF] != NULL)) x.ref = value(w, POLICY_REF, t);
    if ((x.has_h = in[POLICY_ENTROPY] != NULL)) x.h = value(w, POLICY_ENTROPY, t);
    return x;
}

static row row_of(const tp_call *k, int64_t b) {
    const tp_tensor *a = k->in[POLICY_ADVANTAGE];
    row w = {.k = k, .o = k->attr, .b = b, .T = k->in[POLICY_LOGPROB]->shape[1]};
    double sum = 0, tokens = 0;
    for (int64_t t = 0; t < w.T; t++) {
        policy_token x = token(&w, t);
        if (x.mask) tokens++, sum += (double)x.d;
    }
    w.all = policy_row_of(tp_f32(a)[b * a->stride[0]], tokens, sum);
    return w;
}

static void forward_row(const row *w, float *stats) {
    double sum[TP_POLICY_STATS] = {0};
    for (int64_t t = 0; t < w->T; t++) {
        float add[TP_POLICY_STATS];
        policy_token x = token(w, t);
        policy_token_stats(w->o, &w->all, &x, add);
        for (int i = 0; i < TP_POLICY_DIFFERENCE; i++) sum[i] += (double)add[i];
        sum[TP_POLICY_DIFFERENCE] =
            fmax(sum[TP_POLICY_DIFFERENCE], (double)add[TP_POLICY_DIFFERENCE]);
    }
    for (int i = 0; i < TP_POLICY_STATS; i++) stats[i] = (float)sum[i];
}

static void forward_rows(void *arg, int64_t begin, int64_t end) {
    const tp_call *k = arg;
    for (int64_t b = begin; b < end; b++) {
        row w = row_of(k, b);
        forward_row(&w, tp_f32(k->out[1]) + b * TP_POLICY_STATS);
    }
}

static tp_status forward_run(const tp_call *k) {
    int64_t rows = k->in[POLICY_LOGPROB]->shape[0];
    float place[65] = {0};
    tp_parallel_for(k->ctx, rows, 4, forward_rows, (void *)(uintptr_t)k);
    for (int64_t i = 0; i < rows; i++) {
        int p = lce_leaf_place(i), merges = i == rows - 1 ? p : lce_leaf_merges(i);
        place[p] = tp_f32(k->out[1])[i * TP_POLICY_STATS + TP_POLICY_LOSS];
        for (; merges > 0; merges--, p--) place[p - 1] += place[p];
    }
    tp_f32(k->out[0])[0] = place[0];
    return TP_OK;
}

/* ---- backward ------------------------------------------------------------------------------- */
static void backward_row(const row *w, float dloss) {
    float *dl = tp_f32(w->k->out[0]) + w->b * w->T, *dh = tp_f32(w->k->out[1]) + w->b * w->T;
    double all = 0; /* sequence level: d loss / d log r of the row */
    for (int64_t t = 0; t < w->T; t++) {
        policy_token x = token(w, t);
        policy_grad g = policy_token_grad(w->o, &w->all, &x, dloss);
        dl[t] = g.dl;
        dh[t] = g.dh;
        all += (double)g.row;
    }
    if (!policy_together(w->o)) return;
    float each = policy_shared_grad(&w->all, all, dloss);
    for (int64_t t = 0; t < w->T; t++)
        if (token(w, t).mask) dl[t] += each;
}

static void backward_rows(void *arg, int64_t begin, int64_t end) {
    const tp_call *k = arg;
    for (int64_t b = begin; b < end; b++) {
        row w = row_of(k, b);
        backward_row(&w, tp_f32(k->in[POLICY_DLOSS])[0]);
    }
}

static tp_status backward_run(const tp_call *k) {
    tp_parallel_for(k->ctx, k->in[POLICY_LOGPROB]->shape[0], 4, backward_rows,
                    (void *)(uintptr_t)k);
    return TP_OK;
}

TP_CPU_KERNEL(policy_loss_cpu, .decline = tp_decline_unless_f32, .run = forward_run);
TP_CPU_KERNEL(policy_loss_backward_cpu, .decline = tp_decline_unless_f32, .run = backward_run);
