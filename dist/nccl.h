/* Between the library and its NCCL module. The module is an object of its own, libtapir_nccl.so,
 * so that programs neither need CUDA to start nor pay for loading it. It calls nothing in the
 * library except through the table here. */
#ifndef TP_DIST_NCCL_H
#define TP_DIST_NCCL_H
#include "dist/transport.h"

enum { TP_NCCL_ID_BYTES = 128 };
/* What ranks tell each other before NCCL starts: nobody waits in it for one that will not come. */
typedef struct tp_nccl_verdict {
    char error[256]; /* "": this rank is ready */
    char id[TP_NCCL_ID_BYTES];
} tp_nccl_verdict;

typedef struct tp_nccl_host {
    size_t transport_bytes; /* sizeof(tp_transport): both sides are of the same build */
    tp_transport *mpi;      /* open, its thread not yet there */
    tp_ctx *c;
    void *(*calloc)(tp_ctx *c, size_t n, size_t bytes_each);
    void (*free)(void *p);
    double (*now)(void);
    tp_status (*fail)(tp_ctx *c, tp_status code, const char *fmt, ...);
    tp_status (*agree)(tp_transport *mpi, tp_ctx *c, tp_nccl_verdict *v);
} tp_nccl_host;
/* The host's agree, in launcher.c. Every rank calls it once. Then v holds rank 0's id and the
 * lowest rank's error, everywhere the same, which the ctx has too: TP_EARG. TP_EIO: MPI failed. */
tp_status tp_nccl_agree(tp_transport *mpi, tp_ctx *c, tp_nccl_verdict *v);

/* The module's one symbol. After success the MPI transport is *out's, else still the caller's.
 * TP_EIO: the other ranks may not know of the failure; any other: all have failed alike. */
typedef tp_status tp_nccl_open_fn(tp_transport **out, const tp_nccl_host *host);
tp_nccl_open_fn tp_nccl_open;
#define TP_NCCL_MODULE "libtapir_nccl.so"
#define TP_NCCL_SYMBOL "tp_nccl_open"
#endif
