/* The inside of the tape, shared by the files of autograd/. */
#ifndef TP_TAPE_H
#define TP_TAPE_H
#include "autograd/autograd.h"
#include "core/ctx.h"

/* lesson: node */
typedef struct tp_node {
    tp_call call;
    tp_tensor *dout[TP_MAXOUT]; /* cotangents gathered so far */
    uint32_t in_version[TP_MAXIN], out_version[TP_MAXOUT];
    bool differentiable; /* holds saved tensors, will be walked */
    bool reached;        /* on a path from a wanted input */
    tp_fn replay;        /* checkpoint nodes */
    void *replay_arg;
    uint32_t replay_stream;
} tp_node;
/* end */

typedef struct tp_leaf {
    tp_tensor *t, *g; /* g: gathered in this walk */
    int pending;      /* calls still to be walked that read t */
    int uses;         /* gradients of this walk that the sink has taken */
    bool wanted;      /* by tp_grad */
} tp_leaf;

typedef struct tp_tape {
    tp_node *node;
    int n, cap;
    tp_leaf *leaf;
    int nleaf, cap_leaf;
    tp_tensor **numbered; /* leaves that were given an id for printing */
    int nnumbered, cap_numbered, next_id;
    const tp_grad_sink *sink;
    const tp_tape_watch *watch;
    int walking;         /* the call whose vjp is running, plus one; 0: none is */
    bool trace, to_grad; /* to_grad: a walk of tp_backward is under way */
} tp_tape;

extern const tp_op op_checkpoint;
tp_tape *tp_tape_of(tp_ctx *c); /* NULL before tp_tape_on */
tp_status tp_tape_append(tp_ctx *c, const tp_call *k, bool differentiable);
void tp_node_drop(tp_ctx *c, tp_node *n); /* lets go of what it saved */
void tp_tape_see(tp_ctx *c, int at);      /* shows call `at` to the watch */
/* Shows what t has gathered. */
void tp_tape_see_grad(tp_ctx *c, const tp_tensor *t);
/* Walks nodes [lo, hi) from the end. Leaves' sums are flushed when complete if `to_grad`. */
typedef struct tp_walk {
    int lo, hi;
    bool create_graph, retain, to_grad;
} tp_walk;
tp_status tp_tape_walk(tp_ctx *c, const tp_walk *w);
tp_status tp_gather(tp_ctx *c, const tp_walk *w, tp_tensor *t, tp_tensor *g, const char *op);
tp_status tp_node_check(tp_ctx *c, const tp_node *n, int at); /* nothing saved has changed */
/* Makes `scope` the ctx's scope name; the old one goes to name, its length is returned. */
int tp_scope_swap(tp_ctx *c, const char *scope, char *name);
void tp_scope_swap_back(tp_ctx *c, const char *name, int len);
tp_tensor *tp_tape_partial(tp_ctx *c, const tp_tensor *t); /* for vjps: tp_ctx.grad_partial */
tp_leaf *tp_leaf_of(tp_ctx *c, tp_tensor *t, bool make);
tp_status tp_checkpoint_walk(tp_ctx *c, const tp_walk *outer, int at);
#endif
