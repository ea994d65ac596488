/* What a recorded step was, for those who draw it: its calls in order, its tensors and, where
 * values are wanted, what was in them and in their gradients after each call. The engine is watched
 * while it works, so nothing here is computed a second time. */
#ifndef TP_CLI_TAPE_H
#define TP_CLI_TAPE_H
#include "autograd/autograd.h"
#include "cli/trainer.h"
#include <stdio.h>

enum { TAPE_BINS = 24, TAPE_WHOLE = 256, TAPE_ROWS = 4, TAPE_COLUMNS = 16 };

/* A tensor's values at one moment: all of them, or a corner and statistics. */
typedef struct tape_values {
    int64_t count, zeros, bad; /* bad: NaN and infinite ones, which the statistics leave out */
    int rows, columns;         /* kept, of a matrix of count / last dimension rows */
    double *kept;              /* rows*columns, until the step ends */
    double min, max, mean, deviation;
    int32_t bin[TAPE_BINS]; /* of equal width from min to max; empty where all values are kept */
} tape_values;

typedef struct tape_tensor {
    const tp_tensor *t; /* its header stays until the step ends; its bytes do not */
    int made;           /* the call that made it; -1: it was there */
    int same_as;        /* a constant that shares the bytes of this tensor; 0: none */
    bool wanted;        /* somebody may want its gradient */
    int first, now;     /* values at first sight, of what no call made; the newest; -1: none */
    size_t bytes;
} tape_tensor;

typedef struct tape_call {
    const tp_op *op;
    const char *kernel, *attrs, *scope;
    int nin, nout, in[TP_MAXIN], out[TP_MAXOUT]; /* ids; 0: absent */
    int of;                                      /* the call whose vjp ran it; -1: forward */
    bool backward;                               /* it ran on the way back */
    bool again;                                  /* and repeats the forward pass (checkpointing) */
    unsigned saved_in, saved_out;                /* what it holds for its vjp */
    size_t memory, high; /* bytes in use once it had run; the pool's top while it ran */
    double flops;
} tape_call;

/* After call `at`, tensor `id` holds `values`; grad: its gradient does, in tensor `grad` (0: it
 * has no number). */
typedef struct tape_event {
    int at, id, grad, values;
} tape_event;

typedef struct tape_routes { /* of a routed block, (B,T) each: the first B sequences of `of` */
    const char *scope;
    int64_t B, T, of;
    int32_t *taken;
    double *score;
} tape_routes;

typedef struct tape_log {
    tp_ctx *c;
    bool keep; /* values */
    int whole; /* tensors up to this size are kept whole */
    bool back; /* the walk back has begun */
    tape_call *call;
    tape_tensor *tensor; /* by id, from 1 */
    tape_values *values;
    tape_event *write, *grad; /* in the order of calls */
    tape_routes *route;
    int n_calls, n_tensors, n_values, n_writes, n_grads, n_routes;
    int cap_calls, cap_tensors, cap_values, cap_writes, cap_grads, cap_routes;
    tp_tape_watch watch;
    size_t at_rest, peak; /* bytes before the step, and the pool's most */
    double loss;          /* NaN without values */
} tape_log;

/* Forward and backward over the rows of b, watched. What the log points to lives until tp_step_end.
 * c: a fresh ctx, t: its model. targets: as in tp_trainer_loss. */
tp_status tape_log_step(tape_log *l, tp_trainer *t, const tp_batch *b, int64_t targets);
void tape_log_free(tape_log *l);
/* "blk3" of "blk3.attn.rope"; the length. */
int tape_block(const char *scope);

/* ---- what is made of it --------------------------------------------------------------------- */
/* A picture: forward goes down on the left, backward comes up on the right. */
void tape_svg(const tape_log *l, FILE *f, const char *title);
/* The same graph for Graphviz. */
void tape_dot(const tape_log *l, FILE *f, const char *title);
typedef struct tape_page {
    const char *title;   /* the config's name */
    const char *weights; /* where values come from, in words; NULL: there are none */
    const char *why_not; /* why there are none */
    const char **piece;  /* of each id of the first (B,T) input, its text; NULL: not known */
    int64_t n_pieces;
} tape_page;
void tape_html(const tape_log *l, FILE *f, const tape_page *p);
#endif
