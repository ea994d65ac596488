/* Configuration: what is read is what was written, and whatever is wrong is named in one sentence.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/ctx.h"
#include "data/config.h"
#include "data/config_schema.h"
#include "data/text.h"

static tp_ctx *ctx_new(void) {
    tp_ctx *c = NULL;
    assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1}), TP_OK);
    return c;
}

static tp_status read_yaml(tp_ctx *c, tp_config *cfg, const char *yaml) {
    return tp_config_read(c, cfg, "t.yaml", yaml, strlen(yaml));
}

/* ---- good input ----------------------------------------------------------------------------- */
static void test_defaults(void **state) {
    (void)state;
    tp_config cfg;
    tp_config_defaults(&cfg);
    char words[256];
    for (int i = 0; i < tp_config_nkeys; i++) { /* every default is a value that its row allows */
        const tp_key *k = &tp_config_keys[i];
        tp_config copy = cfg;
        assert_null(tp_config_put(&copy, i, k->initial, strlen(k->initial), words, sizeof words));
        assert_true(*k->doc && k->unit);
        for (int j = 0; j < i; j++) { /* no two rows share a name or overlap in memory */
            assert_string_not_equal(k->name, tp_config_keys[j].name);
            assert_true(k->offset != tp_config_keys[j].offset);
        }
    }
    assert_int_equal(cfg.seed, 1);
    assert_int_equal(cfg.model.layers, 4);
    assert_true(cfg.train.adam_beta2 == 0.95);
    assert_string_equal(cfg.run.dir, "runs/default");
    assert_int_equal(cfg.train.lr_scheduler_type, TP_CFG_COSINE);
    assert_true(cfg.checkpoint.best && cfg.data.prefetch && !cfg.model.qk_norm);
    assert_int_equal(cfg.model.attention_bias, TP_CFG_AUTO);
}

static void test_read(void **state) {
    (void)state;
    tp_ctx *c = ctx_new();
    tp_config cfg;
    tp_config_defaults(&cfg);
    const char *yaml = "# a comment\n"
                       "seed: 42\n"
                       "model:\n"
                       "  family: llama   # trailing\n"
                       "  layers: 12\n"
                       "  mlp_bias: true\n"
                       "  norm_eps: 1e-6\n"
                       "train: {batch: 64, optimizer: muon, learning_rate: 3e-4}\n"
                       "eval:\n"
                       "sample:\n"
                       "  prompt: \"In the\\nbeginning \\u00e9\"\n"
                       "data:\n"
                       "  train: 1984\n"
                       "  prefetch: false\n";
    assert_int_equal(read_yaml(c, &cfg, yaml), TP_OK);
    assert_int_equal(cfg.seed, 42);
    assert_int_equal(cfg.model.family, TP_CFG_LLAMA);
    assert_int_equal(cfg.model.layers, 12);
    assert_int_equal(cfg.model.mlp_bias, TP_CFG_TRUE);
    assert_true(cfg.model.norm_eps == 1e-6);
    assert_int_equal(cfg.train.batch, 64);
    assert_int_equal(cfg.train.optimizer, TP_CFG_MUON);
    assert_true(cfg.train.learning_rate == 3e-4);
    assert_string_equal(cfg.sample.prompt, "In the\nbeginning \xC3\xA9");
    assert_string_equal(cfg.data.train, "1984"); /* a text key takes any plain word */
    assert_false(cfg.data.prefetch);
    assert_int_equal(cfg.model.heads, 4); /* untouched */
    char at[128];
    assert_string_equal(tp_config_where(at, sizeof at, &cfg, "model.layers"),
                        "t.yaml:5: model.layers");
    tp_ctx_free(c);
}

/* Every row through text and back with values that are awkward to print. */
static void test_round_trip(void **state) {
    (void)state;
    tp_ctx *c = ctx_new();
    static const double awkward[] = {0.1, 1.0 / 3, 5e-324, 0.99999999999999989, 3e-4, 2.5e-8};
    static const char *const texts[] = {"null",      "",    "12",    "a: b # c",     " lead",
                                        "\"q\\\"",   "~",   "- x",   "é\n\tz",       "\x01\x7f",
                                        "\xC2\x85x", "yes", "&a *b", "\xEF\xBB\xBF", "\xE2\x80\xA8",
                                        "😀"};
    for (unsigned trial = 0; trial < 64; trial++) {
        tp_config cfg, back;
        tp_config_defaults(&cfg);
        tp_config_defaults(&back);
        for (int i = 0; i < tp_config_nkeys; i++) {
            const tp_key *k = &tp_config_keys[i];
            char text[128], words[256], number[TP_F64_TEXT];
            uint32_t r[4];
            tp_philox(r, 7, TP_RNG_TEST, trial, (uint64_t)i);
            switch (k->type) {
            case TP_KEY_BOOL:
                strcpy(text, r[0] & 1 ? "true" : "false");
                break;
            case TP_KEY_I64:
                snprintf(text, sizeof text, "%u", r[0] >> (r[1] % 32));
                break;
            case TP_KEY_F64:
                tp_f64_print(number, r[0] & 1 ? awkward[r[1] % 6]
                                              : tp_uniform(9, TP_RNG_TEST, trial, (uint64_t)i));
                strcpy(text, number);
                break;
            case TP_KEY_TEXT:
                strcpy(text, texts[r[0] % 16]);
                break;
            case TP_KEY_CHOICE:
                strcpy(text, k->choices[r[0] % 2]);
                break;
            }
            tp_config_put(&cfg, i, text, strlen(text), words, sizeof words); /* or out of range */
        }
        char *yaml = tp_config_text(c, &cfg);
        assert_non_null(yaml);
        assert_int_equal(tp_config_read(c, &back, "t.yaml", yaml, strlen(yaml)), TP_OK);
        assert_true(tp_config_equal(&cfg, &back));
        char *again = tp_config_text(c, &back);
        assert_string_equal(yaml, again);
        for (int i = 0; i < tp_config_nkeys; i++) /* complete */
            assert_true(back.line[i] > 0 && strstr(yaml, tp_config_keys[i].doc));
        back.train.z_loss = 0.125 + cfg.train.z_loss; /* equality can fail */
        assert_false(tp_config_equal(&cfg, &back));
        tp_free(yaml);
        tp_free(again);
    }
    tp_ctx_free(c);
}

static void test_file(void **state) {
    (void)state;
    tp_ctx *c = ctx_new();
    char path[] = "/tmp/tapir_config_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    tp_config cfg, back;
    tp_config_defaults(&cfg);
    tp_config_defaults(&back);
    cfg.model.layers = 77;
    assert_int_equal(tp_config_write(c, &cfg, path), TP_OK);
    assert_int_equal(tp_config_load(c, &back, path), TP_OK);
    assert_true(tp_config_equal(&cfg, &back));
    unlink(path);
    assert_int_equal(tp_config_load(c, &back, path), TP_EIO);
    assert_non_null(strstr(tp_error(c), path));
    tp_clear(c);
    assert_int_equal(tp_config_load(c, &back, "/tmp"), TP_EIO);
    tp_clear(c);
    assert_int_equal(tp_config_write(c, &cfg, "/nowhere/config.yaml"), TP_EIO);
    tp_ctx_free(c);
}

/* ---- bad input ------------------------------------------------------------------------------ */
static void test_refusals(void **state) {
    (void)state;
    static const struct {
        const char *yaml;
        tp_status status;
        const char *words;
    } bad[] = {
        {"", TP_EFORMAT, "t.yaml: holds no configuration"},
        {"# nothing\n", TP_EFORMAT, "t.yaml: holds no configuration"},
        {"seed\n", TP_EFORMAT, "t.yaml:1: not a configuration"},
        {"- seed\n", TP_EFORMAT, "t.yaml:1: a list"},
        {"seed: 1\nlayer: 3\n", TP_EARG,
         "t.yaml:2: layer: unknown key; did you mean model.layers?"},
        {"model:\n  layer: 3\n", TP_EARG,
         "t.yaml:2: model.layer: unknown key; did you mean model.layers?"},
        {"model:\n  lr_schduler_type: 3\n", TP_EARG, "did you mean train.lr_scheduler_type?"},
        {"modle:\n  layers: 3\n", TP_EARG, "t.yaml:1: modle: unknown key"},
        {"zzzzzzzzzzz: 3\n", TP_EARG, "t.yaml:1: zzzzzzzzzzz: unknown key"},
        {"seed: 1\nseed: 2\n", TP_EARG, "t.yaml:2: seed was already set in line 1"},
        {"model:\n  heads: 1\nmodel:\n  layers: 2\n", TP_EARG,
         "t.yaml:3: model: this group was already given in line 1"},
        {"model.layers: 3\n", TP_EARG, "t.yaml:1: model.layers: write it as 'model:'"},
        {"model:\n  seed: 3\n", TP_EARG, "t.yaml:2: seed does not belong under model"},
        {"model:\n  train:\n    batch: 3\n", TP_EARG,
         "t.yaml:2: train does not belong under model"},
        {"model:\n  model.layers: 3\n", TP_EARG, "t.yaml:2: model.layers: write it as"},
        {"model: 3\n", TP_EARG, "t.yaml:1: model is a group"},
        {"seed: {a: 1}\n", TP_EARG, "t.yaml:1: seed must be a whole number >= 0, got a group"},
        {"seed: [1]\n", TP_EFORMAT, "t.yaml:1: a list"},
        {"seed:\n", TP_EARG, "t.yaml:1: seed must be a whole number >= 0, got nothing"},
        {"sample:\n  prompt: ~\n", TP_EARG, "got nothing (write \"\" for an empty text)"},
        {"seed: \"1\"\n", TP_EARG, "leave out the quotes"},
        {"seed: -1\n", TP_EARG, "t.yaml:1: seed must be a whole number >= 0, got \"-1\""},
        {"seed: 1.0\n", TP_EARG, "t.yaml:1: seed must be a whole number written in digits, >= 0"},
        {"seed: 1e3\n", TP_EARG, "whole number written in digits"},
        {"seed: 1_000\n", TP_EARG, "whole number written in digits"},
        {"seed: 0x10\n", TP_EARG, "whole number written in digits"},
        {"seed: 010\n", TP_EARG, "without leading zeros"},
        {"seed: 9223372036854775808\n", TP_EARG, "fits in 64 bits"},
        {"model:\n  layers: 0\n", TP_EARG, "must be a whole number >= 1 and <= 10000, got \"0\""},
        {"model:\n  dropout: 1\n", TP_EARG, "must be a number >= 0 and < 1, got \"1\""},
        {"model:\n  norm_eps: 0\n", TP_EARG, "must be a number > 0 and < 1"},
        {"train:\n  z_loss: .nan\n", TP_EARG, "be a number such as"},
        {"train:\n  z_loss: .inf\n", TP_EARG, "be a number such as"},
        {"train:\n  z_loss: nan\n", TP_EARG, "be a number such as"},
        {"train:\n  z_loss: 1_0.5\n", TP_EARG, "be a number such as"},
        {"train:\n  z_loss: 0x1p3\n", TP_EARG, "be a number such as"},
        {"train:\n  z_loss: 1e999\n", TP_EARG, "be a number below 1.8e308"},
        {"train:\n  z_loss: 1e-999\n", TP_EARG, "be 0 or a number above"},
        {"train:\n  optimizer: adam\n", TP_EARG, "be one of adamw, muon, sgd, got \"adam\""},
        {"data:\n  prefetch: yes\n", TP_EARG, "be true or false, got \"yes\""},
        {"seed: &a 1\n", TP_EFORMAT, "t.yaml:1: anchors"},
        {"model: &m\n  layers: 1\n", TP_EFORMAT, "t.yaml:1: anchors"},
        {"seed: *a\n", TP_EFORMAT, "t.yaml:1: aliases"},
        {"seed: !!int 1\n", TP_EFORMAT, "t.yaml:1: tags"},
        {"seed: 1\n---\nseed: 2\n", TP_EFORMAT, "t.yaml:2: a second document"},
        {"? [a]\n: 1\n", TP_EFORMAT, "t.yaml:1: a list"},
        {"? {a: b}\n: 1\n", TP_EFORMAT, "t.yaml:1: a key must be a word"},
        {"seed: 1\n\tx: 2\n", TP_EFORMAT, "t.yaml:2: not YAML"},
        {"seed: \"1\n", TP_EFORMAT, "not YAML"},
        {"sample:\n  prompt: \"a\\0b\"\n", TP_EARG, "hold no zero byte"},
        {"seed: \xff\n", TP_EFORMAT, "t.yaml: not YAML"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        tp_ctx *c = ctx_new();
        tp_config cfg, before;
        tp_config_defaults(&cfg);
        before = cfg;
        tp_status st = read_yaml(c, &cfg, bad[i].yaml);
        if (st != bad[i].status || !strstr(tp_error(c), bad[i].words))
            fail_msg("%s gave %s: %s", bad[i].yaml, tp_status_name(st), tp_error(c));
        assert_memory_equal(&cfg, &before, sizeof cfg); /* nothing half-read */
        assert_null(strchr(tp_error(c), '\n'));
        tp_ctx_free(c);
    }
}

static void test_hostile_sizes(void **state) {
    (void)state;
    tp_ctx *c = ctx_new();
    tp_config cfg;
    tp_config_defaults(&cfg);
    size_t n = 200000;
    char *text = malloc(n + 1);
    assert_non_null(text);
    memset(text, '[', n);
    text[n] = 0;
    assert_int_equal(read_yaml(c, &cfg, text), TP_EFORMAT);
    tp_clear(c);
    memset(text, '{', n);
    assert_int_equal(read_yaml(c, &cfg, text), TP_EFORMAT);
    tp_clear(c);
    memset(text, 'k', n);
    memcpy(text + n - 3, ": 1", 3);
    assert_int_not_equal(read_yaml(c, &cfg, text), TP_OK);
    assert_true(strlen(tp_error(c)) < 300);
    tp_clear(c);
    memcpy(text, "run: {dir: ", 11);
    memcpy(text + n - 3, "\n}\n", 3);
    assert_int_equal(read_yaml(c, &cfg, text), TP_EARG);
    assert_non_null(strstr(tp_error(c), "shorter than 1024 bytes"));
    free(text);
    tp_ctx_free(c);
}

static void test_overrides(void **state) {
    (void)state;
    static const struct {
        const char *word, *words;
    } bad[] = {
        {"model.layers", "write key=value"},
        {"=3", "write key=value"},
        {"", "write key=value"},
        {"model=3", "model is a group of keys"},
        {"model.layer=3", "command line: model.layer: unknown key; did you mean model.layers?"},
        {"layers=3", "did you mean model.layers?"},
        {"dist.zero=1", "did you mean dist.zero_stage?"},
        {"per_device_train_batch_size=8", "did you mean train.batch?"}, /* other trainers' */
        {"num_train_epochs=3", "did you mean run.steps?"},
        {"model.n_embd=64", "did you mean model.channels?"},
        {"train.lr=0.1", "did you mean train.learning_rate?"},
        {"eval.steps=10", "did you mean eval.every?"},
        {"eval_steps=10", "did you mean eval.every?"},
        {"zzzzzzzzzzz=3", "unknown key; `tapir train --keys` lists them"},
        {"model.layers=", "command line: model.layers must be a whole number"},
        {"model.layers= 3", "must be a whole number"},
        {"model.layers=3.5", "must be a whole number"},
        {"run.dir=\xff\xfe", "must be UTF-8 text"}};
    tp_ctx *c = ctx_new();
    tp_config cfg;
    tp_config_defaults(&cfg);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(tp_config_set(c, &cfg, bad[i].word), TP_EARG);
        if (!strstr(tp_error(c), bad[i].words)) fail_msg("%s: %s", bad[i].word, tp_error(c));
        tp_clear(c);
    }
    assert_int_equal(tp_config_set(c, &cfg, "model.layers=3"), TP_OK);
    assert_int_equal(tp_config_set(c, &cfg, "model.layers=5"), TP_OK);
    assert_int_equal(tp_config_set(c, &cfg, "sample.prompt=a=b: \"c\""), TP_OK);
    assert_int_equal(cfg.model.layers, 5);
    assert_string_equal(cfg.sample.prompt, "a=b: \"c\"");
    for (int i = 0; i < tp_config_nkeys; i++) { /* any key */
        char word[256];
        snprintf(word, sizeof word, "%s=%s", tp_config_keys[i].name, tp_config_keys[i].initial);
        assert_int_equal(tp_config_set(c, &cfg, word), TP_OK);
    }
    tp_ctx_free(c);
}

static void test_checks(void **state) {
    (void)state;
    static const struct {
        const char *yaml, *words;
    } bad[] = {
        {"model:\n  heads: 6\n", "t.yaml:2: model.heads: 6 does not divide model.channels = 128"},
        {"model:\n  kv_heads: 3\n", "t.yaml:2: model.kv_heads: 3 does not divide model.heads = 4"},
        {"model:\n  family: llama\n  head_dim: 33\n", "t.yaml:3: model.head_dim"},
        {"mod:\n  capacity: 0.5\nmodel:\n  sliding_window: 8\n",
         "t.yaml:2: mod.capacity: does not go with model.sliding_window"},
        {"mod:\n  capacity: 0.5\n  every: 5\n",
         "t.yaml:3: mod.every: 5, so none of the 4 blocks is routed"},
        {"rope_scaling:\n  rope_type: linear\n",
         "t.yaml:2: rope_scaling.rope_type: needs model.family: llama"},
        {"model: {family: llama}\nrope_scaling:\n  rope_type: llama3\n  low_freq_factor: 4\n",
         "rope_scaling.high_freq_factor: must be above rope_scaling.low_freq_factor = 4, got 4"},
        {"rope_scaling:\n  factor: 8\n",
         "rope_scaling.rope_type: default, so rope_scaling.factor would do nothing"},
        {"model:\n  family: llama\nrope_scaling:\n  rope_type: linear\n  factor: 8\n"
         "  low_freq_factor: 2\n  original_max_position_embeddings: 64\n",
         "t.yaml:4: rope_scaling.rope_type: linear, so rope_scaling.low_freq_factor, "
         "rope_scaling.original_max_position_embeddings would do nothing"},
        {"train:\n  warmup_steps: 1001\n", "t.yaml:2: train.warmup_steps: 1001 is more"},
        {"train:\n  warmup_steps: 600\n  decay_steps: 600\n  lr_scheduler_type: wsd\n",
         "t.yaml:3: train.decay_steps: a decay of 600"},
        {"train:\n  batch: 16777216\nmodel:\n  context: 1024\n",
         "t.yaml:2: train.batch: 16777216 rows of 1024 tokens"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        tp_ctx *c = ctx_new();
        tp_config cfg;
        tp_config_defaults(&cfg);
        assert_int_equal(tp_config_check(c, &cfg), TP_OK);
        assert_int_equal(read_yaml(c, &cfg, bad[i].yaml), TP_OK);
        tp_status st = tp_config_check(c, &cfg);
        if (st != TP_EARG || !strstr(tp_error(c), bad[i].words))
            fail_msg("%s gave %d: %s", bad[i].yaml, (int)st, tp_error(c));
        tp_ctx_free(c);
    }
    tp_ctx *c = ctx_new();
    tp_config cfg;
    tp_config_defaults(&cfg);
    assert_int_equal(tp_config_require(c, &cfg, "data.train"), TP_EARG);
    tp_clear(c);
    assert_int_equal(tp_config_set(c, &cfg, "data.train=x.h5"), TP_OK);
    assert_int_equal(tp_config_require(c, &cfg, "data.train"), TP_OK);
    assert_int_equal(tp_config_set(c, &cfg, "model.heads=5"), TP_OK);
    assert_int_equal(tp_config_check(c, &cfg), TP_EARG);
    assert_non_null(strstr(tp_error(c), "command line: model.heads: 5"));
    tp_ctx_free(c);
}

/* Each type reads its own keys, and a whole config, as a run writes it, says nothing too much. */
static void test_rope_scaling(void **state) {
    (void)state;
    static const char *const good[] = {
        "model: {family: llama}\n",
        "model: {family: llama}\nrope_scaling: {rope_type: linear, factor: 4}\n",
        "model: {family: llama}\n"
        "rope_scaling: {rope_type: llama3, factor: 32, low_freq_factor: 2, high_freq_factor: 3,\n"
        "  original_max_position_embeddings: 64}\n"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        tp_ctx *c = ctx_new();
        tp_config cfg, back;
        tp_config_defaults(&cfg);
        tp_config_defaults(&back);
        assert_int_equal(read_yaml(c, &cfg, good[i]), TP_OK);
        assert_int_equal(tp_config_check(c, &cfg), TP_OK);
        char *whole = tp_config_text(c, &cfg);
        assert_non_null(whole);
        assert_int_equal(read_yaml(c, &back, whole), TP_OK);
        assert_int_equal(tp_config_check(c, &back), TP_OK);
        assert_int_equal(back.rope_scaling.rope_type, i);
        tp_free(whole);
        tp_ctx_free(c);
    }
}

/* What a checkpoint's model is, rope_scaling.* and mod.* included, comes with it; what only
 * training is about does not. */
static void test_adopt(void **state) {
    (void)state;
    tp_ctx *c = ctx_new();
    tp_config to, from;
    tp_config_defaults(&to);
    tp_config_defaults(&from);
    const char *theirs[] = {"model.layers=6",   "mod.capacity=0.25",
                            "mod.every=3",      "mod.causal=threshold",
                            "mod.aux_coef=0.5", "data.chat_template=chatml"};
    for (size_t i = 0; i < sizeof theirs / sizeof *theirs; i++)
        assert_int_equal(tp_config_set(c, &from, theirs[i]), TP_OK);
    assert_int_equal(tp_config_set(c, &to, "mod.every=3"), TP_OK);
    assert_int_equal(tp_config_adopt_model(c, &to, &from), TP_OK);
    assert_true(to.mod.capacity == 0.25 && to.mod.aux_coef == 0.01);
    assert_int_equal(to.mod.causal, TP_CFG_THRESHOLD);
    assert_int_equal(to.model.layers, 6);
    assert_int_equal(to.data.chat_template, TP_CFG_CHATML);
    assert_int_equal(tp_config_set(c, &to, "data.chat_template=plain"), TP_OK);
    assert_int_equal(tp_config_adopt_model(c, &to, &from), TP_OK);
    assert_int_equal(to.data.chat_template, TP_CFG_PLAIN); /* as it was given */
    assert_int_equal(tp_config_set(c, &to, "mod.capacity=0.5"), TP_OK);
    assert_int_equal(tp_config_adopt_model(c, &to, &from), TP_EARG);
    assert_non_null(strstr(tp_error(c), "mod.capacity: the model of"));
    tp_clear(c);
    tp_config_defaults(&to); /* what goes with gpt2 need not go with their family */
    assert_int_equal(tp_config_set(c, &from, "model.family=llama"), TP_OK);
    assert_int_equal(tp_config_set(c, &to, "model.context=1048577"), TP_OK);
    assert_int_equal(tp_config_check(c, &to), TP_OK);
    assert_int_equal(tp_config_adopt_model(c, &to, &from), TP_EARG);
    assert_non_null(strstr(tp_error(c), "command line: model.context: rotary positions"));
    tp_clear(c);
    tp_config_defaults(&to);
    const char *scaled[] = {"rope_scaling.rope_type=llama3", "rope_scaling.factor=8",
                            "rope_scaling.high_freq_factor=5"};
    for (size_t i = 0; i < sizeof scaled / sizeof *scaled; i++)
        assert_int_equal(tp_config_set(c, &from, scaled[i]), TP_OK);
    assert_int_equal(tp_config_set(c, &to, scaled[1]), TP_OK);
    assert_int_equal(tp_config_adopt_model(c, &to, &from), TP_OK);
    assert_memory_equal(&to.rope_scaling, &from.rope_scaling, sizeof to.rope_scaling);
    assert_int_equal(tp_config_set(c, &to, "rope_scaling.factor=4"), TP_OK);
    assert_int_equal(tp_config_adopt_model(c, &to, &from), TP_EARG);
    assert_non_null(strstr(tp_error(c), "rope_scaling.factor: the model of"));
    tp_ctx_free(c);
}

/* Adapters come along with a model that has some; beside one that has none, they are one's own. */
static void test_adopt_adapters(void **state) {
    (void)state;
    tp_ctx *c = ctx_new();
    tp_config to, from;
    tp_config_defaults(&to);
    tp_config_defaults(&from);
    assert_int_equal(tp_config_set(c, &to, "lora.r=4"), TP_OK);
    assert_int_equal(tp_config_adopt_model(c, &to, &from), TP_OK);
    assert_int_equal(to.lora.r, 4);
    assert_int_equal(tp_config_set(c, &from, "lora.r=4"), TP_OK);
    assert_int_equal(tp_config_set(c, &from, "lora.lora_alpha=32"), TP_OK);
    assert_int_equal(tp_config_set(c, &from, "lora.target_modules=c_attn"), TP_OK);
    assert_int_equal(tp_config_adopt_model(c, &to, &from), TP_OK);
    assert_memory_equal(&to.lora, &from.lora, sizeof to.lora);
    static const char *const other[] = {"lora.r=0", "lora.r=8", "lora.lora_alpha=8",
                                        "lora.target_modules=all-linear", "lora.use_rslora=true"};
    for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
        tp_config_defaults(&to);
        assert_int_equal(tp_config_set(c, &to, other[i]), TP_OK);
        assert_int_equal(tp_config_adopt_model(c, &to, &from), TP_EARG);
        assert_non_null(strstr(tp_error(c), "the adapters that there are have another value"));
        tp_clear(c);
    }
    tp_ctx_free(c);
}

static void test_resolve(void **state) {
    (void)state;
    tp_ctx *c = ctx_new();
    tp_config cfg;
    tp_config_defaults(&cfg);
    assert_int_equal(tp_config_resolve(c, &cfg), TP_OK);
    assert_int_equal(cfg.model.kv_heads, 4);
    assert_int_equal(cfg.model.head_dim, 32);
    assert_int_equal(cfg.model.ffn, 512);
    assert_int_equal(cfg.model.attention_bias, TP_CFG_TRUE);
    tp_config once = cfg;
    assert_int_equal(tp_config_resolve(c, &cfg), TP_OK);
    assert_true(tp_config_equal(&once, &cfg));
    tp_config_defaults(&cfg);
    assert_int_equal(read_yaml(c, &cfg,
                               "model:\n  family: llama\n  channels: 4096\n"
                               "train: {lr_scheduler_type: wsd, warmup_steps: 900}\n"),
                     TP_OK);
    assert_int_equal(tp_config_resolve(c, &cfg), TP_OK);
    assert_int_equal(cfg.model.ffn, 10944); /* 8/3 * 4096 = 10922.7, up to a multiple of 32 */
    assert_int_equal(cfg.model.mlp_bias, TP_CFG_FALSE);
    assert_int_equal(cfg.train.decay_steps, 100); /* a fifth is 200, but 900 are warm-up */
    tp_ctx_free(c);
}

static void test_help(void **state) {
    (void)state;
    tp_ctx *c = ctx_new();
    char *help = tp_config_help(c);
    assert_non_null(help);
    for (int i = 0; i < tp_config_nkeys; i++) {
        assert_non_null(strstr(help, tp_config_keys[i].name));
        assert_non_null(strstr(help, tp_config_keys[i].doc));
    }
    tp_free(help);
    tp_ctx_free(c);
}

/* What was set, and to something else: whole groups by their dot. */
static void test_given(void **state) {
    (void)state;
    tp_ctx *c = ctx_new();
    tp_config cfg;
    char names[64], little[8];
    const char *const keys[] = {"train.batch", "train.z_loss", "rl.", NULL};
    tp_config_defaults(&cfg);
    assert_int_equal(tp_config_given(names, sizeof names, &cfg, keys), 0);
    assert_string_equal(names, "");
    cfg.train.z_loss = 1; /* derived, not given */
    assert_int_equal(read_yaml(c, &cfg, "train: {batch: 16, momentum: 0.5}\nrl:\n  task: chain\n"),
                     0);
    assert_int_equal(tp_config_given(names, sizeof names, &cfg, keys), 0);
    assert_int_equal(tp_config_set(c, &cfg, "train.batch=8"), 0);
    assert_int_equal(read_yaml(c, &cfg, "rl: {top_p: 0.5, task: sort}\n"), 0);
    assert_int_equal(tp_config_given(names, sizeof names, &cfg, keys), 3);
    assert_string_equal(names, "train.batch, rl.task, rl.top_p");
    assert_int_equal(tp_config_given(little, sizeof little, &cfg, keys), 3);
    assert_string_equal(little, "train.b");
    tp_ctx_free(c);
}

static void test_no_memory(void **state) {
    (void)state;
    for (long at = 1; at < 12; at++) {
        tp_ctx *c = NULL;
        assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1}), TP_OK);
        tp_config cfg;
        tp_config_defaults(&cfg);
        tp_config before = cfg;
        c->fail_alloc_at = at;
        bool failed = false;
        if (read_yaml(c, &cfg, "seed: 3\n")) {
            failed = true;
            assert_memory_equal(&cfg, &before, sizeof cfg);
        }
        char *text = tp_config_text(c, &cfg), *help = tp_config_help(c);
        failed = failed || !text || !help;
        assert_int_equal(failed, tp_error_status(c) == TP_ENOMEM);
        tp_free(text);
        tp_free(help);
        tp_ctx_free(c);
    }
}

/* ---- numbers and text ----------------------------------------------------------------------- */
static void test_numbers(void **state) {
    (void)state;
    static const struct {
        double v;
        const char *text;
    } fixed[] = {{0, "0"},       {-0.0, "-0"},   {0.1, "0.1"},     {1e-8, "1e-8"},
                 {1e20, "1e20"}, {-2.5, "-2.5"}, {1e300, "1e300"}, {1234567, "1234567"}};
    char text[TP_F64_TEXT];
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) {
        tp_f64_print(text, fixed[i].v);
        assert_string_equal(text, fixed[i].text);
    }
    for (uint64_t i = 0; i < 20000; i++) { /* any finite bit pattern comes back */
        uint32_t r[4];
        tp_philox(r, 3, TP_RNG_TEST, i, 0);
        uint64_t bits = (uint64_t)r[0] << 32 | r[1];
        double v, back = 0;
        memcpy(&v, &bits, sizeof v);
        if (!(v - v == 0)) continue;
        tp_f64_print(text, v);
        assert_null(tp_f64_parse(&back, text, strlen(text)));
        assert_memory_equal(&v, &back, sizeof v);
    }
    int64_t n = 0;
    assert_null(tp_i64_parse(&n, "-9223372036854775808", 20));
    assert_true(n == INT64_MIN);
    assert_null(tp_i64_parse(&n, "9223372036854775807", 19));
    assert_true(n == INT64_MAX);
    assert_non_null(tp_i64_parse(&n, "9223372036854775808", 19));
    assert_non_null(tp_i64_parse(&n, "-9223372036854775809", 20));
    assert_non_null(tp_i64_parse(&n, "", 0));
    assert_non_null(tp_i64_parse(&n, "-", 1));
}

/* Under a locale whose decimal point is a comma, made for the test: machines rarely have one. */
static void test_locale(void **state) {
    (void)state;
    char dir[] = "/tmp/tapir_locale_XXXXXX", cmd[128], text[TP_F64_TEXT], plain[8];
    double v = 0;
    assert_non_null(mkdtemp(dir));
    snprintf(cmd, sizeof cmd, "localedef -i de_DE -f UTF-8 %s/de_DE.UTF-8 >/dev/null 2>&1", dir);
    int made = system(cmd);
    setenv("LOCPATH", dir, 1);
    const char *set = setlocale(LC_ALL, "de_DE.UTF-8");
    snprintf(plain, sizeof plain, "%.1f", 0.5);
    tp_f64_print(text, 0.5);
    const char *bad = tp_f64_parse(&v, "0.5", 3);
    setlocale(LC_ALL, "C");
    unsetenv("LOCPATH");
    snprintf(cmd, sizeof cmd, "rm -rf %s", dir);
    int removed = system(cmd);
    assert_int_equal(made, 0);
    assert_int_equal(removed, 0);
    assert_non_null(set);
    assert_string_equal(plain, "0,5"); /* the locale is in force: printf alone would be wrong */
    assert_string_equal(text, "0.5");
    assert_null(bad);
    assert_true(v == 0.5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),       cmocka_unit_test(test_read),
        cmocka_unit_test(test_round_trip),     cmocka_unit_test(test_file),
        cmocka_unit_test(test_refusals),       cmocka_unit_test(test_hostile_sizes),
        cmocka_unit_test(test_overrides),      cmocka_unit_test(test_checks),
        cmocka_unit_test(test_rope_scaling),   cmocka_unit_test(test_adopt),
        cmocka_unit_test(test_adopt_adapters), cmocka_unit_test(test_resolve),
        cmocka_unit_test(test_help),           cmocka_unit_test(test_given),
        cmocka_unit_test(test_no_memory),      cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_locale),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
