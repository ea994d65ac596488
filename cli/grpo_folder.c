/* Owns the folder of a run of `tapir grpo`: its logs, and checkpoints with all that a step depends
 * on. */
#include "cli/grpo.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

tp_status tp_grpo_open_folder(tp_grpo_run *r, bool resume) {
    tp_grpo *g = &r->g;
    int64_t left;
    snprintf(r->checkpoints, sizeof r->checkpoints, "%s/checkpoints", g->cfg.run.dir);
    if (!g->root) return tp_comm_barrier(g->comm, g->c);
    tp_status st = tp_make_folder(g->c, r->checkpoints);
    if (!st) st = tp_lock_folder(&r->lock, g->c, g->cfg.run.dir);
    if (!st) st = tp_checkpoint_clean(g->c, r->checkpoints, &left);
    if (!st && !resume) st = tp_holds_no_run(g->c, g->cfg.run.dir);
    return st ? st : tp_comm_barrier(g->comm, g->c);
}

static bool take_evaluation(void *arg, int64_t step, const tp_metric *m, int n) {
    int64_t *last = arg;
    for (int i = 0; i < n; i++)
        if (!strcmp(m[i].key, "eval/greedy")) *last = step;
    return true;
}

tp_status tp_grpo_open_logs(tp_grpo_run *r) {
    tp_grpo *g = &r->g;
    char path[TP_CONFIG_TEXT + 64];
    size_t n;
    if (!g->root) return TP_OK;
    snprintf(path, sizeof path, "%s/config.yaml", g->cfg.run.dir);
    tp_status st = tp_config_write(g->c, &g->cfg, path);
    snprintf(path, sizeof path, "%s/tokenizer.json", g->cfg.run.dir);
    if (!st) st = tp_write_text(g->c, path, tp_tokenizer_json(g->tokenizer, &n));
    snprintf(path, sizeof path, "%s/metrics.jsonl", g->cfg.run.dir);
    int64_t last = r->from ? g->step : -1;
    if (!st) st = tp_metrics_open(&r->metrics, g->c, path, last);
    if (!st) st = tp_metrics_read(g->c, path, take_evaluation, &r->logged, NULL);
    if (!st && g->cfg.log.tensorboard)
        st = tp_tfevents_open(&r->events, g->c, g->cfg.run.dir, (double)time(NULL), last);
    return st;
}

/* ---- checkpoints ---------------------------------------------------------------------------- */
enum { COUNTERS = 5 };
typedef struct counter {
    const char *name;
    int64_t *at;
} counter;

static void counters(tp_grpo_run *r, counter out[COUNTERS]) {
    tp_optim_counters *o = tp_optim_get_counters(r->g.trainer.optim);
    const counter all[COUNTERS] = {{"optimizer/updates", &o->updates},
                                   {"optimizer/bad_in_a_row", &o->bad_in_a_row},
                                   {"optimizer/bad_total", &o->bad_total},
                                   {"grpo/next_item", &r->g.next_item},
                                   {"grpo/tokens", &r->g.tokens}};
    memcpy(out, all, sizeof all);
}

static tp_status put_everything(tp_grpo_run *r, tp_checkpoint_writer *w) {
    tp_grpo *g = &r->g;
    size_t n;
    char *config = tp_config_text(g->c, &g->cfg);
    if (!config) return tp_error_status(g->c);
    tp_status st = tp_checkpoint_put_text(w, "config", config);
    tp_free(config);
    if (!st) st = tp_checkpoint_put_text(w, "tokenizer", tp_tokenizer_json(g->tokenizer, &n));
    if (!st) st = tp_checkpoint_put_text(w, "rl.task", tp_task_sha256(g->task));
    counter k[COUNTERS];
    counters(r, k);
    for (int i = 0; i < COUNTERS && !st; i++) st = tp_checkpoint_put_i64(w, k[i].name, *k[i].at);
    if (!st) st = tp_save_weights(g->c, w, tp_model_params(g->trainer.model), "weights");
    if (!st && g->reference)
        st = tp_save_weights(g->c, w, tp_model_trainable(g->reference), "reference");
    return st ? st : tp_save_optimizer(&g->trainer, w, &r->whole);
}

tp_status tp_grpo_save(tp_grpo_run *r) {
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

tp_status tp_grpo_find_checkpoint(tp_grpo_run *r) {
    char warning[512] = "";
    tp_grpo *g = &r->g;
    tp_status st = tp_checkpoint_latest(&r->from, g->c, r->checkpoints, warning, sizeof warning);
    if (*warning && g->root) tp_progress(true, "warning: %s", warning);
    if (!st && !r->from)
        tp_progress(true, "%s has no checkpoint yet: starting from step 0", g->cfg.run.dir);
    return st || !r->from ? st : tp_can_go_on(g->c, r->from, &g->cfg, true);
}

tp_status tp_grpo_load_state(tp_grpo_run *r) {
    tp_grpo *g = &r->g;
    if (!r->from) return TP_OK;
    counter k[COUNTERS];
    counters(r, k);
    size_t n;
    const char *tokenizer = tp_tokenizer_json(g->tokenizer, &n);
    tp_status st = tp_same_text(g->c, r->from, &g->cfg, "tokenizer", tokenizer);
    if (!st) st = tp_same_text(g->c, r->from, &g->cfg, "rl.task", tp_task_sha256(g->task));
    for (int i = 0; i < COUNTERS && !st; i++)
        st = tp_checkpoint_get_i64(r->from, k[i].name, k[i].at);
    if (!st) st = tp_load_optimizer(&g->trainer, r->from, &r->whole);
    g->step = tp_checkpoint_step(r->from);
    if (!st)
        tp_progress(true, "going on from step %lld of %lld", (long long)g->step,
                    (long long)g->steps);
    return st;
}
