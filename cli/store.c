/* Owns what runs keep in their folders beside weights: the optimizer's state, and comparing
 * configs.
 */
#include "cli/cli.h"
#include "core/ctx.h"
#include <errno.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

tp_status tp_make_folder(tp_ctx *c, const char *path) {
    char p[TP_CONFIG_TEXT + 32];
    snprintf(p, sizeof p, "%s", path);
    for (char *at = p + 1;; at++) {
        if (*at && *at != '/') continue;
        char was = *at;
        *at = 0;
        if (mkdir(p, 0777) && errno != EEXIST)
            return tp_fail(c, TP_EIO, "cannot make the folder %s: %s", p, strerror(errno));
        *at = was;
        if (!was) return TP_OK;
    }
}

tp_status tp_lock_folder(FILE **out, tp_ctx *c, const char *dir) {
    char path[TP_CONFIG_TEXT + 32], who[32] = "";
    snprintf(path, sizeof path, "%s/.lock", dir);
    FILE *f = fopen(path, "a+e");
    *out = NULL;
    if (!f) return tp_fail(c, TP_EIO, "cannot write %s: %s", path, strerror(errno));
    if (!flock(fileno(f), LOCK_EX | LOCK_NB)) { /* whom the next one names, if the disk has room */
        if (!ftruncate(fileno(f), 0) && fprintf(f, "%ld\n", (long)getpid()) > 0) fflush(f);
        *out = f;
        return TP_OK;
    }
    const bool taken = errno == EWOULDBLOCK;
    if (taken && fgets(who, sizeof who, f)) who[strcspn(who, "\n")] = 0;
    fclose(f);
    if (!taken) return TP_OK;
    return tp_fail(c, TP_EARG, "%s is in use: process %s trains there", dir, *who ? who : "?");
}

tp_status tp_holds_no_run(tp_ctx *c, const char *dir) {
    char path[TP_CONFIG_TEXT + 64];
    struct stat s;
    bool any = false;
    snprintf(path, sizeof path, "%s/checkpoints", dir);
    tp_status st = tp_checkpoint_any(&any, c, path);
    if (st) return st;
    snprintf(path, sizeof path, "%s/metrics.jsonl", dir);
    if (!any && (stat(path, &s) || s.st_size == 0)) return TP_OK;
    return tp_fail(c, TP_EARG,
                   "%s holds a run already: --resume goes on with it, another run.dir=… begins a "
                   "new one",
                   dir);
}

tp_status tp_write_text(tp_ctx *c, const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    bool ok = f && fputs(text, f) >= 0;
    if (f && fclose(f)) ok = false;
    return ok ? TP_OK : tp_fail(c, TP_EIO, "cannot write %s: %s", path, strerror(errno));
}

/* ---- the optimizer's state ------------------------------------------------------------------ */
/* One tensor of it, whole: of p's shape, n bytes at `whole`. */
typedef tp_status (*state_fn)(tp_trainer *t, void *file, int i, const char *name,
                              const tp_tensor *p, void *whole, size_t n);

static tp_status each_state(tp_trainer *t, void *file, void **whole, state_fn fn) {
    tp_optim *o = t->optim;
    const tp_params *p = tp_optim_params(o);
    int64_t most = 1;
    for (int i = 0; i < p->n; i++)
        if (tp_numel(p->p[i].t) > most) most = tp_numel(p->p[i].t);
    tp_status st = TP_OK;
    if (!(*whole = tp_malloc(t->c, (size_t)most * sizeof(float)))) st = tp_error_status(t->c);
    for (int i = 0; i < tp_optim_state_count(o) && !st; i++) {
        char name[TP_CHECKPOINT_NAME];
        const tp_tensor *of = p->p[tp_optim_state_param(o, i)].t;
        snprintf(name, sizeof name, "optimizer/%s", tp_optim_state_name(o, i));
        st = fn(t, file, i, name, of, *whole,
                (size_t)tp_numel(of) * tp_dtype_size(tp_optim_state_dtype(o, i)));
    }
    if (st) return st;
    tp_free(*whole);
    *whole = NULL;
    return TP_OK;
}

static tp_status put_state(tp_trainer *t, void *file, int i, const char *name, const tp_tensor *p,
                           void *whole, size_t n) {
    tp_status st = tp_optim_state_get(t->optim, i, whole);
    if (st || !file) return st;
    return tp_checkpoint_put(file, name, tp_optim_state_dtype(t->optim, i), p->ndim, p->shape,
                             whole, n);
}

static tp_status get_state(tp_trainer *t, void *file, int i, const char *name, const tp_tensor *p,
                           void *whole, size_t n) {
    tp_status st = tp_checkpoint_get(file, name, tp_optim_state_dtype(t->optim, i), p->ndim,
                                     p->shape, whole, n);
    if (!st) tp_optim_state_put(t->optim, i, whole);
    return st;
}

tp_status tp_save_optimizer(tp_trainer *t, tp_checkpoint_writer *w, void **whole) {
    return each_state(t, w, whole, put_state);
}

tp_status tp_load_optimizer(tp_trainer *t, tp_checkpoint_reader *from, void **whole) {
    return each_state(t, from, whole, get_state);
}

/* ---- configs -------------------------------------------------------------------------------- */
void tp_config_difference(const char *a, const char *b, char *out, size_t cap) {
    const char *begin = a;
    while (*a && *a == *b) {
        a++;
        b++;
    }
    while (a > begin && a[-1] != '\n') a--, b--;
    while (*a == ' ') a++;
    while (*b == ' ') b++;
    snprintf(out, cap, "\"%.*s\" there, \"%.*s\" now", (int)strcspn(a, "\n"), a,
             (int)strcspn(b, "\n"), b);
}

tp_status tp_same_text(tp_ctx *c, tp_checkpoint_reader *from, const tp_config *now,
                       const char *what, const char *text) {
    char *saved = NULL;
    if (!tp_checkpoint_find(from, what)) return TP_OK; /* an older program's */
    tp_status st = tp_checkpoint_get_text(from, what, &saved);
    if (!st && strcmp(saved, text))
        st = tp_fail(c, TP_EARG, "%s was trained with another %s", now->run.dir, what);
    tp_free(saved);
    return st;
}

static bool is_of_grpo(const tp_checkpoint_reader *from) {
    return tp_checkpoint_find(from, "grpo/next_item") != NULL;
}

tp_status tp_can_go_on(tp_ctx *c, const tp_checkpoint_reader *from, const tp_config *now,
                       bool grpo) {
    const char *dir = now->run.dir;
    long long step = tp_checkpoint_step(from), steps = now->run.steps;
    bool by_grpo = is_of_grpo(from);
    if (!tp_checkpoint_find(from, "optimizer/updates"))
        return tp_fail(c, TP_EARG,
                       "%s is an imported model, of which there is no training to go on with; to "
                       "begin with it, set model.init_from=%s and another run.dir",
                       dir, dir);
    if (by_grpo != grpo)
        return tp_fail(c, TP_EARG,
                       "%s is a run of `tapir %s`, so --resume cannot go on with it here; to begin "
                       "with its model, set model.init_from=%s and another run.dir",
                       dir, by_grpo ? "grpo" : "train", dir);
    if (steps < step)
        return tp_fail(c, TP_EARG, "run.steps is %lld, but %s is at step %lld already", steps, dir,
                       step);
    return TP_OK;
}

/* What may differ between a run and its continuation: how it is watched, not what it computes, but
 * for its length, on which the learning rate may depend. */
static void adopt_free_keys(tp_config *to, const tp_config *from) {
    to->threads = from->threads;
    to->dist = from->dist;
    to->train.micro_batches = from->train.micro_batches;
    to->train.loss_chunk_size = from->train.loss_chunk_size;
    to->train.cuda_graph = from->train.cuda_graph;
    to->run = from->run;
    to->eval = from->eval;
    to->sample = from->sample;
    to->checkpoint = from->checkpoint;
    to->log = from->log;
    to->data.prefetch = from->data.prefetch;
    memcpy(to->data.train, from->data.train, sizeof to->data.train);
    memcpy(to->data.val, from->data.val, sizeof to->data.val);
    to->rl.lanes = from->rl.lanes;
    to->rl.dump = from->rl.dump;
    to->rl.log_completions = from->rl.log_completions;
    to->rl.reward_timeout = from->rl.reward_timeout;
    to->rl.eval_prompts = from->rl.eval_prompts;
    to->rl.eval_samples = from->rl.eval_samples;
}

tp_status tp_same_config(tp_ctx *c, tp_checkpoint_reader *from, const tp_config *now) {
    char *text = NULL, what[256];
    tp_config saved;
    tp_config_defaults(&saved);
    tp_status st = tp_checkpoint_get_text(from, "config", &text);
    if (!st) st = tp_config_read(c, &saved, "the checkpoint's config", text, strlen(text));
    if (!st) st = tp_config_resolve(c, &saved);
    const int64_t steps = saved.run.steps;
    if (tp_config_chose_decay(&saved) && tp_config_chose_decay(now))
        saved.train.decay_steps = now->train.decay_steps; /* a part of run.steps */
    adopt_free_keys(&saved, now);
    if (!is_of_grpo(from)) saved.rl = now->rl; /* never looked at */
    if (!st && !tp_config_equal(&saved, now)) {
        char *a = tp_config_text(c, &saved), *b = tp_config_text(c, now);
        if (a && b) tp_config_difference(a, b, what, sizeof what);
        st = tp_fail(c, TP_EARG, "%s was trained with another config: %s", now->run.dir,
                     a && b ? what : "");
        tp_free(a);
        tp_free(b);
    }
    if (!st && steps != now->run.steps && now->train.lr_scheduler_type != TP_CFG_CONSTANT)
        tp_progress(
            true,
            "run.steps is %lld, and was %lld: the learning rate follows the schedule of %lld "
            "steps from here on",
            (long long)now->run.steps, (long long)steps, (long long)now->run.steps);
    tp_free(text);
    return st;
}
