/* nn: the two model families, GPT-2 and Llama/Qwen, on one parameter table with the names that
 * Hugging Face's checkpoints use, so that weights can travel. */
#ifndef TP_NN_H
#define TP_NN_H
#include "nn/lora.h"
#include "nn/param.h"
#include "ops/rope/rope.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef enum tp_family { TP_FAMILY_GPT2, TP_FAMILY_LLAMA } tp_family;

/* Mixture-of-Depths: every `every`-th block is routed, it works on a part of the tokens only, and
 * the others pass it by (Raposo et al. 2024, arXiv 2404.02258). docs/architecture.md has it all. */
typedef enum tp_mod_router { TP_MOD_LINEAR, TP_MOD_RANDOM, TP_MOD_ALL } tp_mod_router;
typedef enum tp_mod_causal { TP_MOD_PREDICTOR, TP_MOD_AUX_LOSS, TP_MOD_THRESHOLD } tp_mod_causal;
typedef enum tp_mod_gate { TP_MOD_GATE_SIGMOID, TP_MOD_GATE_LINEAR } tp_mod_gate;
typedef struct tp_mod_cfg {
    double capacity; /* part of a row's tokens that a routed block takes; 0: every block is dense */
    int64_t every;
    tp_mod_router router;
    tp_mod_causal causal;
    tp_mod_gate gate;
    int64_t predictor_channels; /* 0: channels / 8 */
    bool by_document;           /* each document of a row has its share of the capacity */
} tp_mod_cfg;
typedef struct tp_model_cfg {
    tp_family family;
    int64_t layers, heads, kv_heads, channels, head_dim, ffn, context, vocab;
    int64_t sliding_window; /* 0: none */
    double rope_theta, norm_eps;
    tp_rope_scaling rope_scaling;
    double logit_softcap, attn_softcap; /* 0: none (Gemma 2) */
    double dropout;                     /* on the embedding and on both branches of a block */
    double init_std;
    bool tie_embeddings;           /* the head is the token embedding */
    bool qk_norm;                  /* RMSNorm on queries and keys, per head (Qwen 3) */
    bool attention_bias, mlp_bias; /* Llama style: biases of q, k, v (Qwen 2) and of the MLP */
    bool activation_checkpointing; /* recompute each block in the backward pass */
    tp_mod_cfg mod;
    tp_lora_cfg lora;
    tp_dtype dtype;    /* of the weights: TP_F32, or TP_F64: every op runs as its oracle (slow) */
    tp_dtype compute;  /* TP_BF16: products and activations, from f32 weights (CUDA); 0: as these */
    bool to_be_loaded; /* a parameter has no values yet, but LoRA's, which a file may lack */
} tp_model_cfg;

typedef struct tp_model tp_model;
/* Allocates every parameter (kept tensors, f32) and initialises it from the ctx's seed:
 * matrices and embeddings N(0, init_std), the two matrices that write into the residual stream
 * N(0, init_std / sqrt(2 layers)) (Radford et al. 2019), biases 0, norm weights 1. A value depends
 * on (seed, name, index) only, so it does not change when another parameter is added. */
tp_status tp_model_new(tp_model **out, tp_ctx *c, const tp_model_cfg *cfg);
void tp_model_free(tp_model *m);
/* The same model for another ctx, that is, another thread: it reads the weights of `of`, which must
 * outlive it. Gradients go where the tape of c has its sink (tp_tape_sink). */
tp_status tp_model_share(tp_model **out, tp_ctx *c, const tp_model *of);
const tp_model_cfg *tp_model_config(const tp_model *m);
tp_params *tp_model_params(tp_model *m);
/* Those that are trained: all of them, or LoRA's adapters and what routes tokens. */
tp_params *tp_model_trainable(tp_model *m);
const tp_param *tp_model_param(const tp_model *m, const char *name); /* NULL if there is none */
int64_t tp_model_numel(const tp_model *m);      /* parameters, tied ones once */
int64_t tp_mod_blocks(const tp_model_cfg *cfg); /* how many blocks are routed */
bool tp_mod_routed(const tp_model_cfg *cfg, int64_t layer);
int64_t tp_mod_tokens(const tp_model_cfg *cfg, int64_t T); /* of T, how many such a block takes */

/* Attention in place of the ordinary one, for decoding over a cache: q (B,T,H,D), k and v
 * (B,T,Hkv,D) of these tokens -> (B,T,H,D). The window and soft cap are the model's. */
typedef struct tp_attend_opts {
    int layer;
    int64_t window;
    double softcap;
} tp_attend_opts;
typedef tp_tensor *(*tp_attend_fn)(void *arg, tp_ctx *c, tp_tensor *q, tp_tensor *k, tp_tensor *v,
                                   const tp_attend_opts *o);

/* The tokens that a routed block takes. Their bits do not depend on how many places of -1 follow,
 * or on how they are divided among lists, if attend knows it. P or K 0: it takes none. */
typedef struct tp_chosen {
    tp_tensor *rows;      /* i32 (P,K): b*T+t of each, ascending; -1: none, behind the real ones */
    tp_tensor *positions; /* i32 (P,K) */
    tp_tensor *segments;  /* i32 (P,K), or NULL: each of the P lists is one document */
} tp_chosen;
/* decision (B,T) f32: above 0, this token is taken. rows NULL: it failed. */
typedef tp_chosen (*tp_choose_fn)(void *arg, tp_ctx *c, int layer, tp_tensor *decision);
/* TOP_K looks at a whole row, tokens to come included: for training. CAUSAL decides for each token
 * from that token alone: for evaluation, decoding and the log-probs of what was decoded. */
typedef enum tp_mod_mode { TP_MOD_TOP_K, TP_MOD_CAUSAL } tp_mod_mode;
/* What a routed block saw of each token and which it took, for those who look on. */
typedef struct tp_mod_view {
    tp_tensor *logit; /* (B,T): the router's */
    tp_tensor *rows;  /* i32 (P,K): as in tp_chosen */
} tp_mod_view;
typedef void (*tp_mod_watch_fn)(void *arg, tp_ctx *c, int layer, const tp_mod_view *v);

typedef struct tp_model_in {
    tp_tensor *ids;       /* (B,T) i32 */
    tp_tensor *positions; /* (B,T) i32, NULL: 0..T-1 in every row */
    tp_tensor *segments; /* (B,T) i32, NULL: one document a row; attention stays inside a segment */
    bool training;       /* dropout is on */
    tp_attend_fn attend; /* NULL: causal attention among the tokens given */
    void *attend_arg;
    tp_mod_mode mode;    /* of routed blocks; attend is called for the tokens that they take */
    tp_choose_fn choose; /* with CAUSAL; NULL: lists as long as the longest, which decisions fill */
    void *choose_arg;
    tp_mod_watch_fn watch; /* called by each routed block once it has chosen; NULL: nobody looks */
    void *watch_arg;
} tp_model_in;
/* (B,T) ids -> (B,T,C), after the last norm: what the head reads. */
tp_tensor *tp_model_hidden(tp_ctx *c, tp_model *m, const tp_model_in *in);
/* hidden (…,C) -> logits (…,V), softcap applied. For a few rows only: training never makes them. */
tp_tensor *tp_model_logits(tp_ctx *c, tp_model *m, tp_tensor *hidden);
/* The same before the soft cap: what tp_token_logprob takes. */
tp_tensor *tp_model_head(tp_ctx *c, tp_model *m, tp_tensor *hidden);

typedef struct tp_model_loss_opts {
    double z_loss;
    double scale;     /* each token's loss counts this much: 1 / tokens of the whole batch */
    bool gradient;    /* the loss will be differentiated */
    int64_t chunk;    /* tokens whose logits exist at once; 0: chosen by size; same bits */
    double aux_scale; /* with TOP_K: each token's auxiliary loss of each routed block counts this
                         much: coefficient / tokens of the whole batch. 0: none is computed */
} tp_model_loss_opts;
typedef struct tp_model_out {
    tp_tensor *loss;    /* () = scale * sum of the tokens' losses */
    tp_tensor *logprob; /* (B,T) log p(target), 0 where the target is ignored */
    tp_tensor *entropy; /* (B,T) */
    tp_tensor *aux;     /* () the auxiliary losses, for tp_backward_from beside loss; NULL: none */
    tp_tensor
        *route; /* (B,TP_ROUTE_STATS): tp_route_report, summed over routed blocks; NULL: none */
} tp_model_out;
/* targets (B,T) i32, -100 = ignored. All members are NULL after a failure. */
tp_model_out tp_model_loss(tp_ctx *c, tp_model *m, const tp_model_in *in, tp_tensor *targets,
                           const tp_model_loss_opts *o);

typedef struct tp_model_logprob_opts {
    double temperature; /* logits are divided by it; 0 means 1 */
    tp_tensor *set;     /* i32 (B,T,ceil(V/32)): the tokens that a sampler chose from, as in
                           ops/token_logprob; NULL: all. With sets the logits exist whole. */
} tp_model_logprob_opts;
/* log p(target) and entropy of every token, differentiable; 0 where the target is -100. Bits are
 * those of decoding over a cache (infer/engine.h), for any batch and chunking. loss stays NULL. */
tp_model_out tp_model_logprob(tp_ctx *c, tp_model *m, const tp_model_in *in, tp_tensor *targets,
                              const tp_model_logprob_opts *o);

#ifdef __cplusplus
}
#endif
#endif
