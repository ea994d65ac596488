/* What a training step is, for every command that takes one: train, bench, plan and tape. */
#ifndef TP_TRAINER_H
#define TP_TRAINER_H
#include "data/config.h"
#include "data/loader.h"
#include "nn/nn.h"
#include "optim/gradients.h"

/* On a GPU: what all passes of a step read and report, in device memory for the whole run, so that
 * the host only waits at the end of a step and a recorded step finds new data in its place. */
typedef struct tp_staged {
    tp_tensor *ids, *targets;        /* (rows of this rank in a step, T) */
    tp_tensor *segments, *positions; /* NULL: packing stream */
    tp_tensor *logprob;              /* (rows,T) */
    tp_tensor *route;                /* (rows,TP_ROUTE_STATS), of a model with routed blocks */
    float *host;                     /* logprob, then route, downloaded */
    tp_batch *batch;                 /* of each micro-batch; its pointers are not valid */
} tp_staged;

typedef struct tp_passes tp_passes; /* cli/passes.h */
typedef struct tp_trainer {
    tp_ctx *c;
    tp_config cfg; /* resolved; model.vocab is known */
    tp_model *model;
    tp_optim *optim;
    tp_gradients *gradients;
    tp_comm *comm; /* the ranks that train together; NULL: this process alone */
    int rank, ranks;
    tp_passes *side_by_side; /* passes with a loss of their own run so; NULL: one by one */
    tp_staged staged;
    struct {             /* train.cuda_graph */
        bool warm;       /* a step went through without it, which finds plans and addresses */
        int64_t targets; /* of the step that was recorded; 0: none is */
        size_t used; /* bytes of the pool when it had ended: others' bytes are where they were */
    } graph;
    double *nll; /* of each sample of the global batch; then the bytes of its targets; then how many
                    ranks were asked to stop; with routed blocks, TP_ROUTE_STATS of each sample */
} tp_trainer;

/* Which samples a rank takes. Rank r of R has the r-th aligned part of the global batch, and its
 * micro-batches are parts of that; with ZeRO 2, which sums over the ranks after every micro-batch,
 * it has the r-th part of every micro-batch. Either way each is a subtree of the one tree over
 * samples (optim/gradients.h). */
typedef struct tp_share {
    int64_t rows;                 /* in a micro-batch of this rank */
    int64_t period, first, share; /* of every `period` samples, `share` from `first` on */
} tp_share;
tp_share tp_share_of(const tp_config *cfg, int rank, int ranks);

/* Where the micro-batches of a step come from. */
typedef tp_status (*tp_next_fn)(void *arg, tp_ctx *c, tp_batch *out);

typedef struct tp_step_in {
    int64_t step;    /* from 0 */
    int64_t targets; /* that count in the whole batch, all micro-batches (and ranks) together */
    tp_next_fn next;
    void *arg;
    bool (*interrupted)(void); /* asked once a step; NULL: never */
    /* NULL: cross-entropy of the batch. Else the loss of a pass over the rows of b, recorded on the
     * tape of c; the batch then needs no tokens, and no nll comes out. NULL returned: it failed.
     * Where passes run side by side, it is called from several threads, each with a ctx and a model
     * of its own. */
    tp_tensor *(*loss)(void *loss_arg, tp_ctx *c, tp_model *m, const tp_batch *b);
    void *loss_arg;
} tp_step_in;
/* Of one batch, as an average over its tokens and the routed blocks. */
typedef struct tp_mod_report {
    double routed_fraction;    /* of causal decisions that take the token */
    double predictor_accuracy; /* that agree with the choice of the k highest */
    double router_entropy;     /* of 1/(1+e^-logit), nats */
    double aux_loss;
} tp_mod_report;

typedef struct tp_step_out {
    double nll; /* sum over the batch's targets of -log p, nats */
    int64_t targets, bytes;
    double learning_rate, grad_norm;
    bool interrupted; /* on any rank */
    bool skipped;     /* a gradient was not finite; the weights are as before */
    int64_t bad_in_a_row, bad_total;
    tp_mod_report mod; /* zeros without routed blocks, and where `loss` is given */
} tp_step_out;

/* Refuses a batch that does not go into micro-batches and ranks. tapir grpo's is not train.batch.
 */
tp_status tp_trainer_check_split(tp_ctx *c, const tp_config *cfg, int ranks);
/* comm: the ranks that train together, which must outlive the trainer; NULL: none. */
tp_status tp_trainer_new(tp_trainer *t, tp_ctx *c, const tp_config *cfg, tp_comm *comm);
/* Of a ctx that computes as the config says; threads, meta and limits are the caller's. */
tp_ctx_opts tp_ctx_opts_of(const tp_config *cfg);
/* Model only, for commands that do not train; evaluations may be shared among ranks afterwards.
 * Here and above, a config with model.init_from gives a model whose weights are still to be loaded
 * (tp_begin_weights): random numbers for 0.6B parameters take 18 s. */
tp_status tp_trainer_model(tp_trainer *t, tp_ctx *c, const tp_config *cfg);
tp_status tp_trainer_join(tp_trainer *t, tp_comm *comm);
void tp_trainer_clear(tp_trainer *t);
/* From here on, passes with a loss of their own run as many at a time, where a step has several. */
tp_status tp_trainer_side_by_side(tp_trainer *t, int threads);
/* The loss of the rows of b as a step records it; targets: that count in the whole batch. */
tp_model_out tp_trainer_loss(tp_trainer *t, const tp_batch *b, int64_t targets);
/* One step; every rank gets the same numbers out. What failed on a single rank may be done again:
 * it leaves nothing behind, save what was moved if the update had begun. */
tp_status tp_trainer_step(tp_trainer *t, const tp_step_in *in, tp_step_out *out);
/* nll[r]: the sum of -log p over the targets of row r, without gradients. mode: of routed blocks.
 */
tp_status tp_trainer_eval(tp_trainer *t, const tp_batch *b, tp_mod_mode mode, double nll[]);
int64_t tp_trained(const tp_trainer *t); /* parameters that a step moves */
/* Whether the model has routed blocks, whose choice is another one in training than in use. */
bool tp_trainer_routes(const tp_trainer *t);

/* ---- planning: the same step under META ----------------------------------------------------- */
typedef struct tp_plan {
    int64_t parameters, trained, tokens_per_step;
    int ranks; /* the rest is of rank 0, save FLOPs and tokens, which are of all */
    size_t parameter_bytes, optimizer_bytes, gradient_bytes, peak_bytes;
    int64_t kv_bytes_per_token;       /* in a key-value cache: tp_kv_bytes_per_token */
    double forward_flops, step_flops; /* of a whole batch, recomputation not counted */
} tp_plan;
/* Refuses in words, with what takes how much, a plan that is over the memory of c's device. */
tp_status tp_plan_fits(tp_ctx *c, const tp_plan *p);
tp_status tp_plan_make(tp_plan *p, const tp_config *cfg, int ranks, char *error, size_t cap);

/* Batches of pseudo-random tokens, always the same, for bench and plan. */
typedef struct tp_fake_batch {
    tp_share of;
    int64_t T, vocab, taken; /* taken: rows handed out so far */
    int32_t *ids;            /* rows*T inputs, then rows*T targets; NULL under META */
} tp_fake_batch;
tp_status tp_fake_fill(tp_fake_batch *f, tp_ctx *c); /* ids, for tp_free */
tp_status tp_fake_next(void *arg, tp_ctx *c, tp_batch *out);
#endif
