/* tapir version */
#include "cli/cli.h"
#include "core/ctx.h"
#include "core/device.h"
#include "tapir_version.h"
#include <stdio.h>

int cmd_version(int argc, char **argv) {
    const struct argp argp = {.doc =
                                  "Prints the version, and what this build and this CPU can do."};
    argp_parse(&argp, argc, argv, 0, NULL, NULL);
    tp_ctx *c;
    if (tp_ctx_new(&c, NULL)) return EXIT_FAILED;
    printf("tapir %s (%s)\n", TAPIR_VERSION, TAPIR_COMMIT);
    printf("compiler  gcc %s\n", __VERSION__);
    printf("device    cpu, %d thread%s, %s kernels\n", c->threads, c->threads == 1 ? "" : "s",
           c->isa == 4   ? "AVX-512"
           : c->isa == 3 ? "AVX2"
                         : "portable");
    char gpu[160] = "not built in (cmake --preset cuda builds it)";
    if (&tp_cuda_backend) tp_cuda_backend.describe(gpu, sizeof gpu);
    printf("cuda      %s\n", gpu);
    printf("ranks     %s\n", tp_comm_transports());
    tp_ctx_free(c);
    return EXIT_DONE;
}
