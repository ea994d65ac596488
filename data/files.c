/* Owns putting a finished file in its place, looking first at what stands there, and reading. */
#include "data/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_CAP = 4096 };

/* The folder that path stands in; false: its name is too long. */
static bool folder_of(char out[PATH_CAP], const char *path) {
    const char *slash = strrchr(path, '/');
    int n = slash ? (int)(slash - path) : 0;
    const char *whole = !slash ? "." : n ? "" : "/";
    return snprintf(out, PATH_CAP, "%.*s%s", n, path, whole) < PATH_CAP;
}

tp_status tp_may_replace(tp_ctx *c, const char *path) {
    struct stat s;
    if (lstat(path, &s) || S_ISREG(s.st_mode)) return TP_OK; /* what else is wrong, writing tells */
    const char *what = S_ISLNK(s.st_mode)    ? "a symbolic link: name the file that it leads to"
                       : S_ISDIR(s.st_mode)  ? "a folder: name a file"
                       : S_ISFIFO(s.st_mode) ? "a pipe: name a file"
                       : S_ISSOCK(s.st_mode) ? "a socket: name a file"
                                             : "a device: name a file";
    return tp_fail(c, TP_EIO, "%s cannot be written, as it is %s", path, what);
}

static int sync_path(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0) return -1;
    int bad = fsync(fd), e = errno;
    close(fd);
    errno = e;
    return bad;
}

tp_status tp_commit_file(tp_ctx *c, const char *tmp, const char *path) {
    char dir[PATH_CAP];
    if (!folder_of(dir, path)) return tp_fail(c, TP_EIO, "%s: the path is too long", path);
    tp_status st = tp_may_replace(c, path);
    if (st) return st;
    if (sync_path(tmp, O_RDONLY))
        return tp_fail(c, TP_EIO, "%s: cannot write it to disk: %s", tmp, strerror(errno));
    if (rename(tmp, path))
        return tp_fail(c, TP_EIO, "%s: cannot rename it to %s: %s", tmp, path, strerror(errno));
    /* Some file systems cannot sync a folder (EINVAL); the rename has then to be good enough. */
    if (sync_path(dir, O_RDONLY | O_DIRECTORY) && errno != EINVAL)
        return tp_fail(c, TP_EIO, "%s: cannot write the folder to disk: %s", dir, strerror(errno));
    return TP_OK;
}

bool tp_write_all(int fd, const void *bytes, size_t n) {
    const char *at = bytes;
    while (n) {
        ssize_t put = write(fd, at, n);
        if (put < 0 && errno == EINTR) continue;
        if (put == 0) errno = ENOSPC; /* no file system should, but there would be no end */
        if (put <= 0) return false;
        at += put;
        n -= (size_t)put;
    }
    return true;
}

tp_status tp_open_file(tp_ctx *c, const char *path, int *fd, uint64_t *size) {
    struct stat s;
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0 || fstat(*fd, &s))
        return tp_fail(c, TP_EIO, "%s: cannot read: %s", path, strerror(errno));
    *size = (uint64_t)s.st_size;
    return S_ISREG(s.st_mode) ? TP_OK : tp_fail(c, TP_EIO, "%s: not a regular file", path);
}

tp_status tp_read_at(tp_ctx *c, int fd, const char *path, uint64_t at, void *to, size_t n) {
    for (char *p = to; n;) {
        ssize_t got = pread(fd, p, n, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return tp_fail(c, TP_EIO, "%s: cannot read: %s", path, strerror(errno));
        if (got == 0) return tp_fail(c, TP_EIO, "%s: became shorter while it was being read", path);
        p += got;
        at += (uint64_t)got;
        n -= (size_t)got;
    }
    return TP_OK;
}

tp_status tp_read_file(char **out, size_t *n, tp_ctx *c, const char *path, size_t most) {
    int fd;
    uint64_t size;
    *out = NULL;
    tp_status st = tp_open_file(c, path, &fd, &size);
    if (!st && size > most)
        st = tp_fail(c, TP_EFORMAT, "%s: has %llu bytes, more than the %zu that it may have", path,
                     (unsigned long long)size, most);
    if (!st && !(*out = tp_malloc(c, (size_t)size + 1))) st = tp_error_status(c);
    if (!st) st = tp_read_at(c, fd, path, 0, *out, (size_t)size);
    if (fd >= 0) close(fd);
    if (!st) {
        *n = (size_t)size;
        (*out)[*n] = 0;
        return TP_OK;
    }
    tp_free(*out);
    *out = NULL;
    return st;
}

static bool same_inode(const struct stat *a, const struct stat *b) {
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

bool tp_same_place(const char *a, const char *b) {
    char dir_a[PATH_CAP], dir_b[PATH_CAP];
    struct stat x, y;
    if (!stat(a, &x) && !stat(b, &y)) return S_ISREG(x.st_mode) && same_inode(&x, &y);
    const char *leaf_a = strrchr(a, '/'), *leaf_b = strrchr(b, '/');
    if (strcmp(leaf_a ? leaf_a + 1 : a, leaf_b ? leaf_b + 1 : b)) return false;
    if (!folder_of(dir_a, a) || !folder_of(dir_b, b)) return false;
    return !stat(dir_a, &x) && !stat(dir_b, &y) && same_inode(&x, &y);
}
