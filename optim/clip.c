/* The global norm of the gradients, for clipping (Pascanu et al. 2013) and for finding bad steps.
 *
 * It is put together from sums over chunks of 4096 values, added in order of parameter and chunk:
 * whichever rank owns a chunk, the chunks' sums and their order are the same. */
#include "core/ctx.h"
#include "ops/sum_squares/sum_squares.h"
#include "optim/inside.h"
#include <math.h>
#include <string.h>

tp_status optim_squares_new(tp_optim *o) {
    int n = o->params->n;
    if (!(o->chunk = tp_calloc(o->c, (size_t)n + 1, sizeof *o->chunk))) return o->c->status;
    for (int i = 0; i < n; i++)
        o->chunk[i + 1] =
            o->chunk[i] + (tp_numel(o->params->p[i].t) + TP_SQUARES_CHUNK - 1) / TP_SQUARES_CHUNK;
    o->sums = tp_tensor_keep(o->c, TP_F64, 1, &o->chunk[n]);
    if (!o->sums || tp_zero(o->c, o->sums)) return o->c->status;
    o->squares = tp_calloc(o->c, (size_t)o->chunk[n] + 1, sizeof *o->squares);
    return o->c->status;
}

tp_status optim_measure(tp_optim *o, int i) {
    tp_ctx *c = o->c;
    optim_state *s = &o->state[i];
    tp_tensor *g = optim_grad(o, i);
    s->measured = true;
    if (!s->own.n) return TP_OK;
    tp_tensor mine = *o->sums;
    mine.shape[0] = (s->own.n + TP_SQUARES_CHUNK - 1) / TP_SQUARES_CHUNK;
    if (mine.data) mine.data = tp_f64(&mine) + o->chunk[i] + s->own.first / TP_SQUARES_CHUNK;
    if (!g) return tp_zero(c, &mine); /* there may be one of another step */
    tp_scope scope = tp_scope_open(c, "%s", "grad_norm");
    tp_tensor *y = tp_sum_squares(c, g);
    if (y && y->data) tp_copy_bytes(c, mine.data, y->data, (size_t)tp_numel(y) * sizeof(double));
    tp_scope_close(c, scope, NULL);
    return c->status;
}

tp_status optim_grad_norm(tp_optim *o, double *norm, int *bad) {
    int64_t chunks = o->chunk[o->params->n];
    tp_status st = tp_download(o->c, o->sums, o->squares);
    if (!st && optim_sharded(o)) st = tp_comm_sum_f64(o->comm, o->c, o->squares, chunks);
    double sum = 0;
    *bad = -1;
    for (int i = 0; i < o->params->n && !st; i++) {
        bool finite = true;
        for (int64_t j = o->chunk[i]; j < o->chunk[i + 1]; j++) {
            finite &= isfinite(o->squares[j]) != 0;
            sum += o->squares[j];
        }
        if (!finite && *bad < 0) *bad = i;
    }
    *norm = sqrt(sum);
    return st;
}
