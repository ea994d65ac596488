/* What the GPU benchmarks share: random tensors on the device, and times of repeated calls. */
#ifndef TP_BENCH_CUDA_H
#define TP_BENCH_CUDA_H
#include "core/core.h"

tp_status bench_open(tp_ctx **c); /* the GPU; tells on stderr why there is none */
/* N(0, std), kept; the same values for the same name. */
tp_tensor *bench_normal(tp_ctx *c, tp_dtype t, int name, double std, int ndim,
                        const int64_t *shape);
/* Ids 0..n-1, kept. */
tp_tensor *bench_ids(tp_ctx *c, int64_t n, int ndim, const int64_t *shape);
/* Median seconds of one call of fn, launches back to back; what fn makes is released after each. */
double bench_seconds(tp_ctx *c, tp_status (*fn)(tp_ctx *c, void *arg), void *arg);
uint64_t bench_hash(tp_ctx *c, const tp_tensor *t); /* of the tensor's bytes */
#endif
