/* Owns a training that is measured: the same one as `tapir train`, on pseudo-random tokens. */
#include "cli/bench.h"
#include "cli/source.h"
#include "core/ctx.h"

int tp_side_failed(const char *command, tp_side *s, tp_status st) {
    return tp_say_rank_failure(command, s->c, s->comm, st);
}

int tp_side_open(const char *command, tp_side *s, char *const words[], int n, bool alone) {
    int code = tp_open_config(command, &s->cfg, &s->c, words, n);
    if (alone) s->cfg.dist.backend = TP_CFG_BACKEND_SELF;
    if (!code) code = tp_open_ranks(command, &s->cfg, &s->c, &s->comm);
    if (code) return code;
    char error[512] = "";
    int ranks = tp_comm_size(s->comm);
    tp_status st = tp_config_vocab(s->c, &s->cfg);
    if (!st && (st = tp_plan_make(&s->plan, &s->cfg, ranks, error, sizeof error)))
        st = tp_fail(s->c, st, "%s", error);
    if (!st) st = tp_plan_fits(s->c, &s->plan);
    if (!st) st = tp_trainer_new(&s->t, s->c, &s->cfg, s->comm);
    if (!st) st = tp_begin_weights(s->c, &s->cfg, tp_model_params(s->t.model));
    s->f = (tp_fake_batch){.of = tp_share_of(&s->cfg, tp_comm_rank(s->comm), ranks),
                           .T = s->cfg.model.context,
                           .vocab = s->cfg.model.vocab};
    if (!st) st = tp_fake_fill(&s->f, s->c);
    return st ? tp_side_failed(command, s, st) : EXIT_DONE;
}

void tp_side_close(tp_side *s) {
    if (!s->c) return;
    tp_comm_close(s->comm, tp_error_status(s->c) ? tp_error(s->c) : NULL);
    tp_trainer_clear(&s->t);
    tp_free(s->f.ids);
    tp_ctx_free(s->c);
    s->c = NULL;
}

tp_status tp_side_step(tp_side *s) {
    tp_step_in in = {.step = s->step,
                     .targets = s->cfg.train.batch * s->cfg.model.context,
                     .next = tp_fake_next,
                     .arg = &s->f,
                     .interrupted = tp_interrupted};
    tp_step_out out;
    int64_t timed = s->step - s->warmup;
    if (timed == 0) s->allocs = tp_system_allocs(s->c);
    double start = tp_now();
    tp_status st = tp_trainer_step(&s->t, &in, &out);
    if (!st) st = tp_sync(s->c);
    if (timed >= 0 && timed < TP_SIDE_STEPS) s->took[timed] = tp_now() - start;
    s->step++;
    return !st && out.interrupted ? TP_EINTERRUPT : st;
}

int tp_by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
