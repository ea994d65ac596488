/* Decoding by the engine against training forwards of whole sequences, to the last bit: the same
 * prompts in several ways to batch them. */
#ifndef DECODING_H
#define DECODING_H
#include "infer/engine.h"
#include "infer/pages.h"

enum { CONTEXT = 130, V = 83, PROMPTS = 5, SAMPLES = 4, NEW = 45, ROW = CONTEXT + 1 };

typedef struct family {
    const char *name;
    tp_model_cfg cfg;             /* of context CONTEXT and vocabulary V */
    void (*prepare)(tp_model *m); /* changes what it began with; may be NULL */
} family;

/* A model that has everything of GPT-2 and takes milliseconds. */
#define SMALL_GPT2                                                                                 \
    {                                                                                              \
        "gpt2", {                                                                                  \
            .family = TP_FAMILY_GPT2, .layers = 2, .heads = 2, .kv_heads = 2, .channels = 24,      \
            .head_dim = 12, .ffn = 50, .context = CONTEXT, .vocab = V, .norm_eps = 1e-5,           \
            .init_std = 0.3, .tie_embeddings = true, .attention_bias = true, .mlp_bias = true      \
        }                                                                                          \
    }

typedef struct net {
    tp_ctx *c;
    tp_model *m;
} net;
net net_new(const family *f, int threads);
void net_free(net *n);
/* Prompt p has prompt_lengths[p] ids. */
extern const int64_t prompt_lengths[PROMPTS];
void make_prompts(int32_t ids[PROMPTS][CONTEXT]);
tp_tensor *ints(tp_ctx *c, int ndim, const int64_t *shape, const int32_t *from);

/* Every sample of every prompt, in six ways and in forwards of two widths: same ids, log-probs,
 * entropies, sets; prints what was compared. */
void parity(const family *f, const tp_sampling *how);

/* ---- a cache without an engine -------------------------------------------------------------- */
tp_sequence sequence(const int32_t *ids, int64_t n);
/* The next n tokens of s; hidden: what comes after the last of them. */
void feed(tp_cache *k, tp_sequence *s, int64_t n, float *hidden);
/* hidden (n,C): a forward pass over all of them. */
void whole_sequence(const family *f, const int32_t *ids, int64_t n, float *hidden);
/* Whether st is a failure whose sentence has this text in it; the context is cleared. */
bool fails(tp_status st, net *n, const char *text);
#endif
