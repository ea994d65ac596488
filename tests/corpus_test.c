/* Corpora: what is written is read back, in any order; every kind of damage is one sentence. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <hdf5.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "data/corpus_format.h"

/* HDF5 1.10 loses some of its own memory when it refuses a damaged header; that nothing of ours
 * stays open in it is checked at the end. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "leak:libhdf5"; }

static char dir[64];
static tp_ctx *ctx;
static int32_t id_bytes[70000];

static const char *path_of(const char *name) {
    static char path[4][256];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, 256, "%s/%s", dir, name);
    return p;
}

static int setup(void **state) {
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/tapir-corpus-XXXXXX");
    if (!mkdtemp(dir)) return -1;
    for (int i = 0; i < 70000; i++) id_bytes[i] = i % 7;
    return tp_ctx_new(&ctx, &(tp_ctx_opts){.meta = true, .threads = 1}) != TP_OK;
}

static int teardown(void **state) {
    (void)state;
    char command[128];
    tp_ctx_free(ctx);
    if (H5Fget_obj_count(H5F_OBJ_ALL, H5F_OBJ_ALL)) return -1;
    snprintf(command, sizeof command, "rm -r %s", dir);
    return system(command) != 0;
}

static int32_t token(int64_t i, int32_t vocab) {
    uint64_t x = (uint64_t)i * 0x9e3779b97f4a7c15ull;
    return (int32_t)((x >> 32) % (uint64_t)vocab);
}

static tp_corpus_meta meta_of(int32_t vocab) {
    return (tp_corpus_meta){.vocab = vocab,
                            .eos = 0,
                            .id_bytes = id_bytes,
                            .tokenizer = "{\"a\":1}",
                            .tokenizer_bytes = 7,
                            .sources = "book.txt\n"};
}

static tp_corpus_writer *begin(const char *path, const tp_corpus_meta *meta) {
    tp_corpus_writer *w;
    if (tp_corpus_writer_new(&w, ctx, path, meta)) fail_msg("%s", tp_error(ctx));
    return w;
}

/* Document d has d % 5 * 37 + 1 tokens; token i of the whole is token(i). */
static int64_t add_docs(tp_corpus_writer *w, int64_t docs, int32_t vocab) {
    int64_t at = 0;
    for (int64_t d = 0; d < docs; d++) {
        int64_t bytes = 0;
        for (int64_t i = 0, n = d % 5 * 37 + 1; i < n; i++, at++) {
            int32_t id = token(at, vocab);
            bytes += id_bytes[id];
            assert_int_equal(tp_corpus_writer_add(w, ctx, &id, 1), TP_OK);
        }
        assert_int_equal(tp_corpus_writer_end_doc(w, ctx, bytes), TP_OK);
    }
    return at;
}

static int64_t write_corpus(const char *path, int64_t docs, const tp_corpus_meta *meta) {
    tp_corpus_writer *w = begin(path, meta);
    int64_t n = add_docs(w, docs, meta->vocab);
    if (tp_corpus_writer_finish(w, ctx, NULL)) fail_msg("%s", tp_error(ctx));
    tp_corpus_writer_free(w);
    return n;
}

static tp_corpus *open_ok(const char *path) {
    tp_corpus *co;
    if (tp_corpus_open(&co, ctx, path)) fail_msg("%s", tp_error(ctx));
    return co;
}

/* The recorded sentence must have these words; then it is forgotten. */
static void expect_words(const char *words) {
    if (!strstr(tp_error(ctx), words)) fail_msg("\"%s\" lacks \"%s\"", tp_error(ctx), words);
    tp_clear(ctx);
}

static void expect_refused(const char *path, tp_status want, const char *words) {
    tp_corpus *co;
    assert_int_equal(tp_corpus_open(&co, ctx, path), want);
    assert_null(co);
    expect_words(words);
}

static void round_trip(int32_t vocab, int deflate) {
    const char *path = path_of("rt.h5");
    tp_corpus_meta meta = meta_of(vocab);
    meta.deflate = deflate;
    int64_t n = write_corpus(path, 2500, &meta); /* 187,500 tokens: three blocks */
    tp_corpus *co = open_ok(path);
    const tp_corpus_info *info = tp_corpus_get_info(co);
    assert_int_equal(info->tokens, n);
    assert_int_equal(info->docs, 2500);
    assert_int_equal(info->vocab, vocab);
    assert_int_equal(info->eos, 0);
    assert_int_equal(info->token_size, vocab <= 65536 ? 2 : 4);
    assert_string_equal(info->tokenizer, "{\"a\":1}");
    assert_string_equal(info->sources, "book.txt\n");
    assert_int_equal(tp_corpus_offsets(co)[2500], n);
    assert_int_equal(tp_corpus_offsets(co)[2], 39);
    if (tp_corpus_verify(co, ctx)) fail_msg("%s", tp_error(ctx));
    int32_t *ids = malloc((size_t)n * sizeof *ids);
    const int64_t from[] = {0, 65535, 65536, 100000, n - 1, 7, n};
    for (size_t k = 0; k < sizeof from / sizeof *from; k++) {
        assert_int_equal(tp_corpus_read(co, ctx, from[k], n - from[k], ids), TP_OK);
        for (int64_t i = from[k]; i < n; i++) assert_int_equal(ids[i - from[k]], token(i, vocab));
    }
    int64_t bytes[3];
    assert_int_equal(tp_corpus_doc_bytes(co, ctx, 0, 3, bytes), TP_OK);
    assert_int_equal(bytes[0], id_bytes[token(0, vocab)]);
    assert_int_equal(tp_corpus_read(co, ctx, n - 1, 2, ids), TP_EARG);
    expect_words("were asked for");
    assert_int_equal(tp_corpus_read(co, ctx, INT64_MAX, 2, ids), TP_EARG);
    expect_words("were asked for");
    assert_int_equal(tp_corpus_doc_bytes(co, ctx, 2499, 2, bytes), TP_EARG);
    expect_words("were asked for");
    free(ids);
    tp_corpus_close(co);
}

static void what_is_written_is_read(void **state) {
    (void)state;
    round_trip(65536, 0);
    round_trip(65537, 0);
    round_trip(300, 4);
}

static void the_hash_names_content_not_its_origin(void **state) {
    (void)state;
    char sha[4][65];
    tp_corpus_meta meta = meta_of(300);
    for (int i = 0; i < 4; i++) {
        if (i == 1) meta.sources = "elsewhere\n", meta.deflate = 1;
        if (i == 2) meta.eos = 1;
        if (i == 3) meta.eos = 0, meta.tokenizer = "{\"a\":2}";
        tp_corpus_writer *w = begin(path_of("h.h5"), &meta);
        add_docs(w, 50, 300);
        assert_int_equal(tp_corpus_writer_finish(w, ctx, sha[i]), TP_OK);
        tp_corpus_writer_free(w);
    }
    assert_string_equal(sha[0], sha[1]);
    assert_string_not_equal(sha[0], sha[2]);
    assert_string_not_equal(sha[0], sha[3]);
}

static void writers_refuse_nonsense(void **state) {
    (void)state;
    const char *path = path_of("no.h5");
    tp_corpus_meta meta = meta_of(300), bad;
    tp_corpus_writer *w;
    bad = meta, bad.vocab = 0;
    assert_int_equal(tp_corpus_writer_new(&w, ctx, path, &bad), TP_EARG);
    expect_words("vocabulary has 0");
    bad = meta, bad.eos = 300;
    assert_int_equal(tp_corpus_writer_new(&w, ctx, path, &bad), TP_EARG);
    expect_words("end token 300");
    assert_int_equal(tp_corpus_writer_new(&w, ctx, path_of("none/x.h5"), &meta), TP_EIO);
    expect_words("No such file");
    w = begin(path, &meta); /* no documents */
    assert_int_equal(tp_corpus_writer_finish(w, ctx, NULL), TP_EARG);
    expect_words("no text to write");
    tp_corpus_writer_free(w);
    w = begin(path, &meta);
    assert_int_equal(tp_corpus_writer_end_doc(w, ctx, 0), TP_EARG);
    expect_words("has no tokens");
    tp_corpus_writer_free(w);
    w = begin(path, &meta);
    assert_int_equal(tp_corpus_writer_add(w, ctx, &(int32_t){300}, 1), TP_EARG);
    expect_words("id 300");
    assert_int_equal(tp_corpus_writer_finish(w, ctx, NULL), TP_ESTATE);
    expect_words("cannot be finished");
    tp_corpus_writer_free(w);
    assert_int_equal(access(path, F_OK), -1);
}

/* Neither an abandoned nor a killed writer leaves anything under the real name, or hurts what was
 * there. */
static void half_a_corpus_never_shows(void **state) {
    (void)state;
    const char *path = path_of("half.h5"), *tmp = path_of("half.h5.tmp");
    tp_corpus_meta meta = meta_of(300);
    int64_t n = write_corpus(path, 10, &meta);
    tp_corpus_writer *w = begin(path, &meta);
    add_docs(w, 3000, 300);
    assert_int_equal(access(tmp, F_OK), 0);
    tp_corpus_writer_free(w);
    assert_int_equal(access(tmp, F_OK), -1);
    pid_t child = fork();
    if (!child) {
        w = begin(path, &meta);
        add_docs(w, 3000, 300);
        raise(SIGKILL);
    }
    waitpid(child, NULL, 0);
    assert_int_equal(access(tmp, F_OK), 0);
    tp_corpus *co = open_ok(path);
    assert_int_equal(tp_corpus_get_info(co)->tokens, n);
    tp_corpus_close(co);
    expect_refused(tmp, TP_EFORMAT, "half.h5.tmp");
    write_corpus(path, 11, &meta); /* takes the place of what was left over */
    assert_int_equal(access(tmp, F_OK), -1);
}

/* In a child, as HDF5 may not recover: a full disk is one sentence and a non-zero status. */
static void a_full_disk_is_told(void **state) {
    (void)state;
    const char *path = path_of("full.h5");
    pid_t child = fork();
    if (!child) {
        tp_corpus_meta meta = meta_of(300);
        int32_t ids[1000] = {0};
        tp_corpus_writer *w = begin(path, &meta);
        tp_status st = TP_OK;
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){300000, 300000});
        for (int i = 0; !st && i < 500; i++) {
            st = tp_corpus_writer_add(w, ctx, ids, 1000);
            if (!st) st = tp_corpus_writer_end_doc(w, ctx, 0);
        }
        if (!st) st = tp_corpus_writer_finish(w, ctx, NULL);
        int good = st == TP_EIO && strstr(tp_error(ctx), "full.h5.tmp");
        if (!good) fprintf(stderr, "%d %s\n", st, tp_error(ctx));
        tp_corpus_writer_free(w);
        exit(good && access(path, F_OK) ? 0 : 1); /* with HDF5's own clean-up at exit */
    }
    int status;
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
}

static uint8_t *slurp(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    uint8_t *buf = malloc(*n);
    assert_int_equal(fread(buf, 1, *n, f), *n);
    fclose(f);
    return buf;
}

static void spit(const char *path, const void *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    fclose(f);
}

static void foreign_and_short_files(void **state) {
    (void)state;
    size_t n;
    const char *path = path_of("x.h5");
    tp_corpus_meta meta = meta_of(300);
    expect_refused(path_of("missing.h5"), TP_EIO, "No such file");
    expect_refused(dir, TP_EIO, "no regular file");
    spit(path, "", 0);
    expect_refused(path, TP_EFORMAT, "is empty");
    spit(path, "some text, no corpus", 20);
    expect_refused(path, TP_EFORMAT, "not an HDF5 file");
    write_corpus(path, 100, &meta);
    uint8_t *all = slurp(path, &n);
    for (size_t k = 1; k < 20; k++) {
        spit(path, all, n * k / 20);
        tp_corpus *co;
        assert_int_not_equal(tp_corpus_open(&co, ctx, path), TP_OK);
        expect_words("x.h5");
    }
    free(all);
    hid_t f = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    H5Fclose(f);
    expect_refused(path, TP_EFORMAT, "old layout");
}

/* Flips a bit in each of many places: either the file is refused, at open or by verify, or the flip
 * lies where nothing is stored (sources are not hashed, HDF5 leaves gaps). */
static void flipped_bits_are_found(void **state) {
    (void)state;
    size_t n, missed = 0, tried = 0;
    const char *path = path_of("flip.h5");
    tp_corpus_meta meta = meta_of(300);
    tp_corpus_writer *w = begin(path, &meta);
    add_docs(w, 20, 300);
    assert_int_equal(tp_corpus_writer_finish(w, ctx, NULL), TP_OK);
    tp_corpus_writer_free(w);
    uint8_t *all = slurp(path, &n);
    uint8_t zeros[16] = {0};
    for (size_t at = 0; at < n; at += 1 + at % 61) {
        /* long stretches of zeros are the unused ends of blocks */
        if (at + 16 < n && !memcmp(all + at, zeros, 16)) continue;
        tp_corpus *co;
        all[at] ^= 4;
        tp_status st = tp_corpus_open_image(&co, ctx, "image", all, n);
        if (!st) st = tp_corpus_verify(co, ctx);
        all[at] ^= 4;
        tried++;
        missed += !st;
        if (st) assert_int_not_equal(tp_error(ctx)[0], 0);
        tp_corpus_close(co);
        tp_clear(ctx);
    }
    assert_true(tried > 100);
    assert_true(missed * 10 < tried);
    free(all);
}

/* Changes the corpus with HDF5 itself, so that its checksums hold. */
static hid_t reopen(const char *path) {
    hid_t f = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    assert_true(f >= 0);
    return f;
}

static void set_value(const char *path, const char *set, hsize_t at, int64_t v) {
    hsize_t one = 1;
    hid_t f = reopen(path), d = H5Dopen2(f, set, H5P_DEFAULT), space = H5Dget_space(d);
    hid_t memory = H5Screate_simple(1, &one, NULL);
    H5Sselect_hyperslab(space, H5S_SELECT_SET, &at, NULL, &one, NULL);
    assert_true(H5Dwrite(d, H5T_NATIVE_INT64, memory, space, H5P_DEFAULT, &v) >= 0);
    H5Sclose(memory), H5Sclose(space), H5Dclose(d), H5Fclose(f);
}

static void set_attribute(const char *path, const char *name, int64_t v) {
    hid_t f = reopen(path), a = H5Aopen(f, name, H5P_DEFAULT);
    assert_true(H5Awrite(a, H5T_NATIVE_INT64, &v) >= 0);
    H5Aclose(a), H5Fclose(f);
}

static void replace_set(const char *path, const char *set, hid_t type, int rank, hsize_t n) {
    hsize_t dims[2] = {n, 2};
    hid_t f = reopen(path), space = H5Screate_simple(rank, dims, NULL);
    H5Ldelete(f, set, H5P_DEFAULT);
    hid_t d = H5Dcreate2(f, set, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(d >= 0);
    H5Dclose(d), H5Sclose(space), H5Fclose(f);
}

static void set_length(const char *path, const char *set, hsize_t n) {
    hid_t f = reopen(path), d = H5Dopen2(f, set, H5P_DEFAULT);
    assert_true(H5Dset_extent(d, &n) >= 0);
    H5Dclose(d), H5Fclose(f);
}

/* Makes block_check fit n tokens of 2 bytes, as a forger would; blocks that were never written hold
 * zeros. */
static void set_checks(const char *path, int64_t n) {
    int64_t blocks = (n + TP_CORPUS_BLOCK - 1) / TP_CORPUS_BLOCK;
    uint16_t *ids = calloc(TP_CORPUS_BLOCK, sizeof *ids);
    uint64_t *check = malloc((size_t)blocks * sizeof *check);
    uint64_t zeros = tp_corpus_check(ids, TP_CORPUS_BLOCK * sizeof *ids);
    hsize_t dim = (hsize_t)blocks, at;
    hid_t f = reopen(path), tokens = H5Dopen2(f, "tokens", H5P_DEFAULT);
    for (int64_t b = 0; b < blocks; b++) {
        hsize_t start = (hsize_t)b * TP_CORPUS_BLOCK, m = (hsize_t)n - start;
        if (m > TP_CORPUS_BLOCK) m = TP_CORPUS_BLOCK;
        check[b] = zeros;
        at = start;
        hsize_t stored = 0;
        if (H5Dget_chunk_storage_size(tokens, &at, &stored) < 0 || (!stored && b < blocks - 1))
            continue;
        hid_t space = H5Dget_space(tokens), memory = H5Screate_simple(1, &m, NULL);
        H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &m, NULL);
        H5Dread(tokens, H5T_NATIVE_UINT16, memory, space, H5P_DEFAULT, ids);
        check[b] = tp_corpus_check(ids, m * sizeof *ids);
        H5Sclose(memory), H5Sclose(space);
    }
    H5Dclose(tokens);
    H5Ldelete(f, "block_check", H5P_DEFAULT);
    hid_t space = H5Screate_simple(1, &dim, NULL);
    hid_t d =
        H5Dcreate2(f, "block_check", H5T_STD_U64LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(H5Dwrite(d, H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, check) >= 0);
    H5Dclose(d), H5Sclose(space), H5Fclose(f);
    free(ids), free(check);
}

static void lies_in_the_header_are_found(void **state) {
    (void)state;
    const char *path = path_of("lie.h5");
    tp_corpus_meta meta = meta_of(300);
#define FRESH write_corpus(path, 100, &meta)
    FRESH, set_attribute(path, "version", 2);
    expect_refused(path, TP_EFORMAT, "format version 2");
    FRESH, set_attribute(path, "vocab", 70000);
    expect_refused(path, TP_EFORMAT, "unsigned integers of 4 bytes");
    FRESH, set_attribute(path, "vocab", 299);
    expect_refused(path, TP_EFORMAT, "id_bytes has 300");
    FRESH, set_attribute(path, "eos", 300);
    expect_refused(path, TP_EFORMAT, "eos is 300");
    FRESH, set_value(path, "offsets", 0, 1);
    expect_refused(path, TP_EFORMAT, "must grow from 0");
    FRESH, set_value(path, "offsets", 50, 1);
    expect_refused(path, TP_EFORMAT, "must grow from 0");
    FRESH, set_value(path, "offsets", 100, 1 << 20);
    expect_refused(path, TP_EFORMAT, "the offsets end at");
    FRESH, set_length(path, "offsets", 1ull << 50);
    expect_refused(path, TP_EFORMAT, "do not fit");
    FRESH, set_length(path, "offsets", 1);
    expect_refused(path, TP_EFORMAT, "do not fit");
    FRESH, set_length(path, "doc_bytes", 99);
    expect_refused(path, TP_EFORMAT, "doc_bytes has 99");
    FRESH, replace_set(path, "block_check", H5T_NATIVE_UINT64, 1, 2);
    expect_refused(path, TP_EFORMAT, "block_check has 2");
    FRESH, replace_set(path, "block_check", H5T_NATIVE_UINT64, 1, 1);
    expect_refused(path, TP_EFORMAT, "which are not there");
    FRESH, set_value(path, "id_bytes", 7, -1);
    expect_refused(path, TP_EFORMAT, "stands for -1");
    FRESH, replace_set(path, "tokens", H5T_NATIVE_FLOAT, 1, 7500);
    expect_refused(path, TP_EFORMAT, "unsigned integers");
    FRESH, replace_set(path, "tokens", H5T_NATIVE_UINT16, 2, 7500);
    expect_refused(path, TP_EFORMAT, "one dimension");
    FRESH, replace_set(path, "tokenizer", H5T_NATIVE_UINT8, 1, 1ull << 30);
    expect_refused(path, TP_EFORMAT, "at most");
    FRESH;
    hid_t f = reopen(path);
    H5Adelete(f, "format"), H5Fclose(f);
    expect_refused(path, TP_EFORMAT, "no Tapir corpus");
    FRESH;
    f = reopen(path);
    H5Ldelete(f, "offsets", H5P_DEFAULT), H5Fclose(f);
    expect_refused(path, TP_EFORMAT, "missing");
#undef FRESH
}

static void lies_in_the_tokens_are_found(void **state) {
    (void)state;
    const char *path = path_of("tok.h5");
    tp_corpus_meta meta = meta_of(300);
    int32_t ids[10];
    int64_t n = write_corpus(path, 100, &meta);
    set_value(path, "tokens", 5, 299);
    tp_corpus *co = open_ok(path);
    assert_int_equal(tp_corpus_read(co, ctx, 0, 10, ids), TP_EFORMAT);
    expect_words("are damaged");
    tp_corpus_close(co);
    set_value(path, "tokens", 5, 300);
    set_checks(path, n);
    co = open_ok(path);
    assert_int_equal(tp_corpus_read(co, ctx, 0, 10, ids), TP_EFORMAT);
    expect_words("token 5 is 300");
    tp_corpus_close(co);
    write_corpus(path, 100, &meta);
    set_value(path, "tokens", 5, (token(5, 300) + 7) % 300 / 7 * 7 + token(5, 300) % 7);
    set_checks(path, n);
    co = open_ok(path); /* another id of as many bytes, or nearly: only verify can tell */
    assert_int_equal(tp_corpus_read(co, ctx, 0, 10, ids), TP_OK);
    assert_int_equal(tp_corpus_verify(co, ctx), TP_EFORMAT);
    expect_words("tok.h5");
    tp_corpus_close(co);
    write_corpus(path, 100, &meta);
    set_value(path, "doc_bytes", 3, 1 << 20);
    co = open_ok(path);
    assert_int_equal(tp_corpus_verify(co, ctx), TP_EFORMAT);
    expect_words("document 3");
    tp_corpus_close(co);
}

static void replaced_or_overwritten_while_open(void **state) {
    (void)state;
    const char *path = path_of("swap.h5");
    tp_corpus_meta meta = meta_of(300);
    int32_t ids[10];
    int64_t n = write_corpus(path, 2500, &meta);
    tp_corpus *co = open_ok(path);
    write_corpus(path, 5, &meta); /* by rename: the reader keeps what it opened */
    assert_int_equal(tp_corpus_read(co, ctx, n - 10, 10, ids), TP_OK);
    for (int i = 0; i < 10; i++) assert_int_equal(ids[i], token(n - 10 + i, 300));
    tp_corpus_close(co);
    write_corpus(path, 2500, &meta);
    co = open_ok(path);
    assert_int_equal(truncate(path, 4096), 0); /* in place: told, not crashed */
    tp_status st = tp_corpus_read(co, ctx, n - 10, 10, ids);
    assert_int_equal(st, TP_EFORMAT);
    expect_words("swap.h5");
    tp_corpus_close(co);
}

/* 3 * 10^9 tokens, all but three blocks never written: HDF5 reads those as zeros. */
static void more_than_2_to_31_tokens(void **state) {
    (void)state;
    const char *path = path_of("big.h5");
    const int64_t n = 3000000000;
    tp_corpus_meta meta = meta_of(300);
    write_corpus(path, 1, &meta);
    set_length(path, "tokens", (hsize_t)n);
    set_value(path, "offsets", 1, n);
    set_value(path, "tokens", (hsize_t)n - 1, 17);
    set_value(path, "tokens", 2200000000u, 19);
    set_checks(path, n);
    tp_corpus *co = open_ok(path);
    int32_t ids[3];
    assert_int_equal(tp_corpus_get_info(co)->tokens, n);
    assert_int_equal(tp_corpus_read(co, ctx, n - 3, 3, ids), TP_OK);
    assert_int_equal(ids[1], 0);
    assert_int_equal(ids[2], 17);
    assert_int_equal(tp_corpus_read(co, ctx, 2199999999, 3, ids), TP_OK);
    assert_int_equal(ids[0], 0);
    assert_int_equal(ids[1], 19);
    assert_int_equal(ids[2], 0);
    tp_corpus_close(co);
}

static void no_memory_is_told_not_fatal(void **state) {
    (void)state;
    const char *path = path_of("mem.h5"), *other = path_of("mem2.h5");
    tp_corpus_meta meta = meta_of(300);
    int failures = 0;
    write_corpus(path, 10, &meta);
    for (long at = 1; at < 40; at++) {
        tp_ctx *c;
        tp_corpus *co = NULL;
        tp_corpus_writer *w = NULL;
        int32_t ids[10];
        if (tp_ctx_new(&c, &(tp_ctx_opts){.meta = true, .threads = 1, .fail_alloc_at = at}))
            continue;
        tp_status st = tp_corpus_open(&co, c, path);
        if (!st) st = tp_corpus_read(co, c, 0, 10, ids);
        if (!st) st = tp_corpus_verify(co, c);
        if (!st) st = tp_corpus_writer_new(&w, c, other, &meta);
        if (st && st != TP_ENOMEM) fail_msg("%s", tp_error(c));
        failures += st != TP_OK;
        tp_corpus_close(co);
        tp_corpus_writer_free(w);
        tp_ctx_free(c);
    }
    assert_true(failures > 10);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(the_hash_names_content_not_its_origin),
        cmocka_unit_test(writers_refuse_nonsense),
        cmocka_unit_test(half_a_corpus_never_shows),
        cmocka_unit_test(a_full_disk_is_told),
        cmocka_unit_test(foreign_and_short_files),
        cmocka_unit_test(flipped_bits_are_found),
        cmocka_unit_test(lies_in_the_header_are_found),
        cmocka_unit_test(lies_in_the_tokens_are_found),
        cmocka_unit_test(replaced_or_overwritten_while_open),
        cmocka_unit_test(more_than_2_to_31_tokens),
        cmocka_unit_test(no_memory_is_told_not_fatal),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
