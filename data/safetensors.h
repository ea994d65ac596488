/* safetensors: the file of weights that Hugging Face's libraries write and read.
 *
 *     8 bytes        length of the header, little-endian
 *     the header     JSON, padded with blanks: for each tensor its type, shape and place
 *     the values     one tensor behind the other, row-major, little-endian
 *
 * Places count from the end of the header. Its length is a multiple of 8, so that whoever maps the
 * file finds the values aligned. Source: the format's description in github.com/huggingface/
 * safetensors. */
#ifndef TP_SAFETENSORS_H
#define TP_SAFETENSORS_H
#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

/* ---- writing, whole or not at all ----------------------------------------------------------- */
/* The header comes first, so every tensor is declared before the first value is put; the values
 * then pass through one at a time. */
typedef struct tp_safetensors_writer tp_safetensors_writer;

/* Starts PATH.tmp, which must not be there. */
tp_status tp_safetensors_create(tp_safetensors_writer **out, tp_ctx *c, const char *path);
/* A tensor of f32 by a name that is new. After a failure every call fails. */
tp_status tp_safetensors_declare(tp_safetensors_writer *w, const char *name, int ndim,
                                 const int64_t *shape);
/* The next n values, in the order of the declarations: a tensor, or a part of one. */
tp_status tp_safetensors_put(tp_safetensors_writer *w, const float *x, int64_t n);
/* Syncs and renames to the path given; frees w whatever the status. TP_EARG where values are
 * missing. On failure the temporary file is gone and a file already at path is untouched. */
tp_status tp_safetensors_finish(tp_safetensors_writer *w);
void tp_safetensors_abandon(tp_safetensors_writer *w); /* frees w, removes the temporary file */

/* ---- reading -------------------------------------------------------------------------------- */
typedef struct tp_safetensors tp_safetensors;
typedef struct tp_safetensors_entry {
    const char *name, *type; /* as the file has them: "F32", "BF16", …; valid until it is closed */
    const char *path;        /* of its file */
    int ndim;
    int64_t shape[TP_MAXDIM];
    int64_t n;   /* values */
    uint64_t at; /* of the first, in bytes of the file */
    int fd;
} tp_safetensors_entry;

/* Opens the weights of a model's folder: its model.safetensors, or the files that its
 * model.safetensors.index.json names. Headers are checked whole, no value is read. TP_EIO: there is
 * no such file, or it cannot be read; TP_EFORMAT: it is damaged or foreign. */
tp_status tp_safetensors_open(tp_safetensors **out, tp_ctx *c, const char *folder);
void tp_safetensors_close(tp_safetensors *s);
int64_t tp_safetensors_count(const tp_safetensors *s); /* in the order of their names */
const tp_safetensors_entry *tp_safetensors_at(const tp_safetensors *s, int64_t i);
const tp_safetensors_entry *tp_safetensors_find(const tp_safetensors *s, const char *name);
/* All e->n values as f32, which holds every F16 and BF16; other types than these: TP_EDTYPE. */
tp_status tp_safetensors_get(tp_ctx *c, const tp_safetensors_entry *e, float *x);

#ifdef __cplusplus
}
#endif
#endif
