/* Was this process started by an MPI launcher? And what a build without a transport says. */
#include "dist/transport.h"
#include <stdio.h>
#include <stdlib.h>

int tp_transport_launched(void) {
    /* Open MPI; MPICH, Intel MPI and Slurm's PMI; PMIx alone tells no size. */
    static const char *const sizes[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const char *v = getenv(sizes[i]);
        if (v && *v) return atoi(v) > 1 ? atoi(v) : 1;
    }
    return getenv("PMI_RANK") || getenv("PMIX_RANK") ? 0 : 1;
}

#ifndef TP_HAVE_MPI
bool tp_transport_has_mpi(void) { return false; }
tp_status tp_transport_mpi(tp_transport **out, tp_ctx *c) {
    *out = NULL;
    int n = tp_transport_launched();
    char ranks[32] = "several ranks";
    if (n > 1) snprintf(ranks, sizeof ranks, "%d ranks", n);
    return tp_fail(c, TP_EARG,
                   "%s were asked for, but this build has no MPI: install libopenmpi-dev and "
                   "openmpi-bin, then build again",
                   ranks);
}
#endif
#ifndef TP_HAVE_NCCL
bool tp_transport_has_nccl(void) { return false; }
tp_status tp_transport_nccl(tp_transport **out, tp_ctx *c) {
    *out = NULL;
    return tp_fail(c, TP_EARG,
                   "this build has no NCCL: install MPI, the CUDA toolkit and libnccl-dev, then "
                   "build again");
}
#endif
