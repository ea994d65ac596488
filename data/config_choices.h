/* config_choices: the values of the keys that choose by name, in the order of their names in
 * config_schema.c; and the groups of keys that are Hugging Face's, of rope_scaling and peft. */
#ifndef TP_CONFIG_CHOICES_H
#define TP_CONFIG_CHOICES_H
#include <stdbool.h>
#include <stdint.h>

enum { TP_CONFIG_TEXT = 1024, TP_CONFIG_KEYS = 160 }; /* bytes of a text with its NUL; most keys */

typedef enum tp_cfg_auto { TP_CFG_AUTO, TP_CFG_FALSE, TP_CFG_TRUE } tp_cfg_auto;
typedef enum tp_cfg_dtype { TP_CFG_F32, TP_CFG_BF16 } tp_cfg_dtype;
typedef enum tp_cfg_numerics { TP_CFG_EXACT, TP_CFG_FAST } tp_cfg_numerics;
typedef enum tp_cfg_precision { TP_CFG_HIGHEST, TP_CFG_MEDIUM } tp_cfg_precision;
typedef enum tp_cfg_backend {
    TP_CFG_BACKEND_AUTO,
    TP_CFG_BACKEND_SELF,
    TP_CFG_BACKEND_MPI,
    TP_CFG_BACKEND_NCCL
} tp_cfg_backend;
typedef enum tp_cfg_packing { TP_CFG_STREAM, TP_CFG_DOCUMENTS } tp_cfg_packing;
typedef enum tp_cfg_chat { TP_CFG_PLAIN, TP_CFG_CHATML, TP_CFG_ALPACA, TP_CFG_LLAMA3 } tp_cfg_chat;
typedef enum tp_cfg_family { TP_CFG_GPT2, TP_CFG_LLAMA } tp_cfg_family;
typedef enum tp_cfg_rope {
    TP_CFG_ROPE_DEFAULT,
    TP_CFG_ROPE_LINEAR,
    TP_CFG_ROPE_LLAMA3
} tp_cfg_rope;
typedef struct tp_cfg_rope_scaling {
    tp_cfg_rope rope_type;
    double factor, low_freq_factor, high_freq_factor;
    int64_t original_max_position_embeddings;
} tp_cfg_rope_scaling;
typedef enum tp_cfg_optimizer { TP_CFG_ADAMW, TP_CFG_MUON, TP_CFG_SGD } tp_cfg_optimizer;
typedef enum tp_cfg_state { TP_CFG_STATE_F32, TP_CFG_STATE_BF16 } tp_cfg_state;
typedef enum tp_cfg_schedule {
    TP_CFG_COSINE,
    TP_CFG_LINEAR,
    TP_CFG_WSD,
    TP_CFG_CONSTANT
} tp_cfg_schedule;

typedef enum tp_cfg_router {
    TP_CFG_ROUTER_LINEAR,
    TP_CFG_ROUTER_RANDOM,
    TP_CFG_ROUTER_ALL
} tp_cfg_router;
typedef enum tp_cfg_causal { TP_CFG_PREDICTOR, TP_CFG_AUX_LOSS, TP_CFG_THRESHOLD } tp_cfg_causal;
typedef enum tp_cfg_gate { TP_CFG_GATE_SIGMOID, TP_CFG_GATE_LINEAR } tp_cfg_gate;
typedef enum tp_cfg_segments { TP_CFG_SEGMENTS_ROW, TP_CFG_SEGMENTS_DOCUMENT } tp_cfg_segments;

typedef struct tp_cfg_lora { /* low-rank adapters; the names are peft's */
    int64_t r;
    double lora_alpha;
    char target_modules[TP_CONFIG_TEXT];
    bool use_rslora;
} tp_cfg_lora;

typedef enum tp_cfg_scale {
    TP_CFG_SCALE_GROUP,
    TP_CFG_SCALE_BATCH,
    TP_CFG_SCALE_NONE
} tp_cfg_scale;
typedef enum tp_cfg_estimator { TP_CFG_GRPO, TP_CFG_RLOO } tp_cfg_estimator;
typedef enum tp_cfg_loss_type {
    TP_CFG_LOSS_GRPO,
    TP_CFG_LOSS_BNPO,
    TP_CFG_LOSS_DAPO,
    TP_CFG_LOSS_DR_GRPO
} tp_cfg_loss_type;
typedef enum tp_cfg_objective { TP_CFG_CLIP, TP_CFG_CISPO } tp_cfg_objective;
typedef enum tp_cfg_level { TP_CFG_TOKEN, TP_CFG_SEQUENCE } tp_cfg_level;
typedef enum tp_cfg_kl { TP_CFG_K1, TP_CFG_K2, TP_CFG_K3 } tp_cfg_kl;
#endif
