/* The inside of an optimiser, shared by the files of optim/. */
#ifndef TP_OPTIM_INSIDE_H
#define TP_OPTIM_INSIDE_H
#include "optim/optim.h"

enum { OPTIM_SLOTS = 2 };
typedef struct optim_slot { /* one kept tensor of state, of its parameter's shape */
    char *name;
    tp_tensor *t;
} optim_slot;
typedef struct optim_state {
    tp_optim_kind rule; /* what moves this parameter */
    optim_slot slot[OPTIM_SLOTS];
    int nslots;
} optim_state;

struct tp_optim {
    tp_ctx *c;
    tp_params *params;
    tp_optim_opts o;
    optim_state *state; /* one per parameter */
    int nstate;         /* slots in all */
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
/* Weight decay of parameter i: that of the options where the table says so. */
static inline double optim_decay(const tp_optim *o, int i) {
    return (o->params->p[i].flags & TP_P_DECAY) ? o->o.weight_decay : 0;
}
/* The length of all gradients together; *bad: the first parameter whose own is not finite, or -1.
 */
tp_status optim_grad_norm(tp_optim *o, double *norm, int *bad);
#endif
