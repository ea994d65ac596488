/* What the files behind `tapir grpo` share: the completions of a step, and the run. */
#ifndef TP_GRPO_H
#define TP_GRPO_H
#include "cli/source.h"
#include "data/metrics.h"
#include "data/tfevents.h"
#include "infer/crew.h"
#include "ops/policy_loss/policy_loss.h"
#include "rl/advantage.h"
#include "rl/reward.h"

/* The completions of a step: `prompts` groups of G rows. Every rank has all of them. */
typedef struct tp_rollouts {
    int64_t prompts, G, rows, P, R, words, K; /* P, R: room for tokens of a prompt, a completion */
    uint64_t *item;                           /* (prompts) number in the task */
    int32_t *prompt;                          /* (prompts,P) */
    int64_t *n_prompt;                        /* (prompts) */
    int32_t *ids;                             /* (rows,R) */
    int64_t *n;                               /* (rows) */
    uint8_t *ended;                           /* (rows) */
    float *logprob, *entropy, *ref;           /* (rows,R); ref: of the reference model */
    int32_t *set;                             /* (rows,R,words), NULL: sampling does not truncate */
    double *reward, *total;                   /* (rows,K) each; (rows) weighted */
    float *advantage;                         /* (rows) */
} tp_rollouts;

typedef struct tp_grpo {
    tp_ctx *c;
    tp_config cfg; /* as given, resolved */
    tp_comm *comm;
    int rank, ranks;
    bool root;
    tp_tokenizer *tokenizer;
    tp_encoder *encoder;
    tp_chat *chat; /* NULL: prompts stand bare */
    int32_t eos;
    int32_t stop; /* ends a completion */
    tp_task *task;
    tp_rewards *rewards;
    tp_trainer trainer;  /* its config counts updates, and rows of an update */
    tp_model *reference; /* NULL: beta is 0 */
    tp_crew *crew;
    tp_rollouts now, draw; /* draw: only with dynamic sampling */
    int64_t step, steps;   /* done; in all */
    int64_t next_item;     /* the first that no step has drawn */
    int64_t tokens;        /* of completions, all steps together */
    int64_t eval_prompts;  /* rl.eval_prompts, or as many as there are; 0: no evaluations */
    bool told_room;        /* that a prompt leaves too little of it */
    /* of the step under way */
    int64_t B, minibatch;  /* rows of an update; which one */
    bool fresh;            /* the weights are still those that wrote the completions */
    float *weight, *stats; /* (B,R); (B,TP_POLICY_STATS) of this rank's rows, then of all */
    int64_t groups_drawn, groups_kept;
    double seconds_generate, seconds_reward, seconds_reference, seconds_update;
} tp_grpo;

/* ---- rollout.c ------------------------------------------------------------------------------ */
tp_status tp_rollouts_new(tp_rollouts *r, tp_grpo *g);
void tp_rollouts_free(tp_rollouts *r);
/* Completions of the step, their rewards and advantages, into g->now. */
tp_status tp_grpo_roll_out(tp_grpo *g);
tp_sampling tp_grpo_sampling(const tp_grpo *g);
/* An item's prompt as tokens, into room for P of them. */
tp_status tp_grpo_prompt(tp_grpo *g, bool held_out, uint64_t item, int32_t *ids, int64_t *n);
/* The text of n tokens, without the stop token at their end; to be freed. */
tp_status tp_grpo_text(tp_grpo *g, const int32_t *ids, int64_t n, bool ended, char **text,
                       size_t *bytes);
/* Every reward of n completions of an item (of x all but the item is set), into reward (n, count).
 */
tp_status tp_grpo_judge(tp_grpo *g, bool held_out, uint64_t item, tp_judged *x, int64_t n,
                        double *reward);
/* Sums every row's numbers over the ranks, where all but one have zeros. */
tp_status tp_grpo_sum(tp_grpo *g, double *x, int64_t n);

/* ---- policy.c ------------------------------------------------------------------------------- */
typedef struct tp_update { /* means over the updates of a step */
    double loss, policy_loss, grad_norm, learning_rate, kl, entropy, ratio;
    double clip_low, clip_high, clip_low_min, clip_high_max; /* parts of the tokens; of an update */
    double
        difference; /* largest |log-prob in training - at sampling| while the weights were fresh */
    bool skipped, interrupted;
} tp_update;
/* The log-probs of g->now under the reference model, into g->now.ref. */
tp_status tp_grpo_reference(tp_grpo *g);
/* All updates of the step from g->now. */
tp_status tp_grpo_update(tp_grpo *g, tp_update *out);
/* The reference model moves towards the policy, if this step is one for it. */
tp_status tp_grpo_sync(tp_grpo *g);

/* ---- shared_prompt.c ------------------------------------------------------------------------ */
typedef struct tp_packed { /* a pass over whole groups: see shared_prompt.c */
    int64_t groups, G, P, R, N, T;
    int64_t first_query;        /* position of a row's first query */
    tp_tensor *ids, *positions; /* (groups,N) */
    tp_tensor *targets, *set;   /* (groups,N); (groups,N,words) or NULL */
    tp_tensor *keys, *queries;  /* tokens of the rows' keys (rows*T) and queries */
    tp_tensor *answers;         /* rows of attention that belong to completions' tokens */
    tp_tensor *tokens;          /* (rows*R) the rows' completions */
} tp_packed;
tp_status tp_shared_prompt_check(const tp_grpo *g);
bool tp_packed_feed(tp_ctx *c, tp_grpo *g, int64_t first, int64_t rows, tp_packed *f);
/* Log-probs and entropies (rows,R). f lives as long as the tape. */
tp_model_out tp_packed_forward(tp_ctx *c, tp_grpo *g, tp_model *m, tp_packed *f);

/* ---- grpo_eval.c ---------------------------------------------------------------------------- */
typedef struct tp_grpo_eval {
    double greedy, pass_1, pass_k, length;   /* right answers, whatever is rewarded */
    double reward, rewards[TP_REWARDS_MOST]; /* means of the k samples' rewards; NaN: none has */
    int64_t prompts, k;
} tp_grpo_eval;
tp_status tp_grpo_evaluate(tp_grpo *g, tp_grpo_eval *out);

/* ---- dump.c, dump_read.c -------------------------------------------------------------------- */
/* RUN/rollouts/step-00000001.jsonl: a line for each completion of g->now. */
void tp_grpo_dump_file(char *out, size_t cap, const char *run, int64_t step);
tp_status tp_grpo_dump(tp_grpo *g, int64_t step);
/* Into g->now, which has room for a step of g->cfg. */
tp_status tp_grpo_read_dump(tp_grpo *g, const char *path);

/* ---- grpo.c --------------------------------------------------------------------------------- */
/* Model, optimizer, engine, task and rewards of the config; load: from this checkpoint, or NULL. */
tp_status tp_grpo_open(tp_grpo *g, tp_checkpoint_reader *load);
void tp_grpo_close(tp_grpo *g);

/* ---- a run and its folder: grpo_folder.c ----------------------------------------------------- */
typedef struct tp_grpo_run {
    tp_grpo g;
    tp_metrics *metrics;        /* rank 0's; NULL where only an evaluation was asked for */
    tp_tfevents *events;        /* NULL: not wanted, or metrics is */
    tp_checkpoint_reader *from; /* what it goes on from; NULL: from the beginning */
    FILE *lock;                 /* rank 0's, of the folder */
    char checkpoints[TP_CONFIG_TEXT + 32];
    void *whole;
    tp_grpo_eval after; /* the latest evaluation */
    int64_t evaluated;  /* the step of it; -1: none */
    int64_t logged;     /* the last step whose evaluation stands in metrics.jsonl; -1: none */
    double reward;      /* NaN before the first step */
    int64_t alike;      /* the latest steps in all of whose groups rewards were equal */
    double busy_seconds;
    int64_t busy_steps;
} tp_grpo_run;
/* Makes run.dir and clears away what a killed run left half written. */
tp_status tp_grpo_open_folder(tp_grpo_run *r, bool resume);
tp_status tp_grpo_open_logs(tp_grpo_run *r);
/* The newest good checkpoint, if there is one, into r->from. */
tp_status tp_grpo_find_checkpoint(tp_grpo_run *r);
tp_status tp_grpo_load_state(tp_grpo_run *r); /* counters, optimizer and reference of r->from */
tp_status tp_grpo_save(tp_grpo_run *r);

/* ---- what people see: grpo_report.c ---------------------------------------------------------- */
void tp_grpo_describe(const tp_grpo_run *r);
/* Step g.step is done: its line of progress, completions and metrics. */
tp_status tp_grpo_report(tp_grpo_run *r, const tp_update *u, double seconds);
/* Evaluates, unless this step was already, and says so. */
tp_status tp_grpo_report_evaluation(tp_grpo_run *r);
/* Whether something that happens every so many steps does now: then, and at the end. */
bool tp_grpo_due(const tp_grpo_run *r, int64_t every);
#endif
