/* Owns opening a run: its config, tokenizer and weights from a checkpoint. */
#include "cli/cli.h"
#include "core/ctx.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Where a parameter's bytes pass between a file and the device: the tensor itself on the CPU, else
 * room that grows with the largest. */
typedef struct passage {
    void *room;
    size_t bytes;
} passage;

static void *bytes_at(tp_ctx *c, passage *p, const tp_tensor *t, size_t n) {
    if (!c->backend) return t->data;
    if (n > p->bytes) {
        tp_free(p->room);
        p->bytes = 0;
        if ((p->room = tp_malloc(c, n))) p->bytes = n;
    }
    return p->room;
}

tp_status tp_save_weights(tp_ctx *c, tp_checkpoint_writer *w, const tp_params *p,
                          const char *under) {
    tp_status st = TP_OK;
    passage pass = {0};
    for (int i = 0; i < p->n && !st; i++) {
        char name[TP_CHECKPOINT_NAME];
        const tp_tensor *t = p->p[i].t;
        snprintf(name, sizeof name, "%s/%s", under, p->p[i].name);
        size_t n = (size_t)tp_numel(t) * tp_dtype_size(t->dtype);
        void *bytes = bytes_at(c, &pass, t, n);
        if (c->backend) st = tp_download(c, t, bytes);
        if (!st) st = tp_checkpoint_put(w, name, t->dtype, t->ndim, t->shape, bytes, n);
    }
    tp_free(pass.room);
    return st;
}

static bool all_finite(const float *x, int64_t n) {
    int bad = 0; /* no way out of the loop, so that vectors do it */
    for (int64_t i = 0; i < n; i++) bad |= !isfinite(x[i]);
    return !bad;
}

tp_status tp_weights_finite(tp_ctx *c, const tp_params *p, const char **name) {
    tp_status st = TP_OK;
    passage pass = {0};
    *name = NULL;
    for (int i = 0; i < p->n && !st && !*name; i++) {
        const tp_tensor *t = p->p[i].t;
        void *bytes = bytes_at(c, &pass, t, (size_t)tp_numel(t) * tp_dtype_size(t->dtype));
        st = tp_error_status(c);
        if (!st && c->backend) st = tp_download(c, t, bytes);
        if (!st && t->dtype == TP_F32 && !all_finite(bytes, tp_numel(t))) *name = p->p[i].name;
    }
    tp_free(pass.room);
    return st;
}

tp_status tp_ends_finite(tp_trainer *t, const char *what, int64_t done) {
    tp_ctx *c = t->c;
    int64_t bad = tp_optim_get_counters(t->optim)->bad_in_a_row;
    if (bad)
        return tp_fail(c, TP_ENUMERIC,
                       "the run ends with %lld skipped %s%s, as gradients were not finite: its "
                       "weights are those of %s %lld " TP_ADVICE_ON_NAN,
                       (long long)bad, what, bad == 1 ? "" : "s", what, (long long)(done - bad));
    const char *name = NULL;
    tp_status st = tp_weights_finite(c, tp_model_params(t->model), &name);
    if (!st && name)
        st = tp_fail(c, TP_ENUMERIC,
                     "the run ends with weights that are not finite, %s among "
                     "them " TP_ADVICE_ON_NAN,
                     name);
    return st;
}

tp_status tp_load_weights(tp_ctx *c, tp_checkpoint_reader *from, tp_params *p, const char *under) {
    tp_status st = TP_OK;
    passage pass = {0};
    for (int i = 0; i < p->n && !st; i++) {
        char name[TP_CHECKPOINT_NAME];
        tp_tensor *t = p->p[i].t;
        snprintf(name, sizeof name, "%s/%s", under, p->p[i].name);
        size_t n = (size_t)tp_numel(t) * tp_dtype_size(t->dtype);
        void *bytes = bytes_at(c, &pass, t, n);
        st = tp_error_status(c);
        if (!st) st = tp_checkpoint_get(from, name, t->dtype, t->ndim, t->shape, bytes, n);
        if (!st && c->backend) st = tp_upload(c, t, bytes);
        tp_touch(t);
    }
    tp_free(pass.room);
    return st ? st : tp_error_status(c);
}

static tp_status open_checkpoint(tp_run *r, const char *path, bool best) {
    tp_ctx *c = r->c;
    struct stat s;
    if (stat(path, &s)) return tp_fail(c, TP_EIO, "%s: there is no such run or checkpoint", path);
    if (!S_ISDIR(s.st_mode)) return tp_checkpoint_open(&r->from, c, path);
    char dir[TP_CONFIG_TEXT + 32], warning[512] = "";
    if (best) {
        snprintf(dir, sizeof dir, "%s/checkpoints/best.h5", path);
        if (stat(dir, &s) && errno == ENOENT)
            return tp_fail(c, TP_EIO,
                           "%s has no best checkpoint: a run with data.val and checkpoint.best "
                           "keeps one at its evaluations",
                           path);
        return tp_checkpoint_open(&r->from, c, dir);
    }
    snprintf(dir, sizeof dir, "%s/checkpoints", path);
    if (stat(dir, &s)) {
        snprintf(dir, sizeof dir, "%s/config.json", path);
        return tp_fail(
            c, TP_EIO, "%s is no run: it has no folder \"checkpoints\"%s", path,
            stat(dir, &s) ? "" : " (tapir import makes a run of a model in Hugging Face's format)");
    }
    tp_status st = tp_checkpoint_latest(&r->from, c, dir, warning, sizeof warning);
    if (*warning) tp_progress(true, "warning: %s", warning);
    if (!st && !r->from) st = tp_fail(c, TP_EIO, "%s has no checkpoint yet", path);
    return st;
}

tp_status tp_run_texts(tp_run *r) {
    char *config = NULL, *json = NULL;
    tp_status st = tp_checkpoint_get_text(r->from, "config", &config);
    if (!st) {
        tp_config_defaults(&r->cfg);
        st = tp_config_read(r->c, &r->cfg, "the checkpoint's config", config, strlen(config));
    }
    if (!st) st = tp_config_resolve(r->c, &r->cfg);
    if (!st && r->cfg.model.vocab < 1)
        st = tp_fail(r->c, TP_EFORMAT, "%s: its config has no model.vocab",
                     tp_checkpoint_path(r->from));
    if (!st) st = tp_checkpoint_get_text(r->from, "tokenizer", &json);
    if (!st)
        st = tp_tokenizer_from_json(&r->tokenizer, r->c, json, strlen(json),
                                    "the checkpoint's tokenizer");
    tp_free(config);
    tp_free(json);
    return st;
}

tp_status tp_run_peek(tp_run *r, tp_ctx *c, const char *path, bool best) {
    *r = (tp_run){.c = c};
    tp_status st = open_checkpoint(r, path, best);
    if (st) return st;
    r->step = tp_checkpoint_step(r->from);
    return tp_run_texts(r);
}

tp_status tp_run_open(tp_run *r, tp_ctx *c, const char *path, bool best) {
    tp_status st = tp_run_peek(r, c, path, best);
    c->seed = (uint64_t)r->cfg.seed; /* of choices at random in the model */
    /* as it was trained, its losses have the same bits */
    c->bf16_products = c->device == TP_CPU && tp_ctx_opts_of(&r->cfg).bf16_products;
    tp_config cfg = r->cfg;
    snprintf(cfg.model.init_from, sizeof cfg.model.init_from, "%s", path);
    if (!st) st = tp_trainer_model(&r->trainer, c, &cfg);
    if (!st) st = tp_load_weights(c, r->from, tp_model_params(r->trainer.model), "weights");
    return st;
}

void tp_run_close(tp_run *r) {
    tp_checkpoint_close(r->from);
    tp_tokenizer_free(r->tokenizer);
    tp_trainer_clear(&r->trainer);
    r->from = NULL;
    r->tokenizer = NULL;
}

error_t tp_run_option(tp_run_args *a, int key, const char *arg, struct argp_state *s) {
    switch (key) {
    case 'b':
        a->best = true;
        return 0;
    case 'd':
        a->device = tp_device_arg(s, arg);
        return 0;
    case 'j':
        a->threads = tp_integer_arg(s, "--threads", arg, 1, TP_MOST_THREADS);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

error_t tp_sampling_option(tp_sampling *how, int key, const char *arg, struct argp_state *s) {
    switch (key) {
    case 't':
        how->temperature = tp_number_arg(s, "--temperature", arg, 0, 1e6);
        return 0;
    case 'k':
        how->top_k = tp_integer_arg(s, "--top-k", arg, 0, 1000000000);
        return 0;
    case 'p':
        how->top_p = tp_number_arg(s, "--top-p", arg, 1e-9, 1);
        return 0;
    case 'm':
        how->min_p = tp_number_arg(s, "--min-p", arg, 0, 1);
        return 0;
    case 'r':
        how->repetition_penalty = tp_number_arg(s, "--repetition-penalty", arg, 1e-6, 1e6);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

int tp_with_run(const char *command, const tp_run_args *a, tp_status (*fn)(tp_run *r)) {
    tp_catch_signals();
    tp_ctx *c;
    int code = tp_open_device(command, &c, a->device, a->threads);
    if (code) return code;
    tp_run r;
    tp_status st = tp_run_open(&r, c, a->path, a->best);
    if (!st) st = fn(&r);
    code = st ? tp_say_failure(command, c, st) : EXIT_DONE;
    tp_run_close(&r);
    tp_ctx_free(c);
    return code;
}
