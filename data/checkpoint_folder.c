/* checkpoint_folder: the newest good checkpoint, the oldest to go, the best one, leftovers. */
#include "data/checkpoint.h"
#include "data/files.h"
#include "data/text.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_CAP = 4096 };

/* Eight digits sort by name for the first hundred million steps; more digits still work. */
static int file_name(char out[48], int64_t step) {
    return snprintf(out, 48, "step-%08lld.h5", (long long)step);
}

tp_status tp_checkpoint_file(char *out, size_t cap, tp_ctx *c, const char *dir, int64_t step) {
    char name[48];
    file_name(name, step);
    int n = snprintf(out, cap, "%s/%s", dir, name);
    if (step >= 0 && n >= 0 && (size_t)n < cap) return TP_OK;
    return tp_fail(c, TP_EARG, "%s: no name for a checkpoint of step %lld", dir, (long long)step);
}

/* The step of "step-00001000.h5", or -1 where name is not exactly what file_name gives. */
static int64_t step_of(const char *name) {
    char same[48];
    const char *digits = name + 5, *end = strchr(name, '.');
    int64_t step = -1;
    if (strncmp(name, "step-", 5) || !end || end <= digits) return -1;
    while (*digits == '0' && digits + 1 < end) digits++;
    if (tp_i64_parse(&step, digits, (size_t)(end - digits)) || step < 0) return -1;
    file_name(same, step);
    return strcmp(same, name) ? -1 : step;
}

static int newest_first(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

/* Steps of dir's checkpoints, newest first, in heap memory; none where dir does not exist. */
static tp_status list_steps(int64_t **steps, size_t *n, tp_ctx *c, const char *dir) {
    *steps = NULL;
    *n = 0;
    size_t cap = 0;
    DIR *d = opendir(dir);
    if (!d && errno == ENOENT) return TP_OK;
    if (!d) return tp_fail(c, TP_EIO, "%s: cannot open the folder: %s", dir, strerror(errno));
    tp_status st = TP_OK;
    errno = 0;
    for (struct dirent *e; !st && (e = readdir(d)); errno = 0) {
        int64_t step = step_of(e->d_name);
        if (step < 0) continue;
        if (*n == cap) {
            cap = cap ? 2 * cap : 16;
            int64_t *more = tp_realloc(c, *steps, cap * sizeof **steps);
            if (!more) {
                st = TP_ENOMEM;
                break;
            }
            *steps = more;
        }
        (*steps)[(*n)++] = step;
    }
    if (!st && errno) st = tp_fail(c, TP_EIO, "%s: cannot read: %s", dir, strerror(errno));
    closedir(d);
    if (*n) qsort(*steps, *n, sizeof **steps, newest_first);
    if (st) {
        tp_free(*steps);
        *steps = NULL;
        *n = 0;
    }
    return st;
}

tp_status tp_checkpoint_latest(tp_checkpoint_reader **out, tp_ctx *c, const char *dir,
                               char *warning, size_t cap) {
    int64_t *steps;
    size_t n, used = 0;
    char path[PATH_CAP];
    *out = NULL;
    if (cap) warning[0] = 0;
    tp_status st = list_steps(&steps, &n, c, dir);
    for (size_t i = 0; !st && i < n && !*out; i++) {
        if ((st = tp_checkpoint_file(path, sizeof path, c, dir, steps[i]))) break;
        st = tp_checkpoint_open(out, c, path);
        if (!st || (st != TP_EFORMAT && st != TP_EIO)) continue;
        if (i + 1 == n) break; /* the oldest one's own sentence says it */
        if (used < cap)
            used +=
                (size_t)snprintf(warning + used, cap - used, "%s%s", used ? "; " : "", tp_error(c));
        tp_clear(c);
        st = TP_OK;
    }
    if (*out && used && used < cap)
        snprintf(warning + used, cap - used, "; going on from step %lld",
                 (long long)tp_checkpoint_step(*out));
    tp_free(steps);
    return st;
}

tp_status tp_checkpoint_any(bool *any, tp_ctx *c, const char *dir) {
    int64_t *steps;
    size_t n;
    tp_status st = list_steps(&steps, &n, c, dir);
    *any = n > 0;
    tp_free(steps);
    return st;
}

tp_status tp_checkpoint_clean(tp_ctx *c, const char *dir, int64_t *removed) {
    char name[256], path[PATH_CAP];
    *removed = 0;
    DIR *d = opendir(dir);
    if (!d && errno == ENOENT) return TP_OK;
    if (!d) return tp_fail(c, TP_EIO, "%s: cannot open the folder: %s", dir, strerror(errno));
    tp_status st = TP_OK;
    for (struct dirent *e; !st && (e = readdir(d));) {
        size_t n = strlen(e->d_name);
        if (n < 5 || n >= sizeof name || strcmp(e->d_name + n - 4, ".tmp")) continue;
        snprintf(name, sizeof name, "%.*s", (int)(n - 4), e->d_name);
        if (step_of(name) < 0 && strcmp(name, "best.h5")) continue; /* not ours to remove */
        if (snprintf(path, sizeof path, "%s/%s", dir, e->d_name) >= (int)sizeof path) continue;
        if (unlink(path) && errno != ENOENT)
            st = tp_fail(c, TP_EIO, "%s: cannot remove: %s", path, strerror(errno));
        else
            ++*removed;
    }
    closedir(d);
    return st;
}

tp_status tp_checkpoint_rotate(tp_ctx *c, const char *dir, int64_t step, int64_t keep) {
    int64_t *steps, kept = 0;
    size_t n;
    char path[PATH_CAP];
    if (keep <= 0) return TP_OK;
    tp_status st = list_steps(&steps, &n, c, dir);
    for (size_t i = 0; !st && i < n; i++) {
        if (steps[i] > step || kept++ < keep) continue;
        if ((st = tp_checkpoint_file(path, sizeof path, c, dir, steps[i]))) break;
        if (unlink(path) && errno != ENOENT)
            st = tp_fail(c, TP_EIO, "%s: cannot remove: %s", path, strerror(errno));
    }
    tp_free(steps);
    return st;
}

static tp_status copy_file(tp_ctx *c, const char *from, const char *to) {
    enum { CHUNK = 1 << 20 };
    char *chunk = tp_malloc(c, CHUNK);
    if (!chunk) return TP_ENOMEM;
    int in = open(from, O_RDONLY | O_CLOEXEC), out = -1;
    if (in >= 0) out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    bool good = out >= 0;
    for (ssize_t got = 1; good && got;) {
        got = read(in, chunk, CHUNK);
        good = got >= 0;
        for (ssize_t done = 0, put; good && done < got; done += put) {
            put = write(out, chunk + done, (size_t)(got - done));
            good = put > 0;
            if (!good) break;
        }
    }
    tp_status st = TP_OK;
    if (!good) st = tp_fail(c, TP_EIO, "%s: cannot copy to %s: %s", from, to, strerror(errno));
    if (out >= 0 && close(out) && !st)
        st = tp_fail(c, TP_EIO, "%s: cannot write: %s", to, strerror(errno));
    if (in >= 0) close(in);
    tp_free(chunk);
    return st;
}

tp_status tp_checkpoint_best(tp_ctx *c, const char *dir, int64_t step) {
    char from[PATH_CAP], to[PATH_CAP], tmp[PATH_CAP];
    tp_status st = tp_checkpoint_file(from, sizeof from, c, dir, step);
    if (st) return st;
    if (snprintf(to, sizeof to, "%s/best.h5", dir) >= (int)sizeof to ||
        snprintf(tmp, sizeof tmp, "%s/best.h5.tmp", dir) >= (int)sizeof tmp)
        return tp_fail(c, TP_EARG, "%s: the path is too long", dir);
    if (unlink(tmp) && errno != ENOENT)
        return tp_fail(c, TP_EIO, "%s: cannot replace it: %s", tmp, strerror(errno));
    /* A checkpoint never changes once it has its name, so a second link is as good as a copy. */
    if (link(from, tmp)) {
        bool none = errno == ENOENT;
        if (none) return tp_fail(c, TP_EIO, "%s: cannot open: %s", from, strerror(errno));
        st = copy_file(c, from, tmp); /* the file system has no links */
    }
    if (!st) st = tp_commit_file(c, tmp, to);
    unlink(tmp); /* after a failure; and where to was the same file already, rename leaves tmp */
    return st;
}
