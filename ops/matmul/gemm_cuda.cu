/* Products on CUDA: who runs one. */
#include "ops/matmul/gemm_tile_cuda.h"

tp_status tp_cuda_gemm_run(const tp_call *k, const tp_cuda_gemm *g) {
    if (k->ctx->status || !g->batch || !g->m || !g->n) return k->ctx->status;
    return tp_gemm_tile(k, g);
}
