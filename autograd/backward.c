/* Owns the walk back: who gets which cotangent, where sums go, and when memory is let go. */
#include "autograd/tape.h"
#include "ops/add/add.h"
#include "ops/cast/cast.h"
#include "ops/fill/fill.h"
#include <string.h>

/* ---- leaves --------------------------------------------------------------------------------- */
tp_leaf *tp_leaf_of(tp_ctx *c, tp_tensor *t, bool make) {
    tp_tape *tape = c->tape;
    for (int i = 0; i < tape->nleaf; i++)
        if (tape->leaf[i].t == t) return &tape->leaf[i];
    if (!make) return NULL;
    if (tape->nleaf == tape->cap_leaf) {
        int cap = tape->cap_leaf ? 2 * tape->cap_leaf : 256;
        tp_leaf *grown = tp_realloc(c, tape->leaf, (size_t)cap * sizeof *grown);
        if (!grown) return NULL;
        tape->leaf = grown;
        tape->cap_leaf = cap;
    }
    tape->leaf[tape->nleaf] = (tp_leaf){.t = t};
    return &tape->leaf[tape->nleaf++];
}

/* Where a leaf's ->grad grows when no sink takes gradients. The first sum gives its bytes away;
 * those of later walks are added in the order they come (a sink keeps to the tree over samples). */
static tp_status accumulate(tp_ctx *c, tp_tensor *leaf, tp_tensor *g) {
    if (leaf->grad) return tp_add_(c, leaf->grad, g);
    if (!leaf->grad_header) {
        leaf->grad_header = tp_tensor_keep(c, TP_F32, 1, (int64_t[]){0});
        if (!leaf->grad_header) return c->status;
        leaf->grad_header->storage = NULL;
    }
    tp_tensor *h = leaf->grad_header;
    *h = *g;
    h->node = -1;
    h->requires_grad = false;
    tp_storage_retain(h->storage);
    leaf->grad = h;
    return TP_OK;
}

void tp_zero_grad(tp_ctx *c, tp_tensor *const leaf[], int n) {
    for (int i = 0; i < n; i++) {
        if (!leaf[i]->grad) continue;
        tp_storage_drop(c, leaf[i]->grad->storage);
        leaf[i]->grad = NULL;
    }
}

static bool alone(const tp_tensor *g) { return g->storage->refs == 1 && tp_contiguous(g); }

/* Who keeps a gradient must be alone with its bytes: later sums are made in place. */
static tp_tensor *unshared(tp_ctx *c, tp_tensor *g) {
    if (alone(g)) return g;
    tp_tensor *own = tp_full_like(c, g, 0);
    if (!own || tp_add_(c, own, g)) return NULL;
    tp_release(c, g);
    return own;
}

/* The leaf's gradient of this walk is complete. */
static tp_status flush(tp_ctx *c, tp_leaf *l) {
    const tp_grad_sink *sink = ((tp_tape *)c->tape)->sink;
    if (l->wanted) return TP_OK;
    if (sink) {
        bool any = l->uses > 0;
        l->uses = 0;
        return any && sink->done ? sink->done(sink->arg, c, l->t) : TP_OK;
    }
    if (!l->g) return TP_OK;
    tp_tensor *g = l->g;
    l->g = NULL;
    if (!l->t->grad && !(g = unshared(c, g))) return c->status;
    tp_status st = accumulate(c, l->t, g);
    tp_release(c, g);
    return st;
}

static tp_status give(tp_ctx *c, tp_leaf *l, tp_tensor *g) {
    const tp_grad_sink *sink = ((tp_tape *)c->tape)->sink;
    if (!(g = unshared(c, g))) return c->status;
    tp_status st = sink->take(sink->arg, c, l->t, l->uses++, g);
    tp_release(c, g);
    return st;
}

void tp_tape_sink(tp_ctx *c, const tp_grad_sink *sink) {
    if (c->tape) ((tp_tape *)c->tape)->sink = sink;
}

/* What the tensor has gathered so far, where a vjp may add to it in place. What a checkpoint wants
 * of its inputs counts as well: in bf16 a sum in place rounds once, and replaying must change no
 * bit. */
tp_tensor *tp_tape_partial(tp_ctx *c, const tp_tensor *t) {
    tp_tape *tape = c->tape;
    tp_tensor *sum = NULL;
    if (!t || !tape->to_grad) return NULL;
    if (t->node >= 0) {
        sum = tape->node[t->node].dout[t->out];
        return sum && !sum->released && alone(sum) && sum->dtype == t->dtype ? sum : NULL;
    }
    const tp_leaf *l = NULL;
    for (int i = 0; i < tape->nleaf && !l; i++)
        if (tape->leaf[i].t == t) l = &tape->leaf[i];
    if (tape->sink && !(l && l->wanted))
        return tape->sink->partial ? tape->sink->partial(tape->sink->arg, t) : NULL;
    return l && l->g && alone(l->g) && l->g->dtype == t->dtype ? l->g : NULL;
}

/* ---- gathering ------------------------------------------------------------------------------ */
static tp_status sum_into(tp_ctx *c, const tp_walk *w, tp_tensor **slot, tp_tensor *g) {
    if (!*slot) {
        *slot = g;
        return TP_OK;
    }
    tp_tensor *old = *slot;
    if (old->dtype != g->dtype) { /* the wider of the two */
        tp_tensor **narrow = old->dtype == TP_BF16 ? slot : &g, *wide = tp_cast(c, *narrow, TP_F32);
        if (!wide) return c->status;
        if (!w->create_graph) tp_release(c, *narrow);
        *narrow = wide;
        old = *slot;
    }
    if (!w->create_graph && alone(old)) {
        tp_status st = tp_add_(c, old, g);
        tp_release(c, g);
        return st;
    }
    tp_tensor *sum = tp_add(c, old, g);
    if (!sum) return c->status;
    *slot = sum;
    if (!w->create_graph) {
        tp_release(c, old);
        tp_release(c, g);
    }
    return TP_OK;
}

/* Adds cotangent g, which the slot then owns, to what t has gathered. Sums over a batch (gradients
 * of weights) come in f32 for bf16 tensors as well. */
tp_status tp_gather(tp_ctx *c, const tp_walk *w, tp_tensor *t, tp_tensor *g, const char *op) {
    bool f32 = t->dtype == TP_BF16 && g->dtype == TP_F32;
    if (!tp_same_shape(t, g) || (t->dtype != g->dtype && !f32))
        return tp_fail(c, TP_EINTERNAL, "%s: its vjp made %s for an input of %s", op,
                       tp_shape_str(c, g), tp_shape_str(c, t));
    tp_tape *tape = c->tape;
    if (t->node >= 0) return sum_into(c, w, &tape->node[t->node].dout[t->out], g);
    tp_leaf *l = tp_leaf_of(c, t, true);
    if (l && w->to_grad && tape->sink && !l->wanted) return give(c, l, g);
    return l ? sum_into(c, w, &l->g, g) : c->status;
}

tp_status tp_node_check(tp_ctx *c, const tp_node *n, int at) {
    const tp_call *k = &n->call;
    for (int i = 0; i < k->nin + k->nout; i++) {
        bool out = i >= k->nin;
        int j = out ? i - k->nin : i;
        const tp_tensor *t = out ? k->out[j] : k->in[j];
        unsigned mask = out ? k->op->saves_out : k->op->saves_in;
        if (!t || !((mask >> j) & 1)) continue;
        if (t->storage->version != (out ? n->out_version[j] : n->in_version[j]))
            return tp_fail(c, TP_ESTATE,
                           "%s (node %d%s%s): its saved %s %d was changed in place after the "
                           "forward pass",
                           k->op->name, at, k->scope && *k->scope ? ", " : "",
                           k->scope ? k->scope : "", out ? "output" : "input", j);
    }
    return TP_OK;
}

/* Saved tensors may have left their scope: their bytes are held by the node, so for the length of
 * the vjp they may be used again. What was not saved stays refused. */
static void reopen(tp_call *k, bool released[TP_MAXIN + TP_MAXOUT], bool enter) {
    for (int i = 0; i < k->nin + k->nout; i++) {
        bool out = i >= k->nin;
        int j = out ? i - k->nin : i;
        tp_tensor *t = out ? k->out[j] : k->in[j];
        if (!t || !(((out ? k->op->saves_out : k->op->saves_in) >> j) & 1)) continue;
        if (enter) {
            released[i] = t->released;
            t->released = false;
        } else {
            t->released = released[i];
        }
    }
}

static bool wanted(tp_ctx *c, const tp_walk *w, const tp_tensor *t) {
    if (!t || !t->requires_grad) return false;
    tp_tape *tape = c->tape;
    if (w->to_grad && t->node >= 0 && t->node < w->lo) {
        tp_fail(c, TP_ESTATE,
                "checkpoint: its function reads a tensor that is not among its inputs");
        return false;
    }
    if (w->to_grad) return true;
    if (t->node >= 0) return t->node >= w->lo && tape->node[t->node].reached;
    for (int i = 0; i < tape->nleaf; i++)
        if (tape->leaf[i].t == t) return tape->leaf[i].wanted;
    return false;
}

/* A cotangent that the vjp handed on rather than made gets a header of its own. */
static tp_tensor *own_header(tp_ctx *c, const tp_call *k, tp_tensor *const dout[],
                             tp_tensor *const din[], int i) {
    bool shared = false;
    for (int j = 0; j < k->nout; j++) shared |= din[i] == dout[j];
    for (int j = 0; j < i; j++) shared |= din[i] == din[j];
    for (int j = 0; j < k->nin; j++) shared |= din[i] == k->in[j];
    for (int j = 0; j < k->nout; j++) shared |= din[i] == k->out[j];
    if (!shared) return din[i];
    tp_tensor *v = tp_tensor_view(c, din[i]);
    if (!v) return NULL;
    v->requires_grad = din[i]->requires_grad;
    v->node = din[i]->node;
    v->out = din[i]->out;
    v->id = din[i]->id;
    return v;
}

/* The cotangents of a walked call's outputs are done with, save those that tp_grad was asked for.
 */
static void let_go(tp_ctx *c, int at) {
    tp_tape *tape = c->tape;
    tp_node *n = &tape->node[at];
    for (int i = 0; i < n->call.nout; i++) {
        bool asked = false;
        for (int l = 0; l < tape->nleaf; l++)
            asked |= tape->leaf[l].wanted && tape->leaf[l].t == n->call.out[i];
        if (asked) continue;
        if (n->dout[i]) tp_release(c, n->dout[i]);
        n->dout[i] = NULL;
    }
}

/* What a walk that failed has gathered: the next one would add to it. */
static void let_go_all(tp_ctx *c, int from, int to) {
    for (int at = to - 1; at >= from; at--) let_go(c, at);
}

/* Whether all that the call's vjp makes goes to the sink, which keeps what nobody else holds. */
static bool all_for_sink(tp_ctx *c, const tp_walk *w, const tp_call *k) {
    tp_tape *tape = c->tape;
    if (!tape->sink || !w->to_grad || w->create_graph) return false;
    for (int i = 0; i < k->nin; i++) {
        if (!tp_wants(k, i)) continue;
        tp_leaf *l = k->in[i]->node < 0 ? tp_leaf_of(c, k->in[i], false) : NULL;
        if (!l || l->wanted) return false;
    }
    return true;
}

static tp_status run_vjp(tp_ctx *c, const tp_walk *w, int at) {
    tp_tape *tape = c->tape;
    tp_call k = tape->node[at].call; /* a copy: the array may move while the vjp records */
    tp_tensor *dout[TP_MAXOUT], *din[TP_MAXIN] = {0};
    memcpy(dout, tape->node[at].dout, sizeof dout);
    k.wants = 0;
    k.last = !w->retain && !w->create_graph;
    for (int i = 0; i < k.nin; i++) k.wants |= (unsigned)wanted(c, w, k.in[i]) << i;
    if (!k.wants || c->status) return c->status;
    if (!k.op->vjp)
        return tp_fail(c, TP_ESTATE, "%s: no gradient goes through it: %s", k.op->name,
                       k.op->no_vjp);
    tp_status st = tp_node_check(c, &tape->node[at], at);
    if (st) return st;
    bool released[TP_MAXIN + TP_MAXOUT] = {0};
    reopen(&k, released, true);
    char name[sizeof c->scope];
    int name_len = tp_scope_swap(c, k.scope, name);
    tp_scope s = tp_scope_open(c, "%s", "");
    int walking = tape->walking;
    tape->walking = at + 1;
    k.op->vjp(&k, dout, din);
    tp_tensor *keep[TP_MAXIN] = {0};
    for (int i = 0; i < k.nin && !c->status; i++)
        if (din[i] && ((k.wants >> i) & 1)) keep[i] = own_header(c, &k, dout, din, i);
    /* with create_graph, what the vjp computed is part of a graph that may be walked again */
    if (!w->create_graph) tp_scope_close_n(c, s, keep, k.nin);
    tp_scope_swap_back(c, name, name_len);
    reopen(&k, released, false);
    if (k.last) tp_node_drop(c, &tape->node[at]); /* what a leaf now keeps is no longer shared */
    /* A gradient that is handed on (cast's, of a weight whose sums are f32) goes with its bytes. */
    if (all_for_sink(c, w, &k)) let_go(c, at);
    for (int i = 0; i < k.nin && !c->status; i++)
        if (keep[i]) tp_gather(c, w, k.in[i], keep[i], k.op->name);
    tape->walking = walking;
    for (int i = 0; i < k.nin; i++)
        if ((k.wants >> i) & 1) tp_tape_see_grad(c, k.in[i]);
    return c->status;
}

/* After a call was walked, leaves that no other call reads are complete. */
static tp_status settle(tp_ctx *c, const tp_walk *w, const tp_call *k) {
    if (!w->to_grad) return TP_OK;
    for (int i = 0; i < k->nin; i++) {
        if (!k->in[i] || k->in[i]->node >= 0 || !k->in[i]->requires_grad) continue;
        tp_leaf *l = tp_leaf_of(c, k->in[i], false);
        if (l && --l->pending == 0 && flush(c, l)) return c->status;
    }
    return c->status;
}

static tp_status count_readers(tp_ctx *c, const tp_walk *w) {
    tp_tape *tape = c->tape;
    for (int n = w->lo; n < w->hi; n++) {
        if (!tape->node[n].differentiable) continue;
        for (int i = 0; i < tape->node[n].call.nin; i++) {
            tp_tensor *t = tape->node[n].call.in[i];
            if (!t || t->node >= 0 || !t->requires_grad) continue;
            tp_leaf *l = tp_leaf_of(c, t, true);
            if (!l) return c->status;
            l->pending++;
        }
    }
    return TP_OK;
}

/* A cotangent has come to a call that saved nothing any more. Where it is to go on from there, a
 * gradient would be left out. */
static tp_status check_dropped(tp_ctx *c, const tp_walk *w, int at) {
    const tp_call *k = &((tp_tape *)c->tape)->node[at].call;
    const char *op = k->op->name;
    bool lost = false;
    for (int i = 0; i < k->nin; i++) lost |= wanted(c, w, k->in[i]);
    if (!lost) return TP_OK;
    return tp_fail(c, TP_ESTATE,
                   "%s: an earlier walk of this tape freed what it had saved; walk from several "
                   "tensors at once (tp_backward_from), or keep the saved ones (retain_graph)",
                   op);
}

tp_status tp_tape_walk(tp_ctx *c, const tp_walk *w) {
    tp_tape *tape = c->tape;
    bool was_recording = c->recording, was_backward = c->backward, was_to_grad = tape->to_grad;
    tp_status st = w->to_grad ? count_readers(c, w) : TP_OK;
    tape->to_grad = w->to_grad && !w->create_graph;
    c->recording = w->create_graph;
    c->backward = true;
    /* lesson: walk */
    for (int at = w->hi - 1; at >= w->lo && !st; at--) {
        bool any = false;
        for (int i = 0; i < tape->node[at].call.nout; i++) any |= tape->node[at].dout[i] != NULL;
        any &= w->to_grad || tape->node[at].reached;
        if (!tape->node[at].differentiable) {
            if (any) st = check_dropped(c, w, at);
            continue;
        }
        if (any) st = tape->node[at].replay ? tp_checkpoint_walk(c, w, at) : run_vjp(c, w, at);
        tp_call k = tape->node[at].call;
        if (!st) st = settle(c, w, &k);
        if (!w->create_graph) let_go(c, at);
        if (!w->retain && !w->create_graph) tp_node_drop(c, &tape->node[at]);
    }
    /* end */
    if (st && !w->create_graph) let_go_all(c, w->lo, w->hi);
    c->recording = was_recording;
    c->backward = was_backward;
    tape->to_grad = was_to_grad;
    return st ? st : c->status;
}

static tp_status seed(tp_ctx *c, const tp_walk *w, tp_tensor *y, tp_tensor *dy) {
    bool made = !dy;
    if (dy && (dy->dtype != y->dtype || !tp_same_shape(dy, y)))
        return tp_fail(c, dy->dtype != y->dtype ? TP_EDTYPE : TP_ESHAPE,
                       "%s: dy is %s for a tensor of %s", w->to_grad ? "backward" : "grad",
                       tp_shape_str(c, dy), tp_shape_str(c, y));
    if (made)
        dy = tp_full_like(c, y, 1);
    else
        dy = tp_tensor_view(c, dy);
    if (dy && !tp_gather(c, w, y, dy, made ? "backward" : "grad")) tp_tape_see_grad(c, y);
    return c->status;
}

static tp_status check_root(tp_ctx *c, const tp_tensor *y, bool scalar, const char *who) {
    if (c->status) return c->status;
    if (!y) return tp_fail(c, TP_EARG, "%s: there is no tensor to differentiate", who);
    if (!c->tape || !y->requires_grad)
        return tp_fail(c, TP_ESTATE,
                       "%s: nothing recorded leads to this tensor; call tp_tape_on before the "
                       "forward pass and tp_require_grad on a leaf",
                       who);
    if (scalar && tp_numel(y) != 1)
        return tp_fail(c, TP_ESHAPE, "%s: a gradient starts from one number, got %s", who,
                       tp_shape_str(c, y));
    return TP_OK;
}

tp_status tp_backward_from(tp_ctx *c, int n, tp_tensor *const y[], tp_tensor *const dy[]) {
    tp_status st = TP_OK;
    for (int i = 0; i < n && !st; i++) st = check_root(c, y[i], !dy, "backward");
    if (st) return st;
    tp_tape *tape = c->tape;
    tp_walk w = {.hi = tape->n, .to_grad = true};
    tape->nleaf = 0;
    bool was = c->recording, was_backward = c->backward;
    c->recording = false;
    c->backward = true;
    for (int i = 0; i < n && !st; i++) st = seed(c, &w, y[i], dy ? dy[i] : NULL);
    c->recording = was;
    c->backward = was_backward;
    if (st) let_go_all(c, 0, tape->n); /* the tensors before a wrong one were given theirs */
    if (!st) st = tp_tape_walk(c, &w);
    for (int i = 0; i < tape->nleaf && !st; i++) st = flush(c, &tape->leaf[i]);
    tape->nleaf = 0;
    return st;
}

tp_status tp_backward(tp_ctx *c, tp_tensor *loss) { return tp_backward_from(c, 1, &loss, NULL); }

/* Marks the calls that lie on a path from a wanted tensor: the others' vjps are never run. */
static tp_status mark(tp_ctx *c, int n, tp_tensor *const x[]) {
    tp_tape *tape = c->tape;
    tape->nleaf = 0;
    for (int i = 0; i < n; i++) {
        tp_leaf *l = tp_leaf_of(c, x[i], true);
        if (!l) return c->status;
        l->wanted = true;
    }
    for (int at = 0; at < tape->n; at++) {
        tp_node *nd = &tape->node[at];
        nd->reached = false;
        memset(nd->dout, 0, sizeof nd->dout);
        for (int i = 0; i < nd->call.nin; i++) {
            const tp_tensor *t = nd->call.in[i];
            if (!t || !t->requires_grad) continue;
            bool asked = t->node >= 0 && tape->node[t->node].reached;
            for (int l = 0; l < n && !asked; l++) asked = x[l] == t;
            nd->reached |= asked;
        }
        /* a call whose own output is wanted must gather it, even if nothing before it is */
        for (int i = 0; i < nd->call.nout; i++)
            for (int l = 0; l < n; l++) nd->reached |= x[l] == nd->call.out[i];
    }
    return TP_OK;
}

tp_status tp_grad(tp_ctx *c, tp_tensor *y, tp_tensor *dy, int n, tp_tensor *const x[],
                  tp_tensor *dx[], const tp_grad_opts *opts) {
    static const tp_grad_opts none = {0};
    const tp_grad_opts *o = opts ? opts : &none;
    for (int i = 0; i < n; i++) dx[i] = NULL;
    tp_status st = check_root(c, y, !dy, "grad");
    if (st) return st;
    tp_tape *tape = c->tape;
    for (int i = 0; i < n; i++)
        if (!x[i] || !x[i]->requires_grad)
            return tp_fail(c, TP_EARG, "grad: input %d does not require a gradient", i);
    if ((st = mark(c, n, x))) return st;
    tp_walk w = {.hi = tape->n, .create_graph = o->create_graph, .retain = o->retain_graph};
    bool was = c->recording;
    c->recording = o->create_graph;
    st = seed(c, &w, y, dy);
    c->recording = was;
    if (!st) st = tp_tape_walk(c, &w);
    for (int i = 0; i < n && !st; i++) {
        if (x[i]->node >= 0)
            dx[i] = tape->node[x[i]->node].dout[x[i]->out];
        else
            dx[i] = tp_leaf_of(c, x[i], false)->g;
    }
    for (int at = 0; at < tape->n; at++) memset(tape->node[at].dout, 0, sizeof tape->node[at].dout);
    tape->nleaf = 0;
    return st;
}
