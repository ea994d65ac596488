/* Memory of the device between ranks: every move has the tree's bits, whatever else is under way,
 * with streams that do their work as late as they may; and what cannot go well says so and leaves
 * nothing behind. The ranks are threads, each with a context of its own. */
#include "core/ctx.h"
#include "core/device.h"
#include "local_ranks.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

/* The emulator's; a GPU is late by itself. */
extern bool emu_set_streams(const char *policy) __attribute__((weak));

enum { MAXRANKS = 4, MAXPIECES = 5, GAP = 3, ROUNDS = 3 };
typedef struct carry_case {
    int n;
    tp_cut cut[MAXPIECES];
    void (*wrong)(tp_backend *b, int rank); /* changes the device that a rank sees */
    char said[MAXRANKS][400];
} carry_case;
typedef struct device_rank {
    local_rank *r;
    carry_case *k;
    tp_ctx *c;
    tp_backend backend; /* as this rank sees it */
    int64_t at[MAXPIECES + 1];
    float *host; /* a copy of data */
    tp_tensor *data;
    tp_piece piece[MAXPIECES];
} device_rank;

static void complain(local_rank *r, const char *text) {
    carry_case *k = r->arg;
    if (!k->said[r->rank][0]) snprintf(k->said[r->rank], sizeof k->said[0], "%s", text);
}

/* ---- a rank with a device -------------------------------------------------------------------- */
static bool device_open(device_rank *d, local_rank *r) {
    *d = (device_rank){.r = r, .k = r->arg};
    char why[TP_WHY_BYTES] = "";
    tp_ctx_opts o = {.device = TP_CUDA, .threads = 1, .memory_limit = 64 << 20, .why = why};
    if (tp_ctx_new(&d->c, &o)) return complain(r, why), false;
    d->backend = *d->c->backend;
    if (d->k->wrong) d->k->wrong(&d->backend, r->rank);
    d->c->backend = &d->backend;
    int64_t n = GAP;
    for (int p = 0; p < d->k->n; p++) {
        d->at[p] = n;
        n += d->k->cut[p].n + GAP;
    }
    d->at[d->k->n] = n;
    d->data = tp_tensor_keep(d->c, TP_F32, 1, &n);
    d->host = calloc((size_t)n, sizeof *d->host);
    for (int p = 0; p < d->k->n; p++)
        d->piece[p] = (tp_piece){tp_f32(d->data) + d->at[p], d->k->cut[p], .on_device = true};
    return true;
}

/* The communicator first, then its memory. */
static void device_close(device_rank *d) {
    if (tp_error_status(d->c)) complain(d->r, tp_error(d->c));
    tp_comm_close(d->r->m, tp_error_status(d->c) ? tp_error(d->c) : NULL);
    tp_ctx_free(d->c);
    free(d->host);
}

/* This rank's own values, or its range of the sums and nothing else; a value's number counts over
 * the whole row, gaps too. */
static void fill(device_rank *d, int round, bool gathering) {
    int rank = d->r->rank, size = d->r->size;
    for (int64_t i = 0; i < d->at[d->k->n]; i++) d->host[i] = -77;
    for (int p = 0; p < d->k->n; p++) {
        tp_range own = tp_comm_shard(d->r->m, &d->k->cut[p], rank);
        for (int64_t j = 0; j < d->k->cut[p].n; j++) {
            int64_t i = d->at[p] + j;
            bool mine = j >= own.first && j < own.first + own.n;
            d->host[i] = !gathering ? local_value(rank, round, i)
                         : mine     ? local_tree_sum(0, size, round, i)
                                    : NAN;
        }
    }
    tp_upload(d->c, d->data, d->host);
}

static void check(device_rank *d, int round, tp_move move) {
    char text[200];
    if (tp_download(d->c, d->data, d->host)) return;
    for (int p = 0; p <= d->k->n; p++)
        for (int64_t i = d->at[p] - GAP; i < d->at[p]; i++)
            if (d->host[i] != -77) complain(d->r, "written beside a piece");
    for (int p = 0; p < d->k->n; p++) {
        tp_range own = {0, d->k->cut[p].n};
        if (move == TP_REDUCE_SCATTER) own = tp_comm_shard(d->r->m, &d->k->cut[p], d->r->rank);
        for (int64_t j = own.first; j < own.first + own.n; j++) {
            float want = local_tree_sum(0, d->r->size, round, d->at[p] + j),
                  got = d->host[d->at[p] + j];
            if (!memcmp(&want, &got, sizeof want)) continue;
            snprintf(text, sizeof text, "move %d, piece %d, value %lld: %a, not %a", (int)move, p,
                     (long long)j, (double)got, (double)want);
            complain(d->r, text);
        }
    }
}

static int count(const tp_load *l) {
    int n = 0;
    for (; l; l = l->next) n++;
    return n;
}

/* Every move, alone, a host's move behind it; and no buffer is made in the later rounds. */
static void every_move(local_rank *r) {
    static const tp_move moves[] = {TP_REDUCE_SCATTER, TP_ALLGATHER, TP_ALLREDUCE};
    device_rank d;
    float host[2];
    if (!device_open(&d, r)) return;
    int buffers = 0;
    for (int round = 0; round < ROUNDS && !tp_error_status(d.c); round++)
        for (int i = 0; i < 3; i++) {
            for (int v = 0; v < 2; v++) host[v] = local_value(r->rank, 90, v);
            fill(&d, round, moves[i] == TP_ALLGATHER);
            int64_t first = tp_comm_start(r->m, d.c, moves[i], d.piece, d.k->n);
            tp_piece beside = {host, {2, 1, -1}, false};
            int64_t then = first ? tp_comm_start(r->m, d.c, TP_ALLREDUCE, &beside, 1) : 0;
            if (!then || tp_comm_wait(r->m, d.c, first)) break;
            check(&d, round, moves[i]);
            if (tp_comm_wait(r->m, d.c, then)) break;
            if (host[1] != local_tree_sum(0, r->size, 90, 1))
                complain(r, "the host's move differs");
            if (round == 0) buffers = count(r->m->unloaded);
            if (count(r->m->unloaded) != buffers || r->m->loaded) complain(r, "another buffer");
        }
    device_close(&d);
}

/* Each piece a move of its own, host and device mixed in each, all under way at the same time. The
 * first is waited for while the last has not begun on rank 1; a small call waits for the rest. */
static void together(local_rank *r) {
    device_rank d;
    float host[MAXPIECES][2];
    if (!device_open(&d, r)) return;
    for (int round = 0; round < ROUNDS && !tp_error_status(d.c); round++) {
        double x = 1;
        int64_t first = 0;
        fill(&d, round, false);
        for (int p = 0; p < d.k->n; p++) {
            for (int i = 0; i < 2; i++) host[p][i] = local_value(r->rank, 90 + p, i);
            tp_piece both[2] = {{host[p], {2, 1, -1}, false}, d.piece[p]};
            if (p == d.k->n - 1 && r->rank == 1)
                nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
            int64_t ticket = tp_comm_start(r->m, d.c, TP_ALLREDUCE, both, 2);
            if (!ticket) break;
            if (!first) first = ticket;
        }
        if (tp_error_status(d.c) || tp_comm_wait(r->m, d.c, first) ||
            tp_comm_sum_f64(r->m, d.c, &x, 1))
            break;
        check(&d, round, TP_ALLREDUCE);
        for (int p = 0; p < d.k->n; p++)
            if (host[p][1] != local_tree_sum(0, r->size, 90 + p, 1))
                complain(r, "the host's differ");
    }
    device_close(&d);
}

static const carry_case cases[] = {
    {.n = 1, .cut = {{1, 1, -1}}},
    {.n = 1, .cut = {{1000, 7, -1}}},
    {.n = 2, .cut = {{0, 1, -1}, {0, 3, 0}}},
    {.n = 3, .cut = {{40, 1, 0}, {0, 3, 0}, {41, 1, 1}}},
    {.n = 5, .cut = {{0, 1, -1}, {129, 16, -1}, {2, 1, -1}, {33, 1, 0}, {777, 5, -1}}},
    {.n = 2, .cut = {{TP_SEGMENT_BYTES / 4 + 5, 64, -1}, {3000, 1, 1}}},
};

static bool all_silent(const carry_case *k, int size) {
    for (int r = 0; r < size; r++)
        if (k->said[r][0]) return false;
    return true;
}
/* Runs fn on `size` ranks; false if one of them complains. */
static bool run(carry_case *k, int size, void (*fn)(local_rank *r)) {
    local_world *w = local_world_new(size);
    memset(k->said, 0, sizeof k->said);
    local_run(w, 20, fn, k);
    bool good = all_silent(k, size);
    if (good) assert_int_equal(local_left_over(w), 0);
    local_world_free(w);
    return good;
}

static void test_moves(void **state) {
    (void)state;
    for (int late = 0; late < (emu_set_streams ? 2 : 1); late++) {
        if (emu_set_streams) emu_set_streams(late ? "late" : "at once");
        for (int size = 1; size <= MAXRANKS; size *= 2)
            for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
                carry_case k = cases[i];
                if (size == 1)
                    for (int p = 0; p < k.n; p++) k.cut[p].owner = -1;
                if (!run(&k, size, every_move))
                    fail_msg("%d ranks, case %zu: %s%s%s%s", size, i, k.said[0], k.said[1],
                             k.said[2], k.said[3]);
                if (!run(&k, size, together))
                    fail_msg("%d ranks, case %zu together: %s%s%s%s", size, i, k.said[0], k.said[1],
                             k.said[2], k.said[3]);
            }
    }
}

/* ---- mutants: what the test above must notice ------------------------------------------------ */
static tp_arrival arrived_at_once(tp_carry *k, char *why, size_t room) {
    (void)k, (void)why, (void)room;
    return TP_ARRIVED;
}
static void does_not_wait(tp_backend *b, int rank) {
    if (rank == 1) b->carry_arrived = arrived_at_once;
}
static tp_status in_nothing(tp_ctx *c, tp_carry *k, const tp_carry_part *part, int n) {
    (void)n;
    return tp_cuda_backend.carry_in(c, k, part, 0);
}
static void brings_nothing(tp_backend *b, int rank) {
    if (rank == 1) b->carry_in = in_nothing;
}
/* As if the range began a value later. */
static tp_status in_shifted(tp_ctx *c, tp_carry *k, const tp_carry_part *part, int n) {
    tp_carry_part p[2 * MAXPIECES];
    for (int i = 0; i < n; i++) {
        p[i] = part[i];
        p[i].device = (float *)p[i].device + 1;
    }
    return tp_cuda_backend.carry_in(c, k, p, n);
}
static void brings_elsewhere(tp_backend *b, int rank) {
    if (rank == 1) b->carry_in = in_shifted;
}
static tp_status out_less(tp_ctx *c, tp_carry *k, const tp_carry_part *part, int n) {
    return tp_cuda_backend.carry_out(c, k, part, n - 1);
}
static void takes_less(tp_backend *b, int rank) {
    if (rank == 0) b->carry_out = out_less;
}

static void test_mutants(void **state) {
    (void)state;
    void (*const wrong[])(tp_backend * b, int rank) = {does_not_wait, brings_nothing,
                                                       brings_elsewhere, takes_less};
    if (emu_set_streams) emu_set_streams("late");
    for (size_t i = emu_set_streams ? 0 : 1; i < sizeof wrong / sizeof *wrong; i++) {
        carry_case k = cases[4];
        k.wrong = wrong[i];
        if (run(&k, 2, every_move)) fail_msg("mutant %zu was not noticed", i);
        if (run(&k, 2, together)) fail_msg("mutant %zu was not noticed among others", i);
    }
}

/* ---- what can go wrong ----------------------------------------------------------------------- */
static tp_arrival lost(tp_carry *k, char *why, size_t room) {
    (void)k;
    snprintf(why, room, "copying to the host: CUDA: gone");
    return TP_LOST;
}
static void loses(tp_backend *b, int rank) {
    if (rank == 1) b->carry_arrived = lost;
}
static atomic_int asked;
static tp_arrival slow(tp_carry *k, char *why, size_t room) { /* 3 s at 200 us a question */
    if (atomic_fetch_add(&asked, 1) < 12000) return TP_UNDER_WAY;
    return tp_cuda_backend.carry_arrived(k, why, room);
}
static void is_slow(tp_backend *b, int rank) {
    if (rank == 1) b->carry_arrived = slow;
}
static tp_status no_buffer(tp_carry **out, tp_ctx *c, size_t bytes) {
    *out = NULL;
    return tp_fail(c, TP_ENOMEM, "pinned memory: %zu bytes", bytes);
}
static void has_no_memory(tp_backend *b, int rank) {
    if (rank == 1) b->carry_new = no_buffer;
}
static tp_status refuses(tp_ctx *c, tp_carry *k, const tp_carry_part *part, int n) {
    (void)k, (void)part, (void)n;
    return tp_fail(c, TP_EINTERNAL, "copying: refused");
}
static void refuses_out(tp_backend *b, int rank) {
    if (rank == 1) b->carry_out = refuses;
}
static void refuses_in(tp_backend *b, int rank) {
    if (rank == 1) b->carry_in = refuses;
}
/* Rank 1 fails while its own and the others' values are under way. */
static void fails_between(local_rank *r) {
    device_rank d;
    if (!device_open(&d, r)) return;
    fill(&d, 0, false);
    int64_t first = tp_comm_start(r->m, d.c, TP_ALLREDUCE, d.piece, d.k->n);
    int64_t then = tp_comm_start(r->m, d.c, TP_REDUCE_SCATTER, d.piece, d.k->n);
    if (r->rank == 1)
        tp_fail(d.c, TP_EIO, "disk full");
    else if (first && then && !tp_comm_wait(r->m, d.c, then)) {
        int64_t more = tp_comm_start(r->m, d.c, TP_ALLREDUCE, d.piece, d.k->n);
        if (more) tp_comm_wait(r->m, d.c, more);
    }
    device_close(&d);
}

static void test_failures(void **state) {
    (void)state;
    const struct {
        void (*wrong)(tp_backend *b, int rank);
        void (*fn)(local_rank *r);
        const char *own, *others;
    } bad[] = {
        {loses, every_move, "rank 1 (host1): copying to the host: CUDA: gone",
         "rank 1 (host1): copying to the host: CUDA: gone"},
        {has_no_memory, every_move, "pinned memory: ", "rank 1 stopped: pinned memory: "},
        {refuses_out, every_move, "copying: refused", "rank 1 stopped: copying: refused"},
        {refuses_in, together, "copying: refused", "rank 1 stopped: copying: refused"},
        {NULL, fails_between, "disk full", "rank 1 stopped: disk full"},
    };
    for (int late = 0; late < (emu_set_streams ? 2 : 1); late++)
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
            for (int size = 2; size <= MAXRANKS; size *= 2) {
                if (emu_set_streams) emu_set_streams(late ? "late" : "at once");
                carry_case k = cases[5];
                k.wrong = bad[i].wrong;
                double begin = tp_now();
                assert_false(run(&k, size, bad[i].fn));
                if (!(tp_now() - begin < 10)) fail_msg("case %zu took %g s", i, tp_now() - begin);
                for (int r = 0; r < size; r++) {
                    const char *want = r == 1 ? bad[i].own : bad[i].others;
                    if (strncmp(k.said[r], want, strlen(want)))
                        fail_msg("case %zu: rank %d says \"%s\", not \"%s…\"", i, r, k.said[r],
                                 want);
                }
            }
    if (emu_set_streams) emu_set_streams("at once");
}

/* Longer than a rank may be silent: it is alive meanwhile. */
static void test_slow(void **state) {
    (void)state;
    carry_case k = cases[4];
    k.wrong = is_slow;
    atomic_store(&asked, 0);
    local_world *w = local_world_new(2);
    double begin = tp_now();
    local_run(w, 2, every_move, &k);
    if (!all_silent(&k, 2)) fail_msg("%s%s", k.said[0], k.said[1]);
    assert_true(tp_now() - begin > 2.2);
    local_world_free(w);
}

/* Each allocation of a start, one by one; then the same move again, which must go well. */
static void starved(local_rank *r) {
    device_rank d;
    bool starves = true;
    if (!device_open(&d, r)) return;
    for (long at = 1; at < 50 && starves; at++) {
        tp_comm *m;
        local_world *w = local_world_new(1);
        if (tp_comm_open_on(&m, d.c, 5, local_transport(w, 0))) break;
        fill(&d, 0, false);
        d.c->fail_alloc_at = at;
        int64_t t = tp_comm_start(m, d.c, TP_ALLREDUCE, d.piece, d.k->n);
        starves = !t;
        if (starves && (tp_error_status(d.c) != TP_ENOMEM || at > 20)) complain(r, "no ENOMEM");
        if (!starves && at < 5) complain(r, "fewer allocations than there are");
        d.c->fail_alloc_at = 0;
        if (starves) tp_clear(d.c);
        if (starves) t = tp_comm_start(m, d.c, TP_ALLREDUCE, d.piece, d.k->n);
        if (t && !tp_comm_wait(m, d.c, t)) check(&d, 0, TP_ALLREDUCE);
        tp_comm_close(m, NULL);
        local_world_free(w);
    }
    /* a device that the ctx does not have */
    tp_clear(r->c);
    float x[1] = {0};
    if (tp_comm_start(r->m, r->c, TP_ALLREDUCE, &(tp_piece){x, {1, 1, -1}, true}, 1) ||
        !strstr(tp_error(r->c), "on a device that it does not have"))
        complain(r, "a move on no device");
    device_close(&d);
}
static void test_out_of_memory(void **state) {
    (void)state;
    carry_case k = cases[4];
    for (int p = 0; p < k.n; p++) k.cut[p].owner = -1;
    if (!run(&k, 1, starved)) fail_msg("%s", k.said[0]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_moves),         cmocka_unit_test(test_mutants),
        cmocka_unit_test(test_failures),      cmocka_unit_test(test_slow),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
