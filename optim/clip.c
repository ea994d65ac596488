/* The global norm of the gradients, for clipping (Pascanu et al. 2013) and for finding bad steps.
 */
#include "optim/inside.h"
#include "core/ctx.h"
#include "ops/sum_squares/sum_squares.h"
#include <math.h>

tp_status optim_grad_norm(tp_optim *o, double *norm, int *bad) {
    tp_ctx *c = o->c;
    double sum = 0;
    *bad = -1;
    *norm = 0;
    for (int i = 0; i < o->params->n; i++) {
        tp_tensor *g = o->params->p[i].t->grad;
        if (!g) continue;
        tp_scope s = tp_scope_open(c, "%s", "grad_norm");
        tp_tensor *y = tp_sum_squares(c, g);
        double part = y && y->data ? tp_f64(y)[0] : 0; /* META has no numbers */
        tp_scope_close(c, s, NULL);
        if (!y) return c->status;
        if (!isfinite(part) && *bad < 0) *bad = i;
        sum += part;
    }
    *norm = sqrt(sum);
    return TP_OK;
}
