/* checkpoint: one HDF5 file that holds whatever a run needs to go on, whole or not at all.
 *
 * A file is written under a temporary name, sealed with a SHA-256 over every byte, synced and
 * renamed; so a crash at any moment leaves the checkpoints that were there before. Opening checks
 * the seal before HDF5 or anybody else looks inside. The seal sits in the 512 bytes before the HDF5
 * data (the "user block" of the format), so h5dump and other HDF5 programs read the file as is:
 *     head -c 512 checkpoints/step-00001000.h5
 *
 * Entries are named like paths ("weights/wte.weight", "loader/position"); the caller decides what
 * there is. Equal content written by the same code gives equal bytes. */
#ifndef TP_CHECKPOINT_H
#define TP_CHECKPOINT_H
#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { TP_CHECKPOINT_VERSION = 1, TP_CHECKPOINT_NAME = 256 }; /* longest name with its NUL */

/* ---- writing -------------------------------------------------------------------------------- */
typedef struct tp_checkpoint_writer tp_checkpoint_writer;

/* Starts PATH.tmp; makes the folder if only that one is missing. */
tp_status tp_checkpoint_create(tp_checkpoint_writer **out, tp_ctx *c, const char *path,
                               int64_t step);
/* Adds values in row-major order; bytes must be what dtype and shape say. A name is of letters,
 * digits and ._- in parts joined by '/', and is new. After a failure every call fails. */
tp_status tp_checkpoint_put(tp_checkpoint_writer *w, const char *name, tp_dtype dtype, int ndim,
                            const int64_t *shape, const void *data, size_t bytes);
tp_status tp_checkpoint_put_i64(tp_checkpoint_writer *w, const char *name, int64_t v);
tp_status tp_checkpoint_put_f64(tp_checkpoint_writer *w, const char *name, double v);
tp_status tp_checkpoint_put_text(tp_checkpoint_writer *w, const char *name, const char *text);
/* Seals, syncs and renames to the path given; frees w whatever the status. On failure the temporary
 * file is gone and a file already at path is untouched. */
tp_status tp_checkpoint_finish(tp_checkpoint_writer *w);
void tp_checkpoint_abandon(tp_checkpoint_writer *w); /* frees w and removes the temporary file */

/* ---- reading -------------------------------------------------------------------------------- */
typedef struct tp_checkpoint_reader tp_checkpoint_reader;
typedef struct tp_checkpoint_entry {
    const char *name; /* the reader's; valid until it is closed */
    tp_dtype dtype;   /* TP_U8 for a text */
    bool is_text;     /* shape[0] bytes of it, no NUL */
    int ndim;
    int64_t shape[TP_MAXDIM];
    size_t bytes;
} tp_checkpoint_entry;

/* Opens and checks the whole file. TP_EIO: it cannot be read; TP_EFORMAT: empty, foreign, cut
 * short, damaged, or of a newer version; the sentence says which. */
tp_status tp_checkpoint_open(tp_checkpoint_reader **out, tp_ctx *c, const char *path);
void tp_checkpoint_close(tp_checkpoint_reader *r);
int64_t tp_checkpoint_step(const tp_checkpoint_reader *r);
const char *tp_checkpoint_code(const tp_checkpoint_reader *r); /* "0.1.0 89980ee1c7d2": wrote it */
const char *tp_checkpoint_path(const tp_checkpoint_reader *r);
/* Entries in the order they were put. */
int64_t tp_checkpoint_count(const tp_checkpoint_reader *r);
const tp_checkpoint_entry *tp_checkpoint_at(const tp_checkpoint_reader *r, int64_t i);
const tp_checkpoint_entry *tp_checkpoint_find(const tp_checkpoint_reader *r, const char *name);
/* Reads one entry into data. Type, shape and bytes must be exactly those of the file: TP_EDTYPE,
 * TP_ESHAPE; TP_EARG where there is no such entry. On failure data may be partly written. */
tp_status tp_checkpoint_get(tp_checkpoint_reader *r, const char *name, tp_dtype dtype, int ndim,
                            const int64_t *shape, void *data, size_t bytes);
tp_status tp_checkpoint_get_i64(tp_checkpoint_reader *r, const char *name, int64_t *v);
tp_status tp_checkpoint_get_f64(tp_checkpoint_reader *r, const char *name, double *v);
/* *text is heap memory with a NUL after it, to be given to tp_free. */
tp_status tp_checkpoint_get_text(tp_checkpoint_reader *r, const char *name, char **text);

/* ---- the folder ----------------------------------------------------------------------------- */
/* "DIR/step-00001000.h5" into out. TP_EARG where it does not fit in cap bytes. */
tp_status tp_checkpoint_file(char *out, size_t cap, tp_ctx *c, const char *dir, int64_t step);
/* Opens the newest checkpoint of dir that passes its check. *out is NULL (and the status 0) where
 * dir holds none. Damaged ones are passed over: warning (cap bytes, "" if all is well) says which
 * and why. TP_EFORMAT where there are some but none is good. */
tp_status tp_checkpoint_latest(tp_checkpoint_reader **out, tp_ctx *c, const char *dir,
                               char *warning, size_t cap);
/* Whether dir holds a checkpoint of a step, good or damaged. */
tp_status tp_checkpoint_any(bool *any, tp_ctx *c, const char *dir);
/* Removes what interrupted writers left. For the one process that writes to dir, at its start. */
tp_status tp_checkpoint_clean(tp_ctx *c, const char *dir, int64_t *removed);
/* Keeps the `keep` newest files up to `step`, which was just written; 0 keeps all. Files of later
 * steps (passed over as damaged at a resume) neither count nor go. */
tp_status tp_checkpoint_rotate(tp_ctx *c, const char *dir, int64_t step, int64_t keep);
/* Makes DIR/best.h5 the checkpoint of `step`. It stays when that file is rotated away. */
tp_status tp_checkpoint_best(tp_ctx *c, const char *dir, int64_t step);

#ifdef __cplusplus
}
#endif
#endif
