/* tapir replay: computes a step of reinforcement learning once more from its recorded completions.
 * Nothing is generated: the weights come from the newest checkpoint before the step, the steps in
 * between are replayed as well, and the loss must have the bits that were logged. */
#include "cli/grpo.h"
#include "core/ctx.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static struct args {
    char *run;
    int64_t step, threads;
} a;
static const struct argp_option options[] = {{"threads", 'j', "N", 0, "Threads (all cores)", 0},
                                             {0}};

static error_t parse(int key, char *arg, struct argp_state *s) {
    if (key == 'j') {
        a.threads = tp_integer_arg(s, "--threads", arg, 1, TP_MOST_THREADS);
    } else if (key == ARGP_KEY_ARG && a.run && !a.step) {
        a.step = tp_integer_arg(s, "STEP", arg, 1, INT64_C(1) << 40);
    } else if (key == ARGP_KEY_ARG && !a.run) {
        a.run = arg;
    } else if (key == ARGP_KEY_ARG) {
        argp_error(s, "too many arguments");
    } else if (key == ARGP_KEY_END) {
        if (!a.step) argp_error(s, "which run, and which step?");
    } else {
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

/* The newest checkpoint before the step; *from stays NULL where the run has to begin anew. */
static tp_status nearest(tp_ctx *c, tp_checkpoint_reader **from) {
    char dir[TP_CONFIG_TEXT + 32], path[TP_CONFIG_TEXT + 96];
    struct stat s;
    snprintf(dir, sizeof dir, "%s/checkpoints", a.run);
    if (stat(dir, &s))
        return tp_fail(c, TP_EIO, "%s is no run: it has no folder \"checkpoints\"", a.run);
    for (int64_t at = a.step - 1; at > 0; at--) {
        tp_status st = tp_checkpoint_file(path, sizeof path, c, dir, at);
        if (st) return st;
        if (!stat(path, &s)) return tp_checkpoint_open(from, c, path);
    }
    return TP_OK;
}

static tp_status read_config(tp_grpo *g) {
    char path[TP_CONFIG_TEXT + 32];
    snprintf(path, sizeof path, "%s/config.yaml", a.run);
    tp_config_defaults(&g->cfg);
    tp_status st = tp_config_load(g->c, &g->cfg, path);
    memset(g->cfg.line, 0, sizeof g->cfg.line); /* model.* was written, not asked for */
    return st ? st : tp_config_resolve(g->c, &g->cfg);
}

typedef struct logged { /* of one step, in metrics.jsonl */
    int64_t step;
    double loss, learning_rate;
} logged;
static bool take(void *arg, int64_t step, const tp_metric *m, int n) {
    logged *l = arg;
    for (int i = 0; i < n && step == l->step; i++) {
        if (!strcmp(m[i].key, "loss")) l->loss = m[i].f64;
        if (!strcmp(m[i].key, "learning_rate")) l->learning_rate = m[i].f64;
    }
    return step <= l->step;
}
static tp_status read_logged(tp_ctx *c, int64_t step, logged *l) {
    char path[TP_CONFIG_TEXT + 64];
    *l = (logged){step, NAN, NAN};
    snprintf(path, sizeof path, "%s/metrics.jsonl", a.run);
    return tp_metrics_read(c, path, take, l, NULL);
}

/* A run that went on with other steps has another schedule in its config.yaml than it had before.
 */
static tp_status same_schedule(tp_grpo *g, const tp_update *u, const logged *l) {
    if (isnan(l->learning_rate) || l->learning_rate == u->learning_rate) return TP_OK;
    return tp_fail(
        g->c, TP_EARG,
        "step %lld of %s was trained with the learning rate %g, and run.steps: %lld in its "
        "config.yaml gives %g: the run went on with other steps later",
        (long long)g->step + 1, a.run, l->learning_rate, (long long)g->cfg.run.steps,
        u->learning_rate);
}

static tp_status load(tp_grpo *g, tp_checkpoint_reader *from) {
    void *whole = NULL;
    tp_optim_counters *o = tp_optim_get_counters(g->trainer.optim);
    if (!from) return TP_OK;
    tp_status st = tp_checkpoint_get_i64(from, "optimizer/updates", &o->updates);
    if (!st) st = tp_load_optimizer(&g->trainer, from, &whole);
    tp_free(whole);
    g->step = tp_checkpoint_step(from);
    return st;
}

static tp_status replay(tp_grpo *g, double *loss, double *recorded) {
    char path[TP_CONFIG_TEXT + 64];
    logged l = {0, NAN, NAN}; /* of the last step that was replayed */
    tp_checkpoint_reader *from = NULL;
    tp_status st = TP_OK;
    struct stat s;
    snprintf(path, sizeof path, "%s/rollouts", a.run);
    if (stat(path, &s))
        st = tp_fail(g->c, TP_EIO,
                     "%s has no folder \"rollouts\": it is no run of `tapir grpo`, or one with "
                     "rl.dump: false",
                     a.run);
    else if (a.step > g->cfg.run.steps)
        st = tp_fail(g->c, TP_EARG, "%s has %lld steps, not %lld", a.run,
                     (long long)g->cfg.run.steps, (long long)a.step);
    if (!st) st = nearest(g->c, &from);
    if (!st) st = tp_grpo_open(g, from);
    if (!st) st = load(g, from);
    if (!st && g->step < a.step)
        tp_progress(true, "from %s%lld", from ? "the checkpoint of step " : "the beginning, step ",
                    (long long)g->step);
    while (!st && g->step < a.step) {
        tp_update u;
        tp_grpo_dump_file(path, sizeof path, a.run, g->step + 1);
        st = tp_grpo_read_dump(g, path);
        if (!st) st = tp_grpo_update(g, &u);
        if (!st && u.interrupted) st = TP_EINTERRUPT;
        if (!st) st = read_logged(g->c, g->step + 1, &l);
        if (!st) st = same_schedule(g, &u, &l);
        if (st) break;
        g->step++;
        *loss = u.loss;
        tp_progress(false, "step %lld  loss %+.6f", (long long)g->step, u.loss);
    }
    tp_progress_clear();
    *recorded = l.loss;
    tp_checkpoint_close(from);
    return st;
}

/* The config, and a ctx of the device that it names. */
static int open_device(const char *command, tp_grpo *g) {
    int code = tp_open_device(command, &g->c, TP_CPU, 1);
    if (code) return code;
    tp_status st = read_config(g);
    if (st) code = tp_say_failure(command, g->c, st);
    tp_ctx_free(g->c);
    if (!code) code = tp_open_device(command, &g->c, g->cfg.device, a.threads);
    if (code) return code;
    g->c->seed = (uint64_t)g->cfg.seed; /* of choices at random in the model */
    tp_ctx_opts o = tp_ctx_opts_of(&g->cfg);
    g->c->fast = o.fast;
    g->c->bf16_products = o.bf16_products;
    g->c->gemm = o.gemm;
    return EXIT_DONE;
}

int cmd_replay(int argc, char **argv) {
    const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "RUN STEP",
        .doc = "Recomputes a step of `tapir grpo` from the completions that it recorded in "
               "RUN/rollouts, and compares the loss with the one in RUN/metrics.jsonl, to the last "
               "bit. Exit code 1 if they differ."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    tp_catch_signals();
    tp_grpo *g = calloc(1, sizeof *g);
    if (!g) return tp_say_failure(argv[0], NULL, TP_ENOMEM);
    g->ranks = 1;
    g->root = true;
    int code = open_device(argv[0], g);
    if (code) {
        free(g);
        return code;
    }
    double loss = NAN, recorded = NAN;
    tp_status st = replay(g, &loss, &recorded);
    code = st ? tp_say_failure(argv[0], g->c, st) : EXIT_DONE;
    if (!code) {
        bool same = loss == recorded;
        printf("step %lld: loss %.17g, recorded %.17g: %s\n", (long long)a.step, loss, recorded,
               same ? "the same bits" : "they differ");
        if (!same) code = EXIT_FAILED;
    }
    tp_grpo_close(g);
    tp_ctx_free(g->c);
    free(g);
    return code;
}
