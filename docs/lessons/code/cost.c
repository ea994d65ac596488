/* What does a gradient cost? A model of 10.8 million parameters: its loss, and its loss with the
 * derivative of every parameter, timed in turns, the fastest of five; and one of these derivatives
 * measured by moving the weights.
 *
 *   lesson_cost [TOKENS]    in each of 2 rows, 16 to 256; else 256 */
#include "autograd/autograd.h"
#include "core/ctx.h"
#include "nn/nn.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROWS = 2, ROUNDS = 5 };
typedef struct net {
    tp_ctx *c;
    tp_model *m;
    int64_t T;
} net;

static tp_tensor *tokens(const net *n, int shift) {
    tp_tensor *x = tp_tensor_new(n->c, TP_I32, TP_SHAPE(ROWS, n->T));
    for (int64_t i = 0; x && i < ROWS * n->T; i++)
        tp_i32(x)[i] = (int32_t)(256 * tp_uniform(1, TP_RNG_TEST, 0, (uint64_t)(i + shift)));
    return x;
}

/* lesson: loss and gradient */
static double loss(const net *n, bool gradient) {
    tp_ctx *c = n->c;
    if (gradient) tp_tape_on(c);
    tp_model_in in = {.ids = tokens(n, 0), .training = true};
    tp_model_loss_opts o = {.scale = 1.0 / (double)(ROWS * n->T), .gradient = gradient};
    tp_model_out y = tp_model_loss(c, n->m, &in, tokens(n, 1), &o);
    if (gradient && y.loss) tp_backward(c, y.loss); /* leaves dL/dw in every parameter's ->grad */
    double l = y.loss ? (double)*tp_f32(y.loss) : NAN;
    if (gradient) tp_tape_off(c);
    tp_step_end(c);
    return l;
}
/* end */

/* Every weight moves by h times its derivative. */
static void move(const net *n, double h) {
    tp_params *p = tp_model_params(n->m);
    for (int i = 0; i < p->n; i++)
        for (int64_t j = 0; j < tp_numel(p->p[i].t); j++)
            tp_f32(p->p[i].t)[j] += (float)(h * (double)tp_f32(p->p[i].t->grad)[j]);
}

static double squared_length(const net *n) {
    const tp_params *p = tp_model_params(n->m);
    double sum = 0;
    for (int i = 0; i < p->n; i++)
        for (int64_t j = 0; j < tp_numel(p->p[i].t); j++)
            sum += pow((double)tp_f32(p->p[i].t->grad)[j], 2);
    return sum;
}

static void forget(const net *n) {
    tp_params *p = tp_model_params(n->m);
    for (int i = 0; i < p->n; i++) tp_zero_grad(n->c, &p->p[i].t, 1);
}

static void measure(const net *n) {
    double took[2] = {INFINITY, INFINITY}, flops[2] = {0};
    for (int i = -1; i < ROUNDS; i++) /* the first round finds memory and is not counted */
        for (int gradient = 0; gradient < 2; gradient++) {
            forget(n);
            n->c->flops = 0;
            double start = tp_now();
            loss(n, gradient);
            if (i >= 0) took[gradient] = fmin(took[gradient], tp_now() - start);
            flops[gradient] = n->c->flops;
        }
    double forward = took[0], both = took[1];
    double parameters = (double)tp_model_numel(n->m);
    printf("parameters             %.0f\n", parameters);
    printf("FLOPs                  %.2f times as many with the gradient\n", flops[1] / flops[0]);
    printf("loss                   %.4f s\n", forward);
    printf("loss and gradient      %.4f s, %.2f times as long\n", both, both / forward);
    printf("differences, one-sided %.1f days for the same gradient, %.1f million times as long\n",
           (parameters + 1) * forward / 86400, (parameters + 1) * forward / both / 1e6);
}

/* dL along the gradient is its squared length, per step h. */
static void check(const net *n) {
    forget(n);
    loss(n, true);
    double slope = squared_length(n), h = 0.01 / slope;
    move(n, h);
    double up = loss(n, false);
    move(n, -2 * h);
    double down = loss(n, false);
    move(n, h);
    printf("slope along the gradient, by the gradient %.3f, by two more losses %.3f\n", slope,
           (up - down) / (2 * h));
}

int main(int argc, char **argv) {
    net n = {.T = argc > 1 ? strtol(argv[1], NULL, 10) : 256};
    if (argc > 2 || n.T < 16 || n.T > 256)
        return fputs("usage: lesson_cost [TOKENS], 16 to 256\n", stderr), 2;
    const tp_model_cfg cfg = {.family = TP_FAMILY_GPT2,
                              .layers = 6,
                              .heads = 6,
                              .kv_heads = 6,
                              .channels = 384,
                              .head_dim = 64,
                              .ffn = 4 * 384,
                              .context = 256,
                              .vocab = 256,
                              .norm_eps = 1e-5,
                              .init_std = 0.02,
                              .attention_bias = true,
                              .mlp_bias = true,
                              .tie_embeddings = true};
    if (tp_ctx_new(&n.c, &(tp_ctx_opts){.threads = 1})) return 1;
    tp_status st = tp_model_new(&n.m, n.c, &cfg);
    if (!st) {
        measure(&n);
        check(&n);
    }
    st = tp_error_status(n.c);
    if (st) fprintf(stderr, "lesson_cost: %s\n", tp_error(n.c));
    tp_model_free(n.m);
    tp_ctx_free(n.c);
    return st != TP_OK;
}
