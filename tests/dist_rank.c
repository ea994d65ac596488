/* One rank of tests/mpirun.sh: dist_rank MODE FOLDER. Writes its number to FOLDER/RANK.pid, and
 * what it has to say to FOLDER/RANK. Ends with 0 where all was well, 1 where the communicator
 * failed, 3 where a result was wrong. sums   every move, compared bit for bit with the tree on goes
 * on until something happens fail   rank 1 stops in the middle of large messages other  rank 1 does
 * something else */
#include "dist/dist.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N = 700001 };
static float value(int rank, int64_t i) { /* any sign, magnitudes from 2^-12 to 2^12 */
    uint32_t w[4];
    tp_philox(w, 7, (uint32_t)rank, (uint64_t)i, 0);
    return ldexpf((float)(int32_t)w[0] / 2147483648.0f, (int)(w[1] % 25) - 12);
}
static float tree_sum(int lo, int hi, int64_t i) {
    if (hi - lo == 1) return value(lo, i);
    float left = tree_sum(lo, (lo + hi) / 2, i), right = tree_sum((lo + hi) / 2, hi, i);
    return left + right;
}

static tp_status move(tp_comm *m, tp_ctx *c, tp_move how, float *x, int64_t n) {
    tp_piece p[3] = {{x, {n / 2, 16, -1}},
                     {x + n / 2, {n / 4, 1, tp_comm_size(m) - 1}},
                     {x + n / 2 + n / 4, {n - n / 2 - n / 4, 1, -1}}};
    int64_t t = tp_comm_start(m, c, how, p, 3);
    return t ? tp_comm_wait(m, c, t) : tp_error_status(c);
}

static bool sums_are_right(tp_comm *m, tp_ctx *c, float *x, bool *ran) {
    int rank = tp_comm_rank(m), size = tp_comm_size(m);
    *ran = false;
    for (int round = 0; round < 2; round++) {
        for (int64_t i = 0; i < N; i++) x[i] = value(rank, i);
        if (round == 0) {
            if (move(m, c, TP_ALLREDUCE, x, N)) return false;
        } else if (move(m, c, TP_REDUCE_SCATTER, x, N) || move(m, c, TP_ALLGATHER, x, N))
            return false;
        for (int64_t i = 0; i < N; i++) {
            float want = tree_sum(0, size, i);
            *ran = true;
            if (memcmp(&want, &x[i], sizeof want)) return false;
        }
    }
    double s[2] = {rank, 1}, want = size * (size - 1) / 2.0;
    return !tp_comm_sum_f64(m, c, s, 2) && s[0] == want && s[1] == size && !tp_comm_barrier(m, c) &&
           !tp_comm_agree(m, c, "config", "the same");
}

static tp_status run(const char *mode, tp_comm *m, tp_ctx *c, float *x, bool *wrong) {
    int rank = tp_comm_rank(m);
    if (!strcmp(mode, "sums")) {
        bool ran;
        bool right = sums_are_right(m, c, x, &ran);
        *wrong = ran && !right && !tp_error_status(c);
        return tp_error_status(c);
    }
    memset(x, 0, N * sizeof *x);
    for (int k = 0; k < 3 || !strcmp(mode, "on"); k++)
        if (move(m, c, TP_ALLREDUCE, x, N)) return tp_error_status(c);
    if (!strcmp(mode, "fail") && rank == 1) return tp_fail(c, TP_EIO, "the disk is full");
    return move(m, c, TP_ALLREDUCE, x, !strcmp(mode, "other") && rank == 1 ? N - 2 : N);
}

static FILE *open_file(const char *folder, int rank, const char *end) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%d%s", folder, rank, end);
    return fopen(path, "w");
}

int main(int argc, char **argv) {
    tp_ctx *c;
    tp_comm *m;
    if (argc != 3 || tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1})) return 2;
    if (tp_comm_open(&m, c, &(tp_comm_opts){.timeout = 2})) {
        fprintf(stderr, "%s\n", tp_error(c));
        return 1;
    }
    bool wrong = false;
    float *x = malloc(N * sizeof *x);
    FILE *f = open_file(argv[2], tp_comm_rank(m), ".pid");
    fprintf(f, "%d\n", (int)getpid());
    fclose(f);
    tp_status st = run(argv[1], m, c, x, &wrong);
    f = open_file(argv[2], tp_comm_rank(m), "");
    fprintf(f, "%s %d of %d (%d here)%s: %s\n", tp_comm_name(m), tp_comm_rank(m), tp_comm_size(m),
            tp_comm_local_size(m), tp_comm_failed_elsewhere(m) ? ", said elsewhere" : "",
            wrong ? "wrong sums"
            : st  ? tp_error(c)
                  : "well");
    fclose(f);
    tp_comm_close(m, st ? tp_error(c) : NULL);
    free(x);
    tp_ctx_free(c);
    return wrong ? 3 : st ? 1 : 0;
}
