/* config: everything a run can be told, from YAML files and key=value words.
 *
 * One table (config_schema.c) has a row per key: its type, default, allowed values, unit and
 * meaning. Reading, overriding, checking, writing back and the printed help all walk that table, so
 * adding a key is adding a member here and a row there.
 * A tp_config is a plain value without pointers: copy it by assignment; nothing is to be freed. */
#ifndef TP_CONFIG_H
#define TP_CONFIG_H
#include "core/core.h"
#include "data/config_choices.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Meanings, units and ranges: config_schema.c, or tp_config_help. */
typedef struct tp_config {
    int64_t seed, threads;
    tp_device device;
    tp_cfg_dtype dtype;
    tp_cfg_numerics numerics;
    tp_cfg_precision float32_matmul_precision;
    tp_gemm_choice gemm;
    struct {
        char dir[TP_CONFIG_TEXT];
        int64_t steps;
    } run;
    struct {
        char train[TP_CONFIG_TEXT], val[TP_CONFIG_TEXT], tokenizer[TP_CONFIG_TEXT];
        tp_cfg_packing packing;
        tp_cfg_chat chat_template;
        bool prefetch;
    } data;
    struct {
        char init_from[TP_CONFIG_TEXT];
        tp_cfg_family family;
        int64_t layers, heads, kv_heads, channels, head_dim, ffn, context, vocab, sliding_window;
        double rope_theta, norm_eps, logit_softcap, attn_softcap, dropout, init_std;
        bool tie_embeddings, qk_norm, activation_checkpointing;
        tp_cfg_auto attention_bias, mlp_bias;
    } model;
    tp_cfg_rope_scaling rope_scaling;
    struct { /* Mixture-of-Depths */
        double capacity, aux_coef;
        int64_t every, predictor_channels;
        tp_cfg_router router;
        tp_cfg_causal causal;
        tp_cfg_gate gate;
        tp_cfg_segments segments;
    } mod;
    tp_cfg_lora lora;
    struct {
        int64_t batch, micro_batches, warmup_steps, decay_steps, max_bad_steps, loss_chunk_size;
        tp_cfg_optimizer optimizer;
        tp_cfg_state optimizer_state_dtype;
        tp_cfg_schedule lr_scheduler_type;
        double learning_rate, min_lr_ratio, muon_learning_rate, muon_momentum, momentum;
        bool optimizer_in_bwd, cuda_graph;
        double adam_beta1, adam_beta2, adam_epsilon, weight_decay, max_grad_norm, z_loss;
    } train;
    struct {
        tp_cfg_backend backend;
        int64_t zero_stage;
        double bucket_mb, timeout;
    } dist;
    struct { /* reinforcement learning: tapir grpo */
        char task[TP_CONFIG_TEXT], reward_weights[TP_CONFIG_TEXT], reward_program[TP_CONFIG_TEXT];
        int64_t task_min, task_max, prompts_per_step, num_generations, max_completion_length;
        int64_t num_iterations, steps_per_generation, top_k, lanes, max_draws;
        int64_t overlong_buffer, ref_model_sync_steps, eval_prompts, eval_samples, log_completions;
        double temperature, top_p, min_p, repetition_penalty;
        double epsilon, epsilon_high, delta, clip_ratio_c, beta, entropy_coef;
        double top_entropy_quantile, ref_model_mixup_alpha, reward_timeout;
        bool use_bias_correction_kl, mask_truncated_completions, dynamic_sampling, sync_ref_model;
        bool shuffle_rewards, dump, share_prompts;
        tp_cfg_scale scale_rewards;
        tp_cfg_estimator advantage_estimator;
        tp_cfg_loss_type loss_type;
        tp_cfg_objective objective;
        tp_cfg_level importance_sampling_level;
        tp_cfg_kl kl_estimator;
    } rl;
    struct {
        int64_t every, batches;
    } eval;
    struct {
        int64_t every, tokens, top_k, seed;
        char prompt[TP_CONFIG_TEXT];
        double temperature, top_p, min_p, repetition_penalty;
    } sample;
    struct {
        int64_t every, keep;
        bool best;
    } checkpoint;
    struct {
        int64_t every;
        bool tensorboard;
    } log;
    /* Where each value came from, by row of the table: a line of file, 0 the default, -1 the
     * command line. Messages of later checks name it. */
    char file[TP_CONFIG_TEXT];
    int32_t line[TP_CONFIG_KEYS];
} tp_config;

void tp_config_defaults(tp_config *cfg); /* every key at its default */

/* Reads a YAML file over cfg. TP_EIO: it cannot be read; TP_EFORMAT: not YAML, or YAML that configs
 * do not use (sequences, anchors, aliases, tags, several documents); TP_EARG: an unknown or
 * repeated key, a wrong type or an impossible value. The sentence names file, line, key and what is
 * allowed; cfg is unchanged on failure. */
tp_status tp_config_load(tp_ctx *c, tp_config *cfg, const char *path);
/* The same from n bytes of memory; name stands for the file in messages. */
tp_status tp_config_read(tp_ctx *c, tp_config *cfg, const char *name, const char *yaml, size_t n);
/* One word of the command line, "model.layers=12". A later word for the same key wins. */
tp_status tp_config_set(tp_ctx *c, tp_config *cfg, const char *word);

/* Whether train.decay_steps is what resolving takes where the config says nothing. */
bool tp_config_chose_decay(const tp_config *cfg);
/* What no single key can tell: heads divide channels, micro-batches divide the batch, … */
tp_status tp_config_check(tp_ctx *c, const tp_config *cfg);
/* TP_EARG where the text key (e.g. "data.train") is empty: for commands that cannot do without. */
tp_status tp_config_require(tp_ctx *c, const tp_config *cfg, const char *key);
/* tp_config_check, then replaces what a default leaves open by its value: kv_heads, head_dim, ffn,
 * the two biases, decay_steps. model.vocab = 0 stays: only the corpus knows. Idempotent. */
tp_status tp_config_resolve(tp_ctx *c, tp_config *cfg);
/* "config.yaml:12: model.heads" for a caller's own message about a key. */
const char *tp_config_where(char *out, size_t cap, const tp_config *cfg, const char *key);

/* The whole config as YAML: every key under its doc. Reading it back gives the same values, bit for
 * bit. Heap text, to be given to tp_free; NULL on failure. */
char *tp_config_text(tp_ctx *c, const tp_config *cfg);
tp_status tp_config_write(tp_ctx *c, const tp_config *cfg, const char *path);
/* A table of every key: type or choices, range, unit, default, meaning. Heap text; NULL on failure.
 */
char *tp_config_help(tp_ctx *c);
/* Takes over the model's shape (model.*, rope_scaling.* and mod.* but what only training is about:
 * init_from, context, dropout, init_std, activation_checkpointing, aux_coef; and lora.* where
 * `from` has adapters). TP_EARG where a key was given in `to` and says something else. The context
 * and data.chat_template are taken over where `to` gives none. */
tp_status tp_config_adopt_model(tp_ctx *c, tp_config *to, const tp_config *from);
/* True where every key has the same value (where the values came from does not matter). */
bool tp_config_equal(const tp_config *a, const tp_config *b);
/* "train.batch, sample.every" into out: those of `keys` (NULL-terminated; "sample." is all of the
 * group) that were set, and to another value than the default. Returns how many. */
int tp_config_given(char *out, size_t cap, const tp_config *cfg, const char *const keys[]);

#ifdef __cplusplus
}
#endif
#endif
