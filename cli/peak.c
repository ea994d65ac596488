/* Owns the measured peak that MFU is a fraction of. */
#include "cli/cli.h"
#include "core/ctx.h"
#include "ops/convert.h"
#include "ops/matmul/gemm.h"
#include "ops/matmul/matmul.h"
#include "ops/matmul/peak.h"

typedef struct probe {
    int isa;
    bool dot;              /* by the instruction for bf16 */
    double seconds, *best; /* best: a rate for each thread */
} probe;

/* FLOPs of n rounds. */
static double burst(const probe *p, int64_t n) {
    float out[16] = {0.999f, 0.001f};
    double flops = (double)n * TP_FMA_LOOP_FLOPS;
#if defined(__x86_64__)
    if (p->dot) {
        tp_dot_loop_v4(n, out);
        return 2 * flops;
    }
    if (p->isa == 4) {
        tp_fma_loop_v4(n, out);
        return flops;
    }
    if (p->isa == 3) {
        tp_fma_loop_v3(n, out);
        return flops;
    }
#endif
    tp_fma_loop_v1(n, out);
    return flops;
}

/* Each thread keeps the rate of its best burst: bursts are short, so some run undisturbed however
 * busy the machine is. */
static void run(void *arg, int64_t begin, int64_t end) {
    const probe *p = arg;
    enum { N = 1 << 14 };
    for (int64_t i = begin; i < end; i++) {
        double until = tp_now() + p->seconds;
        for (double start = tp_now(); start < until; start = tp_now()) {
            double rate = burst(p, N) / (tp_now() - start);
            if (rate > p->best[i]) p->best[i] = rate;
        }
    }
}

/* An (n,n) matrix of numbers between -1 and 1. Of constants tensor cores would make products with
 * less power, and so at a clock that no training sees. */
static tp_tensor *numbers(tp_ctx *c, tp_dtype t, int64_t n, uint64_t x) {
    const int64_t most = 1 << 20, piece = n * n < most ? n * n : most; /* both are powers of two */
    const size_t bytes = (size_t)piece * tp_dtype_size(t);
    tp_tensor *a = tp_tensor_new(c, t, 2, (int64_t[]){n, n});
    char *host = a ? tp_malloc(c, bytes) : NULL;
    for (int64_t i = 0; host && i < piece; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        const float v = (float)(int32_t)(x >> 32) * 0x1p-31f;
        if (t == TP_BF16)
            ((uint16_t *)host)[i] = tp_f32_to_bf16(v);
        else
            ((float *)host)[i] = v;
    }
    for (int64_t i = 0; host && i < n * n / piece && !tp_error_status(c); i++)
        tp_upload_bytes(c, (char *)a->data + (size_t)i * bytes, host, bytes);
    tp_free(host);
    return tp_error_status(c) ? NULL : a;
}

/* Seconds of one square product on a device, the best of a few. */
static double product_seconds(tp_ctx *c, tp_dtype t, int64_t n) {
    tp_scope s = tp_scope_open(c, "%s", "peak");
    tp_tensor *a = numbers(c, t, n, 1), *b = numbers(c, t, n, 2);
    double best = 1e9;
    for (int i = 0; i < 5 && !tp_sync(c); i++) {
        tp_scope one = tp_scope_open(c, "%s", "");
        double start = tp_now();
        tp_matmul(c, a, b, NULL);
        tp_sync(c);
        if (i && tp_now() - start < best) best = tp_now() - start; /* the first one warms up */
        tp_scope_close(c, one, NULL);
    }
    tp_scope_close(c, s, NULL);
    return best;
}

/* A GPU's peak is that of its library's products, in the dtype that the run computes in: squares
 * that grow until one takes long enough to be timed. */
static double device_peak(tp_ctx *c, tp_dtype t) {
    double rate = 0;
    for (int64_t n = 128; n <= 8192 && !tp_error_status(c); n *= 2) {
        double seconds = product_seconds(c, t, n), r = 2.0 * (double)(n * n * n) / seconds;
        if (r > rate) rate = r;
        if (seconds > 5e-3) break;
    }
    tp_step_end(c);
    tp_pool_forget_peak(c);
    return rate;
}

double tp_measure_peak(tp_ctx *c, const tp_config *cfg) {
    if (c->device != TP_CPU) return device_peak(c, cfg->dtype == TP_CFG_BF16 ? TP_BF16 : TP_F32);
    double best[1024] = {0}, sum = 0;
    int n = tp_threads(c) < 1024 ? tp_threads(c) : 1024;
    bool dot = c->bf16_products && c->isa == 4 && tp_gemm_has_dot();
    probe p = {c->isa, dot, 0.2, best};
    tp_parallel_for(c, n, 1, run, &p);
    for (int i = 0; i < n; i++) sum += best[i];
    return sum;
}
