/* Owns the rows and lanes of a tape's picture. */
#include "cli/tape_ladder.h"
#include "core/ctx.h"
#include <stdlib.h>
#include <string.h>

enum { FOLD_ABOVE = 64 }; /* calls of a forward pass: then blocks like an earlier one are folded */

/* ---- rows ----------------------------------------------------------------------------------- */
static int block_end(const ladder *d, int at) {
    const char *scope = d->l->call[at].scope;
    int n = tape_block(scope), to = at + 1;
    for (; to < d->calls; to++) {
        const char *s = d->l->call[to].scope;
        if (*s && (tape_block(s) != n || strncmp(s, scope, (size_t)n) != 0)) break;
    }
    return to;
}

/* Whether two runs of calls are the same operations in the same parts of a block. */
static bool alike(const ladder *d, int a, int a_end, int b, int b_end) {
    if (a_end - a != b_end - b) return false;
    for (int i = 0; i < a_end - a; i++) {
        const tape_call *p = &d->l->call[a + i], *q = &d->l->call[b + i];
        if (p->op != q->op ||
            strcmp(p->scope + tape_block(p->scope), q->scope + tape_block(q->scope)))
            return false;
    }
    return true;
}

/* An earlier block that [at, to) looks like; -1: none. */
static int model_for(const ladder *d, int at, int to) {
    if (d->calls <= FOLD_ABOVE || to - at < 4) return -1;
    for (int b = 0; b < at; b = block_end(d, b))
        if (alike(d, b, block_end(d, b), at, to)) return b;
    return -1;
}

static void make_rows(ladder *d) {
    for (int at = 0, to; at < d->calls; at = to) {
        to = block_end(d, at);
        int like = model_for(d, at, to);
        ladder_row *last = d->n ? &d->row[d->n - 1] : NULL;
        if (like >= 0 && last && last->blocks && last->like == like) {
            last->to = to;
            last->blocks++;
        } else if (like >= 0) {
            d->row[d->n++] =
                (ladder_row){.from = at, .to = to, .blocks = 1, .like = like, .opens = true};
        } else {
            for (int i = at; i < to; i++)
                d->row[d->n++] = (ladder_row){.from = i, .to = i + 1, .opens = i == at};
        }
    }
}

/* A call of the walk back belongs beside the call whose vjp ran it; what a checkpoint computes
 * again, beside the checkpoint; what no vjp ran, beside what ran before it. */
static void place_calls(ladder *d) {
    for (int r = 0; r < d->n; r++)
        for (int i = d->row[r].from; i < d->row[r].to; i++) d->of[i] = r;
    int before = d->n - 1;
    for (int i = d->calls; i < d->l->n_calls; i++) {
        int of = d->l->call[i].of;
        before = d->of[i] = of >= 0 ? d->of[of] : before;
    }
}

/* ---- edges ---------------------------------------------------------------------------------- */
static void find_edges(ladder *d) {
    int *writer = tp_arena_alloc(d->l->c, (size_t)(d->l->n_tensors + 1) * sizeof *writer);
    for (int i = 0; writer && i <= d->l->n_tensors; i++) writer[i] = -1;
    for (int i = 0; writer && i < d->l->n_calls; i++) {
        const tape_call *k = &d->l->call[i];
        bool back = i >= d->calls;
        for (int j = 0; j < k->nin; j++) {
            int w = k->in[j] ? writer[k->in[j]] : -1;
            if (w >= 0 && (w >= d->calls) == back && d->of[w] != d->of[i])
                d->edge[back][d->of[w] * d->n + d->of[i]] = true;
            if (k->in[j] && ((k->op->inplace >> j) & 1)) writer[k->in[j]] = i;
        }
        for (int j = 0; j < k->nout; j++) writer[k->out[j]] = i;
    }
}

static bool overlap(const ladder_bus *a, const ladder_bus *b) {
    int lo = a->from < a->to ? a->from : a->to, hi = a->from + a->to - lo;
    int from = b->from < b->to ? b->from : b->to, to = b->from + b->to - from;
    return lo < to && from < hi;
}

/* Short ones first and close to the boxes. */
static void choose_lanes(ladder *d, int pass) {
    int step = pass ? -1 : 1;
    for (int r = 0; r < d->n; r++) {
        d->bus[pass][r] = (ladder_bus){r, r, -1};
        for (int t = r + 2 * step; t >= 0 && t < d->n; t += step)
            if (d->edge[pass][r * d->n + t]) d->bus[pass][r].to = t;
    }
    for (int length = 2; length < d->n; length++)
        for (int r = 0; r < d->n; r++) {
            ladder_bus *b = &d->bus[pass][r];
            if (abs(b->to - b->from) != length) continue;
            bool taken = true;
            for (b->lane = 0; taken; b->lane += taken) {
                taken = false;
                for (int o = 0; o < d->n; o++)
                    taken |=
                        o != r && d->bus[pass][o].lane == b->lane && overlap(b, &d->bus[pass][o]);
            }
            if (b->lane >= d->lanes[pass]) d->lanes[pass] = b->lane + 1;
        }
}

bool ladder_make(ladder *d, const tape_log *l) {
    *d = (ladder){.l = l};
    while (d->calls < l->n_calls && !l->call[d->calls].backward) d->calls++;
    d->row = tp_arena_alloc(l->c, (size_t)(d->calls + 1) * sizeof *d->row);
    d->of = tp_arena_alloc(l->c, (size_t)(l->n_calls + 1) * sizeof *d->of);
    if (!d->row || !d->of) return false;
    make_rows(d);
    place_calls(d);
    for (int pass = 0; pass < 2; pass++) {
        d->edge[pass] = tp_arena_alloc(l->c, (size_t)d->n * (size_t)d->n + 1);
        d->bus[pass] = tp_arena_alloc(l->c, (size_t)(d->n + 1) * sizeof *d->bus[pass]);
    }
    if (tp_error_status(l->c)) return false;
    find_edges(d);
    choose_lanes(d, 0);
    choose_lanes(d, 1);
    return !tp_error_status(l->c);
}
