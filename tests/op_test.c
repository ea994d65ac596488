/* Every op, by its samples, against its float64 oracle: `op_test NAME`, one CTest per op.
 *
 * For each sample: the vjp against differences (and the vjp times 1.01 must be rejected), second
 * order where it is offered, every kernel against the oracle on dense and strided inputs (and a
 * wrong value must be rejected), f32 gradients against f64 ones, bf16, bits equal for 1, 2 and 3
 * threads and for every instruction set, META, refusals in words, and a failure at every
 * allocation. */
#include "opcheck.h"
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: op_test OP\n"), 2;
    const tp_op *op = tp_op_find(argv[1]);
    if (!op) return fprintf(stderr, "op_test: there is no op %s\n", argv[1]), 2;
    op_report r = {0};
    op_check_row(&r, op);
    for (const tp_sample *s = op->samples; s && s->name; s++) {
        r.sample = s->name;
        if (s->refuse) {
            op_check_refusal(&r, op, s);
            continue;
        }
        op_check_gradient(&r, op, s);
        op_check_kernels(&r, op, s);
        op_check_f32_gradient(&r, op, s);
        op_check_bf16(&r, op, s);
        op_check_threads(&r, op, s);
        op_check_meta(&r, op, s);
        op_check_oom(&r, op, s);
    }
    printf("%s: %d checks, %lld derivatives (worst error %.1e), %d second-order, %d kernel runs "
           "(worst error %.1e), %d mutants rejected, %d allocation failures, %d failed\n",
           op->name, r.checks, (long long)r.derivatives, r.worst_derivative, r.second_order,
           r.kernel_runs, r.worst_kernel, r.mutants, r.oom, r.failed);
    return r.failed != 0;
}
