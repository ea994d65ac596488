/* AdamW: the first and second moment of every gradient. */
#include "optim/inside.h"
#include "ops/adamw/adamw.h"

const char *const optim_adamw_slots[] = {"exp_avg", "exp_avg_sq", NULL};

tp_status optim_adamw_move(tp_optim *o, int i, const optim_move *m) {
    tp_tensor *p = optim_values(o, i);
    const optim_slot *slot = o->state[i].slot;
    return tp_adamw_(o->c, p, slot[0].t, slot[1].t, optim_grad(o, i),
                     &(tp_adamw_opts){.learning_rate = o->o.learning_rate * m->schedule,
                                      .beta1 = o->o.adam_beta1,
                                      .beta2 = o->o.adam_beta2,
                                      .epsilon = o->o.adam_epsilon,
                                      .weight_decay = optim_decay(o, i),
                                      .grad_scale = m->grad_scale,
                                      .update = m->update,
                                      .stream = i,
                                      .offset = o->state[i].own.first});
}
