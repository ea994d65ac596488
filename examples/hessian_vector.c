/* A Hessian-vector product by differentiating a gradient: the tape's backward pass is made of ops,
 * so it can be recorded and walked again. For the loss L of a small MLP with weights w:
 *
 *   g(w) = dL/dw,     H v = d/dw <g(w), v>
 *
 * computed without ever forming H (Pearlmutter 1994), and compared with (g(w+hv) - g(w-hv)) / 2h.
 *
 *   cc hessian_vector.c $(pkg-config --cflags --libs tapir) -lm -o hv && ./hv
 */
#include <tapir/ops.h>
#include <tapir/tapir.h>
#include <math.h>
#include <stdio.h>

enum { N = 16, IN = 3, HIDDEN = 8 };
typedef struct mlp {
    tp_ctx *c;
    tp_tensor *x, *y, *w1, *w2; /* (N,IN) (N,1) (IN,HIDDEN) (HIDDEN,1), all f64 */
} mlp;

static tp_tensor *random_tensor(tp_ctx *c, int64_t rows, int64_t cols, uint64_t which) {
    tp_tensor *t = tp_tensor_keep(c, TP_F64, TP_SHAPE(rows, cols));
    for (int64_t i = 0; t && i < rows * cols; i++)
        tp_f64(t)[i] = 0.5 * tp_normal(1, TP_RNG_TEST, which, (uint64_t)i);
    return t;
}

static tp_tensor *loss(const mlp *m) /* sum of squared errors of w2 tanh(w1 x) */
{
    tp_tensor *h = tp_tanh(m->c, tp_matmul(m->c, m->x, m->w1, NULL));
    tp_tensor *e = tp_sub(m->c, tp_matmul(m->c, h, m->w2, NULL), m->y);
    return tp_sum(m->c, tp_mul(m->c, e, e), TP_ALL_DIMS, false);
}

/* g = dL/dw1 at w1 + step*v, into out. */
static tp_status gradient(const mlp *m, const tp_tensor *v, double step, double out[IN * HIDDEN]) {
    tp_tensor *g = NULL;
    for (int i = 0; i < IN * HIDDEN; i++) tp_f64(m->w1)[i] += step * tp_f64(v)[i];
    tp_status st = tp_grad(m->c, loss(m), NULL, 1, &m->w1, &g, NULL);
    for (int i = 0; i < IN * HIDDEN && !st; i++) out[i] = tp_f64(g)[i];
    for (int i = 0; i < IN * HIDDEN; i++) tp_f64(m->w1)[i] -= step * tp_f64(v)[i];
    tp_step_end(m->c);
    return st;
}

int main(void) {
    tp_ctx *c;
    if (tp_ctx_new(&c, NULL)) return 1;
    mlp m = {c, random_tensor(c, N, IN, 0), random_tensor(c, N, 1, 1),
             random_tensor(c, IN, HIDDEN, 2), random_tensor(c, HIDDEN, 1, 3)};
    tp_tensor *v = random_tensor(c, IN, HIDDEN, 4), *g = NULL, *hv = NULL;
    tp_require_grad(m.w1);
    tp_require_grad(m.w2);
    tp_tape_on(c);
    double up[IN * HIDDEN], down[IN * HIDDEN], worst = 0;
    const double h = 1e-5;
    tp_status st = gradient(&m, v, h, up);
    if (!st) st = gradient(&m, v, -h, down);

    if (!st) st = tp_grad(c, loss(&m), NULL, 1, &m.w1, &g, &(tp_grad_opts){.create_graph = true});
    tp_tensor *gv = g ? tp_sum(c, tp_mul(c, g, v), TP_ALL_DIMS, false) : NULL; /* <g, v> */
    if (!st) st = tp_grad(c, gv, NULL, 1, &m.w1, &hv, NULL);
    if (st) {
        fprintf(stderr, "%s\n", tp_error(c));
        tp_ctx_free(c);
        return 1;
    }
    puts("  H v by the tape     by differences");
    for (int i = 0; i < IN * HIDDEN; i++) {
        double d = (up[i] - down[i]) / (2 * h);
        if (i < 4) printf("%16.10f %16.10f\n", tp_f64(hv)[i], d);
        if (!(fabs(d - tp_f64(hv)[i]) <= worst)) worst = fabs(d - tp_f64(hv)[i]);
    }
    printf("largest difference of %d: %.1e\n", IN * HIDDEN, worst);
    tp_ctx_free(c);
    return !(worst < 1e-7);
}
