/* Kernels of one op, chosen by name, on the same numbers: how fast each is, and whether it computes
 * the same bits as the one that Tapir chooses. On one thread.
 *
 *   lesson_ladder [N]    matrices of N x N, 64 to 2048; else 768 */
#include "core/ctx.h"
#include "ops/attention/attention.h"
#include "ops/matmul/matmul.h"
#include "ops/op.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ROUNDS = 3, CAP = 4 << 20 };

/* The version of a kernel for the best instruction set that this machine has. */
static const tp_kernel *kernel_named(const tp_ctx *c, const char *op, const char *name) {
    const tp_kernel *const *list = tp_op_find(op)->kernel[TP_CPU];
    for (int i = 0; list[i]; i++)
        if (list[i]->isa <= c->isa && !strcmp(list[i]->name, name)) return list[i];
    return NULL;
}

typedef struct numbers { /* two matrices; or q, k and v */
    tp_tensor *in[3];
} numbers;

static tp_tensor *product(tp_ctx *c, const numbers *x) {
    return tp_matmul(c, x->in[0], x->in[1], NULL);
}
static tp_tensor *attend(tp_ctx *c, const numbers *x) {
    return tp_attention(c, x->in[0], x->in[1], x->in[2], &(tp_attention_opts){.causal = true},
                        NULL);
}

/* lesson: ask */
/* The op with this kernel and no other: its best time of some, in processor time, and its result.
 */
static double seconds(tp_ctx *c, tp_tensor *(*op)(tp_ctx *, const numbers *), const numbers *x,
                      const tp_kernel *kernel, float *result) {
    double best = INFINITY;
    c->only_kernel = kernel;
    for (int i = 0; i < ROUNDS; i++) {
        clock_t start = clock(); /* of this process: others may run beside it */
        tp_tensor *y = op(c, x);
        best = fmin(best, (double)(clock() - start) / CLOCKS_PER_SEC);
        if (y) memcpy(result, y->data, (size_t)tp_numel(y) * sizeof *result);
        tp_step_end(c);
    }
    c->only_kernel = NULL;
    return best;
}
/* end */

static tp_tensor *random_tensor(tp_ctx *c, int ndim, const int64_t *shape, uint64_t which) {
    tp_tensor *t = tp_tensor_keep(c, TP_F32, ndim, shape);
    for (int64_t i = 0; t && i < tp_numel(t); i++)
        tp_f32(t)[i] = (float)tp_normal(1, TP_RNG_TEST, which, (uint64_t)i);
    return t;
}

/* Kernels from the slowest to the one that Tapir takes, which is the last. */
static void climb(tp_ctx *c, const char *op, tp_tensor *(*call)(tp_ctx *, const numbers *),
                  const numbers *x, const char *const name[], int n, size_t values) {
    static float want[CAP], got[CAP];
    double slowest = 0;
    seconds(c, call, x, kernel_named(c, op, name[n - 1]), want);
    for (int i = 0; i < n && !tp_error_status(c); i++) {
        c->flops = 0;
        double s = seconds(c, call, x, kernel_named(c, op, name[i]), got);
        double rate = c->flops / ROUNDS / s / 1e9;
        if (i == 0) slowest = rate;
        printf("%-20s %7.1f GFLOP/s  %6.1f times, %s\n", name[i], rate, rate / slowest,
               memcmp(want, got, values * sizeof *got) ? "other bits" : "the same bits");
    }
}

int main(int argc, char **argv) {
    static const char *const matmul[] = {"matmul_naive_cpu", "matmul_rows_cpu", "matmul_blocks_cpu",
                                         "matmul_tile_cpu", "matmul_cpu"};
    static const char *const attention[] = {"attention_naive_cpu", "attention_flash_cpu"};
    int64_t N = argc > 1 ? strtol(argv[1], NULL, 10) : 768, T = N, H = 4, D = 64;
    tp_ctx *c;
    if (argc > 2 || N < 64 || N > 2048)
        return fputs("usage: lesson_ladder [N], 64 to 2048\n", stderr), 2;
    if (tp_ctx_new(&c, &(tp_ctx_opts){.threads = 1})) return 1;
    numbers a = {{random_tensor(c, TP_SHAPE(N, N), 0), random_tensor(c, TP_SHAPE(N, N), 1)}}, b;
    for (int i = 0; i < 3; i++) b.in[i] = random_tensor(c, TP_SHAPE(1, T, H, D), (uint64_t)i);
    climb(c, "matmul", product, &a, matmul, 5, (size_t)(N * N));
    climb(c, "attention", attend, &b, attention, 2, (size_t)(T * H * D));
    tp_status st = tp_error_status(c);
    if (st) fprintf(stderr, "lesson_ladder: %s\n", tp_error(c));
    tp_ctx_free(c);
    return st != TP_OK;
}
