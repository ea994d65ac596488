/* safetensors: writing the file of weights that Hugging Face's libraries read, whole or not at all.
 *
 *     8 bytes        length of the header, little-endian
 *     the header     JSON, padded with blanks: for each tensor its type, shape and place
 *     the values     one tensor behind the other, row-major, little-endian
 *
 * Places count from the end of the header. Its length is a multiple of 8, so that whoever maps the
 * file finds the values aligned. Source: the format's description in github.com/huggingface/
 * safetensors. The header comes first, so every tensor is declared before the first value is put;
 * the values then pass through one at a time. */
#ifndef TP_SAFETENSORS_H
#define TP_SAFETENSORS_H
#include "core/core.h"
#ifdef __cplusplus
extern "C" {
#endif

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

#ifdef __cplusplus
}
#endif
#endif
