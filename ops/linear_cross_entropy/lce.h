/* What the files of this folder share: the attributes, the sizes of a call and how it is cut into
 * chunks. Cuts follow from sizes alone, and no cut changes a bit (see lce_row.h and lce_tree.h). */
#ifndef TP_LCE_INSIDE_H
#define TP_LCE_INSIDE_H
#include "ops/linear_cross_entropy/lce_math.h"
#include "ops/linear_cross_entropy/linear_cross_entropy.h"
#include "ops/reduce.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct lce_attr {
    tp_lce_opts o;
    bool no_dx,
        no_dw; /* backward, and dw of train: nobody reads this gradient; it comes out empty */
} lce_attr;
extern const tp_attr lce_attrs[];

typedef struct lce_dims {
    int64_t n, c, v;    /* tokens, channels, vocabulary */
    int64_t samples, t; /* n = samples*t: dimension 0 of three or more counts samples */
    int64_t w_vs, w_cs; /* strides of w along V and C, as a dense tensor */
    int64_t ignore;
    double softcap, z_loss, temperature;
    bool trans_w;
} lce_dims;

enum {
    LCE_X,
    LCE_W,
    LCE_TARGETS, /* inputs of every row of this folder */
    LCE_BACK_LSE,
    LCE_BACK_A,
    LCE_BACK_B,
    LCE_BACK_D, /* linear_cross_entropy_backward */
    LCE_TRAIN_COEF = 3,
};
enum { LCE_LOSS, LCE_LOGPROB, LCE_ENTROPY, LCE_LSE };                       /* outputs */
enum { LCE_SUM, LCE_SUM_LOGPROB, LCE_SUM_ENTROPY, LCE_SUM_DX, LCE_SUM_DW }; /* train's */
enum { LCE_MAX_CHUNK = 65536 };

/* The type of loss, logprob, entropy and lse: bf16 would keep 8 bits of a log-probability. */
/* Sizes of a call whose first three inputs are x, w, targets. */
lce_dims lce_dims_of(const tp_call *k);
/* Refuses x, w, targets and attributes that do not fit together. */
tp_status lce_infer_common(tp_call *k);
/* Fails the call if a target is neither in the vocabulary nor ignored. */
tp_status lce_check_targets(const tp_call *k);
/* ---- for the oracles: one row in double, plainly -------------------------------------------- */
typedef struct lce_exact {
    double lse, entropy, target; /* target: its logit; 0 if there is none */
} lce_exact;
/* s[0..v-1] = the scaled logits of token i. */
void lce_exact_logits(const tp_call *k, const lce_dims *d, int64_t i, double *s);
lce_exact lce_exact_stats(const lce_dims *d, const double *s, int64_t target);
/* Adds token i's part to dx (or NULL) and dw (or NULL), given its logits, which it overwrites. */
void lce_exact_backward(const tp_call *k, const lce_dims *d, int64_t i, double *s, double lse,
                        lce_coef q, double *dx, double *dw);
#ifdef __cplusplus
}
#endif
#endif
