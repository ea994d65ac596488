/* One rank of tests/mpirun.sh: dist_rank MODE TIMEOUT FOLDER under mpirun. Writes FOLDER/R.pid when
 * it begins and FOLDER/R.said, its sentence or "good", before it leaves. Exit code 1 unless good.
 *
 *   moves      every move and small call, the sums against a tree computed here
 *   wrong      the same with one value of one rank changed: must be noticed
 *   endless    allreduces until something happens to it
 *   fails      rank 1 closes with a failure while the others wait for it
 *   text       rank 2 brings another text
 *   call       rank 3 makes another call */
#include "core/ctx.h"
#include "dist/comm.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PIECES = 5 };
typedef struct rank {
    tp_ctx *c;
    tp_comm *m;
    int rank, size;
    const char *folder;
    bool wrong;
    float *data[PIECES]; /* after a failure it must stay until tp_comm_close */
    char said[500];      /* the first complaint */
} rank;

static void say(rank *r, const char *text) {
    if (!r->said[0]) snprintf(r->said, sizeof r->said, "%s", text);
}
static void say_error(rank *r, tp_status st) {
    if (st) say(r, tp_error(r->c));
}

static bool write_text(const rank *r, const char *suffix, const char *text) {
    char path[500], part[520];
    snprintf(path, sizeof path, "%s/%d.%s", r->folder, r->rank, suffix);
    snprintf(part, sizeof part, "%s.part", path); /* the script sees it whole or not at all */
    FILE *f = fopen(part, "w");
    bool ok = f && fprintf(f, "%s\n", text) > 0;
    if (f && fclose(f)) ok = false;
    return ok && !rename(part, path);
}

/* ---- sums ----------------------------------------------------------------------------------- */
/* Any sign, 24 bits, magnitudes over 2^24: the order of adding shows. */
static float value(int who, int piece, int64_t i) {
    uint64_t h = (uint64_t)(who * 131 + piece * 17 + 1) * 0x9e3779b97f4a7c15 + (uint64_t)i;
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9;
    h = (h ^ (h >> 27)) * 0x94d049bb133111eb;
    h ^= h >> 31;
    float x = (float)(int32_t)(h >> 32) / 2147483648.0f;
    for (int e = (int)(h % 25); e > 0; e--) x *= 0.5f;
    return x;
}
/* Ranks lo <= who < hi: left half plus right half. */
static float tree(int lo, int hi, int piece, int64_t i) {
    if (hi - lo == 1) return value(lo, piece, i);
    float left = tree(lo, (lo + hi) / 2, piece, i), right = tree((lo + hi) / 2, hi, piece, i);
    return left + right;
}

static void check(rank *r, const tp_piece *p, int piece, tp_range in, const char *what) {
    for (int64_t i = in.first; i < in.first + in.n; i++) {
        float want = tree(0, r->size, piece, i);
        if (!memcmp(&want, &p->data[i], sizeof want)) continue;
        char text[200];
        snprintf(text, sizeof text, "%s: piece %d, value %lld: %a, not %a", what, piece,
                 (long long)i, (double)p->data[i], (double)want);
        say(r, text);
        return;
    }
}

static void every_move(rank *r) {
    enum { SEGMENT = TP_SEGMENT_BYTES / 4, N = PIECES };
    static const tp_move move[] = {TP_REDUCE_SCATTER, TP_ALLGATHER, TP_ALLREDUCE};
    static const char *const name[] = {"reduce-scatter", "allgather", "allreduce"};
    tp_piece p[N] = {{NULL, {3 * SEGMENT + 5, 64, -1}},
                     {NULL, {0, 1, -1}},
                     {NULL, {SEGMENT - 7, 1, r->size - 1}},
                     {NULL, {1, 1, -1}},
                     {NULL, {77, 5, -1}}};
    for (int k = 0; k < N; k++)
        if (!(p[k].data = r->data[k] = calloc((size_t)p[k].cut.n + 1, sizeof(float)))) exit(2);
    for (int round = 0; round < 3; round++) { /* the second gathers the first's */
        for (int k = 0; k < N && round != 1; k++)
            for (int64_t i = 0; i < p[k].cut.n; i++) p[k].data[i] = value(r->rank, k, i);
        if (r->wrong && r->rank == r->size - 1) p[4].data[76] *= 1.0000002f;
        int64_t ticket = tp_comm_start(r->m, r->c, move[round], p, N);
        say_error(r, ticket ? tp_comm_wait(r->m, r->c, ticket) : tp_error_status(r->c));
        for (int k = 0; k < N; k++)
            check(r, &p[k], k,
                  round ? (tp_range){0, p[k].cut.n} : tp_comm_shard(r->m, &p[k].cut, r->rank),
                  name[round]);
    }
}

static double tree64(int lo, int hi, int64_t i) {
    if (hi - lo == 1) return value(lo, 9, i) / 3.0;
    double left = tree64(lo, (lo + hi) / 2, i), right = tree64((lo + hi) / 2, hi, i);
    return left + right;
}

static void small_calls(rank *r) {
    enum { N = 1000, BYTES = TP_SEGMENT_BYTES + 9 };
    static double x[N];
    static unsigned char b[BYTES];
    for (int i = 0; i < N; i++) x[i] = value(r->rank, 9, i) / 3.0;
    say_error(r, tp_comm_sum_f64(r->m, r->c, x, N));
    for (int i = 0; i < N; i++) {
        double want = tree64(0, r->size, i);
        if (memcmp(&want, &x[i], sizeof want)) say(r, "sum_f64 differs");
    }
    for (int root = 0; root < r->size; root++) {
        memset(b, r->rank == root ? 40 + root : 0, BYTES);
        say_error(r, tp_comm_broadcast(r->m, r->c, b, BYTES, root));
        for (int i = 0; i < BYTES; i++)
            if (b[i] != 40 + root) say(r, "broadcast differs");
    }
    say_error(r, tp_comm_agree(r->m, r->c, "config", "steps: 5\nseed: 1\n"));
    say_error(r, tp_comm_barrier(r->m, r->c));
}

/* ---- what can go wrong ---------------------------------------------------------------------- */
static tp_status reduce(rank *r, int64_t n) {
    static float x[1 << 20];
    int64_t t = tp_comm_start(r->m, r->c, TP_ALLREDUCE, &(tp_piece){x, {n, 1, -1}}, 1);
    return t ? tp_comm_wait(r->m, r->c, t) : tp_error_status(r->c);
}

static void run(rank *r, const char *mode) {
    if (!strcmp(mode, "moves") || !strcmp(mode, "wrong")) {
        r->wrong = mode[0] == 'w';
        every_move(r);
        small_calls(r);
        return;
    }
    say_error(r, reduce(r, 1 << 20));
    if (!strcmp(mode, "endless"))
        while (!reduce(r, 1 << 20)) continue;
    else if (!strcmp(mode, "fails"))
        r->rank == 1 ? tp_fail(r->c, TP_EIO, "disk full") : tp_comm_barrier(r->m, r->c);
    else if (!strcmp(mode, "text"))
        tp_comm_agree(r->m, r->c, "config", r->rank == 2 ? "a: 1\nseed: 2\n" : "a: 1\nseed: 1\n");
    else if (!strcmp(mode, "call"))
        reduce(r, r->rank == 3 ? 11 : 12);
    else
        say(r, "no such mode");
    say_error(r, tp_error_status(r->c));
}

int main(int argc, char **argv) {
    rank r = {.folder = argc > 3 ? argv[3] : "."};
    if (argc != 4 || tp_ctx_new(&r.c, &(tp_ctx_opts){.threads = 1})) return 2;
    tp_comm_opts o = {.kind = TP_COMM_MPI, .timeout = atof(argv[2])};
    if (tp_comm_open(&r.m, r.c, &o)) {
        fprintf(stderr, "dist_rank: %s\n", tp_error(r.c));
        tp_ctx_free(r.c);
        return 1;
    }
    r.rank = tp_comm_rank(r.m);
    r.size = tp_comm_size(r.m);
    char pid[32];
    snprintf(pid, sizeof pid, "%ld", (long)getpid());
    if (!write_text(&r, "pid", pid)) say(&r, "cannot write its pid");
    run(&r, argv[1]);
    bool good = !r.said[0];
    write_text(&r, "said", good ? "good" : r.said);
    tp_comm_close(r.m, tp_error_status(r.c) ? tp_error(r.c) : NULL);
    for (int k = 0; k < PIECES; k++) free(r.data[k]);
    tp_ctx_free(r.c);
    return !good;
}
