/* Mixture-of-Depths: gradients of whole routed models by differences, what a routed block leaves
 * alone, ties, documents, decisions that know nothing of the future, what the auxiliary losses
 * touch, splits of a batch, recomputation, f32 against f64, and memory that was planned. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include "autograd/autograd.h"
#include "core/ctx.h"
#include "nn/nn.h"
#include "ops/convert.h"
#include "ops/route/route.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { B = 4, T = 24, V = 37, C = 16 };

static tp_model_cfg routed(tp_family family) {
    bool llama = family == TP_FAMILY_LLAMA;
    return (tp_model_cfg){.family = family,
                          .layers = 2,
                          .heads = 2,
                          .kv_heads = llama ? 1 : 2,
                          .channels = C,
                          .head_dim = 8,
                          .ffn = 24,
                          .context = T,
                          .vocab = V,
                          .rope_theta = 10000,
                          .norm_eps = 1e-5,
                          .init_std = 0.3,
                          .tie_embeddings = !llama,
                          .qk_norm = llama,
                          .attention_bias = !llama,
                          .mlp_bias = !llama,
                          .mod = {.capacity = 0.25, .every = 2}};
}

typedef struct net {
    tp_ctx *c;
    tp_model *m;
} net;

static net net_open(const tp_model_cfg *f, int threads, bool meta) {
    net n = {0};
    assert_int_equal(tp_ctx_new(&n.c, &(tp_ctx_opts){.threads = threads, .seed = 4, .meta = meta}),
                     0);
    if (tp_model_new(&n.m, n.c, f)) fail_msg("%s", tp_error(n.c));
    return n;
}
static net net_new(const tp_model_cfg *f) { return net_open(f, 2, false); }
static void net_free(net *n) {
    tp_model_free(n->m);
    tp_ctx_free(n->c);
}

static int32_t token(int64_t s, int64_t t) {
    uint32_t w[4];
    tp_philox(w, 9, TP_RNG_TEST, (uint64_t)s, (uint64_t)t);
    return (int32_t)(w[0] % V);
}

static tp_tensor *tokens(tp_ctx *c, int64_t first, int64_t rows, int64_t n, int shift) {
    tp_tensor *x = tp_tensor_new(c, TP_I32, TP_SHAPE(rows, n));
    for (int64_t s = 0; x && x->data && s < rows; s++)
        for (int64_t t = 0; t < n; t++) tp_i32(x)[s * n + t] = token(first + s, t + shift);
    return x;
}

static const tp_model_loss_opts learning = {
    .scale = 1.0 / (B * T), .gradient = true, .aux_scale = 1.0 / (B * T)};

static tp_model_out loss_of(net *n, int64_t first, int64_t rows) {
    tp_rng_at(n->c, 3, (uint64_t)first);
    tp_model_in in = {.ids = tokens(n->c, first, rows, T, 0), .training = true};
    tp_model_out y = tp_model_loss(n->c, n->m, &in, tokens(n->c, first, rows, T, 1), &learning);
    if (!y.loss) fail_msg("%s", tp_error(n->c));
    return y;
}

static void zero(net *n) {
    tp_params *p = tp_model_params(n->m);
    for (int i = 0; i < p->n; i++) tp_zero_grad(n->c, &p->p[i].t, 1);
}

/* ---- gradients ------------------------------------------------------------------------------ */
enum { LOSS = 1, AUX = 2 };
typedef struct checked {
    net *n;
    int what;
} checked;

static tp_status outputs(tp_ctx *c, void *arg, tp_tensor *const in[], int nin,
                         tp_tensor *out[TP_MAXOUT], int *nout) {
    const checked *k = arg;
    (void)in, (void)nin;
    tp_model_out y = loss_of(k->n, 0, 2);
    *nout = 0;
    if (k->what & LOSS) out[(*nout)++] = y.loss;
    if (k->what & AUX) out[(*nout)++] = y.aux;
    return tp_error_status(c);
}

/* The gradient through the weight that the router gives a block's result is dropped. */
static tp_status (*real_record)(tp_ctx *c, const tp_call *k);
static tp_op blind;
static void blind_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    tp_op_find("put_tokens")->vjp(k, dout, din);
    din[3] = NULL;
}
static tp_status blind_record(tp_ctx *c, const tp_call *k) {
    tp_call mine = *k;
    if (!strcmp(k->op->name, "put_tokens")) mine.op = &blind;
    return real_record(c, &mine);
}

/* own: the parameters of causal decisions; else all others. */
static tp_gradcheck_result differences(const tp_model_cfg *f, int what, bool own, bool all,
                                       bool mutant) {
    net n = net_new(f);
    tp_params *p = tp_model_params(n.m);
    tp_tensor *in[64];
    int nin = 0;
    for (int i = 0; i < p->n && nin < 64; i++) {
        const char *name = p->p[i].name;
        bool is_own = strstr(name, "predictor") || strstr(name, "threshold");
        if (all || is_own == own) in[nin++] = p->p[i].t;
    }
    if (mutant) {
        assert_int_equal(tp_tape_on(n.c), 0);
        blind = *tp_op_find("put_tokens");
        blind.vjp = blind_vjp;
        real_record = n.c->record;
        n.c->record = blind_record;
    }
    checked k = {&n, what};
    tp_gradcheck_result r = {0};
    if (tp_gradcheck(n.c, outputs, &k, in, nin, &r)) fail_msg("%s", tp_error(n.c));
    net_free(&n);
    return r;
}

static void test_gradients(void **state) {
    (void)state;
    static const double TOL = 1e-6;
    for (int family = 0; family < 2; family++)
        for (int gate = 0; gate < 2; gate++) {
            tp_model_cfg f = routed(family ? TP_FAMILY_LLAMA : TP_FAMILY_GPT2);
            f.dtype = TP_F64;
            f.mod.gate = gate ? TP_MOD_GATE_LINEAR : TP_MOD_GATE_SIGMOID;
            f.mod.every = 1;
            tp_gradcheck_result r = differences(&f, LOSS, false, false, false);
            tp_gradcheck_result bad = differences(&f, LOSS, false, false, true);
            printf("family %d, gate %d: %lld derivatives, worst %.1e; without the router's path "
                   "%.1e\n",
                   family, gate, (long long)r.checked, r.worst, bad.worst);
            assert_true(r.worst <= TOL && r.largest > 1e-2);
            assert_false(bad.worst <= TOL);
        }
}

static void test_auxiliary_gradients(void **state) {
    (void)state;
    for (int causal = 0; causal < 3; causal++) {
        tp_model_cfg f = routed(TP_FAMILY_LLAMA);
        f.dtype = TP_F64;
        f.mod.causal = (tp_mod_causal)causal;
        bool all = causal == TP_MOD_AUX_LOSS; /* the others stop at what they look at */
        tp_gradcheck_result r = differences(&f, all ? LOSS | AUX : AUX, true, all, false);
        printf("causal %d: %lld derivatives, worst %.1e\n", causal, (long long)r.checked, r.worst);
        assert_true(r.worst <= 1e-6 && r.largest > 1e-3);
    }
}

static double largest_gradient(const tp_param *p) {
    double worst = 0;
    for (int64_t i = 0; p->t->grad && i < tp_numel(p->t->grad); i++)
        worst = fmax(worst, fabs(tp_get(p->t->grad, i)));
    return worst;
}

static void test_auxiliary_losses_stay_at_home(void **state) {
    (void)state;
    for (int causal = 0; causal < 3; causal++) {
        tp_model_cfg f = routed(TP_FAMILY_GPT2);
        f.mod.causal = (tp_mod_causal)causal;
        net n = net_new(&f);
        tp_tape_on(n.c);
        tp_model_out y = loss_of(&n, 0, B);
        assert_int_equal(tp_backward(n.c, y.aux), 0);
        tp_params *p = tp_model_params(n.m);
        for (int i = 0; i < p->n; i++) {
            bool own = strstr(p->p[i].name, "predictor") || strstr(p->p[i].name, "threshold");
            if (causal == TP_MOD_AUX_LOSS) /* there it reaches the router and what is before it */
                own = strstr(p->p[i].name, "router") || strstr(p->p[i].name, "transformer.w") ||
                      strstr(p->p[i].name, "h.0");
            double g = largest_gradient(&p->p[i]);
            if (own && !strstr(p->p[i].name, "h.0")) assert_true(g > 0);
            if (!own) assert_true(g == 0);
        }
        net_free(&n);
    }
}

/* ---- what a block takes and what it leaves --------------------------------------------------- */
typedef struct wish {
    const int32_t *rows; /* NULL: none */
    int64_t n, places;
    tp_tensor *decision;
} wish;

static tp_chosen fulfil(void *arg, tp_ctx *c, int layer, tp_tensor *decision) {
    wish *w = arg;
    tp_tensor *rows = tp_tensor_new(c, TP_I32, TP_SHAPE(1, w->places));
    tp_tensor *positions = tp_tensor_new(c, TP_I32, TP_SHAPE(1, w->places));
    (void)layer;
    for (int64_t i = 0; i < w->places; i++) {
        tp_i32(rows)[i] = i < w->n ? w->rows[i] : -1;
        tp_i32(positions)[i] = i < w->n ? w->rows[i] : 0;
    }
    w->decision = decision;
    return (tp_chosen){rows, positions, NULL};
}

static void hidden_of(net *n, float out[T * C], tp_mod_mode mode, wish *w) {
    tp_model_in in = {.ids = tokens(n->c, 0, 1, T, 0), .mode = mode};
    if (w) in.choose = fulfil, in.choose_arg = w;
    tp_tensor *h = tp_model_hidden(n->c, n->m, &in);
    if (!h) fail_msg("%s", tp_error(n->c));
    memcpy(out, h->data, sizeof(float) * T * C);
    tp_step_end(n->c);
}

static void test_the_others_keep_their_bits(void **state) {
    (void)state;
    static const int32_t some[] = {3, 4, 11, 23};
    for (int family = 0; family < 2; family++) {
        tp_model_cfg f = routed(family ? TP_FAMILY_LLAMA : TP_FAMILY_GPT2);
        float none[T * C], four[T * C], padded[T * C];
        net n = net_new(&f);
        wish nobody = {NULL, 0, 1, NULL}, few = {some, 4, 4, NULL}, more = {some, 4, 9, NULL};
        hidden_of(&n, none, TP_MOD_CAUSAL, &nobody);
        hidden_of(&n, four, TP_MOD_CAUSAL, &few);
        hidden_of(&n, padded, TP_MOD_CAUSAL, &more);
        assert_memory_equal(four, padded, sizeof four);
        for (int t = 0; t < T; t++) {
            bool same = !memcmp(none + t * C, four + t * C, sizeof(float) * C), taken = false;
            for (int i = 0; i < 4; i++) taken |= some[i] == t;
            assert_true(same == !taken);
        }
        net_free(&n);
    }
}

/* The last block routes, so exactly the tokens it takes differ from a model that takes none. */
static void test_ties_go_to_the_earlier_token(void **state) {
    (void)state;
    tp_model_cfg f = routed(TP_FAMILY_LLAMA);
    float none[T * C], got[T * C];
    net n = net_new(&f);
    tp_tensor *w = tp_model_param(n.m, "model.layers.1.mod.router.weight")->t;
    memset(w->data, 0, sizeof(float) * C);
    wish nobody = {NULL, 0, 1, NULL};
    hidden_of(&n, none, TP_MOD_CAUSAL, &nobody);
    hidden_of(&n, got, TP_MOD_TOP_K, NULL);
    for (int t = 0; t < T; t++)
        assert_true(!memcmp(none + t * C, got + t * C, sizeof(float) * C) == (t >= T / 4));
    net_free(&n);
}

/* Channel 0 of every token is 8, and the router looks at nothing else: r is 1 in f32, or 1/2. */
static double apart_from_dense(double router) {
    tp_model_cfg f = routed(TP_FAMILY_GPT2);
    f.layers = 1;
    f.mod = (tp_mod_cfg){.capacity = 1, .every = 1};
    float got[T * C], want[T * C];
    double worst = 0;
    for (int dense = 0; dense < 2; dense++) {
        if (dense) f.mod.capacity = 0;
        net n = net_new(&f);
        float *wte = tp_f32(tp_model_param(n.m, "transformer.wte.weight")->t);
        for (int v = 0; v < V; v++) wte[v * C] = 8;
        const tp_param *w = tp_model_param(n.m, "transformer.h.0.mod.router.weight");
        for (int i = 0; w && i < C; i++) tp_f32(w->t)[i] = i ? 0 : (float)router;
        hidden_of(&n, dense ? want : got, TP_MOD_TOP_K, NULL);
        net_free(&n);
    }
    for (int i = 0; i < T * C; i++) worst = fmax(worst, fabs((double)got[i] - (double)want[i]));
    return worst;
}

static void test_capacity_one(void **state) {
    (void)state;
    assert_true(apart_from_dense(10) < 2e-5); /* x + (a + b) against (x + a) + b */
    assert_true(apart_from_dense(0) > 1e-2);
}

static void test_how_many(void **state) {
    (void)state;
    tp_model_cfg f = routed(TP_FAMILY_GPT2);
    assert_int_equal(tp_mod_tokens(&f, 24), 6);
    assert_int_equal(tp_mod_tokens(&f, 25), 7);
    assert_int_equal(tp_mod_tokens(&f, 1), 1);
    f.mod.capacity = 0.1;
    assert_int_equal(tp_mod_tokens(&f, 30), 3);
    f.layers = 5;
    assert_int_equal(tp_mod_blocks(&f), 2);
    assert_true(!tp_mod_routed(&f, 0) && tp_mod_routed(&f, 1) && !tp_mod_routed(&f, 4));
    f.mod.router = TP_MOD_ALL;
    assert_int_equal(tp_mod_tokens(&f, 30), 30);
}

/* ---- the future ------------------------------------------------------------------------------ */
/* Log-probs of one row whose tokens from `from` on are others. */
static void logprobs(net *n, float out[T], tp_mod_mode mode, int64_t from, int64_t other,
                     const int32_t *segments) {
    tp_ctx *c = n->c;
    tp_model_in in = {.ids = tokens(c, 0, 1, T, 0), .mode = mode};
    tp_tensor *targets = tokens(c, 0, 1, T, 1);
    for (int64_t t = from; t < T && other; t++) tp_i32(in.ids)[t] = token(other, t);
    if (segments) {
        in.segments = tp_tensor_new(c, TP_I32, TP_SHAPE(1, T));
        in.positions = tp_tensor_new(c, TP_I32, TP_SHAPE(1, T));
        for (int t = 0, at = 0; t < T; t++, at++) {
            if (t && segments[t] != segments[t - 1]) at = 0;
            tp_i32(in.segments)[t] = segments[t];
            tp_i32(in.positions)[t] = at;
        }
    }
    tp_model_out y = tp_model_logprob(c, n->m, &in, targets, &(tp_model_logprob_opts){0});
    if (!y.logprob) fail_msg("%s", tp_error(c));
    memcpy(out, y.logprob->data, sizeof(float) * T);
    tp_step_end(c);
}

/* How many of 12 other futures change a bit of what was before. */
static int changes(const tp_model_cfg *f, tp_mod_mode mode) {
    int n_changed = 0;
    float a[T], b[T];
    net n = net_new(f);
    logprobs(&n, a, mode, T, 0, NULL);
    for (int64_t other = 1; other <= 12; other++) {
        int64_t from = T / 2 + other % 6;
        logprobs(&n, b, mode, from, other, NULL);
        n_changed += memcmp(a, b, sizeof(float) * (size_t)from) != 0;
        assert_memory_not_equal(a, b, sizeof a); /* or nothing was compared */
    }
    net_free(&n);
    return n_changed;
}

static void test_the_future_changes_nothing(void **state) {
    (void)state;
    for (int family = 0; family < 2; family++)
        for (int router = 0; router < 3; router++)
            for (int causal = 0; causal < (router == TP_MOD_LINEAR ? 3 : 1); causal++) {
                tp_model_cfg f = routed(family ? TP_FAMILY_LLAMA : TP_FAMILY_GPT2);
                f.layers = 4;
                f.mod.router = (tp_mod_router)router;
                f.mod.causal = (tp_mod_causal)causal;
                assert_int_equal(changes(&f, TP_MOD_CAUSAL), 0);
                if (router == TP_MOD_LINEAR) assert_true(changes(&f, TP_MOD_TOP_K) > 0);
            }
}

/* A row alone, in a batch, and with more places than it fills has the same bits. */
static void test_batches_change_nothing(void **state) {
    (void)state;
    tp_model_cfg f = routed(TP_FAMILY_LLAMA);
    float alone[T];
    net n = net_new(&f);
    logprobs(&n, alone, TP_MOD_CAUSAL, T, 0, NULL);
    tp_model_in in = {.ids = tokens(n.c, 0, B, T, 0), .mode = TP_MOD_CAUSAL};
    tp_model_out y =
        tp_model_logprob(n.c, n.m, &in, tokens(n.c, 0, B, T, 1), &(tp_model_logprob_opts){0});
    assert_memory_equal(alone, y.logprob->data, sizeof alone);
    net_free(&n);
}

/* ---- documents ------------------------------------------------------------------------------- */
static int documents_changed(const tp_model_cfg *f, tp_mod_mode mode) {
    int32_t two[T];
    int n_changed = 0;
    float a[T], b[T];
    net n = net_new(f);
    for (int t = 0; t < T; t++) two[t] = t >= T / 2;
    logprobs(&n, a, mode, T, 0, two);
    for (int64_t other = 1; other <= 6; other++) { /* the second document becomes another */
        logprobs(&n, b, mode, T / 2, other, two);
        n_changed += memcmp(a, b, sizeof(float) * (T / 2)) != 0;
    }
    net_free(&n);
    return n_changed;
}

static void test_documents(void **state) {
    (void)state;
    tp_model_cfg f = routed(TP_FAMILY_LLAMA);
    assert_true(documents_changed(&f, TP_MOD_TOP_K) > 0); /* they compete */
    assert_int_equal(documents_changed(&f, TP_MOD_CAUSAL), 0);
    f.mod.by_document = true;
    assert_int_equal(documents_changed(&f, TP_MOD_TOP_K), 0);
}

/* ---- splits, recomputation ------------------------------------------------------------------- */
typedef struct step_bits {
    uint64_t hash;
    double aux, route[TP_ROUTE_STATS];
    size_t peak;
} step_bits;

static step_bits one_step(const tp_model_cfg *f, int threads, int parts, bool meta) {
    step_bits s = {.hash = 14695981039346656037u};
    net n = net_open(f, threads, meta);
    tp_params *p = tp_model_params(n.m);
    double rows[B * TP_ROUTE_STATS];
    for (int i = 0; i < parts; i++) {
        tp_tape_on(n.c);
        tp_model_out y = loss_of(&n, i * (B / parts), B / parts);
        tp_tensor *roots[] = {y.loss, y.aux};
        if (tp_backward_from(n.c, y.aux ? 2 : 1, roots, NULL)) fail_msg("%s", tp_error(n.c));
        for (int64_t e = 0; y.route->data && e < tp_numel(y.route); e++)
            rows[i * (B / parts) * TP_ROUTE_STATS + e] = tp_get(y.route, e);
        tp_tape_off(n.c);
        tp_step_end(n.c);
    }
    for (int i = 0; i < p->n && !meta; i++)
        for (int64_t e = 0; p->p[i].t->grad && e < tp_numel(p->p[i].t); e++) {
            uint32_t bits;
            memcpy(&bits, &tp_f32(p->p[i].t->grad)[e], sizeof bits);
            s.hash = (s.hash ^ bits) * 1099511628211u;
        }
    for (int i = 0; i < B * TP_ROUTE_STATS && !meta; i++) s.route[i % TP_ROUTE_STATS] += rows[i];
    s.peak = tp_memory_peak(n.c);
    zero(&n);
    net_free(&n);
    return s;
}

static void test_splits(void **state) {
    (void)state;
    for (int kind = 0; kind < 8; kind++) {
        tp_model_cfg f = routed(kind % 2 ? TP_FAMILY_LLAMA : TP_FAMILY_GPT2);
        f.tie_embeddings = false; /* a tied table has two sums, which interleave by micro-batch */
        f.layers = 4;
        f.dropout = 0.1;
        if (kind / 2 < 3) f.mod.causal = (tp_mod_causal)(kind / 2);
        if (kind / 2 == 3) f.mod.router = TP_MOD_RANDOM;
        step_bits whole = one_step(&f, 1, 1, false), many = one_step(&f, 3, 1, false);
        assert_true(whole.hash == many.hash);
        /* the router of aux_loss is used twice a pass: two sums, which interleave here */
        step_bits parts = one_step(&f, 2, 2, false);
        if (f.mod.causal != TP_MOD_AUX_LOSS) assert_true(whole.hash == parts.hash);
        assert_memory_equal(whole.route, parts.route, sizeof whole.route);
        assert_true(whole.route[TP_ROUTE_ENTROPY] > 0);
        step_bits meta = one_step(&f, 2, 1, true), real = one_step(&f, 2, 1, false);
        assert_int_equal(meta.peak, real.peak);
        f.activation_checkpointing = true;
        step_bits again = one_step(&f, 2, 1, false), planned = one_step(&f, 2, 1, true);
        assert_true(whole.hash == again.hash);
        assert_true(again.peak < real.peak);
        assert_int_equal(planned.peak, again.peak);
        f.activation_checkpointing = false;
        f.mod.capacity = 0.3;
        assert_false(whole.hash == one_step(&f, 1, 1, false).hash); /* else the hash sees nothing */
    }
}

/* ---- f32 against f64 ------------------------------------------------------------------------- */
static void test_f64(void **state) {
    (void)state;
    for (int family = 0; family < 2; family++) {
        tp_model_cfg f = routed(family ? TP_FAMILY_LLAMA : TP_FAMILY_GPT2);
        double loss[2], aux[2], worst = 0;
        f.mod.every = 1;
        net n[2];
        for (int i = 0; i < 2; i++) {
            f.dtype = i ? TP_F64 : TP_F32;
            n[i] = net_new(&f);
            tp_tape_on(n[i].c);
            tp_model_out y = loss_of(&n[i], 0, B);
            loss[i] = tp_get(y.loss, 0);
            aux[i] = tp_get(y.aux, 0);
            tp_tensor *roots[] = {y.loss, y.aux};
            assert_int_equal(tp_backward_from(n[i].c, 2, roots, NULL), 0);
        }
        tp_params *p = tp_model_params(n[0].m), *q = tp_model_params(n[1].m);
        for (int i = 0; i < p->n; i++) {
            double scale = largest_gradient(&q->p[i]), e = 0;
            for (int64_t j = 0; p->p[i].t->grad && j < tp_numel(p->p[i].t); j++)
                e = fmax(e, fabs(tp_get(p->p[i].t->grad, j) - tp_get(q->p[i].t->grad, j)));
            worst = fmax(worst, e / fmax(scale, 1e-4));
        }
        printf("f32 and f64: loss %.1e, aux %.1e, gradients %.1e apart\n", fabs(loss[0] - loss[1]),
               fabs(aux[0] - aux[1]), worst);
        assert_true(fabs(loss[0] - loss[1]) < 2e-6 && fabs(aux[0] - aux[1]) < 2e-6);
        assert_true(worst < 2e-5);
        for (int i = 0; i < 2; i++) net_free(&n[i]);
    }
}

/* ---- refusals -------------------------------------------------------------------------------- */
static tp_tensor *no_attention(void *arg, tp_ctx *c, tp_tensor *q, tp_tensor *k, tp_tensor *v,
                               const tp_attend_opts *o) {
    (void)arg, (void)c, (void)k, (void)v, (void)o;
    return q;
}

static void test_refusals(void **state) {
    (void)state;
    tp_model_cfg f = routed(TP_FAMILY_LLAMA);
    net n = net_new(&f);
    tp_model_in in = {.ids = tokens(n.c, 0, 1, T, 0), .attend = no_attention};
    assert_null(tp_model_hidden(n.c, n.m, &in));
    assert_non_null(strstr(tp_error(n.c), "causal decisions"));
    tp_clear(n.c);
    in.mode = TP_MOD_CAUSAL;
    assert_non_null(tp_model_hidden(n.c, n.m, &in));
    tp_model *m;
    f.sliding_window = 8;
    assert_int_not_equal(tp_model_new(&m, n.c, &f), 0);
    assert_non_null(strstr(tp_error(n.c), "sliding_window"));
    tp_clear(n.c);
    f.sliding_window = 0;
    f.mod.capacity = 1.5;
    assert_int_not_equal(tp_model_new(&m, n.c, &f), 0);
    assert_non_null(strstr(tp_error(n.c), "mod.capacity"));
    net_free(&n);
}

/* The threshold is in units of sqrt(channels). Where that is no power of two, as it is above, a sum
 * that is scaled has other bits than a sum of what was scaled. */
static void test_splits_of_the_threshold(void **state) {
    (void)state;
    for (int64_t channels = 17; channels < 33; channels += 2) {
        tp_model_cfg f = routed(TP_FAMILY_LLAMA);
        f.channels = channels;
        f.mod.causal = TP_MOD_THRESHOLD;
        step_bits whole = one_step(&f, 1, 1, false), parts = one_step(&f, 1, 2, false);
        assert_true(whole.hash == parts.hash);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_auxiliary_gradients),
        cmocka_unit_test(test_auxiliary_losses_stay_at_home),
        cmocka_unit_test(test_the_others_keep_their_bits),
        cmocka_unit_test(test_ties_go_to_the_earlier_token),
        cmocka_unit_test(test_capacity_one),
        cmocka_unit_test(test_how_many),
        cmocka_unit_test(test_the_future_changes_nothing),
        cmocka_unit_test(test_batches_change_nothing),
        cmocka_unit_test(test_documents),
        cmocka_unit_test(test_splits),
        cmocka_unit_test(test_splits_of_the_threshold),
        cmocka_unit_test(test_f64),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
