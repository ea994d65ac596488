/* Backpropagation with numbers instead of tensors: y = a tanh(a b + c), its tape, and the three
 * derivatives beside those that pen and paper give.
 *
 *   cc scalar_tape.c $(pkg-config --cflags --libs tapir) -o scalar_tape && ./scalar_tape
 *
 *   u = a b,   v = u + c,   t = tanh v,   y = a t
 *
 * Walked from the end, with X' short for dy/dX, each line of the tape passes its gradient on:
 *
 *   y = a t       t' = a          a' = t            (a is read twice: contributions add)
 *   t = tanh v    v' = t' (1 - t^2)
 *   v = u + c     u' = v'         c' = v'
 *   u = a b       a' = t + u' b   b' = u' a
 *
 * (c' is v' itself, so the tape gives c bytes of its own: zeros, by fill, and v' added to them.)
 */
#include <tapir/ops.h>
#include <tapir/tapir.h>
#include <math.h>
#include <stdio.h>

static tp_tensor *number(tp_ctx *c, const char *name, double value) {
    tp_tensor *t = tp_tensor_keep(c, TP_F64, 0, NULL); /* no dimensions: one value */
    if (!t) return NULL;
    *tp_f64(t) = value;
    t->name = name;
    return tp_require_grad(t);
}

static void print(void *arg, const char *line) {
    (void)arg;
    puts(line);
}

int main(void) {
    tp_ctx *ctx;
    if (tp_ctx_new(&ctx, NULL)) return 1;
    tp_tensor *a = number(ctx, "a", 0.5), *b = number(ctx, "b", 3), *c = number(ctx, "c", -1);
    tp_tape_on(ctx);
    tp_tape_trace(ctx, true); /* write the walk back down as well */
    tp_tensor *t = tp_tanh(ctx, tp_add(ctx, tp_mul(ctx, a, b), c));
    tp_tensor *y = tp_mul(ctx, a, t);
    if (tp_backward(ctx, y)) {
        fprintf(stderr, "scalar_tape: %s\n", tp_error(ctx));
        tp_ctx_free(ctx);
        return 1;
    }
    tp_tape_print(ctx, print, NULL);

    double th = tanh(0.5 * 3 - 1), slope = 0.5 * (1 - th * th); /* slope = v' */
    const tp_tensor *leaf[3] = {a, b, c};
    const double by_hand[3] = {th + slope * 3, slope * 0.5, slope};
    printf("\ny = %.6f\n\n            tape      by hand\n", *tp_f64(y));
    int wrong = 0;
    for (int i = 0; i < 3; i++) {
        double got = *tp_f64(leaf[i]->grad);
        printf("dy/d%s  %.9f  %.9f\n", leaf[i]->name, got, by_hand[i]);
        wrong += !(fabs(got - by_hand[i]) < 1e-15); /* a NaN is wrong, too */
    }
    tp_ctx_free(ctx);
    return wrong;
}
