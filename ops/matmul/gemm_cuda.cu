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

tp_cuda_gemm_stats tp_cuda_gemm_stats_of(const tp_ctx *c) {
    const tp_blas *blas = (const tp_blas *)tp_cuda_of(c)->blas;
    return blas ? blas->stats : tp_cuda_gemm_stats{};
}

/* ---- gelu, or its derivative, behind a product ----------------------------------------------- */
static const int THREADS = 256;
/* c = gelu(h), or c *= gelu'(h), V neighbours of a row each. */
template <typename T, int V, bool SLOPE>
__global__ void __launch_bounds__(THREADS)
    gelu_after(const T *h, T *c, int64_t count, int64_t n, int64_t m, int64_t row, int64_t batch) {
    const int64_t i = V * ((int64_t)blockIdx.x * THREADS + threadIdx.x);
    if (i >= count) return;
    const int64_t r = i / n, b = r / m, at = b * batch + (r - b * m) * row + (i - r * n);
    const tp_vec<T, V> x = tp_load<T, V>(h + at);
    tp_vec<T, V> y = {};
    if (SLOPE) y = tp_load<T, V>(c + at);
#pragma unroll
    for (int e = 0; e < V; e++) {
        const float z = tp_to_f32(x.v[e]);
        y.v[e] = tp_from_f32<T>(SLOPE ? gelu_dx(z) * tp_to_f32(y.v[e]) : gelu_f(z));
    }
    tp_store<T, V>(c + at, y);
}

template <bool SLOPE> static tp_status after(const tp_call *k, const tp_cuda_gemm *g) {
    const int64_t count = g->batch * g->m * g->n, row = g->c.row, batch = g->c.batch;
    TP_BY_FLOAT(g->c.dtype, T, {
        const int V = tp_width<T>::N;
        if (g->n % V == 0 && tp_tile_aligned(g, V))
            return TP_LAUNCH(k, (gelu_after<T, V, SLOPE>), tp_blocks(count, V * THREADS), THREADS,
                             0, (const T *)g->aux, (T *)g->c.p, count, g->n, g->m, row, batch);
        return TP_LAUNCH(k, (gelu_after<T, 1, SLOPE>), tp_blocks(count, THREADS), THREADS, 0,
                         (const T *)g->aux, (T *)g->c.p, count, g->n, g->m, row, batch);
    });
}
tp_status tp_gemm_then_gelu(const tp_call *k, const tp_cuda_gemm *g) { return after<false>(k, g); }

tp_status tp_cuda_gemm_run(const tp_call *k, const tp_cuda_gemm *g) {
    tp_ctx *c = k->ctx;
    if (c->status || !g->batch || !g->m || !g->n) return c->status;
    tp_blas *blas = blas_of(c);
    if (!blas) return c->status;
    bool taken = false;
#if defined(TP_CUDA_ON_CPU)
    bool ask = c->gemm == TP_GEMM_CUBLASLT;
#else
    bool ask = c->gemm != TP_GEMM_OWN;
#endif
    tp_status st = ask ? tp_gemm_cublaslt(k, blas, g, &taken) : TP_OK;
    if (st || taken) return st;
    if (g->epilogue == TP_EPILOGUE_DGELU) {
        tp_cuda_gemm product = *g;
        product.epilogue = TP_EPILOGUE_NONE;
        product.aux = NULL;
        st = tp_cuda_gemm_run(k, &product);
        return st ? st : after<true>(k, g);
    }
    blas->stats.own_runs++;
    return tp_gemm_tile(k, blas, g);
}
