/* Products on CUDA: our own kernels and cuBLASLt, every layout, size and ending; what they promise
 * about bits; that plans are made once; and the tree of matmul_wgrad. */
#include "core/ctx.h"
#include "expect.h"
#include "ops/convert.h"
#include "ops/gelu/gelu_math.h"
#include "ops/matmul/gemm_cuda.h"
#include "ops/matmul/matmul.h"
#include "ops/matmul/matmul_call.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(TP_CUDA_ON_CPU)
#include "cublasLt.h"
#include "emu.h"
#endif

extern const tp_kernel matmul_wgrad_cuda;

static tp_ctx *open(void) {
    tp_ctx *c;
    char why[TP_WHY_BYTES];
    if (tp_ctx_new(&c, &(tp_ctx_opts){.device = TP_CUDA,
                                      .threads = 1,
                                      .seed = 1,
                                      .memory_limit = (size_t)256 << 20,
                                      .why = why})) {
        printf("no device: %s\n", why);
        exit(1);
    }
    return c;
}

/* ---- host and device matrices --------------------------------------------------------------- */
/* How a matrix lies: rows dense, columns dense, or neither; a few elements lie between, and its
 * first element may stand off the beginning. */
typedef enum lie { ROWS, COLS, NEITHER } lie;
typedef struct matrix {
    int64_t batch, rows, cols, row, col, step, values, first;
    tp_dtype dtype;
    float *host;
    tp_tensor *device;
} matrix;

static float at(const matrix *x, int64_t b, int64_t i, int64_t j) {
    return x->host[x->first + b * x->step + i * x->row + j * x->col];
}

static void upload(tp_ctx *c, matrix *x) {
    x->device = tp_tensor_new(c, x->dtype, 1, &x->values);
    if (!x->device) return;
    if (x->dtype == TP_F32) {
        tp_upload(c, x->device, x->host);
        return;
    }
    uint16_t *h = malloc((size_t)x->values * 2 + 2);
    for (int64_t i = 0; i < x->values; i++) h[i] = tp_f32_to_bf16(x->host[i]);
    tp_upload(c, x->device, h);
    free(h);
}

static void download(tp_ctx *c, matrix *x) {
    if (!x->device) return;
    if (x->dtype == TP_F32) {
        tp_download(c, x->device, x->host);
        return;
    }
    uint16_t *h = malloc((size_t)x->values * 2 + 2);
    tp_download(c, x->device, h);
    for (int64_t i = 0; i < x->values; i++) x->host[i] = tp_bf16_to_f32(h[i]);
    free(h);
}

static matrix make(tp_ctx *c, int name, tp_dtype t, lie how, int64_t gap, int64_t first,
                   int64_t batch, int64_t rows, int64_t cols) {
    matrix x = {.batch = batch, .rows = rows, .cols = cols, .dtype = t, .first = first};
    x.col = how == ROWS ? 1 : how == COLS ? rows + gap : 2;
    x.row = how == ROWS ? cols + gap : how == COLS ? 1 : 2 * cols + 1 + gap;
    x.step = rows * x.row > cols * x.col ? rows * x.row : cols * x.col;
    x.step += how == NEITHER ? 3 : gap;
    x.values = first + batch * x.step + 8;
    x.host = malloc((size_t)x.values * sizeof *x.host);
    for (int64_t i = 0; i < x.values; i++) {
        float v = (float)tp_normal(3, TP_RNG_TEST, (uint64_t)name, (uint64_t)i);
        x.host[i] = t == TP_BF16 ? tp_bf16_to_f32(tp_f32_to_bf16(v)) : v;
    }
    upload(c, &x);
    return x;
}

static tp_cuda_matrix view(const matrix *x) {
    char *p = x->device ? x->device->data : NULL;
    return (tp_cuda_matrix){p + (size_t)x->first * tp_dtype_size(x->dtype), x->dtype, x->row,
                            x->col, x->step};
}

/* ---- one problem ---------------------------------------------------------------------------- */
typedef struct problem {
    const char *name;
    int64_t batch, m, n, k;
    lie a, b;
    int64_t gap, first; /* 8: rows begin at multiples of 16 bytes; odd: anywhere */
    bool bias, accumulate, gelu, c_f32, dgelu;
    int64_t like_n;
} problem;

typedef struct solved {
    matrix a, b, c, bias, aux, before, given; /* given: aux as it was */
} solved;

static matrix copied(const matrix *x) {
    matrix y = *x;
    y.host = malloc((size_t)x->values * sizeof(float));
    memcpy(y.host, x->host, (size_t)x->values * sizeof(float));
    return y;
}

static solved solve(tp_ctx *c, const problem *p, tp_dtype t) {
    static const tp_op op = {.name = "product"};
    tp_call k = {.ctx = c, .op = &op};
    tp_dtype tc = p->c_f32 ? TP_F32 : t;
    solved s = {
        .a = make(c, 1, t, p->a, p->gap, p->first, p->batch, p->m, p->k),
        .b = make(c, 2, t, p->b, p->gap, p->first, p->batch, p->k, p->n),
        .c = make(c, 3, tc, ROWS, p->gap, p->first, p->batch, p->m, p->n),
        .aux = make(c, 4, tc, ROWS, p->gap, p->first, p->batch, p->m, p->n),
        .bias = make(c, 5, tc, ROWS, 0, p->first, 1, 1, p->n),
    };
    s.before = copied(&s.c);
    s.given = copied(&s.aux);
    tp_cuda_gemm g = {.batch = p->batch,
                      .m = p->m,
                      .n = p->n,
                      .k = p->k,
                      .a = view(&s.a),
                      .b = view(&s.b),
                      .c = view(&s.c),
                      .accumulate = p->accumulate,
                      .like_n = p->like_n};
    if (p->bias) g.bias = view(&s.bias).p;
    if (p->gelu || p->dgelu) g.aux = view(&s.aux).p;
    if (p->gelu) g.epilogue = TP_EPILOGUE_GELU;
    if (p->dgelu) g.epilogue = TP_EPILOGUE_DGELU;
    tp_cuda_gemm_run(&k, &g);
    download(c, &s.c);
    download(c, &s.aux);
    return s;
}

static void drop(solved *s) {
    free(s->a.host), free(s->b.host), free(s->c.host);
    free(s->aux.host), free(s->bias.host), free(s->before.host), free(s->given.host);
}

/* The documented value; chain: the documented bits, in f32. */
static double value(const problem *p, const solved *s, int64_t b, int64_t i, int64_t j, bool chain,
                    double *h) {
    double sum = 0;
    float acc = 0;
    for (int64_t l = 0; l < p->k; l++) {
        sum += (double)at(&s->a, b, i, l) * at(&s->b, b, l, j);
        acc = fmaf(at(&s->a, b, i, l), at(&s->b, b, l, j), acc);
    }
    float bias = p->bias ? at(&s->bias, 0, 0, j) : 0, old = at(&s->before, b, i, j);
    if (p->bias) acc += bias;
    if (p->accumulate) acc = old + acc;
    sum += bias + (p->accumulate ? old : 0);
    if (p->dgelu) {
        *h = at(&s->given, b, i, j);
        if (chain) return gelu_dx((float)*h) * acc;
        double t = tanh(0.7978845608028654 * (*h + 0.044715 * *h * *h * *h));
        return sum * (0.5 * (1 + t) +
                      0.5 * *h * (1 - t * t) * 0.7978845608028654 * (1 + 3 * 0.044715 * *h * *h));
    }
    *h = chain ? acc : sum;
    if (!p->gelu) return *h;
    double u = 0.7978845608028654 * (*h + 0.044715 * *h * *h * *h);
    return chain ? (double)gelu_f(acc) : 0.5 * *h * (1 + tanh(u));
}

/* The largest error relative to the largest value; chain: 0 if the bits are the chain's, else 1. */
static double error_of(const problem *p, const solved *s, bool chain) {
    double worst = 0, top = 1e-3;
    for (int64_t b = 0; b < p->batch; b++)
        for (int64_t i = 0; i < p->m; i++)
            for (int64_t j = 0; j < p->n; j++) {
                double h, v = value(p, s, b, i, j, chain, &h);
                double e = fabs(at(&s->c, b, i, j) - v);
                if (p->gelu || p->dgelu) e = fmax(e, fabs(at(&s->aux, b, i, j) - h));
                if (!(e <= worst)) worst = isnan(e) ? INFINITY : e;
                top = fmax(top, fabs(v));
            }
    return chain ? worst > 0 : worst / top;
}

/* What lies between the rows of c is as it was. */
static bool gaps_kept(const problem *p, const solved *s) {
    for (int64_t i = 0; i < s->c.values; i++) {
        int64_t in = (i - s->c.first) % s->c.step, row = in / s->c.row, col = in % s->c.row;
        bool inside =
            i >= s->c.first && (i - s->c.first) / s->c.step < p->batch && row < p->m && col < p->n;
        if (!inside && s->c.host[i] != s->before.host[i]) return false;
    }
    return true;
}

static void check(tp_ctx *c, const problem *p, tp_dtype t, bool exact) {
    char name[160];
    snprintf(name, sizeof name, "%s, %s", p->name, tp_dtype_name(t));
    solved s = solve(c, p, t);
    expect(!tp_error_status(c), tp_error(c), name);
    double tol = t == TP_BF16 && !p->c_f32 ? 1e-2 : 2e-6 * sqrt((double)p->k + 1);
    double e = error_of(p, &s, false);
    if (!(e <= tol)) printf("%s: error %.2e, tolerance %.2e\n", name, e, tol);
    expect(e <= tol, "wrong values", name);
    expect(gaps_kept(p, &s), "wrote outside of c", name);
    if (exact) expect(error_of(p, &s, true) == 0, "not the bits of one chain", name);
    if (p->m && p->n) { /* mutants: a wrong value, another bit, a touched gap */
        int64_t x = s.c.first + (p->m / 2) * s.c.row + p->n / 2;
        float old = s.c.host[x];
        s.c.host[x] = old + (t == TP_BF16 ? 1.0f : 0.05f) * (1 + fabsf(old));
        expect(!(error_of(p, &s, false) <= tol), "a wrong value was accepted", name);
        s.c.host[x] = nextafterf(old, 9e9f);
        if (exact) expect(error_of(p, &s, true) != 0, "a wrong bit was accepted", name);
        s.c.host[x] = old;
        s.c.host[s.c.values - 1] += 1;
        expect(!gaps_kept(p, &s), "a write beside c was accepted", name);
    }
    drop(&s);
    tp_step_end(c);
    tp_clear(c);
}

static const problem problems[] = {
    {"nn", 1, 70, 72, 40, ROWS, ROWS, 8, 0, .bias = true},
    {"nt", 1, 70, 72, 40, ROWS, COLS, 8, 8},
    {"tn", 1, 72, 80, 40, COLS, ROWS, 8, 0, .accumulate = true},
    {"tt", 1, 72, 64, 48, COLS, COLS, 0, 0, .bias = true, .gelu = true},
    {"k of one", 1, 33, 40, 1, ROWS, ROWS, 8, 0},
    {"k of 7 between multiples of 8", 1, 33, 40, 7, ROWS, COLS, 1, 0},
    {"gelu", 1, 40, 64, 64, ROWS, ROWS, 0, 0, .bias = true, .gelu = true},
    {"gelu without bias", 1, 24, 40, 32, ROWS, COLS, 8, 0, .gelu = true},
    {"odd everything", 1, 67, 69, 37, ROWS, ROWS, 3, 1, .bias = true, .gelu = true},
    {"odd, columns", 1, 67, 69, 37, COLS, COLS, 3, 1, .accumulate = true},
    {"neither", 1, 30, 21, 50, NEITHER, NEITHER, 0, 0, .bias = true},
    {"mixed", 1, 30, 24, 50, ROWS, NEITHER, 6, 0, .accumulate = true},
    {"one row", 1, 1, 72, 100, ROWS, COLS, 4, 0, .bias = true},
    {"one column", 1, 72, 1, 100, ROWS, ROWS, 4, 0},
    {"batch", 5, 20, 24, 40, ROWS, COLS, 8, 0},
    {"odd batch", 3, 21, 23, 19, ROWS, ROWS, 1, 0, .accumulate = true},
    {"f32 out", 1, 64, 72, 200, COLS, ROWS, 8, 0, .c_f32 = true},
    {"f32 out, odd", 2, 19, 33, 70, COLS, ROWS, 1, 0, .c_f32 = true, .accumulate = true},
    {"empty k", 1, 9, 16, 0, ROWS, ROWS, 8, 0, .bias = true, .gelu = true},
    {"gelu's derivative", 1, 40, 64, 64, ROWS, COLS, 0, 0, .dgelu = true},
    {"gelu's derivative, gaps", 1, 24, 40, 32, ROWS, ROWS, 8, 0, .dgelu = true},
    {"gelu's derivative, odd", 1, 67, 69, 37, ROWS, COLS, 3, 1, .dgelu = true},
    {"gelu's derivative, batched", 3, 20, 24, 16, ROWS, COLS, 8, 8, .dgelu = true},
    {"empty m", 1, 0, 16, 8, ROWS, ROWS, 8, 0},
    {"many rows of tiles", 1, 1100, 8, 8, ROWS, ROWS, 0, 0},
};
/* Enough work for the large tiles, in each layout. */
static const problem large[] = {
    {"large nn", 24, 140, 136, 40, ROWS, ROWS, 8, 0, .bias = true},
    {"large nt", 24, 140, 136, 40, ROWS, COLS, 8, 0, .accumulate = true},
    {"large tn", 24, 136, 136, 40, COLS, ROWS, 8, 0},
    {"large tt", 24, 136, 136, 40, COLS, COLS, 8, 0, .c_f32 = true},
};
enum { PROBLEMS = sizeof problems / sizeof *problems, LARGE = sizeof large / sizeof *large };

/* ---- bits that do not depend on m ----------------------------------------------------------- */
static void check_rows(tp_ctx *c, const problem *whole, tp_dtype t, const char *who) {
    solved w = solve(c, whole, t);
    static const int64_t some[] = {1, 2, 32, 66};
    bool same = true, mutant = true;
    for (int i = 0; i < 4; i++) {
        problem p = *whole;
        p.m = some[i];
        p.batch = 1;
        solved s = solve(c, &p, t);
        for (int64_t r = 0; r < p.m; r++)
            for (int64_t j = 0; j < p.n; j++) {
                if (at(&s.c, 0, r, j) != at(&w.c, 0, r, j)) same = false;
                if (r && at(&s.c, 0, r - 1, j) != at(&w.c, 0, r, j)) mutant = false;
            }
        drop(&s);
    }
    expect(same && !tp_error_status(c), "a row's bits depend on m", who);
    expect(!mutant, "rows were not compared", who);
    drop(&w);
    tp_step_end(c);
    tp_clear(c);
}

/* ---- the tree of matmul_wgrad --------------------------------------------------------------- */
typedef struct gradient {
    float *dw, *db;
} gradient;
enum { T = 3, IN = 20, OUT = 12 };

static float sample_value(int what, int64_t i, tp_dtype t) {
    float v = (float)tp_normal(9, TP_RNG_TEST, (uint64_t)what, (uint64_t)i);
    return t == TP_BF16 ? tp_bf16_to_f32(tp_f32_to_bf16(v)) : v;
}

static tp_tensor *rows_of(tp_ctx *c, int what, int64_t first, int64_t n, int64_t cols, tp_dtype t) {
    tp_tensor *x = tp_tensor_new(c, t, TP_SHAPE(n, T, cols));
    size_t values = (size_t)(n * T * cols);
    float *f = malloc(values * 4);
    uint16_t *h = malloc(values * 2);
    for (size_t i = 0; i < values; i++) {
        f[i] = sample_value(what, first * T * cols + (int64_t)i, t);
        h[i] = tp_f32_to_bf16(f[i]);
    }
    if (x) tp_upload(c, x, t == TP_F32 ? (void *)f : (void *)h);
    free(f), free(h);
    return x;
}

static float *fetch(tp_ctx *c, tp_tensor *t) {
    int64_t n = t ? tp_numel(t) : 0;
    float *f = calloc((size_t)n + 1, 4);
    if (!t || t->dtype == TP_F32) {
        if (t) tp_download(c, t, f);
        return f;
    }
    uint16_t *h = malloc((size_t)n * 2);
    tp_download(c, t, h);
    for (int64_t i = 0; i < n; i++) f[i] = tp_bf16_to_f32(h[i]);
    free(h);
    return f;
}

/* Runs the kernel by hand, since infer gives bf16 gradients to bf16 inputs. */
static void f32_gradients(tp_ctx *c, tp_tensor *x, tp_tensor *dy, tp_tensor *out[2]) {
    tp_wgrad_opts want = {false, true, true};
    if (tp_matmul_wgrad(c, x, dy, &want, out)) return;
    tp_wgrad_attr attr = {false, true, true};
    out[0] = tp_tensor_new(c, TP_F32, 2, out[0]->shape);
    out[1] = tp_tensor_new(c, TP_F32, 1, out[1]->shape);
    tp_call k = {.ctx = c,
                 .op = tp_op_find("matmul_wgrad"),
                 .kernel = &matmul_wgrad_cuda,
                 .nin = 2,
                 .nout = 2,
                 .in = {x, dy},
                 .out = {out[0], out[1]},
                 .attr = &attr};
    tp_tensor *work =
        tp_tensor_new(c, TP_U8, TP_SHAPE((int64_t)matmul_wgrad_cuda.workspace(&k) + 1));
    if (!out[0] || !out[1] || !work) return;
    k.workspace = work->data;
    matmul_wgrad_cuda.run(&k);
}

static gradient samples(tp_ctx *c, int64_t first, int64_t n, bool transposed, tp_dtype t,
                        bool f32) {
    tp_tensor *out[2];
    tp_tensor *x = rows_of(c, 1, first, n, IN, t), *dy = rows_of(c, 2, first, n, OUT, t);
    if (f32)
        f32_gradients(c, x, dy, out);
    else
        tp_matmul_wgrad(c, x, dy, &(tp_wgrad_opts){transposed, true, true}, out);
    gradient g = {fetch(c, out[0]), fetch(c, out[1])};
    tp_step_end(c);
    return g;
}

static void add_to(gradient *x, const gradient *y) {
    for (int i = 0; i < IN * OUT; i++) x->dw[i] += y->dw[i];
    for (int i = 0; i < OUT; i++) x->db[i] += y->db[i];
    free(y->dw), free(y->db);
}
static bool equal(const gradient *x, const gradient *y) {
    return !memcmp(x->dw, y->dw, IN * OUT * 4) && !memcmp(x->db, y->db, OUT * 4);
}

/* n samples in parts of `part`, added as optim/gradients.c does it; chain: one after another, the
 * mutant. */
static gradient in_parts(tp_ctx *c, int64_t first, int64_t n, int64_t part, bool chain,
                         tp_dtype t) {
    int64_t left = part;
    if (n <= part) return samples(c, first, n, false, t, t == TP_BF16);
    while (2 * left < n) left *= 2;
    if (chain) left = (n - 1) / part * part;
    gradient x = in_parts(c, first, left, part, chain, t);
    gradient y = in_parts(c, first + left, n - left, part, chain, t);
    add_to(&x, &y);
    return x;
}

static double gradient_error(const gradient *g, int64_t n, bool transposed, tp_dtype t) {
    double worst = 0;
    for (int i = 0; i < IN; i++)
        for (int j = 0; j < OUT; j++) {
            double sum = 0;
            for (int64_t r = 0; r < n * T; r++)
                sum += (double)sample_value(1, r * IN + i, t) * sample_value(2, r * OUT + j, t);
            worst = fmax(worst, fabs(sum - g->dw[transposed ? j * IN + i : i * OUT + j]));
        }
    for (int j = 0; j < OUT; j++) {
        double sum = 0;
        for (int64_t r = 0; r < n * T; r++) sum += sample_value(2, r * OUT + j, t);
        worst = fmax(worst, fabs(sum - g->db[j]));
    }
    return worst / sqrt((double)(n * T));
}

static void check_wgrad(tp_ctx *c, const char *who) {
    static const int64_t sizes[] = {5, 8, 12, 16, 32, 40, 163}; /* 163: 21 leaves, two groups */
    for (int i = 0; i < 7; i++)
        for (int transposed = 0; transposed < 2; transposed++)
            for (int bf16 = 0; bf16 < 2; bf16++) {
                tp_dtype t = bf16 ? TP_BF16 : TP_F32;
                gradient g = samples(c, 0, sizes[i], transposed, t, false);
                double tol = bf16 ? 0.03 : 1e-5, e = gradient_error(&g, sizes[i], transposed, t);
                expect(e <= tol && !tp_error_status(c), "wgrad is wrong", who);
                g.dw[7] += bf16 ? 2 : 0.1f;
                expect(gradient_error(&g, sizes[i], transposed, t) > tol,
                       "a wrong gradient was accepted", who);
                free(g.dw), free(g.db);
            }
    static const int64_t splits[][2] = {{16, 8}, {32, 8},   {32, 16}, {20, 8},
                                        {40, 8}, {160, 32}, {320, 64}};
    for (int i = 0; i < 14; i++) {
        int64_t n = splits[i % 7][0], part = splits[i % 7][1];
        tp_dtype t = i < 7 ? TP_F32 : TP_BF16; /* in; gradients are f32 */
        gradient whole = in_parts(c, 0, n, n, false, t);
        gradient parts = in_parts(c, 0, n, part, false, t);
        expect(gradient_error(&whole, n, false, t) <= 1e-5, "f32 gradients are wrong", who);
        expect(equal(&whole, &parts), "a split of the batch changes bits", who);
        free(parts.dw), free(parts.db);
        parts = in_parts(c, 0, n, part, true, t);
        bool chain_is_tree = n <= 3 * part;
        expect(equal(&whole, &parts) == chain_is_tree, "another order gave the same bits", who);
        free(parts.dw), free(parts.db);
        free(whole.dw), free(whole.db);
    }
    expect(!tp_error_status(c), tp_error(c), who);
}

/* ---- cuBLASLt ------------------------------------------------------------------------------- */
static void check_cublaslt(int sm) {
    char who[32];
    snprintf(who, sizeof who, "cuBLASLt, sm_%d", sm);
#if defined(TP_CUDA_ON_CPU)
    emu_set_sm(sm);
    emu_lt = (emu_lt_counts){0};
#endif
    tp_ctx *c = open();
    c->gemm = TP_GEMM_CUBLASLT;
    for (int i = 0; i < PROBLEMS; i++)
        for (int bf16 = 0; bf16 < 2; bf16++) check(c, &problems[i], bf16 ? TP_BF16 : TP_F32, false);
    check_wgrad(c, who);
    tp_cuda_gemm_stats s = tp_cuda_gemm_stats_of(c);
    expect(s.cublaslt_runs > 100 && s.own_runs > 0 && s.own_runs < s.cublaslt_runs,
           "either was not used", who);
    /* the same problems with other m, and again: no new plan, descriptor or heuristic */
    problem p = {"again", 1, 130, 64, 48, ROWS, COLS, 8, 0, .bias = true};
    problem twice = {"again, batched", 3, 130, 64, 48, ROWS, COLS, 8, 0, .bias = true};
    solved once = solve(c, &p, TP_BF16);
    drop(&once);
    tp_cuda_gemm_stats before = tp_cuda_gemm_stats_of(c);
#if defined(TP_CUDA_ON_CPU)
    emu_lt_counts lt = emu_lt;
#endif
    check(c, &p, TP_BF16, false);
    p.m = 7;
    check(c, &p, TP_BF16, false);
    p.m = 64;
    check(c, &p, TP_BF16, false);
    check(c, &twice, TP_BF16, false);
    tp_cuda_gemm_stats after = tp_cuda_gemm_stats_of(c);
    expect(after.plans == before.plans, "a plan was made again", who);
#if defined(TP_CUDA_ON_CPU)
    const int64_t asked =
        emu_lt.checks; /* a recorded step asks nothing that one before has asked */
    for (int i = 0; i < 3; i++)
        check(c,
              &(problem){"again", 1, (int64_t[]){130, 7, 64}[i], 64, 48, ROWS, COLS, 8, 0,
                         .bias = true},
              TP_BF16, false);
    check(c, &twice, TP_BF16, false);
    expect(emu_lt.checks == asked, "an algorithm was looked for again", who);
    for (int64_t m = 1; m < 40; m++) /* more than are remembered */
        check(c, &(problem){"many", 1, m, 64, 48, ROWS, COLS, 8, 0, .bias = true}, TP_BF16, false);
    expect(emu_lt.checks > asked, "nothing was asked for other rows", who);
    before.cublaslt_runs += 39 + 4;
    after = tp_cuda_gemm_stats_of(c);
#endif
    expect(after.cublaslt_runs == before.cublaslt_runs + 4, "cuBLASLt did not run", who);
    p.n = 72;
    check(c, &p, TP_BF16, false);
    expect(tp_cuda_gemm_stats_of(c).plans == after.plans + 1, "another n needs a plan", who);
#if defined(TP_CUDA_ON_CPU)
    expect(emu_lt.objects == lt.objects + 4 && emu_lt.heuristics == lt.heuristics + 1,
           "descriptors or heuristics were made per call", who);
    expect(emu_lt.runs[0] == 0 && emu_lt.runs[1] == 0, "k was split", who);
    for (int i = 2; i < EMU_LT_ALGOS; i++)
        expect(emu_lt.runs[i] > 0, "an algorithm was never used", who);
    before = tp_cuda_gemm_stats_of(c);
    for (int n = 1; n < 3; n++) { /* a single column is ours, and so is a weight's single row */
        check(c, &(problem){"columns", 1, 130, n, 48, ROWS, COLS, 8, 0}, TP_F32, false);
        check(c, &(problem){"a weight's rows", 1, n, 136, 48, COLS, COLS, 8, 0}, TP_F32, false);
        expect(tp_cuda_gemm_stats_of(c).cublaslt_runs == before.cublaslt_runs + 2 * (n > 1),
               "a single column is another's", who);
    }
#endif
    before = tp_cuda_gemm_stats_of(c);
    for (int i = 0; i < 3; i++) { /* the heuristic's first differs */
        problem rows = {"rows", 1, 140, (int64_t[]){136, 144, 152}[i], 40, ROWS, COLS, 8, 0};
        for (int bf16 = 0; bf16 < 2; bf16++) check_rows(c, &rows, bf16 ? TP_BF16 : TP_F32, who);
    }
    expect(tp_cuda_gemm_stats_of(c).later_algos == before.later_algos, "rows were not one's", who);
#if defined(TP_CUDA_ON_CPU)
    for (int i = 0; i < 3; i++) /* what the first cannot do */
        check(c, &(problem){"77", 1, 77, (int64_t[]){136, 144, 152}[i], 40, ROWS, COLS, 8, 0},
              TP_BF16, false);
    expect(tp_cuda_gemm_stats_of(c).later_algos > before.later_algos, "another was not told", who);
    tp_ctx_free(c);
    expect(emu_lt.alive == 0, "something of cuBLASLt was not freed", who);
    emu_set_sm(0);
#else
    tp_ctx_free(c);
#endif
}

/* ---- our own, on Hopper's units ---------------------------------------------------------------
 */
/* Tiles are chosen by how many of them there are for each multiprocessor. */
#if defined(TP_CUDA_ON_CPU)
enum { MULTIPROCESSORS = 4 };
#else
enum { MULTIPROCESSORS = 132 }; /* of an H100; another takes what tiles it likes */
#endif
/* Batches are those for four multiprocessors. */
static const struct wgmma {
    problem p;
    enum tiles { SMALL, FLAT, WIDE } tiles; /* 128 x 64, 128 x 192, 256 x 192 */
} wgmma[] = {
    {{"wgmma nt", 1, 150, 72, 200, ROWS, COLS, 8, 8, .bias = true}, SMALL},
    {{"wgmma nn", 2, 130, 128, 72, ROWS, ROWS, 8, 0, .bias = true, .gelu = true}, SMALL},
    {{"wgmma tn", 3, 72, 200, 130, COLS, ROWS, 8, 0, .accumulate = true, .c_f32 = true}, SMALL},
    {{"wgmma tt", 1, 200, 100, 64, COLS, COLS, 0, 0, .c_f32 = true}, SMALL},
    {{"wgmma, one row", 1, 1, 260, 100, ROWS, COLS, 4, 0}, SMALL},
    {{"wgmma, gelu's derivative", 1, 140, 256, 64, ROWS, COLS, 8, 0, .dgelu = true}, SMALL},
    {{"wgmma, k of 36", 1, 130, 68, 36, ROWS, COLS, 12, 0, .accumulate = true}, SMALL},
    {{"wgmma, long", 3, 130, 136, 520, ROWS, COLS, 8, 0, .c_f32 = true, .bias = true}, SMALL},
    {{"wgmma flat nt", 8, 100, 136, 328, ROWS, COLS, 8, 0, .bias = true}, FLAT},
    {{"wgmma flat nn", 4, 100, 136, 40, ROWS, ROWS, 8, 0, .accumulate = true}, FLAT},
    {{"wgmma flat tn", 4, 104, 136, 70, COLS, ROWS, 8, 0, .c_f32 = true}, FLAT},
    {{"wgmma flat tt", 4, 104, 192, 40, COLS, COLS, 8, 0, .gelu = true}, FLAT},
    {{"wgmma wide nt", 12, 140, 184, 264, ROWS, COLS, 8, 0}, WIDE},
    {{"wgmma wide nn", 4, 140, 136, 40, ROWS, ROWS, 8, 0, .accumulate = true}, WIDE},
    {{"wgmma wide tn", 8, 136, 136, 70, COLS, ROWS, 8, 0, .c_f32 = true}, WIDE},
    {{"wgmma wide tt", 4, 136, 136, 40, COLS, COLS, 8, 0, .gelu = true}, WIDE},
};
enum { WGMMA = sizeof wgmma / sizeof *wgmma };

/* Answers whether this device has Hopper's units. */
static bool check_wgmma_one(tp_ctx *c, const struct wgmma *w) {
    const tp_cuda_gemm_stats before = tp_cuda_gemm_stats_of(c);
    problem p = w->p;
    if (w->tiles != SMALL) p.batch = p.batch / 4 * MULTIPROCESSORS;
    check(c, &p, TP_BF16, false);
    const tp_cuda_gemm_stats after = tp_cuda_gemm_stats_of(c);
    if (after.wgmma_runs == before.wgmma_runs) return false;
#if defined(TP_CUDA_ON_CPU)
    expect(after.wgmma_wide - before.wgmma_wide == (w->tiles == WIDE) &&
               after.wgmma_flat - before.wgmma_flat == (w->tiles == FLAT),
           "other tiles than meant", p.name);
#endif
    return true;
}

static void check_wgmma(void) {
#if defined(TP_CUDA_ON_CPU)
    emu_set_sm(90);
#endif
    tp_ctx *c = open();
    c->gemm = TP_GEMM_OWN;
    const bool hopper = check_wgmma_one(c, &wgmma[0]);
#if defined(TP_CUDA_ON_CPU)
    expect(hopper, "not on Hopper's units", "sm_90");
#endif
    for (int i = 1; i < WGMMA && hopper; i++)
        expect(check_wgmma_one(c, &wgmma[i]), "not on Hopper's units", wgmma[i].p.name);
    if (hopper) { /* a part of a product goes where the whole does */
        problem part = {"part of 1001 columns", 1, 130, 256, 64, ROWS, COLS, 8, 0, .like_n = 1001};
        problem edge = {"edge of 1032 columns", 1, 130, 8, 64, ROWS, COLS, 8, 0, .like_n = 1032};
        tp_cuda_gemm_stats before = tp_cuda_gemm_stats_of(c);
        check(c, &part, TP_BF16, false);
        expect(tp_cuda_gemm_stats_of(c).wgmma_runs == before.wgmma_runs, "the whole would not",
               part.name);
        check(c, &edge, TP_BF16, false);
        expect(tp_cuda_gemm_stats_of(c).wgmma_runs == before.wgmma_runs + 1, "the whole would",
               edge.name);
    }
    if (hopper) { /* those that it leaves to others as well */
        for (int i = 0; i < PROBLEMS + LARGE; i++)
            check(c, i < PROBLEMS ? &problems[i] : &large[i - PROBLEMS], TP_BF16, false);
        const int n = MULTIPROCESSORS; /* wide tiles against small ones */
        check_rows(c, &(problem){"rows", n, 140, 136, 72, ROWS, COLS, 8, 0}, TP_BF16, "wgmma");
        check_rows(c, &(problem){"rows", n, 140, 136, 72, ROWS, ROWS, 8, 0}, TP_BF16, "wgmma");
        check_wgrad(c, "own, sm_90");
    }
    tp_ctx_free(c);
#if defined(TP_CUDA_ON_CPU)
    emu_set_sm(0);
#endif
}

int main(void) {
    tp_ctx *c = open();
    c->gemm = TP_GEMM_OWN;
    for (int i = 0; i < PROBLEMS + LARGE; i++)
        for (int bf16 = 0; bf16 < 2; bf16++)
            check(c, i < PROBLEMS ? &problems[i] : &large[i - PROBLEMS], bf16 ? TP_BF16 : TP_F32,
                  !bf16);
    for (int bf16 = 0; bf16 < 2; bf16++) { /* large tiles against small ones; odd ones likewise */
        check_rows(c, &large[0], bf16 ? TP_BF16 : TP_F32, "own, fast");
        check_rows(c, &(problem){"odd", 1, 140, 37, 41, ROWS, NEITHER, 1, 1},
                   bf16 ? TP_BF16 : TP_F32, "own, any strides");
    }
    check_wgrad(c, "own");
    expect(tp_cuda_gemm_stats_of(c).cublaslt_runs == 0, "cuBLASLt ran uninvited", "own");
    tp_ctx_free(c);
    check_wgmma();
    check_cublaslt(80);
    check_cublaslt(90);
    printf("gemm_cuda: %d checks, %d failed\n", checks, failed);
    return failed != 0;
}
