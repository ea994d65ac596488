/* SGD with heavy-ball momentum; without momentum it keeps no state. */
#include "optim/inside.h"
#include "ops/sgd/sgd.h"

const char *const optim_sgd_slots[] = {"momentum_buffer", NULL};

tp_status optim_sgd_move(tp_optim *o, int i, const optim_move *m) {
    tp_tensor *p = optim_values(o, i);
    return tp_sgd_(o->c, p, o->state[i].slot[0].t, optim_grad(o, i),
                   &(tp_sgd_opts){.learning_rate = o->o.learning_rate * m->schedule,
                                  .momentum = o->o.momentum,
                                  .weight_decay = optim_decay(o, i),
                                  .grad_scale = m->grad_scale});
}
