/* A net learns xor: two inputs, four hidden units, one logit.
 *
 *   cc xor.c $(pkg-config --cflags --libs tapir) -o xor && ./xor
 */
#include <tapir/ops.h>
#include <tapir/tapir.h>
#include <math.h>
#include <stdio.h>

enum { N = 4, IN = 2, HIDDEN = 4, STEPS = 200, NPARAM = 4 };
static const float points[N][IN] = {{0, 0}, {0, 1}, {1, 0}, {1, 1}};
static const int32_t answers[N] = {0, 1, 1, 0};

/* A parameter lives as long as the ctx; what is computed from it, until tp_step_end. */
static tp_tensor *parameter(tp_ctx *c, int64_t rows, int64_t cols, double spread) {
    tp_tensor *t = tp_tensor_keep(c, TP_F32, TP_SHAPE(rows, cols));
    for (int64_t i = 0; t && i < rows * cols; i++)
        tp_f32(t)[i] = (float)(spread * tp_normal(7, TP_RNG_INIT, (uint64_t)rows, (uint64_t)i));
    return t ? tp_require_grad(t) : NULL;
}

/* No call needs an `if`: after a failure the others do nothing and return NULL. */
static tp_tensor *logits(tp_ctx *c, tp_tensor *const w[NPARAM], tp_tensor *x) {
    tp_tensor *h = tp_tanh(c, tp_add(c, tp_matmul(c, x, w[0], NULL), w[1])); /* (N,HIDDEN) */
    return tp_add(c, tp_matmul(c, h, w[2], NULL), w[3]);                     /* (N,1) */
}

static tp_status train(tp_ctx *c, tp_tensor *const w[NPARAM], tp_tensor *x, tp_tensor *label) {
    tp_param row[NPARAM] = {{.name = "hidden.weight", .t = w[0]},
                            {.name = "hidden.bias", .t = w[1]},
                            {.name = "out.weight", .t = w[2]},
                            {.name = "out.bias", .t = w[3]}};
    tp_params params = {.p = row, .n = NPARAM};
    tp_optim_opts how = {.kind = TP_OPTIM_ADAMW,
                         .learning_rate = 0.1,
                         .adam_beta1 = 0.9,
                         .adam_beta2 = 0.999,
                         .adam_epsilon = 1e-8,
                         .schedule = TP_CONSTANT,
                         .steps = STEPS};
    tp_optim *optim;
    tp_status st = tp_optim_new(&optim, c, &params, &how);
    for (int step = 0; step < STEPS && !st; step++) {
        tp_optim_report report;
        tp_tensor *each = tp_binary_cross_entropy(c, label, logits(c, w, x));
        tp_tensor *loss = tp_mean(c, each, TP_ALL_DIMS, false);
        st = tp_backward(c, loss);
        if (!st && step % 40 == 0) printf("step %3d  loss %.4f\n", step, (double)*tp_f32(loss));
        if (!st) st = tp_optim_step(optim, step, &report);
        tp_zero_grad(c, w, NPARAM);
        tp_step_end(c);
    }
    tp_optim_free(optim);
    return st;
}

int main(void) {
    tp_ctx *c;
    if (tp_ctx_new(&c, NULL)) return 1;
    tp_tensor *x = tp_tensor_keep(c, TP_F32, TP_SHAPE(N, IN));
    tp_tensor *label = tp_tensor_keep(c, TP_I32, TP_SHAPE(N, 1));
    tp_upload(c, x, points);
    tp_upload(c, label, answers);
    tp_tensor *w[NPARAM] = {parameter(c, IN, HIDDEN, 1), parameter(c, 1, HIDDEN, 0),
                            parameter(c, HIDDEN, 1, 1), parameter(c, 1, 1, 0)};
    tp_tape_on(c);
    tp_status st = train(c, w, x, label);
    tp_tape_off(c);
    tp_tensor *y = logits(c, w, x);
    int right = 0;
    for (int i = 0; y && i < N; i++) {
        double p = 1 / (1 + exp(-(double)tp_f32(y)[i]));
        printf("%g xor %g: %.3f\n", (double)points[i][0], (double)points[i][1], p);
        right += (p > 0.5) == answers[i];
    }
    if (!st) st = tp_error_status(c);
    if (st) fprintf(stderr, "xor: %s\n", tp_error(c));
    tp_ctx_free(c);
    return st || right < N;
}
