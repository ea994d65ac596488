/* Owns broadcasting: the shape rule, and the walk over strided operands. */
#include "ops/broadcast.h"
#include "ops/elementwise.h"
#include <string.h>

tp_status tp_broadcast_shape(const tp_call *k, int n, tp_tensor *const t[], int *ndim,
                             int64_t shape[TP_MAXDIM]) {
    *ndim = 0;
    for (int j = 0; j < n; j++)
        if (t[j] && t[j]->ndim > *ndim) *ndim = t[j]->ndim;
    for (int d = 0; d < *ndim; d++) shape[d] = 1;
    for (int j = 0; j < n; j++) {
        for (int d = 0; t[j] && d < t[j]->ndim; d++) {
            int64_t have = t[j]->shape[d], *want = &shape[d + *ndim - t[j]->ndim];
            if (*want == 1)
                *want = have;
            else if (have != 1 && have != *want)
                return tp_refuse(k, TP_ESHAPE,
                                 "dimension %d of %s does not broadcast against size %lld of the "
                                 "other inputs",
                                 d, tp_shape_str(k->ctx, t[j]), (long long)*want);
        }
    }
    return TP_OK;
}

tp_status tp_infer_broadcast(tp_call *k) {
    tp_status st;
    int ndim;
    int64_t shape[TP_MAXDIM];
    if ((st = tp_need_float(k, 0, "a")) || (st = tp_need_float(k, 1, "b"))) return st;
    if (k->in[0]->dtype != k->in[1]->dtype)
        return tp_refuse(k, TP_EDTYPE, "a and b must have the same dtype, got %s and %s",
                         tp_shape_str(k->ctx, k->in[0]), tp_shape_str(k->ctx, k->in[1]));
    if ((st = tp_broadcast_shape(k, 2, k->in, &ndim, shape))) return st;
    return tp_out(k, k->in[0]->dtype, ndim, shape);
}

/* ---- the walk ------------------------------------------------------------------------------- */
enum {
    PACK = 512
}; /* elements copied at a time where an operand is not dense: 2 KB, stays in L1 */

typedef struct plan {
    const tp_call *k;
    tp_run_fn fn;
    int nout;
    tp_tensor *const *out;
    tp_walk w;
} plan;

static int64_t stride_in(const tp_tensor *t, const tp_tensor *out, int d) {
    int e = d - (out->ndim - t->ndim);
    return e < 0 || t->shape[e] == 1 ? 0 : t->stride[e];
}

static bool merges(const tp_walk *w, int nin, const int64_t stride[TP_MAXIN], int64_t size) {
    if (w->ndim == 0) return false;
    for (int j = 0; j < nin; j++)
        if (w->stride[j][w->ndim - 1] != stride[j] * size) return false;
    return true;
}

tp_walk tp_walk_of(const tp_call *k, const tp_tensor *out) {
    tp_walk w = {0};
    for (int d = 0; d < out->ndim; d++) {
        int64_t size = out->shape[d], stride[TP_MAXIN] = {0};
        if (size == 1) continue;
        for (int j = 0; j < k->nin; j++)
            if (k->in[j]) stride[j] = stride_in(k->in[j], out, d);
        if (merges(&w, k->nin, stride, size))
            w.shape[w.ndim - 1] *= size;
        else
            w.shape[w.ndim++] = size;
        for (int j = 0; j < k->nin; j++) w.stride[j][w.ndim - 1] = stride[j];
    }
    if (w.ndim == 0) w.shape[w.ndim++] = 1;
    return w;
}

#define PACK_AS(type)                                                                              \
    do {                                                                                           \
        type *restrict d_ = dst;                                                                   \
        const type *restrict s_ = src;                                                             \
        if (step == 0)                                                                             \
            for (int64_t i = 0; i < n; i++) d_[i] = s_[0];                                         \
        else                                                                                       \
            for (int64_t i = 0; i < n; i++) d_[i] = s_[i * step];                                  \
    } while (0)

void tp_pack(void *dst, const void *src, int64_t step, int64_t n, size_t size) {
    if (step == 1)
        memcpy(dst, src, (size_t)n * size);
    else if (size == 1)
        PACK_AS(uint8_t);
    else if (size == 2)
        PACK_AS(uint16_t);
    else if (size == 4)
        PACK_AS(uint32_t);
    else
        PACK_AS(uint64_t);
}

/* n elements along the innermost dimension. Operands that are not dense there are packed; one that
 * is repeated needs that only once. */
static void walk_row(const plan *p, int64_t at, const int64_t from[TP_MAXIN], int64_t n) {
    const tp_call *k = p->k;
    _Alignas(64) char room[TP_MAXIN][PACK * 8]; /* only the slots in use are touched */
    int last = p->w.ndim - 1, slot[TP_MAXIN], packed = 0;
    for (int j = 0; j < k->nin; j++)
        slot[j] = k->in[j] && p->w.stride[j][last] != 1 ? packed++ : -1;
    tp_run r = {.attr = k->attr};
    for (int64_t done = 0; done < n; done += r.n) {
        r.at = at + done;
        r.n = packed && n - done > PACK ? PACK : n - done;
        for (int j = 0; j < k->nin; j++) {
            if (!k->in[j]) continue;
            size_t size = tp_dtype_size(k->in[j]->dtype);
            int64_t step = p->w.stride[j][last];
            const char *src =
                (const char *)k->in[j]->data + (from[j] + done * step) * (int64_t)size;
            r.in[j] = slot[j] < 0 ? src : room[slot[j]];
            if (slot[j] >= 0 && (step != 0 || done == 0))
                tp_pack(room[slot[j]], src, step, r.n, size);
        }
        for (int j = 0; j < p->nout; j++)
            r.out[j] =
                (char *)p->out[j]->data + (at + done) * (int64_t)tp_dtype_size(p->out[j]->dtype);
        p->fn(&r);
    }
}

static void walk(void *arg, int64_t begin, int64_t end) {
    const plan *p = arg;
    int last = p->w.ndim - 1;
    int64_t cols = p->w.shape[last], row = begin / cols, col = begin % cols;
    int64_t index[TP_MAXDIM] = {0}, offset[TP_MAXIN] = {0}, from[TP_MAXIN];
    for (int d = last - 1; d >= 0; row /= p->w.shape[d--]) {
        index[d] = row % p->w.shape[d];
        for (int j = 0; j < p->k->nin; j++) offset[j] += index[d] * p->w.stride[j][d];
    }
    while (begin < end) {
        int64_t n = cols - col < end - begin ? cols - col : end - begin;
        for (int j = 0; j < p->k->nin; j++) from[j] = offset[j] + col * p->w.stride[j][last];
        walk_row(p, begin, from, n);
        begin += n;
        col = 0;
        for (int d = last - 1; d >= 0; d--) { /* the next row: an odometer */
            bool carry = ++index[d] == p->w.shape[d];
            if (carry) index[d] = 0;
            for (int j = 0; j < p->k->nin; j++)
                offset[j] += p->w.stride[j][d] * (carry ? 1 - p->w.shape[d] : 1);
            if (!carry) break;
        }
    }
}

void tp_elementwise(const tp_call *k, int nout, tp_tensor *const out[], tp_run_fn fn) {
    int64_t n = tp_numel(out[0]);
    plan p = {.k = k, .fn = fn, .nout = nout, .out = out};
    if (n == 0) return;
    p.w = tp_walk_of(k, out[0]);
    tp_parallel_for(k->ctx, n, TP_ELEMENT_GRAIN, walk, &p);
}

/* ---- oracles -------------------------------------------------------------------------------- */
int64_t tp_broadcast_at(const tp_tensor *t, const tp_tensor *out, int64_t i) {
    int64_t at = 0;
    for (int d = out->ndim - 1; d >= 0; i /= out->shape[d--])
        at += i % out->shape[d] * stride_in(t, out, d);
    return at;
}

tp_status tp_oracle_unary(const tp_call *k, double (*f)(double x)) {
    for (int64_t i = 0, n = tp_numel(k->out[0]); i < n; i++)
        tp_f64(k->out[0])[i] = f(tp_f64(k->in[0])[i]);
    return TP_OK;
}

tp_status tp_oracle_binary(const tp_call *k, double (*f)(double a, double b)) {
    const tp_tensor *a = k->in[0], *b = k->in[1], *o = k->out[0];
    for (int64_t i = 0, n = tp_numel(o); i < n; i++)
        tp_f64(o)[i] = f(tp_f64(a)[tp_broadcast_at(a, o, i)], tp_f64(b)[tp_broadcast_at(b, o, i)]);
    return TP_OK;
}
