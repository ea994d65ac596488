/* Owns the evaluation on held-out prompts: greedy, and several samples for pass@k. */
#include "cli/grpo.h"
#include <string.h>

typedef struct scores {
    tp_grpo *g;
    const uint64_t *item; /* of each request */
    double *sum;          /* right, tokens; of each request: samples that were right */
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
    tp_free(text);
    return st;
}

static bool stopped(void *arg) { return ((scores *)arg)->g->ranks == 1 && tp_interrupted(); }

/* samples of every prompt of this rank; sum (2 + prompts) over all ranks */
static tp_status run(tp_grpo *g, const tp_sampling *how, int64_t samples, double *sum) {
    int64_t prompts = g->eval_prompts, n = 0, P = g->cfg.model.context;
    tp_ctx *c = g->c;
    int32_t *ids = tp_malloc(c, (size_t)(prompts * P) * sizeof *ids);
    uint64_t *item = tp_malloc(c, (size_t)prompts * sizeof *item);
    tp_request *q = tp_calloc(c, (size_t)prompts, sizeof *q);
    tp_status st = ids && item && q ? TP_OK : tp_error_status(c);
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
    scores s = {.g = g, .item = item, .sum = sum};
    memset(sum, 0, (size_t)(2 + prompts) * sizeof *sum);
    tp_engine_calls calls = {.done = score, .interrupted = stopped, .arg = &s};
    if (!st) st = tp_crew_run(g->crew, q, n, &calls);
    if (!st) st = tp_grpo_sum(g, sum, 2 + prompts);
    tp_free(ids);
    tp_free(item);
    tp_free(q);
    return st;
}

tp_status tp_grpo_evaluate(tp_grpo *g, tp_grpo_eval *out) {
    int64_t prompts = g->eval_prompts, k = g->cfg.rl.eval_samples;
    tp_sampling how = tp_grpo_sampling(g), greedy = how;
    greedy.temperature = 0;
    *out = (tp_grpo_eval){.prompts = prompts, .k = k};
    double *sum = tp_malloc(g->c, (size_t)(2 + prompts) * sizeof *sum);
    tp_status st = sum ? run(g, &greedy, 1, sum) : tp_error_status(g->c);
    if (!st) out->greedy = sum[0] / (double)prompts;
    if (!st) st = run(g, &how, k, sum);
    for (int64_t i = 0; i < prompts && !st; i++)
        out->pass_k += tp_pass_at_k(k, (int64_t)sum[2 + i], k);
    if (!st) {
        out->pass_k /= (double)prompts;
        out->pass_1 = sum[0] / (double)(prompts * k);
        out->length = sum[1] / (double)(prompts * k);
    }
    tp_free(sum);
    return st;
}
