/* Reading what Hugging Face's libraries write, from files made here byte by byte: safetensors with
 * every F16 and every BF16 there is, beside values computed from the formats' definitions; files in
 * parts; headers that lie; config.json of every model, and those that are none of ours. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "core/ctx.h"
#include "data/hf_config.h"
#include "data/safetensors.h"
#include "programs.h"

static char dir[] = "/tmp/tapir-import-XXXXXX";
static tp_ctx *c;

static int begin(void **state) {
    (void)state;
    return !mkdtemp(dir) || tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1});
}

static int end(void **state) {
    (void)state;
    tp_ctx_free(c);
    return shell("rm -rf %s", dir);
}

static void write_bytes(const char *name, const void *bytes, size_t n) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* A safetensors file of this header and n bytes of values; length < 0: the header's own. */
static void write_file(const char *name, const char *header, int64_t length, const void *values,
                       size_t n) {
    const size_t h = strlen(header);
    const uint64_t said = length < 0 ? h : (uint64_t)length;
    uint8_t *all = malloc(8 + h + n + 1);
    assert_non_null(all);
    for (int b = 0; b < 8; b++) all[b] = (uint8_t)(said >> (8 * b));
    memcpy(all + 8, header, h);
    if (n) memcpy(all + 8 + h, values, n);
    write_bytes(name, all, 8 + h + n);
    free(all);
}

static void forget(const char *name) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    unlink(path);
}

static tp_safetensors *open_good(void) {
    tp_safetensors *s;
    tp_status st = tp_safetensors_open(&s, c, dir);
    if (st) fail_msg("%s", tp_error(c));
    return s;
}

static void refused(tp_status st, tp_status wanted, const char *pattern) {
    if (st != wanted || !strstr(tp_error(c), pattern))
        fail_msg("wanted %s with \"%s\", got %s: %s", tp_status_name(wanted), pattern,
                 tp_status_name(st), tp_error(c));
    tp_clear(c);
}

static void does_not_open(tp_status wanted, const char *pattern) {
    tp_safetensors *s;
    tp_status st = tp_safetensors_open(&s, c, dir);
    if (!st) fail_msg("opened; wanted \"%s\"", pattern);
    assert_null(s);
    refused(st, wanted, pattern);
}

/* ---- values --------------------------------------------------------------------------------- */
/* 1 bit of sign, `exponent` bits, the fraction: IEEE 754's meaning of them. */
static double meaning(uint32_t h, int exponent, int fraction) {
    const double sign = h >> (exponent + fraction) & 1 ? -1 : 1;
    const int e = (int)(h >> fraction & ((1u << exponent) - 1)), top = (1 << exponent) - 1;
    const double f = (double)(h & ((1u << fraction) - 1)), one = (double)(1u << fraction);
    const int bias = top / 2;
    if (e == top) return f != 0 ? (double)NAN : sign * (double)INFINITY;
    return sign * (e ? ldexp(1 + f / one, e - bias) : ldexp(f / one, 1 - bias));
}

static void every_half_has_its_value(void **state) {
    (void)state;
    enum { ALL = 1 << 16 };
    static const struct {
        const char *type;
        int exponent, fraction;
    } kinds[] = {{"F16", 5, 10}, {"BF16", 8, 7}};
    uint16_t *h = malloc(ALL * sizeof *h);
    float *x = malloc(ALL * sizeof *x);
    for (int i = 0; i < ALL; i++) h[i] = (uint16_t)(ALL - 1 - i);
    for (int k = 0; k < 2; k++) {
        char header[128];
        snprintf(header, sizeof header,
                 "{\"x\":{\"dtype\":\"%s\",\"shape\":[256,256],\"data_offsets\":[0,131072]}}",
                 kinds[k].type);
        write_file("model.safetensors", header, -1, h, ALL * sizeof *h);
        tp_safetensors *s = open_good();
        const tp_safetensors_entry *e = tp_safetensors_find(s, "x");
        assert_non_null(e);
        assert_int_equal(e->ndim, 2);
        assert_int_equal(e->shape[1], 256);
        assert_int_equal(tp_safetensors_get(c, e, x), TP_OK);
        for (int i = 0; i < ALL; i++) {
            const double want = meaning(h[i], kinds[k].exponent, kinds[k].fraction);
            if (isnan(want) ? !isnan(x[i]) : x[i] != want || !signbit(x[i]) != !signbit(want))
                fail_msg("%s %04x: %g, wanted %g", kinds[k].type, h[i], x[i], want);
        }
        tp_safetensors_close(s);
    }
    free(h);
    free(x);
}

static const float values[] = {1.5f, -2, 3e-40f, 4, 5, 6, 7, 8};

static void tensors_are_found_by_name(void **state) {
    (void)state;
    /* not in the order of the names, with an empty one and a scalar, and metadata */
    const char *header = "{\"__metadata__\":{\"format\":\"pt\"},"
                         "\"b\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[8,24]},"
                         "\"a\":{\"shape\":[2,1],\"data_offsets\":[0,8],\"dtype\":\"F32\"},"
                         "\"none\":{\"dtype\":\"F32\",\"shape\":[3,0],\"data_offsets\":[24,24]},"
                         "\"ids\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[24,32]}}   ";
    float x[4] = {0};
    write_file("model.safetensors", header, -1, values, sizeof values);
    tp_safetensors *s = open_good();
    assert_int_equal(tp_safetensors_count(s), 4);
    assert_string_equal(tp_safetensors_at(s, 0)->name, "a");
    assert_int_equal(tp_safetensors_get(c, tp_safetensors_find(s, "b"), x), TP_OK);
    assert_memory_equal(x, values + 2, sizeof x);
    assert_int_equal(tp_safetensors_get(c, tp_safetensors_find(s, "a"), x), TP_OK);
    assert_memory_equal(x, values, 2 * sizeof *x);
    assert_int_equal(tp_safetensors_find(s, "none")->n, 0);
    assert_int_equal(tp_safetensors_find(s, "ids")->n, 1);
    refused(tp_safetensors_get(c, tp_safetensors_find(s, "ids"), x), TP_EDTYPE,
            "ids is I64; F32, F16 and BF16 can be read");
    assert_null(tp_safetensors_find(s, "c"));
    assert_null(tp_safetensors_find(s, "__metadata__"));
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    assert_int_equal(truncate(path, (off_t)strlen(header) + 8 + 12), 0);
    refused(tp_safetensors_get(c, tp_safetensors_find(s, "b"), x), TP_EIO, "became shorter");
    tp_safetensors_close(s);
}

/* ---- headers -------------------------------------------------------------------------------- */
#define ROW(name, type, shape, place)                                                              \
    "\"" name "\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":" place "}"

static void headers_that_lie_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *header, *pattern;
    } bad[] = {
        {"", "JSON"},
        {"[]", "not a JSON object"},
        {"{\"x\":{\"dtype\":\"F32\"", "not a JSON object"},
        {"{} {}", "there is more"},
        {"{\"x\":1}", "it needs dtype, shape and data_offsets"},
        {"{\"x\":{\"dtype\":\"F32\",\"shape\":[8]}}", "it needs dtype"},
        {"{\"x\":{\"dtype\":4,\"shape\":[8],\"data_offsets\":[0,32]}}", "it needs dtype"},
        {"{" ROW("x", "F32", "8", "[0,32]") "}", "it needs dtype"},
        {"{" ROW("x", "F32", "[8]", "[0,16,32]") "}", "it needs dtype"},
        {"{" ROW("x", "Q4", "[8]", "[0,32]") "}", "its dtype is unknown"},
        {"{" ROW("x", "F32", "[8]", "[0,36]") "}", "its data_offsets are not in the file"},
        {"{" ROW("x", "F32", "[8]", "[-4,32]") "}", "its data_offsets are not in the file"},
        {"{" ROW("x", "F32", "[8]", "[0.5,32]") "}", "its data_offsets are not in the file"},
        {"{" ROW("x", "F32", "[8]", "[0,1e300]") "}", "its data_offsets are not in the file"},
        {"{" ROW("x", "F32", "[8]", "[32,0]") "}", "its data_offsets are not in the file"},
        {"{" ROW("x", "F32", "[7]", "[0,32]") "}", "its shape does not fit"},
        {"{" ROW("x", "F32", "[]", "[0,32]") "}", "its shape does not fit"},
        {"{" ROW("x", "F16", "[8]", "[0,32]") "}", "its shape does not fit"},
        {"{" ROW("x", "F64", "[3]", "[0,28]") "}", "its shape does not fit"},
        {"{" ROW("x", "F32", "[-8]", "[0,32]") "}", "its shape is no list of whole numbers"},
        {"{" ROW("x", "F32", "[2,\"4\"]", "[0,32]") "}", "its shape is no list"},
        {"{" ROW("x", "F32", "[4294967296,4294967296,8]", "[0,32]") "}", "its shape is too large"},
        {"{" ROW("x", "F32", "[1,1,1,1,1,2,4]", "[0,32]") "}", "too many dimensions"},
        {"{" ROW("x", "F32", "[7]", "[0,28]") "}", "overlap, or leave bytes"},
        {"{" ROW("x", "F32", "[7]", "[4,32]") "}", "overlap, or leave bytes"},
        {"{" ROW("x", "F32", "[3]", "[0,12]") "," ROW("y", "F32", "[5]", "[8,28]") "}",
         "overlap, or leave bytes"},
        {"{" ROW("x", "F32", "[4]", "[0,16]") "," ROW("x", "F32", "[4]", "[16,32]") "}",
         "tensor \"x\" is there twice"},
        {"{" ROW("x\\u0000", "F32", "[8]", "[0,32]") "}", "NUL"},
        {"{}", "overlap, or leave bytes"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_file("model.safetensors", bad[i].header, -1, values, sizeof values);
        does_not_open(TP_EFORMAT, bad[i].pattern);
    }
    const char *good = "{" ROW("x", "F32", "[8]", "[0,32]") "}";
    write_file("model.safetensors", good, -1, values, sizeof values);
    tp_safetensors_close(open_good());
    const int64_t lengths[] = {(int64_t)strlen(good) + 33, INT64_MAX, 1 << 30, 3};
    for (int i = 0; i < 4; i++) {
        write_file("model.safetensors", good, lengths[i], values, sizeof values);
        does_not_open(TP_EFORMAT, "model.safetensors: ");
    }
    write_bytes("model.safetensors", good, 7);
    does_not_open(TP_EFORMAT, "no safetensors file: it has 7 bytes");
    forget("model.safetensors");
    does_not_open(TP_EIO, "model.safetensors: cannot read: No such file");
    char path[128];
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    assert_int_equal(mkfifo(path, 0600), 0);
    does_not_open(TP_EIO, "not a regular file");
    forget("model.safetensors");
}

/* Whatever bit is turned over: refused in a sentence, or every tensor is in the file. */
static void any_bit_of_a_header_may_be_wrong(void **state) {
    (void)state;
    char header[] =
        "{" ROW("x", "F32", "[2,2]", "[0,16]") "," ROW("y", "F16", "[8]", "[16,32]") "}";
    float x[16];
    int opened = 0;
    for (size_t i = 0; i < strlen(header); i++)
        for (int bit = 0; bit < 7; bit++) {
            tp_safetensors *s;
            header[i] ^= (char)(1 << bit);
            if (!header[i]) goto next;
            write_file("model.safetensors", header, -1, values, sizeof values);
            if (tp_safetensors_open(&s, c, dir)) {
                assert_true(*tp_error(c));
                tp_clear(c);
                goto next;
            }
            opened++;
            for (int64_t k = 0; k < tp_safetensors_count(s); k++) {
                const tp_safetensors_entry *e = tp_safetensors_at(s, k);
                assert_in_range(e->n, 0, 16);
                if (tp_safetensors_get(c, e, x)) tp_clear(c);
            }
            tp_safetensors_close(s);
        next:
            header[i] ^= (char)(1 << bit);
        }
    assert_in_range(opened, 10, 600); /* names may be anything */
}

static void an_allocation_may_fail(void **state) {
    (void)state;
    write_file("model.safetensors", "{" ROW("x", "F32", "[8]", "[0,32]") "}", -1, values,
               sizeof values);
    int failed = 0;
    for (long at = 1;; at++, failed++) {
        tp_ctx *small;
        tp_safetensors *s;
        assert_int_equal(tp_ctx_new(&small, &(tp_ctx_opts){.threads = 1, .fail_alloc_at = at}),
                         TP_OK);
        tp_status st = tp_safetensors_open(&s, small, dir);
        tp_safetensors_close(s);
        if (st) assert_int_equal(st, TP_ENOMEM);
        tp_ctx_free(small);
        if (!st) break;
    }
    assert_in_range(failed, 4, 10);
}

/* ---- several files -------------------------------------------------------------------------- */
static void a_model_may_be_in_parts(void **state) {
    (void)state;
    float x[4];
    write_file("one.safetensors", "{" ROW("b", "F32", "[4]", "[0,16]") "}", -1, values, 16);
    write_file("two.safetensors",
               "{" ROW("a", "F32", "[2]", "[0,8]") "," ROW("c", "F32", "[2]", "[8,16]") "}", -1,
               values + 4, 16);
    const char *index = "{\"metadata\":{\"total_size\":32},\"weight_map\":{\"a\":"
                        "\"two.safetensors\",\"b\":\"one.safetensors\",\"c\":\"two.safetensors\"}}";
    write_bytes("model.safetensors.index.json", index, strlen(index));
    tp_safetensors *s = open_good();
    assert_int_equal(tp_safetensors_count(s), 3);
    assert_int_equal(tp_safetensors_get(c, tp_safetensors_find(s, "c"), x), TP_OK);
    assert_true(x[0] == 7 && x[1] == 8);
    assert_int_equal(tp_safetensors_get(c, tp_safetensors_find(s, "b"), x), TP_OK);
    assert_true(x[0] == 1.5f && x[3] == 4);
    assert_non_null(strstr(tp_safetensors_find(s, "c")->path, "/two.safetensors"));
    tp_safetensors_close(s);

    write_file("one.safetensors", "{" ROW("a", "F32", "[4]", "[0,16]") "}", -1, values, 16);
    does_not_open(TP_EFORMAT, "tensor \"a\" is there twice");
    forget("one.safetensors");
    does_not_open(TP_EIO, "one.safetensors: cannot read");
    static const char *const bad[][2] = {
        {"", "JSON"},
        {"{}", "it has no \"weight_map\""},
        {"{\"weight_map\":{}}", "it has no \"weight_map\""},
        {"{\"weight_map\":[\"one.safetensors\"]}", "it has no \"weight_map\""},
        {"{\"weight_map\":{\"a\":3}}", "\"a\" is in no file with a plain name"},
        {"{\"weight_map\":{\"a\":\"\"}}", "no file with a plain name"},
        {"{\"weight_map\":{\"a\":\"..\"}}", "no file with a plain name"},
        {"{\"weight_map\":{\"a\":\"../one.safetensors\"}}", "no file with a plain name"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "no file with a plain name"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_bytes("model.safetensors.index.json", bad[i][0], strlen(bad[i][0]));
        does_not_open(TP_EFORMAT, bad[i][1]);
    }
    forget("model.safetensors.index.json");
    forget("two.safetensors");
}

/* ---- config.json ---------------------------------------------------------------------------- */
#define GPT2_JSON                                                                                  \
    "\"model_type\":\"gpt2\",\"n_layer\":2,\"n_head\":4,\"n_embd\":32,\"n_positions\":64,"         \
    "\"vocab_size\":300"
#define LLAMA_JSON(type)                                                                           \
    "\"model_type\":\"" type "\",\"num_hidden_layers\":3,\"num_attention_heads\":16,"              \
    "\"hidden_size\":64,\"intermediate_size\":96,\"max_position_embeddings\":128,"                 \
    "\"vocab_size\":500"

static tp_status read_config(tp_config *cfg, const char *json) {
    tp_config_defaults(cfg);
    return tp_hf_config_read(c, cfg, 0, json, strlen(json), "config.json");
}

static tp_config good_config(const char *json) {
    tp_config cfg;
    if (read_config(&cfg, json)) fail_msg("%s: %s", json, tp_error(c));
    return cfg;
}

static void their_defaults_are_taken_over(void **state) {
    (void)state;
    tp_config g = good_config("{" GPT2_JSON "}");
    assert_int_equal(g.model.family, TP_CFG_GPT2);
    assert_int_equal(g.model.layers, 2);
    assert_int_equal(g.model.heads, 4);
    assert_int_equal(g.model.channels, 32);
    assert_int_equal(g.model.ffn, 128);
    assert_int_equal(g.model.context, 64);
    assert_int_equal(g.model.vocab, 300);
    assert_true(g.model.norm_eps == 1e-5 && g.model.tie_embeddings);
    assert_int_equal(g.model.attention_bias, TP_CFG_TRUE);
    g = good_config("{" GPT2_JSON ",\"n_inner\":null,\"layer_norm_epsilon\":0.001,"
                    "\"activation_function\":\"gelu_new\",\"n_ctx\":7}");
    assert_int_equal(g.model.ffn, 128);
    assert_true(g.model.norm_eps == 0.001);

    tp_config l = good_config("{" LLAMA_JSON("llama") "}");
    assert_int_equal(l.model.family, TP_CFG_LLAMA);
    assert_int_equal(l.model.kv_heads, 16);
    assert_int_equal(l.model.head_dim, 4);
    assert_int_equal(l.model.ffn, 96);
    assert_true(l.model.norm_eps == 1e-6 && l.model.rope_theta == 10000);
    assert_false(l.model.tie_embeddings);
    assert_false(l.model.qk_norm);
    assert_int_equal(l.model.attention_bias, TP_CFG_FALSE);
    assert_int_equal(l.model.sliding_window, 0);
    l = good_config("{" LLAMA_JSON(
        "llama") ",\"num_key_value_heads\":2,\"head_dim\":null,"
                 "\"rope_theta\":500000.0,\"tie_word_embeddings\":true,\"mlp_bias\":true,"
                 "\"rope_scaling\":null,\"rms_norm_eps\":1e-05}");
    assert_int_equal(l.model.kv_heads, 2);
    assert_int_equal(l.model.head_dim, 4);
    assert_true(l.model.rope_theta == 500000 && l.model.norm_eps == 1e-5);
    assert_true(l.model.tie_embeddings);
    assert_int_equal(l.model.mlp_bias, TP_CFG_TRUE);

    tp_config q = good_config(
        "{" LLAMA_JSON("qwen2") ",\"sliding_window\":4096,"
                                "\"use_sliding_window\":false,\"max_window_layers\":21}");
    assert_int_equal(q.model.attention_bias, TP_CFG_TRUE);
    assert_int_equal(q.model.sliding_window, 0);
    q = good_config("{" LLAMA_JSON("qwen3") ",\"layer_types\":[\"full_attention\"]}");
    assert_true(q.model.qk_norm);
    assert_int_equal(q.model.head_dim, 128);
    assert_int_equal(q.model.attention_bias, TP_CFG_FALSE);

    tp_config m = good_config("{" LLAMA_JSON("mistral") "}");
    assert_int_equal(m.model.kv_heads, 8);
    assert_int_equal(m.model.sliding_window, 4096);
    m = good_config("{" LLAMA_JSON("mistral") ",\"sliding_window\":null}");
    assert_int_equal(m.model.sliding_window, 0);
}

static void scaled_positions_are_taken_over(void **state) {
    (void)state;
    tp_config l = good_config("{" LLAMA_JSON(
        "llama") ",\"rope_theta\":500000.0,\"rope_scaling\":{\"factor\":32.0,"
                 "\"high_freq_factor\":4.0,\"low_freq_factor\":1.0,"
                 "\"original_max_position_embeddings\":8192,\"rope_type\":\"llama3\"}}");
    assert_int_equal(l.rope_scaling.rope_type, TP_CFG_ROPE_LLAMA3);
    assert_true(l.rope_scaling.factor == 32 && l.model.rope_theta == 500000);
    assert_int_equal(l.rope_scaling.original_max_position_embeddings, 8192);
    /* where it is not said, it is the model's context; beside the group, it counts first */
    l = good_config("{" LLAMA_JSON("llama") ",\"rope_scaling\":{\"factor\":8.0,"
                                            "\"high_freq_factor\":4.0,\"low_freq_factor\":1.0,"
                                            "\"rope_type\":\"llama3\"}}");
    assert_int_equal(l.rope_scaling.original_max_position_embeddings, 128);
    l = good_config("{" LLAMA_JSON(
        "llama") ",\"original_max_position_embeddings\":32,\"rope_scaling\":{\"factor\":8.0,"
                 "\"original_max_position_embeddings\":64,\"rope_type\":\"llama3\"}}");
    assert_int_equal(l.rope_scaling.original_max_position_embeddings, 32);
    /* transformers 5 */
    l = good_config("{" LLAMA_JSON("llama") ",\"rope_parameters\":{\"rope_theta\":20000.5,"
                                            "\"rope_type\":\"linear\",\"factor\":2}}");
    assert_int_equal(l.rope_scaling.rope_type, TP_CFG_ROPE_LINEAR);
    assert_true(l.rope_scaling.factor == 2 && l.model.rope_theta == 20000.5);
    l = good_config("{" LLAMA_JSON("qwen3") ",\"rope_parameters\":{\"rope_theta\":1000000,"
                                            "\"rope_type\":\"default\"}}");
    assert_int_equal(l.rope_scaling.rope_type, TP_CFG_ROPE_DEFAULT);
    assert_true(l.model.rope_theta == 1e6);
}

static void what_is_none_of_ours_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *json, *pattern;
        tp_status st;
    } bad[] = {
        {"", "config.json: ", TP_EFORMAT},
        {"[]", "not a JSON object", TP_EFORMAT},
        {"{}", "it has no \"model_type\"", TP_EFORMAT},
        {"{\"model_type\":3}", "it has no \"model_type\"", TP_EFORMAT},
        {"{\"model_type\":\"gemma3\"}", "model_type \"gemma3\" is none", TP_EARG},
        {"{\"model_type\":\"gpt2\"}", "it has no \"n_layer\"", TP_EFORMAT},
        {"{" GPT2_JSON ",\"activation_function\":\"relu\"}",
         "\"activation_function\" is \"relu\", and Tapir computes \"gelu_new\" only", TP_EARG},
        {"{" GPT2_JSON ",\"scale_attn_by_inverse_layer_idx\":true}",
         "\"scale_attn_by_inverse_layer_idx\" is true", TP_EARG},
        {"{" GPT2_JSON ",\"scale_attn_weights\":false}", "\"scale_attn_weights\" is false",
         TP_EARG},
        {"{" GPT2_JSON ",\"add_cross_attention\":true}", "\"add_cross_attention\"", TP_EARG},
        {"{" GPT2_JSON ",\"n_inner\":\"wide\"}", "\"n_inner\" must ", TP_EARG},
        {"{" GPT2_JSON ",\"n_inner\":[1]}", "\"n_inner\" must be a single value", TP_EARG},
        {"{" GPT2_JSON ",\"n_inner\":1e999}", "\"n_inner\" must be a single value", TP_EARG},
        {"{" GPT2_JSON ",\"n_inner\":-1}", "\"n_inner\" must be a whole number", TP_EARG},
        {"{" GPT2_JSON ",\"quantization_config\":{\"bits\":4}}",
         "\"quantization_config\" is {\"bits\":4}, and Tapir computes null only", TP_EARG},
        {"{" LLAMA_JSON("llama") ",\"hidden_act\":\"gelu\"}", "\"hidden_act\" is \"gelu\"",
         TP_EARG},
        {"{" LLAMA_JSON("llama") ",\"num_key_value_heads\":5}", "config.json: model.kv_heads",
         TP_EARG},
        {"{" LLAMA_JSON("llama") ",\"partial_rotary_factor\":0.5}", "\"partial_rotary_factor\"",
         TP_EARG},
        {"{" LLAMA_JSON("llama") ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4}}",
         "\"rope_type\" must be one of", TP_EARG},
        {"{" LLAMA_JSON("llama") ",\"rope_scaling\":{\"type\":\"linear\",\"beta_fast\":4}}",
         "\"rope_scaling\" is {", TP_EARG},
        {"{" LLAMA_JSON("llama") ",\"rope_scaling\":2}", "\"rope_scaling\" must be an object",
         TP_EFORMAT},
        {"{" LLAMA_JSON("qwen2") ",\"use_sliding_window\":true}", "\"use_sliding_window\" is true",
         TP_EARG},
        {"{" LLAMA_JSON("qwen3") ",\"layer_types\":[\"full_attention\",\"sliding_attention\"]}",
         "\"layer_types\" is [", TP_EARG},
        {"{" LLAMA_JSON("qwen3") ",\"tie_word_embeddings\":1}", "\"tie_word_embeddings\" must ",
         TP_EARG},
    };
    tp_config cfg;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused(read_config(&cfg, bad[i].json), bad[i].st, bad[i].pattern);
}

/* What is written, read again: the same model. */
static void written_configs_read_back(void **state) {
    (void)state;
    static const char *const words[][8] = {
        {"model.family=gpt2", "model.ffn=100", "model.norm_eps=0.01"},
        {"model.family=llama", "model.kv_heads=2", "model.rope_theta=20000.5"},
        {"model.family=llama", "model.attention_bias=true", "model.mlp_bias=true"},
        {"model.family=llama", "model.attention_bias=true", "model.tie_embeddings=false"},
        {"model.family=llama", "model.qk_norm=true", "model.head_dim=10", "model.norm_eps=1e-6"},
        {"model.family=llama", "model.sliding_window=9"},
        {"model.family=llama", "rope_scaling.rope_type=llama3", "rope_scaling.factor=32"},
        {"model.family=llama", "rope_scaling.rope_type=linear", "rope_scaling.factor=2.5"},
    };
    static const char *const class[] = {
        "GPT2LMHeadModel",  "LlamaForCausalLM",   "LlamaForCausalLM", "Qwen2ForCausalLM",
        "Qwen3ForCausalLM", "MistralForCausalLM", "LlamaForCausalLM", "LlamaForCausalLM"};
    for (size_t i = 0; i < sizeof class / sizeof *class; i++) {
        tp_config cfg, back;
        tp_str t;
        tp_config_defaults(&cfg);
        assert_int_equal(tp_config_set(c, &cfg, "model.vocab=77"), TP_OK);
        for (int k = 0; words[i][k]; k++)
            assert_int_equal(tp_config_set(c, &cfg, words[i][k]), TP_OK);
        assert_int_equal(tp_config_resolve(c, &cfg), TP_OK);
        assert_null(tp_hf_none_computes(&cfg));
        assert_string_equal(tp_hf_class(&cfg), class[i]);
        tp_str_init(&t, c);
        tp_hf_config_write(&t, &cfg, -1);
        assert_false(t.failed);
        if (read_config(&back, t.at)) fail_msg("%s: %s", t.at, tp_error(c));
        assert_true(tp_config_equal(&cfg, &back));
        back.model.heads = 2; /* the comparison can fail */
        assert_false(tp_config_equal(&cfg, &back));
        tp_str_clear(&t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_has_its_value),
        cmocka_unit_test(tensors_are_found_by_name),
        cmocka_unit_test(headers_that_lie_are_refused),
        cmocka_unit_test(any_bit_of_a_header_may_be_wrong),
        cmocka_unit_test(an_allocation_may_fail),
        cmocka_unit_test(a_model_may_be_in_parts),
        cmocka_unit_test(their_defaults_are_taken_over),
        cmocka_unit_test(scaled_positions_are_taken_over),
        cmocka_unit_test(what_is_none_of_ours_is_refused),
        cmocka_unit_test(written_configs_read_back),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
