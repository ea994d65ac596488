/* An op of your own, without touching the library: y = max(x, 0)^2, the activation of Primer (So et
 * al. 2021, arXiv 2109.08668). It is checked, recorded, differentiated twice and printed like any
 * other.
 *
 *   cc custom_op.c $(pkg-config --cflags --libs tapir) -lm -o custom_op && ./custom_op
 *
 * What a program cannot do from outside: put its op into the table that `tapir ops` lists and
 * `ctest -R op.NAME` tests, or have a kernel compiled for three instruction sets. That is what a
 * folder under ops/ is for; the row below moves there as it is, with samples.
 */
#include <tapir/ops.h>
#include <tapir/tapir.h>
#include <math.h>
#include <stdio.h>

/* Shapes: refuse in words, or describe the result. */
static tp_status infer(tp_call *k) {
    tp_status st = tp_need_float(k, 0, "x");
    return st ? st : tp_out_like(k, k->in[0]);
}

/* The formula said plainly, in double: runs for f64, and for whatever the kernels decline. */
static tp_status oracle(const tp_call *k) {
    for (int64_t i = 0, n = tp_numel(k->out[0]); i < n; i++)
        tp_f64(k->out[0])[i] = pow(fmax(tp_f64(k->in[0])[i], 0), 2);
    return TP_OK;
}

/* The kernel: f32 without gaps, in chunks that threads share out. */
static void range(void *arg, int64_t begin, int64_t end) {
    const tp_call *k = (const tp_call *)arg;
    const float *x = tp_f32(k->in[0]);
    float *y = tp_f32(k->out[0]);
    for (int64_t i = begin; i < end; i++) y[i] = x[i] > 0 ? x[i] * x[i] : 0;
}
static tp_status run(const tp_call *k) {
    tp_parallel_for(k->ctx, tp_numel(k->out[0]), 1 << 14, range, (void *)k);
    return TP_OK;
}
static const tp_kernel squared_relu_cpu = {
    .name = "squared_relu_cpu", .decline = tp_decline_unless_f32_dense, .run = run};

/* dx = dy * 2 max(x, 0), in ops: so the backward pass can be differentiated, too. */
static void vjp(const tp_call *k, tp_tensor *const dout[], tp_tensor *din[]) {
    din[0] = tp_mul(k->ctx, dout[0], tp_scale(k->ctx, tp_relu(k->ctx, k->in[0]), 2, 0));
}

static const tp_op squared_relu = {
    .name = "squared_relu",
    .synopsis = "y = max(x,0)^2",
    .infer = infer,
    .kernel = {[TP_CPU] = (const tp_kernel *const[]){&squared_relu_cpu, NULL}},
    .oracle = oracle,
    .vjp = vjp,
    .saves_in = 1, /* bit 0: the vjp reads in[0] */
};

static tp_status apply(tp_ctx *c, void *arg, tp_tensor *const in[], int nin, tp_tensor *out[],
                       int *nout) {
    (void)arg, (void)nin;
    out[(*nout)++] = tp_op1(c, &squared_relu, NULL, in[0]);
    return tp_error_status(c);
}

int main(void) {
    enum { N = 1000 };
    tp_ctx *c;
    if (tp_ctx_new(&c, NULL)) return 1;
    tp_tensor *x64 = tp_tensor_keep(c, TP_F64, TP_SHAPE(N)),
              *x = tp_tensor_keep(c, TP_F32, TP_SHAPE(N));
    for (int i = 0; x && x64 && i < N; i++) {
        tp_f64(x64)[i] = tp_normal(5, TP_RNG_TEST, 0, (uint64_t)i);
        tp_f64(x64)[i] +=
            copysign(0.01, tp_f64(x64)[i]); /* differences need distance from the kink */
        tp_f32(x)[i] = (float)tp_f64(x64)[i];
    }
    /* 1. the gradient, against differences of the oracle */
    tp_gradcheck_result g = {0};
    if (x64) tp_require_grad(x64);
    tp_status st = tp_gradcheck(c, apply, NULL, &x64, 1, &g);
    printf("gradient: %lld derivatives, worst error %.1e\n", (long long)g.checked, g.worst);
    /* 2. the kernel, against the oracle */
    tp_tape_off(c);
    tp_tensor *y = tp_op1(c, &squared_relu, NULL, x), *y64 = tp_op1(c, &squared_relu, NULL, x64);
    double worst = 0;
    for (int i = 0; y && y64 && i < N; i++)
        if (!(fabs((double)tp_f32(y)[i] - tp_f64(y64)[i]) <= worst)) /* a NaN, too */
            worst = fabs((double)tp_f32(y)[i] - tp_f64(y64)[i]);
    printf("kernel: worst error %.1e\n", worst);
    /* 3. what it refuses */
    tp_tensor *ids = tp_tensor_new(c, TP_I32, TP_SHAPE(4));
    if (!st) st = tp_error_status(c);
    if (st || tp_op1(c, &squared_relu, NULL, ids)) fputs("custom_op: ", stderr);
    fprintf(st ? stderr : stdout, "%s\n", tp_error(c));
    tp_ctx_free(c);
    return st || !(g.worst < 1e-8) || !(g.largest > 1) || !(worst < 1e-5);
}
