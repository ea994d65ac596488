/* Owns what Tapir and Hugging Face's transformers call the same things. */
#include "data/hf_config.h"
#include "data/config_schema.h"
#include "data/jsonl.h"
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Their models, and what a config.json may leave out because it is the class's default. */
typedef struct hf_model {
    const char *type, *class;
    tp_cfg_family family;
    const char *defaults[5][2];
} hf_model;
enum { GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, MODELS };
#define EPS "model.norm_eps"
#define TIED "model.tie_embeddings"
static const hf_model models[MODELS] = {
    [GPT2] = {"gpt2", "GPT2LMHeadModel", TP_CFG_GPT2, {{EPS, "1e-5"}}},
    [LLAMA] = {"llama", "LlamaForCausalLM", TP_CFG_LLAMA, {{EPS, "1e-6"}, {TIED, "false"}}},
    [MISTRAL] = {"mistral",
                 "MistralForCausalLM",
                 TP_CFG_LLAMA,
                 {{EPS, "1e-6"},
                  {TIED, "false"},
                  {"model.kv_heads", "8"},
                  {"model.sliding_window", "4096"}}},
    [QWEN2] = {"qwen2",
               "Qwen2ForCausalLM",
               TP_CFG_LLAMA,
               {{EPS, "1e-6"}, {TIED, "false"}, {"model.attention_bias", "true"}}},
    [QWEN3] =
        {"qwen3",
         "Qwen3ForCausalLM",
         TP_CFG_LLAMA,
         {{EPS, "1e-6"}, {TIED, "false"}, {"model.qk_norm", "true"}, {"model.head_dim", "128"}}},
};

/* A key of theirs, in the order in which they are written: what it is here, or the only value
 * (JSON) with which a model is one of ours. */
typedef struct pair {
    unsigned of; /* models */
    const char *theirs, *ours, *fixed;
    enum { BOTH, NEEDED, READ_ONLY, WRITE_ONLY } use; /* NEEDED: both, and never left out */
} pair;
#define ON(model) (1u << (model))
#define ROTARY (ON(LLAMA) | ON(MISTRAL) | ON(QWEN2) | ON(QWEN3))
#define ALL (ON(GPT2) | ROTARY)
static const pair pairs[] = {
    {ON(GPT2), "n_layer", "model.layers", NULL, NEEDED},
    {ON(GPT2), "n_head", "model.heads", NULL, NEEDED},
    {ON(GPT2), "n_embd", "model.channels", NULL, NEEDED},
    {ON(GPT2), "n_inner", "model.ffn", NULL, BOTH},
    {ON(GPT2), "n_positions", "model.context", NULL, NEEDED},
    {ON(GPT2), "activation_function", NULL, "\"gelu_new\"", BOTH},
    {ON(GPT2), "layer_norm_epsilon", EPS, NULL, BOTH},
    {ON(GPT2), "scale_attn_weights", NULL, "true", READ_ONLY},
    {ON(GPT2), "scale_attn_by_inverse_layer_idx", NULL, "false", READ_ONLY},
    {ON(GPT2), "add_cross_attention", NULL, "false", READ_ONLY},

    {ROTARY, "num_hidden_layers", "model.layers", NULL, NEEDED},
    {ROTARY, "num_attention_heads", "model.heads", NULL, NEEDED},
    {ROTARY, "num_key_value_heads", "model.kv_heads", NULL, BOTH},
    {ROTARY, "head_dim", "model.head_dim", NULL, BOTH},
    {ROTARY, "hidden_size", "model.channels", NULL, NEEDED},
    {ROTARY, "intermediate_size", "model.ffn", NULL, NEEDED},
    {ROTARY, "max_position_embeddings", "model.context", NULL, NEEDED},
    {ROTARY, "rope_theta", "model.rope_theta", NULL, BOTH},
    {ROTARY, "rms_norm_eps", EPS, NULL, BOTH},
    {ROTARY, "hidden_act", NULL, "\"silu\"", BOTH},
    {ROTARY, "partial_rotary_factor", NULL, "1", READ_ONLY},
    {ON(LLAMA) | ON(QWEN3), "attention_bias", "model.attention_bias", NULL, BOTH},
    {ON(LLAMA), "mlp_bias", "model.mlp_bias", NULL, BOTH},
    {ON(MISTRAL), "sliding_window", "model.sliding_window", NULL, BOTH},
    {ON(QWEN2) | ON(QWEN3), "use_sliding_window", NULL, "false", READ_ONLY}, /* in some layers */

    {ALL, "vocab_size", "model.vocab", NULL, NEEDED},
    {ALL, "tie_word_embeddings", TIED, NULL, BOTH},
    {ALL, "quantization_config", NULL, "null", READ_ONLY},
    {ALL, "dtype", NULL, "\"float32\"", WRITE_ONLY},
    {ALL, "bos_token_id", NULL, "null", WRITE_ONLY}, /* as the default is another tokenizer's */
};
enum { PAIRS = sizeof pairs / sizeof *pairs };

/* ---- ours to theirs ------------------------------------------------------------------------- */
static int model_of(const tp_config *cfg) {
    if (cfg->model.family == TP_CFG_GPT2) return GPT2;
    if (cfg->model.qk_norm) return QWEN3;
    if (cfg->model.sliding_window > 0) return MISTRAL;
    const bool biases = cfg->model.attention_bias == TP_CFG_TRUE;
    return biases && cfg->model.mlp_bias != TP_CFG_TRUE ? QWEN2 : LLAMA;
}

const char *tp_hf_class(const tp_config *cfg) { return models[model_of(cfg)].class; }

bool tp_hf_output_bias(const tp_config *cfg) {
    const int m = model_of(cfg);
    return (m == LLAMA || m == QWEN3) && cfg->model.attention_bias == TP_CFG_TRUE;
}

const char *tp_hf_none_computes(const tp_config *cfg) {
    const bool attention = cfg->model.attention_bias == TP_CFG_TRUE,
               mlp = cfg->model.mlp_bias == TP_CFG_TRUE;
    if (cfg->mod.capacity > 0) return "its blocks are routed (mod.capacity)";
    if (cfg->model.logit_softcap > 0) return "it has a model.logit_softcap";
    if (cfg->model.attn_softcap > 0) return "it has a model.attn_softcap";
    if (cfg->model.family == TP_CFG_LLAMA) {
        if (cfg->model.qk_norm && mlp) return "it has both model.qk_norm and model.mlp_bias";
        if (cfg->model.sliding_window > 0 && (cfg->model.qk_norm || attention || mlp))
            return "it has a model.sliding_window, and model.qk_norm or biases beside it";
        return NULL;
    }
    if (cfg->model.sliding_window > 0) return "it is a GPT-2 with a model.sliding_window";
    if (cfg->model.qk_norm) return "it is a GPT-2 with model.qk_norm";
    if (!attention || !mlp) return "it is a GPT-2 without biases";
    if (cfg->model.head_dim * cfg->model.heads != cfg->model.channels)
        return "it is a GPT-2 with a model.head_dim of its own";
    return NULL;
}

static void put_value(tp_str *t, const tp_config *cfg, const char *ours) {
    const int row = tp_config_find(ours, strlen(ours));
    const size_t at = t->len;
    if (!strcmp(ours, "model.sliding_window") && !cfg->model.sliding_window) {
        tp_str_puts(t, "null");
        return;
    }
    tp_config_value(t, cfg, row);
    /* they want a real number to be no integer: 10000 would be one */
    if (tp_config_keys[row].type == TP_KEY_F64 && !t->failed && !strpbrk(t->at + at, ".e"))
        tp_str_puts(t, ".0");
}

/* ---- positions ------------------------------------------------------------------------------ */
/* Keys of rope_scaling that a type has, the first of these. */
static const char *const rope_keys[] = {"rope_type", "factor", "low_freq_factor",
                                        "high_freq_factor", "original_max_position_embeddings"};
static int rope_keys_of(tp_cfg_rope type) {
    return type == TP_CFG_ROPE_LLAMA3 ? 5 : type == TP_CFG_ROPE_LINEAR ? 2 : 1;
}

static const char *rope_name(char out[96], const char *key) {
    snprintf(out, 96, "rope_scaling.%s", key);
    return out;
}

static void put_rope(tp_str *t, const tp_config *cfg) {
    char name[96];
    const int n = rope_keys_of(cfg->rope_scaling.rope_type);
    if (n == 1) return;
    tp_str_puts(t, ",\n  \"rope_scaling\": {");
    for (int i = 0; i < n; i++) {
        tp_str_printf(t, "%s\"%s\": %s", i ? ", " : "", rope_keys[i], i ? "" : "\"");
        put_value(t, cfg, rope_name(name, rope_keys[i]));
        if (!i) tp_str_puts(t, "\"");
    }
    tp_str_puts(t, "}");
}

void tp_hf_config_write(tp_str *t, const tp_config *cfg, int32_t eos) {
    const int m = model_of(cfg);
    tp_str_printf(t, "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\"", models[m].class,
                  models[m].type);
    for (const pair *p = pairs; p < pairs + PAIRS; p++) {
        if (!(p->of & ON(m)) || p->use == READ_ONLY) continue;
        tp_str_printf(t, ",\n  \"%s\": ", p->theirs);
        if (p->fixed)
            tp_str_puts(t, p->fixed);
        else
            put_value(t, cfg, p->ours);
    }
    put_rope(t, cfg);
    if (eos < 0)
        tp_str_puts(t, ",\n  \"eos_token_id\": null\n}\n");
    else
        tp_str_printf(t, ",\n  \"eos_token_id\": %d\n}\n", (int)eos);
}

/* ---- theirs to ours ------------------------------------------------------------------------- */
typedef struct reader {
    tp_ctx *c;
    tp_config *cfg;
    const char *name;
    const cJSON *root;
    int64_t context; /* that the caller wants; 0: the model's */
} reader;

static const cJSON *member(const cJSON *object, const char *key) {
    return cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, key) : NULL;
}

static tp_status set(const reader *r, const char *ours, const char *text, const char *theirs) {
    char why[256];
    const int row = tp_config_find(ours, strlen(ours));
    TP_CHECK(r->c, row >= 0);
    const char *wrong = tp_config_put(r->cfg, row, text, strlen(text), why, sizeof why);
    return wrong ? tp_fail(r->c, TP_EARG, "%s: \"%s\" must %s", r->name, theirs, wrong) : TP_OK;
}

/* A value of theirs for a key of ours, as text. None (null) leaves a number open. */
static tp_status take(const reader *r, const cJSON *v, const char *ours) {
    char text[TP_F64_TEXT];
    if (cJSON_IsString(v)) return set(r, ours, v->valuestring, v->string);
    if (cJSON_IsBool(v)) return set(r, ours, cJSON_IsTrue(v) ? "true" : "false", v->string);
    if (cJSON_IsNull(v)) return set(r, ours, "0", v->string);
    if (!cJSON_IsNumber(v) || !isfinite(v->valuedouble))
        return tp_fail(r->c, TP_EARG, "%s: \"%s\" must be a single value", r->name, v->string);
    if (v->valuedouble == floor(v->valuedouble) && fabs(v->valuedouble) < 0x1p53)
        snprintf(text, sizeof text, "%lld", (long long)v->valuedouble);
    else
        tp_f64_print(text, v->valuedouble);
    return set(r, ours, text, v->string);
}

static tp_status refuse(const reader *r, const cJSON *v, const char *wanted) {
    char shown[64];
    char *text = cJSON_PrintUnformatted(v);
    tp_status st =
        tp_fail(r->c, TP_EARG, "%s: \"%s\" is %s, and Tapir computes %s only", r->name, v->string,
                text ? tp_quote(shown, sizeof shown, text, strlen(text)) : "?", wanted);
    cJSON_free(text);
    return st;
}

static tp_status must_be(const reader *r, const cJSON *v, const char *fixed) {
    char *text = cJSON_PrintUnformatted(v);
    if (!text) return tp_fail(r->c, TP_ENOMEM, "%s: out of memory", r->name);
    const bool same = !strcmp(text, fixed);
    cJSON_free(text);
    return same ? TP_OK : refuse(r, v, fixed);
}

static tp_status read_pair(const reader *r, const pair *p) {
    const cJSON *v = member(r->root, p->theirs);
    if (!v && p->use == NEEDED)
        return tp_fail(r->c, TP_EFORMAT, "%s: it has no \"%s\"", r->name, p->theirs);
    if (!v) return TP_OK;
    return p->fixed ? must_be(r, v, p->fixed) : take(r, v, p->ours);
}

/* rope_scaling, or rope_parameters of transformers 5, which has rope_theta, too. */
static tp_status read_rope(const reader *r, const char *key) {
    const cJSON *group = member(r->root, key), *v;
    tp_status st = TP_OK;
    if (!group || cJSON_IsNull(group)) return TP_OK;
    if (!cJSON_IsObject(group))
        return tp_fail(r->c, TP_EFORMAT, "%s: \"%s\" must be an object", r->name, key);
    cJSON_ArrayForEach(v, group) {
        char ours[96];
        rope_name(ours, !strcmp(v->string, "type") ? "rope_type" : v->string);
        if (!strcmp(v->string, "rope_theta")) snprintf(ours, sizeof ours, "model.rope_theta");
        if (!strcmp(v->string, "partial_rotary_factor"))
            st = must_be(r, v, "1");
        else if (tp_config_find(ours, strlen(ours)) < 0)
            st = refuse(r, group, "the types default, linear and llama3");
        else
            st = take(r, v, ours);
        if (st) return st;
    }
    /* what the type does not look at stays as it is by default */
    for (int i = rope_keys_of(r->cfg->rope_scaling.rope_type); i < 5; i++) {
        char ours[96];
        rope_name(ours, rope_keys[i]);
        const char *initial = tp_config_keys[tp_config_find(ours, strlen(ours))].initial;
        if ((st = set(r, ours, initial, rope_keys[i]))) return st;
    }
    return TP_OK;
}

/* What llama3's context first trained with is, where it is not said beside the type. */
static tp_status read_original(const reader *r) {
    static const char key[] = "original_max_position_embeddings";
    const cJSON *v = member(r->root, key); /* counts before the group's own, as for them */
    if (r->cfg->rope_scaling.rope_type != TP_CFG_ROPE_LLAMA3) return TP_OK;
    if (v && !cJSON_IsNull(v)) return take(r, v, "rope_scaling.original_max_position_embeddings");
    if (!member(member(r->root, "rope_scaling"), key) &&
        !member(member(r->root, "rope_parameters"), key))
        r->cfg->rope_scaling.original_max_position_embeddings = r->cfg->model.context;
    return TP_OK;
}

static tp_status read_layers(const reader *r) {
    const cJSON *v, *types = member(r->root, "layer_types");
    cJSON_ArrayForEach(v, types) {
        if (!cJSON_IsString(v) || strcmp(v->valuestring, "full_attention"))
            return refuse(r, types, "full_attention");
    }
    return TP_OK;
}

static tp_status read_model(const reader *r, int m) {
    tp_status st = TP_OK;
    r->cfg->model.family = models[m].family;
    for (int i = 0; i < 5 && models[m].defaults[i][0] && !st; i++)
        st = set(r, models[m].defaults[i][0], models[m].defaults[i][1], "default");
    for (const pair *p = pairs; p < pairs + PAIRS && !st; p++)
        if (p->of & ON(m) && p->use != WRITE_ONLY) st = read_pair(r, p);
    if (m == GPT2) return st;
    if (!st) st = read_rope(r, "rope_scaling");
    if (!st) st = read_rope(r, "rope_parameters");
    if (!st) st = read_original(r);
    return st ? st : read_layers(r);
}

/* Learned positions are parameters, so a GPT-2 keeps them all. */
static tp_status choose_context(const reader *r) {
    int64_t *own = &r->cfg->model.context;
    const bool learned = r->cfg->model.family == TP_CFG_GPT2;
    if (!r->context) return TP_OK;
    if (r->context > *own || (learned && r->context < *own))
        return tp_fail(r->c, TP_EARG, "%s: a context of %lld: the model has %s%lld positions",
                       r->name, (long long)r->context, learned ? "learned its " : "",
                       (long long)*own);
    *own = r->context;
    return TP_OK;
}

static tp_status read_config(reader *r) {
    char shown[64];
    const cJSON *type = member(r->root, "model_type");
    if (!cJSON_IsString(type))
        return tp_fail(r->c, TP_EFORMAT, "%s: it has no \"model_type\"", r->name);
    for (int m = 0; m < MODELS; m++) {
        if (strcmp(models[m].type, type->valuestring)) continue;
        tp_status st = read_model(r, m);
        if (!st) st = choose_context(r);
        if (st) return st;
        tp_scope scope = tp_scope_open(r->c, "%s", r->name);
        st = tp_config_resolve(r->c, r->cfg);
        if (!st && r->cfg->model.vocab < 1) st = tp_fail(r->c, TP_EARG, "vocab_size is 0");
        tp_scope_close(r->c, scope, NULL);
        return st;
    }
    return tp_fail(r->c, TP_EARG,
                   "%s: model_type \"%s\" is none that Tapir has (gpt2, llama, mistral, qwen2, "
                   "qwen3)",
                   r->name,
                   tp_quote(shown, sizeof shown, type->valuestring, strlen(type->valuestring)));
}

tp_status tp_hf_config_read(tp_ctx *c, tp_config *cfg, int64_t context, const char *json, size_t n,
                            const char *name) {
    const char *why;
    cJSON *root = tp_jsonl_object(json, n, false, &why);
    if (!root) return tp_fail(c, TP_EFORMAT, "%s: %s", name, why);
    reader r = {c, cfg, name, root, context};
    tp_status st = read_config(&r);
    cJSON_Delete(root);
    return st;
}
