/* Owns recomputation: one node that stands for a whole function and replays it on the way back. */
#include "autograd/tape.h"
#include <string.h>

static tp_status checkpoint_infer(tp_call *k) {
    return tp_refuse(k, TP_EINTERNAL, "is not run as an op");
}

static void checkpoint_vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    (void)k, (void)dout, (void)din; /* the walk calls tp_checkpoint_walk instead */
}

const tp_op op_checkpoint = {
    .name = "checkpoint",
    .synopsis = "y = fn(x), computed again on the way back",
    .infer = checkpoint_infer,
    .vjp = checkpoint_vjp,
    .saves_in = (1u << TP_MAXIN) - 1,
};

tp_tensor *tp_checkpoint(tp_ctx *c, tp_fn fn, void *arg, tp_tensor *const in[], int nin) {
    if (c->status) return NULL;
    if (nin < 1 || nin > TP_MAXIN) {
        tp_fail(c, TP_EARG, "checkpoint: 1 to %d inputs, got %d", TP_MAXIN, nin);
        return NULL;
    }
    bool recording = c->recording;
    uint32_t stream = c->stream;
    c->recording = false;
    tp_scope s = tp_scope_open(c, "%s", "");
    tp_tensor *y = fn(c, arg, in, nin);
    tp_scope_close(c, s, y);
    c->recording = recording;
    if (!y || !recording) return y;
    tp_call k = {.ctx = c, .op = &op_checkpoint, .nin = nin, .nout = 1};
    memcpy(k.in, in, (size_t)nin * sizeof *in);
    k.out[0] = y;
    y->requires_grad = true;
    if (tp_tape_append(c, &k, true)) return NULL;
    tp_tape *tape = c->tape;
    tp_node *n = &tape->node[tape->n - 1];
    n->replay = fn;
    n->replay_arg = arg;
    n->replay_stream = stream;
    return y;
}

/* Replays the function onto the end of the tape, walks that piece, and takes it off again. */
tp_status tp_checkpoint_walk(tp_ctx *c, const tp_walk *outer, int at) {
    tp_tape *tape = c->tape;
    if (outer->create_graph || !outer->to_grad)
        return tp_fail(c, TP_ESTATE,
                       "checkpoint (node %d): only tp_backward walks through it; for tp_grad or "
                       "second-order gradients leave model.activation_checkpointing off",
                       at);
    tp_node n = tape->node[at];
    int start = tape->n;
    int walking = tape->walking;
    uint32_t stream = c->stream;
    tp_tensor *in[TP_MAXIN] = {0}, *keep[TP_MAXIN] = {0};
    if (tp_node_check(c, &n, at)) return c->status;
    char name[sizeof c->scope];
    int name_len = tp_scope_swap(c, n.call.scope, name);
    tp_scope s = tp_scope_open(c, "%s", "");
    tape->walking = at + 1;
    for (int i = 0; i < n.call.nin; i++) {
        if (!n.call.in[i]) continue;
        if (!(in[i] = tp_tensor_view(c, n.call.in[i]))) return c->status;
        in[i]->requires_grad = n.call.in[i]->requires_grad;
        in[i]->id = n.call.in[i]->id;
        tp_leaf *l = tp_leaf_of(c, in[i], true);
        if (!l) return c->status;
        l->wanted = true; /* its sum goes on to the tape outside, not to ->grad */
    }
    c->recording = true;
    c->backward = false;
    c->stream = n.replay_stream;
    tp_tensor *y = n.replay(c, n.replay_arg, in, n.call.nin);
    c->stream = stream;
    c->recording = false;
    c->backward = true;
    if (!y) return c->status;
    tp_walk w = *outer;
    w.lo = start;
    w.hi = tape->n;
    if (y->requires_grad && y->node >= start) {
        tp_tensor *dy = tp_tensor_view(c, n.dout[0]);
        if (!dy || tp_gather(c, &w, y, dy, "checkpoint") || tp_tape_walk(c, &w)) return c->status;
    }
    for (int i = 0; i < n.call.nin; i++) {
        tp_leaf *l = in[i] ? tp_leaf_of(c, in[i], false) : NULL;
        if (!l) continue;
        keep[i] = l->g;
        *l = (tp_leaf){0}; /* this header is about to go */
    }
    for (int i = start; i < tape->n; i++) tp_node_drop(c, &tape->node[i]);
    if (!tape->trace) tape->n = start;
    tp_scope_close_n(c, s, keep, n.call.nin);
    tp_scope_swap_back(c, name, name_len);
    for (int i = 0; i < n.call.nin && !c->status; i++)
        if (keep[i] && !tp_gather(c, outer, n.call.in[i], keep[i], "checkpoint"))
            tp_tape_see_grad(c, n.call.in[i]);
    tape->walking = walking;
    return c->status;
}
