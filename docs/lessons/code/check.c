/* A layer, y = tanh(x W + b), and its derivatives: by formula, by the tape, by differences with
 * steps of many sizes; and whether the check of gradients notices a wrong one. All in float64. */
#include "autograd/autograd.h"
#include "ops/add/add.h"
#include "ops/matmul/matmul.h"
#include "ops/mul/mul.h"
#include "ops/sum/sum.h"
#include "ops/tanh/tanh.h"
#include <math.h>
#include <stdio.h>

enum { N = 5, K = 3, M = 4 };
typedef struct layer {
    tp_tensor *x, *w, *b, *r; /* (N,K) (K,M) (M) (N,M) */
} layer;

static tp_tensor *random_tensor(tp_ctx *c, int ndim, const int64_t *shape, uint64_t which) {
    tp_tensor *t = tp_tensor_keep(c, TP_F64, ndim, shape);
    for (int64_t i = 0; t && i < tp_numel(t); i++)
        tp_f64(t)[i] = tp_normal(3, TP_RNG_TEST, which, (uint64_t)i);
    return t;
}

/* lesson: layer */
/* L = sum of r * y, so dL/dy = r. b (M) is added to every row of x W (N,M). */
static tp_tensor *loss(tp_ctx *c, const layer *l) {
    tp_tensor *y = tp_tanh(c, tp_add(c, tp_matmul(c, l->x, l->w, NULL), l->b));
    return tp_sum(c, tp_mul(c, y, l->r), TP_ALL_DIMS, false);
}
/* end */

static double value(tp_ctx *c, const layer *l) {
    tp_tensor *y = loss(c, l);
    double v = y ? *tp_f64(y) : NAN;
    tp_step_end(c);
    return v;
}

/* lesson: formulas */
/* With u = x W + b:  du = r (1 - tanh(u)^2),  dW = x^T du,  db = the sum of du's rows. */
static void by_formula(const layer *l, double dw[K * M], double db[M]) {
    for (int i = 0; i < K * M; i++) dw[i] = 0;
    for (int j = 0; j < M; j++) db[j] = 0;
    for (int n = 0; n < N; n++)
        for (int j = 0; j < M; j++) {
            double u = tp_f64(l->b)[j];
            for (int k = 0; k < K; k++) u += tp_f64(l->x)[n * K + k] * tp_f64(l->w)[k * M + j];
            double du = tp_f64(l->r)[n * M + j] * (1 - tanh(u) * tanh(u));
            for (int k = 0; k < K; k++) dw[k * M + j] += tp_f64(l->x)[n * K + k] * du;
            db[j] += du;
        }
}
/* end */

static double furthest(const double *a, const tp_tensor *b, int n) {
    double worst = 0;
    for (int i = 0; i < n; i++) worst = fmax(worst, fabs(a[i] - tp_f64(b)[i]));
    return worst;
}

/* L where weight 0 is moved by `by`. */
static double moved(tp_ctx *c, const layer *l, double by) {
    double *w = tp_f64(l->w), was = *w;
    *w += by;
    double v = value(c, l);
    *w = was;
    return v;
}

/* lesson: differences */
static void differences(tp_ctx *c, const layer *l, double truth) {
    puts("step    error: one-sided   two-sided   five points");
    for (double h = 1e-1; h > 1e-12; h /= 10) {
        double up = moved(c, l, h), down = moved(c, l, -h), here = value(c, l);
        double up2 = moved(c, l, 2 * h), down2 = moved(c, l, -2 * h);
        double one = (up - here) / h, two = (up - down) / (2 * h);
        double five = (8 * (up - down) - (up2 - down2)) / (12 * h);
        printf("%5.0e         %9.0e   %9.0e     %9.0e\n", h, fabs(one - truth), fabs(two - truth),
               fabs(five - truth));
    }
}
/* end */

/* ---- a wrong derivative ---------------------------------------------------------------------- */
/* lesson: mutant */
static void tanh_vjp_mutant(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_op_find("tanh")->vjp(k, dout, din);
    for (int64_t i = 0; din[0] && i < tp_numel(din[0]); i++) tp_f64(din[0])[i] *= 1.01;
}
/* end */

static tp_status run_tanh(tp_ctx *c, void *op, tp_tensor *const in[], int nin,
                          tp_tensor *out[TP_MAXOUT], int *nout) {
    *nout = 1;
    return tp_op_run(c, op, NULL, nin, in, out);
}

static tp_status judge(tp_ctx *c, const char *name, const tp_op *op, tp_tensor *x) {
    tp_op copy = *op;
    tp_gradcheck_result g = {0};
    tp_status st = tp_gradcheck(c, run_tanh, &copy, &x, 1, &g);
    if (!st)
        printf("%-22s %lld derivatives, %s\n", name, (long long)g.checked,
               g.worst <= 1e-7 ? "accepted" : "REJECTED");
    return st;
}

int main(void) {
    tp_ctx *c;
    if (tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1})) return 1;
    layer l = {random_tensor(c, TP_SHAPE(N, K), 0), random_tensor(c, TP_SHAPE(K, M), 1),
               random_tensor(c, TP_SHAPE(M), 2), random_tensor(c, TP_SHAPE(N, M), 3)};
    double dw[K * M], db[M];
    tp_status st = tp_error_status(c);
    if (!st) {
        tp_require_grad(l.w);
        tp_require_grad(l.b);
        tp_tape_on(c);
        if (!(st = tp_backward(c, loss(c, &l)))) {
            by_formula(&l, dw, db);
            printf("tape and formula agree: dW %s, db %s\n",
                   furthest(dw, l.w->grad, K * M) < 1e-13 ? "yes" : "NO",
                   furthest(db, l.b->grad, M) < 1e-13 ? "yes" : "NO");
        }
        tp_tape_off(c);
        tp_step_end(c);
    }
    if (!st) {
        differences(c, &l, dw[0]);
        tp_op mutant = *tp_op_find("tanh");
        mutant.vjp = tanh_vjp_mutant;
        tp_require_grad(l.x);
        st = judge(c, "tanh", tp_op_find("tanh"), l.x);
        if (!st) st = judge(c, "tanh, its vjp * 1.01", &mutant, l.x);
    }
    if (st) fprintf(stderr, "lesson_check: %s\n", tp_error(c));
    tp_ctx_free(c);
    return st != TP_OK;
}
