/* advantage: from rewards to what each token of a completion weighs in the loss. docs/grpo.md has
 * the sources; names are TRL's. Everything is over the whole batch of a step, on every rank alike:
 * nothing here knows of micro-batches. */
#ifndef TP_ADVANTAGE_H
#define TP_ADVANTAGE_H
#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum tp_scale_rewards { TP_SCALE_GROUP, TP_SCALE_BATCH, TP_SCALE_NONE } tp_scale_rewards;
typedef struct tp_advantage_opts {
    tp_scale_rewards scale; /* scale_rewards: divide by std + 1e-4 (ddof 1) of the group or of the
                               batch, or not (Dr. GRPO) */
    bool rloo; /* r_i - mean of the others = G/(G-1) (r_i - mean), Ahmadian et al. 2024;
                  else r_i - mean (Shao et al. 2024, arXiv 2402.03300) */
} tp_advantage_opts;
/* reward (groups*G), a group's side by side -> advantage (groups*G). NaN: this completion has no
 * reward; it takes no part in means and its advantage is 0. Equal rewards of a group, or fewer than
 * two of them, give exactly 0. */
void tp_advantages(const double *reward, int64_t groups, int64_t G, const tp_advantage_opts *o,
                   float *advantage);
/* Sum of weight[k] * reward[i*K + k] over the K rewards that apply (are not NaN); NaN if none. */
double tp_weighted_reward(const double *reward, const double *weight, int64_t K);
/* Whether the rewards of a group differ: without that it teaches nothing. */
bool tp_group_varies(const double *reward, int64_t G);

typedef enum tp_loss_type { /* how tokens are averaged; |o_i| tokens in completion i, N of them */
                            TP_LOSS_GRPO,   /* 1/N sum_i 1/|o_i| sum_t */
                            TP_LOSS_BNPO,   /* sum_i sum_t / sum_i |o_i|, over the minibatch of the
                                               update */
                            TP_LOSS_DAPO,   /* the same, but tokens of the whole step / its
                                               minibatches (arXiv 2503.14476) */
                            TP_LOSS_DR_GRPO /* sum_i sum_t / (N max_length) (arXiv 2503.20783) */
} tp_loss_type;
typedef struct tp_weight_opts {
    tp_loss_type type;
    int64_t max_length;
    bool mask_truncated;         /* completions without an end weigh nothing and count no tokens */
    double top_entropy_quantile; /* < 1: only this part of the tokens, those of highest entropy,
                                    weigh; the normaliser stays (Wang et al., arXiv 2506.01939) */
} tp_weight_opts;
typedef struct tp_completions { /* (rows) completions, tokens in rows of `width` */
    int64_t rows, width;
    const int64_t *n;     /* tokens of each */
    const uint8_t *ended; /* 1: with its stop token */
    const float *entropy; /* (rows,width); needed with top_entropy_quantile only */
} tp_completions;
/* Weights of rows [first, first+rows) of the step's completions `all`, an update's minibatch;
 * minibatches: how many there are. weight (rows, all->width), 0 beyond a completion's end. */
tp_status tp_token_weights(tp_ctx *c, const tp_completions *all, int64_t first, int64_t rows,
                           int64_t minibatches, const tp_weight_opts *o, float *weight);
/* The value at quantile q in [0,1] of n numbers, linear between neighbours as torch.quantile;
 * reorders them. */
float tp_quantile(float *x, int64_t n, double q);

/* Soft punishment of long completions (DAPO): 0 up to max_length - buffer, then -(exceeding
 * tokens)/buffer, down to -1. buffer 0: 0. */
double tp_overlong_punishment(int64_t length, int64_t max_length, int64_t buffer);
/* pass@k of n samples of which c are right, without bias: 1 - C(n-c,k)/C(n,k) (Chen et al. 2021,
 * arXiv 2107.03374). k <= n. */
double tp_pass_at_k(int64_t n, int64_t c, int64_t k);
#ifdef __cplusplus
}
#endif
#endif
