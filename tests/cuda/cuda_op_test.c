/* Every op's CUDA kernels, by its samples, against its float64 oracle: `cuda_op_test NAME`, one
 * CTest per op. Linked with CUDA it runs on the GPU, else on the CPU (tests/cuda_on_cpu). */
#include "opcheck_device.h"
#include <stdio.h>
#include <string.h>
#if defined(TP_CUDA_ON_CPU)
#include "emu.h"
#endif

void op_device_order(int other) {
#if defined(TP_CUDA_ON_CPU)
    emu_set_order(other ? "random:7" : NULL); /* of threads and of blocks */
    emu_set_async(other ? "early" : NULL);
#else
    (void)other;
#endif
}

/* Updates of f32 masters, and what is made of them. */
bool op_device_f32_only(const tp_op *op) {
    static const char *const names[] = {"adamw_", "sgd_", "momentum_", "newton_schulz", NULL};
    for (int i = 0; names[i]; i++)
        if (!strcmp(op->name, names[i])) return true;
    return false;
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: cuda_op_test OP\n"), 2;
    const tp_op *op = tp_op_find(argv[1]);
    if (!op) return fprintf(stderr, "cuda_op_test: there is no op %s\n", argv[1]), 2;
    op_report r = {0};
    for (const tp_sample *s = op->samples; s && s->name; s++) {
        r.sample = s->name;
        if (s->refuse) {
            op_check_device_refusal(&r, op, s);
            continue;
        }
        op_check_device(&r, op, s);
        op_check_device_gradient(&r, op, s);
    }
    printf("%s: %d checks, %d kernel runs (worst f32 error %.1e), %d mutants rejected, %d failed\n",
           op->name, r.checks, r.kernel_runs, r.worst_kernel, r.mutants, r.failed);
    return r.failed != 0;
}
