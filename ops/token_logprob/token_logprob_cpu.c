/* token_logprob on the CPU: a copy of each row, scaled and cut to its set, then
 * linear_cross_entropy's row, so that the sums have its order. A token outside the set has the
 * score -1e30, which adds exact zeros to every sum. */
#include "core/team.h"
#include "ops/linear_cross_entropy/lce_row.h"
#include "ops/token_logprob/token_logprob_row.h"
#include <string.h>

static const float outside = -1e30f;
typedef struct work {
    const tp_call *k;
    int64_t v;
    lce_scale scale;
} work;

static work work_of(const tp_call *k) {
    const token_attr *a = k->attr;
    return (work){k, tp_dim(k->in[TOKEN_LOGITS], -1),
                  lce_scale_of(a->softcap, a->temperature > 0 ? a->temperature : 1)};
}

static size_t padded(int64_t v) { return (size_t)((v + 15) / 16 * 16); }
static size_t workspace(const tp_call *k) {
    return padded(tp_dim(k->in[TOKEN_LOGITS], -1)) * sizeof(float) * (size_t)tp_threads(k->ctx);
}

static void scaled_row(const work *w, int64_t i, float *s) {
    memcpy(s, tp_f32(w->k->in[TOKEN_LOGITS]) + i * w->v, (size_t)w->v * sizeof *s);
    lce_scale_row(s, w->v, w->scale);
    for (int64_t j = 0; w->k->in[TOKEN_SET] && j < w->v; j++)
        if (!token_in_set(w->k, i, j)) s[j] = outside;
}

static void forward_rows(void *arg, int64_t begin, int64_t end) {
    const work *w = arg;
    float *s = (float *)w->k->workspace + padded(w->v) * (size_t)tp_slot();
    for (int64_t i = begin; i < end; i++) {
        int64_t y = token_target(w->k, i);
        lce_stats out = {0};
        if (y != TOKEN_IGNORE) {
            lce_row r = {0};
            scaled_row(w, i, s);
            lce_row_take(&r, s, 0, w->v, y);
            out = lce_row_end(&r);
        }
        tp_f32(w->k->out[0])[i] = out.logprob;
        tp_f32(w->k->out[1])[i] = out.entropy;
        tp_f32(w->k->out[2])[i] = out.lse;
    }
}

static float value(const tp_call *k, int which, int64_t i) {
    return tp_f32(k->in[which])[tp_offset(k->in[which], i)];
}

static void backward_rows(void *arg, int64_t begin, int64_t end) {
    const work *w = arg;
    for (int64_t i = begin; i < end; i++) {
        float *s = tp_f32(w->k->out[0]) + i * w->v;
        int64_t y = token_target(w->k, i);
        if (y == TOKEN_IGNORE) {
            memset(s, 0, (size_t)w->v * sizeof *s);
            continue;
        }
        scaled_row(w, i, s);
        lce_grad_row(s, w->v, w->scale, value(w->k, TOKEN_LSE, i), value(w->k, TOKEN_A, i),
                     value(w->k, TOKEN_B, i), value(w->k, TOKEN_D, i), y);
        for (int64_t j = 0; w->k->in[TOKEN_SET] && j < w->v; j++)
            if (!token_in_set(w->k, i, j)) s[j] = 0;
    }
}

static tp_status run(const tp_call *k, tp_range_fn fn) {
    work w = work_of(k);
    tp_status st = token_check_targets(k);
    if (!st) tp_parallel_for(k->ctx, tp_numel(k->in[TOKEN_TARGETS]), 1 + 8192 / (w.v + 1), fn, &w);
    return st;
}
static tp_status forward_run(const tp_call *k) { return run(k, forward_rows); }
static tp_status backward_run(const tp_call *k) { return run(k, backward_rows); }

static const char *decline(const tp_call *k) {
    if (tp_numel(k->in[TOKEN_LOGITS]) && !tp_contiguous(k->in[TOKEN_LOGITS]))
        return "logits are strided";
    return tp_decline_unless_f32(k);
}

TP_CPU_KERNEL(token_logprob_cpu, .decline = decline, .run = forward_run, .workspace = workspace);
TP_CPU_KERNEL(token_logprob_backward_cpu, .decline = decline, .run = backward_run);
