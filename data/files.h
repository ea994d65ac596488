/* Files that appear whole or not at all, and what names of files may lead to. */
#ifndef TP_FILES_H
#define TP_FILES_H
#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Refuses what a rename onto path would destroy: a device, a pipe, a folder, a link. A regular file
 * and a name that is free pass. To be asked before the work whose result goes there. */
tp_status tp_may_replace(tp_ctx *c, const char *path);
/* fsync tmp, rename it to path, fsync the folder: after this a crash finds the old file or the
 * new one, whole. What tp_may_replace refuses stays. On failure tmp is left for the caller to
 * remove. */
tp_status tp_commit_file(tp_ctx *c, const char *tmp, const char *path);
/* All n bytes, however many writes that takes; false: errno says why not. */
bool tp_write_all(int fd, const void *bytes, size_t n);
/* A regular file of at most `most` bytes, whole: *n bytes with a NUL behind them, for tp_free.
 * TP_EIO: it cannot be read; TP_EFORMAT: it is longer. */
tp_status tp_read_file(char **out, size_t *n, tp_ctx *c, const char *path, size_t most);
/* n bytes of an open file from `at` on. TP_EIO, also where it is too short. */
tp_status tp_read_at(tp_ctx *c, int fd, const char *path, uint64_t at, void *to, size_t n);
/* For these two: opens a regular file; what would keep one waiting, such as a pipe, is none. */
tp_status tp_open_file(tp_ctx *c, const char *path, int *fd, uint64_t *size);
/* Whether writing to one would write to the other, however they are spelt; they need not exist. */
bool tp_same_place(const char *a, const char *b);

#ifdef __cplusplus
}
#endif
#endif
