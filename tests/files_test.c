/* A rename destroys what has the name: only files are replaced. Names of one file are one place. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "core/ctx.h"
#include "data/checkpoint.h"
#include "data/files.h"
#include "data/text.h"
#include "data/tokenizer.h"

static char dir[64];

static int setup(void **state) {
    tp_ctx *c = NULL;
    strcpy(dir, "/tmp/tapir_files_XXXXXX");
    if (!mkdtemp(dir) || chdir(dir) || tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1})) return 1;
    *state = c;
    return 0;
}

static int teardown(void **state) {
    static const char *const names[] = {"file", "pipe", "link", "dangling", "device", "new"};
    tp_ctx_free(*state);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unlink(names[i]);
    return rmdir("folder") || chdir("/") || rmdir(dir);
}

static void refused(tp_ctx *c, tp_status st, const char *what) {
    assert_int_equal(st, TP_EIO);
    if (!strstr(tp_error(c), what)) fail_msg("\"%s\" is not in: %s", what, tp_error(c));
    tp_clear(c);
}

static void make_all(tp_ctx *c) {
    assert_int_equal(tp_write_file(c, "file", "old", 3), TP_OK);
    assert_int_equal(mkfifo("pipe", 0600), 0);
    assert_int_equal(symlink("file", "link"), 0);
    assert_int_equal(symlink("nowhere", "dangling"), 0);
    assert_int_equal(mkdir("folder", 0700), 0);
    (void)!mknod("device", S_IFCHR | 0600, (1 << 8) | 3); /* not everybody may */
}

static void test_only_files_are_replaced(void **state) {
    static const struct {
        const char *name, *what;
    } kinds[] = {{"pipe", "pipe cannot be written, as it is a pipe"},
                 {"link", "link cannot be written, as it is a symbolic link"},
                 {"dangling", "as it is a symbolic link"},
                 {"folder", "as it is a folder"},
                 {"device", "as it is a device"}};
    tp_ctx *c = *state;
    tp_tokenizer *t = NULL;
    make_all(c);
    assert_int_equal(tp_tokenizer_new_bytes(&t, c, NULL, 0), TP_OK);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const char *name = kinds[i].name;
        struct stat before, after;
        tp_checkpoint_writer *w = NULL;
        if (lstat(name, &before) || S_ISREG(before.st_mode)) continue;
        refused(c, tp_may_replace(c, name), kinds[i].what);
        refused(c, tp_write_file(c, name, "new", 3), kinds[i].what);
        refused(c, tp_tokenizer_save(t, c, name), kinds[i].what);
        refused(c, tp_checkpoint_create(&w, c, name, 1), kinds[i].what);
        assert_int_equal(tp_write_file(c, "new", "new", 3), TP_OK);
        refused(c, tp_commit_file(c, "new", name), kinds[i].what); /* it came in the meantime */
        assert_int_equal(lstat(name, &after), 0);
        assert_true(before.st_ino == after.st_ino && before.st_mode == after.st_mode);
    }
    tp_tokenizer_free(t);
    assert_int_equal(tp_may_replace(c, "file"), TP_OK);
    assert_int_equal(tp_may_replace(c, "nothing"), TP_OK);
    assert_int_equal(tp_commit_file(c, "new", "file"), TP_OK);
    assert_int_equal(access("new", F_OK), -1);
}

static void test_same_place(void **state) {
    char whole[128];
    make_all(*state);
    snprintf(whole, sizeof whole, "%s/x", dir);
    assert_true(tp_same_place("x", "./x") && tp_same_place("x", whole));
    assert_true(tp_same_place("folder/x", "folder/../folder//x"));
    assert_true(tp_same_place("file", "link"));
    assert_false(tp_same_place("x", "y") || tp_same_place("x", "folder/x"));
    assert_false(tp_same_place("none/x", "none/x/") || tp_same_place("file", "x"));
    assert_false(tp_same_place("pipe", "pipe")); /* two may write to it */
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void) {
    const struct CMUnitTest tests[] = {TEST(test_only_files_are_replaced), TEST(test_same_place)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
