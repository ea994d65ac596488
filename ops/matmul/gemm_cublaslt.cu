/* Products by cuBLASLt.
 *
 * A plan holds a problem's descriptors and the algorithm that was chosen for it, once, at a
 * reference number of rows: cuBLASLt's own choice changes with m, and with it the order in which
 * k is summed, so a row's bits would depend on its neighbours. Only algorithms that do not split
 * k are taken (SPLITK_NUM 1, no reduction scheme), first those that do every number of rows that is
 * asked about. One that cannot do some other m makes way for the next in the plan's list, always
 * the same one.
 *
 * cuBLASLt is column-major: row-major C = A B is computed as C^T = B^T A^T, so its A is our B, its
 * M our n, its N our m. */
#include "ops/matmul/gemm_tile_cuda.h"
#include <cublasLt.h>
#include <string.h>

enum { ASKED = 24, KEPT = 6, CHOICES = 16, BUCKETS = 64, WORKSPACE = 32 << 20 };
static const int64_t REFERENCE_ROWS = 4096;

/* Everything that the choice of an algorithm may depend on. Zeroed before it is filled: compared as
 * bytes. */
typedef struct plan_key {
    int64_t n, k, m; /* m: 0, or that of a weight */
    int64_t lda, ldb, ldc;
    int64_t like_m, like_n;       /* the sizes by which the algorithm is chosen; like_m: 0 as m */
    int32_t a_along_m, b_along_k; /* a's columns, b's columns are dense: op T */
    int32_t dtype, c_dtype, epilogue, align_a, align_b, align_c;
} plan_key;

typedef struct choice {
    int64_t m, batch;
    int algo;      /* does one matrix of it; -1: none; > 0: not with the bits of most other m */
    bool together; /* and all matrices at once */
} choice;

typedef struct plan {
    struct plan *next;
    plan_key key;
    cublasLtMatmulDesc_t op;
    cublasLtMatrixLayout_t a, b, c; /* ours */
    cublasLtMatmulAlgo_t algo[KEPT];
    int algos;
    choice known[CHOICES]; /* those of the last products, so that a step that is recorded asks
                              nothing */
    int choices;           /* so far */
} plan;

typedef struct tp_cublaslt {
    cublasLtHandle_t handle;
    cublasLtMatmulPreference_t preference;
    void *workspace;
    plan *bucket[BUCKETS];
} tp_cublaslt;

/* ---- failures and attributes ---------------------------------------------------------------- */
static tp_status check(const tp_call *k, cublasStatus_t e) {
    if (e == CUBLAS_STATUS_SUCCESS) return TP_OK;
    return tp_fail(k->ctx, e == CUBLAS_STATUS_ALLOC_FAILED ? TP_ENOMEM : TP_EINTERNAL,
                   "%s: cuBLASLt: %s", k->op->name, cublasLtGetStatusString(e));
}

/* "Not this one" is an answer; other bits for another reason would be worse than a sentence. */
static bool refuses(cublasStatus_t *e) {
    const bool no = *e == CUBLAS_STATUS_NOT_SUPPORTED || *e == CUBLAS_STATUS_INVALID_VALUE ||
                    *e == CUBLAS_STATUS_ARCH_MISMATCH;
    if (no) *e = CUBLAS_STATUS_SUCCESS;
    return no;
}
template <typename T>
static void set_op(cublasStatus_t *e, plan *p, cublasLtMatmulDescAttributes_t what, T v) {
    if (!*e) *e = cublasLtMatmulDescSetAttribute(p->op, what, &v, sizeof v);
}
template <typename T>
static void set_layout(cublasStatus_t *e, cublasLtMatrixLayout_t l,
                       cublasLtMatrixLayoutAttribute_t what, T v) {
    if (!*e) *e = cublasLtMatrixLayoutSetAttribute(l, what, &v, sizeof v);
}
template <typename T>
static void set_preference(cublasStatus_t *e, tp_cublaslt *lt,
                           cublasLtMatmulPreferenceAttributes_t what, T v) {
    if (!*e) *e = cublasLtMatmulPreferenceSetAttribute(lt->preference, what, &v, sizeof v);
}

/* ---- opening and closing -------------------------------------------------------------------- */
static void plan_free(plan *p) {
    if (p->op) cublasLtMatmulDescDestroy(p->op);
    if (p->a) cublasLtMatrixLayoutDestroy(p->a);
    if (p->b) cublasLtMatrixLayoutDestroy(p->b);
    if (p->c) cublasLtMatrixLayoutDestroy(p->c);
    tp_free(p);
}

void tp_cublaslt_free(tp_cublaslt *lt) {
    if (!lt) return;
    for (int i = 0; i < BUCKETS; i++)
        for (plan *p = lt->bucket[i], *next; p; p = next) {
            next = p->next;
            plan_free(p);
        }
    if (lt->preference) cublasLtMatmulPreferenceDestroy(lt->preference);
    if (lt->handle) cublasLtDestroy(lt->handle);
    if (lt->workspace) cudaFree(lt->workspace);
    tp_free(lt);
}

static tp_cublaslt *open(const tp_call *k, tp_blas *blas) {
    if (blas->lt) return blas->lt;
    tp_cublaslt *lt = (tp_cublaslt *)tp_calloc(k->ctx, 1, sizeof *lt);
    if (!lt) return NULL;
    cublasStatus_t e = cublasLtCreate(&lt->handle);
    if (!e) e = cublasLtMatmulPreferenceCreate(&lt->preference);
    set_preference(&e, lt, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (uint64_t)WORKSPACE);
    set_preference(&e, lt, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                   (uint32_t)CUBLASLT_REDUCTION_SCHEME_NONE);
    tp_status st = check(k, e);
    if (!st) st = tp_cuda_check(k->ctx, cudaMalloc(&lt->workspace, WORKSPACE), "memory");
    if (st) {
        tp_cublaslt_free(lt);
        return NULL;
    }
    return blas->lt = lt;
}

/* ---- what a product is to cuBLASLt ---------------------------------------------------------- */
/* Of all matrices of a batch, up to 16 bytes. */
static int32_t alignment(const tp_cuda_matrix *x, int64_t batch, const void *p, const void *q) {
    int64_t apart = batch > 1 ? x->batch * (int64_t)tp_dtype_size(x->dtype) : 0;
    uintptr_t all = (uintptr_t)x->p | (uintptr_t)p | (uintptr_t)q | (uintptr_t)apart | 16;
    return (int32_t)(all & (~all + 1)); /* the lowest bit */
}

/* x is rows by cols, dense along its columns or else along its rows. */
static bool dense_side(const tp_cuda_matrix *x, int64_t rows, int64_t cols, int32_t *turned,
                       int64_t *ld) {
    if (x->col == 1 || cols == 1) {
        *turned = 0;
        *ld = rows == 1 && x->row < cols ? cols : x->row;
        return *ld >= cols;
    }
    *turned = 1;
    *ld = x->col;
    return (x->row == 1 || rows == 1) && *ld >= rows;
}

static bool key_of(plan_key *key, const tp_cuda_gemm *g, cublasLtEpilogue_t epilogue) {
    memset(key, 0, sizeof *key);
    if (!g->k || g->batch > 65535) return false;
    if (!dense_side(&g->a, g->m, g->k, &key->a_along_m, &key->lda)) return false;
    if (!dense_side(&g->b, g->k, g->n, &key->b_along_k, &key->ldb)) return false;
    key->n = g->n;
    key->k = g->k;
    key->m = g->m_fixed || key->a_along_m ? g->m : 0;
    key->like_m = key->m && g->like_m ? g->like_m : key->m;
    key->like_n = g->like_n ? g->like_n : g->n;
    /* A single column, or a weight's single row, is ours: cuBLASLt's kernels for such sum in
     * another order when more threads are wanted than the GPU holds at once, of which the algorithm
     * tells nothing. Measured: facebookexperimental/triton, bitequiv/cublas_match/plan.py. */
    if (key->like_n == 1 || key->like_m == 1) return false;
    key->ldc = g->m == 1 && g->c.row < g->n ? g->n : g->c.row;
    key->dtype = g->a.dtype;
    key->c_dtype = g->c.dtype;
    key->epilogue = epilogue;
    key->align_a = alignment(&g->a, g->batch, NULL, NULL);
    key->align_b = alignment(&g->b, g->batch, NULL, NULL);
    key->align_c = alignment(&g->c, g->batch, g->bias, g->aux);
    return key->ldc >= g->n;
}

static bool has_aux(const plan_key *key) {
    return key->epilogue == CUBLASLT_EPILOGUE_GELU_AUX ||
           key->epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS ||
           key->epilogue == CUBLASLT_EPILOGUE_DGELU;
}

static cudaDataType_t type_of(int32_t dtype) { return dtype == TP_F32 ? CUDA_R_32F : CUDA_R_16BF; }

/* The sizes of the three layouts, and how far apart their rows lie. */
static void set_sizes(cublasStatus_t *e, plan *p, int64_t m, int64_t n, const int64_t ld[3]) {
    const plan_key *y = &p->key;
    cublasLtMatrixLayout_t all[3] = {p->a, p->b, p->c};
    set_layout(e, p->a, y->a_along_m ? CUBLASLT_MATRIX_LAYOUT_ROWS : CUBLASLT_MATRIX_LAYOUT_COLS,
               (uint64_t)m);
    set_layout(e, p->b, y->b_along_k ? CUBLASLT_MATRIX_LAYOUT_COLS : CUBLASLT_MATRIX_LAYOUT_ROWS,
               (uint64_t)n);
    set_layout(e, p->c, CUBLASLT_MATRIX_LAYOUT_ROWS, (uint64_t)n);
    set_layout(e, p->c, CUBLASLT_MATRIX_LAYOUT_COLS, (uint64_t)m);
    for (int i = 0; i < 3; i++) set_layout(e, all[i], CUBLASLT_MATRIX_LAYOUT_LD, ld[i]);
}

/* The least distance of rows of this length that are as well aligned as those `ld` apart. */
static int64_t close_rows(int64_t ld, int64_t length) {
    int64_t unit = (ld | 8) & -(ld | 8), close = (length + unit - 1) / unit * unit;
    return unit < 8 && close % (2 * unit) == 0 ? close + unit : close;
}

/* Where it lies, and how many rows and matrices it has, may differ from call to call. */
static void set_call(cublasStatus_t *e, plan *p, const tp_cuda_gemm *g, int64_t m, int64_t batch) {
    set_layout(e, p->a,
               p->key.a_along_m ? CUBLASLT_MATRIX_LAYOUT_ROWS : CUBLASLT_MATRIX_LAYOUT_COLS,
               (uint64_t)m);
    set_layout(e, p->c, CUBLASLT_MATRIX_LAYOUT_COLS, (uint64_t)m);
    cublasLtMatrixLayout_t all[3] = {p->a, p->b, p->c};
    int64_t stride[3] = {g->a.batch, g->b.batch, g->c.batch};
    for (int i = 0; i < 3; i++) {
        set_layout(e, all[i], CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, (int32_t)batch);
        set_layout(e, all[i], CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                   batch > 1 ? stride[i] : (int64_t)0);
    }
    if (g->bias) set_op(e, p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, g->bias);
    if (has_aux(&p->key)) set_op(e, p, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, g->aux);
}

/* ---- plans ---------------------------------------------------------------------------------- */
/* -2 parts are stream-K, which cuts k by how many tiles there are (from where key_of says). */
static bool splits_k(const cublasLtMatmulAlgo_t *algo) {
    int32_t parts = 0;
    uint32_t scheme = 0;
    size_t n;
    return cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts,
                                                sizeof parts, &n) ||
           cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME,
                                                &scheme, sizeof scheme, &n) ||
           parts < 0 || parts > 1 || scheme != CUBLASLT_REDUCTION_SCHEME_NONE;
}

/* A failure of any other kind stays in *e. */
static bool does(cublasStatus_t *e, tp_cublaslt *lt, const plan *p,
                 const cublasLtMatmulAlgo_t *algo) {
    cublasLtMatmulHeuristicResult_t r;
    if (*e) return false;
    *e = cublasLtMatmulAlgoCheck(lt->handle, p->op, p->b, p->a, p->c, p->c, algo, &r);
    return refuses(e) ? false : !*e && !r.state && r.workspaceSize <= WORKSPACE;
}

/* Small, odd, and one more or less than tiles have. */
static bool does_any_rows(cublasStatus_t *e, tp_cublaslt *lt, plan *p, const tp_cuda_gemm *g,
                          const cublasLtMatmulAlgo_t *algo) {
    static const int64_t rows[] = {1, 2, 3, 8, 63, 129, 1000, REFERENCE_ROWS, 65536};
    bool all = true;
    for (size_t i = 0; i < sizeof rows / sizeof *rows && all && !p->key.m; i++) {
        set_call(e, p, g, rows[i], 1);
        all = does(e, lt, p, algo);
    }
    return all;
}

static tp_status describe(const tp_call *k, plan *p) {
    const plan_key *y = &p->key;
    /* rows and columns as cuBLASLt counts them; those that are m are set by each call */
    int64_t m = y->m ? y->m : REFERENCE_ROWS;
    cudaDataType_t type = type_of(y->dtype);
    cublasStatus_t e = cublasLtMatmulDescCreate(&p->op, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!e)
        e = cublasLtMatrixLayoutCreate(&p->a, type, (uint64_t)(y->a_along_m ? m : y->k),
                                       (uint64_t)(y->a_along_m ? y->k : m), y->lda);
    if (!e)
        e = cublasLtMatrixLayoutCreate(&p->b, type, (uint64_t)(y->b_along_k ? y->k : y->n),
                                       (uint64_t)(y->b_along_k ? y->n : y->k), y->ldb);
    if (!e)
        e = cublasLtMatrixLayoutCreate(&p->c, type_of(y->c_dtype), (uint64_t)y->n, (uint64_t)m,
                                       y->ldc);
    set_op(&e, p, CUBLASLT_MATMUL_DESC_TRANSA, (int32_t)(y->b_along_k ? CUBLAS_OP_T : CUBLAS_OP_N));
    set_op(&e, p, CUBLASLT_MATMUL_DESC_TRANSB, (int32_t)(y->a_along_m ? CUBLAS_OP_T : CUBLAS_OP_N));
    set_op(&e, p, CUBLASLT_MATMUL_DESC_EPILOGUE, (uint32_t)y->epilogue);
    if (has_aux(y)) set_op(&e, p, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, y->ldc);
    return check(k, e);
}

/* By the sizes that the problem says it is like, its rows close together: a product over a part of
 * a weight, or into a wider matrix, runs what the whole does, so its bits do not tell. */
static tp_status choose_algorithms(const tp_call *k, tp_cublaslt *lt, plan *p,
                                   const tp_cuda_gemm *g) {
    cublasLtMatmulHeuristicResult_t found[ASKED];
    cublasStatus_t e = CUBLAS_STATUS_SUCCESS;
    const plan_key *y = &p->key;
    int n = 0, usable = 0;
    int64_t m = y->like_m ? y->like_m : REFERENCE_ROWS, ld[3] = {y->lda, y->ldb, y->ldc};
    int64_t close[3] = {close_rows(y->lda, y->a_along_m ? m : y->k),
                        close_rows(y->ldb, y->b_along_k ? y->k : y->like_n),
                        close_rows(y->ldc, y->like_n)};
    set_call(&e, p, g, m, 1);
    set_sizes(&e, p, m, y->like_n, close);
    set_preference(&e, lt, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)p->key.align_b);
    set_preference(&e, lt, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)p->key.align_a);
    set_preference(&e, lt, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)p->key.align_c);
    set_preference(&e, lt, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)p->key.align_c);
    tp_status st = check(k, e);
    if (st) return st;
    e = cublasLtMatmulAlgoGetHeuristic(lt->handle, p->op, p->b, p->a, p->c, p->c, lt->preference,
                                       ASKED, found, &n);
    if (refuses(&e)) n = 0; /* our own kernel takes it */
    if ((st = check(k, e))) return st;
    bool any_rows[ASKED]; /* of the whole, too */
    for (int i = 0; i < n; i++) {
        if (found[i].state || splits_k(&found[i].algo)) continue;
        any_rows[usable] = does_any_rows(&e, lt, p, g, &found[i].algo);
        found[usable++] = found[i];
    }
    set_sizes(&e, p, y->m ? y->m : m, y->n, ld);
    if ((st = check(k, e))) return st;
    for (int first = 1; first >= 0; first--)
        for (int i = 0; i < usable && p->algos < KEPT; i++)
            if (any_rows[i] == first) p->algo[p->algos++] = found[i].algo;
    return TP_OK;
}

static plan *plan_of(const tp_call *k, tp_blas *blas, tp_cublaslt *lt, const plan_key *key,
                     const tp_cuda_gemm *g) {
    uint64_t h = 1469598103934665603u; /* FNV-1a */
    for (size_t i = 0; i < sizeof *key; i++)
        h = (h ^ ((const unsigned char *)key)[i]) * 1099511628211u;
    plan **bucket = &lt->bucket[h % BUCKETS];
    for (plan *p = *bucket; p; p = p->next)
        if (!memcmp(&p->key, key, sizeof *key)) return p;
    plan *p = (plan *)tp_calloc(k->ctx, 1, sizeof *p);
    if (!p) return NULL;
    p->key = *key;
    if (describe(k, p) || choose_algorithms(k, lt, p, g)) {
        plan_free(p);
        return NULL;
    }
    p->next = *bucket;
    blas->stats.plans++;
    return *bucket = p;
}

/* The first of the plan's algorithms that does this m. A batch has no say in it, as leaves of a
 * gradient must have the same bits however many are computed together: what cannot do all matrices
 * at once does one after the other. */
static const choice *choose(const tp_call *k, tp_cublaslt *lt, plan *p, const tp_cuda_gemm *g) {
    for (int i = 0; i < p->choices && i < CHOICES; i++)
        if (p->known[i].m == g->m && p->known[i].batch == g->batch) return &p->known[i];
    cublasStatus_t e = CUBLAS_STATUS_SUCCESS;
    choice found = {g->m, g->batch, -1, false};
    set_call(&e, p, g, g->m, 1);
    for (int i = p->algos - 1; i >= 0; i--)
        if (does(&e, lt, p, &p->algo[i])) found.algo = i;
    set_call(&e, p, g, g->m, g->batch);
    found.together = found.algo >= 0 && does(&e, lt, p, &p->algo[found.algo]);
    if (check(k, e)) return NULL;
    choice *to = &p->known[p->choices++ % CHOICES];
    if (p->choices == 2 * CHOICES) p->choices = CHOICES;
    *to = found;
    return to;
}

static cublasStatus_t multiply(const tp_call *k, tp_cublaslt *lt, plan *p, int algo,
                               const tp_cuda_gemm *g, int64_t first) {
    float one = 1.0f, beta = g->accumulate ? 1.0f : 0.0f;
    size_t size = tp_dtype_size(g->a.dtype), c_size = tp_dtype_size(g->c.dtype);
    const char *a = (const char *)g->a.p + first * g->a.batch * (int64_t)size;
    const char *b = (const char *)g->b.p + first * g->b.batch * (int64_t)size;
    char *c = (char *)g->c.p + first * g->c.batch * (int64_t)c_size;
    return cublasLtMatmul(lt->handle, p->op, &one, b, p->b, a, p->a, &beta, c, p->c, c, p->c,
                          &p->algo[algo], lt->workspace, WORKSPACE, tp_cuda_stream(k->ctx));
}

static tp_status run_plan(const tp_call *k, tp_blas *blas, const tp_cuda_gemm *g,
                          cublasLtEpilogue_t epilogue, bool *taken) {
    plan_key key;
    *taken = false;
    if (!key_of(&key, g, epilogue)) return TP_OK;
    tp_cublaslt *lt = open(k, blas);
    plan *p = lt ? plan_of(k, blas, lt, &key, g) : NULL;
    if (!p) return k->ctx->status;
    const choice *how = choose(k, lt, p, g);
    if (!how || how->algo < 0) return k->ctx->status;
    *taken = true;
    blas->stats.cublaslt_runs++;
    blas->stats.later_algos += how->algo > 0;
    cublasStatus_t e = CUBLAS_STATUS_SUCCESS;
    set_call(&e, p, g, g->m, how->together ? g->batch : 1);
    for (int64_t i = 0; i < (how->together ? 1 : g->batch) && !e; i++)
        e = multiply(k, lt, p, how->algo, g, i);
    return check(k, e);
}

/* ---- products that end in a gelu ------------------------------------------------------------ */
/* On Hopper the product has to do with h itself: it writes h and gelu(h), or reads h for gelu'(h).
 * Ampere's kernels lose more by it than a pass over h costs. */
static bool fuses(const tp_call *k, const tp_cuda_gemm *g) {
    return tp_cuda_of(k->ctx)->sm >= 90 && g->c.dtype == TP_BF16 && g->c.row % 8 == 0 &&
           g->batch == 1 && tp_aligned(g->aux, 16);
}

static tp_status run_gelu(const tp_call *k, tp_blas *blas, const tp_cuda_gemm *g, bool *taken) {
    tp_status st = TP_OK;
    *taken = false;
    if (fuses(k, g))
        st =
            run_plan(k, blas, g,
                     g->bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX, taken);
    if (st || *taken) return st;
    const tp_cuda_gemm h = tp_gemm_before_gelu(g);
    st = run_plan(k, blas, &h, h.bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT, taken);
    return st || !*taken ? st : tp_gemm_then_gelu(k, g);
}

tp_status tp_gemm_cublaslt(const tp_call *k, tp_blas *blas, const tp_cuda_gemm *g, bool *taken) {
    if (g->epilogue == TP_EPILOGUE_GELU) return run_gelu(k, blas, g, taken);
    if (g->epilogue == TP_EPILOGUE_DGELU) /* else a product, and a pass behind it: gemm_cuda.cu */
        return fuses(k, g) ? run_plan(k, blas, g, CUBLASLT_EPILOGUE_DGELU, taken) : TP_OK;
    return run_plan(k, blas, g, g->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT,
                    taken);
}
