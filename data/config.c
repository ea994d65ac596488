/* config: defaults, overrides, checks across keys, derived values, help. */
#include "data/config.h"
#include "data/config_schema.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS = 256, WHERE = TP_CONFIG_TEXT + 64 };
static const int64_t TOKENS_MOST = (int64_t)1 << 32;    /* see the limits in config_schema.c */
static const int64_t POSITIONS_MOST = (int64_t)1 << 20; /* of rotary embeddings: ops/rope */

void tp_config_defaults(tp_config *cfg) {
    char words[WORDS];
    memset(cfg, 0, sizeof *cfg);
    /* tests/config_test.c shows that every row's default is one that the row allows */
    for (int i = 0; i < tp_config_nkeys; i++)
        tp_config_put(cfg, i, tp_config_keys[i].initial, strlen(tp_config_keys[i].initial), words,
                      sizeof words);
}

tp_status tp_config_set(tp_ctx *c, tp_config *cfg, const char *word) {
    char shown[96], words[WORDS], name[64];
    const char *eq = strchr(word, '=');
    tp_quote(shown, sizeof shown, word, strlen(word));
    if (!eq || eq == word)
        return tp_fail(c, TP_EARG, "command line: %s: write key=value, such as model.layers=12",
                       shown);
    size_t n = (size_t)(eq - word);
    int row = tp_config_find(word, n);
    if (row < 0) {
        tp_quote(name, sizeof name, word, n);
        if (tp_config_group_row(word, n) >= 0)
            return tp_fail(c, TP_EARG, "command line: %s is a group of keys; name one as %s.KEY",
                           name, name);
        char hint[TP_CONFIG_HINT];
        return tp_fail(c, TP_EARG, "command line: %s: unknown key%s", name,
                       tp_config_hint(hint, name));
    }
    const char *why = tp_config_put(cfg, row, eq + 1, strlen(eq + 1), words, sizeof words);
    if (why) {
        tp_quote(shown, sizeof shown, eq + 1, strlen(eq + 1));
        return tp_fail(c, TP_EARG, "command line: %s must %s, got \"%s\"", tp_config_keys[row].name,
                       why, shown);
    }
    cfg->line[row] = -1;
    return TP_OK;
}

const char *tp_config_where(char *out, size_t cap, const tp_config *cfg, const char *key) {
    char origin[WHERE] = "";
    int row = tp_config_find(key, strlen(key));
    if (row >= 0) tp_config_origin(origin, sizeof origin, cfg, row);
    snprintf(out, cap, "%s%s", origin, key);
    return out;
}

tp_status tp_config_require(tp_ctx *c, const tp_config *cfg, const char *key) {
    int row = tp_config_find(key, strlen(key));
    if (row < 0 || tp_config_keys[row].type != TP_KEY_TEXT)
        return tp_fail(c, TP_EARG, "%s: not a text key of the configuration", key);
    if (*((const char *)cfg + tp_config_keys[row].offset)) return TP_OK;
    return tp_fail(c, TP_EARG, "%s is required (%s): set it in the config or as %s=VALUE", key,
                   tp_config_keys[row].doc, key);
}

static tp_status check_heads(tp_ctx *c, const tp_config *cfg) {
    char at[WHERE];
    long long heads = cfg->model.heads, kv = cfg->model.kv_heads, channels = cfg->model.channels;
    if (kv && heads % kv)
        return tp_fail(c, TP_EARG, "%s: %lld does not divide model.heads = %lld",
                       tp_config_where(at, sizeof at, cfg, "model.kv_heads"), kv, heads);
    if (!cfg->model.head_dim && channels % heads)
        return tp_fail(c, TP_EARG,
                       "%s: %lld does not divide model.channels = %lld; change one of them or set "
                       "model.head_dim",
                       tp_config_where(at, sizeof at, cfg, "model.heads"), heads, channels);
    long long dim = cfg->model.head_dim ? cfg->model.head_dim : channels / heads;
    if (cfg->model.family == TP_CFG_LLAMA && dim % 2)
        return tp_fail(c, TP_EARG,
                       "%s: heads are %lld wide, but rotary positions turn pairs: make it even",
                       tp_config_where(at, sizeof at, cfg, "model.head_dim"), dim);
    return TP_OK;
}

static tp_status check_rope(tp_ctx *c, const tp_config *cfg) {
    static const char *const keys[] = {"rope_scaling.factor", "rope_scaling.low_freq_factor",
                                       "rope_scaling.high_freq_factor",
                                       "rope_scaling.original_max_position_embeddings", NULL};
    static const int reads[] = {0, 1, 4}; /* of keys, by type */
    static const char *const names[] = {"default", "linear", "llama3"};
    const tp_cfg_rope_scaling *r = &cfg->rope_scaling;
    char at[WHERE], idle[160];
    if (r->rope_type != TP_CFG_ROPE_DEFAULT && cfg->model.family != TP_CFG_LLAMA)
        return tp_fail(c, TP_EARG, "%s: needs model.family: llama; gpt2 learns its positions",
                       tp_config_where(at, sizeof at, cfg, "rope_scaling.rope_type"));
    if (tp_config_given(idle, sizeof idle, cfg, keys + reads[r->rope_type]))
        return tp_fail(c, TP_EARG, "%s: %s, so %s would do nothing",
                       tp_config_where(at, sizeof at, cfg, "rope_scaling.rope_type"),
                       names[r->rope_type], idle);
    if (r->rope_type == TP_CFG_ROPE_LLAMA3 && !(r->high_freq_factor > r->low_freq_factor))
        return tp_fail(c, TP_EARG, "%s: must be above rope_scaling.low_freq_factor = %g, got %g",
                       tp_config_where(at, sizeof at, cfg, "rope_scaling.high_freq_factor"),
                       r->low_freq_factor, r->high_freq_factor);
    return TP_OK;
}

static tp_status check_model(tp_ctx *c, const tp_config *cfg) {
    static const char *const divisor_key[] = {"model.logit_softcap", "model.attn_softcap",
                                              "sample.temperature"};
    const double divisor[] = {cfg->model.logit_softcap, cfg->model.attn_softcap,
                              cfg->sample.temperature};
    char at[WHERE];
    if (cfg->model.family == TP_CFG_LLAMA && cfg->model.context > POSITIONS_MOST)
        return tp_fail(c, TP_EARG, "%s: rotary positions (llama) go up to %lld, got %lld",
                       tp_config_where(at, sizeof at, cfg, "model.context"),
                       (long long)POSITIONS_MOST, (long long)cfg->model.context);
    for (int i = 0; i < 3; i++)
        if (divisor[i] > 0 && divisor[i] < 1e-30) /* its reciprocal must be an f32 */
            return tp_fail(c, TP_EARG, "%s must be 0%s or at least 1e-30, got %g",
                           tp_config_where(at, sizeof at, cfg, divisor_key[i]),
                           i < 2 ? " (off)" : "", divisor[i]);
    tp_status st = check_rope(c, cfg);
    return st ? st : check_heads(c, cfg);
}

/* lr_scheduler_type wsd: 0 leaves the length of the decay to us. */
static int64_t our_decay(const tp_config *cfg) {
    int64_t fifth = cfg->run.steps / 5, left = cfg->run.steps - cfg->train.warmup_steps;
    return fifth < left ? fifth : left;
}
static int64_t decay_steps(const tp_config *cfg) {
    if (cfg->train.decay_steps || cfg->train.lr_scheduler_type != TP_CFG_WSD)
        return cfg->train.decay_steps;
    return our_decay(cfg);
}
bool tp_config_chose_decay(const tp_config *cfg) {
    return cfg->train.lr_scheduler_type == TP_CFG_WSD && cfg->train.decay_steps == our_decay(cfg);
}

static tp_status check_schedule(tp_ctx *c, const tp_config *cfg) {
    char at[WHERE];
    long long warm = cfg->train.warmup_steps, steps = cfg->run.steps;
    if (warm > steps)
        return tp_fail(c, TP_EARG, "%s: %lld is more than run.steps = %lld",
                       tp_config_where(at, sizeof at, cfg, "train.warmup_steps"), warm, steps);
    if (cfg->train.lr_scheduler_type == TP_CFG_WSD && decay_steps(cfg) > steps - warm)
        return tp_fail(c, TP_EARG,
                       "%s: a decay of %lld steps after %lld of warm-up does not fit in run.steps "
                       "= %lld",
                       tp_config_where(at, sizeof at, cfg, "train.decay_steps"),
                       (long long)decay_steps(cfg), warm, steps);
    return TP_OK;
}

tp_status tp_config_check(tp_ctx *c, const tp_config *cfg) {
    char at[WHERE];
    tp_status st;
    if (cfg->mod.capacity > 0 && cfg->model.sliding_window)
        return tp_fail(c, TP_EARG,
                       "%s: does not go with model.sliding_window: a routed block sees its own "
                       "tokens only, and a window over those would be another distance",
                       tp_config_where(at, sizeof at, cfg, "mod.capacity"));
    if (cfg->mod.capacity > 0 && cfg->mod.every > cfg->model.layers)
        return tp_fail(c, TP_EARG, "%s: %lld, so none of the %lld blocks is routed",
                       tp_config_where(at, sizeof at, cfg, "mod.every"), (long long)cfg->mod.every,
                       (long long)cfg->model.layers);
    if ((st = check_model(c, cfg)) || (st = check_schedule(c, cfg))) return st;
    if (!*cfg->run.dir)
        return tp_fail(c, TP_EARG, "%s: empty, but a run needs a folder: give it a name",
                       tp_config_where(at, sizeof at, cfg, "run.dir"));
    if (cfg->dtype == TP_CFG_BF16 && cfg->device == TP_CPU)
        return tp_fail(
            c, TP_EARG,
            "%s: bf16 needs device: cuda (on a CPU it is float32_matmul_precision: medium)",
            tp_config_where(at, sizeof at, cfg, "dtype"));
    if (cfg->float32_matmul_precision != TP_CFG_HIGHEST && cfg->device != TP_CPU)
        return tp_fail(c, TP_EARG, "%s: medium is for device: cpu; on a GPU it is dtype: bf16",
                       tp_config_where(at, sizeof at, cfg, "float32_matmul_precision"));
    if (cfg->gemm != TP_GEMM_AUTO && cfg->device != TP_CUDA)
        return tp_fail(c, TP_EARG, "%s: chooses among products on a GPU and needs device: cuda",
                       tp_config_where(at, sizeof at, cfg, "gemm"));
    if (cfg->train.cuda_graph && (cfg->device != TP_CUDA || cfg->model.dropout > 0))
        return tp_fail(c, TP_EARG, "%s: needs device: cuda and model.dropout: 0",
                       tp_config_where(at, sizeof at, cfg, "train.cuda_graph"));
    if (cfg->train.cuda_graph && cfg->mod.capacity > 0 && cfg->mod.router == TP_CFG_ROUTER_RANDOM)
        return tp_fail(c, TP_EARG,
                       "%s: does not go with mod.router: random, whose numbers each step has anew",
                       tp_config_where(at, sizeof at, cfg, "train.cuda_graph"));
    if (cfg->train.cuda_graph && cfg->train.optimizer_in_bwd)
        return tp_fail(c, TP_EARG, "%s: does not go with train.optimizer_in_bwd",
                       tp_config_where(at, sizeof at, cfg, "train.cuda_graph"));
    if (cfg->train.optimizer_in_bwd &&
        (cfg->train.max_grad_norm > 0 || cfg->train.micro_batches > 1))
        return tp_fail(
            c, TP_EARG,
            "%s: needs train.max_grad_norm: 0 and train.micro_batches: 1, got %g and %lld",
            tp_config_where(at, sizeof at, cfg, "train.optimizer_in_bwd"), cfg->train.max_grad_norm,
            (long long)cfg->train.micro_batches);
    if (cfg->train.batch > TOKENS_MOST / cfg->model.context)
        return tp_fail(c, TP_EARG, "%s: %lld rows of %lld tokens; a step has at most %lld tokens",
                       tp_config_where(at, sizeof at, cfg, "train.batch"),
                       (long long)cfg->train.batch, (long long)cfg->model.context,
                       (long long)TOKENS_MOST);
    if (cfg->train.optimizer == TP_CFG_SGD && cfg->train.optimizer_state_dtype != TP_CFG_STATE_F32)
        return tp_fail(c, TP_EARG, "%s: only AdamW's state can be bf16; sgd's momentum is f32",
                       tp_config_where(at, sizeof at, cfg, "train.optimizer_state_dtype"));
    return TP_OK;
}

tp_status tp_config_resolve(tp_ctx *c, tp_config *cfg) {
    tp_status st = tp_config_check(c, cfg);
    if (st) return st;
    bool gpt2 = cfg->model.family == TP_CFG_GPT2;
    int64_t channels = cfg->model.channels;
    if (!cfg->model.kv_heads) cfg->model.kv_heads = cfg->model.heads;
    if (!cfg->model.head_dim) cfg->model.head_dim = channels / cfg->model.heads;
    /* SwiGLU has three matrices where GELU has two: 8/3 keeps the weights of 4*channels */
    if (!cfg->model.ffn)
        cfg->model.ffn = gpt2 ? 4 * channels : ((8 * channels + 2) / 3 + 31) / 32 * 32;
    tp_cfg_auto bias = gpt2 ? TP_CFG_TRUE : TP_CFG_FALSE;
    if (cfg->model.attention_bias == TP_CFG_AUTO) cfg->model.attention_bias = bias;
    if (cfg->model.mlp_bias == TP_CFG_AUTO) cfg->model.mlp_bias = bias;
    cfg->train.decay_steps = decay_steps(cfg);
    return TP_OK;
}

static bool same_value(const tp_key *k, const tp_config *a, const tp_config *b) {
    static const size_t sizes[] = {[TP_KEY_BOOL] = sizeof(bool),
                                   [TP_KEY_I64] = sizeof(int64_t),
                                   [TP_KEY_F64] = sizeof(double),
                                   [TP_KEY_CHOICE] = sizeof(int)};
    const char *pa = (const char *)a + k->offset, *pb = (const char *)b + k->offset;
    return k->type == TP_KEY_TEXT ? !strcmp(pa, pb) : !memcmp(pa, pb, sizes[k->type]);
}

bool tp_config_equal(const tp_config *a, const tp_config *b) {
    for (int i = 0; i < tp_config_nkeys; i++)
        if (!same_value(&tp_config_keys[i], a, b)) return false;
    return true;
}

static bool is_one_of(const char *key, const char *const keys[]) {
    for (; *keys; keys++) {
        size_t n = strlen(*keys);
        if ((*keys)[n - 1] == '.' ? !strncmp(key, *keys, n) : !strcmp(key, *keys)) return true;
    }
    return false;
}

int tp_config_given(char *out, size_t cap, const tp_config *cfg, const char *const keys[]) {
    tp_config defaults;
    size_t at = 0;
    int n = 0;
    tp_config_defaults(&defaults);
    out[0] = 0;
    for (int i = 0; i < tp_config_nkeys; i++) {
        const tp_key *k = &tp_config_keys[i];
        if (!cfg->line[i] || !is_one_of(k->name, keys) || same_value(k, cfg, &defaults)) continue;
        if (at < cap) at += (size_t)snprintf(out + at, cap - at, "%s%s", n ? ", " : "", k->name);
        n++;
    }
    return n;
}

tp_status tp_config_adopt_model(tp_ctx *c, tp_config *to, const tp_config *from) {
    static const char *const shape[] = {"model.", "rope_scaling.", "mod.", NULL};
    static const char *const free_keys[] = {"model.init_from", "model.context",
                                            "model.dropout",   "model.init_std",
                                            "mod.aux_coef",    "model.activation_checkpointing"};
    tp_config mine = *to;
    char at[WHERE];
    const bool learned = from->model.family == TP_CFG_GPT2; /* positions: one for each of context */
    to->model = from->model;
    to->rope_scaling = from->rope_scaling;
    to->mod = from->mod;
    to->mod.aux_coef = mine.mod.aux_coef;
    const bool adapters = from->lora.r > 0;
    if (adapters) to->lora = from->lora;
    memcpy(to->model.init_from, mine.model.init_from, sizeof to->model.init_from);
    to->model.dropout = mine.model.dropout;
    to->model.init_std = mine.model.init_std;
    to->model.activation_checkpointing = mine.model.activation_checkpointing;
    for (int i = 0; i < tp_config_nkeys; i++) {
        const tp_key *k = &tp_config_keys[i];
        const bool is_lora = adapters && !strncmp(k->name, "lora.", 5);
        bool is_free = !is_one_of(k->name, shape) && !is_lora;
        const bool is_context = !strcmp(k->name, "model.context");
        for (size_t j = 0; j < sizeof free_keys / sizeof *free_keys; j++)
            is_free |= !strcmp(k->name, free_keys[j]) && !(learned && is_context);
        if (!strcmp(k->name, "data.chat_template") && !mine.line[i])
            to->data.chat_template = from->data.chat_template;
        if (is_free && is_context && mine.line[i]) to->model.context = mine.model.context;
        if (is_free || !mine.line[i] || same_value(k, &mine, to)) continue;
        tp_config_where(at, sizeof at, &mine, k->name);
        if (is_lora)
            return tp_fail(c, TP_EARG,
                           "%s: the adapters that there are have another value; leave the key out, "
                           "or begin with them merged into their weights: tapir export, then tapir "
                           "import",
                           at);
        return tp_fail(c, TP_EARG, "%s: the model of %s has another value; leave the key out", at,
                       mine.model.init_from);
    }
    return tp_config_check(c, to); /* what was given may not go with what was taken over */
}

char *tp_config_help(tp_ctx *c) {
    char words[WORDS];
    tp_str t;
    tp_str_init(&t, c);
    for (int i = 0; i < tp_config_nkeys; i++) {
        const tp_key *k = &tp_config_keys[i];
        tp_config_allowed(words, sizeof words, k);
        const char *what = words + 3; /* after "be " */
        const char *unit = k->type == TP_KEY_TEXT ? "" : k->unit;
        tp_str_printf(&t, "%-30s %s\n%-30s %s%s%s%s, default %s\n", k->name, k->doc, "", what,
                      *unit ? " (" : "", unit, *unit ? ")" : "", *k->initial ? k->initial : "\"\"");
    }
    if (!t.failed) return t.at;
    tp_str_clear(&t);
    return NULL;
}
