/* Was this process started by an MPI launcher? The loading of the NCCL module; and what a build
 * without a transport says. */
#define _GNU_SOURCE /* dladdr */
#include "dist/nccl.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

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
#else
bool tp_transport_has_nccl(void) { return true; }

/* ---- what ranks say before the communicator's thread is there -------------------------------- */
static bool finish(tp_transport *t, tp_request *r) {
    tp_ready ready;
    while ((ready = t->test(t, r)) == TP_NOT_YET)
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    return ready == TP_READY;
}
static bool send_now(tp_transport *t, int to, const tp_nccl_verdict *v) {
    tp_request r;
    return t->send(t, to, TP_TAG_DATA, v, sizeof *v, &r) && finish(t, &r);
}
static bool recv_now(tp_transport *t, int from, tp_nccl_verdict *v) {
    tp_request r;
    return t->recv(t, from, TP_TAG_DATA, v, sizeof *v, &r) && finish(t, &r);
}

/* Rank 0 hears all, then tells all. */
tp_status tp_nccl_agree(tp_transport *t, tp_ctx *c, tp_nccl_verdict *v) {
    bool ok = true;
    tp_nccl_verdict came;
    char own[sizeof v->error];
    if (v->error[0]) {
        snprintf(own, sizeof own, "rank %d (%s): %.160s", t->rank, t->host[t->rank], v->error);
        memcpy(v->error, own, sizeof own);
    }
    for (int r = 1; ok && t->rank == 0 && r < t->size; r++) {
        ok = recv_now(t, r, &came);
        if (ok && !v->error[0]) memcpy(v->error, came.error, sizeof v->error);
    }
    for (int r = 1; ok && t->rank == 0 && r < t->size; r++) ok = send_now(t, r, v);
    if (t->rank > 0) ok = send_now(t, 0, v) && recv_now(t, 0, v);
    if (!ok) return tp_fail(c, TP_EIO, "MPI: %s", t->error);
    return v->error[0] ? tp_fail(c, TP_EARG, "%s", v->error) : TP_OK;
}

/* ---- the module ------------------------------------------------------------------------------ */
enum { PATH_BYTES = 4096 };

/* The folder part of a path, with its slash. */
static void folder_of(char *path) {
    char *slash = strrchr(path, '/');
    path[slash ? slash + 1 - path : 0] = 0;
}

/* Beside the program, then beside the library that this code is in, then where the system looks.
 * NULL: error has why; never unloaded, as CUDA leaves threads behind. */
static tp_nccl_open_fn *load(char *error, size_t room) {
    char path[3][PATH_BYTES] = {"", "", ""};
    ssize_t n = readlink("/proc/self/exe", path[0], PATH_BYTES - sizeof TP_NCCL_MODULE);
    path[0][n > 0 ? n : 0] = 0;
    Dl_info here;
    if (dladdr((void *)(intptr_t)tp_transport_has_nccl, &here) && here.dli_fname)
        snprintf(path[1], PATH_BYTES - sizeof TP_NCCL_MODULE, "%s", here.dli_fname);
    for (int i = 0; i < 3; i++) {
        folder_of(path[i]);
        strcat(path[i], TP_NCCL_MODULE);
        if (i < 2 && access(path[i], F_OK)) continue;
        void *module = dlopen(path[i], RTLD_NOW | RTLD_LOCAL);
        void *symbol = module ? dlsym(module, TP_NCCL_SYMBOL) : NULL;
        if (symbol) return (tp_nccl_open_fn *)(intptr_t)symbol;
        const char *why = dlerror();
        snprintf(error, room, "the NCCL module cannot be loaded: %s", why ? why : "no reason");
        return NULL;
    }
    return NULL;
}

tp_status tp_transport_nccl(tp_transport **out, tp_ctx *c) {
    *out = NULL;
    tp_transport *mpi;
    tp_status st = tp_transport_mpi(&mpi, c);
    if (st) return st;
    tp_nccl_verdict v = {.error = ""};
    tp_nccl_open_fn *open = load(v.error, sizeof v.error);
    const tp_nccl_host host = {.transport_bytes = sizeof(tp_transport),
                               .mpi = mpi,
                               .c = c,
                               .calloc = tp_calloc,
                               .free = tp_free,
                               .now = tp_now,
                               .fail = tp_fail,
                               .agree = tp_nccl_agree};
    st = open ? open(out, &host) : tp_nccl_agree(mpi, c, &v);
    if (st) mpi->close(mpi, st == TP_EIO ? TP_LEAVE_ALONE : TP_LEAVE_TOGETHER);
    return st;
}
#endif
