/* Elementwise kernels on the layouts that models make: halves of a (…,2F) buffer, heads of a
 * (B,T,3C) buffer, transposed matrices, repeated rows. In f32 the device has the CPU's bits; in
 * bf16 it has those bits rounded. */
#include "core/ctx.h"
#include "ops/add/add.h"
#include "ops/cast/cast.h"
#include "ops/clamp/clamp.h"
#include "ops/concat/concat.h"
#include "ops/convert.h"
#include "ops/copy/copy.h"
#include "ops/div/div.h"
#include "ops/dropout/dropout.h"
#include "ops/exp/exp.h"
#include "ops/expand/expand.h"
#include "ops/fill/fill.h"
#include "ops/gelu/gelu.h"
#include "ops/log/log.h"
#include "ops/minimum/minimum.h"
#include "ops/mul/mul.h"
#include "ops/relu/relu.h"
#include "ops/reshape/reshape.h"
#include "ops/rope/rope.h"
#include "ops/scale/scale.h"
#include "ops/sigmoid/sigmoid.h"
#include "ops/silu/silu.h"
#include "ops/slice/slice.h"
#include "ops/split/split.h"
#include "ops/sub/sub.h"
#include "ops/swiglu/swiglu.h"
#include "ops/tanh/tanh.h"
#include "ops/transpose/transpose.h"
#include "ops/where/where.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef tp_tensor *(*net)(tp_ctx *c, tp_tensor *x, tp_tensor *y);
static int failed, checks;

/* ---- what is run ---------------------------------------------------------------------------- */
static tp_tensor *half(tp_ctx *c, tp_tensor *x, int i) {
    int64_t f = tp_dim(x, -1) / 2;
    return tp_slice(c, x, -1, i * f, f);
}
static tp_tensor *swiglu(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    (void)y;
    return tp_swiglu(c, half(c, x, 0), half(c, x, 1));
}
static tp_tensor *dgate(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    tp_tensor *d[2];
    tp_swiglu_backward(c, half(c, x, 0), half(c, x, 1), half(c, y, 1), d);
    return d[0];
}
static tp_tensor *dup(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    tp_tensor *d[2];
    tp_swiglu_backward(c, half(c, x, 0), half(c, x, 1), half(c, y, 1), d);
    return d[1];
}
/* heads of the middle third: (B,T,C) as (B,T,4,C/4) */
static tp_tensor *heads(tp_ctx *c, tp_tensor *x) {
    int64_t n = tp_dim(x, -1) / 3;
    tp_tensor *k = tp_slice(c, x, -1, n, n);
    return tp_reshape(c, k, 4, (int64_t[]){tp_dim(x, 0), tp_dim(x, 1), 4, n / 4});
}
static tp_tensor *rope(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    (void)y;
    return tp_rope(c, heads(c, x), NULL);
}
static tp_tensor *rope_part(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    (void)y;
    tp_tensor *h = heads(c, x);
    return tp_rope(c, h,
                   &(tp_rope_opts){.n_rot = tp_dim(h, -1) / 2, .offset = 77, .inverse = true});
}
static tp_tensor *rope_at(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    (void)y;
    int32_t at[64];
    tp_tensor *p = tp_tensor_new(c, TP_I32, 2, (int64_t[]){tp_dim(x, 0), tp_dim(x, 1)});
    for (int i = 0; i < 64; i++) at[i] = (i * 7919) % 1000003;
    tp_upload(c, p, at);
    return tp_rope(c, heads(c, x), &(tp_rope_opts){.theta = 500000, .positions = p});
}
static tp_tensor *attention_layout(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    (void)y;
    return tp_copy(c, tp_transpose(c, heads(c, x), 1, 2));
}
static tp_tensor *key_transposed(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    (void)y;
    return tp_copy(c, tp_permute(c, heads(c, x), (int[]){0, 2, 3, 1}));
}
static tp_tensor *flipped(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    (void)y;
    return tp_copy(c, tp_transpose(c, x, 0, -1));
}
static tp_tensor *thirds(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    tp_tensor *p[3];
    int64_t n = tp_dim(x, -1) / 3, sizes[] = {n, n, tp_dim(x, -1) - 2 * n};
    (void)y;
    tp_split(c, x, -1, 3, sizes, p);
    return tp_concat_sized(c, -1, 3, (tp_tensor *[]){p[2], NULL, p[0]},
                           (int64_t[]){sizes[2], n, n});
}
static tp_tensor *joined_flipped(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    tp_tensor *p[] = {tp_transpose(c, x, 0, -1), tp_transpose(c, y, 0, -1)};
    return tp_concat(c, 1, 2, p);
}
static tp_tensor *row(tp_ctx *c, tp_tensor *x) { /* the first row, (C) */
    tp_tensor *r = tp_slice(c, tp_reshape(c, x, 2, (int64_t[]){-1, tp_dim(x, -1)}), 0, 0, 1);
    return tp_reshape(c, r, 1, (int64_t[]){-1});
}
static tp_tensor *bias(tp_ctx *c, tp_tensor *x, tp_tensor *y) { return tp_add(c, x, row(c, y)); }
static tp_tensor *bias_half(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    return tp_mul(c, half(c, x, 1), half(c, row(c, y), 0));
}
static tp_tensor *columns(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    return tp_sub(c, x, tp_slice(c, y, -1, 3, 1));
}
static tp_tensor *repeated(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    (void)y;
    return tp_copy(c, tp_expand(c, row(c, x), 2, (int64_t[]){5, tp_dim(x, -1)}));
}
static tp_tensor *repeated_columns(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    (void)y;
    tp_tensor *col = tp_slice(c, tp_reshape(c, x, 2, (int64_t[]){-1, tp_dim(x, -1)}), 1, 2, 1);
    return tp_copy(c, tp_expand(c, col, 2, (int64_t[]){tp_dim(col, 0), 9}));
}
static tp_tensor *choose(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    return tp_where(c, tp_less(c, row(c, x), row(c, y)), x, y);
}
static tp_tensor *choose_all(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    return tp_where(c, tp_less(c, x, y), tp_minimum(c, x, y), tp_maximum(c, x, y));
}
static tp_tensor *drop(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    (void)y;
    tp_rng_at(c, 3, 1000);
    return tp_dropout(c, x, 0.25);
}
static tp_tensor *drop_half(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    (void)y;
    tp_rng_at(c, 3, 1000);
    return tp_dropout(c, half(c, x, 1), 0.25);
}
static tp_tensor *add_inplace_flipped(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    tp_tensor *a = tp_copy(c, x);
    tp_add_(c, tp_transpose(c, a, 0, -1), tp_transpose(c, y, 0, -1));
    return a;
}
static tp_tensor *add_inplace_half(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    tp_tensor *a = tp_copy(c, x);
    tp_add_(c, half(c, a, 1), half(c, y, 0));
    return a;
}
static tp_tensor *mul_inplace(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    tp_tensor *a = tp_copy(c, x);
    tp_mul_(c, a, tp_slice(c, row(c, y), 0, 1, 1));
    return a;
}
static tp_tensor *mul_inplace_one(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    tp_tensor *a = tp_copy(c, x);
    tp_mul_(c, a, tp_full(c, y->dtype, 1, 0, NULL));
    return a;
}
#define UNARY(f)                                                                                   \
    static tp_tensor *u_##f(tp_ctx *c, tp_tensor *x, tp_tensor *y) {                               \
        (void)y;                                                                                   \
        return tp_##f(c, x);                                                                       \
    }
#define BINARY(f)                                                                                  \
    static tp_tensor *b_##f(tp_ctx *c, tp_tensor *x, tp_tensor *y) { return tp_##f(c, x, y); }
UNARY(exp)
UNARY(log)
UNARY(relu)
UNARY(sigmoid)
UNARY(silu)
UNARY(tanh)
UNARY(gelu)
BINARY(div)
BINARY(relu_backward)
BINARY(sigmoid_backward)
BINARY(silu_backward)
BINARY(tanh_backward)
BINARY(gelu_backward)
static tp_tensor *scaled(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    (void)y;
    return tp_scale(c, x, -0.3, 0.7);
}
static tp_tensor *clamped(tp_ctx *c, tp_tensor *x, tp_tensor *y) {
    (void)y;
    return tp_clamp(c, x, -0.3, 0.7);
}

/* ---- one run -------------------------------------------------------------------------------- */
typedef struct values {
    int64_t n;
    void *data;
    char why[600];
} values;

static tp_ctx *open_ctx(tp_device d) {
    tp_ctx *c = NULL;
    tp_ctx_new(&c, &(tp_ctx_opts){.device = d, .threads = 1, .seed = 5, .memory_limit = 64 << 20});
    return c;
}

static tp_tensor *input(tp_ctx *c, tp_dtype t, int ndim, const int64_t *shape, uint64_t which) {
    tp_tensor *x = tp_tensor_new(c, t, ndim, shape);
    int64_t n = tp_numel(x);
    tp_tensor host = {.dtype = t, .data = malloc((size_t)n * 8)};
    for (int64_t i = 0; i < n; i++) {
        float v = 3 * (float)tp_normal(9, TP_RNG_TEST, which, (uint64_t)i);
        tp_set(&host, i, tp_is_float(t) ? tp_bf16_to_f32(tp_f32_to_bf16(v)) : floor(fabs(v * 30)));
    }
    tp_upload(c, x, host.data);
    free(host.data);
    return x;
}

static values run(net f, tp_device d, tp_dtype t, int ndim, const int64_t *shape) {
    values v = {0};
    tp_ctx *c = open_ctx(d);
    tp_tensor *x = input(c, t, ndim, shape, 0), *y = input(c, t, ndim, shape, 1);
    tp_tensor *r = tp_contiguous_of(c, f(c, x, y));
    if (r) {
        v.n = tp_numel(r);
        v.data = malloc((size_t)v.n * tp_dtype_size(t) + 1);
        tp_download(c, r, v.data);
    }
    snprintf(v.why, sizeof v.why, "%s", tp_error(c));
    tp_ctx_free(c);
    return v;
}

static void check(bool ok, const char *name, const char *what, const values *v) {
    checks++;
    if (ok) return;
    failed++;
    fprintf(stderr, "FAILED %s: %s %s\n", name, what, v ? v->why : "");
}

/* The first value of got that is not what the CPU has (in bf16: has when rounded); -1: none. */
static int64_t differs(const values *want, const values *got, tp_dtype t) {
    tp_tensor w = {.dtype = t == TP_BF16 ? TP_F32 : t, .data = want->data};
    tp_tensor g = {.dtype = t, .data = got->data};
    size_t size = tp_dtype_size(t);
    for (int64_t i = 0; i < want->n; i++) {
        uint16_t rounded = t == TP_BF16 ? tp_f32_to_bf16(tp_f32(&w)[i]) : 0;
        const char *bits =
            t == TP_BF16 ? (const char *)&rounded : (char *)w.data + (size_t)i * size;
        if (memcmp(bits, (char *)g.data + (size_t)i * size, size) &&
            !(isnan(tp_get(&w, i)) && isnan(tp_get(&g, i))))
            return i;
    }
    return -1;
}

static void compare(const char *name, net f, tp_dtype t, int ndim, const int64_t *shape) {
    values want = run(f, TP_CPU, t == TP_BF16 ? TP_F32 : t, ndim, shape);
    values got = run(f, TP_CUDA, t, ndim, shape);
    bool ok = want.n && want.n == got.n && !*got.why;
    int64_t wrong = ok ? differs(&want, &got, t) : -1;
    char what[100];
    snprintf(what, sizeof what, "%s %d dims ..%lld: value %lld of %lld differs", tp_dtype_name(t),
             ndim, (long long)shape[ndim - 1], (long long)wrong, (long long)want.n);
    check(ok && wrong < 0, name, what, &got);
    int64_t at = ok ? want.n / 2 : 0;
    while (ok && isnan(tp_get(&(tp_tensor){.dtype = t, .data = got.data}, at))) at++;
    if (ok) { /* the mutant: one bit of one value */
        ((char *)got.data)[(size_t)at * tp_dtype_size(t)] ^= 1;
        check(differs(&want, &got, t) >= 0, name, "a wrong bit was accepted", NULL);
    }
    free(want.data);
    free(got.data);
}

#define RUN(f, t, ...)                                                                             \
    compare(#f, f, t, (int)(sizeof((int64_t[]){__VA_ARGS__}) / 8), (int64_t[]){__VA_ARGS__})
#define FLOATS(f, ...)                                                                             \
    do {                                                                                           \
        RUN(f, TP_F32, __VA_ARGS__);                                                               \
        RUN(f, TP_BF16, __VA_ARGS__);                                                              \
    } while (0)
#define ALL(f, ...)                                                                                \
    do {                                                                                           \
        FLOATS(f, __VA_ARGS__);                                                                    \
        RUN(f, TP_U8, __VA_ARGS__);                                                                \
        RUN(f, TP_I64, __VA_ARGS__);                                                               \
        RUN(f, TP_I32, __VA_ARGS__);                                                               \
    } while (0)

/* Every pair of types, with values at the limits. */
static void casts(void) {
    static const double at[] = {
        0,        1,    -1,           2.5,          -2.5,          255,           256,
        300,      -300, 2147483647.0, 2147483648.0, -2147483648.0, -2147483649.0, 9.3e18,
        -9.3e18,  1e30, -1e30,        3.4e38,       1e-40,         1.00390625,    0.1,
        16777217, NAN,  INFINITY,     -INFINITY};
    enum { N = sizeof at / 8, ROWS = 6 };
    for (int from = 0; from < TP_NDTYPE; from++)
        for (int to = 0; to < TP_NDTYPE; to++)
            for (int sliced = 0; sliced < 2; sliced++) {
                char got[2][N * ROWS * 8];
                int64_t n = 0;
                for (int d = 0; d < 2; d++) {
                    tp_ctx *c = open_ctx(d ? TP_CUDA : TP_CPU);
                    tp_tensor *x = tp_tensor_new(c, (tp_dtype)from, 2, (int64_t[]){ROWS, N});
                    tp_tensor host = {.dtype = (tp_dtype)from, .data = calloc(N * ROWS, 8)};
                    for (int i = 0; i < N * ROWS; i++) {
                        double v = at[i % N];
                        if (!tp_is_float(host.dtype) && !(fabs(v) < 2e9)) v = 77;
                        if (host.dtype == TP_U8 && (v < 0 || v > 255)) v = 78;
                        tp_set(&host, i, v);
                    }
                    tp_upload(c, x, host.data);
                    free(host.data);
                    if (sliced) x = tp_slice(c, x, 1, 4, 16);
                    tp_tensor *y = tp_contiguous_of(c, from == to ? tp_copy(c, x)
                                                                  : tp_cast(c, x, (tp_dtype)to));
                    n = y ? tp_numel(y) : 0;
                    if (y) tp_download(c, y, got[d]);
                    if (c->status) fprintf(stderr, "%s\n", tp_error(c)), n = 0;
                    tp_ctx_free(c);
                }
                tp_tensor a = {.dtype = (tp_dtype)to, .data = got[0]}, b = a;
                b.data = got[1];
                int64_t wrong = n ? -1 : 0;
                size_t size = tp_dtype_size((tp_dtype)to);
                for (int64_t i = 0; i < n; i++)
                    if (memcmp(got[0] + (size_t)i * size, got[1] + (size_t)i * size, size) &&
                        !(isnan(tp_get(&a, i)) && isnan(tp_get(&b, i))))
                        wrong = i;
                char what[100];
                snprintf(what, sizeof what, "%s to %s: value %lld", tp_dtype_name((tp_dtype)from),
                         tp_dtype_name((tp_dtype)to), (long long)wrong);
                check(wrong < 0, "cast", what, NULL);
            }
}

int main(void) {
    FLOATS(swiglu, 3, 5, 128);
    FLOATS(swiglu, 3, 5, 40);
    FLOATS(choose_all, 3, 65);
    FLOATS(swiglu, 2, 7, 14);
    FLOATS(dgate, 3, 5, 128);
    FLOATS(dup, 3, 5, 128);
    FLOATS(dup, 3, 5, 24);
    FLOATS(rope, 2, 5, 384);
    FLOATS(rope, 2, 5, 385); /* rows that begin at odd places */
    FLOATS(rope, 2, 21, 96);
    FLOATS(rope, 2, 21, 24);
    FLOATS(rope, 1, 3, 12 * 512);
    FLOATS(rope_part, 2, 5, 384);
    FLOATS(rope_part, 2, 5, 48);
    FLOATS(rope_at, 3, 5, 384);
    ALL(attention_layout, 2, 9, 96);
    ALL(key_transposed, 2, 75, 96);
    ALL(key_transposed, 2, 9, 12 * 70);
    ALL(flipped, 33, 65);
    ALL(flipped, 130, 3, 64);
    ALL(flipped, 5, 200);
    ALL(thirds, 4, 96);
    ALL(thirds, 4, 35);
    ALL(thirds, 3, 4, 192);
    ALL(joined_flipped, 40, 70);
    ALL(joined_flipped, 12, 3, 35);
    FLOATS(bias, 3, 5, 64);
    FLOATS(bias, 3, 5, 30);
    FLOATS(bias_half, 3, 5, 64);
    FLOATS(columns, 3, 5, 64);
    ALL(repeated, 3, 5, 64);
    ALL(repeated_columns, 3, 5, 64);
    FLOATS(choose, 3, 5, 64);
    FLOATS(choose, 3, 5, 21);
    FLOATS(choose_all, 3, 5, 64);
    FLOATS(drop, 3, 5, 64);
    FLOATS(drop, 3, 5, 7);
    FLOATS(drop, 1, 107);
    FLOATS(drop_half, 3, 5, 64);
    FLOATS(drop_half, 3, 5, 18);
    RUN(add_inplace_half, TP_F32, 5, 128);
    FLOATS(add_inplace_flipped, 33, 65);
    FLOATS(add_inplace_half, 5, 128);
    FLOATS(mul_inplace, 5, 67);
    FLOATS(mul_inplace, 5, 64);
    FLOATS(mul_inplace_one, 5, 67);
    net all[] = {
        u_exp,           u_log,           u_relu,          u_sigmoid,       u_silu,
        u_tanh,          u_gelu,          b_div,           b_relu_backward, b_sigmoid_backward,
        b_silu_backward, b_tanh_backward, b_gelu_backward, scaled,          clamped};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) FLOATS(all[i], 5, 1003);
    casts();
    printf("%d checks, %d failed\n", checks, failed);
    return failed != 0;
}
