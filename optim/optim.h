/* optim: what turns gradients into new weights. AdamW, Muon with AdamW, SGD; clipping by the global
 * norm; learning-rate schedules; and what happens when a gradient is not finite. */
#ifndef TP_OPTIM_H
#define TP_OPTIM_H
#include "dist/dist.h"
#include "nn/param.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum tp_optim_kind { TP_OPTIM_ADAMW, TP_OPTIM_MUON, TP_OPTIM_SGD } tp_optim_kind;
typedef enum tp_schedule { TP_COSINE, TP_LINEAR, TP_WSD, TP_CONSTANT } tp_schedule;

typedef struct tp_optim_opts {
    tp_optim_kind kind;
    double learning_rate;      /* AdamW's and SGD's peak */
    double muon_learning_rate; /* Muon's peak, for parameters with TP_P_MATRIX */
    double adam_beta1, adam_beta2, adam_epsilon, weight_decay, muon_momentum, momentum;
    tp_dtype adam_state;   /* of exp_avg and exp_avg_sq: TP_F32 (as the parameter) or TP_BF16 */
    bool muon_match_adamw; /* scale Muon's directions so that AdamW's learning rates fit */
    double max_grad_norm;  /* 0: no clipping */
    tp_schedule schedule;
    double min_lr_ratio;                      /* of the peak, at the last step */
    int64_t steps, warmup_steps, decay_steps; /* decay_steps: of wsd */
    int64_t max_bad_steps;                    /* the last of so many in a row fails; 0: never */
    tp_comm *comm;  /* the ranks that train together; NULL: this process alone */
    int zero_stage; /* ZeRO: 1, 2: each rank keeps the state of its own shard only */
} tp_optim_opts;

/* The factor on the peak learning rate at step (from 0) of `steps`: linear warm-up
 * (step+1)/warmup_steps, then the schedule down to min_lr_ratio at step steps-1. */
double tp_schedule_at(const tp_optim_opts *o, int64_t step);

typedef struct tp_optim tp_optim;
/* Allocates the state (kept tensors, zero) for every parameter; the table must outlive it. */
tp_status tp_optim_new(tp_optim **out, tp_ctx *c, tp_params *params, const tp_optim_opts *opts);
void tp_optim_free(tp_optim *o);
tp_params *tp_optim_params(const tp_optim *o);
tp_comm *tp_optim_comm(const tp_optim *o, int *zero_stage); /* NULL: this process alone */

typedef struct tp_optim_report {
    double learning_rate, grad_norm; /* grad_norm: before clipping; NaN or infinite if skipped */
    bool clipped, skipped;
    int64_t bad_in_a_row, bad_total;
} tp_optim_report;
/* One update from the parameters' ->grad (absent: it does not move). With ZeRO, ->grad is that of
 * this rank's shard, of shape (tp_optim_own(o,i).n); every rank leaves with all new weights. A
 * gradient that is not finite leaves the weights and the state as they are, and is counted; the
 * last of max_bad_steps in a row: TP_ENUMERIC, with the first such parameter's name. step is
 * counted from 0, but in sentences from 1, as steps that are done are. The caller forgets the
 * gradients. */
tp_status tp_optim_step(tp_optim *o, int64_t step, tp_optim_report *r);
/* Parts of it, earlier: while the gradient of parameter i is still in the cache, its length may be
 * measured, and where there is nothing to clip and nobody else to wait for, the parameter moved.
 * tp_optim_step then does the rest. A gradient that is not finite fails the move: TP_ENUMERIC. */
tp_status tp_optim_measure(tp_optim *o, int i);
tp_status tp_optim_move(tp_optim *o, int64_t step, int i);
/* The lengths of all gradients were measured by a recorded step that was replayed. */
void tp_optim_measured(tp_optim *o);
/* What was measured or moved belongs to a step that was given up. */
void tp_optim_forget(tp_optim *o);
/* How parameter i is cut among the ranks, and what of it this rank moves. */
const tp_cut *tp_optim_cut(const tp_optim *o, int i);
tp_range tp_optim_own(const tp_optim *o, int i);

/* The state, for checkpoints: tensors named "<parameter>.exp_avg" and so on, and the counters. */
int tp_optim_state_count(const tp_optim *o);
const char *tp_optim_state_name(const tp_optim *o, int i);
int tp_optim_state_param(const tp_optim *o, int i); /* whose it is: a row of the table */
tp_dtype tp_optim_state_dtype(const tp_optim *o, int i);
/* whole: as many values as the parameter has. get is called by all ranks together, for the same i;
 * put by any, with the same values. */
tp_status tp_optim_state_get(tp_optim *o, int i, void *whole);
void tp_optim_state_put(tp_optim *o, int i, const void *whole);
typedef struct tp_optim_counters {
    int64_t updates; /* made so far: AdamW's bias correction counts these, not steps */
    int64_t bad_in_a_row, bad_total;
} tp_optim_counters;
tp_optim_counters *tp_optim_get_counters(tp_optim *o);

#ifdef __cplusplus
}
#endif
#endif
