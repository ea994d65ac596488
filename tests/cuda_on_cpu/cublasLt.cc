/* cuBLASLt's products on the CPU: plain loops, run as a kernel of one thread, and every rule of the
 * documentation that gemm_cublaslt.cu could break checked before. */
#include "cublasLt.h"
#include "cuda_on_cpu.h"
#include "ops/gelu/gelu_math.h"
#include <stdlib.h>

struct emu_lt_handle {
    int unused;
};
struct emu_lt_layout {
    cudaDataType_t type;
    uint64_t rows, cols;
    int64_t ld, offset;
    int32_t batch;
};
struct emu_lt_desc {
    int32_t op[2];
    uint32_t epilogue;
    const void *bias;
    void *aux;
    int64_t aux_ld;
};
struct emu_lt_preference {
    uint64_t workspace;
    uint32_t alignment[4];
};

emu_lt_counts emu_lt;
/* Numbers that nobody makes up. data[1] is which; data[2..5] are the alignments that it was chosen
 * for: a real one may read so many bytes at a time, and asks nobody before it faults. */
static const uint64_t ALGO_MARK = 0x7a61706972616c67u;
static const size_t ALGO_BYTES[EMU_LT_ALGOS] = {4096, 4096, 1 << 20, 0, 512};

extern "C" {
const char *cublasLtGetStatusString(cublasStatus_t e) {
    switch (e) {
    case CUBLAS_STATUS_SUCCESS:
        return "success";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "the resource allocation failed";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "an invalid value was passed";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "the functionality is not supported";
    default:
        return "failed";
    }
}

#define MAKE(T, at)                                                                                \
    *(at) = (struct T *)calloc(1, sizeof(struct T));                                               \
    if (!*(at)) return CUBLAS_STATUS_ALLOC_FAILED;                                                 \
    emu_lt.objects++;                                                                              \
    emu_lt.alive++
static cublasStatus_t destroy(void *p) {
    if (!p) return CUBLAS_STATUS_INVALID_VALUE;
    emu_lt.alive--;
    free(p);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtCreate(cublasLtHandle_t *h) {
    MAKE(emu_lt_handle, h);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t h) { return destroy(h); }
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType_t type,
                                          uint64_t rows, uint64_t cols, int64_t ld) {
    MAKE(emu_lt_layout, l);
    **l = emu_lt_layout{type, rows, cols, ld, 0, 1};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) { return destroy(l); }
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_INVALID_VALUE;
    MAKE(emu_lt_desc, d);
    (*d)->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) { return destroy(d); }
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) {
    MAKE(emu_lt_preference, p);
    for (int i = 0; i < 4; i++) (*p)->alignment[i] = 256; /* as documented */
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) { return destroy(p); }

/* The documented type of every attribute has the size that must be given. */
static cublasStatus_t take(void *to, size_t size, const void *value, size_t bytes) {
    if (size != bytes) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}
#define TAKE(field) return take(&(field), sizeof(field), value, bytes)
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l,
                                                cublasLtMatrixLayoutAttribute_t what,
                                                const void *value, size_t bytes) {
    if (what == CUBLASLT_MATRIX_LAYOUT_ROWS) TAKE(l->rows);
    if (what == CUBLASLT_MATRIX_LAYOUT_COLS) TAKE(l->cols);
    if (what == CUBLASLT_MATRIX_LAYOUT_LD) TAKE(l->ld);
    if (what == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) TAKE(l->batch);
    if (what == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET) TAKE(l->offset);
    return CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d,
                                              cublasLtMatmulDescAttributes_t what,
                                              const void *value, size_t bytes) {
    if (what == CUBLASLT_MATMUL_DESC_TRANSA) TAKE(d->op[0]);
    if (what == CUBLASLT_MATMUL_DESC_TRANSB) TAKE(d->op[1]);
    if (what == CUBLASLT_MATMUL_DESC_EPILOGUE) TAKE(d->epilogue);
    if (what == CUBLASLT_MATMUL_DESC_BIAS_POINTER) TAKE(d->bias);
    if (what == CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER) TAKE(d->aux);
    if (what == CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD) TAKE(d->aux_ld);
    return CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t what,
                                                    const void *value, size_t bytes) {
    if (what == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) TAKE(p->workspace);
    uint32_t v;
    cublasStatus_t e = take(&v, sizeof v, value, bytes);
    if (e || what == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) return e; /* and is not followed */
    int i = what - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
    if (i < 0 || i > 3 || !v || (v & (v - 1))) return CUBLAS_STATUS_INVALID_VALUE;
    p->alignment[i] = v;
    return CUBLAS_STATUS_SUCCESS;
}
} /* extern "C" */

/* ---- one product ---------------------------------------------------------------------------- */
struct emu_lt_product {
    emu_lt_desc d;
    emu_lt_layout a, b, c;
    const void *pa, *pb;
    void *pc;
    float alpha, beta;
    int parts; /* of k, summed apart */
    enum { FORWARD, BACKWARD, INWARD } order;
};

static bool has(const emu_lt_desc *d, int bits) { return (int)(d->epilogue & bits) == bits; }

static bool fits(const emu_lt_product *p) {
    const emu_lt_layout *all[3] = {&p->a, &p->b, &p->c};
    for (int i = 0; i < 3; i++)
        if (all[i]->ld < (int64_t)all[i]->rows || !all[i]->rows || !all[i]->cols ||
            all[i]->batch < 1 || all[i]->batch != p->c.batch)
            return false;
    uint64_t m = p->d.op[0] ? p->a.cols : p->a.rows, ka = p->d.op[0] ? p->a.rows : p->a.cols;
    uint64_t n = p->d.op[1] ? p->b.rows : p->b.cols, kb = p->d.op[1] ? p->b.cols : p->b.rows;
    if (m != p->c.rows || n != p->c.cols || ka != kb || p->a.type != p->b.type) return false;
    if (p->c.type != p->a.type && p->c.type != CUDA_R_32F) return false;
    if (has(&p->d, CUBLASLT_EPILOGUE_BIAS) && !p->d.bias) return false;
    if ((has(&p->d, CUBLASLT_EPILOGUE_GELU) || has(&p->d, CUBLASLT_EPILOGUE_DGELU)) &&
        (!p->d.aux || p->d.aux_ld % 8 || p->d.aux_ld < (int64_t)m || p->c.batch > 1 ||
         (uintptr_t)p->d.aux % 16))
        return false;
    return true;
}

static float get(const void *p, cudaDataType_t t, int64_t i) {
    return t == CUDA_R_32F ? tp_ldg((const float *)p + i)
                           : __bfloat162float(tp_ldg((const __nv_bfloat16 *)p + i));
}
static void put(void *p, cudaDataType_t t, int64_t i, float v) {
    if (t == CUDA_R_32F)
        tp_stg((float *)p + i, v);
    else
        tp_stg((__nv_bfloat16 *)p + i, __float2bfloat16_rn(v));
}

static void multiply(const emu_lt_product *p) {
    int64_t k = (int64_t)(p->d.op[0] ? p->a.rows : p->a.cols);
    for (int64_t s = 0; s < p->c.batch; s++)
        for (int64_t j = 0; j < (int64_t)p->c.cols; j++)
            for (int64_t i = 0; i < (int64_t)p->c.rows; i++) {
                float sum = 0;
                for (int part = 0; part < p->parts; part++) {
                    float x = 0;
                    for (int64_t l = k * part / p->parts; l < k * (part + 1) / p->parts; l++) {
                        bool end = p->order == emu_lt_product::BACKWARD ||
                                   (p->order == emu_lt_product::INWARD && l % 2);
                        int64_t step = p->order == emu_lt_product::INWARD ? l / 2 : l;
                        int64_t q = end ? k - 1 - step : step;
                        int64_t ia = p->d.op[0] ? i * p->a.ld + q : q * p->a.ld + i;
                        int64_t ib = p->d.op[1] ? q * p->b.ld + j : j * p->b.ld + q;
                        x = fmaf(get(p->pa, p->a.type, s * p->a.offset + ia),
                                 get(p->pb, p->b.type, s * p->b.offset + ib), x);
                    }
                    sum += x;
                }
                int64_t at = s * p->c.offset + j * p->c.ld + i;
                float v = p->alpha * sum;
                if (p->beta != 0) v += p->beta * get(p->pc, p->c.type, at);
                if (has(&p->d, CUBLASLT_EPILOGUE_BIAS)) v += get(p->d.bias, p->c.type, i);
                if (has(&p->d, CUBLASLT_EPILOGUE_GELU)) {
                    put(p->d.aux, p->c.type, j * p->d.aux_ld + i, v);
                    v = gelu_f(v);
                }
                if (has(&p->d, CUBLASLT_EPILOGUE_DGELU)) /* aux is read: h, of the result's type */
                    v *= gelu_dx(get(p->d.aux, p->c.type, j * p->d.aux_ld + i));
                put(p->pc, p->c.type, at, v);
            }
}

/* ---- algorithms ----------------------------------------------------------------------------- */
static int which(const cublasLtMatmulAlgo_t *a) {
    return a && a->data[0] == ALGO_MARK && a->data[1] < EMU_LT_ALGOS ? (int)a->data[1] : -1;
}
/* All matrices of x begin at multiples of what the algorithm was chosen for. */
static bool aligned(const void *x, const emu_lt_layout *l, uint64_t bytes) {
    int64_t apart = l->batch > 1 ? l->offset * (l->type == CUDA_R_32F ? 4 : 2) : 0;
    return (uintptr_t)x % bytes == 0 && apart % (int64_t)bytes == 0;
}
static bool does(int algo, const emu_lt_product *p) {
    return algo == 2 ? p->c.cols % 2 == 0 && p->c.batch <= 2 : algo != 3 || p->c.cols != 77;
}

static emu_lt_product product_of(cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
                                 cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c) {
    emu_lt_product p = {};
    p.d = *d, p.a = *a, p.b = *b, p.c = *c;
    return p;
}

extern "C" {
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t d,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t out,
                                              cublasLtMatmulPreference_t pref, int asked,
                                              cublasLtMatmulHeuristicResult_t found[], int *n) {
    emu_lt.heuristics++;
    *n = 0;
    emu_lt_product p = product_of(d, a, b, c);
    if (!h || out != c || !fits(&p)) return CUBLAS_STATUS_INVALID_VALUE;
    /* no algorithm for rows that begin anywhere */
    for (int i = 0; i < 4; i++)
        if (pref->alignment[i] < 4) return CUBLAS_STATUS_NOT_SUPPORTED;
    /* which is thought the fastest depends on the sizes, and on how far apart rows lie */
    bool wide = p.a.ld + p.b.ld + p.c.ld > 2 * (int64_t)(p.a.rows + p.b.rows + p.c.rows);
    bool swap = wide != ((p.c.rows + p.c.cols) % 3 == 0);
    for (int j = 0; j < EMU_LT_ALGOS && *n < asked; j++) {
        int i = j >= 2 && swap ? 6 - j : j;
        if (!does(i, &p) || ALGO_BYTES[i] > pref->workspace) continue;
        cublasLtMatmulHeuristicResult_t r = {};
        r.algo.data[0] = ALGO_MARK;
        r.algo.data[1] = (uint64_t)i;
        for (int e = 0; e < 4; e++) r.algo.data[2 + e] = pref->alignment[e];
        r.workspaceSize = ALGO_BYTES[i];
        found[(*n)++] = r;
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t h, cublasLtMatmulDesc_t d,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t out,
                                       const cublasLtMatmulAlgo_t *algo,
                                       cublasLtMatmulHeuristicResult_t *result) {
    emu_lt.checks++;
    emu_lt_product p = product_of(d, a, b, c);
    int w = which(algo);
    if (!h || out != c || w < 0 || !fits(&p)) return CUBLAS_STATUS_INVALID_VALUE;
    if (!does(w, &p)) return CUBLAS_STATUS_NOT_SUPPORTED;
    *result = cublasLtMatmulHeuristicResult_t{};
    result->algo = *algo;
    result->workspaceSize = ALGO_BYTES[w];
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t what,
                                                    void *value, size_t bytes, size_t *written) {
    int w = which(algo);
    if (w < 0 || bytes != 4) return CUBLAS_STATUS_INVALID_VALUE;
    const int32_t parts = w ? 1 : algo->data[2] == 16 ? -2 : 3; /* -2: stream-K */
    int32_t v =
        what == CUBLASLT_ALGO_CONFIG_SPLITK_NUM ? parts : (w == 1 ? 2 : 0); /* COMPUTE_TYPE */
    memcpy(value, &v, 4);
    *written = 4;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t d, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t la, const void *b,
                              cublasLtMatrixLayout_t lb, const void *beta, const void *c,
                              cublasLtMatrixLayout_t lc, void *out, cublasLtMatrixLayout_t lout,
                              const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
    int w = which(algo);
    emu_lt_product p = product_of(d, la, lb, lc);
    if (!h || w < 0 || c != out || lc != lout || !fits(&p)) return CUBLAS_STATUS_INVALID_VALUE;
    if (!does(w, &p)) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (ALGO_BYTES[w] > workspace_bytes || (ALGO_BYTES[w] && (uintptr_t)workspace % 256))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!aligned(a, la, algo->data[2]) || !aligned(b, lb, algo->data[3]) ||
        !aligned(c, lc, algo->data[4]) || !aligned(out, lout, algo->data[5]))
        return CUBLAS_STATUS_INVALID_VALUE;
    p.pa = a, p.pb = b, p.pc = out;
    memcpy(&p.alpha, alpha, 4);
    memcpy(&p.beta, beta, 4);
    p.parts = w < 2 ? 3 : 1;
    p.order = w == 3   ? emu_lt_product::BACKWARD
              : w == 4 ? emu_lt_product::INWARD
                       : emu_lt_product::FORWARD;
    emu_lt.runs[w]++;
    cudaError_t e = emu_launch_kernel("cublasLtMatmul", nullptr, dim3(1), dim3(1), 0, stream,
                                      [=] { multiply(&p); });
    return e == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
}
