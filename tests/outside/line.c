/* A program outside of Tapir, in C: fits the line y = 2x - 1 to points on it. */
#include <tapir/ops.h>
#include <tapir/tapir.h>
#include <stdio.h>

int main(void) {
    enum { N = 8 };
    tp_ctx *c;
    if (tp_ctx_new(&c, NULL)) return 1;
    tp_tensor *x = tp_tensor_keep(c, TP_F32, TP_SHAPE(N)),
              *y = tp_tensor_keep(c, TP_F32, TP_SHAPE(N));
    tp_tensor *w[2] = {tp_tensor_keep(c, TP_F32, 0, NULL), tp_tensor_keep(c, TP_F32, 0, NULL)};
    for (int i = 0; y && i < N; i++) {
        tp_f32(x)[i] = (float)i / N;
        tp_f32(y)[i] = 2 * tp_f32(x)[i] - 1;
    }
    for (int i = 0; i < 2 && !tp_zero(c, w[i]); i++) tp_require_grad(w[i]);
    tp_tape_on(c);
    for (int step = 0; step < 400; step++) {
        tp_tensor *e = tp_sub(c, tp_add(c, tp_mul(c, x, w[0]), w[1]), y);
        if (tp_backward(c, tp_mean(c, tp_mul(c, e, e), TP_ALL_DIMS, false))) break;
        for (int i = 0; i < 2; i++)
            tp_sgd_(c, w[i], NULL, w[i]->grad, &(tp_sgd_opts){.learning_rate = 0.5});
        tp_zero_grad(c, w, 2);
        tp_step_end(c);
    }
    if (tp_error_status(c))
        fprintf(stderr, "line: %s\n", tp_error(c));
    else
        printf("y = %.3f x + %.3f\n", (double)*tp_f32(w[0]), (double)*tp_f32(w[1]));
    int failed = tp_error_status(c) != TP_OK;
    tp_ctx_free(c);
    return failed;
}
