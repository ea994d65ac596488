/* Checkpoints: they give back what was put, survive kill -9 and full disks, and no damaged byte of
 * one is ever believed. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <hdf5.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "core/ctx.h"
#include "data/checkpoint.h"
#include "data/checkpoint_seal.h"

static char dir[64]; /* of this test; each test starts with an empty one */

static void remove_all(void) {
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        char path[400];
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (e->d_name[0] != '.') unlink(path);
    }
    closedir(d);
    rmdir(dir);
}

static int setup(void **state) {
    tp_ctx *c = NULL;
    strcpy(dir, "/tmp/tapir_ckpt_XXXXXX");
    if (!mkdtemp(dir) || tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1})) return 1;
    *state = c;
    return 0;
}

static int teardown(void **state) {
    tp_ctx_free(*state);
    remove_all();
    return 0;
}

static const char *in_dir(const char *name) {
    static char paths[4][256];
    static int next;
    char *path = paths[next = (next + 1) % 4];
    snprintf(path, 256, "%s/%s", dir, name);
    return path;
}

static char *slurp(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    char *bytes = malloc(*n + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *n, f), *n);
    fclose(f);
    return bytes;
}

static void spit(const char *path, const char *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* A checkpoint of one tensor of n values equal to step, and what else a run has. */
static tp_status save(tp_ctx *c, const char *path, int64_t step, int64_t n) {
    tp_checkpoint_writer *w;
    tp_status st = tp_checkpoint_create(&w, c, path, step);
    if (st) return st;
    float *v = malloc((size_t)n * sizeof *v);
    for (int64_t i = 0; v && i < n; i++) v[i] = (float)step;
    tp_checkpoint_put(w, "weights/w", TP_F32, 1, &n, v, (size_t)n * sizeof *v);
    tp_checkpoint_put_i64(w, "loader/position", step * 3);
    tp_checkpoint_put_text(w, "config", "seed: 1\n");
    free(v);
    return tp_checkpoint_finish(w);
}

static void save_step(tp_ctx *c, int64_t step) {
    char path[256];
    assert_int_equal(tp_checkpoint_file(path, sizeof path, c, dir, step), TP_OK);
    assert_int_equal(save(c, path, step, 16), TP_OK);
}

static bool exists(const char *name) { return !access(in_dir(name), F_OK); }

/* ---- what is put comes back ----------------------------------------------------------------- */
static void test_round_trip(void **state) {
    tp_ctx *c = *state;
    static const int64_t shape[TP_MAXDIM] = {2, 3, 1, 1, 2, 1}, none[2] = {0, 5};
    const char *path = in_dir("a.h5");
    uint8_t data[TP_NDTYPE][96];
    tp_checkpoint_writer *w;
    assert_int_equal(tp_checkpoint_create(&w, c, path, 1234), TP_OK);
    for (int t = 0; t < TP_NDTYPE; t++) {
        char name[64];
        for (int i = 0; i < 96; i++) { /* any bits, NaNs included */
            uint32_t r[4];
            tp_philox(r, 1, TP_RNG_TEST, (uint64_t)t, (uint64_t)i);
            data[t][i] = (uint8_t)r[0];
        }
        snprintf(name, sizeof name, "weights/deep.er/%s", tp_dtype_name((tp_dtype)t));
        assert_int_equal(tp_checkpoint_put(w, name, (tp_dtype)t, TP_MAXDIM, shape, data[t],
                                           12 * tp_dtype_size((tp_dtype)t)),
                         TP_OK);
    }
    assert_int_equal(tp_checkpoint_put(w, "none", TP_F32, 2, none, NULL, 0), TP_OK);
    assert_int_equal(tp_checkpoint_put_i64(w, "loader/i", INT64_MIN), TP_OK);
    assert_int_equal(tp_checkpoint_put_f64(w, "loader/f", 0.1), TP_OK);
    assert_int_equal(tp_checkpoint_put_text(w, "empty", ""), TP_OK);
    char *big = malloc(300001); /* larger than an HDF5 attribute could be */
    memset(big, 'x', 300000);
    big[300000] = 0;
    assert_int_equal(tp_checkpoint_put_text(w, "tokenizer.json", big), TP_OK);
    assert_false(exists("a.h5")); /* not before it is whole */
    assert_int_equal(tp_checkpoint_finish(w), TP_OK);
    assert_false(exists("a.h5.tmp"));

    tp_checkpoint_reader *r;
    if (tp_checkpoint_open(&r, c, path)) fail_msg("%s", tp_error(c));
    assert_int_equal(tp_checkpoint_step(r), 1234);
    assert_true(strlen(tp_checkpoint_code(r)) > 3);
    assert_int_equal(tp_checkpoint_count(r), TP_NDTYPE + 5);
    assert_string_equal(tp_checkpoint_at(r, 1)->name, "weights/deep.er/f64"); /* in order */
    assert_null(tp_checkpoint_at(r, -1));
    for (int t = 0; t < TP_NDTYPE; t++) {
        uint8_t back[96] = {0};
        const tp_checkpoint_entry *e = tp_checkpoint_at(r, t);
        assert_int_equal(e->dtype, t);
        assert_int_equal(e->ndim, TP_MAXDIM);
        assert_int_equal(tp_checkpoint_get(r, e->name, e->dtype, TP_MAXDIM, shape, back, e->bytes),
                         TP_OK);
        assert_memory_equal(back, data[t], e->bytes);
    }
    assert_int_equal(tp_checkpoint_get(r, "none", TP_F32, 2, none, NULL, 0), TP_OK);
    int64_t i = 0;
    double f = 0;
    char *text = NULL;
    assert_int_equal(tp_checkpoint_get_i64(r, "loader/i", &i), TP_OK);
    assert_true(i == INT64_MIN);
    assert_int_equal(tp_checkpoint_get_f64(r, "loader/f", &f), TP_OK);
    assert_true(f == 0.1);
    assert_int_equal(tp_checkpoint_get_text(r, "tokenizer.json", &text), TP_OK);
    assert_string_equal(text, big);
    tp_free(text);
    assert_int_equal(tp_checkpoint_get_text(r, "empty", &text), TP_OK);
    assert_string_equal(text, "");
    tp_free(text);
    free(big);

    /* anything but exactly what is there is refused, naming both */
    float four[4];
    assert_int_equal(tp_checkpoint_get_f64(r, "loader/i", &f), TP_EDTYPE);
    assert_non_null(strstr(tp_error(c), "loader/i: the file has i64[]"));
    tp_clear(c);
    assert_int_equal(tp_checkpoint_get(r, "none", TP_F32, 1, (int64_t[]){4}, four, 16), TP_ESHAPE);
    assert_non_null(strstr(tp_error(c), "f32[0,5] of 0 bytes, wanted f32[4] of 16 bytes"));
    tp_clear(c);
    assert_int_equal(tp_checkpoint_get(r, "none", TP_F32, 2, none, four, 16), TP_ESHAPE);
    tp_clear(c);
    assert_int_equal(tp_checkpoint_get_text(r, "loader/i", &text), TP_EDTYPE);
    tp_clear(c);
    assert_int_equal(tp_checkpoint_get_i64(r, "weights", &i), TP_EARG);
    tp_checkpoint_close(r);

    /* another reader of HDF5 sees the same numbers */
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    hid_t set = H5Dopen2(file, "/weights/deep.er/i32", H5P_DEFAULT);
    int32_t seen[12];
    assert_true(set >= 0 && H5Dread(set, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, 0, seen) >= 0);
    assert_memory_equal(seen, data[TP_I32], sizeof seen);
    H5Dclose(set);
    H5Fclose(file);
}

static void test_same_bytes(void **state) {
    tp_ctx *c = *state;
    size_t na, nb;
    assert_int_equal(save(c, in_dir("a.h5"), 5, 1000), TP_OK);
    nanosleep(&(struct timespec){.tv_sec = 1, .tv_nsec = 50000000}, NULL); /* HDF5 stamps seconds */
    assert_int_equal(save(c, in_dir("b.h5"), 5, 1000), TP_OK);
    char *a = slurp(in_dir("a.h5"), &na), *b = slurp(in_dir("b.h5"), &nb);
    assert_int_equal(na, nb);
    assert_memory_equal(a, b, na);
    free(a);
    free(b);
}

static void test_bad_puts(void **state) {
    tp_ctx *c = *state;
    static const char *const names[] = {"",    "/a",      "a/",    "a//b", ".",    "a/.",
                                        "a b", "entries", "a/./b", "\xff", "a\nb", "tab\t"};
    int64_t huge[2] = {INT64_MAX, 8}, minus[1] = {-1}, four[1] = {4};
    float v[4] = {0};
    for (size_t i = 0; i < sizeof names / sizeof names[0] + 6; i++) {
        tp_checkpoint_writer *w;
        tp_status st, want = TP_EARG;
        size_t n = sizeof names / sizeof names[0];
        assert_int_equal(tp_checkpoint_create(&w, c, in_dir("a.h5"), 1), TP_OK);
        if (i < n)
            st = tp_checkpoint_put_i64(w, names[i], 1);
        else {
            want = TP_ESHAPE;
            if (i == n)
                st = tp_checkpoint_put(w, "x", TP_F32, 2, huge, v, 16);
            else if (i == n + 1)
                st = tp_checkpoint_put(w, "x", TP_F32, 1, minus, v, 16);
            else if (i == n + 2)
                st = tp_checkpoint_put(w, "x", TP_F32, 1, four, v, 12);
            else if (i == n + 3)
                st = tp_checkpoint_put(w, "x", TP_F32, TP_MAXDIM + 1, four, v, 16);
            else if (i == n + 4) {
                want = TP_EIO; /* the same name twice */
                tp_checkpoint_put_i64(w, "x", 1);
                st = tp_checkpoint_put_i64(w, "x", 1);
            } else {
                want = TP_EIO; /* a group where a value is */
                tp_checkpoint_put_i64(w, "x", 1);
                st = tp_checkpoint_put_i64(w, "x/y", 1);
            }
        }
        assert_int_equal(st, want);
        assert_int_equal(tp_checkpoint_put_i64(w, "fine", 1), want); /* it stays failed */
        assert_int_equal(tp_checkpoint_finish(w), want);
        assert_false(exists("a.h5") || exists("a.h5.tmp"));
        tp_clear(c);
    }
    tp_checkpoint_writer *w;
    assert_int_equal(tp_checkpoint_create(&w, c, "/nowhere/at/all.h5", 1), TP_EIO);
    tp_clear(c);
    assert_int_equal(tp_checkpoint_create(&w, c, in_dir("a.h5"), -1), TP_EARG);
    tp_clear(c);
    assert_int_equal(tp_checkpoint_create(&w, c, in_dir("a.h5"), 1), TP_OK);
    tp_checkpoint_abandon(w);
    assert_false(exists("a.h5.tmp"));
}

/* ---- damage --------------------------------------------------------------------------------- */
static void refused(tp_ctx *c, const char *path, tp_status want, const char *words) {
    tp_checkpoint_reader *r = NULL;
    tp_status st = tp_checkpoint_open(&r, c, path);
    if (st != want || r || !strstr(tp_error(c), words) || !strstr(tp_error(c), path))
        fail_msg("wanted %s (%s), got %s: %s", tp_status_name(want), words, tp_status_name(st),
                 tp_error(c));
    tp_clear(c);
}

static void test_damage(void **state) {
    tp_ctx *c = *state;
    const char *path = in_dir("b.h5");
    size_t n;
    assert_int_equal(save(c, in_dir("a.h5"), 7, 16), TP_OK);
    char *bytes = slurp(in_dir("a.h5"), &n);
    spit(path, bytes, n);
    tp_checkpoint_reader *r;
    assert_int_equal(tp_checkpoint_open(&r, c, path), TP_OK); /* the copy is good */
    tp_checkpoint_close(r);
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    for (size_t i = 0; i < n; i++) { /* every byte, one bit */
        char bad = (char)(bytes[i] ^ (1 << i % 8));
        assert_int_equal(pwrite(fd, &bad, 1, (off_t)i), 1);
        refused(c, path, TP_EFORMAT, "");
        assert_int_equal(pwrite(fd, &bytes[i], 1, (off_t)i), 1);
    }
    for (size_t len = n; len--;) { /* every length */
        assert_int_equal(ftruncate(fd, (off_t)len), 0);
        if (len % 7 == 0 || len < 600) refused(c, path, TP_EFORMAT, "");
    }
    close(fd);
    refused(c, path, TP_EFORMAT, "empty");
    spit(path, bytes, n - 1);
    refused(c, path, TP_EFORMAT, "cut short");
    bytes[n] = 0;
    spit(path, bytes, n + 1);
    refused(c, path, TP_EFORMAT, "bytes, but");
    bytes[n - 1] ^= 1;
    spit(path, bytes, n);
    refused(c, path, TP_EFORMAT, "does not match its checksum");
    memcpy(bytes + 25, "2", 1);
    spit(path, bytes, n);
    refused(c, path, TP_EFORMAT, "format version 2; this program reads up to version 1");
    spit(path, bytes + TP_SEAL_BYTES, n - TP_SEAL_BYTES);
    refused(c, path, TP_EFORMAT, "an HDF5 file, but not a Tapir checkpoint");
    spit(path, "PK\3\4", 4);
    refused(c, path, TP_EFORMAT, "not a Tapir checkpoint");
    refused(c, in_dir("missing.h5"), TP_EIO, "cannot open");
    refused(c, dir, TP_EIO, "not a file");
    free(bytes);
}

/* ---- foreign content under a good seal ------------------------------------------------------ */
enum {
    NO_LIST,
    LIST_IS_NUMBERS,
    HUGE_SHAPE,
    WRONG_TYPE,
    NO_TYPE,
    BIG_ENDIAN_TYPE,
    MISSING,
    DOTS,
    EMPTY_NAMES,
    RANK_7,
    UNENDED,
    A_GROUP,
    NKINDS
};

static void attribute(hid_t set, const char *text) {
    hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    H5Tset_size(type, strlen(text) + 1);
    hid_t at = H5Acreate2(set, "type", type, space, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(H5Awrite(at, type, text) >= 0);
    H5Aclose(at);
    H5Sclose(space);
    H5Tclose(type);
}

static void dataset(hid_t file, const char *name, hid_t type, const char *mark, int ndim,
                    const hsize_t *dims, const void *data) {
    hid_t space = H5Screate_simple(ndim, dims, NULL), plist = H5Pcreate(H5P_DATASET_CREATE);
    hid_t set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, plist, H5P_DEFAULT);
    assert_true(set >= 0);
    if (mark) attribute(set, mark);
    if (data) assert_true(H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data) >= 0);
    H5Dclose(set);
    H5Sclose(space);
    H5Pclose(plist);
}

static void forge(const char *path, int kind) {
    hid_t plist = H5Pcreate(H5P_FILE_CREATE);
    H5Pset_userblock(plist, TP_SEAL_BYTES);
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, plist, H5P_DEFAULT);
    H5Pclose(plist);
    const char *list = kind == MISSING       ? "weights/w\n"
                       : kind == DOTS        ? "../x\n"
                       : kind == EMPTY_NAMES ? "\n\n\n"
                       : kind == UNENDED     ? "x"
                       : kind == A_GROUP     ? "g\n"
                                             : "x\n";
    hsize_t len = strlen(list), one = 1, huge[2] = {(hsize_t)1 << 40, (hsize_t)1 << 18};
    float v = 1;
    if (kind == LIST_IS_NUMBERS)
        dataset(file, "entries", H5T_NATIVE_INT64, "i64", 1, &one, &(int64_t){1});
    else if (kind != NO_LIST)
        dataset(file, "entries", H5T_STD_U8LE, "text", 1, &len, list);
    if (kind == HUGE_SHAPE) dataset(file, "x", H5T_STD_U8LE, "u8", 2, huge, NULL);
    if (kind == WRONG_TYPE) dataset(file, "x", H5T_IEEE_F32LE, "i32", 1, &one, &v);
    if (kind == NO_TYPE) dataset(file, "x", H5T_IEEE_F32LE, NULL, 1, &one, &v);
    if (kind == BIG_ENDIAN_TYPE) dataset(file, "x", H5T_IEEE_F32BE, "f32", 1, &one, &v);
    if (kind == RANK_7)
        dataset(file, "x", H5T_IEEE_F32LE, "f32", 7, (hsize_t[]){1, 1, 1, 1, 1, 1, 1}, &v);
    if (kind == A_GROUP) H5Gclose(H5Gcreate2(file, "g", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    H5Fclose(file);
}

static void test_foreign(void **state) {
    tp_ctx *c = *state;
    static const char *const words[NKINDS] = {[NO_LIST] = "entries is missing",
                                              [LIST_IS_NUMBERS] = "entries is no text",
                                              [HUGE_SHAPE] =
                                                  "entry x has a shape that its bytes do not fill",
                                              [WRONG_TYPE] = "entry x has a type that is not known",
                                              [NO_TYPE] = "entry x has no type",
                                              [BIG_ENDIAN_TYPE] = "entry x has a type",
                                              [MISSING] = "entry weights/w is missing",
                                              [DOTS] = "entry ../x is",
                                              [EMPTY_NAMES] = "is not a name",
                                              [RANK_7] = "entry x has a shape that cannot be used",
                                              [UNENDED] = "entries has a last line",
                                              [A_GROUP] = "entry g is missing"};
    for (int kind = 0; kind < NKINDS; kind++) {
        forge(in_dir("f.h5"), kind);
        assert_int_equal(tp_seal_write(c, in_dir("f.h5"), 3, "forged"), TP_OK);
        refused(c, in_dir("f.h5"), TP_EFORMAT, words[kind]);
    }
    spit(in_dir("f.h5"), "x", 1); /* sealed, but no HDF5 at all */
    assert_int_equal(tp_seal_write(c, in_dir("f.h5"), 3, "forged"), TP_OK);
    refused(c, in_dir("f.h5"), TP_EFORMAT, "");
}

/* ---- the folder ----------------------------------------------------------------------------- */
static void flip_byte(const char *path) {
    int fd = open(path, O_RDWR);
    char b = 0;
    assert_true(fd >= 0 && pread(fd, &b, 1, 700) == 1);
    b ^= 1;
    assert_int_equal(pwrite(fd, &b, 1, 700), 1);
    close(fd);
}

static void test_latest(void **state) {
    tp_ctx *c = *state;
    tp_checkpoint_reader *r;
    char warning[512];
    assert_int_equal(tp_checkpoint_latest(&r, c, "/nowhere", warning, sizeof warning), TP_OK);
    assert_null(r);
    assert_int_equal(tp_checkpoint_latest(&r, c, dir, warning, sizeof warning), TP_OK);
    assert_null(r);
    for (int64_t step = 8; step <= 12; step++) save_step(c, step);
    save_step(c, 123456789012); /* more than eight digits is still the newest */
    spit(in_dir("step-00000099.h5.tmp"), "x", 1);
    spit(in_dir("step-99.h5"), "x", 1);
    assert_int_equal(tp_checkpoint_latest(&r, c, dir, warning, sizeof warning), TP_OK);
    assert_int_equal(tp_checkpoint_step(r), 123456789012);
    assert_string_equal(warning, "");
    tp_checkpoint_close(r);
    flip_byte(in_dir("step-123456789012.h5"));
    spit(in_dir("step-00000012.h5"), "", 0);
    assert_int_equal(tp_checkpoint_latest(&r, c, dir, warning, sizeof warning), TP_OK);
    assert_int_equal(tp_checkpoint_step(r), 11);
    assert_non_null(strstr(warning, "step-123456789012.h5: damaged"));
    assert_non_null(strstr(warning, "step-00000012.h5: empty; going on from step 11"));
    assert_string_equal(tp_error(c), "");
    tp_checkpoint_close(r);
    char tiny[8];
    assert_int_equal(tp_checkpoint_latest(&r, c, dir, tiny, sizeof tiny), TP_OK);
    assert_true(strlen(tiny) < sizeof tiny);
    tp_checkpoint_close(r);

    /* step 9 is what was just written: files of later steps neither count nor go */
    assert_int_equal(tp_checkpoint_rotate(c, dir, 9, 1), TP_OK);
    assert_true(exists("step-00000009.h5") && !exists("step-00000008.h5"));
    assert_true(exists("step-00000012.h5") && exists("step-123456789012.h5"));
    assert_int_equal(tp_checkpoint_rotate(c, dir, 11, 0), TP_OK); /* 0 keeps all */
    assert_true(exists("step-00000009.h5"));
    assert_int_equal(tp_checkpoint_rotate(c, dir, 11, 2), TP_OK);
    assert_true(!exists("step-00000009.h5") && exists("step-00000010.h5"));

    int64_t removed;
    spit(in_dir("mine.tmp"), "x", 1);
    spit(in_dir("best.h5.tmp"), "x", 1);
    assert_int_equal(tp_checkpoint_clean(c, dir, &removed), TP_OK);
    assert_int_equal(removed, 2);
    assert_true(exists("mine.tmp") && exists("step-99.h5") && !exists("best.h5.tmp"));

    for (int64_t step = 10; step <= 11; step++) {
        char path[256];
        tp_checkpoint_file(path, sizeof path, c, dir, step);
        spit(path, "x", 1);
    }
    assert_int_equal(tp_checkpoint_latest(&r, c, dir, warning, sizeof warning), TP_EFORMAT);
    assert_null(r);
}

static void test_best(void **state) {
    tp_ctx *c = *state;
    tp_checkpoint_reader *r;
    assert_int_equal(tp_checkpoint_best(c, dir, 1), TP_EIO);
    tp_clear(c);
    save_step(c, 1);
    save_step(c, 2);
    for (int twice = 0; twice < 2; twice++) assert_int_equal(tp_checkpoint_best(c, dir, 1), TP_OK);
    assert_int_equal(tp_checkpoint_rotate(c, dir, 2, 1), TP_OK);
    assert_false(exists("step-00000001.h5") || exists("best.h5.tmp"));
    assert_int_equal(tp_checkpoint_open(&r, c, in_dir("best.h5")), TP_OK);
    assert_int_equal(tp_checkpoint_step(r), 1);
    tp_checkpoint_close(r);
    assert_int_equal(tp_checkpoint_best(c, dir, 2), TP_OK);
    assert_int_equal(tp_checkpoint_open(&r, c, in_dir("best.h5")), TP_OK);
    assert_int_equal(tp_checkpoint_step(r), 2);
    tp_checkpoint_close(r);
}

/* ---- violence ------------------------------------------------------------------------------- */
/* Writes steps from `first` on, telling each that is finished through fd, until it is killed. */
static void write_for_ever(int fd, int64_t first) {
    tp_ctx *c = NULL;
    if (tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1})) _exit(2);
    for (int64_t step = first;; step++) {
        char path[256];
        if (tp_checkpoint_file(path, sizeof path, c, dir, step) || save(c, path, step, 20000) ||
            write(fd, &step, sizeof step) != sizeof step || tp_checkpoint_rotate(c, dir, step, 2))
            _exit(3);
    }
}

static void test_kill(void **state) {
    tp_ctx *c = *state;
    int64_t last = 0;
    for (int round = 0; round < 12; round++) {
        int ends[2], status;
        assert_int_equal(pipe(ends), 0);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (!pid) write_for_ever(ends[1], last + 1);
        close(ends[1]);
        int64_t step, told = last;
        assert_int_equal(read(ends[0], &step, sizeof step), sizeof step); /* it is under way */
        told = step;
        nanosleep(&(struct timespec){.tv_nsec = (round * 7919 % 13) * 700000}, NULL);
        kill(pid, SIGKILL);
        while (read(ends[0], &step, sizeof step) == sizeof step) told = step;
        close(ends[0]);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
        tp_checkpoint_reader *r = NULL;
        char warning[256];
        int64_t removed, n = 20000;
        assert_int_equal(tp_checkpoint_clean(c, dir, &removed), TP_OK);
        assert_int_equal(tp_checkpoint_latest(&r, c, dir, warning, sizeof warning), TP_OK);
        assert_non_null(r);
        assert_string_equal(warning, ""); /* none was left half written */
        last = tp_checkpoint_step(r);
        assert_true(last >= told); /* what was finished is there */
        float *v = malloc((size_t)n * sizeof *v);
        assert_non_null(v);
        assert_int_equal(tp_checkpoint_get(r, "weights/w", TP_F32, 1, &n, v, 80000), TP_OK);
        for (int64_t i = 0; i < n; i++) assert_true(v[i] == (float)last);
        free(v);
        tp_checkpoint_close(r);
    }
}

/* A disk that is full: the old file stays, the new one leaves nothing behind. */
static void test_full_disk(void **state) {
    tp_ctx *c = *state;
    const char *path = in_dir("a.h5");
    assert_int_equal(save(c, path, 1, 16), TP_OK);
    for (int64_t n = 4000; n <= 400000; n *= 10) {
        int status;
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (!pid) {
            signal(SIGXFSZ, SIG_IGN);
            setrlimit(RLIMIT_FSIZE, &(struct rlimit){.rlim_cur = 8000, .rlim_max = 8000});
            tp_status st = save(c, path, 2, n);
            /* _exit would hide a writer that HDF5 still holds; the next save must work */
            setrlimit(RLIMIT_FSIZE, &(struct rlimit){.rlim_cur = 8000, .rlim_max = 8000});
            bool told = *tp_error(c) && strstr(tp_error(c), path);
            tp_clear(c);
            tp_status small = save(c, in_dir("b.h5"), 3, 16);
            _exit(st == TP_EIO && told && !small && !exists("a.h5.tmp") ? 0 : 1);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        tp_checkpoint_reader *r;
        assert_int_equal(tp_checkpoint_open(&r, c, path), TP_OK);
        assert_int_equal(tp_checkpoint_step(r), 1);
        tp_checkpoint_close(r);
    }
}

static void test_no_memory(void **state) {
    tp_ctx *c = *state;
    int failures = 0;
    for (long at = 1; at < 40; at++) {
        c->fail_alloc_at = at;
        tp_status st = save(c, in_dir("a.h5"), 1, 16);
        tp_checkpoint_reader *r = NULL;
        char *text = NULL, warning[64];
        if (!st) st = tp_checkpoint_open(&r, c, in_dir("a.h5"));
        if (!st) st = tp_checkpoint_get_text(r, "config", &text);
        tp_free(text);
        tp_checkpoint_close(r);
        r = NULL;
        if (!st) st = tp_checkpoint_latest(&r, c, dir, warning, sizeof warning);
        tp_checkpoint_close(r);
        assert_false(exists("a.h5.tmp"));
        assert_true(st == TP_OK || st == TP_ENOMEM);
        assert_int_equal(st, tp_error_status(c));
        failures += st != TP_OK;
        tp_clear(c);
        c->fail_alloc_at = 0;
    }
    assert_true(failures > 5 && failures < 39); /* it struck, and then came to an end */
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_round_trip), TEST(test_same_bytes), TEST(test_bad_puts), TEST(test_damage),
        TEST(test_foreign),    TEST(test_latest),     TEST(test_best),     TEST(test_kill),
        TEST(test_full_disk),  TEST(test_no_memory),
    };
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
