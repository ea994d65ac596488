/* Conversations as rows: what is learnt and what is not, packing that keeps examples apart, orders
 * that anybody can find again, and templates whose marks nobody can write into a turn. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "data/sft.h"
#include "nn/nn.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[64];
static tp_ctx *c;
static tp_tokenizer *bytes, *marked, *begun;
enum { EOS = 256 };

/* Llama 3's marks, and a token that every text begins with. */
static int make_begun(void) {
    static const char *const specials[] = {"<|endoftext|>", "<|start_header_id|>",
                                           "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>"};
    static const char none[] = "\"post_processor\": null";
    tp_tokenizer *t;
    size_t n;
    if (tp_tokenizer_new_bytes(&t, c, specials, 5)) return 1;
    const char *json = tp_tokenizer_json(t, &n), *at = strstr(json, none);
    char *with = malloc(n + 200);
    int len = sprintf(with,
                      "%.*s\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{"
                      "\"SpecialToken\":{\"id\":\"<|begin_of_text|>\",\"type_id\":0}}]}%s",
                      (int)(at - json), json, at + strlen(none));
    tp_status st = tp_tokenizer_from_json(&begun, c, with, (size_t)len, "begun");
    free(with);
    tp_tokenizer_free(t);
    return st != TP_OK;
}

static int setup(void **state) {
    (void)state;
    static const char *const specials[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    snprintf(path, sizeof path, "/tmp/tapir-sft-%d.jsonl", (int)getpid());
    return tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1}) ||
           tp_tokenizer_new_bytes(&bytes, c, NULL, 0) ||
           tp_tokenizer_new_bytes(&marked, c, specials, 3) || make_begun();
}
static int teardown(void **state) {
    (void)state;
    unlink(path);
    tp_tokenizer_free(bytes);
    tp_tokenizer_free(marked);
    tp_tokenizer_free(begun);
    tp_ctx_free(c);
    return 0;
}

static tp_sft_data *data(const char *text, const tp_tokenizer *t, tp_chat_template kind,
                         int64_t T) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    tp_sft_data *d;
    if (tp_sft_read(&d, c, path, t, kind, T)) fail_msg("%s", tp_error(c));
    return d;
}
static tp_sft *rows(const tp_sft_data *d, tp_sft_opts o) {
    tp_sft *s;
    assert_int_equal(tp_sft_new(&s, c, d, &o), 0);
    return s;
}

/* "in>target" for each position: bytes as they are, E for end-of-text, _ for ignored. */
static void spell(const tp_batch *b, int64_t row, int64_t T, char *out) {
    for (int64_t t = 0; t < T; t++) {
        int32_t x = b->inputs[row * T + t], y = b->targets[row * T + t];
        *out++ = x == EOS ? 'E' : x > EOS ? (char)('0' + x - EOS) : x ? (char)x : '.';
        *out++ = y == TP_IGNORE ? '_' : y == EOS ? 'E' : y > EOS ? (char)('0' + y - EOS) : (char)y;
        *out++ = ' ';
    }
    out[-1] = 0;
}

static void test_what_is_learnt(void **state) {
    (void)state;
    enum { T = 8 };
    tp_batch b;
    char text[3 * T];
    tp_sft_data *d = data("{\"prompt\":\"ab\",\"response\":\"xy\"}\n"
                          "{\"prompt\":\"\",\"completion\":\"z\"}\n\n"
                          "{\"prompt\":\"abcdefg\",\"response\":\"xyz\"}\n"
                          "{\"prompt\":\"abcdefghi\",\"response\":\"xyz\"}\n"
                          "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":"
                          "\"assistant\",\"content\":\"p\"},{\"role\":\"user\",\"content\":\"b\"},"
                          "{\"role\":\"assistant\",\"content\":\"q\"}]}\n",
                          bytes, TP_CHAT_PLAIN, T);
    const tp_sft_info *i = tp_sft_get_info(d);
    assert_int_equal(i->examples, 4);
    assert_int_equal(i->cut, 2);
    assert_int_equal(i->left_out, 1); /* its reply begins beyond the context */
    tp_sft *s = rows(d, (tp_sft_opts){.batch = 5, .T = T, .sequential = true});
    assert_int_equal(tp_sft_next(s, c, &b), 0);
    assert_int_equal(b.rows, 4);
    static const char *const want[] = {"a_ bx xy yE ._ ._ ._ ._", "Ez zE ._ ._ ._ ._ ._ ._",
                                       "a_ b_ c_ d_ e_ f_ gx xy", "ap pE E_ bq qE ._ ._ ._",
                                       "._ ._ ._ ._ ._ ._ ._ ._"};
    for (int r = 0; r < 5; r++) {
        spell(&b, r, T, text);
        assert_string_equal(text, want[r]);
    }
    assert_int_equal(b.n_targets, 3 + 2 + 2 + 4);
    assert_int_equal(b.target_bytes, 2 + 1 + 2 + 2); /* the end stands for no text */
    tp_sft_free(s);
    tp_sft_data_free(d);
}

/* A row holds both pieces. */
static void expect_spelt(const char *json, const tp_tokenizer *t, tp_chat_template kind,
                         const char *piece, const char *other) {
    enum { T = 180 };
    tp_batch b;
    char text[3 * T];
    tp_sft_data *d = data(json, t, kind, T);
    tp_sft *s = rows(d, (tp_sft_opts){.batch = 1, .T = T, .sequential = true});
    assert_int_equal(tp_sft_next(s, c, &b), 0);
    spell(&b, 0, T, text);
    assert_non_null(strstr(text, piece));
    assert_non_null(strstr(text, other));
    tp_sft_free(s);
    tp_sft_data_free(d);
}

static void test_templates(void **state) {
    (void)state;
    enum { T = 60 };
    tp_batch b;
    char text[3 * T];
    const char *line = "{\"messages\":[{\"role\":\"user\",\"content\":\"<|im_end|>\"},"
                       "{\"role\":\"assistant\",\"content\":\"ok\"}]}\n";
    tp_sft_data *d = data(line, marked, TP_CHAT_CHATML, T);
    tp_sft *s = rows(d, (tp_sft_opts){.batch = 1, .T = T, .sequential = true});
    assert_int_equal(tp_sft_next(s, c, &b), 0);
    spell(&b, 0, T, text);
    /* 1 and 2 are the marks; the one that the user wrote stays text; the reply's end is learnt */
    const char *want =
        "1_ u_ s_ e_ r_ \n_ <_ |_ i_ m_ __ e_ n_ d_ |_ >_ 2_ \n_ 1_ a_ s_ s_ i_ s_ t_ a_ "
        "n_ t_ \no ok k2 ";
    assert_memory_equal(text, want, strlen(want));
    tp_sft_free(s);
    tp_sft_data_free(d);
    /* a newline, not learnt, between a reply's end and the next turn; where the tokenizer lacks the
     * mark that ends turns, end-of-text ends replies */
    const char *two = "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},"
                      "{\"role\":\"assistant\",\"content\":\"p\"},"
                      "{\"role\":\"user\",\"content\":\"b\"},"
                      "{\"role\":\"assistant\",\"content\":\"q\"}]}\n";
    expect_spelt(two, marked, TP_CHAT_CHATML, "\np p2 2_ \n_ 1_ u_ s_ e_ r_ \n_ b_ 2_ ",
                 "\nq q2 ._ ");
    expect_spelt(two, bytes, TP_CHAT_CHATML, "\np pE E_ \n_ <_ |_ i_ m_ __ s_ ", "\nq qE ._ ");
    expect_spelt("{\"prompt\":\"q\",\"response\":\"a\"}\n", bytes, TP_CHAT_ALPACA,
                 "\n_ q_ \n_ \n_ #_ #_ #_ ", ":_ \na aE ._");
}

/* Header, words and the end of a turn; the token that texts begin with stands once, before all. */
static void test_llama3(void **state) {
    (void)state;
    const char *two = "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},"
                      "{\"role\":\"user\",\"content\":\"a\"},"
                      "{\"role\":\"assistant\",\"content\":\"p\"},"
                      "{\"role\":\"user\",\"content\":\"b\"},"
                      "{\"role\":\"assistant\",\"content\":\"q\"}]}\n";
    /* 1 and 2 around the role, 3 the end of a turn, 4 the beginning */
    expect_spelt(two, begun, TP_CHAT_LLAMA3,
                 "4_ 1_ s_ y_ s_ t_ e_ m_ 2_ \n_ \n_ s_ 3_ 1_ u_ s_ e_ r_ 2_ \n_ \n_ a_ 3_ 1_ a_ "
                 "s_ s_ i_ s_ t_ a_ n_ t_ 2_ \n_ \np p3 3_ 1_ u_ s_ e_ r_ 2_ \n_ \n_ b_ 3_ 1_ a_ ",
                 "2_ \n_ \nq q3 ._ ");
    expect_spelt("{\"prompt\":\"q\",\"response\":\"a\"}\n", begun, TP_CHAT_PLAIN, "4_ qa aE ._",
                 "._ ._");
    assert_int_equal(tp_chat_suits(bytes), TP_CHAT_PLAIN);
    assert_int_equal(tp_chat_suits(marked), TP_CHAT_CHATML);
    assert_int_equal(tp_chat_suits(begun), TP_CHAT_LLAMA3);
}

/* What chat gives the model is what it has learnt to go on from. */
static void test_chat_is_training(void **state) {
    (void)state;
    static const char *const said[] = {"a", "p", "b", "q"};
    tp_tokenizer *const with[] = {bytes, marked, begun};
    for (int i = 0; i < 12; i++) {
        tp_chat *h;
        tp_conversation whole = {0}, v = {0};
        assert_int_equal(tp_chat_new(&h, c, with[i % 3], (tp_chat_template)(i / 3)), 0);
        for (int k = 0; k < 4; k++)
            assert_int_equal(tp_chat_turn(h, &whole, k % 2 ? "assistant" : "user", said[k], 1), 0);
        for (int k = 0; k < 4; k++) {
            int64_t asked = v.ids.n;
            if (k % 2) {
                assert_int_equal(tp_chat_reply(h, &v), 0);
                assert_true(v.ids.n < whole.ids.n && whole.trained.data[v.ids.n]);
                assert_memory_equal(v.ids.data, whole.ids.data, (size_t)v.ids.n * 4);
                v.ids.n = v.trained.n = asked;
            }
            assert_int_equal(tp_chat_turn(h, &v, k % 2 ? "assistant" : "user", said[k], 1), 0);
        }
        assert_int_equal(v.ids.n, whole.ids.n);
        assert_memory_equal(v.ids.data, whole.ids.data, (size_t)v.ids.n * 4);
        assert_int_equal(v.ids.data[v.ids.n - 1], tp_chat_end(h));
        tp_conversation_clear(&whole);
        tp_conversation_clear(&v);
        tp_chat_free(h);
    }
}

static char *many(int n) {
    char *text = malloc((size_t)n * 80), *at = text;
    for (int i = 0; i < n; i++)
        at += sprintf(at, "{\"prompt\":\"%d%.*s:\",\"response\":\"%d\"}\n", i, i * 7 % 11,
                      "aaaaaaaaaaa", i * i);
    return text;
}

/* Every example once an epoch, whole, in rows that any order of asking gives alike. */
static void orders(bool pack) {
    enum { T = 40, N = 53 };
    char *text = many(N);
    tp_sft_data *d = data(text, bytes, TP_CHAT_PLAIN, T);
    tp_sft_opts o = {.batch = 4, .T = T, .seed = 3, .pack = pack};
    tp_sft *s = rows(d, o);
    int64_t per_epoch = tp_sft_rows(s), targets, sum = 0, used = 0;
    if (!pack) assert_int_equal(per_epoch, N);
    if (pack) assert_true(per_epoch < N / 2);
    int seen[N] = {0};
    static int32_t first[200][T], first_y[200][T];
    for (int64_t at = 0; at < 200; at += 4) {
        tp_batch b;
        assert_int_equal(tp_sft_next(s, c, &b), 0);
        assert_int_equal(b.rows, 4);
        memcpy(first[at], b.inputs, sizeof first[0] * 4);
        memcpy(first_y[at], b.targets, sizeof first_y[0] * 4);
        assert_int_equal(tp_sft_count_targets(s, c, at, 4, &targets), 0);
        assert_int_equal(targets, b.n_targets);
        for (int r = 0; r < 4 && at + r < per_epoch; r++) {
            for (int t = 0; t < T; t++) {
                int64_t cell = r * T + t;
                bool begins = pack ? b.positions[cell] == 0 && b.segments[cell] >= 0 : t == 0;
                int number = b.inputs[cell] - '0', next = t + 1 < T ? b.inputs[cell + 1] : 0;
                if (next >= '0' && next <= '9') number = 10 * number + next - '0';
                if (begins) seen[number]++;
                used += pack ? b.segments[cell] >= 0 : 0;
            }
            sum++;
        }
    }
    for (int i = 0; i < N; i++) assert_int_equal(seen[i], 1);
    if (pack) assert_true(used > per_epoch * T * 3 / 4); /* rows are well filled */
    for (int64_t at = 196; at >= 0; at -= 28) {          /* from anywhere, and by two ranks */
        tp_batch b;
        assert_int_equal(tp_sft_seek(s, c, at), 0);
        assert_int_equal(tp_sft_next(s, c, &b), 0);
        assert_int_equal(b.sample, at);
        assert_memory_equal(first[at], b.inputs, sizeof first[0] * 4);
        assert_memory_equal(first_y[at], b.targets, sizeof first_y[0] * 4);
        for (int rank = 0; rank < 2; rank++) {
            tp_sft_opts half = o;
            half.batch = half.share = 2, half.period = 4, half.first = 2 * rank;
            tp_sft *x = rows(d, half);
            assert_int_equal(tp_sft_seek(x, c, at), 0);
            assert_int_equal(tp_sft_next(x, c, &b), 0);
            assert_int_equal(b.sample, at + 2 * rank);
            assert_memory_equal(first[at + 2 * rank], b.inputs, sizeof first[0] * 2);
            tp_sft_free(x);
        }
    }
    assert_memory_not_equal(first[0], first[per_epoch], sizeof first[0]); /* dealt anew */
    tp_sft_free(s);
    tp_sft_data_free(d);
    free(text);
}
static void test_orders(void **state) {
    (void)state;
    orders(false);
    orders(true);
}

/* A packed example has the loss, token by token, that it has in a row of its own. */
static void test_packing_keeps_apart(void **state) {
    (void)state;
    enum { T = 48, N = 6 };
    tp_model_cfg f = {.family = TP_FAMILY_LLAMA,
                      .layers = 2,
                      .heads = 2,
                      .kv_heads = 2,
                      .channels = 16,
                      .head_dim = 8,
                      .ffn = 32,
                      .context = T,
                      .vocab = 257,
                      .rope_theta = 10000,
                      .norm_eps = 1e-5,
                      .init_std = 0.3};
    tp_model *m;
    assert_int_equal(tp_model_new(&m, c, &f), 0);
    char *text = many(N);
    tp_sft_data *d = data(text, bytes, TP_CHAT_PLAIN, T);
    float alone[N * T], packed[N * T];
    int64_t n[2] = {0, 0};
    for (int pack = 0; pack < 3; pack++) { /* 2: the mutant, packed without segments */
        tp_sft *s =
            rows(d, (tp_sft_opts){.batch = N, .T = T, .sequential = true, .pack = pack > 0});
        tp_batch b;
        assert_int_equal(tp_sft_next(s, c, &b), 0);
        tp_tensor *t[4];
        const int32_t *from[4] = {b.inputs, b.targets, b.segments, b.positions};
        for (int i = 0; i < (pack ? 4 : 2); i++) {
            t[i] = tp_tensor_new(c, TP_I32, TP_SHAPE(N, T));
            assert_int_equal(tp_upload(c, t[i], from[i]), 0);
        }
        tp_model_in in = {.ids = t[0]};
        if (pack) in.positions = t[3];
        if (pack == 1) in.segments = t[2];
        tp_model_out y = tp_model_loss(c, m, &in, t[1], &(tp_model_loss_opts){.scale = 1});
        assert_non_null(y.logprob);
        float *out = pack ? packed : alone;
        n[pack > 0] = 0;
        for (int64_t i = 0; i < N * T; i++)
            if (b.targets[i] != TP_IGNORE) out[n[pack > 0]++] = tp_f32(y.logprob)[i];
        assert_int_equal(n[pack > 0], tp_sft_get_info(d)->trained);
        if (pack) assert_true(!memcmp(alone, packed, (size_t)n[0] * sizeof *alone) == (pack == 1));
        tp_step_end(c);
        tp_sft_free(s);
    }
    tp_sft_data_free(d);
    tp_model_free(m);
    free(text);
}

/* Nothing is cut at a NUL, and what only looks like one is text. */
static void test_nul(void **state) {
    (void)state;
    enum { T = 24 };
    static const char *const bad[] = {"\\u0000", "a\\\\\\u0000", "\\\"\\u0000b"};
    char text[3 * T], line[64];
    tp_batch b;
    tp_sft_data *d =
        data("{\"prompt\":\"NUL\",\"response\":\"a\\\\u0000\"}\n", bytes, TP_CHAT_PLAIN, T);
    tp_sft *s = rows(d, (tp_sft_opts){.batch = 1, .T = T, .sequential = true});
    assert_int_equal(tp_sft_next(s, c, &b), 0);
    spell(&b, 0, T, text);
    assert_int_equal(strncmp(text, "N_ U_ La a\\ \\u u0 00 00 00 0E ._", 32), 0);
    tp_sft_free(s);
    tp_sft_data_free(d);
    for (int i = 0; i < 4; i++) {
        FILE *f = fopen(path, "w");
        int n = sprintf(line, "{\"prompt\":\"%s\",\"response\":\"b\"}\n", i < 3 ? bad[i] : "0");
        if (i == 3) *strchr(line, '0') = 0;
        fwrite(line, 1, (size_t)n, f);
        fclose(f);
        assert_int_equal(tp_sft_read(&d, c, path, bytes, TP_CHAT_PLAIN, T), TP_EFORMAT);
        assert_non_null(strstr(tp_error(c), i < 3 ? "line 1: a NUL character (\\u0000) is no text"
                                                  : "line 1: a zero byte is no text"));
        tp_clear(c);
    }
}

static void test_refusals(void **state) {
    (void)state;
    tp_sft_data *d;
    FILE *f = fopen(path, "w");
    fputs("{\"prompt\":\"aaaaaaaaaaaaaaaa\",\"response\":\"b\"}\n", f);
    fclose(f);
    assert_int_equal(tp_sft_read(&d, c, path, bytes, TP_CHAT_PLAIN, 8), TP_EFORMAT);
    assert_non_null(strstr(
        tp_error(c), "no example with a reply that begins within the 8 tokens of model.context"));
    tp_clear(c);
    assert_int_equal(tp_sft_read(&d, c, "/nowhere/x.jsonl", bytes, TP_CHAT_PLAIN, 8), TP_EIO);
    tp_clear(c);
    for (long at = 1, clean = 0; !clean; at++) { /* every allocation that may fail */
        tp_sft *s = NULL;
        char *text = many(9);
        f = fopen(path, "w");
        fputs(text, f);
        fclose(f);
        free(text);
        tp_ctx *x;
        tp_status st;
        assert_int_equal(tp_ctx_new(&x, &(tp_ctx_opts){.threads = 1, .fail_alloc_at = at}), 0);
        d = NULL;
        st = tp_sft_read(&d, x, path, bytes, TP_CHAT_CHATML, 90);
        if (!st) st = tp_sft_new(&s, x, d, &(tp_sft_opts){.batch = 2, .T = 90, .pack = true});
        clean = st == TP_OK;
        if (st) assert_int_equal(st, TP_ENOMEM);
        tp_sft_free(s);
        tp_sft_data_free(d);
        tp_ctx_free(x);
        assert_true(at < 5000);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_learnt),
        cmocka_unit_test(test_templates),
        cmocka_unit_test(test_llama3),
        cmocka_unit_test(test_chat_is_training),
        cmocka_unit_test(test_orders),
        cmocka_unit_test(test_packing_keeps_apart),
        cmocka_unit_test(test_nul),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
