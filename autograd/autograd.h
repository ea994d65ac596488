/* autograd: a tape of calls, and the walk back along it.
 *
 * The tape is an append-only array of the ops that ran, in the order they ran; that order is
 * topological, so backward is a loop from the end. Every derivative is itself made of ops, so the
 * backward pass can be printed like the forward pass and differentiated again. */
#ifndef TP_AUTOGRAD_H
#define TP_AUTOGRAD_H
#include "ops/op.h"
#ifdef __cplusplus
extern "C" {
#endif

/* ---- recording ------------------------------------------------------------------------------ */
tp_status tp_tape_on(tp_ctx *c); /* record from here on, until tp_tape_off or the ctx ends */
void tp_tape_off(tp_ctx *c);     /* compute without recording; what was recorded stays */
tp_tensor *tp_require_grad(tp_tensor *t);      /* a leaf whose gradient is wanted; returns t */
tp_tensor *tp_detach(tp_ctx *c, tp_tensor *t); /* the same bytes as a constant */
int tp_tape_length(const tp_ctx *c);

/* ---- gradients ------------------------------------------------------------------------------ */
/* Adds d loss / d leaf into leaf->grad for every leaf with requires_grad. loss has one element.
 * The tape's saved tensors are freed on the way, all of them: a later walk that comes to a call
 * recorded before is refused with TP_ESTATE. Several losses: tp_backward_from. */
tp_status tp_backward(tp_ctx *c, tp_tensor *loss);
/* The same from several tensors at once, each weighted by its dy of the same shape and dtype. */
tp_status tp_backward_from(tp_ctx *c, int n, tp_tensor *const y[], tp_tensor *const dy[]);
/* Forgets the gradients of these leaves; their bytes go back to the pool. */
void tp_zero_grad(tp_ctx *c, tp_tensor *const leaf[], int n);

/* Where gradients go other than ->grad: sums over micro-batches and ranks in a fixed order, updates
 * made during the walk. The forward pass may use a leaf more than once (tied embeddings); its uses
 * come one by one, numbered in the order of the walk, so that each can be summed on its own. */
typedef struct tp_grad_sink {
    void *arg;
    /* Use number `use` of the leaf gave g: dense, alone with its bytes. The sink retains g's
     * storage to keep it. */
    tp_status (*take)(void *arg, tp_ctx *c, tp_tensor *leaf, int use, tp_tensor *g);
    /* After the leaf's last use in this walk; may be NULL. */
    tp_status (*done)(void *arg, tp_ctx *c, tp_tensor *leaf);
    /* The leaf's sum so far, where the next use may be added to it in place (take is then not
     * called for that use), or NULL; may be NULL. */
    tp_tensor *(*partial)(void *arg, const tp_tensor *leaf);
} tp_grad_sink;
/* Sends the gradients of every tp_backward from here on to the sink, which must outlive them.
 * NULL: to ->grad again. After tp_tape_on. */
void tp_tape_sink(tp_ctx *c, const tp_grad_sink *sink);

typedef struct tp_grad_opts {
    bool create_graph; /* record the backward pass too: the results can be differentiated again */
    bool retain_graph; /* keep the saved tensors for another walk (create_graph implies it) */
} tp_grad_opts;
/* dx[i] = d y / d x[i], a step tensor (NULL where y does not depend on x[i]), for y of any shape
 * weighted by dy (NULL: ones, y then has one element). Leaves' ->grad is not touched.
 * The walk visits only calls on a path from some x to y. */
tp_status tp_grad(tp_ctx *c, tp_tensor *y, tp_tensor *dy, int n, tp_tensor *const x[],
                  tp_tensor *dx[], const tp_grad_opts *opts);

/* ---- recomputation -------------------------------------------------------------------------- */
typedef tp_tensor *(*tp_fn)(tp_ctx *c, void *arg, tp_tensor *const in[], int nin);
/* Runs y = fn(in) and records one node: nothing computed inside is saved, the walk back runs fn
 * again first (Chen et al. 2016, arXiv 1604.06174). Random numbers are counter-based, so the replay
 * draws the same ones. arg must stay valid until the backward pass. */
tp_tensor *tp_checkpoint(tp_ctx *c, tp_fn fn, void *arg, tp_tensor *const in[], int nin);

/* ---- looking -------------------------------------------------------------------------------- */
/* After tp_tape_trace(c, true) the backward pass is written down as well (its tensors are not
 * held). */
tp_status tp_tape_trace(tp_ctx *c, bool on);
/* One line per call, forward then backward, through `line` (no newline at its end). */
void tp_tape_print(tp_ctx *c, void (*line)(void *arg, const char *text), void *arg);
/* Sees every call right after it ran, and every gradient as it grows, while their bytes are there;
 * what it needs later it copies. It may fail the ctx. After tp_tape_trace, so that all have ids. */
typedef struct tp_tape_watch {
    void *arg;
    /* at: its place on the tape. of: the place of the call whose vjp ran it; -1: none did. saves:
     * it holds what its op's saves_in and saves_out name until the walk back has passed it. */
    void (*call)(void *arg, const tp_call *k, int at, int of, bool saves);
    /* What t has gathered so far, after a vjp that gave it something. */
    void (*grad)(void *arg, const tp_tensor *t, const tp_tensor *sum);
} tp_tape_watch;
void tp_tape_watch_by(tp_ctx *c,
                      const tp_tape_watch *w); /* which must outlive the tape; NULL: off */
/* A call's attributes as they are printed, "eps=1e-05, causal"; "" if it has none to tell. */
void tp_call_attrs(const tp_call *k, char *out, size_t cap);

/* ---- checking ------------------------------------------------------------------------------- */
typedef tp_status (*tp_many_fn)(tp_ctx *c, void *arg, tp_tensor *const in[], int nin,
                                tp_tensor *out[TP_MAXOUT], int *nout);
typedef struct tp_gradcheck_result {
    double worst;    /* largest error over the scale of the gradient; NaN if anything was NaN */
    double largest;  /* largest gradient seen: 0 means that nothing was tested */
    int64_t checked; /* directional derivatives compared */
    int input;       /* where the worst one was */
} tp_gradcheck_result;
/* Compares the tape's gradient of fn, its outputs weighted by fixed random numbers, with a
 * five-point difference in float64, along coordinates (all of them up to 48 an input, else a spread
 * of them) and random directions. in[] are f64 leaves; those with requires_grad are checked.
 * Outputs that do not require a gradient are left out. */
tp_status tp_gradcheck(tp_ctx *c, tp_many_fn fn, void *arg, tp_tensor *const in[], int nin,
                       tp_gradcheck_result *r);

#ifdef __cplusplus
}
#endif
#endif
