/* Owns how the completions of a step come about: prompts, generation, rewards, advantages.
 *
 * Ranks generate for their own prompts and then put everything together, so that what follows is
 * computed on all of them alike. A step is a pure function of the weights, the seed and the number
 * of its first item: a run that was killed generates it again. */
#include "cli/grpo.h"
#include <math.h>
#include <string.h>

/* ---- room ----------------------------------------------------------------------------------- */
void tp_rollouts_free(tp_rollouts *r) {
    void *all[] = {r->item,    r->prompt, r->n_prompt, r->ids,    r->n,     r->ended,    r->logprob,
                   r->entropy, r->ref,    r->set,      r->reward, r->total, r->advantage};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) tp_free(all[i]);
    *r = (tp_rollouts){0};
}

tp_status tp_rollouts_new(tp_rollouts *r, tp_grpo *g) {
    const tp_config *f = &g->cfg;
    tp_sampling how = tp_grpo_sampling(g);
    *r = (tp_rollouts){.prompts = f->rl.prompts_per_step,
                       .G = f->rl.num_generations,
                       .P = f->model.context,
                       .R = f->rl.max_completion_length,
                       .words = (f->model.vocab + 31) / 32,
                       .K = tp_rewards_count(g->rewards)};
    r->rows = r->prompts * r->G;
    size_t p = (size_t)r->prompts, n = (size_t)r->rows, cells = n * (size_t)r->R;
    r->item = tp_calloc(g->c, p, sizeof *r->item);
    r->prompt = tp_calloc(g->c, p * (size_t)r->P, sizeof *r->prompt);
    r->n_prompt = tp_calloc(g->c, p, sizeof *r->n_prompt);
    r->ids = tp_calloc(g->c, cells, sizeof *r->ids);
    r->n = tp_calloc(g->c, n, sizeof *r->n);
    r->ended = tp_calloc(g->c, n, sizeof *r->ended);
    r->logprob = tp_calloc(g->c, cells, sizeof *r->logprob);
    r->entropy = tp_calloc(g->c, cells, sizeof *r->entropy);
    r->ref = tp_calloc(g->c, cells, sizeof *r->ref);
    if (tp_sampling_truncates(&how))
        r->set = tp_calloc(g->c, cells * (size_t)r->words, sizeof *r->set);
    r->reward = tp_calloc(g->c, n * (size_t)r->K, sizeof *r->reward);
    r->total = tp_calloc(g->c, n, sizeof *r->total);
    r->advantage = tp_calloc(g->c, n, sizeof *r->advantage);
    return tp_error_status(g->c);
}

tp_sampling tp_grpo_sampling(const tp_grpo *g) {
    const tp_config *f = &g->cfg;
    return (tp_sampling){.temperature = f->rl.temperature,
                         .top_k = f->rl.top_k,
                         .top_p = f->rl.top_p,
                         .min_p = f->rl.min_p,
                         .repetition_penalty = 1,
                         .seed = (uint64_t)f->seed};
}

/* ---- text and tokens ------------------------------------------------------------------------ */
/* Once: a completion then ends before rl.max_completion_length. */
static void warn_of_room(tp_grpo *g, int64_t prompt) {
    int64_t room = g->cfg.model.context + 1 - prompt; /* the last token is not fed */
    if (g->told_room || room >= g->cfg.rl.max_completion_length) return;
    g->told_room = true;
    tp_progress(true,
                "warning: a prompt of %lld tokens in a model.context of %lld leaves room for %lld, "
                "not for rl.max_completion_length = %lld",
                (long long)prompt, (long long)g->cfg.model.context, (long long)room,
                (long long)g->cfg.rl.max_completion_length);
}

/* As conversations are in fine-tuning: a user's turn, and where the reply begins. */
static tp_status encode_prompt(tp_grpo *g, const char *text, tp_ids *ids) {
    tp_conversation v = {.ids = *ids};
    int64_t n = (int64_t)strlen(text);
    tp_status st = TP_OK;
    if (!g->chat) {
        st = tp_encode_begin(ids, g->encoder);
        return st ? st : tp_encode(ids, g->encoder, text, n);
    }
    st = tp_chat_turn(g->chat, &v, "user", text, n);
    if (!st) st = tp_chat_reply(g->chat, &v);
    *ids = v.ids;
    v.ids = (tp_ids){0};
    tp_conversation_clear(&v);
    return st;
}

tp_status tp_grpo_prompt(tp_grpo *g, bool held_out, uint64_t item, int32_t *ids, int64_t *n) {
    tp_task_item x;
    tp_ids t = {0};
    tp_status st = tp_task_get(g->task, g->c, held_out, item, &x);
    if (!st) st = encode_prompt(g, x.prompt, &t);
    if (!st && t.n > g->cfg.model.context)
        st = tp_fail(g->c, TP_EARG, "the prompt \"%.60s\" has %lld tokens, the context is %lld",
                     x.prompt, (long long)t.n, (long long)g->cfg.model.context);
    *n = t.n;
    if (!st && t.n) memcpy(ids, t.data, (size_t)t.n * sizeof *ids);
    if (!st && !t.n) ids[(*n)++] = g->eos; /* an empty prompt: something to begin with */
    tp_ids_clear(&t);
    if (!st) warn_of_room(g, *n);
    return st;
}

tp_status tp_grpo_text(tp_grpo *g, const int32_t *ids, int64_t n, bool ended, char **text,
                       size_t *bytes) {
    return tp_decode(text, bytes, g->c, g->tokenizer, ids, n - (ended && n > 0));
}

/* ---- ranks ---------------------------------------------------------------------------------- */
tp_status tp_grpo_sum(tp_grpo *g, double *x, int64_t n) {
    return g->ranks > 1 ? tp_comm_sum_f64(g->comm, g->c, x, n) : TP_OK;
}

/* Walks the numbers of a row in a fixed order, to or from a buffer of doubles. */
static double *pass_row(tp_rollouts *r, int64_t i, double *at, bool out) {
#define PASS(value, type)                                                                          \
    do {                                                                                           \
        if (out)                                                                                   \
            *at = (double)(value);                                                                 \
        else                                                                                       \
            (value) = (type)*at;                                                                   \
        at++;                                                                                      \
    } while (0)
    PASS(r->n[i], int64_t);
    PASS(r->ended[i], uint8_t);
    for (int64_t k = 0; k < r->K; k++) PASS(r->reward[i * r->K + k], double);
    for (int64_t t = i * r->R; t < (i + 1) * r->R; t++) {
        PASS(r->ids[t], int32_t);
        PASS(r->logprob[t], float);
        PASS(r->entropy[t], float);
    }
    for (int64_t t = i * r->R * r->words; r->set && t < (i + 1) * r->R * r->words; t++)
        PASS(r->set[t], int32_t);
#undef PASS
    return at;
}

/* Every rank's rows for all. NaN rewards travel as they are: the others' zeros keep them. */
static tp_status put_together(tp_grpo *g, tp_rollouts *r) {
    if (g->ranks == 1) return TP_OK;
    int64_t each = 2 + r->K + 3 * r->R + (r->set ? r->R * r->words : 0);
    int64_t share = r->rows / g->ranks, first = g->rank * share;
    double *all = tp_calloc(g->c, (size_t)(r->rows * each), sizeof *all);
    if (!all) return tp_error_status(g->c);
    for (int64_t i = first; i < first + share; i++) pass_row(r, i, all + i * each, true);
    tp_status st = tp_grpo_sum(g, all, r->rows * each);
    for (int64_t i = 0; i < r->rows && !st; i++) pass_row(r, i, all + i * each, false);
    tp_free(all);
    return st;
}

/* ---- generation ----------------------------------------------------------------------------- */
typedef struct keeper {
    tp_rollouts *r;
    int64_t first; /* row of the first request's first sample */
    const tp_grpo *g;
} keeper;

static tp_status keep(void *arg, const tp_completion *x) {
    keeper *k = arg;
    tp_rollouts *r = k->r;
    int64_t row = k->first + x->request * r->G + x->sample, at = row * r->R;
    r->n[row] = x->n;
    r->ended[row] = x->end == TP_END_STOP;
    memset(r->ids + at, 0, (size_t)r->R * sizeof *r->ids);
    memset(r->logprob + at, 0, (size_t)r->R * sizeof *r->logprob);
    memset(r->entropy + at, 0, (size_t)r->R * sizeof *r->entropy);
    memcpy(r->ids + at, x->ids, (size_t)x->n * sizeof *r->ids);
    memcpy(r->logprob + at, x->logprob, (size_t)x->n * sizeof *r->logprob);
    memcpy(r->entropy + at, x->entropy, (size_t)x->n * sizeof *r->entropy);
    if (!r->set) return TP_OK;
    memset(r->set + at * r->words, 0, (size_t)(r->R * r->words) * sizeof *r->set);
    memcpy(r->set + at * r->words, x->set, (size_t)(x->n * r->words) * sizeof *r->set);
    return TP_OK;
}

static bool stopped(void *arg) {
    const tp_grpo *g = ((keeper *)arg)->g;
    return g->ranks == 1 && tp_interrupted(); /* ranks stop together, after the step */
}

static tp_status generate(tp_grpo *g, tp_rollouts *r, int64_t draw) {
    tp_ctx *c = g->c;
    int64_t share = r->prompts / g->ranks, first = g->rank * share;
    tp_request *q = tp_calloc(c, (size_t)share, sizeof *q);
    tp_status st = q ? TP_OK : tp_error_status(c);
    for (int64_t p = 0; p < r->prompts && !st; p++) {
        r->item[p] = (uint64_t)(g->next_item + p);
        st = tp_grpo_prompt(g, false, r->item[p], r->prompt + p * r->P, &r->n_prompt[p]);
        if (!st && r->n_prompt[p] >= g->cfg.model.context)
            st = tp_fail(c, TP_EARG, "a prompt of %lld tokens leaves no room in a context of %lld",
                         (long long)r->n_prompt[p], (long long)g->cfg.model.context);
    }
    for (int64_t i = 0; i < share && !st; i++)
        q[i] = (tp_request){.prompt = r->prompt + (first + i) * r->P,
                            .n = r->n_prompt[first + i],
                            .samples = r->G,
                            .max_new_tokens = r->R,
                            .sampling = tp_grpo_sampling(g),
                            .step = (uint32_t)g->step,
                            .number = (uint32_t)(draw * r->prompts + first + i),
                            .stop = g->stop,
                            .want_sets = r->set != NULL};
    keeper k = {r, first * r->G, g};
    tp_engine_calls calls = {.done = keep, .interrupted = stopped, .arg = &k};
    double begin = tp_now();
    if (!st) st = tp_crew_run(g->crew, q, share, &calls);
    g->seconds_generate += tp_now() - begin;
    tp_free(q);
    return st;
}

/* ---- rewards -------------------------------------------------------------------------------- */
tp_status tp_grpo_judge(tp_grpo *g, bool held_out, uint64_t item, tp_judged *x, int64_t n,
                        double *reward) {
    tp_task_item of;
    tp_status st = tp_task_get(g->task, g->c, held_out, item, &of);
    for (int64_t i = 0; i < n; i++) x[i].item = of;
    return st ? st : tp_rewards_judge(g->rewards, g->c, g->task, x, n, reward);
}

static tp_status judge_prompt(tp_grpo *g, tp_rollouts *r, int64_t p) {
    tp_judged *x = tp_calloc(g->c, (size_t)r->G, sizeof *x);
    tp_status st = x ? TP_OK : tp_error_status(g->c);
    for (int64_t i = 0; i < r->G && !st; i++) {
        int64_t row = p * r->G + i;
        char *text = NULL;
        x[i] = (tp_judged){.tokens = r->n[row], .ended = r->ended[row]};
        st = tp_grpo_text(g, r->ids + row * r->R, r->n[row], r->ended[row], &text, &x[i].n);
        x[i].text = text;
    }
    if (!st) st = tp_grpo_judge(g, false, r->item[p], x, r->G, r->reward + p * r->G * r->K);
    for (int64_t i = 0; i < r->G && x; i++) tp_free((void *)(uintptr_t)x[i].text);
    tp_free(x);
    return st;
}

static tp_status judge(tp_grpo *g, tp_rollouts *r) {
    int64_t share = r->prompts / g->ranks;
    double begin = tp_now();
    tp_status st = TP_OK;
    for (int64_t p = g->rank * share; p < (g->rank + 1) * share && !st; p++)
        st = judge_prompt(g, r, p);
    if (!st) st = put_together(g, r);
    for (int64_t i = 0; i < r->rows && !st; i++)
        r->total[i] =
            tp_weighted_reward(r->reward + i * r->K, tp_rewards_weights(g->rewards), r->K);
    g->seconds_reward += tp_now() - begin;
    return st;
}

/* The control: every completion gets the reward of some other. */
static void shuffle(tp_grpo *g, tp_rollouts *r) {
    for (int64_t i = r->rows - 1; i > 0; i--) {
        double u = tp_uniform((uint64_t)g->cfg.seed, TP_RNG_TASK, UINT64_MAX - (uint64_t)g->step,
                              (uint64_t)i);
        int64_t j = (int64_t)(u * (double)(i + 1));
        double keep_total = r->total[i];
        r->total[i] = r->total[j];
        r->total[j] = keep_total;
    }
}

/* ---- a step's groups ------------------------------------------------------------------------ */
static void copy_group(tp_rollouts *to, int64_t p, const tp_rollouts *from, int64_t q) {
    size_t G = (size_t)to->G, R = (size_t)to->R, W = (size_t)to->words, K = (size_t)to->K;
    size_t a = (size_t)p * G, b = (size_t)q * G;
    to->item[p] = from->item[q];
    to->n_prompt[p] = from->n_prompt[q];
    memcpy(to->prompt + p * to->P, from->prompt + q * from->P, (size_t)to->P * sizeof *to->prompt);
    memcpy(to->ids + a * R, from->ids + b * R, G * R * sizeof *to->ids);
    memcpy(to->n + a, from->n + b, G * sizeof *to->n);
    memcpy(to->ended + a, from->ended + b, G * sizeof *to->ended);
    memcpy(to->logprob + a * R, from->logprob + b * R, G * R * sizeof *to->logprob);
    memcpy(to->entropy + a * R, from->entropy + b * R, G * R * sizeof *to->entropy);
    if (to->set) memcpy(to->set + a * R * W, from->set + b * R * W, G * R * W * sizeof *to->set);
    memcpy(to->reward + a * K, from->reward + b * K, G * K * sizeof *to->reward);
    memcpy(to->total + a, from->total + b, G * sizeof *to->total);
}

static tp_status draw_once(tp_grpo *g, tp_rollouts *r, int64_t draw) {
    tp_status st = generate(g, r, draw);
    if (!st) st = judge(g, r);
    if (!st && g->cfg.rl.shuffle_rewards) shuffle(g, r);
    if (!st) g->next_item += r->prompts;
    g->groups_drawn += r->prompts;
    return st;
}

/* Groups that vary are kept, in the order of their items, until the step is full; if the draws run
 * out first, groups of the last one that teach nothing fill it up. */
static tp_status draw_until_full(tp_grpo *g) {
    tp_rollouts *d = &g->draw, *to = &g->now;
    int64_t have = 0;
    tp_status st = TP_OK;
    for (int64_t n = 0; n < g->cfg.rl.max_draws && have < to->prompts && !st; n++) {
        st = draw_once(g, d, n);
        for (int64_t p = 0; p < d->prompts && have < to->prompts && !st; p++)
            if (tp_group_varies(d->total + p * d->G, d->G)) copy_group(to, have++, d, p);
    }
    g->groups_kept = have;
    for (int64_t p = 0; p < d->prompts && have < to->prompts && !st; p++)
        if (!tp_group_varies(d->total + p * d->G, d->G)) copy_group(to, have++, d, p);
    for (; have < to->prompts && !st; have++) copy_group(to, have, d, 0);
    return st;
}

/* Only a program answers nan, none. In the first step to all, it will hardly do better later. */
static tp_status check_rewarded(const tp_grpo *g) {
    const tp_rollouts *r = &g->now;
    for (int64_t i = 0; i < r->rows; i++)
        if (!isnan(r->total[i])) return TP_OK;
    return tp_fail(g->c, TP_EARG,
                   "none of the first step's %lld completions has a reward: the program \"%s\" "
                   "answered nan to all of them",
                   (long long)r->rows, g->cfg.rl.reward_program);
}

tp_status tp_grpo_roll_out(tp_grpo *g) {
    static const tp_scale_rewards scale[] = {[TP_CFG_SCALE_GROUP] = TP_SCALE_GROUP,
                                             [TP_CFG_SCALE_BATCH] = TP_SCALE_BATCH,
                                             [TP_CFG_SCALE_NONE] = TP_SCALE_NONE};
    tp_rollouts *r = &g->now;
    g->groups_drawn = 0;
    g->seconds_generate = g->seconds_reward = g->seconds_reference = g->seconds_update = 0;
    tp_status st = g->cfg.rl.dynamic_sampling ? draw_until_full(g) : draw_once(g, r, 0);
    if (!st && !g->step) st = check_rewarded(g);
    if (st) return st;
    if (!g->cfg.rl.dynamic_sampling) {
        g->groups_kept = 0;
        for (int64_t p = 0; p < r->prompts; p++)
            g->groups_kept += tp_group_varies(r->total + p * r->G, r->G);
    }
    tp_advantage_opts o = {scale[g->cfg.rl.scale_rewards],
                           g->cfg.rl.advantage_estimator == TP_CFG_RLOO};
    tp_advantages(r->total, r->prompts, r->G, &o, r->advantage);
    for (int64_t i = 0; i < r->rows; i++) g->tokens += r->n[i];
    return TP_OK;
}
