/* What every user of HDF5 in this folder shares: the one lock, errors as sentences, safe opening.
 *
 * Debian's HDF5 keeps global state without locks, so one thread at a time may be inside it: hold
 * tp_h5_lock around every group of H5 calls (the prefetch thread and the checkpoint writer both
 * come here). The lock is not recursive. */
#ifndef TP_HDF5_LOCK_H
#define TP_HDF5_LOCK_H
#include "core/core.h"

#include <hdf5.h>

void tp_h5_lock(void); /* also keeps HDF5 from printing its error stack */
void tp_h5_unlock(void);

/* tp_fail with HDF5's own innermost message in brackets after the sentence. Call under the lock,
 * right after the call that failed. */
tp_status tp_h5_fail(tp_ctx *c, tp_status code, const char *fmt, ...) TP_PRINTF(3, 4);

/* Refuses, before HDF5 sees it, a file that is missing, empty, no HDF5 file, or an HDF5 file of
 * the old layout (superblock 0 or 1): that one has no checksums over its structure, and HDF5 is
 * not robust against damage there. Files made through tp_h5_create pass. `what`: "corpus". Call
 * without the lock. */
tp_status tp_h5_precheck(tp_ctx *c, const char *what, const char *path);
tp_status tp_h5_precheck_image(tp_ctx *c, const char *what, const char *name, const void *bytes,
                               size_t n);

/* Create and open under the lock; a negative id on failure (with HDF5's error stack set). */
hid_t tp_h5_create(const char *path); /* new layout: checksums over all of the structure */
hid_t tp_h5_open(const char *path);   /* read only; takes no file lock */
hid_t tp_h5_open_image(const char *name, const void *bytes, size_t n); /* a file in memory */

/* HDF5 1.10 keeps broken objects in memory, and crashes on them later, if it closes anything for
 * which a write failed (a full disk). So, for files made by tp_h5_create and under the lock:
 * - when a write fails, call tp_h5_divert, after tp_h5_fail and before any close: what HDF5 still
 *   wants to write goes to memory, and succeeds;
 * - close with tp_h5_finish, with the datasets still open (it closes them; all ids are gone after
 *   it). Negative, error stack set: not all could be written. To give up: divert and H5Fclose. */
void tp_h5_divert(hid_t file);
herr_t tp_h5_finish(hid_t file);
#endif
