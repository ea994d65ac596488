/* Muon, for matrices between hidden layers: the direction is the momentum made orthogonal, so that
 * every singular direction moves by the same amount. Per block of out x in values it is scaled by
 *   sqrt(max(1, out/in))         (Jordan): the largest change of a unit's output is then alike, or
 *   0.2 sqrt(max(out, in))       (Moonlight, arXiv 2502.16982): entries move as far as AdamW's, so
 *                                that one learning rate and weight decay fit both. */
#include "optim/inside.h"
#include "ops/muon/muon.h"
#include "ops/sgd/sgd.h"
#include <math.h>

const char *const optim_muon_slots[] = {"momentum_buffer", NULL};

static double muon_scale(const tp_optim *o, const tp_param *p, int blocks) {
    double out = (double)p->t->shape[p->out_first ? 0 : 1] / blocks;
    double in = (double)p->t->shape[p->out_first ? 1 : 0];
    if (o->o.muon_match_adamw) return 0.2 * sqrt(out > in ? out : in);
    return out > in && in > 0 ? sqrt(out / in) : 1;
}

tp_status optim_muon_move(tp_optim *o, int i, const optim_move *m) {
    const tp_param *p = &o->params->p[i];
    tp_ctx *c = o->c;
    int blocks = p->blocks > 0 ? p->blocks : 1;
    tp_scope s = tp_scope_open(c, "%s", "muon");
    tp_tensor *u = tp_momentum_(c, o->state[i].slot[0].t, p->t->grad,
                                &(tp_momentum_opts){.momentum = o->o.muon_momentum,
                                                    .grad_scale = m->grad_scale,
                                                    .nesterov = true});
    u = tp_newton_schulz(c, u,
                         &(tp_newton_schulz_opts){.blocks = blocks, .dim = p->out_first ? 0 : 1});
    double scale = muon_scale(o, p, blocks);
    tp_status st = tp_sgd_(c, p->t, NULL, u,
                           &(tp_sgd_opts){.learning_rate = o->o.muon_learning_rate * m->schedule,
                                          .weight_decay = optim_decay(o, i),
                                          .grad_scale = scale});
    tp_scope_close(c, s, NULL);
    return st;
}
