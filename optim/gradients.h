/* gradients: where the gradients of a step are summed, so that the sum's bits do not depend on how
 * the batch was split.
 *
 * The samples of a global batch are the leaves of one binary tree, that of a binary counter: push a
 * sample, merge neighbours of equal size (left + right), and at the end merge what is left from the
 * right. Inside one backward pass the ops walk it (a power of two of samples from an aligned place
 * is a subtree); here whole passes are merged; between ranks the communicator continues. Each use
 * that the forward pass makes of a parameter (tied embeddings: head and table) has a tree of its
 * own, and the uses are added at the end, in order.
 *
 * With several ranks the sums travel while the backward pass goes on, small ones together. ZeRO 2
 * sums over the ranks after every pass and keeps this rank's shard only; else once, after the last
 * pass. */
#ifndef TP_GRADIENTS_H
#define TP_GRADIENTS_H
#include "autograd/autograd.h"
#include "optim/optim.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_gradients tp_gradients;
typedef struct tp_gradients_opts {
    size_t bucket_bytes;   /* gradients travel together up to this; 0: each on its own */
    bool optimizer_in_bwd; /* move a parameter as soon as its gradient is complete, and let go of
                              it: one pass, one rank, no clipping */
} tp_gradients_opts;

/* For the parameters, ranks and ZeRO stage of o, which must outlive it. */
tp_status tp_gradients_new(tp_gradients **out, tp_ctx *c, tp_optim *o,
                           const tp_gradients_opts *opts);
void tp_gradients_free(tp_gradients *g);
/* The step's backward passes on this rank are `passes`; gradients of the step before are forgotten.
 * From here on tp_backward gives to g (tp_tape_sink), until tp_gradients_end. */
tp_status tp_gradients_begin(tp_gradients *g, int64_t step, int64_t passes);
/* Before each pass: the number of samples it holds. */
void tp_gradients_pass(tp_gradients *g, int64_t samples);
/* One of the pass's gradients, dense, if another context's tape made it (its bytes are copied):
 * use number `use` of parameter number `param` (tp_grad_sink). For steps of several passes. */
tp_status tp_gradients_give(tp_gradients *g, int param, int use, const tp_tensor *grad);
/* After the last: every parameter's ->grad is what tp_optim_step wants. */
tp_status tp_gradients_end(tp_gradients *g);
/* Forgets the gradients; their bytes go back to the pool. After a failure too: the step may then be
 * taken again. */
void tp_gradients_clear(tp_gradients *g);

#ifdef __cplusplus
}
#endif
#endif
