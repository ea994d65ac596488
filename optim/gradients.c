/* Owns the sums of a step's gradients: over uses, over backward passes, over ranks. */
#include "optim/gradients.h"
#include "core/ctx.h"
#include "ops/add/add.h"
#include <string.h>

enum {
    IN_FLIGHT = 2
}; /* buckets on their way at a time: bounds memory, and is the same every step */

typedef struct subtree { /* a gradient summed over some neighbouring samples */
    tp_tensor sum;
    int64_t samples;
} subtree;
typedef struct use { /* the counter: subtrees from left to right, each smaller than the one before
                      */
    subtree *tree;
    int n, cap;
} use;
typedef struct sums { /* of one parameter */
    use *use;
    int n, cap;
    tp_tensor grad; /* what ->grad points at in the end */
} sums;

typedef struct parcel { /* one gradient in a bucket */
    int param, use;
    tp_tensor sum; /* ZeRO 2: the whole gradient of a pass; else unused: it waits in its tree */
    int64_t samples;
} parcel;
typedef struct bucket {
    parcel *parcel;
    tp_piece *piece;
    int n, cap_parcel, cap_piece; /* two, as either may fail to grow */
    size_t bytes;
    int64_t ticket;
} bucket;

struct tp_gradients {
    tp_ctx *c;
    tp_optim *o;
    tp_params *params;
    tp_comm *comm;
    tp_gradients_opts opts;
    int ranks, zero_stage;
    sums *sums;
    int64_t step, passes, pass, samples; /* pass: from 1, the one under way */
    int last_param;                      /* where the search for a leaf begins */
    bucket bucket[IN_FLIGHT + 1];
    int64_t opened, retired; /* buckets so far: bucket[opened % …] is being filled */
    tp_grad_sink sink;
};

/* ---- growing arrays -------------------------------------------------------------------------- */
static bool grow(tp_ctx *c, void **items, int *cap, int need, size_t size) {
    if (need <= *cap) return true;
    int wider = *cap ? 2 * *cap : 2;
    void *p = tp_realloc(c, *items, (size_t)wider * size);
    if (!p) return false;
    memset((char *)p + (size_t)*cap * size, 0, (size_t)(wider - *cap) * size);
    *items = p;
    *cap = wider;
    return true;
}

static use *use_of(tp_gradients *g, int param, int number) {
    sums *s = &g->sums[param];
    if (!grow(g->c, (void **)&s->use, &s->cap, number + 1, sizeof *s->use)) return NULL;
    if (number >= s->n) s->n = number + 1;
    return &s->use[number];
}

/* ---- one tree -------------------------------------------------------------------------------- */
static tp_status merge_last(tp_gradients *g, use *u) {
    subtree *right = &u->tree[--u->n], *left = &u->tree[u->n - 1];
    tp_status st = tp_add_(g->c, &left->sum, &right->sum);
    left->samples += right->samples;
    tp_release(g->c, &right->sum);
    return st;
}

/* Takes sum over. */
/* lesson: push */
static tp_status push(tp_gradients *g, use *u, tp_tensor sum, int64_t samples) {
    if (!grow(g->c, (void **)&u->tree, &u->cap, u->n + 1, sizeof *u->tree)) {
        tp_release(g->c, &sum);
        return g->c->status;
    }
    u->tree[u->n++] = (subtree){sum, samples};
    tp_status st = TP_OK;
#ifdef TAPIR_MUTANT_ORDER /* tests/same_bits.sh: one after the other, which must be noticed */
    while (!st && u->n > 1) st = merge_last(g, u);
#endif
    while (!st && u->n > 1 && u->tree[u->n - 2].samples == u->tree[u->n - 1].samples)
        st = merge_last(g, u);
    return st;
}
/* end */

static tp_status fold(tp_gradients *g, use *u) {
    tp_status st = TP_OK;
    while (!st && u->n > 1) st = merge_last(g, u);
    return st;
}

/* ---- buckets --------------------------------------------------------------------------------- */
/* This rank's part of a gradient that was summed over the ranks, in bytes of its own. */
static tp_status shard(tp_gradients *g, int param, const tp_tensor *whole, tp_tensor *out) {
    tp_range own = tp_optim_own(g->o, param);
    *out = *whole;
    if (own.n != tp_numel(whole)) {
        out->ndim = 1;
        out->shape[0] = own.n;
        out->stride[0] = 1;
    }
    size_t bytes = (size_t)own.n * sizeof(float);
    if (!(out->storage = tp_storage_new(g->c, bytes))) return g->c->status;
    out->data = bytes ? out->storage->base : NULL;
    if (out->data && whole->data)
        return tp_copy_bytes(g->c, out->data, tp_f32(whole) + own.first, bytes);
    return TP_OK;
}

static tp_status arrived(tp_gradients *g, parcel *p) {
    tp_tensor part;
    if (g->zero_stage < 2) return TP_OK;
    tp_status st = shard(g, p->param, &p->sum, &part);
    tp_release(g->c, &p->sum);
    use *u = st ? NULL : use_of(g, p->param, p->use);
    if (!st && !u) tp_release(g->c, &part);
    return u ? push(g, u, part, p->samples * g->ranks) : g->c->status;
}

static tp_status retire(tp_gradients *g) {
    bucket *b = &g->bucket[g->retired++ % (IN_FLIGHT + 1)];
    tp_status st = tp_comm_wait(g->comm, g->c, b->ticket);
    int i = 0;
    for (; i < b->n && !st; i++) st = arrived(g, &b->parcel[i]);
    for (; i < b->n; i++) tp_release(g->c, &b->parcel[i].sum);
    b->n = 0;
    b->bytes = 0;
    return st;
}

static tp_status launch(tp_gradients *g) {
    bucket *b = &g->bucket[g->opened % (IN_FLIGHT + 1)];
    if (!b->n) return TP_OK;
    tp_move move = g->zero_stage ? TP_REDUCE_SCATTER : TP_ALLREDUCE;
    b->ticket = tp_comm_start(g->comm, g->c, move, b->piece, b->n);
    if (!b->ticket) return tp_error_status(g->c);
    g->opened++;
    return g->opened - g->retired > IN_FLIGHT ? retire(g) : TP_OK;
}

static tp_status travel(tp_gradients *g, int param, int number, const tp_tensor *sum, bool taken) {
    bucket *b = &g->bucket[g->opened % (IN_FLIGHT + 1)];
    if (!grow(g->c, (void **)&b->parcel, &b->cap_parcel, b->n + 1, sizeof *b->parcel) ||
        !grow(g->c, (void **)&b->piece, &b->cap_piece, b->n + 1, sizeof *b->piece))
        return g->c->status;
    b->parcel[b->n] = (parcel){.param = param, .use = number, .samples = g->samples};
    if (taken)
        b->parcel[b->n].sum = tp_retained(sum);
    else
        b->parcel[b->n].sum.released = true; /* nothing to let go of */
    b->piece[b->n++] =
        (tp_piece){sum->data, *tp_optim_cut(g->o, param), .on_device = g->c->backend != NULL};
    b->bytes += (size_t)tp_numel(sum) * sizeof(float);
    return b->bytes >= g->opts.bucket_bytes ? launch(g) : TP_OK;
}

/* ---- the sink -------------------------------------------------------------------------------- */
static int find(tp_gradients *g, const tp_tensor *leaf) {
    int at = tp_params_find(g->params, leaf, g->last_param);
    if (at >= 0) g->last_param = at;
    return at;
}

/* One pass on one rank: sums grow in place, and are complete when the leaf is done. */
static bool alone(const tp_gradients *g) { return g->passes == 1 && g->ranks == 1; }

static tp_status take(void *arg, tp_ctx *c, tp_tensor *leaf, int number, tp_tensor *grad) {
    tp_gradients *g = arg;
    int param = find(g, leaf);
    if (param < 0)
        return tp_fail(c, TP_ESTATE, "gradients: a leaf of %s is not in the parameter table",
                       tp_shape_str(c, leaf));
    if (alone(g) && number > 0) return tp_add_(c, &g->sums[param].use[0].tree[0].sum, grad);
    if (g->ranks > 1 && g->zero_stage == 2) return travel(g, param, number, grad, true);
    use *u = use_of(g, param, number);
    if (!u) return c->status;
    tp_status st = push(g, u, tp_retained(grad), g->samples);
    if (st || g->pass < g->passes || g->ranks == 1) return st;
    if ((st = fold(g, u))) return st;
    return travel(g, param, number, &u->tree[0].sum, false);
}

tp_status tp_gradients_give(tp_gradients *g, int param, int number, const tp_tensor *grad) {
    tp_ctx *c = g->c;
    if (c->status) return c->status;
    tp_scope s = tp_scope_open(c, "sums");
    tp_tensor *own = tp_tensor_new(c, grad->dtype, grad->ndim, grad->shape);
    tp_status st = own ? TP_OK : c->status;
    if (!st)
        st = tp_copy_bytes(c, own->data, grad->data,
                           (size_t)tp_numel(grad) * tp_dtype_size(grad->dtype));
    if (!st) st = take(g, c, g->params->p[param].t, number, own);
    tp_scope_close(c, s, NULL);
    return st;
}

static tp_status done(void *arg, tp_ctx *c, tp_tensor *leaf) {
    tp_gradients *g = arg;
    int param = find(g, leaf);
    if (!alone(g) || param < 0) return TP_OK;
    sums *s = &g->sums[param];
    leaf->grad = &s->use[0].tree[0].sum;
    if (!g->opts.optimizer_in_bwd) return tp_optim_measure(g->o, param);
    tp_status st = tp_optim_move(g->o, g->step, param);
    leaf->grad = NULL;
    s->use[0].n = 0;
    tp_release(c, &s->use[0].tree[0].sum);
    return st;
}

static tp_tensor *partial(void *arg, const tp_tensor *leaf) {
    tp_gradients *g = arg;
    int param = alone(g) ? find(g, leaf) : -1;
    bool there = param >= 0 && g->sums[param].n && g->sums[param].use[0].n;
    return there ? &g->sums[param].use[0].tree[0].sum : NULL;
}

/* ---- a step ---------------------------------------------------------------------------------- */
tp_status tp_gradients_begin(tp_gradients *g, int64_t step, int64_t passes) {
    tp_ctx *c = g->c;
    if (c->status) return c->status;
    if (g->opts.optimizer_in_bwd && (passes != 1 || g->ranks != 1))
        return tp_fail(c, TP_EARG,
                       "train.optimizer_in_bwd needs the whole batch in one backward pass on one "
                       "rank, got %lld passes on %d ranks",
                       (long long)passes, g->ranks);
    tp_gradients_clear(g);
    g->step = step;
    g->passes = passes;
    g->pass = 0;
    tp_status st = tp_tape_on(c);
    tp_tape_off(c);
    tp_tape_sink(c, &g->sink);
    return st;
}

/* A bucket that waited for the next pass would hold whole gradients through it, which ZeRO 2 is
 * there to avoid. A failure stays in the ctx. */
void tp_gradients_pass(tp_gradients *g, int64_t samples) {
    if (g->ranks > 1 && g->zero_stage == 2) {
        tp_status st = launch(g);
        while (!st && g->retired < g->opened) st = retire(g);
    }
    g->pass++;
    g->samples = samples;
}

/* Adds up a parameter's uses, on what this rank is to move. */
static tp_status finish(tp_gradients *g, int i) {
    sums *s = &g->sums[i];
    tp_tensor *t = g->params->p[i].t;
    tp_range own = tp_optim_own(g->o, i);
    tp_status st = TP_OK;
    bool any = false;
    for (int j = 0; j < s->n && !st; j++) {
        use *u = &s->use[j];
        if (!u->n || (st = fold(g, u))) continue;
        tp_tensor part = u->tree[0].sum;
        if (tp_numel(&part) != own.n) { /* ZeRO 1: the rest of it is not the sum */
            part.ndim = 1;
            part.shape[0] = own.n;
            part.stride[0] = 1;
            if (part.data) part.data = tp_f32(&part) + own.first;
        }
        if (any)
            st = tp_add_(g->c, &s->grad, &part);
        else
            s->grad = part;
        any = true;
    }
    if (any) t->grad = &s->grad;
    return st;
}

tp_status tp_gradients_end(tp_gradients *g) {
    tp_tape_sink(g->c, NULL);
    tp_status st = g->c->status;
    if (g->opts.optimizer_in_bwd) return st;
    if (!st && g->ranks > 1) st = launch(g);
    while (!st && g->retired < g->opened) st = retire(g);
    for (int i = 0; i < g->params->n && !st; i++) st = finish(g, i);
    return st;
}

static void clear_use(tp_gradients *g, use *u) {
    for (int j = 0; j < u->n; j++) tp_release(g->c, &u->tree[j].sum);
    u->n = 0;
}

void tp_gradients_clear(tp_gradients *g) {
    if (!g) return;
    for (int i = 0; i < g->params->n; i++) {
        sums *s = &g->sums[i];
        for (int j = 0; j < s->n; j++) clear_use(g, &s->use[j]);
        s->n = 0;
        g->params->p[i].t->grad = NULL;
    }
    for (int b = 0; b <= IN_FLIGHT; b++) {
        for (int i = 0; i < g->bucket[b].n; i++) tp_release(g->c, &g->bucket[b].parcel[i].sum);
        g->bucket[b].n = 0;
        g->bucket[b].bytes = 0;
    }
    g->retired = g->opened;
    tp_optim_forget(g->o);
    tp_tape_sink(g->c, NULL);
}

/* ---- life ------------------------------------------------------------------------------------ */
tp_status tp_gradients_new(tp_gradients **out, tp_ctx *c, tp_optim *o,
                           const tp_gradients_opts *opts) {
    *out = NULL;
    if (c->status) return c->status;
    tp_gradients *g = tp_calloc(c, 1, sizeof *g);
    if (!g) return c->status;
    g->c = c;
    g->o = o;
    g->params = tp_optim_params(o);
    g->comm = tp_optim_comm(o, &g->zero_stage);
    g->ranks = g->comm ? tp_comm_size(g->comm) : 1;
    g->opts = *opts;
    g->sink = (tp_grad_sink){g, take, done, partial};
    if (!(g->sums = tp_calloc(c, (size_t)g->params->n + 1, sizeof *g->sums))) {
        tp_free(g);
        return c->status;
    }
    *out = g;
    return TP_OK;
}

void tp_gradients_free(tp_gradients *g) {
    if (!g) return;
    tp_gradients_clear(g);
    for (int i = 0; i < g->params->n; i++) {
        for (int j = 0; j < g->sums[i].cap; j++) tp_free(g->sums[i].use[j].tree);
        tp_free(g->sums[i].use);
    }
    for (int b = 0; b <= IN_FLIGHT; b++) {
        tp_free(g->bucket[b].parcel);
        tp_free(g->bucket[b].piece);
    }
    tp_free(g->sums);
    tp_free(g);
}
