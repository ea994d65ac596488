/* Owns the threads' contexts, and the way of their gradients to the sums. */
#include "cli/passes.h"
#include "autograd/autograd.h"
#include "core/ctx.h"
#include <stdatomic.h>

typedef struct given { /* a gradient, in the order of the walk back */
    int param, use;
    tp_tensor grad;
} given;

typedef struct pass {
    tp_ctx *c; /* whose bytes the gradients are */
    given *given;
    int n, cap;
} pass;

typedef struct worker {
    tp_ctx *c;
    tp_model *m;
    tp_grad_sink sink;
    pass *pass;     /* at work */
    int last_param; /* where the search for a leaf begins */
} worker;

/* Passes whose gradients wait to be added, for each thread: enough that none waits long for the
 * others at the end. */
enum { IN_A_RUN = 4 };
struct tp_passes {
    tp_ctx *c;
    int n;
    worker *w;
    pass *pass; /* (n*IN_A_RUN) */
    /* of the run */
    const tp_step_in *in;
    const tp_batch *batch;
    int64_t batches;
    atomic_int_fast64_t next;
};

/* ---- a thread ------------------------------------------------------------------------------- */
static tp_status take(void *arg, tp_ctx *c, tp_tensor *leaf, int use, tp_tensor *grad) {
    worker *w = arg;
    int param = tp_params_find(tp_model_trainable(w->m), leaf, w->last_param);
    if (param < 0)
        return tp_fail(c, TP_ESTATE, "a leaf of %s is not in the parameter table",
                       tp_shape_str(c, leaf));
    w->last_param = param;
    pass *p = w->pass;
    if (p->n == p->cap) {
        int cap = p->cap ? 2 * p->cap : 64;
        given *grown = tp_realloc(c, p->given, (size_t)cap * sizeof *grown);
        if (!grown) return tp_error_status(c);
        p->given = grown;
        p->cap = cap;
    }
    p->given[p->n++] = (given){param, use, tp_retained(grad)};
    return TP_OK;
}

static void forget(pass *p) {
    for (int i = 0; i < p->n; i++) tp_release(p->c, &p->given[i].grad);
    p->n = 0;
}

static void run_one(worker *w, const tp_step_in *in, const tp_batch *b, pass *p) {
    tp_ctx *c = w->c;
    w->pass = p;
    p->c = c;
    tp_rng_at(c, (uint64_t)in->step, (uint64_t)b->sample);
    if (!tp_tape_on(c)) {
        tp_tensor *loss = in->loss(in->loss_arg, c, w->m, b);
        if (loss) tp_backward_from(c, 1, &loss, NULL);
    }
    tp_tape_off(c);
    tp_step_end(c);
}

static void run_range(void *arg, int64_t begin, int64_t end) {
    tp_passes *p = arg;
    for (int64_t w = begin; w < end; w++)
        for (int64_t i; (i = atomic_fetch_add(&p->next, 1)) < p->batches;)
            run_one(&p->w[w], p->in, &p->batch[i], &p->pass[i]);
}

/* ---- all of them ---------------------------------------------------------------------------- */
/* To the sums, unless something failed. */
static void hand_over(tp_passes *p, pass *x, tp_gradients *g, const tp_batch *b) {
    if (!tp_error_status(p->c)) tp_gradients_pass(g, b->rows);
    for (int i = 0; i < x->n && !tp_error_status(p->c); i++)
        tp_gradients_give(g, x->given[i].param, x->given[i].use, &x->given[i].grad);
    forget(x);
}

tp_status tp_passes_run(tp_passes *p, tp_gradients *g, const tp_step_in *in, const tp_batch *b,
                        int64_t n) {
    if (tp_error_status(p->c)) return tp_error_status(p->c);
    p->in = in;
    p->batch = b;
    p->batches = n;
    atomic_store(&p->next, 0);
    tp_parallel_for(p->c, p->n, 1, run_range, p);
    for (int i = 0; i < p->n; i++) {
        tp_ctx *c = p->w[i].c;
        tp_status st = tp_error_status(c);
        if (st) tp_fail(p->c, st, "%s", tp_error(c));
        tp_clear(c);
        p->c->flops += c->flops;
        c->flops = 0;
    }
    for (int64_t i = 0; i < n; i++) hand_over(p, &p->pass[i], g, &b[i]);
    tp_step_end(p->c);
    return tp_error_status(p->c);
}

int tp_passes_in_a_run(const tp_passes *p) { return p->n * IN_A_RUN; }

/* ---- life ----------------------------------------------------------------------------------- */
static tp_status open_worker(tp_passes *p, worker *w, tp_model *m) {
    tp_ctx *c = p->c;
    tp_status st = tp_ctx_beside(&w->c, c);
    if (st) return st;
    st = tp_model_share(&w->m, w->c, m);
    if (!st) st = tp_tape_on(w->c); /* a sink wants a tape */
    tp_tape_off(w->c);
    w->sink = (tp_grad_sink){.arg = w, .take = take};
    if (!st) tp_tape_sink(w->c, &w->sink);
    return st ? tp_fail(c, st, "%s", tp_error(w->c)) : TP_OK;
}

tp_status tp_passes_new(tp_passes **out, tp_ctx *c, tp_model *m, int threads) {
    *out = NULL;
    tp_passes *p = tp_calloc(c, 1, sizeof *p);
    if (!p) return tp_error_status(c);
    p->c = c;
    p->n = threads;
    p->w = tp_calloc(c, (size_t)threads, sizeof *p->w);
    p->pass = tp_calloc(c, (size_t)threads * IN_A_RUN, sizeof *p->pass);
    tp_status st = p->w && p->pass ? TP_OK : tp_error_status(c);
    for (int i = 0; i < threads && !st; i++) st = open_worker(p, &p->w[i], m);
    if (st) {
        tp_passes_free(p);
        return st;
    }
    *out = p;
    return TP_OK;
}

void tp_passes_free(tp_passes *p) {
    if (!p) return;
    for (int i = 0; i < p->n * IN_A_RUN && p->pass; i++) {
        forget(&p->pass[i]);
        tp_free(p->pass[i].given);
    }
    for (int i = 0; i < p->n && p->w; i++) {
        tp_model_free(p->w[i].m);
        tp_ctx_free(p->w[i].c);
    }
    tp_free(p->pass);
    tp_free(p->w);
    tp_free(p);
}
