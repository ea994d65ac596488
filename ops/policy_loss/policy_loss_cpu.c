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
    float a;
    float shared; /* sequence level: r of all tokens, and whether its log was cut */
    bool shared_cut;
    double tokens;
} row;

static float value(const row *w, int which, int64_t t) {
    const tp_tensor *x = w->k->in[which];
    return tp_f32(x)[w->b * x->stride[0] + t * x->stride[1]];
}
static bool counts(const row *w, int64_t t) {
    return w->k->in[POLICY_MASK] ? value(w, POLICY_MASK, t) != 0 : value(w, POLICY_WEIGHT, t) != 0;
}
static float difference(const row *w, int64_t t) {
    return w->k->in[POLICY_OLD] ? value(w, POLICY_LOGPROB, t) - value(w, POLICY_OLD, t) : 0.0f;
}
static float token_ratio(const row *w, int64_t t, bool *cut) {
    float d = difference(w, t), x = policy_cut(d);
    *cut = x != d;
    return tp_expf(x);
}
static float ratio(const row *w, int64_t t, bool *cut) {
    if (!w->o->sequence) return token_ratio(w, t, cut);
    *cut = w->shared_cut;
    return w->shared;
}

static row row_of(const tp_call *k, int64_t b) {
    const tp_tensor *a = k->in[POLICY_ADVANTAGE];
    row w = {.k = k, .o = k->attr, .b = b, .T = k->in[POLICY_LOGPROB]->shape[1]};
    double sum = 0;
    w.a = tp_f32(a)[b * a->stride[0]];
    for (int64_t t = 0; t < w.T; t++)
        if (counts(&w, t)) w.tokens++, sum += (double)difference(&w, t);
    float mean = w.tokens > 0 ? (float)(sum / w.tokens) : 0.0f, x = policy_cut(mean);
    w.shared = tp_expf(x);
    w.shared_cut = x != mean;
    return w;
}

static void forward_row(const row *w, float *stats) {
    double sum[TP_POLICY_STATS] = {0};
    for (int64_t t = 0; t < w->T; t++) {
        float weight = value(w, POLICY_WEIGHT, t), l = value(w, POLICY_LOGPROB, t);
        bool mask = counts(w, t), cut, token_cut;
        if (!mask && weight == 0) continue;
        float r = ratio(w, t, &cut), loss, d = difference(w, t);
        policy_term s = policy_surrogate(w->o, r, cut, w->a, l);
        loss = s.value;
        if (w->k->in[POLICY_REF]) {
            float own = token_ratio(w, t, &token_cut);
            policy_term kl = policy_divergence(w->o, l, value(w, POLICY_REF, t), own, token_cut);
            loss += (float)w->o->beta * kl.value;
            if (mask) sum[TP_POLICY_KL] += (double)kl.value;
        }
        if (w->k->in[POLICY_ENTROPY]) {
            float h = value(w, POLICY_ENTROPY, t);
            loss -= (float)w->o->entropy_coef * h;
            if (mask) sum[TP_POLICY_ENTROPY] += (double)h;
        }
        if (weight != 0) {
            sum[TP_POLICY_LOSS] += (double)(weight * loss);
            sum[TP_POLICY_SURROGATE] += (double)(weight * s.value);
        }
        if (!mask) continue;
        sum[TP_POLICY_TOKENS]++;
        sum[TP_POLICY_CLIP_LOW] += policy_clipped_low(w->o, r, w->a);
        sum[TP_POLICY_CLIP_HIGH] += policy_clipped_high(w->o, r, w->a);
        sum[TP_POLICY_RATIO] += (double)r;
        sum[TP_POLICY_DIFFERENCE] = fmax(sum[TP_POLICY_DIFFERENCE], fabs((double)d));
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
    bool together = w->o->sequence && w->o->objective == TP_POLICY_CLIP;
    for (int64_t t = 0; t < w->T; t++) {
        float weight = value(w, POLICY_WEIGHT, t), l = value(w, POLICY_LOGPROB, t);
        bool cut, token_cut;
        dl[t] = dh[t] = 0.0f;
        if (weight == 0) continue;
        float g = 0.0f;
        float r = ratio(w, t, &cut);
        policy_term s = policy_surrogate(w->o, r, cut, w->a, l);
        if (together)
            all += (double)(weight * s.slope);
        else
            g = s.slope;
        if (w->k->in[POLICY_REF]) {
            float own = token_ratio(w, t, &token_cut);
            policy_term kl = policy_divergence(w->o, l, value(w, POLICY_REF, t), own, token_cut);
            g += (float)w->o->beta * kl.slope;
        }
        dl[t] = dloss * (weight * g);
        if (w->k->in[POLICY_ENTROPY]) dh[t] = dloss * (-(float)w->o->entropy_coef * weight);
    }
    if (!together || w->tokens == 0) return;
    float each = (float)(all / w->tokens);
    for (int64_t t = 0; t < w->T; t++)
        if (counts(w, t)) dl[t] += dloss * each;
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
