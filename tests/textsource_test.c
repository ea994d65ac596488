/* Text sources: every document comes out whole, in order, byte for byte; what is no text is told.
 */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/jsonl.h"
#include "data/textsource.h"

static char dir[64];
static tp_ctx *ctx;

static const char *path_of(const char *name) {
    static char path[4][256];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, 256, "%s/%s", dir, name);
    return p;
}

static const char *put(const char *name, const void *bytes, size_t n) {
    const char *path = path_of(name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    return path;
}

static const char *put_text(const char *name, const char *text) {
    return put(name, text, strlen(text));
}

static int setup(void **state) {
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/tapir-text-XXXXXX");
    if (!mkdtemp(dir)) return -1;
    return tp_ctx_new(&ctx, &(tp_ctx_opts){.meta = true, .threads = 1}) != TP_OK;
}

static int teardown(void **state) {
    (void)state;
    char command[128];
    tp_ctx_free(ctx);
    snprintf(command, sizeof command, "rm -r %s", dir);
    return system(command) != 0;
}

/* All documents, joined as "[document]"; checks begins/ends on the way. */
static char *read_all(tp_text_source *s, int64_t *pieces) {
    size_t n = 0, cap = 1 << 10;
    char *all = malloc(cap);
    bool inside = false, more;
    tp_text_piece p;
    int64_t count = 0;
    for (;; count++) {
        assert_int_equal(tp_text_next(s, ctx, &p, &more), TP_OK);
        if (!more) break;
        assert_true(p.n > 0);
        assert_int_equal(p.begins, !inside);
        while (n + (size_t)p.n + 3 > cap) all = realloc(all, cap *= 2);
        if (p.begins) all[n++] = '[';
        memcpy(all + n, p.bytes, (size_t)p.n);
        n += (size_t)p.n;
        if (p.ends) all[n++] = ']';
        inside = !p.ends;
    }
    assert_false(inside);
    all[n] = 0;
    if (pieces) *pieces = count;
    return all;
}

static void expect(const char *const *paths, int64_t n, const tp_text_opts *opts,
                   const char *want) {
    tp_text_source *s;
    if (tp_text_open(&s, ctx, paths, n, opts)) fail_msg("%s", tp_error(ctx));
    for (int pass = 0; pass < 2; pass++) {
        char *got = read_all(s, NULL);
        assert_string_equal(got, want);
        free(got);
        tp_text_counts counts = tp_text_get_counts(s);
        assert_int_equal(counts.bytes_done, counts.bytes);
        tp_text_rewind(s);
    }
    tp_text_close(s);
}

static void expect_one(const char *path, const tp_text_opts *opts, const char *want) {
    expect(&path, 1, opts, want);
}

/* Opening, or reading to the end, must fail with these words in the message. */
static void expect_error(const char *path, const tp_text_opts *opts, tp_status want,
                         const char *words) {
    tp_text_source *s;
    tp_text_piece p;
    bool more = true;
    tp_status st = tp_text_open(&s, ctx, &path, 1, opts);
    while (!st && more) st = tp_text_next(s, ctx, &p, &more);
    tp_text_close(s);
    assert_int_equal(st, want);
    if (!strstr(tp_error(ctx), words)) fail_msg("\"%s\" lacks \"%s\"", tp_error(ctx), words);
    tp_clear(ctx);
}

static void plain_files_are_documents(void **state) {
    (void)state;
    const char *a = put_text("a.txt", "one\ntwo\n"), *b = put_text("b.txt", "\xef\xbb\xbfthree");
    const char *empty = put_text("empty.txt", "");
    expect((const char *[]){a, empty, b}, 3, NULL, "[one\ntwo\n][three]");
}

static void documents_split_at_lines(void **state) {
    (void)state;
    const char *a = put_text("blank.txt", "\n\na\nb\n \t\r\n\n\nc\r\n\nd");
    expect_one(a, &(tp_text_opts){.split_line = ""}, "[a\nb][c][d]");
    a = put_text("mark.txt", "<|end|>\na\n\nb\n<|end|>\r\nc <|end|>\n<|end|>\n");
    expect_one(a, &(tp_text_opts){.split_line = "<|end|>"}, "[a\n\nb][c <|end|>]");
}

static void json_lines(void **state) {
    (void)state;
    const char *a = put_text(
        "a.jsonl", "{\"text\": \"one\\n\\u00e9\\ud83d\\ude00\"}\n\n"
                   "{\"id\": [1, {\"text\": \"no\"}, -2.5e+3, null], \"text\":\"t\\\"w\"}\r\n"
                   "{\"text\":\"\"}\n  {\"te\\u0078t\":\"\\ud83dx\"}");
    expect_one(a, NULL, "[one\n\u00e9\U0001f600][t\"w][\ufffdx]");
    expect_one(put_text("b.jsonl", "{\"body\":\"x\"}"), &(tp_text_opts){.json_key = "body"}, "[x]");
    expect_one(put_text("c.txt", "{\"text\":\"x\"}"), &(tp_text_opts){.format = TP_TEXT_JSONL},
               "[x]");
    expect_one(put_text("d.jsonl", "{\"text\":\"x\"}\n"), &(tp_text_opts){.format = TP_TEXT_PLAIN},
               "[{\"text\":\"x\"}\n]");
}

static void json_keeps_zero_bytes(void **state) {
    (void)state;
    const char *line = "{\"text\":\"a\\u0000b\"}";
    char out[32];
    size_t n, at;
    assert_null(tp_jsonl_text(line, strlen(line), "text", out, &n, &at));
    assert_int_equal(n, 3);
    assert_memory_equal(out, "a\0b", 3);
}

static void json_refusals_name_the_line(void **state) {
    (void)state;
    static const char *const bad[][2] = {
        {"{\"text\":1}", "must be a string"},
        {"{\"txt\":\"\"}", "no such key"},
        {"{\"text\":\"a\"", "comma or }"},
        {"{\"text\":\"a", "inside a string"},
        {"{\"text\":\"a\"} x", "more after"},
        {"{\"text\":\"a\",\"text\":\"b\"}", "second time"},
        {"{\"text\":\"\\x\"}", "no such escape"},
        {"{\"text\":\"\\u12g4\"}", "hexadecimal"},
        {"{\"text\":\"a\tb\"}", "control character"},
        {"{\"a\":01,\"text\":\"\"}", "comma or }"},
        {"{\"a\":1.,\"text\":\"\"}", "digit"},
        {"{\"a\":nul,\"text\":\"\"}", "value"},
        {"{\"a\":[1,],\"text\":\"\"}", "digit"},
        {"[\"text\"]", "in braces"},
        {"{text:\"a\"}", "string must begin"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[128];
        snprintf(text, sizeof text, "{\"text\":\"fine\"}\n%s\n", bad[i][0]);
        const char *path = put_text("bad.jsonl", text);
        expect_error(path, NULL, TP_EFORMAT, bad[i][1]);
        expect_error(path, NULL, TP_EFORMAT, "bad.jsonl:2:");
    }
    char deep[2048] = "{\"a\":";
    memset(deep + 5, '[', 1000);
    expect_error(put_text("deep.jsonl", deep), NULL, TP_EFORMAT, "nested too deeply");
}

static void folders_in_byte_order(void **state) {
    (void)state;
    mkdir(path_of("tree"), 0755);
    mkdir(path_of("tree/b"), 0755);
    mkdir(path_of("tree/.git"), 0755);
    put_text("tree/b/2.txt", "b2");
    put_text("tree/b/10.txt", "b10");
    put_text("tree/a.txt", "a");
    put_text("tree/Z.txt", "Z");
    put_text("tree/\xc3\xa9.txt", "e");
    put_text("tree/.hidden", "no");
    put_text("tree/.git/config", "no");
    put("tree/c.bin", "a\0b", 3);
    put("tree/d.gz", "\x1f\x8b\x08", 3);
    assert_int_equal(symlink("..", path_of("tree/loop")), 0);
    assert_int_equal(symlink("nowhere", path_of("tree/dangling")), 0);
    const char *tree = path_of("tree/");
    expect_one(tree, NULL, "[Z][a][b10][b2][e]");
    tp_text_source *s;
    assert_int_equal(tp_text_open(&s, ctx, &tree, 1, NULL), TP_OK);
    assert_int_equal(tp_text_get_counts(s).not_text, 2);
    assert_non_null(strstr(tp_text_get_counts(s).first_not_text, "c.bin"));
    assert_true(tp_text_reads(s, path_of("tree/../tree/a.txt")));
    assert_false(tp_text_reads(s, path_of("tree/c.bin")));
    tp_text_close(s);
}

static void what_is_no_text_is_told(void **state) {
    (void)state;
    expect_error(path_of("missing.txt"), NULL, TP_EIO, "No such file");
    expect_error(put("x.gz", "\x1f\x8b\x08\0", 4), NULL, TP_EFORMAT, "gzip -d");
    expect_error(put("x.zst", "\x28\xb5\x2f\xfd", 4), NULL, TP_EFORMAT, "zstd -d");
    expect_error(put("x.bin", "abc\0", 4), NULL, TP_EFORMAT, "zero byte");
    expect_error(put("x16.txt", "\xff\xfe\x61\0", 4), NULL, TP_EFORMAT, "UTF-16");
    expect_error("/dev/null", NULL, TP_EIO, "neither a file");
    expect_one(put_text("BZ.txt", "BZh is a word"), NULL, "[BZh is a word]");
    mkdir(path_of("void"), 0755);
    expect_error(path_of("void"), NULL, TP_EARG, "no text file");
    tp_text_source *s;
    assert_int_equal(tp_text_open(&s, ctx, NULL, 0, NULL), TP_EARG);
    tp_clear(ctx);
    assert_int_equal(
        tp_text_open(&s, ctx, (const char *[]){"x"}, 1, &(tp_text_opts){.piece_bytes = -1}),
        TP_EARG);
    tp_clear(ctx);
}

static void a_file_that_changes_is_told(void **state) {
    (void)state;
    const char *a = put_text("grow.txt", "12345");
    tp_text_source *s;
    tp_text_piece p;
    bool more;
    assert_int_equal(tp_text_open(&s, ctx, &a, 1, NULL), TP_OK);
    put_text("grow.txt", "123456");
    assert_int_equal(tp_text_next(s, ctx, &p, &more), TP_EIO);
    assert_non_null(strstr(tp_error(ctx), "changed while"));
    tp_clear(ctx);
    tp_text_close(s);
}

/* Pieces of any size put together give the document, and all but forced ones end after a word. */
static void long_documents_come_in_pieces(void **state) {
    (void)state;
    enum { N = 5000 };
    char *text = malloc(N + 1), want[N + 3];
    uint32_t x = 1;
    for (int i = 0; i < N; i++) {
        x = x * 1664525 + 1013904223;
        text[i] = x >> 28 == 0 ? '\n' : x >> 28 == 1 ? ' ' : (char)('a' + (x >> 24) % 26);
    }
    text[N] = 0;
    snprintf(want, sizeof want, "[%s]", text);
    const char *plain = put_text("long.txt", text);
    char *json = malloc(2 * N + 32), *o = json + sprintf(json, "{\"text\":\"");
    for (int i = 0; i < N; i++) {
        if (text[i] == '\n') *o++ = '\\';
        *o++ = text[i] == '\n' ? 'n' : text[i];
    }
    strcpy(o, "\"}");
    const char *jsonl = put_text("long.jsonl", json);
    for (int64_t size = 1; size < 300; size = size * 3 / 2 + 1) {
        tp_text_source *a, *b;
        tp_text_piece p, q;
        bool more = true, more_b, forced = false;
        const tp_text_opts opts = {.piece_bytes = size};
        expect_one(plain, &opts, want);
        expect_one(jsonl, &opts, want);
        assert_int_equal(tp_text_open(&a, ctx, &plain, 1, &opts), TP_OK);
        assert_int_equal(tp_text_open(&b, ctx, &jsonl, 1, &opts), TP_OK);
        while (more) { /* the pieces do not depend on where the text comes from */
            assert_int_equal(tp_text_next(a, ctx, &p, &more), TP_OK);
            assert_int_equal(tp_text_next(b, ctx, &q, &more_b), TP_OK);
            assert_int_equal(more, more_b);
            assert_int_equal(p.n, q.n);
            assert_true(p.n <= 16 * size);
            if (more && !p.begins && !forced) assert_true(p.bytes[0] == ' ' || p.bytes[0] == '\n');
            if (more && !p.ends && p.n < 16 * size) assert_true(p.bytes[p.n - 1] >= 'a');
            forced = p.n == 16 * size;
        }
        tp_text_close(a);
        tp_text_close(b);
    }
    free(text);
    free(json);
}

static void huge_lines_and_utf8_borders(void **state) {
    (void)state;
    enum { N = 3 << 20 };
    char *text = malloc(N + 4), *want = malloc(N + 4);
    for (int i = 0; i < N; i++) text[i] = "\xe2\x82\xac"[i % 3]; /* the euro sign */
    text[N] = 0;
    snprintf(want, N + 4, "[%s]", text);
    const char *path = put_text("line.txt", text);
    expect_one(path, &(tp_text_opts){.piece_bytes = 1000}, want);
    expect_one(path, &(tp_text_opts){.split_line = ""}, want);
    tp_text_source *s;
    tp_text_piece p;
    bool more;
    assert_int_equal(tp_text_open(&s, ctx, &path, 1, &(tp_text_opts){.piece_bytes = 1000}), TP_OK);
    assert_int_equal(tp_text_next(s, ctx, &p, &more), TP_OK);
    assert_int_equal(p.n % 3, 0);
    tp_text_close(s);
    free(text);
    free(want);
}

static void *feed(void *arg) {
    FILE *f = fopen(arg, "wb");
    for (int i = 0; f && i < 50000; i++) fputs("x\n", f);
    if (f) fclose(f);
    return NULL;
}

static void pipes_can_be_read_twice(void **state) {
    (void)state;
    pthread_t writer;
    const char *fifo = path_of("fifo");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(pthread_create(&writer, NULL, feed, (void *)(uintptr_t)fifo), 0);
    tp_text_source *s;
    assert_int_equal(tp_text_open(&s, ctx, &fifo, 1, NULL), TP_OK);
    pthread_join(writer, NULL);
    for (int pass = 0; pass < 2; pass++) {
        char *got = read_all(s, NULL);
        assert_int_equal(strlen(got), 100002);
        free(got);
        tp_text_rewind(s);
    }
    tp_text_close(s);
}

static void no_memory_is_told_not_fatal(void **state) {
    (void)state;
    const char *a = put_text("mem.jsonl", "{\"text\":\"x\"}\n");
    int failures = 0;
    for (long at = 1; at < 40; at++) {
        tp_ctx *c;
        tp_text_source *s;
        tp_text_piece p;
        bool more = true;
        assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.meta = true, .threads = 1}), TP_OK);
        tp_ctx_opts probe = {.meta = true, .threads = 1, .fail_alloc_at = at};
        tp_ctx_free(c);
        if (tp_ctx_new(&c, &probe)) continue; /* it struck in the ctx itself */
        tp_status st = tp_text_open(&s, c, &a, 1, &(tp_text_opts){.split_line = "x"});
        while (!st && more) st = tp_text_next(s, c, &p, &more);
        tp_text_close(s);
        if (st) assert_int_equal(st, TP_ENOMEM);
        failures += st != TP_OK;
        tp_ctx_free(c);
    }
    assert_true(failures > 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_files_are_documents),
        cmocka_unit_test(documents_split_at_lines),
        cmocka_unit_test(json_lines),
        cmocka_unit_test(json_keeps_zero_bytes),
        cmocka_unit_test(json_refusals_name_the_line),
        cmocka_unit_test(folders_in_byte_order),
        cmocka_unit_test(what_is_no_text_is_told),
        cmocka_unit_test(a_file_that_changes_is_told),
        cmocka_unit_test(long_documents_come_in_pieces),
        cmocka_unit_test(huge_lines_and_utf8_borders),
        cmocka_unit_test(pipes_can_be_read_twice),
        cmocka_unit_test(no_memory_is_told_not_fatal),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
