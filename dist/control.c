/* What ranks tell each other besides data: which call comes, that they live, that they failed, that
 * they leave. Runs on the communicator's thread. */
#include "dist/comm.h"
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { ALIVE_PERIOD_MS = 500 };

static tp_status link_failed(tp_comm *m) {
    return tp_comm_break(m, TP_EIO, false, "rank %d (%s): %s", m->rank, m->t->host[m->rank],
                         m->t->error);
}

/* ---- sending -------------------------------------------------------------------------------- */
/* NOT_YET while the letter's last message is still on its way. */
static tp_ready letter_free(tp_comm *m, tp_letter *l) {
    if (!l->busy) return TP_READY;
    tp_ready r = m->t->test(m->t, &l->request);
    if (r != TP_NOT_YET) l->busy = false;
    return r;
}

static tp_ready tell(tp_comm *m, int to, int slot, const tp_message *message) {
    tp_letter *l = &m->peer[to].letter[slot];
    tp_ready r = letter_free(m, l);
    if (r != TP_READY) return r;
    l->message = *message;
    l->message.from = m->rank;
    size_t bytes = message->told == TP_TOLD_FAILED ? sizeof *message : offsetof(tp_message, text);
    l->busy = m->t->send(m->t, to, TP_TAG_CONTROL, &l->message, bytes, &l->request);
    return l->busy ? TP_READY : TP_BROKEN;
}

static void tell_all(tp_comm *m, int slot, const tp_message *message) {
    for (int r = 0; r < m->size; r++)
        if (r != m->rank) tell(m, r, slot, message); /* one that cannot be reached falls silent */
}

static void announce(tp_comm *m) {
    tp_message failed = {.told = TP_TOLD_FAILED};
    pthread_mutex_lock(&m->lock);
    failed.whole = m->whole;
    memcpy(failed.text, m->sentence, sizeof failed.text);
    pthread_mutex_unlock(&m->lock);
    m->announced = true;
    if (!m->said_bye) tell_all(m, TP_LETTER_FAILED, &failed);
}

/* ---- reading -------------------------------------------------------------------------------- */
static bool listen(tp_comm *m) {
    m->inbox.busy = m->t->recv(m->t, -1, TP_TAG_CONTROL, &m->inbox.message, sizeof(tp_message),
                               &m->inbox.request);
    return m->inbox.busy;
}

static void read_message(tp_comm *m) {
    tp_message *g = &m->inbox.message;
    if (g->from < 0 || g->from >= m->size || g->from == m->rank) return;
    tp_peer *p = &m->peer[g->from];
    p->heard = tp_now();
    g->text[sizeof g->text - 1] = 0;
    switch (g->told) {
    case TP_TOLD_CALL:
        if (p->ncall == TP_CALLS_AHEAD)
            tp_comm_break(m, TP_EINTERNAL, false, "rank %d is %d calls ahead of rank %d", g->from,
                          p->ncall, m->rank);
        else
            p->call[p->ncall++] = g->call;
        break;
    case TP_TOLD_FAILED:
        if (atomic_load(&m->broken)) break;
        m->announced = true;
        if (g->whole)
            tp_comm_break(m, TP_EIO, true, "%s", g->text);
        else
            tp_comm_break(m, TP_EIO, true, "rank %d stopped: %s", g->from, g->text);
        break;
    case TP_TOLD_BYE:
        p->bye = true;
        break;
    default:
        break;
    }
}

tp_status tp_control_begin(tp_comm *m) {
    m->last_turn = tp_now();
    for (int r = 0; r < m->size; r++) m->peer[r].heard = m->last_turn;
    return listen(m) ? TP_OK : link_failed(m);
}

static void look_for_the_silent(tp_comm *m, double now) {
    for (int r = 0; r < m->size; r++) {
        const tp_peer *p = &m->peer[r];
        if (r == m->rank || p->bye || !(now - p->heard > m->timeout)) continue;
        tp_comm_break(m, TP_EIO, false,
                      "rank %d (%s) has given no sign of life for %.3g s: it died, hangs, or its "
                      "machine cannot be reached",
                      r, m->t->host[r], m->timeout);
    }
}

static void say_alive(tp_comm *m, double now) {
    for (int r = 0; r < m->size; r++) {
        tp_peer *p = &m->peer[r];
        if (r == m->rank || now - p->told_alive < 1e-3 * ALIVE_PERIOD_MS) continue;
        if (tell(m, r, TP_LETTER_ALIVE, &(tp_message){.told = TP_TOLD_ALIVE}) == TP_READY)
            p->told_alive = now; /* else again at the next turn */
    }
}

tp_status tp_control_turn(tp_comm *m) {
    /* Taken before reading: whatever came while this thread was held up is read first. */
    double now = tp_now();
    /* Time in which this thread itself did not run (its process was stopped, the machine slept, or
     * other work had the cores) says nothing about the others. */
    double gap = now - m->last_turn;
    if (gap > 2e-3 * ALIVE_PERIOD_MS)
        for (int r = 0; r < m->size; r++) m->peer[r].heard += gap;
    m->last_turn = now;
    while (m->inbox.busy) {
        tp_ready r = m->t->test(m->t, &m->inbox.request);
        if (r == TP_NOT_YET) break;
        m->inbox.busy = false;
        if (r == TP_READY) read_message(m);
        if (r == TP_BROKEN || !listen(m)) link_failed(m);
    }
    if (!m->said_bye) say_alive(m, now);
    if (!atomic_load(&m->broken)) look_for_the_silent(m, now);
    if (!atomic_load(&m->broken)) return TP_OK;
    if (!m->announced) announce(m);
    return TP_EIO;
}

void tp_control_pause(int *turns) {
    int n = (*turns)++;
    if (n < 100) {
        sched_yield();
        return;
    }
    long us = n < 104 ? 25L << (n - 100) : 200;
    nanosleep(&(struct timespec){.tv_nsec = us * 1000}, NULL);
}

/* ---- calls ---------------------------------------------------------------------------------- */
tp_status tp_control_call(tp_comm *m, tp_job *j) {
    tp_message call = {.told = TP_TOLD_CALL, .call = j->header};
    int slot = TP_LETTER_CALL + (int)(j->header.number & 1);
    for (int bit = 1; bit < m->size; bit <<= 1)
        for (int turns = 0;; tp_control_pause(&turns)) {
            tp_ready r = tell(m, m->rank ^ bit, slot, &call);
            if (r == TP_READY) break;
            if (r == TP_BROKEN) return link_failed(m);
            if (tp_control_turn(m)) return TP_EIO;
        }
    return TP_OK;
}

static void describe(char *to, size_t room, const tp_header *h) {
    static const char *const names[] = {"reduce-scatter", "allreduce", "allgather",
                                        "barrier",        "broadcast", "sum"};
    const char *name = h->work >= 0 && h->work <= TP_WORK_SUM_F64 ? names[h->work] : "?";
    if (h->work == TP_WORK_BARRIER)
        snprintf(to, room, "%s", name);
    else if (h->work == TP_WORK_BROADCAST)
        snprintf(to, room, "%s of %lld bytes from rank %d", name, (long long)h->count, h->root);
    else if (h->work == TP_WORK_SUM_F64)
        snprintf(to, room, "%s of %lld numbers", name, (long long)h->count);
    else
        snprintf(to, room, "%s of %lld values in %d pieces", name, (long long)h->count, h->pieces);
}

/* Both sides make the same sentence, about the higher rank. there: NULL if the peer has left. */
static tp_status disagree(tp_comm *m, int peer, const tp_header *here, const tp_header *there) {
    bool about_peer = m->rank < peer || !there;
    int about = about_peer ? peer : m->rank, other = about_peer ? m->rank : peer;
    char did[160] = "nothing more", want[160];
    if (there) describe(did, sizeof did, about_peer ? there : here);
    describe(want, sizeof want, about_peer ? here : there);
    const char *how = strcmp(did, want) ? "" : " cut otherwise";
    return tp_comm_break(m, TP_ESTATE, false,
                         "rank %d does something else than rank %d (call %lld: %s%s, not %s)",
                         about, other, (long long)here->number, did, how, want);
}

tp_status tp_control_meet(tp_comm *m, tp_job *j, int bit) {
    if (j->met & bit) return TP_OK;
    int peer = m->rank ^ bit;
    tp_peer *p = &m->peer[peer];
    for (int turns = 0; !p->ncall; tp_control_pause(&turns)) {
        if (tp_control_turn(m)) return TP_EIO;
        if (!p->ncall && p->bye) return disagree(m, peer, &j->header, NULL);
    }
    if (memcmp(&p->call[0], &j->header, sizeof j->header))
        return disagree(m, peer, &j->header, &p->call[0]);
    memmove(p->call, p->call + 1, (size_t)--p->ncall * sizeof p->call[0]);
    j->met |= bit;
    return TP_OK;
}

/* ---- leaving -------------------------------------------------------------------------------- */
typedef struct leaving {
    bool all_bye;   /* everybody wants nothing more */
    bool none_left; /* nobody is left who may still say so */
    bool sent;      /* and all that this rank said has gone out */
} leaving;

static leaving look_around(tp_comm *m) {
    leaving l = {true, true, true};
    double now = tp_now();
    for (int r = 0; r < m->size; r++) {
        tp_peer *p = &m->peer[r];
        if (r == m->rank) continue;
        if (!p->bye) l.all_bye = false;
        if (!p->bye && !(now - p->heard > m->timeout)) l.none_left = false;
        for (int i = 0; i < TP_NLETTER; i++)
            if (letter_free(m, &p->letter[i]) == TP_NOT_YET) l.sent = false;
    }
    return l;
}

/* A normal end waits for the others as long as they give signs of life; after a failure at most
 * `timeout`. Goodbye is the last word, said when nothing of this rank's is under way any more. */
void tp_control_farewell(tp_comm *m) {
    for (int turns = 0;; tp_control_pause(&turns)) {
        bool broken = tp_control_turn(m) != TP_OK;
        bool idle = !broken || tp_collective_drain(m);
        if (idle && !m->said_bye) {
            m->said_bye = true;
            tell_all(m, TP_LETTER_BYE, &(tp_message){.told = TP_TOLD_BYE});
        }
        leaving l = look_around(m);
        m->leave = TP_LEAVE_TOGETHER;
        if (m->said_bye && l.all_bye && l.sent) break;
        m->leave = TP_LEAVE_ABORT;
        if (broken && ((l.none_left && !l.all_bye) || tp_now() - m->broken_at > m->timeout)) break;
    }
    if (!m->inbox.busy) return;
    m->t->cancel(m->t, &m->inbox.request);
    for (int i = 0; i < 1000 && m->t->test(m->t, &m->inbox.request) == TP_NOT_YET; i++)
        sched_yield();
}
