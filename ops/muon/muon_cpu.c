/* momentum_ and newton_schulz on the CPU. */
#include "ops/matmul/gemm.h"
#include "ops/muon/newton_schulz.h"
#include "ops/sgd/sgd_math.h"

/* ---- momentum_ ------------------------------------------------------------------------------ */
typedef struct job {
    float *b, *u;
    const float *g;
    float scale, mu;
    bool nesterov;
} job;

static void momentum_range(void *arg, int64_t begin, int64_t end) {
    const job *j = arg;
    float *restrict b = j->b, *restrict u = j->u;
    const float *restrict g = j->g;
    float scale = j->scale, mu = j->mu;
    bool nesterov = j->nesterov;
    if (g)
        for (int64_t i = begin; i < end; i++) u[i] = momentum_f(&b[i], scale * g[i], mu, nesterov);
    else
        for (int64_t i = begin; i < end; i++) u[i] = momentum_f(&b[i], 0.0f, mu, nesterov);
}

static tp_status momentum_run(const tp_call *k) {
    const tp_momentum_opts *o = k->attr;
    job j = {tp_f32(k->in[0]),
             tp_f32(k->out[0]),
             k->in[1] ? tp_f32(k->in[1]) : NULL,
             o->grad_scale == 0 ? 1.0f : (float)o->grad_scale,
             (float)o->momentum,
             o->nesterov};
    tp_parallel_for(k->ctx, tp_numel(k->in[0]), 1 << 15, momentum_range, &j);
    return TP_OK;
}
TP_CPU_KERNEL(momentum_cpu, .decline = tp_decline_unless_f32_dense, .run = momentum_run);

/* ---- newton_schulz -------------------------------------------------------------------------- */
typedef struct work { /* one block */
    tp_ctx *c;
    ns_shape s;
    double *row;        /* (rows): squared lengths */
    float *gram, *poly; /* (small, small) */
    float *spare;       /* (rows, cols), dense: the iterate is in turns here and in the output */
    void *gemm;
    const float *src;
    float *dst;
    int64_t dst_ld;
    float factor;
} work;

/* gram = x x^T, or x^T x of a tall block */
static tp_gemm gram_gemm(const work *w, const float *x, int64_t ld) {
    const ns_shape *s = &w->s;
    tp_gemm g = {.m = s->small,
                 .n = s->small,
                 .k = s->large,
                 .a = x,
                 .b = x,
                 .c = w->gram,
                 .ldc = s->small,
                 .work = w->gemm};
    g.a_rs = g.b_cs = s->tall ? 1 : ld;
    g.a_cs = g.b_rs = s->tall ? ld : 1;
    return g;
}

static tp_gemm square_gemm(const work *w) {
    int64_t n = w->s.small;
    return (tp_gemm){.m = n,
                     .n = n,
                     .k = n,
                     .a = w->gram,
                     .a_rs = n,
                     .a_cs = 1,
                     .b = w->gram,
                     .b_rs = n,
                     .b_cs = 1,
                     .c = w->poly,
                     .ldc = n,
                     .work = w->gemm};
}

/* y = poly x, or x poly of a tall block */
static tp_gemm apply_gemm(const work *w, const float *x, int64_t ld, float *y, int64_t y_ld) {
    const ns_shape *s = &w->s;
    tp_gemm g = {.m = s->rows, .n = s->cols, .k = s->small, .c = y, .ldc = y_ld, .work = w->gemm};
    g.a = s->tall ? x : w->poly;
    g.a_rs = s->tall ? ld : s->small;
    g.b = s->tall ? w->poly : x;
    g.b_rs = s->tall ? s->small : ld;
    g.a_cs = g.b_cs = 1;
    return g;
}

static void row_squares(void *arg, int64_t begin, int64_t end) {
    const work *w = arg;
    for (int64_t i = begin; i < end; i++) {
        const float *restrict x = w->src + i * w->s.ld;
        double lane[16] = {0}, sum = 0;
        int64_t j = 0, n = w->s.cols;
        for (; j + 16 <= n; j += 16)
            for (int l = 0; l < 16; l++) lane[l] += (double)x[j + l] * (double)x[j + l];
        for (int l = 0; j < n; j++, l++) lane[l] += (double)x[j] * (double)x[j];
        for (int l = 0; l < 16; l++) sum += lane[l];
        w->row[i] = sum;
    }
}

static void scale_rows(void *arg, int64_t begin, int64_t end) {
    const work *w = arg;
    for (int64_t i = begin; i < end; i++) {
        const float *restrict x = w->src + i * w->s.ld;
        float *restrict y = w->dst + i * w->dst_ld;
        for (int64_t j = 0; j < w->s.cols; j++) y[j] = x[j] * w->factor;
    }
}

/* poly = a I + b gram + c gram^2, with gram^2 already in poly */
static void poly_rows(void *arg, int64_t begin, int64_t end) {
    const work *w = arg;
    int64_t n = w->s.small;
    for (int64_t i = begin; i < end; i++) {
        const float *restrict g = w->gram + i * n;
        float *restrict p = w->poly + i * n;
        for (int64_t j = 0; j < n; j++) p[j] = fmaf((float)NS_C, p[j], (float)NS_B * g[j]);
        p[i] += (float)NS_A;
    }
}

static void normalise(work *w) {
    int64_t grain = 1 + (1 << 14) / (w->s.cols + 1);
    tp_parallel_for(w->c, w->s.rows, grain, row_squares, w);
    double sum = 0;
    for (int64_t i = 0; i < w->s.rows; i++) sum += w->row[i];
    w->factor = (float)(1 / (sqrt(sum) + NS_EPSILON));
    tp_parallel_for(w->c, w->s.rows, grain, scale_rows, w);
}

static void iterate(work *w, const float *src, float *out) {
    bool in_out = w->s.steps % 2 == 0; /* so that the last step ends in out */
    w->src = src;
    w->dst = in_out ? out : w->spare;
    w->dst_ld = in_out ? w->s.ld : w->s.cols;
    normalise(w);
    for (int i = 0; i < w->s.steps; i++, in_out = !in_out) {
        const float *x = in_out ? out : w->spare;
        int64_t ld = in_out ? w->s.ld : w->s.cols;
        tp_gemm gram = gram_gemm(w, x, ld), square = square_gemm(w);
        tp_gemm apply = apply_gemm(w, x, ld, in_out ? w->spare : out, in_out ? w->s.cols : w->s.ld);
        TP_CAT(tp_gemm_run, TP_ISA)(w->c, &gram);
        TP_CAT(tp_gemm_run, TP_ISA)(w->c, &square);
        tp_parallel_for(w->c, w->s.small, 1 + (1 << 14) / (w->s.small + 1), poly_rows, w);
        TP_CAT(tp_gemm_run, TP_ISA)(w->c, &apply);
    }
}

typedef struct room {
    char *base; /* NULL: only measure */
    size_t used;
} room;

static void *carve(room *r, size_t bytes) {
    void *p = r->base ? r->base + r->used : NULL;
    r->used += (bytes + 63) & ~(size_t)63;
    return p;
}

static size_t lay_out(work *w, const tp_call *k, void *base) {
    room r = {base, 0};
    *w = (work){.c = k->ctx, .s = ns_shape_of(k)};
    size_t n = (size_t)w->s.small;
    w->row = carve(&r, (size_t)w->s.rows * sizeof(double));
    w->gram = carve(&r, n * n * sizeof(float));
    w->poly = carve(&r, n * n * sizeof(float));
    w->spare = carve(&r, (size_t)(w->s.rows * w->s.cols) * sizeof(float));
    tp_gemm g[] = {gram_gemm(w, NULL, w->s.cols), gram_gemm(w, NULL, w->s.ld), square_gemm(w),
                   apply_gemm(w, NULL, w->s.cols, NULL, w->s.ld),
                   apply_gemm(w, NULL, w->s.ld, NULL, w->s.cols)};
    size_t most = 0;
    for (size_t i = 0; i < sizeof g / sizeof *g; i++) {
        size_t bytes = tp_gemm_workspace(&g[i], tp_threads(k->ctx));
        if (bytes > most) most = bytes;
    }
    w->gemm = carve(&r, most);
    return r.used;
}

static size_t newton_schulz_workspace(const tp_call *k) {
    work w;
    return lay_out(&w, k, NULL);
}

static tp_status newton_schulz_run(const tp_call *k) {
    work w;
    if (tp_numel(k->in[0]) == 0) return TP_OK;
    lay_out(&w, k, k->workspace);
    for (int64_t i = 0; i < w.s.blocks; i++)
        iterate(&w, tp_f32(k->in[0]) + i * w.s.step, tp_f32(k->out[0]) + i * w.s.step);
    return TP_OK;
}

static const char *decline(const tp_call *k) {
    if (tp_numel(k->in[0]) && !tp_contiguous(k->in[0])) return "x is strided";
    return tp_decline_unless_f32(k);
}
TP_CPU_KERNEL(newton_schulz_cpu, .decline = decline, .run = newton_schulz_run,
              .workspace = newton_schulz_workspace);
