/* dist/nccl.c on pretended GPUs: sums along the tree, the order of calls that NCCL asks for, every
 * call failing once, refusals that all ranks share. What real GPUs do this cannot tell. */
#include "core/ctx.h"
#include "dist/nccl.h"
#include "fake_cuda.h"
#include "local_ranks.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { MOST = 4, SEGMENT = TP_SEGMENT_BYTES / 4, VALUES = 5 * SEGMENT + 3 };

typedef struct gpu_rank {
    local_world *world;
    int rank, size;
    int rounds;
    size_t transport_bytes; /* of the build that the module is said to be loaded by */
    bool no_memory, falls_silent;
    tp_status opened;
    char said[400];
    bool right; /* all sums were */
} gpu_rank;

static float value(int rank, int64_t i) {
    return (float)((i * 7919 + rank * 104729) % 65536 - 32768) / (rank % 2 ? 3.0f : 7e4f);
}

static bool reduce(gpu_rank *r, tp_comm *m, tp_ctx *c, float *x) {
    for (int64_t i = 0; i < VALUES; i++) x[i] = value(r->rank, i);
    /* the second piece is one rank's: a segment with nothing in one direction */
    tp_piece p[2] = {{x, {3 * SEGMENT + 1, 1, -1}},
                     {x + 3 * SEGMENT + 1, {VALUES - 3 * SEGMENT - 1, 1, r->size - 1}}};
    int64_t t = tp_comm_start(m, c, TP_ALLREDUCE, p, 2);
    if (!t || tp_comm_wait(m, c, t)) return false;
    for (int64_t i = 0; i < VALUES; i++) {
        float want = value(0, i);
        if (r->size > 1) want += value(1, i);
        if (r->size > 2) {
            float right = value(2, i) + value(3, i);
            want += right;
        }
        if (memcmp(&want, &x[i], sizeof want)) return false;
    }
    return true;
}

static void *rank_main(void *arg) {
    gpu_rank *r = arg;
    tp_ctx *c;
    tp_comm *m = NULL;
    tp_transport *t, *local = local_transport(r->world, r->rank);
    if (tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1})) return NULL;
    local->local_rank = r->rank;
    fake_be(r->rank);
    if (r->no_memory) c->fail_alloc_at = 1;
    tp_nccl_host host = {.transport_bytes = r->transport_bytes,
                         .mpi = local,
                         .c = c,
                         .calloc = tp_calloc,
                         .free = tp_free,
                         .now = tp_now,
                         .fail = tp_fail,
                         .agree = tp_nccl_agree};
    float *x = malloc(VALUES * sizeof *x);
    r->opened = tp_nccl_open(&t, &host);
    if (r->opened)
        local->close(local, TP_LEAVE_TOGETHER);
    else
        tp_comm_open_on(&m, c, 1, t);
    r->right = m != NULL;
    for (int i = 0; i < r->rounds && r->right; i++) {
        r->right = reduce(r, m, c, x);
        if (r->falls_silent) local_stop(r->world, r->rank);
    }
    snprintf(r->said, sizeof r->said, "%s", tp_error(c));
    tp_comm_close(m, tp_error_status(c) ? tp_error(c) : NULL);
    free(x);
    tp_ctx_free(c);
    return NULL;
}

static bool run(gpu_rank r[MOST], int size, int rounds) { /* false: somebody aborted */
    pthread_t thread[MOST];
    local_world *w = local_world_new(size);
    for (int i = 0; i < size; i++) {
        r[i].world = w;
        r[i].rank = i;
        r[i].size = size;
        r[i].rounds = rounds;
        if (!r[i].transport_bytes) r[i].transport_bytes = sizeof(tp_transport);
        pthread_create(&thread[i], NULL, rank_main, &r[i]);
    }
    for (int i = 0; i < size; i++) pthread_join(thread[i], NULL);
    bool aborted = local_aborted(w);
    local_world_free(w);
    return !aborted;
}

static void test_sums(void **state) {
    (void)state;
    for (int size = 1; size <= 4; size *= 2) {
        gpu_rank r[MOST] = {{0}};
        fake_begin(size, size);
        assert_true(run(r, size, 3));
        for (int i = 0; i < size; i++) {
            assert_string_equal(r[i].said, "");
            assert_true(r[i].right);
        }
        if (fake_sin()) fail_msg("%d ranks: %s", size, fake_sin());
        assert_int_equal(fake_left(), 0);
        assert_true(size == 1 ? fake_groups() == 0 : fake_groups() > 20);
    }
}

static void test_refusals(void **state) {
    (void)state;
    static const struct {
        int devices, rank;
        const char *says;
    } cases[] = {
        {0, -1, "rank 0 (host0): NCCL needs a GPU, and there is none: none"},
        {4, 2, "rank 2 (host2): libtapir_nccl.so is of another build"},
        {4, 3, "rank 3 (host3): out of memory"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        gpu_rank r[MOST] = {{0}};
        fake_begin(4, cases[i].devices);
        if (cases[i].rank == 2) r[2].transport_bytes = 1;
        if (cases[i].rank == 3) r[3].no_memory = true;
        run(r, 4, 1);
        for (int k = 0; k < 4; k++) {
            assert_int_not_equal(r[k].opened, TP_OK);
            assert_int_not_equal(r[k].opened, TP_EIO); /* they leave together */
            if (!r[k].no_memory) assert_string_equal(r[k].said, cases[i].says);
        }
        assert_int_equal(fake_left(), 0);
    }
}

/* Whatever fails on rank 1: nobody hangs, both say why, nothing is left. */
static void test_failures(void **state) {
    (void)state;
    static const char *const functions[] = {"cudaGetDeviceCount", "cudaSetDevice",
                                            "cudaMalloc",         "cudaStreamCreateWithFlags",
                                            "cudaMallocHost",     "cudaEventCreateWithFlags",
                                            "cudaMemcpyAsync",    "cudaEventRecord",
                                            "cudaEventQuery",     "ncclCommInitRankConfig",
                                            "ncclGroupStart",     "ncclCommGetAsyncError",
                                            "ncclSend",           "ncclRecv",
                                            "ncclGroupEnd"};
    static const int nth[] = {1, 2, 9};
    int happened = 0;
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        for (int k = 0; k < 3; k++) {
            gpu_rank r[MOST] = {{0}};
            fake_begin(2, 2);
            fake_fail(1, functions[i], nth[k]);
            bool together = run(r, 2, 2);
            if (fake_sin()) fail_msg("%s %d: %s", functions[i], nth[k], fake_sin());
            if (together && fake_left()) fail_msg("%s %d: left over", functions[i], nth[k]);
            if (!fake_failed()) continue;
            happened++;
            bool query = !strcmp(functions[i], "cudaEventQuery"); /* the fault is another call's */
            if (!r[0].said[0] || !strstr(r[1].said, query ? "on the GPU" : functions[i]))
                fail_msg("%s %d: \"%s\", \"%s\"", functions[i], nth[k], r[0].said, r[1].said);
        }
    assert_true(happened > 30);
}

static void test_silence(void **state) {
    (void)state;
    gpu_rank r[MOST] = {{0}};
    fake_begin(2, 2);
    r[1].falls_silent = true;
    assert_false(run(r, 2, 3));
    assert_non_null(strstr(r[0].said, "rank 1 (host1) has given no sign of life for 1 s"));
    if (fake_sin()) fail_msg("%s", fake_sin());
    fake_begin(0, 0); /* what the one that aborted never gave back */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_silence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
