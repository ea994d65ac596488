/* Owns what people see of `tapir grpo`: the lines of progress, samples, metrics, evaluations. */
#include "cli/grpo.h"
#include "data/text.h"
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* ---- what people see ------------------------------------------------------------------------ */
void tp_grpo_describe(const tp_grpo_run *r) {
    const tp_grpo *g = &r->g;
    const tp_config *f = &g->cfg;
    char n[32], kv[32];
    fprintf(stderr, "policy           %s parameters%s%s, of %s\n",
            tp_count(n, (double)tp_model_numel(g->trainer.model)),
            g->reference ? ", and a reference model" : "", "",
            *f->model.init_from ? f->model.init_from : "random weights");
    if (f->lora.r)
        fprintf(stderr, "trained          %s of them   (LoRA, r %lld)\n",
                tp_count(n, (double)tp_trained(&g->trainer)), (long long)f->lora.r);
    fprintf(stderr,
            "step             %lld prompts of %s, %lld completions each, up to %lld tokens\n",
            (long long)f->rl.prompts_per_step, f->rl.task, (long long)f->rl.num_generations,
            (long long)f->rl.max_completion_length);
    fprintf(stderr, "key-value cache  %s bytes per token, %lld pages\n",
            tp_count(kv, (double)tp_kv_bytes_per_token(g->trainer.model)),
            (long long)tp_crew_get_stats(g->crew).pages);
}

/* A few completions of the step, a line each: what the numbers stand for. */
static tp_status show_completions(tp_grpo_run *r) {
    tp_grpo *g = &r->g;
    const tp_rollouts *x = &g->now;
    tp_status st = TP_OK;
    for (int64_t i = 0; i < g->cfg.rl.log_completions && i < x->rows && !st; i++) {
        int64_t row = i * (x->G + 1) % x->rows; /* of another prompt each */
        char *prompt = NULL, *text = NULL, asked[64], wrote[96];
        size_t n, m;
        st = tp_grpo_text(g, x->prompt + row / x->G * x->P, x->n_prompt[row / x->G], false, &prompt,
                          &n);
        if (!st) st = tp_grpo_text(g, x->ids + row * x->R, x->n[row], x->ended[row], &text, &m);
        if (!st)
            tp_progress(true, "  %s %s%s  reward %.3g  advantage %+.2f",
                        tp_quote(asked, sizeof asked, prompt, n),
                        tp_quote(wrote, sizeof wrote, text, m), x->ended[row] ? "" : " …",
                        x->total[row], (double)x->advantage[row]);
        tp_free(prompt);
        tp_free(text);
    }
    return st;
}

typedef struct summary { /* of a step's completions */
    double reward, std, zero, length, terminated_length, clipped;
    int64_t longest, shortest, longest_terminated, shortest_terminated;
} summary;

static summary summarise(const tp_rollouts *r) {
    summary s = {.shortest = INT64_MAX, .shortest_terminated = INT64_MAX};
    double n = 0, ended = 0, rows = (double)r->rows;
    for (int64_t i = 0; i < r->rows; i++) {
        if (!isnan(r->total[i])) s.reward += r->total[i], n++;
        s.length += (double)r->n[i] / rows;
        s.clipped += !r->ended[i] / rows;
        if (r->n[i] > s.longest) s.longest = r->n[i];
        if (r->n[i] < s.shortest) s.shortest = r->n[i];
        if (!r->ended[i]) continue;
        ended++;
        s.terminated_length += (double)r->n[i];
        if (r->n[i] > s.longest_terminated) s.longest_terminated = r->n[i];
        if (r->n[i] < s.shortest_terminated) s.shortest_terminated = r->n[i];
    }
    s.reward = n > 0 ? s.reward / n : NAN;
    if (ended > 0) s.terminated_length /= ended;
    if (s.shortest_terminated == INT64_MAX) s.shortest_terminated = 0;
    double squares = 0;
    for (int64_t i = 0; i < r->rows; i++)
        if (!isnan(r->total[i])) squares += (r->total[i] - s.reward) * (r->total[i] - s.reward);
    s.std = n > 1 ? sqrt(squares / (n - 1)) : 0;
    for (int64_t p = 0; p < r->prompts; p++)
        s.zero += !tp_group_varies(r->total + p * r->G, r->G) / (double)r->prompts;
    return s;
}

static void show(const tp_grpo_run *r, const summary *s, const tp_update *u, double seconds,
                 bool lasting) {
    const tp_grpo *g = &r->g;
    char left[32];
    double each = r->busy_seconds / (double)r->busy_steps;
    int digits = snprintf(NULL, 0, "%lld", (long long)g->steps);
    tp_progress(lasting,
                "step %*lld/%lld  reward %.3f  length %.1f  entropy %.3f  loss %+.4f  |g| %.2f  lr "
                "%.1e  %.2f s  %s left",
                digits, (long long)g->step, (long long)g->steps, s->reward, s->length, u->entropy,
                u->loss, fabs(u->grad_norm), u->learning_rate, seconds, /* a NaN has no sign */
                tp_duration(left, each * (double)(g->steps - g->step)));
}

static tp_status record(tp_grpo_run *r, const tp_metric *m, int n) {
    if (!r->metrics) return TP_OK;
    tp_status st = tp_metrics_write(r->metrics, r->g.step, m, n);
    return st || !r->events ? st
                            : tp_tfevents_write(r->events, (double)time(NULL), r->g.step, m, n);
}

/* TRL's names (docs/grpo.md), and those that TRL has no name for. */
static tp_status log_step(tp_grpo_run *r, const summary *s, const tp_update *u, double seconds) {
    tp_grpo *g = &r->g;
    if (!g->root) return TP_OK;
    tp_metric m[64];
    char names[2 * TP_REWARDS_MOST][64];
    int n = 0;
#define PUT(key, value) m[n++] = tp_metric_f64(key, value)
    PUT("loss", u->loss);
    PUT("policy_loss", u->policy_loss);
    PUT("grad_norm", u->grad_norm);
    PUT("learning_rate", u->learning_rate);
    m[n++] = tp_metric_i64("num_tokens", g->tokens);
    PUT("reward", s->reward);
    PUT("reward_std", s->std);
    PUT("frac_reward_zero_std", s->zero);
    for (int k = 0; k < g->now.K; k++) {
        double mean = 0, squares = 0, count = 0;
        for (int64_t i = 0; i < g->now.rows; i++) {
            double x = g->now.reward[i * g->now.K + k];
            if (!isnan(x)) mean += x, count++;
        }
        mean = count > 0 ? mean / count : NAN;
        for (int64_t i = 0; i < g->now.rows; i++) {
            double x = g->now.reward[i * g->now.K + k];
            if (!isnan(x)) squares += (x - mean) * (x - mean);
        }
        snprintf(names[2 * k], sizeof names[0], "rewards/%s/mean", tp_rewards_name(g->rewards, k));
        snprintf(names[2 * k + 1], sizeof names[0], "rewards/%s/std",
                 tp_rewards_name(g->rewards, k));
        PUT(names[2 * k], mean);
        PUT(names[2 * k + 1], count > 1 ? sqrt(squares / (count - 1)) : 0);
    }
    PUT("completions/mean_length", s->length);
    m[n++] = tp_metric_i64("completions/min_length", s->shortest);
    m[n++] = tp_metric_i64("completions/max_length", s->longest);
    PUT("completions/mean_terminated_length", s->terminated_length);
    m[n++] = tp_metric_i64("completions/min_terminated_length", s->shortest_terminated);
    m[n++] = tp_metric_i64("completions/max_terminated_length", s->longest_terminated);
    PUT("completions/clipped_ratio", s->clipped);
    PUT("entropy", u->entropy);
    if (g->reference) PUT("kl", u->kl);
    PUT("clip_ratio/region_mean", u->clip_low + u->clip_high);
    PUT("clip_ratio/low_mean", u->clip_low);
    PUT("clip_ratio/low_min", u->clip_low_min);
    PUT("clip_ratio/high_mean", u->clip_high);
    PUT("clip_ratio/high_max", u->clip_high_max);
    PUT("ratio/mean", u->ratio);
    PUT("logp_diff/max", u->difference);
    PUT("sampling/sampling_logp_difference/max", u->difference);
    m[n++] = tp_metric_i64("sampling/groups_drawn", g->groups_drawn);
    m[n++] = tp_metric_i64("sampling/groups_kept", g->groups_kept);
    PUT("timing_s/generate", g->seconds_generate);
    PUT("timing_s/reward", g->seconds_reward);
    if (g->reference) PUT("timing_s/reference", g->seconds_reference);
    PUT("timing_s/update", g->seconds_update);
    PUT("timing_s/step", seconds);
    PUT("step_time", seconds);
#undef PUT
    return record(r, m, n);
}

bool tp_grpo_due(const tp_grpo_run *r, int64_t every) {
    return every > 0 && (r->g.step % every == 0 || r->g.step == r->g.steps);
}

tp_status tp_grpo_report(tp_grpo_run *r, const tp_update *u, double seconds) {
    summary s = summarise(&r->g.now);
    bool line = tp_grpo_due(r, r->g.cfg.log.every);
    r->reward = s.reward;
    r->busy_seconds += seconds;
    r->busy_steps++;
    if (u->skipped)
        tp_progress(true, "step %lld: a gradient was not finite; an update was skipped",
                    (long long)r->g.step);
    if (isnan(s.reward))
        tp_progress(true, "step %lld: none of its completions has a reward: nothing to learn from",
                    (long long)r->g.step);
    r->alike = r->g.groups_kept ? 0 : r->alike + 1;
    if (r->alike == 10 && !isnan(s.reward))
        tp_progress(true,
                    "the last 10 steps had nothing to learn from: the rewards within each group "
                    "were equal (mean %.3g)",
                    s.reward);
    show(r, &s, u, seconds, line && !tp_is_terminal(2));
    tp_status st = line ? show_completions(r) : TP_OK;
    return st ? st : log_step(r, &s, u, seconds);
}

tp_status tp_grpo_report_evaluation(tp_grpo_run *r) {
    tp_grpo *g = &r->g;
    char key[32];
    if (!g->eval_prompts || r->evaluated == g->step) return TP_OK;
    tp_status st = tp_grpo_evaluate(g, &r->after);
    if (st) return st;
    r->evaluated = g->step;
    const tp_grpo_eval *e = &r->after;
    char pass_k[48] = "", reward[TP_F64_TEXT] = "none", names[TP_REWARDS_MOST][64];
    if (e->k > 1) snprintf(pass_k, sizeof pass_k, "  pass@%lld %.3f", (long long)e->k, e->pass_k);
    if (!isnan(e->reward)) snprintf(reward, sizeof reward, "%.3f", e->reward);
    tp_progress(
        true, "step %lld/%lld  held out: reward %s  greedy %.3f  pass@1 %.3f%s  length %.1f",
        (long long)g->step, (long long)g->steps, reward, e->greedy, e->pass_1, pass_k, e->length);
    if (r->logged == g->step) return TP_OK;
    snprintf(key, sizeof key, "eval/pass@%lld", (long long)e->k);
    tp_metric m[5 + TP_REWARDS_MOST] = {
        tp_metric_f64("eval/greedy", e->greedy), tp_metric_f64("eval/mean_length", e->length),
        tp_metric_f64("eval/pass@1", e->pass_1), tp_metric_f64("eval/reward", e->reward)};
    int n = 4;
    for (int k = 0; k < tp_rewards_count(g->rewards); k++) {
        snprintf(names[k], sizeof names[k], "eval/rewards/%s/mean", tp_rewards_name(g->rewards, k));
        m[n++] = tp_metric_f64(names[k], e->rewards[k]);
    }
    if (e->k > 1) m[n++] = tp_metric_f64(key, e->pass_k);
    return record(r, m, n);
}
