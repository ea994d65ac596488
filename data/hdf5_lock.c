/* The lock around HDF5, and its errors as sentences. */
#define _GNU_SOURCE /* memfd_create */
#include "data/hdf5_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t h5_mutex = PTHREAD_MUTEX_INITIALIZER;

/* HDF5 tidies up when the program ends, and crashes there if a file could not be closed for want of
 * disk space. Every file here is closed by its owner, so there is nothing to tidy. */
static void before_first_use(void) { H5dont_atexit(); }

void tp_h5_lock(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_mutex_lock(&h5_mutex);
    pthread_once(&once, before_first_use);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

void tp_h5_unlock(void) { pthread_mutex_unlock(&h5_mutex); }

/* HDF5's text for a refused read or write is a list of numbers around the system's own words. */
static herr_t keep_innermost(unsigned n, const H5E_error2_t *e, void *arg) {
    static const char mark[] = "error message = '";
    const char *said = e->desc ? e->desc : "", *words = strstr(said, mark);
    (void)n;
    if (words) {
        words += sizeof mark - 1;
        snprintf(arg, 160, "%.*s", (int)strcspn(words, "'"), words);
    } else if (*said) {
        snprintf(arg, 160, "%.*s", (int)strcspn(said, "\n"), said);
    }
    return 0;
}

tp_status tp_h5_fail(tp_ctx *c, tp_status code, const char *fmt, ...) {
    char why[160] = "no reason given", what[512];
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, keep_innermost, why); /* the last call is innermost */
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    return tp_fail(c, code, "%s (HDF5: %s)", what, why);
}

/* The format signature and the superblock's version, HDF5 File Format Specification 3.0, II.A. */
static tp_status check_head(tp_ctx *c, const char *what, const char *name, const uint8_t *head,
                            size_t n) {
    static const uint8_t signature[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
    if (!n) return tp_fail(c, TP_EFORMAT, "%s: %s is empty", what, name);
    if (n < 9 || memcmp(head, signature, 8))
        return tp_fail(c, TP_EFORMAT, "%s: %s is not an HDF5 file%s", what, name,
                       strcmp(what, "corpus") ? ""
                                              : ", which `tapir prepare` makes of text; "
                                                "conversations are a .jsonl file");
    if (head[8] < 2)
        return tp_fail(c, TP_EFORMAT,
                       "%s: %s is an HDF5 file of the old layout (superblock %d), which Tapir does "
                       "not write",
                       what, name, head[8]);
    return TP_OK;
}

tp_status tp_h5_precheck(tp_ctx *c, const char *what, const char *path) {
    uint8_t head[9];
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return tp_fail(c, TP_EIO, "%s: %s: %s%s", what, path, strerror(errno),
                       errno == ENOENT && !strcmp(what, "corpus")
                           ? " (`tapir prepare` makes a corpus of text)"
                           : "");
    tp_status s = TP_OK;
    ssize_t n = 0;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode))
        s = tp_fail(c, TP_EIO, "%s: %s is no regular file", what, path);
    else if ((n = read(fd, head, sizeof head)) < 0)
        s = tp_fail(c, TP_EIO, "%s: %s: %s", what, path, strerror(errno));
    else
        s = check_head(c, what, path, head, (size_t)n);
    close(fd);
    return s;
}

tp_status tp_h5_precheck_image(tp_ctx *c, const char *what, const char *name, const void *bytes,
                               size_t n) {
    return check_head(c, what, name, bytes, n);
}

/* Closes the property list, which would forget why the call before it failed. */
static void close_keeping_errors(hid_t plist) {
    hid_t errors = H5Eget_current_stack();
    H5Pclose(plist);
    if (errors >= 0) H5Eset_current_stack(errors); /* closes it too */
}

hid_t tp_h5_create(const char *path) {
    hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);
    if (fapl < 0) return -1;
    hid_t f = -1;
    if (H5Pset_libver_bounds(fapl, H5F_LIBVER_V110, H5F_LIBVER_V110) >= 0 &&
        H5Pset_fclose_degree(fapl, H5F_CLOSE_STRONG) >= 0)
        f = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, fapl);
    close_keeping_errors(fapl);
    return f;
}

static hid_t open_with(const char *path, const void *image, size_t n) {
    hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);
    if (fapl < 0) return -1;
    hid_t f = -1;
    /* No file lock: readers of a file that is only ever replaced whole need none, and some network
     * file systems refuse them. */
    if (H5Pset_fclose_degree(fapl, H5F_CLOSE_STRONG) >= 0 && H5Pset_file_locking(fapl, 0, 1) >= 0 &&
        (!image || (H5Pset_fapl_core(fapl, 1 << 16, 0) >= 0 &&
                    /* HDF5 copies the image; its prototype only lacks the const */
                    H5Pset_file_image(fapl, (void *)(uintptr_t)image, n) >= 0)))
        f = H5Fopen(path, H5F_ACC_RDONLY, fapl);
    close_keeping_errors(fapl);
    return f;
}

hid_t tp_h5_open(const char *path) { return open_with(path, NULL, 0); }

hid_t tp_h5_open_image(const char *name, const void *bytes, size_t n) {
    return open_with(name, bytes, n);
}

void tp_h5_divert(hid_t file) {
    void *handle = NULL;
    if (H5Fget_vfd_handle(file, H5P_DEFAULT, &handle) < 0 || !handle) return;
    int fd = memfd_create("tapir", MFD_CLOEXEC);
    if (fd < 0) return;
    dup2(fd, *(int *)handle); /* the default driver's handle is its descriptor */
    close(fd);
}

herr_t tp_h5_finish(hid_t file) {
    if (H5Fflush(file, H5F_SCOPE_LOCAL) >= 0) return H5Fclose(file);
    hid_t errors = H5Eget_current_stack();
    tp_h5_divert(file);
    H5Fclose(file);
    if (errors >= 0) H5Eset_current_stack(errors);
    return -1;
}
