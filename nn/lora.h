/* lora: low-rank adapters (Hu et al. 2021, arXiv 2106.09685). The weights of a model stay as they
 * are; beside a matrix W of a block two small ones are learnt, A (r,in) and B (out,r):
 *
 *   y = x W^T + bias + s (x A^T) B^T                                                             */
#ifndef TP_LORA_H
#define TP_LORA_H
#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

struct tp_model;
struct tp_model_cfg;

typedef struct tp_lora_cfg {
    int64_t r;        /* rank; 0: there are no adapters, and every parameter is trained */
    double alpha;     /* s = alpha/r */
    bool rslora;      /* s = alpha/sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732) */
    unsigned targets; /* which matrices, as tp_lora_targets says; 0: all of a block */
} tp_lora_cfg;

/* Sets cfg->lora.targets from "all-linear", or names with commas between them: the end of a
 * matrix's path in a block, from a dot on. So q_proj is one matrix, c_proj two of a GPT-2's, and
 * mlp.c_proj one of these. TP_EARG, with the right names, where no matrix has such an end. */
tp_status tp_lora_targets(tp_ctx *c, struct tp_model_cfg *cfg, const char *names);
double tp_lora_scale(const tp_lora_cfg *f); /* s */

/* Another model over the same frozen weights, in the same ctx, which must outlive it; what is
 * trained is its own, and begins as a copy. */
tp_status tp_lora_beside(struct tp_model **out, tp_ctx *c, const struct tp_model *of);

typedef struct tp_lora_merge_opts {
    int64_t in, out, r;
    bool out_first; /* w is (out,in), not (in,out) */
    double scale;
} tp_lora_merge_opts;
/* w += s B A on the host: products and sums in double, each entry rounded once. */
void tp_lora_merge(tp_ctx *c, float *w, const float *a, const float *b,
                   const tp_lora_merge_opts *o);

#ifdef __cplusplus
}
#endif
#endif
