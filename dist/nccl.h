/* The inside of the NCCL transport, for nccl.c and its test, which has no GPU and brings functions
 * of its own. */
#ifndef TP_DIST_NCCL_H
#define TP_DIST_NCCL_H
#include "dist/transport.h"
#include <cuda_runtime_api.h>
#include <nccl.h>

#define TP_CUDA_CALLS(X)                                                                           \
    X(cudaGetDeviceCount)                                                                          \
    X(cudaSetDevice)                                                                               \
    X(cudaMalloc)                                                                                  \
    X(cudaFree)                                                                                    \
    X(cudaMallocHost)                                                                              \
    X(cudaFreeHost)                                                                                \
    X(cudaStreamCreateWithFlags)                                                                   \
    X(cudaStreamDestroy)                                                                           \
    X(cudaEventCreateWithFlags)                                                                    \
    X(cudaEventDestroy)                                                                            \
    X(cudaEventRecord)                                                                             \
    X(cudaEventQuery)                                                                              \
    X(cudaMemcpyAsync)                                                                             \
    X(cudaGetErrorString)
#define TP_NCCL_CALLS(X)                                                                           \
    X(ncclGetUniqueId)                                                                             \
    X(ncclCommInitRank)                                                                            \
    X(ncclCommDestroy)                                                                             \
    X(ncclCommAbort)                                                                               \
    X(ncclCommGetAsyncError)                                                                       \
    X(ncclGroupStart)                                                                              \
    X(ncclGroupEnd)                                                                                \
    X(ncclSend)                                                                                    \
    X(ncclRecv)                                                                                    \
    X(ncclGetErrorString)
typedef struct tp_nccl_calls {
#define TP_NCCL_MEMBER(name) __typeof__(name) *name;
    TP_CUDA_CALLS(TP_NCCL_MEMBER)
    TP_NCCL_CALLS(TP_NCCL_MEMBER)
#undef TP_NCCL_MEMBER
} tp_nccl_calls;

/* base: carries the small messages; owned from here on. fault: why there are no calls, or NULL. All
 * ranks come here together, and all fail if one does. */
tp_status tp_transport_nccl_on(tp_transport **out, tp_ctx *c, tp_transport *base,
                               const tp_nccl_calls *calls, const char *fault);
#endif
