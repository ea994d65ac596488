/* Owns an optimiser's life: which rule moves which parameter, its state, and the step. */
#include "optim/inside.h"
#include "core/ctx.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct rule {
    const char *const *slots;
    tp_status (*move)(tp_optim *o, int i, const optim_move *m);
} rule;

static rule rule_of(tp_optim_kind k) {
    switch (k) {
    case TP_OPTIM_MUON:
        return (rule){optim_muon_slots, optim_muon_move};
    case TP_OPTIM_SGD:
        return (rule){optim_sgd_slots, optim_sgd_move};
    case TP_OPTIM_ADAMW:
        break;
    }
    return (rule){optim_adamw_slots, optim_adamw_move};
}

/* Muon is for hidden matrices; AdamW takes embeddings, head, norms and biases beside it. */
static tp_optim_kind kind_for(const tp_optim_opts *o, const tp_param *p) {
    if (o->kind != TP_OPTIM_MUON) return o->kind;
    return (p->flags & TP_P_MATRIX) && p->t->ndim == 2 ? TP_OPTIM_MUON : TP_OPTIM_ADAMW;
}

/* ---- options -------------------------------------------------------------------------------- */
typedef struct bound {
    const char *name;
    double value, lo, hi; /* lo <= value < hi, or <= where hi_shut */
    bool hi_shut;
} bound;

static tp_status check_opts(tp_ctx *c, const tp_optim_opts *o) {
    const bound b[] = {
        {"learning_rate", o->learning_rate, 0, INFINITY},
        {"muon_learning_rate", o->muon_learning_rate, 0, INFINITY},
        {"adam_beta1", o->adam_beta1, 0, 1},
        {"adam_beta2", o->adam_beta2, 0, 1},
        {"adam_epsilon", o->adam_epsilon, 0, INFINITY},
        {"weight_decay", o->weight_decay, 0, INFINITY},
        {"muon_momentum", o->muon_momentum, 0, 1},
        {"momentum", o->momentum, 0, 1},
        {"max_grad_norm", o->max_grad_norm, 0, INFINITY},
        {"min_lr_ratio", o->min_lr_ratio, 0, 1, true},
        {"steps", (double)o->steps, 0, INFINITY},
        {"warmup_steps", (double)o->warmup_steps, 0, INFINITY},
        {"decay_steps", (double)o->decay_steps, 0, INFINITY},
        {"max_bad_steps", (double)o->max_bad_steps, 0, INFINITY},
        {"zero_stage", (double)o->zero_stage, 0, 2, true},
    };
    for (size_t i = 0; i < sizeof b / sizeof *b; i++)
        if (!(b[i].value >= b[i].lo &&
              (b[i].value < b[i].hi || (b[i].hi_shut && b[i].value <= b[i].hi))))
            return tp_fail(c, TP_EARG, "optimizer: %s must be in [%g,%g%c, got %g", b[i].name,
                           b[i].lo, b[i].hi, b[i].hi_shut ? ']' : ')', b[i].value);
    if ((unsigned)o->kind > TP_OPTIM_SGD || (unsigned)o->schedule > TP_CONSTANT)
        return tp_fail(c, TP_EARG, "optimizer: there is no kind %d with schedule %d", (int)o->kind,
                       (int)o->schedule);
    if (o->adam_state != TP_F32 && o->adam_state != TP_BF16)
        return tp_fail(c, TP_EARG, "optimizer: adam_state must be f32 or bf16, got %s",
                       tp_dtype_name(o->adam_state));
    if (o->kind != TP_OPTIM_SGD && !(o->adam_epsilon > 0))
        return tp_fail(c, TP_EARG, "optimizer: adam_epsilon must be positive, got %g",
                       o->adam_epsilon);
    return TP_OK;
}

static tp_status check_params(tp_ctx *c, const tp_params *params) {
    for (int i = 0; i < params->n; i++) {
        const tp_param *p = &params->p[i];
        if (!p->t || !p->name)
            return tp_fail(c, TP_EARG, "optimizer: parameter %d has no name or no tensor", i);
        if (p->t->dtype != TP_F32 && p->t->dtype != TP_F64)
            return tp_fail(c, TP_EDTYPE, "optimizer: %s must be f32 or f64, got %s", p->name,
                           tp_dtype_name(p->t->dtype));
        for (int j = 0; j < i; j++)
            if (params->p[j].t == p->t || !strcmp(params->p[j].name, p->name))
                return tp_fail(c, TP_EARG, "optimizer: %s and %s are one parameter listed twice",
                               params->p[j].name, p->name);
    }
    return TP_OK;
}

/* ---- life ----------------------------------------------------------------------------------- */
static tp_status add_slot(tp_optim *o, int i, const char *what) {
    tp_ctx *c = o->c;
    const tp_param *p = &o->params->p[i];
    optim_state *s = &o->state[i];
    size_t room = strlen(p->name) + strlen(what) + 2;
    optim_slot *slot = &s->slot[s->nslots];
    if (!(slot->name = tp_malloc(c, room))) return c->status;
    s->nslots++; /* from here on tp_optim_free frees the name */
    snprintf(slot->name, room, "%s.%s", p->name, what);
    const tp_tensor *like = s->whole ? p->t : &s->part;
    bool bf16 = s->rule == TP_OPTIM_ADAMW && o->o.adam_state == TP_BF16;
    tp_dtype dtype = bf16 ? TP_BF16 : p->t->dtype;
    if (!(slot->t = tp_tensor_keep(c, dtype, like->ndim, like->shape))) return c->status;
    o->nstate++;
    return tp_zero(c, slot->t);
}

static tp_status add_state(tp_optim *o) {
    tp_status st = TP_OK;
    for (int i = 0; i < o->params->n; i++) o->state[i].rule = kind_for(&o->o, &o->params->p[i]);
    if (!(st = optim_shards_new(o))) st = optim_squares_new(o);
    for (int i = 0; i < o->params->n && !st; i++) {
        if (o->state[i].rule == TP_OPTIM_SGD && o->o.momentum == 0) continue;
        const char *const *slots = rule_of(o->state[i].rule).slots;
        for (int j = 0; slots[j] && !st; j++) st = add_slot(o, i, slots[j]);
    }
    return st;
}

tp_status tp_optim_new(tp_optim **out, tp_ctx *c, tp_params *params, const tp_optim_opts *opts) {
    *out = NULL;
    if (c->status) return c->status;
    tp_status st = check_opts(c, opts);
    if (!st) st = check_params(c, params);
    if (st) return st;
    tp_optim *o = tp_calloc(c, 1, sizeof *o);
    if (!o) return c->status;
    *o = (tp_optim){.c = c, .params = params, .o = *opts, .comm = opts->comm};
    if (!(o->state = tp_calloc(c, (size_t)params->n + 1, sizeof *o->state)) || add_state(o)) {
        tp_optim_free(o);
        return c->status;
    }
    *out = o;
    return TP_OK;
}

void tp_optim_free(tp_optim *o) {
    if (!o) return;
    for (int i = 0; o->state && i < o->params->n; i++)
        for (int j = 0; j < o->state[i].nslots; j++) tp_free(o->state[i].slot[j].name);
    tp_free(o->state);
    tp_free(o->squares);
    tp_free(o->chunk);
    tp_free(o->gather);
    tp_free(o->wide);
    tp_free(o);
}

/* ---- the step ------------------------------------------------------------------------------- */
static tp_status bad_step(tp_optim *o, int64_t step, int bad) {
    tp_optim_counters *n = &o->counters;
    n->bad_in_a_row++;
    n->bad_total++;
    if (o->o.max_bad_steps == 0 || n->bad_in_a_row < o->o.max_bad_steps) return TP_OK;
    char before[64] = "";
    if (n->bad_in_a_row > 1)
        snprintf(before, sizeof before, ", after %lld skipped steps in a row",
                 (long long)n->bad_in_a_row - 1);
    return tp_fail(o->c, TP_ENUMERIC,
                   "optimizer: step %lld: the gradient of %s is not finite%s, and "
                   "train.max_bad_steps: %lld ends the run (a lower learning rate or a longer "
                   "warm-up may help)",
                   (long long)step + 1, o->params->p[bad].name, before,
                   (long long)o->o.max_bad_steps);
}

static tp_status check_grad(const tp_optim *o, int i) {
    const tp_param *p = &o->params->p[i];
    const tp_tensor *g = p->t->grad, *like = o->state[i].whole ? p->t : &o->state[i].part;
    if (g && (g->dtype != p->t->dtype || !tp_same_shape(g, like)))
        return tp_fail(o->c, TP_ESHAPE, "optimizer: the gradient of %s is %s for %s", p->name,
                       tp_shape_str(o->c, g), tp_shape_str(o->c, like));
    return TP_OK;
}

static tp_status move(tp_optim *o, int i, const optim_move *m) {
    o->state[i].moved = true;
    if (!o->state[i].own.n) return TP_OK;
    return rule_of(o->state[i].rule).move(o, i, m);
}

static tp_status move_all(tp_optim *o, int64_t step, tp_optim_report *r) {
    int bad = -1;
    tp_status st = TP_OK;
    for (int i = 0; i < o->params->n && !st; i++) st = tp_optim_measure(o, i);
    if (!st) st = optim_grad_norm(o, &r->grad_norm, &bad);
    if (st) return st;
    if (bad >= 0) {
        r->skipped = true;
        return bad_step(o, step, bad);
    }
    optim_move m = {tp_schedule_at(&o->o, step), 1, o->counters.updates + 1};
    if (o->o.max_grad_norm > 0 && r->grad_norm > o->o.max_grad_norm) {
        m.grad_scale = o->o.max_grad_norm / r->grad_norm;
        r->clipped = true;
    }
    for (int i = 0; i < o->params->n && !st; i++) {
        /* what no loss depends on stays as it is: decay alone would wear it away */
        if (!o->state[i].moved && o->params->p[i].t->grad) st = move(o, i, &m);
        if (!st) st = optim_share(o, i);
    }
    if (!st) st = optim_share_wait(o);
    if (st) return st;
    o->counters.updates++;
    o->counters.bad_in_a_row = 0;
    return TP_OK;
}

/* An update is no part of the function that the tape differentiates. */
typedef tp_status (*record_fn)(tp_ctx *, const struct tp_call *);
static record_fn unrecorded(tp_ctx *c) {
    record_fn was = c->record;
    c->record = NULL;
    return was;
}

tp_status tp_optim_measure(tp_optim *o, int i) {
    if (o->c->status) return o->c->status;
    if (o->state[i].measured) return TP_OK;
    record_fn record = unrecorded(o->c);
    tp_status st = check_grad(o, i);
    if (!st) st = optim_measure(o, i);
    o->c->record = record;
    return st;
}

void tp_optim_forget(tp_optim *o) {
    for (int i = 0; i < o->params->n; i++) o->state[i].measured = o->state[i].moved = false;
    o->ngather = 0;
    o->gather_bytes = 0;
}

void tp_optim_measured(tp_optim *o) {
    for (int i = 0; i < o->params->n; i++) o->state[i].measured = true;
}

tp_status tp_optim_move(tp_optim *o, int64_t step, int i) {
    tp_ctx *c = o->c;
    tp_status st = tp_optim_measure(o, i);
    int64_t first = o->chunk[i], n = o->chunk[i + 1] - first;
    if (!st && n && o->sums->data)
        st = tp_download_bytes(c, o->squares + first, tp_f64(o->sums) + first,
                               (size_t)n * sizeof(double));
    for (int64_t j = o->chunk[i]; j < o->chunk[i + 1] && !st; j++)
        if (!isfinite(o->squares[j]))
            st = tp_fail(
                c, TP_ENUMERIC,
                "optimizer: step %lld: the gradient of %s is not finite, and with "
                "train.optimizer_in_bwd other parameters have moved already: go on from the "
                "last checkpoint, without it or with a lower learning rate",
                (long long)step + 1, o->params->p[i].name);
    if (st) return st;
    optim_move m = {tp_schedule_at(&o->o, step), 1, o->counters.updates + 1};
    record_fn record = unrecorded(c);
    st = move(o, i, &m);
    c->record = record;
    return st;
}

tp_status tp_optim_step(tp_optim *o, int64_t step, tp_optim_report *r) {
    tp_ctx *c = o->c;
    *r = (tp_optim_report){.learning_rate = o->o.learning_rate * tp_schedule_at(&o->o, step)};
    if (c->status) return c->status;
    record_fn record = unrecorded(c);
    tp_status st = move_all(o, step, r);
    c->record = record;
    tp_optim_forget(o);
    r->bad_in_a_row = o->counters.bad_in_a_row;
    r->bad_total = o->counters.bad_total;
    return st;
}

tp_params *tp_optim_params(const tp_optim *o) { return o->params; }
tp_comm *tp_optim_comm(const tp_optim *o, int *zero_stage) {
    *zero_stage = optim_sharded(o) ? o->o.zero_stage : 0;
    return o->comm;
}

/* ---- state ---------------------------------------------------------------------------------- */
static const optim_slot *slot_at(const tp_optim *o, int at, int *param) {
    for (int i = 0; i < o->params->n; i++) {
        *param = i;
        if (at >= 0 && at < o->state[i].nslots) return &o->state[i].slot[at];
        at -= o->state[i].nslots;
    }
    return NULL;
}

int tp_optim_state_count(const tp_optim *o) { return o->nstate; }

const char *tp_optim_state_name(const tp_optim *o, int i) {
    int param;
    const optim_slot *s = slot_at(o, i, &param);
    return s ? s->name : NULL;
}

int tp_optim_state_param(const tp_optim *o, int i) {
    int param = -1;
    return slot_at(o, i, &param) ? param : -1;
}

tp_dtype tp_optim_state_dtype(const tp_optim *o, int i) {
    int param;
    return slot_at(o, i, &param)->t->dtype;
}

tp_status tp_optim_state_get(tp_optim *o, int i, void *whole) {
    int param;
    const tp_tensor *t = slot_at(o, i, &param)->t;
    const optim_state *s = &o->state[param];
    size_t each = tp_dtype_size(t->dtype);
    if (tp_download_bytes(o->c, (char *)whole + (size_t)s->own.first * each, t->data,
                          (size_t)s->own.n * each))
        return o->c->status;
    return optim_sharded(o) ? optim_gather_state(o, param, t->dtype, whole) : TP_OK;
}

void tp_optim_state_put(tp_optim *o, int i, const void *whole) {
    int param;
    tp_tensor *t = slot_at(o, i, &param)->t;
    const optim_state *s = &o->state[param];
    size_t each = tp_dtype_size(t->dtype);
    if (!s->own.n) return;
    tp_upload_bytes(o->c, t->data, (const char *)whole + (size_t)s->own.first * each,
                    (size_t)s->own.n * each);
    tp_touch(t);
}

tp_optim_counters *tp_optim_get_counters(tp_optim *o) { return &o->counters; }
