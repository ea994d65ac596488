/* Which rank moves what (ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054). From stage 1 on each
 * rank keeps the optimiser's state of its own shard of every parameter, moves that, and hands the
 * new values to the others. Rules that work on single values cut a parameter evenly, in whole
 * chunks of the gradient norm; Muon needs its matrix whole, so a matrix has one owner. */
#include "core/ctx.h"
#include "ops/sum_squares/sum_squares.h"
#include "optim/inside.h"
#include <string.h>

bool optim_sharded(const tp_optim *o) {
    return o->comm && o->o.zero_stage > 0 && tp_comm_size(o->comm) > 1;
}

/* Muon's matrices, each to the rank that has the fewest values so far. */
static tp_status deal_matrices(tp_optim *o) {
    int ranks = tp_comm_size(o->comm);
    int64_t *load = tp_calloc(o->c, (size_t)ranks, sizeof *load);
    if (!load) return o->c->status;
    for (int i = 0; i < o->params->n; i++) {
        if (o->state[i].rule != TP_OPTIM_MUON) continue;
        int least = 0;
        for (int r = 1; r < ranks; r++)
            if (load[r] < load[least]) least = r;
        o->state[i].cut.owner = least;
        load[least] += tp_numel(o->params->p[i].t);
    }
    tp_free(load);
    return TP_OK;
}

tp_status optim_shards_new(tp_optim *o) {
    bool sharded = optim_sharded(o);
    tp_status st = TP_OK;
    for (int i = 0; i < o->params->n; i++)
        o->state[i].cut = (tp_cut){tp_numel(o->params->p[i].t), TP_SQUARES_CHUNK, -1};
    if (sharded) st = deal_matrices(o);
    for (int i = 0; i < o->params->n && !st; i++) {
        optim_state *s = &o->state[i];
        const tp_tensor *t = o->params->p[i].t;
        s->own = sharded ? tp_comm_shard(o->comm, &s->cut, tp_comm_rank(o->comm))
                         : (tp_range){0, s->cut.n};
        s->whole = s->own.n == s->cut.n;
        s->part = *t;
        s->part.ndim = 1;
        s->part.shape[0] = s->own.n;
        s->part.stride[0] = 1;
        if (t->data)
            s->part.data = (char *)t->data + (size_t)s->own.first * tp_dtype_size(t->dtype);
    }
    if (!st && sharded) o->gather = tp_calloc(o->c, (size_t)o->params->n + 1, sizeof *o->gather);
    return st ? st : o->c->status;
}

const tp_cut *tp_optim_cut(const tp_optim *o, int i) { return &o->state[i].cut; }
tp_range tp_optim_own(const tp_optim *o, int i) { return o->state[i].own; }

/* ---- new values for the other ranks --------------------------------------------------------- */
/* Small parameters travel together. What comes from a device lies in a buffer on its way, so there
 * only some of them are under way at a time, the same every step. */
enum { SHARE_BYTES = 4 << 20, IN_FLIGHT = 4 };

static tp_status send_group(tp_optim *o) {
    if (!o->ngather) return TP_OK;
    int64_t ticket = tp_comm_start(o->comm, o->c, TP_ALLGATHER, o->gather, o->ngather);
    o->ngather = 0;
    o->gather_bytes = 0;
    if (!ticket) return tp_error_status(o->c);
    o->ticket = ticket;
    bool crowded = o->c->backend && ticket > IN_FLIGHT;
    return crowded ? tp_comm_wait(o->comm, o->c, ticket - IN_FLIGHT) : TP_OK;
}

tp_status optim_share(tp_optim *o, int i) {
    if (!optim_sharded(o)) return TP_OK;
    tp_tensor *t = o->params->p[i].t;
    tp_touch(t);
    o->gather[o->ngather++] = (tp_piece){t->data, o->state[i].cut, o->c->backend != NULL};
    o->gather_bytes += (size_t)tp_numel(t) * sizeof(float);
    return o->gather_bytes < SHARE_BYTES ? TP_OK : send_group(o);
}

tp_status optim_share_wait(tp_optim *o) {
    if (!optim_sharded(o)) return TP_OK;
    tp_status st = send_group(o);
    return st ? st : tp_comm_wait(o->comm, o->c, o->ticket);
}

/* The communicator moves f32, and the bits of what is shorter (bf16 state) fit into one. */
tp_status optim_gather_state(tp_optim *o, int param, tp_dtype dtype, void *whole) {
    const tp_cut *cut = &o->state[param].cut;
    tp_ctx *c = o->c;
    float *f = whole;
    uint16_t *half = whole;
    if (dtype != TP_F32 && dtype != TP_BF16)
        return tp_fail(c, TP_EDTYPE, "optimizer: %s state cannot be gathered from the ranks",
                       tp_dtype_name(dtype));
    if (dtype == TP_BF16) { /* kept until tp_optim_free: a move that failed may still write to it */
        tp_free(o->wide);
        if (!(f = o->wide = tp_malloc(c, ((size_t)cut->n + 1) * sizeof *f)))
            return tp_error_status(c);
        for (int64_t i = 0; i < cut->n; i++) f[i] = half[i];
    }
    int64_t ticket = tp_comm_start(o->comm, c, TP_ALLGATHER, &(tp_piece){f, *cut, false}, 1);
    tp_status st = ticket ? tp_comm_wait(o->comm, c, ticket) : tp_error_status(c);
    for (int64_t i = 0; dtype == TP_BF16 && i < cut->n && !st; i++) half[i] = (uint16_t)f[i];
    return st;
}
