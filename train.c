/* tapir train: the training program, to be read from top to bottom.
 *
 *   open    config, ranks, corpora, run folder, model, optimizer, loader
 *   resume  from the newest good checkpoint, if asked
 *   loop    step; log; validate; sample; checkpoint
 *   close   a last validation, a last checkpoint, one line that says how it ended
 *
 * Everything that a later step depends on is in the checkpoint, so a run that was killed and
 * resumed ends with the same weights, to the bit, as one that was not. Under mpirun every rank runs
 * this program; rank 0 speaks and writes, and the weights are again the same. */
#include "cli/source.h"
#include "data/metrics.h"
#include "data/tfevents.h"
#include "infer/infer.h"
#include "tapir_version.h"
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct run {
    tp_ctx *c;
    tp_config cfg;
    tp_comm *comm; /* the ranks of this run */
    int ranks;
    bool root; /* rank 0: prints, logs, samples and saves */
    tp_plan plan;
    tp_trainer trainer;
    tp_source train, val;
    tp_tokenizer *tokenizer;
    tp_rows rows;
    tp_metrics *metrics;
    tp_tfevents *events;
    tp_checkpoint_reader *from; /* to go on from, until it is loaded */
    FILE *lock;                 /* rank 0's, of the folder */
    char checkpoints[TP_CONFIG_TEXT + 32];
    void *whole;         /* one tensor of the optimizer's state, between ranks and a checkpoint */
    int64_t step, steps; /* steps done; steps in all */
    int64_t validated;   /* the step after which the last validation was */
    int64_t sampled;     /* that of the last sample in samples.txt */
    /* since the last line in metrics.jsonl */
    double nll;
    int64_t targets, bytes;
    /* reported at the end */
    double train_loss, train_bpb, val_loss, val_bpb, best_val;
    /* this process only */
    double peak_flops, busy_seconds, since_log_seconds;
    int64_t busy_tokens, since_log_tokens;
} run;

/* ---- open ----------------------------------------------------------------------------------- */
static tp_status check_same_run(run *r, tp_checkpoint_reader *from) {
    char *sha = NULL;
    size_t n;
    tp_status st = tp_same_config(r->c, from, &r->cfg);
    if (!st)
        st = tp_same_text(r->c, from, &r->cfg, "tokenizer", tp_tokenizer_json(r->tokenizer, &n));
    if (!st) st = tp_checkpoint_get_text(from, "corpus", &sha);
    if (!st && strcmp(sha, tp_source_sha256(&r->train)))
        st = tp_fail(r->c, TP_EARG,
                     "%s is not the corpus that %s was trained on (sha256 %.12s… then)",
                     r->cfg.data.train, r->cfg.run.dir, sha);
    tp_free(sha);
    return st;
}

static tp_status open_sources(run *r) {
    tp_status st = tp_config_require(r->c, &r->cfg, "data.train");
    char at[TP_CONFIG_TEXT + 64];
    if (!st && r->cfg.eval.every && !*r->cfg.data.val)
        st = tp_fail(r->c, TP_EARG,
                     "%s: %lld asks for evaluations, but data.val names nothing to evaluate on: "
                     "give data.val=VALUE, or eval.every=0",
                     tp_config_where(at, sizeof at, &r->cfg, "eval.every"),
                     (long long)r->cfg.eval.every);
    if (!st) st = tp_begin_tokenizer(&r->tokenizer, r->c, &r->cfg, r->from);
    if (!st) st = tp_source_open(&r->train, r->c, &r->cfg, r->cfg.data.train, r->tokenizer);
    if (!st && r->from) st = check_same_run(r, r->from);
    if (!st && *r->cfg.data.val)
        st = tp_source_open(&r->val, r->c, &r->cfg, r->cfg.data.val, r->tokenizer);
    tp_rows probe = {0}; /* what cannot be evaluated on is told before the training, not after */
    if (!st && tp_source_is_open(&r->val))
        st = tp_rows_open(&probe, r->c, &r->val, &r->cfg, NULL, 1);
    tp_rows_close(&probe);
    if (st || !r->train.sft || !r->root) return st;
    const tp_sft_info *i = tp_sft_get_info(r->train.sft);
    fprintf(stderr, "%s: %lld conversations, %lld tokens, of which %lld are learnt",
            r->cfg.data.train, (long long)i->examples, (long long)i->tokens, (long long)i->trained);
    if (i->cut) fprintf(stderr, "; %lld cut at the context's end", (long long)i->cut);
    if (i->left_out) fprintf(stderr, "; %lld left out, nothing to learn", (long long)i->left_out);
    fputc('\n', stderr);
    return TP_OK;
}

static tp_status plan(run *r) {
    char error[512] = "", peak[32];
    tp_status st = tp_plan_make(&r->plan, &r->cfg, r->ranks, error, sizeof error);
    if (st) return tp_fail(r->c, st, "%s", error);
    if ((st = tp_plan_fits(r->c, &r->plan))) return st;
    r->peak_flops = tp_measure_peak(r->c, &r->cfg) * r->ranks;
    if (!r->root) return TP_OK;
    tp_plan_print(stderr, &r->cfg, &r->plan);
    tp_count(peak, r->peak_flops);
    if (r->cfg.device == TP_CUDA)
        fprintf(stderr, "MFU is measured against %sFLOP/s, this GPU's in %s", peak,
                r->cfg.dtype == TP_CFG_BF16 ? "bf16" : "f32");
    else
        fprintf(stderr, "MFU is measured against %sFLOP/s, this machine's on %d thread%s", peak,
                tp_threads(r->c), tp_threads(r->c) == 1 ? "" : "s");
    fprintf(stderr, r->ranks > 1 ? " in each of %d ranks (%s)\n" : "\n", r->ranks,
            tp_comm_name(r->comm));
    return TP_OK;
}

static tp_status open_rows(run *r) {
    tp_share share = tp_share_of(&r->cfg, tp_comm_rank(r->comm), r->ranks);
    tp_status st = tp_rows_open(&r->rows, r->c, &r->train, &r->cfg, &share, 0);
    if (st || !r->root) return st;
    char rows[32];
    int64_t n = tp_rows_count(&r->rows);
    fprintf(stderr, "epochs           %.3g   (run.steps over the %s rows of data.train)\n",
            (double)r->steps * (double)r->cfg.train.batch / (double)n, tp_count(rows, (double)n));
    return TP_OK;
}

static tp_status open_folder(run *r, bool resume) {
    int64_t left; /* files that a killed run had half written */
    snprintf(r->checkpoints, sizeof r->checkpoints, "%s/checkpoints", r->cfg.run.dir);
    if (!r->root) return tp_comm_barrier(r->comm, r->c);
    tp_status st = tp_make_folder(r->c, r->cfg.run.dir);
    if (!st) st = tp_make_folder(r->c, r->checkpoints);
    if (!st) st = tp_lock_folder(&r->lock, r->c, r->cfg.run.dir);
    if (!st) st = tp_checkpoint_clean(r->c, r->checkpoints, &left);
    if (!st && !resume) st = tp_holds_no_run(r->c, r->cfg.run.dir);
    return st ? st : tp_comm_barrier(r->comm, r->c);
}

/* ---- checkpoints ---------------------------------------------------------------------------- */
typedef struct counter {
    const char *name;
    int64_t *i64;
    double *f64;
} counter;
enum { COUNTERS = 12 };

/* Every number that outlives a step. */
static void counters(run *r, counter out[COUNTERS]) {
    tp_optim_counters *o = tp_optim_get_counters(r->trainer.optim);
    const counter all[COUNTERS] = {
        {"optimizer/updates", &o->updates, NULL},
        {"optimizer/bad_in_a_row", &o->bad_in_a_row, NULL},
        {"optimizer/bad_total", &o->bad_total, NULL},
        {"run/validated", &r->validated, NULL},
        {"run/targets", &r->targets, NULL},
        {"run/bytes", &r->bytes, NULL},
        {"run/nll", NULL, &r->nll},
        {"run/train_loss", NULL, &r->train_loss},
        {"run/train_bpb", NULL, &r->train_bpb},
        {"run/val_loss", NULL, &r->val_loss},
        {"run/val_bpb", NULL, &r->val_bpb},
        {"run/best_val", NULL, &r->best_val},
    };
    memcpy(out, all, sizeof all);
}

static tp_status put_everything(run *r, tp_checkpoint_writer *w) {
    size_t n;
    char *config = tp_config_text(r->c, &r->cfg);
    if (!config) return tp_error_status(r->c);
    tp_status st = tp_checkpoint_put_text(w, "config", config);
    tp_free(config);
    if (!st) st = tp_checkpoint_put_text(w, "tokenizer", tp_tokenizer_json(r->tokenizer, &n));
    if (!st) st = tp_checkpoint_put_text(w, "corpus", tp_source_sha256(&r->train));
    counter k[COUNTERS];
    counters(r, k);
    for (int i = 0; i < COUNTERS && !st; i++)
        st = k[i].i64 ? tp_checkpoint_put_i64(w, k[i].name, *k[i].i64)
                      : tp_checkpoint_put_f64(w, k[i].name, *k[i].f64);
    if (!st) st = tp_save_weights(r->c, w, tp_model_params(r->trainer.model), "weights");
    return st ? st : tp_save_optimizer(&r->trainer, w, &r->whole);
}

/* Every rank hands in its part of the state; rank 0 writes. */
static tp_status save(run *r, bool best) {
    if (!r->root) return tp_save_optimizer(&r->trainer, NULL, &r->whole);
    char path[TP_CONFIG_TEXT + 96];
    tp_checkpoint_writer *w = NULL;
    tp_status st = tp_checkpoint_file(path, sizeof path, r->c, r->checkpoints, r->step);
    if (!st) st = tp_metrics_sync(r->metrics);
    if (!st) st = tp_checkpoint_create(&w, r->c, path, r->step);
    if (!st && (st = put_everything(r, w)))
        tp_checkpoint_abandon(w);
    else if (!st)
        st = tp_checkpoint_finish(w);
    if (!st && best) st = tp_checkpoint_best(r->c, r->checkpoints, r->step);
    return st ? st : tp_checkpoint_rotate(r->c, r->checkpoints, r->step, r->cfg.checkpoint.keep);
}

/* ---- resume --------------------------------------------------------------------------------- */
static tp_status load_state(run *r, tp_checkpoint_reader *from) {
    counter k[COUNTERS];
    counters(r, k);
    tp_status st = tp_load_weights(r->c, from, tp_model_params(r->trainer.model), "weights");
    for (int i = 0; i < COUNTERS && !st; i++)
        st = k[i].i64 ? tp_checkpoint_get_i64(from, k[i].name, k[i].i64)
                      : tp_checkpoint_get_f64(from, k[i].name, k[i].f64);
    if (!st) st = tp_load_optimizer(&r->trainer, from, &r->whole);
    r->step = tp_checkpoint_step(from);
    return st;
}

/* The checkpoint to go on from, if there is one. */
static tp_status find_checkpoint(run *r) {
    char warning[512] = "";
    tp_status st = tp_checkpoint_latest(&r->from, r->c, r->checkpoints, warning, sizeof warning);
    if (*warning && r->root) tp_progress(true, "warning: %s", warning);
    if (!st && !r->from)
        tp_progress(true, "%s has no checkpoint yet: starting from step 0", r->cfg.run.dir);
    if (!st && r->from) st = tp_can_go_on(r->c, r->from, &r->cfg, false);
    return st;
}

static tp_status resume(run *r) {
    if (!r->from) return TP_OK;
    tp_status st = load_state(r, r->from);
    if (!st)
        tp_progress(true, "going on from step %lld of %lld", (long long)r->step,
                    (long long)r->steps);
    tp_checkpoint_close(r->from);
    r->from = NULL;
    return st;
}

/* What a killed run wrote after the step that it goes on from comes again. */
static tp_status cut_samples(run *r) {
    char path[TP_CONFIG_TEXT + 64], *line = NULL;
    size_t cap = 0;
    long long step;
    off_t at = 0;
    r->sampled = -1;
    snprintf(path, sizeof path, "%s/samples.txt", r->cfg.run.dir);
    FILE *f = fopen(path, "r+");
    if (!f && errno == ENOENT) return TP_OK;
    bool ok = f != NULL;
    for (ssize_t n; ok && (n = getline(&line, &cap, f)) >= 0; at += n) {
        if (sscanf(line, "=== step %lld", &step) != 1) continue;
        if (step > r->step) {
            ok = !ftruncate(fileno(f), at);
            break;
        }
        r->sampled = step;
    }
    if (f && ferror(f)) ok = false;
    if (f && fclose(f)) ok = false;
    free(line);
    return ok ? TP_OK : tp_fail(r->c, TP_EIO, "cannot cut %s: %s", path, strerror(errno));
}

/* After the step is known: what was written is cut back to it, the loader moves to its first
 * sample. */
static tp_status open_logs(run *r) {
    if (!r->root) return tp_rows_seek(&r->rows, r->c, r->step * r->cfg.train.batch);
    char path[TP_CONFIG_TEXT + 64];
    size_t n;
    int64_t last = r->step ? r->step : -1;
    snprintf(path, sizeof path, "%s/config.yaml", r->cfg.run.dir);
    tp_status st = tp_config_write(r->c, &r->cfg, path);
    snprintf(path, sizeof path, "%s/tokenizer.json", r->cfg.run.dir);
    if (!st) st = tp_write_text(r->c, path, tp_tokenizer_json(r->tokenizer, &n));
    snprintf(path, sizeof path, "%s/metrics.jsonl", r->cfg.run.dir);
    if (!st) st = tp_metrics_open(&r->metrics, r->c, path, last);
    if (!st && r->cfg.log.tensorboard)
        st = tp_tfevents_open(&r->events, r->c, r->cfg.run.dir, (double)time(NULL), last);
    if (!st) st = cut_samples(r);
    return st ? st : tp_rows_seek(&r->rows, r->c, r->step * r->cfg.train.batch);
}

/* ---- loop
 * -------------------------------------------------------------------------------------------------
 */
static bool due(const run *r, int64_t every) {
    return every > 0 && (r->step % every == 0 || r->step == r->steps);
}

static tp_status step(run *r, tp_step_out *out) {
    int64_t B = r->cfg.train.batch;
    tp_step_in in = {
        .step = r->step, .next = tp_rows_next, .arg = &r->rows, .interrupted = tp_interrupted};
    double start = tp_now();
    tp_status st = tp_rows_count_targets(&r->rows, r->c, r->step * B, B, &in.targets);
    if (!st) st = tp_trainer_step(&r->trainer, &in, out);
    if (st) return st;
    double took = tp_now() - start;
    r->step++;
    r->nll += out->nll;
    r->targets += out->targets;
    r->bytes += out->bytes;
    r->since_log_seconds += took;
    r->since_log_tokens += r->plan.tokens_per_step;
    r->busy_seconds += took;
    r->busy_tokens += r->plan.tokens_per_step;
    if (out->skipped)
        tp_progress(true,
                    "step %lld: a gradient was not finite; the step was skipped (%lld so far)",
                    (long long)r->step, (long long)out->bad_total);
    return TP_OK;
}

/* What matters most first: a narrow terminal cuts the end. */
static void show(const run *r, const tp_step_out *s, bool lasting) {
    char rate[32], left[32];
    double tokens = (double)r->plan.tokens_per_step;
    double per_step = r->busy_seconds * tokens / (double)r->busy_tokens;
    double per_second = (double)r->since_log_tokens / r->since_log_seconds;
    int digits = snprintf(NULL, 0, "%lld", (long long)r->steps);
    /* a template's tokens are no text */
    char routed[64] = "", bits[32] = "no bpb";
    const double nll = isnan(r->nll) ? (double)NAN : r->nll; /* a NaN has no sign */
    if (r->bytes) snprintf(bits, sizeof bits, "%.3f bpb", nll / log(2) / (double)r->bytes);
    if (tp_trainer_routes(&r->trainer))
        snprintf(routed, sizeof routed, "  routed %.1f %%", 100 * s->mod.routed_fraction);
    tp_progress(
        lasting,
        "step %*lld/%lld  loss %.4f  %s  %s tok/s  %s left  lr %.1e  |g| %.2f  MFU %.0f %%%s",
        digits, (long long)r->step, (long long)r->steps, nll / (double)r->targets, bits,
        tp_count(rate, per_second), tp_duration(left, per_step * (double)(r->steps - r->step)),
        s->learning_rate, fabs(s->grad_norm),
        100 * r->plan.step_flops / tokens * per_second / r->peak_flops, routed);
}

static tp_status record(run *r, const tp_metric *m, int n) {
    if (!r->root) return TP_OK;
    tp_status st = tp_metrics_write(r->metrics, r->step, m, n);
    if (!st && r->events) st = tp_tfevents_write(r->events, (double)time(NULL), r->step, m, n);
    return st;
}

static tp_status log_step(run *r, const tp_step_out *s) {
    double rate = (double)r->since_log_tokens / r->since_log_seconds, waited, sent;
    tp_comm_traffic(r->comm, &waited, &sent);
    r->train_loss = r->nll / (double)r->targets;
    r->train_bpb = r->bytes ? r->nll / log(2) / (double)r->bytes : NAN;
    enum { ALWAYS = 10, COMM = 2, MOD = 4 };
    tp_metric m[ALWAYS + COMM + MOD];
    int n = 0;
    m[n++] = tp_metric_f64("train_loss", r->train_loss);
    m[n++] = tp_metric_f64("train_bpb", r->train_bpb);
    m[n++] = tp_metric_f64("learning_rate", s->learning_rate);
    m[n++] = tp_metric_f64("grad_norm", s->grad_norm);
    if (tp_trainer_routes(&r->trainer)) { /* of this step */
        m[n++] = tp_metric_f64("mod/routed_fraction", s->mod.routed_fraction);
        m[n++] = tp_metric_f64("mod/router_entropy", s->mod.router_entropy);
        m[n++] = tp_metric_f64("mod/predictor_accuracy", s->mod.predictor_accuracy);
        m[n++] = tp_metric_f64("mod/aux_loss", s->mod.aux_loss);
    }
    m[n++] = tp_metric_i64("epoch", (r->step - 1) * r->cfg.train.batch / tp_rows_count(&r->rows));
    m[n++] = tp_metric_i64("tokens", r->step * r->plan.tokens_per_step);
    m[n++] = tp_metric_i64("skipped_steps", s->bad_total);
    m[n++] = tp_metric_f64("tokens_per_s", rate);
    m[n++] = tp_metric_f64("mfu", r->plan.step_flops / (double)r->plan.tokens_per_step * rate /
                                      r->peak_flops);
    m[n++] = tp_metric_f64("memory_mb", (double)tp_memory_peak(r->c) / 1e6);
    if (r->ranks > 1) { /* the part of the time that this one waited for others; what it sent */
        m[n++] = tp_metric_f64("comm_wait", waited / r->since_log_seconds);
        m[n++] = tp_metric_f64("comm_mb", sent / 1e6);
    }
    show(r, s, !tp_is_terminal(2));
    r->nll = 0;
    r->targets = r->bytes = 0;
    r->since_log_seconds = 0;
    r->since_log_tokens = 0;
    return record(r, m, n);
}

static bool validation_due(const run *r) {
    bool now = due(r, r->cfg.eval.every) || r->step == r->steps;
    return tp_source_is_open(&r->val) && now && r->validated != r->step;
}

static tp_status validate(run *r, bool *best) {
    tp_eval_result e;
    tp_status st = tp_evaluate(&r->trainer, &r->val, r->cfg.eval.batches, true, &e);
    if (st) return st;
    bool routes = tp_trainer_routes(&r->trainer);
    r->val_loss = routes && !isfinite(e.loss_causal) ? e.loss_causal : e.loss;
    r->val_bpb = e.bpb;
    r->validated = r->step;
    *best = r->val_loss < r->best_val; /* never NaN */
    if (*best) r->best_val = e.loss;
    char causal[64] = "", bits[TP_BITS_TEXT];
    if (routes) snprintf(causal, sizeof causal, "  %.4f with causal decisions", e.loss_causal);
    if (isfinite(r->val_loss))
        tp_progress(true, "step %lld/%lld  validation: loss %.4f  %s%s%s", (long long)r->step,
                    (long long)r->steps, e.loss, tp_bits(bits, &e), causal,
                    *best ? "  (best)" : "");
    else
        tp_progress(true, "warning: step %lld/%lld: the validation loss is not finite, got %g",
                    (long long)r->step, (long long)r->steps, fabs(r->val_loss));
    const tp_metric m[] = {tp_metric_f64("val_loss", e.loss), tp_metric_f64("val_bpb", e.bpb),
                           tp_metric_f64("val_loss_causal", e.loss_causal)};
    return record(r, m, routes ? 3 : 2);
}

/* sample.prompt as tokens: where conversations are learnt, as a user's turn. *stop: what ends the
 * text. */
static tp_status begin_sample(run *r, tp_ids *ids, int32_t *stop) {
    const char *text = r->cfg.sample.prompt;
    const int64_t n = (int64_t)strlen(text);
    tp_encoder *encoder = NULL;
    tp_chat *chat = NULL;
    tp_conversation v = {0};
    tp_status st;
    *stop = tp_tokenizer_eos(r->tokenizer);
    if (r->train.sft && n) {
        st = tp_chat_new(&chat, r->c, r->tokenizer, tp_chat_template_of(&r->cfg));
        if (!st) st = tp_chat_turn(chat, &v, "user", text, n);
        if (!st) st = tp_chat_reply(chat, &v);
        if (!st) *stop = tp_chat_end(chat);
        *ids = v.ids;
        v.ids = (tp_ids){0};
    } else {
        st = tp_encoder_new(&encoder, r->c, r->tokenizer, NULL);
        if (!st) st = tp_encode_begin(ids, encoder);
        if (!st) st = tp_encode(ids, encoder, text, n);
    }
    tp_conversation_clear(&v);
    tp_chat_free(chat);
    tp_encoder_free(encoder);
    return st;
}

static tp_status write_sample(run *r) {
    const tp_config *f = &r->cfg;
    tp_ids ids = {0};
    int32_t eos = tp_tokenizer_eos(r->tokenizer), stop;
    char *text = NULL, path[TP_CONFIG_TEXT + 64];
    size_t n_text = 0;
    int32_t *room = NULL;
    tp_status st = begin_sample(r, &ids, &stop);
    const int32_t first = ids.n ? ids.data[0] : -1;
    if (!st && first < 0) st = tp_ids_add(&ids, r->c, eos >= 0 ? eos : 0);
    /* what a text begins with is not shown */
    int64_t n = ids.n, from = first < 0 || first == tp_tokenizer_bos(r->tokenizer);
    if (!st && !(room = tp_malloc(r->c, (size_t)(n + f->sample.tokens) * sizeof *room)))
        st = tp_error_status(r->c);
    if (!st) memcpy(room, ids.data, (size_t)n * sizeof *room);
    tp_generate_opts o = {.sampling = {.temperature = f->sample.temperature,
                                       .top_k = f->sample.top_k,
                                       .top_p = f->sample.top_p,
                                       .min_p = f->sample.min_p,
                                       .repetition_penalty = f->sample.repetition_penalty,
                                       .seed = (uint64_t)f->sample.seed},
                          .max_new_tokens = f->sample.tokens,
                          .stop = stop,
                          .sample = (uint32_t)r->step};
    if (!st) st = tp_generate(r->c, r->trainer.model, &o, room, &n);
    if (!st) st = tp_decode(&text, &n_text, r->c, r->tokenizer, room + from, n - from);
    if (!st) {
        tp_progress(true, "sample at step %lld: %s", (long long)r->step, text);
        snprintf(path, sizeof path, "%s/samples.txt", f->run.dir);
        FILE *out = fopen(path, "a");
        bool ok = out && fprintf(out, "=== step %lld\n%s\n\n", (long long)r->step, text) > 0;
        if (out && fclose(out)) ok = false;
        if (!ok) st = tp_fail(r->c, TP_EIO, "cannot write %s: %s", path, strerror(errno));
        r->sampled = r->step;
    }
    tp_free(text);
    tp_free(room);
    tp_ids_clear(&ids);
    return st;
}

/* What is due after a step: metrics, validation, a sample, a checkpoint. *stop: somebody asked to
 * end; then what takes long is left out, and made up for when the run goes on. */
static tp_status after_step(run *r, const tp_step_out *s, bool *stop) {
    const tp_config *f = &r->cfg;
    bool best = false;
    tp_status st = TP_OK;
    if (s) show(r, s, false);
    if (s && due(r, f->log.every)) st = log_step(r, s);
    if (!st && !*stop && validation_due(r)) st = validate(r, &best);
    if (!st && !*stop && r->root && due(r, f->sample.every) && r->sampled != r->step)
        st = write_sample(r);
    if (st == TP_EINTERRUPT) st = TP_OK, *stop = true; /* while validating: the step is done */
    /* one look for all: a signal after it is the next step's. Ranks have agreed within the step. */
    if (r->ranks == 1 && tp_interrupted()) *stop = true;
    best &= f->checkpoint.best;
    bool save_now = *stop || best || (s && (due(r, f->checkpoint.every) || r->step == r->steps));
    return st || !save_now ? st : save(r, best);
}

static tp_status loop(run *r) {
    bool stop = false;
    tp_status st = r->step ? after_step(r, NULL, &stop) : TP_OK; /* what was left out */
    while (!st && !stop && r->step < r->steps) {
        tp_step_out s;
        if ((st = step(r, &s))) break;
        stop = s.interrupted; /* any rank's: all of them stop after the same step */
        st = after_step(r, &s, &stop);
    }
    return st ? st : stop ? TP_EINTERRUPT : TP_OK;
}

static tp_status judge(run *r) {
    tp_status st = tp_ends_finite(&r->trainer, "step", r->step);
    if (!st && r->validated && !isfinite(r->val_loss))
        st = tp_fail(r->c, TP_ENUMERIC,
                     "the run ends with a validation loss that is not finite, %g at step "
                     "%lld " TP_ADVICE_ON_NAN,
                     fabs(r->val_loss), (long long)r->validated);
    return st;
}

/* ---- the whole of it ------------------------------------------------------------------------ */
/* Ranks that would not train the same thing must not begin. */
static tp_status agree(run *r) {
    char *config = tp_config_text(r->c, &r->cfg), step[32];
    tp_status st = config ? TP_OK : tp_error_status(r->c);
    snprintf(step, sizeof step, "%lld", (long long)(r->from ? tp_checkpoint_step(r->from) : 0));
    if (!st) st = tp_comm_agree(r->comm, r->c, "code version", TAPIR_VERSION " " TAPIR_COMMIT);
    if (!st) st = tp_comm_agree(r->comm, r->c, "config", config);
    if (!st) st = tp_comm_agree(r->comm, r->c, "data.train", tp_source_sha256(&r->train));
    if (!st) st = tp_comm_agree(r->comm, r->c, "data.val", tp_source_sha256(&r->val));
    if (!st) st = tp_comm_agree(r->comm, r->c, "step to go on from", step);
    tp_free(config);
    return st;
}

static tp_status train(run *r, bool resuming) {
    r->steps = r->cfg.run.steps;
    r->best_val = INFINITY;
    r->train_loss = r->train_bpb = r->val_loss = r->val_bpb = NAN;
    tp_status st = tp_begin_check(r->c, &r->cfg);
    if (!st && resuming) st = open_folder(r, true);
    if (!st && resuming) st = find_checkpoint(r);
    if (!st) st = open_sources(r);
    if (!st && !resuming) st = open_folder(r, false);
    if (!st) st = agree(r);
    if (!st) st = plan(r);
    if (!st) st = tp_trainer_new(&r->trainer, r->c, &r->cfg, r->comm);
    if (!st && !r->from) st = tp_begin_weights(r->c, &r->cfg, tp_model_params(r->trainer.model));
    if (!st) st = open_rows(r);
    if (!st) st = resume(r);
    if (!st) st = open_logs(r);
    if (!st) st = loop(r);
    return st;
}

static void close_run(run *r) {
    tp_free(r->whole);
    tp_checkpoint_close(r->from);
    tp_tfevents_close(r->events);
    tp_metrics_close(r->metrics);
    tp_rows_close(&r->rows);
    tp_trainer_clear(&r->trainer);
    tp_tokenizer_free(r->tokenizer);
    tp_source_close(&r->train);
    tp_source_close(&r->val);
    if (r->lock) fclose(r->lock);
}

static char *words[256];
static int n_words;
static bool go_on, list_keys;
static const struct argp_option options[] = {
    {"resume", 'r', NULL, 0, "Go on from the run's newest good checkpoint, if it has one", 0},
    {"keys", 'k', NULL, 0, "List every config key with its default and meaning", 0},
    {0}};

static error_t parse(int key, char *arg, struct argp_state *s) {
    if (key == 'r')
        go_on = true;
    else if (key == 'k')
        list_keys = true;
    else if (key == ARGP_KEY_ARG && n_words < 256)
        words[n_words++] = arg;
    else if (key == ARGP_KEY_ARG)
        argp_error(s, "too many arguments");
    else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

static int print_keys(const char *command) {
    tp_ctx *c;
    tp_status st = tp_ctx_new(&c, NULL);
    char *text = st ? NULL : tp_config_help(c);
    if (text) fputs(text, stdout);
    int code = text ? EXIT_DONE : tp_say_failure(command, c, st);
    tp_free(text);
    tp_ctx_free(c);
    return code;
}

static const char *number(char out[32], double x) {
    snprintf(out, 32, isnan(x) ? "none" : "%.6f", x);
    return out;
}

static int finish(run *r, const char *command) {
    char val[32], bpb[32]; /* of a run without validations: none */
    tp_status st = judge(r);
    if (st) return tp_say_failure(command, r->c, st);
    printf("done: run=%s step=%lld train_loss=%.6f val_loss=%s val_bpb=%s tokens_per_s=%.1f\n",
           r->cfg.run.dir, (long long)r->step, r->train_loss, number(val, r->val_loss),
           number(bpb, r->val_bpb),
           r->busy_seconds > 0 ? (double)r->busy_tokens / r->busy_seconds : 0.0);
    return EXIT_DONE;
}

int cmd_train(int argc, char **argv) {
    const struct argp argp = {
        .options = options,
        .parser = parse,
        .args_doc = "CONFIG [KEY=VALUE…]",
        .doc = "Trains a model as the YAML file says; any key can be set on the command line. The "
               "run's "
               "folder (run.dir) receives checkpoints, metrics.jsonl, TensorBoard events, samples "
               "and the "
               "complete config. Ctrl-C writes a checkpoint and ends with exit code 130."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    if (list_keys) return print_keys(argv[0]);
    run *r = calloc(1, sizeof *r);
    if (!r) return tp_say_failure(argv[0], NULL, TP_ENOMEM);
    int code = tp_open_config(argv[0], &r->cfg, &r->c, words, n_words);
    if (!code) code = tp_open_ranks(argv[0], &r->cfg, &r->c, &r->comm);
    if (code) {
        free(r);
        return code;
    }
    r->ranks = tp_comm_size(r->comm);
    r->root = tp_comm_rank(r->comm) == 0;
    tp_warn_unused("train", &r->cfg, (const char *const[]){"rl.", NULL});
    tp_catch_signals_in_steps();
    tp_status st = train(r, go_on);
    if (st && st != TP_EINTERRUPT) {
        code = tp_say_rank_failure(argv[0], r->c, r->comm, st);
    } else if (st) {
        tp_progress(true,
                    "interrupted at step %lld of %lld; the same command with --resume goes on",
                    (long long)r->step, (long long)r->steps);
        code = EXIT_INTERRUPTED;
    } else if (r->root) { /* who has the weights of all */
        code = finish(r, argv[0]);
    }
    /* first the ranks: until then data of this one may be under way */
    tp_comm_close(r->comm, st && st != TP_EINTERRUPT ? tp_error(r->c) : NULL);
    close_run(r);
    tp_ctx_free(r->c);
    free(r);
    return code;
}
