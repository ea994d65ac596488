/* Owns the array of calls: recording, what is saved, and letting go of it. */
#include "autograd/tape.h"
#include <string.h>

tp_tape *tp_tape_of(tp_ctx *c) { return c->tape; }

static bool grow(tp_ctx *c, void **items, int *cap, int need, size_t size) {
    if (need <= *cap) return true;
    int wider = *cap ? 2 * *cap : 256;
    void *p = tp_realloc(c, *items, (size_t)wider * size);
    if (!p) return false;
    *items = p;
    *cap = wider;
    return true;
}

/* ---- ids, only when somebody will print ----------------------------------------------------- */
static tp_status number(tp_ctx *c, tp_tape *t, const tp_call *k) {
    for (int i = 0; i < k->nin; i++) {
        tp_tensor *x = k->in[i];
        if (!x || x->id) continue;
        if (!grow(c, (void **)&t->numbered, &t->cap_numbered, t->nnumbered + 1, sizeof x))
            return c->status;
        t->numbered[t->nnumbered++] = x;
        x->id = ++t->next_id;
    }
    for (int i = 0; i < k->nout; i++) k->out[i]->id = ++t->next_id;
    return TP_OK;
}

/* ---- saved tensors -------------------------------------------------------------------------- */
static bool saves(const tp_call *k, bool out, int i) {
    if (out) return k->out[i] && ((k->op->saves_out >> i) & 1);
    return k->in[i] && ((k->op->saves_in >> i) & 1);
}

static void hold(tp_node *n) {
    tp_call *k = &n->call;
    for (int i = 0; i < k->nin; i++)
        if (saves(k, false, i)) {
            tp_storage_retain(k->in[i]->storage);
            n->in_version[i] = k->in[i]->storage->version;
        }
    for (int i = 0; i < k->nout; i++)
        if (saves(k, true, i)) {
            tp_storage_retain(k->out[i]->storage);
            n->out_version[i] = k->out[i]->storage->version;
        }
}

void tp_node_drop(tp_ctx *c, tp_node *n) {
    if (!n->differentiable) return;
    n->differentiable = false;
    tp_call *k = &n->call;
    for (int i = 0; i < k->nin; i++)
        if (saves(k, false, i)) tp_storage_drop(c, k->in[i]->storage);
    for (int i = 0; i < k->nout; i++)
        if (saves(k, true, i)) tp_storage_drop(c, k->out[i]->storage);
}

/* ---- watching ------------------------------------------------------------------------------- */
void tp_tape_watch_by(tp_ctx *c, const tp_tape_watch *w) {
    if (c->tape) ((tp_tape *)c->tape)->watch = w;
}

void tp_tape_see(tp_ctx *c, int at) {
    const tp_tape *t = c->tape;
    const tp_node *n = &t->node[at];
    if (t->watch && t->watch->call)
        t->watch->call(t->watch->arg, &n->call, at, t->walking - 1, n->differentiable);
}

void tp_tape_see_grad(tp_ctx *c, const tp_tensor *x) {
    const tp_tape *t = c->tape;
    if (!t->watch || !t->watch->grad || c->status) return;
    const tp_tensor *sum = x->node >= 0 ? t->node[x->node].dout[x->out] : NULL;
    for (int i = 0; i < t->nleaf && x->node < 0; i++)
        if (t->leaf[i].t == x) sum = t->leaf[i].g;
    if (sum) t->watch->grad(t->watch->arg, x, sum);
}

/* ---- recording ------------------------------------------------------------------------------ */
tp_status tp_tape_append(tp_ctx *c, const tp_call *k, bool differentiable) {
    tp_tape *t = c->tape;
    if (!grow(c, (void **)&t->node, &t->cap, t->n + 1, sizeof *t->node)) return c->status;
    tp_node *n = &t->node[t->n];
    memset(n, 0, sizeof *n);
    n->call = *k;
    if (t->trace) {
        tp_status st = number(c, t, k);
        if (st) return st;
        n->call.scope = tp_arena_printf(c, "%s", c->scope);
    } else if (differentiable) {
        n->call.scope = c->scope_len ? tp_arena_printf(c, "%s", c->scope) : "";
    }
    if (c->status) return c->status;
    if (differentiable) {
        n->differentiable = true;
        hold(n);
        for (int i = 0; i < k->nout; i++)
            if (k->out[i]->requires_grad) {
                k->out[i]->node = t->n;
                k->out[i]->out = i;
            }
    }
    tp_tape_see(c, t->n++);
    return c->status;
}

static tp_status record(tp_ctx *c, const tp_call *k) {
    tp_tape *t = c->tape;
    bool differentiable = false;
    for (int i = 0; i < k->nout; i++) differentiable |= k->out[i]->requires_grad;
    differentiable &= c->recording;
    if (!differentiable && !t->trace) return TP_OK;
    return tp_tape_append(c, k, differentiable);
}

static void tape_end(tp_ctx *c) {
    tp_tape *t = c->tape;
    for (int i = 0; i < t->n; i++) tp_node_drop(c, &t->node[i]);
    for (int i = 0; i < t->nnumbered; i++) t->numbered[i]->id = 0;
    t->n = t->nleaf = t->nnumbered = t->next_id = 0;
    t->watch = NULL;
    t->walking = 0;
}

static void tape_free(tp_ctx *c) {
    tp_tape *t = c->tape;
    if (!t) return;
    tp_free(t->node);
    tp_free(t->leaf);
    tp_free(t->numbered);
    tp_free(t);
    c->tape = NULL;
}

tp_status tp_tape_on(tp_ctx *c) {
    if (c->status) return c->status;
    if (!c->tape) {
        if (!(c->tape = tp_calloc(c, 1, sizeof(tp_tape)))) return c->status;
        c->record = record;
        c->grad_partial = tp_tape_partial;
        c->tape_end = tape_end;
        c->tape_free = tape_free;
    }
    c->recording = true;
    return TP_OK;
}

void tp_tape_off(tp_ctx *c) { c->recording = false; }

tp_status tp_tape_trace(tp_ctx *c, bool on) {
    bool was = c->recording;
    tp_status st = tp_tape_on(c);
    if (st) return st;
    c->recording = was;
    ((tp_tape *)c->tape)->trace = on;
    return TP_OK;
}

int tp_tape_length(const tp_ctx *c) { return c->tape ? ((tp_tape *)c->tape)->n : 0; }

int tp_scope_swap(tp_ctx *c, const char *scope, char *name) {
    int len = c->scope_len;
    memcpy(name, c->scope, sizeof c->scope);
    c->scope_len = 0;
    for (; scope && scope[c->scope_len] && c->scope_len < (int)sizeof c->scope - 1; c->scope_len++)
        c->scope[c->scope_len] = scope[c->scope_len];
    c->scope[c->scope_len] = 0;
    return len;
}

void tp_scope_swap_back(tp_ctx *c, const char *name, int len) {
    memcpy(c->scope, name, sizeof c->scope);
    c->scope_len = len;
}

tp_tensor *tp_require_grad(tp_tensor *t) {
    if (t) t->requires_grad = true;
    return t;
}

tp_tensor *tp_detach(tp_ctx *c, tp_tensor *t) { return tp_tensor_view(c, t); }
