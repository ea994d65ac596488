/* What a training step is, for every command that takes one: train, bench, plan and tape. */
#ifndef TP_TRAINER_H
#define TP_TRAINER_H
#include "data/config.h"
#include "data/loader.h"
#include "nn/nn.h"
#include "optim/optim.h"

typedef struct tp_trainer {
    tp_ctx *c;
    tp_config cfg; /* resolved; model.vocab is known */
    tp_model *model;
    tp_optim *optim;
} tp_trainer;

/* Where the micro-batches of a step come from. */
typedef tp_status (*tp_next_fn)(void *arg, tp_ctx *c, tp_batch *out);

typedef struct tp_step_in {
    int64_t step;    /* from 0 */
    int64_t targets; /* that count in the whole batch, all micro-batches (and ranks) together */
    tp_next_fn next;
    void *arg;
} tp_step_in;
typedef struct tp_step_out {
    double nll; /* sum over the batch's targets of -log p, nats */
    int64_t targets, bytes, epoch;
    double learning_rate, grad_norm;
    bool skipped; /* a gradient was not finite; the weights are as before */
    int64_t bad_in_a_row, bad_total;
} tp_step_out;

tp_status tp_trainer_new(tp_trainer *t, tp_ctx *c, const tp_config *cfg);
/* Model only, for commands that do not train. */
tp_status tp_trainer_model(tp_trainer *t, tp_ctx *c, const tp_config *cfg);
void tp_trainer_clear(tp_trainer *t);
tp_status tp_trainer_step(tp_trainer *t, const tp_step_in *in, tp_step_out *out);
/* Sum of -log p over one batch's targets, without gradients. */
tp_status tp_trainer_eval(tp_trainer *t, const tp_batch *b, double *nll);

/* ---- planning: the same step under META ----------------------------------------------------- */
typedef struct tp_plan {
    int64_t parameters, tokens_per_step;
    size_t parameter_bytes, optimizer_bytes, gradient_bytes, peak_bytes;
    double forward_flops, step_flops; /* of a whole batch, recomputation not counted */
} tp_plan;
tp_status tp_plan_make(tp_plan *p, const tp_config *cfg, char *error, size_t cap);

/* Batches of pseudo-random tokens, always the same, for bench and plan. */
typedef struct tp_fake_batch {
    int64_t rows, T, vocab, sample;
    int32_t *ids; /* rows*T inputs, then rows*T targets; NULL under META */
} tp_fake_batch;
tp_status tp_fake_next(void *arg, tp_ctx *c, tp_batch *out);
#endif
