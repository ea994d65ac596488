/* dist: sums bit for bit against a tree made here, every move, every kind of split, and every way
 * in which a rank can let the others down. */
#include "core/ctx.h"
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

enum { MAXRANKS = 8, MAXPIECES = 8 };
static const int world_sizes[] = {1, 2, 4, 8};

static bool same_bits(const void *a, const void *b, size_t n) { return !memcmp(a, b, n); }

/* ---- cuts ----------------------------------------------------------------------------------- */
static void test_cuts(void **state) {
    (void)state;
    static const int64_t ns[] = {0, 1, 2, 3, 7, 8, 9, 64, 1000, 1001, INT64_C(1) << 50};
    static const int64_t units[] = {1, 2, 3, 16, 100, 1 << 20};
    for (int size = 1; size <= 16; size *= 2)
        for (size_t a = 0; a < sizeof ns / sizeof *ns; a++)
            for (size_t u = 0; u < sizeof units / sizeof *units; u++)
                for (int owner = -1; owner < size; owner++) {
                    tp_cut s = {ns[a], units[u], owner};
                    int64_t at = 0, least = INT64_MAX, most = 0;
                    for (int i = 0; i < size; i++) {
                        int64_t from = tp_cut_at(&s, size, i), to = tp_cut_at(&s, size, i + 1);
                        assert_int_equal(from, at);
                        assert_true(to >= from);
                        at = to;
                        assert_true(from % s.unit == 0 || from == s.n);
                        if (owner >= 0) continue;
                        int64_t n = (to - from + s.unit - 1) / s.unit; /* even, to one unit */
                        least = n < least ? n : least;
                        most = n > most ? n : most;
                    }
                    assert_int_equal(at, s.n);
                    assert_true(owner >= 0 || most - least <= 1);
                }
}

static void test_shards(void **state) {
    (void)state;
    tp_ctx *c;
    tp_comm *m;
    assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1}), 0);
    assert_int_equal(tp_comm_open(&m, c, &(tp_comm_opts){.kind = TP_COMM_PLAN, .plan_ranks = 8}),
                     0);
    assert_int_equal(tp_comm_size(m), 8);
    static const int order[] = {0, 4, 2, 6, 1, 5, 3, 7}; /* ranges by their bits reversed */
    for (int i = 0; i < 8; i++) {
        tp_range r = tp_comm_shard(m, &(tp_cut){80, 1, -1}, order[i]);
        assert_int_equal(r.first, 10 * i);
        assert_int_equal(r.n, 10);
        r = tp_comm_shard(m, &(tp_cut){80, 1, 3}, i);
        assert_int_equal(r.n, i == 3 ? 80 : 0);
        if (i == 3) assert_int_equal(r.first, 0);
    }
    assert_int_equal(tp_comm_shard(m, &(tp_cut){80, 0, -1}, 0).n, 0);
    tp_comm_close(m, NULL);
    tp_ctx_free(c);
}

/* ---- moves ---------------------------------------------------------------------------------- */
typedef struct move_case {
    int n;
    tp_cut cut[MAXPIECES];
    int64_t total;
    bool shown[MAXRANKS];
    char said[MAXRANKS][400]; /* what went wrong there; "" is good */
    double bytes[MAXRANKS];
} move_case;

static void complain(local_rank *r, const char *text) {
    move_case *k = r->arg;
    if (!k->said[r->rank][0]) snprintf(k->said[r->rank], sizeof k->said[0], "%s", text);
}

/* Within [lo,hi) the values are sum, or this rank's own. */
static void check_values(local_rank *r, const float *x, int piece, int64_t lo, int64_t hi,
                         const char *what) {
    for (int64_t i = lo; i < hi; i++) {
        float want = local_tree_sum(0, r->size, piece, i);
        if (same_bits(&want, &x[i], sizeof want)) continue;
        char text[200];
        snprintf(text, sizeof text, "%s: piece %d, value %lld: %a, not %a", what, piece,
                 (long long)i, (double)x[i], (double)want);
        complain(r, text);
        return;
    }
}

static void every_move(local_rank *r) {
    move_case *k = r->arg;
    tp_piece piece[MAXPIECES];
    float *data = malloc((size_t)k->total * sizeof *data + 1), *at = data;
    for (int p = 0; p < k->n; at += k->cut[p].n, p++) piece[p] = (tp_piece){at, k->cut[p]};
    for (int round = 0; round < 3; round++) { /* scatter; gather what came of it; both at once */
        for (int p = 0; p < k->n && round != 1; p++)
            for (int64_t i = 0; i < k->cut[p].n; i++) piece[p].data[i] = local_value(r->rank, p, i);
        static const tp_move moves[] = {TP_REDUCE_SCATTER, TP_ALLGATHER, TP_ALLREDUCE};
        static const char *const names[] = {"reduce-scatter", "allgather", "allreduce"};
        int64_t ticket = tp_comm_start(r->m, r->c, moves[round], piece, k->n);
        if (!ticket || tp_comm_wait(r->m, r->c, ticket)) complain(r, tp_error(r->c));
        double waited, bytes;
        tp_comm_traffic(r->m, &waited, &bytes);
        if (round == 0) k->bytes[r->rank] = bytes;
        for (int p = 0; p < k->n; p++) {
            tp_range mine = tp_comm_shard(r->m, &k->cut[p], r->rank);
            if (round > 0) mine = (tp_range){0, k->cut[p].n};
            check_values(r, piece[p].data, p, mine.first, mine.first + mine.n, names[round]);
        }
    }
    tp_comm_close(r->m, NULL);
    free(data);
}

static void run_moves(int size, move_case *k) {
    local_world *w = local_world_new(size);
    k->total = 0;
    for (int p = 0; p < k->n; p++) k->total += k->cut[p].n;
    memset(k->said, 0, sizeof k->said);
    local_run(w, 20, every_move, k);
    for (int r = 0; r < size; r++) assert_string_equal(k->said[r], "");
    assert_false(local_aborted(w));
    assert_int_equal(local_left_over(w), 0);
    local_world_free(w);
}

static void test_moves(void **state) {
    (void)state;
    static move_case cases[] = {
        {.n = 0},
        {.n = 1, .cut = {{0, 1, -1}}},
        {.n = 1, .cut = {{1, 1, -1}}},
        {.n = 1, .cut = {{3, 1, -1}}},
        {.n = 1, .cut = {{5, 4, -1}}},
        {.n = 1, .cut = {{1000, 1, -1}}},
        {.n = 1, .cut = {{1000, 7, -1}}},
        {.n = 1, .cut = {{1000, 5000, -1}}},
        {.n = 1, .cut = {{1000, 1, 0}}},
        {.n = 3, .cut = {{40, 1, 0}, {0, 3, 0}, {41, 1, 0}}},
        {.n = 5, .cut = {{0, 1, -1}, {129, 16, -1}, {2, 1, -1}, {0, 1, 0}, {77, 5, -1}}},
    };
    for (int s = 0; s < 4; s++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
            run_moves(world_sizes[s], &cases[i]);
    for (int owner = 0; owner < 8; owner++) /* owners mixed with even cuts */
        run_moves(
            8,
            &(move_case){
                .n = 4,
                .cut = {{50, 1, owner}, {33, 2, -1}, {9, 1, owner ^ 5}, {6, 1, (owner + 1) % 8}}});
}

/* Several segments, cut by pieces at odd places, and more to one side than to the other. */
static void test_long_moves(void **state) {
    (void)state;
    enum { SEGMENT = TP_SEGMENT_BYTES / 4 };
    run_moves(2, &(move_case){.n = 1, .cut = {{5 * SEGMENT + 3, 1, -1}}});
    run_moves(2, &(move_case){.n = 1, .cut = {{2 * SEGMENT, 1, -1}}});
    run_moves(2,
              &(move_case){.n = 3, .cut = {{3 * SEGMENT - 1, 1, 1}, {SEGMENT, 1, 0}, {7, 1, -1}}});
    run_moves(4, &(move_case){.n = 4,
                              .cut = {{2 * SEGMENT + 1, 64, -1},
                                      {11, 1, -1},
                                      {SEGMENT + 9, 1, 2},
                                      {SEGMENT - 11, 1, -1}}});
}

/* The test above could tell another order from the tree's. */
static void test_order_matters(void **state) {
    (void)state;
    int in_order = 0, swapped = 0;
    for (int64_t i = 0; i < 1000; i++) {
        float tree = local_tree_sum(0, 8, 0, i), one = local_value(0, 0, i), other;
        for (int r = 1; r < 8; r++) one += local_value(r, 0, i);
        other = (local_value(0, 0, i) + local_value(2, 0, i)) +
                (local_value(1, 0, i) + local_value(3, 0, i));
        in_order += one != tree;
        swapped += other != local_tree_sum(0, 4, 0, i);
    }
    assert_true(in_order > 100);
    assert_true(swapped > 100);
}

static void test_traffic(void **state) {
    (void)state;
    move_case k = {.n = 1, .cut = {{8000, 1, -1}}};
    run_moves(8, &k); /* halves, quarters, eighths: 7/8 of all */
    for (int r = 0; r < 8; r++) assert_int_equal((long)k.bytes[r], 7000 * 4);
}

/* ---- small calls ---------------------------------------------------------------------------- */
static double tree_sum64(int lo, int hi, int64_t i) {
    if (hi - lo == 1) return local_value(lo, 50, i) * (1 + (double)local_value(lo, 51, i) * 1e-9);
    int mid = (lo + hi) / 2;
    double left = tree_sum64(lo, mid, i), right = tree_sum64(mid, hi, i);
    return left + right;
}

static void small_calls(local_rank *r) {
    enum { MANY = TP_SEGMENT_BYTES / 8 + 5, BYTES = 2 * TP_SEGMENT_BYTES + 7 };
    double *x = calloc(MANY, sizeof *x);
    unsigned char *b = malloc(BYTES);
    static const int64_t ns[] = {0, 1, 3, MANY};
    for (int k = 0; k < 4; k++) {
        for (int64_t i = 0; i < ns[k]; i++) x[i] = tree_sum64(r->rank, r->rank + 1, i);
        if (tp_comm_sum_f64(r->m, r->c, x, ns[k])) complain(r, tp_error(r->c));
        for (int64_t i = 0; i < ns[k]; i++) {
            double want = tree_sum64(0, r->size, i);
            if (!same_bits(&want, &x[i], sizeof want)) complain(r, "sum_f64 differs");
        }
        if (tp_comm_barrier(r->m, r->c)) complain(r, tp_error(r->c));
    }
    for (int root = 0; root < r->size; root++)
        for (size_t n = 0; n <= BYTES; n = n ? n * BYTES : 1) {
            memset(b, r->rank == root ? 100 + root : 0, BYTES);
            if (tp_comm_broadcast(r->m, r->c, b, n, root)) complain(r, tp_error(r->c));
            for (size_t i = 0; i < n; i++)
                if (b[i] != 100 + root) complain(r, "broadcast differs");
            if (r->rank != root && n < BYTES && b[n]) complain(r, "broadcast went too far");
        }
    if (tp_comm_agree(r->m, r->c, "config", "steps: 5\nseed: 1\n")) complain(r, tp_error(r->c));
    tp_comm_close(r->m, NULL);
    free(x);
    free(b);
}

static void test_small_calls(void **state) {
    (void)state;
    for (int s = 0; s < 4; s++) {
        move_case k = {.n = 0};
        local_world *w = local_world_new(world_sizes[s]);
        local_run(w, 20, small_calls, &k);
        for (int r = 0; r < world_sizes[s]; r++) assert_string_equal(k.said[r], "");
        assert_int_equal(local_left_over(w), 0);
        local_world_free(w);
    }
}

/* A barrier is one: nobody leaves before the last has come. */
static atomic_int came;
static void late_to_the_barrier(local_rank *r) {
    nanosleep(&(struct timespec){.tv_nsec = r->rank * 10000000L}, NULL);
    atomic_fetch_add(&came, 1);
    if (tp_comm_barrier(r->m, r->c)) complain(r, tp_error(r->c));
    if (atomic_load(&came) != r->size) complain(r, "left the barrier too early");
    tp_comm_close(r->m, NULL);
}
static void test_barrier(void **state) {
    (void)state;
    move_case k = {.n = 0};
    local_world *w = local_world_new(8);
    local_run(w, 20, late_to_the_barrier, &k);
    for (int r = 0; r < 8; r++) assert_string_equal(k.said[r], "");
    local_world_free(w);
}

/* ---- what can go wrong ---------------------------------------------------------------------- */
/* Data of moves, which after a failure must stay until tp_comm_close. */
static _Thread_local float *kept[4];
static _Thread_local int nkept;

/* Rank 1 does something bad; each rank's sentence and whether it should show it is noted. */
static void finish(local_rank *r) {
    move_case *k = r->arg;
    complain(r, tp_error(r->c));
    k->shown[r->rank] = tp_error_status(r->c) && !tp_comm_failed_elsewhere(r->m);
    tp_comm_close(r->m, tp_error_status(r->c) ? tp_error(r->c) : NULL);
    while (nkept) free(kept[--nkept]);
}
static void one_move(local_rank *r, int64_t n) {
    float *x = kept[nkept++] = calloc((size_t)n + 1, sizeof *x);
    int64_t t = tp_comm_start(r->m, r->c, TP_ALLREDUCE, &(tp_piece){x, {n, 1, -1}}, 1);
    if (t) tp_comm_wait(r->m, r->c, t);
}

static void other_text(local_rank *r) {
    tp_comm_agree(r->m, r->c, "config",
                  r->rank == 2 ? "seed: 1\nsteps: 500\n" : "seed: 1\nsteps: 600\n");
    finish(r);
}
static void other_move(local_rank *r) {
    one_move(r, 10);
    one_move(r, r->rank == 1 ? 12 : 11);
    finish(r);
}
static void other_cuts(local_rank *r) {
    float x[8] = {0};
    tp_piece p = {x, {8, r->rank == 1 ? 2 : 1, -1}};
    int64_t t = tp_comm_start(r->m, r->c, TP_ALLREDUCE, &p, 1);
    if (t) tp_comm_wait(r->m, r->c, t);
    finish(r);
}
static void fewer_moves(local_rank *r) {
    one_move(r, 10);
    if (r->rank != 1) one_move(r, 11);
    finish(r);
}
static void own_failure(local_rank *r) {
    one_move(r, 1000000); /* the others are in the middle of large messages */
    if (r->rank == 1)
        tp_fail(r->c, TP_EIO, "disk full\nsecond line");
    else
        one_move(r, 1000000);
    finish(r);
}
static void failure_while_idle(local_rank *r) {
    if (r->rank == 1)
        tp_fail(r->c, TP_EIO, "disk full");
    else
        nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL); /* computes */
    if (r->rank != 1) tp_comm_barrier(r->m, r->c);
    finish(r);
}
static void silence(local_rank *r) {
    one_move(r, 10);
    if (r->rank == 1) local_stop(r->world, 1);
    one_move(r, 300000);
    finish(r);
}
static void long_computation(local_rank *r) { /* three times the limit, and yet alive */
    if (r->rank == 1) nanosleep(&(struct timespec){.tv_sec = 6}, NULL);
    one_move(r, 10);
    finish(r);
}

typedef struct bad_case {
    const char *name;
    void (*fn)(local_rank *r);
    double timeout, longest;
    const char *others, *own; /* what they and rank 1 say; a prefix */
    bool aborted;
    int sayers;         /* ranks that show it; 0: not checked */
    const char *either; /* instead of both, where two pairs of ranks may see it first */
} bad_case;

static void run_bad(const bad_case *b, int size) {
    move_case k = {.n = 0};
    local_world *w = local_world_new(size);
    double begin = tp_now();
    local_run(w, b->timeout, b->fn, &k);
    double seconds = tp_now() - begin;
    int sayers = 0;
    for (int r = 0; r < size; r++) {
        sayers += k.shown[r];
        const char *want = r == 1 && b->own ? b->own : b->others;
        if (b->either && !strncmp(k.said[r], b->either, strlen(b->either))) continue;
        if (strncmp(k.said[r], want, *want ? strlen(want) : 400))
            fail_msg("%s: rank %d says \"%s\", not \"%s…\"", b->name, r, k.said[r], want);
    }
    if (b->sayers) assert_int_equal(sayers, b->sayers);
    if (!sayers && *b->others) fail_msg("%s: nobody says it", b->name);
    assert_int_equal(local_aborted(w), b->aborted);
    if (!(seconds < b->longest)) fail_msg("%s took %g s", b->name, seconds);
    local_world_free(w);
}

static void test_disagreements(void **state) {
    (void)state;
    static const bad_case cases[] = {
        {"other text", other_text, 20, 10,
         "rank 2 has another config than rank 0: \"steps: 500\", not \"steps: 600\"", NULL, false,
         1},
        {"other move", other_move, 20, 10,
         "rank 1 does something else than rank 0 (call 2: allreduce of 12 values in 1 pieces, not "
         "allreduce of 11 values in 1 pieces)",
         NULL, false, 0,
         "rank 3 does something else than rank 1 (call 2: allreduce of 11 values in 1 pieces, not "
         "allreduce of 12 values in 1 pieces)"},
        {"other cuts", other_cuts, 20, 10,
         "rank 1 does something else than rank 0 (call 1: allreduce of 8 values in 1 pieces cut "
         "otherwise, not allreduce of 8 values in 1 pieces)",
         NULL, false, 0, "rank 3 does something else than rank 1 (call 1: allreduce of 8"},
        {"fewer moves", fewer_moves, 20, 10,
         "rank 1 does something else than rank 0 (call 2: nothing more, not allreduce", "", false,
         0, "rank 1 does something else than rank 3 (call 2: nothing more, not allreduce"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) run_bad(&cases[i], 4);
}

static void test_failures(void **state) {
    (void)state;
    static const bad_case cases[] = {
        {"own failure", own_failure, 20, 10, "rank 1 stopped: disk full", "disk full", false, 1},
        {"idle", failure_while_idle, 20, 10, "rank 1 stopped: disk full", "disk full", false, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int s = 1; s < 4; s++) run_bad(&cases[i], world_sizes[s]);
}

/* Rank 1's data cannot leave, so rank 0 has to take back a receive into the caller's memory, which
 * takes a while: the failed call returns after that. */
static bool (*plain_send)(tp_transport *, int, int, const void *, size_t, tp_request *);
static void (*plain_cancel)(tp_transport *, tp_request *);
static bool send_no_data(tp_transport *t, int to, int tag, const void *data, size_t bytes,
                         tp_request *r) {
    if (tag != TP_TAG_DATA) return plain_send(t, to, tag, data, bytes, r);
    snprintf(t->error, sizeof t->error, "the cable is out");
    return false;
}
static atomic_bool taken_back;
static void cancel_slowly(tp_transport *t, tp_request *r) {
    nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
    plain_cancel(t, r);
    atomic_store(&taken_back, true);
}
typedef struct broken_end {
    local_world *w;
    int rank;
    bool failed, taken_back;
} broken_end;
static void *run_broken_end(void *arg) {
    broken_end *e = arg;
    tp_ctx *c;
    tp_comm *m;
    float data[8000] = {0};
    tp_piece piece = {data, {8000, 1, -1}};
    tp_transport *t = local_transport(e->w, e->rank);
    if (e->rank) {
        plain_send = t->send;
        t->send = send_no_data;
    } else {
        plain_cancel = t->cancel;
        t->cancel = cancel_slowly;
    }
    if (tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1, .memory_limit = 1 << 20})) return NULL;
    if (!tp_comm_open_on(&m, c, 20, t)) {
        e->failed = tp_comm_wait(m, c, tp_comm_start(m, c, TP_ALLREDUCE, &piece, 1)) != 0;
        e->taken_back = atomic_load(&taken_back);
        tp_comm_close(m, tp_error(c));
    }
    tp_ctx_free(c);
    return NULL;
}
static void test_memory_is_free_after_a_failure(void **state) {
    (void)state;
    local_world *w = local_world_new(2);
    broken_end end[2] = {{.w = w, .rank = 0}, {.w = w, .rank = 1}};
    pthread_t thread[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, run_broken_end, &end[i]), 0);
    for (int i = 0; i < 2; i++) pthread_join(thread[i], NULL);
    assert_true(end[0].failed && end[1].failed);
    assert_true(end[0].taken_back);
    local_world_free(w);
}

static void test_silence(void **state) {
    (void)state;
    bad_case b = {
        "silence",
        silence,
        2,
        15,
        "rank 1 (host1) has given no sign of life for 2 s: it died, hangs, or its machine "
        "cannot be reached",
        "rank ",
        true,
        0};
    run_bad(&b, 4);
    run_bad(&(bad_case){"long computation", long_computation, 2, 15, "", "", false, 0}, 2);
}

/* ---- opening -------------------------------------------------------------------------------- */
static void test_self(void **state) {
    (void)state;
    tp_ctx *c;
    tp_comm *m;
    assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1}), 0);
    assert_int_equal(tp_comm_open(&m, c, &(tp_comm_opts){.kind = TP_COMM_SELF}), 0);
    assert_int_equal(tp_comm_size(m) * 100 + tp_comm_rank(m) * 10 + tp_comm_local_size(m), 101);
    assert_string_equal(tp_comm_name(m), "self");
    float x[2] = {1, 2};
    tp_piece p = {x, {2, 1, -1}};
    int64_t t = tp_comm_start(m, c, TP_ALLREDUCE, &p, 1);
    assert_int_equal(t, 1);
    assert_int_equal(tp_comm_wait(m, c, t), 0);
    assert_true(x[0] == 1 && x[1] == 2);
    assert_int_equal(tp_comm_agree(m, c, "config", "a"), 0);
    assert_int_equal(tp_comm_wait(m, c, 7), TP_EARG);
    tp_clear(c);
    struct {
        tp_piece piece;
        const char *says;
    } bad[] = {{{x, {-1, 1, -1}}, "a number of values below 0"},
               {{x, {2, 0, -1}}, "a unit below 1"},
               {{x, {2, 1, 1}}, "an owner that is no rank"},
               {{x, {2, 1, -2}}, "an owner that is no rank"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(tp_comm_start(m, c, TP_ALLREDUCE, &bad[i].piece, 1), 0);
        assert_non_null(strstr(tp_error(c), bad[i].says));
        tp_clear(c);
    }
    tp_comm_close(m, NULL);
    tp_comm_close(NULL, NULL);
    assert_int_equal(tp_comm_open(&m, c, &(tp_comm_opts){.kind = TP_COMM_PLAN, .plan_ranks = 6}),
                     TP_EARG);
    assert_string_equal(tp_error(c), "6 ranks: the reduction tree needs a power of two");
    tp_clear(c);
    local_world *w = local_world_new(3);
    assert_int_equal(tp_comm_open_on(&m, c, 1, local_transport(w, 0)), TP_EARG);
    assert_string_equal(tp_error(c), "3 ranks: the reduction tree needs a power of two");
    local_world_free(w);
    tp_ctx_free(c);
}

static void test_out_of_memory(void **state) {
    (void)state;
    for (long at = 1; at < 20; at++) {
        tp_ctx *c;
        tp_comm *m;
        local_world *w = local_world_new(1);
        assert_int_equal(tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1, .fail_alloc_at = 0}), 0);
        c->fail_alloc_at = at;
        float x[2] = {1, 2};
        tp_status st = tp_comm_open_on(&m, c, 5, local_transport(w, 0));
        if (!st) {
            tp_comm_start(m, c, TP_ALLREDUCE, &(tp_piece){x, {2, 1, -1}}, 1);
            st = tp_error_status(c);
            tp_comm_close(m, st ? tp_error(c) : NULL);
        }
        local_world_free(w);
        tp_ctx_free(c);
        if (!st) {
            assert_true(at > 6);
            return;
        }
        assert_int_equal(st, TP_ENOMEM);
    }
    fail_msg("allocations never end");
}

static void test_launcher(void **state) {
    (void)state;
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK",
                                        "PMIX_RANK"};
    for (int i = 0; i < 4; i++) unsetenv(names[i]);
    assert_int_equal(tp_transport_launched(), 1);
    setenv("PMIX_RANK", "0", 1);
    assert_int_equal(tp_transport_launched(), 0);
    setenv("PMI_SIZE", "4", 1);
    assert_int_equal(tp_transport_launched(), 4);
    setenv("OMPI_COMM_WORLD_SIZE", "1", 1);
    assert_int_equal(tp_transport_launched(), 1);
    for (int i = 0; i < 4; i++) unsetenv(names[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_shards),
        cmocka_unit_test(test_moves),
        cmocka_unit_test(test_long_moves),
        cmocka_unit_test(test_order_matters),
        cmocka_unit_test(test_traffic),
        cmocka_unit_test(test_small_calls),
        cmocka_unit_test(test_barrier),
        cmocka_unit_test(test_disagreements),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_memory_is_free_after_a_failure),
        cmocka_unit_test(test_silence),
        cmocka_unit_test(test_self),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_launcher),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
