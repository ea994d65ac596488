/* The loss of 1024 tokens over a vocabulary of 16384, with its gradients: once by ops that hold the
 * logits, once by the op that never does. */
#include "autograd/autograd.h"
#include "core/ctx.h"
#include "ops/gather/gather.h"
#include "ops/linear_cross_entropy/linear_cross_entropy.h"
#include "ops/log_softmax/log_softmax.h"
#include "ops/matmul/matmul.h"
#include "ops/reshape/reshape.h"
#include "ops/scale/scale.h"
#include "ops/sum/sum.h"
#include <math.h>
#include <stdio.h>

enum { ROWS = 4, T = 256, C = 64, V = 16384 };
typedef struct head {
    tp_tensor *x, *w, *targets; /* (ROWS,T,C) (V,C) (ROWS,T) i32 */
} head;

/* lesson: whole */
static tp_tensor *whole(tp_ctx *c, const head *h) {
    tp_tensor *logits = tp_matmul(c, h->x, h->w, &(tp_matmul_opts){.trans_b = true});
    tp_tensor *which = tp_reshape(c, h->targets, TP_SHAPE(ROWS, T, 1));
    tp_tensor *logp = tp_gather_last(c, tp_log_softmax(c, logits), which); /* (ROWS,T,1) */
    return tp_scale(c, tp_sum(c, logp, TP_ALL_DIMS, false), -1, 0);
}

static tp_tensor *chunked(tp_ctx *c, const head *h) {
    return tp_linear_cross_entropy_train(c, h->x, h->w, h->targets, NULL, NULL).loss;
}
/* end */

static tp_tensor *normal(tp_ctx *c, int ndim, const int64_t *shape, uint64_t which, double scale) {
    tp_tensor *t = tp_tensor_keep(c, TP_F32, ndim, shape);
    for (int64_t i = 0; t && i < tp_numel(t); i++)
        tp_f32(t)[i] = (float)(scale * tp_normal(1, TP_RNG_TEST, which, (uint64_t)i));
    return t;
}

typedef struct found {
    double loss, mb;
    tp_tensor *dx[2];
} found;

static tp_status measure(tp_ctx *c, const head *h, tp_tensor *(*loss)(tp_ctx *, const head *),
                         found *f) {
    tp_pool_forget_peak(c);
    size_t before = tp_memory_used(c);
    tp_tensor *x[] = {h->x, h->w};
    tp_tensor *l = loss(c, h);
    tp_status st = tp_grad(c, l, NULL, 2, x, f->dx, NULL);
    if (st) return st;
    f->loss = (double)*tp_f32(l) / (ROWS * T);
    f->mb = (double)(tp_memory_peak(c) - before) / 1e6;
    return TP_OK;
}

static double apart(const tp_tensor *a, const tp_tensor *b) { /* over the largest value */
    double worst = 0, most = 0;
    for (int64_t i = 0; i < tp_numel(a); i++) {
        worst = fmax(worst, fabs((double)tp_f32(a)[i] - (double)tp_f32(b)[i]));
        most = fmax(most, fabs((double)tp_f32(a)[i]));
    }
    return worst / most;
}

int main(void) {
    tp_ctx *c;
    if (tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1})) return 1;
    head h = {normal(c, TP_SHAPE(ROWS, T, C), 0, 1), normal(c, TP_SHAPE(V, C), 1, 0.1),
              tp_tensor_keep(c, TP_I32, TP_SHAPE(ROWS, T))};
    found f[2] = {{0}};
    for (int i = 0; i < ROWS * T && h.targets; i++)
        tp_i32(h.targets)[i] = (int32_t)(V * tp_uniform(1, TP_RNG_TEST, 2, (uint64_t)i));
    tp_status st = tp_error_status(c);
    if (!st) {
        tp_require_grad(h.x);
        tp_require_grad(h.w);
        tp_tape_on(c);
        st = measure(c, &h, chunked, &f[1]);
        if (!st) st = measure(c, &h, whole, &f[0]);
    }
    if (!st) {
        printf("the logits alone        %4.0f MB\n", 4e-6 * ROWS * T * V);
        printf("holding them   loss %.5f, at most %4.0f MB\n", f[0].loss, f[0].mb);
        printf("in chunks      loss %.5f, at most %4.0f MB\n", f[1].loss, f[1].mb);
        printf("gradients %s\n",
               apart(f[0].dx[0], f[1].dx[0]) < 1e-5 && apart(f[0].dx[1], f[1].dx[1]) < 1e-5
                   ? "agree"
                   : "DIFFER");
    } else
        fprintf(stderr, "lesson_head: %s\n", tp_error(c));
    tp_ctx_free(c);
    return st != TP_OK;
}
