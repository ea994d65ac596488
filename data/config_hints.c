/* What other trainers call our keys: the names of Hugging Face's configs and Trainer, of TRL,
 * llama.cpp, nanoGPT and torchtitan, for the sentence about an unknown key. */
#include "data/config_schema.h"
#include <stdio.h>
#include <string.h>

typedef struct hint {
    const char *theirs, *ours; /* theirs: the last part of a name, or all of it */
} hint;

static const hint hints[] = {
    {"eval.steps", "eval.every"},
    {"log.steps", "log.every"},
    {"checkpoint.steps", "checkpoint.every"},
    {"sample.steps", "sample.every"},

    {"output_dir", "run.dir"},
    {"out_dir", "run.dir"},
    {"max_steps", "run.steps"},
    {"max_iters", "run.steps"},
    {"num_train_epochs", "run.steps"},
    {"num_epochs", "run.steps"},
    {"epochs", "run.steps"},
    {"bf16", "dtype"},
    {"fp16", "dtype"},
    {"torch_dtype", "dtype"},

    {"train_file", "data.train"},
    {"train_files", "data.train"},
    {"dataset", "data.train"},
    {"dataset_name", "data.train"},
    {"validation_file", "data.val"},
    {"eval_dataset", "data.val"},

    {"model_name_or_path", "model.init_from"},
    {"model_name", "model.init_from"},
    {"max_length", "model.context"},
    {"max_seq_length", "model.context"},
    {"max_seq_len", "model.context"},
    {"seq_len", "model.context"},
    {"block_size", "model.context"},
    {"n_ctx", "model.context"},
    {"n_positions", "model.context"},
    {"max_position_embeddings", "model.context"},
    {"max_prompt_length", "model.context"},
    {"hidden_size", "model.channels"},
    {"n_embd", "model.channels"},
    {"d_model", "model.channels"},
    {"dim", "model.channels"},
    {"num_hidden_layers", "model.layers"},
    {"n_layer", "model.layers"},
    {"n_layers", "model.layers"},
    {"num_attention_heads", "model.heads"},
    {"n_head", "model.heads"},
    {"n_heads", "model.heads"},
    {"num_key_value_heads", "model.kv_heads"},
    {"n_kv_heads", "model.kv_heads"},
    {"intermediate_size", "model.ffn"},
    {"n_inner", "model.ffn"},
    {"vocab_size", "model.vocab"},
    {"rms_norm_eps", "model.norm_eps"},
    {"layer_norm_epsilon", "model.norm_eps"},
    {"tie_word_embeddings", "model.tie_embeddings"},
    {"initializer_range", "model.init_std"},
    {"gradient_checkpointing", "model.activation_checkpointing"},
    {"final_logit_softcapping", "model.logit_softcap"},
    {"attn_logit_softcapping", "model.attn_softcap"},

    {"lora_r", "lora.r"},
    {"lora_rank", "lora.r"},
    {"lora.rank", "lora.r"},
    {"lora.alpha", "lora.lora_alpha"},
    {"lora_target_modules", "lora.target_modules"},

    {"per_device_train_batch_size", "train.batch"},
    {"batch_size", "train.batch"},
    {"gradient_accumulation_steps", "train.micro_batches"},
    {"optim", "train.optimizer"},
    {"lr", "train.learning_rate"},
    {"min_lr", "train.min_lr_ratio"},
    {"beta1", "train.adam_beta1"},
    {"beta2", "train.adam_beta2"},
    {"grad_clip", "train.max_grad_norm"},
    {"clip_grad", "train.max_grad_norm"},
    {"warmup_ratio", "train.warmup_steps"},
    {"warmup_iters", "train.warmup_steps"},
    {"lr_decay_iters", "train.decay_steps"},

    {"reward_funcs", "rl.reward_weights"},

    {"eval_steps", "eval.every"},
    {"eval_interval", "eval.every"},
    {"eval_iters", "eval.batches"},
    {"logging_steps", "log.every"},
    {"log_interval", "log.every"},
    {"save_steps", "checkpoint.every"},
    {"save_total_limit", "checkpoint.keep"},
};

static const char *ours(const char *name) {
    const char *dot = strrchr(name, '.'), *leaf = dot ? dot + 1 : name;
    for (size_t i = 0; i < sizeof hints / sizeof *hints; i++)
        if (!strcmp(hints[i].theirs, name) || !strcmp(hints[i].theirs, leaf)) return hints[i].ours;
    return NULL;
}

const char *tp_config_hint(char out[TP_CONFIG_HINT], const char *name) {
    const char *key = ours(name);
    if (!key) key = tp_config_nearest(name);
    snprintf(out, TP_CONFIG_HINT, key ? "; did you mean %s?" : "; `tapir train --keys` lists them",
             key);
    return out;
}
