/* What core/cuda.cu promises, where only the emulator can tell:
 * - Memory that a device hands out holds anything. On the emulator it holds NaN, each time a block
 *   is taken, so a kernel that reads a workspace or an output before it has written there shows in
 *   every test of this folder.
 * - A failure is told once: the next launch, which asks CUDA for the last error, is not blamed.
 * - Each rank of a machine takes a GPU of its own, whoever started it. */
#include "core/ctx.h"
#include "core/device.h"
#include <stdio.h>
#include <stdlib.h>
#if defined(TP_CUDA_ON_CPU)
#include "core/cuda.h"
#include "emu.h"
#include "ops/add/add.h"

enum { BYTES = 3 << 20, N = BYTES / 4 }; /* beyond what the emulator's cudaMalloc fills */

static tp_ctx *open_device(void) {
    static char why[TP_WHY_BYTES];
    tp_ctx *c;
    tp_ctx_opts opts = {};
    opts.device = TP_CUDA;
    opts.threads = 1;
    opts.why = why;
    if (tp_ctx_new(&c, &opts)) printf("%s\n", why), exit(3);
    return c;
}

/* A block that is taken again does not keep what was in it. */
static bool fresh_is_nan(void) {
    static float host[N];
    tp_ctx *c = open_device();
    size_t at = 0, again = 0;
    void *p = NULL, *q = NULL;
    int numbers = 0;
    tp_status st = tp_pool_take(c, BYTES, &at, &p);
    if (!st) st = c->backend->fill(c, p, 0, BYTES);
    if (!st) tp_pool_give(c, at, BYTES);
    if (!st) st = tp_pool_take(c, BYTES, &again, &q);
    if (!st) st = tp_download_bytes(c, host, q, BYTES);
    for (int i = 0; i < N && !st; i++) numbers += host[i] == host[i];
    if (!st) tp_pool_give(c, again, BYTES);
    printf("fresh: the same block: %s; %d of %d values are numbers\n", p == q ? "yes" : "no",
           numbers, (int)N);
    tp_ctx_free(c);
    return !st && p == q && !numbers;
}

/* A context's failed allocation is not the next one's failed launch. */
static bool failure_is_told_once(void) {
    tp_ctx *c = open_device();
    void *p = NULL;
    tp_status refused = tp_cuda_check(c, cudaMalloc(&p, (size_t)99 << 30), "a test");
    tp_ctx_free(c);
    c = open_device();
    int64_t shape[1] = {4};
    float x[4] = {1, 2, 3, 4}, y[4] = {0};
    tp_tensor *t = tp_tensor_keep(c, TP_F32, 1, shape), *sum = NULL;
    tp_status st = t ? tp_upload(c, t, x) : tp_error_status(c);
    if (!st) sum = tp_add(c, t, t);
    st = sum ? tp_download(c, sum, y) : tp_error_status(c);
    printf("after a failure (%d): %s\n", (int)refused, st ? tp_error(c) : "fine");
    tp_ctx_free(c);
    return refused == TP_ENOMEM && !st && y[3] == 8;
}

/* The GPU that a rank takes of four. */
static int taken(const char *name, const char *rank) {
    setenv(name, rank, 1);
    tp_ctx *c = open_device();
    int device = tp_cuda_of(c)->device;
    tp_ctx_free(c);
    unsetenv(name);
    return device;
}
static bool ranks_spread(void) {
    emu_set_devices(4);
    int a = taken("OMPI_COMM_WORLD_LOCAL_RANK", "3"), b = taken("MPI_LOCALRANKID", "2"),
        c = taken("SLURM_LOCALID", "5"), d = taken("SLURM_LOCALID", "-1"),
        e = taken("NO_RANK", "3");
    emu_set_devices(0);
    printf("ranks take devices %d %d %d %d %d\n", a, b, c, d, e);
    return a == 3 && b == 2 && c == 1 && d == 0 && e == 0;
}

int main(void) {
    bool fresh = fresh_is_nan(), once = failure_is_told_once(), spread = ranks_spread();
    return !fresh || !once || !spread;
}
#else
int main(void) {
    puts("skipped: a real device");
    return 77;
}
#endif
