/* Owns tensor headers, storages and scopes: who may read which bytes, and until when. */
#include "core/arena.h"
#include "core/ctx.h"
#include <stdio.h>
#include <string.h>

size_t tp_dtype_size(tp_dtype t) {
    static const size_t size[TP_NDTYPE] = {4, 8, 2, 4, 8, 1};
    return (unsigned)t < TP_NDTYPE ? size[t] : 0;
}

const char *tp_dtype_name(tp_dtype t) {
    static const char *const name[TP_NDTYPE] = {"f32", "f64", "bf16", "i32", "i64", "u8"};
    return (unsigned)t < TP_NDTYPE ? name[t] : "?";
}

bool tp_is_float(tp_dtype t) { return t == TP_F32 || t == TP_F64 || t == TP_BF16; }

int64_t tp_numel(const tp_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->shape[i];
    return n;
}

int64_t tp_dim(const tp_tensor *t, int i) {
    if (i < 0) i += t->ndim;
    return i >= 0 && i < t->ndim ? t->shape[i] : 1;
}

bool tp_contiguous(const tp_tensor *t) {
    int64_t want = 1;
    if (tp_numel(t) == 0) return true;
    for (int i = t->ndim - 1; i >= 0; i--) {
        if (t->shape[i] != 1 && t->stride[i] != want) return false;
        want *= t->shape[i];
    }
    return true;
}

bool tp_same_shape(const tp_tensor *a, const tp_tensor *b) {
    if (a->ndim != b->ndim) return false;
    for (int i = 0; i < a->ndim; i++)
        if (a->shape[i] != b->shape[i]) return false;
    return true;
}

const char *tp_shape_str(tp_ctx *c, const tp_tensor *t) {
    char buf[160];
    int n = snprintf(buf, sizeof buf, "%s[", tp_dtype_name(t->dtype));
    for (int i = 0; i < t->ndim; i++)
        n += snprintf(buf + n, sizeof buf - (size_t)n, "%s%lld", i ? "," : "",
                      (long long)t->shape[i]);
    snprintf(buf + n, sizeof buf - (size_t)n, "]");
    return tp_arena_printf(c, "%s", buf);
}

void tp_touch(tp_tensor *t) {
    if (t->storage) t->storage->version++;
}

/* ---- storage -------------------------------------------------------------------------------- */
tp_storage *tp_storage_new(tp_ctx *c, size_t bytes) {
    tp_storage *s = c->spare;
    if (s)
        c->spare = s->base;
    else if (!(s = tp_arena_take(c->keep_arena, c, sizeof *s)))
        return NULL;
    *s = (tp_storage){.bytes = bytes, .refs = 1};
    if (bytes && tp_pool_take(c, bytes, &s->at, &s->base)) {
        s->base = c->spare;
        c->spare = s;
        return NULL;
    }
    return s;
}

void tp_storage_retain(tp_storage *s) {
    if (s) s->refs++;
}

void tp_storage_drop(tp_ctx *c, tp_storage *s) {
    if (!s || --s->refs > 0) return;
    if (s->bytes) tp_pool_give(c, s->at, s->bytes);
    s->base = c->spare;
    c->spare = s;
}

/* ---- headers -------------------------------------------------------------------------------- */
void tp_strides_set(tp_tensor *t) {
    int64_t step = 1;
    for (int i = t->ndim - 1; i >= 0; i--) {
        t->stride[i] = step;
        step *= t->shape[i] > 0 ? t->shape[i] : 1;
    }
}

static tp_tensor *header(tp_ctx *c, struct tp_arena *a, tp_dtype dt, int ndim,
                         const int64_t *shape) {
    if (c->status) return NULL;
    if ((unsigned)dt >= TP_NDTYPE) {
        tp_fail(c, TP_EDTYPE, "there is no dtype %d", (int)dt);
        return NULL;
    }
    if (ndim < 0 || ndim > TP_MAXDIM) {
        tp_fail(c, TP_ESHAPE, "a tensor has 0 to %d dimensions, got %d", TP_MAXDIM, ndim);
        return NULL;
    }
    int64_t left = INT64_MAX / 8; /* so that bytes cannot overflow either */
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0 || (shape[i] > 0 && left / shape[i] == 0)) {
            tp_fail(c, TP_ESHAPE, "dimension %d of size %lld does not fit in memory", i,
                    (long long)shape[i]);
            return NULL;
        }
        if (shape[i] > 0) left /= shape[i];
    }
    tp_tensor *t = tp_arena_take(a, c, sizeof *t);
    if (!t) return NULL;
    t->dtype = dt;
    t->ndim = ndim;
    t->node = -1;
    for (int i = 0; i < ndim; i++) t->shape[i] = shape[i];
    tp_strides_set(t);
    return t;
}

static bool live_push(tp_ctx *c, tp_tensor *t) {
    if (c->nlive == c->cap_live) {
        size_t cap = c->cap_live ? 2 * c->cap_live : 1024;
        tp_tensor **grown = tp_realloc(c, c->live, cap * sizeof *grown);
        if (!grown) return false;
        c->live = grown;
        c->cap_live = cap;
    }
    c->live[c->nlive++] = t;
    return true;
}

tp_tensor *tp_header_new(tp_ctx *c, tp_dtype dt, int ndim, const int64_t *shape) {
    tp_tensor *t = header(c, c->step_arena, dt, ndim, shape);
    return t && live_push(c, t) ? t : NULL;
}

tp_status tp_tensor_bytes(tp_ctx *c, tp_tensor *t) {
    t->storage = tp_storage_new(c, (size_t)tp_numel(t) * tp_dtype_size(t->dtype));
    if (!t->storage) return c->status ? c->status : TP_ENOMEM;
    t->data = t->storage->base;
    return TP_OK;
}

tp_tensor *tp_tensor_new(tp_ctx *c, tp_dtype dt, int ndim, const int64_t *shape) {
    tp_tensor *t = tp_header_new(c, dt, ndim, shape);
    return t && !tp_tensor_bytes(c, t) ? t : NULL;
}

tp_tensor *tp_tensor_keep(tp_ctx *c, tp_dtype dt, int ndim, const int64_t *shape) {
    tp_tensor *t = header(c, c->keep_arena, dt, ndim, shape);
    return t && !tp_tensor_bytes(c, t) ? t : NULL;
}

tp_tensor *tp_tensor_view(tp_ctx *c, tp_tensor *base) {
    if (!base) return NULL;
    tp_tensor *t = tp_header_new(c, base->dtype, base->ndim, base->shape);
    if (!t) return NULL;
    memcpy(t->stride, base->stride, sizeof t->stride);
    t->storage = base->storage;
    t->data = base->data;
    t->offset = base->offset;
    tp_storage_retain(t->storage);
    return t;
}

void tp_view_shift(tp_tensor *view, int64_t n) {
    view->offset += n;
    if (view->data) view->data = (char *)view->data + n * (int64_t)tp_dtype_size(view->dtype);
}

tp_tensor *tp_tensor_borrow(tp_ctx *c, const tp_tensor *of) {
    tp_tensor *t = header(c, c->keep_arena, of->dtype, of->ndim, of->shape);
    if (!t || !(t->storage = tp_storage_new(c, 0))) return NULL; /* 0: the pool has no part in it */
    memcpy(t->stride, of->stride, sizeof t->stride);
    t->storage->base = of->storage ? of->storage->base : NULL;
    t->data = of->data;
    t->offset = of->offset;
    return t;
}

tp_tensor tp_retained(const tp_tensor *t) {
    tp_tensor h = *t;
    h.node = -1;
    h.requires_grad = h.released = false;
    h.grad = h.grad_header = NULL;
    tp_storage_retain(h.storage);
    return h;
}

void tp_release(tp_ctx *c, tp_tensor *t) {
    if (!t || t->released) return;
    t->released = true;
    if (t->storage) tp_storage_drop(c, t->storage);
}

/* ---- scopes --------------------------------------------------------------------------------- */
tp_scope tp_scope_open(tp_ctx *c, const char *fmt, ...) {
    tp_scope s = {c->nlive, c->scope_len};
    size_t room = sizeof c->scope - (size_t)c->scope_len;
    int dot = 0;
    if (c->scope_len && fmt && *fmt && room > 1) {
        c->scope[c->scope_len] = '.';
        dot = 1;
    }
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(c->scope + c->scope_len + dot, room - (size_t)dot, fmt, ap);
    va_end(ap);
    if (n > 0) {
        int total = c->scope_len + dot + n;
        c->scope_len = total < (int)sizeof c->scope ? total : (int)sizeof c->scope - 1;
    }
    c->scope[c->scope_len] = 0;
    return s;
}

void tp_scope_close_n(tp_ctx *c, tp_scope s, tp_tensor *const *keep, int n) {
    c->scope_len = s.name_len;
    c->scope[c->scope_len] = 0;
    if (c->keep_all) return;
    size_t kept = s.mark;
    for (size_t i = s.mark; i < c->nlive; i++) {
        tp_tensor *t = c->live[i];
        bool keeps = false;
        for (int j = 0; j < n; j++) keeps |= keep[j] == t;
        if (keeps)
            c->live[kept++] = t; /* now the outer scope's */
        else
            tp_release(c, t);
    }
    c->nlive = kept;
}

tp_tensor *tp_scope_close(tp_ctx *c, tp_scope s, tp_tensor *keep) {
    tp_scope_close_n(c, s, &keep, 1);
    return keep;
}

void tp_step_end(tp_ctx *c) {
    if (c->tape_end) c->tape_end(c);
    for (size_t i = 0; i < c->nlive; i++) tp_release(c, c->live[i]);
    c->nlive = 0;
    c->scope_len = 0;
    c->scope[0] = 0;
    c->stream = 0;
    tp_arena_reset(c->step_arena);
}
