/* The CUDA side of a context, for .cu files. Under TP_CUDA_ON_CPU the same names come from
 * tests/cuda_on_cpu/, which runs kernels on the CPU. */
#ifndef TP_CUDA_H
#define TP_CUDA_H
#include "core/ctx.h"
#include "core/device.h"
#if defined(TP_CUDA_ON_CPU)
#include "cuda_on_cpu.h"
#include "cuda_runtime.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#endif

/* What kernels found wrong in their data (an id outside a table): the smallest code wins, so the
 * sentence does not depend on which thread came first. Read at every sync. */
typedef struct tp_cuda_fault {
    unsigned long long first; /* ~0: nothing */
} tp_cuda_fault;

/* Small updates of many tensors (an optimizer's) go in one launch: a kernel may hand in its part
 * here. Whatever is asked of the stream next, be it another kernel, a copy or a wait, sends what
 * has gathered first, so nobody can tell. */
enum { TP_GATHER_BYTES = 4608 };
typedef struct tp_cuda_gathered {
    tp_status (*launch)(tp_ctx *c, const void *items, int n); /* NULL: nothing has */
    int n;
    alignas(16) unsigned char items[TP_GATHER_BYTES];
} tp_cuda_gathered;

enum { TP_STAGES = 4, TP_STAGE_BYTES = 1 << 20 };
typedef struct tp_cuda {
    cudaStream_t stream;
    int device, sm; /* sm: 80, 90 */
    int multiprocessors;
    size_t shared_optin; /* bytes of shared memory that a block may have */
    tp_cuda_fault *fault;
    char *stage[TP_STAGES]; /* pinned, for uploads that overlap with kernels */
    cudaEvent_t staged[TP_STAGES];
    int next_stage;
    tp_cuda_gathered gathered;
    cudaGraphExec_t graph; /* the step, where it is captured */
    void *blas;            /* ops/matmul's handle and plans */
    void (*blas_free)(void *blas);
} tp_cuda;

static inline tp_cuda *tp_cuda_of(const tp_ctx *c) { return (tp_cuda *)c->on_device; }
/* 80, 90, …: the compute capability of the context's GPU or, where memory is planned without one,
 * of the GPU that would be taken; 80 if there is none. */
int tp_cuda_sm(const tp_ctx *c);
/* Hands in one item of `bytes` (the same for each call with this launch). */
tp_status tp_cuda_gather(tp_ctx *c, tp_status (*launch)(tp_ctx *c, const void *items, int n),
                         const void *item, size_t bytes);
tp_status tp_cuda_send(tp_ctx *c); /* what has gathered */
/* The stream, for whoever puts something on it without TP_LAUNCH. */
static inline cudaStream_t tp_cuda_stream(tp_ctx *c) {
    tp_cuda_send(c);
    return tp_cuda_of(c)->stream;
}
/* cuda_carry.cu */
tp_status tp_cuda_carry_new(tp_carry **out, tp_ctx *c, size_t bytes);
void tp_cuda_carry_free(tp_carry *k);
tp_status tp_cuda_carry_out(tp_ctx *c, tp_carry *k, const tp_carry_part *part, int n);
tp_arrival tp_cuda_carry_arrived(tp_carry *k, char *why, size_t room);
tp_status tp_cuda_carry_in(tp_ctx *c, tp_carry *k, const tp_carry_part *part, int n);
/* TP_OK for cudaSuccess; else fails with "what: CUDA's sentence". */
tp_status tp_cuda_check(tp_ctx *c, cudaError_t e, const char *what);
#endif
