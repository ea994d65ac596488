/* Owns the comparison of the tape's gradients with differences of the function itself.
 *
 * Five points: f'(x) = (f(x-2h) - 8 f(x-h) + 8 f(x+h) - f(x+2h)) / 12h + O(h^4). With h = 3e-4 in
 * float64 the truncation is about 1e-14 f^(5) and the rounding about 1e-13 |f|. */
#include "autograd/autograd.h"
#include "core/ctx.h"
#include "ops/convert.h"
#include <math.h>
#include <string.h>

enum { COORDINATES = 48, DIRECTIONS = 2 };
static const double STEP = 3e-4;

typedef struct checker {
    tp_ctx *c;
    tp_many_fn fn;
    void *arg;
    tp_tensor *const *in;
    int nin;
    unsigned outs;              /* bits: the outputs that count */
    double *saved, *dir, *grad; /* for the input at hand */
} checker;

static double weight_of(int output, int64_t i) {
    return tp_normal(11, TP_RNG_TEST, (uint64_t)output, (uint64_t)i);
}

static tp_status value(checker *k, double *sum) {
    tp_ctx *c = k->c;
    tp_tensor *out[TP_MAXOUT] = {0};
    int nout = 0;
    tp_status st = k->fn(c, k->arg, k->in, k->nin, out, &nout);
    *sum = 0;
    for (int j = 0; j < nout && !st; j++) {
        if (!((k->outs >> j) & 1)) continue;
        for (int64_t i = 0, n = tp_numel(out[j]); i < n; i++)
            *sum += weight_of(j, i) * tp_get(out[j], tp_offset(out[j], i));
    }
    tp_step_end(c);
    return st;
}

static tp_status slope(checker *k, tp_tensor *x, double *out) {
    static const double at[4] = {-2, -1, 1, 2}, weight[4] = {1, -8, 8, -1};
    int64_t n = tp_numel(x);
    double sum = 0;
    tp_status st = TP_OK;
    for (int p = 0; p < 4 && !st; p++) {
        double f = 0;
        for (int64_t i = 0; i < n; i++) tp_f64(x)[i] = k->saved[i] + at[p] * STEP * k->dir[i];
        tp_touch(x);
        st = value(k, &f);
        sum += weight[p] * f;
    }
    if (n) memcpy(x->data, k->saved, (size_t)n * sizeof(double));
    tp_touch(x);
    *out = sum / (12 * STEP);
    return st;
}

static tp_status check_input(checker *k, int which, tp_gradcheck_result *r) {
    tp_tensor *x = k->in[which];
    int64_t n = tp_numel(x), coords = n < COORDINATES ? n : COORDINATES;
    double scale = 1e-3;
    for (int64_t i = 0; i < n; i++) scale = fmax(scale, fabs(k->grad[i]));
    for (int64_t i = 0; i < n; i++) r->largest = fmax(r->largest, fabs(k->grad[i]));
    if (n) memcpy(k->saved, x->data, (size_t)n * sizeof(double));
    for (int64_t d = 0; d < coords + (n ? DIRECTIONS : 0); d++) {
        double expected = 0, got = 0, norm = 1;
        memset(k->dir, 0, (size_t)n * sizeof(double));
        if (d < coords) {
            int64_t at = n <= COORDINATES ? d : d * (n - 1) / (COORDINATES - 1);
            k->dir[at] = 1;
        } else {
            for (int64_t i = 0; i < n; i++)
                k->dir[i] = tp_normal(7, TP_RNG_TEST, (uint64_t)d, (uint64_t)i);
            norm = sqrt((double)n);
        }
        for (int64_t i = 0; i < n; i++) expected += k->grad[i] * k->dir[i];
        tp_status st = slope(k, x, &got);
        if (st) return st;
        double err = fabs(got - expected) / (scale * norm);
        r->checked++;
        if (!(err <= r->worst)) {
            r->worst = err;
            r->input = which;
        }
        if (isnan(r->worst)) return TP_OK;
    }
    return TP_OK;
}

tp_status tp_gradcheck(tp_ctx *c, tp_many_fn fn, void *arg, tp_tensor *const in[], int nin,
                       tp_gradcheck_result *r) {
    *r = (tp_gradcheck_result){0};
    checker k = {.c = c, .fn = fn, .arg = arg, .in = in, .nin = nin};
    size_t total = 0, most = 0;
    for (int i = 0; i < nin; i++) {
        if (!in[i] || !in[i]->requires_grad) continue;
        size_t n = (size_t)tp_numel(in[i]);
        total += n;
        most = n > most ? n : most;
    }
    double *room = tp_calloc(c, total + 2 * most + 1, sizeof *room);
    if (!room) return c->status;
    k.saved = room + total;
    k.dir = k.saved + most;
    tp_tensor *out[TP_MAXOUT] = {0}, *y[TP_MAXOUT], *dy[TP_MAXOUT];
    int nout = 0, ny = 0;
    tp_status st = tp_tape_on(c);
    if (!st) st = fn(c, arg, in, nin, out, &nout);
    for (int j = 0; j < nout && !st; j++) {
        if (!out[j] || !out[j]->requires_grad) continue;
        k.outs |= 1u << j;
        y[ny] = out[j];
        if (!(dy[ny] = tp_tensor_new(c, out[j]->dtype, out[j]->ndim, out[j]->shape)))
            st = c->status;
        for (int64_t i = 0, n = tp_numel(out[j]); i < n && !st; i++)
            tp_set(dy[ny], i, weight_of(j, i));
        ny++;
    }
    if (!st && ny) st = tp_backward_from(c, ny, y, dy);
    double *at = room;
    for (int i = 0; i < nin && !st; i++) { /* absent gradients count as zeros */
        if (!in[i] || !in[i]->requires_grad) continue;
        size_t n = (size_t)tp_numel(in[i]);
        if (in[i]->grad && n) memcpy(at, in[i]->grad->data, n * sizeof(double));
        at += tp_numel(in[i]);
    }
    tp_step_end(c);
    at = room;
    for (int i = 0; i < nin && !st; i++) {
        if (!in[i] || !in[i]->requires_grad) continue;
        tp_zero_grad(c, &in[i], 1);
        k.grad = at;
        st = check_input(&k, i, r);
        at += tp_numel(in[i]);
    }
    tp_free(room);
    return st;
}
