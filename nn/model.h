/* The inside of a model, shared by the files of nn/. */
#ifndef TP_MODEL_H
#define TP_MODEL_H
#include "autograd/autograd.h"
#include "core/ctx.h"
#include "nn/nn.h"
#include "ops/op.h"

/* A matrix with what goes with it: a bias, LoRA's A (r,in) and B (out,r). */
typedef struct tp_linear {
    tp_tensor *w, *bias, *a, *b;
} tp_linear;
/* One block's parameters and nothing else: tp_model_share walks over them. Unused ones are NULL. */
typedef struct tp_block {
    tp_tensor *norm1, *norm1_bias, *norm2, *norm2_bias;
    tp_linear qkv;     /* GPT-2: one fused matrix (C,3C) */
    tp_linear q, k, v; /* Llama: (out,in) each */
    tp_tensor *q_norm, *k_norm;
    tp_linear proj, fc, gate, up, down;
    tp_tensor *router;                              /* routed blocks: (C) */
    tp_tensor *look, *look_bias;                    /* a predictor: (h,C), (h), */
    tp_tensor *decide, *decide_logit, *decide_bias; /* and (h), (1), (1) */
    tp_tensor *threshold;                           /* or (1) */
} tp_block;

struct tp_model {
    tp_model_cfg cfg;
    tp_params params;
    tp_params trained; /* with LoRA: those of params that have a gradient */
    tp_block *block;
    tp_tensor *wte, *wpe, *final_norm, *final_norm_bias, *head;
};

/* A parameter of the table. kind: how it begins. */
typedef enum tp_init {
    TP_INIT_NORMAL,
    TP_INIT_RESIDUAL,
    TP_INIT_ZERO,
    TP_INIT_ONE,
    TP_INIT_LORA /* N(0, 1/sqrt(3 in)): see params.c */
} tp_init;
typedef struct tp_param_spec {
    int ndim;
    int64_t shape[2];
    tp_init init;
    unsigned flags;
    int blocks;
    bool out_first;
} tp_param_spec;
tp_tensor *tp_model_add(tp_ctx *c, tp_model *m, const tp_param_spec *s, const char *fmt, ...)
    TP_PRINTF(4, 5);
tp_status tp_gpt2_params(tp_ctx *c, tp_model *m);
tp_status tp_llama_params(tp_ctx *c, tp_model *m);
tp_status tp_mod_params(tp_ctx *c, tp_model *m, int layer, const char *prefix);
tp_status tp_lora_params(tp_ctx *c, tp_model *m, int layer); /* after its matrices */

/* A parameter as the forward pass reads it: cast to cfg.compute, by a node of the tape, so that its
 * gradient arrives in f32. NULL stays NULL. */
tp_tensor *tp_weight(tp_ctx *c, const tp_model *m, tp_tensor *w);

/* What a block reads and what it leaves: the residual stream and the branch still to be added to
 * it, so that the addition and the next norm are one op. */
typedef struct tp_stream {
    tp_tensor *sum, *branch; /* (B,T,C); branch may be NULL */
} tp_stream;
typedef struct tp_stage { /* one block, one input: what checkpointing replays */
    tp_model *m;
    int layer;
    bool training, positions, segments;
} tp_stage;
tp_stream tp_block_forward(tp_ctx *c, tp_model *m, int layer, tp_stream x, const tp_model_in *in);
/* What the block would add to x (B,T,C), attention and MLP together. */
tp_tensor *tp_block_branches(tp_ctx *c, tp_model *m, int layer, tp_tensor *x,
                             const tp_model_in *in);
/* fn(x) of a block, computed again on the way back; its in[] is x, then positions and segments
 * where `in` has them, and tp_stage_in gives the tp_model_in that it is to use. */
tp_tensor *tp_block_again(tp_ctx *c, tp_model *m, int layer, tp_fn fn, tp_tensor *x,
                          const tp_model_in *in);
tp_model_in tp_stage_in(const tp_stage *s, tp_tensor *const in[]);

/* What routed blocks say beside their result, summed over them. */
typedef struct tp_mod_sums {
    double aux_scale;
    tp_tensor *aux, *route; /* as in tp_model_out */
} tp_mod_sums;
tp_stream tp_mod_forward(tp_ctx *c, tp_model *m, int layer, tp_stream x, const tp_model_in *in,
                         tp_mod_sums *sums);
/* sum += branch, then the family's norm of it; sum is updated in *x. */
tp_tensor *tp_stream_norm(tp_ctx *c, const tp_model *m, tp_stream *x, tp_tensor *weight,
                          tp_tensor *bias);
#endif
