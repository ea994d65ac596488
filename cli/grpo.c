/* tapir grpo: reinforcement learning of a policy from rewards that a program can compute, to be
 * read from top to bottom.
 *
 *   open    config, ranks, tokenizer, task, model, optimizer, engine, run folder
 *   resume  from the newest good checkpoint, if asked
 *   loop    roll out: prompts, completions, rewards, advantages; update; log; evaluate; save
 *   close   a last evaluation and checkpoint, one line that says how it ended
 *
 * A step is a function of the weights, the seed and the number of its first item, so a run that was
 * killed anywhere and resumed ends with the same weights as one that was not; so does one on other
 * ranks, threads or micro-batches. */
#include "cli/grpo.h"
#include "core/ctx.h"
#include "tapir_version.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct run {
    tp_grpo g;
    tp_metrics *metrics;
    tp_checkpoint_reader *from;
    char checkpoints[TP_CONFIG_TEXT + 32];
    void *whole;
    tp_grpo_eval before, after; /* the first evaluation of this run and the latest */
    int64_t evaluated;          /* the step of the latest; -1: none */
    double reward;              /* NaN before the first step */
    double busy_seconds;
    int64_t busy_steps;
} run;

/* ---- open ----------------------------------------------------------------------------------- */
static tp_status check(const tp_grpo *g) {
    const tp_config *f = &g->cfg;
    int64_t rows = f->rl.prompts_per_step * f->rl.num_generations;
    if (f->device != TP_CPU)
        return tp_fail(g->c, TP_EARG, "tapir grpo runs on the CPU so far: device: cpu");
    if (f->rl.repetition_penalty != 1)
        return tp_fail(g->c, TP_EARG,
                       "rl.repetition_penalty must be 1: what it changes in sampling "
                       "has no log-prob that learning could use");
    if (f->rl.prompts_per_step % g->ranks)
        return tp_fail(g->c, TP_EARG,
                       "rl.prompts_per_step (%lld) must be a multiple of the ranks (%d)",
                       (long long)f->rl.prompts_per_step, g->ranks);
    if (rows % f->rl.steps_per_generation)
        return tp_fail(g->c, TP_EARG,
                       "rl.steps_per_generation (%lld) must divide the %lld completions "
                       "of a step",
                       (long long)f->rl.steps_per_generation, (long long)rows);
    tp_status st = tp_shared_prompt_check(g);
    if (st) return st;
    if (f->model.dropout > 0)
        return tp_fail(g->c, TP_EARG,
                       "model.dropout must be 0: with it a completion would have another "
                       "log-prob in training than when it was drawn");
    return TP_OK;
}

static tp_status open_task(tp_grpo *g) {
    const tp_config *f = &g->cfg;
    tp_task_opts t = {.name = f->rl.task,
                      .min = f->rl.task_min,
                      .max = f->rl.task_max,
                      .seed = (uint64_t)f->seed};
    tp_reward_opts r = {.weights = f->rl.reward_weights,
                        .program = f->rl.reward_program,
                        .timeout = f->rl.reward_timeout,
                        .max_length = f->rl.max_completion_length,
                        .overlong_buffer = f->rl.overlong_buffer};
    tp_status st = tp_task_new(&g->task, g->c, &t);
    return st ? st : tp_rewards_new(&g->rewards, g->c, &r);
}

/* The trainer counts updates, and a batch is what one update sees. */
static tp_config update_config(const tp_grpo *g) {
    tp_config f = g->cfg;
    f.train.batch = g->B;
    f.run.steps *= f.rl.num_iterations * f.rl.steps_per_generation;
    return f;
}

/* As many lanes as a step has completions, but a cache of at most a quarter of the memory. */
static tp_status open_engine(tp_grpo *g) {
    const tp_config *f = &g->cfg;
    int64_t lanes = f->rl.lanes,
            sequence = tp_kv_bytes_per_token(g->trainer.model) * f->model.context;
    if (!lanes) {
        lanes = f->rl.prompts_per_step * f->rl.num_generations / g->ranks;
        while (lanes > 8 && (double)lanes * (double)sequence > (double)tp_pool_limit(g->c) / 4)
            lanes /= 2;
    }
    return tp_engine_new(&g->engine, g->c, g->trainer.model, &(tp_engine_opts){.lanes = lanes});
}

tp_status tp_grpo_open(tp_grpo *g, tp_checkpoint_reader *load) {
    tp_status st = check(g);
    if (!st) st = tp_begin_tokenizer(&g->tokenizer, g->c, &g->cfg);
    if (!st) st = tp_encoder_new(&g->encoder, g->c, g->tokenizer, NULL);
    g->eos = st ? -1 : tp_tokenizer_eos(g->tokenizer);
    if (!st && g->eos < 0)
        st = tp_fail(g->c, TP_EARG,
                     "this tokenizer has no end-of-text token to end a completion with");
    if (!st) st = open_task(g);
    g->B = g->cfg.rl.prompts_per_step * g->cfg.rl.num_generations / g->cfg.rl.steps_per_generation;
    tp_config f = update_config(g);
    if (!st) st = tp_trainer_new(&g->trainer, g->c, &f, g->comm);
    if (!st) st = tp_begin_weights(g->c, &f, tp_model_params(g->trainer.model));
    if (!st && g->cfg.rl.beta > 0) {
        st = tp_model_new(&g->reference, g->c, tp_model_config(g->trainer.model));
        if (!st) st = tp_begin_weights(g->c, &f, tp_model_params(g->reference));
    }
    if (!st && load) st = tp_load_weights(g->c, load, tp_model_params(g->trainer.model));
    if (!st) st = open_engine(g);
    if (!st) st = tp_rollouts_new(&g->now, g);
    if (!st && g->cfg.rl.dynamic_sampling) st = tp_rollouts_new(&g->draw, g);
    if (st) return st;
    g->weight = tp_calloc(g->c, (size_t)(g->B * g->now.R), sizeof *g->weight);
    g->stats = tp_calloc(g->c, (size_t)(g->B * TP_POLICY_STATS), sizeof *g->stats);
    return tp_error_status(g->c);
}

void tp_grpo_close(tp_grpo *g) {
    tp_engine_free(g->engine);
    tp_rollouts_free(&g->now);
    tp_rollouts_free(&g->draw);
    tp_free(g->weight);
    tp_free(g->stats);
    tp_model_free(g->reference);
    tp_trainer_clear(&g->trainer);
    tp_rewards_free(g->rewards);
    tp_task_free(g->task);
    tp_encoder_free(g->encoder);
    tp_tokenizer_free(g->tokenizer);
}

static tp_status open_folder(run *r, bool resume) {
    tp_grpo *g = &r->g;
    char path[TP_CONFIG_TEXT + 64];
    int64_t left;
    struct stat s;
    snprintf(r->checkpoints, sizeof r->checkpoints, "%s/checkpoints", g->cfg.run.dir);
    if (!g->root) return tp_comm_barrier(g->comm, g->c);
    tp_status st = tp_make_folder(g->c, r->checkpoints);
    if (!st) st = tp_checkpoint_clean(g->c, r->checkpoints, &left);
    snprintf(path, sizeof path, "%s/metrics.jsonl", g->cfg.run.dir);
    if (!st && !resume && !stat(path, &s) && s.st_size > 0)
        st = tp_fail(g->c, TP_EARG,
                     "%s holds a run already: --resume goes on with it, another run.dir=… begins a "
                     "new one",
                     g->cfg.run.dir);
    return st ? st : tp_comm_barrier(g->comm, g->c);
}

static tp_status open_logs(run *r) {
    tp_grpo *g = &r->g;
    char path[TP_CONFIG_TEXT + 64];
    size_t n;
    if (!g->root) return TP_OK;
    snprintf(path, sizeof path, "%s/config.yaml", g->cfg.run.dir);
    tp_status st = tp_config_write(g->c, &g->cfg, path);
    snprintf(path, sizeof path, "%s/tokenizer.json", g->cfg.run.dir);
    if (!st) st = tp_write_text(g->c, path, tp_tokenizer_json(g->tokenizer, &n));
    snprintf(path, sizeof path, "%s/metrics.jsonl", g->cfg.run.dir);
    return st ? st : tp_metrics_open(&r->metrics, g->c, path, r->from ? g->step : -1);
}

/* ---- checkpoints ---------------------------------------------------------------------------- */
enum { COUNTERS = 5 };
typedef struct counter {
    const char *name;
    int64_t *at;
} counter;

static void counters(run *r, counter out[COUNTERS]) {
    tp_optim_counters *o = tp_optim_get_counters(r->g.trainer.optim);
    const counter all[COUNTERS] = {{"optimizer/updates", &o->updates},
                                   {"optimizer/bad_in_a_row", &o->bad_in_a_row},
                                   {"optimizer/bad_total", &o->bad_total},
                                   {"grpo/next_item", &r->g.next_item},
                                   {"grpo/tokens", &r->g.tokens}};
    memcpy(out, all, sizeof all);
}

static tp_status put_reference(tp_grpo *g, tp_checkpoint_writer *w) {
    const tp_params *p = tp_model_params(g->reference);
    tp_status st = TP_OK;
    for (int i = 0; i < p->n && !st; i++) {
        char name[TP_CHECKPOINT_NAME];
        const tp_tensor *t = p->p[i].t;
        snprintf(name, sizeof name, "reference/%s", p->p[i].name);
        st = tp_checkpoint_put(w, name, t->dtype, t->ndim, t->shape, t->data,
                               (size_t)tp_numel(t) * tp_dtype_size(t->dtype));
    }
    return st;
}

static tp_status get_reference(tp_grpo *g, tp_checkpoint_reader *from) {
    const tp_params *p = tp_model_params(g->reference);
    tp_status st = TP_OK;
    for (int i = 0; i < p->n && !st; i++) {
        char name[TP_CHECKPOINT_NAME];
        tp_tensor *t = p->p[i].t;
        snprintf(name, sizeof name, "reference/%s", p->p[i].name);
        st = tp_checkpoint_get(from, name, t->dtype, t->ndim, t->shape, t->data,
                               (size_t)tp_numel(t) * tp_dtype_size(t->dtype));
        tp_touch(t);
    }
    return st;
}

static bool reference_moves(const tp_grpo *g) { return g->reference && g->cfg.rl.sync_ref_model; }

static tp_status put_everything(run *r, tp_checkpoint_writer *w) {
    tp_grpo *g = &r->g;
    size_t n;
    char *config = tp_config_text(g->c, &g->cfg);
    if (!config) return tp_error_status(g->c);
    tp_status st = tp_checkpoint_put_text(w, "config", config);
    tp_free(config);
    if (!st) st = tp_checkpoint_put_text(w, "tokenizer", tp_tokenizer_json(g->tokenizer, &n));
    counter k[COUNTERS];
    counters(r, k);
    for (int i = 0; i < COUNTERS && !st; i++) st = tp_checkpoint_put_i64(w, k[i].name, *k[i].at);
    if (!st) st = tp_save_weights(g->c, w, tp_model_params(g->trainer.model));
    if (!st && reference_moves(g)) st = put_reference(g, w);
    return st ? st : tp_save_optimizer(&g->trainer, w, &r->whole);
}

static tp_status save(run *r) {
    tp_grpo *g = &r->g;
    if (!g->root) return tp_save_optimizer(&g->trainer, NULL, &r->whole);
    char path[TP_CONFIG_TEXT + 96];
    tp_checkpoint_writer *w = NULL;
    tp_status st = tp_checkpoint_file(path, sizeof path, g->c, r->checkpoints, g->step);
    if (!st) st = tp_metrics_sync(r->metrics);
    if (!st) st = tp_checkpoint_create(&w, g->c, path, g->step);
    if (!st && (st = put_everything(r, w)))
        tp_checkpoint_abandon(w);
    else if (!st)
        st = tp_checkpoint_finish(w);
    return st ? st : tp_checkpoint_rotate(g->c, r->checkpoints, g->step, g->cfg.checkpoint.keep);
}

static tp_status find_checkpoint(run *r) {
    char warning[512] = "";
    tp_grpo *g = &r->g;
    tp_status st = tp_checkpoint_latest(&r->from, g->c, r->checkpoints, warning, sizeof warning);
    if (*warning && g->root) tp_progress(true, "warning: %s", warning);
    if (!st && !r->from)
        tp_progress(true, "%s has no checkpoint yet: starting from step 0", g->cfg.run.dir);
    return st;
}

static tp_status load_state(run *r) {
    tp_grpo *g = &r->g;
    if (!r->from) return TP_OK;
    counter k[COUNTERS];
    counters(r, k);
    tp_status st = tp_same_config(g->c, r->from, &g->cfg);
    for (int i = 0; i < COUNTERS && !st; i++)
        st = tp_checkpoint_get_i64(r->from, k[i].name, k[i].at);
    if (!st && reference_moves(g)) st = get_reference(g, r->from);
    if (!st) st = tp_load_optimizer(&g->trainer, r->from, &r->whole);
    g->step = tp_checkpoint_step(r->from);
    if (!st)
        tp_progress(true, "going on from step %lld of %lld", (long long)g->step,
                    (long long)g->steps);
    return st;
}

/* ---- what people see ------------------------------------------------------------------------ */
static void describe(const run *r) {
    const tp_grpo *g = &r->g;
    const tp_config *f = &g->cfg;
    char n[32], kv[32];
    fprintf(stderr, "policy           %s parameters%s%s, of %s\n",
            tp_count(n, (double)tp_model_numel(g->trainer.model)),
            g->reference ? ", and a reference model" : "", "",
            *f->model.init_from ? f->model.init_from : "random weights");
    fprintf(stderr,
            "step             %lld prompts of %s, %lld completions each, up to %lld tokens\n",
            (long long)f->rl.prompts_per_step, f->rl.task, (long long)f->rl.num_generations,
            (long long)f->rl.max_completion_length);
    fprintf(stderr, "key-value cache  %s bytes per token, %lld pages\n",
            tp_count(kv, (double)tp_kv_bytes_per_token(g->trainer.model)),
            (long long)tp_engine_get_stats(g->engine).pages);
}

/* A few completions of the step, a line each: what the numbers stand for. */
static tp_status show_completions(run *r) {
    tp_grpo *g = &r->g;
    const tp_rollouts *x = &g->now;
    tp_status st = TP_OK;
    for (int64_t i = 0; i < g->cfg.rl.log_completions && i < x->rows && !st; i++) {
        int64_t row = i * (x->G + 1) % x->rows; /* of another prompt each */
        char *prompt = NULL, *text = NULL;
        size_t n;
        st = tp_grpo_text(g, x->prompt + row / x->G * x->P, x->n_prompt[row / x->G], false, &prompt,
                          &n);
        if (!st) st = tp_grpo_text(g, x->ids + row * x->R, x->n[row], x->ended[row], &text, &n);
        if (!st)
            tp_progress(true, "  %s %.60s%s  reward %.3g  advantage %+.2f", prompt, text,
                        x->ended[row] ? "" : " …", x->total[row], (double)x->advantage[row]);
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

static void show(const run *r, const summary *s, const tp_update *u, double seconds, bool lasting) {
    const tp_grpo *g = &r->g;
    char left[32];
    double each = r->busy_seconds / (double)r->busy_steps;
    int digits = snprintf(NULL, 0, "%lld", (long long)g->steps);
    tp_progress(lasting,
                "step %*lld/%lld  reward %.3f  length %.1f  entropy %.3f  loss %+.4f  |g| %.2f  lr "
                "%.1e  %.2f s  %s left",
                digits, (long long)g->step, (long long)g->steps, s->reward, s->length, u->entropy,
                u->loss, u->grad_norm, u->learning_rate, seconds,
                tp_duration(left, each * (double)(g->steps - g->step)));
}

/* TRL's names (docs/grpo.md), and those that TRL has no name for. */
static tp_status log_step(run *r, const summary *s, const tp_update *u, double seconds) {
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
    return tp_metrics_write(r->metrics, g->step, m, n);
}

static tp_status evaluate(run *r) {
    tp_grpo *g = &r->g;
    char key[32];
    if (!g->cfg.rl.eval_prompts || r->evaluated == g->step) return TP_OK;
    bool first = r->evaluated < 0;
    tp_status st = tp_grpo_evaluate(g, &r->after);
    if (st) return st;
    r->evaluated = g->step;
    if (first) r->before = r->after;
    const tp_grpo_eval *e = &r->after;
    tp_progress(true,
                "step %lld/%lld  held out: greedy %.3f  pass@1 %.3f  pass@%lld %.3f  length %.1f",
                (long long)g->step, (long long)g->steps, e->greedy, e->pass_1, (long long)e->k,
                e->pass_k, e->length);
    snprintf(key, sizeof key, "eval/pass@%lld", (long long)e->k);
    const tp_metric m[4] = {tp_metric_f64("eval/greedy", e->greedy),
                            tp_metric_f64("eval/pass@1", e->pass_1), tp_metric_f64(key, e->pass_k),
                            tp_metric_f64("eval/mean_length", e->length)};
    return r->metrics ? tp_metrics_write(r->metrics, g->step, m, 4) : TP_OK;
}

/* ---- loop ----------------------------------------------------------------------------------- */
static bool due(const run *r, int64_t every) {
    return every > 0 && (r->g.step % every == 0 || r->g.step == r->g.steps);
}

static tp_status step(run *r, tp_update *u) {
    tp_grpo *g = &r->g;
    double begin = tp_now();
    int64_t item = g->next_item, tokens = g->tokens;
    tp_status st = tp_grpo_roll_out(g);
    if (st) { /* as if this step had not begun: it will be generated again */
        g->next_item = item;
        g->tokens = tokens;
        return st;
    }
    st = tp_grpo_reference(g);
    if (!st) st = tp_grpo_dump(g, g->step + 1);
    if (!st) st = tp_grpo_update(g, u);
    if (st) return st;
    g->step++;
    st = tp_grpo_sync(g);
    double seconds = tp_now() - begin;
    summary s = summarise(&g->now);
    r->reward = s.reward;
    r->busy_seconds += seconds;
    r->busy_steps++;
    if (u->skipped)
        tp_progress(true, "step %lld: a gradient was not finite; an update was skipped",
                    (long long)g->step);
    bool line = due(r, g->cfg.log.every);
    show(r, &s, u, seconds, line && !tp_is_terminal(2));
    if (!st && line) st = show_completions(r);
    return st ? st : log_step(r, &s, u, seconds);
}

static tp_status loop(run *r) {
    tp_grpo *g = &r->g;
    bool stop = false;
    tp_status st = g->step ? TP_OK : evaluate(r);
    while (!st && !stop && g->step < g->steps) {
        tp_update u;
        if ((st = step(r, &u))) break;
        stop = u.interrupted || (g->ranks == 1 && tp_interrupted());
        if (!stop && (due(r, g->cfg.eval.every) || g->step == g->steps)) st = evaluate(r);
        if (st == TP_EINTERRUPT) st = TP_OK, stop = true;
        if (!st && (stop || due(r, g->cfg.checkpoint.every) || g->step == g->steps)) st = save(r);
    }
    if (st == TP_EINTERRUPT && g->step) { /* while generating: the step before is the state */
        tp_status saved = save(r);
        if (saved) return saved;
    }
    return st ? st : stop ? TP_EINTERRUPT : TP_OK;
}

/* ---- the whole of it ------------------------------------------------------------------------ */
static tp_status agree(run *r) {
    tp_grpo *g = &r->g;
    char *config = tp_config_text(g->c, &g->cfg), at[32];
    tp_status st = config ? TP_OK : tp_error_status(g->c);
    snprintf(at, sizeof at, "%lld", (long long)(r->from ? tp_checkpoint_step(r->from) : 0));
    if (!st) st = tp_comm_agree(g->comm, g->c, "code version", TAPIR_VERSION " " TAPIR_COMMIT);
    if (!st) st = tp_comm_agree(g->comm, g->c, "config", config);
    if (!st) st = tp_comm_agree(g->comm, g->c, "step to go on from", at);
    tp_free(config);
    return st;
}

static tp_status grpo(run *r, bool resuming, bool only_evaluate) {
    tp_grpo *g = &r->g;
    g->steps = g->cfg.run.steps;
    r->evaluated = -1;
    r->reward = NAN;
    if (only_evaluate) {
        tp_status opened = tp_grpo_open(g, NULL);
        return opened ? opened : evaluate(r);
    }
    tp_status st = open_folder(r, resuming);
    if (!st && resuming) st = find_checkpoint(r);
    if (!st) st = agree(r);
    if (!st) st = tp_grpo_open(g, r->from);
    if (!st) st = load_state(r);
    if (!st && g->root) describe(r);
    if (!st) st = open_logs(r);
    return st ? st : loop(r);
}

static char *words[256];
static int n_words;
static bool go_on, only_evaluate;
static const struct argp_option options[] = {
    {"resume", 'r', NULL, 0, "Go on from the run's newest good checkpoint, if it has one", 0},
    {"evaluate", 'e', NULL, 0, "Only evaluate model.init_from on the held-out prompts", 0},
    {0}};

static error_t parse(int key, char *arg, struct argp_state *s) {
    if (key == 'r')
        go_on = true;
    else if (key == 'e')
        only_evaluate = true;
    else if (key == ARGP_KEY_ARG && n_words < 256)
        words[n_words++] = arg;
    else if (key == ARGP_KEY_ARG)
        argp_error(s, "too many arguments");
    else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

static int finish(run *r, const char *command, tp_status st) {
    tp_grpo *g = &r->g;
    char who[128];
    snprintf(who, sizeof who, g->ranks > 1 ? "%s: rank %d" : "%s", command, g->rank);
    if (st == TP_EINTERRUPT) {
        tp_progress(true,
                    "interrupted at step %lld of %lld; the same command with --resume goes on",
                    (long long)g->step, (long long)g->steps);
        return EXIT_INTERRUPTED;
    }
    if (st) return tp_comm_failed_elsewhere(g->comm) ? EXIT_FAILED : tp_say_failure(who, g->c, st);
    if (!g->root) return EXIT_DONE;
    printf("done: run=%s step=%lld reward=%.6f", only_evaluate ? "none" : g->cfg.run.dir,
           (long long)g->step, r->reward);
    if (g->cfg.rl.eval_prompts)
        printf(" eval_greedy=%.6f eval_pass_1=%.6f eval_pass_%lld=%.6f eval_length=%.3f",
               r->after.greedy, r->after.pass_1, (long long)r->after.k, r->after.pass_k,
               r->after.length);
    printf(" s_per_step=%.3f\n", r->busy_steps ? r->busy_seconds / (double)r->busy_steps : 0.0);
    return EXIT_DONE;
}

int cmd_grpo(int argc, char **argv) {
    const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "CONFIG [KEY=VALUE…]",
        .doc =
            "Trains a policy by group-relative policy optimisation (GRPO) with rewards that a "
            "program computes: prompts of rl.task, rl.num_generations completions of each, an "
            "update that makes the better ones likelier. Begin with a model that can do the task "
            "now and then: model.init_from. `tapir train --keys` lists every key; docs/grpo.md "
            "explains them. Ctrl-C writes a checkpoint and ends with exit code 130."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    run *r = calloc(1, sizeof *r);
    if (!r) return tp_say_failure(argv[0], NULL, TP_ENOMEM);
    tp_grpo *g = &r->g;
    int code = tp_open_config(argv[0], &g->cfg, &g->c, words, n_words);
    if (!code) code = tp_open_ranks(argv[0], &g->cfg, &g->c, &g->comm);
    if (code) {
        free(r);
        return code;
    }
    g->ranks = tp_comm_size(g->comm);
    g->rank = tp_comm_rank(g->comm);
    g->root = g->rank == 0;
    tp_catch_signals();
    tp_status st = grpo(r, go_on, only_evaluate);
    code = finish(r, argv[0], st);
    tp_comm_close(g->comm, st && st != TP_EINTERRUPT ? tp_error(g->c) : NULL);
    tp_free(r->whole);
    tp_checkpoint_close(r->from);
    tp_metrics_close(r->metrics);
    tp_grpo_close(g);
    tp_ctx_free(g->c);
    free(r);
    return code;
}
