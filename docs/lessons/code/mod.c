/* Mixture-of-Depths on a model of two small blocks, the second of which is routed: what reaches the
 * router's weights, by the tape and by differences; and whether a token's result depends on tokens
 * after it. */
#include "autograd/autograd.h"
#include "core/ctx.h"
#include "nn/nn.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { T = 24, V = 37, C = 16 };
typedef struct net {
    tp_ctx *c;
    tp_model *m;
} net;

static const tp_model_cfg shape = {
    .family = TP_FAMILY_LLAMA,
    .layers = 2,
    .heads = 2,
    .kv_heads = 2,
    .channels = C,
    .head_dim = 8,
    .ffn = 24,
    .context = T,
    .vocab = V,
    .rope_theta = 10000,
    .norm_eps = 1e-5,
    .init_std = 0.3,
    .mod = {.capacity = 0.25, .every = 2, .causal = TP_MOD_AUX_LOSS, .gate = TP_MOD_GATE_LINEAR}};

static tp_status open_net(net *n, tp_dtype dtype) {
    tp_model_cfg f = shape;
    f.dtype = dtype;
    tp_status st = tp_ctx_new(&n->c, &(tp_ctx_opts){.threads = 1, .seed = 4});
    return st ? st : tp_model_new(&n->m, n->c, &f);
}

static int close_net(net *n) {
    int failed = !n->c || tp_error_status(n->c);
    if (failed) fprintf(stderr, "lesson_mod: %s\n", n->c ? tp_error(n->c) : "no memory");
    tp_model_free(n->m);
    tp_ctx_free(n->c);
    return failed;
}

/* One row of random tokens, from number `first`. */
static tp_tensor *tokens(const net *n, int first) {
    tp_tensor *x = tp_tensor_new(n->c, TP_I32, TP_SHAPE(1, T));
    for (int t = 0; t < T && x; t++)
        tp_i32(x)[t] = (int32_t)(V * tp_uniform(9, TP_RNG_TEST, 0, (uint64_t)(first + t)));
    return x;
}

/* ---- the router's gradient ------------------------------------------------------------------- */
static tp_tensor *loss(const net *n) {
    tp_model_in in = {.ids = tokens(n, 0), .training = true};
    tp_model_loss_opts o = {.scale = 1.0 / T, .gradient = true};
    return tp_model_loss(n->c, n->m, &in, tokens(n, 1), &o).loss;
}

static double loss_with(const net *n, double *w, double value) {
    double was = *w;
    *w = value;
    tp_tensor *l = loss(n);
    double found = l ? *tp_f64(l) : NAN;
    *w = was;
    tp_step_end(n->c);
    return found;
}

static int router_gradient(void) {
    net n = {0};
    const tp_param *router = NULL;
    if (!open_net(&n, TP_F64) &&
        (router = tp_model_param(n.m, "model.layers.1.mod.router.weight"))) {
        tp_tape_on(n.c);
        tp_tensor *l = loss(&n);
        if (l) tp_backward(n.c, l);
        tp_tape_off(n.c);
        tp_step_end(n.c);
        puts("dL/d(router weight)   by the tape   by differences");
        for (int i = 0; i < 4 && router->t->grad; i++) {
            double *w = tp_f64(router->t) + i, h = 1e-6;
            printf("%18d   %11.7f   %14.7f\n", i, tp_f64(router->t->grad)[i],
                   (loss_with(&n, w, *w + h) - loss_with(&n, w, *w - h)) / (2 * h));
        }
    }
    return close_net(&n);
}

/* ---- the future ------------------------------------------------------------------------------ */
/* lesson: future */
/* The model's output for all tokens, where the last one is `last`. */
static void hidden(const net *n, tp_mod_mode mode, int last, float out[T * C]) {
    tp_model_in in = {.ids = tokens(n, 0), .mode = mode};
    if (in.ids) tp_i32(in.ids)[T - 1] = last;
    tp_tensor *h = tp_model_hidden(n->c, n->m, &in); /* (1,T,C) */
    if (h) memcpy(out, h->data, sizeof(float) * T * C);
    tp_step_end(n->c);
}

/* How many of V - 1 other last tokens change a bit of any token before. */
static int seen_ahead(const net *n, tp_mod_mode mode) {
    float a[T * C] = {0}, b[T * C] = {0};
    int changed = 0;
    hidden(n, mode, 0, a);
    for (int last = 1; last < V; last++) {
        hidden(n, mode, last, b);
        changed += memcmp(a, b, sizeof(float) * (T - 1) * C) != 0;
    }
    return changed;
}
/* end */

static int future(void) {
    net n = {0};
    if (!open_net(&n, TP_F32)) {
        int top_k = seen_ahead(&n, TP_MOD_TOP_K), causal = seen_ahead(&n, TP_MOD_CAUSAL);
        if (!tp_error_status(n.c))
            printf("of %d other last tokens, so many change what was computed for earlier ones:\n"
                   "the highest of a row  %d\ncausal decisions      %d\n",
                   V - 1, top_k, causal);
    }
    return close_net(&n);
}

int main(void) { return router_gradient() | future(); }
