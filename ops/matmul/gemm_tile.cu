/* Our own products on CUDA: the arguments of the kernels, and the f32 one. It is plain: a block of
 * 256 threads computes 128 x 128 (or 64 x 64) elements of C, each thread 8 x 8 (or 4 x 4) of them
 * in registers, from two buffers in shared memory that hold 16 steps of k each. */
#include "ops/matmul/gemm_tile_cuda.h"

/* ---- f32 ------------------------------------------------------------------------------------ */
enum { F32_STEP = 16, F32_THREADS = 256, F32_PAD = 4 };

/* A buffer is [k][outer], so that a thread reads its rows of A and columns of B as vectors. Q: how
 * many times 64 the tile is wide; a thread moves 4 Q elements of each operand. */
template <bool ALONG_K, bool FAST, int Q>
static __device__ __forceinline__ void f32_fetch(const tp_tile_side &s, int64_t outer0, int64_t k0,
                                                 int64_t k, float4 r[Q]) {
    const float *p = (const float *)s.p + (int64_t)blockIdx.y * s.batch;
#pragma unroll
    for (int q = 0; q < Q; q++) {
        r[q] = make_float4(0, 0, 0, 0);
        int v = threadIdx.x + F32_THREADS * q;
        if (FAST) {
            int64_t o = outer0 + (ALONG_K ? v / 4 : v % (16 * Q) * 4);
            int64_t step = k0 + (ALONG_K ? v % 4 * 4 : v / (16 * Q));
            if (o < s.count && step < k)
                r[q] = tp_ldg((const float4 *)(p + o * s.outer + step * s.inner));
        } else { /* any strides: one by one */
            float x[4];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int at = threadIdx.x + F32_THREADS * (4 * q + e);
                int64_t o = outer0 + (s.k_first ? at / F32_STEP : at % (64 * Q));
                int64_t step = k0 + (s.k_first ? at % F32_STEP : at / (64 * Q));
                x[e] = o < s.count && step < k ? tp_ldg(p + o * s.outer + step * s.inner) : 0.0f;
            }
            r[q] = make_float4(x[0], x[1], x[2], x[3]);
        }
    }
}

template <bool ALONG_K, bool FAST, int Q>
static __device__ __forceinline__ void f32_put(const tp_tile_side &s, float *to,
                                               const float4 r[Q]) {
    enum { LD = 64 * Q + F32_PAD };
#pragma unroll
    for (int q = 0; q < Q; q++) {
        int v = threadIdx.x + F32_THREADS * q;
        if constexpr (FAST && !ALONG_K) {
            tp_sts((float4 *)(to + v / (16 * Q) * LD + v % (16 * Q) * 4), r[q]);
        } else {
            float x[4] = {r[q].x, r[q].y, r[q].z, r[q].w};
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int at = threadIdx.x + F32_THREADS * (4 * q + e);
                int step = FAST ? v % 4 * 4 + e : s.k_first ? at % F32_STEP : at / (64 * Q);
                int o = FAST ? v / 4 : s.k_first ? at / F32_STEP : at % (64 * Q);
                tp_sts(to + step * LD + o, x[e]);
            }
        }
    }
}

/* acc[i][j] of thread (y,x) of 16 x 16: row 64 (i/4) + 4 y + i%4, column 64 (j/4) + 4 x + j%4. */
template <int Q>
static __device__ __forceinline__ void f32_multiply(const float *as, const float *bs,
                                                    float acc[4 * Q][4 * Q]) {
    enum { LD = 64 * Q + F32_PAD };
    int y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
    for (int step = 0; step < F32_STEP; step++) {
        float a[4 * Q], b[4 * Q];
#pragma unroll
        for (int q = 0; q < Q; q++) {
            float4 u = tp_lds((const float4 *)(as + step * LD + 64 * q + 4 * y));
            float4 v = tp_lds((const float4 *)(bs + step * LD + 64 * q + 4 * x));
            a[4 * q] = u.x, a[4 * q + 1] = u.y, a[4 * q + 2] = u.z, a[4 * q + 3] = u.w;
            b[4 * q] = v.x, b[4 * q + 1] = v.y, b[4 * q + 2] = v.z, b[4 * q + 3] = v.w;
        }
#pragma unroll
        for (int i = 0; i < 4 * Q; i++)
#pragma unroll
            for (int j = 0; j < 4 * Q; j++) acc[i][j] = fmaf(a[i], b[j], acc[i][j]);
    }
}

template <int Q, bool A_K, bool B_K, bool FAST>
__global__ void __launch_bounds__(F32_THREADS, Q == 2 ? 1 : 2) gemm_f32(tp_tile_args g) {
    enum { BUFFER = F32_STEP * (64 * Q + F32_PAD) };
    TP_SHARED(float4, a_buffers, BUFFER / 2);
    TP_SHARED(float4, b_buffers, BUFFER / 2);
    float *as = (float *)(float4 *)a_buffers, *bs = (float *)(float4 *)b_buffers;
    tp_tile_at at = tp_tile_of(g, 64 * Q, 64 * Q);
    float acc[4 * Q][4 * Q];
#pragma unroll
    for (int i = 0; i < 4 * Q; i++)
#pragma unroll
        for (int j = 0; j < 4 * Q; j++) acc[i][j] = 0.0f;
    float4 a[Q] = {}, b[Q] = {};
    f32_fetch<A_K, FAST, Q>(g.a, at.row, 0, g.k, a);
    f32_fetch<B_K, FAST, Q>(g.b, at.col, 0, g.k, b);
    for (int64_t k0 = 0, odd = 0; k0 < g.k; k0 += F32_STEP, odd ^= 1) {
        float *a_now = as + odd * BUFFER, *b_now = bs + odd * BUFFER;
        f32_put<A_K, FAST, Q>(g.a, a_now, a);
        f32_put<B_K, FAST, Q>(g.b, b_now, b);
        __syncthreads(); /* the other buffer's readers wait at the next one */
        if (k0 + F32_STEP < g.k) {
            f32_fetch<A_K, FAST, Q>(g.a, at.row, k0 + F32_STEP, g.k, a);
            f32_fetch<B_K, FAST, Q>(g.b, at.col, k0 + F32_STEP, g.k, b);
        }
        f32_multiply<Q>(a_now, b_now, acc);
    }
    int y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll
    for (int i = 0; i < 4 * Q; i++)
#pragma unroll
        for (int j = 0; j < 4 * Q; j += 2)
            tp_tile_pair(g, blockIdx.y, at.row + i / 4 * 64 + 4 * y + i % 4,
                         at.col + j / 4 * 64 + 4 * x + j % 4, &acc[i][j]);
}

template <int Q, bool A_K, bool B_K, bool FAST>
static tp_status f32_launch(const tp_call *k, const tp_cuda_gemm *g, tp_tile_args *args) {
    args->tiles_m = tp_blocks(g->m, 64 * Q);
    args->tiles_n = tp_blocks(g->n, 64 * Q);
    dim3 grid(args->tiles_m * args->tiles_n, (unsigned)g->batch);
    return TP_LAUNCH(k, (gemm_f32<Q, A_K, B_K, FAST>), grid, F32_THREADS, 0, *args);
}

tp_status tp_gemm_tile_f32(const tp_call *k, const tp_cuda_gemm *g, tp_tile_args *args) {
#define LARGE(A_K, B_K) return f32_launch<2, A_K, B_K, true>(k, g, args)
#define SMALL(A_K, B_K) return f32_launch<1, A_K, B_K, true>(k, g, args)
    if (tp_tile_large(g))
        TP_BY_FAST_LAYOUT(args, g->k, g->batch, 4, LARGE);
    else
        TP_BY_FAST_LAYOUT(args, g->k, g->batch, 4, SMALL);
#undef LARGE
#undef SMALL
    return f32_launch<1, true, true, false>(k, g, args);
}

/* ---- all of them ---------------------------------------------------------------------------- */
static tp_tile_side side_of(const tp_cuda_matrix *x, int64_t count, int64_t outer, int64_t inner,
                            int64_t first) {
    return tp_tile_side{(const char *)x->p + first * x->batch * (int64_t)tp_dtype_size(x->dtype),
                        count,
                        outer,
                        inner,
                        x->batch,
                        (inner < 0 ? -inner : inner) <= (outer < 0 ? -outer : outer)};
}

static tp_tile_args args_of(const tp_cuda_gemm *g, int64_t first) {
    const bool gelu = g->epilogue == TP_EPILOGUE_GELU;
    const int64_t skip = first * g->c.batch * (int64_t)tp_dtype_size(g->c.dtype);
    return tp_tile_args{
        .k = g->k,
        .a = side_of(&g->a, g->m, g->a.row, g->a.col, first),
        .b = side_of(&g->b, g->n, g->b.col, g->b.row, first),
        .c = (char *)(gelu ? g->aux : g->c.p) + skip,
        .gelu = gelu ? (char *)g->c.p + skip : NULL,
        .ldc = g->c.row,
        .c_batch = g->c.batch,
        .bias = g->bias,
        .accumulate = g->accumulate,
        .c_f32 = g->c.dtype == TP_F32,
        .c_pairs = g->n % 2 == 0 && tp_tile_aligned(g, 2),
    };
}

tp_status tp_gemm_tile(const tp_call *k, tp_blas *blas, const tp_cuda_gemm *g) {
    const int64_t most = 65535; /* a grid's y */
    const bool gelu = g->epilogue == TP_EPILOGUE_GELU;
    const tp_cuda_gemm plain = gelu ? tp_gemm_before_gelu(g) : *g;
    tp_tile_args args = args_of(&plain, 0);
    if (tp_gemm_sm90_takes(k, &plain, &args)) {
        tp_status st = tp_gemm_sm90(k, blas, &plain, &args);
        return st || !gelu ? st : tp_gemm_then_gelu(k, g);
    }
    tp_status st = TP_OK;
    for (int64_t first = 0; first < g->batch && !st; first += most) {
        tp_cuda_gemm part = *g;
        part.batch = g->batch - first < most ? g->batch - first : most;
        args = args_of(g, first);
        st = g->a.dtype == TP_F32 ? tp_gemm_tile_f32(k, &part, &args)
                                  : tp_gemm_tile_bf16(k, &part, &args);
    }
    return st;
}
