/* Owns the way of the device's memory to and from the communicator, which adds up on the CPU: out
 * into a buffer of pinned host memory when a call begins, back from there when its caller waits for
 * it. Only what other ranks need goes out, and only what came from them comes back.
 *
 * Steps are alike, so the buffers of the first serve all others; a move takes the smallest one that
 * it fits into. */
#include "core/ctx.h"
#include "core/device.h"
#include "dist/comm.h"
#include <stdio.h>

enum { ALIGN = 256 }; /* bytes: where a piece begins in the buffer */

static bool travels(const tp_piece *p) { return p->on_device && p->cut.n > 0; }
static size_t room_of(const tp_piece *p) {
    size_t bytes = (size_t)p->cut.n * sizeof *p->data;
    return travels(p) ? (bytes + ALIGN - 1) / ALIGN * ALIGN : 0;
}

/* ---- buffers --------------------------------------------------------------------------------- */
static void load_free(tp_load *l) {
    if (!l) return;
    if (l->carry) l->backend->carry_free(l->carry);
    tp_free(l->piece);
    tp_free(l->part);
    tp_free(l);
}

void tp_loads_free(tp_comm *m) {
    tp_load *lists[] = {m->loaded, m->unloaded};
    for (int i = 0; i < 2; i++)
        for (tp_load *next, *l = lists[i]; l; l = next) {
            next = l->next;
            load_free(l);
        }
    m->loaded = m->loaded_last = m->unloaded = NULL;
}

static tp_load *load_new(tp_ctx *c, size_t bytes) {
    tp_load *l = tp_calloc(c, 1, sizeof *l);
    if (!l) return NULL;
    l->backend = c->backend;
    if (!c->backend->carry_new(&l->carry, c, bytes)) return l;
    load_free(l);
    return NULL;
}

/* The smallest free one that is large enough; else a new one. */
static tp_load *load_take(tp_comm *m, tp_ctx *c, size_t bytes) {
    tp_load **best = NULL;
    for (tp_load **at = &m->unloaded; *at; at = &(*at)->next)
        if ((*at)->backend == c->backend && (*at)->carry->bytes >= bytes &&
            (!best || (*at)->carry->bytes < (*best)->carry->bytes))
            best = at;
    if (!best) return load_new(c, bytes);
    tp_load *l = *best;
    *best = l->next;
    return l;
}

static void give_back(tp_comm *m, tp_load *l) {
    l->next = m->unloaded;
    m->unloaded = l;
}

static tp_status make_room(tp_ctx *c, tp_load *l, int n) {
    if (n <= l->cap) return TP_OK;
    tp_piece *piece = tp_realloc(c, l->piece, (size_t)n * sizeof *piece);
    if (!piece) return tp_error_status(c);
    l->piece = piece;
    tp_carry_part *part = tp_realloc(c, l->part, 2 * (size_t)n * sizeof *part);
    if (!part) return tp_error_status(c);
    l->part = part;
    l->cap = n;
    return TP_OK;
}

/* ---- which parts ----------------------------------------------------------------------------- */
/* Values [from,to) of a piece that lies at `at` in the buffer. */
static void part_add(tp_load *l, const tp_piece *p, size_t at, int64_t from, int64_t to) {
    if (to <= from) return;
    l->part[l->nparts++] = (tp_carry_part){p->data + from, at + (size_t)from * sizeof *p->data,
                                           (size_t)(to - from) * sizeof *p->data};
}

static void parts(tp_load *l, const tp_comm *m, tp_move move, const tp_piece *piece, int n,
                  bool out) {
    size_t at = 0;
    l->nparts = 0;
    for (int i = 0; i < n; at += room_of(&piece[i++])) {
        const tp_piece *p = &piece[i];
        if (!travels(p)) continue;
        tp_range own = tp_comm_shard(m, &p->cut, m->rank);
        if (move == (out ? TP_ALLGATHER : TP_REDUCE_SCATTER)) {
            part_add(l, p, at, own.first, own.first + own.n);
        } else if (move == TP_ALLGATHER) { /* this rank's range is what it was */
            part_add(l, p, at, 0, own.first);
            part_add(l, p, at, own.first + own.n, p->cut.n);
        } else {
            part_add(l, p, at, 0, p->cut.n);
        }
    }
}

/* ---- out and back ---------------------------------------------------------------------------- */
tp_status tp_load_out(tp_load **out, tp_comm *m, tp_ctx *c, tp_move move, const tp_piece *piece,
                      int n) {
    size_t bytes = 0;
    *out = NULL;
    for (int i = 0; i < n; i++) bytes += room_of(&piece[i]);
    if (!bytes) return TP_OK;
    if (!c->backend)
        return tp_fail(c, TP_EARG, "rank %d starts a move on a device that it does not have",
                       m->rank);
    tp_load *l = load_take(m, c, bytes);
    if (!l) return tp_error_status(c);
    tp_status st = make_room(c, l, n);
    if (!st) {
        parts(l, m, move, piece, n, true);
        st = c->backend->carry_out(c, l->carry, l->part, l->nparts);
    }
    if (st) {
        give_back(m, l);
        return st;
    }
    parts(l, m, move, piece, n, false);
    char *at = l->carry->host;
    for (int i = 0; i < n; at += room_of(&piece[i++])) {
        l->piece[i] = piece[i];
        if (travels(&piece[i])) l->piece[i].data = (float *)(void *)at;
    }
    *out = l;
    return TP_OK;
}

void tp_load_joins(tp_comm *m, tp_load *l, int64_t number) {
    if (!l) return;
    if (!number) {
        give_back(m, l);
        return;
    }
    l->number = number;
    l->next = NULL;
    if (m->loaded_last)
        m->loaded_last->next = l;
    else
        m->loaded = l;
    m->loaded_last = l;
}

tp_status tp_loads_in(tp_comm *m, tp_ctx *c, int64_t number) {
    tp_status st = TP_OK;
    while (!st && m->loaded && m->loaded->number <= number) {
        tp_load *l = m->loaded;
        st = l->backend->carry_in(c, l->carry, l->part, l->nparts);
        m->loaded = l->next;
        if (!m->loaded) m->loaded_last = NULL;
        give_back(m, l);
    }
    return st;
}

/* ---- on the thread --------------------------------------------------------------------------- */
tp_status tp_load_arrives(tp_comm *m, const tp_job *j) {
    char why[TP_SENTENCE_BYTES / 2] = "";
    const tp_load *l = j->load;
    tp_arrival a = TP_ARRIVED;
    for (int turns = 0; l; tp_control_pause(&turns)) {
        a = l->backend->carry_arrived(l->carry, why, sizeof why);
        if (a != TP_UNDER_WAY) break;
        if (tp_control_turn(m)) return TP_EIO;
    }
    if (a == TP_ARRIVED) return TP_OK;
    return tp_comm_break(m, TP_EIO, false, "rank %d (%s): %s", m->rank, m->t->host[m->rank], why);
}
