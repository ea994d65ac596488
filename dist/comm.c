/* A communicator's life and its calls. */
#include "dist/comm.h"

static const char *kind_name(tp_comm_kind k) {
    static const char *const names[] = {"auto", "self", "mpi", "nccl", "plan"};
    return k >= 0 && k <= TP_COMM_PLAN ? names[k] : "?";
}

tp_status tp_comm_open(tp_comm **out, tp_ctx *c, const tp_comm_opts *opts) {
    *out = NULL;
    tp_comm_opts o = opts ? *opts : (tp_comm_opts){0};
    int size = o.kind == TP_COMM_PLAN ? o.plan_ranks : 1;
    if (o.kind == TP_COMM_MPI || o.kind == TP_COMM_NCCL)
        return tp_fail(c, TP_EARG, "dist: %s is not there yet", kind_name(o.kind));
    if (size < 1 || size & (size - 1))
        return tp_fail(c, TP_EARG, "%d ranks: the reduction tree needs a power of two", size);
    tp_comm *m = tp_calloc(c, 1, sizeof *m);
    if (!m) return TP_ENOMEM;
    m->name = o.kind == TP_COMM_PLAN ? "plan" : "self";
    m->size = size;
    m->local_size = 1;
    *out = m;
    return TP_OK;
}
void tp_comm_close(tp_comm *m, const char *failure) {
    (void)failure;
    tp_free(m);
}
int tp_comm_rank(const tp_comm *m) { return m->rank; }
int tp_comm_size(const tp_comm *m) { return m->size; }
int tp_comm_local_size(const tp_comm *m) { return m->local_size; }
const char *tp_comm_name(const tp_comm *m) { return m->name; }
bool tp_comm_failed_elsewhere(const tp_comm *m) {
    (void)m;
    return false;
}
tp_status tp_comm_barrier(tp_comm *m, tp_ctx *c) {
    (void)m, (void)c;
    return TP_OK;
}
tp_status tp_comm_broadcast(tp_comm *m, tp_ctx *c, void *data, size_t bytes, int root) {
    (void)data, (void)bytes;
    if (root < 0 || root >= m->size)
        return tp_fail(c, TP_EARG, "broadcast from rank %d of %d", root, m->size);
    return TP_OK;
}
tp_status tp_comm_sum_f64(tp_comm *m, tp_ctx *c, double *x, int64_t n) {
    (void)m, (void)c, (void)x, (void)n;
    return TP_OK;
}
tp_status tp_comm_agree(tp_comm *m, tp_ctx *c, const char *what, const char *text) {
    (void)m, (void)c, (void)what, (void)text;
    return TP_OK;
}
int64_t tp_comm_start(tp_comm *m, tp_ctx *c, tp_move move, const tp_piece *piece, int n) {
    (void)move;
    for (int i = 0; i < n; i++) {
        const char *fault = tp_cut_fault(&piece[i].cut, m->size);
        if (fault) {
            tp_fail(c, TP_EARG, "piece %d of a move has %s", i, fault);
            return 0;
        }
    }
    return ++m->started;
}
tp_status tp_comm_wait(tp_comm *m, tp_ctx *c, int64_t ticket) {
    if (ticket < 1 || ticket > m->started)
        return tp_fail(c, TP_EARG, "wait for ticket %lld of %lld", (long long)ticket,
                       (long long)m->started);
    return TP_OK;
}
void tp_comm_traffic(tp_comm *m, double *waited, double *bytes) {
    (void)m;
    *waited = *bytes = 0;
}
