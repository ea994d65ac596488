/* Products on CUDA: who runs one, and what a context keeps for them. */
#include "ops/matmul/gemm_tile_cuda.h"

static void blas_free(void *p) {
    tp_blas *blas = (tp_blas *)p;
    tp_cublaslt_free(blas->lt);
    tp_free(blas);
}

/* NULL: no memory. */
static tp_blas *blas_of(tp_ctx *c) {
    tp_cuda *cuda = tp_cuda_of(c);
    if (!cuda->blas && (cuda->blas = tp_calloc(c, 1, sizeof(tp_blas)))) cuda->blas_free = blas_free;
    return (tp_blas *)cuda->blas;
}

tp_status tp_cuda_gemm_choose(tp_ctx *c, tp_cuda_gemm_path path) {
    tp_blas *blas = blas_of(c);
    if (blas) blas->path = path;
    return c->status;
}

tp_cuda_gemm_stats tp_cuda_gemm_stats_of(const tp_ctx *c) {
    const tp_blas *blas = (const tp_blas *)tp_cuda_of(c)->blas;
    return blas ? blas->stats : tp_cuda_gemm_stats{};
}

tp_status tp_cuda_gemm_run(const tp_call *k, const tp_cuda_gemm *g) {
    tp_ctx *c = k->ctx;
    if (c->status || !g->batch || !g->m || !g->n) return c->status;
    tp_blas *blas = blas_of(c);
    if (!blas) return c->status;
    bool taken = false;
#if defined(TP_CUDA_ON_CPU)
    bool ask = blas->path == TP_GEMM_CUBLASLT;
#else
    bool ask = blas->path != TP_GEMM_OWN;
#endif
    tp_status st = ask ? tp_gemm_cublaslt(k, blas, g, &taken) : TP_OK;
    if (st || taken) return st;
    blas->stats.own_runs++;
    return tp_gemm_tile(k, g);
}
