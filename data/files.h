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
/* Whether writing to one would write to the other, however they are spelt; they need not exist. */
bool tp_same_place(const char *a, const char *b);

#ifdef __cplusplus
}
#endif
#endif
