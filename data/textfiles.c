/* Finding input files: folders in a fixed order, standard input and pipes through a temporary
 * file, and a look at the first bytes of each so that no binary file becomes training text. */
#include "data/textfiles.h"
#include "data/input.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HEAD_BYTES = 8192, MAX_FOLDER_DEPTH = 64 };

const char *tp_text_sniff(const uint8_t *head, size_t n) {
    static const struct {
        const char *magic;
        size_t n;
        const char *what;
    } kinds[] = {
        {"\x1f\x8b", 2, "is compressed by gzip; unpack it first (gzip -d)"},
        {"\x28\xb5\x2f\xfd", 4, "is compressed by zstd; unpack it first (zstd -d)"},
        {"\xfd"
         "7zXZ",
         5, "is compressed by xz; unpack it first (xz -d)"},
        {"BZh", 3, "is compressed by bzip2; unpack it first (bzip2 -d)"},
        {"PK\3\4", 4, "is a zip archive; unpack it first (unzip)"},
        {"%PDF-", 5, "is a PDF document; extract its text first (pdftotext)"},
        {"\xff\xfe", 2, "is UTF-16 text; convert it first (iconv -f UTF-16 -t UTF-8)"},
        {"\xfe\xff", 2, "is UTF-16 text; convert it first (iconv -f UTF-16 -t UTF-8)"},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (n < kinds[i].n || memcmp(head, kinds[i].magic, kinds[i].n)) continue;
        if (head[0] == 'B' && (n < 10 || memcmp(head + 4, "1AY&SY", 6))) continue; /* a word */
        return kinds[i].what;
    }
    return memchr(head, 0, n) ? "is no text: it has a zero byte" : NULL;
}

static tp_status io_fail(tp_ctx *c, const char *path) {
    return tp_fail(c, TP_EIO, "text: %s: %s", path, strerror(errno));
}

/* Copies what comes from fd to a temporary file without a name; sets its descriptor and size. */
static tp_status spool(tp_ctx *c, int fd, const char *name, bool (*interrupted)(void), int *out,
                       int64_t *size) {
    char path[4096], buf[1 << 16];
    const char *dir = getenv("TMPDIR");
    if (snprintf(path, sizeof path, "%s/tapir-XXXXXX", dir && *dir ? dir : "/tmp") >=
        (int)sizeof path)
        return tp_fail(c, TP_EIO, "text: TMPDIR is too long");
    int tmp = mkstemp(path);
    if (tmp < 0) return tp_fail(c, TP_EIO, "text: cannot create %s: %s", path, strerror(errno));
    unlink(path);
    fcntl(tmp, F_SETFD, FD_CLOEXEC);
    *size = 0;
    for (ssize_t n = 1; n;) {
        tp_status st = tp_input_wait(c, fd, name, interrupted);
        if (!st && (n = read(fd, buf, sizeof buf)) < 0) {
            if (errno == EINTR || errno == EAGAIN) continue;
            st = io_fail(c, name);
        }
        for (ssize_t at = 0, m; !st && at < n; at += m)
            if ((m = write(tmp, buf + at, (size_t)(n - at))) <= 0)
                st = tp_fail(c, TP_EIO, "text: cannot keep %s in a temporary file: %s", name,
                             strerror(errno));
        if (st) {
            close(tmp);
            return st;
        }
        *size += n;
    }
    *out = tmp;
    return TP_OK;
}

static tp_status append(tp_text_files *l, tp_ctx *c, const char *path, int64_t size, int spooled) {
    if (l->n == l->cap) {
        int64_t cap = l->cap ? 2 * l->cap : 16;
        tp_text_file *more = tp_realloc(c, l->file, (size_t)cap * sizeof *more);
        if (!more) return TP_ENOMEM;
        l->file = more;
        l->cap = cap;
    }
    char *copy = tp_strdup(c, path);
    if (!copy) return TP_ENOMEM;
    l->file[l->n++] = (tp_text_file){.path = copy, .size = size, .spool = spooled};
    l->bytes += size;
    return TP_OK;
}

/* Adds an open file after a look at its head. In a folder (`named` false) what is no text is
 * counted and left out. */
static tp_status add_open(tp_text_files *l, tp_ctx *c, const char *path, int fd, int64_t size,
                          bool named, bool spooled) {
    uint8_t head[HEAD_BYTES];
    ssize_t n = pread(fd, head, sizeof head, 0);
    if (n < 0) return io_fail(c, path);
    const char *kind = tp_text_sniff(head, (size_t)n);
    if (!kind) return append(l, c, path, size, spooled ? fd : -1);
    if (named) return tp_fail(c, TP_EFORMAT, "text: %s %s", path, kind);
    l->not_text++;
    if (!l->first_not_text && !(l->first_not_text = tp_strdup(c, path))) return TP_ENOMEM;
    return TP_OK;
}

static tp_status add_spooled(tp_text_files *l, tp_ctx *c, int fd, const char *name) {
    int tmp = -1;
    int64_t size;
    tp_status st = spool(c, fd, name, l->interrupted, &tmp, &size);
    if (st) return st;
    if ((st = add_open(l, c, name, tmp, size, true, true))) close(tmp);
    return st;
}

static tp_status add_file(tp_text_files *l, tp_ctx *c, const char *path, bool named) {
    struct stat info;
    tp_status st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO may wait for its writer */
    if (fd < 0) return io_fail(c, path);
    if (fstat(fd, &info))
        st = io_fail(c, path);
    else if (S_ISREG(info.st_mode))
        st = add_open(l, c, path, fd, info.st_size, named, false);
    else if (S_ISFIFO(info.st_mode) && named)
        st = add_spooled(l, c, fd, path); /* <(command) of a shell */
    else
        st = named ? tp_fail(c, TP_EIO, "text: %s is neither a file, a folder nor a pipe", path)
                   : TP_OK;
    close(fd);
    return st;
}

typedef struct names {
    char **name;
    size_t n, cap;
} names;

static void names_clear(names *l) {
    for (size_t i = 0; i < l->n; i++) tp_free(l->name[i]);
    tp_free(l->name);
}

static int by_bytes(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The paths of a folder's visible entries, in byte order. */
static tp_status list_folder(names *l, tp_ctx *c, const char *path) {
    DIR *d = opendir(path);
    if (!d) return io_fail(c, path);
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--;
    tp_status st = TP_OK;
    for (struct dirent *e; !st && (e = readdir(d));) {
        if (e->d_name[0] == '.') continue;
        if (l->n == l->cap) {
            size_t cap = l->cap ? 2 * l->cap : 64;
            char **more = tp_realloc(c, l->name, cap * sizeof *more);
            if (!more) {
                st = TP_ENOMEM;
                break;
            }
            l->name = more;
            l->cap = cap;
        }
        size_t len = n + strlen(e->d_name) + 2;
        char *full = tp_malloc(c, len);
        if (!full) {
            st = TP_ENOMEM;
            break;
        }
        snprintf(full, len, "%.*s/%s", (int)n, path, e->d_name);
        l->name[l->n++] = full;
    }
    closedir(d);
    if (!st && l->n) qsort(l->name, l->n, sizeof *l->name, by_bytes);
    return st;
}

/* Links to folders are not followed: they may lead back here. */
static tp_status add_folder(tp_text_files *l, tp_ctx *c, const char *path, int depth) {
    names entries = {0};
    if (depth > MAX_FOLDER_DEPTH)
        return tp_fail(c, TP_EIO, "text: %s: folders are nested more than %d deep", path,
                       MAX_FOLDER_DEPTH);
    tp_status st = list_folder(&entries, c, path);
    for (size_t i = 0; !st && i < entries.n; i++) {
        struct stat info, link;
        if (lstat(entries.name[i], &link) || stat(entries.name[i], &info)) continue; /* dangling */
        if (S_ISDIR(link.st_mode))
            st = add_folder(l, c, entries.name[i], depth + 1);
        else if (S_ISREG(info.st_mode))
            st = add_file(l, c, entries.name[i], false);
    }
    names_clear(&entries);
    return st;
}

tp_status tp_text_files_add(tp_text_files *l, tp_ctx *c, const char *path) {
    struct stat info;
    if (!strcmp(path, "-")) {
        if (l->has_stdin) return tp_fail(c, TP_EARG, "text: - (standard input) can be given once");
        l->has_stdin = true;
        return add_spooled(l, c, STDIN_FILENO, "standard input");
    }
    if (stat(path, &info)) return io_fail(c, path);
    return S_ISDIR(info.st_mode) ? add_folder(l, c, path, 1) : add_file(l, c, path, true);
}

void tp_text_files_clear(tp_text_files *l) {
    for (int64_t i = 0; i < l->n; i++) {
        if (l->file[i].spool >= 0) close(l->file[i].spool);
        tp_free(l->file[i].path);
    }
    tp_free(l->file);
    tp_free(l->first_not_text);
    *l = (tp_text_files){0};
}
