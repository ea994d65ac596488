/* The inside of an optimiser, shared by the files of optim/. */
#ifndef TP_OPTIM_INSIDE_H
#define TP_OPTIM_INSIDE_H
#include "optim/optim.h"

enum { OPTIM_SLOTS = 2 };
typedef struct optim_slot { /* one kept tensor of state, of the shape that this rank owns */
    char *name;
    tp_tensor *t;
} optim_slot;
typedef struct optim_state {
    tp_optim_kind rule; /* what moves this parameter */
    optim_slot slot[OPTIM_SLOTS];
    int nslots;
    tp_cut cut;           /* how the parameter is cut among the ranks */
    tp_range own;         /* what this rank moves; all of it without ZeRO */
    tp_tensor part;       /* that range of the parameter; unused where it is all */
    bool whole;           /* this rank owns all of it */
    bool measured, moved; /* in this step */
} optim_state;

struct tp_optim {
    tp_ctx *c;
    tp_params *params;
    tp_optim_opts o;
    tp_comm *comm;      /* NULL: this process alone */
    optim_state *state; /* one per parameter */
    int nstate;         /* slots in all */
    double *squares;  /* sums of squares of the gradients, a number per chunk of 4096 values … */
    tp_tensor *sums;  /* … where the device leaves them: one download for all … */
    int64_t *chunk;   /* … of parameter i from squares[chunk[i]] to squares[chunk[i+1]-1] */
    tp_piece *gather; /* the all-gather that is being put together */
    int ngather;
    size_t gather_bytes;
    int64_t ticket; /* of the last one started */
    float *wide;    /* bf16 state on its way */
    tp_optim_counters counters;
};

typedef struct optim_move { /* one update, the same for every parameter */
    double schedule;        /* factor on the peak learning rates */
    double grad_scale;      /* from clipping */
    int64_t update;         /* from 1 */
} optim_move;

/* The names of a rule's slots; NULL-terminated. */
extern const char *const optim_adamw_slots[], *const optim_muon_slots[], *const optim_sgd_slots[];
tp_status optim_adamw_move(tp_optim *o, int i, const optim_move *m);
tp_status optim_muon_move(tp_optim *o, int i, const optim_move *m);
tp_status optim_sgd_move(tp_optim *o, int i, const optim_move *m);
/* The values of parameter i that this rank moves, and their gradient (NULL: zero). */
static inline tp_tensor *optim_values(tp_optim *o, int i) {
    return o->state[i].whole ? o->params->p[i].t : &o->state[i].part;
}
static inline tp_tensor *optim_grad(tp_optim *o, int i) { return o->params->p[i].t->grad; }
/* Weight decay of parameter i: that of the options where the table says so. */
static inline double optim_decay(const tp_optim *o, int i) {
    return (o->params->p[i].flags & TP_P_DECAY) ? o->o.weight_decay : 0;
}
/* shard.c: ranks */
tp_status optim_shards_new(tp_optim *o);
bool optim_sharded(const tp_optim *o);
/* Parameter i was moved: its new values go to the other ranks. wait: all did. */
tp_status optim_share(tp_optim *o, int i);
tp_status optim_share_wait(tp_optim *o);
/* whole holds this rank's range of a state tensor of the parameter; then all of it. */
tp_status optim_gather_state(tp_optim *o, int param, tp_dtype dtype, void *whole);
/* clip.c */
tp_status optim_squares_new(tp_optim *o);
/* Fills the chunks of parameter i that this rank owns. */
tp_status optim_measure(tp_optim *o, int i);
/* The length of all gradients together, after optim_measure of each; *bad: the first parameter
 * whose own is not finite, or -1. */
tp_status optim_grad_norm(tp_optim *o, double *norm, int *bad);
#endif
