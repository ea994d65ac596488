/* Owns the updates of a step: the loss of a pass over rows, the reference model, what is reported.
 *
 * A row is a prompt and its completion; its tokens' log-probs come out of a training forward with
 * the bits that they had when they were drawn. So for the first update after the completions were
 * made, ratios are exactly 1, and a difference, which is asked for each time, means a bug. */
#include "cli/grpo.h"
#include "core/ctx.h"
#include <math.h>
#include <string.h>

/* ---- rows as tensors ------------------------------------------------------------------------ */
typedef struct fed { /* a pass over n rows, (n,T) each */
    int64_t n, T;
    bool shared; /* rows begin with the completion, and packed has the tokens */
    tp_packed packed;
    tp_tensor *ids, *targets, *set;
    tp_tensor *old, *ref, *weight, *mask, *advantage;
} fed;

/* Tokens of the longest row that are fed: all but its last. The same for every pass of a step. */
static int64_t widest(const tp_rollouts *r) {
    int64_t T = 1;
    for (int64_t i = 0; i < r->rows; i++) {
        int64_t n = r->n_prompt[i / r->G] + r->n[i] - 1;
        if (n > T) T = n;
    }
    return T;
}

static tp_tensor *ints(tp_ctx *c, const fed *f, const int32_t *from) {
    return tp_tensor_from(c, TP_I32, TP_SHAPE(f->n, f->T), from);
}

/* Numbers of completion tokens, laid out where their targets are. */
static tp_tensor *spread(tp_ctx *c, tp_grpo *g, const fed *f, int64_t first, const float *from) {
    const tp_rollouts *r = &g->now;
    float *x = tp_arena_alloc(c, (size_t)(f->n * f->T) * sizeof *x);
    if (!x) return NULL;
    memset(x, 0, (size_t)(f->n * f->T) * sizeof *x);
    for (int64_t i = 0; i < f->n; i++) {
        int64_t row = first + i, at = i * f->T + (f->shared ? 0 : r->n_prompt[row / r->G] - 1);
        for (int64_t t = 0; t < r->n[row]; t++) x[at + t] = from ? from[i * r->R + t] : 1.0f;
    }
    return tp_tensor_from(c, TP_F32, TP_SHAPE(f->n, f->T), x);
}

static bool feed(tp_ctx *c, tp_grpo *g, int64_t first, int64_t n, fed *f) {
    tp_rollouts *r = &g->now;
    *f = (fed){.n = n, .T = widest(r)};
    size_t cells = (size_t)(n * f->T);
    int32_t *ids = tp_arena_alloc(c, cells * sizeof *ids);
    int32_t *y = tp_arena_alloc(c, cells * sizeof *y);
    size_t words = r->set ? cells * (size_t)r->words : 0;
    int32_t *set = words ? tp_arena_alloc(c, words * sizeof *set) : NULL;
    if (!ids || !y || (words && !set)) return false;
    memset(ids, 0, cells * sizeof *ids);
    if (set) memset(set, -1, words * sizeof *set);
    for (size_t i = 0; i < cells; i++) y[i] = TP_IGNORE;
    for (int64_t i = 0; i < n; i++) {
        int64_t row = first + i, p = row / r->G, np = r->n_prompt[p], at = i * f->T;
        memcpy(ids + at, r->prompt + p * r->P, (size_t)np * sizeof *ids);
        at += np - 1;
        for (int64_t t = 0; t < r->n[row]; t++) {
            int32_t id = r->ids[row * r->R + t];
            y[at + t] = id;
            if (t + 1 < r->n[row]) ids[at + t + 1] = id;
            if (set)
                memcpy(set + (at + t) * r->words, r->set + (row * r->R + t) * r->words,
                       (size_t)r->words * sizeof *set);
        }
    }
    f->ids = ints(c, f, ids);
    f->targets = ints(c, f, y);
    if (set) f->set = tp_tensor_from(c, TP_I32, TP_SHAPE(n, f->T, r->words), set);
    return f->ids && f->targets && (!set || f->set);
}

/* Not `training`: there is no dropout, and choices at random are those made while decoding. */
static tp_model_out forward(tp_ctx *c, tp_grpo *g, tp_model *m, const fed *f) {
    tp_model_in in = {.ids = f->ids, .mode = TP_MOD_CAUSAL};
    return tp_model_logprob(c, m, &in, f->targets,
                            &(tp_model_logprob_opts){g->cfg.rl.temperature, f->set});
}

/* ---- the loss of a pass --------------------------------------------------------------------- */
static tp_policy_opts policy_options(const tp_grpo *g) {
    static const tp_policy_kl kl[] = {
        [TP_CFG_K1] = TP_POLICY_K1, [TP_CFG_K2] = TP_POLICY_K2, [TP_CFG_K3] = TP_POLICY_K3};
    const tp_config *f = &g->cfg;
    return (tp_policy_opts){
        .objective = f->rl.objective == TP_CFG_CISPO ? TP_POLICY_CISPO : TP_POLICY_CLIP,
        .kl = (int32_t)kl[f->rl.kl_estimator],
        .sequence = f->rl.importance_sampling_level == TP_CFG_SEQUENCE,
        .bias_correction = f->rl.use_bias_correction_kl,
        .epsilon = f->rl.epsilon,
        .epsilon_high = f->rl.epsilon_high > 0 ? f->rl.epsilon_high : f->rl.epsilon,
        .delta = f->rl.delta,
        .clip_ratio_c = f->rl.clip_ratio_c,
        .beta = f->rl.beta,
        .entropy_coef = f->rl.entropy_coef,
    };
}

static tp_tensor *pass_loss(void *arg, tp_ctx *c, tp_model *m, const tp_batch *b) {
    tp_grpo *g = arg;
    tp_rollouts *r = &g->now;
    int64_t at = b->sample % g->B, first = g->minibatch * g->B + at, cells = first * r->R;
    fed f = {.n = b->rows, .shared = g->cfg.rl.share_prompts};
    if (f.shared && !tp_packed_feed(c, g, first, b->rows, &f.packed)) return NULL;
    if (!f.shared && !feed(c, g, first, b->rows, &f)) return NULL;
    if (f.shared) f.T = f.packed.R;
    f.old = spread(c, g, &f, first, r->logprob + cells);
    f.weight = spread(c, g, &f, first, g->weight + at * r->R);
    f.mask = spread(c, g, &f, first, NULL);
    f.advantage = tp_tensor_from(c, TP_F32, TP_SHAPE(b->rows), r->advantage + first);
    if (g->reference) f.ref = spread(c, g, &f, first, r->ref + cells);
    if (!f.old || !f.weight || !f.mask || !f.advantage || (g->reference && !f.ref)) return NULL;
    tp_model_out y = f.shared ? tp_packed_forward(c, g, m, &f.packed) : forward(c, g, m, &f);
    if (!y.logprob) return NULL;
    tp_policy_opts o = policy_options(g);
    tp_policy_in in = {y.logprob, f.old, f.ref, f.advantage, f.weight, f.mask, y.entropy};
    tp_policy_out out = tp_policy_loss(c, &in, &o);
    if (out.stats && tp_download(c, out.stats, g->stats + at * TP_POLICY_STATS)) return NULL;
    return out.loss;
}

/* ---- the reference model -------------------------------------------------------------------- */
static tp_status reference_rows(tp_grpo *g, int64_t first, int64_t n) {
    tp_rollouts *r = &g->now;
    fed f;
    tp_model_out y = {0};
    float *got = NULL;
    if (feed(g->c, g, first, n, &f)) y = forward(g->c, g, g->reference, &f);
    if (y.logprob) got = tp_arena_alloc(g->c, (size_t)(n * f.T) * sizeof *got);
    if (got && !tp_download(g->c, y.logprob, got))
        for (int64_t i = 0; i < n; i++) {
            int64_t row = first + i, at = i * f.T + r->n_prompt[row / r->G] - 1;
            memcpy(r->ref + row * r->R, got + at, (size_t)r->n[row] * sizeof *got);
        }
    tp_step_end(g->c);
    return tp_error_status(g->c);
}

tp_status tp_grpo_reference(tp_grpo *g) {
    tp_rollouts *r = &g->now;
    if (!g->reference) return TP_OK;
    double begin = tp_now();
    int64_t share = r->rows / g->ranks, chunk = tp_share_of(&g->trainer.cfg, 0, g->ranks).rows;
    int64_t end = (g->rank + 1) * share;
    tp_status st = TP_OK;
    for (int64_t i = g->rank * share; i < end && !st; i += chunk)
        st = reference_rows(g, i, chunk < end - i ? chunk : end - i);
    if (!st && g->ranks > 1) {
        int64_t n = r->rows * r->R;
        double *all = tp_calloc(g->c, (size_t)n, sizeof *all);
        if (!all) return tp_error_status(g->c);
        for (int64_t i = g->rank * share * r->R; i < end * r->R; i++) all[i] = (double)r->ref[i];
        st = tp_grpo_sum(g, all, n);
        for (int64_t i = 0; i < n && !st; i++) r->ref[i] = (float)all[i];
        tp_free(all);
    }
    g->seconds_reference = tp_now() - begin;
    return st;
}

/* TR-DPO's moving reference (Gorbatovski et al. 2024): ref = alpha policy + (1 - alpha) ref. */
tp_status tp_grpo_sync(tp_grpo *g) {
    const tp_config *f = &g->cfg;
    if (!g->reference || !f->rl.sync_ref_model || g->step % f->rl.ref_model_sync_steps)
        return TP_OK;
    const tp_params *a = tp_model_trainable(g->trainer.model); /* the others are shared */
    const tp_params *b = tp_model_trainable(g->reference);
    float alpha = (float)f->rl.ref_model_mixup_alpha;
    tp_status st = TP_OK;
    for (int i = 0; i < a->n && !st; i++) {
        int64_t n = tp_numel(a->p[i].t);
        float *policy = tp_malloc(g->c, 2 * (size_t)n * sizeof *policy);
        if (!policy) return tp_error_status(g->c);
        float *ref = policy + n;
        st = tp_download(g->c, a->p[i].t, policy);
        if (!st) st = tp_download(g->c, b->p[i].t, ref);
        for (int64_t j = 0; j < n && !st; j++) ref[j] = alpha * policy[j] + (1.0f - alpha) * ref[j];
        if (!st) st = tp_upload(g->c, b->p[i].t, ref);
        tp_touch(b->p[i].t);
        tp_free(policy);
    }
    return st;
}

/* ---- updates -------------------------------------------------------------------------------- */
static tp_status weights(tp_grpo *g) {
    static const tp_loss_type type[] = {[TP_CFG_LOSS_GRPO] = TP_LOSS_GRPO,
                                        [TP_CFG_LOSS_BNPO] = TP_LOSS_BNPO,
                                        [TP_CFG_LOSS_DAPO] = TP_LOSS_DAPO,
                                        [TP_CFG_LOSS_DR_GRPO] = TP_LOSS_DR_GRPO};
    const tp_config *f = &g->cfg;
    const tp_rollouts *r = &g->now;
    tp_completions all = {r->rows, r->R, r->n, r->ended, r->entropy};
    tp_weight_opts o = {type[f->rl.loss_type], f->rl.max_completion_length,
                        f->rl.mask_truncated_completions, f->rl.top_entropy_quantile};
    return tp_token_weights(g->c, &all, g->minibatch * g->B, g->B, f->rl.steps_per_generation, &o,
                            g->weight);
}

/* Sums in the order of the rows, whoever computed them. */
static tp_status report(tp_grpo *g, tp_update *u, const tp_step_out *s) {
    double sum[TP_POLICY_STATS] = {0};
    tp_status st = TP_OK;
    int64_t n = g->B * TP_POLICY_STATS;
    if (g->ranks > 1) {
        tp_share mine = tp_share_of(&g->trainer.cfg, g->rank, g->ranks);
        double *all = tp_calloc(g->c, (size_t)n, sizeof *all);
        if (!all) return tp_error_status(g->c);
        for (int64_t i = 0; i < g->B; i++)
            for (int k = 0; k < TP_POLICY_STATS; k++)
                if (i % mine.period >= mine.first && i % mine.period < mine.first + mine.share)
                    all[i * TP_POLICY_STATS + k] = (double)g->stats[i * TP_POLICY_STATS + k];
        st = tp_grpo_sum(g, all, n);
        for (int64_t i = 0; i < n && !st; i++) g->stats[i] = (float)all[i];
        tp_free(all);
        if (st) return st;
    }
    double largest = 0;
    for (int64_t i = 0; i < g->B; i++) {
        const float *x = g->stats + i * TP_POLICY_STATS;
        for (int k = 0; k < TP_POLICY_STATS; k++) sum[k] += (double)x[k];
        largest = fmax(largest, (double)x[TP_POLICY_DIFFERENCE]);
    }
    double tokens = sum[TP_POLICY_TOKENS] > 0 ? sum[TP_POLICY_TOKENS] : 1;
    double low = sum[TP_POLICY_CLIP_LOW] / tokens, high = sum[TP_POLICY_CLIP_HIGH] / tokens;
    u->loss += sum[TP_POLICY_LOSS];
    u->policy_loss += sum[TP_POLICY_SURROGATE];
    u->kl += sum[TP_POLICY_KL] / tokens;
    u->entropy += sum[TP_POLICY_ENTROPY] / tokens;
    u->ratio += sum[TP_POLICY_RATIO] / tokens;
    u->clip_low += low;
    u->clip_high += high;
    u->clip_low_min = fmin(u->clip_low_min, low);
    u->clip_high_max = fmax(u->clip_high_max, high);
    u->grad_norm += s->grad_norm;
    u->learning_rate = s->learning_rate;
    u->skipped |= s->skipped;
    u->interrupted |= s->interrupted;
    if (g->fresh) u->difference = fmax(u->difference, largest);
    if (g->fresh && largest != 0 && !g->c->fast)
        return tp_fail(g->c, TP_EINTERNAL,
                       "step %lld: log-probs in training and in sampling differ by up to %g; they "
                       "must be the same bits",
                       (long long)g->step + 1, largest);
    return TP_OK;
}

static tp_status update(tp_grpo *g, int64_t number, tp_update *u) {
    tp_fake_batch rows = {.of = tp_share_of(&g->trainer.cfg, g->rank, g->ranks)};
    tp_step_in in = {.step = number,
                     .targets = 1,
                     .next = tp_fake_next,
                     .arg = &rows,
                     .interrupted = tp_interrupted,
                     .loss = pass_loss,
                     .loss_arg = g};
    tp_step_out out;
    memset(g->stats, 0, (size_t)(g->B * TP_POLICY_STATS) * sizeof *g->stats);
    tp_status st = weights(g);
    if (!st) st = tp_trainer_step(&g->trainer, &in, &out);
    return st ? st : report(g, u, &out);
}

tp_status tp_grpo_update(tp_grpo *g, tp_update *u) {
    int64_t M = g->cfg.rl.steps_per_generation, I = g->cfg.rl.num_iterations, n = M * I;
    double begin = tp_now();
    tp_status st = TP_OK;
    *u = (tp_update){.clip_low_min = INFINITY};
    for (int64_t i = 0; i < n && !st; i++) {
        g->minibatch = i % M;
        g->fresh = i == 0;
        st = update(g, g->step * n + i, u);
    }
    double each = 1 / (double)n,
           *mean[] = {&u->loss,  &u->policy_loss, &u->kl,        &u->entropy,
                      &u->ratio, &u->clip_low,    &u->clip_high, &u->grad_norm};
    for (size_t i = 0; i < sizeof mean / sizeof *mean; i++) *mean[i] *= each;
    g->seconds_update = tp_now() - begin;
    return st;
}
