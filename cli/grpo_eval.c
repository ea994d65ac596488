/* Owns the evaluation on held-out prompts: greedy, and several samples for pass@k and rewards. */
#include "cli/grpo.h"
#include <math.h>
#include <string.h>

/* Samples of this rank's prompts. */
typedef struct scores {
    tp_grpo *g;
    const uint64_t *item; /* of each request */
    int64_t samples;      /* of each */
    double *sum;          /* right, tokens; of each prompt: samples that were right */
    tp_judged *judged;    /* (requests,samples), for their rewards; NULL: nobody asks */
} scores;

static tp_status score(void *arg, const tp_completion *x) {
    scores *s = arg;
    tp_grpo *g = s->g;
    tp_task_item item;
    char *text = NULL;
    size_t n;
    bool ended = x->end == TP_END_STOP;
    tp_status st = tp_task_get(g->task, g->c, true, s->item[x->request], &item);
    if (!st) st = tp_grpo_text(g, x->ids, x->n, ended, &text, &n);
    if (!st && ended && tp_task_right(g->task, &item, text, n))
        s->sum[2 + s->item[x->request]]++, s->sum[0]++;
    s->sum[1] += (double)x->n;
    if (!st && s->judged)
        s->judged[x->request * s->samples + x->sample] =
            (tp_judged){.text = text, .n = n, .tokens = x->n, .ended = ended};
    else
        tp_free(text);
    return st;
}

static bool stopped(void *arg) { return ((scores *)arg)->g->ranks == 1 && tp_interrupted(); }

/* All that this rank's samples are worth, into reward (prompts,samples,K), over all ranks. */
static tp_status judge(scores *s, int64_t requests, double *reward) {
    tp_grpo *g = s->g;
    const int64_t each = s->samples * tp_rewards_count(g->rewards);
    tp_status st = TP_OK;
    for (int64_t i = 0; i < requests && !st; i++) {
        st = tp_grpo_judge(g, true, s->item[i], s->judged + i * s->samples, s->samples,
                           reward + (int64_t)s->item[i] * each);
        if (!st && stopped(s)) st = TP_EINTERRUPT;
    }
    return st ? st : tp_grpo_sum(g, reward, g->eval_prompts * each);
}

static void forget(scores *s, int64_t requests) {
    for (int64_t i = 0; s->judged && i < requests * s->samples; i++)
        tp_free((void *)(uintptr_t)s->judged[i].text);
    tp_free(s->judged);
}

/* samples of every prompt of this rank; sum (2 + prompts) over all ranks. reward: as judge's, zeros
 * before; NULL: not wanted. */
static tp_status run(tp_grpo *g, const tp_sampling *how, int64_t samples, double *sum,
                     double *reward) {
    int64_t prompts = g->eval_prompts, n = 0, P = g->cfg.model.context;
    tp_ctx *c = g->c;
    int32_t *ids = tp_malloc(c, (size_t)(prompts * P) * sizeof *ids);
    uint64_t *item = tp_malloc(c, (size_t)prompts * sizeof *item);
    tp_request *q = tp_calloc(c, (size_t)prompts, sizeof *q);
    scores s = {.g = g, .item = item, .samples = samples, .sum = sum};
    if (reward) s.judged = tp_calloc(c, (size_t)(prompts * samples), sizeof *s.judged);
    tp_status st = ids && item && q && (s.judged || !reward) ? TP_OK : tp_error_status(c);
    for (int64_t i = g->rank; i < prompts && !st; i += g->ranks, n++) {
        item[n] = (uint64_t)i;
        q[n] = (tp_request){.prompt = ids + n * P,
                            .samples = samples,
                            .max_new_tokens = g->cfg.rl.max_completion_length,
                            .sampling = *how,
                            .step = (uint32_t)g->step,
                            .number = UINT32_C(1) << 31 | (uint32_t)i, /* not those of training */
                            .stop = g->stop};
        st = tp_grpo_prompt(g, true, (uint64_t)i, ids + n * P, &q[n].n);
    }
    memset(sum, 0, (size_t)(2 + prompts) * sizeof *sum);
    tp_engine_calls calls = {.done = score, .interrupted = stopped, .arg = &s};
    if (!st) st = tp_crew_run(g->crew, q, n, &calls);
    if (!st) st = tp_grpo_sum(g, sum, 2 + prompts);
    if (!st && reward) st = judge(&s, n, reward);
    forget(&s, n);
    tp_free(ids);
    tp_free(item);
    tp_free(q);
    return st;
}

/* Means of those that have a reward, summed in the order of prompts and samples, which no number of
 * threads or ranks changes. */
static void mean_rewards(const tp_grpo *g, const double *reward, int64_t rows, tp_grpo_eval *out) {
    const int K = tp_rewards_count(g->rewards);
    double count[TP_REWARDS_MOST] = {0}, all = 0;
    for (int64_t i = 0; i < rows; i++) {
        const double total = tp_weighted_reward(reward + i * K, tp_rewards_weights(g->rewards), K);
        if (!isnan(total)) out->reward += total, all++;
        for (int k = 0; k < K; k++)
            if (!isnan(reward[i * K + k])) out->rewards[k] += reward[i * K + k], count[k]++;
    }
    out->reward = all > 0 ? out->reward / all : NAN;
    for (int k = 0; k < K; k++) out->rewards[k] = count[k] > 0 ? out->rewards[k] / count[k] : NAN;
}

tp_status tp_grpo_evaluate(tp_grpo *g, tp_grpo_eval *out) {
    int64_t prompts = g->eval_prompts, k = g->cfg.rl.eval_samples;
    tp_sampling how = tp_grpo_sampling(g), greedy = how;
    greedy.temperature = 0;
    *out = (tp_grpo_eval){.prompts = prompts, .k = k};
    double *sum = tp_malloc(g->c, (size_t)(2 + prompts) * sizeof *sum);
    double *reward =
        tp_calloc(g->c, (size_t)(prompts * k * tp_rewards_count(g->rewards)), sizeof *reward);
    tp_status st = sum && reward ? run(g, &greedy, 1, sum, NULL) : tp_error_status(g->c);
    if (!st) out->greedy = sum[0] / (double)prompts;
    if (!st) st = run(g, &how, k, sum, reward);
    for (int64_t i = 0; i < prompts && !st; i++)
        out->pass_k += tp_pass_at_k(k, (int64_t)sum[2 + i], k);
    if (!st) {
        out->pass_k /= (double)prompts;
        out->pass_1 = sum[0] / (double)(prompts * k);
        out->length = sum[1] / (double)(prompts * k);
        mean_rewards(g, reward, prompts * k, out);
    }
    tp_free(sum);
    tp_free(reward);
    return st;
}
