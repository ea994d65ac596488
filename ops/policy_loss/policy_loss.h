/* policy_loss: the surrogate losses of GRPO and its kin, from log-probs of the tokens that a policy
 * wrote. docs/grpo.md has the formulas with their sources and the names others give them.
 *
 * With l = log pi(token), l_old that of the policy that wrote it, r = exp(l - l_old), A the row's
 * advantage, w the token's weight:
 *   loss = sum over tokens of  w (L + beta KL - entropy_coef H)
 *   clip   L = -min(min(r, delta) A, clip(r, 1-epsilon, 1+epsilon_high) A),
 *          and where clip_ratio_c and A < 0: at most -clip_ratio_c A
 *   cispo  L = -stop(min(r, epsilon_high)) A l
 *   sequence level: r of every token is exp(mean over the row's tokens of l - l_old)
 *   KL with x = l_ref - l:  k1 = -x,  k2 = x^2/2,  k3 = e^x - x - 1
 * l - l_old and x are cut to [-20, 20]; beyond, the gradient is 0. */
#ifndef TP_POLICY_LOSS_H
#define TP_POLICY_LOSS_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum tp_policy_objective { TP_POLICY_CLIP, TP_POLICY_CISPO } tp_policy_objective;
typedef enum tp_policy_kl { TP_POLICY_K1, TP_POLICY_K2, TP_POLICY_K3 } tp_policy_kl;
typedef struct tp_policy_opts {
    int32_t objective;            /* tp_policy_objective */
    int32_t kl;                   /* tp_policy_kl */
    bool sequence;                /* GSPO: importance_sampling_level "sequence" */
    bool bias_correction;         /* the KL term times r of its token (DeepSeek-V3.2) */
    double epsilon, epsilon_high; /* cispo: epsilon_high is the cap itself (5.0 in ScaleRL) */
    double delta;                 /* 0: none (INTELLECT-2's two-sided clipping) */
    double clip_ratio_c;          /* 0: none (dual clip, Ye et al. 2020) */
    double beta, entropy_coef;
} tp_policy_opts;

typedef struct tp_policy_in {
    tp_tensor *logprob; /* (B,T) of the policy in training */
    tp_tensor *old;     /* (B,T) of the policy that wrote; NULL: the same one, so r is exactly 1 */
    tp_tensor *ref;     /* (B,T) of the reference model; NULL: no KL, whatever beta */
    tp_tensor *advantage; /* (B) */
    tp_tensor *weight; /* (B,T): 0 leaves a token out; the aggregation's normaliser is in here, so
                          that nothing depends on how rows are split into passes */
    tp_tensor *mask;   /* (B,T) 1: a token of the completion, 0: not. NULL: where weight is not 0 */
    tp_tensor *entropy; /* (B,T); NULL: no bonus, whatever entropy_coef */
} tp_policy_in;

/* What a row reports: sums over the tokens of the mask, without weights. */
enum {
    TP_POLICY_LOSS,      /* the row's part of the loss, with weights */
    TP_POLICY_SURROGATE, /* of it: sum of w L */
    TP_POLICY_TOKENS,
    TP_POLICY_KL,
    TP_POLICY_ENTROPY,
    TP_POLICY_CLIP_LOW,   /* tokens with A < 0 and r < 1-epsilon */
    TP_POLICY_CLIP_HIGH,  /* tokens with A > 0 and r > 1+epsilon_high (cispo: r > epsilon_high) */
    TP_POLICY_RATIO,      /* sum of r */
    TP_POLICY_DIFFERENCE, /* largest |l - l_old| */
    TP_POLICY_STATS
};
typedef struct tp_policy_out {
    tp_tensor *loss;  /* (): rows in order, then the tree over rows that gradients have */
    tp_tensor *stats; /* (B,TP_POLICY_STATS) no gradient */
} tp_policy_out;
/* Gradients go to logprob and entropy; a masked token's are exactly 0. NULLs after a failure. */
tp_policy_out tp_policy_loss(tp_ctx *c, const tp_policy_in *in, const tp_policy_opts *o);
#ifdef __cplusplus
}
#endif
#endif
