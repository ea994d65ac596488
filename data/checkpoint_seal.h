/* checkpoint_seal: the first 512 bytes of a checkpoint, which vouch for all the others. For
 * checkpoint's own files and its tests. */
#ifndef TP_CHECKPOINT_SEAL_H
#define TP_CHECKPOINT_SEAL_H
#include "core/core.h"

enum { TP_SEAL_BYTES = 512, TP_SEAL_CODE = 96 };

typedef struct tp_seal {
    int64_t version, step, bytes; /* bytes: of the whole file */
    char code[TP_SEAL_CODE];
} tp_seal;

/* Hashes the file at path and writes its seal: text lines, then zeros. */
tp_status tp_seal_write(tp_ctx *c, const char *path, int64_t step, const char *code);
/* Reads the whole file at path and compares. Any changed, missing or added bit is TP_EFORMAT. */
tp_status tp_seal_check(tp_seal *out, tp_ctx *c, const char *path);
#endif
