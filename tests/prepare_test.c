/* The prepare pipeline: the corpora say what the text says, the held-out part is its end. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/prepare.h"

static char dir[64], train_path[96], val_path[96];
static tp_ctx *ctx;

static int setup(void **state) {
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/tapir-prepare-XXXXXX");
    if (!mkdtemp(dir)) return -1;
    snprintf(train_path, sizeof train_path, "%s/train.h5", dir);
    snprintf(val_path, sizeof val_path, "%s/val.h5", dir);
    return tp_ctx_new(&ctx, &(tp_ctx_opts){.meta = true, .threads = 2}) != TP_OK;
}

static int teardown(void **state) {
    (void)state;
    char command[128];
    tp_ctx_free(ctx);
    snprintf(command, sizeof command, "rm -r %s", dir);
    return system(command) != 0;
}

static tp_text_source *source(const char *text, const tp_text_opts *opts) {
    static char path[96];
    const char *paths[] = {path};
    tp_text_source *src;
    snprintf(path, sizeof path, "%s/text.txt", dir);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    if (tp_text_open(&src, ctx, paths, 1, opts)) fail_msg("%s", tp_error(ctx));
    return src;
}

/* Every document of a corpus, decoded by its own tokenizer, as "[one][two]". */
static char *decode_all(const char *path) {
    tp_corpus *co;
    tp_tokenizer *tok;
    if (tp_corpus_open(&co, ctx, path)) fail_msg("%s", tp_error(ctx));
    if (tp_corpus_verify(co, ctx)) fail_msg("%s", tp_error(ctx));
    const tp_corpus_info *info = tp_corpus_get_info(co);
    if (tp_tokenizer_from_json(&tok, ctx, info->tokenizer, info->tokenizer_bytes, path))
        fail_msg("%s", tp_error(ctx));
    int32_t *ids = malloc((size_t)info->tokens * sizeof *ids);
    char *all = calloc((size_t)info->bytes + 2 * (size_t)info->docs + 1, 1), *at = all;
    for (int64_t d = 0; d < info->docs; d++) {
        char *text;
        size_t n;
        int64_t first = tp_corpus_offsets(co)[d], len = tp_corpus_offsets(co)[d + 1] - first;
        assert_int_equal(tp_corpus_read(co, ctx, first, len, ids), TP_OK);
        assert_int_equal(ids[len - 1], info->eos);
        assert_int_equal(tp_decode(&text, &n, ctx, tok, ids, len - 1), TP_OK);
        *at++ = '[';
        memcpy(at, text, n);
        at += n;
        *at++ = ']';
        tp_free(text);
    }
    free(ids);
    tp_tokenizer_free(tok);
    tp_corpus_close(co);
    return all;
}

static void expect_corpus(const char *path, const char *want) {
    char *got = decode_all(path);
    assert_string_equal(got, want);
    free(got);
}

static void expect_split(const char *text, const tp_text_opts *opts, double fraction,
                         const char *train, const char *val) {
    tp_text_source *src = source(text, opts);
    tp_prepare_result r;
    tp_prepare_opts o = {.bpe.vocab_size = 300, .val_fraction = fraction};
    if (tp_prepare(&r, ctx, src, train_path, val_path, &o)) fail_msg("%s", tp_error(ctx));
    expect_corpus(train_path, train);
    expect_corpus(val_path, val);
    assert_int_equal(r.train.bytes + r.val.bytes,
                     strlen(train) + strlen(val) - 2 * (size_t)(r.train.docs + r.val.docs));
    tp_text_close(src);
}

static void the_end_is_held_out(void **state) {
    (void)state;
    const tp_text_opts lines = {.split_line = ""};
    expect_split("one\ntwo\nthree\nfour\n", NULL, 0.3, "[one\ntwo\nthree\n]", "[four\n]");
    expect_split("one\ntwo\nthree\nfour\n", NULL, 0.01, "[one\ntwo\nthree\n]", "[four\n]");
    expect_split("abcdefghij", NULL, 0.2, "[abcdefgh]", "[ij]"); /* no lines */
    expect_split("aaa\n\nbbb\n\nccc\n\nddd", &lines, 0.5, "[aaa][bbb]", "[ccc][ddd]");
    expect_split("aaa\n\nbbb\n\nccc\n\nddd", &lines, 0.3, "[aaa][bbb][ccc]", "[ddd]");
    /* the last document alone is more than the fraction: it is cut, at a line end */
    expect_split("aaa\n\nbbbb\ncccc\ndddd", &lines, 0.3, "[aaa][bbbb\ncccc\n]", "[dddd]");
    /* the same border wherever the pieces end */
    for (int64_t piece = 1; piece < 24; piece += 3)
        expect_split("one\ntwo\nthree\nfour\nfive\n", &(tp_text_opts){.piece_bytes = piece}, 0.3,
                     "[one\ntwo\nthree\nfour\n]", "[five\n]");
}

/* Nothing must appear under either name. */
static void expect_refused(const char *text, const tp_prepare_opts *o, tp_status want,
                           const char *words) {
    tp_prepare_result r;
    unlink(train_path), unlink(val_path);
    tp_text_source *src = source(text, NULL);
    assert_int_equal(tp_prepare(&r, ctx, src, train_path, val_path, o), want);
    if (!strstr(tp_error(ctx), words)) fail_msg("\"%s\" lacks \"%s\"", tp_error(ctx), words);
    tp_clear(ctx);
    assert_int_equal(access(train_path, F_OK), -1);
    assert_int_equal(access(val_path, F_OK), -1);
    tp_text_close(src);
}

static bool stop(void *arg, double fraction, const char *what) {
    (void)fraction;
    return strcmp(what, arg) != 0;
}

static void failures_leave_nothing(void **state) {
    (void)state;
    tp_prepare_opts o = {.bpe.vocab_size = 300, .val_fraction = 0.5};
    expect_refused("", &o, TP_EARG, "too few");
    expect_refused("x", &o, TP_EARG, "too few");
    o.val_fraction = 1;
    expect_refused("x\ny\n", &o, TP_EARG, "below 1");
    o.val_fraction = 0;
    expect_refused("", &o, TP_EARG, "no text");
    o.progress = stop;
    o.progress_arg = (void *)(uintptr_t) "encoding";
    expect_refused("x\ny\n", &o, TP_EINTERRUPT, "stopped while encoding");
    tp_prepare_result r;
    char path[96];
    snprintf(path, sizeof path, "%s/text.txt", dir);
    tp_text_source *src = source("some text\n", NULL);
    o.progress = NULL;
    assert_int_equal(tp_prepare(&r, ctx, src, path, NULL, &o), TP_EARG);
    assert_non_null(strstr(tp_error(ctx), "overwrite the text"));
    tp_clear(ctx);
    tp_text_close(src);
}

/* The training corpus, tokenizer and all, is what the training part alone gives, with any number of
 * threads. */
static void held_out_text_is_not_learnt(void **state) {
    (void)state;
    char text[4000] = "", *at = text, sha[65];
    tp_prepare_result r;
    tp_prepare_opts o = {.bpe.vocab_size = 320};
    for (int i = 0; i < 100; i++) at += sprintf(at, "some training text %d\n", i);
    tp_text_source *src = source(text, NULL);
    assert_int_equal(tp_prepare(&r, ctx, src, train_path, NULL, &o), TP_OK);
    memcpy(sha, r.train.sha256, 65);
    tp_text_close(src);
    int64_t n = at - text;
    for (int i = 0; i < 50; i++) at += sprintf(at, "quite different words\n");
    o.val_fraction = 1 - ((double)n - 1) / (double)(at - text);
    for (int threads = 1; threads < 4; threads++) {
        tp_ctx *c;
        assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.meta = true, .threads = threads}), TP_OK);
        src = source(text, NULL);
        assert_int_equal(tp_prepare(&r, c, src, train_path, val_path, &o), TP_OK);
        assert_int_equal(r.train.bytes, n);
        assert_string_equal(r.train.sha256, sha);
        tp_text_close(src);
        tp_ctx_free(c);
    }
}

/* Pieces, batches and threads do not show in the result. */
static void the_same_file_in_any_pieces(void **state) {
    (void)state;
    enum { LINES = 4000 };
    char *text = malloc(LINES * 50 + 1), *at = text;
    for (int i = 0; i < LINES; i++)
        at += sprintf(at, "%s line %d, it's%s%s\n%s", i % 3 ? "the" : "  a", i * 7919 % 1000,
                      i % 5 ? "word\xc3\xa9!" : "\t\xff\xfe 12345", i % 4 ? "" : "\r",
                      i % 7 ? "" : "\n \n");
    for (int cl100k = 0; cl100k < 2; cl100k++) {
        char first[65] = "";
        for (int64_t piece = 64; piece < 1 << 20; piece *= 7) {
            tp_text_source *src = source(text, &(tp_text_opts){.piece_bytes = piece});
            tp_prepare_result r;
            tp_prepare_opts o = {.bpe.vocab_size = 400, .bpe.pattern = cl100k ? "cl100k" : "gpt2"};
            if (tp_prepare(&r, ctx, src, train_path, NULL, &o)) fail_msg("%s", tp_error(ctx));
            assert_int_equal(r.train.docs, 1);
            assert_int_equal(r.train.bytes, at - text);
            if (!first[0]) memcpy(first, r.train.sha256, 65);
            assert_string_equal(r.train.sha256, first);
            tp_text_close(src);
        }
    }
    free(text);
}

/* Bits per byte are of the text that the tokens stand for, and so is the corpus' own count. */
static void normalised_bytes_count(void **state) {
    (void)state;
    static const char form[] = "\"normalizer\": {\"type\": \"NFC\"}",
                      none[] = "\"normalizer\": null";
    tp_tokenizer *bytes, *tok;
    assert_int_equal(tp_tokenizer_new_bytes(&bytes, ctx, NULL, 0), TP_OK);
    const char *json = tp_tokenizer_json(bytes, NULL), *at = strstr(json, none);
    char *edited = malloc(strlen(json) + sizeof form), first[65] = "";
    int n = sprintf(edited, "%.*s%s%s", (int)(at - json), json, form, at + sizeof none - 1);
    if (tp_tokenizer_from_json(&tok, ctx, edited, (size_t)n, "nfc")) fail_msg("%s", tp_error(ctx));
    char text[3000] = "", want[3000] = "[";
    for (int i = 0; i < 100; i++) {
        strcat(text, "cafe\u0301 \u212B.\n");
        strcat(want, "caf\u00E9 \u00C5.\n");
    }
    strcat(want, "]");
    for (int64_t piece = 8; piece < 1 << 12; piece *= 7) {
        tp_text_source *src = source(text, &(tp_text_opts){.piece_bytes = piece});
        tp_prepare_result r;
        tp_prepare_opts o = {.tokenizer = tok};
        if (tp_prepare(&r, ctx, src, train_path, NULL, &o)) fail_msg("%s", tp_error(ctx));
        expect_corpus(train_path, want); /* which verifies the count of each document */
        assert_int_equal(r.train.bytes, strlen(want) - 2);
        assert_int_equal(r.train.tokens, strlen(want) - 1);
        if (!first[0]) memcpy(first, r.train.sha256, 65);
        assert_string_equal(r.train.sha256, first);
        tp_text_close(src);
    }
    free(edited);
    tp_tokenizer_free(tok);
    tp_tokenizer_free(bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_end_is_held_out), cmocka_unit_test(held_out_text_is_not_learnt),
        cmocka_unit_test(failures_leave_nothing), cmocka_unit_test(the_same_file_in_any_pieces),
        cmocka_unit_test(normalised_bytes_count)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
