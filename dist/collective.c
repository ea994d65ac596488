/* The tree over the ranks. Runs on the communicator's thread.
 *
 * A reduce-scatter halves: in round k a rank and its partner rank ^ 2^k split what they hold, each
 * sends the half it gives up and adds the half it keeps. After round k a rank holds the sum over
 * its subtree of 2^(k+1) ranks, made as lower subtree + higher subtree: every value is summed as
 * (r0 + r1) + (r2 + r3), …, whichever rank does it. The bit of round k picks the half, so the range
 * that is left has the rank's bits reversed. An allgather walks the same rounds backwards.
 * Recursive halving: Thakur, Rabenseifner, Gropp, "Optimization of collective communication
 * operations in MPICH", 2005. */
#include "dist/comm.h"
#include <string.h>

enum { SEGMENT_VALUES = TP_SEGMENT_BYTES / sizeof(float) };

/* ---- one segment each way ------------------------------------------------------------------- */
static tp_status link_failed(tp_comm *m, int peer) {
    return tp_comm_break(m, TP_EIO, false, "rank %d (%s), exchange with rank %d: %s", m->rank,
                         m->t->host[m->rank], peer, m->t->error);
}

static tp_status lane_start(tp_comm *m, int k, int peer, const void *out, size_t nout, void *in,
                            size_t nin, bool large) {
    tp_lane *l = &m->lane[k];
    tp_transport *t = m->t;
    m->sent += (double)nout;
    if (large && t->swap) {
        l->swap_busy = t->swap(t, k, peer, out, nout, in, nin);
        return l->swap_busy ? TP_OK : link_failed(m, peer);
    }
    if (nin) {
        l->recv_busy = t->recv(t, peer, TP_TAG_DATA, in, nin, &l->receiving);
        if (!l->recv_busy) return link_failed(m, peer);
    }
    if (nout) {
        l->send_busy = t->send(t, peer, TP_TAG_DATA, out, nout, &l->sending);
        if (!l->send_busy) return link_failed(m, peer);
    }
    return TP_OK;
}

static void lane_test(tp_comm *m, tp_lane *l, bool *bad) {
    tp_transport *t = m->t;
    tp_ready r;
    if (l->swap_busy && (r = t->swap_test(t, (int)(l - m->lane))) != TP_NOT_YET)
        l->swap_busy = false, *bad |= r == TP_BROKEN;
    if (l->recv_busy && (r = t->test(t, &l->receiving)) != TP_NOT_YET)
        l->recv_busy = false, *bad |= r == TP_BROKEN;
    if (l->send_busy && (r = t->test(t, &l->sending)) != TP_NOT_YET)
        l->send_busy = false, *bad |= r == TP_BROKEN;
}
static bool lane_idle(const tp_lane *l) { return !l->swap_busy && !l->recv_busy && !l->send_busy; }

static tp_status lane_wait(tp_comm *m, int k, int peer) {
    for (int turns = 0;; tp_control_pause(&turns)) {
        bool bad = false;
        for (int i = 0; i < 2; i++) lane_test(m, &m->lane[i], &bad);
        if (bad) return link_failed(m, peer);
        if (lane_idle(&m->lane[k])) return TP_OK;
        if (tp_control_turn(m)) return TP_EIO;
    }
}

void tp_collective_stop(tp_comm *m) {
    if (m->t->swap_stop) m->t->swap_stop(m->t);
    for (int k = 0; k < 2; k++) {
        m->lane[k].swap_busy = false;
        if (m->lane[k].recv_busy) m->t->cancel(m->t, &m->lane[k].receiving);
    }
}

bool tp_collective_drain(tp_comm *m) {
    bool bad = false;
    for (int k = 0; k < 2; k++) lane_test(m, &m->lane[k], &bad);
    tp_lane *l = &m->lane[0];
    int from;
    size_t bytes;
    if (!l->recv_busy && m->t->probe(m->t, TP_TAG_DATA, &from, &bytes) == TP_READY)
        l->recv_busy = bytes <= TP_SEGMENT_BYTES &&
                       m->t->recv(m->t, from, TP_TAG_DATA, l->in, bytes, &l->receiving);
    return lane_idle(&m->lane[0]) && lane_idle(&m->lane[1]);
}

/* ---- the values of some ranges of all pieces, as one row --------------------------------------
 */
typedef struct row {
    const tp_job *job;
    int size, lo, hi; /* ranges lo <= i < hi */
    int piece;        /* where the next value is */
    int64_t at, end;  /* in the piece */
    int64_t left;     /* values to come, over all pieces */
} row;

static void row_enter(row *r) {
    const tp_cut *s = &r->job->piece[r->piece].cut;
    r->at = tp_cut_at(s, r->size, r->lo);
    r->end = tp_cut_at(s, r->size, r->hi);
}
static row row_of(const tp_comm *m, const tp_job *j, int lo, int hi) {
    row r = {.job = j, .size = m->size, .lo = lo, .hi = hi};
    for (int i = 0; i < j->header.pieces; i++)
        r.left += tp_cut_at(&j->piece[i].cut, r.size, hi) - tp_cut_at(&j->piece[i].cut, r.size, lo);
    if (r.left) row_enter(&r);
    return r;
}
/* Up to `most` values that lie together; to be called while r->left > 0. */
static float *row_next(row *r, int64_t most, int64_t *n) {
    while (r->at == r->end) {
        r->piece++;
        row_enter(r);
    }
    *n = r->end - r->at < most ? r->end - r->at : most;
    float *p = r->job->piece[r->piece].data + r->at;
    r->at += *n;
    r->left -= *n;
    return p;
}
static void row_skip(row *r, int64_t n) {
    for (int64_t got; n; n -= got) row_next(r, n, &got);
}
/* Passes n values if they lie in one place, and says where; else NULL, and nothing is passed. */
static float *row_whole(row *r, int64_t n) {
    row next = *r;
    int64_t got = 0;
    float *p = n ? row_next(&next, n, &got) : NULL;
    if (!n || got != n) return NULL;
    *r = next;
    return p;
}
static void row_pack(row *r, int64_t n, float *to) {
    for (int64_t got; n; n -= got, to += got) {
        const float *from = row_next(r, n, &got);
        memcpy(to, from, (size_t)got * sizeof *to);
    }
}

typedef enum take { TAKE_COPY, TAKE_ADD_LOWER, TAKE_ADD_HIGHER } take; /* what came is … */

static void add(float *to, const float *lower, const float *higher, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) to[i] = lower[i] + higher[i];
}
static void row_take(row *r, int64_t n, const float *came, take how) {
    for (int64_t got; n; n -= got, came += got) {
        float *p = row_next(r, n, &got);
        if (how == TAKE_ADD_LOWER)
            add(p, came, p, got);
        else if (how == TAKE_ADD_HIGHER)
            add(p, p, came, got);
        else if (p != came)
            memcpy(p, came, (size_t)got * sizeof *p);
    }
}

/* ---- one row each way ----------------------------------------------------------------------- */
typedef struct swapping {
    int peer;
    take how;
    row out, coming, in; /* coming: `in`, ahead by what is under way */
    const float *came[2];
    int64_t n[2];
} swapping;

static int64_t segment_of(const row *r) {
    return r->left < SEGMENT_VALUES ? r->left : SEGMENT_VALUES;
}

/* What lies in one place travels from there; the rest is packed together. */
static tp_status swap_begin(tp_comm *m, swapping *s, int k) {
    bool direct = !m->t->swap; /* a transport that swaps has buffers of its own kind */
    int64_t nout = segment_of(&s->out), nin = segment_of(&s->coming);
    float *from = direct ? row_whole(&s->out, nout) : NULL;
    float *to = direct && s->how == TAKE_COPY ? row_whole(&s->coming, nin) : NULL;
    if (!from) row_pack(&s->out, nout, from = m->lane[k].out);
    if (!to) row_skip(&s->coming, nin), to = m->lane[k].in;
    s->came[k] = to;
    s->n[k] = nin;
    return lane_start(m, k, s->peer, from, (size_t)nout * sizeof *from, to,
                      (size_t)nin * sizeof *to, true);
}

/* In segments: while one is added, the next is under way. */
static tp_status swap_rows(tp_comm *m, int peer, row out, row in, take how) {
    swapping s = {.peer = peer, .how = how, .out = out, .coming = in, .in = in};
    int64_t longer = out.left > in.left ? out.left : in.left;
    int64_t segments = (longer + SEGMENT_VALUES - 1) / SEGMENT_VALUES;
    for (int64_t i = 0; i <= segments; i++) {
        int k = (int)(i & 1);
        if (i < segments && swap_begin(m, &s, k)) return TP_EIO;
        if (!i) continue;
        if (lane_wait(m, !k, peer)) return TP_EIO;
        row_take(&s.in, s.n[!k], s.came[!k], how);
    }
    return TP_OK;
}

/* ---- large moves ---------------------------------------------------------------------------- */
static tp_status reduce_scatter(tp_comm *m, tp_job *j) {
    int lo = 0, hi = m->size;
    for (int bit = 1; bit < m->size; bit <<= 1) {
        int peer = m->rank ^ bit, mid = (lo + hi) / 2;
        row low = row_of(m, j, lo, mid), high = row_of(m, j, mid, hi);
        bool upper =
            m->rank & bit; /* this rank keeps the upper half, and is in the higher subtree */
        if (tp_control_meet(m, j, bit)) return TP_EIO;
        if (upper ? swap_rows(m, peer, low, high, TAKE_ADD_LOWER)
                  : swap_rows(m, peer, high, low, TAKE_ADD_HIGHER))
            return TP_EIO;
        lo = upper ? mid : lo;
        hi = upper ? hi : mid;
    }
    return TP_OK;
}

static tp_status allgather(tp_comm *m, tp_job *j) {
    int mine = tp_bit_reverse(m->rank, m->size);
    for (int bit = m->size / 2, width = 1; bit; bit >>= 1, width <<= 1) {
        int lo = mine & ~(width - 1), other = lo ^ width;
        row out = row_of(m, j, lo, lo + width), in = row_of(m, j, other, other + width);
        if (tp_control_meet(m, j, bit)) return TP_EIO;
        if (swap_rows(m, m->rank ^ bit, out, in, TAKE_COPY)) return TP_EIO;
    }
    return TP_OK;
}

/* ---- small calls ---------------------------------------------------------------------------- */
/* They travel through the lane's buffers: the caller's memory may be a stack that is gone when a
 * call has failed. */
static tp_status small_swap(tp_comm *m, tp_job *j, int bit, const void *out, size_t nout,
                            size_t nin) {
    tp_lane *l = &m->lane[0];
    if (tp_control_meet(m, j, bit)) return TP_EIO;
    if (nout) memcpy(l->out, out, nout);
    if (lane_start(m, 0, m->rank ^ bit, l->out, nout, l->in, nin, false)) return TP_EIO;
    return lane_wait(m, 0, m->rank ^ bit);
}

/* Every rank exchanges the whole of x in every round, and does the same sum. */
static tp_status sum_f64(tp_comm *m, tp_job *j) {
    enum { MOST = TP_SEGMENT_BYTES / sizeof(double) };
    double *x = j->data;
    const double *came = m->lane[0].in;
    int64_t left = j->header.count;
    for (int64_t n; left; left -= n, x += n) {
        n = left < MOST ? left : MOST;
        size_t bytes = (size_t)n * sizeof *x;
        for (int bit = 1; bit < m->size; bit <<= 1) {
            if (small_swap(m, j, bit, x, bytes, bytes)) return TP_EIO;
            for (int64_t i = 0; i < n; i++) x[i] = m->rank & bit ? came[i] + x[i] : x[i] + came[i];
        }
    }
    return TP_OK;
}

/* As a sum of nothing: after round k a rank has heard from its subtree of 2^(k+1) ranks. */
static tp_status barrier(tp_comm *m, tp_job *j) {
    for (int bit = 1; bit < m->size; bit <<= 1)
        if (small_swap(m, j, bit, "", 1, 1)) return TP_EIO;
    return TP_OK;
}

/* Round k doubles the ranks that have it; numbered from the root, those below 2^k. */
static tp_status broadcast(tp_comm *m, tp_job *j) {
    int place = m->rank ^ j->header.root;
    for (int bit = 1; bit < m->size; bit <<= 1) {
        if (tp_control_meet(m, j, bit)) return TP_EIO;
        if (place >= 2 * bit) continue;
        bool have = place < bit;
        size_t left = (size_t)j->header.count;
        for (char *p = j->data; left;) {
            size_t n = left < TP_SEGMENT_BYTES ? left : TP_SEGMENT_BYTES;
            if (small_swap(m, j, bit, p, have ? n : 0, have ? 0 : n)) return TP_EIO;
            if (!have) memcpy(p, m->lane[0].in, n);
            p += n;
            left -= n;
        }
    }
    return TP_OK;
}

static tp_status run(tp_comm *m, tp_job *j) {
    switch ((tp_work)j->header.work) {
    case TP_WORK_REDUCE_SCATTER:
        return reduce_scatter(m, j);
    case TP_WORK_ALLREDUCE:
        return reduce_scatter(m, j) ? TP_EIO : allgather(m, j);
    case TP_WORK_ALLGATHER:
        return allgather(m, j);
    case TP_WORK_BARRIER:
        return barrier(m, j);
    case TP_WORK_BROADCAST:
        return broadcast(m, j);
    case TP_WORK_SUM_F64:
        return sum_f64(m, j);
    }
    return tp_comm_break(m, TP_EINTERNAL, false, "rank %d: no such call: %d", m->rank,
                         j->header.work);
}

tp_status tp_collective_run(tp_comm *m, tp_job *j) {
    if (tp_control_call(m, j) || tp_load_arrives(m, j) || run(m, j)) return TP_EIO;
    for (int bit = 1; bit < m->size; bit <<= 1) /* a sum of nothing meets nobody by itself */
        if (tp_control_meet(m, j, bit)) return TP_EIO;
    return TP_OK;
}
