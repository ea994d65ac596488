/* Owns the reference kernel. The oracle sees contiguous f64 (and contiguous integers) only, so it
 * can say the formula plainly; f64 tensors reach it without a copy, which makes a whole run in
 * float64 the same code with another dtype. */
#include "ops/reference.h"
#include "core/ctx.h"
#include "ops/convert.h"
#include <string.h>

static tp_dtype oracle_dtype(const tp_tensor *t) {
    return tp_is_float(t->dtype) ? TP_F64 : t->dtype;
}

static bool needs_copy(const tp_tensor *t) {
    return t && (t->dtype != oracle_dtype(t) || !tp_contiguous(t));
}

static size_t copy_bytes(const tp_tensor *t) {
    if (!needs_copy(t)) return 0;
    return ((size_t)tp_numel(t) * tp_dtype_size(oracle_dtype(t)) + 63) & ~(size_t)63;
}

static size_t reference_workspace(const tp_call *k) {
    size_t n = 0;
    for (int i = 0; i < k->nin; i++) n += copy_bytes(k->in[i]);
    for (int i = 0; i < k->nout; i++) n += copy_bytes(k->out[i]);
    return n;
}

static void load(const tp_tensor *t, tp_tensor *copy) {
    int64_t n = tp_numel(t);
    if (copy->dtype == TP_F64) {
        tp_read_f64(t, copy->data);
        return;
    }
    size_t size = tp_dtype_size(t->dtype);
    for (int64_t i = 0; i < n; i++)
        memcpy((char *)copy->data + (size_t)i * size,
               (const char *)t->data + (size_t)tp_offset(t, i) * size, size);
}

static tp_status reference_run(const tp_call *k) {
    tp_call f = *k;
    tp_tensor in[TP_MAXIN], out[TP_MAXOUT];
    char *room = k->workspace;
    for (int i = 0; i < k->nin + k->nout; i++) {
        bool is_in = i < k->nin;
        int j = is_in ? i : i - k->nin;
        tp_tensor *t = is_in ? k->in[j] : k->out[j], *copy = is_in ? &in[j] : &out[j];
        if (!needs_copy(t)) continue;
        *copy = *t;
        copy->dtype = oracle_dtype(t);
        copy->data = room;
        tp_strides_set(copy);
        room += copy_bytes(t);
        if (is_in) load(t, copy);
        if (is_in)
            f.in[j] = copy;
        else
            f.out[j] = copy;
    }
    tp_status st = k->op->oracle(&f);
    if (st) return st;
    for (int j = 0; j < k->nout; j++)
        if (f.out[j] != k->out[j]) tp_write_f64(k->out[j], f.out[j]->data);
    for (int j = 0; j < k->nin; j++)
        if (((k->op->inplace >> j) & 1) && f.in[j] != k->in[j])
            tp_write_f64(k->in[j], f.in[j]->data);
    return TP_OK;
}

const tp_kernel tp_reference_kernel = {
    .name = "reference", .run = reference_run, .workspace = reference_workspace};
