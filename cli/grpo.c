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

/* ---- open ----------------------------------------------------------------------------------- */
static tp_status check(const tp_grpo *g) {
    const tp_config *f = &g->cfg;
    int64_t rows = f->rl.prompts_per_step * f->rl.num_generations;
    if (f->rl.repetition_penalty != 1)
        return tp_fail(g->c, TP_EARG,
                       "rl.repetition_penalty must be 1: what it changes in sampling "
                       "has no log-prob that learning could use");
    if (f->rl.prompts_per_step % g->ranks)
        return tp_fail(g->c, TP_EARG,
                       "rl.prompts_per_step (%lld) must be a multiple of the ranks (%d)",
                       (long long)f->rl.prompts_per_step, g->ranks);
    int64_t updates = f->rl.num_iterations * f->rl.steps_per_generation;
    if (f->run.steps > (INT64_C(1) << 52) / updates)
        return tp_fail(g->c, TP_EARG,
                       "run.steps times rl.num_iterations times rl.steps_per_generation is more "
                       "updates than can be counted");
    if (f->rl.objective == TP_CFG_CISPO && f->rl.epsilon_high == 0)
        return tp_fail(g->c, TP_EARG,
                       "rl.objective: cispo needs rl.epsilon_high, the cap of the ratio (5 is "
                       "usual)");
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
                      .scratchpad = 1, /* solutions with their steps, for the reward "steps" */
                      .seed = (uint64_t)f->seed};
    tp_reward_opts r = {.weights = f->rl.reward_weights,
                        .program = f->rl.reward_program,
                        .timeout = f->rl.reward_timeout,
                        .max_length = f->rl.max_completion_length,
                        .overlong_buffer = f->rl.overlong_buffer};
    tp_status st = tp_rewards_new(&g->rewards, g->c, &r);
    if (st) return st;
    g->eval_prompts = f->rl.eval_prompts;
    t.answerless = !f->rl.eval_prompts && !tp_rewards_has(g->rewards, "exact_match");
    t.advice =
        "; without an answer only rl.eval_prompts=0 and rewards other than exact_match can do";
    st = tp_task_new(&g->task, g->c, &t);
    if (!st && !tp_task_has_solutions(g->task) && tp_rewards_has(g->rewards, "steps"))
        st =
            tp_fail(g->c, TP_EARG,
                    "rl.reward_weights: steps compares with solutions that a task from a file (%s) "
                    "does not have",
                    f->rl.task);
    const int64_t there = st ? 0 : tp_task_held_out(g->task);
    if (there && there < g->eval_prompts) {
        g->eval_prompts = there;
        if (g->root)
            tp_progress(true, "evaluations ask the %lld held-out prompts of %s, not %lld",
                        (long long)there, f->rl.task, (long long)f->rl.eval_prompts);
    }
    return st;
}

/* The trainer counts updates, and a batch is what one update sees. */
static tp_config update_config(const tp_grpo *g) {
    tp_config f = g->cfg;
    f.train.batch = g->B;
    int64_t n = f.rl.num_iterations * f.rl.steps_per_generation;
    f.run.steps *= n;
    f.train.warmup_steps *= n;
    f.train.decay_steps *= n;
    return f;
}

/* More lanes than 64 push each other's keys and values out of a core's caches
 * (docs/benchmarks.md); threads that decode apart want 16 each. A cache of at most a quarter of the
 * memory. */
static int64_t choose_lanes(const tp_grpo *g, int apart) {
    const tp_config *f = &g->cfg;
    int64_t sequence = tp_kv_bytes_per_token(g->trainer.model) * f->model.context;
    int64_t lanes = f->rl.prompts_per_step * f->rl.num_generations / g->ranks;
    int64_t most = 16 * apart > 64 ? 16 * apart : 64;
    if (lanes > most) lanes = most;
    while (lanes > 8 && (double)lanes * (double)sequence > (double)tp_pool_limit(g->c) / 4)
        lanes /= 2;
    return lanes;
}

/* Where a small model's samples are shared out among threads, so are the passes of an update. */
static tp_status open_threads(tp_grpo *g) {
    int apart = tp_threads_apart(g->c, g->trainer.model);
    int64_t lanes = g->cfg.rl.lanes ? g->cfg.rl.lanes : choose_lanes(g, apart);
    tp_status st = tp_crew_new(&g->crew, g->c, g->trainer.model, &(tp_engine_opts){.lanes = lanes});
    return st ? st : tp_trainer_side_by_side(&g->trainer, apart);
}

/* From the run's own checkpoint where there is one: model.init_from may have been trained on. */
static tp_status open_weights(const tp_grpo *g, const tp_config *f, tp_checkpoint_reader *load,
                              tp_params *p, const char *under) {
    char first[TP_CHECKPOINT_NAME];
    snprintf(first, sizeof first, "%s/%s", under, p->p[0].name);
    const bool there = load && tp_checkpoint_find(load, first); /* no reference in older ones */
    return there ? tp_load_weights(g->c, load, p, under) : tp_begin_weights(g->c, f, p);
}

/* With LoRA the reference is adapters of its own beside the policy's frozen weights. */
static tp_status open_reference(tp_grpo *g, const tp_config *f, tp_checkpoint_reader *load) {
    tp_model *policy = g->trainer.model;
    tp_status st = f->lora.r ? tp_lora_beside(&g->reference, g->c, policy)
                             : tp_model_new(&g->reference, g->c, tp_model_config(policy));
    return st ? st : open_weights(g, f, load, tp_model_trainable(g->reference), "reference");
}

tp_status tp_grpo_open(tp_grpo *g, tp_checkpoint_reader *load) {
    tp_status st = check(g);
    if (!st) st = tp_begin_check(g->c, &g->cfg);
    g->c->as_decoded = true; /* log-probs are compared with those of decoding */
    if (!st) st = tp_begin_tokenizer(&g->tokenizer, g->c, &g->cfg, load);
    if (!st && load) st = tp_same_config(g->c, load, &g->cfg);
    if (!st && g->cfg.rl.max_completion_length >= g->cfg.model.context)
        st = tp_fail(g->c, TP_EARG,
                     "rl.max_completion_length is %lld: it must be less than model.context, the "
                     "%lld tokens of a prompt and its completion",
                     (long long)g->cfg.rl.max_completion_length, (long long)g->cfg.model.context);
    if (!st) st = tp_encoder_new(&g->encoder, g->c, g->tokenizer, NULL);
    g->stop = g->eos = st ? -1 : tp_tokenizer_eos(g->tokenizer);
    if (!st && g->eos < 0)
        st = tp_fail(g->c, TP_EARG,
                     "this tokenizer has no end-of-text token to end a completion with");
    if (!st && g->cfg.data.chat_template != TP_CFG_PLAIN) {
        st = tp_chat_new(&g->chat, g->c, g->tokenizer, tp_chat_template_of(&g->cfg));
        if (!st) g->stop = tp_chat_end(g->chat);
    }
    if (!st) st = open_task(g);
    g->B = g->cfg.rl.prompts_per_step * g->cfg.rl.num_generations / g->cfg.rl.steps_per_generation;
    tp_config f = update_config(g);
    if (!st) st = tp_trainer_new(&g->trainer, g->c, &f, g->comm);
    if (!st) st = open_weights(g, &f, load, tp_model_params(g->trainer.model), "weights");
    if (!st && g->cfg.rl.beta > 0) st = open_reference(g, &f, load);
    if (!st) st = open_threads(g);
    if (!st) st = tp_rollouts_new(&g->now, g);
    if (!st && g->cfg.rl.dynamic_sampling) st = tp_rollouts_new(&g->draw, g);
    if (st) return st;
    g->weight = tp_calloc(g->c, (size_t)(g->B * g->now.R), sizeof *g->weight);
    g->stats = tp_calloc(g->c, (size_t)(g->B * TP_POLICY_STATS), sizeof *g->stats);
    return tp_error_status(g->c);
}

void tp_grpo_close(tp_grpo *g) {
    tp_crew_free(g->crew);
    tp_rollouts_free(&g->now);
    tp_rollouts_free(&g->draw);
    tp_free(g->weight);
    tp_free(g->stats);
    tp_model_free(g->reference);
    tp_trainer_clear(&g->trainer);
    tp_rewards_free(g->rewards);
    tp_task_free(g->task);
    tp_chat_free(g->chat);
    tp_encoder_free(g->encoder);
    tp_tokenizer_free(g->tokenizer);
}

/* ---- loop ----------------------------------------------------------------------------------- */
static tp_status step(tp_grpo_run *r, tp_update *u) {
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
    tp_status told = tp_grpo_report(r, u, tp_now() - begin);
    return st ? st : told;
}

static tp_status loop(tp_grpo_run *r) {
    tp_grpo *g = &r->g;
    bool stop = false;
    /* first, last, and where an evaluation was interrupted; ranks know of the log what root does */
    bool missing = tp_grpo_due(r, g->cfg.eval.every) && r->logged != g->step;
    double evaluate = g->root && (!g->step || g->step == g->steps || missing);
    tp_status st = tp_grpo_sum(g, &evaluate, 1);
    if (!st && evaluate > 0) st = tp_grpo_report_evaluation(r);
    while (!st && !stop && g->step < g->steps) {
        tp_update u;
        if ((st = step(r, &u))) break;
        stop = u.interrupted || (g->ranks == 1 && tp_interrupted());
        if (!stop && (tp_grpo_due(r, g->cfg.eval.every) || g->step == g->steps))
            st = tp_grpo_report_evaluation(r);
        if (st == TP_EINTERRUPT) st = TP_OK, stop = true;
        if (!st && (stop || tp_grpo_due(r, g->cfg.checkpoint.every) || g->step == g->steps))
            st = tp_grpo_save(r);
    }
    if (st == TP_EINTERRUPT && g->step) { /* while generating: the step before is the state */
        tp_status saved = tp_grpo_save(r);
        if (saved) return saved;
    }
    return st ? st : stop ? TP_EINTERRUPT : TP_OK;
}

/* ---- the whole of it ------------------------------------------------------------------------ */
static tp_status agree(tp_grpo_run *r) {
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

static tp_status agree_on_task(tp_grpo *g) {
    return tp_comm_agree(g->comm, g->c, "rl.task", tp_task_sha256(g->task));
}

static tp_status grpo(tp_grpo_run *r, bool resuming, bool only_evaluate) {
    tp_grpo *g = &r->g;
    g->steps = g->cfg.run.steps;
    r->evaluated = r->logged = -1;
    r->reward = NAN;
    if (only_evaluate) {
        if (!g->cfg.rl.eval_prompts)
            return tp_fail(g->c, TP_EARG,
                           "--evaluate needs rl.eval_prompts, the number of held-out prompts, "
                           "above 0");
        tp_status opened = agree(r);
        if (!opened) opened = tp_grpo_open(g, NULL);
        if (!opened) opened = agree_on_task(g);
        return opened ? opened : tp_grpo_report_evaluation(r);
    }
    tp_status st = resuming ? tp_grpo_open_folder(r, true) : TP_OK;
    if (!st && resuming) st = tp_grpo_find_checkpoint(r);
    if (!st) st = agree(r);
    if (!st) st = tp_grpo_open(g, r->from);
    if (!st) st = agree_on_task(g);
    if (!st && !resuming) st = tp_grpo_open_folder(r, false); /* a refused start leaves none */
    if (!st) st = tp_grpo_load_state(r);
    if (!st && g->root) tp_grpo_describe(r);
    if (!st) st = tp_grpo_open_logs(r);
    return st ? st : loop(r);
}

static char *words[256];
static int n_words;
static bool go_on, only_evaluate;
static const struct argp_option options[] = {
    {"resume", 'r', NULL, 0, "Go on from the run's newest good checkpoint, if it has one", 0},
    {"evaluate", 'e', NULL, 0, "Only evaluate model.init_from on the held-out prompts", 0},
    {0}};

/* Not refused: a config may be shared with `tapir train`. The first two tell the tokenizer where
 * model.init_from does not. */
static void warn_unused(const tp_config *f) {
    static const char *const keys[] = {"data.train",
                                       "data.tokenizer",
                                       "data.val",
                                       "data.packing",
                                       "data.prefetch",
                                       "mod.aux_coef",
                                       "train.batch",
                                       "train.z_loss",
                                       "train.loss_chunk_size",
                                       "train.cuda_graph",
                                       "eval.batches",
                                       "sample.",
                                       "checkpoint.best",
                                       NULL};
    tp_warn_unused("grpo", f, keys + (*f->model.init_from ? 0 : 2));
}

static error_t parse(int key, char *arg, struct argp_state *s) {
    if (key == 'r')
        go_on = true;
    else if (key == 'e')
        only_evaluate = true;
    else if (key == ARGP_KEY_ARG && n_words < 256)
        words[n_words++] = arg;
    else if (key == ARGP_KEY_ARG)
        argp_error(s, "too many arguments");
    else if (key == ARGP_KEY_END && go_on && only_evaluate)
        argp_error(s, "--evaluate looks at model.init_from and goes on with no run: leave out "
                      "--resume");
    else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

static int finish(tp_grpo_run *r, const char *command, tp_status st) {
    tp_grpo *g = &r->g;
    if (st == TP_EINTERRUPT) {
        tp_progress(true,
                    "interrupted at step %lld of %lld; the same command with --resume goes on",
                    (long long)g->step, (long long)g->steps);
        return EXIT_INTERRUPTED;
    }
    if (st) return tp_say_rank_failure(command, g->c, g->comm, st);
    if (!g->root) return EXIT_DONE;
    if (!only_evaluate)
        st = tp_ends_finite(&g->trainer, "update",
                            g->step * g->cfg.rl.num_iterations * g->cfg.rl.steps_per_generation);
    if (st) return tp_say_rank_failure(command, g->c, g->comm, st);
    printf("done: run=%s step=%lld", only_evaluate ? "none" : g->cfg.run.dir, (long long)g->step);
    printf(isnan(r->reward) ? " reward=none" : " reward=%.6f", r->reward);
    if (r->evaluated >= 0) {
        const tp_grpo_eval *e = &r->after;
        printf(" eval_greedy=%.6f eval_pass_1=%.6f", e->greedy, e->pass_1);
        if (e->k > 1) printf(" eval_pass_%lld=%.6f", (long long)e->k, e->pass_k);
        printf(" eval_length=%.3f", e->length);
        printf(isnan(e->reward) ? " eval_reward=none" : " eval_reward=%.6f", e->reward);
    }
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
    tp_grpo_run *r = calloc(1, sizeof *r);
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
    warn_unused(&g->cfg);
    tp_catch_signals_in_steps();
    tp_status st = grpo(r, go_on, only_evaluate);
    code = finish(r, argv[0], st);
    tp_comm_close(g->comm, st && st != TP_EINTERRUPT ? tp_error(g->c) : NULL);
    tp_free(r->whole);
    tp_checkpoint_close(r->from);
    tp_metrics_close(r->metrics);
    tp_tfevents_close(r->events);
    if (r->lock) fclose(r->lock);
    tp_grpo_close(g);
    tp_ctx_free(g->c);
    free(r);
    return code;
}
